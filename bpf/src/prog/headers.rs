//! Direct reads of the headers that nearly all packets have: IPv4 without options or IPv6 without extension
//! headers, not fragmented, then TCP or UDP, all in the linear part of the buffer. Everything else is read
//! field by field in [`super::packet`], with the same result.

use super::packet::{ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Packet, TCP, TCP_SUM, UDP, UDP_SUM, ethertype};
use crate::Addr;
use aya_ebpf::programs::TcContext;
use core::ptr::read_unaligned;

const L2: usize = ETH_LEN as usize;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;
/// Version 4, five words.
const PLAIN_IPV4: u8 = 0x45;
/// Fragment offset and the more-fragments bit, as they stand in the header's second word.
const FRAGMENT_BITS: u32 = 0x0000_3fff_u32.to_be();

/// Reads a plain packet's headers; false if it is none, and then the view is of no use.
#[inline(always)]
pub(super) fn read(ctx: &TcContext, packet: &mut Packet) -> bool {
    match ethertype(ctx) {
        ETHERTYPE_IPV4 => ipv4(ctx, packet),
        ETHERTYPE_IPV6 => ipv6(ctx, packet),
        _ => false,
    }
}

/// The word at an offset from the start of the frame, which is known to be within it.
#[inline(always)]
unsafe fn word<T: Copy>(start: usize, offset: usize) -> T {
    // SAFETY: the caller compared the end of the field with the end of the buffer.
    unsafe { read_unaligned((start + offset) as *const T) }
}

#[inline(always)]
fn ipv4(ctx: &TcContext, packet: &mut Packet) -> bool {
    let (start, end) = (ctx.data(), ctx.data_end());
    let l4 = L2 + IPV4_LEN;
    if start + l4 + UDP_LEN > end {
        return false;
    }
    // SAFETY: compared above.
    let (first, second, third): (u8, u32, [u8; 2]) =
        unsafe { (word(start, L2), word(start, L2 + 4), word(start, L2 + 8)) };
    let [ttl, proto] = third;
    if first != PLAIN_IPV4 || second & FRAGMENT_BITS != 0 {
        return false;
    }
    // SAFETY: compared above.
    unsafe {
        packet.source = Addr::from_v4_word(word(start, L2 + 12));
        packet.destination = Addr::from_v4_word(word(start, L2 + 16));
    }
    packet.now_plain(false, proto, ttl, l4);
    transport(start + l4, end, packet)
}

#[inline(always)]
fn ipv6(ctx: &TcContext, packet: &mut Packet) -> bool {
    let (start, end) = (ctx.data(), ctx.data_end());
    let l4 = L2 + IPV6_LEN;
    if start + l4 + UDP_LEN > end {
        return false;
    }
    // SAFETY: compared above.
    let (first, third): (u8, [u8; 2]) = unsafe { (word(start, L2), word(start, L2 + 6)) };
    let [proto, ttl] = third;
    if first >> 4 != 6 {
        return false;
    }
    // SAFETY: compared above.
    let (source, destination) = unsafe { (address(start, L2 + 8), address(start, L2 + 24)) };
    // These are malformed, which is for the careful way to say.
    if source.is_v4() || destination.is_v4() {
        return false;
    }
    packet.source = source;
    packet.destination = destination;
    packet.now_plain(true, proto, ttl, l4);
    transport(start + l4, end, packet)
}

/// Reads the transport header at `l4`, of which the shortest is known to be within the buffer; false if it is none of
/// ours or cut short.
#[inline(always)]
fn transport(l4: usize, end: usize, packet: &mut Packet) -> bool {
    match packet.proto {
        TCP if l4 + TCP_LEN <= end => {
            // SAFETY: compared above.
            unsafe {
                packet.tcp_flags = word(l4, 13);
                packet.checksum = word(l4, TCP_SUM);
            }
        }
        UDP => {
            packet.tcp_flags = 0;
            // SAFETY: compared by the caller.
            packet.checksum = unsafe { word(l4, UDP_SUM) };
        }
        _ => return false,
    }
    // SAFETY: as above.
    unsafe {
        packet.source_port = word(l4, 0);
        packet.destination_port = word(l4, 2);
    }
    true
}

/// Four words, each by itself: a packet's memory is not aligned for more.
#[inline(always)]
unsafe fn address(start: usize, offset: usize) -> Addr {
    // SAFETY: the caller compared the end of the field with the end of the buffer.
    unsafe {
        Addr([
            word(start, offset),
            word(start, offset + 4),
            word(start, offset + 8),
            word(start, offset + 12),
        ])
    }
}
