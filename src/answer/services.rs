//! `netd svc list` and `netd svc show`: Services as they are wanted and as the kernel has them.

use super::Answer;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;

/// How a Service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The kernel has what is wanted.
    Ok,
    /// The kernel has what is wanted, and there is no endpoint.
    NoEndpoints,
    /// The newest change is on its way to the kernel.
    Pending,
    /// It fits in a moment, when what a change left is free again.
    Waiting,
    /// It does not fit.
    Refused,
    /// Another Service has its address.
    Conflict,
    /// The kernel has something else than was written.
    Differs,
    /// It is another proxy's, or has no address of its own.
    NotServed,
}

impl State {
    /// Nothing about it needs anybody's attention.
    #[must_use]
    pub const fn is_well(self) -> bool {
        matches!(self, Self::Ok | Self::NoEndpoints | Self::Pending | Self::Waiting | Self::NotServed)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::NoEndpoints => "no endpoints",
            Self::Pending => "pending",
            Self::Waiting => "waiting",
            Self::Refused => "refused",
            Self::Conflict => "conflict",
            Self::Differs => "differs",
            Self::NotServed => "not served",
        })
    }
}

/// `netd.services/v1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// Name of the node, whose view this is.
    pub node: String,
    /// In the order of their names.
    pub services: Vec<Service>,
    /// Frontends of the kernel that no Service wants.
    pub strays: Vec<Port>,
}

impl Answer for Services {
    const SCHEMA: &'static str = "netd.services/v1";
}

/// A Service in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `namespace/name`.
    pub service: String,
    /// What clients address.
    pub frontends: Vec<Port>,
    /// Endpoints that take traffic, of the frontend that has the most.
    pub endpoints: usize,
    /// How many of them are on this node.
    pub endpoints_local: usize,
    /// Session affinity's time-out; none without.
    pub affinity_seconds: Option<u32>,
    /// How it is.
    pub state: State,
    /// Why it is so, if that is not plain.
    pub reason: Option<String>,
    /// What it lacks, if it is refused or waits.
    pub refusal: Option<Refusal>,
}

/// What a refused Service lacks, and how much of it is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// As the metric's label has it.
    pub lacks: String,
    /// The frontend that lacks the most of its endpoints.
    #[serde(flatten)]
    pub port: Port,
    /// Endpoints that it ought to lead to.
    pub endpoints: usize,
    /// Those of them that it leads to; it leads to no others.
    pub in_force: usize,
}

/// Address, port and protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Port {
    /// Address and port.
    pub address: SocketAddr,
    /// `tcp`, `udp`, `sctp` or a number.
    pub protocol: String,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.protocol)
    }
}

/// `netd.service/v1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Name of the node, whose view this is.
    pub node: String,
    /// `namespace/name`.
    pub service: String,
    /// How it is.
    pub state: State,
    /// Why it is so, if that is not plain.
    pub reason: Option<String>,
    /// What it lacks, if it is refused or waits.
    pub refusal: Option<Refusal>,
    /// Session affinity's time-out; none without.
    pub affinity_seconds: Option<u32>,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: String,
    /// One per address and port.
    pub frontends: Vec<Frontend>,
}

impl Answer for Shown {
    const SCHEMA: &'static str = "netd.service/v1";
}

/// One frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontend {
    /// What clients address.
    #[serde(flatten)]
    pub port: Port,
    /// Number of the Service port in the datapath; none if it is not there.
    pub number: Option<u32>,
    /// Its slots in the datapath: the first, and how many.
    pub slot_base: Option<u32>,
    /// How many slots.
    pub slots: u32,
    /// Endpoints that are wanted.
    pub endpoints: usize,
    /// What the kernel has that is not wanted, and the other way round; empty: nothing.
    pub differences: Vec<String>,
    /// Wanted ones first, those of this node first among them; then those that still have flows.
    pub backends: Vec<Backend>,
}

/// How a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackendState {
    /// It takes new flows.
    Active,
    /// It is no endpoint any more; its open connections go on.
    Left,
    /// It is wanted, and not in the kernel.
    Missing,
    /// It is in the kernel's slots, and not wanted.
    Unwanted,
}

impl fmt::Display for BackendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Left => "left",
            Self::Missing => "missing",
            Self::Unwanted => "unwanted",
        })
    }
}

/// One backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Address and port.
    pub address: SocketAddr,
    /// Its pod, if known: `namespace/name`, or the container where no name is known.
    pub pod: Option<String>,
    /// Its node, if known.
    pub node: Option<String>,
    /// It is on this node.
    pub local: bool,
    /// How it is.
    pub state: BackendState,
    /// Its number in the datapath.
    pub number: Option<u32>,
    /// Flows of this node's pods to it through this Service port.
    pub flows: u64,
}
