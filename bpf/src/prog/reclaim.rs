//! Reclaiming: passes over the tables of flows by the kernel's map iterator, and what else the agent has the
//! kernel do with rows, because here next to nothing comes between a test and what follows from it.
//!
//! These programs run for the agent, in its process, and packets' programs may interrupt them: they use no
//! memory of those (`WORK`, `SCRATCH`), and add atomically.

use super::maps;
use super::table::{add, leave_established, limits, now};
use crate::flow::{Flow, FlowKey, GRACE, ORPHANED, Order, SLICE, Sweep, expired, flow_count, order, sweep};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use core::ffi::c_void;
use core::mem::size_of;

/// `struct bpf_iter__bpf_map_elem` (kernel/bpf/map_iter.c).
#[repr(C)]
#[derive(Debug)]
pub struct Element {
    meta: *mut c_void,
    map: *mut c_void,
    key: *const FlowKey,
    value: *mut Flow,
}

/// What an iterator's program says of a row.
mod then {
    /// On to the next.
    pub(super) const GO_ON: i32 = 0;
    /// Ends this `read(2)`; the next one begins with the same row.
    pub(super) const PAUSE: i32 = 1;
}

/// The row at hand, and the books of the pass; none at the end of the table.
///
/// # Safety
/// `element` is the context of an iterator over a table of flows.
#[inline(always)]
unsafe fn at(element: *const Element, table: u32) -> Option<(FlowKey, &'static Flow, &'static mut Sweep)> {
    // SAFETY: the verifier knows the context and both pointers in it.
    unsafe {
        let (key, value) = ((*element).key, (*element).value);
        if key.is_null() || value.is_null() {
            return None;
        }
        let sweep = maps::SWEEPS.get_ptr_mut(table)?;
        Some((*key, &*value, &mut *sweep))
    }
}

/// A pass over `ESTABLISHED`: removes what is expired or orphaned, counts the rest, for its owner too.
///
/// # Safety
/// As [`at`].
#[inline(always)]
pub unsafe fn reclaim(element: *const Element) -> i32 {
    // SAFETY: as the caller says.
    let Some((key, flow, books)) = (unsafe { at(element, sweep::ESTABLISHED) }) else { return then::GO_ON };
    if pause(books) {
        return then::PAUSE;
    }
    if is_expired(flow, &key, books.now as u32) || is_orphaned(flow.owner, books.now as u32) {
        books.expired += u64::from(leave_established(&key, flow.owner, flow_count::EXPIRED));
        return then::GO_ON;
    }
    books.alive += 1;
    match maps::SHARES.get_ptr_mut(flow.owner) {
        // SAFETY: a counter in a map value.
        Some(share) => unsafe { add(&raw mut (*share).met, 1) },
        None => books.ownerless += 1,
    }
    then::GO_ON
}

/// A pass over `NURSERY`, which makes room by itself: only counts.
///
/// # Safety
/// As [`at`].
#[inline(always)]
pub unsafe fn census(element: *const Element) -> i32 {
    // SAFETY: as the caller says.
    let Some((key, flow, books)) = (unsafe { at(element, sweep::NURSERY) }) else { return then::GO_ON };
    if pause(books) {
        return then::PAUSE;
    }
    if is_expired(flow, &key, books.now as u32) {
        books.expired += 1;
    } else {
        books.alive += 1;
    }
    then::GO_ON
}

/// True when the slice is used up. Notes the time at the first row: the agent's clock may be another
/// (time_namespaces(7)).
#[inline(always)]
fn pause(books: &mut Sweep) -> bool {
    if books.now == 0 {
        // SAFETY: a helper without arguments; an iterator has no coarse clock.
        books.now = unsafe { bpf_ktime_get_ns() } / 1_000_000_000;
    }
    if books.left == 0 {
        books.left = SLICE;
        return true;
    }
    books.left -= 1;
    false
}

/// Not inlined: the verifier would follow each way through it to the end of the pass, or of the order.
#[inline(never)]
fn is_expired(flow: &Flow, key: &FlowKey, now: u32) -> bool {
    expired(flow, key.proto, limits(), now.wrapping_sub(GRACE))
}

/// True if the owner has had no share for so long that it will not have one again ([`ORPHANED`]).
#[inline(never)]
fn is_orphaned(owner: u32, now: u32) -> bool {
    // 0 is nobody: a row that was brought from another schema, of a flow between others than this node's pods.
    if owner == 0 || maps::SHARES.get_ptr(owner).is_some() {
        return false;
    }
    if let Some(since) = maps::GONE.get_ptr(owner) {
        // SAFETY: an aligned word of a map value.
        return now.wrapping_sub(unsafe { since.read_volatile() }) as i32 > ORPHANED as i32;
    }
    // Without room it begins with a later pass.
    maps::GONE.insert(owner, now, 0).ok();
    false
}

/// Carries out an [`Order`].
#[inline(always)]
pub fn amend(ctx: &TcContext) -> i32 {
    let Ok(what) = ctx.load::<Order>(order::HEADER) else { return 0 };
    if what.what == order::ADJUST {
        if let Some(share) = maps::SHARES.get_ptr_mut(what.endpoint) {
            // SAFETY: counters in a map value.
            unsafe {
                if what.rows > 0 {
                    add(&raw mut (*share).taken, what.rows.unsigned_abs());
                } else {
                    add(&raw mut (*share).returned, what.rows.unsigned_abs());
                }
            }
        }
        return 0;
    }
    let mut removed = 0;
    for index in 0..order::MOST_KEYS {
        if index >= what.keys {
            break;
        }
        let offset = order::HEADER + size_of::<Order>() + index as usize * size_of::<FlowKey>();
        let Ok(key) = ctx.load::<FlowKey>(offset) else { break };
        removed += remove(&key, what.what);
    }
    removed
}

#[inline(never)]
fn remove(key: &FlowKey, what: u32) -> i32 {
    let mut removed = 0;
    // SAFETY: a row stays readable memory for the whole run.
    if let Some(flow) = unsafe { maps::ESTABLISHED.get(key) } {
        let now = now();
        let gone = is_expired(flow, key, now) || what == order::EXPIRE && is_orphaned(flow.owner, now);
        if what == order::FORGET || gone {
            let why = if gone { flow_count::EXPIRED } else { flow_count::CLOSED };
            removed += i32::from(leave_established(key, flow.owner, why));
        }
    }
    if what == order::FORGET && maps::NURSERY.remove(key).is_ok() {
        removed += 1;
    }
    removed
}
