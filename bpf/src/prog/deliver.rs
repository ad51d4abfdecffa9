//! Delivery: into a pod of this node, to a neighbour, or to the node's own stack.

use super::Outcome;
use super::packet::{ETH_LEN, Packet, TCP, UDP};
use super::pods;
use super::report::Run;
use super::rewrite;
use crate::event::{path, reason};
use crate::pod::Pod;
use aya_ebpf::bindings::{TC_ACT_REDIRECT, bpf_redir_neigh};
use aya_ebpf::helpers::{bpf_fib_lookup, bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::programs::TcContext;
use core::mem::size_of;

/// Where a packet went.
pub(super) struct Delivery {
    /// tc verdict.
    pub(super) verdict: i32,
    /// [`path`].
    pub(super) path: u32,
    /// Interface it was sent to, 0: the stack.
    pub(super) ifindex: u32,
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const PACKET_HOST: u32 = 0;

const IPV6_LEN: u32 = 40;
/// A hop-by-hop header with nothing but the jumbo payload option.
const JUMBO_LEN: u32 = 8;

const FIB_SUCCESS: i64 = 0;
const FIB_BLACKHOLE: i64 = 1;
const FIB_NO_NEIGH: i64 = 7;

/// `struct bpf_fib_lookup` (include/uapi/linux/bpf.h) with its unions resolved for our use.
#[repr(C)]
#[derive(Default)]
struct Fib {
    family: u8,
    proto: u8,
    source_port: u16,
    destination_port: u16,
    /// Length to compare with the MTU of device, route and path, from the IP header on. Were it 0, the kernel
    /// would look at nothing but the device, and only if the neighbour is known.
    total_length: u16,
    ifindex: u32,
    flow_info: u32,
    source: [u32; 4],
    destination: [u32; 4],
    vlan: u32,
    macs: [u8; 12],
}
const _: () = assert!(size_of::<Fib>() == 64);

/// True when the frame was addressed to this host.
#[inline(always)]
pub(super) fn for_this_host(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid for the whole run.
    unsafe { (*ctx.skb.skb).pkt_type == PACKET_HOST }
}

/// By the packet's destination, after translation.
#[inline(always)]
pub(super) fn by_address(ctx: &TcContext, run: &Run, packet: &Packet) -> Outcome {
    if let Some(pod) = pods::by_addr(run, &packet.destination) {
        return to_local_pod(ctx, packet, pod);
    }
    by_route(ctx, run, packet)
}

/// Into a pod of this node.
#[inline(always)]
pub(super) fn to_local_pod(ctx: &TcContext, packet: &Packet, pod: &Pod) -> Outcome {
    // The stack tells the sender that the time is exceeded.
    if packet.ttl <= 1 {
        return Ok(Delivery::stack());
    }
    rewrite::decrement_ttl(ctx, packet)?;
    into_pod(ctx, pod)
}

/// Straight into the namespace of a pod of this node. It takes a packet longer than its MTU.
#[inline(always)]
pub(super) fn into_pod(ctx: &TcContext, pod: &Pod) -> Outcome {
    rewrite::link(ctx, &pod.pod_mac, &pod.host_mac)?;
    // SAFETY: a helper with plain arguments.
    let verdict = unsafe { bpf_redirect_peer(pod.ifindex, 0) } as i32;
    if verdict != TC_ACT_REDIRECT {
        return Err(reason::REWRITE_FAILED);
    }
    Ok(Delivery { verdict, path: path::PEER, ifindex: pod.ifindex })
}

/// By the node's routes; what they do not forward is the stack's.
#[inline(never)]
fn by_route(ctx: &TcContext, run: &Run, packet: &Packet) -> Outcome {
    if packet.ttl <= 1 {
        return Ok(Delivery::stack());
    }
    // What cannot be measured is the stack's to judge.
    let Some(total_length) = longest_segment(ctx, packet) else { return Ok(Delivery::stack()) };
    let mut fib = Fib {
        family: if packet.v6 { AF_INET6 } else { AF_INET },
        proto: packet.proto,
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        total_length,
        ifindex: run.ifindex,
        ..Fib::default()
    };
    if packet.v6 {
        fib.source = packet.source.0;
        fib.destination = packet.destination.0;
    } else {
        fib.source[0] = packet.source.v4_word();
        fib.destination[0] = packet.destination.v4_word();
    }
    // SAFETY: the context is valid, and `Fib` is the kernel's 64 bytes.
    let found =
        unsafe { bpf_fib_lookup(ctx.skb.skb.cast(), (&raw mut fib).cast(), size_of::<Fib>() as i32, 0) };
    match found {
        // The redirect finds a neighbour that is not known yet by itself, and keeps the packet meanwhile.
        FIB_SUCCESS | FIB_NO_NEIGH => {}
        // Too long (`BPF_FIB_LKUP_RET_FRAG_NEEDED`) among others: the stack cuts it into fragments, or tells
        // the pod what would pass.
        FIB_BLACKHOLE => return Err(reason::NO_ROUTE),
        _ => return Ok(Delivery::stack()),
    }
    rewrite::decrement_ttl(ctx, packet)?;
    // The look-up leaves the next hop in the destination: the gateway, of whichever family, or the target.
    // SAFETY: an all-zero value of a plain C struct.
    let mut hop: bpf_redir_neigh = unsafe { core::mem::zeroed() };
    hop.nh_family = u32::from(fib.family);
    hop.__bindgen_anon_1.ipv6_nh = fib.destination;
    // SAFETY: `hop` is the struct the helper takes.
    let verdict =
        unsafe { bpf_redirect_neigh(fib.ifindex, &raw mut hop, size_of::<bpf_redir_neigh>() as i32, 0) }
            as i32;
    if verdict != TC_ACT_REDIRECT {
        return Err(reason::REWRITE_FAILED);
    }
    Ok(Delivery { verdict, path: path::NEIGHBOR, ifindex: fib.ifindex })
}

/// Length from the IP header on of the packet, or of the longest of those into which it will be segmented.
#[inline(always)]
fn longest_segment(ctx: &TcContext, packet: &Packet) -> Option<u16> {
    const BY_FRAGMENTS: u32 = 0xffff;
    // SAFETY: the context is valid for the whole run.
    let segment = unsafe { (*ctx.skb.skb).gso_size };
    let length = match (segment, packet.proto) {
        (0, _) => ctx.len() - ETH_LEN,
        (BY_FRAGMENTS, _) => return None,
        (_, TCP) => {
            let offset: u8 = ctx.load(packet.l4 as usize + 12).ok()?;
            // A packet beyond 64 KiB has a jumbo payload option (RFC 2675), which goes with the segmentation.
            let jumbo = if packet.v6 && ctx.len() > ETH_LEN + IPV6_LEN + 0xffff { JUMBO_LEN } else { 0 };
            packet.l4 - jumbo - ETH_LEN + u32::from(offset >> 4) * 4 + segment
        }
        (_, UDP) => packet.l4 - ETH_LEN + 8 + segment,
        _ => return None,
    };
    u16::try_from(length).ok()
}
