//! Anti-spoofing: a pod speaks with its own addresses only (BCP 38, RFC 2827).

use super::packet::{ETH_LEN, ICMPV6, Packet};
use crate::Addr;
use crate::event::reason;
use crate::pod::Pod;
use aya_ebpf::programs::TcContext;

/// How far a packet may go.
#[derive(PartialEq, Eq)]
pub(super) enum Scope {
    /// Anywhere.
    Global,
    /// To the node's own stack only: neighbour discovery, multicast.
    Link,
}

/// Judges the source of an IP packet.
#[inline(always)]
pub(super) fn ip(packet: &Packet, pod: &Pod) -> Result<Scope, u8> {
    if !packet.v6 {
        if pod.v4.is_unspecified() || packet.source != pod.v4 {
            return Err(reason::SPOOFED_SOURCE);
        }
        return Ok(if multicast_v4(&packet.destination) { Scope::Link } else { Scope::Global });
    }
    if !pod.v6.is_unspecified() && packet.source == pod.v6 {
        return Ok(if local_v6(&packet.destination) { Scope::Link } else { Scope::Global });
    }
    // Link-local speech never leaves the link: duplicate address detection comes from `::`, discovery and
    // listener reports from fe80::/10 (RFC 4861, 4862, 3810).
    let link_source = link_local(&packet.source) || packet.source.is_unspecified();
    if link_source && packet.proto == ICMPV6 && local_v6(&packet.destination) {
        return Ok(Scope::Link);
    }
    Err(reason::SPOOFED_SOURCE)
}

/// Judges the sender of an ARP packet (RFC 826): its own IPv4 address, or none (RFC 5227 probes). The view
/// takes sender and target, so that a drop can be told.
#[inline(always)]
pub(super) fn arp(ctx: &TcContext, packet: &mut Packet, pod: &Pod) -> Result<(), u8> {
    const SENDER_IP: u32 = ETH_LEN + 14;
    const TARGET_IP: u32 = ETH_LEN + 24;
    let sender: u32 = ctx.load(SENDER_IP as usize).map_err(|_| reason::MALFORMED)?;
    let target: u32 = ctx.load(TARGET_IP as usize).map_err(|_| reason::MALFORMED)?;
    packet.source = Addr::from_v4_word(sender);
    packet.original_destination = Addr::from_v4_word(target);
    if sender == 0 || (!pod.v4.is_unspecified() && sender == pod.v4.v4_word()) {
        Ok(())
    } else {
        Err(reason::SPOOFED_SOURCE)
    }
}

/// 224.0.0.0/4 and the limited broadcast address.
#[inline(always)]
fn multicast_v4(addr: &Addr) -> bool {
    let first = addr.v4_word().to_ne_bytes()[0];
    first >= 224 && (first < 240 || addr.v4_word() == u32::MAX)
}

/// fe80::/10 or ff00::/8.
#[inline(always)]
fn local_v6(addr: &Addr) -> bool {
    link_local(addr) || addr.0[0].to_ne_bytes()[0] == 0xff
}

#[inline(always)]
fn link_local(addr: &Addr) -> bool {
    let [a, b, ..] = addr.0[0].to_ne_bytes();
    a == 0xfe && b & 0xc0 == 0x80
}
