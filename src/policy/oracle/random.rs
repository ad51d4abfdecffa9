//! Random clusters and packets. Every choice is one of few, so that what a policy says often meets a pod, and shrinks
//! to what is simplest.

use super::Packet;
use super::cluster::{
    Cluster, Edit, Kind, NODE_ADDRESSES, NamespaceSeed, PORTS, PodSeed, PolicySeed, STRANGERS, Seeds, Shot,
    ip, pod_address,
};
use crate::model::{Labels, Model};
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort,
    NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A cluster, the same after some edits, and packets in each.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) before: Cluster,
    pub(crate) after: Cluster,
    pub(crate) early: Vec<Packet>,
    pub(crate) late: Vec<Packet>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "before:\n{:?}{:#?}", self.before, self.early)?;
        writeln!(f, "after:\n{:?}{:#?}", self.after, self.late)
    }
}

/// Cases of at most so many packets in each of both states; half of that is the mean.
pub(crate) fn case(packets: usize) -> impl Strategy<Value = Case> {
    let shots = || vec(shot(), 1..=packets);
    (seeds(), vec(edit(), 0..=3), shots(), shots()).prop_map(|(seeds, edits, early, late)| {
        let before = Cluster::new(&seeds, &Model::default());
        let after = Cluster::new(&seeds.edited(&edits), &before.model);
        let early = early.iter().map(|shot| before.packet(shot)).collect();
        let late = late.iter().map(|shot| after.packet(shot)).collect();
        Case { before, after, early, late }
    })
}

fn seeds() -> impl Strategy<Value = Seeds> {
    let pods = (first_pod(), vec(pod(), 0..=9)).prop_map(|(first, mut pods)| {
        pods.insert(0, first);
        pods
    });
    (vec(namespace(), 1..=4), pods, prop_oneof![1 => vec(policy(), 0..=2), 4 => vec(policy(), 3..=6)])
        .prop_map(|(namespaces, pods, policies)| Seeds { namespaces, pods, policies })
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (any::<Index>(), policy()).prop_map(|(at, seed)| Edit::Policy(at, seed)),
        (any::<Index>(), pod()).prop_map(|(at, seed)| Edit::Pod(at, seed)),
        (any::<Index>(), namespace()).prop_map(|(at, seed)| Edit::Namespace(at, seed)),
    ]
}

fn rarely() -> impl Strategy<Value = bool> {
    prop::bool::weighted(0.1)
}

/// Keys of labels; only namespaces have the last.
const KEYS: [&str; 3] = ["app", "env", "kubernetes.io/metadata.name"];
/// Values of the first two; an empty one is not the same as none.
const VALUES: [&str; 3] = ["x", "y", ""];
const NAMESPACES: [&str; 4] = ["n0", "n1", "n2", "n3"];

fn labels() -> impl Strategy<Value = Labels> {
    let value =
        || prop_oneof![3 => Just(None), 6 => select(&VALUES[..2]).prop_map(Some), 1 => Just(Some(""))];
    [value(), value()].prop_map(|values| {
        let pairs = KEYS.into_iter().zip(values);
        pairs.filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned()))).collect()
    })
}

/// Number of a namespace: most are in few.
fn home() -> impl Strategy<Value = u8> {
    prop_oneof![4 => Just(0), 3 => Just(1), 1 => Just(2), 1 => Just(3)]
}

fn namespace() -> impl Strategy<Value = NamespaceSeed> {
    (prop::bool::weighted(0.2), labels()).prop_map(|(missing, labels)| NamespaceSeed { missing, labels })
}

fn first_pod() -> impl Strategy<Value = PodSeed> {
    pod().prop_map(|pod| PodSeed { gone: false, local: true, kind: Kind::Plain, ..pod })
}

fn pod() -> BoxedStrategy<PodSeed> {
    let kind = prop_oneof![
        12 => Just(Kind::Plain),
        2 => Just(Kind::HostNetwork),
        1 => Just(Kind::Finished),
        1 => Just(Kind::FinishedAndReplaced),
    ];
    let families = prop_oneof![1 => Just([true, false]), 1 => Just([false, true]), 2 => Just([true, true])];
    let ports = subsequence((0..PORTS.len()).collect::<Vec<_>>(), 0..=PORTS.len());
    let flags = (rarely(), prop::bool::weighted(0.7), rarely());
    (flags, home(), labels(), ports, families, kind)
        .prop_map(|((gone, local, unreported), namespace, labels, ports, families, kind)| PodSeed {
            gone,
            namespace,
            labels,
            ports,
            families,
            local,
            kind,
            unreported,
        })
        .boxed()
}

fn policy() -> BoxedStrategy<PolicySeed> {
    (rarely(), home(), spec())
        .prop_map(|(gone, namespace, spec)| PolicySeed { gone, namespace, spec })
        .boxed()
}

const TYPES: [Option<&[&str]>; 6] = [
    None,
    Some(&["Ingress"]),
    Some(&["Egress"]),
    Some(&["Ingress", "Egress"]),
    Some(&[]),
    Some(&["Ingress", "Ingress"]),
];

fn spec() -> impl Strategy<Value = NetworkPolicySpec> {
    let types = select(&TYPES[..]);
    let rules = || weighted(0.8, vec(rule(), 0..=3));
    (weighted(0.8, selector()), types, rules(), rules()).prop_map(|(pod_selector, types, ingress, egress)| {
        let ingress = ingress.map(|rules| {
            rules.into_iter().map(|(from, ports)| NetworkPolicyIngressRule { from, ports }).collect()
        });
        let egress = egress.map(|rules| {
            rules.into_iter().map(|(to, ports)| NetworkPolicyEgressRule { ports, to }).collect()
        });
        let policy_types = types.map(|types| types.iter().map(|kind| (*kind).to_owned()).collect());
        NetworkPolicySpec { egress, ingress, pod_selector, policy_types }
    })
}

type Rule = (Option<Vec<NetworkPolicyPeer>>, Option<Vec<NetworkPolicyPort>>);

fn rule() -> impl Strategy<Value = Rule> {
    (weighted(0.8, list(peer())), weighted(0.5, list(port())))
}

/// Rarely empty.
fn list<T: fmt::Debug + Clone + 'static>(
    element: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Vec<T>> {
    let element = element.boxed();
    prop_oneof![1 => Just(Vec::new()), 12 => vec(element, 1..=3)]
}

fn peer() -> impl Strategy<Value = NetworkPolicyPeer> {
    let (none, some) = (|| Just(None).boxed(), || selector().prop_map(Some).boxed());
    let selectors = prop_oneof![3 => (some(), none()), 2 => (none(), some()), 2 => (some(), some())];
    let selected = selectors.prop_map(|(pod_selector, namespace_selector)| NetworkPolicyPeer {
        ip_block: None,
        namespace_selector,
        pod_selector,
    });
    let blocked =
        block().prop_map(|block| NetworkPolicyPeer { ip_block: Some(block), ..NetworkPolicyPeer::default() });
    prop_oneof![7 => selected, 4 => blocked]
}

fn selector() -> BoxedStrategy<LabelSelector> {
    let pair = || (select(&KEYS[..2]), select(&VALUES));
    let pairs = prop_oneof![1 => vec(pair(), 0), 6 => vec(pair(), 1), 1 => vec(pair(), 2)];
    let labels = pairs.prop_map(|pairs| {
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect::<Labels>()
    });
    (weighted(0.5, labels), weighted(0.5, vec(requirement(), 0..=2)))
        .prop_map(|(match_labels, match_expressions)| LabelSelector { match_expressions, match_labels })
        .boxed()
}

fn requirement() -> impl Strategy<Value = LabelSelectorRequirement> {
    let key = prop_oneof![4 => Just(KEYS[0]), 4 => Just(KEYS[1]), 2 => Just(KEYS[2])];
    let operator = select(&["In", "NotIn", "Exists", "DoesNotExist"][..]);
    let chosen = subsequence(vec![0_usize, 1, 2], 1..=2);
    (key, operator, chosen, any::<bool>()).prop_map(|(key, operator, chosen, empty)| {
        let known: &[&str] = if key == KEYS[2] { &NAMESPACES } else { &VALUES };
        let values: Vec<String> = chosen.into_iter().map(|at| known[at].to_owned()).collect();
        let values = match operator {
            "In" | "NotIn" => Some(values),
            _ => empty.then(Vec::new),
        };
        LabelSelectorRequirement { key: key.to_owned(), operator: operator.to_owned(), values }
    })
}

/// An address as a number, and how many bits it has.
fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (u32::from(v4).into(), 32),
        IpAddr::V6(v6) => (v6.into(), 128),
    }
}

fn cidr(bits: u128, width: u32, prefix: u32) -> String {
    let address = match u32::try_from(bits) {
        Ok(bits) if width == 32 => IpAddr::from(Ipv4Addr::from(bits)),
        _ => IpAddr::from(Ipv6Addr::from(bits)),
    };
    format!("{address}/{prefix}")
}

/// Blocks around an address that somebody may have. `::/0` and `::/80` are around every mapped IPv4 address.
fn block() -> impl Strategy<Value = IPBlock> {
    const PREFIXES: [[u32; 11]; 2] =
        [[32, 31, 30, 29, 28, 25, 24, 23, 16, 7, 0], [128, 127, 126, 125, 124, 112, 96, 80, 64, 16, 0]];
    let one = || (any::<Index>(), any::<Index>(), any::<bool>());
    (any::<bool>(), one(), weighted(0.5, vec(one(), 0..=3))).prop_map(
        |(v6, (base, prefix, whole), excepts)| {
            let (prefixes, known) = (PREFIXES[usize::from(v6)], known_addresses(v6));
            let (outer, width) = bits(*base.get(&known));
            let prefix = *prefix.get(&prefixes);
            // What the prefix does not count.
            let rest = |prefix: u32| u128::MAX.checked_shr(128 - width + prefix).unwrap_or(0);
            let text = |network: u128, prefix: u32, whole: bool| {
                cidr(if whole { network } else { network & !rest(prefix) }, width, prefix)
            };
            let except = |(base, longer, whole): (Index, Index, bool)| {
                let all: Vec<u32> = prefixes.into_iter().filter(|one| *one > prefix).collect();
                let longer = (!all.is_empty()).then(|| *longer.get(&all))?;
                let inner = outer & !rest(prefix) | bits(*base.get(&known)).0 & rest(prefix);
                Some(text(inner, longer, whole))
            };
            let except = excepts.map(|excepts| excepts.into_iter().filter_map(except).collect());
            IPBlock { cidr: text(outer, prefix, whole), except }
        },
    )
}

/// Addresses that pods, nodes and strangers may have.
fn known_addresses(v6: bool) -> Vec<IpAddr> {
    let pods = (0..6).flat_map(|number| [true, false].map(|local| pod_address(number, local, v6)));
    let nodes = NODE_ADDRESSES.map(|addresses| ip(addresses[usize::from(v6)]));
    pods.chain(nodes).chain(STRANGERS[usize::from(v6)].map(ip)).collect()
}

/// What rules begin a range with, and how much longer it is.
const FIRST: [u16; 7] = [80, 53, 8080, 8090, 1, 9, 65535];
const LONGER: [u16; 6] = [0, 1, 10, 27, 8010, 65534];

fn port() -> impl Strategy<Value = NetworkPolicyPort> {
    let protocol = select(&[None, Some("TCP"), Some("UDP"), Some("SCTP"), Some("")][..]);
    let number = (select(&FIRST[..]), weighted(0.5, select(&LONGER[..]))).prop_map(|(first, longer)| {
        let last = longer.map(|longer| i32::from(first.saturating_add(longer)));
        (Some(IntOrString::Int(first.into())), last)
    });
    let name = select(&["web", "web", "web", "dns", "dns", "far", "nobodys"][..])
        .prop_map(|name| (Some(IntOrString::String(name.to_owned())), None));
    let port = prop_oneof![4 => number, 5 => name, 1 => Just((None, None))];
    (protocol, port).prop_map(|(protocol, (port, end_port))| NetworkPolicyPort {
        end_port,
        port,
        protocol: protocol.map(str::to_owned),
    })
}

fn shot() -> impl Strategy<Value = Shot> {
    // GRE stands for all that has no ports.
    let protocol = prop_oneof![9 => Just(6), 5 => Just(17), 3 => Just(132), 2 => Just(1), 1 => Just(47)];
    let edges = [
        53, 80, 8080, 8090, 9, 1, 65535, 0, 2, 8, 10, 19, 36, 52, 54, 63, 79, 81, 90, 91, 107, 8019, 8020,
        8063, 8064, 8079, 8081, 8089, 8091, 8100, 8101, 8117, 8118, 65534,
    ];
    let port = prop_oneof![2 => select(edges[..4].to_vec()), 1 => select(edges.to_vec())];
    let ends = (any::<bool>(), any::<Index>(), any::<bool>(), any::<Index>());
    (ends, protocol, port).prop_map(|((inward, pod, v6, other), protocol, port)| Shot {
        inward,
        pod,
        v6,
        other,
        protocol,
        port,
    })
}
