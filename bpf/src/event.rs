//! What the programs tell: drops, counters, and the answer to an explain run.

use crate::{Addr, abi};

/// Where in the datapath a packet was.
pub mod stage {
    /// From a pod: tc ingress of the host's end.
    pub const POD_EGRESS: u8 = 1;
    /// To a pod: tc egress of the host's end.
    pub const POD_INGRESS: u8 = 2;
    /// From outside: tc ingress of an uplink.
    pub const UPLINK_IN: u8 = 3;
}

/// Declares the reasons once: number, name for metrics, sentence for people.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $label:literal, $text:literal;)+) => {
        /// Why a packet was dropped.
        pub mod reason {
            $(#[doc = $text] pub const $name: u8 = $number;)+
            /// All reasons: number, label of the metric, sentence.
            #[cfg(not(target_arch = "bpf"))]
            pub const ALL: &[(u8, &str, &str)] = &[$(($number, $label, $text)),+];
        }
    };
}

reasons! {
    SPOOFED_SOURCE = 1, "spoofed_source", "the source address is not the pod's";
    MALFORMED = 2, "malformed", "the headers are cut short or contradict themselves";
    UNSUPPORTED_ETHERTYPE = 3, "unsupported_ethertype", "a pod may send IPv4, IPv6 and ARP only";
    UNKNOWN_INTERFACE = 4, "unknown_interface", "the interface belongs to no pod known to the datapath";
    NO_BACKEND = 5, "no_backend", "the Service has no ready endpoint";
    EGRESS_DENIED = 6, "egress_denied", "the policies of the sending pod do not allow it";
    NO_ROUTE = 7, "no_route", "the node has a blackhole route for the destination";
    REWRITE_FAILED = 8, "rewrite_failed", "the headers could not be rewritten";
    FLOW_TABLE_FULL = 9, "flow_table_full", "the flow could not be recorded";
    NO_SOURCE_PORT = 10, "no_source_port", "every port tried for the client is in use towards the same backend";
    TORN_SERVICE = 11, "torn_service", "the Service's row changed again and again while it was read";
    INGRESS_DENIED = 12, "ingress_denied", "the policies of the receiving pod do not allow it";
    FRAGMENT_LOST = 20, "fragment_lost", "a fragment whose datagram's first did not come, or came too late";
    FRAGMENT_TOO_LONG = 21, "fragment_too_long", "a fragment that came before its first and is too long to be held";
    FRAGMENT_OF_DROPPED = 22, "fragment_of_dropped", "the datagram's first fragment was dropped";
}

/// In the place of a [`reason`]: the packet was not dropped, but opened a flow, which is told where flows are audited.
pub const OPENED: u8 = 0;

/// Ring buffer record of one dropped packet, or of one that opened a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drop {
    /// Nanoseconds since boot (`CLOCK_MONOTONIC`).
    pub time: u64,
    /// The policy set ([`crate::policy::set`]) that did not allow it, 0: it was not a matter of policy.
    pub set: u64,
    /// Source as the packet carried it.
    pub source: Addr,
    /// Destination as the packet carried it, before translation; where policy denied it, whom it was really for: of a
    /// Service the backend.
    pub destination: Addr,
    /// Network order.
    pub source_port: u16,
    /// Network order, as [`Drop::destination`].
    pub destination_port: u16,
    /// IANA protocol number.
    pub proto: u8,
    /// TCP flags byte.
    pub tcp_flags: u8,
    /// [`reason`].
    pub reason: u8,
    /// [`stage`].
    pub stage: u8,
    /// Interface the program runs on.
    pub ifindex: u32,
    /// [`crate::pod::Pod::endpoint`], 0: unknown.
    pub endpoint: u32,
    /// [`crate::service::Frontend::service`], 0: none.
    pub service: u32,
    /// Policy rule that denied it, 0: none; of a flow that was opened, the one that allowed it to leave.
    pub rule: u32,
    /// Of a flow that was opened, the policy rule that allowed it to enter, 0: none.
    pub ingress_rule: u32,
    /// Length of the packet in bytes.
    pub length: u32,
    /// Ethernet protocol number, host order, in the low 16 bits.
    pub ethertype: u32,
    /// Id of the Service's backend, 0: none was chosen.
    pub backend: u32,
}

/// Key of `DROPS` (LRU per-CPU HASH).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DropKey {
    /// [`reason`].
    pub reason: u8,
    /// [`stage`].
    pub stage: u8,
    /// Zero.
    pub pad: u16,
    /// [`crate::pod::Pod::endpoint`], 0: unknown.
    pub endpoint: u32,
    /// [`crate::service::Frontend::service`], 0: none.
    pub service: u32,
    /// Policy rule, 0: none.
    pub rule: u32,
}

/// Value of `DROPS` and of `PATHS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets (a GSO packet counts once).
    pub packets: u64,
    /// Bytes including the link header.
    pub bytes: u64,
}

/// Rows of `DROP_TOTALS` (per-CPU ARRAY), by [`total_index`]: never evicted, for counters.
pub const DROP_TOTALS: u32 = 128;

/// Row of a stage and reason.
#[must_use]
pub const fn total_index(stage: u8, reason: u8) -> u32 {
    ((stage as u32 & 3) << 5) | (reason as u32 & 31)
}

/// How a packet left the program; index into `PATHS` (per-CPU ARRAY).
pub mod path {
    /// Dropped.
    pub const DROP: u32 = 0;
    /// Into a pod of this node by `bpf_redirect_peer`.
    pub const PEER: u32 = 1;
    /// To another node by `bpf_redirect_neigh`.
    pub const NEIGHBOR: u32 = 2;
    /// To the node's own stack.
    pub const STACK: u32 = 3;
    /// Put aside until its datagram's first fragment comes: not dropped, and counted again when it goes on.
    pub const HELD: u32 = 4;
    /// Dropped, and answered: a TCP RST or an ICMP error went back to the pod.
    pub const REJECT: u32 = 5;
    /// Number of paths.
    pub const COUNT: u32 = 6;
    /// Names for metrics, by index.
    #[cfg(not(target_arch = "bpf"))]
    pub const NAMES: [&str; COUNT as usize] = ["drop", "peer", "neighbor", "stack", "held", "reject"];
}

/// `__sk_buff.cb` of a test run that asks for an explanation: the agent's secret in words 0 to 3. Only a
/// test run can set it before the first program, and each agent draws its own, so that stale bytes of a
/// live packet cannot be taken for it. Such a run sends no event, touches no flow and changes no row that
/// another run or the agent reads, but for memory that all explain runs of a CPU share: the packet is judged as
/// the first of a new flow. The answer comes back in the same words as [`Explained`].
pub const EXPLAIN_WORDS: usize = 4;

/// Answer of an explain run, in `__sk_buff.cb` words 0 to 4.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Explained {
    /// [`path`] | [`reason`] << 8 | [`stage`] << 16.
    pub outcome: u32,
    /// [`crate::service::Frontend::service`], 0: none.
    pub service: u32,
    /// Backend id, 0: none.
    pub backend: u32,
    /// Policy rule that denied the packet, or else the last one that allowed it (of two pods of one node the receiver's);
    /// 0: none.
    pub rule: u32,
    /// Interface the packet was sent to, 0: none.
    pub ifindex: u32,
}

abi!(Drop = 88, DropKey = 16, Count = 16, Explained = 20);
