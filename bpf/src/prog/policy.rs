//! NetworkPolicy: may this flow be?
//!
//! A flow is judged as a whole: who began it, whom it really goes to (behind a Service: the backend), at which
//! port. Where the one that began it is a pod of this node, its egress set is asked; where the other one is, its
//! ingress set; of two pods of one node both at once, by whichever program sees the flow first. What was allowed
//! stands in the flow's row as a stamp of the policy epoch, and until that changes no packet of either direction is
//! judged again. Then the next one is, so that a policy which comes ends the connections that it forbids.
//!
//! Always allowed: what a pod sends to itself, what the node itself sends to its pods, and what they send to it
//! (the API's exceptions). The node itself sent what has a socket: of what it forwards the stack drops the socket,
//! whatever its source was translated to.
//!
//! Whoever reads a row twice without finding it whole denies: nothing here fails open.

use super::maps;
use super::pods;
use super::report::Run;
use super::table;
use crate::Addr;
use crate::event::{reason, stage};
use crate::flow::FlowKey;
use crate::policy::{
    Decision, IdentityRow, PolicyKey, PolicyRow, RANGE_STEPS, action, identity, identity_flag, identity_seal,
    point, row_seal, set,
};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;

/// How often a row that changes while it is read is read again. Each change takes the agent a system call.
const READ_TRIES: u32 = 4;
/// Bits of an address.
const ADDRESS_BITS: u32 = 128;

/// A flow before the judge, and what came of it.
#[derive(Default)]
pub(super) struct Case {
    /// Who began it, as itself.
    pub(super) initiator: Addr,
    /// Whom it really goes to.
    pub(super) responder: Addr,
    /// The responder's port, network order; 0 for protocols without.
    pub(super) port: u16,
    pub(super) proto: u8,
    /// One end is the node itself, or both are one pod: nothing is asked.
    pub(super) with_node: bool,
    /// The epoch before anything was looked up.
    pub(super) epoch: u32,
    /// Rules that allowed it, 0: none was needed.
    pub(super) egress_rule: u32,
    pub(super) ingress_rule: u32,
    /// [`reason`] why not, or 0.
    pub(super) denied: u8,
}

impl Case {
    /// A flow that begins with the packet from `initiator`.
    #[inline(always)]
    pub(super) fn set(&mut self, initiator: &Addr, responder: &Addr, port: u16, proto: u8) {
        self.initiator = *initiator;
        self.responder = *responder;
        self.port = port;
        self.proto = proto;
        self.with_node = false;
    }

    /// [`crate::flow::Flow::verdict`] of what was just allowed, in a row of this key.
    #[inline(always)]
    pub(super) fn stamp(&self, key: &FlowKey) -> u32 {
        key.digest() ^ self.epoch
    }
}

/// The policy epoch.
#[inline(always)]
pub(super) fn epoch() -> u32 {
    // SAFETY: one word, which the kernel writes at once.
    let epoch = maps::POLICY_EPOCH.get_ptr(0).map_or(0, |epoch| unsafe { epoch.read_volatile() });
    (epoch ^ epoch >> 32) as u32
}

/// True for a packet that the node itself sends to a pod.
#[inline(always)]
pub(super) fn sent_by_node(ctx: &TcContext, run: &Run) -> bool {
    if run.stage != stage::POD_INGRESS {
        return false;
    }
    // SAFETY: the context is valid; the verifier has the socket compared with null. A test-run's is of no family.
    unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        !socket.is_null() && (*socket).family != 0
    }
}

/// Judges the case: 0, or the [`reason`] against it.
#[inline(never)]
pub(super) fn judge(run: &mut Run, case: &mut Case) -> u8 {
    case.epoch = epoch();
    case.egress_rule = 0;
    case.ingress_rule = 0;
    case.denied = 0;
    // Rows that are read below are not older than the epoch.
    table::in_this_order();
    if case.with_node || case.initiator == case.responder {
        return 0;
    }
    if let Some(pod) = pods::by_addr(run, &case.initiator)
        && pod.egress_set != set::OPEN
    {
        let asked = Asked { set: pod.egress_set, endpoint: pod.endpoint, egress: true };
        if !allows(run, case, asked) {
            case.denied = reason::EGRESS_DENIED;
            return reason::EGRESS_DENIED;
        }
    }
    if let Some(pod) = pods::by_addr(run, &case.responder)
        && pod.ingress_set != set::OPEN
    {
        let asked = Asked { set: pod.ingress_set, endpoint: pod.endpoint, egress: false };
        if !allows(run, case, asked) {
            case.denied = reason::INGRESS_DENIED;
            return reason::INGRESS_DENIED;
        }
    }
    0
}

/// Whose policies are asked.
#[derive(Clone, Copy)]
struct Asked {
    set: u64,
    endpoint: u32,
    egress: bool,
}

/// Asks one set.
#[inline(always)]
fn allows(run: &mut Run, case: &mut Case, asked: Asked) -> bool {
    let Some(scratch) = table::scratch() else { return false };
    let other = if asked.egress { &case.responder } else { &case.initiator };
    let known = identify(other, &mut scratch.identity);
    if known && asked.egress && scratch.identity.flags & identity_flag::NODE != 0 {
        return true;
    }
    let mut decision = Decision::default();
    if known && asked.set != set::CLOSED {
        let mut key = PolicyKey { set: asked.set, identity: scratch.identity.identity };
        let found = match read(&key, &mut scratch.policy) {
            Read::Absent => {
                key.identity = identity::ANY;
                read(&key, &mut scratch.policy)
            }
            found => found,
        };
        if let Read::Whole = found {
            decision = decide(&scratch.policy, point(case.proto, u16::from_be(case.port)));
        }
    }
    if decision.action == action::ALLOW {
        if asked.egress {
            case.egress_rule = decision.rule;
        } else {
            case.ingress_rule = decision.rule;
        }
        return true;
    }
    run.set = asked.set;
    run.rule = decision.rule;
    run.endpoint = asked.endpoint;
    false
}

/// What reading a row came to.
enum Read {
    Whole,
    Absent,
    /// It changed again and again.
    Torn,
}

/// Finds the identity of an address; false: it changed again and again.
#[inline(always)]
fn identify(addr: &Addr, into: &mut IdentityRow) -> bool {
    let mut missed = false;
    for _ in 0..READ_TRIES {
        // SAFETY: copied at once.
        if let Some(row) = unsafe { maps::IDENTITIES.get(addr) } {
            *into = *row;
            if into.seal == identity_seal(addr, into) {
                return true;
            }
        } else if missed {
            into.flags = 0;
            into.identity =
                maps::BLOCKS.get(Key::new(ADDRESS_BITS, *addr)).map_or(identity::WORLD, |block| *block);
            return true;
        } else {
            // See `balance::read_frontend`: who looks while a row is replaced may see neither.
            missed = true;
        }
    }
    false
}

/// Copies a row.
#[inline(always)]
fn read(key: &PolicyKey, into: &mut PolicyRow) -> Read {
    let mut missed = false;
    for _ in 0..READ_TRIES {
        // SAFETY: copied at once.
        if let Some(row) = unsafe { maps::POLICY.get(key) } {
            *into = *row;
            if into.seal == row_seal(key, into) {
                return Read::Whole;
            }
        } else if missed {
            return Read::Absent;
        } else {
            missed = true;
        }
    }
    Read::Torn
}

/// What a row says of a protocol's port.
#[inline(always)]
fn decide(row: &PolicyRow, point: u32) -> Decision {
    let mut low = row.ranges;
    let mut high = row.ranges.wrapping_add(row.count);
    for _ in 0..=RANGE_STEPS {
        if low >= high {
            break;
        }
        let middle = low + (high - low) / 2;
        let Some(range) = maps::RANGES.get(middle) else { return Decision::default() };
        if point < range.first {
            high = middle;
        } else if point > range.last {
            low = middle + 1;
        } else {
            return range.decision;
        }
    }
    row.otherwise
}
