//! Header rewriting. Checksums are adjusted, never recomputed, so that offloads and GSO packets keep
//! working; a UDP checksum of zero stays zero. Where a network card has summed the whole packet
//! (`CHECKSUM_COMPLETE`) that sum follows: an IPv4 header sums up to zero before and after, an IPv6 header
//! has no checksum of its own, and what is stored in it must be told.

use super::from_code;
use super::packet::{ETH_LEN, Packet, TCP, UDP};
use crate::Addr;
use crate::event::reason;
use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::bpf_csum_diff;
use aya_ebpf::programs::TcContext;

/// Which end of the packet is rewritten.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

/// What the packet becomes.
pub(super) struct Translation {
    /// The end that is a Service's, or becomes a backend's.
    pub(super) end: End,
    pub(super) addr: Addr,
    pub(super) port: u16,
    /// The client's end, which may stay as it is.
    pub(super) other_addr: Addr,
    pub(super) other_port: u16,
}

/// Translates both ends of the packet.
#[inline(always)]
pub(super) fn translate(ctx: &TcContext, packet: &mut Packet, to: &Translation) -> Result<(), u8> {
    let (client, client_port) = match to.end {
        End::Source => (&packet.destination, packet.destination_port),
        End::Destination => (&packet.source, packet.source_port),
    };
    if *client != to.other_addr || client_port != to.other_port {
        let other = if to.end == End::Source { End::Destination } else { End::Source };
        from_code(one_end(ctx, packet, &New { end: other, addr: to.other_addr, port: to.other_port }))?;
    }
    from_code(one_end(ctx, packet, &New { end: to.end, addr: to.addr, port: to.port }))
}

/// Gives one end of the packet another address and port; the view follows. Gives [`super::to_code`].
#[inline(never)]
fn one_end(ctx: &TcContext, packet: &mut Packet, new: &New) -> u8 {
    let (old, old_port) = match new.end {
        End::Source => (packet.source, packet.source_port),
        End::Destination => (packet.destination, packet.destination_port),
    };
    if transport(ctx, packet, new, &old, old_port).is_err() || network(ctx, packet, new, &old).is_err() {
        return reason::REWRITE_FAILED;
    }
    match new.end {
        End::Source => {
            packet.source = new.addr;
            packet.source_port = new.port;
        }
        End::Destination => {
            packet.destination = new.addr;
            packet.destination_port = new.port;
        }
    }
    0
}

/// What one end becomes.
struct New {
    end: End,
    addr: Addr,
    port: u16,
}

#[inline(always)]
fn transport(ctx: &TcContext, packet: &Packet, to: &New, old: &Addr, old_port: u16) -> Result<(), ()> {
    let (checksum, mangled) = match packet.proto {
        TCP => (packet.l4 + 16, 0),
        UDP => (packet.l4 + 6, u64::from(BPF_F_MARK_MANGLED_0)),
        // SCTP's checksum covers its ports and no address (RFC 9260 §6.8): only addresses can change.
        _ => return if old_port == to.port { Ok(()) } else { Err(()) },
    };
    // SAFETY: two arrays of 16 readable bytes. For mapped IPv4 addresses the first twelve bytes cancel out.
    let diff = unsafe { bpf_csum_diff(old.0.as_ptr().cast_mut(), 16, to.addr.0.as_ptr().cast_mut(), 16, 0) };
    if diff < 0 {
        return Err(());
    }
    ctx.l4_csum_replace(checksum as usize, 0, diff as u64, u64::from(BPF_F_PSEUDO_HDR) | mangled)
        .map_err(drop)?;
    if old_port != to.port {
        ctx.l4_csum_replace(checksum as usize, u64::from(old_port), u64::from(to.port), 2 | mangled)
            .map_err(drop)?;
        let offset = match to.end {
            End::Source => packet.l4,
            End::Destination => packet.l4 + 2,
        };
        ctx.store(offset as usize, &to.port, 0).map_err(drop)?;
    }
    Ok(())
}

#[inline(always)]
fn network(ctx: &TcContext, packet: &Packet, to: &New, old: &Addr) -> Result<(), ()> {
    if packet.v6 {
        let offset = match to.end {
            End::Source => ETH_LEN + 8,
            End::Destination => ETH_LEN + 24,
        };
        // Takes back what the pseudo header's change did to the sum of the whole packet.
        return ctx.store(offset as usize, &to.addr.0, u64::from(BPF_F_RECOMPUTE_CSUM)).map_err(drop);
    }
    let offset = match to.end {
        End::Source => ETH_LEN + 12,
        End::Destination => ETH_LEN + 16,
    };
    let (old, new) = (old.v4_word(), to.addr.v4_word());
    ctx.l3_csum_replace(ETH_LEN as usize + 10, u64::from(old), u64::from(new), 4).map_err(drop)?;
    ctx.store(offset as usize, &new, 0).map_err(drop)
}

/// Takes one off the TTL (RFC 791) or hop limit (RFC 8200), which the caller knows to be above 1.
#[inline(always)]
pub(super) fn decrement_ttl(ctx: &TcContext, packet: &Packet) -> Result<(), u8> {
    let new = packet.ttl - 1;
    let done = if packet.v6 {
        ctx.store(ETH_LEN as usize + 7, &new, u64::from(BPF_F_RECOMPUTE_CSUM))
    } else {
        // The 16-bit word of TTL and protocol, as it stands in the header.
        let word = |ttl: u8| u64::from(u16::from_ne_bytes([ttl, packet.proto]));
        ctx.l3_csum_replace(ETH_LEN as usize + 10, word(packet.ttl), word(new), 2)
            .and_then(|()| ctx.store(ETH_LEN as usize + 8, &new, 0))
    };
    done.map_err(|_| reason::REWRITE_FAILED)
}

/// Writes both MAC addresses: destination first.
#[inline(always)]
pub(super) fn link(ctx: &TcContext, destination: &[u8; 6], source: &[u8; 6]) -> Result<(), u8> {
    let [a, b, c, d, e, f] = *destination;
    let [g, h, i, j, k, l] = *source;
    ctx.store(0, &[a, b, c, d, e, f, g, h, i, j, k, l], 0).map_err(|_| reason::REWRITE_FAILED)
}
