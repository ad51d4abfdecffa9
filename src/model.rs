//! netd's own view of the cluster: small types that every source of state is converted into.
//!
//! Sources (`directory`, later `k8s`) parse at the edge; nothing here is validated again. A [`Model`] is an
//! immutable snapshot; planners are pure functions over it. The choice of endpoints lives in
//! [`endpoints`], one function for Services, DNS and BGP alike; what the Kubernetes API calls these
//! objects is turned into them in [`convert`]; what a source could not use is told in [`report`].

pub mod convert;
pub mod endpoints;
mod objects;
pub mod report;

pub use objects::{Change, Objects};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Namespace and name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectName {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Name within the namespace.
    pub name: Arc<str>,
}

impl ObjectName {
    /// From two strings.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// RFC 9293.
    #[default]
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    /// IANA protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `status.addresses` of type InternalIP.
    pub internal_ips: Vec<IpAddr>,
    /// `spec.podCIDRs` (or `podCIDR`).
    pub pod_cidrs: Vec<IpNet>,
}

/// A Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.labels`, with `kubernetes.io/metadata.name` always present.
    pub labels: Labels,
}

/// A named port of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// `name`.
    pub name: Arc<str>,
    /// `containerPort`.
    pub port: u16,
    /// `protocol`.
    pub protocol: Protocol,
}

/// A Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.uid` as runtimes are told, which of a static pod is not its mirror's; empty if the source has none.
    pub uid: Arc<str>,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `metadata.annotations` that begin with `netd.io/`.
    pub annotations: Labels,
    /// `spec.nodeName`, if scheduled.
    pub node: Option<Arc<str>>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// `status.podIPs`, or what the pod's agent reported.
    pub ips: Vec<IpAddr>,
    /// Named ports of all containers.
    pub ports: Vec<ContainerPort>,
    /// Condition `Ready`; a pod of a directory, which has no kubelet, is ready once it has an address.
    pub ready: bool,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// Phase `Succeeded` or `Failed`: its address may already be another's.
    pub finished: bool,
}

/// `spec.ports[].targetPort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// A port number.
    Number(u16),
    /// The name of a container's port, resolved per pod.
    Name(Arc<str>),
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`, empty if the only port.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub port: u16,
    /// `targetPort`.
    pub target: TargetPort,
    /// `nodePort`, if any.
    pub node_port: Option<u16>,
}

/// Cluster or Local, for `internalTrafficPolicy` and `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Endpoints of this node only.
    Local,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `metadata.annotations`.
    pub annotations: Labels,
    /// `spec.clusterIPs` without `None`; empty: headless or ExternalName.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.selector`; empty: endpoints come from slices only.
    pub selector: Labels,
    /// `spec.internalTrafficPolicy`.
    pub internal_traffic_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_traffic_policy: TrafficPolicy,
    /// `spec.sessionAffinity: ClientIP` with its time-out in seconds.
    pub affinity_seconds: Option<u32>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// Label `service.kubernetes.io/service-proxy-name` or `service.kubernetes.io/headless` is there: the
    /// Service is another proxy's or nobody's, and gets no frontends here.
    pub skip_proxy: bool,
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// `name`, matched against the Service's port name.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub port: u16,
}

/// An endpoint of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`: consumers use the first only, as the API says.
    pub address: IpAddr,
    /// `conditions.ready`, nil counts as true.
    pub ready: bool,
    /// `conditions.serving`, nil counts as `ready`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `zone`.
    pub zone: Option<Arc<str>>,
    /// `targetRef`, if it names a Pod.
    pub pod: Option<ObjectName>,
}

/// An EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub name: ObjectName,
    /// Label `kubernetes.io/service-name`.
    pub service: Option<Arc<str>>,
    /// `ports`.
    pub ports: Vec<EndpointPort>,
    /// `endpoints`, those with an address.
    pub endpoints: Vec<Endpoint>,
}

/// Where an EndpointSlice is found: those of a Service stand side by side.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SliceKey {
    /// The slice's namespace, and the Service whose endpoints these are; none if the slice names none.
    pub service: Option<ObjectName>,
    /// Namespace and name.
    pub name: ObjectName,
}

impl EndpointSlice {
    /// Its key in a [`Model`].
    #[must_use]
    pub fn key(&self) -> SliceKey {
        let service = self.service.as_ref().map(|service| ObjectName {
            namespace: Arc::clone(&self.name.namespace),
            name: Arc::clone(service),
        });
        SliceKey { service, name: self.name.clone() }
    }
}

impl Model {
    /// The slices that name a Service, in the order of their names.
    pub fn slices_of<'m>(&'m self, service: &ObjectName) -> impl Iterator<Item = &'m EndpointSlice> {
        let service = Some(service.clone());
        let first = SliceKey { service: service.clone(), name: ObjectName::default() };
        let all = self.slices.range(first..).take_while(move |(key, _)| key.service == service);
        all.map(|(_, slice)| slice.as_ref())
    }
}

/// A NetworkPolicy, as the API has it: the policy planner gives it meaning.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub name: ObjectName,
    /// `spec`.
    pub spec: k8s_openapi::api::networking::v1::NetworkPolicySpec,
}

/// One immutable snapshot of everything a source knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// By name.
    pub nodes: Objects<Arc<str>, Node>,
    /// By name.
    pub namespaces: Objects<Arc<str>, Namespace>,
    /// By namespace and name.
    pub pods: Objects<ObjectName, Pod>,
    /// By namespace and name.
    pub services: Objects<ObjectName, Service>,
    /// By namespace, Service and name.
    pub slices: Objects<SliceKey, EndpointSlice>,
    /// By namespace and name.
    pub policies: Objects<ObjectName, NetworkPolicy>,
}
