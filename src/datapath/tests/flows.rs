//! Flows: which table they stand in, what ends them, and client ports that two of them share.

use super::frames::{Segment, TCP, UDP, ip, read, tcp, udp};
use super::rig::{Rig, isolated};
use crate::datapath::conversation::now;
use crate::datapath::test_run::Ran;
use crate::datapath::{FlowRow, locked};
use netd_bpf::flow::{Limits, flow_count, flow_flag, lifetime, role};
use netd_bpf::service::backend_state;

const CLIENTS: [(&str, &str, &str, &str); 2] = [
    ("10.0.0.1:1000", "10.96.0.1:80", "10.96.0.2:80", "10.1.0.1:8080"),
    ("[fd00::1]:1000", "[fd96::1]:80", "[fd96::2]:80", "[fd01::1]:8080"),
];

fn source(ran: &Ran) -> String {
    read(&ran.packet).source.to_string()
}

fn destination(ran: &Ran) -> String {
    read(&ran.packet).destination.to_string()
}

/// `(established, in the nursery)`.
fn rows(rig: &Rig) -> (usize, usize) {
    let rows = rig.datapath.flows().unwrap();
    let established = rows.iter().filter(|row| row.established).count();
    (established, rows.len() - established)
}

fn count(rig: &Rig, which: u32) -> u64 {
    rig.datapath.flow_counts().unwrap()[which as usize]
}

/// A handshake through the Service.
fn connect(rig: &Rig, client: &str, vip: &str, backend: &str) {
    rig.pod_sends(&tcp(client, vip, Segment::Syn));
    rig.pod_receives(&tcp(backend, client, Segment::SynAck));
    rig.pod_sends(&tcp(client, vip, Segment::Ack));
}

#[test]
fn a_completed_handshake_is_established_and_its_end_makes_room() {
    isolated(|| {
        for (client, vip, _, backend) in CLIENTS {
            let rig = Rig::new();
            rig.service(ip(vip), 80, TCP, &[(ip(backend), 8080)]);
            rig.pod_sends(&tcp(client, vip, Segment::Syn));
            rig.pod_receives(&tcp(backend, client, Segment::SynAck));
            assert_eq!(rows(&rig), (0, 2), "half open");
            rig.pod_sends(&tcp(client, vip, Segment::Ack));
            assert_eq!(rows(&rig), (2, 0));
            assert_eq!(rig.datapath.share(1).unwrap(), Some(2));

            rig.pod_sends(&tcp(client, vip, Segment::Fin));
            assert_eq!(rows(&rig), (2, 0), "half closed");
            let back = rig.pod_receives(&tcp(backend, client, Segment::Fin));
            assert_eq!((source(&back), rows(&rig)), (vip.to_owned(), (0, 2)));
            let last = rig.pod_sends(&tcp(client, vip, Segment::Ack));
            assert_eq!((destination(&last), rows(&rig)), (backend.to_owned(), (0, 2)), "the last ACK");
            assert_eq!(rig.datapath.share(1).unwrap(), Some(0));
            assert_eq!((count(&rig, flow_count::PROMOTED), count(&rig, flow_count::CLOSED)), (2, 2));
        }
    });
}

#[test]
fn a_plain_connection_is_established_too() {
    isolated(|| {
        let rig = Rig::new();
        let (client, server) = ("10.0.0.1:1000", "10.1.0.1:80");
        connect(&rig, client, server, server);
        assert_eq!(rows(&rig), (1, 0));
        rig.pod_receives(&tcp(server, client, Segment::Rst));
        assert_eq!(rows(&rig), (0, 1));
    });
}

#[test]
fn a_question_and_its_answer_are_no_conversation() {
    isolated(|| {
        let rig = Rig::new();
        let (client, vip, backend) = ("10.0.0.1:1000", "10.96.0.1:53", "10.1.0.1:53");
        rig.service("10.96.0.1", 53, UDP, &[("10.1.0.1", 53)]);
        for _ in 0..3 {
            assert_eq!(rows(&rig).0, 0);
            rig.pod_sends(&udp(client, vip));
            rig.pod_receives(&udp(backend, client));
        }
        assert_eq!(rows(&rig), (2, 0), "there and back several times");
    });
}

#[test]
fn what_nobody_answers_stays_in_the_nursery() {
    isolated(|| {
        let rig = Rig::new();
        for _ in 0..20 {
            rig.pod_sends(&udp("10.0.0.1:1000", "10.1.0.1:514"));
            rig.pod_sends(&tcp("10.0.0.1:1000", "10.1.0.1:80", Segment::Ack));
        }
        assert_eq!(rows(&rig), (0, 2));
    });
}

#[test]
fn idle_connections_outlive_a_flood_of_new_ones() {
    isolated(|| {
        for (client, vip, _, backend) in CLIENTS {
            let rig = Rig::new();
            rig.service(ip(vip), 80, TCP, &[(ip(backend), 8080)]);
            let (pod, _) = client.rsplit_once(':').unwrap();
            let (far, _) = backend.rsplit_once(':').unwrap();
            for port in 2000..2100 {
                connect(&rig, &format!("{pod}:{port}"), vip, backend);
            }
            let opened = count(&rig, flow_count::OPENED);
            for port in 20_000..28_192 {
                rig.pod_sends(&udp(&format!("{pod}:{port}"), &format!("{far}:53")));
            }
            assert_eq!(count(&rig, flow_count::OPENED) - opened, 8192, "eight times the nursery");
            for port in 2000..2100 {
                let back = rig.pod_receives(&tcp(backend, &format!("{pod}:{port}"), Segment::Ack));
                assert_eq!(source(&back), vip);
            }
            assert_eq!(rows(&rig).0, 200);
        }
    });
}

#[test]
fn a_pod_that_used_up_its_share_goes_on_in_the_nursery() {
    isolated(|| {
        for (client, vip, _, backend) in CLIENTS {
            let rig = Rig::new();
            let (pod, _) = client.rsplit_once(':').unwrap();
            rig.service(ip(vip), 80, TCP, &[(ip(backend), 8080)]);
            for port in 0..300 {
                connect(&rig, &format!("{pod}:{}", 2000 + port), vip, backend);
            }
            assert_eq!(rows(&rig).0, 512, "the share of this test's configuration");
            assert_eq!(count(&rig, flow_count::REFUSED_SHARE), 300 - 256);
            let back = rig.pod_receives(&tcp(backend, &format!("{pod}:2299"), Segment::Ack));
            assert_eq!(source(&back), vip, "refused a place, not service");
        }
    });
}

#[test]
fn two_services_and_the_backend_itself_from_one_port() {
    isolated(|| {
        for (client, one, other, backend) in CLIENTS {
            for proto in [TCP, UDP] {
                let rig = Rig::new();
                rig.service(ip(one), 80, proto, &[(ip(backend), 8080)]);
                rig.service(ip(other), 80, proto, &[(ip(backend), 8080)]);
                let make = |from: &str, to: &str, segment| {
                    if proto == TCP { tcp(from, to, segment) } else { udp(from, to) }
                };
                // All orders: each of the three may be the one that finds the port taken.
                let targets = [one, other, backend];
                for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
                    let mut seen = Vec::new();
                    for target in order.map(|at| targets[at]) {
                        let sent = rig.pod_sends(&make(client, target, Segment::Syn));
                        assert_eq!(destination(&sent), backend);
                        seen.push((target, source(&sent)));
                    }
                    for (target, from) in &seen {
                        let again = rig.pod_sends(&make(client, target, Segment::Ack));
                        assert_eq!(source(&again), *from, "{target} keeps its port");
                        let back = rig.pod_receives(&make(backend, from, Segment::Ack));
                        assert_eq!(
                            (source(&back), destination(&back)),
                            ((*target).to_owned(), client.to_owned())
                        );
                    }
                    let mut ports: Vec<_> = seen.iter().map(|(_, from)| from.clone()).collect();
                    ports.sort();
                    ports.dedup();
                    assert_eq!(ports.len(), 3, "the backend tells them apart: {seen:?}");
                    assert_eq!(seen[0].1, client, "the first keeps its own");
                    let keys: Vec<_> = rig.datapath.flows().unwrap().iter().map(|row| row.key).collect();
                    assert_eq!(rig.datapath.remove_flows(&keys).unwrap(), keys.len() as u64);
                }
                assert_eq!(count(&rig, flow_count::PORTS_TRANSLATED), 12);
            }
        }
    });
}

#[test]
fn a_closed_connection_gives_its_port_to_the_next() {
    isolated(|| {
        let rig = Rig::new();
        let (client, one, other, backend) = CLIENTS[0];
        rig.service(ip(one), 80, TCP, &[(ip(backend), 8080)]);
        rig.service(ip(other), 80, TCP, &[(ip(backend), 8080)]);
        for (vip, next) in [(one, other), (other, backend), (backend, one)] {
            connect(&rig, client, vip, backend);
            rig.pod_sends(&tcp(client, vip, Segment::Fin));
            rig.pod_receives(&tcp(backend, client, Segment::Fin));
            let sent = rig.pod_sends(&tcp(client, next, Segment::Syn));
            assert_eq!((source(&sent), destination(&sent)), (client.to_owned(), backend.to_owned()));
            let back = rig.pod_receives(&tcp(backend, client, Segment::SynAck));
            assert_eq!(source(&back), next);
            rig.pod_sends(&tcp(client, next, Segment::Rst));
        }
        assert_eq!(count(&rig, flow_count::PORTS_TRANSLATED), 0);
    });
}

#[test]
fn a_half_closed_connection_keeps_its_port() {
    isolated(|| {
        for (client, one, other, backend) in CLIENTS {
            // Each through a Service, or straight to the backend.
            for (held, new) in [(one, other), (one, backend), (backend, one)] {
                for by_client in [true, false] {
                    let rig = Rig::new();
                    rig.service(ip(one), 80, TCP, &[(ip(backend), 8080)]);
                    rig.service(ip(other), 80, TCP, &[(ip(backend), 8080)]);
                    connect(&rig, client, held, backend);
                    sends(&rig, by_client, [client, held, backend], Segment::Fin);
                    let before = rows(&rig);
                    let sent = rig.pod_sends(&tcp(client, new, Segment::Syn));
                    let from = source(&sent);
                    assert_eq!(destination(&sent), backend);
                    assert_ne!(from, client, "{held} has that port towards the backend");
                    assert_eq!(rows(&rig), (before.0, 2), "{held} keeps its rows");
                    // What is left of it goes on, beside the other.
                    let back = rig.pod_receives(&tcp(backend, client, Segment::Ack));
                    assert_eq!((source(&back), destination(&back)), (held.to_owned(), client.to_owned()));
                    let again = rig.pod_sends(&tcp(client, held, Segment::Ack));
                    assert_eq!(
                        (source(&again), destination(&again)),
                        (client.to_owned(), backend.to_owned())
                    );
                    let back = rig.pod_receives(&tcp(backend, &from, Segment::SynAck));
                    assert_eq!((source(&back), destination(&back)), (new.to_owned(), client.to_owned()));
                    // Its own SYN begins it anew, with its port.
                    assert_eq!(source(&rig.pod_sends(&tcp(client, held, Segment::Syn))), client);
                }
            }
        }
    });
}

#[test]
fn udp_that_lost_its_backend_leaves_no_row_behind() {
    isolated(|| {
        for (client, vip, _, backend) in CLIENTS {
            let rig = Rig::new();
            rig.service(ip(vip), 80, UDP, &[(ip(backend), 8080)]);
            for _ in 0..3 {
                rig.pod_sends(&udp(client, vip));
                rig.pod_receives(&udp(backend, client));
            }
            assert_eq!(rows(&rig), (2, 0));
            rig.backend(1, ip(backend), 8080, UDP, backend_state::TERMINATING, 1);
            let other = other_backend(&rig, client, UDP);
            assert_eq!(destination(&rig.pod_sends(&udp(client, vip))), other);
            let rows = rig.datapath.flows().unwrap();
            assert_eq!(rows.len(), 2, "{rows:?}");
            assert!(rows.iter().all(|row| row.flow.backend == 2 && !row.established));
            assert_eq!(rig.datapath.share(1).unwrap(), Some(0));
        }
    });
}

/// What an end sends: the client to where it believes the server is, or the server.
fn sends(rig: &Rig, by_client: bool, [client, vip, backend]: [&str; 3], segment: Segment) -> String {
    if by_client {
        destination(&rig.pod_sends(&tcp(client, vip, segment)))
    } else {
        source(&rig.pod_receives(&tcp(backend, client, segment)))
    }
}

/// Gives the Service of a client's family another backend instead of its one.
fn other_backend(rig: &Rig, client: &str, proto: u8) -> &'static str {
    let other = if client.starts_with('[') { "[fd01::2]:8080" } else { "10.1.0.2:8080" };
    rig.backend(2, ip(other), 8080, proto, backend_state::ACTIVE, 1);
    rig.datapath.set_slots(0, &[2]).unwrap();
    other
}

/// Makes all rows so many seconds older.
fn later(rig: &Rig, seconds: u32) {
    for mut row in rig.datapath.flows().unwrap() {
        row.flow.last_seen = row.flow.last_seen.wrapping_sub(seconds);
        let table = if row.established { &rig.datapath.established } else { &rig.datapath.nursery };
        locked(table).insert(row.key, row.flow, 0).unwrap();
    }
}

/// Runs in one second of the programs' clock.
fn at_once<T>(mut act: impl FnMut() -> T) -> T {
    loop {
        let second = now();
        let result = act();
        if now() == second {
            return result;
        }
    }
}

#[test]
fn a_reset_that_no_end_accepted_ends_nothing() {
    isolated(|| {
        for (client, vip, _, backend) in CLIENTS {
            for (by_client, through) in [(false, vip), (true, vip), (false, backend), (true, backend)] {
                let ends = [client, through, backend];
                let all = if through == vip { 2 } else { 1 };
                let rig = Rig::new();
                rig.service(ip(vip), 80, TCP, &[(ip(backend), 8080)]);
                let seen = at_once(|| {
                    rig.forget();
                    connect(&rig, client, through, backend);
                    // As a stray packet of another connection would: translated like all others.
                    let stray = sends(&rig, by_client, ends, Segment::Rst);
                    let reset = rows(&rig);
                    // What its sender had sent before may come after it.
                    sends(&rig, by_client, ends, Segment::Ack);
                    let still = rows(&rig);
                    // The end that it was for says that it was none.
                    sends(&rig, !by_client, ends, Segment::Ack);
                    (stray, [reset, still, rows(&rig)])
                });
                let to = if by_client { backend } else { through };
                assert_eq!(seen, (to.to_owned(), [(0, all), (0, all), (all, 0)]));
                assert_eq!(rig.datapath.share(1).unwrap(), Some(all as u64));
                let resets = |row: &FlowRow| row.flow.flags & flow_flag::RESET != 0;
                assert!(!rig.datapath.flows().unwrap().iter().any(resets));

                // Idle for an hour; the Service has another backend by now.
                later(&rig, 3600);
                other_backend(&rig, client, TCP);
                assert_eq!(sends(&rig, true, ends, Segment::Ack), backend);
                assert_eq!(sends(&rig, false, ends, Segment::Ack), through);
            }
        }
    });
}

/// Once for each end and family: a rig where a client is connected through a Service.
fn each_end(test: impl Fn(&Rig, bool, [&str; 3]) + Send + 'static) {
    isolated(move || {
        for (client, vip, _, backend) in CLIENTS {
            for by_client in [false, true] {
                let rig = Rig::new();
                rig.service(ip(vip), 80, TCP, &[(ip(backend), 8080)]);
                connect(&rig, client, vip, backend);
                test(&rig, by_client, [client, vip, backend]);
            }
        }
    });
}

#[test]
fn an_end_that_talks_on_after_its_own_reset_takes_it_back() {
    each_end(|rig, by_client, ends| {
        sends(rig, by_client, ends, Segment::Rst);
        later(rig, 1);
        sends(rig, by_client, ends, Segment::Ack);
        assert_eq!(rows(rig), (2, 0));
    });
}

#[test]
fn a_connection_that_was_reset_while_packets_were_under_way_stays_so() {
    each_end(|rig, by_client, ends| {
        for _ in 0..3 {
            sends(rig, by_client, ends, Segment::Rst);
            // Sent before that came; who has no connection any more answers it.
            sends(rig, !by_client, ends, Segment::Ack);
            sends(rig, by_client, ends, Segment::Rst);
        }
        assert_eq!(rows(rig), (0, 2));
        assert_eq!(rig.datapath.share(1).unwrap(), Some(0));
        let lifetime = |row: &FlowRow| lifetime(&row.flow, row.key.proto, &Limits::DEFAULT);
        assert!(rig.datapath.flows().unwrap().iter().all(|row| lifetime(row) == 60));
        // A new connection of the same port is balanced.
        let other = other_backend(rig, ends[0], TCP);
        assert_eq!(sends(rig, true, ends, Segment::Syn), other);
    });
}

#[test]
fn a_pod_that_reaches_itself_is_one_flow_of_two_rows() {
    isolated(|| {
        for (client, vip, _, _) in CLIENTS {
            let rig = Rig::new();
            rig.service(ip(vip), 80, TCP, &[(ip(client), 8080)]);
            let sent = rig.pod_sends(&tcp(client, vip, Segment::Syn));
            let (from, to) = (source(&sent), destination(&sent));
            let back = rig.pod_sends(&tcp(&to, &from, Segment::SynAck));
            assert_eq!((source(&back), destination(&back)), (vip.to_owned(), client.to_owned()));
            rig.pod_sends(&tcp(client, vip, Segment::Ack));
            assert_eq!(rows(&rig), (2, 0));
            let flows = rig.datapath.flows().unwrap();
            assert!(flows.iter().all(|row| row.flow.flags & flow_flag::HAIRPIN != 0));
            assert_eq!(flows.iter().filter(|row| row.flow.role == role::REPLY).count(), 1);
        }
    });
}
