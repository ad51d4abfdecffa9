//! Connection tracking: one table, one look-up per packet.
//!
//! A flow is keyed by its two ends in a fixed order, so that both directions find the same row. A flow
//! through a Service has two rows: client ↔ frontend, which carries the backend, and client ↔ backend,
//! which carries the frontend for the way back. Each names the other by its translation.

use crate::{Addr, abi};

/// Key of `FLOWS` (LRU HASH): both ends, the lower first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The lower end's address, by the order of [`Addr`]'s words.
    pub low: Addr,
    /// The higher end's address.
    pub high: Addr,
    /// Network order; the ICMP identifier for echo, 0 for protocols without ports.
    pub low_port: u16,
    /// Network order.
    pub high_port: u16,
    /// IANA protocol number.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// Values of [`Flow::role`].
pub mod role {
    /// No translation.
    pub const DIRECT: u8 = 0;
    /// Client ↔ frontend: the destination becomes [`super::Flow::xlat_addr`].
    pub const FORWARD: u8 = 1;
    /// Client ↔ backend: on the way back the source becomes [`super::Flow::xlat_addr`].
    pub const REPLY: u8 = 2;
}

/// Bits of [`Flow::flags`].
pub mod flow_flag {
    /// The flow's first packet came from the higher end.
    pub const INITIATOR_HIGH: u8 = 1 << 0;
    /// A packet came back.
    pub const REPLIED: u8 = 1 << 1;
    /// TCP: a FIN was seen from the initiator.
    pub const FIN_FORWARD: u8 = 1 << 2;
    /// TCP: a FIN was seen from the other end.
    pub const FIN_REPLY: u8 = 1 << 3;
    /// TCP: a RST was seen.
    pub const RESET: u8 = 1 << 4;
    /// The backend is a listener of this node ([`crate::service::kind::LOCAL_REDIRECT`]).
    pub const LOCAL_REDIRECT: u8 = 1 << 5;
    /// Client and backend are one pod: the client appears as [`super::HAIRPIN_V4`] or [`super::HAIRPIN_V6`].
    pub const HAIRPIN: u8 = 1 << 6;
    /// The flow came to the pod from the node's own stack, which may have translated it (a hostPort, any
    /// rule of netfilter): its replies go back there.
    pub const FROM_STACK: u8 = 1 << 7;
    /// TCP: closing, in either way; a new SYN starts a new flow.
    pub const CLOSING: u8 = FIN_FORWARD | FIN_REPLY | RESET;
}

/// Value of `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// [`role`].
    pub role: u8,
    /// [`flow_flag`].
    pub flags: u8,
    /// Network order; see [`role`].
    pub xlat_port: u16,
    /// See [`role`].
    pub xlat_addr: Addr,
    /// [`crate::service::Frontend::service`], 0 without one.
    pub service: u32,
    /// Backend id, 0 without one.
    pub backend: u32,
    /// [`crate::service::Backend::generation`] when the backend was chosen.
    pub backend_generation: u32,
    /// Policy epoch at which egress was judged.
    pub egress_epoch: u32,
    /// Policy epoch at which ingress was judged.
    pub ingress_epoch: u32,
    /// Rule that allowed egress, 0: none was needed.
    pub egress_rule: u32,
    /// Rule that allowed ingress, 0: none was needed.
    pub ingress_rule: u32,
    /// Seconds since boot (`CLOCK_MONOTONIC`).
    pub created: u32,
    /// Seconds since boot; exact to a second.
    pub last_seen: u32,
}

/// Source of what a pod sends to itself through a Service: a pod takes no packet from its own address. The
/// pod's gateway, to which it has a route.
pub const HAIRPIN_V4: Addr = Addr::from_v4_word(0xa9fe_0101_u32.to_be());
/// The same for IPv6: `fd6e:6574:6400::1`, a unique local address (RFC 4193) of "netd" that nobody has.
pub const HAIRPIN_V6: Addr = Addr([0xfd6e_6574_u32.to_be(), 0x6400_0000_u32.to_be(), 0, 1_u32.to_be()]);

/// UDP flows idle for longer are decided anew, in seconds (the kernel's `nf_conntrack_udp_timeout_stream`).
pub const UDP_IDLE_SECONDS: u32 = 120;

abi!(FlowKey = 40, Flow = 56);
