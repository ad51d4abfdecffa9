//! Services without endpoints refuse at once: TCP by a RST (RFC 9293 §3.10.7.1), all else by "port
//! unreachable" (RFC 792, RFC 4443 §3.1), as from the Service itself. The packet becomes its own answer and
//! goes back into the pod, past everything else of this node. It counts as dropped, and the drop is told.
//!
//! The pod's kernel may have left checksum and segmentation of the packet to the hardware. A train of segments
//! becomes one plain packet. A checksum that is only prepared stays so, at the same place: of the RST, or of
//! what the ICMP error quotes; a program cannot take that mark away.
//!
//! RSTs are not limited, as the kernel's own are not: one is never longer than what it answers, and ends a
//! connection. ICMP errors are (RFC 4443 §2.4 (f) demands it), per pod and CPU.

use super::maps::{self, REJECT_ROWS, Work};
use super::packet::{ETH_LEN, ICMP, ICMPV6, Packet, TCP, UDP, tcp_flag};
use super::pods;
use super::rewrite::store;
use super::sum::{self, Summing};
use super::{Delivery, deliver};
use crate::event::path;
use aya_ebpf::bindings::bpf_adj_room_mode::{BPF_ADJ_ROOM_MAC, BPF_ADJ_ROOM_NET};
use aya_ebpf::helpers::generated::{bpf_ktime_get_coarse_ns, bpf_skb_change_tail};
use aya_ebpf::programs::TcContext;

/// Nanoseconds between two ICMP errors to one pod by one CPU, and how many may come at once: what the kernel
/// allows itself for all its errors (`icmp_msgs_per_sec`, `icmp_msgs_burst`).
const PAUSE: u64 = 1_000_000;
const BURST: u64 = 50;

const TTL: u8 = 64;
const TCP_LEN: u32 = 20;
const ICMP_LEN: u32 = 8;
/// Longest ICMP error: 576 bytes (RFC 1812 §4.3.2.3) and the least IPv6 MTU (RFC 4443 §2.4 (c)).
const LONGEST_V4: u32 = 576;
const LONGEST_V6: u32 = 1280;

/// Answers a packet to a Service without endpoints, if it is one to be answered; the drop has been told.
#[inline(always)]
pub(super) fn answer(ctx: &TcContext, work: &mut Work) -> Delivery {
    let Work { run, packet, summing, .. } = work;
    let Some(pod) = pods::by_ifindex(run, run.ifindex) else { return Delivery::dropped() };
    // What was sent to more than one host, and what has no transport header, is never answered (RFC 1122
    // §3.2.2, RFC 4443 §2.4 (e)). ICMP errors and multicast have no Service.
    if packet.later_fragment || !deliver::for_this_host(ctx) {
        return Delivery::dropped();
    }
    let made = if packet.proto == TCP {
        reset(ctx, packet)
    } else {
        (run.explain || may_send(run.endpoint)) && unreachable(ctx, packet, summing)
    };
    if !made {
        return Delivery::dropped();
    }
    match deliver::into_pod(ctx, pod) {
        Ok(delivery) => Delivery { path: path::REJECT, ..delivery },
        Err(_) => Delivery::dropped(),
    }
}

/// True if the pod has an ICMP error left of its share. The row holds the time at which the share will be
/// whole again.
#[inline(always)]
fn may_send(endpoint: u32) -> bool {
    let Some(row) = maps::REJECTS.get_ptr_mut(endpoint % REJECT_ROWS) else { return false };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: a per-CPU value; programs of one CPU and hook do not preempt one another.
    unsafe {
        let whole = core::cmp::max(*row, now) + PAUSE;
        if whole > now + BURST * PAUSE {
            return false;
        }
        *row = whole;
    }
    true
}

/// Makes a RST of a TCP segment. IP options and extension headers go: they were the client's.
#[inline(never)]
fn reset(ctx: &TcContext, packet: &Packet) -> bool {
    let Ok(segment) = ctx.load::<[u32; 5]>(packet.l4 as usize) else { return false };
    let [offset, flags, ..] = segment[3].to_ne_bytes();
    if flags & tcp_flag::RST != 0 {
        return false;
    }
    let (sequence, acknowledgment, flags) = if flags & tcp_flag::ACK != 0 {
        (segment[2], 0, tcp_flag::RST)
    } else {
        let header = packet.l4 - ETH_LEN + u32::from(offset >> 4) * 4;
        let Some(data) = ip_length(ctx, packet).map(|length| length.saturating_sub(header)) else {
            return false;
        };
        let controls = u32::from(flags & tcp_flag::SYN != 0) + u32::from(flags & tcp_flag::FIN != 0);
        let next = u32::from_be(segment[1]).wrapping_add(data).wrapping_add(controls);
        (0, next.to_be(), tcp_flag::RST | tcp_flag::ACK)
    };
    let prepared = checksum_is_prepared(ctx, packet.l4 + 16);
    let network: u32 = if packet.v6 { 40 } else { 20 };
    let options = packet.l4 - ETH_LEN - network;
    if !change_tail(ctx, packet.l4 + TCP_LEN)
        || options != 0 && ctx.adjust_room(-options.cast_signed(), BPF_ADJ_ROOM_NET, 0).is_err()
        || !network_header(ctx, packet, TCP, TCP_LEN)
    {
        return false;
    }
    let [a, b] = packet.destination_port.to_ne_bytes();
    let [c, d] = packet.source_port.to_ne_bytes();
    let mut header = [
        u32::from_ne_bytes([a, b, c, d]),
        sequence,
        acknowledgment,
        u32::from_ne_bytes([0x50, flags, 0, 0]),
        0,
    ];
    let pseudo = pseudo_header(packet, TCP, TCP_LEN);
    let checksum = if prepared {
        sum::fold(pseudo)
    } else {
        !sum::fold(header.iter().fold(pseudo, |sum, word| sum + u64::from(*word)))
    };
    let [a, b] = checksum.to_ne_bytes();
    header[4] = u32::from_ne_bytes([a, b, 0, 0]);
    store(ctx, ETH_LEN + network, &header).is_ok()
}

/// Makes a "port unreachable" that quotes as much of the packet as it may.
#[inline(never)]
fn unreachable(ctx: &TcContext, packet: &Packet, summing: &mut Summing) -> bool {
    let (network, longest, proto) = if packet.v6 { (40, LONGEST_V6, ICMPV6) } else { (20, LONGEST_V4, ICMP) };
    let quoted = core::cmp::min(ctx.len() - ETH_LEN, longest - network - ICMP_LEN);
    let prepared = packet.proto == UDP && checksum_is_prepared(ctx, packet.l4 + 6);
    let room = network + ICMP_LEN;
    let l4 = ETH_LEN + network;
    // Type and code; no checksum yet.
    let kind = if packet.v6 { [1, 4, 0, 0] } else { [3, 3, 0, 0] };
    if !change_tail(ctx, ETH_LEN + quoted)
        || ctx.adjust_room(room.cast_signed(), BPF_ADJ_ROOM_MAC, 0).is_err()
        || !network_header(ctx, packet, proto, ICMP_LEN + quoted)
        || store(ctx, l4, &[u32::from_ne_bytes(kind), 0]).is_err()
    {
        return false;
    }
    let quoted_l4 = packet.l4 + room;
    let length = if prepared { quoted_l4 - l4 } else { ICMP_LEN + quoted };
    let Ok(mut covered) = u64::try_from(sum::of_packet(ctx, summing, l4, length)) else { return false };
    if prepared {
        // Whoever completes the quoted checksum makes the sum from there to the end the opposite of it.
        let Ok(checksum) = ctx.load::<u16>(quoted_l4 as usize + 6) else { return false };
        covered += u64::from(!checksum);
    }
    if packet.v6 {
        covered += pseudo_header(packet, ICMPV6, ICMP_LEN + quoted);
    }
    store(ctx, l4 + 2, &!sum::fold(covered)).is_ok()
}

/// True if the pod's kernel left the checksum at this place to the hardware (`CHECKSUM_PARTIAL`): the helper
/// leaves such a one alone where no address changes.
#[inline(always)]
fn checksum_is_prepared(ctx: &TcContext, at: u32) -> bool {
    let at = at as usize;
    let Ok(before) = ctx.load::<u16>(at) else { return false };
    let changed = ctx.l4_csum_replace(at, 0, 1, 0).is_ok() && ctx.load(at) != Ok(before);
    if changed {
        // A packet that cannot be written will fail to become an answer.
        ctx.store(at, &before, 0).ok();
    }
    !changed
}

/// Length of the packet by its IP header: the frame may be padded.
#[inline(always)]
fn ip_length(ctx: &TcContext, packet: &Packet) -> Option<u32> {
    let (at, more) = if packet.v6 { (4, 40) } else { (2, 0) };
    let length: u16 = ctx.load((ETH_LEN + at) as usize).ok()?;
    Some(u32::from(u16::from_be(length)) + more)
}

/// Cuts or fills the frame; one that came as a train of segments is one plain packet then.
#[inline(always)]
fn change_tail(ctx: &TcContext, length: u32) -> bool {
    // SAFETY: the context is valid for the whole run.
    unsafe { bpf_skb_change_tail(ctx.skb.skb, length, 0) == 0 }
}

/// Writes the IP header of the answer, from the destination of the packet to its source.
#[inline(always)]
fn network_header(ctx: &TcContext, packet: &Packet, proto: u8, payload: u32) -> bool {
    let [high, low] = (payload as u16).to_be_bytes();
    if packet.v6 {
        let first = [u32::from_ne_bytes([0x60, 0, 0, 0]), u32::from_ne_bytes([high, low, proto, TTL])];
        return store(ctx, ETH_LEN, &first)
            .and_then(|()| store(ctx, ETH_LEN + 8, &packet.destination.0))
            .and_then(|()| store(ctx, ETH_LEN + 24, &packet.source.0))
            .is_ok();
    }
    let [high, low] = (20 + payload as u16).to_be_bytes();
    let mut header = [
        u32::from_ne_bytes([0x45, 0, high, low]),
        // "Don't fragment", and so no identification (RFC 6864 §4.1).
        u32::from_ne_bytes([0, 0, 0x40, 0]),
        u32::from_ne_bytes([TTL, proto, 0, 0]),
        packet.destination.v4_word(),
        packet.source.v4_word(),
    ];
    let sum = header.iter().fold(0, |sum, word| sum + u64::from(*word));
    let [a, b] = (!sum::fold(sum)).to_ne_bytes();
    header[2] = u32::from_ne_bytes([TTL, proto, a, b]);
    store(ctx, ETH_LEN, &header).is_ok()
}

/// The sum of the pseudo header between the packet's ends (RFC 9293 §3.1, RFC 8200 §8.1). For a mapped IPv4
/// address the mark counts as zero, which one word of all ones is.
#[inline(always)]
fn pseudo_header(packet: &Packet, proto: u8, length: u32) -> u64 {
    sum::of_address(&packet.source)
        + sum::of_address(&packet.destination)
        + u64::from((length + u32::from(proto)).to_be())
}
