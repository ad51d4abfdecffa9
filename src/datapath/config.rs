//! Configuration of the eBPF datapath.

use std::path::PathBuf;

/// Validated: sizes are within what one map may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Folder under which maps, programs and links are pinned; a bpffs is mounted there if none is.
    /// Default `/sys/fs/bpf/netd`.
    pub bpffs: PathBuf,
    /// Rows of the flow table. Default 262 144.
    pub flows: u32,
    /// Service frontends (address, port, protocol). Default 65 536.
    pub frontends: u32,
    /// Service backends. Default 65 536.
    pub backends: u32,
    /// Slots: the sum over all frontends of their backends, twice that while they change. Default 262 144.
    pub slots: u32,
    /// Pods of this node. Default 1 024.
    pub pods: u32,
}
