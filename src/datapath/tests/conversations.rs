//! Flows as they are told: one per conversation, whatever rows it has, and whole tables read in batches.

use super::frames::{Segment, TCP, UDP, addr, read, tcp, udp};
use super::rig::{IFINDEX, Rig, isolated, pod};
use crate::datapath::Datapath;
use crate::datapath::conversation::{Conversation, State, now};
use crate::datapath::locked;
use netd_bpf::event::reason;
use netd_bpf::flow::{Flow, FlowKey, role};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

const CLIENTS: [(&str, &str, &str, &str); 2] = [
    ("10.0.0.1:1000", "10.96.0.1:80", "10.96.0.2:80", "10.1.0.1:8080"),
    ("[fd00::1]:1000", "[fd96::1]:80", "[fd96::2]:80", "[fd01::1]:8080"),
];

fn ip(socket: &str) -> &str {
    socket.rsplit_once(':').expect("a port").0.trim_matches(['[', ']'])
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn all(datapath: &Datapath) -> Vec<Conversation> {
    let mut all = Vec::new();
    let walked = datapath.visit_conversations(
        |_| true,
        |one| {
            all.push(one);
            ControlFlow::Continue(())
        },
    );
    walked.expect("readable");
    all
}

fn one(rig: &Rig) -> Conversation {
    let all = all(&rig.datapath);
    assert_eq!(all.len(), 1, "{all:?}");
    all[0]
}

#[test]
fn a_connection_through_a_service_is_told_once_from_its_first_packet_to_its_last() {
    isolated(|| {
        for (client, vip, _, backend) in CLIENTS {
            let rig = Rig::new();
            rig.service(ip(vip), 80, TCP, &[(ip(backend), 8080)]);
            rig.pod_sends(&tcp(client, vip, Segment::Syn));
            let opening = one(&rig);
            assert_eq!(
                (opening.client, opening.frontend, opening.server),
                (at(client), Some(at(vip)), at(backend))
            );
            assert_eq!((opening.state, opening.established, opening.whole), (State::Opening, false, true));
            assert_eq!((opening.service, opening.owner, opening.client_port_there), (9, 1, None));
            rig.pod_receives(&tcp(backend, client, Segment::SynAck));
            assert_eq!(one(&rig).state, State::Opening);
            rig.pod_sends(&tcp(client, vip, Segment::Ack));
            let open = one(&rig);
            assert_eq!((open.state, open.established), (State::Established, true));
            assert_eq!(open.lifetime, rig.datapath.flow_limits().tcp_established);
            assert!(open.age(now()) < 60 && open.idle(now()) < 60 && open.expires_in(now()) > 7_900);
            rig.pod_receives(&tcp(backend, client, Segment::Fin));
            assert_eq!((one(&rig).state, one(&rig).established), (State::HalfClosed, true));
            rig.pod_sends(&tcp(client, vip, Segment::Fin));
            assert_eq!((one(&rig).state, one(&rig).established), (State::Closed, false));
        }
    });
}

#[test]
fn without_a_service_there_is_no_frontend_and_udp_has_ways_not_states() {
    isolated(|| {
        let rig = Rig::new();
        let (client, server) = ("10.0.0.1:1000", "10.1.0.1:53");
        rig.pod_sends(&udp(client, server));
        let asked = one(&rig);
        assert_eq!((asked.client, asked.frontend, asked.server), (at(client), None, at(server)));
        assert_eq!((asked.state, asked.whole, asked.from_stack), (State::OneWay, true, false));
        rig.pod_receives(&udp(server, client));
        assert_eq!(one(&rig).state, State::TwoWay);
        rig.pod_receives(&tcp("10.9.9.9:5000", "10.0.0.1:80", Segment::Syn));
        let others = all(&rig.datapath);
        let came: Vec<_> = others.iter().filter(|one| one.from_stack).collect();
        assert_eq!((came[0].client, came[0].server), (at("10.9.9.9:5000"), at("10.0.0.1:80")));
        assert_eq!((others.len(), came.len()), (2, 1));
    });
}

#[test]
fn flows_of_one_client_port_to_one_backend_are_told_apart() {
    isolated(|| {
        for (client, first, second, backend) in CLIENTS {
            let rig = Rig::new();
            rig.service(ip(first), 80, TCP, &[(ip(backend), 8080)]);
            rig.service(ip(second), 80, TCP, &[(ip(backend), 8080)]);
            let mut ports = BTreeSet::new();
            for target in [first, second, backend] {
                let sent = rig.pod_sends(&tcp(client, target, Segment::Syn));
                let port = read(&sent.packet).source.port();
                ports.insert((target, (port != at(client).port()).then_some(port)));
            }
            let flows = all(&rig.datapath);
            assert_eq!(flows.len(), 3, "{flows:?}");
            assert!(flows.iter().all(|flow| flow.client == at(client) && flow.server == at(backend)));
            assert!(flows.iter().all(|flow| flow.whole), "{flows:?}");
            let told: BTreeSet<_> = flows
                .iter()
                .map(|flow| (flow.frontend.unwrap_or(flow.server), flow.client_port_there))
                .collect();
            let expected: BTreeSet<_> = ports.iter().map(|(target, port)| (at(target), *port)).collect();
            assert_eq!(told, expected);
        }
    });
}

#[test]
fn a_pod_that_reaches_itself_is_both_ends() {
    isolated(|| {
        for (client, vip, _, _) in CLIENTS {
            let rig = Rig::new();
            rig.service(ip(vip), 80, TCP, &[(ip(client), 8080)]);
            rig.pod_sends(&tcp(client, vip, Segment::Syn));
            let flow = one(&rig);
            let server = SocketAddr::new(at(client).ip(), 8080);
            assert_eq!((flow.client, flow.frontend, flow.server), (at(client), Some(at(vip)), server));
            assert!(flow.hairpin && flow.whole);
        }
    });
}

#[test]
fn what_is_left_of_a_flow_is_told_by_the_row_that_is_left() {
    isolated(|| {
        for (client, vip, other, backend) in CLIENTS {
            for lost in [role::FORWARD, role::REPLY] {
                let rig = Rig::new();
                rig.service(ip(vip), 80, UDP, &[(ip(backend), 8080)]);
                rig.service(ip(other), 80, UDP, &[(ip(backend), 8080)]);
                rig.pod_sends(&udp(client, vip));
                rig.pod_sends(&udp(client, other));
                rig.pod_sends(&udp(client, backend));
                rig.service("10.96.0.7", 80, UDP, &[("10.0.0.1", 8080)]);
                rig.pod_sends(&udp("10.0.0.1:77", "10.96.0.7:80"));
                let ends = |flows: &[Conversation]| -> BTreeSet<_> {
                    flows
                        .iter()
                        .map(|one| (one.client, one.frontend, one.server, one.client_port_there, one.hairpin))
                        .collect()
                };
                let before = all(&rig.datapath);
                assert_eq!((before.len(), before.iter().all(|one| one.whole)), (4, true), "{before:?}");
                for row in rig.datapath.flows().expect("readable") {
                    if row.flow.role == lost {
                        rig.datapath.remove_flow(&row.key).expect("removed");
                    }
                }
                let after = all(&rig.datapath);
                assert!(after.iter().all(|one| !one.whole), "{after:?}");
                assert_eq!(ends(&after), ends(&before), "without the rows of role {lost}");
            }
        }
    });
}

#[test]
fn a_flow_is_told_whole_while_it_moves_to_the_established() {
    const ROUNDS: u16 = 1000;
    isolated(|| {
        for (client, vip, _, backend) in CLIENTS {
            let rig = Rig::with(|config| (config.flows, config.flows_per_pod) = (16_384, 16_384));
            rig.service(ip(vip), 80, TCP, &[(ip(backend), 8080)]);
            let (pod, _) = client.rsplit_once(':').expect("a port");
            let over = AtomicBool::new(false);
            let told = std::thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    let mut told = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        let walked = rig.datapath.visit_conversations(
                            |one| !one.established,
                            |one| {
                                told.push(one);
                                ControlFlow::Continue(())
                            },
                        );
                        walked.expect("readable");
                    }
                    told
                });
                for round in 0..ROUNDS {
                    // Few at a time, so that the reader is often at the one that moves.
                    let clients = (0..4).map(|n| format!("{pod}:{}", 2000 + 4 * round + n));
                    let clients: Vec<String> = clients.collect();
                    for client in &clients {
                        rig.pod_sends(&tcp(client, vip, Segment::Syn));
                        rig.pod_receives(&tcp(backend, client, Segment::SynAck));
                    }
                    for client in &clients {
                        rig.pod_sends(&tcp(client, vip, Segment::Ack));
                    }
                }
                over.store(true, Ordering::Relaxed);
                reader.join().expect("readable")
            });
            // While a flow is made it has one half for a moment; from then on it has both, wherever they are.
            let halves: Vec<_> =
                told.iter().filter(|one| !one.whole && one.state != State::Opening).collect();
            assert!(
                halves.is_empty(),
                "{} of {} told without their other half: {halves:?}",
                halves.len(),
                told.len()
            );
            assert!(told.iter().any(|one| one.whole), "the test shows nothing without a flow told");
        }
    });
}

#[test]
fn tables_larger_than_a_batch_are_read_whole() {
    const ROWS: u32 = 10_000;
    isolated(|| {
        let folder = super::rig::Folder::new();
        let config = crate::datapath::config::Config { flows: 16_384, slots: 16_384, ..folder.config() };
        let (datapath, _) = Datapath::open(&config).expect("the programs load");
        let key = |n: u32| FlowKey {
            low: addr("10.0.0.1"),
            high: addr("10.0.0.2"),
            pad: [0; 2],
            low_port: u16::try_from(n).expect("few rows"),
            proto: 6,
            ..FlowKey::default()
        };
        for n in 0..ROWS {
            let flow = Flow { created: n, ..Flow::default() };
            locked(&datapath.established).insert(key(n), flow, 0).expect("room");
        }
        let mut seen = BTreeSet::new();
        let mut batches = 0;
        let mut visit = |rows: &mut dyn Iterator<Item = crate::datapath::FlowRow>| {
            batches += 1;
            for row in rows {
                assert_eq!(row.key, key(row.flow.created), "a value beside its own key");
                assert!(seen.insert(row.flow.created), "no row twice");
            }
            ControlFlow::Continue(())
        };
        datapath.visit_flows(&mut visit).expect("readable");
        assert_eq!(seen.len(), ROWS as usize);
        assert!(batches > 2, "the test shows nothing with one batch");
        let mut first = 0;
        let stop = datapath.visit_flows(|rows| {
            first += rows.count();
            if first > 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        stop.expect("readable");
        assert!(first > 0 && first < ROWS as usize, "it stops when told to: {first}");

        let ids: Vec<u32> = (1..=9_000).collect();
        datapath.set_slots(100, &ids).expect("room");
        assert_eq!(datapath.slots(100, 9_000).expect("readable"), ids);
        assert_eq!(datapath.slots(99, 3).expect("readable"), [0, 1, 2]);
        assert_eq!(datapath.slots(0, 101).expect("readable")[100], 1);
        assert_eq!(datapath.slots(0, u32::MAX).expect("readable").len(), 16_384);
        assert_eq!(datapath.slots(16_380, 100).expect("readable").len(), 4);
        assert_eq!(datapath.slots(16_384, 1).expect("readable"), [0; 0]);
        assert_eq!(datapath.slots(5, 0).expect("readable"), [0; 0]);
    });
}

#[test]
fn a_pod_that_goes_takes_its_drops_along() {
    isolated(|| {
        let rig = Rig::new();
        rig.pod_sends(&udp("10.0.0.99:1000", "10.1.0.1:53"));
        assert_eq!(rig.drops(reason::SPOOFED_SOURCE), 1);
        let row = pod(IFINDEX, 1, "10.0.0.1", "fd00::1");
        rig.datapath.remove_pod(&row).expect("removed");
        assert_eq!(rig.drops(reason::SPOOFED_SOURCE), 0, "the number's next holder dropped nothing");
        let totals = rig.datapath.drop_totals().expect("readable");
        assert_eq!(totals.iter().map(|(_, _, count)| count.packets).sum::<u64>(), 1, "the metric only grows");
    });
}
