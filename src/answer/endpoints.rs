//! `netd endpoints`: the pods of the node.

use super::Answer;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// `netd.endpoints/v1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// Name of the node.
    pub node: String,
    /// In the order of their pods' names.
    pub endpoints: Vec<Endpoint>,
}

impl Answer for Endpoints {
    const SCHEMA: &'static str = "netd.endpoints/v1";
}

/// An interface of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// `namespace/name`, or the container where the container runtime told no name.
    pub pod: String,
    /// The container runtime's name for the sandbox.
    pub container: String,
    /// Its interface inside.
    pub pod_interface: String,
    /// Its interface on the node.
    pub interface: String,
    /// Index of the interface on the node; none if the datapath does not know the pod.
    pub ifindex: Option<u32>,
    /// Number of the pod in the datapath.
    pub endpoint: u32,
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
    /// When it got them, RFC 3339.
    pub since: String,
    /// Seconds since then.
    pub age_seconds: u64,
    /// The datapath's rows are those that the ledger asks for.
    pub ok: bool,
    /// What is wrong.
    pub problem: Option<String>,
    /// The command to run then.
    pub next: Option<String>,
    /// Rows among the established that the pod holds.
    pub flows: u64,
    /// How many it may hold.
    pub flows_limit: u64,
    /// Packets from and to it that were dropped, as far as the datapath remembers: rarely seen reasons give
    /// way to others.
    pub drops: Vec<Drops>,
}

/// Packets dropped for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// As the metric's label has it.
    pub reason: String,
    /// Where in the datapath.
    pub stage: String,
    /// How many.
    pub packets: u64,
}
