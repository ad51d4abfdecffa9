//! The two rows of a translated flow: making both, finding one from the other, and the client's port where
//! two flows of one client port would look the same to a backend.

use super::balance::Choice;
use super::beside;
use super::maps::Scratch;
use super::packet::{Packet, SCTP};
use super::policy::Case;
use super::report::Run;
use super::rewrite::{End, Translation};
use super::table::{self, find, limits, now};
use super::to_code;
use crate::Addr;
use crate::event::reason;
use crate::flow::{Flow, FlowKey, expired, flow_count, flow_flag, hairpin_source, leg, role};
use aya_ebpf::helpers::bpf_get_prandom_u32;

/// Ports tried for a client whose own is taken: with a thousand of its flows to one backend alive all fail once
/// in 10^14 times.
const PORT_TRIES: u32 = 8;
/// The first port that may stand for a client's: those below mean something to some servers.
const FIRST_PORT: u16 = 1024;

#[inline(always)]
pub(super) const fn initiator(high: bool) -> u16 {
    if high { flow_flag::INITIATOR_HIGH } else { 0 }
}

/// Key and row of the other half of a translated flow, as a packet of this half tells them.
#[inline(always)]
pub(super) fn image(flow: &Flow, packet: &Packet, forward: bool, key: &mut FlowKey, other: &mut Flow) {
    let (client, client_port, far, far_port) = if forward {
        (&packet.source, packet.source_port, &packet.destination, packet.destination_port)
    } else {
        (&packet.destination, packet.destination_port, &packet.source, packet.source_port)
    };
    let high = flow.other_half(client, (far, far_port), packet.proto, key);
    *other = *flow;
    other.role = if flow.role == role::FORWARD { role::REPLY } else { role::FORWARD };
    other.flags = flow.flags & !flow_flag::INITIATOR_HIGH | initiator(high);
    other.xlat_addr = *far;
    other.xlat_port = far_port;
    other.client_port = client_port;
}

/// True if two halves belong together.
#[inline(always)]
pub(super) fn belong(half: &Flow, image: &Flow) -> bool {
    half.role == image.role
        && half.client_port == image.client_port
        && half.xlat_port == image.xlat_port
        && half.xlat_addr == image.xlat_addr
}

/// Removes the other half of a flow that is over, if it still is this one's.
#[inline(never)]
pub(super) fn forget_other(flow: &Flow, packet: &Packet, forward: bool) {
    if flow.role == role::DIRECT {
        return;
    }
    let Some(scratch) = table::scratch() else { return };
    image(flow, packet, forward, &mut scratch.other_key, &mut scratch.other);
    if let Some((half, established)) = find(&scratch.other_key)
        && belong(half, &scratch.other)
    {
        let owner = half.owner;
        table::forget(&scratch.other_key, owner, established);
    }
}

/// Opens a translated flow that was just allowed: says what becomes of its packets, and records it. Gives
/// [`to_code`].
#[inline(never)]
pub(super) fn open(run: &Run, packet: &Packet, choice: &Choice, case: &Case, to: &mut Translation) -> u8 {
    to.end = End::Destination;
    to.addr = choice.addr;
    to.port = choice.port;
    to.other_addr = packet.source;
    to.other_port = packet.source_port;
    if choice.addr == packet.source {
        to.other_addr = *hairpin_source(packet.v6);
    }
    if run.explain {
        return 0;
    }
    to_code(record(packet, choice, case, run.endpoint, &mut to.other_port))
}

/// Records both rows, the way back first, so that no reply finds it missing. Gives the client's port towards
/// the backend.
#[inline(always)]
fn record(
    packet: &Packet,
    choice: &Choice,
    case: &Case,
    owner: u32,
    client_port: &mut u16,
) -> Result<(), u8> {
    let Some(scratch) = table::scratch() else { return Err(reason::FLOW_TABLE_FULL) };
    let now = now();
    let mut kind = if choice.local_redirect { flow_flag::LOCAL_REDIRECT } else { 0 };
    if choice.addr == packet.source {
        kind |= flow_flag::HAIRPIN;
    }
    let far_high = far_end(packet, choice, owner, scratch, now)?;
    let port = if far_high { scratch.other_key.high_port } else { scratch.other_key.low_port };
    *client_port = port;
    let near_high = packet.fill_key(&mut scratch.key);
    if choice.aside {
        scratch.key.leg = leg::ASIDE;
    }
    let flow = &mut scratch.flow;
    *flow = Flow::default();
    flow.role = role::FORWARD;
    flow.flags = initiator(near_high) | kind;
    flow.xlat_port = choice.port;
    flow.xlat_addr = choice.addr;
    flow.client_port = port;
    flow.service = choice.service;
    flow.backend = choice.backend;
    flow.backend_generation = choice.generation;
    flow.verdict = case.stamp(&scratch.key);
    flow.egress_rule = case.egress_rule;
    flow.ingress_rule = case.ingress_rule;
    flow.created = now;
    flow.last_seen = now;
    flow.owner = owner;
    let other = &mut scratch.other;
    *other = scratch.flow;
    other.role = role::REPLY;
    other.flags = initiator(far_high) | kind;
    other.xlat_port = packet.destination_port;
    other.xlat_addr = packet.destination;
    other.client_port = packet.source_port;
    other.verdict = case.stamp(&scratch.other_key);
    table::record(&scratch.other_key, &scratch.other).map_err(|_| reason::FLOW_TABLE_FULL)?;
    table::record(&scratch.key, &scratch.flow).map_err(|_| reason::FLOW_TABLE_FULL)?;
    table::opened(2);
    Ok(())
}

/// Finds the key of the far leg, with another port of the client if its own is taken; true if the client is
/// the higher end.
#[inline(always)]
fn far_end(
    packet: &Packet,
    choice: &Choice,
    owner: u32,
    scratch: &mut Scratch,
    now: u32,
) -> Result<bool, u8> {
    let high = fill_far_key(packet, choice, packet.source_port, &mut scratch.other_key);
    beside::pull(&scratch.other_key, owner);
    if claim(packet, choice, scratch, high, now) {
        return Ok(high);
    }
    // Its checksum covers the ports and the whole packet.
    if packet.proto == SCTP {
        return Err(reason::NO_SOURCE_PORT);
    }
    for _ in 0..PORT_TRIES {
        // SAFETY: a helper without arguments.
        let random = unsafe { bpf_get_prandom_u32() };
        let range = u32::from(u16::MAX - FIRST_PORT) + 1;
        let port = FIRST_PORT + ((u64::from(random) * u64::from(range)) >> 32) as u16;
        let high = fill_far_key(packet, choice, port.to_be(), &mut scratch.other_key);
        if claim(packet, choice, scratch, high, now) {
            table::count(flow_count::PORTS_TRANSLATED, 1);
            return Ok(high);
        }
    }
    Err(reason::NO_SOURCE_PORT)
}

/// The key of the far leg if the client has this port there; true if the client is the higher end.
#[inline(never)]
fn fill_far_key(packet: &Packet, choice: &Choice, port: u16, key: &mut FlowKey) -> bool {
    key.set((far_client(packet, choice), port), (&choice.addr, choice.port), packet.proto)
}

/// As whom the backend sees the client.
#[inline(always)]
fn far_client<'a>(packet: &'a Packet, choice: &Choice) -> &'a Addr {
    if choice.addr == packet.source { hairpin_source(packet.v6) } else { &packet.source }
}

/// Makes room for the row of the far leg, whose key stands in `scratch`; false if another flow has its place.
#[inline(never)]
fn claim(packet: &Packet, choice: &Choice, scratch: &mut Scratch, high: bool, now: u32) -> bool {
    let Some((row, established)) = find(&scratch.other_key) else { return true };
    let port = if high { scratch.other_key.high_port } else { scratch.other_key.low_port };
    // What the same client port had with the same frontend is this flow, begun anew.
    let own = row.role == role::REPLY
        && row.client_port == packet.source_port
        && row.xlat_port == packet.destination_port
        && row.xlat_addr == packet.destination;
    if occupied(row, packet, own, (port, high), now) {
        return false;
    }
    let owner = row.owner;
    if row.role == role::REPLY && !own {
        forget_near(row, packet, choice, port, &mut scratch.key);
    }
    if established {
        table::forget(&scratch.other_key, owner, true);
    }
    true
}

/// True if a flow has ended, so that another one may have the place of its rows. A connection of which one end is
/// done may still carry a download: only its own SYN begins it anew.
#[inline(always)]
pub(super) fn gives_way(row: &Flow, packet: &Packet, now: u32) -> bool {
    expired(row, packet.proto, limits(), now) || packet.opens() && row.done()
}

/// True if the row of the far leg, where the client has this port, is that of another flow that is alive; `own`:
/// it is this flow's.
#[inline(always)]
fn occupied(row: &Flow, packet: &Packet, own: bool, (port, client_high): (u16, bool), now: u32) -> bool {
    if gives_way(row, packet, now) || own && packet.opens() && row.flags & flow_flag::CLOSING != 0 {
        return false;
    }
    if port != packet.source_port {
        // There are others to choose from.
        return true;
    }
    if row.role == role::REPLY {
        return !own;
    }
    // A reply that came while the way back was evicted left a plain row, begun by the backend.
    row.role == role::DIRECT && (row.flags & flow_flag::INITIATOR_HIGH != 0) == client_high
}

/// Removes the near half of a flow whose far half, with this port of the client, gives way; unless its far half is
/// another one by now. Its key is put together in `key`.
#[inline(always)]
fn forget_near(far: &Flow, packet: &Packet, choice: &Choice, port: u16, key: &mut FlowKey) {
    let server = (&choice.addr, choice.port);
    far.other_half(far_client(packet, choice), server, packet.proto, key);
    if let Some((near, established)) = find(key)
        && near.role == role::FORWARD
        && near.client_port == port
        && near.xlat_port == choice.port
        && near.xlat_addr == choice.addr
    {
        let owner = near.owner;
        table::forget(key, owner, established);
    }
}
