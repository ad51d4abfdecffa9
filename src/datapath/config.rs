//! Configuration of the eBPF datapath.

use netd_bpf::flow::Limits;
use std::path::PathBuf;

/// Validated: sizes are within what one map may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Folder under which maps, programs and links are pinned; a bpffs is mounted there if none is.
    /// Default `/sys/fs/bpf/netd`.
    pub bpffs: PathBuf,
    /// Rows of the table of established flows, which nothing evicts. Default 262 144.
    pub flows: u32,
    /// Rows of it that one pod may hold; a flow through a Service takes two. Default 65 536.
    pub flows_per_pod: u32,
    /// Rows of the table of new flows, where the newest evict the oldest. Default 131 072.
    pub nursery: u32,
    /// Clients of Services with session affinity that are remembered. Default 65 536.
    pub affinity: u32,
    /// Service frontends (address, port, protocol). Default 65 536.
    pub frontends: u32,
    /// Service backends: endpoints, counted once for each Service port. Default 65 536.
    pub backends: u32,
    /// Slots: the sum over all frontends of their backends, twice that while they change. Default 262 144.
    pub slots: u32,
    /// Pods of this node. Default 1 024.
    pub pods: u32,
}

impl Config {
    /// What the programs take from it.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits { rows_per_pod: self.flows_per_pod, ..Limits::DEFAULT }
    }
}
