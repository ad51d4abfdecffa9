//! A client that has no source port left towards a backend.

use super::frames::{Segment, TCP, UDP, addr, ip, read, tcp, udp};
use super::moves::key;
use super::rig::{IFINDEX, Rig, SERVICE, isolated};
use crate::datapath::conversation::now;
use crate::datapath::{FlowRow, locked};
use netd_bpf::event::{reason, stage};
use netd_bpf::flow::{Flow, Limits, flow_count, flow_flag, lifetime, role};

const SHOT: i32 = 2;

/// A live connection of a client's port through a Service, as its backend sees it.
fn way_back(client: &str, vip: &str, backend: &str, proto: u8) -> FlowRow {
    let (key, high) = key(client, backend, proto);
    let socket: std::net::SocketAddr = client.parse().unwrap();
    let initiator = if high { flow_flag::INITIATOR_HIGH } else { 0 };
    let flow = Flow {
        role: role::REPLY,
        flags: flow_flag::REPLIED | flow_flag::CONFIRMED | initiator,
        xlat_addr: addr(ip(vip)),
        xlat_port: 80_u16.to_be(),
        client_port: socket.port().to_be(),
        service: SERVICE,
        backend: 1,
        backend_generation: 1,
        created: now(),
        last_seen: now(),
        owner: 1,
        ..Flow::default()
    };
    FlowRow { key, flow, established: true }
}

#[test]
fn a_client_without_a_free_port_is_refused_by_name() {
    isolated(|| {
        for (pod, first, second, backend) in [
            ("10.0.0.1", "10.96.0.1:80", "10.96.0.2:80", "10.1.0.1:8080"),
            ("[fd00::1]", "[fd96::1]:80", "[fd96::2]:80", "[fd01::1]:8080"),
        ] {
            // A half-closed connection may still carry a download.
            for (proto, state) in [(TCP, 0), (TCP, flow_flag::FIN_FORWARD), (UDP, 0)] {
                let rig = Rig::with(|config| {
                    config.flows = 131_072;
                    config.flows_per_pod = 131_072;
                });
                rig.service(ip(first), 80, proto, &[(ip(backend), 8080)]);
                rig.service(ip(second), 80, proto, &[(ip(backend), 8080)]);
                for port in 1024..=u16::MAX {
                    let mut row = way_back(&format!("{pod}:{port}"), first, backend, proto);
                    row.flow.flags |= state;
                    locked(&rig.datapath.established).insert(row.key, row.flow, 0).unwrap();
                }
                let before = rig.datapath.flows().unwrap().len();
                assert_eq!(before, 64_512);
                let client = &format!("{pod}:40000");
                let make = |from: &str, to: &str, segment| {
                    if proto == TCP { tcp(from, to, segment) } else { udp(from, to) }
                };
                let new = make(client, second, Segment::Syn);
                for _ in 0..20 {
                    assert_eq!(rig.pod_sends(&new).verdict, SHOT);
                }
                assert_eq!(rig.drops(reason::NO_SOURCE_PORT), 20);
                let counts = rig.datapath.flow_counts().unwrap();
                assert_eq!(counts[flow_count::PORTS_TRANSLATED as usize], 0);
                assert_eq!(counts[flow_count::OPENED as usize], 0);
                assert_eq!(rig.datapath.flows().unwrap().len(), before, "nothing is recorded of them");
                let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
                let event = runtime.block_on(async {
                    rig.datapath.take_events().unwrap().expect("nobody took it").next().await.unwrap()
                });
                assert_eq!(
                    (event.reason, event.stage, event.endpoint, event.ifindex),
                    (reason::NO_SOURCE_PORT, stage::POD_EGRESS, 1, IFINDEX)
                );
                let (source, destination) = (addr(ip(client)), addr(ip(second)));
                assert_eq!((event.source, event.destination), (source, destination));
                assert_eq!(event.source_port, 40_000_u16.to_be());

                // Those that have the ports go on.
                let back = rig.pod_receives(&make(backend, client, Segment::Ack));
                assert_eq!(read(&back.packet).source.to_string(), first);
                // When one ends, its port is free for another Service.
                let (key, _) = key(client, backend, proto);
                assert_eq!(rig.datapath.remove_flows(&[key]).unwrap(), 1);
                let sent = read(&rig.pod_sends(&new).packet);
                assert_eq!(
                    (sent.source.to_string(), sent.destination.to_string()),
                    (client.clone(), backend.into())
                );
                assert_eq!(rig.drops(reason::NO_SOURCE_PORT), 20);
            }
        }
    });
}

#[test]
fn ports_of_flows_that_are_over_are_free() {
    isolated(|| {
        for (pod, first, second, backend) in [
            ("10.0.0.1", "10.96.0.1:80", "10.96.0.2:80", "10.1.0.1:8080"),
            ("[fd00::1]", "[fd96::1]:80", "[fd96::2]:80", "[fd01::1]:8080"),
        ] {
            for (proto, closed) in [(TCP, false), (TCP, true), (UDP, false)] {
                let rig = Rig::with(|config| config.nursery = 262_144);
                rig.service(ip(first), 80, proto, &[(ip(backend), 8080)]);
                rig.service(ip(second), 80, proto, &[(ip(backend), 8080)]);
                let make = |from: &str, to: &str| {
                    if proto == TCP { tcp(from, to, Segment::Syn) } else { udp(from, to) }
                };
                // Two that live, the first of which has the port that is wanted.
                let (client, other) = (&format!("{pod}:40000"), &format!("{pod}:50000"));
                for client in [client, other] {
                    rig.pod_sends(&make(client, first));
                }
                // All other ports were used, and their flows ended: all of the second client port, as it were.
                for port in (1024..=u16::MAX).filter(|port| ![40_000, 50_000].contains(port)) {
                    let mut row = way_back(&format!("{pod}:{port}"), first, backend, proto);
                    row.flow.client_port = 50_000_u16.to_be();
                    if closed {
                        row.flow.flags |= flow_flag::FIN_BOTH;
                    } else {
                        let lifetime = lifetime(&row.flow, proto, &Limits::DEFAULT);
                        row.flow.last_seen = now().wrapping_sub(lifetime + 1);
                    }
                    locked(&rig.datapath.nursery).insert(row.key, row.flow, 0).unwrap();
                }
                let sent = read(&rig.pod_sends(&make(client, second)).packet);
                assert_eq!(sent.destination.to_string(), backend);
                assert_ne!(sent.source.to_string(), *client, "that is the first's");
                assert_eq!(rig.drops(reason::NO_SOURCE_PORT), 0);
                let answer = |to: &str| {
                    let frame =
                        if proto == TCP { tcp(backend, to, Segment::SynAck) } else { udp(backend, to) };
                    let seen = read(&rig.pod_receives(&frame).packet);
                    (seen.source.to_string(), seen.destination.to_string())
                };
                assert_eq!(answer(&sent.source.to_string()), (second.to_owned(), client.clone()));
                // Nothing was taken from those that live.
                for client in [client, other] {
                    let (key, _) = key(client, first, proto);
                    assert!(rig.datapath.flows().unwrap().iter().any(|row| row.key == key), "{client}");
                    assert_eq!(answer(client), (first.to_owned(), client.clone()));
                }
            }
        }
    });
}
