//! Program logic. The entry points in `bin/` only call [`pod_egress`], [`pod_ingress`] and [`uplink_in`].
//!
//! The agent's own runs over the tables of flows are in [`reclaim`](mod@reclaim).
//!
//! A packet is read once into a [`packet::Packet`], tracked and perhaps translated ([`track`], [`balance`];
//! fragments by way of [`fragment`]), and delivered ([`deliver`]). Each step returns what became of the packet;
//! nothing drops one on the side.

#![expect(
    unsafe_code,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "kernel helpers and context memory; the verifier checks every access"
)]

mod affinity;
mod balance;
mod beside;
mod deliver;
mod fragment;
mod headers;
mod held;
mod icmp;
mod maps;
mod packet;
mod pair;
mod pods;
mod policy;
mod reclaim;
mod reject;
mod report;
mod rewrite;
mod spoof;
mod sum;
mod table;
mod track;

use crate::event::{path, reason, stage};
use crate::policy::set;
use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT, TC_ACT_STOLEN};
use aya_ebpf::programs::TcContext;
use deliver::Delivery;
use maps::{Work, work};
use packet::Parsed;
pub use reclaim::{Element, amend, census, reclaim};

/// What a stage did with a packet: delivered, or the [`reason`] why not.
type Outcome = Result<Delivery, u8>;

/// What a function that is not inlined returns of a `Result<(), u8>`: the [`reason`], or 0. A `Result` would be
/// returned in memory, and the register of plain return values may then hold a pointer to the stack, which
/// the verifier refuses.
#[inline(always)]
fn to_code(result: Result<(), u8>) -> u8 {
    match result {
        Ok(()) => 0,
        Err(reason) => reason,
    }
}

/// The reverse of [`to_code`].
#[inline(always)]
fn from_code(code: u8) -> Result<(), u8> {
    if code == 0 { Ok(()) } else { Err(code) }
}

/// tc ingress of the host's end of a pod's interface.
#[inline(always)]
pub fn pod_egress(ctx: &TcContext) -> i32 {
    run(ctx, stage::POD_EGRESS, from_pod)
}

/// tc egress of the host's end of a pod's interface: what the node's own stack sends to the pod.
#[inline(always)]
pub fn pod_ingress(ctx: &TcContext) -> i32 {
    run(ctx, stage::POD_INGRESS, to_pod)
}

/// tc ingress of an uplink.
#[inline(always)]
pub fn uplink_in(ctx: &TcContext) -> i32 {
    run(ctx, stage::UPLINK_IN, from_uplink)
}

#[inline(always)]
fn run(ctx: &TcContext, stage: u8, step: impl FnOnce(&TcContext, &mut Work) -> Outcome) -> i32 {
    let explain = report::asked_to_explain(ctx);
    let row = if explain { work::EXPLAIN } else { work::OUTER };
    // SAFETY: see `WORK`: nobody else has it during this run, and it is taken here only.
    let Some(mut work) = maps::WORK.get_ptr_mut(row).map(|work| unsafe { &mut *work }) else {
        return TC_ACT_SHOT;
    };
    if work.sending {
        // SAFETY: as above; a run within a run sends nothing itself.
        let Some(nested) = maps::WORK.get_ptr_mut(work::NESTED).map(|work| unsafe { &mut *work }) else {
            return TC_ACT_SHOT;
        };
        work = nested;
    }
    work.run.start(ctx, stage, explain);
    let delivery = match step(ctx, work) {
        Ok(delivery) => delivery,
        Err(reason) => {
            work.run.dropped(ctx, &work.packet, reason);
            // Asked of the map's memory, where the verifier follows no value, and so looks once.
            let answered = stage == stage::POD_EGRESS && work.run.reason() == reason::NO_BACKEND;
            if answered { reject::answer(ctx, work) } else { Delivery::dropped() }
        }
    };
    work.run.left_by(ctx, delivery.path, delivery.ifindex);
    delivery.verdict
}

#[inline(always)]
fn from_pod(ctx: &TcContext, work: &mut Work) -> Outcome {
    let Work { run, packet, .. } = work;
    let Some(pod) = pods::by_ifindex(run, run.ifindex) else {
        packet.clear();
        return Err(reason::UNKNOWN_INTERFACE);
    };
    run.endpoint = pod.endpoint;
    match packet.parse(ctx) {
        Parsed::Ip => {}
        Parsed::Arp => return spoof::arp(ctx, packet, pod).map(|()| Delivery::stack()),
        Parsed::Other => return Err(reason::UNSUPPORTED_ETHERTYPE),
        Parsed::Malformed => return Err(reason::MALFORMED),
    }
    if spoof::ip(packet, pod)? == spoof::Scope::Link {
        return Ok(Delivery::stack());
    }
    if !fragment::track(ctx, work, track::from_pod)? {
        return Ok(Delivery::held(stage::POD_EGRESS));
    }
    let Work { run, packet, .. } = work;
    if run.to_stack {
        return Ok(Delivery::stack());
    }
    deliver::by_address(ctx, run, packet)
}

#[inline(always)]
fn to_pod(ctx: &TcContext, work: &mut Work) -> Outcome {
    let Work { run, packet, .. } = work;
    let Some(pod) = pods::by_ifindex(run, run.ifindex) else {
        packet.clear();
        return Err(reason::UNKNOWN_INTERFACE);
    };
    run.endpoint = pod.endpoint;
    // What cannot be read nobody can judge. A pod that anybody may reach gets it.
    let open = pod.ingress_set == set::OPEN;
    match packet.parse(ctx) {
        Parsed::Ip => {
            if !fragment::track(ctx, work, track::to_pod)? {
                return Ok(Delivery::held(stage::POD_INGRESS));
            }
        }
        Parsed::Malformed if !open => return Err(reason::MALFORMED),
        Parsed::Other if !open => return Err(reason::UNSUPPORTED_ETHERTYPE),
        Parsed::Arp | Parsed::Malformed | Parsed::Other => {}
    }
    Ok(Delivery::stack())
}

#[inline(always)]
fn from_uplink(ctx: &TcContext, work: &mut Work) -> Outcome {
    let Work { run, packet, .. } = work;
    let Parsed::Ip = packet.parse(ctx) else { return Ok(Delivery::stack()) };
    let Some(pod) = pods::by_addr(run, &packet.destination) else { return Ok(Delivery::stack()) };
    if !deliver::for_this_host(ctx) {
        return Ok(Delivery::stack());
    }
    run.endpoint = pod.endpoint;
    // What a pod of this node sends never comes in from outside.
    if pods::by_addr(run, &packet.source).is_some() {
        return Err(reason::SPOOFED_SOURCE);
    }
    if !fragment::track(ctx, work, track::to_pod)? {
        return Ok(Delivery::held(stage::UPLINK_IN));
    }
    // Again: sending held fragments may have made this CPU forget it.
    let Work { run, packet, .. } = work;
    match pods::by_addr(run, &packet.destination) {
        Some(pod) => deliver::to_local_pod(ctx, packet, pod),
        None => Ok(Delivery::stack()),
    }
}

impl Delivery {
    /// Nowhere, which has been told.
    #[inline(always)]
    const fn dropped() -> Self {
        Self { verdict: TC_ACT_SHOT, path: path::DROP, ifindex: 0 }
    }

    /// On to the node's own stack.
    #[inline(always)]
    const fn stack() -> Self {
        Self { verdict: TC_ACT_OK, path: path::STACK, ifindex: 0 }
    }

    /// Put aside: its bytes are elsewhere, the packet itself ends here. Not as a drop, of which the sender on
    /// the node would hear (`ENOBUFS`); but TCX, at uplinks, takes `TC_ACT_STOLEN` for "go on".
    #[inline(always)]
    const fn held(stage: u8) -> Self {
        let verdict = if stage == stage::UPLINK_IN { TC_ACT_SHOT } else { TC_ACT_STOLEN };
        Self { verdict, path: path::HELD, ifindex: 0 }
    }
}
