//! Fragments that came before their datagram's first: put aside, sent on when it has come, or given up.
//!
//! When the first comes, each held fragment takes its place in the packet at hand, a clone of that goes to the
//! hook's interface once more (so that it passes this program as if it came now, and finds its row), and in
//! the end the first gets its own bytes back. There is no other way for a program to make a packet of bytes;
//! timers cannot. A fragment is sent on once for each time that it was held, and held once each time it
//! comes: no loop, and nothing multiplies.
//!
//! A slot's tag says whose it is, and only atomic operations change it: who makes it [`tag::BUSY`] has the slot
//! for himself.

use super::fragment::Fragment;
use super::maps::{self, Work, work};
use super::packet::{ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use super::report::Run;
use crate::event::{reason, stage};
use crate::fragment::{HELD_BYTES, HELD_GROUPS, HELD_SLOTS, HeldFrame, HeldRing, LIFETIME, tag};
use aya_ebpf::bindings::{BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::generated::{
    bpf_clone_redirect, bpf_for_each_map_elem, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use core::ffi::c_void;
use core::hint::black_box;
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd, atomic_xchg};
use core::ptr::{read_volatile, write_volatile};

/// What [`hold`] gives: not a slot but a reason.
pub(super) const NO_SLOT: u32 = 1 << 16;

/// True if what came at `since` is of no use any more.
#[inline(always)]
pub(super) fn outlived(since: u32, now: u32) -> bool {
    // A clock that is a tick ahead is not the end.
    now.wrapping_sub(since) as i32 > LIFETIME as i32
}

/// Puts a later fragment aside; gives its slot, or [`NO_SLOT`] and the [`reason`] why not.
#[inline(never)]
pub(super) fn hold(ctx: &TcContext, run: &Run, fragment: &Fragment, now: u32) -> u32 {
    const CROWDED: u32 = NO_SLOT | reason::FRAGMENT_LOST as u32;
    if ctx.len() > HELD_BYTES as u32 {
        return NO_SLOT | u32::from(reason::FRAGMENT_TOO_LONG);
    }
    let group = run.endpoint % HELD_GROUPS;
    let Some(ring) = maps::HELD.get_ptr_mut(group) else { return CROWDED };
    // SAFETY: an aligned word of a map value.
    let at = unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::AcqRel }>(&raw mut (*ring).next, 1) };
    let at = at % HELD_SLOTS;
    let slot = group * HELD_SLOTS + at;
    let Some(frame) = maps::HELD_FRAMES.get_ptr_mut(slot) else { return CROWDED };
    let tag = tag_at(ring, at);
    // SAFETY: as above.
    let oldest = unsafe { read_volatile(tag) };
    // Who is at it would have to be overtaken by a whole ring of fragments.
    if oldest == tag::BUSY || !swap(tag, oldest, tag::BUSY) {
        return CROWDED;
    }
    // SAFETY: the slot is ours until its tag says otherwise.
    let frame = unsafe { &mut *frame };
    if oldest != tag::FREE {
        give_up(frame);
    }
    frame.key = fragment.key;
    frame.ifindex = run.ifindex;
    frame.endpoint = run.endpoint;
    frame.since = now;
    frame.length = copy(ctx, &mut frame.bytes);
    if frame.length == 0 {
        publish(tag, tag::FREE);
        return NO_SLOT | u32::from(reason::MALFORMED);
    }
    publish(tag, fragment.tag);
    slot
}

/// Gets a fragment back that was put aside by this run; false if another one has taken it.
#[inline(always)]
pub(super) fn take_back(slot: u32, own: u32) -> bool {
    let Some(ring) = maps::HELD.get_ptr_mut(slot / HELD_SLOTS) else { return false };
    swap(tag_at(ring, slot % HELD_SLOTS), own, tag::FREE)
}

/// Sends the datagram's held fragments on. The packet is the same afterwards; false if it is not.
#[inline(never)]
pub(super) fn release(ctx: &TcContext, fragment: &Fragment, sending: &mut bool) -> bool {
    let ring = fragment.endpoint % HELD_GROUPS;
    if !any_held(ring, fragment.tag) {
        return true;
    }
    let mut pass = Pass { ctx, fragment, sending, ring, saved: 0 };
    // A loop would have the verifier go through its body for each slot; a callback it goes through once
    // (Linux 5.13; `bpf_loop` would be 5.17).
    // SAFETY: `each_slot` is what the helper calls for each element, with `pass` on this stack.
    unsafe {
        bpf_for_each_map_elem(
            (&raw const maps::HELD_PLACES).cast_mut().cast(),
            each_slot as *const () as *mut c_void,
            (&raw mut pass).cast(),
            0,
        );
    }
    pass.saved == 0 || put_back(ctx, pass.saved)
}

/// True if a fragment of the datagram is held, or of one with the same tag.
#[inline(never)]
fn any_held(ring: u32, wanted: u32) -> bool {
    let Some(ring) = maps::HELD.get_ptr_mut(ring) else { return false };
    // SAFETY: an aligned word of a map value. The barrier between the row and the look.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::AcqRel }>(&raw mut (*ring).looks, 1) };
    let mut none = u32::MAX;
    for at in 0..HELD_SLOTS {
        // SAFETY: as above.
        let other = unsafe { read_volatile(tag_at(ring, at)) } ^ wanted;
        // Its highest bit is set if they are different: without a branch, of which the verifier would follow
        // both sides 64 times.
        none &= other | other.wrapping_neg();
    }
    none >> 31 == 0
}

/// One look at a ring for a datagram's held fragments.
struct Pass<'a> {
    ctx: &'a TcContext,
    fragment: &'a Fragment,
    sending: &'a mut bool,
    ring: u32,
    /// Length of the first fragment if that has been put aside, else 0.
    saved: u32,
}

/// Sends on what is in a slot, if it is the datagram's.
extern "C" fn each_slot(_: *mut c_void, at: *const u32, _: *mut c_void, pass: *mut Pass<'_>) -> i64 {
    // SAFETY: the helper gives the element's index, and what `release` gave it.
    let (at, pass) = unsafe { (*at % HELD_SLOTS, &mut *pass) };
    let Some(ring) = maps::HELD.get_ptr_mut(pass.ring) else { return 0 };
    let Some(frame) = maps::HELD_FRAMES.get_ptr_mut(pass.ring * HELD_SLOTS + at) else { return 0 };
    let tag = tag_at(ring, at);
    let wanted = pass.fragment.tag;
    if !swap(tag, wanted, tag::BUSY) {
        return 0;
    }
    // SAFETY: the slot is ours until its tag says otherwise.
    let frame = unsafe { &*frame };
    if frame.key != pass.fragment.key {
        publish(tag, wanted);
        return 0;
    }
    if pass.saved == 0 {
        pass.saved = put_aside(pass.ctx);
    }
    if pass.saved == 0 {
        // The first is a jumbo frame. Nothing can be made of it without losing it.
        publish(tag, wanted);
        return 1;
    }
    let late = outlived(frame.since, pass.fragment.datagram.since);
    if late || !send(pass.ctx, frame, pass.fragment.key.stage, pass.sending) {
        give_up(frame);
    }
    publish(tag, tag::FREE);
    0
}

/// Makes the packet the held fragment and sends a clone on.
#[inline(always)]
fn send(ctx: &TcContext, frame: &HeldFrame, stage: u8, sending: &mut bool) -> bool {
    if !become_frame(ctx, &frame.bytes, frame.length) {
        return false;
    }
    // At tc ingress by way of the CPU's queue of received packets, when this run is over; at tc egress at
    // once, by a run within this one.
    let egress = stage == stage::POD_INGRESS;
    let flags = if egress { 0 } else { u64::from(BPF_F_INGRESS) };
    // SAFETY: a reference to a map value; volatile, because it is read behind the compiler's back.
    unsafe { write_volatile(sending, egress) };
    // SAFETY: the context is valid.
    let failed = unsafe { bpf_clone_redirect(ctx.skb.skb, frame.ifindex, flags) };
    // SAFETY: as above.
    unsafe { write_volatile(sending, false) };
    failed == 0
}

/// Copies the first fragment's bytes, as they are now; gives their number, 0 if they are too many.
#[inline(always)]
fn put_aside(ctx: &TcContext) -> u32 {
    // SAFETY: as `WORK`.
    maps::FIRST.get_ptr_mut(0).map_or(0, |bytes| copy(ctx, unsafe { &mut *bytes }))
}

/// Copies the whole packet; gives its length, 0 if that is too much.
#[inline(always)]
fn copy(ctx: &TcContext, bytes: &mut [u8; HELD_BYTES]) -> u32 {
    // Tested at once before it is used: the compiler would test the length itself, and the verifier of Linux
    // 6.1 forgets what it knows of a number that was on the stack meanwhile.
    let last = black_box(ctx.len().wrapping_sub(1));
    if last >= HELD_BYTES as u32 {
        return 0;
    }
    // SAFETY: the context is valid, and the length was tested.
    let failed = unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), 0, bytes.as_mut_ptr().cast(), last + 1) };
    if failed == 0 { last + 1 } else { 0 }
}

/// Makes the packet the first fragment again.
#[inline(never)]
fn put_back(ctx: &TcContext, length: u32) -> bool {
    let Some(bytes) = maps::FIRST.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's memory, which nobody writes now.
    become_frame(ctx, unsafe { &*bytes }, length)
}

/// Gives the packet other bytes, from its link header on.
#[inline(always)]
fn become_frame(ctx: &TcContext, bytes: &[u8; HELD_BYTES], length: u32) -> bool {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid, and there are more bytes than a link header.
    let failed = unsafe {
        bpf_skb_change_tail(skb, length, 0) != 0
            || bpf_skb_store_bytes(skb, 0, bytes.as_ptr().cast(), ETH_LEN, 0) != 0
    };
    // As in `copy`.
    let last = black_box(length.wrapping_sub(ETH_LEN + 1));
    if failed || last >= HELD_BYTES as u32 - ETH_LEN {
        return false;
    }
    // What a card has summed up (`CHECKSUM_COMPLETE`) begins behind the link header.
    let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
    // SAFETY: the context is valid, and the length was tested.
    unsafe {
        let from = bytes.as_ptr().add(ETH_LEN as usize).cast();
        bpf_skb_store_bytes(skb, ETH_LEN, from, last + 1, flags) == 0
    }
}

/// Counts and tells a held fragment that will not go on.
#[inline(never)]
fn give_up(frame: &HeldFrame) {
    // SAFETY: as `WORK`; this row is taken here only.
    let Some(work) = maps::WORK.get_ptr_mut(work::GIVEN_UP).map(|work| unsafe { &mut *work }) else { return };
    let Work { run, packet, .. } = work;
    run.set(frame.key.stage, frame.ifindex);
    run.endpoint = frame.endpoint;
    packet.clear();
    packet.source = frame.key.source;
    packet.original_destination = frame.key.destination;
    packet.proto = frame.key.proto;
    let ethertype = if frame.key.source.is_v4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    run.tell(packet, reason::FRAGMENT_LOST, frame.length, ethertype);
}

#[inline(always)]
fn tag_at(ring: *mut HeldRing, at: u32) -> *mut u32 {
    // SAFETY: an element of a map value; the pointer is used within this run.
    unsafe { (&raw mut (*ring).tags).cast::<u32>().add((at % HELD_SLOTS) as usize) }
}

/// Changes a slot's tag if it is what it is thought to be.
#[inline(always)]
fn swap(tag: *mut u32, from: u32, to: u32) -> bool {
    // SAFETY: an aligned word of a map value.
    unsafe { atomic_cxchg::<u32, { AtomicOrdering::AcqRel }, { AtomicOrdering::Acquire }>(tag, from, to).1 }
}

/// Says whose a slot is from now on.
#[inline(always)]
fn publish(tag: *mut u32, value: u32) {
    // SAFETY: an aligned word of a map value.
    unsafe { atomic_xchg::<u32, { AtomicOrdering::AcqRel }>(tag, value) };
}
