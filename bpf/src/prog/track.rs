//! Connection tracking: finds or makes the packet's flow and translates accordingly.

use super::beside;
use super::from_code;
use super::maps::{self, Work};
use super::packet::{Packet, TCP, tcp_flag};
use super::pair::{self, belong, gives_way, image, initiator};
use super::policy::{self, Case};
use super::report::Run;
use super::rewrite::{self, End, Translation};
use super::table::{self, find, limits, now};
use super::{balance, icmp};
use crate::event::stage;
use crate::flow::{Flow, FlowKey, OF_NODE, TURNS, expired, flow_count, flow_flag, hairpin_source, leg, role};
use aya_ebpf::programs::TcContext;
use core::ptr::{read_volatile, write_volatile};

/// What the flow's row says of a packet.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Known {
    /// No row, or one that this packet starts anew.
    New,
    /// Go on as you are.
    Direct,
    /// Not translated, and nobody answered yet: perhaps the Service was not there when it began.
    Unanswered,
    /// Translate.
    Translated,
    /// A new flow straight to a backend, from a port that has another flow to it through a Service.
    Aside,
    /// Policy has changed, and forbids it.
    Denied,
}

/// A packet that a pod sends: existing flow, Service, or plain new flow.
#[inline(always)]
pub(super) fn from_pod(ctx: &TcContext, work: &mut Work) -> Result<(), u8> {
    if !work.packet.has_ports {
        return without_ports(ctx, work);
    }
    let Work { run, packet, to, choice, case, .. } = work;
    let mut known = known(ctx, run, packet, to, case);
    if case.stale {
        // One that nobody answered has nothing to lose, and perhaps there is a Service by now.
        known = if let Known::Unanswered = known {
            begun(case)
        } else {
            case.put_aside(known);
            judge_again(ctx, run, packet, case)
        };
    }
    match known {
        Known::Direct => return Ok(()),
        Known::Translated => return rewrite::translate(ctx, packet, to),
        Known::Denied => return Err(denied(packet, case)),
        Known::Aside | Known::Unanswered | Known::New => choice.clear(),
    }
    choice.addr = packet.destination;
    choice.port = packet.destination_port;
    if let Known::Aside = known {
        choice.aside = true;
    } else {
        from_code(balance::choose(ctx, run, packet, choice))?;
        if choice.service == 0 && !matches!(known, Known::New) {
            return Ok(());
        }
    }
    case.set(&packet.source, &choice.addr, choice.port, packet.proto);
    case.with_node = choice.local_redirect;
    if policy::judge(run, case) != 0 {
        return Err(denied(packet, case));
    }
    if choice.service == 0 && !choice.aside {
        record_direct(run, packet, case);
        run.opened(ctx, packet, case);
        return Ok(());
    }
    from_code(pair::open(run, packet, choice, case, to))?;
    run.opened(ctx, packet, case);
    rewrite::translate(ctx, packet, to)
}

/// A packet that comes to a pod: the reply of a Service's backend, or a plain flow.
#[inline(always)]
pub(super) fn to_pod(ctx: &TcContext, work: &mut Work) -> Result<(), u8> {
    if !work.packet.has_ports {
        return without_ports(ctx, work);
    }
    let Work { run, packet, to, case, .. } = work;
    let mut known = known(ctx, run, packet, to, case);
    if case.stale {
        case.put_aside(known);
        known = judge_again(ctx, run, packet, case);
    }
    match known {
        Known::Denied => Err(denied(packet, case)),
        Known::Translated if to.end == End::Source => rewrite::translate(ctx, packet, to),
        Known::Direct | Known::Unanswered | Known::Translated | Known::Aside => Ok(()),
        Known::New => {
            case.set(&packet.source, &packet.destination, packet.destination_port, packet.proto);
            case.by_node = policy::sent_by_node(ctx, run);
            if policy::judge(run, case) != 0 {
                return Err(denied(packet, case));
            }
            record_direct(run, packet, case);
            run.opened(ctx, packet, case);
            Ok(())
        }
    }
}

/// ICMP other than echo: what is about a known flow belongs to it, all else is judged packet by packet.
#[inline(always)]
fn without_ports(ctx: &TcContext, work: &mut Work) -> Result<(), u8> {
    if work.packet.is_icmp_error() {
        from_code(icmp::error(ctx, work))?;
        // An explain run looks up no flow, and cannot tell.
        if work.run.related || work.run.explain {
            return Ok(());
        }
    }
    let Work { run, packet, case, .. } = work;
    case.set(&packet.source, &packet.destination, 0, packet.proto);
    case.by_node = policy::sent_by_node(ctx, run);
    from_code(policy::judge(run, case))
}

/// Notes in the view whom the packet was really for, and gives the reason.
#[inline(always)]
fn denied(packet: &mut Packet, case: &Case) -> u8 {
    if packet.source == case.initiator {
        packet.original_destination = case.responder;
        packet.original_destination_port = case.port;
    }
    case.denied
}

/// Looks the flow up and keeps its row fresh.
#[inline(never)]
fn known(ctx: &TcContext, run: &mut Run, packet: &Packet, to: &mut Translation, case: &mut Case) -> Known {
    case.stale = false;
    // A look-up alone would mark the row as recently used.
    if run.explain {
        return Known::New;
    }
    // On the stack there is no room for it.
    let key = &mut case.key;
    let from_high = packet.fill_key(key);
    beside::pull(key, run.endpoint);
    let Some((mut flow, mut established)) = find(key) else { return Known::New };
    let now = now();
    let mut forward = (flow.flags & flow_flag::INITIATOR_HIGH != 0) == from_high;
    let inherited = is_inherited(run, flow, packet, forward);
    if flow.role == role::REPLY && forward && run.stage == stage::POD_EGRESS {
        // A packet through the Service has the frontend's address here, not yet the backend's: this one is
        // for the backend itself.
        if inherited || gives_way(flow, packet, now) {
            supersede(flow, packet, key, forward, established);
            return Known::New;
        }
        key.leg = leg::ASIDE;
        beside::pull(key, run.endpoint);
        let Some(near) = find(key) else { return Known::Aside };
        (flow, established) = near;
        forward = (flow.flags & flow_flag::INITIATOR_HIGH != 0) == from_high;
        if is_inherited(run, flow, packet, forward) || over(flow, packet, now) {
            supersede(flow, packet, key, forward, established);
            return Known::Aside;
        }
    } else if inherited || over(flow, packet, now) || lost(ctx, flow, packet, forward) {
        supersede(flow, packet, key, forward, established);
        return Known::New;
    }
    if allowed(ctx, run, packet, flow, key, forward) {
        touch(flow, packet, key, Way { forward, established }, now);
    } else {
        case.stale = true;
        case.forward = forward;
    }
    run.service = flow.service;
    run.backend = flow.backend;
    run.to_stack = !forward && flow.flags & flow_flag::FROM_STACK != 0;
    to.end = match (flow.role, forward) {
        (role::FORWARD, true) => End::Destination,
        (role::REPLY, false) => End::Source,
        (role::DIRECT, true) if flow.flags & flow_flag::REPLIED == 0 => return Known::Unanswered,
        _ => return Known::Direct,
    };
    to.addr = flow.xlat_addr;
    to.port = flow.xlat_port;
    to.other_port = flow.client_port;
    let hairpin = flow.flags & flow_flag::HAIRPIN != 0;
    to.other_addr = match (hairpin, forward) {
        (true, true) => *hairpin_source(packet.v6),
        (false, true) | (true, false) => packet.source,
        (false, false) => packet.destination,
    };
    Known::Translated
}

/// True if the flow was judged in this epoch, and for this pod: one that has the address of another which is gone
/// has none of its flows. What the node itself opened nobody judges; but a packet of somebody else, whose source was
/// translated to the node's, may have the same ends, and has no socket of the node. Of TCP that is asked of the SYN:
/// some kernels send the last ACK and the RST of the node itself without (see [`policy`]).
#[inline(always)]
fn allowed(ctx: &TcContext, run: &Run, packet: &Packet, flow: &Flow, key: &FlowKey, forward: bool) -> bool {
    let inherited =
        forward && run.stage == stage::POD_EGRESS && flow.owner != run.endpoint && flow.owner != 0;
    let judged = flow.verdict ^ key.digest();
    judged == policy::epoch() && !inherited
        || judged == OF_NODE && (!forward || !begins(packet) || policy::sent_by_node(ctx, run))
}

/// A packet's flow, as it was found.
#[derive(Clone, Copy)]
struct Found<'a> {
    flow: &'a Flow,
    /// The packet goes from the initiator to the other end.
    forward: bool,
    /// A pod that is gone left it ([`is_left`]).
    left: bool,
}

/// Makes a case of a flow of which policy may have changed. What is left of one whose pod is gone is judged by its
/// packets, each on its own: who has the address now did not ask for them.
#[inline(always)]
fn file(ctx: &TcContext, run: &Run, packet: &Packet, found: Found<'_>, case: &mut Case) {
    let Found { flow, forward, left } = found;
    if forward || left {
        case.set(&packet.source, &packet.destination, packet.destination_port, packet.proto);
        case.by_node = policy::sent_by_node(ctx, run);
    } else {
        case.set(&packet.destination, &packet.source, packet.source_port, packet.proto);
        case.back = true;
    }
    if flow.role == role::FORWARD && (forward || !left) {
        case.responder = flow.xlat_addr;
        case.port = flow.xlat_port;
    }
    if flow.flags & (flow_flag::HAIRPIN | flow_flag::LOCAL_REDIRECT) != 0 {
        case.with_node = true;
    }
    // The node's own is judged for others packet by packet, and stays the node's.
    case.once = left || flow.verdict ^ case.key.digest() == OF_NODE;
}

impl Case {
    /// Keeps what is known of a flow while it is judged: in memory, so that the verifier does not follow the judge for
    /// each of it.
    #[inline(always)]
    fn put_aside(&mut self, known: Known) {
        // SAFETY: a field.
        unsafe { write_volatile(&raw mut self.known, known as u8) };
    }

    #[inline(always)]
    fn known(&self) -> Known {
        // SAFETY: a field.
        match unsafe { read_volatile(&raw const self.known) } {
            DIRECT => Known::Direct,
            UNANSWERED => Known::Unanswered,
            TRANSLATED => Known::Translated,
            ASIDE => Known::Aside,
            _ => Known::New,
        }
    }
}

const DIRECT: u8 = Known::Direct as u8;
const UNANSWERED: u8 = Known::Unanswered as u8;
const TRANSLATED: u8 = Known::Translated as u8;
const ASIDE: u8 = Known::Aside as u8;

/// As what a packet begins whose row is gone.
#[inline(always)]
fn begun(case: &Case) -> Known {
    if case.key.leg == leg::ASIDE { Known::Aside } else { Known::New }
}

/// Judges a known flow, and notes in its row that it is allowed, and the packet, if it is. One that is not keeps no row
/// fresh. Gives what was put aside, what the packet begins if the row is gone, or [`Known::Denied`].
#[inline(never)]
fn judge_again(ctx: &TcContext, run: &mut Run, packet: &Packet, case: &mut Case) -> Known {
    let Some((flow, established)) = find(&case.key) else { return begun(case) };
    let left = is_left(run, flow);
    if left && begins(packet) {
        supersede(flow, packet, &case.key, case.forward, established);
        return begun(case);
    }
    file(ctx, run, packet, Found { flow, forward: case.forward, left }, case);
    if policy::judge(run, case) != 0 {
        return Known::Denied;
    }
    if let Some((flow, established)) = find(&case.key) {
        if !case.once {
            // Even if the row is another flow's by now: a verdict says whose it is, rules only explain.
            flow.egress_rule = case.egress_rule;
            flow.ingress_rule = case.ingress_rule;
            flow.verdict = case.stamp(&case.key);
        }
        touch(flow, packet, &case.key, Way { forward: case.forward, established }, now());
    }
    case.known()
}

/// How a packet stands to the row it found.
#[derive(Clone, Copy)]
struct Way {
    /// It goes from the initiator to the other end.
    forward: bool,
    /// The row is among the established.
    established: bool,
}

/// True if the row is of a flow that has ended.
#[inline(always)]
fn over(flow: &Flow, packet: &Packet, now: u32) -> bool {
    expired(flow, packet.proto, limits(), now) || packet.opens() && flow.flags & flow_flag::CLOSING != 0
}

/// True if the packet's pod has the flow from one that is gone, whose address it has now: a pass would take the rows
/// away in use.
#[inline(always)]
fn is_inherited(run: &Run, flow: &Flow, packet: &Packet, forward: bool) -> bool {
    flow.owner != run.endpoint
        && flow.owner != 0
        && forward
        && run.stage == stage::POD_EGRESS
        && begins(packet)
        && maps::SHARES.get_ptr(flow.owner).is_none()
}

/// True if the flow is what a pod left that is gone: its address may be another pod's by now, which neither began the
/// flow nor was asked for.
#[inline(always)]
fn is_left(run: &Run, flow: &Flow) -> bool {
    flow.owner != run.endpoint && flow.owner != 0 && maps::SHARES.get_ptr(flow.owner).is_none()
}

/// True for a packet that may be the first of a flow. TCP's other packets than a SYN, such as the RST for what is left
/// of a connection, belong to the one that was.
#[inline(always)]
fn begins(packet: &Packet) -> bool {
    packet.proto != TCP || packet.opens()
}

/// True if the flow has lost its backend. An open connection stays with it to the end; only a new one may
/// change.
#[inline(always)]
fn lost(ctx: &TcContext, flow: &Flow, packet: &Packet, forward: bool) -> bool {
    flow.role == role::FORWARD
        && forward
        && begins(packet)
        && flow.backend != 0
        && !balance::still_there(ctx, flow, packet)
}

/// Removes the rows of a flow that this packet's flow replaces.
#[inline(always)]
fn supersede(flow: &Flow, packet: &Packet, key: &FlowKey, forward: bool, established: bool) {
    pair::forget_other(flow, packet, forward);
    table::forget(key, flow.owner, established);
}

/// Notes the packet in the row; when that says something new, and once a second, also in the other half.
#[inline(always)]
fn touch(flow: &mut Flow, packet: &Packet, key: &FlowKey, way: Way, now: u32) {
    let mut flags = flow.flags;
    if !way.forward {
        flags |= flow_flag::REPLIED;
    }
    if packet.proto == TCP {
        flags = tcp_flags(flags, flow, packet, way.forward, now);
    } else if flags & flow_flag::CONFIRMED == 0 {
        let last_was_reply = flags & flow_flag::LAST_WAS_REPLY != 0;
        if last_was_reply == way.forward {
            flags ^= flow_flag::LAST_WAS_REPLY;
            flow.turns = flow.turns.saturating_add(1);
        }
        if flow.turns >= TURNS {
            flags |= flow_flag::CONFIRMED;
        }
    }
    if flags == flow.flags && flow.last_seen == now {
        return;
    }
    table::change_state(flow, flags & !flow.flags, flow.flags & !flags);
    flow.last_seen = now;
    let directions = u32::from(way.forward) | u32::from(way.established) << 1;
    settle(flow, packet, key, directions, now);
}

/// A RST or a FIN that the end it is for does not take (out of its window) ends nothing, but looks here like any
/// other: rows know no sequence numbers.
///
/// A RST within the window is answered by a challenge ACK (RFC 5961 §3.2), so an ACK from the end that was to be
/// reset takes it back at once. An ACK that the reset end had sent just before does so too; then the other end,
/// which knows of no connection any more, answers that with one more RST. From the end that sent the RST an ACK
/// says as much only when it comes later, and cannot have been overtaken. A RST beyond the window is answered by
/// nothing; until they talk on, it counts.
///
/// A FIN stays. Whoever sent one goes on to send ACKs, and old data again, so that no packet says that it was
/// none; and a connection whose true FIN was taken back would be remembered for hours. An idle one with a stray FIN
/// still has the time of half a close.
#[inline(always)]
fn tcp_flags(mut flags: u16, flow: &Flow, packet: &Packet, forward: bool, now: u32) -> u16 {
    let (own, others) = if forward {
        (flow_flag::RESET_FORWARD, flow_flag::RESET_REPLY)
    } else {
        (flow_flag::RESET_REPLY, flow_flag::RESET_FORWARD)
    };
    if packet.tcp_flags & tcp_flag::RST != 0 {
        return flags | own;
    }
    if packet.tcp_flags & tcp_flag::FIN != 0 {
        flags |= if forward { flow_flag::FIN_FORWARD } else { flow_flag::FIN_REPLY };
    }
    let plain = packet.tcp_flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::ACK;
    if plain && flags & flow_flag::RESET != 0 {
        flags &= !if flow.last_seen == now { others } else { flow_flag::RESET };
    }
    if plain && forward && flags & flow_flag::REPLIED != 0 {
        flags |= flow_flag::CONFIRMED;
    }
    flags
}

/// Keeps both halves of a translated flow alike, makes one again that was evicted, and moves a flow between
/// the tables as its state says. `way`: bit 0 forward, bit 1 established.
#[inline(never)]
fn settle(flow: &mut Flow, packet: &Packet, key: &FlowKey, way: u32, now: u32) {
    let Some(scratch) = table::scratch() else { return };
    let established = way & 2 != 0;
    let translated = flow.role != role::DIRECT;
    let mut other_established = false;
    let mut other = None;
    if translated {
        image(flow, packet, way & 1 != 0, &mut scratch.other_key, &mut scratch.other);
        // What one half was allowed, the other one is.
        scratch.other.verdict = flow.verdict ^ key.digest() ^ scratch.other_key.digest();
        match find(&scratch.other_key) {
            Some((half, there)) if belong(half, &scratch.other) => {
                // What one half alone may have seen stays; what this one takes back goes.
                const TAKEN_BACK: u16 = flow_flag::RESET | flow_flag::LAST_WAS_REPLY | flow_flag::REFUSED;
                let flags = half.flags & !TAKEN_BACK | scratch.other.flags;
                table::change_state(half, flags & !half.flags, half.flags & !flags);
                half.turns = flow.turns;
                half.last_seen = now;
                scratch.other.flags = flags;
                other_established = there;
                other = Some(half);
            }
            // A reply that came while the way back was evicted left a plain row in its place.
            Some((half, _)) if flow.role != role::FORWARD || half.role != role::DIRECT => return,
            // Without room the half is made again a second later.
            _ => drop(table::record(&scratch.other_key, &scratch.other)),
        }
    }
    let done = flow.done();
    if done && (established || other_established) {
        scratch.flow = *flow;
        // Back among those that give way: a closed connection is worth no room.
        if established && table::record(key, &scratch.flow).is_ok() {
            table::leave_established(key, scratch.flow.owner, flow_count::CLOSED);
        }
        if other_established && table::record(&scratch.other_key, &scratch.other).is_ok() {
            table::leave_established(&scratch.other_key, scratch.other.owner, flow_count::CLOSED);
        }
        return;
    }
    if flow.flags & flow_flag::CONFIRMED == 0 || done || established && (other_established || !translated) {
        return;
    }
    let rows = i64::from(!established) + i64::from(translated && !other_established);
    if !table::share_has_room(flow.owner, rows) {
        refuse(flow, other, flow_count::REFUSED_SHARE);
        return;
    }
    scratch.flow = *flow;
    scratch.flow.flags &= !flow_flag::REFUSED;
    scratch.other.flags &= !flow_flag::REFUSED;
    let both = translated && !other_established;
    if both && let Err(error) = table::promote(&scratch.other_key, &scratch.other) {
        if error == table::FULL {
            refuse(flow, other, flow_count::REFUSED_FULL);
        }
    } else if !established && let Err(error) = table::promote(key, &scratch.flow) {
        if error == table::FULL {
            // The other half has moved, if there was one.
            refuse(flow, None, flow_count::REFUSED_FULL);
        }
        // One half alone is worth no room.
        if both && table::record(&scratch.other_key, &scratch.other).is_ok() {
            table::leave_established(&scratch.other_key, flow.owner, flow_count::CLOSED);
        }
    }
}

/// The flow stays in the nursery, and tries again a second later; it is counted once, whichever half is met.
#[inline(always)]
fn refuse(flow: &mut Flow, other: Option<&mut Flow>, why: u32) {
    if flow.flags & flow_flag::REFUSED != 0 {
        return;
    }
    table::change_state(flow, flow_flag::REFUSED, 0);
    if let Some(other) = other {
        table::change_state(other, flow_flag::REFUSED, 0);
    }
    table::refused(flow.owner, why);
}

/// Records a flow without translation that was just allowed. A full table is no reason to drop the packet: the nursery
/// gives the place of another one, and if it cannot, the answer is judged as the first of a flow.
#[inline(never)]
fn record_direct(run: &Run, packet: &Packet, case: &Case) {
    if run.explain {
        return;
    }
    let Some(scratch) = table::scratch() else { return };
    // Whatever it says of itself, the SYN of an answer for instance: who sent it is who was asked for, and who must be
    // when the flow is judged again.
    let from_high = packet.fill_key(&mut scratch.key);
    let now = now();
    scratch.flow = Flow::default();
    let from_stack = if run.stage == stage::POD_INGRESS { flow_flag::FROM_STACK } else { 0 };
    scratch.flow.flags = initiator(from_high) | from_stack;
    scratch.flow.verdict = case.stamp(&scratch.key);
    scratch.flow.egress_rule = case.egress_rule;
    scratch.flow.ingress_rule = case.ingress_rule;
    scratch.flow.created = now;
    scratch.flow.last_seen = now;
    scratch.flow.owner = run.endpoint;
    if table::record(&scratch.key, &scratch.flow).is_ok() {
        table::opened(1);
    }
}
