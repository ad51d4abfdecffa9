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
    builder.write(&mut frame, b"payload").expect("a vector takes all");
    frame
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
