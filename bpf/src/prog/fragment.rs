//! Fragments (RFC 791 §3.2, RFC 8200 §4.5): the first has the ports, the others go where it went.
//!
//! The first fragment is tracked like any packet, and what became of it is written down for its datagram;
//! the others have just that done to them, without a look at flows or Services. Were the ports written down
//! instead, and each fragment tracked by them, a datagram could be torn: between two of its fragments a
//! backend may go, or a row of the nursery be evicted, and the flow be decided anew. It also would say things
//! of the flow that are not so (turns of a conversation, TCP flags). This way there is one decision for each
//! datagram, as for a packet that is whole; the price is that a later fragment does not keep its flow fresh,
//! which the first has done already.
//!
//! A later fragment that comes before its first is [`held`]: nothing but the first's ports tells whether it is
//! for a Service or comes from a backend, so that this befalls all of a pod's traffic, translated or not.
//!
//! Of two CPUs, one of which has a datagram's first fragment and the other one a later one, the one writes
//! the row and then looks at what is held, the other one holds and then looks for the row; both with a full
//! barrier between the two. So at least one of them sees the other, and who takes a slot owns it.

use super::held;
use super::maps::{self, Work};
use super::packet::{FRAGMENT, Packet};
use super::policy;
use super::report::Run;
use super::rewrite;
use super::table::now;
use super::{from_code, to_code};
use crate::event::reason;
use crate::fragment::{Datagram, FragmentKey, datagram_flag, seal, tag_of};
use aya_ebpf::programs::TcContext;
use core::hint::black_box;
use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::ptr::NonNull;

/// The fragment in hand.
#[derive(Default)]
pub(super) struct Fragment {
    pub(super) key: FragmentKey,
    /// [`tag_of`] the key.
    pub(super) tag: u32,
    /// [`crate::pod::Pod::endpoint`] of the pod at hand, whose ring it is; a denial tells of another one.
    pub(super) endpoint: u32,
    /// The policy epoch before anything was looked up: what was decided in another one counts no more.
    pub(super) epoch: u32,
    pub(super) datagram: Datagram,
}

/// What [`follow`] gives besides a reason: go on.
const GO_ON: u32 = 0;
/// It is held.
const HELD: u32 = 1 << 8;

/// Has the packet tracked, by `step` or as its datagram's first fragment was; false: it is held.
#[inline(always)]
pub(super) fn track(
    ctx: &TcContext,
    work: &mut Work,
    step: impl FnOnce(&TcContext, &mut Work) -> Result<(), u8>,
) -> Result<bool, u8> {
    if work.packet.follows_its_first() {
        name(work);
        if work.packet.later_fragment {
            return match follow(ctx, work) {
                GO_ON => Ok(true),
                HELD => Ok(false),
                reason => Err(reason as u8),
            };
        }
    }
    // Called at one place, as the verifier would go through two. What a Result leaves beside `Ok` is nothing
    // that it lets be kept for later.
    let mut code = black_box(to_code(step(ctx, work)));
    if work.packet.first_fragment && work.packet.follows_its_first() && !work.run.explain {
        let Work { run, packet, fragment, sending, .. } = work;
        write_down(run, packet, fragment, code != 0);
        // Two calls, as the stack of one would be under the other's.
        if !held::release(ctx, fragment, sending) && code == 0 {
            code = reason::REWRITE_FAILED;
        }
    }
    from_code(code).map(|()| true)
}

/// Writes the datagram's key, and what of the packet translation will change.
#[inline(always)]
fn name(work: &mut Work) {
    let Work { run, packet, fragment, .. } = work;
    let key = &mut fragment.key;
    key.source = packet.source;
    key.destination = packet.destination;
    key.id = packet.id;
    key.proto = if packet.v6 { FRAGMENT } else { packet.proto };
    key.stage = run.stage;
    key.pad = 0;
    fragment.tag = tag_of(key);
    fragment.endpoint = run.endpoint;
    fragment.epoch = policy::epoch();
    fragment.datagram.ports = [packet.source_port, packet.destination_port];
}

/// A later fragment: what its first decided, or wait for it.
#[inline(never)]
fn follow(ctx: &TcContext, work: &mut Work) -> u32 {
    let Work { run, packet, fragment, .. } = work;
    // A look-up alone would mark the row as recently used.
    if run.explain {
        return HELD;
    }
    let now = now();
    let mut row = decided(fragment, now);
    if row.is_none() {
        let slot = held::hold(ctx, run, fragment, now);
        if slot & held::NO_SLOT != 0 {
            return slot & !held::NO_SLOT;
        }
        // The first may have come meanwhile, and have looked at what is held too early for this one.
        row = decided(fragment, now);
        if row.is_none() || !held::take_back(slot, fragment.tag) {
            return HELD;
        }
    }
    if let Some(row) = row {
        count(row, fragment, packet.missing());
    }
    let first = &fragment.datagram;
    run.service = first.service;
    run.backend = first.backend;
    packet.source_port = first.ports[0];
    packet.destination_port = first.ports[1];
    packet.original_destination_port = first.ports[1];
    if first.flags & datagram_flag::DROPPED != 0 {
        return u32::from(reason::FRAGMENT_OF_DROPPED);
    }
    run.to_stack = first.flags & datagram_flag::TO_STACK != 0;
    match rewrite::follow(ctx, packet, first) {
        Ok(()) => GO_ON,
        Err(reason) => u32::from(reason),
    }
}

/// Copies the datagram's row and gives it, if there is one that is good.
#[inline(always)]
fn decided(fragment: &mut Fragment, now: u32) -> Option<NonNull<Datagram>> {
    let row = NonNull::new(maps::FRAGMENTS.get_ptr_mut(&fragment.key)?)?;
    // SAFETY: a row stays readable memory for the whole run.
    fragment.datagram = unsafe { *row.as_ptr() };
    let good = fragment.datagram.seal == seal(&fragment.key, &fragment.datagram, fragment.epoch)
        && !held::outlived(fragment.datagram.since, now);
    if good { Some(row) } else { None }
}

/// Counts a later fragment that passes. With the last of them the row goes, so that a fragment of the next
/// datagram of that identifier does not take it for its own. A fragment that comes twice may keep it here
/// until it has outlived its use; or take it away too early, if it is as long as the one that has not come.
#[inline(always)]
fn count(row: NonNull<Datagram>, fragment: &Fragment, missing: u32) {
    // SAFETY: an aligned word of a map value.
    let before = unsafe {
        atomic_xadd::<u32, u32, { AtomicOrdering::AcqRel }>(&raw mut (*row.as_ptr()).missing, missing)
    };
    if before.wrapping_add(missing) == 0 {
        // Not there: evicted just now.
        maps::FRAGMENTS.remove(&fragment.key).ok();
    }
}

/// Writes down what became of the first fragment.
#[inline(never)]
fn write_down(run: &Run, packet: &Packet, fragment: &mut Fragment, dropped: bool) {
    let first = &mut fragment.datagram;
    first.source = packet.source;
    first.destination = packet.destination;
    first.new_ports = [packet.source_port, packet.destination_port];
    first.service = run.service;
    first.backend = run.backend;
    first.flags = if dropped { datagram_flag::DROPPED } else { 0 };
    if run.to_stack {
        first.flags |= datagram_flag::TO_STACK;
    }
    first.since = now();
    first.seal = seal(&fragment.key, first, fragment.epoch);
    first.missing = packet.missing();
    // A datagram without a row is one whose fragments wait in vain, and are told as drops.
    maps::FRAGMENTS.insert(&fragment.key, &*first, 0).ok();
}
