//! Pods' rows that the programs remember by CPU: what changes is met at once, by all who look.

use super::frames::{Segment, addr, tcp, udp};
use super::held::on_one_cpu;
use super::rig::{IFINDEX, OTHER_IFINDEX, Rig, isolated, pod, uplink};
use crate::datapath::test_run::Stage;
use crate::datapath::{locked, remove_pod_offline};
use netd_bpf::event::reason;
use netd_bpf::pod::Pod;

const OK: i32 = 0;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;

const FAMILIES: [usize; 2] = [0, 1];
/// Pod 1, and somebody outside.
const OTHERS: [(&str, &str); 2] = [("10.0.0.1:1000", "10.9.0.1:1000"), ("[fd00::1]:1000", "[fd09::1]:1000")];

/// Where a packet for an address went: to a pod's MAC address, or to the stack.
type Met = Option<[u8; 6]>;

/// A rig with an uplink.
struct Scene {
    rig: Rig,
    uplink: u32,
}

impl Scene {
    /// On one CPU, whose memory a second look comes from.
    fn new() -> Self {
        on_one_cpu();
        let uplink = uplink();
        Self { rig: Rig::new(), uplink }
    }

    fn outside_sends(&self, from: &str, to: &str) -> crate::datapath::test_run::Ran {
        let mut frame = udp(from, to);
        frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x99]);
        self.rig.datapath.test_run(Stage::UplinkIn, &frame, self.uplink, false, 1).unwrap()
    }

    /// How the programs meet the address of pod `n`, each asked twice: the second time it remembers.
    fn met(&self, n: u32) -> Met {
        let mut all = Vec::new();
        for _ in 0..2 {
            for family in FAMILIES {
                let to = [format!("10.0.0.{n}:80"), format!("[fd00::{n}]:80")][family].clone();
                let (inside, outside) = OTHERS[family];
                let sent = self.rig.pod_sends(&tcp(inside, &to, Segment::Syn));
                for ran in [sent, self.outside_sends(outside, &to)] {
                    assert!([OK, REDIRECT].contains(&ran.verdict), "{to}: {}", ran.verdict);
                    let mac = ran.packet[..6].try_into().unwrap();
                    all.push((ran.verdict == REDIRECT).then_some(mac));
                }
            }
        }
        let first = all[0];
        assert!(all.iter().all(|met| *met == first), "pod {n} is met in several ways: {all:?}");
        first
    }

    fn upsert(&self, pod: &Pod) {
        self.rig.upsert_pod(pod).unwrap();
    }
}

/// A pod with the addresses of pod `n`.
fn of(n: u32, ifindex: u32, endpoint: u32) -> Pod {
    pod(ifindex, endpoint, &format!("10.0.0.{n}"), &format!("fd00::{n}"))
}

fn at(pod: &Pod) -> Met {
    Some(pod.pod_mac)
}

#[test]
fn a_pod_that_goes_and_comes_back_elsewhere_is_met_at_once() {
    isolated(|| {
        let scene = Scene::new();
        let first = of(2, OTHER_IFINDEX, 2);
        assert_eq!(scene.met(2), at(&first));
        scene.rig.datapath.remove_pod(&first).unwrap();
        assert_eq!(scene.met(2), None, "gone");

        // What was remembered as nobody's is a pod's.
        let elsewhere = of(2, 78, 3);
        scene.upsert(&elsewhere);
        assert_eq!(scene.met(2), at(&elsewhere), "at another interface");
        let other_mac = Pod { pod_mac: [2, 0, 0, 0, 9, 9], ..elsewhere };
        scene.upsert(&other_mac);
        assert_eq!(scene.met(2), at(&other_mac), "with another MAC address");

        // Its address goes to another pod: after it went, and while it stands.
        scene.rig.datapath.remove_pod(&other_mac).unwrap();
        let heir = of(2, 79, 4);
        scene.upsert(&heir);
        assert_eq!(scene.met(2), at(&heir), "another pod's");
        let usurper = of(2, 80, 5);
        scene.upsert(&usurper);
        assert_eq!(scene.met(2), at(&usurper), "taken over");
        // The former holder takes nothing of the present one along.
        scene.rig.datapath.remove_pod(&heir).unwrap();
        assert_eq!(scene.met(2), at(&usurper));
        assert_eq!(scene.met(1), at(&of(1, IFINDEX, 1)), "the one beside it");
    });
}

#[test]
fn an_address_that_was_nobodys_becomes_a_pods_at_once() {
    isolated(|| {
        let scene = Scene::new();
        for n in 3..9 {
            assert_eq!(scene.met(n), None);
            let new = of(n, 80 + n, n);
            scene.upsert(&new);
            assert_eq!(scene.met(n), at(&new));
        }
        // As a source too: what a pod of this node sends never comes in from outside.
        for family in FAMILIES {
            let (source, to) = [("10.0.0.9:53", "10.0.0.2:53"), ("[fd00::9]:53", "[fd00::2]:53")][family];
            for _ in 0..2 {
                assert_eq!(scene.outside_sends(source, to).verdict, REDIRECT, "{source} is nobody's");
            }
        }
        let new = of(9, 99, 9);
        scene.upsert(&new);
        for (source, to) in [("10.0.0.9:53", "10.0.0.2:53"), ("[fd00::9]:53", "[fd00::2]:53")] {
            assert_eq!(scene.outside_sends(source, to).verdict, SHOT, "{source} is a pod's");
        }
        scene.rig.datapath.remove_pod(&new).unwrap();
        for (source, to) in [("10.0.0.9:53", "10.0.0.2:53"), ("[fd00::9]:53", "[fd00::2]:53")] {
            assert_eq!(scene.outside_sends(source, to).verdict, REDIRECT, "{source} is nobody's again");
        }
    });
}

#[test]
fn what_was_removed_while_no_agent_runs_is_met_no_more() {
    isolated(|| {
        let scene = Scene::new();
        let bpffs = scene.rig.folder.config().bpffs;
        let two = of(2, OTHER_IFINDEX, 2);
        let ips = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        for (ifindex, ips) in [(Some(OTHER_IFINDEX), &ips[..0]), (None, &ips[..]), (None, &ips[1..])] {
            scene.upsert(&two);
            assert_eq!(scene.met(2), at(&two));
            remove_pod_offline(&bpffs, ifindex, ips).unwrap();
            assert_eq!(scene.met(2), None, "removed by {ifindex:?} {ips:?}");
        }
        // The pod that sends, too.
        let frame = tcp("10.0.0.1:1000", "10.0.0.2:80", Segment::Syn);
        assert_eq!(scene.rig.pod_sends(&frame).verdict, OK);
        remove_pod_offline(&bpffs, Some(IFINDEX), &[]).unwrap();
        assert_eq!(scene.rig.pod_sends(&frame).verdict, SHOT);
        assert_eq!(scene.rig.drops(reason::UNKNOWN_INTERFACE), 1);
    });
}

#[test]
fn a_sender_is_judged_by_the_addresses_it_has_now() {
    isolated(|| {
        let scene = Scene::new();
        let rig = &scene.rig;
        let frames = |n: u32| {
            [
                tcp(&format!("10.0.0.{n}:1000"), "10.0.0.2:80", Segment::Syn),
                tcp(&format!("[fd00::{n}]:1000"), "[fd00::2]:80", Segment::Syn),
            ]
        };
        let verdicts = |n: u32| frames(n).map(|frame| rig.pod_sends(&frame).verdict);
        for _ in 0..2 {
            assert_eq!((verdicts(1), verdicts(6)), ([REDIRECT; 2], [SHOT; 2]));
        }
        // The interface has another pod's number and addresses.
        rig.datapath.remove_pod(&of(1, IFINDEX, 1)).unwrap();
        assert_eq!(verdicts(1), [SHOT; 2]);
        assert_eq!(rig.drops(reason::UNKNOWN_INTERFACE), 2);
        scene.upsert(&of(6, IFINDEX, 6));
        for _ in 0..2 {
            assert_eq!((verdicts(1), verdicts(6)), ([SHOT; 2], [REDIRECT; 2]));
        }
        let flows = rig.datapath.flows().unwrap();
        let of_six = [addr("10.0.0.6"), addr("fd00::6")];
        let sixes =
            flows.iter().filter(|row| of_six.iter().any(|ip| [row.key.low, row.key.high].contains(ip)));
        assert_eq!(sixes.map(|row| row.flow.owner).collect::<Vec<_>>(), [6, 6], "whose they are");
        // One family is taken from it.
        rig.datapath.remove_pod(&of(6, IFINDEX, 6)).unwrap();
        scene.upsert(&pod(IFINDEX, 7, "", "fd00::6"));
        assert_eq!(verdicts(6), [SHOT, REDIRECT]);
    });
}

#[test]
fn an_explain_run_neither_goes_by_what_is_remembered_nor_adds_to_it() {
    isolated(|| {
        let scene = Scene::new();
        let rig = &scene.rig;
        let explain = |frame: &[u8]| {
            let ran = rig.datapath.test_run(Stage::PodEgress, frame, IFINDEX, true, 1).unwrap();
            (ran.verdict, ran.explained.unwrap().ifindex)
        };
        // As none but a test may: without a word to those who remember.
        let write = |pod: &Pod| {
            locked(&rig.datapath.pod_by_ifindex).insert(pod.ifindex, pod, 0).unwrap();
            for addr in [pod.v4, pod.v6] {
                locked(&rig.datapath.pod_by_addr).insert(addr, pod, 0).unwrap();
            }
        };
        let to = |n: u32| {
            [
                tcp("10.0.0.1:1000", &format!("10.0.0.{n}:80"), Segment::Syn),
                tcp("[fd00::1]:1000", &format!("[fd00::{n}]:80"), Segment::Syn),
            ]
        };
        let former = of(2, OTHER_IFINDEX, 2);
        assert_eq!(scene.met(2), at(&former));
        write(&of(2, 78, 3));
        write(&of(6, IFINDEX, 6));
        for frame in to(2) {
            assert_eq!(explain(&frame), (SHOT, 0), "the interface has other addresses now");
        }
        write(&of(1, IFINDEX, 1));
        for frame in to(2) {
            assert_eq!(explain(&frame), (REDIRECT, 78), "the address is elsewhere now");
        }
        assert_eq!(scene.met(2), at(&former), "and nobody else has heard of it");

        // Asked before anybody met them.
        for frame in to(5) {
            assert_eq!(explain(&frame), (OK, 0));
        }
        let new = of(5, 79, 5);
        write(&new);
        assert_eq!(scene.met(5), at(&new), "nobody's address was not remembered");
    });
}
