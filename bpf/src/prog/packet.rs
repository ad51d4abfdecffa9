//! The packet view: Ethernet, IPv4 (RFC 791) or IPv6 (RFC 8200) with its extension headers, and what
//! tracking needs of TCP, UDP, SCTP and ICMP.

use super::headers;
use crate::Addr;
use crate::flow::FlowKey;
use aya_ebpf::programs::TcContext;

pub(super) const ETH_LEN: u32 = 14;
pub(super) const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
pub(super) const ETHERTYPE_IPV6: u16 = 0x86dd;

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMPV6: u8 = 58;
pub(super) const SCTP: u8 = 132;

/// A TCP header without options.
const TCP_LEN: u32 = 20;
/// Where the checksum is in a TCP header (RFC 9293 §3.1), and in a UDP header (RFC 768).
pub(super) const TCP_SUM: usize = 16;
pub(super) const UDP_SUM: usize = 6;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub(super) const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MAX_EXTENSIONS: u32 = 6;

pub(super) mod tcp_flag {
    pub(in crate::prog) const FIN: u8 = 0x01;
    pub(in crate::prog) const SYN: u8 = 0x02;
    pub(in crate::prog) const RST: u8 = 0x04;
    pub(in crate::prog) const ACK: u8 = 0x10;
}

/// What kind of frame it is.
pub(super) enum Parsed {
    Ip,
    Arp,
    Other,
    Malformed,
}

/// The headers of one packet. Ports are in network order.
#[derive(Default)]
pub(super) struct Packet {
    pub(super) source: Addr,
    pub(super) destination: Addr,
    /// As the packet arrived, before translation.
    pub(super) original_destination: Addr,
    pub(super) original_destination_port: u16,
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
    /// Offset of the transport header from the start of the frame.
    pub(super) l4: u32,
    pub(super) v6: bool,
    pub(super) proto: u8,
    pub(super) tcp_flags: u8,
    /// TTL or hop limit.
    pub(super) ttl: u8,
    /// ICMP type, for ICMP.
    pub(super) icmp_type: u8,
    /// The first fragment of several. One that is alone (RFC 6946) is an ordinary packet.
    pub(super) first_fragment: bool,
    /// A fragment other than the first: no transport header.
    pub(super) later_fragment: bool,
    /// The last fragment.
    last_fragment: bool,
    /// Place of a fragment in its datagram, in bytes.
    fragment_offset: u32,
    /// The identification of a fragment's datagram, in the order of the packet.
    pub(super) id: u32,
    /// Bytes of its datagram that a fragment has.
    fragment_length: u32,
    /// Offset of the first byte behind the IP packet; the frame may be padded.
    end: u32,
    /// The packet belongs to a flow. Its ports were read; those of an echo are its identifier, those of a protocol
    /// without ports are 0.
    pub(super) has_ports: bool,
    /// Read by [`headers`]: TCP or UDP right behind an IP header without options, both in the linear part.
    pub(super) plain: bool,
    /// The transport checksum as it arrived, of a plain packet.
    pub(super) checksum: u16,
}

/// Ethernet protocol number, host order.
#[inline(always)]
pub(super) fn ethertype(ctx: &TcContext) -> u16 {
    // SAFETY: the context is valid for the whole run.
    let raw = unsafe { (*ctx.skb.skb).protocol };
    u16::from_be(raw as u16)
}

impl Packet {
    /// Forgets the packet before.
    #[inline(always)]
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Reads the headers, whatever the view was of before; on anything but [`Parsed::Ip`] it is of no use.
    #[inline(never)]
    pub(super) fn parse(&mut self, ctx: &TcContext) -> Parsed {
        // SAFETY: the context is valid for the whole run.
        let tagged = unsafe { (*ctx.skb.skb).vlan_present } != 0;
        if !tagged && headers::read(ctx, self) {
            self.original_destination = self.destination;
            self.original_destination_port = self.destination_port;
            return Parsed::Ip;
        }
        self.clear();
        if tagged {
            return Parsed::Other;
        }
        let read = match ethertype(ctx) {
            ETHERTYPE_IPV4 => self.ipv4(ctx, ETH_LEN),
            ETHERTYPE_IPV6 => self.ipv6(ctx, ETH_LEN),
            ETHERTYPE_ARP => return Parsed::Arp,
            _ => return Parsed::Other,
        };
        if read.is_none() || self.transport(ctx).is_none() {
            return Parsed::Malformed;
        }
        self.original_destination = self.destination;
        self.original_destination_port = self.destination_port;
        Parsed::Ip
    }

    /// What a plain packet is, besides its addresses, ports and checksum. All else that is asked of one: to clear the
    /// whole view would cost each packet more than to read it.
    #[inline(always)]
    pub(super) fn now_plain(&mut self, v6: bool, proto: u8, ttl: u8, l4: usize) {
        self.v6 = v6;
        self.proto = proto;
        self.ttl = ttl;
        self.l4 = l4 as u32;
        self.icmp_type = 0;
        self.first_fragment = false;
        self.later_fragment = false;
        self.has_ports = true;
        self.plain = true;
    }

    /// Reads the packet that the ICMP error `error` quotes: of its transport header only what its flow is known by, which
    /// is in the eight bytes that must be there (RFC 792). True if it belongs to a flow.
    #[inline(never)]
    pub(super) fn parse_quoted(&mut self, ctx: &TcContext, error: &Self) -> bool {
        self.clear();
        let at = error.quoted_at();
        let read = if error.v6 { self.ipv6(ctx, at) } else { self.ipv4(ctx, at) };
        if read.is_none() || self.later_fragment && self.follows_its_first() {
            return false;
        }
        match self.proto {
            TCP | UDP | SCTP => {
                let Ok(ports) = ctx.load::<[u16; 2]>(self.l4 as usize) else { return false };
                self.ports(ports[0], ports[1]);
                true
            }
            ICMP | ICMPV6 => self.icmp(ctx).is_some() && self.has_ports,
            _ => {
                self.ports(0, 0);
                true
            }
        }
    }

    /// Reads the IPv4 header at `at`.
    #[inline(always)]
    fn ipv4(&mut self, ctx: &TcContext, at: u32) -> Option<()> {
        let header: [u32; 5] = ctx.load(at as usize).ok()?;
        let first = header[0].to_ne_bytes();
        let words = u32::from(first[0] & 0x0f);
        if first[0] >> 4 != 4 || words < 5 {
            return None;
        }
        let fragment = u32::from_be(header[1]) as u16;
        let third = header[2].to_ne_bytes();
        self.ttl = third[0];
        self.proto = third[1];
        self.source = Addr::from_v4_word(header[3]);
        self.destination = Addr::from_v4_word(header[4]);
        self.l4 = at + words * 4;
        self.end = at + (u32::from_be(header[0]) & 0xffff);
        // As it stands in the header, in the half that comes first.
        let [a, b, _, _] = header[1].to_ne_bytes();
        self.id = u32::from(u16::from_ne_bytes([a, b]));
        self.fragment(fragment & 0x1fff, fragment & 0x2000 != 0, self.l4)
    }

    /// Reads the IPv6 header at `at` and those that follow it up to the transport header.
    #[inline(always)]
    fn ipv6(&mut self, ctx: &TcContext, at: u32) -> Option<()> {
        let header: [u32; 10] = ctx.load(at as usize).ok()?;
        let first = header[0].to_ne_bytes();
        if first[0] >> 4 != 6 {
            return None;
        }
        let second = header[1].to_ne_bytes();
        self.end = at + 40 + u32::from(u16::from_be_bytes([second[0], second[1]]));
        let mut next = second[2];
        self.v6 = true;
        self.ttl = second[3];
        self.source = Addr([header[2], header[3], header[4], header[5]]);
        self.destination = Addr([header[6], header[7], header[8], header[9]]);
        // In our tables these stand for IPv4 hosts; on the wire for nobody (RFC 6890 §2.2.3).
        if self.source.is_v4() || self.destination.is_v4() {
            return None;
        }
        let mut offset = at + 40;
        for _ in 0..MAX_EXTENSIONS {
            match next {
                HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | FRAGMENT | AUTHENTICATION => {}
                _ => break,
            }
            let extension: [u8; 4] = ctx.load(offset as usize).ok()?;
            let length = match next {
                FRAGMENT => {
                    let place = u16::from_be_bytes([extension[2], extension[3]]);
                    self.id = ctx.load(offset as usize + 4).ok()?;
                    self.fragment(place >> 3, place & 1 != 0, offset + 8)?;
                    8
                }
                AUTHENTICATION => (u32::from(extension[1]) + 2) * 4,
                _ => (u32::from(extension[1]) + 1) * 8,
            };
            next = extension[0];
            offset += length;
            if self.later_fragment {
                break;
            }
        }
        self.proto = next;
        self.l4 = offset;
        Some(())
    }

    /// Notes which fragment it is, if it is one: `place` in units of eight bytes, `more` if another follows,
    /// and the offset of what it has of its datagram.
    #[inline(always)]
    fn fragment(&mut self, place: u16, more: bool, start: u32) -> Option<()> {
        self.later_fragment = place != 0;
        self.first_fragment = place == 0 && more;
        self.last_fragment = place != 0 && !more;
        self.fragment_offset = u32::from(place) * 8;
        self.fragment_length = self.end.wrapping_sub(start);
        if (place != 0 || more) && self.end <= start { None } else { Some(()) }
    }

    /// What a fragment adds to the bytes that its datagram is short of ([`crate::fragment::Datagram::missing`]).
    #[inline(always)]
    pub(super) fn missing(&self) -> u32 {
        let all = if self.last_fragment { self.fragment_offset + self.fragment_length } else { 0 };
        all.wrapping_sub(self.fragment_length)
    }

    #[inline(always)]
    fn transport(&mut self, ctx: &TcContext) -> Option<()> {
        if self.later_fragment {
            if !self.follows_its_first() {
                self.ports(0, 0);
            }
            // It would write over the header that was looked at in the first (RFC 3128).
            return if self.proto == TCP && self.fragment_offset < TCP_LEN { None } else { Some(()) };
        }
        if self.first_fragment && self.l4 + self.transport_length() > self.end {
            // What is to be looked at would be in another fragment (RFC 1858).
            return None;
        }
        match self.proto {
            TCP => {
                let ports: [u16; 2] = ctx.load(self.l4 as usize).ok()?;
                self.tcp_flags = ctx.load(self.l4 as usize + 13).ok()?;
                self.ports(ports[0], ports[1]);
            }
            UDP | SCTP => {
                let ports: [u16; 2] = ctx.load(self.l4 as usize).ok()?;
                self.ports(ports[0], ports[1]);
            }
            ICMP | ICMPV6 => self.icmp(ctx)?,
            _ => self.ports(0, 0),
        }
        Some(())
    }

    /// Reads type and, of an echo, identifier.
    #[inline(always)]
    fn icmp(&mut self, ctx: &TcContext) -> Option<()> {
        let header: [u16; 4] = ctx.load(self.l4 as usize).ok()?;
        self.icmp_type = header[0].to_ne_bytes()[0];
        let echo = match self.proto {
            ICMP => matches!(self.icmp_type, 0 | 8),
            _ => matches!(self.icmp_type, 128 | 129),
        };
        if echo {
            self.ports(header[2], header[2]);
        }
        Some(())
    }

    /// How much of the transport header the first fragment must have.
    #[inline(always)]
    fn transport_length(&self) -> u32 {
        match self.proto {
            TCP => TCP_LEN,
            SCTP => 12,
            UDP | ICMP | ICMPV6 => 8,
            _ => 0,
        }
    }

    /// A fragment of something that is tracked by what only the first one has. Behind the header of an IPv6
    /// fragment that is a later one there may be any.
    #[inline(always)]
    pub(super) fn follows_its_first(&self) -> bool {
        let tracked = matches!(self.proto, TCP | UDP | SCTP | ICMP | ICMPV6);
        let extension =
            self.v6 && matches!(self.proto, HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION_OPTIONS);
        self.first_fragment && tracked || self.later_fragment && (tracked || extension)
    }

    #[inline(always)]
    fn ports(&mut self, source: u16, destination: u16) {
        self.source_port = source;
        self.destination_port = destination;
        self.has_ports = true;
    }

    /// Writes the flow's key; true if the packet comes from its higher end.
    #[inline(always)]
    pub(super) fn fill_key(&self, key: &mut FlowKey) -> bool {
        key.set((&self.source, self.source_port), (&self.destination, self.destination_port), self.proto)
    }

    /// An ICMP error (RFC 792, RFC 4443 §3): it quotes the packet that it is about.
    #[inline(always)]
    pub(super) fn is_icmp_error(&self) -> bool {
        match (self.proto, self.v6) {
            (ICMP, false) => matches!(self.icmp_type, 3 | 11 | 12),
            (ICMPV6, true) => matches!(self.icmp_type, 1..=4),
            _ => false,
        }
    }

    /// Where the packet that an ICMP error quotes begins.
    #[inline(always)]
    pub(super) const fn quoted_at(&self) -> u32 {
        self.l4 + 8
    }

    /// A TCP packet that opens a connection.
    #[inline(always)]
    pub(super) fn opens(&self) -> bool {
        self.proto == TCP && self.tcp_flags & (tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST) == tcp_flag::SYN
    }
}
