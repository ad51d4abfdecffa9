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
//! whatever its source was translated to. Some of its own has none: before Linux 6.13 the RST by IPv6 for which there is no
//! socket, and the ACKs of connections in `TIME_WAIT`. They pass in flows that the node opened.
//!
//! Whoever reads a row twice without finding it whole denies: nothing here fails open.

use super::maps;
use super::pods;
use super::report::Run;
use super::table;
use crate::Addr;
use crate::event::{reason, stage};
use crate::flow::{FlowKey, OF_NODE};
use crate::pod::Pod;
use crate::policy::{
    Decision, IdentityRow, PolicyKey, PolicyRow, RANGE_STEPS, action, identity, identity_flag, identity_seal,
    point, row_seal, set,
};
use aya_ebpf::helpers::bpf_sk_fullsock;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;
use core::ptr::read_volatile;

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
    /// The other end is the node itself, or both are one pod: nothing is asked.
    pub(super) with_node: bool,
    /// The node itself sent it: nothing is asked either, and the row says so for all epochs.
    pub(super) by_node: bool,
    /// The packet at hand goes to the initiator.
    pub(super) back: bool,
    /// The packet at hand goes the way of the one that began the flow's row.
    pub(super) forward: bool,
    /// What comes of it is for the packet at hand, and not to be noted in the row.
    pub(super) once: bool,
    /// The flow is known, by `key`, but was judged in another epoch.
    pub(super) stale: bool,
    /// What its row said of the packet.
    pub(super) known: u8,
    pub(super) key: FlowKey,
    /// The epoch before anything was looked up.
    pub(super) epoch: u32,
    /// Rules that allowed it, 0: none was needed.
    pub(super) egress_rule: u32,
    pub(super) ingress_rule: u32,
    /// [`reason`] why not, or 0.
    pub(super) denied: u8,
    asked: Asked,
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
        self.by_node = false;
        self.back = false;
        self.once = false;
    }

    /// [`crate::flow::Flow::verdict`] of what was just allowed, in a row of this key.
    #[inline(always)]
    pub(super) fn stamp(&self, key: &FlowKey) -> u32 {
        key.digest() ^ if self.by_node { OF_NODE } else { self.epoch }
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
#[inline(never)]
pub(super) fn sent_by_node(ctx: &TcContext, run: &Run) -> bool {
    if run.stage != stage::POD_INGRESS {
        return false;
    }
    // SAFETY: the context is valid; the verifier has both pointers compared with null.
    unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return false;
        }
        // A test-run's has a family, but no type. One of a handshake is no whole socket, and the node's all the same.
        let whole = bpf_sk_fullsock(socket);
        whole.is_null() || (*whole).type_ != 0
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
    if case.with_node || case.by_node || case.initiator == case.responder {
        return 0;
    }
    let (from, to) = if case.back {
        (stage::POD_INGRESS, stage::POD_EGRESS)
    } else {
        (stage::POD_EGRESS, stage::POD_INGRESS)
    };
    if let Some(pod) = end(run, from, &case.initiator)
        && pod.egress_set != set::OPEN
    {
        case.asked = Asked { set: pod.egress_set, endpoint: pod.endpoint, reason: reason::EGRESS_DENIED };
        ask(run, case);
    }
    if case.denied == 0
        && let Some(pod) = end(run, to, &case.responder)
        && pod.ingress_set != set::OPEN
    {
        case.asked = Asked { set: pod.ingress_set, endpoint: pod.endpoint, reason: reason::INGRESS_DENIED };
        ask(run, case);
    }
    case.denied
}

/// The pod of this node at one end of a flow: the one at this run's interface, if that is where packets of this `stage`
/// meet the end, whatever addresses are routed there; else by its address.
#[inline(always)]
fn end(run: &Run, stage: u8, addr: &Addr) -> Option<&'static Pod> {
    if run.stage == stage { pods::by_ifindex(run, run.ifindex) } else { pods::by_addr(run, addr) }
}

/// Whose policies are asked.
#[derive(Clone, Copy, Default)]
struct Asked {
    set: u64,
    endpoint: u32,
    /// Why the packet is dropped if they do not allow it; this says the direction, too.
    reason: u8,
}

/// Asks one set, and notes what it says: the rule that allows, or that it does not. Nothing is returned, nor are
/// there arguments but what is in maps: so the verifier goes through this but once for each place that it is called.
#[inline(never)]
fn ask(run: &mut Run, case: &mut Case) {
    let Asked { set, endpoint, reason } = case.asked;
    let egress = reason == reason::EGRESS_DENIED;
    case.denied = reason;
    let Some(scratch) = table::scratch_of(run) else { return };
    let maps::Scratch { identity, policy, search, .. } = scratch;
    identify(if egress { &case.responder } else { &case.initiator }, identity, search);
    if egress && identity.flags & identity_flag::NODE != 0 && search.found {
        case.denied = 0;
        return;
    }
    // A pod may send to its node, whoever began. What the node's address sends is judged all the same: it may stand
    // for somebody else, whose packets were translated, and a row says nothing of sockets.
    if !egress
        && case.back
        && run.stage == stage::POD_EGRESS
        && identity.flags & identity_flag::NODE != 0
        && search.found
    {
        case.denied = 0;
        case.once = true;
        return;
    }
    search.point = point(case.proto, u16::from_be(case.port));
    search.decision = Decision::default();
    if search.found && set != set::CLOSED {
        let mut key = PolicyKey { set, identity: identity.identity };
        read(&key, policy, search);
        if search.absent {
            key.identity = identity::ANY;
            read(&key, policy, search);
        }
        if search.found {
            decide(policy, search);
        }
    }
    if search.decision.action == action::ALLOW {
        case.denied = 0;
        run.allowed_by = search.decision.rule;
        if egress {
            case.egress_rule = search.decision.rule;
        } else {
            case.ingress_rule = search.decision.rule;
        }
        return;
    }
    run.set = set;
    run.rule = search.decision.rule;
    run.endpoint = endpoint;
}

/// What the steps of a look-up tell each other.
#[derive(Clone, Copy)]
pub(super) struct Search {
    /// A row was read whole.
    found: bool,
    /// There is none; if neither is so, it changed again and again.
    absent: bool,
    /// Of the packet.
    point: u32,
    /// The ranges in question are those from here…
    low: u32,
    /// …to before this one.
    high: u32,
    decision: Decision,
}

/// Finds the identity of an address.
#[inline(always)]
fn identify(addr: &Addr, into: &mut IdentityRow, search: &mut Search) {
    search.found = false;
    search.absent = false;
    for _ in 0..READ_TRIES {
        // SAFETY: copied at once.
        if let Some(row) = unsafe { maps::IDENTITIES.get(addr) } {
            *into = *row;
            if into.seal == identity_seal(addr, into) {
                search.found = true;
                return;
            }
        } else if search.absent {
            into.flags = 0;
            into.identity =
                maps::BLOCKS.get(Key::new(ADDRESS_BITS, *addr)).map_or(identity::WORLD, |block| *block);
            search.found = true;
            return;
        } else {
            // See `balance::read_frontend`: who looks while a row is replaced may see neither.
            search.absent = true;
        }
    }
}

/// Copies a row.
#[inline(never)]
fn read(key: &PolicyKey, into: &mut PolicyRow, search: &mut Search) {
    search.found = false;
    search.absent = false;
    let mut missed = false;
    for _ in 0..READ_TRIES {
        // SAFETY: copied at once.
        if let Some(row) = unsafe { maps::POLICY.get(key) } {
            *into = *row;
            if into.seal == row_seal(key, into) {
                search.found = true;
                return;
            }
        } else if missed {
            search.absent = true;
            return;
        } else {
            missed = true;
        }
    }
}

/// What a row says of a protocol's port.
#[inline(always)]
fn decide(row: &PolicyRow, search: &mut Search) {
    search.low = row.ranges;
    search.high = row.ranges.wrapping_add(row.count);
    search.decision = row.otherwise;
    for _ in 0..=RANGE_STEPS {
        // Read anew each time: of what comes out of a map the verifier knows nothing, and so looks at one step only,
        // not at each way through all of them.
        // SAFETY: words of this CPU's scratch memory.
        let (low, high) =
            unsafe { (read_volatile(&raw const search.low), read_volatile(&raw const search.high)) };
        if low >= high {
            return;
        }
        let middle = low + (high - low) / 2;
        let Some(range) = maps::RANGES.get(middle) else {
            search.decision = Decision::default();
            return;
        };
        if search.point < range.first {
            search.high = middle;
        } else if search.point > range.last {
            search.low = middle + 1;
        } else {
            search.decision = range.decision;
            return;
        }
    }
}
