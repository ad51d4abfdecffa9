//! Small clusters as a node sees them, made from seeds: two nodes, few addresses, and blocks that lie among them.

use super::{End, Packet};
use crate::model::convert::network_policy;
use crate::model::{ContainerPort, Labels, Model, Namespace, Node, ObjectName, Objects, Pod, Protocol};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use proptest::sample::Index;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// This node, and the other one.
pub(crate) const NODES: [&str; 2] = ["here", "there"];
/// Their addresses.
pub(crate) const NODE_ADDRESSES: [[&str; 2]; 2] = [["192.168.0.1", "fd01::1"], ["192.168.0.2", "fd01::2"]];
/// Addresses that nobody in the cluster has. `::7:0:7` shares a block with every mapped IPv4 address.
pub(crate) const STRANGERS: [[&str; 4]; 2] = [
    ["10.0.0.77", "10.0.1.200", "192.168.0.99", "203.0.113.7"],
    ["fd00::77", "fd00::1:c8", "2001:db8::7", "::7:0:7"],
];
/// Names of ports that pods have; of some there are several.
pub(crate) const PORTS: [(&str, u16, Protocol); 8] = [
    ("web", 80, Protocol::Tcp),
    ("web", 8080, Protocol::Tcp),
    ("web", 80, Protocol::Udp),
    ("dns", 53, Protocol::Udp),
    ("dns", 53, Protocol::Tcp),
    ("dns", 8090, Protocol::Tcp),
    ("web", 80, Protocol::Sctp),
    ("far", 65535, Protocol::Tcp),
];

#[derive(Clone, Debug)]
pub(crate) struct NamespaceSeed {
    /// The source has no object of this name.
    pub(crate) missing: bool,
    pub(crate) labels: Labels,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    HostNetwork,
    /// With an address of its own.
    Finished,
    /// With the address of the pod before it.
    FinishedAndReplaced,
}

#[derive(Clone, Debug)]
pub(crate) struct PodSeed {
    pub(crate) gone: bool,
    pub(crate) namespace: u8,
    pub(crate) labels: Labels,
    /// Indices into [`PORTS`].
    pub(crate) ports: Vec<usize>,
    /// IPv4, IPv6.
    pub(crate) families: [bool; 2],
    pub(crate) local: bool,
    pub(crate) kind: Kind,
    /// The node gave it its addresses, and the source does not say so yet.
    pub(crate) unreported: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct PolicySeed {
    pub(crate) gone: bool,
    pub(crate) namespace: u8,
    pub(crate) spec: NetworkPolicySpec,
}

#[derive(Clone, Debug)]
pub(crate) struct Seeds {
    pub(crate) namespaces: Vec<NamespaceSeed>,
    /// The first is always a plain one of this node.
    pub(crate) pods: Vec<PodSeed>,
    pub(crate) policies: Vec<PolicySeed>,
}

/// Another seed in the place of one.
#[derive(Clone, Debug)]
pub(crate) enum Edit {
    Namespace(Index, NamespaceSeed),
    Pod(Index, PodSeed),
    Policy(Index, PolicySeed),
}

impl Seeds {
    pub(crate) fn edited(&self, edits: &[Edit]) -> Self {
        let mut seeds = self.clone();
        for edit in edits.iter().cloned() {
            match edit {
                Edit::Namespace(at, seed) => *at.get_mut(&mut seeds.namespaces) = seed,
                Edit::Pod(at, seed) => *at.get_mut(&mut seeds.pods) = seed,
                Edit::Policy(at, seed) if !seeds.policies.is_empty() => {
                    *at.get_mut(&mut seeds.policies) = seed;
                }
                Edit::Policy(_, seed) => seeds.policies.push(seed),
            }
        }
        let first = &mut seeds.pods[0];
        (first.gone, first.local, first.kind) = (false, true, Kind::Plain);
        seeds
    }
}

/// A pod of this node, as the ledger has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Local {
    pub(crate) endpoint: u32,
    pub(crate) pod: ObjectName,
    pub(crate) addresses: Vec<IpAddr>,
}

#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) model: Model,
    pub(crate) locals: Vec<Local>,
    /// All ends that a packet can have.
    ends: Vec<End>,
}

/// What a packet aims at: it comes from, or goes to, a pod of this node.
#[derive(Clone, Debug)]
pub(crate) struct Shot {
    pub(crate) inward: bool,
    pub(crate) pod: Index,
    /// Rather by the pod's IPv6 address, if it has two.
    pub(crate) v6: bool,
    pub(crate) other: Index,
    /// IANA number; ICMP is that of the family.
    pub(crate) protocol: u8,
    pub(crate) port: u16,
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Addresses that a pod of this number has, by family.
pub(crate) fn pod_address(number: usize, local: bool, v6: bool) -> IpAddr {
    let number = number + 1;
    ip(&match (local, v6) {
        (true, false) => format!("10.0.0.{number}"),
        (false, false) => format!("10.0.1.{number}"),
        (true, true) => format!("fd00::{number:x}"),
        (false, true) => format!("fd00::1:{number:x}"),
    })
}

/// Policies as the API has them; those of the same name in two namespaces are two.
fn policy_name(seeds: &Seeds, number: usize) -> ObjectName {
    let namespace = usize::from(seeds.policies[number].namespace) % seeds.namespaces.len();
    ObjectName::new(&format!("n{namespace}"), &format!("p{}", number % 4))
}

/// Endpoints of pods of one number have one remainder by this.
pub(crate) const ENDPOINTS: u32 = 16;

/// Of another name, or with other addresses, it is another pod: with another endpoint, at the same address.
fn endpoint(seeds: &Seeds, number: usize) -> u32 {
    let PodSeed { namespace, families, .. } = seeds.pods[number];
    let namespace = u32::from(namespace) % u32::try_from(seeds.namespaces.len()).expect("few");
    let [v4, v6] = families.map(u32::from);
    let kind = namespace << 2 | v6 << 1 | v4;
    kind * ENDPOINTS + u32::try_from(number).expect("few")
}

fn pod_name(seeds: &Seeds, number: usize) -> ObjectName {
    let namespace = usize::from(seeds.pods[number].namespace) % seeds.namespaces.len();
    ObjectName::new(&format!("n{namespace}"), &format!("w{}", number % 5))
}

/// The same `Arc` for what did not change, as the store has it.
fn share<K: Ord + Clone, T: PartialEq>(former: &Objects<K, T>, new: Vec<(K, T)>) -> Objects<K, T> {
    let objects: Objects<K, T> = new
        .into_iter()
        .map(|(key, object)| match former.get(&key) {
            Some(old) if **old == object => (key, Arc::clone(old)),
            _ => (key, Arc::new(object)),
        })
        .collect();
    if objects == *former { former.clone() } else { objects }
}

impl Cluster {
    /// What of it is as in `former` shares its objects.
    pub(crate) fn new(seeds: &Seeds, former: &Model) -> Self {
        let namespaces = seeds.namespaces.iter().enumerate().filter(|(_, seed)| !seed.missing);
        let namespaces = namespaces.map(|(number, seed)| {
            let name: Arc<str> = format!("n{number}").into();
            let mut labels = seed.labels.clone();
            labels.insert("kubernetes.io/metadata.name".to_owned(), name.to_string());
            (Arc::clone(&name), Namespace { name, labels })
        });
        let policies = (0..seeds.policies.len()).filter(|number| !seeds.policies[*number].gone);
        let policies = policies.map(|number| {
            let name = policy_name(seeds, number);
            let metadata = ObjectMeta {
                namespace: Some(name.namespace.to_string()),
                name: Some(name.name.to_string()),
                ..ObjectMeta::default()
            };
            let spec = Some(seeds.policies[number].spec.clone());
            let policy = network_policy(NetworkPolicy { metadata, spec }).expect("the API takes it");
            (name, policy)
        });
        let nodes = NODES.iter().zip(NODE_ADDRESSES).map(|(name, addresses)| {
            let internal_ips = addresses.map(ip).to_vec();
            ((*name).into(), Node { name: (*name).into(), internal_ips, ..Node::default() })
        });

        let mut pods: Vec<(ObjectName, Pod)> = Vec::new();
        let (mut locals, mut ends) = (Vec::new(), Vec::new());
        for (number, seed) in seeds.pods.iter().enumerate() {
            let name = pod_name(seeds, number);
            let (pod, addresses) = pod(seeds, number, &name);
            if seed.gone {
                // Who has such an address next may be in the way of traffic that was his before.
                if seed.kind != Kind::HostNetwork {
                    ends.extend(addresses.into_iter().map(End::Outside));
                }
                continue;
            }
            if pods.iter().any(|(other, _)| *other == name) {
                continue;
            }
            for address in &addresses {
                ends.push(match seed.kind {
                    Kind::Plain | Kind::HostNetwork => End::Pod { name: name.clone(), address: *address },
                    Kind::Finished | Kind::FinishedAndReplaced => End::Outside(*address),
                });
            }
            if seed.local && seed.kind == Kind::Plain {
                let endpoint = endpoint(seeds, number);
                locals.push(Local { endpoint, pod: name.clone(), addresses });
            }
            pods.push((name, pod));
        }
        // An address of a finished pod that is another's now is the other's.
        let has_it = |address: IpAddr| {
            ends.iter().any(|end| matches!(end, End::Pod { .. }) && end.address() == address)
        };
        let outside = |end: &End| !matches!(end, End::Outside(address) if has_it(*address));
        let mut ends: Vec<End> = ends.iter().filter(|end| outside(end)).cloned().collect();
        ends.extend(NODE_ADDRESSES[0].map(ip).map(End::OwnNode));
        ends.extend(NODE_ADDRESSES[1].map(ip).map(End::OtherNode));
        ends.extend(STRANGERS.as_flattened().iter().map(|address| End::Outside(ip(address))));

        let model = Model {
            nodes: share(&former.nodes, nodes.collect()),
            namespaces: share(&former.namespaces, namespaces.collect()),
            pods: share(&former.pods, pods),
            policies: share(&former.policies, policies.collect()),
            ..Model::default()
        };
        Self { model, locals, ends }
    }

    /// True for a pod of this node that has a row in its tables.
    pub(crate) fn is_local(&self, end: &End) -> bool {
        matches!(end, End::Pod { name, .. } if self.locals.iter().any(|local| local.pod == *name))
    }

    /// The same packet, by its addresses, whoever has them now; nothing if it goes past the pods of this node.
    pub(crate) fn again(&self, packet: &Packet) -> Option<Packet> {
        let now = |end: &End| {
            let same = self.ends.iter().find(|other| *other == end);
            same.or_else(|| self.ends.iter().find(|other| other.address() == end.address())).cloned()
        };
        let packet = Packet { from: now(&packet.from)?, to: now(&packet.to)?, ..packet.clone() };
        [&packet.from, &packet.to].iter().any(|end| self.is_local(end)).then_some(packet)
    }

    pub(crate) fn packet(&self, shot: &Shot) -> Packet {
        let local = shot.pod.get(&self.locals);
        let preferred = local.addresses.iter().find(|address| address.is_ipv6() == shot.v6);
        let address = *preferred.unwrap_or(&local.addresses[0]);
        let others: Vec<&End> =
            self.ends.iter().filter(|end| end.address().is_ipv4() == address.is_ipv4()).collect();
        let pod = End::Pod { name: local.pod.clone(), address };
        let other = (*shot.other.get(&others)).clone();
        let (from, to) = if shot.inward { (other, pod) } else { (pod, other) };
        let protocol = match shot.protocol {
            1 if address.is_ipv6() => 58,
            other => other,
        };
        let port = if [6, 17, 132].contains(&protocol) { shot.port } else { 0 };
        Packet { from, to, protocol, port }
    }
}

/// The pod, and its addresses, of which the source may not know.
fn pod(seeds: &Seeds, number: usize, name: &ObjectName) -> (Pod, Vec<IpAddr>) {
    let seed = &seeds.pods[number];
    let families = [false, true].into_iter().zip(seed.families).filter(|(_, has)| *has).map(|(v6, _)| v6);
    let addresses: Vec<IpAddr> = families
        .map(|v6| match seed.kind {
            Kind::Plain | Kind::Finished => pod_address(number, seed.local, v6),
            Kind::FinishedAndReplaced => {
                let before = number.saturating_sub(1);
                pod_address(before, seeds.pods[before].local, v6)
            }
            Kind::HostNetwork => ip(NODE_ADDRESSES[usize::from(!seed.local)][usize::from(v6)]),
        })
        .collect();
    let reported = !(seed.unreported && seed.local && seed.kind == Kind::Plain);
    let ports = seed.ports.iter().map(|index| PORTS[*index]);
    let pod = Pod {
        name: name.clone(),
        labels: seed.labels.clone(),
        node: Some(NODES[usize::from(!seed.local)].into()),
        host_network: seed.kind == Kind::HostNetwork,
        ips: if reported { addresses.clone() } else { Vec::new() },
        ports: ports
            .map(|(name, port, protocol)| ContainerPort { name: name.into(), port, protocol })
            .collect(),
        ready: true,
        finished: matches!(seed.kind, Kind::Finished | Kind::FinishedAndReplaced),
        ..Pod::default()
    };
    (pod, addresses)
}

/// One line for each object: what a person needs to follow a verdict.
impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, namespace) in &self.model.namespaces {
            writeln!(f, "  namespace {name} {:?}", namespace.labels)?;
        }
        for (name, pod) in &self.model.pods {
            let ports: Vec<String> = pod
                .ports
                .iter()
                .map(|port| format!("{}={}/{}", port.name, port.port, port.protocol))
                .collect();
            let node = pod.node.as_deref().unwrap_or("nowhere");
            write!(f, "  pod {name} {node} {:?} {:?} {ports:?}", pod.ips, pod.labels)?;
            write!(f, "{}", if pod.host_network { " hostNetwork" } else { "" })?;
            writeln!(f, "{}", if pod.finished { " finished" } else { "" })?;
        }
        for local in &self.locals {
            writeln!(f, "  endpoint {} {} {:?}", local.endpoint, local.pod, local.addresses)?;
        }
        for (name, policy) in &self.model.policies {
            writeln!(f, "  policy {name} {}", serde_json::to_string(&policy.spec).expect("it serializes"))?;
        }
        Ok(())
    }
}
