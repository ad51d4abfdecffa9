//! Pods by interface and by address: rows of the agent's tables, remembered by each CPU.
//!
//! A look-up in a hash table is several calls within the kernel, and a packet needs two of these tables. So each
//! CPU keeps copies of the rows that it met in arrays, whose look-ups are a few instructions; an address that
//! is no pod's is remembered too. What is remembered counts only while `POD_EPOCH` is what it was before the
//! row was read: the agent, and the CNI plugin where no agent runs, give it a new value after each change.
//!
//! An explain run, which packets may interrupt, has a place of its own, and remembers nothing there.
//!
//! A run within a run ([`super::maps::Work::sending`]) may forget what the outer one found: nobody keeps a row across
//! what sends packets.

use super::maps;
use super::report::Run;
use crate::Addr;
use crate::pod::Pod;
use core::hint::black_box;
use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::ptr::write_volatile;

/// Rows that a CPU remembers by interface; behind them is the place of explain runs.
pub(super) const INTERFACES: u32 = 128;
/// Rows that a CPU remembers by address, likewise; the pods of a node have neighbouring ones.
pub(super) const ADDRESSES: u32 = 512;

/// What a CPU remembers at one place.
#[repr(C)]
pub(super) struct Seen {
    /// `POD_EPOCH` before the table was read; 0: nothing is remembered here.
    epoch: u64,
    key: Addr,
    pod: Pod,
    /// The key is a pod's.
    is_pod: u32,
}

/// The value of `POD_EPOCH`. 0: there was no agent yet that knows it, and nothing may be remembered.
#[inline(always)]
fn epoch() -> u64 {
    // SAFETY: one word, which the kernel writes at once.
    maps::POD_EPOCH.get_ptr(0).map_or(0, |epoch| unsafe { epoch.read_volatile() })
}

/// The pod at an interface of this node.
#[inline(always)]
pub(super) fn by_ifindex(run: &Run, ifindex: u32) -> Option<&'static Pod> {
    let key = Addr([ifindex, 0, 0, 0]);
    let place = if run.explain { INTERFACES } else { ifindex % INTERFACES };
    let seen = maps::SEEN_INTERFACES.get_ptr_mut(place)?;
    // SAFETY: per-CPU memory, and no other reference to it is alive: see above.
    let seen = unsafe { &mut *seen };
    if run.explain || !fresh(seen, &key) {
        look_up(seen, &key, true);
    }
    if seen.is_pod != 0 { Some(&seen.pod) } else { None }
}

/// The pod of this node that has an address.
#[inline(always)]
pub(super) fn by_addr(run: &Run, addr: &Addr) -> Option<&'static Pod> {
    let [a, b, c, d] = addr.0;
    let place = if run.explain { ADDRESSES } else { u32::from_be(a ^ b ^ c ^ d) % ADDRESSES };
    let seen = maps::SEEN_ADDRESSES.get_ptr_mut(place)?;
    // SAFETY: as above.
    let seen = unsafe { &mut *seen };
    if run.explain || !fresh(seen, addr) {
        look_up(seen, addr, false);
    }
    if seen.is_pod != 0 { Some(&seen.pod) } else { None }
}

#[inline(always)]
fn fresh(seen: &Seen, key: &Addr) -> bool {
    let epoch = epoch();
    let [a, b, c, d] = key.0;
    let [e, f, g, h] = seen.key.0;
    // Without branches, each of which the verifier would follow.
    let off = u64::from((a ^ e) | (b ^ f) | (c ^ g) | (d ^ h)) | (epoch ^ seen.epoch) | u64::from(epoch == 0);
    off == 0
}

/// Reads the agent's table.
#[inline(never)]
fn look_up(seen: &mut Seen, key: &Addr, interface: bool) {
    let before = epoch();
    let valid = &raw mut seen.epoch;
    // SAFETY: an aligned word of a map's value. Adding nothing, and having the sum, is a full barrier: what is
    // read below was not read before the epoch.
    unsafe {
        write_volatile(valid, 0);
        black_box(atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(valid, 0));
    }
    seen.key = *key;
    // A row that is replaced is put at its bucket's head before the old one goes: who is past the head by then,
    // and not yet at the old one, sees neither, and looks again.
    let mut found = find(key, interface);
    if found.is_none() {
        found = find(key, interface);
    }
    seen.is_pod = u32::from(found.is_some());
    if let Some(pod) = found {
        seen.pod = *pod;
    }
    // SAFETY: as above.
    unsafe { write_volatile(valid, before) };
}

#[inline(always)]
fn find(key: &Addr, interface: bool) -> Option<&'static Pod> {
    // SAFETY: copied at once, and never written by a program.
    unsafe { if interface { maps::POD_BY_IFINDEX.get(key.0[0]) } else { maps::POD_BY_ADDR.get(key) } }
}
