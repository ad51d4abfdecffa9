//! What the NetworkPolicy API says of one packet, in the plainest way: each direction looks at every policy of the
//! pod's namespace, and evaluates its fields as they are written.
//!
//! Nothing is compiled, shared or remembered here, and nothing is taken from the planner: this is what the planner
//! and the programs are measured against. "API" quotes the field documentation of `networking/v1` and of
//! `LabelSelector`, "Concept" <https://kubernetes.io/docs/concepts/services-networking/network-policies/>. Where
//! both are silent, "netd" says what netd promises.

pub(crate) mod cluster;
mod examples;
mod random;
pub(crate) mod tests;

use crate::model::{Labels, Model, NetworkPolicy, ObjectName, Pod};
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

/// One end of a packet, by its true address.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum End {
    /// A pod, by one of its addresses. That of a hostNetwork pod is its node's.
    Pod { name: ObjectName, address: IpAddr },
    /// The node of the other end's pod.
    OwnNode(IpAddr),
    /// Another node.
    OtherNode(IpAddr),
    /// Anything else.
    Outside(IpAddr),
}

impl End {
    pub(crate) fn address(&self) -> IpAddr {
        match self {
            Self::Pod { address, .. } | Self::OwnNode(address) | Self::OtherNode(address) => *address,
            Self::Outside(address) => *address,
        }
    }
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { name, address } => write!(f, "pod {name} {address}"),
            Self::OwnNode(address) => write!(f, "own node {address}"),
            Self::OtherNode(address) => write!(f, "other node {address}"),
            Self::Outside(address) => write!(f, "outside {address}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

/// What one end's policies say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// No pod, or no policy selects it in this direction.
    NotIsolated,
    /// No policy can forbid it: the pod itself, or its own node.
    Exempt,
    /// All rules that allow it: policy, and index of the rule in its list.
    Allowed(BTreeSet<(ObjectName, usize)>),
    /// The policies that isolate the pod; no rule of theirs allows it.
    Denied(BTreeSet<ObjectName>),
}

impl Side {
    pub(crate) fn lets_through(&self) -> bool {
        !matches!(self, Self::Denied(_))
    }
}

/// Concept: "For a connection from a source pod to a destination pod to be allowed, both the egress policy on the
/// source pod and the ingress policy on the destination pod need to allow the connection."
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) egress: Side,
    pub(crate) ingress: Side,
}

/// A packet that opens a connection.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Packet {
    pub(crate) from: End,
    pub(crate) to: End,
    /// IANA number.
    pub(crate) protocol: u8,
    /// Of the destination, 0 for a protocol without ports.
    pub(crate) port: u16,
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, protocol, port } = self;
        write!(f, "packet from {from:?} to {to:?}, protocol {protocol} port {port}")
    }
}

pub(crate) fn verdict(model: &Model, packet: &Packet) -> Verdict {
    Verdict {
        egress: side(model, Direction::Egress, packet),
        ingress: side(model, Direction::Ingress, packet),
    }
}

fn side(model: &Model, direction: Direction, packet: &Packet) -> Side {
    let (subject, other) = match direction {
        Direction::Egress => (&packet.from, &packet.to),
        Direction::Ingress => (&packet.to, &packet.from),
    };
    let Some(pod) = selectable(model, subject) else { return Side::NotIsolated };

    // API: "Traffic is allowed to a pod if there are no NetworkPolicies selecting the pod". Concept: egress and
    // ingress isolation "are declared independently".
    let isolating: BTreeMap<&ObjectName, &NetworkPolicySpec> = model
        .policies
        .values()
        .filter(|policy| policy.name.namespace == pod.name.namespace)
        .filter(|policy| applies_to(policy, pod) && is_about(&policy.spec, direction))
        .map(|policy| (&policy.name, &policy.spec))
        .collect();
    if isolating.is_empty() {
        return Side::NotIsolated;
    }
    if is_same_pod(subject, other) || is_own_node(model, pod, other) {
        return Side::Exempt;
    }

    // API: "OR if the traffic matches at least one ingress rule across all of the NetworkPolicy objects whose
    // podSelector matches the pod".
    let mut allowing = BTreeSet::new();
    for (name, spec) in &isolating {
        for (index, (peers, ports)) in rules(spec, direction).into_iter().enumerate() {
            // API: "The traffic must match both ports and from." (and "both ports and to").
            let peer = matches_peers(model, peers, &name.namespace, other);
            if peer && matches_ports(model, ports, packet) {
                allowing.insert(((*name).clone(), index));
            }
        }
    }
    if allowing.is_empty() {
        return Side::Denied(isolating.into_keys().cloned().collect());
    }
    Side::Allowed(allowing)
}

/// The pod that selectors see at an end. Concept, of hostNetwork pods: "the network plugin ignores hostNetwork pods
/// when matching podSelector and namespaceSelector. Traffic to/from hostNetwork pods is treated the same as all
/// other traffic to/from the node IP." netd: a finished pod has no address any more.
fn selectable<'m>(model: &'m Model, end: &End) -> Option<&'m Pod> {
    let End::Pod { name, .. } = end else { return None };
    let pod = model.pods.get(name)?;
    (!pod.host_network && !pod.finished).then_some(pod)
}

/// Concept: "Other pods that are allowed (exception: a pod cannot block access to itself)".
fn is_same_pod(subject: &End, other: &End) -> bool {
    match (subject, other) {
        (End::Pod { name, .. }, End::Pod { name: other, .. }) => name == other,
        _ => false,
    }
}

/// Concept: "traffic to and from the node where a Pod is running is always allowed, regardless of the IP address of
/// the Pod or the node". API: "OR if the traffic source is the pod's local node".
fn is_own_node(model: &Model, pod: &Pod, other: &End) -> bool {
    match other {
        End::OwnNode(_) => true,
        End::Pod { name, .. } => model
            .pods
            .get(name)
            .is_some_and(|other| other.host_network && !other.finished && other.node == pod.node),
        End::OtherNode(_) | End::Outside(_) => false,
    }
}

/// API: "podSelector selects the pods to which this NetworkPolicy object applies. […] An empty selector matches all
/// pods in the policy's namespace. […] If it is not specified, it defaults to an empty selector."
fn applies_to(policy: &NetworkPolicy, pod: &Pod) -> bool {
    policy.spec.pod_selector.as_ref().is_none_or(|selector| selects(selector, &pod.labels))
}

/// API: "If this field is not specified, it will default based on the existence of ingress or egress rules;
/// policies that contain an egress section are assumed to affect egress, and all policies (whether or not they
/// contain an ingress section) are assumed to affect ingress." Concept: "Egress will be set if the NetworkPolicy has
/// any egress rules."
fn is_about(spec: &NetworkPolicySpec, direction: Direction) -> bool {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    match direction {
        Direction::Ingress => types.is_empty() || types.iter().any(|kind| kind == "Ingress"),
        Direction::Egress if types.is_empty() => spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        Direction::Egress => types.iter().any(|kind| kind == "Egress"),
    }
}

type Rule<'p> = (&'p [NetworkPolicyPeer], &'p [NetworkPolicyPort]);

/// The peers and ports of a direction's rules. API: "If this field is empty or missing, this rule matches all
/// sources" (destinations, ports): the two are not told apart.
fn rules(spec: &NetworkPolicySpec, direction: Direction) -> Vec<Rule<'_>> {
    let (ingress, egress) = (spec.ingress.iter().flatten(), spec.egress.iter().flatten());
    match direction {
        Direction::Ingress => ingress
            .map(|rule| (rule.from.as_deref().unwrap_or_default(), rule.ports.as_deref().unwrap_or_default()))
            .collect(),
        Direction::Egress => egress
            .map(|rule| (rule.to.as_deref().unwrap_or_default(), rule.ports.as_deref().unwrap_or_default()))
            .collect(),
    }
}

/// API: "If this field is present and contains at least one item, this rule allows traffic only if the traffic
/// matches at least one item in the from list."
fn matches_peers(model: &Model, peers: &[NetworkPolicyPeer], namespace: &str, other: &End) -> bool {
    peers.is_empty() || peers.iter().any(|peer| matches_peer(model, peer, namespace, other))
}

fn matches_peer(model: &Model, peer: &NetworkPolicyPeer, namespace: &str, other: &End) -> bool {
    // API: "If this field is set then neither of the other fields can be."
    if let Some(block) = &peer.ip_block {
        return is_in_block(block, other.address());
    }
    let Some(pod) = selectable(model, other) else { return false };
    // API: "If podSelector is also set, then the NetworkPolicyPeer as a whole selects the pods matching podSelector
    // in the namespaces selected by namespaceSelector. Otherwise it selects all pods in the namespaces selected by
    // namespaceSelector." And without a namespaceSelector "the pods matching podSelector in the policy's own
    // namespace".
    let namespace_matches = match &peer.namespace_selector {
        Some(selector) => selects_namespace(model, selector, &pod.name.namespace),
        None => *pod.name.namespace == *namespace,
    };
    namespace_matches && peer.pod_selector.as_ref().is_none_or(|selector| selects(selector, &pod.labels))
}

/// Concept: "The Kubernetes control plane sets an immutable label kubernetes.io/metadata.name on all namespaces, the
/// value of the label is the namespace name." netd: of a namespace that the source has no object of, nothing else is
/// sure, and so no requirement about anything else is met.
fn selects_namespace(model: &Model, selector: &LabelSelector, name: &str) -> bool {
    const NAME: &str = "kubernetes.io/metadata.name";
    let namespace = model.namespaces.get(name);
    let mut labels = namespace.map(|namespace| namespace.labels.clone()).unwrap_or_default();
    labels.insert(NAME.to_owned(), name.to_owned());
    let asks_for_others = selector.match_labels.iter().flatten().any(|(key, _)| key != NAME)
        || selector.match_expressions.iter().flatten().any(|requirement| requirement.key != NAME);
    selects(selector, &labels) && (namespace.is_some() || !asks_for_others)
}

/// API: "The result of matchLabels and matchExpressions are ANDed. An empty label selector matches all objects."
fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
        && selector.match_expressions.iter().flatten().all(|requirement| meets(requirement, labels))
}

/// Of `NotIn` the page on labels says: "all resources with no labels with the … key" are selected, too.
fn meets(requirement: &LabelSelectorRequirement, labels: &Labels) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let value = labels.get(&requirement.key);
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.contains(value)),
        "NotIn" => value.is_none_or(|value| !values.contains(value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        other => panic!("{other} is no operator"),
    }
}

/// API: "The except entry describes CIDRs that should not be included within this rule."
fn is_in_block(block: &IPBlock, address: IpAddr) -> bool {
    is_in_cidr(&block.cidr, address)
        && !block.except.iter().flatten().any(|except| is_in_cidr(except, address))
}

/// RFC 4632 §3.1: the bits of the prefix are the same. A block has addresses of its own family only.
fn is_in_cidr(cidr: &str, address: IpAddr) -> bool {
    let (network, length) = cidr.split_once('/').expect("a CIDR");
    let network: IpAddr = network.parse().expect("an address");
    let length: u32 = length.parse().expect("a number");
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (0..length).all(|bit| u32::from(network) << bit >> 31 == u32::from(address) << bit >> 31)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            (0..length).all(|bit| u128::from(network) << bit >> 127 == u128::from(address) << bit >> 127)
        }
        _ => false,
    }
}

/// API: "If this field is present and contains at least one item, then this rule allows traffic only if the
/// traffic matches at least one port in the list."
fn matches_ports(model: &Model, ports: &[NetworkPolicyPort], packet: &Packet) -> bool {
    ports.is_empty() || ports.iter().any(|port| matches_port(model, port, packet))
}

fn matches_port(model: &Model, port: &NetworkPolicyPort, packet: &Packet) -> bool {
    // API: "If not specified, this field defaults to TCP." As elsewhere in the API, an empty text is none.
    let protocol = match port.protocol.as_deref() {
        None | Some("" | "TCP") => 6,
        Some("UDP") => 17,
        Some("SCTP") => 132,
        Some(other) => panic!("{other} is no protocol"),
    };
    // API: "If present, only traffic on the specified protocol AND port will be matched."
    if packet.protocol != protocol {
        return false;
    }
    match (&port.port, port.end_port) {
        // API: "If this field is not provided, this matches all port names and numbers."
        (None, _) => true,
        (Some(IntOrString::Int(only)), None) => i32::from(packet.port) == *only,
        // API: "the range of ports from port to endPort if set, inclusive, should be allowed by the policy".
        (Some(IntOrString::Int(first)), Some(last)) => (*first..=last).contains(&i32::from(packet.port)),
        // API: "This can either be a numerical or named port on a pod": on the pod that the packet goes to, for
        // the ports of an egress rule are "destination ports". Nobody else has named ports. API of container ports:
        // "Each named port in a pod must have a unique name." netd: of more of one protocol the first, as for Services.
        (Some(IntOrString::String(name)), _) => selectable(model, &packet.to).is_some_and(|pod| {
            let mut ports = pod.ports.iter();
            let named = ports.find(|port| *port.name == **name && port.protocol.number() == protocol);
            named.is_some_and(|named| named.port == packet.port)
        }),
    }
}
