//! Connection tracking: finds or makes the packet's flow and translates accordingly.
//!
//! Rows are updated without locks. Two CPUs that see both directions at once may lose a flag or a second
//! of `last_seen`; neither breaks a flow.

use super::balance::{self, Choice};
use super::maps;
use super::packet::{Packet, TCP, fill_key, tcp_flag};
use super::report::Run;
use super::rewrite::{self, End, Translation};
use crate::Addr;
use crate::event::{reason, stage};
use crate::flow::{Flow, FlowKey, HAIRPIN_V4, HAIRPIN_V6, UDP_IDLE_SECONDS, flow_flag, role};
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use aya_ebpf::programs::TcContext;

/// What the flow's row says of a packet.
enum Known {
    /// No row, or one that this packet starts anew.
    New,
    /// Go on as you are.
    Direct,
    /// Not translated, and nobody answered yet: perhaps the Service was not there when it began.
    Unanswered,
    /// Translate.
    Translated,
}

/// A packet that a pod sends: existing flow, Service, or plain new flow.
#[inline(always)]
pub(super) fn from_pod(ctx: &TcContext, run: &mut Run, packet: &mut Packet) -> Result<(), u8> {
    if !packet.has_ports {
        return Ok(());
    }
    let mut to = Translation::none();
    let recorded = match known(run, packet, &mut to) {
        Known::Direct => return Ok(()),
        Known::Translated => return rewrite::translate_sent(ctx, packet, &to),
        Known::Unanswered => true,
        Known::New => false,
    };
    let mut choice = Choice::default();
    if !balance::choose(ctx, run, packet, &mut choice)? {
        if !recorded {
            record_direct(run, packet);
        }
        return Ok(());
    }
    if !run.explain && record_service(packet, &choice).is_err() {
        return Err(reason::FLOW_TABLE_FULL);
    }
    let to = Translation {
        end: End::Destination,
        addr: choice.addr,
        port: choice.port,
        hairpin: choice.addr == packet.source,
    };
    rewrite::translate_sent(ctx, packet, &to)
}

/// A packet that comes to a pod: the reply of a Service's backend, or a plain flow.
#[inline(always)]
pub(super) fn to_pod(ctx: &TcContext, run: &mut Run, packet: &mut Packet) -> Result<(), u8> {
    if !packet.has_ports {
        return Ok(());
    }
    let mut to = Translation::none();
    match known(run, packet, &mut to) {
        Known::Translated if to.end == End::Source => rewrite::translate(ctx, packet, &to),
        Known::Direct | Known::Unanswered | Known::Translated => Ok(()),
        Known::New => {
            record_direct(run, packet);
            Ok(())
        }
    }
}

/// Seconds since boot.
#[inline(always)]
fn now() -> u32 {
    // SAFETY: a helper without arguments.
    (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32
}

/// Looks the flow up and keeps its row fresh.
#[inline(never)]
fn known(run: &mut Run, packet: &Packet, to: &mut Translation) -> Known {
    // A look-up alone would mark the row as recently used.
    if run.explain {
        return Known::New;
    }
    let mut key = FlowKey::default();
    let from_high = packet.fill_key(&mut key);
    let Some(flow) = maps::FLOWS.get_ptr_mut(&key) else { return Known::New };
    // SAFETY: a row stays readable memory for the whole run, even if it is evicted meanwhile.
    let flow = unsafe { &mut *flow };
    let forward = (flow.flags & flow_flag::INITIATOR_HIGH != 0) == from_high;
    let now = now();
    if flow.role == role::REPLY && forward && run.stage == stage::POD_EGRESS {
        // A packet through the Service has the frontend's address here, not yet the backend's: this one is
        // for the backend itself, of a later flow from the same port. It takes the row over; the older
        // flow's other row must not outlive that, or its replies would not be translated.
        forget_forward(flow, packet);
        return Known::New;
    }
    if stale(flow, packet, forward, now) {
        return Known::New;
    }
    run.service = flow.service;
    run.backend = flow.backend;
    touch(flow, packet, forward, now);
    to.end = match (flow.role, forward) {
        (role::FORWARD, true) => End::Destination,
        (role::REPLY, false) => End::Source,
        (role::DIRECT, true) if flow.flags & flow_flag::REPLIED == 0 => return Known::Unanswered,
        _ => return Known::Direct,
    };
    to.addr = flow.xlat_addr;
    to.port = flow.xlat_port;
    to.hairpin = flow.flags & flow_flag::HAIRPIN != 0;
    Known::Translated
}

/// True if the row is of an older flow, or of one whose backend is gone.
#[inline(always)]
fn stale(flow: &Flow, packet: &Packet, forward: bool, now: u32) -> bool {
    let lost =
        flow.role == role::FORWARD && forward && !balance::still_there(flow.backend, flow.backend_generation);
    if packet.proto == TCP {
        // An open connection stays with its backend to the end; only a new one may change.
        return packet.opens() && (flow.flags & flow_flag::CLOSING != 0 || lost);
    }
    lost || now.wrapping_sub(flow.last_seen) > UDP_IDLE_SECONDS
}

/// Removes the row client ↔ frontend that belongs to a row client ↔ backend, of which the client sends.
#[inline(never)]
fn forget_forward(reply: &Flow, packet: &Packet) {
    let mut key = FlowKey::default();
    let client = (&packet.source, packet.source_port);
    fill_key(&mut key, client, (&reply.xlat_addr, reply.xlat_port), packet.proto);
    // Not there: evicted already.
    maps::FLOWS.remove(&key).ok();
}

/// Notes the packet in the row; once a second, and at the end of a connection, also in the other half.
#[inline(always)]
fn touch(flow: &mut Flow, packet: &Packet, forward: bool, now: u32) {
    let mut flags = flow.flags;
    if !forward {
        flags |= flow_flag::REPLIED;
    }
    if packet.proto == TCP && packet.tcp_flags & (tcp_flag::FIN | tcp_flag::RST) != 0 {
        if packet.tcp_flags & tcp_flag::RST != 0 {
            flags |= flow_flag::RESET;
        } else if forward {
            flags |= flow_flag::FIN_FORWARD;
        } else {
            flags |= flow_flag::FIN_REPLY;
        }
    }
    let changed = flags != flow.flags;
    if !changed && flow.last_seen == now {
        return;
    }
    flow.flags = flags;
    flow.last_seen = now;
    if flow.role != role::DIRECT {
        refresh_other_half(flow, packet, forward, now);
    }
}

/// Keeps both rows of a translated flow alive together: an evicted half is made again from this one.
#[inline(never)]
fn refresh_other_half(flow: &Flow, packet: &Packet, forward: bool, now: u32) {
    let Some(scratch) = scratch() else { return };
    let hairpin = flow.flags & flow_flag::HAIRPIN != 0;
    let (client, client_port, other, other_port) = if forward {
        let client = if hairpin { hairpin_source(packet) } else { &packet.source };
        (client, packet.source_port, &packet.destination, packet.destination_port)
    } else {
        let client = if hairpin { &packet.source } else { &packet.destination };
        (client, packet.destination_port, &packet.source, packet.source_port)
    };
    let client_high =
        fill_key(&mut scratch.key, (client, client_port), (&flow.xlat_addr, flow.xlat_port), packet.proto);
    let shared = flow.flags & !flow_flag::INITIATOR_HIGH;
    if let Some(half) = maps::FLOWS.get_ptr_mut(&scratch.key) {
        // SAFETY: as in `known`.
        let half = unsafe { &mut *half };
        if half.role != flow.role && half.backend == flow.backend {
            half.flags |= shared;
            half.last_seen = now;
        }
        return;
    }
    let half = &mut scratch.flow;
    *half = *flow;
    half.role = if flow.role == role::FORWARD { role::REPLY } else { role::FORWARD };
    half.flags = shared | initiator(client_high);
    half.xlat_addr = *other;
    half.xlat_port = other_port;
    half.last_seen = now;
    // Without room the half is made again a second later.
    maps::FLOWS.insert(&scratch.key, &scratch.flow, 0).ok();
}

#[inline(always)]
const fn initiator(high: bool) -> u8 {
    if high { flow_flag::INITIATOR_HIGH } else { 0 }
}

/// As what a pod that talks to itself appears.
#[inline(always)]
fn hairpin_source(packet: &Packet) -> &'static Addr {
    if packet.v6 { &HAIRPIN_V6 } else { &HAIRPIN_V4 }
}

/// This CPU's scratch memory; it is always there.
#[inline(always)]
fn scratch() -> Option<&'static mut maps::Scratch> {
    // SAFETY: see `SCRATCH`: nobody else has it during this run, and each function takes it once.
    maps::SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// Records a flow without translation. Nothing depends on the row yet, so that a full table is no reason
/// to drop the packet.
#[inline(never)]
fn record_direct(run: &Run, packet: &Packet) {
    if run.explain {
        return;
    }
    let Some(scratch) = scratch() else { return };
    let from_high = packet.fill_key(&mut scratch.key);
    let now = now();
    scratch.flow = Flow::default();
    scratch.flow.flags = initiator(from_high);
    scratch.flow.created = now;
    scratch.flow.last_seen = now;
    maps::FLOWS.insert(&scratch.key, &scratch.flow, 0).ok();
}

/// Records both rows of a flow through a Service: the way back first, so that no reply finds it missing.
#[inline(never)]
fn record_service(packet: &Packet, choice: &Choice) -> Result<(), i32> {
    let scratch = scratch().ok_or(-1)?;
    let now = now();
    let mut kind = if choice.local_redirect { flow_flag::LOCAL_REDIRECT } else { 0 };
    let mut client = &packet.source;
    if choice.addr == packet.source {
        kind |= flow_flag::HAIRPIN;
        client = hairpin_source(packet);
    }
    let from_high =
        fill_key(&mut scratch.key, (client, packet.source_port), (&choice.addr, choice.port), packet.proto);
    let flow = &mut scratch.flow;
    *flow = Flow::default();
    flow.role = role::REPLY;
    flow.flags = initiator(from_high) | kind;
    flow.xlat_port = packet.destination_port;
    flow.xlat_addr = packet.destination;
    flow.service = choice.service;
    flow.backend = choice.backend;
    flow.backend_generation = choice.generation;
    flow.created = now;
    flow.last_seen = now;
    maps::FLOWS.insert(&scratch.key, &scratch.flow, 0)?;
    let from_high = packet.fill_key(&mut scratch.key);
    let flow = &mut scratch.flow;
    flow.role = role::FORWARD;
    flow.flags = initiator(from_high) | kind;
    flow.xlat_port = choice.port;
    flow.xlat_addr = choice.addr;
    maps::FLOWS.insert(&scratch.key, &scratch.flow, 0)
}
