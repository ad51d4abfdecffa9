//! Fragments: what the first decides holds for all of its datagram.

use super::frames::{Segment, TCP, UDP, tcp, udp_with};
use super::held::on_one_cpu;
use super::pieces::{
    OK, REDIRECT, SHOT, STOLEN, Tap, WAYS, cut, datagram, datagrams, delivered, fragment, held_so_far, ip,
    service, taken, whole,
};
use super::rig::{IFINDEX, Rig, isolated};
use crate::datapath::test_run::Stage;
use crate::datapath::{Sets, locked};
use netd_bpf::event::{path, reason};
use netd_bpf::flow::role;
use netd_bpf::fragment::{LIFETIME, seal};
use netd_bpf::policy::set;
use netd_bpf::service::{backend_state, kind};

#[test]
fn a_datagram_in_order_reaches_one_backend_and_its_answer_the_client() {
    isolated(|| {
        for (client, vip, backend) in WAYS {
            let rig = Rig::new();
            service(&rig, vip, backend, UDP);
            for id in 1..20 {
                let from = client.replace("1000", &format!("{}", 1000 + id));
                let (pieces, payload) = datagram(&from, vip, id);
                let (seen, got) = whole(&delivered(pieces.iter().map(|piece| rig.pod_sends(piece))));
                assert_eq!((seen.source.to_string(), got), (from.clone(), payload));
                assert_eq!(seen.destination.port(), 8080);
                // The other way, whole and in fragments.
                let (pieces, payload) = datagram(&seen.destination.to_string(), &from, id);
                let back = pieces.iter().map(|piece| rig.pod_receives(piece));
                let back: Vec<_> =
                    back.inspect(|ran| assert_eq!(ran.verdict, OK)).map(|ran| ran.packet).collect();
                let (seen, got) = whole(&back);
                assert_eq!((seen.source.to_string(), seen.destination.to_string()), (vip.to_owned(), from));
                assert_eq!(got, payload);
            }
            assert_eq!(held_so_far(&rig), 0);
            assert_eq!(datagrams(&rig).iter().count(), 0, "rows of datagrams that are complete");
            assert_eq!(rig.datapath.flows().unwrap().len(), 2 * 19, "later fragments made rows of their own");
        }
    });
}

#[test]
fn a_last_fragment_of_a_byte_or_two_is_translated_and_delivered() {
    isolated(|| {
        for ((client, vip, _), neighbour) in WAYS.into_iter().zip(["10.0.0.2", "fd00::2"]) {
            let rig = Rig::new();
            rig.service(ip(vip), 80, UDP, &[(neighbour, 8080)]);
            for rest in 1..8 {
                let payload = vec![7; 32 + rest];
                let pieces = cut(&udp_with(client, vip, &payload), 1, 40);
                assert_eq!(pieces.len(), 2);
                let out: Vec<_> = pieces.iter().map(|piece| rig.pod_sends(piece)).collect();
                assert!(out.iter().all(|ran| ran.verdict == REDIRECT), "{rest} bytes");
                let (seen, got) = whole(&delivered(out));
                assert_eq!((seen.destination.ip().to_string().as_str(), got), (neighbour, payload));
            }
        }
    });
}

#[test]
fn padding_of_the_link_is_no_part_of_a_datagram() {
    isolated(|| {
        for (client, vip, backend) in WAYS {
            let rig = Rig::new();
            service(&rig, vip, backend, UDP);
            let mut pieces = cut(&udp_with(client, vip, &[5; 40]), 1, 40);
            assert_eq!(pieces.len(), 2);
            pieces[1].extend([0; 30]);
            delivered(pieces.iter().map(|piece| rig.pod_sends(piece)));
            assert_eq!(datagrams(&rig).iter().count(), 0, "it is complete");
        }
    });
}

#[test]
fn a_backend_that_goes_between_two_fragments_tears_no_datagram() {
    isolated(|| {
        for (client, vip, backend) in WAYS {
            let rig = Rig::new();
            service(&rig, vip, backend, UDP);
            rig.frontend(ip(vip), 80, UDP, kind::BALANCE, 1);
            let (pieces, payload) = datagram(client, vip, 7);
            let mut out = delivered(pieces[..2].iter().map(|piece| rig.pod_sends(piece)));
            rig.backend(1, ip(backend), 8080, UDP, backend_state::FREE, 2);
            rig.datapath.set_slots(0, &[2]).unwrap();
            out.extend(delivered(pieces[2..].iter().map(|piece| rig.pod_sends(piece))));
            let (seen, got) = whole(&out);
            assert_eq!((seen.destination.to_string().as_str(), got), (backend, payload));
            let next = datagram(client, vip, 8).0;
            let (seen, _) = whole(&delivered(next.iter().map(|piece| rig.pod_sends(piece))));
            assert_eq!(
                seen.destination.to_string(),
                backend.replacen("1:8080", "2:8080", 1).replace("1]", "2]")
            );
        }
    });
}

#[test]
fn an_identifier_used_again_follows_its_new_first() {
    isolated(|| {
        for (client, vip, backend) in WAYS {
            let rig = Rig::new();
            service(&rig, vip, backend, UDP);
            rig.frontend(ip(vip), 80, UDP, kind::BALANCE, 1);
            let direct = vip.replace(":80", ":81").replace("]81", "]:81");
            let (one, _) = datagram(client, vip, 77);
            let (two, _) = datagram(client, &direct, 77);
            let goes = |piece: &[u8]| {
                let ran = rig.pod_sends(piece);
                let at = if vip.starts_with('[') { 38..54 } else { 30..34 };
                (ran.verdict, ran.packet[at].to_vec())
            };
            let (to_backend, to_vip) = (goes(&one[0]), goes(&two[0]));
            assert_ne!(to_backend, to_vip);
            assert_eq!(goes(&two[1]), to_vip);
            assert_eq!(goes(&one[0]), to_backend);
            assert_eq!(goes(&one[1]), to_backend);
            // A row that has outlived its datagram says nothing of the next one.
            let mut rows = datagrams(&rig);
            let (key, mut row) = rows.iter().next().expect("a row").unwrap();
            row.since -= LIFETIME + 1;
            let epoch = locked(&rig.datapath.policy_epoch).get(&0, 0).unwrap();
            let [low, high] = [epoch & 0xffff_ffff, epoch >> 32].map(|half| u32::try_from(half).unwrap());
            row.seal = seal(&key, &row, low ^ high);
            rows.insert(key, row, 0).unwrap();
            let before = held_so_far(&rig);
            assert_eq!(rig.pod_sends(&two[1]).verdict, STOLEN);
            assert_eq!(held_so_far(&rig), before + 1);
            // Nor does one that is torn.
            assert_eq!(goes(&one[0]), to_backend);
            let (key, mut row) = rows.iter().next().expect("a row").unwrap();
            row.backend += 1;
            rows.insert(key, row, 0).unwrap();
            assert_eq!(rig.pod_sends(&one[2]).verdict, STOLEN);
            assert_eq!(held_so_far(&rig), before + 2);
        }
    });
}

#[test]
fn what_waits_for_a_first_that_is_denied_entry_waits_no_more() {
    isolated(|| {
        for (client, neighbour) in [("10.0.0.1:1000", "10.0.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")] {
            let rig = Rig::new();
            // The pods' fragments are held in different rings.
            let closed = Sets { ingress: set::CLOSED, ..Sets::OPEN };
            rig.datapath.set_policy(2, closed).unwrap();
            rig.datapath.bump_policy_epoch().unwrap();
            let (pieces, _) = datagram(client, neighbour, 1);
            for piece in &pieces[1..3] {
                assert_eq!(rig.pod_sends(piece).verdict, STOLEN);
            }
            assert_eq!(taken(&rig).len(), 2);
            assert_eq!(rig.pod_sends(&pieces[0]).verdict, SHOT);
            assert_eq!((rig.drops(reason::INGRESS_DENIED), taken(&rig)), (1, vec![]));
            assert_eq!(rig.pod_sends(&pieces[3]).verdict, SHOT);
        }
    });
}

#[test]
fn a_datagram_does_not_go_on_when_policy_has_changed() {
    isolated(|| {
        for (client, _, other) in WAYS {
            let rig = Rig::new();
            let (pieces, _) = datagram(client, other, 1);
            delivered(pieces[..2].iter().map(|piece| rig.pod_sends(piece)));
            rig.datapath.set_policy(1, Sets { egress: set::CLOSED, ..Sets::OPEN }).unwrap();
            rig.datapath.bump_policy_epoch().unwrap();
            assert_eq!(rig.pod_sends(&pieces[2]).verdict, STOLEN, "it waits for a verdict");
            assert_eq!(rig.pod_sends(&pieces[0]).verdict, SHOT);
            assert_eq!((rig.drops(reason::EGRESS_DENIED), taken(&rig)), (1, vec![]));
            assert_eq!(rig.pod_sends(&pieces[3]).verdict, SHOT);
        }
    });
}

#[test]
fn what_follows_a_dropped_first_is_dropped() {
    isolated(|| {
        for (client, vip, _) in WAYS {
            let rig = Rig::new();
            rig.frontend(ip(vip), 80, UDP, kind::BALANCE, 0);
            let (pieces, _) = datagram(client, vip, 1);
            rig.pod_sends(&pieces[1]);
            assert_eq!(held_so_far(&rig), 1);
            rig.pod_sends(&pieces[0]);
            assert_eq!((rig.drops(reason::NO_BACKEND), taken(&rig)), (1, vec![]));
            for piece in &pieces[2..] {
                assert_eq!(rig.pod_sends(piece).verdict, SHOT);
            }
            assert_eq!((rig.drops(reason::FRAGMENT_OF_DROPPED), held_so_far(&rig)), (2, 1));
        }
    });
}

#[test]
fn fragments_of_a_connection_change_nothing_in_its_flow() {
    isolated(|| {
        for (client, vip, backend) in WAYS {
            let rig = Rig::new();
            rig.service(ip(vip), 80, TCP, &[(ip(backend), 8080)]);
            rig.pod_sends(&tcp(client, vip, Segment::Syn));
            rig.pod_receives(&tcp(backend, client, Segment::SynAck));
            rig.pod_sends(&tcp(client, vip, Segment::Ack));
            let flags = || -> Vec<u16> {
                let mut rows = rig.datapath.flows().unwrap();
                rows.retain(|row| row.established);
                rows.iter().map(|row| row.flow.flags).collect()
            };
            let before = flags();
            assert_eq!(before.len(), 2);
            let frame = tcp(client, vip, Segment::Ack);
            let pieces = cut(&frame, 4, 24);
            assert_eq!(pieces.len(), 2);
            // Whatever one holds at the place of the flags.
            let evil = fragment(&frame, 4, (48, true), &[0xff; 40]);
            let mut out = delivered([&pieces[0], &evil, &pieces[1]].map(|piece| rig.pod_sends(piece)));
            out.remove(1);
            let (seen, _) = whole(&out);
            assert_eq!(
                (seen.source.to_string(), seen.destination.to_string()),
                (client.into(), backend.into())
            );
            assert_eq!(flags(), before);
        }
    });
}

#[test]
fn a_header_in_pieces_is_malformed() {
    isolated(|| {
        let rig = Rig::new();
        for (from, to) in [("10.0.0.1:1000", "10.0.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")] {
            let whole = tcp(from, to, Segment::Syn);
            let body = [0; 64];
            let before = rig.drops(reason::MALFORMED);
            let sent = |offset: usize, more: bool, length: usize| {
                rig.pod_sends(&fragment(&whole, 9, (offset, more), &body[..length])).verdict
            };
            // RFC 1858: the flags, or the checksum, would be in the second.
            assert_eq!((sent(0, true, 8), sent(0, true, 16), sent(0, true, 24)), (SHOT, SHOT, REDIRECT));
            // Padding of the link is no header.
            let mut padded = fragment(&whole, 9, (0, true), &body[..16]);
            padded.extend([0; 20]);
            assert_eq!(rig.pod_sends(&padded).verdict, SHOT);
            // RFC 3128: it would be written over.
            assert_eq!((sent(8, true, 24), sent(16, false, 8), sent(24, false, 8)), (SHOT, SHOT, REDIRECT));
            assert_eq!(rig.drops(reason::MALFORMED) - before, 5);
        }
        assert!(rig.datapath.flows().unwrap().iter().all(|row| row.flow.role == role::DIRECT));
    });
}

#[test]
fn what_has_no_ports_is_never_held() {
    isolated(|| {
        let rig = Rig::new();
        for (from, to) in [("10.0.0.1:1000", "10.0.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")] {
            let v6 = from.starts_with('[');
            let mut esp = udp_with(from, to, &[1; 64]);
            esp[if v6 { 20 } else { 23 }] = 50;
            let pieces = cut(&esp, 3, 40);
            for piece in pieces.iter().rev() {
                assert_eq!(rig.pod_sends(piece).verdict, REDIRECT);
            }
            // One fragment alone is an ordinary packet (RFC 6946), and leaves no row.
            let alone = fragment(&udp_with(from, to, b"alone"), 4, (0, false), &[0; 13]);
            assert_eq!(rig.pod_sends(&alone).verdict, REDIRECT);
        }
        assert_eq!((held_so_far(&rig), datagrams(&rig).iter().count()), (0, 0));
    });
}

#[test]
fn an_echo_in_fragments_goes_where_its_first_went() {
    isolated(|| {
        on_one_cpu();
        let rig = Rig::new();
        let tap = Tap::open("lo");
        for (from, to) in [("10.0.0.1:1000", "10.0.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")] {
            let v6 = from.starts_with('[');
            let mut echo = udp_with(from, to, &[1; 64]);
            let (at, l4) = if v6 { (20, 54) } else { (23, 34) };
            echo[at] = if v6 { 58 } else { 1 };
            echo[l4..l4 + 8].copy_from_slice(&[if v6 { 128 } else { 8 }, 0, 0, 0, 0x12, 0x34, 0, 1]);
            let pieces = cut(&echo, 3, 40);
            assert_eq!(rig.pod_sends(&pieces[1]).verdict, STOLEN);
            assert_eq!(rig.pod_sends(&pieces[0]).verdict, REDIRECT);
            assert_eq!(rig.pod_sends(&tap.next()).verdict, REDIRECT);
        }
        assert_eq!(rig.datapath.flows().unwrap().len(), 2);
    });
}

#[test]
fn an_explain_run_of_a_fragment_writes_nothing() {
    isolated(|| {
        let rig = Rig::new();
        service(&rig, "10.96.0.1:80", "10.1.0.1:8080", UDP);
        let (pieces, _) = datagram("10.0.0.1:1000", "10.96.0.1:80", 1);
        let explain = |frame: &[u8]| {
            let ran = rig.datapath.test_run(Stage::PodEgress, frame, IFINDEX, true, 1).unwrap();
            ran.explained.expect("an answer").outcome & 0xff
        };
        assert_eq!(explain(&pieces[1]), path::HELD);
        explain(&pieces[0]);
        assert!(taken(&rig).is_empty());
        assert_eq!((held_so_far(&rig), datagrams(&rig).iter().count()), (0, 0));
        assert!(rig.datapath.flows().unwrap().is_empty());
    });
}

#[test]
fn the_stack_answers_in_fragments_what_it_brought() {
    isolated(|| {
        let rig = Rig::new();
        for (pod, neighbour) in [("10.0.0.1:80", "10.0.0.2:1000"), ("[fd00::1]:80", "[fd00::2]:1000")] {
            assert_eq!(rig.pod_receives(&udp_with(neighbour, pod, b"question")).verdict, OK);
            for piece in datagram(pod, neighbour, 5).0 {
                let ran = rig.pod_sends(&piece);
                assert_eq!((ran.verdict, ran.packet), (OK, piece), "it came by a hostPort, say");
            }
        }
    });
}

#[test]
fn programs_stay_far_from_the_verifier_s_limit() {
    isolated(|| {
        let rig = Rig::new();
        let programs = rig.folder.config().bpffs.join(format!("v{}/programs", netd_bpf::SCHEMA));
        for name in ["pod_egress", "pod_ingress", "uplink_in"] {
            let info = aya::programs::ProgramInfo::from_pin(programs.join(name)).unwrap();
            let steps = info.verified_instruction_count().expect("told since 5.16");
            println!("{name}: {steps}");
            assert!(steps < 500_000, "{name} takes the verifier {steps} steps");
        }
    });
}
