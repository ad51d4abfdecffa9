//! Datagrams in fragments, made and put together by hand; and packet sockets that catch what a program sends
//! on.

use super::frames::{Seen, read, udp_with};
use super::rig::Rig;
use crate::datapath::test_run::Ran;
use aya::maps::{Array, HashMap, Map, MapData};
use netd_bpf::fragment::{Datagram, FragmentKey, HELD_GROUPS, HELD_SLOTS, HeldFrame, HeldRing, tag};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, setsockopt, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, OwnedFd};

const ETH: usize = 14;
/// Next header of IPv6: a fragment header (RFC 8200 §4.5).
const FRAGMENT: u8 = 44;

/// A frame's IP packet cut into fragments with `size` bytes each, a multiple of eight, behind the IP header.
pub(super) fn cut(frame: &[u8], id: u32, size: usize) -> Vec<Vec<u8>> {
    assert!(size.is_multiple_of(8), "fragments begin at multiples of eight bytes");
    let v6 = frame[ETH] >> 4 == 6;
    let body = &frame[ETH + if v6 { 40 } else { 20 }..];
    let count = body.len().div_ceil(size);
    let piece = |(n, part): (usize, &[u8])| fragment(frame, id, (n * size, n + 1 < count), part);
    body.chunks(size).enumerate().map(piece).collect()
}

/// One fragment of a datagram with the headers of `frame`: its offset in bytes, whether more follow, and what
/// is in it.
pub(super) fn fragment(frame: &[u8], id: u32, (offset, more): (usize, bool), part: &[u8]) -> Vec<u8> {
    let offset = u16::try_from(offset).expect("a datagram's");
    let length = |bytes: usize| u16::try_from(bytes).expect("a packet's").to_be_bytes();
    if frame[ETH] >> 4 == 6 {
        let mut out = frame[..ETH + 40].to_vec();
        out[ETH + 4..ETH + 6].copy_from_slice(&length(8 + part.len()));
        let next = std::mem::replace(&mut out[ETH + 6], FRAGMENT);
        out.extend([next, 0]);
        out.extend((offset | u16::from(more)).to_be_bytes());
        out.extend(id.to_be_bytes());
        out.extend(part);
        return out;
    }
    let mut out = frame[..ETH + 20].to_vec();
    out[ETH + 2..ETH + 4].copy_from_slice(&length(20 + part.len()));
    out[ETH + 4..ETH + 6].copy_from_slice(&u16::try_from(id).expect("16 bits").to_be_bytes());
    out[ETH + 6..ETH + 8].copy_from_slice(&((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
    out[ETH + 10..ETH + 12].copy_from_slice(&[0, 0]);
    let sum: u32 = out[ETH..].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("ten words carry once");
    out[ETH + 10..ETH + 12].copy_from_slice(&sum.to_be_bytes());
    out.extend(part);
    out
}

/// Puts a datagram together as its receiver would, in any order; what it says, and its payload. Every
/// checksum is verified.
pub(super) fn whole(fragments: &[Vec<u8>]) -> (Seen, Vec<u8>) {
    let first = &fragments[0];
    let v6 = first[ETH] >> 4 == 6;
    let header = ETH + if v6 { 40 } else { 20 };
    let mut parts = BTreeMap::new();
    let mut end = None;
    for fragment in fragments {
        let (offset, more, part) = if v6 {
            assert_eq!(fragment[ETH + 8..ETH + 40], first[ETH + 8..ETH + 40], "addresses");
            assert_eq!(fragment[ETH + 6], FRAGMENT);
            let place = u16::from_be_bytes([fragment[header + 2], fragment[header + 3]]);
            (place & 0xfff8, place & 1 != 0, &fragment[header + 8..])
        } else {
            assert_eq!(fragment[ETH + 12..ETH + 20], first[ETH + 12..ETH + 20], "addresses");
            let ip = etherparse::Ipv4Header::from_slice(&fragment[ETH..]).expect("a header").0;
            assert_eq!(ip.header_checksum, ip.calc_header_checksum(), "IPv4 header checksum");
            (ip.fragment_offset.value() * 8, ip.more_fragments, &fragment[header..])
        };
        if !more {
            end = Some(usize::from(offset) + part.len());
        }
        assert!(parts.insert(usize::from(offset), part).is_none(), "a fragment came twice");
    }
    let mut body = Vec::new();
    for (offset, part) in parts {
        assert_eq!(offset, body.len(), "a hole");
        body.extend_from_slice(part);
    }
    assert_eq!(Some(body.len()), end, "the end is missing");
    // As if it had come in one packet.
    let mut frame = fragment(first, 0, (0, false), &body);
    if v6 {
        let next = fragments[0][header];
        frame = first[..header].to_vec();
        frame[ETH + 6] = next;
        frame[ETH + 4..ETH + 6].copy_from_slice(&u16::try_from(body.len()).expect("few").to_be_bytes());
        frame.extend(&body);
    }
    (read(&frame), body.split_off(8))
}

pub(super) const OK: i32 = 0;
pub(super) const SHOT: i32 = 2;
pub(super) const STOLEN: i32 = 4;
pub(super) const REDIRECT: i32 = 7;

/// Client, Service, first of its backends: .1, .2, .3.
pub(super) const WAYS: [(&str, &str, &str); 2] = [
    ("10.0.0.1:1000", "10.96.0.1:80", "10.1.0.1:8080"),
    ("[fd00::1]:1000", "[fd96::1]:80", "[fd01::1]:8080"),
];

pub(super) fn ip(socket: &str) -> &str {
    socket.rsplit_once(':').expect("a port").0.trim_matches(['[', ']'])
}

/// Four fragments with 480 bytes each but the last, and what is in them.
pub(super) fn datagram(from: &str, to: &str, id: u32) -> (Vec<Vec<u8>>, Vec<u8>) {
    let payload: Vec<u8> = (0..1800_u32).map(|n| (n * 7 + id).to_le_bytes()[0]).collect();
    let pieces = cut(&udp_with(from, to, &payload), id, 480);
    assert_eq!(pieces.len(), 4);
    (pieces, payload)
}

/// A Service with three backends, of which the first is chosen.
pub(super) fn service(rig: &Rig, vip: &str, backend: &str, proto: u8) {
    let others = [1, 2, 3].map(|n| format!("{}{n}", ip(backend).trim_end_matches('1')));
    let backends: Vec<(&str, u16)> = others.iter().map(|ip| (ip.as_str(), 8080)).collect();
    rig.service(ip(vip), 80, proto, &backends);
}

/// None of them dropped or held; as they came out.
pub(super) fn delivered(ran: impl IntoIterator<Item = Ran>) -> Vec<Vec<u8>> {
    let whole = ran.into_iter().map(|ran| {
        assert!([OK, REDIRECT].contains(&ran.verdict), "verdict {}", ran.verdict);
        ran.packet
    });
    whole.collect()
}

pub(super) fn held_so_far(rig: &Rig) -> u64 {
    let counts = rig.datapath.path_counts().unwrap();
    counts.iter().find(|(name, _)| *name == "held").expect("a path").1.packets
}

pub(super) fn map(rig: &Rig, name: &str) -> Map {
    let path = rig.folder.config().bpffs.join(format!("v{}/maps/{name}", netd_bpf::SCHEMA));
    Map::from_map_data(MapData::from_pin(path).unwrap()).unwrap()
}

pub(super) fn datagrams(rig: &Rig) -> HashMap<MapData, FragmentKey, Datagram> {
    map(rig, "FRAGMENTS").try_into().unwrap()
}

pub(super) fn held_frames(rig: &Rig) -> Array<MapData, HeldFrame> {
    map(rig, "HELD_FRAMES").try_into().unwrap()
}

/// Slots that are taken.
pub(super) fn taken(rig: &Rig) -> Vec<u32> {
    let rings: Array<MapData, HeldRing> = map(rig, "HELD").try_into().unwrap();
    let mut slots = Vec::new();
    for group in 0..HELD_GROUPS {
        let ring = rings.get(&group, 0).unwrap();
        let busy = (group * HELD_SLOTS..).zip(ring.tags).filter(|(_, held)| *held != tag::FREE);
        slots.extend(busy.map(|(slot, _)| slot));
    }
    slots
}

/// A packet socket on an interface of this thread's network namespace.
pub(super) struct Tap {
    socket: OwnedFd,
    device: LinkAddr,
}

impl Tap {
    /// From now on it keeps the frames of `ifname`.
    pub(super) fn open(ifname: &str) -> Self {
        let socket = nix::sys::socket::socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::empty(),
            SockProtocol::EthAll,
        )
        .expect("a packet socket");
        setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20)).expect("a buffer");
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(20)).expect("a time-out");
        let device = nix::ifaddrs::getifaddrs()
            .expect("interfaces")
            .filter(|interface| interface.interface_name == ifname)
            .find_map(|interface| interface.address?.as_link_addr().copied())
            .expect("an interface");
        nix::sys::socket::bind(socket.as_raw_fd(), &device).expect("bound");
        Self { socket, device }
    }

    pub(super) fn send(&self, frame: &[u8]) {
        let sent = nix::sys::socket::sendto(self.socket.as_raw_fd(), frame, &self.device, MsgFlags::empty())
            .expect("sent");
        assert_eq!(sent, frame.len());
    }

    /// The next fragment that comes in; what else is on the wire is passed over.
    pub(super) fn next(&self) -> Vec<u8> {
        loop {
            let mut bytes = vec![0; 1 << 14];
            let (length, from) = nix::sys::socket::recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut bytes)
                .expect("a frame in time");
            bytes.truncate(length);
            let outgoing = from.is_some_and(|from| from.pkttype() == libc::PACKET_OUTGOING);
            if !outgoing && is_fragment(&bytes) {
                return bytes;
            }
        }
    }

    pub(super) fn take(&self, count: usize) -> Vec<Vec<u8>> {
        (0..count).map(|_| self.next()).collect()
    }
}

fn is_fragment(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame[ETH + 6] & 0x3f != 0 || frame[ETH + 7] != 0,
        Some([0x86, 0xdd]) => frame[ETH + 6] == FRAGMENT,
        _ => false,
    }
}
