//! Services without endpoints: what a pod gets back at once.

use super::frames::{Segment, TCP, UDP, UNREACHABLE, ip, long_udp, packet, raw, read, tcp, udp};
use super::rig::{IFINDEX, Rig, SERVICE, isolated};
use crate::datapath::test_run::{Ran, Stage};
use etherparse::{NetSlice, SlicedPacket, TcpSlice, TransportSlice};
use netd_bpf::event::{path, reason, stage};
use netd_bpf::service::kind;
use std::time::{Duration, Instant};

const SHOT: i32 = 2;
const REDIRECT: i32 = 7;
const SCTP: u8 = 132;

/// Client and empty Service.
const PAIRS: [(&str, &str); 2] = [("10.0.0.1:1000", "10.96.0.1:80"), ("[fd00::1]:1000", "[fd96::1]:80")];

fn empty(rig: &Rig) {
    for (_, vip) in PAIRS {
        for proto in [TCP, UDP, SCTP] {
            rig.frontend(ip(vip), 80, proto, kind::BALANCE, 0);
        }
    }
}

fn rejected(rig: &Rig) -> u64 {
    rig.datapath.path_counts().unwrap()[path::REJECT as usize].1.packets
}

fn segment(frame: &[u8]) -> TcpSlice<'_> {
    match SlicedPacket::from_ethernet(frame).unwrap().transport {
        Some(TransportSlice::Tcp(tcp)) => tcp,
        other => panic!("no TCP: {other:?}"),
    }
}

/// The answer came from the Service, whole, and goes to the pod.
fn assert_back(ran: &Ran, client: &str, vip: &str) {
    assert_eq!(ran.verdict, REDIRECT);
    let seen = read(&ran.packet);
    assert_eq!((seen.source.to_string(), seen.destination.to_string()), (vip.into(), client.into()));
    assert_eq!(seen.ttl, 64);
    assert_eq!(ran.packet[..12], [2, 0, 0, 0, 1, 1, 2, 0x6e, 0x65, 0x74, 0x64, 1], "MAC addresses");
}

#[test]
fn tcp_is_reset() {
    isolated(|| {
        for (client, vip) in PAIRS {
            let rig = Rig::new();
            empty(&rig);
            let bare = if client.starts_with('[') { 14 + 40 + 20 } else { 14 + 20 + 20 };
            // Sequence number 1000, seven bytes of data.
            for (sent, flags, sequence, acknowledgment) in [
                (Segment::Syn, (true, true), 0, 1008),
                (Segment::SynAck, (true, false), 1, 0),
                (Segment::Ack, (true, false), 1, 0),
                (Segment::Fin, (true, false), 1, 0),
            ] {
                let ran = rig.pod_sends(&tcp(client, vip, sent));
                assert_back(&ran, client, vip);
                assert_eq!(ran.packet.len(), bare, "{sent:?}");
                let tcp = segment(&ran.packet);
                assert_eq!((tcp.rst(), tcp.ack()), flags, "{sent:?}");
                assert!(!tcp.syn() && !tcp.fin() && !tcp.psh());
                let numbers = (tcp.sequence_number(), tcp.acknowledgment_number());
                assert_eq!(numbers, (sequence, acknowledgment), "{sent:?}");
            }
            assert_eq!(rig.drops(reason::NO_BACKEND), 4);
            assert_eq!(rejected(&rig), 4);
            assert!(rig.datapath.flows().unwrap().is_empty());
        }
    });
}

#[test]
fn the_sequence_numbers_answer_what_was_sent() {
    isolated(|| {
        let rig = Rig::new();
        empty(&rig);
        for (client, vip) in PAIRS {
            let v6 = client.starts_with('[');
            let at = if v6 { 54 } else { 34 };
            let ran = |change: &dyn Fn(&mut Vec<u8>)| {
                let mut frame = tcp(client, vip, Segment::Syn);
                frame[at + 4..at + 8].copy_from_slice(&u32::MAX.to_be_bytes());
                change(&mut frame);
                let ran = rig.pod_sends(&frame);
                assert_back(&ran, client, vip);
                let tcp = segment(&ran.packet);
                (tcp.sequence_number(), tcp.acknowledgment_number(), tcp.ack())
            };
            assert_eq!(ran(&|_| {}), (0, 7, true), "SYN and data, around the end of the numbers");
            assert_eq!(ran(&|frame| frame[at + 13] = 1), (0, 7, true), "FIN without ACK");
            assert_eq!(ran(&|frame| frame[at + 13] = 3), (0, 8, true), "SYN and FIN");
            assert_eq!(ran(&|frame| frame[at + 13] = 0), (0, 6, true), "no flag at all");
            let padded = |frame: &mut Vec<u8>| frame.extend([0; 9]);
            assert_eq!(ran(&padded), (0, 7, true), "padding of the frame is no data");
            let with_ack = |frame: &mut Vec<u8>| {
                frame[at + 13] = 0x10;
                frame[at + 8..at + 12].copy_from_slice(&0xdead_beef_u32.to_be_bytes());
            };
            assert_eq!(ran(&with_ack), (0xdead_beef, 0, false));
        }
    });
}

#[test]
fn a_reset_is_never_answered() {
    isolated(|| {
        let rig = Rig::new();
        empty(&rig);
        for (client, vip) in PAIRS {
            assert_eq!(rig.pod_sends(&tcp(client, vip, Segment::Rst)).verdict, SHOT);
        }
        assert_eq!((rig.drops(reason::NO_BACKEND), rejected(&rig)), (2, 0));
    });
}

#[test]
fn the_client_s_options_and_extension_headers_are_not_sent_back() {
    isolated(|| {
        let rig = Rig::new();
        empty(&rig);
        // IPv4: eight bytes of options.
        let plain = tcp(PAIRS[0].0, PAIRS[0].1, Segment::Syn);
        let mut frame = plain[..34].to_vec();
        frame.extend([1, 1, 1, 1, 1, 1, 1, 0]);
        frame.extend(&plain[34..]);
        frame[14] = 0x47;
        let length = u16::try_from(frame.len() - 14).unwrap();
        frame[16..18].copy_from_slice(&length.to_be_bytes());
        let ran = rig.pod_sends(&frame);
        assert_back(&ran, PAIRS[0].0, PAIRS[0].1);
        assert_eq!((ran.packet.len(), segment(&ran.packet).acknowledgment_number()), (54, 1008));
        // IPv6: destination options.
        let plain = tcp(PAIRS[1].0, PAIRS[1].1, Segment::Syn);
        let mut frame = plain[..54].to_vec();
        frame.extend([6, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(&plain[54..]);
        frame[20] = 60;
        let length = u16::try_from(frame.len() - 54).unwrap();
        frame[18..20].copy_from_slice(&length.to_be_bytes());
        let ran = rig.pod_sends(&frame);
        assert_back(&ran, PAIRS[1].0, PAIRS[1].1);
        // The header chain is part of the length, not of the data.
        assert_eq!((ran.packet.len(), segment(&ran.packet).acknowledgment_number()), (74, 1008));
        // And quoted as they came.
        let datagram = udp(PAIRS[1].0, PAIRS[1].1);
        let mut frame = datagram[..54].to_vec();
        frame.extend([17, 0, 1, 4, 0, 0, 0, 0]);
        frame.extend(&datagram[54..]);
        frame[20] = 60;
        frame[19] += 8;
        let ran = rig.pod_sends(&frame);
        assert_eq!(ran.verdict, REDIRECT);
        assert_eq!(packet(&ran.packet), packet(&UNREACHABLE.frame("fd96::1", "fd00::1", 64, packet(&frame))));
    });
}

/// Compares with an error made by an implementation that is not ours, checksums included.
fn assert_unreachable(ran: &Ran, client: &str, vip: &str, quoted: &[u8]) {
    assert_eq!(ran.verdict, REDIRECT);
    assert_eq!(ran.packet[..12], [2, 0, 0, 0, 1, 1, 2, 0x6e, 0x65, 0x74, 0x64, 1], "MAC addresses");
    let mut expected = UNREACHABLE.frame(ip(vip), ip(client), 64, quoted);
    expected[..12].copy_from_slice(&ran.packet[..12]);
    assert_eq!(ran.packet.len(), expected.len());
    assert_eq!(ran.packet, expected);
}

#[test]
fn all_else_is_told_that_the_port_is_unreachable() {
    isolated(|| {
        for (client, vip) in PAIRS {
            let rig = Rig::new();
            empty(&rig);
            let longest = if client.starts_with('[') { 1280 - 48 } else { 576 - 28 };
            for payload in [0, 1, 7, 213, 214, 215, 499, 500, 501, 520, 521, 1183, 1184, 1185, 1400, 1452] {
                let frame = long_udp(client, vip, payload);
                let ran = rig.pod_sends(&frame);
                let quoted = packet(&frame);
                assert_unreachable(&ran, client, vip, &quoted[..quoted.len().min(longest)]);
            }
            let init = raw(ip(client), ip(vip), SCTP, &[3, 0xe8, 0, 80, 0, 0, 0, 0, 1, 2, 3, 4]);
            assert_unreachable(&rig.pod_sends(&init), client, vip, packet(&init));
            assert_eq!((rig.drops(reason::NO_BACKEND), rejected(&rig)), (17, 17));
            assert!(rig.datapath.flows().unwrap().is_empty());
        }
    });
}

#[test]
fn udp_without_checksum_is_quoted_without() {
    isolated(|| {
        let rig = Rig::new();
        empty(&rig);
        let (client, vip) = PAIRS[0];
        let mut frame = udp(client, vip);
        frame[40..42].copy_from_slice(&[0, 0]);
        assert_unreachable(&rig.pod_sends(&frame), client, vip, packet(&frame));
    });
}

#[test]
fn what_was_sent_to_all_is_answered_to_nobody() {
    isolated(|| {
        let rig = Rig::new();
        empty(&rig);
        for (client, vip) in PAIRS {
            for mut frame in [udp(client, vip), tcp(client, vip, Segment::Syn)] {
                for address in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], [2, 0, 0, 0, 0, 0x77]] {
                    frame[..6].copy_from_slice(&address);
                    assert_eq!(rig.pod_sends(&frame).verdict, SHOT, "to {address:x?}");
                }
            }
        }
        assert_eq!((rig.drops(reason::NO_BACKEND), rejected(&rig)), (12, 0));
    });
}

#[test]
fn a_flood_gets_some_errors_and_every_reset() {
    isolated(|| {
        let rig = Rig::new();
        empty(&rig);
        let (client, vip) = PAIRS[0];
        let datagram = udp(client, vip);
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut answers = 0;
        while rig.pod_sends(&datagram).verdict == REDIRECT {
            answers += 1;
            assert!(Instant::now() < deadline, "{answers} errors and no end");
        }
        assert!(answers >= 50, "only {answers} at once");
        let syn = tcp(client, vip, Segment::Syn);
        for _ in 0..1000 {
            assert_eq!(rig.pod_sends(&syn).verdict, REDIRECT);
        }
        assert_eq!(rig.drops(reason::NO_BACKEND), answers + 1001, "told all the same");
        assert_eq!(rejected(&rig), answers + 1000);
    });
}

#[test]
fn a_refusal_is_told_as_a_drop() {
    isolated(|| {
        let rig = Rig::new();
        empty(&rig);
        let frame = tcp("10.0.0.1:1000", "10.96.0.1:80", Segment::Syn);
        rig.pod_sends(&frame);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let event = runtime.block_on(async {
            rig.datapath.take_events().unwrap().expect("nobody took it").next().await.unwrap()
        });
        assert_eq!(
            (event.reason, event.stage, event.service),
            (reason::NO_BACKEND, stage::POD_EGRESS, SERVICE)
        );
        assert_eq!((event.endpoint, event.ifindex), (1, IFINDEX));
        assert_eq!(event.length as usize, frame.len(), "of what the pod sent");
        assert_eq!((event.source_port, event.destination_port), (1000_u16.to_be(), 80_u16.to_be()));
    });
}

#[test]
fn an_explain_run_tells_the_refusal_and_takes_nothing_from_the_share() {
    isolated(|| {
        let rig = Rig::new();
        empty(&rig);
        for (client, vip) in PAIRS {
            for frame in [udp(client, vip), tcp(client, vip, Segment::Syn)] {
                for _ in 0..200 {
                    let ran = rig.datapath.test_run(Stage::PodEgress, &frame, IFINDEX, true, 1).unwrap();
                    let answer = ran.explained.expect("an answer");
                    let outcome = path::REJECT
                        | u32::from(reason::NO_BACKEND) << 8
                        | u32::from(stage::POD_EGRESS) << 16;
                    assert_eq!((answer.outcome, answer.service, answer.ifindex), (outcome, SERVICE, IFINDEX));
                }
            }
        }
        assert!(rig.datapath.drop_counts().unwrap().is_empty());
        assert_eq!(rejected(&rig), 0);
    });
}

#[test]
fn a_large_datagram_of_many_is_answered_with_its_beginning() {
    isolated(|| {
        let rig = Rig::new();
        empty(&rig);
        for (client, vip) in PAIRS {
            let ran = rig.pod_sends(&long_udp(client, vip, 3000));
            assert_eq!(ran.verdict, REDIRECT);
            let sliced = SlicedPacket::from_ethernet(&ran.packet).unwrap();
            let length = match sliced.net.unwrap() {
                NetSlice::Ipv4(header) => usize::from(header.header().total_len()),
                NetSlice::Ipv6(header) => usize::from(header.header().payload_length()) + 40,
                other => panic!("not IP: {other:?}"),
            };
            assert_eq!(length, if client.starts_with('[') { 1280 } else { 576 });
            assert_eq!(ran.packet.len(), length + 14);
        }
    });
}
