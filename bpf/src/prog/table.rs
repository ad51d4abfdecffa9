//! The two tables of flows as one: looking up, recording, moving rows between them, counting.
//!
//! A key is in one of them, but for the moment in which a row moves: it is written to its new table first. So it
//! is always found by who looks among the established, in the nursery, and among the established again.
//! Rows are updated without locks, and a row that a packet has found may meanwhile be removed and its memory be
//! another flow's: the kernel gives it away at once. So only the state of a flow is ever written into a row that
//! stands, bit by bit ([`change_state`]); what the flow is, is written with the row and never again.

use super::report::Run;
use super::{beside, maps};
use crate::flow::{Flow, FlowKey, Limits, flow_count, flow_flag};
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use core::hint::black_box;
use core::intrinsics::{AtomicOrdering, atomic_and, atomic_or, atomic_xadd};

const BPF_NOEXIST: u64 = 1;
/// `-EEXIST`.
const EXISTS: i32 = -17;
/// `-E2BIG`: how a full hash table answers.
pub(super) const FULL: i32 = -7;

/// Seconds since boot.
#[inline(always)]
pub(super) fn now() -> u32 {
    // SAFETY: a helper without arguments.
    (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32
}

/// The configuration's limits. The compiler must not take the values it sees for those it will find.
#[inline(always)]
pub(super) fn limits() -> &'static Limits {
    black_box(&maps::LIMITS)
}

/// This CPU's scratch memory; it is always there.
#[inline(always)]
pub(super) fn scratch() -> Option<&'static mut maps::Scratch> {
    // SAFETY: see `SCRATCH`: nobody else has it during this run, and no function holds it across a call of
    // another that takes it.
    maps::SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// The same in what explain runs do too, which packets may interrupt: theirs is another.
#[inline(always)]
pub(super) fn scratch_of(run: &Run) -> Option<&'static mut maps::Scratch> {
    // SAFETY: as above.
    maps::SCRATCH.get_ptr_mut(u32::from(run.explain)).map(|scratch| unsafe { &mut *scratch })
}

/// A flow's row, and whether it is among the established.
#[inline(always)]
pub(super) fn find(key: &FlowKey) -> Option<(&'static mut Flow, bool)> {
    if let Some(flow) = maps::ESTABLISHED.get_ptr_mut(key) {
        // SAFETY: a row stays readable memory for the whole run, even if it is deleted meanwhile.
        return Some((unsafe { &mut *flow }, true));
    }
    if let Some(flow) = maps::NURSERY.get_ptr_mut(key) {
        // SAFETY: as above.
        return Some((unsafe { &mut *flow }, false));
    }
    // Another CPU may have moved it up between the two looks. That is rare, but to look again costs new flows
    // less than a count of such moves, which all CPUs would share, would cost all packets; and programs of
    // another agent on the same tables need not know of it.
    in_this_order();
    // SAFETY: as above.
    maps::ESTABLISHED.get_ptr_mut(key).map(|flow| (unsafe { &mut *flow }, true))
}

/// A full barrier: what comes after it is not read before what comes before it.
#[inline(always)]
pub(super) fn in_this_order() {
    let mut word = 0;
    // SAFETY: an aligned word of this function's own. An addition whose result is used orders all.
    black_box(unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(black_box(&raw mut word), 0) });
}

/// Sets and clears bits of a row's state ([`flow_flag::STATE`]).
#[inline(always)]
pub(super) fn change_state(flow: &mut Flow, set: u16, clear: u16) {
    let word = (&raw mut *flow).cast::<u32>();
    let (set, clear) = (in_first_word(set & flow_flag::STATE), in_first_word(clear & flow_flag::STATE));
    // SAFETY: the first, aligned word of a row that stays readable memory for the whole run.
    unsafe {
        if set != 0 {
            atomic_or::<u32, u32, { AtomicOrdering::Relaxed }>(word, set);
        }
        if clear != 0 {
            atomic_and::<u32, u32, { AtomicOrdering::Relaxed }>(word, !clear);
        }
    }
}

/// Flags as they stand in the first word of a [`Flow`].
#[inline(always)]
const fn in_first_word(flags: u16) -> u32 {
    const _: () = assert!(core::mem::offset_of!(Flow, flags) == 2);
    let [a, b] = flags.to_ne_bytes();
    u32::from_ne_bytes([0, 0, a, b])
}

/// Records a new flow's row, or moves one back that is closed.
#[inline(always)]
pub(super) fn record(key: &FlowKey, flow: &Flow) -> Result<(), i32> {
    maps::NURSERY.insert(key, flow, 0)?;
    beside::push(key, flow);
    Ok(())
}

/// Counts rows that [`record`] made for new flows.
#[inline(always)]
pub(super) fn opened(rows: u64) {
    count(flow_count::OPENED, rows);
}

/// Writes a row among the established and takes it out of the nursery.
#[inline(always)]
pub(super) fn promote(key: &FlowKey, flow: &Flow) -> Result<(), i32> {
    match maps::ESTABLISHED.insert(key, flow, BPF_NOEXIST) {
        Ok(()) => {}
        // Another CPU, with a packet of the other direction, was faster.
        Err(EXISTS) => return Ok(()),
        Err(error) => return Err(error),
    }
    // Not there: evicted just now.
    maps::NURSERY.remove(key).ok();
    if let Some(share) = maps::SHARES.get_ptr_mut(flow.owner) {
        // SAFETY: a counter in a map value.
        unsafe { add(&raw mut (*share).taken, 1) };
    }
    count(flow_count::PROMOTED, 1);
    Ok(())
}

/// True if the owner's share has room for so many rows more. A pod that is gone has no share.
#[inline(always)]
pub(super) fn share_has_room(owner: u32, rows: i64) -> bool {
    // SAFETY: read within this run.
    unsafe { maps::SHARES.get(owner) }
        .is_some_and(|share| share.rows() + rows <= i64::from(limits().rows_per_pod))
}

/// Counts a flow that is not promoted, for all ([`flow_count`]) and for its owner.
#[inline(always)]
pub(super) fn refused(owner: u32, why: u32) {
    count(why, 1);
    if let Some(share) = maps::SHARES.get_ptr_mut(owner) {
        // SAFETY: counters in a map value.
        unsafe {
            if why == flow_count::REFUSED_SHARE {
                add(&raw mut (*share).refused_share, 1);
            } else {
                add(&raw mut (*share).refused_full, 1);
            }
        }
    }
}

/// Takes a row out of the established, unless it is gone; `why` is the counter that tells the reason.
#[inline(never)]
pub(super) fn leave_established(key: &FlowKey, owner: u32, why: u32) -> bool {
    // Of two CPUs that delete a row one succeeds, and that one counts.
    if maps::ESTABLISHED.remove(key).is_err() {
        return false;
    }
    if let Some(share) = maps::SHARES.get_ptr_mut(owner) {
        // SAFETY: a counter in a map value.
        unsafe { add(&raw mut (*share).returned, 1) };
    }
    count(why, 1);
    true
}

/// Removes a row wherever it is.
#[inline(always)]
pub(super) fn forget(key: &FlowKey, owner: u32, established: bool) {
    beside::remove(key);
    if established {
        leave_established(key, owner, flow_count::CLOSED);
    } else {
        // Not there: evicted just now.
        maps::NURSERY.remove(key).ok();
    }
}

/// Adds to a counter of [`flow_count`].
#[inline(always)]
pub(super) fn count(which: u32, by: u64) {
    if let Some(value) = maps::FLOW_COUNTS.get_ptr_mut(which) {
        // SAFETY: a per-CPU value; atomic, as a packet's program may interrupt one that the agent runs.
        unsafe { add(value, by) };
    }
}

/// Adds atomically. The sum is not to be had: the BPF back-end gives no fetching add for a relaxed one.
///
/// # Safety
/// An aligned counter in a map's value.
#[inline(always)]
pub(super) unsafe fn add(counter: *mut u64, by: u64) {
    // SAFETY: as the caller says.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, by) };
}
