//! The time in which two kinds of programs run on one node: an agent that brings other tables of flows
//! (another schema, another size) puts its programs in place one interface after the other, and a flow whose
//! packets pass programs of both kinds must be whole to both.
//!
//! The agent loads the programs of that time with [`maps::BESIDE`] set and `OLD_…` being the tables of the
//! others, takes the last of the others away, and then loads its programs once more without. Where
//! [`maps::BESIDE`] is zero the verifier cuts all of this out.
//!
//! Invariants: the others' tables stay whole without ours, so that the agent may die at any moment and
//! begin again, or go back. A row that we make or remove is made or removed there too. A packet's rows are
//! first brought over from there; where both have one of the same flow, what each saw is told to the other;
//! where both have one of different flows, theirs is the newer, as ours would have been told to them.

use super::maps;
use super::table::{self, find, now};
use crate::flow::{Flow, FlowKey, beside, flow_count, flow_flag, role};
use crate::schema1;
use core::ptr::{addr_of, read_volatile};

/// What either kind may see of a flow without the other.
const SEEN: u16 = flow_flag::REPLIED | flow_flag::FIN_BOTH;

/// Rows in the making.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// Theirs, as a row of ours.
    theirs: Flow,
    /// Ours, as a row of theirs.
    ours: schema1::Flow,
}

#[inline(always)]
fn mode() -> u32 {
    // SAFETY: read-only data; volatile, because the loader puts the real value in after the compiler has
    // seen zero.
    unsafe { read_volatile(addr_of!(maps::BESIDE)) }
}

/// Brings what the others know of a flow into our tables; a row that was not there counts against `owner`.
#[inline(always)]
pub(super) fn pull(key: &FlowKey, owner: u32) {
    if mode() != beside::ALONE {
        bring(key, owner);
    }
}

/// Tells the others of a row that was made or moved.
#[inline(always)]
pub(super) fn push(key: &FlowKey, flow: &Flow) {
    if mode() != beside::ALONE {
        tell(key, flow);
    }
}

/// Takes a row away that is no more.
#[inline(always)]
pub(super) fn remove(key: &FlowKey) {
    match mode() {
        beside::ALONE => {}
        // Not there: nothing to do.
        beside::SCHEMA_1 => drop(maps::OLD_FLOWS.remove(key)),
        _ => {
            maps::OLD_ESTABLISHED.remove(key).ok();
            maps::OLD_NURSERY.remove(key).ok();
        }
    }
}

#[inline(never)]
fn bring(key: &FlowKey, owner: u32) {
    let Some(rows) = maps::BESIDE_ROWS.get_ptr_mut(0) else { return };
    // SAFETY: per-CPU memory, and this field is used in this function only.
    let theirs = unsafe { &mut (*rows).theirs };
    let now = now();
    if mode() == beside::SCHEMA_1 {
        let Some(row) = maps::OLD_FLOWS.get_ptr_mut(key) else { return };
        // SAFETY: a row stays readable memory for the whole run, even if it is deleted meanwhile.
        let row = unsafe { &mut *row };
        row.import(key, theirs);
        theirs.owner = owner;
        row.flags |= (fit(key, theirs, now) & SEEN) as u8;
        row.last_seen = now;
        return;
    }
    let Some(row) = old_row(key) else { return };
    // SAFETY: as above.
    let row = unsafe { &mut *row };
    *theirs = *row;
    table::change_state(row, fit(key, theirs, now) & SEEN, 0);
    row.last_seen = now;
}

/// Their row, as [`find`] looks for ours: their programs move rows too.
#[inline(always)]
fn old_row(key: &FlowKey) -> Option<*mut Flow> {
    if let Some(row) = maps::OLD_ESTABLISHED.get_ptr_mut(key) {
        return Some(row);
    }
    if let Some(row) = maps::OLD_NURSERY.get_ptr_mut(key) {
        return Some(row);
    }
    table::in_this_order();
    maps::OLD_ESTABLISHED.get_ptr_mut(key)
}

/// Makes our tables agree with a row of theirs; gives the flags that are to be theirs too.
#[inline(always)]
fn fit(key: &FlowKey, theirs: &mut Flow, now: u32) -> u16 {
    if let Some((ours, established)) = find(key) {
        if ours.same(theirs) {
            table::change_state(ours, theirs.flags & (SEEN | flow_flag::CONFIRMED), 0);
            if (theirs.last_seen.wrapping_sub(ours.last_seen) as i32) > 0 {
                ours.last_seen = theirs.last_seen;
            }
            return ours.flags;
        }
        // A reply that passed them while they did not know its flow left a plain row, begun by the backend.
        let answers = (ours.flags ^ theirs.flags) & flow_flag::INITIATOR_HIGH != 0;
        if ours.role == role::REPLY && theirs.role == role::DIRECT && answers {
            tell(key, ours);
            return 0;
        }
        if established {
            let owner = ours.owner;
            table::leave_established(key, owner, flow_count::CLOSED);
        }
    }
    if theirs.last_seen == now {
        // So that this packet says something new of it, and it finds its place.
        theirs.last_seen = now.wrapping_sub(1);
    }
    // Without room it is brought with the next packet.
    maps::NURSERY.insert(key, &*theirs, 0).ok();
    0
}

#[inline(never)]
fn tell(key: &FlowKey, flow: &Flow) {
    if mode() != beside::SCHEMA_1 {
        // Without room their replies go untranslated, as in their own time.
        maps::OLD_NURSERY.insert(key, flow, 0).ok();
        maps::OLD_ESTABLISHED.remove(key).ok();
        return;
    }
    let Some(rows) = maps::BESIDE_ROWS.get_ptr_mut(0) else { return };
    // SAFETY: as above.
    let ours = unsafe { &mut (*rows).ours };
    if schema1::Flow::export(flow, key, ours) {
        maps::OLD_FLOWS.insert(key, &*ours, 0).ok();
    } else {
        maps::OLD_FLOWS.remove(key).ok();
    }
}
