//! Connection tracking: two tables of one shape, and how long a row lives.
//!
//! New flows stand in `NURSERY` (LRU HASH), where the newest push out the oldest. A flow that proves to be a
//! conversation (TCP: the handshake is complete; else: it went both ways several times) moves to
//! `ESTABLISHED` (HASH, preallocated), from which nothing is pushed out: it leaves when it is closed or has
//! been idle for its [`lifetime`]. Each pod has a share of that table, so that none can fill it.
//!
//! A flow is keyed by its two ends in a fixed order, so that both directions find the same row. A translated
//! flow has two rows: client ↔ frontend, which carries the backend, and client ↔ backend, which carries the
//! frontend for the way back. Each names the other by its translation.

use crate::{Addr, abi};

/// Key of `NURSERY` and `ESTABLISHED`: both ends, the lower first.
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
    /// [`leg`].
    pub leg: u8,
    /// Zero.
    pub pad: [u8; 2],
}

impl FlowKey {
    /// Makes it the key of what goes from `a` to `b` on the wire, each an address and a port in network order;
    /// true if `a` is the higher end.
    #[inline(always)]
    pub fn set(&mut self, a: (&Addr, u16), b: (&Addr, u16), proto: u8) -> bool {
        let a_high = higher(a, b);
        let (low, high) = if a_high { (b, a) } else { (a, b) };
        self.low = *low.0;
        self.high = *high.0;
        self.low_port = low.1;
        self.high_port = high.1;
        self.proto = proto;
        self.leg = leg::WIRE;
        self.pad = [0; 2];
        a_high
    }
}

impl FlowKey {
    /// Of the whole key, for a row's [`Flow::verdict`].
    #[inline(always)]
    #[must_use]
    pub fn digest(&self) -> u32 {
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let ([a, b, c, d], [e, f, g, h]) = (self.low.0, self.high.0);
        let ports = self.low_port as u32 | (self.high_port as u32) << 16;
        let kind = self.proto as u32 | (self.leg as u32) << 8;
        let words = [pair(a, b), pair(c, d), pair(e, f), pair(g, h), pair(ports, kind)];
        let mut hash = 0_u64;
        for word in words {
            hash = (hash ^ word).wrapping_mul(FACTOR);
            hash ^= hash >> 29;
        }
        (hash >> 32) as u32
    }
}

#[inline(always)]
const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}

/// `a` > `b`, by the words as they are in memory: any fixed order does.
#[inline(always)]
fn higher(a: (&Addr, u16), b: (&Addr, u16)) -> bool {
    let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.0.0, b.0.0);
    // From the last word, in which most pairs differ.
    if a3 != b3 {
        return a3 > b3;
    }
    if a2 != b2 {
        return a2 > b2;
    }
    if a1 != b1 {
        return a1 > b1;
    }
    if a0 != b0 {
        return a0 > b0;
    }
    a.1 > b.1
}

/// Values of [`FlowKey::leg`].
pub mod leg {
    /// The packet as it is on the wire.
    pub const WIRE: u8 = 0;
    /// Client ↔ backend as the client sends it, while client ↔ backend on the wire is the far leg of another
    /// flow of the same client port: its source port is translated, and this row is its near leg.
    pub const ASIDE: u8 = 1;
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
    pub const INITIATOR_HIGH: u16 = 1 << 0;
    /// A packet came back.
    pub const REPLIED: u16 = 1 << 1;
    /// TCP: a FIN was seen from the initiator.
    pub const FIN_FORWARD: u16 = 1 << 2;
    /// TCP: a FIN was seen from the other end.
    pub const FIN_REPLY: u16 = 1 << 3;
    /// TCP: a RST was seen from the initiator.
    pub const RESET_FORWARD: u16 = 1 << 4;
    /// The backend is a listener of this node ([`crate::service::kind::LOCAL_REDIRECT`]).
    pub const LOCAL_REDIRECT: u16 = 1 << 5;
    /// Client and backend are one pod: the client appears as [`super::HAIRPIN_V4`] or [`super::HAIRPIN_V6`].
    pub const HAIRPIN: u16 = 1 << 6;
    /// The flow came to the pod from the node's own stack, which may have translated it (a hostPort, any
    /// rule of netfilter): its replies go back there.
    pub const FROM_STACK: u16 = 1 << 7;
    /// The flow is a conversation: it went, or would have gone, to the table of the established.
    pub const CONFIRMED: u16 = 1 << 8;
    /// The table of the established, or the pod's share of it, had no room.
    pub const REFUSED: u16 = 1 << 9;
    /// Not TCP, not confirmed yet: the newest packet was a reply.
    pub const LAST_WAS_REPLY: u16 = 1 << 10;
    /// TCP: a RST was seen from the other end.
    pub const RESET_REPLY: u16 = 1 << 11;
    /// TCP: a RST was seen.
    pub const RESET: u16 = RESET_FORWARD | RESET_REPLY;
    /// TCP: both ends are done.
    pub const FIN_BOTH: u16 = FIN_FORWARD | FIN_REPLY;
    /// TCP: closing, in either way; a new SYN of this flow starts it anew.
    pub const CLOSING: u16 = FIN_BOTH | RESET;
    /// What changes in a flow's life; the rest is the flow's own from its first packet on.
    pub const STATE: u16 = REPLIED | CLOSING | CONFIRMED | REFUSED | LAST_WAS_REPLY;
}

/// In the place of an epoch in [`Flow::verdict`]: the node itself opened the flow to its pod, which no policy forbids.
pub const OF_NODE: u32 = 0x6e6f_6465;

/// Value of `NURSERY` and `ESTABLISHED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// [`role`].
    pub role: u8,
    /// Not TCP, not confirmed yet: how often the direction changed.
    pub turns: u8,
    /// [`flow_flag`].
    pub flags: u16,
    /// Network order; see [`role`].
    pub xlat_port: u16,
    /// The client's port on the other leg, network order; 0 without translation.
    pub client_port: u16,
    /// See [`role`].
    pub xlat_addr: Addr,
    /// [`crate::service::Frontend::service`], 0 without one.
    pub service: u32,
    /// Backend id, 0 without one.
    pub backend: u32,
    /// [`crate::service::Backend::generation`] when the backend was chosen.
    pub backend_generation: u32,
    /// That policy allowed the flow: the epoch in which it was judged, or [`OF_NODE`], XOR [`FlowKey::digest`], so that
    /// it means nothing in a row of another key. Anything else: to be judged.
    pub verdict: u32,
    /// Zero.
    pub pad: u32,
    /// Rule that allowed egress, 0: none was needed.
    pub egress_rule: u32,
    /// Rule that allowed ingress, 0: none was needed.
    pub ingress_rule: u32,
    /// Seconds since boot (`CLOCK_MONOTONIC`).
    pub created: u32,
    /// Seconds since boot; exact to a second.
    pub last_seen: u32,
    /// [`crate::pod::Pod::endpoint`] of the pod whose share the row counts against.
    pub owner: u32,
}

impl Flow {
    /// True if two rows of one key are of one flow, not of one and its successor.
    #[inline(always)]
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        self.role == other.role
            && (self.flags ^ other.flags) & flow_flag::INITIATOR_HIGH == 0
            && self.created == other.created
            && self.backend == other.backend
            && self.client_port == other.client_port
            && self.xlat_port == other.xlat_port
            && self.xlat_addr == other.xlat_addr
    }

    /// True for a flow that has ended: TCP, reset or closed by both ends.
    #[inline(always)]
    #[must_use]
    pub const fn done(&self) -> bool {
        is_done(self.flags)
    }

    /// Makes `key` that of a translated flow's other half. On the leg of this half it goes from `client` to
    /// `far`, an address and a port in network order. True if the client is the higher end over there.
    #[inline(always)]
    pub fn other_half(&self, client: &Addr, far: (&Addr, u16), proto: u8, key: &mut FlowKey) -> bool {
        let forth = self.role == role::FORWARD;
        let over_there = if self.flags & flow_flag::HAIRPIN == 0 {
            client
        } else if forth {
            hairpin_source(!client.is_v4())
        } else {
            far.0
        };
        let xlat = (&self.xlat_addr, self.xlat_port);
        let high = key.set((over_there, self.client_port), xlat, proto);
        if !forth && xlat.1 == far.1 && *xlat.0 == *far.0 {
            key.leg = leg::ASIDE;
        }
        high
    }
}

/// True for the flags of a flow that has ended.
#[inline(always)]
pub(crate) const fn is_done(flags: u16) -> bool {
    flags & flow_flag::RESET != 0 || flags & flow_flag::FIN_BOTH == flow_flag::FIN_BOTH
}

/// Value of `SHARES` (HASH by [`crate::pod::Pod::endpoint`]): what a pod has of `ESTABLISHED`. All numbers
/// only grow, by atomic addition, so that whoever reads them twice knows what happened in between.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Rows that came.
    pub taken: u64,
    /// Rows that went.
    pub returned: u64,
    /// Rows that passes of `reclaim` met, all passes together.
    pub met: u64,
    /// Flows that stayed in the nursery because the share is used up.
    pub refused_share: u64,
    /// Flows that stayed in the nursery because the table is full.
    pub refused_full: u64,
}

impl Share {
    /// Rows that the pod holds. May be off, also below zero, for the time of a packet.
    #[inline(always)]
    #[must_use]
    pub const fn rows(&self) -> i64 {
        self.taken.wrapping_sub(self.returned) as i64
    }
}

/// Rows of `SWEEPS` (ARRAY): one for each table of flows.
pub mod sweep {
    /// The pass over `ESTABLISHED`.
    pub const ESTABLISHED: u32 = 0;
    /// The pass over `NURSERY`.
    pub const NURSERY: u32 = 1;
    /// Number of rows.
    pub const COUNT: u32 = 2;
}

/// Value of `SWEEPS`: a pass over a table of flows. One at a time, by the agent alone, which writes it before
/// and reads it after.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Seconds since boot at the first row; before, 0.
    pub now: u64,
    /// Rows to go before the next pause.
    pub left: u64,
    /// Rows that are alive.
    pub alive: u64,
    /// Rows that are not; those among the established were removed, and so were those that are [`ORPHANED`].
    pub expired: u64,
    /// Rows alive of pods that have no share (any more).
    pub ownerless: u64,
}

/// Rows that a pass looks at between two pauses: about half a millisecond.
pub const SLICE: u64 = 2048;

/// For how many seconds an expired row stays before a pass takes it away. A packet that finds an expired row
/// begins a new flow, so that no row of this age is ever refreshed: what a pass sees expired, stays it.
pub const GRACE: u32 = 2;

/// For how many seconds rows stay of which a pass found that their pod has no share any more. A pod that is gone
/// leaves connections that nobody will end, and without a share nothing limits them. But one whose rows are being
/// written anew (by an agent that starts, or finds them damaged) is without a share for a moment, and lives.
pub const ORPHANED: u32 = 60;

/// What the programs take from the configuration: read-only data, set when they are loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows of `ESTABLISHED` that one pod may hold.
    pub rows_per_pod: u32,
    /// Seconds that an idle TCP connection lives.
    pub tcp_established: u32,
    /// Seconds for a TCP handshake.
    pub tcp_opening: u32,
    /// Seconds that a TCP connection lives of which one end sent its FIN.
    pub tcp_half_closed: u32,
    /// Seconds that a closed TCP connection is remembered.
    pub tcp_closed: u32,
    /// Seconds that UDP, and what has no state of its own, lives without an answer.
    pub one_way: u32,
    /// Seconds that it lives after an answer.
    pub two_way: u32,
}

impl Limits {
    /// 8000 s outlast the kernel's default keep-alive (7200 s and nine probes 75 s apart: `tcp(7)`), so that
    /// it keeps an idle connection known. The others are those of `nf_conntrack`.
    pub const DEFAULT: Self = Self {
        rows_per_pod: 65_536,
        tcp_established: 8_000,
        tcp_opening: 60,
        tcp_half_closed: 600,
        tcp_closed: 60,
        one_way: 30,
        two_way: 120,
    };
}

/// Values of the programs' read-only data `BESIDE`: what other programs run on the node beside these, while
/// the ones take the place of the others.
pub mod beside {
    /// None.
    pub const ALONE: u32 = 0;
    /// Those of schema 1, with the table `OLD_FLOWS`.
    pub const SCHEMA_1: u32 = 1;
    /// Those of this schema with tables of another size, `OLD_NURSERY` and `OLD_ESTABLISHED`.
    pub const SAME_SCHEMA: u32 = 2;
}

/// How long a row may be idle, in seconds.
#[inline(always)]
#[must_use]
pub const fn lifetime(flow: &Flow, proto: u8, limits: &Limits) -> u32 {
    const TCP: u8 = 6;
    let flags = flow.flags;
    if proto != TCP {
        return if flags & flow_flag::REPLIED != 0 { limits.two_way } else { limits.one_way };
    }
    if flow.done() {
        limits.tcp_closed
    } else if flags & flow_flag::FIN_BOTH != 0 {
        limits.tcp_half_closed
    } else if flags & flow_flag::CONFIRMED == 0 {
        limits.tcp_opening
    } else {
        limits.tcp_established
    }
}

/// True if a row has been idle for longer than its lifetime, at `now` seconds since boot.
#[inline(always)]
#[must_use]
pub const fn expired(flow: &Flow, proto: u8, limits: &Limits, now: u32) -> bool {
    // A row seen by a CPU whose clock is a tick ahead is not expired.
    let idle = now.wrapping_sub(flow.last_seen) as i32;
    idle > lifetime(flow, proto, limits) as i32
}

/// Rows of `FLOW_COUNTS` (per-CPU ARRAY of `u64`): what became of flows since the maps were made.
pub mod flow_count {
    /// Rows written to the nursery.
    pub const OPENED: u32 = 0;
    /// Rows moved to the table of the established.
    pub const PROMOTED: u32 = 1;
    /// Rows that left it closed or replaced by a new flow.
    pub const CLOSED: u32 = 2;
    /// Rows that a pass removed: idle for too long, or [`super::ORPHANED`].
    pub const EXPIRED: u32 = 3;
    /// Flows not promoted because their pod's share is used up.
    pub const REFUSED_SHARE: u32 = 4;
    /// Flows not promoted because the table is full.
    pub const REFUSED_FULL: u32 = 5;
    /// Flows whose source port was translated, because another flow has it to the same backend.
    pub const PORTS_TRANSLATED: u32 = 6;
    /// Number of counters.
    pub const COUNT: u32 = 7;
    /// Names for metrics, by index.
    #[cfg(not(target_arch = "bpf"))]
    pub const NAMES: [&str; COUNT as usize] =
        ["opened", "promoted", "closed", "expired", "refused_share", "refused_full", "ports_translated"];
}

/// Source of what a pod sends to itself through a Service: a pod takes no packet from its own address. The
/// pod's gateway, to which it has a route.
pub const HAIRPIN_V4: Addr = Addr::from_v4_word(0xa9fe_0101_u32.to_be());
/// The same for IPv6: `fd6e:6574:6400::1`, a unique local address (RFC 4193) of "netd" that nobody has.
pub const HAIRPIN_V6: Addr = Addr([0xfd6e_6574_u32.to_be(), 0x6400_0000_u32.to_be(), 0, 1_u32.to_be()]);

/// As what a pod that talks to itself appears.
#[inline(always)]
#[must_use]
pub const fn hairpin_source(v6: bool) -> &'static Addr {
    if v6 { &HAIRPIN_V6 } else { &HAIRPIN_V4 }
}

/// Changes of direction after which a flow that is not TCP is a conversation: question, answer, question,
/// answer, question. A resolver's one question is none.
pub const TURNS: u8 = 4;

/// What the agent asks the program `amend` to do with the tables of flows, by a test run. It follows the
/// Ethernet header of the run's frame; [`FlowKey`]s follow it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// [`order`].
    pub what: u32,
    /// Number of keys, at most [`order::MOST_KEYS`].
    pub keys: u32,
    /// [`order::ADJUST`]: whose share.
    pub endpoint: u32,
    /// Zero.
    pub pad: u32,
    /// [`order::ADJUST`]: rows to add to the share.
    pub rows: i64,
}

/// Values of [`Order::what`]. The verdict is the number of rows removed.
pub mod order {
    /// Remove those of these rows of `ESTABLISHED` that are expired or [`super::ORPHANED`].
    pub const EXPIRE: u32 = 1;
    /// Remove these rows from both tables.
    pub const FORGET: u32 = 2;
    /// Correct a share.
    pub const ADJUST: u32 = 3;
    /// The verifier follows the whole of each; the frame of a test run would hold 85.
    pub const MOST_KEYS: u32 = 32;
    /// Length of the frame's Ethernet header.
    pub const HEADER: usize = 14;
}

abi!(FlowKey = 40, Flow = 64, Share = 40, Sweep = 40, Order = 24, Limits = 28);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_have_one_key() {
        let v4 = |host: u32| Addr::from_v4_word((0x0a00_0000 + host).to_be());
        let v6 = |host: u32| Addr([0xfd00_u32.to_be(), host, 0, host.to_be()]);
        for (a, b) in [(v4(1), v4(2)), (v6(1), v6(2)), (v4(1), v4(1)), (v6(7), v6(7))] {
            for (port, other) in [(80, 81), (81, 80)] {
                let (mut forth, mut back) = (FlowKey::default(), FlowKey { leg: 9, ..FlowKey::default() });
                let high = forth.set((&a, port), (&b, other), 6);
                assert_eq!(back.set((&b, other), (&a, port), 6), !high);
                assert_eq!(forth, back);
                let (first, second) = if high { (b, a) } else { (a, b) };
                assert_eq!((forth.low, forth.high, forth.leg), (first, second, leg::WIRE));
            }
        }
    }

    #[test]
    fn each_half_names_the_other() {
        let v4 = |n: u32| Addr::from_v4_word(n.to_be());
        let v6 = |n: u32| Addr([0xfd00_u32.to_be(), 0, 0, n.to_be()]);
        for [client, vip, backend] in [[v4(1), v4(2), v4(3)], [v6(1), v6(2), v6(3)]] {
            // Through a Service, to the backend itself beside one, and to oneself.
            for (frontend, to, flags) in
                [(vip, backend, 0), (backend, backend, 0), (vip, client, flow_flag::HAIRPIN)]
            {
                let seen = if flags == 0 { client } else { *hairpin_source(!client.is_v4()) };
                let near = Flow {
                    role: role::FORWARD,
                    flags,
                    xlat_addr: to,
                    xlat_port: 8080,
                    client_port: 1001,
                    ..Flow::default()
                };
                let far = Flow {
                    role: role::REPLY,
                    flags,
                    xlat_addr: frontend,
                    xlat_port: 80,
                    client_port: 1000,
                    ..Flow::default()
                };
                let frontend_port = if frontend == to { 8080 } else { 80 };
                let far = Flow { xlat_port: frontend_port, ..far };
                let [mut here, mut there, mut key] = [FlowKey::default(); 3];
                here.set((&client, 1000), (&frontend, frontend_port), 6);
                let high = there.set((&seen, 1001), (&to, 8080), 6);
                if frontend == to {
                    here.leg = leg::ASIDE;
                }
                assert_eq!(near.other_half(&client, (&frontend, frontend_port), 6, &mut key), high);
                assert_eq!(key, there);
                far.other_half(&seen, (&to, 8080), 6, &mut key);
                assert_eq!(key, here);
            }
        }
    }

    #[test]
    fn a_row_lives_as_its_state_says() {
        let limits = Limits::DEFAULT;
        let of = |flags, proto| lifetime(&Flow { flags, ..Flow::default() }, proto, &limits);
        for (flags, proto, seconds) in [
            (0, 6, 60),
            (flow_flag::REPLIED, 6, 60),
            (flow_flag::REPLIED | flow_flag::CONFIRMED, 6, 8000),
            (flow_flag::CONFIRMED | flow_flag::FIN_REPLY, 6, 600),
            (flow_flag::CONFIRMED | flow_flag::FIN_BOTH, 6, 60),
            (flow_flag::CONFIRMED | flow_flag::RESET_FORWARD, 6, 60),
            (flow_flag::CONFIRMED | flow_flag::RESET_REPLY, 6, 60),
            (0, 17, 30),
            (flow_flag::REPLIED, 17, 120),
            (flow_flag::REPLIED, 132, 120),
        ] {
            assert_eq!(of(flags, proto), seconds, "flags {flags:#x} of protocol {proto}");
        }
    }

    #[test]
    fn idle_time_is_counted_across_the_clock_s_end() {
        let flow = Flow { last_seen: u32::MAX - 10, ..Flow::default() };
        let limits = Limits::DEFAULT;
        assert!(!expired(&flow, 17, &limits, 19));
        assert!(expired(&flow, 17, &limits, 20));
        assert!(!expired(&flow, 17, &limits, u32::MAX - 11), "a clock that is behind");
    }
}
