//! What a packet of a known flow is judged as: by whom it really is, in the direction in which the flow began, and by
//! the pod at the interface, whatever addresses say.

use super::frames::{
    EXCEEDED, IcmpError, PROBLEM, Segment, TCP, TOO_BIG, UDP, UNREACHABLE, addr, ip, packet, raw, read, tcp,
    udp,
};
use super::rig::{IFINDEX, OTHER_IFINDEX, Rig, isolated, pod, run, uplink};
use crate::datapath::test_run::{Ran, Stage};
use crate::datapath::{Sets, locked};
use netd_bpf::event::reason;
use netd_bpf::flow::{Flow, FlowKey, OF_NODE, flow_flag};
use netd_bpf::policy::{
    Decision, IdentityRow, PolicyKey, PolicyRow, action, identity, identity_flag, set, tier,
};

const OK: i32 = 0;
const SHOT: i32 = 2;
const NO_INGRESS: Sets = Sets { egress: set::OPEN, ingress: set::CLOSED };
const NO_EGRESS: Sets = Sets { egress: set::CLOSED, ingress: set::OPEN };
/// Pod 1 and somebody outside, with ports; the node.
const FAMILIES: [[&str; 3]; 2] = [
    ["10.0.0.1:1000", "192.0.2.7:2000", "192.0.2.1:3000"],
    ["[fd00::1]:1000", "[2001:db8::7]:2000", "[2001:db8::1]:3000"],
];
/// Number of the pod that comes after pod 1.
const SUCCESSOR: u32 = 3;

fn passes(ran: &Ran) -> bool {
    ran.verdict != SHOT
}

/// Gives a pod other policies, as the agent does.
fn isolate(rig: &Rig, endpoint: u32, sets: Sets) {
    rig.datapath.set_policy(endpoint, sets).unwrap();
    rig.datapath.bump_policy_epoch().unwrap();
}

/// Pod 1 goes, and one with its addresses and policies of its own comes.
fn succeed(rig: &Rig, sets: Sets) {
    rig.datapath.remove_pod(&pod(IFINDEX, 1, "10.0.0.1", "fd00::1")).unwrap();
    rig.datapath.set_policy(SUCCESSOR, sets).unwrap();
    rig.datapath.upsert_pod(&pod(IFINDEX, SUCCESSOR, "10.0.0.1", "fd00::1")).unwrap();
}

/// The address is the node's.
fn of_node(rig: &Rig, address: &str) {
    let row = IdentityRow { identity: identity::MARK | 1, flags: identity_flag::NODE, seal: 0 };
    rig.datapath.set_identities(&[(addr(address), row)]).unwrap();
}

/// Puts a row in its place that `from` began towards `to`; gives its key.
fn plant(rig: &Rig, proto: u8, from: &str, to: &str, verdict: impl FnOnce(&FlowKey) -> u32) -> FlowKey {
    let end = |text: &str| {
        let socket: std::net::SocketAddr = text.parse().unwrap();
        (socket.ip().into(), socket.port().to_be())
    };
    let ((from, from_port), (to, to_port)) = (end(from), end(to));
    let mut key = FlowKey::default();
    let high = key.set((&from, from_port), (&to, to_port), proto);
    let state = flow_flag::REPLIED | flow_flag::CONFIRMED;
    let flow = Flow {
        flags: state | if high { flow_flag::INITIATOR_HIGH } else { 0 },
        verdict: verdict(&key),
        last_seen: uptime(),
        ..Flow::default()
    };
    locked(&rig.datapath.nursery).insert(key, flow, 0).unwrap();
    key
}

fn uptime() -> u32 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    time.tv_sec().try_into().unwrap()
}

#[test]
fn nothing_enters_a_pod_as_an_answer_to_the_one_that_had_its_address() {
    isolated(|| {
        let uplink = uplink();
        for [own, other, _] in FAMILIES {
            let rig = Rig::new();
            let gre = |from: &str, to: &str| raw(ip(from), ip(to), 47, &[0; 16]);
            assert!(passes(&rig.pod_sends(&udp(own, other))));
            assert!(passes(&rig.pod_sends(&gre(own, other))));
            assert!(passes(&rig.pod_sends(&tcp(own, other, Segment::Syn))));
            assert!(passes(&rig.pod_receives(&tcp(other, own, Segment::SynAck))));
            assert!(passes(&rig.pod_sends(&tcp(own, other, Segment::Ack))));
            succeed(&rig, NO_INGRESS);
            for _ in 0..2 {
                for mut frame in [
                    udp(other, own),
                    gre(other, own),
                    tcp(other, own, Segment::Ack),
                    tcp(other, own, Segment::Syn),
                ] {
                    assert_eq!(rig.pod_receives(&frame).verdict, SHOT);
                    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x99]);
                    let ran = rig.datapath.test_run(Stage::UplinkIn, &frame, uplink, false, 1).unwrap();
                    assert_eq!(ran.verdict, SHOT);
                }
            }
            assert_eq!(rig.drops(reason::INGRESS_DENIED), 16);
            // What it begins itself is answered, from the same port.
            assert!(passes(&rig.pod_sends(&udp(own, other))));
            assert!(passes(&rig.pod_receives(&udp(other, own))));
            assert!(passes(&rig.pod_sends(&tcp(own, other, Segment::Syn))));
            assert!(passes(&rig.pod_receives(&tcp(other, own, Segment::SynAck))));
        }
    });
}

#[test]
fn nothing_leaves_a_pod_as_an_answer_to_what_the_one_before_it_was_asked() {
    isolated(|| {
        for [own, other, _] in FAMILIES {
            let rig = Rig::new();
            assert!(passes(&rig.pod_receives(&udp(other, own))));
            assert!(passes(&rig.pod_receives(&tcp(other, own, Segment::Syn))));
            succeed(&rig, NO_EGRESS);
            for _ in 0..2 {
                assert_eq!(rig.pod_sends(&udp(own, other)).verdict, SHOT);
                assert_eq!(rig.pod_sends(&tcp(own, other, Segment::SynAck)).verdict, SHOT);
                assert_eq!(rig.pod_sends(&tcp(own, other, Segment::Syn)).verdict, SHOT);
            }
            // Asked anew, it answers.
            assert!(passes(&rig.pod_receives(&udp(other, own))));
            assert!(passes(&rig.pod_sends(&udp(own, other))));
        }
    });
}

#[test]
fn a_pod_that_may_send_nothing_answers_no_pod_whose_address_another_has() {
    isolated(|| {
        for (one, two) in [("10.0.0.1:1000", "10.0.0.2:53"), ("[fd00::1]:1000", "[fd00::2]:53")] {
            let rig = Rig::new();
            isolate(&rig, 2, NO_EGRESS);
            assert!(passes(&rig.pod_sends(&udp(one, two))));
            // One that nothing isolates.
            succeed(&rig, Sets::OPEN);
            rig.datapath.upsert_pod(&pod(OTHER_IFINDEX, SUCCESSOR, "10.0.0.1", "fd00::1")).unwrap();
            rig.datapath.upsert_pod(&pod(IFINDEX, 2, "10.0.0.2", "fd00::2")).unwrap();
            assert_eq!(rig.pod_sends(&udp(two, one)).verdict, SHOT);
            assert_eq!(rig.drops(reason::EGRESS_DENIED), 1);
        }
    });
}

#[test]
fn an_answer_that_nobody_asked_for_is_a_flow_of_its_sender() {
    isolated(|| {
        for [own, other, _] in FAMILIES {
            let rig = Rig::new();
            for segment in [Segment::SynAck, Segment::Syn, Segment::Ack] {
                assert!(passes(&rig.pod_receives(&tcp(other, own, segment))));
                assert!(passes(&rig.pod_sends(&tcp(own, other, Segment::Ack))));
            }
            isolate(&rig, 1, NO_INGRESS);
            for segment in [Segment::Ack, Segment::Syn, Segment::SynAck] {
                assert_eq!(rig.pod_receives(&tcp(other, own, segment)).verdict, SHOT, "{segment:?}");
            }
            assert_eq!(rig.pod_sends(&tcp(own, other, Segment::Ack)).verdict, SHOT, "its answers too");
            // The other way round.
            let rig = Rig::new();
            assert!(passes(&rig.pod_sends(&tcp(own, other, Segment::SynAck))));
            assert!(passes(&rig.pod_receives(&tcp(other, own, Segment::Ack))));
            isolate(&rig, 1, NO_EGRESS);
            assert_eq!(rig.pod_sends(&tcp(own, other, Segment::Ack)).verdict, SHOT);
        }
    });
}

#[test]
fn what_is_routed_to_a_pod_is_judged_by_its_policies() {
    isolated(|| {
        let ways = [
            ("192.0.2.7:2000", ["203.0.113.5:80", "224.0.0.251:5353"]),
            ("[2001:db8::7]:2000", ["[2001:db8:1::5]:80", "[ff05::2]:5353"]),
        ];
        for (from, all) in ways {
            for to in all {
                let rig = Rig::new();
                assert_eq!(rig.pod_receives(&udp(from, to)).verdict, OK, "{to}");
                isolate(&rig, 1, NO_INGRESS);
                for frame in [udp(from, to), tcp(from, to, Segment::Syn), raw(ip(from), ip(to), 47, &[0; 8])]
                {
                    assert_eq!(rig.pod_receives(&frame).verdict, SHOT, "{to}");
                }
                assert_eq!(rig.drops(reason::INGRESS_DENIED), 3);
            }
        }
    });
}

#[test]
fn a_pod_whose_address_is_nobodys_or_anothers_is_judged_by_its_own_policies() {
    isolated(|| {
        for [own, other, _] in FAMILIES {
            let rig = Rig::new();
            isolate(&rig, 1, NO_EGRESS);
            locked(&rig.datapath.pod_by_addr).remove(&addr(ip(own))).unwrap();
            rig.datapath.pods_changed().unwrap();
            assert_eq!(rig.pod_sends(&udp(own, other)).verdict, SHOT, "nobody's");
            let usurper = Sets::OPEN.on(&pod(88, 8, "10.0.0.1", "fd00::1"));
            locked(&rig.datapath.pod_by_addr).insert(addr(ip(own)), usurper, 0).unwrap();
            rig.datapath.pods_changed().unwrap();
            assert_eq!(rig.pod_sends(&udp(own, other)).verdict, SHOT, "another's");
            assert_eq!(rig.drops(reason::EGRESS_DENIED), 2);
        }
    });
}

#[test]
fn who_appears_as_the_node_has_no_part_in_what_the_node_opened() {
    isolated(|| {
        for [own, _, node] in FAMILIES {
            let rig = Rig::new();
            of_node(&rig, ip(node));
            let keys = [TCP, UDP].map(|proto| plant(&rig, proto, node, own, |key| key.digest() ^ OF_NODE));
            isolate(&rig, 1, NO_INGRESS);
            let verdicts = || keys.map(|key| rig.flow(&key).unwrap().verdict);
            let planted = verdicts();
            for _ in 0..2 {
                // A test run's packet has no socket of the node.
                assert_eq!(rig.pod_receives(&tcp(node, own, Segment::Syn)).verdict, SHOT);
                assert_eq!(rig.pod_receives(&udp(node, own)).verdict, SHOT);
                assert!(passes(&rig.pod_sends(&tcp(own, node, Segment::SynAck))));
                assert!(passes(&rig.pod_sends(&udp(own, node))));
                // Nor have these of the node itself, with some kernels.
                assert!(passes(&rig.pod_receives(&tcp(node, own, Segment::Ack))));
                rig.datapath.bump_policy_epoch().unwrap();
            }
            // Where policies allow it, it passes; the rows stay the node's.
            isolate(&rig, 1, Sets::OPEN);
            assert!(passes(&rig.pod_receives(&tcp(node, own, Segment::Syn))));
            assert!(passes(&rig.pod_receives(&udp(node, own))));
            assert_eq!(verdicts(), planted);
            isolate(&rig, 1, NO_INGRESS);
            assert!(passes(&rig.pod_receives(&tcp(node, own, Segment::Rst))));
        }
    });
}

#[test]
fn a_pod_answers_its_node_whoever_speaks_first_in_a_new_epoch() {
    isolated(|| {
        for [own, other, node] in FAMILIES {
            let rig = Rig::new();
            of_node(&rig, ip(node));
            isolate(&rig, 1, NO_INGRESS);
            // As another schema leaves them.
            let keys = [node, other].map(|from| plant(&rig, TCP, from, own, |_| 0));
            for _ in 0..2 {
                assert!(passes(&rig.pod_sends(&tcp(own, node, Segment::Ack))));
                assert_eq!(rig.pod_sends(&tcp(own, other, Segment::Ack)).verdict, SHOT, "no node");
                // Nobody else comes in by that.
                assert_eq!(rig.pod_receives(&tcp(node, own, Segment::Ack)).verdict, SHOT);
            }
            assert_eq!(keys.map(|key| rig.flow(&key).unwrap().verdict), [0, 0]);
        }
    });
}

#[test]
fn who_waited_for_a_service_is_judged_by_its_backends() {
    isolated(|| {
        for (client, vip, backend) in [
            ("10.0.0.1:1000", "10.96.0.1:80", "10.1.0.1:8080"),
            ("[fd00::1]:1000", "[fd96::1]:80", "[fd01::1]:8080"),
        ] {
            let rig = Rig::new();
            assert_eq!(rig.pod_sends(&udp(client, vip)).verdict, OK, "nobody answers");
            // To its backends only.
            let (set, number) = (set::MARK | 5, identity::MARK | 6);
            let key = PolicyKey { set, identity: number };
            let otherwise = Decision { rule: 7, action: action::ALLOW, tier: tier::NAMESPACE, pad: 0 };
            rig.datapath.set_policy_rows(&[(key, PolicyRow { otherwise, ..PolicyRow::default() })]).unwrap();
            let row = IdentityRow { identity: number, ..IdentityRow::default() };
            rig.datapath.set_identities(&[(addr(ip(backend)), row)]).unwrap();
            isolate(&rig, 1, Sets { egress: set, ..Sets::OPEN });
            assert_eq!(rig.pod_sends(&udp(client, vip)).verdict, SHOT, "no Service yet");
            rig.service(ip(vip), 80, UDP, &[(ip(backend), 8080)]);
            let ran = rig.pod_sends(&udp(client, vip));
            assert!(passes(&ran));
            assert_eq!(read(&ran.packet).destination.to_string(), backend);
            let back = rig.pod_receives(&udp(backend, client));
            assert_eq!(read(&back.packet).source.to_string(), vip);
        }
    });
}

#[test]
fn packets_that_are_denied_keep_no_row_alive() {
    isolated(|| {
        for [own, other, _] in FAMILIES {
            let rig = Rig::new();
            assert!(passes(&rig.pod_sends(&udp(own, other))));
            assert!(passes(&rig.pod_receives(&udp(other, own))));
            isolate(&rig, 1, Sets::CLOSED);
            let row = rig.datapath.flows().unwrap().pop().unwrap();
            let aged = Flow { last_seen: row.flow.last_seen - 5, ..row.flow };
            locked(&rig.datapath.nursery).insert(row.key, aged, 0).unwrap();
            for _ in 0..2 {
                assert_eq!(rig.pod_sends(&udp(own, other)).verdict, SHOT);
                assert_eq!(rig.pod_receives(&udp(other, own)).verdict, SHOT);
            }
            assert_eq!(rig.flow(&row.key).unwrap(), aged);
            // What is allowed does.
            isolate(&rig, 1, Sets::OPEN);
            assert!(passes(&rig.pod_sends(&udp(own, other))));
            assert!(rig.flow(&row.key).unwrap().last_seen > aged.last_seen);
        }
    });
}

/// An echo request (RFC 792, RFC 4443 §4.1).
fn echo(from: &str, to: &str, id: u8) -> Vec<u8> {
    let (proto, kind) = if from.contains(':') { (58, 128) } else { (1, 8) };
    raw(from, to, proto, &[kind, 0, 0, 0, 0, id, 0, 1])
}

#[test]
fn errors_about_echo_and_tunnels_reach_an_isolated_pod() {
    isolated(|| {
        for ([own, other, _], router) in FAMILIES.into_iter().zip(["198.51.100.1", "2001:db8:9::1"]) {
            let (own, other) = (ip(own), ip(other));
            let rig = Rig::new();
            isolate(&rig, 1, NO_INGRESS);
            // GRE, ESP, L2TP.
            let mut sent: Vec<Vec<u8>> = [47, 50, 115].map(|proto| raw(own, other, proto, &[7; 24])).into();
            sent.push(echo(own, other, 5));
            for frame in sent {
                let about = |error: IcmpError| {
                    error.frame(router, own, 60, &packet(&frame)[..packet(&frame).len().min(68)])
                };
                assert_eq!(rig.pod_receives(&about(TOO_BIG)).verdict, SHOT, "about nothing that was sent");
                assert!(passes(&rig.pod_sends(&frame)));
                for error in [TOO_BIG, EXCEEDED, UNREACHABLE, PROBLEM] {
                    let came = about(error);
                    let ran = rig.pod_receives(&came);
                    assert_eq!((ran.verdict, &ran.packet), (OK, &came), "{error:?}");
                }
            }
            // Another's, and what is no flow.
            for frame in
                [echo(own, other, 6), raw(own, other, 4, &[7; 24]), TOO_BIG.frame(own, other, 64, &[7; 40])]
            {
                let came = EXCEEDED.frame(router, own, 60, packet(&frame));
                assert_eq!(rig.pod_receives(&came).verdict, SHOT);
            }
        }
    });
}

#[test]
fn an_error_passes_as_long_as_policies_allow_what_it_quotes() {
    isolated(|| {
        for ([own, other, node], router) in FAMILIES.into_iter().zip(["198.51.100.1", "2001:db8:9::1"]) {
            let rig = Rig::new();
            of_node(&rig, ip(node));
            assert!(passes(&rig.pod_sends(&udp(own, other))));
            assert!(passes(&rig.pod_receives(&tcp(other, own, Segment::Syn))));
            // About what the pod began, and about its answers to what others did; from the pod.
            let about_own = TOO_BIG.frame(router, ip(own), 60, packet(&udp(own, other)));
            let about_answer = TOO_BIG.frame(router, ip(own), 60, packet(&tcp(own, other, Segment::SynAck)));
            let by_pod = UNREACHABLE.frame(ip(own), ip(other), 64, packet(&udp(other, own)));
            let told = || {
                let came = [&about_own, &about_answer].map(|frame| passes(&rig.pod_receives(frame)));
                (came, passes(&rig.pod_sends(&by_pod)))
            };
            let flows = || rig.datapath.flows().unwrap();
            let count = flows().len();
            for (sets, expected) in [
                (Sets::OPEN, ([true, true], true)),
                (NO_INGRESS, ([true, false], true)),
                // Whoever may send it anything may send it that.
                (NO_EGRESS, ([true, true], false)),
                (Sets::CLOSED, ([false, false], false)),
            ] {
                isolate(&rig, 1, sets);
                // Policies have changed: what the errors are about comes first, and is judged anew.
                assert_eq!(
                    told(),
                    ([sets.ingress == Sets::OPEN.ingress; 2], sets.egress == Sets::OPEN.egress)
                );
                rig.pod_sends(&udp(own, other));
                rig.pod_sends(&tcp(own, other, Segment::SynAck));
                let before = flows();
                assert_eq!(told(), expected, "{sets:?}");
                assert_eq!(told(), expected, "{sets:?}, again");
                assert_eq!((flows(), before.len()), (before, count), "an error changes no row");
            }
            // To its node a pod may always say what became of a packet.
            plant(&rig, UDP, node, own, |_| 0);
            let to_node = UNREACHABLE.frame(ip(own), ip(node), 64, packet(&udp(node, own)));
            assert!(passes(&rig.pod_sends(&to_node)));
            // Another has the address, and sent nothing.
            succeed(&rig, NO_INGRESS);
            assert!(!passes(&rig.pod_receives(&about_own)));
        }
    });
}

#[test]
fn a_flow_that_was_told_leaves_no_rule_to_the_packets_drop() {
    isolated(|| {
        let rig = Rig::fresh();
        run(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
        run(&["ip", "route", "add", "blackhole", "192.0.2.0/24"]);
        let (set, rule) = (set::MARK | 5, 77);
        let key = PolicyKey { set, identity: identity::ANY };
        let otherwise = Decision { rule, action: action::ALLOW, tier: tier::NAMESPACE, pad: 0 };
        rig.datapath.set_policy_rows(&[(key, PolicyRow { otherwise, ..PolicyRow::default() })]).unwrap();
        isolate(&rig, 1, Sets { egress: set, ..Sets::OPEN });
        rig.datapath.set_flow_audit(1000).unwrap();
        assert_eq!(rig.pod_sends(&udp("10.0.0.1:1000", "192.0.2.7:2000")).verdict, SHOT);
        let drops = rig.datapath.drop_counts().unwrap();
        let told: Vec<_> = drops.iter().map(|(key, _)| (key.reason, key.rule)).collect();
        assert_eq!(told, [(reason::NO_ROUTE, 0)]);
        // An explanation says by which rule a packet passes, and that no rule dropped this one.
        let explain = |to: &str| {
            let frame = udp("10.0.0.1:1000", to);
            let ran = rig.datapath.test_run(Stage::PodEgress, &frame, IFINDEX, true, 1).unwrap();
            ran.explained.unwrap().rule
        };
        assert_eq!((explain("10.0.0.2:53"), explain("192.0.2.7:53")), (rule, 0));
    });
}
