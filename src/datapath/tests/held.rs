//! Fragments that overtake their first: held, sent on once, given up.

use super::frames::{UDP, addr, udp_with};
use super::pieces::{
    OK, REDIRECT, SHOT, STOLEN, Tap, WAYS, datagram, datagrams, delivered, fragment, held_frames,
    held_so_far, ip, service, taken, whole,
};
use super::rig::{IFINDEX, Rig, isolated, pod, run};
use crate::datapath::test_run::Stage;
use netd_bpf::event::{reason, stage};
use netd_bpf::fragment::{HELD_BYTES, HELD_SLOTS, LIFETIME};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};

/// Runs on one CPU, so that what is sent on is received in the order of sending.
pub(super) fn on_one_cpu() {
    let this = nix::unistd::Pid::from_raw(0);
    let allowed = nix::sched::sched_getaffinity(this).expect("always told");
    let mut one = nix::sched::CpuSet::new();
    let first = (0..nix::sched::CpuSet::count()).find(|cpu| allowed.is_set(*cpu).is_ok_and(|set| set));
    one.set(first.expect("one at least")).expect("within the set");
    nix::sched::sched_setaffinity(this, &one).expect("allowed");
}

/// A veth whose end `name` stands for a device of the node; the other end is `far-name`.
fn wire(name: &str) -> u32 {
    let far = format!("far-{name}");
    run(&["ip", "link", "add", name, "address", "02:00:00:00:00:99", "type", "veth", "peer", "name", &far]);
    for end in [name, &far] {
        run(&["sysctl", "-qw", &format!("net.ipv6.conf.{end}.disable_ipv6=1")]);
        run(&["ip", "link", "set", end, "up"]);
    }
    nix::net::if_::if_nametoindex(name).unwrap()
}

#[test]
fn fragments_that_overtake_their_first_are_held_and_sent_on() {
    isolated(|| {
        on_one_cpu();
        for (client, vip, backend) in WAYS {
            let rig = Rig::new();
            service(&rig, vip, backend, UDP);
            let tap = Tap::open("lo");
            for round in 1..=40 {
                // Again and again one identifier, from another port: a datagram that is complete leaves nothing
                // for the next one's fragments to go by.
                let from = client.replace(":1000", &format!(":{}", 1000 + round));
                let (pieces, payload) = datagram(&from, vip, 7);
                for piece in pieces[1..].iter().rev() {
                    assert_eq!(rig.pod_sends(piece).verdict, STOLEN);
                }
                assert_eq!(taken(&rig).len(), 3);
                let mut out = delivered([rig.pod_sends(&pieces[0])]);
                let mut sent_on = tap.take(3);
                out.extend(delivered(sent_on.iter().map(|piece| rig.pod_sends(piece))));
                sent_on.sort();
                let mut held = pieces[1..].to_vec();
                held.sort();
                assert_eq!(sent_on, held, "not as they were");
                assert!(taken(&rig).is_empty());
                let (seen, got) = whole(&out);
                assert_eq!((seen.source.to_string(), got), (from, payload));
                assert_eq!(seen.destination.port(), 8080);
                assert_eq!(datagrams(&rig).iter().count(), 0);
            }
            assert_eq!(held_so_far(&rig), 120);
            assert!(rig.datapath.drop_counts().unwrap().is_empty(), "held is not dropped");
        }
    });
}

#[test]
fn only_the_datagram_itself_is_sent_on() {
    isolated(|| {
        on_one_cpu();
        let other = wire("pod2");
        for ((client, vip, backend), neighbour) in WAYS.into_iter().zip(["10.0.0.2:1000", "[fd00::2]:1000"]) {
            let rig = Rig::new();
            rig.upsert_pod(&pod(other, 2, "10.0.0.2", "fd00::2")).unwrap();
            service(&rig, vip, backend, UDP);
            let (own, near) = (Tap::open("lo"), Tap::open("pod2"));
            let on_other = |frame: &[u8]| {
                rig.datapath.test_run(Stage::PodEgress, frame, other, false, 1).expect("it runs")
            };
            // The same identifier from two pods, and two identifiers of one pod, all mixed.
            let (a, a_payload) = datagram(client, vip, 5);
            let (b, b_payload) = datagram(neighbour, vip, 5);
            let (c, c_payload) = datagram(client, vip, 6);
            assert_eq!(rig.pod_sends(&a[2]).verdict, STOLEN);
            assert_eq!(on_other(&b[3]).verdict, STOLEN);
            assert_eq!(rig.pod_sends(&c[1]).verdict, STOLEN);
            assert_eq!(rig.pod_sends(&a[1]).verdict, STOLEN);
            let mut of_a = delivered([rig.pod_sends(&a[0])]);
            of_a.extend(delivered(own.take(2).iter().map(|piece| rig.pod_sends(piece))));
            assert_eq!(taken(&rig).len(), 2, "of the other two");
            let mut of_b = delivered([on_other(&b[0])]);
            of_b.extend(delivered(near.take(1).iter().map(|piece| on_other(piece))));
            of_b.extend(delivered([on_other(&b[2]), on_other(&b[1])]));
            of_a.extend(delivered([rig.pod_sends(&a[3])]));
            let mut of_c = delivered([rig.pod_sends(&c[0]), rig.pod_sends(&c[3])]);
            of_c.extend(delivered(own.take(1).iter().map(|piece| rig.pod_sends(piece))));
            of_c.extend(delivered([rig.pod_sends(&c[2])]));
            for (pieces, payload, from) in
                [(of_a, a_payload, client), (of_b, b_payload, neighbour), (of_c, c_payload, client)]
            {
                let (seen, got) = whole(&pieces);
                assert_eq!((seen.source.to_string().as_str(), got), (from, payload));
            }
            assert!(taken(&rig).is_empty());
        }
    });
}

#[test]
fn answers_from_outside_in_reverse_are_translated_too() {
    isolated(|| {
        on_one_cpu();
        let uplink = wire("up0");
        for (client, vip, backend) in WAYS {
            let rig = Rig::new();
            rig.service(ip(vip), 80, UDP, &[(ip(backend), 8080)]);
            rig.pod_sends(&udp_with(client, vip, b"question"));
            let tap = Tap::open("up0");
            let comes = |frame: &[u8]| {
                rig.datapath.test_run(Stage::UplinkIn, frame, uplink, false, 1).expect("it runs")
            };
            let (mut pieces, payload) = datagram(backend, client, 300);
            for piece in &mut pieces {
                piece[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x99]);
            }
            for piece in pieces[1..].iter().rev() {
                assert_eq!(comes(piece).verdict, SHOT);
            }
            let mut out = delivered([comes(&pieces[0])]);
            out.extend(delivered(tap.take(3).iter().map(|piece| comes(piece))));
            let (seen, got) = whole(&out);
            assert_eq!((seen.source.to_string().as_str(), got), (vip, payload));
            assert_eq!(seen.destination.to_string(), client);
        }
    });
}

#[test]
fn what_the_stack_sends_a_pod_in_reverse_arrives_whole() {
    isolated(|| {
        on_one_cpu();
        let host = wire("host0");
        for (client, vip, backend) in WAYS {
            let rig = Rig::fresh();
            rig.upsert_pod(&pod(host, 1, "10.0.0.1", "fd00::1")).unwrap();
            rig.datapath.attach_pod("host0").unwrap();
            rig.service(ip(vip), 80, UDP, &[(ip(backend), 8080)]);
            let sent = udp_with(client, vip, b"question");
            rig.datapath.test_run(Stage::PodEgress, &sent, host, false, 1).unwrap();
            let (stack, pod) = (Tap::open("host0"), Tap::open("far-host0"));
            // The programs at the device itself: what is sent on passes them while the first does.
            for id in 1..=20 {
                let (pieces, payload) = datagram(backend, client, id);
                pieces.iter().rev().for_each(|piece| stack.send(piece));
                let (seen, got) = whole(&pod.take(4));
                assert_eq!((seen.source.to_string().as_str(), got), (vip, payload));
                assert_eq!(seen.destination.to_string(), client);
            }
            assert_eq!((held_so_far(&rig), taken(&rig)), (60, vec![]));
            assert!(rig.datapath.drop_counts().unwrap().is_empty());
        }
    });
}

#[test]
fn no_fragment_is_lost_or_doubled_when_two_cpus_race() {
    isolated(|| {
        const BATCHES: u32 = 40;
        const ROUNDS: u32 = 500;
        let host = wire("host0");
        let rig = Rig::fresh();
        rig.upsert_pod(&pod(host, 1, "10.0.0.1", "fd00::1")).unwrap();
        rig.datapath.attach_pod("host0").unwrap();
        let pod = Tap::open("far-host0");
        let (arrived, batch) = (Arc::new(AtomicU32::new(0)), Arc::new(Barrier::new(3)));
        // One CPU has the first fragment of each datagram, the other one the second, at the same time: the
        // first now a little earlier, now a little later.
        let senders = [0, 1].map(|which| {
            let (arrived, batch) = (Arc::clone(&arrived), Arc::clone(&batch));
            let tap = Tap::open("host0");
            std::thread::spawn(move || {
                for id in 0..BATCHES * ROUNDS {
                    if id % ROUNDS == 0 {
                        batch.wait();
                    }
                    let piece = &datagram("10.1.0.1:8080", "10.0.0.1:1000", id).0[which];
                    arrived.fetch_add(1, Ordering::SeqCst);
                    while arrived.load(Ordering::SeqCst) < (id + 1) * 2 {
                        std::hint::spin_loop();
                    }
                    let late = if which == 0 { id % 97 * 8 } else { 300 };
                    (0..late).for_each(|_| std::hint::spin_loop());
                    tap.send(piece);
                }
            })
        });
        for number in 0..BATCHES {
            batch.wait();
            let mut seen = BTreeSet::new();
            for _ in 0..ROUNDS * 2 {
                let frame = pod.next();
                let piece = (frame[18..20].to_vec(), frame[20..22].to_vec());
                assert!(seen.insert(piece), "batch {number}: twice: {frame:?}");
            }
        }
        for sender in senders {
            sender.join().unwrap();
        }
        println!("{} were held", held_so_far(&rig));
        assert!(taken(&rig).is_empty());
        assert!(rig.datapath.drop_counts().unwrap().is_empty());
    });
}

#[test]
fn held_fragments_without_a_first_are_pushed_out_and_told() {
    isolated(|| {
        let rig = Rig::new();
        for id in 0..HELD_SLOTS {
            assert_eq!(rig.pod_sends(&datagram("10.0.0.1:1000", "10.96.0.1:80", id).0[1]).verdict, STOLEN);
        }
        assert_eq!((rig.drops(reason::FRAGMENT_LOST), taken(&rig).len()), (0, 64));
        for id in 100..103 {
            rig.pod_sends(&datagram("10.0.0.1:1000", "10.96.0.1:80", id).0[1]);
        }
        assert_eq!((rig.drops(reason::FRAGMENT_LOST), taken(&rig).len()), (3, 64));
        let counts = rig.datapath.drop_counts().unwrap();
        assert!(
            counts.iter().all(|(key, _)| (key.stage, key.endpoint) == (stage::POD_EGRESS, 1)),
            "{counts:?}"
        );
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let event = runtime.block_on(async {
            rig.datapath.take_events().unwrap().expect("nobody took it").next().await.unwrap()
        });
        assert_eq!((event.reason, event.ifindex), (reason::FRAGMENT_LOST, IFINDEX));
        assert_eq!(event.destination, addr("10.96.0.1"));
        assert_eq!(event.length, 14 + 20 + 480);
        // Whose first comes in time is not among them.
        assert_eq!(rig.pod_sends(&datagram("10.0.0.1:1000", "10.96.0.1:80", 50).0[0]).verdict, OK);
        assert_eq!(taken(&rig).len(), 63);
    });
}

#[test]
fn a_first_that_comes_too_late_finds_nothing() {
    isolated(|| {
        on_one_cpu();
        let rig = Rig::new();
        let tap = Tap::open("lo");
        let age = |slot: u32| {
            let mut frames = held_frames(&rig);
            let mut frame = frames.get(&slot, 0).unwrap();
            frame.since -= LIFETIME + 1;
            frames.set(slot, frame, 0).unwrap();
        };
        let (pieces, _) = datagram("10.0.0.1:1000", "10.0.0.2:80", 9);
        rig.pod_sends(&pieces[1]);
        let [slot] = taken(&rig)[..] else { panic!("one is held") };
        age(slot);
        rig.pod_sends(&pieces[2]);
        assert_eq!(rig.pod_sends(&pieces[0]).verdict, REDIRECT);
        assert_eq!(tap.next(), pieces[2], "the one that is not too old");
        assert_eq!((rig.drops(reason::FRAGMENT_LOST), taken(&rig)), (1, vec![]));
    });
}

#[test]
fn a_frame_too_long_to_be_held_is_dropped_with_its_reason() {
    isolated(|| {
        for (client, vip, backend) in WAYS {
            let rig = Rig::new();
            service(&rig, vip, backend, UDP);
            let header = if vip.starts_with('[') { 62 } else { 34 };
            let frame = udp_with(client, vip, &[7; 16]);
            let piece = |length: usize| fragment(&frame, 3, (1480, true), &vec![1; length - header]);
            assert_eq!(rig.pod_sends(&piece(HELD_BYTES)).verdict, STOLEN);
            assert_eq!((rig.drops(reason::FRAGMENT_TOO_LONG), held_so_far(&rig)), (0, 1));
            let long = piece(HELD_BYTES + 1);
            assert_eq!(rig.pod_sends(&long).verdict, SHOT);
            assert_eq!((rig.drops(reason::FRAGMENT_TOO_LONG), held_so_far(&rig)), (1, 1));
            // Behind its first it may be of any size.
            let long = fragment(&frame, 4, (1480, true), &vec![1; 3000]);
            delivered([rig.pod_sends(&fragment(&frame, 4, (0, true), &[3; 1480])), rig.pod_sends(&long)]);
        }
    });
}

#[test]
fn a_first_too_long_to_be_put_aside_goes_on_alone() {
    isolated(|| {
        let rig = Rig::new();
        let frame = udp_with("10.0.0.1:1000", "10.0.0.2:80", &[7; 16]);
        assert_eq!(rig.pod_sends(&fragment(&frame, 3, (2960, false), &[1; 100])).verdict, STOLEN);
        let first = fragment(&frame, 3, (0, true), &[3; 2960]);
        let ran = rig.pod_sends(&first);
        assert_eq!((ran.verdict, &ran.packet[34..]), (REDIRECT, &first[34..]));
        assert_eq!(taken(&rig).len(), 1);
    });
}
