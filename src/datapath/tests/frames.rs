//! Made frames, and what can be read off them again.

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use netd_bpf::Addr;
use std::net::{IpAddr, SocketAddr};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// TCP flags of a made segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    Syn,
    SynAck,
    Ack,
    Fin,
    Rst,
}

pub(crate) fn addr(text: &str) -> Addr {
    text.parse::<IpAddr>().expect("a literal").into()
}

fn network(
    source: SocketAddr,
    destination: SocketAddr,
) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0; 6]);
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => link.ipv4(s.octets(), d.octets(), 64),
        (IpAddr::V6(s), IpAddr::V6(d)) => link.ipv6(s.octets(), d.octets(), 64),
        _ => panic!("two families"),
    }
}

pub(crate) fn tcp(source: &str, destination: &str, segment: Segment) -> Vec<u8> {
    tcp_with(source, destination, segment, b"payload")
}

fn tcp_with(source: &str, destination: &str, segment: Segment, payload: &[u8]) -> Vec<u8> {
    let (source, destination): (SocketAddr, SocketAddr) =
        (source.parse().expect("a literal"), destination.parse().expect("a literal"));
    let builder = network(source, destination).tcp(source.port(), destination.port(), 1000, 64_000);
    let builder = match segment {
        Segment::Syn => builder.syn(),
        Segment::SynAck => builder.syn().ack(1),
        Segment::Ack => builder.ack(1),
        Segment::Fin => builder.fin().ack(1),
        Segment::Rst => builder.rst(),
    };
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).expect("a vector takes all");
    frame
}

/// A segment of so many bytes of payload.
pub(super) fn long_tcp(source: &str, destination: &str, payload: usize) -> Vec<u8> {
    tcp_with(source, destination, Segment::Ack, &vec![7; payload])
}

pub(crate) fn udp(source: &str, destination: &str) -> Vec<u8> {
    udp_with(source, destination, b"payload")
}

pub(crate) fn udp_with(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
    let (source, destination): (SocketAddr, SocketAddr) =
        (source.parse().expect("a literal"), destination.parse().expect("a literal"));
    let mut frame = Vec::new();
    network(source, destination)
        .udp(source.port(), destination.port())
        .write(&mut frame, payload)
        .expect("a vector takes all");
    frame
}

/// A UDP datagram of so many bytes of payload.
pub(super) fn long_udp(source: &str, destination: &str, payload: usize) -> Vec<u8> {
    let (source, destination): (SocketAddr, SocketAddr) =
        (source.parse().expect("a literal"), destination.parse().expect("a literal"));
    let payload: Vec<u8> = (0..payload).map(|at| (at * 7 % 251).to_le_bytes()[0]).collect();
    let mut frame = Vec::new();
    network(source, destination)
        .udp(source.port(), destination.port())
        .write(&mut frame, &payload)
        .expect("a vector takes all");
    frame
}

/// A packet of a protocol without a builder; ports, if it has any, are the payload's first words.
pub(crate) fn raw(source: &str, destination: &str, proto: u8, payload: &[u8]) -> Vec<u8> {
    let literal = |text: &str| SocketAddr::new(text.parse::<IpAddr>().expect("a literal"), 0);
    let mut frame = Vec::new();
    network(literal(source), literal(destination))
        .write(&mut frame, etherparse::IpNumber(proto), payload)
        .expect("a vector takes all");
    frame
}

/// An ICMP error.
#[derive(Clone, Copy, Debug)]
pub(super) struct IcmpError {
    /// Type and code of ICMP, and those of ICMPv6.
    pub(super) kind: [(u8, u8); 2],
    /// What follows the checksum.
    pub(super) rest: [u8; 4],
}

/// "Port unreachable".
pub(super) const UNREACHABLE: IcmpError = IcmpError { kind: [(3, 3), (1, 4)], rest: [0; 4] };
/// "Fragmentation needed" and "packet too big", with an MTU of 1400.
pub(super) const TOO_BIG: IcmpError = IcmpError { kind: [(3, 4), (2, 0)], rest: [0, 0, 5, 0x78] };
/// "Time exceeded" in transit.
pub(super) const EXCEEDED: IcmpError = IcmpError { kind: [(11, 0), (3, 0)], rest: [0; 4] };
/// "Parameter problem".
pub(super) const PROBLEM: IcmpError = IcmpError { kind: [(12, 0), (4, 1)], rest: [0, 0, 0, 6] };

impl IcmpError {
    /// Its frame, which quotes a packet from its IP header on.
    pub(super) fn frame(self, source: &str, destination: &str, ttl: u8, quoted: &[u8]) -> Vec<u8> {
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0; 6]);
        let [(kind, code), (kind6, code6)] = self.kind;
        let mut frame = Vec::new();
        let address = |text: &str| text.parse::<IpAddr>().expect("a literal");
        match (address(source), address(destination)) {
            (IpAddr::V4(from), IpAddr::V4(to)) => link
                .ipv4(from.octets(), to.octets(), ttl)
                .icmpv4_raw(kind, code, self.rest)
                .write(&mut frame, quoted),
            (IpAddr::V6(from), IpAddr::V6(to)) => link
                .ipv6(from.octets(), to.octets(), ttl)
                .icmpv6_raw(kind6, code6, self.rest)
                .write(&mut frame, quoted),
            _ => panic!("two families"),
        }
        .expect("a vector takes all");
        frame
    }
}

/// A frame from its IP header on.
pub(super) fn packet(frame: &[u8]) -> &[u8] {
    frame.get(14..).expect("a link header")
}

/// The address of a socket.
pub(super) fn ip(socket: &str) -> &str {
    socket.rsplit_once(':').expect("a port").0.trim_matches(['[', ']'])
}

/// What a frame says, with all its checksums verified by an implementation that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) ttl: u8,
}

pub(crate) fn read(frame: &[u8]) -> Seen {
    let sliced = SlicedPacket::from_ethernet(frame).expect("a whole frame");
    let transport = sliced.transport.as_ref().expect("a transport header");
    let (source_ip, destination_ip, ttl): (IpAddr, IpAddr, u8) =
        match sliced.net.as_ref().expect("an IP packet") {
            NetSlice::Ipv4(ip) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 header checksum");
                (header.source.into(), header.destination.into(), header.time_to_live)
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                (header.source_addr().into(), header.destination_addr().into(), header.hop_limit())
            }
            other => panic!("not IP: {other:?}"),
        };
    let (source_port, destination_port) = match transport {
        TransportSlice::Tcp(tcp) => {
            let sum = match (source_ip, destination_ip) {
                (IpAddr::V4(s), IpAddr::V4(d)) => tcp.calc_checksum_ipv4(s.octets(), d.octets()),
                (IpAddr::V6(s), IpAddr::V6(d)) => tcp.calc_checksum_ipv6(s.octets(), d.octets()),
                _ => unreachable!("one packet has one family"),
            };
            assert_eq!(tcp.checksum(), sum.expect("a short packet"), "TCP checksum");
            (tcp.source_port(), tcp.destination_port())
        }
        TransportSlice::Udp(udp) => {
            if udp.checksum() != 0 {
                let header = udp.to_header();
                let sum = match (source_ip, destination_ip) {
                    (IpAddr::V4(s), IpAddr::V4(d)) => {
                        header.calc_checksum_ipv4_raw(s.octets(), d.octets(), udp.payload())
                    }
                    (IpAddr::V6(s), IpAddr::V6(d)) => {
                        header.calc_checksum_ipv6_raw(s.octets(), d.octets(), udp.payload())
                    }
                    _ => unreachable!("one packet has one family"),
                };
                assert_eq!(udp.checksum(), sum.expect("a short packet"), "UDP checksum");
            }
            (udp.source_port(), udp.destination_port())
        }
        other => panic!("neither TCP nor UDP: {other:?}"),
    };
    Seen {
        source: SocketAddr::new(source_ip, source_port),
        destination: SocketAddr::new(destination_ip, destination_port),
        ttl,
    }
}
