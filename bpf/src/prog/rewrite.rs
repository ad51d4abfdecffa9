//! Header rewriting. Checksums are adjusted, never recomputed, so that offloads and GSO packets keep
//! working; a UDP checksum of zero stays zero. The transport checksum is the kernel's helper's, which knows
//! how far a packet is summed; all else is written straight into the buffer. Where a network card has summed the whole packet
//! (`CHECKSUM_COMPLETE`) that sum follows: an IPv4 header sums up to zero before and after, an IPv6 header
//! has no checksum of its own, and what is stored in it must be told.

use super::from_code;
use super::packet::{ETH_LEN, Packet, TCP, TCP_SUM, UDP, UDP_SUM};
use super::sum::{Difference, same_sum};
use crate::Addr;
use crate::event::reason;
use crate::fragment::Datagram;
use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::generated::bpf_csum_update;
use aya_ebpf::programs::TcContext;
use core::ptr::{read_unaligned, write_unaligned};

const L2: usize = ETH_LEN as usize;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;

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

impl Translation {
    /// Address and port of the source, and of the destination.
    #[inline(always)]
    pub(super) fn ends(&self) -> ((&Addr, u16), (&Addr, u16)) {
        let (service, client) = ((&self.addr, self.port), (&self.other_addr, self.other_port));
        match self.end {
            End::Source => (service, client),
            End::Destination => (client, service),
        }
    }
}

/// What the checksums change by.
#[derive(Clone, Copy)]
struct Change {
    addresses: Difference,
    /// None if the ports stay.
    ports: Option<Difference>,
}

/// Translates both ends of the packet; the view follows.
#[inline(always)]
pub(super) fn translate(ctx: &TcContext, packet: &mut Packet, to: &Translation) -> Result<(), u8> {
    from_code(both_ends(ctx, packet, to))
}

/// Does to a later fragment what was done to the first one of its datagram. The ports are in that, and so is
/// the checksum that covers the addresses of all.
#[inline(always)]
pub(super) fn follow(ctx: &TcContext, packet: &mut Packet, first: &Datagram) -> Result<(), u8> {
    let addresses = Difference::none().address(&packet.source, &first.source, packet.v6).address(
        &packet.destination,
        &first.destination,
        packet.v6,
    );
    packet.source = first.source;
    packet.destination = first.destination;
    packet.source_port = first.new_ports[0];
    packet.destination_port = first.new_ports[1];
    write(ctx, packet, Change { addresses, ports: None }).map_err(|()| reason::REWRITE_FAILED)
}

/// Gives [`super::to_code`].
#[inline(never)]
fn both_ends(ctx: &TcContext, packet: &mut Packet, to: &Translation) -> u8 {
    let ((source, source_port), (destination, destination_port)) = to.ends();
    let addresses = Difference::none().address(&packet.source, source, packet.v6).address(
        &packet.destination,
        destination,
        packet.v6,
    );
    let ports = Difference::none()
        .half(packet.source_port, source_port)
        .half(packet.destination_port, destination_port);
    let same = packet.source_port == source_port && packet.destination_port == destination_port;
    let change = Change { addresses, ports: if same { None } else { Some(ports) } };
    if transport(ctx, packet, change).is_err() {
        return reason::REWRITE_FAILED;
    }
    packet.source = *source;
    packet.destination = *destination;
    packet.source_port = source_port;
    packet.destination_port = destination_port;
    if write(ctx, packet, change).is_err() { reason::REWRITE_FAILED } else { 0 }
}

/// Gives a packet without ports other addresses; the view follows. Gives what changed, for a checksum in its
/// payload that has them in it.
#[inline(always)]
pub(super) fn addresses(
    ctx: &TcContext,
    packet: &mut Packet,
    source: &Addr,
    destination: &Addr,
) -> Result<Difference, ()> {
    let difference = Difference::none().address(&packet.source, source, packet.v6).address(
        &packet.destination,
        destination,
        packet.v6,
    );
    packet.source = *source;
    packet.destination = *destination;
    write(ctx, packet, Change { addresses: difference, ports: None }).map(|()| difference)
}

/// The transport checksum, as far as it covers the addresses. A packet whose sum the device will finish
/// (`CHECKSUM_PARTIAL`) has those in it already, but not yet the ports: so they are told apart.
#[inline(always)]
fn transport(ctx: &TcContext, packet: &Packet, change: Change) -> Result<(), ()> {
    let Some((checksum, mangled)) = checksum(packet) else {
        // SCTP's checksum covers its ports and no address (RFC 9260 §6.8): only addresses can change.
        return if change.ports.is_none() { Ok(()) } else { Err(()) };
    };
    // Without a checksum nothing in the datagram makes up for other ports, and the helper does nothing.
    if let Some(ports) = change.ports
        && packet.proto == UDP
        && no_sum(ctx, packet)
    {
        sum_changed(ctx, ports);
        return Ok(());
    }
    let flags = u64::from(BPF_F_PSEUDO_HDR) | mangled;
    ctx.l4_csum_replace(checksum, 0, change.addresses.folded(), flags).map_err(drop)
}

/// Where the transport checksum is, if it covers addresses, and how the kernel is to be told of one that may be none.
#[inline(always)]
fn checksum(packet: &Packet) -> Option<(usize, u64)> {
    match packet.proto {
        TCP => Some((packet.l4 as usize + TCP_SUM, 0)),
        UDP => Some((packet.l4 as usize + UDP_SUM, u64::from(BPF_F_MARK_MANGLED_0))),
        _ => None,
    }
}

/// A UDP datagram without a checksum (RFC 768).
#[inline(always)]
fn no_sum(ctx: &TcContext, packet: &Packet) -> bool {
    if packet.plain {
        return packet.checksum == 0;
    }
    ctx.load::<u16>(packet.l4 as usize + UDP_SUM) == Ok(0)
}

/// Writes addresses and ports as the view has them; the transport checksum covers the addresses already, and follows
/// the ports by what these change, if they do.
#[inline(always)]
fn write(ctx: &TcContext, packet: &Packet, change: Change) -> Result<(), ()> {
    let Some(start) = writable(ctx, packet.v6) else { return Err(()) };
    // SAFETY: `writable` compared the end of the headers with that of the buffer.
    let ports_too = unsafe {
        if packet.v6 {
            put_address(start, L2 + 8, &packet.source);
            put_address(start, L2 + 24, &packet.destination);
            plain_ports(ctx, start + L2 + IPV6_LEN, packet, change)
        } else {
            put(start, L2 + 12, packet.source.v4_word());
            put(start, L2 + 16, packet.destination.v4_word());
            let field: u16 = get(start, L2 + 10);
            put(start, L2 + 10, change.addresses.apply(field));
            plain_ports(ctx, start + L2 + IPV4_LEN, packet, change)
        }
    };
    if packet.v6 {
        sum_changed(ctx, change.addresses);
    }
    let Some(ports) = change.ports.filter(|_| !ports_too) else { return Ok(()) };
    if let Some((checksum, mangled)) = checksum(packet) {
        ctx.l4_csum_replace(checksum, 0, ports.folded(), mangled).map_err(drop)?;
    }
    ctx.store(packet.l4 as usize, &[packet.source_port, packet.destination_port], 0).map_err(drop)
}

/// Writes the ports of a plain packet, whose transport header is at `l4`, if they change, and its checksum, which
/// covers the new addresses already; false if nothing was written.
///
/// A call of the kernel's helper for the ports costs as much as all the rest. It would do nothing where a
/// device is to finish the sum. Whether one is, shows in what the helper did for the addresses: it subtracts from a
/// checksum, and adds to a sum that is not finished. The two differ unless addresses change the sum by nothing. A
/// checksum that is none (zero, of UDP) it leaves as it is, which is no subtraction either.
#[inline(always)]
fn plain_ports(ctx: &TcContext, l4: usize, packet: &Packet, change: Change) -> bool {
    let Some(ports) = change.ports else { return false };
    if !packet.plain || change.addresses.is_nothing() {
        return false;
    }
    let subtracted = change.addresses.apply(packet.checksum);
    // By itself for each: the verifier knows no offset that is one of two.
    match packet.proto {
        TCP => ports_at::<20, TCP_SUM>(ctx, l4, packet, ports, subtracted),
        _ => ports_at::<8, UDP_SUM>(ctx, l4, packet, ports, subtracted),
    }
}

/// [`plain_ports`] of a header of `LENGTH` bytes that has its checksum at `SUM`, which is `subtracted` if it is
/// finished.
#[inline(always)]
fn ports_at<const LENGTH: usize, const SUM: usize>(
    ctx: &TcContext,
    l4: usize,
    packet: &Packet,
    ports: Difference,
    subtracted: u16,
) -> bool {
    if l4 + LENGTH > ctx.data_end() {
        return false;
    }
    // SAFETY: compared above.
    unsafe {
        put(l4, 0, packet.source_port);
        put(l4, 2, packet.destination_port);
        let sum: u16 = get(l4, SUM);
        if same_sum(sum, subtracted) {
            let sum = ports.apply(sum);
            // Zero would say that there is no checksum; in one's complement both are zero.
            put(l4, SUM, if packet.proto == UDP && sum == 0 { 0xffff } else { sum });
        }
    }
    true
}

/// The start of the frame, once its network header, which may be all there is of it, is in the linear part
/// and may be written.
#[inline(always)]
fn writable(ctx: &TcContext, v6: bool) -> Option<usize> {
    let length = if v6 { L2 + IPV6_LEN } else { L2 + IPV4_LEN };
    if ctx.data() + length > ctx.data_end() {
        ctx.pull_data(length as u32).ok()?;
    }
    let start = ctx.data();
    if v6 && start + L2 + IPV6_LEN <= ctx.data_end() || !v6 && start + L2 + IPV4_LEN <= ctx.data_end() {
        return Some(start);
    }
    None
}

/// Tells the sum that a network card took of the whole packet (`CHECKSUM_COMPLETE`), if there is one.
#[inline(always)]
fn sum_changed(ctx: &TcContext, by: Difference) {
    // SAFETY: the context is valid for the whole run. An error says that there is no such sum.
    unsafe { bpf_csum_update(ctx.skb.skb, by.folded() as u32) };
}

/// Stores a value at an offset behind the link header, wherever in the buffer that is; the sum of the whole
/// packet, where a network card made one, follows.
#[inline(always)]
pub(super) fn store<T>(ctx: &TcContext, at: u32, value: &T) -> Result<(), ()> {
    ctx.store(at as usize, value, u64::from(BPF_F_RECOMPUTE_CSUM)).map_err(drop)
}

/// Takes one off the TTL (RFC 791) or hop limit (RFC 8200), which the caller knows to be above 1.
#[inline(always)]
pub(super) fn decrement_ttl(ctx: &TcContext, packet: &Packet) -> Result<(), u8> {
    let new = packet.ttl - 1;
    let Some(start) = writable(ctx, packet.v6) else { return Err(reason::REWRITE_FAILED) };
    // SAFETY: as in `write`.
    unsafe {
        if packet.v6 {
            let old: u16 = get(start, L2 + 6);
            put(start, L2 + 7, new);
            let now: u16 = get(start, L2 + 6);
            sum_changed(ctx, Difference::none().half(old, now));
        } else {
            let old: u16 = get(start, L2 + 8);
            put(start, L2 + 8, new);
            let now: u16 = get(start, L2 + 8);
            let field: u16 = get(start, L2 + 10);
            put(start, L2 + 10, Difference::none().half(old, now).apply(field));
        }
    }
    Ok(())
}

/// Writes both MAC addresses: destination first.
#[inline(always)]
pub(super) fn link(ctx: &TcContext, destination: &[u8; 6], source: &[u8; 6]) -> Result<(), u8> {
    let start = ctx.data();
    if start + L2 > ctx.data_end() {
        return Err(reason::REWRITE_FAILED);
    }
    // SAFETY: compared above.
    unsafe {
        put(start, 0, *destination);
        put(start, 6, *source);
    }
    Ok(())
}

/// Word by word, not in a loop: one that the compiler leaves standing, Linux 6.1 may refuse (a back-edge).
#[inline(always)]
unsafe fn put_address(start: usize, offset: usize, addr: &Addr) {
    let [a, b, c, d] = addr.0;
    // SAFETY: the caller compared the end of the field with the end of the buffer.
    unsafe {
        put(start, offset, a);
        put(start, offset + 4, b);
        put(start, offset + 8, c);
        put(start, offset + 12, d);
    }
}

#[inline(always)]
unsafe fn put<T>(start: usize, offset: usize, value: T) {
    // SAFETY: the caller compared the end of the field with the end of the buffer.
    unsafe { write_unaligned((start + offset) as *mut T, value) }
}

#[inline(always)]
unsafe fn get<T>(start: usize, offset: usize) -> T {
    // SAFETY: as above.
    unsafe { read_unaligned((start + offset) as *const T) }
}
