//! What the programs do to single packets.

use super::frames::{Segment, TCP, UDP, addr, ip, read, tcp, udp};
use super::rig::{IFINDEX, OTHER_IFINDEX, Rig, SERVICE, frontend_key, isolated, pod, run, uplink};
use crate::datapath::test_run::Stage;
use netd_bpf::event::{path, reason, stage};
use netd_bpf::flow::{flow_flag, role};
use netd_bpf::service::{backend_state, kind};
use std::collections::BTreeMap;

const OK: i32 = 0;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

/// A client, a Service and backends that it may have.
struct Family {
    client: &'static str,
    vip: &'static str,
    backends: [&'static str; 3],
}

const FAMILIES: [Family; 2] = [
    Family {
        client: "10.0.0.1:1000",
        vip: "10.96.0.1:80",
        backends: ["10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"],
    },
    Family {
        client: "[fd00::1]:1000",
        vip: "[fd96::1]:80",
        backends: ["[fd01::1]:80", "[fd01::2]:80", "[fd01::3]:80"],
    },
];

impl Family {
    /// A rig with the Service, which has the first so many of the backends.
    fn rig(&self, proto: u8, backends: usize) -> Rig {
        let rig = Rig::new();
        let backends: Vec<_> = self.backends.iter().take(backends).map(|at| (ip(at), 80)).collect();
        rig.service(ip(self.vip), 80, proto, &backends);
        rig
    }

    /// Where a segment of the client to the Service goes.
    fn sent(&self, rig: &Rig, segment: Segment) -> String {
        read(&rig.pod_sends(&tcp(self.client, self.vip, segment)).packet).destination.to_string()
    }

    /// As whom the client hears the first backend.
    fn answer(&self, rig: &Rig) -> String {
        let [backend, ..] = self.backends;
        read(&rig.pod_receives(&udp(backend, self.client)).packet).source.to_string()
    }
}

/// Removes the row of the way back, as if it had been evicted.
fn lose_the_way_back(rig: &Rig) {
    let all = rig.datapath.flows().unwrap();
    let reply = all.iter().find(|row| row.flow.role == role::REPLY).unwrap();
    rig.datapath.remove_flow(&reply.key).unwrap();
}

#[test]
fn a_pod_reaches_its_neighbour_directly() {
    isolated(|| {
        let rig = Rig::new();
        for (from, to) in [("10.0.0.1:1000", "10.0.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")] {
            let ran = rig.pod_sends(&tcp(from, to, Segment::Syn));
            assert_eq!(ran.verdict, REDIRECT);
            let seen = read(&ran.packet);
            assert_eq!(
                (seen.source, seen.destination, seen.ttl),
                (from.parse().unwrap(), to.parse().unwrap(), 63)
            );
            assert_eq!(ran.packet[..6], [2, 0, 0, 0, 1, 2], "the neighbour's MAC address");
        }
        let paths: BTreeMap<_, _> = rig.datapath.path_counts().unwrap().into_iter().collect();
        assert_eq!(paths["peer"].packets, 2);
    });
}

#[test]
fn a_spoofed_source_is_dropped_and_told() {
    isolated(|| {
        let rig = Rig::new();
        for (number, frame) in [
            tcp("10.0.0.9:1000", "10.0.0.2:80", Segment::Syn),
            tcp("[fd00::9]:1000", "[fd00::2]:80", Segment::Syn),
            udp("[fe80::5]:1000", "[fd00::2]:80"),
        ]
        .iter()
        .enumerate()
        {
            assert_eq!(rig.pod_sends(frame).verdict, SHOT, "frame {number}");
        }
        assert_eq!(rig.drops(reason::SPOOFED_SOURCE), 3);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let event = runtime.block_on(async {
            rig.datapath.take_events().unwrap().expect("nobody took it").next().await.unwrap()
        });
        assert_eq!(
            (event.reason, event.stage, event.endpoint),
            (reason::SPOOFED_SOURCE, stage::POD_EGRESS, 1)
        );
        assert_eq!((event.source, event.destination), (addr("10.0.0.9"), addr("10.0.0.2")));
        assert_eq!((event.source_port, event.destination_port), (1000_u16.to_be(), 80_u16.to_be()));
        assert_eq!((event.proto, event.ifindex), (TCP, IFINDEX));
    });
}

#[test]
fn a_pod_without_a_family_may_not_use_it() {
    isolated(|| {
        let rig = Rig::new();
        rig.upsert_pod(&pod(IFINDEX, 1, "", "fd00::1")).unwrap();
        assert_eq!(rig.pod_sends(&tcp("10.0.0.1:1000", "10.0.0.2:80", Segment::Syn)).verdict, SHOT);
        assert_eq!(rig.pod_sends(&tcp("0.0.0.0:1000", "10.0.0.2:80", Segment::Syn)).verdict, SHOT);
        assert_eq!(rig.pod_sends(&tcp("[fd00::1]:1000", "[fd00::2]:80", Segment::Syn)).verdict, REDIRECT);
    });
}

#[test]
fn arp_and_discovery_stay_on_the_link() {
    isolated(|| {
        let rig = Rig::new();
        let arp = |sender: [u8; 4]| {
            let mut frame = vec![0xff; 6];
            frame.extend([2, 0, 0, 0, 1, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 1, 1]);
            frame.extend(sender);
            frame.extend([0, 0, 0, 0, 0, 0, 169, 254, 1, 1]);
            frame
        };
        assert_eq!(rig.pod_sends(&arp([10, 0, 0, 1])).verdict, OK);
        assert_eq!(rig.pod_sends(&arp([0, 0, 0, 0])).verdict, OK, "a probe");
        assert_eq!(rig.pod_sends(&arp([10, 0, 0, 2])).verdict, SHOT, "another pod's address");
        let mut lldp = arp([10, 0, 0, 1]);
        lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
        assert_eq!(rig.pod_sends(&lldp).verdict, SHOT);
        assert_eq!(rig.drops(reason::UNSUPPORTED_ETHERTYPE), 1);
        let mut solicitation = Vec::new();
        etherparse::PacketBuilder::ethernet2([2; 6], [0; 6])
            .ipv6(
                "fe80::1234".parse::<std::net::Ipv6Addr>().unwrap().octets(),
                [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 1],
                255,
            )
            .icmpv6_raw(135, 0, [0; 4])
            .write(&mut solicitation, &[0; 16])
            .unwrap();
        assert_eq!(rig.pod_sends(&solicitation).verdict, OK);
    });
}

#[test]
fn an_unknown_interface_sends_nothing() {
    isolated(|| {
        let rig = Rig::new();
        rig.datapath.remove_pod(&pod(IFINDEX, 1, "10.0.0.1", "fd00::1")).unwrap();
        assert_eq!(rig.pod_sends(&tcp("10.0.0.1:1000", "10.0.0.2:80", Segment::Syn)).verdict, SHOT);
        assert_eq!(rig.drops(reason::UNKNOWN_INTERFACE), 1);
    });
}

#[test]
fn cut_headers_are_malformed() {
    isolated(|| {
        let rig = Rig::new();
        for (from, to) in [("10.0.0.1:1000", "10.0.0.2:80"), ("[fd00::1]:1000", "[fd00::2]:80")] {
            let frame = tcp(from, to, Segment::Syn);
            let whole = frame.len() - 7;
            // A test run takes no packet shorter than its IP header.
            let network = if from.starts_with('[') { 54 } else { 34 };
            for length in network..whole - 6 {
                assert_eq!(rig.pod_sends(&frame[..length]).verdict, SHOT, "{length} of {whole} bytes");
            }
        }
        assert!(rig.drops(reason::MALFORMED) > 20);
    });
}

#[test]
fn a_service_is_translated_both_ways() {
    isolated(|| {
        let uplink = uplink();
        for (client, vip, backend) in
            [("10.0.0.1", "10.96.0.1", "10.0.0.2"), ("fd00::1", "fd96::1", "fd00::2")]
        {
            for proto in [TCP, UDP] {
                let rig = Rig::new();
                rig.service(vip, 80, proto, &[(backend, 8080)]);
                let wrap = |ip: &str, port: u16| {
                    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
                };
                let make = |from: String, to: String, segment| {
                    if proto == TCP { tcp(&from, &to, segment) } else { udp(&from, &to) }
                };
                let sent = rig.pod_sends(&make(wrap(client, 1000), wrap(vip, 80), Segment::Syn));
                assert_eq!(sent.verdict, REDIRECT);
                assert_eq!(read(&sent.packet).destination, wrap(backend, 8080).parse().unwrap());

                let reply = make(wrap(backend, 8080), wrap(client, 1000), Segment::Ack);
                let back = rig.pod_receives(&reply);
                assert_eq!(back.verdict, OK);
                assert_eq!(read(&back.packet).source, wrap(vip, 80).parse().unwrap());
                let mut reply = reply;
                let back = rig.datapath.test_run(Stage::UplinkIn, &reply, uplink, false, 1).unwrap();
                assert_eq!((back.verdict, &back.packet), (OK, &reply), "for another host");
                reply[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x99]);
                let from_outside =
                    || rig.datapath.test_run(Stage::UplinkIn, &reply, uplink, false, 1).unwrap();
                assert_eq!(from_outside().verdict, SHOT, "a pod of this node is not outside");
                assert_eq!(rig.drops(reason::SPOOFED_SOURCE), 1);
                rig.datapath.remove_pod(&pod(OTHER_IFINDEX, 2, "10.0.0.2", "fd00::2")).unwrap();
                let back = from_outside();
                assert_eq!(back.verdict, REDIRECT);
                assert_eq!(read(&back.packet).source, wrap(vip, 80).parse().unwrap());

                let flows = rig.datapath.flows().unwrap();
                let mut roles: Vec<u8> = flows.iter().map(|row| row.flow.role).collect();
                roles.sort_unstable();
                assert_eq!(roles, [role::FORWARD, role::REPLY]);
                assert!(flows.iter().all(|row| row.flow.service == SERVICE && row.flow.backend == 1));
            }
        }
    });
}

#[test]
fn udp_without_checksum_keeps_none() {
    isolated(|| {
        // The other family too: RFC 6936 §5 lets nobody on the way put one there.
        for (client, vip, backend, at) in [
            ("10.0.0.1:1000", "10.96.0.1:53", "10.0.0.2:5353", 40),
            ("[fd00::1]:1000", "[fd96::1]:53", "[fd00::2]:5353", 60),
        ] {
            let rig = Rig::new();
            rig.service(ip(vip), 53, UDP, &[(ip(backend), 5353)]);
            let without = |from: &str, to: &str| {
                let mut frame = udp(from, to);
                assert_ne!(frame[at..at + 2], [0, 0], "{at} is where it stands");
                frame[at..at + 2].copy_from_slice(&[0, 0]);
                frame
            };
            let ran = rig.pod_sends(&without(client, vip));
            assert_eq!(ran.verdict, REDIRECT);
            assert_eq!(ran.packet[at..at + 2], [0, 0], "forth");
            assert_eq!(read(&ran.packet).destination, backend.parse().unwrap());
            let back = rig.pod_receives(&without(backend, client));
            assert_eq!(back.verdict, OK);
            assert_eq!(back.packet[at..at + 2], [0, 0], "back");
            assert_eq!(read(&back.packet).source, vip.parse().unwrap());
        }
    });
}

#[test]
fn one_port_with_two_protocols_is_two_services() {
    isolated(|| {
        for [client, vip, neighbour] in [
            ["10.0.0.1:1000", "10.96.0.1:53", "10.0.0.2:5353"],
            ["[fd00::1]:1000", "[fd96::1]:53", "[fd00::2]:5353"],
        ] {
            let rig = Rig::new();
            rig.service(ip(vip), 53, UDP, &[(ip(neighbour), 5353)]);
            let sent = rig.pod_sends(&udp(client, vip));
            assert_eq!(
                (sent.verdict, read(&sent.packet).destination),
                (REDIRECT, neighbour.parse().unwrap())
            );
            let ran = rig.pod_sends(&tcp(client, vip, Segment::Syn));
            assert_eq!(read(&ran.packet).destination, vip.parse().unwrap(), "not a TCP Service");
        }
    });
}

#[test]
fn backends_get_equal_shares() {
    isolated(|| {
        let rig = Rig::new();
        rig.service("10.96.0.1", 80, TCP, &[("10.1.0.1", 80), ("10.1.0.2", 80), ("10.1.0.3", 80)]);
        let mut shares = [0_u32; 3];
        for port in 0..3000 {
            let ran =
                rig.pod_sends(&tcp(&format!("10.0.0.1:{}", 10_000 + port), "10.96.0.1:80", Segment::Syn));
            let text = read(&ran.packet).destination.ip().to_string();
            shares[usize::from(text.as_bytes()[text.len() - 1] - b'1')] += 1;
        }
        let chi2: f64 = shares.iter().map(|share| (f64::from(*share) - 1000.0).powi(2) / 1000.0).sum();
        // Two degrees of freedom: p = exp(-χ²/2) > 0.00001.
        assert!(chi2 < 23.0, "{shares:?}");
    });
}

#[test]
fn an_open_connection_stays_and_udp_moves_when_its_backend_goes() {
    isolated(|| {
        let rig = Rig::new();
        rig.service("10.96.0.1", 80, TCP, &[("10.1.0.1", 80)]);
        rig.frontend("10.96.0.1", 80, UDP, kind::BALANCE, 1);
        let tcp_packet = |segment| tcp("10.0.0.1:1000", "10.96.0.1:80", segment);
        let destination = |ran: crate::datapath::test_run::Ran| read(&ran.packet).destination.to_string();
        assert_eq!(destination(rig.pod_sends(&tcp_packet(Segment::Syn))), "10.1.0.1:80");
        assert_eq!(destination(rig.pod_sends(&udp("10.0.0.1:1000", "10.96.0.1:80"))), "10.1.0.1:80");

        rig.backend(1, "10.1.0.1", 80, TCP, backend_state::FREE, 2);
        rig.backend(2, "10.1.0.2", 80, TCP, backend_state::ACTIVE, 1);
        rig.datapath.set_slots(0, &[2]).unwrap();
        assert_eq!(destination(rig.pod_sends(&tcp_packet(Segment::Ack))), "10.1.0.1:80", "open");
        assert_eq!(destination(rig.pod_sends(&udp("10.0.0.1:1000", "10.96.0.1:80"))), "10.1.0.2:80");
        assert_eq!(destination(rig.pod_sends(&tcp_packet(Segment::Syn))), "10.1.0.2:80", "a new one");
    });
}

#[test]
fn a_reused_port_after_a_close_chooses_anew() {
    isolated(|| {
        for family in &FAMILIES {
            for close in [Segment::Fin, Segment::Rst] {
                let rig = family.rig(TCP, 1);
                let [first, second, _] = family.backends;
                family.sent(&rig, Segment::Syn);
                // The server closes: only the row of the way back sees it, and tells the other.
                let closes = || drop(rig.pod_receives(&tcp(first, family.client, close)));
                closes();
                let flows = rig.datapath.flows().unwrap();
                assert!(flows.iter().all(|row| row.flow.flags & flow_flag::CLOSING != 0));
                rig.backend(2, ip(second), 80, TCP, backend_state::ACTIVE, 1);
                rig.datapath.set_slots(0, &[2]).unwrap();
                assert_eq!(family.sent(&rig, Segment::Ack), first, "the last ACK");
                if close == Segment::Rst {
                    // There is nothing that it could be an ACK to.
                    closes();
                }
                assert_eq!(family.sent(&rig, Segment::Syn), second);
            }
        }
    });
}

/// Listener of the node, backend, client and Service of each family.
const LISTENERS: [[&str; 4]; 2] = [
    ["169.254.20.10:53", "10.0.0.2:53", "10.0.0.1", "10.96.0.10:53"],
    ["[fd00:20::10]:53", "[fd00::2]:53", "[fd00::1]", "[fd96::10]:53"],
];

/// Runs with a Service that has a listener of the node; `ask` opens a flow from a port, or goes on with one.
fn with_a_listener(test: impl Fn(&dyn Fn(u16) -> (i32, String), [&str; 4])) {
    run(&["ip", "address", "add", "169.254.20.10/32", "dev", "lo"]);
    run(&["ip", "address", "add", "fd00:20::10/128", "dev", "lo", "nodad"]);
    for [listener, backend, client, vip] in LISTENERS {
        for proto in [TCP, UDP] {
            let rig = Rig::new();
            rig.backend(1, ip(listener), 53, proto, backend_state::ACTIVE, 1);
            rig.backend(2, ip(backend), 53, proto, backend_state::ACTIVE, 1);
            rig.datapath.set_slots(0, &[1, 2]).unwrap();
            rig.frontend(ip(vip), 53, proto, kind::LOCAL_REDIRECT, 1);
            let ask = |port: u16| {
                let from = format!("{client}:{port}");
                let frame = if proto == TCP { tcp(&from, vip, Segment::Syn) } else { udp(&from, vip) };
                let ran = rig.pod_sends(&frame);
                (ran.verdict, read(&ran.packet).destination.to_string())
            };
            test(&ask, [listener, backend, client, vip]);
        }
    }
}

fn listen(at: &str) -> (std::net::TcpListener, std::net::UdpSocket) {
    (std::net::TcpListener::bind(at).unwrap(), std::net::UdpSocket::bind(at).unwrap())
}

#[test]
fn a_local_redirect_is_used_while_somebody_listens() {
    isolated(|| {
        with_a_listener(|ask, [listener, backend, ..]| {
            assert_eq!(ask(1000), (REDIRECT, backend.to_owned()), "nobody listens");
            let listeners = listen(listener);
            assert_eq!(ask(1001), (OK, listener.to_owned()));
            drop(listeners);
            assert_eq!(ask(1002), (REDIRECT, backend.to_owned()));
        });
    });
}

#[test]
fn a_flow_leaves_a_local_listener_that_is_gone_with_its_next_packet() {
    isolated(|| {
        with_a_listener(|ask, [listener, backend, ..]| {
            let listeners = listen(listener);
            for _ in 0..2 {
                assert_eq!(ask(1000), (OK, listener.to_owned()));
            }
            drop(listeners);
            for _ in 0..2 {
                assert_eq!(ask(1000), (REDIRECT, backend.to_owned()), "nobody takes it there");
            }
        });
    });
}

#[test]
fn other_nodes_are_reached_by_the_nodes_routes() {
    isolated(|| {
        run(&["ip", "link", "add", "up0", "type", "veth", "peer", "name", "far0"]);
        run(&["ip", "address", "add", "192.0.2.1/24", "dev", "up0"]);
        run(&["ip", "address", "add", "2001:db8::1/64", "dev", "up0", "nodad"]);
        run(&["ip", "link", "set", "up0", "up"]);
        run(&["ip", "link", "set", "far0", "up"]);
        run(&["ip", "route", "add", "10.1.0.0/24", "via", "192.0.2.2"]);
        run(&["ip", "-6", "route", "add", "fd00:1::/64", "via", "2001:db8::2"]);
        run(&["ip", "route", "add", "blackhole", "10.2.0.0/24"]);
        run(&["sysctl", "-qw", "net.ipv4.conf.all.forwarding=1", "net.ipv6.conf.all.forwarding=1"]);
        let rig = Rig::new();
        for (from, to) in [("10.0.0.1:1000", "10.1.0.7:80"), ("[fd00::1]:1000", "[fd00:1::7]:80")] {
            let ran = rig.pod_sends(&tcp(from, to, Segment::Syn));
            assert_eq!((ran.verdict, read(&ran.packet).ttl), (REDIRECT, 63), "{to}");
        }
        let paths: BTreeMap<_, _> = rig.datapath.path_counts().unwrap().into_iter().collect();
        assert_eq!(paths["neighbor"].packets, 2);
        assert_eq!(
            rig.pod_sends(&tcp("10.0.0.1:1000", "192.0.2.1:80", Segment::Syn)).verdict,
            OK,
            "the node"
        );
        assert_eq!(rig.pod_sends(&tcp("10.0.0.1:1000", "10.9.0.1:80", Segment::Syn)).verdict, OK, "no route");
        assert_eq!(rig.pod_sends(&tcp("10.0.0.1:1000", "10.2.0.1:80", Segment::Syn)).verdict, SHOT);
        assert_eq!(rig.drops(reason::NO_ROUTE), 1);
    });
}

#[test]
fn what_the_stack_brought_is_answered_by_the_stack() {
    isolated(|| {
        let rig = Rig::new();
        for (pod, neighbour) in [("10.0.0.1:80", "10.0.0.2:1000"), ("[fd00::1]:80", "[fd00::2]:1000")] {
            for (proto, make) in
                [(TCP, tcp as fn(&str, &str, Segment) -> Vec<u8>), (UDP, |a, b, _| udp(a, b))]
            {
                // As a hostPort's DNAT leaves it: only the stack can undo that in the answer.
                assert_eq!(rig.pod_receives(&make(neighbour, pod, Segment::Syn)).verdict, OK);
                let answer = make(pod, neighbour, Segment::Ack);
                let ran = rig.pod_sends(&answer);
                assert_eq!((ran.verdict, &ran.packet), (OK, &answer), "{pod} protocol {proto}");
                let own = make(pod, &neighbour.replace("1000", "1001"), Segment::Syn);
                assert_eq!(rig.pod_sends(&own).verdict, REDIRECT, "a flow of the pod's own");
            }
        }
    });
}

#[test]
fn an_explain_run_tells_and_changes_nothing() {
    isolated(|| {
        let rig = Rig::new();
        rig.service("10.96.0.1", 80, TCP, &[("10.0.0.2", 8080)]);
        let explain = |frame: &[u8]| {
            let ran = rig.datapath.test_run(Stage::PodEgress, frame, IFINDEX, true, 1).unwrap();
            (ran.verdict, ran.explained.expect("an answer"))
        };
        let (verdict, answer) = explain(&tcp("10.0.0.1:1000", "10.96.0.1:80", Segment::Syn));
        assert_eq!(verdict, REDIRECT);
        assert_eq!(answer.outcome, path::PEER | u32::from(stage::POD_EGRESS) << 16);
        assert_eq!((answer.service, answer.backend, answer.ifindex), (SERVICE, 1, OTHER_IFINDEX));
        let (verdict, answer) = explain(&tcp("10.0.0.9:1000", "10.96.0.1:80", Segment::Syn));
        assert_eq!(verdict, SHOT);
        assert_eq!(answer.outcome >> 8 & 0xff, u32::from(reason::SPOOFED_SOURCE));
        assert!(rig.datapath.flows().unwrap().is_empty());
        assert!(rig.datapath.drop_counts().unwrap().is_empty());
        assert!(rig.datapath.path_counts().unwrap().iter().all(|(_, count)| count.packets == 0));
    });
}

#[test]
fn an_evicted_half_comes_back() {
    isolated(|| {
        for family in &FAMILIES {
            let rig = family.rig(UDP, 1);
            let send = || rig.pod_sends(&udp(family.client, family.vip));
            send();
            lose_the_way_back(&rig);
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while !rig.datapath.flows().unwrap().iter().any(|row| row.flow.role == role::REPLY) {
                assert!(std::time::Instant::now() < deadline, "the way back stays lost");
                send();
            }
            assert_eq!(family.answer(&rig), family.vip);
        }
    });
}

#[test]
fn a_reply_without_its_half_does_not_take_the_place_for_good() {
    isolated(|| {
        for family in &FAMILIES {
            let rig = family.rig(UDP, 1);
            let send = || rig.pod_sends(&udp(family.client, family.vip));
            send();
            lose_the_way_back(&rig);
            assert_eq!(family.answer(&rig), family.backends[0], "nothing knows it");
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
            while family.answer(&rig) != family.vip {
                assert!(std::time::Instant::now() < deadline, "the way back stays lost");
                send();
            }
        }
    });
}

#[test]
fn a_direct_flow_to_a_former_backend_leaves_the_open_one_alone() {
    isolated(|| {
        for family in &FAMILIES {
            let rig = family.rig(TCP, 3);
            let [first, second, _] = family.backends;
            let choose = |id| rig.datapath.set_slots(0, &[id]).unwrap();
            rig.frontend(ip(family.vip), 80, TCP, kind::BALANCE, 1);
            choose(1);
            assert_eq!(family.sent(&rig, Segment::Syn), first);
            family.sent(&rig, Segment::Rst);
            choose(2);
            assert_eq!(family.sent(&rig, Segment::Syn), second);
            choose(3);
            rig.pod_sends(&tcp(family.client, first, Segment::Syn));
            assert_eq!(family.sent(&rig, Segment::Ack), second, "it is open");
        }
    });
}

#[test]
fn an_ipv4_address_in_an_ipv6_header_is_nobodys() {
    isolated(|| {
        let rig = Rig::new();
        rig.service("10.96.0.1", 80, TCP, &[("10.0.0.2", 8080)]);
        for (from, to) in [
            ("[fd00::1]:1000", "[::ffff:10.96.0.1]:80"),
            ("[fd00::1]:1000", "[::ffff:10.0.0.2]:80"),
            ("[::ffff:10.0.0.1]:1000", "[fd00::2]:80"),
        ] {
            assert_eq!(rig.pod_sends(&tcp(from, to, Segment::Syn)).verdict, SHOT, "{from} to {to}");
        }
        assert_eq!(rig.drops(reason::MALFORMED), 3);
        rig.pod_receives(&tcp("[::ffff:10.1.0.1]:80", "[::ffff:10.0.0.1]:1000", Segment::Syn));
        assert!(rig.datapath.flows().unwrap().is_empty());
    });
}

#[test]
fn a_deleted_frontend_is_gone_for_new_flows() {
    isolated(|| {
        let rig = Rig::new();
        rig.service("10.96.0.1", 80, TCP, &[("10.1.0.1", 80)]);
        rig.pod_sends(&tcp("10.0.0.1:1000", "10.96.0.1:80", Segment::Syn));
        rig.datapath.delete_frontend(&frontend_key("10.96.0.1", 80, TCP)).unwrap();
        let open = rig.pod_sends(&tcp("10.0.0.1:1000", "10.96.0.1:80", Segment::Ack));
        assert_eq!(read(&open.packet).destination.to_string(), "10.1.0.1:80");
        let new = rig.pod_sends(&tcp("10.0.0.1:1001", "10.96.0.1:80", Segment::Syn));
        assert_eq!(read(&new.packet).destination.to_string(), "10.96.0.1:80");
    });
}

#[test]
fn a_flow_older_than_its_service_finds_it_while_nobody_answered() {
    isolated(|| {
        let rig = Rig::new();
        let destination = |frame: &[u8]| read(&rig.pod_sends(frame).packet).destination.to_string();
        let syn = tcp("10.0.0.1:1000", "10.96.0.1:80", Segment::Syn);
        let datagram = udp("10.0.0.1:1000", "10.96.0.1:80");
        assert_eq!(destination(&syn), "10.96.0.1:80");
        assert_eq!(destination(&datagram), "10.96.0.1:80");
        rig.service("10.96.0.1", 80, TCP, &[("10.1.0.1", 8080)]);
        rig.frontend("10.96.0.1", 80, UDP, kind::BALANCE, 1);
        assert_eq!(destination(&syn), "10.1.0.1:8080", "the same SYN again");
        assert_eq!(destination(&datagram), "10.1.0.1:8080");
    });
}

#[test]
fn an_answered_flow_is_never_taken_over_by_a_new_service() {
    isolated(|| {
        for Family { client, backends: [backend, server, _], .. } in FAMILIES {
            let rig = Rig::new();
            rig.pod_sends(&tcp(client, server, Segment::Syn));
            rig.pod_receives(&tcp(server, client, Segment::Ack));
            rig.service(ip(server), 80, TCP, &[(ip(backend), 80)]);
            let ran = rig.pod_sends(&tcp(client, server, Segment::Ack));
            assert_eq!(read(&ran.packet).destination.to_string(), server);
        }
    });
}

#[test]
fn a_pod_that_is_its_own_backend_is_answered() {
    isolated(|| {
        for (own, vip, gateway) in
            [("10.0.0.1", "10.96.0.1", "169.254.1.1"), ("[fd00::1]", "[fd96::1]", "[fd6e:6574:6400::1]")]
        {
            let rig = Rig::new();
            let bare = |text: &str| text.trim_matches(['[', ']']).to_owned();
            rig.service(&bare(vip), 80, TCP, &[(&bare(own), 8080)]);
            for segment in [Segment::Syn, Segment::Ack] {
                let asked = rig.pod_sends(&tcp(&format!("{own}:1000"), &format!("{vip}:80"), segment));
                assert_eq!(asked.verdict, REDIRECT);
                let seen = read(&asked.packet);
                assert_eq!(seen.source, format!("{gateway}:1000").parse().unwrap());
                assert_eq!(seen.destination, format!("{own}:8080").parse().unwrap());
                let answer = tcp(&format!("{own}:8080"), &format!("{gateway}:1000"), Segment::Ack);
                let answered = rig.pod_sends(&answer);
                assert_eq!(answered.verdict, REDIRECT);
                let seen = read(&answered.packet);
                assert_eq!(seen.source, format!("{vip}:80").parse().unwrap());
                assert_eq!(seen.destination, format!("{own}:1000").parse().unwrap());
            }
            assert_eq!(rig.datapath.flows().unwrap().len(), 2);
        }
    });
}

#[test]
fn totals_and_details_of_drops_agree() {
    isolated(|| {
        let rig = Rig::new();
        for port in 1..=3 {
            rig.pod_sends(&udp(&format!("10.0.0.9:{port}"), "10.0.0.2:80"));
        }
        let totals = rig.datapath.drop_totals().unwrap();
        let spoofed = |(at, why, _): &&(u8, u8, netd_bpf::event::Count)| {
            (*at, *why) == (stage::POD_EGRESS, reason::SPOOFED_SOURCE)
        };
        assert_eq!(totals.iter().find(spoofed).unwrap().2.packets, 3);
        assert_eq!(totals.iter().map(|(_, _, count)| count.packets).sum::<u64>(), 3);
        assert_eq!(rig.drops(reason::SPOOFED_SOURCE), 3);
    });
}
