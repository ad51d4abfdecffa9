//! TCP segments over IPv4 as a pod sends them.

use anyhow::Result;
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use std::net::SocketAddrV4;

/// `TC_ACT_REDIRECT`: to a pod of this node.
pub(super) const REDIRECTED: i32 = 7;

/// Bits of a TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    Syn,
    SynAck,
    Ack,
    Data,
}

/// A segment, with an Ethernet header.
pub(super) fn frame(source: SocketAddrV4, destination: SocketAddrV4, segment: Segment) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 1, 0, 0], [2, 0x6e, 0x65, 0x74, 0x64, 1])
        .ipv4(source.ip().octets(), destination.ip().octets(), 64)
        .tcp(source.port(), destination.port(), 1000, 64_000);
    let (builder, payload): (_, &[u8]) = match segment {
        Segment::Syn => (builder.syn(), b""),
        Segment::SynAck => (builder.syn().ack(1001), b""),
        Segment::Ack => (builder.ack(1001), b""),
        Segment::Data => (builder.ack(1001).psh(), b"sixteen bytes..."),
    };
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload)?;
    Ok(frame)
}

/// Source and destination of a TCP segment.
pub(super) fn ends(frame: &[u8]) -> Result<(SocketAddrV4, SocketAddrV4)> {
    let sliced = SlicedPacket::from_ethernet(frame)?;
    match (sliced.net, sliced.transport) {
        (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) => {
            let header = ip.header();
            Ok((
                SocketAddrV4::new(header.source_addr(), tcp.source_port()),
                SocketAddrV4::new(header.destination_addr(), tcp.destination_port()),
            ))
        }
        _ => anyhow::bail!("not TCP over IPv4"),
    }
}
