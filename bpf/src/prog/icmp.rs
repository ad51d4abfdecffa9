//! ICMP errors (RFC 792, RFC 4443 §3): the packet that they quote is translated as its flow is, so that path
//! MTU discovery, traceroute and "port unreachable" work through a Service.
//!
//! An error goes to the end that sent the quoted packet, which must find in it what it sent. Invariants, as
//! for any translator (RFC 5508 §4): an error neither makes nor refreshes nor ends a flow; the address of a
//! router that sent it stays; an error that quotes no translated flow, or nothing that can be read, goes by
//! its address as it is. Policy lets an error pass with the flow that it quotes, if it has allowed that since it last
//! changed; all else is judged by itself.

use super::beside;
use super::maps::Work;
use super::packet::{Packet, TCP, UDP};
use super::policy;
use super::report::Run;
use super::rewrite::{self, End, Translation, store};
use super::sum::Difference;
use super::table::{self, find, limits, now};
use crate::event::{reason, stage};
use crate::flow::{Flow, OF_NODE, expired, flow_flag, hairpin_source, leg, role};
use aya_ebpf::programs::TcContext;

/// Translates an ICMP error about a packet of a translated flow, and says whether it belongs to the node's stack,
/// and whether it is about a known flow at all that policy allows ([`Run::related`]). All else stays as it is. Gives
/// [`super::to_code`].
#[inline(never)]
pub(super) fn error(ctx: &TcContext, work: &mut Work) -> u8 {
    let Work { run, packet, quoted, to, .. } = work;
    // A look-up alone would mark the row as recently used.
    if run.explain || !quoted.parse_quoted(ctx, packet) || !as_sent(run, packet, quoted, to) {
        return 0;
    }
    if apply(ctx, packet, quoted, to).is_err() {
        return reason::REWRITE_FAILED;
    }
    0
}

/// True if the quoted packet is a translated one; then `to` says what its sender sent.
#[inline(always)]
fn as_sent(run: &mut Run, packet: &Packet, quoted: &Packet, to: &mut Translation) -> bool {
    let from_pod = run.stage == stage::POD_EGRESS;
    // An error is for the sender of what it quotes. Routers send errors too, but a pod speaks only of what
    // came to it.
    if packet.destination != quoted.source || from_pod && packet.source != quoted.destination {
        return false;
    }
    let Some(scratch) = table::scratch() else { return false };
    let key = &mut scratch.key;
    let from_high = quoted.fill_key(key);
    let forward = |flow: &Flow| (flow.flags & flow_flag::INITIATOR_HIGH != 0) == from_high;
    beside::pull(key, run.endpoint);
    let Some((mut flow, _)) = find(key) else { return false };
    if from_pod && flow.role == role::REPLY && !forward(flow) {
        // The client knows the backend by its own address only where it went there beside the Service.
        key.leg = leg::ASIDE;
        beside::pull(key, run.endpoint);
        let Some((near, _)) = find(key) else { return false };
        flow = near;
    }
    if expired(flow, quoted.proto, limits(), now()) {
        return false;
    }
    // Whatever made the error had the flow judged: of one that was not since policies changed nothing need be told.
    let judged = flow.verdict ^ key.digest();
    if judged != policy::epoch() && judged != OF_NODE {
        return false;
    }
    let forward = forward(flow);
    run.related = true;
    run.service = flow.service;
    run.backend = flow.backend;
    run.to_stack = from_pod && forward && flow.flags & flow_flag::FROM_STACK != 0;
    let hairpin = flow.flags & flow_flag::HAIRPIN != 0;
    (to.end, to.other_addr) = match (flow.role, forward) {
        (role::REPLY, true) => (End::Destination, if hairpin { quoted.destination } else { quoted.source }),
        (role::FORWARD, false) if from_pod => {
            (End::Source, if hairpin { *hairpin_source(quoted.v6) } else { quoted.destination })
        }
        _ => return false,
    };
    to.addr = flow.xlat_addr;
    to.port = flow.xlat_port;
    to.other_port = flow.client_port;
    true
}

/// Rewrites the quoted packet, the error's own addresses, and every checksum.
#[inline(always)]
fn apply(ctx: &TcContext, packet: &mut Packet, quoted: &Packet, to: &Translation) -> Result<(), ()> {
    let ((source, _), (destination, _)) = to.ends();
    let mut difference = requote(ctx, packet.quoted_at(), quoted, to)?;
    // The far end itself speaks under the name that the receiver knows; a router keeps its own.
    let speaker = if packet.source == quoted.destination { *destination } else { packet.source };
    let outer = rewrite::addresses(ctx, packet, &speaker, source)?;
    if packet.v6 {
        difference = difference.and(outer);
    }
    let checksum = packet.l4 + 2;
    let old: u16 = ctx.load(checksum as usize).map_err(drop)?;
    store(ctx, checksum, &difference.apply(old))
}

/// Gives the quoted packet, whose IP header is at `at`, its ends; gives all that changed.
#[inline(always)]
fn requote(ctx: &TcContext, at: u32, quoted: &Packet, to: &Translation) -> Result<Difference, ()> {
    let ((source, source_port), (destination, destination_port)) = to.ends();
    let addresses = Difference::none().address(&quoted.source, source, quoted.v6).address(
        &quoted.destination,
        destination,
        quoted.v6,
    );
    let ports = Difference::none()
        .half(quoted.source_port, source_port)
        .half(quoted.destination_port, destination_port);
    let mut all = addresses.and(ports);
    if quoted.v6 {
        store(ctx, at + 8, &source.0)?;
        store(ctx, at + 24, &destination.0)?;
    } else {
        store(ctx, at + 12, &[source.v4_word(), destination.v4_word()])?;
        all = adjust(ctx, at + 10, 0, addresses, all)?;
    }
    store(ctx, quoted.l4, &[source_port, destination_port])?;
    let (checksum, zero) = match quoted.proto {
        TCP => (quoted.l4 + 16, 0),
        UDP => (quoted.l4 + 6, u16::MAX),
        _ => return Ok(all),
    };
    match ctx.load::<u16>(checksum as usize) {
        // UDP may have none, and a router may quote eight bytes of TCP, which has its own behind them.
        Ok(0) if quoted.proto == UDP => Ok(all),
        Ok(_) => adjust(ctx, checksum, zero, addresses.and(ports), all),
        Err(_) => Ok(all),
    }
}

/// Changes a checksum by what changed of what it covers; gives `all` with the change of itself. A checksum
/// of zero is written as `zero`.
#[inline(always)]
fn adjust(ctx: &TcContext, at: u32, zero: u16, by: Difference, all: Difference) -> Result<Difference, ()> {
    let old: u16 = ctx.load(at as usize).map_err(drop)?;
    let new = match by.apply(old) {
        0 => zero,
        new => new,
    };
    store(ctx, at, &new)?;
    Ok(all.half(old, new))
}
