//! The Internet checksum (RFC 1071), and its change when what it covers changes (RFC 1624).
//!
//! Sums are of 16-bit words as they stand in memory, which any byte order may do (RFC 1071 §2 (B)), in
//! registers wide enough for all carries.

use crate::Addr;
use aya_ebpf::helpers::{bpf_csum_diff, bpf_skb_load_bytes};
use aya_ebpf::programs::TcContext;
use core::hint::black_box;
use core::ptr::{read_volatile, write_volatile};

/// The helper that sums takes 512 bytes at most.
const CHUNK: u32 = 256;
/// As many as the longest ICMP error has (1240 bytes, see [`super::reject`]).
const CHUNKS: u32 = 5;

/// A sum over a packet in the making: in a map, where the verifier follows none of its values, so that each
/// round of the loop looks to it like the one before.
#[repr(C)]
pub(super) struct Summing {
    chunk: [u64; CHUNK as usize / 8],
    at: u32,
    left: u32,
    sum: u32,
}

/// The sum of words, folded to 16 bits.
#[inline(always)]
pub(super) const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// True if two sums are the same in one's complement, where zero is written in two ways.
#[inline(always)]
pub(super) const fn same_sum(a: u16, b: u16) -> bool {
    a == b || (a == 0 || a == 0xffff) && (b == 0 || b == 0xffff)
}

/// What a checksum changes by: the sum of the new words and of the complements of the old (RFC 1624).
#[derive(Clone, Copy)]
pub(super) struct Difference(u64);

impl Difference {
    /// Nothing changed.
    #[inline(always)]
    pub(super) const fn none() -> Self {
        Self(0)
    }

    /// And one of 32 bits.
    #[inline(always)]
    fn word(self, old: u32, new: u32) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    /// And a word of 16 bits.
    #[inline(always)]
    pub(super) fn half(self, old: u16, new: u16) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    /// And an address. For mapped IPv4 addresses all words but the last are the same.
    #[inline(always)]
    pub(super) fn address(self, old: &Addr, new: &Addr, v6: bool) -> Self {
        let last = self.word(old.0[3], new.0[3]);
        if !v6 {
            return last;
        }
        last.word(old.0[0], new.0[0]).word(old.0[1], new.0[1]).word(old.0[2], new.0[2])
    }

    /// Both together.
    #[inline(always)]
    pub(super) const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// True if it changes no sum.
    #[inline(always)]
    pub(super) const fn is_nothing(self) -> bool {
        same_sum(fold(self.0), 0)
    }

    /// As the kernel's helpers take it, in 32 bits.
    #[inline(always)]
    pub(super) const fn folded(self) -> u64 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        (once & 0xffff_ffff) + (once >> 32)
    }

    /// Applied to a checksum field.
    #[inline(always)]
    pub(super) const fn apply(self, field: u16) -> u16 {
        !fold(self.0 + (!field) as u64)
    }
}

/// The sum of an address's words.
#[inline(always)]
pub(super) const fn of_address(addr: &Addr) -> u64 {
    let [a, b, c, d] = addr.0;
    a as u64 + b as u64 + c as u64 + d as u64
}

/// The sum of `length` bytes of the packet from the even offset `at` on; negative if they cannot be read or
/// are more than an ICMP error has.
#[inline(never)]
pub(super) fn of_packet(ctx: &TcContext, summing: &mut Summing, at: u32, length: u32) -> i64 {
    summing.at = at;
    summing.left = length;
    summing.sum = 0;
    for _ in 0..CHUNKS {
        // SAFETY: a valid reference; volatile, so that the value comes from the map.
        let left = unsafe { read_volatile(&raw const summing.left) };
        if left == 0 {
            break;
        }
        // One less and one more: the verifier of Linux 6.1 does not learn from the above that it is not zero.
        let last = black_box(left - 1);
        let length = if last < CHUNK { last } else { CHUNK - 1 } + 1;
        for word in &mut summing.chunk {
            // SAFETY: as above; volatile, because a call of `memset` would be a loop over bytes.
            unsafe { write_volatile(word, 0) };
        }
        let into = summing.chunk.as_mut_ptr();
        // SAFETY: the context is valid for the whole run, and `length` bytes fit.
        if unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), summing.at, into.cast(), length) } != 0 {
            return -1;
        }
        // SAFETY: all of the chunk is readable.
        let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, into.cast(), CHUNK, summing.sum) };
        // SAFETY: as above.
        unsafe {
            write_volatile(&raw mut summing.sum, sum as u32);
            write_volatile(&raw mut summing.at, summing.at + length);
            write_volatile(&raw mut summing.left, left - length);
        }
    }
    if summing.left == 0 { summing.sum.into() } else { -1 }
}
