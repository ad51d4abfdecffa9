//! Configuration of the eBPF datapath.

use netd_bpf::flow::Limits;
use std::path::PathBuf;
use std::time::Duration;

/// Validated: sizes are within what one map may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Folder under which maps, programs and links are pinned; a bpffs is mounted there if none is.
    /// Default `/sys/fs/bpf/netd`.
    pub bpffs: PathBuf,
    /// Rows of the table of established flows, which nothing evicts. Default 262 144.
    pub flows: u32,
    /// Rows of it that one pod may hold, at most all; a flow through a Service takes two. Default: a quarter.
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
    /// What sets of policies say of identities. Default 65 536.
    pub policy_rows: u32,
    /// Ranges of ports in what they say; equal lists are shared. Default 65 536.
    pub policy_ranges: u32,
    /// Addresses of pods, of the whole cluster, and of this node. Default 131 072.
    pub identities: u32,
    /// Blocks of addresses that policies name. Default 16 384.
    pub blocks: u32,
    /// How long flows are remembered.
    pub timeouts: Timeouts,
    /// Which new flows are told.
    pub audit: Audit,
}

/// Which new flows are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Any. Default: none.
    pub flows: bool,
    /// So many a second on this node: by each CPU an equal part, and at least one. Default 100.
    pub rate: u32,
}

impl Audit {
    /// The default of [`Audit::rate`].
    pub const RATE: u32 = 100;

    /// So many a second, 0: none.
    #[must_use]
    pub const fn per_second(self) -> u32 {
        if self.flows { self.rate } else { 0 }
    }
}

impl Default for Audit {
    fn default() -> Self {
        Self { flows: false, rate: Self::RATE }
    }
}

/// How long a flow may be idle before it is forgotten, by protocol and state. Whole seconds; what is less
/// counts as one. Defaults: [`Limits::DEFAULT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP, open.
    pub tcp_established: Duration,
    /// TCP, until the handshake is complete.
    pub tcp_opening: Duration,
    /// TCP, after a FIN from one end.
    pub tcp_half_closed: Duration,
    /// TCP, after a FIN from both ends or a RST.
    pub tcp_closed: Duration,
    /// Everything else, until it is answered.
    pub one_way: Duration,
    /// Everything else, once it was answered.
    pub two_way: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let limits = Limits::DEFAULT;
        Self {
            tcp_established: seconds(limits.tcp_established),
            tcp_opening: seconds(limits.tcp_opening),
            tcp_half_closed: seconds(limits.tcp_half_closed),
            tcp_closed: seconds(limits.tcp_closed),
            one_way: seconds(limits.one_way),
            two_way: seconds(limits.two_way),
        }
    }
}

impl Config {
    /// What the programs take from it.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let seconds = |time: Duration| {
            let whole = time.as_secs() + u64::from(time.subsec_nanos() > 0);
            u32::try_from(whole).unwrap_or(u32::MAX)
        };
        let times = self.timeouts;
        Limits {
            rows_per_pod: self.flows_per_pod,
            tcp_established: seconds(times.tcp_established),
            tcp_opening: seconds(times.tcp_opening),
            tcp_half_closed: seconds(times.tcp_half_closed),
            tcp_closed: seconds(times.tcp_closed),
            one_way: seconds(times.one_way),
            two_way: seconds(times.two_way),
        }
    }
}
