//! ICMP errors about packets of translated flows. What comes out is compared byte by byte with the error that
//! the receiver should see, made by an implementation that is not ours, checksums included.

use super::frames::{
    EXCEEDED, IcmpError, PROBLEM, Segment, TCP, TOO_BIG, UDP, UNREACHABLE, ip, long_udp, packet, raw, read,
    tcp, udp,
};
use super::rig::{IFINDEX, OTHER_IFINDEX, Rig, isolated, pod, uplink};
use crate::datapath::FlowRow;
use crate::datapath::test_run::{Ran, Stage};
use netd_bpf::event::reason;
use netd_bpf::service::backend_state;

const OK: i32 = 0;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

/// Client (pod 1), frontend, another frontend, backend, router.
type Names = (&'static str, &'static str, &'static str, &'static str, &'static str);
const FAR: [Names; 2] = [
    ("10.0.0.1:1000", "10.96.0.1:80", "10.96.0.2:80", "10.1.0.1:8080", "192.0.2.1"),
    ("[fd00::1]:1000", "[fd96::1]:80", "[fd96::2]:80", "[fd01::1]:8080", "2001:db8::1"),
];
/// The same with a backend of this node, pod 2.
const NEAR: [Names; 2] = [
    ("10.0.0.1:1000", "10.96.0.1:80", "10.96.0.2:80", "10.0.0.2:8080", "192.0.2.1"),
    ("[fd00::1]:1000", "[fd96::1]:80", "[fd96::2]:80", "[fd00::2]:8080", "2001:db8::1"),
];
const ERRORS: [IcmpError; 4] = [UNREACHABLE, TOO_BIG, EXCEEDED, PROBLEM];

fn make(proto: u8, from: &str, to: &str) -> Vec<u8> {
    if proto == TCP { tcp(from, to, Segment::Syn) } else { udp(from, to) }
}

/// From the IP header on, of what the program left.
fn left(ran: &Ran) -> &[u8] {
    packet(&ran.packet)
}

/// All rows, in an order of their own.
fn rows(rig: &Rig) -> Vec<FlowRow> {
    let mut rows = rig.datapath.flows().unwrap();
    rows.sort_by_key(|row| format!("{:?}", row.key));
    rows
}

/// The test run's interface is that of pod 2 from now on.
fn trade_places(rig: &Rig) {
    rig.upsert_pod(&pod(OTHER_IFINDEX, 1, "10.0.0.1", "fd00::1")).unwrap();
    rig.upsert_pod(&pod(IFINDEX, 2, "10.0.0.2", "fd00::2")).unwrap();
}

#[test]
fn an_error_about_what_a_client_sent_names_its_service() {
    isolated(|| {
        let uplink = uplink();
        for (client, vip, _, backend, router) in FAR {
            for proto in [TCP, UDP] {
                let rig = Rig::new();
                rig.service(ip(vip), 80, proto, &[(ip(backend), 8080)]);
                let sent = make(proto, client, vip);
                let on_wire = rig.pod_sends(&sent).packet;
                assert_eq!(read(&on_wire).destination.to_string(), backend);
                let rows_before = rows(&rig);
                let quoted = make(proto, client, backend);
                for error in ERRORS {
                    // From a router, which keeps its name, and from the backend, which speaks as the Service.
                    for (speaker, as_seen) in [(router, router), (ip(backend), ip(vip))] {
                        let mut came = error.frame(speaker, ip(client), 60, packet(&quoted));
                        let expected = error.frame(as_seen, ip(client), 60, packet(&sent));
                        let ran = rig.pod_receives(&came);
                        assert_eq!((ran.verdict, left(&ran)), (OK, packet(&expected)), "{error:?}");

                        came[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x99]);
                        let ran = rig.datapath.test_run(Stage::UplinkIn, &came, uplink, false, 1).unwrap();
                        let expected = error.frame(as_seen, ip(client), 59, packet(&sent));
                        assert_eq!((ran.verdict, left(&ran)), (REDIRECT, packet(&expected)), "{error:?}");
                    }
                }
                assert_eq!(rows(&rig), rows_before, "an error refreshes nothing and makes nothing");
            }
        }
    });
}

#[test]
fn an_error_from_a_backend_of_this_node_comes_from_its_service() {
    isolated(|| {
        for (client, vip, _, backend, _) in NEAR {
            for proto in [TCP, UDP] {
                let rig = Rig::new();
                rig.service(ip(vip), 80, proto, &[(ip(backend), 8080)]);
                let sent = make(proto, client, vip);
                rig.pod_sends(&sent);
                trade_places(&rig);
                let quoted = make(proto, client, backend);
                for error in ERRORS {
                    let ran = rig.pod_sends(&error.frame(ip(backend), ip(client), 64, packet(&quoted)));
                    let expected = error.frame(ip(vip), ip(client), 63, packet(&sent));
                    assert_eq!((ran.verdict, left(&ran)), (REDIRECT, packet(&expected)), "{error:?}");
                    assert_eq!(ran.packet[..6], [2, 0, 0, 0, 1, 1], "to the client");
                }
            }
        }
    });
}

#[test]
fn a_client_s_error_about_an_answer_reaches_the_backend() {
    isolated(|| {
        for (client, vip, _, backend, _) in NEAR {
            for proto in [TCP, UDP] {
                let rig = Rig::new();
                rig.service(ip(vip), 80, proto, &[(ip(backend), 8080)]);
                rig.pod_sends(&make(proto, client, vip));
                let rows_before = rows(&rig);
                let (seen, sent) = (make(proto, vip, client), make(proto, backend, client));
                for error in ERRORS {
                    let ran = rig.pod_sends(&error.frame(ip(client), ip(vip), 64, packet(&seen)));
                    let expected = error.frame(ip(client), ip(backend), 63, packet(&sent));
                    assert_eq!((ran.verdict, left(&ran)), (REDIRECT, packet(&expected)), "{error:?}");
                    assert_eq!(ran.packet[..6], [2, 0, 0, 0, 1, 2], "to the backend");
                }
                assert_eq!(rows(&rig), rows_before);
            }
        }
    });
}

#[test]
fn a_client_whose_port_was_translated_is_told_of_its_own() {
    isolated(|| {
        for (client, one, other, backend, router) in NEAR {
            for proto in [TCP, UDP] {
                let rig = Rig::new();
                rig.service(ip(one), 80, proto, &[(ip(backend), 8080)]);
                rig.service(ip(other), 80, proto, &[(ip(backend), 8080)]);
                // Through one Service, through another, and straight: the second and third get another port.
                let ports: Vec<String> = [one, other, backend]
                    .map(|target| {
                        read(&rig.pod_sends(&make(proto, client, target)).packet).source.to_string()
                    })
                    .into();
                assert_eq!(ports[0], client);
                assert_ne!(ports[1], client);
                assert_ne!(ports[2], client);
                for (target, port) in [one, other, backend].iter().zip(&ports) {
                    // About what the client sent.
                    let quoted = make(proto, port, backend);
                    let ran = rig.pod_receives(&TOO_BIG.frame(router, ip(client), 60, packet(&quoted)));
                    let expected =
                        TOO_BIG.frame(router, ip(client), 60, packet(&make(proto, client, target)));
                    assert_eq!(left(&ran), packet(&expected), "through {target}");
                    let ran = rig.pod_receives(&TOO_BIG.frame(ip(backend), ip(client), 60, packet(&quoted)));
                    let expected =
                        TOO_BIG.frame(ip(target), ip(client), 60, packet(&make(proto, client, target)));
                    assert_eq!(left(&ran), packet(&expected), "through {target}");
                    // About an answer.
                    let seen = make(proto, target, client);
                    let ran = rig.pod_sends(&UNREACHABLE.frame(ip(client), ip(target), 64, packet(&seen)));
                    let expected =
                        UNREACHABLE.frame(ip(client), ip(backend), 63, packet(&make(proto, backend, port)));
                    assert_eq!((ran.verdict, left(&ran)), (REDIRECT, packet(&expected)), "through {target}");
                }
            }
        }
    });
}

#[test]
fn a_pod_that_reaches_itself_is_told_of_its_own_packets() {
    isolated(|| {
        for ((client, vip, _, _, _), gateway) in NEAR.into_iter().zip(["169.254.1.1", "fd6e:6574:6400::1"]) {
            let rig = Rig::new();
            rig.service(ip(vip), 80, UDP, &[(ip(client), 8080)]);
            rig.pod_sends(&udp(client, vip));
            let own = client.replace(":1000", ":8080");
            let appears =
                if gateway.contains(':') { format!("[{gateway}]:1000") } else { format!("{gateway}:1000") };
            // As a server, about what came.
            let quoted = udp(&appears, &own);
            let ran = rig.pod_sends(&UNREACHABLE.frame(ip(client), gateway, 64, packet(&quoted)));
            let expected = UNREACHABLE.frame(ip(vip), ip(client), 63, packet(&udp(client, vip)));
            assert_eq!((ran.verdict, left(&ran)), (REDIRECT, packet(&expected)));
            // As a client, about the answer.
            let ran = rig.pod_sends(&UNREACHABLE.frame(ip(client), ip(vip), 64, packet(&udp(vip, client))));
            let expected = UNREACHABLE.frame(gateway, ip(client), 63, packet(&udp(&own, &appears)));
            assert_eq!((ran.verdict, left(&ran)), (REDIRECT, packet(&expected)));
        }
    });
}

#[test]
fn what_is_quoted_may_be_short_or_without_checksum() {
    isolated(|| {
        for (client, vip, _, backend, router) in FAR {
            let v6 = client.starts_with('[');
            let header = if v6 { 40 } else { 20 };
            let rig = Rig::new();
            rig.service(ip(vip), 80, TCP, &[(ip(backend), 8080)]);
            rig.service(ip(vip), 80, UDP, &[(ip(backend), 8080)]);
            for proto in [TCP, UDP] {
                let (sent, quoted) = (make(proto, client, vip), make(proto, client, backend));
                rig.pod_sends(&sent);
                // From the eight bytes that must be there (RFC 792) on, around TCP's checksum.
                for length in 8..=packet(&sent).len() - header {
                    let cut = |frame: &[u8]| packet(frame)[..header + length].to_vec();
                    let ran = rig.pod_receives(&TOO_BIG.frame(router, ip(client), 60, &cut(&quoted)));
                    let mut expected = cut(&sent);
                    if proto == TCP && length == 17 {
                        // Half a checksum is none.
                        expected[header + 16] = packet(&quoted)[header + 16];
                    }
                    assert_eq!(left(&ran), packet(&TOO_BIG.frame(router, ip(client), 60, &expected)));
                }
            }
            let none = |frame: &[u8]| {
                let mut frame = packet(frame).to_vec();
                frame[header + 6..header + 8].copy_from_slice(&[0, 0]);
                frame
            };
            let ran = rig.pod_receives(&TOO_BIG.frame(router, ip(client), 60, &none(&udp(client, backend))));
            let expected = TOO_BIG.frame(router, ip(client), 60, &none(&udp(client, vip)));
            assert_eq!(left(&ran), packet(&expected), "no checksum stays none");
            let long = |to: &str| long_udp(client, to, 1100);
            let ran = rig.pod_receives(&TOO_BIG.frame(router, ip(client), 60, packet(&long(backend))));
            let expected = TOO_BIG.frame(router, ip(client), 60, packet(&long(vip)));
            assert_eq!(left(&ran), packet(&expected), "more than a router must quote");
        }
    });
}

#[test]
fn quoted_headers_of_any_length_are_found() {
    isolated(|| {
        let (client, vip, _, backend, router) = FAR[0];
        let rig = Rig::new();
        rig.service(ip(vip), 80, UDP, &[(ip(backend), 8080)]);
        rig.pod_sends(&udp(client, vip));
        let with_options = |to: &str| {
            let plain = udp(client, to);
            let mut quoted = packet(&plain)[..20].to_vec();
            quoted.extend([1, 1, 1, 0]);
            quoted.extend(&packet(&plain)[20..]);
            quoted[0] = 0x46;
            let sum = etherparse::Ipv4Header::from_slice(&quoted).unwrap().0.calc_header_checksum();
            quoted[10..12].copy_from_slice(&sum.to_be_bytes());
            quoted
        };
        let ran = rig.pod_receives(&EXCEEDED.frame(router, ip(client), 60, &with_options(backend)));
        assert_eq!(left(&ran), packet(&EXCEEDED.frame(router, ip(client), 60, &with_options(vip))));

        let (client, vip, _, backend, router) = FAR[1];
        let rig = Rig::new();
        rig.service(ip(vip), 80, UDP, &[(ip(backend), 8080)]);
        rig.pod_sends(&udp(client, vip));
        let with_extension = |to: &str| {
            let plain = udp(client, to);
            let mut quoted = packet(&plain)[..40].to_vec();
            quoted.extend([17, 0, 1, 4, 0, 0, 0, 0]);
            quoted.extend(&packet(&plain)[40..]);
            quoted[6] = 60;
            quoted
        };
        let ran = rig.pod_receives(&EXCEEDED.frame(router, ip(client), 60, &with_extension(backend)));
        assert_eq!(left(&ran), packet(&EXCEEDED.frame(router, ip(client), 60, &with_extension(vip))));
    });
}

#[test]
fn what_names_no_flow_goes_by_its_address_as_it_is() {
    isolated(|| {
        for (client, vip, _, backend, router) in FAR {
            let v6 = client.starts_with('[');
            let rig = Rig::new();
            rig.service(ip(vip), 80, UDP, &[(ip(backend), 8080)]);
            rig.pod_sends(&udp(client, vip));
            let before = rows(&rig);
            let quoted = udp(client, backend);
            let changed = |at: usize, value: u8| {
                let mut quoted = packet(&quoted).to_vec();
                quoted[at] = value;
                quoted
            };
            let elsewhere = udp(&client.replace(":1000", ":1001"), backend);
            let another = udp(if v6 { "[fd00::7]:1000" } else { "10.0.0.7:1000" }, backend);
            let mut strange = vec![
                packet(&elsewhere).to_vec(),
                // What somebody else sent is no matter of this pod.
                packet(&another).to_vec(),
                changed(0, 0x10),
                changed(0, if v6 { 0x45 } else { 0x60 }),
                // Another protocol.
                changed(if v6 { 6 } else { 9 }, 47),
                changed(if v6 { 6 } else { 9 }, 1),
            ];
            if !v6 {
                strange.push(changed(0, 0x44));
                // A later fragment has no ports.
                strange.push(changed(7, 1));
            }
            strange.extend((0..packet(&quoted).len() - 11).map(|n| packet(&quoted)[..n].to_vec()));
            for quoted in strange {
                let came = TOO_BIG.frame(router, ip(client), 60, &quoted);
                let ran = rig.pod_receives(&came);
                assert_eq!((ran.verdict, &ran.packet), (OK, &came), "{quoted:x?}");
            }
            // No error, though it looks like one inside.
            let query: &[(u8, u8)] =
                if v6 { &[(128, 58), (135, 58), (137, 58)] } else { &[(8, 1), (5, 1), (13, 1)] };
            for (kind, proto) in query {
                let mut body = vec![*kind, 0, 0, 0, 0, 0, 0, 0];
                body.extend(packet(&quoted));
                let came = raw(router, ip(client), *proto, &body);
                let ran = rig.pod_receives(&came);
                assert_eq!((ran.verdict, &ran.packet), (OK, &came), "type {kind}");
            }
            // A type of the other family's.
            let mut body = vec![if v6 { 3 } else { 1 }, 1, 0, 0, 0, 0, 0, 0];
            body.extend(packet(&quoted));
            let came = raw(router, ip(client), if v6 { 1 } else { 58 }, &body);
            assert_eq!(rig.pod_receives(&came).packet, came);
            let echoes = |row: &FlowRow| matches!(row.key.proto, 1 | 58);
            let after: Vec<FlowRow> = rows(&rig).into_iter().filter(|row| !echoes(row)).collect();
            assert_eq!(after, before);
        }
    });
}

#[test]
fn a_pod_speaks_of_what_came_to_it_and_in_its_own_name() {
    isolated(|| {
        for (client, vip, _, backend, router) in NEAR {
            let rig = Rig::new();
            rig.service(ip(vip), 80, UDP, &[(ip(backend), 8080)]);
            rig.pod_sends(&udp(client, vip));
            let quoted = udp(vip, client);
            for spoofed in [router, ip(backend), ip(vip)] {
                let ran = rig.pod_sends(&UNREACHABLE.frame(spoofed, ip(vip), 64, packet(&quoted)));
                assert_eq!(ran.verdict, SHOT, "as {spoofed}");
            }
            assert_eq!(rig.drops(reason::SPOOFED_SOURCE), 3);
            // Pod 2 about a packet of pod 1's flow: not translated, so it ends at nobody.
            let strange = UNREACHABLE.frame(ip(backend), ip(vip), 64, packet(&quoted));
            trade_places(&rig);
            let ran = rig.pod_sends(&strange);
            assert_eq!((ran.verdict, &ran.packet), (OK, &strange));
        }
    });
}

#[test]
fn an_error_about_what_the_stack_brought_goes_to_the_stack() {
    isolated(|| {
        let rig = Rig::new();
        for (pod, neighbour) in [("10.0.0.1:80", "10.0.0.2:1000"), ("[fd00::1]:80", "[fd00::2]:1000")] {
            for proto in [TCP, UDP] {
                // As a hostPort's DNAT leaves it: only the stack can undo that in what the error quotes.
                let came = make(proto, neighbour, pod);
                rig.pod_receives(&came);
                let error = UNREACHABLE.frame(ip(pod), ip(neighbour), 64, packet(&came));
                let ran = rig.pod_sends(&error);
                assert_eq!((ran.verdict, &ran.packet), (OK, &error), "{pod} protocol {proto}");
            }
            let other = udp(neighbour, &pod.replace(":80", ":99"));
            let error = UNREACHABLE.frame(ip(pod), ip(neighbour), 64, packet(&other));
            assert_eq!(rig.pod_sends(&error).verdict, REDIRECT, "about another flow");
        }
    });
}

#[test]
fn a_flow_whose_backend_left_is_still_spoken_of() {
    isolated(|| {
        let (client, vip, _, backend, router) = FAR[0];
        let rig = Rig::new();
        rig.service(ip(vip), 80, TCP, &[(ip(backend), 8080)]);
        let sent = tcp(client, vip, Segment::Syn);
        rig.pod_sends(&sent);
        rig.backend(1, ip(backend), 8080, TCP, backend_state::FREE, 2);
        let quoted = tcp(client, backend, Segment::Syn);
        let ran = rig.pod_receives(&UNREACHABLE.frame(router, ip(client), 60, packet(&quoted)));
        assert_eq!(left(&ran), packet(&UNREACHABLE.frame(router, ip(client), 60, packet(&sent))));
    });
}
