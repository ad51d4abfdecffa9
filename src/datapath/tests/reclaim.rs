//! Passes over the tables of flows: what goes, what stays, and the pods' shares.

use super::frames::{Segment, TCP, addr, tcp, udp};
use super::rig::{IFINDEX, OTHER_IFINDEX, Rig, isolated, pod};
use crate::datapath::conversation::now;
use crate::datapath::{Datapath, Error, FlowRow, Pass, Way, locked, remove_pod_offline};
use netd_bpf::flow::{
    Flow, FlowKey, GRACE, Limits, ORPHANED, SLICE, Share, flow_count, flow_flag, lifetime, role,
};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const VIP: &str = "10.96.0.1:80";
const BACKEND: &str = "10.1.0.1:8080";

/// A rig for each way of making passes.
fn each_way(config: impl Fn(&mut crate::datapath::config::Config)) -> Vec<Rig> {
    let mut batch = Rig::with(&config);
    if let Way::Batch { because } = batch.datapath.reclaim_way()
        && !Path::new("/sys/kernel/btf/vmlinux").exists()
    {
        println!("skipped: no map iterator: {because}");
        return vec![batch];
    }
    assert_eq!(batch.datapath.reclaim_way(), Way::Iterator);
    Arc::get_mut(&mut batch.datapath).expect("nobody else has it").forgo_iterator();
    assert!(matches!(batch.datapath.reclaim_way(), Way::Batch { .. }));
    vec![Rig::with(&config), batch]
}

fn pass(rig: &Rig) -> Pass {
    rig.datapath.reclaim(&|| false).expect("the kernel walks").expect("nobody stopped it")
}

/// Pod 1 connects through the Service, or to a server of this address.
fn connect(rig: &Rig, port: u16, server: &str) {
    let from = if server == VIP { BACKEND } else { server };
    handshake(rig, &format!("10.0.0.1:{port}"), server, from);
}

fn handshake(rig: &Rig, client: &str, to: &str, from: &str) {
    rig.pod_sends(&tcp(client, to, Segment::Syn));
    rig.pod_receives(&tcp(from, client, Segment::SynAck));
    rig.pod_sends(&tcp(client, to, Segment::Ack));
}

/// Writes a row as it is, with no share the wiser.
fn write(datapath: &Datapath, row: &FlowRow) {
    let table = if row.established { &datapath.established } else { &datapath.nursery };
    locked(table).insert(row.key, row.flow, 0).expect("room");
}

/// Sets when rows were seen last: idle for so many seconds more than they live.
fn age(rig: &Rig, which: impl Fn(&FlowRow) -> bool, beyond: u32) {
    for mut row in rig.datapath.flows().unwrap().into_iter().filter(which) {
        // The machine may be up for less.
        let age = lifetime(&row.flow, row.key.proto, &Limits::DEFAULT) + beyond;
        row.flow.last_seen = now().wrapping_sub(age);
        write(&rig.datapath, &row);
    }
}

fn row(number: u32, owner: u32) -> FlowRow {
    let [.., a, b] = number.to_be_bytes();
    let key = FlowKey {
        low: addr("10.0.0.1"),
        high: addr(&format!("10.9.{a}.{b}")),
        proto: TCP,
        low_port: (number >> 16) as u16,
        ..FlowKey::default()
    };
    let flags = flow_flag::CONFIRMED | flow_flag::REPLIED;
    let flow = Flow { flags, last_seen: now(), owner, ..Flow::default() };
    FlowRow { key, flow, established: true }
}

fn rows(rig: &Rig) -> (usize, usize) {
    let rows = rig.datapath.flows().unwrap();
    let established = rows.iter().filter(|row| row.established).count();
    (established, rows.len() - established)
}

fn share(rig: &Rig, endpoint: u32) -> Option<u64> {
    rig.datapath.share(endpoint).unwrap()
}

#[test]
fn what_is_expired_goes_and_gives_its_room_back() {
    isolated(|| {
        for rig in each_way(|_| {}) {
            rig.service("10.96.0.1", 80, TCP, &[("10.1.0.1", 8080)]);
            for port in 1000..1010 {
                connect(&rig, port, VIP);
            }
            connect(&rig, 2000, "10.1.0.7:80");
            rig.pod_sends(&udp("10.0.0.1:3000", "10.1.0.7:53"));
            rig.pod_sends(&udp("10.0.0.1:3001", "10.1.0.7:53"));
            assert_eq!((rows(&rig), share(&rig, 1)), ((21, 2), Some(21)));
            let first = pass(&rig);
            assert_eq!((first.established.alive, first.established.expired), (21, 0));
            assert_eq!((first.nursery.alive, first.nursery.expired), (2, 0));

            // Both halves of five connections, the plain one, and one of the new flows.
            let old = |row: &FlowRow| {
                let of_client = [row.key.low_port, row.key.high_port, row.flow.client_port].map(u16::from_be);
                of_client.iter().any(|port| (1000..1005).contains(port) || [2000, 3000].contains(port))
            };
            age(&rig, old, GRACE + 1);
            let fill = rig.datapath.flow_fill().unwrap();
            assert_eq!((fill.established, fill.nursery, fill.nursery_alive), (21, 2, 2));
            let second = pass(&rig);
            assert_eq!((second.established.alive, second.established.expired), (10, 11));
            assert_eq!((second.nursery.alive, second.nursery.expired), (1, 1), "it makes room by itself");
            assert_eq!((rows(&rig), share(&rig, 1)), ((10, 2), Some(10)));
            assert_eq!(rig.datapath.flow_counts().unwrap()[flow_count::EXPIRED as usize], 11);
            assert!(second.corrected.is_empty() && first.corrected.is_empty());
            let fill = rig.datapath.flow_fill().unwrap();
            assert_eq!((fill.established, fill.nursery, fill.nursery_alive), (10, 2, 1));
            assert_eq!((fill.established_limit, fill.nursery_limit), (1024, 1024));
            // The halves that are left belong together.
            let left = rig.datapath.flows().unwrap();
            let halves = |role| left.iter().filter(|row| row.established && row.flow.role == role).count();
            assert_eq!((halves(role::FORWARD), halves(role::REPLY)), (5, 5));
            assert_eq!(pass(&rig).established.alive, 10);
        }
    });
}

#[test]
fn both_halves_have_one_age_whichever_way_packets_go() {
    isolated(|| {
        let rig = Rig::new();
        rig.service("10.96.0.1", 80, TCP, &[("10.1.0.1", 8080)]);
        connect(&rig, 1000, VIP);
        let ages = || {
            let rows = rig.datapath.flows().unwrap();
            assert_eq!(rows.len(), 2);
            [rows[0].flow.last_seen, rows[1].flow.last_seen]
        };
        for way in 0..4 {
            // An hour later.
            for mut row in rig.datapath.flows().unwrap() {
                row.flow.last_seen = row.flow.last_seen.wrapping_sub(3600);
                write(&rig.datapath, &row);
            }
            let [one, other] = ages();
            assert!(one == other && now().wrapping_sub(one) > 3000, "{one} {other}");
            if way % 2 == 0 {
                rig.pod_sends(&tcp("10.0.0.1:1000", VIP, Segment::Ack));
            } else {
                rig.pod_receives(&tcp(BACKEND, "10.0.0.1:1000", Segment::Ack));
            }
            let [one, other] = ages();
            assert!(one == other && now().wrapping_sub(one) < 60, "{one} {other}");
        }
    });
}

#[test]
fn a_packet_that_finds_one_half_expired_begins_anew_and_leaves_no_other() {
    isolated(|| {
        let rig = Rig::new();
        rig.service("10.96.0.1", 80, TCP, &[("10.1.0.1", 8080)]);
        connect(&rig, 1000, VIP);
        // Within its grace no pass takes it away, and no packet makes it younger.
        age(&rig, |_| true, 1);
        assert_eq!(pass(&rig).established.alive, 2);
        rig.pod_sends(&tcp("10.0.0.1:1000", VIP, Segment::Ack));
        assert_eq!((rows(&rig), share(&rig, 1)), ((0, 2), Some(0)), "a new flow in the place of the old");
    });
}

#[test]
fn a_pass_in_slices_meets_every_row_once() {
    isolated(|| {
        for rig in each_way(|config| (config.flows, config.flows_per_pod) = (16_384, 16_384)) {
            let many = 5 * SLICE + 7;
            for number in 0..many {
                write(&rig.datapath, &row(u32::try_from(number).unwrap(), 1));
            }
            let found = pass(&rig);
            assert_eq!(found.established.alive, many);
            assert!(found.slices > 3 && found.worst_slice <= found.took, "{found:?}");
            // Rows that nobody counted when they came: the second pass is sure of it.
            assert_eq!(share(&rig, 1), Some(0));
            let again = pass(&rig);
            assert_eq!(again.corrected, [(1, i64::try_from(many).unwrap())]);
            assert_eq!(share(&rig, 1), Some(many));
            assert!(pass(&rig).corrected.is_empty());

            let stopped = AtomicBool::new(false);
            let stop = || stopped.swap(true, Ordering::Relaxed);
            assert_eq!(rig.datapath.reclaim(&stop).unwrap(), None, "after the second slice");
            let whole = pass(&rig);
            assert_eq!((whole.established.alive, whole.corrected), (many, Vec::new()));
        }
    });
}

#[test]
fn a_pod_that_is_gone_takes_no_row_with_it_and_its_successor_starts_at_zero() {
    isolated(|| {
        for rig in each_way(|_| {}) {
            for port in 1000..1020 {
                connect(&rig, port, "10.1.0.7:80");
            }
            rig.datapath.remove_pod(&pod(IFINDEX, 1, "10.0.0.1", "fd00::1")).unwrap();
            let found = pass(&rig);
            assert_eq!((found.established.alive, found.ownerless), (20, 20), "whatever became of the pod");
            // The same interface and address, another number.
            rig.upsert_pod(&pod(IFINDEX, 3, "10.0.0.1", "fd00::1")).unwrap();
            assert_eq!((share(&rig, 1), share(&rig, 3)), (None, Some(0)));
            connect(&rig, 2000, "10.1.0.7:80");
            assert_eq!(share(&rig, 3), Some(1));
            age(&rig, |row| row.flow.owner == 1, GRACE + 1);
            let found = pass(&rig);
            assert_eq!((found.established.alive, found.established.expired, found.ownerless), (1, 20, 0));
            for _ in 0..3 {
                assert!(pass(&rig).corrected.is_empty());
            }
            assert_eq!((share(&rig, 1), share(&rig, 3)), (None, Some(1)));
        }
    });
}

#[test]
fn what_a_pod_leaves_behind_goes_before_its_lifetime_is_over() {
    isolated(|| {
        for rig in each_way(|_| {}) {
            let one = pod(IFINDEX, 1, "10.0.0.1", "fd00::1");
            for port in 1000..1100 {
                for (family, server) in [("10.0.0.1", "10.1.0.7:80"), ("[fd00::1]", "[fd01::7]:80")] {
                    handshake(&rig, &format!("{family}:{port}"), server, server);
                }
            }
            // Nobody's, as in a table that was moved, and another pod's.
            write(&rig.datapath, &row(1, 0));
            write(&rig.datapath, &row(2, 2));
            let counts = |found: &Pass| {
                (found.established.alive, found.established.expired, found.ownerless, rows(&rig).0)
            };
            assert_eq!(counts(&pass(&rig)), (202, 0, 1, 202));
            rig.datapath.remove_pod(&one).unwrap();
            for _ in 0..3 {
                assert_eq!(counts(&pass(&rig)), (202, 0, 201, 202), "it may come back");
            }
            assert_eq!(rig.datapath.gone.endpoints(), [1]);
            rig.datapath.gone.age(ORPHANED / 2);
            assert_eq!(counts(&pass(&rig)), (202, 0, 201, 202));

            // It comes back, and later goes for good: the time begins anew.
            rig.upsert_pod(&one).unwrap();
            rig.datapath.gone.age(2 * ORPHANED);
            assert_eq!(counts(&pass(&rig)), (202, 0, 1, 202));
            rig.datapath.remove_pod(&one).unwrap();
            assert_eq!(counts(&pass(&rig)), (202, 0, 201, 202));
            rig.datapath.gone.age(ORPHANED + 1);
            let filled = rig.datapath.flow_fill().unwrap().established;
            assert_eq!(counts(&pass(&rig)), (2, 200, 1, 2));
            assert_eq!((filled, rig.datapath.flow_fill().unwrap().established), (202, 2));
            assert_eq!(counts(&pass(&rig)), (2, 0, 1, 2));
            rig.datapath.gone.age(2 * ORPHANED);
            pass(&rig);
            assert!(rig.datapath.gone.endpoints().is_empty(), "it left no row behind");
        }
    });
}

#[test]
fn pods_that_come_and_go_with_open_connections_do_not_fill_the_table() {
    isolated(|| {
        for rig in each_way(|config| config.flows_per_pod = 512) {
            for number in 1..=8 {
                // Never the same number, always the same addresses.
                let one = pod(IFINDEX, 100 + number, "10.0.0.1", "fd00::1");
                rig.upsert_pod(&one).unwrap();
                for port in 0..256 {
                    for (family, server) in [("10.0.0.1", "10.1.0.7:80"), ("[fd00::1]", "[fd01::7]:80")] {
                        let client = format!("{family}:{}", 1000 + number * 300 + port);
                        handshake(&rig, &client, server, server);
                    }
                }
                assert_eq!(share(&rig, 100 + number), Some(512), "pod {number}");
                rig.datapath.remove_pod(&one).unwrap();
                pass(&rig);
                rig.datapath.gone.age(ORPHANED + 1);
                assert_eq!(pass(&rig).established.expired, 512);
            }
            let counts = rig.datapath.flow_counts().unwrap();
            assert_eq!(counts[flow_count::REFUSED_FULL as usize], 0);
        }
    });
}

#[test]
fn a_number_given_twice_counts_what_is_left_of_the_first() {
    isolated(|| {
        for rig in each_way(|_| {}) {
            for port in 1000..1020 {
                connect(&rig, port, "10.1.0.7:80");
            }
            let one = pod(IFINDEX, 1, "10.0.0.1", "fd00::1");
            rig.datapath.remove_pod(&one).unwrap();
            rig.upsert_pod(&one).unwrap();
            assert_eq!(share(&rig, 1), Some(0));
            // The old rows leave before the share knows of them: below zero is no room without end.
            age(&rig, |row| u16::from_be(row.key.low_port) < 1010, GRACE + 1);
            pass(&rig);
            let raw = rig.datapath.shares().unwrap()[&1].rows();
            assert_eq!((raw, share(&rig, 1)), (-10, Some(0)));
            connect(&rig, 3000, "10.1.0.7:80");
            for _ in 0..3 {
                pass(&rig);
            }
            assert_eq!(share(&rig, 1), Some(11));
        }
    });
}

#[test]
fn shares_that_others_spoiled_are_set_right() {
    isolated(|| {
        for rig in each_way(|_| {}) {
            for port in 1000..1007 {
                connect(&rig, port, "10.1.0.7:80");
            }
            for wrong in [
                Share { taken: 5000, ..Share::default() },
                Share { returned: 5000, ..Share::default() },
                Share { taken: u64::MAX - 2, ..Share::default() },
            ] {
                locked(&rig.datapath.shares).insert(1, wrong, 0).unwrap();
                let corrected: Vec<_> = (0..3).flat_map(|_| pass(&rig).corrected).collect();
                assert_eq!(corrected.len(), 1, "{wrong:?}: {corrected:?}");
                assert_eq!(share(&rig, 1), Some(7), "{wrong:?}");
            }
            // One that is gone comes back, with what the pod holds.
            locked(&rig.datapath.shares).remove(&1).unwrap();
            assert_eq!(pass(&rig).mended, 1);
            pass(&rig);
            assert_eq!(share(&rig, 1), Some(7));
            // One of nobody goes, unless a pod that is being added has it.
            for stray in [77, 78] {
                locked(&rig.datapath.shares).insert(stray, Share::default(), 0).unwrap();
            }
            assert_eq!(pass(&rig).mended, 0);
            rig.upsert_pod(&pod(99, 78, "10.0.0.9", "")).unwrap();
            assert_eq!(pass(&rig).mended, 1);
            assert_eq!((share(&rig, 77), share(&rig, 78)), (None, Some(0)));
        }
    });
}

#[test]
fn a_removed_flow_is_given_back() {
    isolated(|| {
        let rig = Rig::new();
        for port in 1000..1200 {
            connect(&rig, port, "10.1.0.7:80");
        }
        rig.pod_sends(&udp("10.0.0.1:3000", "10.1.0.7:53"));
        let keys: Vec<FlowKey> = rig.datapath.flows().unwrap().iter().map(|row| row.key).collect();
        rig.datapath.remove_flow(&keys[0]).unwrap();
        rig.datapath.remove_flow(&keys[0]).unwrap();
        assert_eq!(share(&rig, 1), Some(199));
        assert_eq!(rig.datapath.remove_flows(&keys).unwrap(), 200, "two hundred and one less the first");
        assert_eq!((rows(&rig), share(&rig, 1)), ((0, 0), Some(0)));
        assert_eq!(rig.datapath.flow_fill().unwrap().established, 0);
    });
}

#[test]
fn the_share_of_a_pod_removed_without_an_agent_goes_too() {
    isolated(|| {
        let rig = Rig::new();
        let bpffs = rig.folder.config().bpffs;
        remove_pod_offline(&bpffs, None, &["10.0.0.1".parse().unwrap()]).unwrap();
        remove_pod_offline(&bpffs, Some(OTHER_IFINDEX), &[]).unwrap();
        assert!(rig.datapath.shares().unwrap().is_empty());
    });
}

#[test]
fn shares_outlive_their_agent() {
    isolated(|| {
        let mut rig = Rig::fresh();
        for port in 1000..1010 {
            connect(&rig, port, "10.1.0.7:80");
        }
        let config = rig.folder.config();
        drop(rig.datapath);
        let (datapath, _) = Datapath::open(&config).unwrap();
        rig.datapath = datapath.into();
        rig.upsert_pod(&pod(IFINDEX, 1, "10.0.0.1", "fd00::1")).unwrap();
        assert_eq!((share(&rig, 1), rig.datapath.flow_fill().unwrap().established), (Some(10), 10));
        for _ in 0..3 {
            let pass = pass(&rig);
            assert_eq!((pass.established.alive, pass.corrected, pass.mended), (10, Vec::new(), 0));
        }
        connect(&rig, 2000, "10.1.0.7:80");
        assert_eq!(share(&rig, 1), Some(11));
    });
}

#[test]
fn a_full_table_refuses_the_newest_and_breaks_nothing() {
    isolated(|| {
        let rig = Rig::with(|config| config.flows_per_pod = 1024);
        rig.service("10.96.0.1", 80, TCP, &[("10.1.0.1", 8080)]);
        connect(&rig, 999, "10.1.0.7:80");
        for port in 1000..1520 {
            if port == 1200 {
                // Another pod, each within its share.
                rig.upsert_pod(&pod(IFINDEX, 3, "10.0.0.1", "fd00::1")).unwrap();
            }
            connect(&rig, port, VIP);
        }
        // An odd place is left: half a flow is worth no room.
        let refused = 520 - 511;
        assert_eq!(rows(&rig).0, 1023);
        let flows = rig.datapath.flows().unwrap();
        let halves = |role| flows.iter().filter(|row| row.established && row.flow.role == role).count();
        assert_eq!((halves(role::FORWARD), halves(role::REPLY), halves(role::DIRECT)), (511, 511, 1));
        let counts = rig.datapath.flow_counts().unwrap();
        assert_eq!(counts[flow_count::REFUSED_FULL as usize], refused);
        assert_eq!(counts[flow_count::REFUSED_SHARE as usize], 0);
        let shares = rig.datapath.shares().unwrap();
        let of = |share: Share| (share.rows(), share.refused_full, share.refused_share);
        assert_eq!((of(shares[&1]), of(shares[&3])), ((401, 0, 0), (622, refused, 0)));
        for port in 1000..1520 {
            let back = rig.pod_receives(&tcp(BACKEND, &format!("10.0.0.1:{port}"), Segment::Ack));
            assert_eq!(super::frames::read(&back.packet).source.to_string(), VIP, "port {port}");
        }
        assert_eq!(pass(&rig).established.alive, 1023);
    });
}

#[test]
fn a_full_table_of_pods_is_named_and_keeps_those_it_has() {
    isolated(|| {
        let rig = Rig::new();
        let number = |n: u32| pod(100 + n, 100 + n, &format!("10.0.1.{n}"), &format!("fd00::1:{n}"));
        for n in 2..16 {
            rig.upsert_pod(&number(n)).unwrap();
        }
        let (pods, shares) = (rig.datapath.pods().unwrap(), rig.datapath.shares().unwrap());
        assert_eq!((pods.len(), shares.len(), rig.datapath.config().pods), (16, 16, 16));
        let error = rig.upsert_pod(&number(16)).unwrap_err();
        assert!(matches!(error, Error::Full { limit: 16, key: "datapath.pods", .. }), "{error:?}");
        assert!(
            error.to_string().ends_with("is full: all its 16 rows are in use (datapath.pods)"),
            "{error}"
        );
        assert_eq!((rig.datapath.pods().unwrap(), rig.datapath.shares().unwrap()), (pods, shares));
        rig.upsert_pod(&number(15)).expect("one that is there can be written again");
        rig.datapath.remove_pod(&number(15)).unwrap();
        rig.upsert_pod(&number(16)).expect("room again");
    });
}

#[test]
fn a_refused_flow_is_counted_once_whichever_way_its_packets_go() {
    isolated(|| {
        let rig = Rig::with(|config| config.flows_per_pod = 2);
        rig.service("10.96.0.1", 80, TCP, &[("10.1.0.1", 8080)]);
        connect(&rig, 1000, VIP);
        connect(&rig, 1001, VIP);
        let refused = || rig.datapath.flow_counts().unwrap()[flow_count::REFUSED_SHARE as usize];
        assert_eq!(refused(), 1);
        for way in 0..6 {
            // The next second, as far as the rows know.
            for mut row in rig.datapath.flows().unwrap() {
                row.flow.last_seen -= 1;
                write(&rig.datapath, &row);
            }
            if way % 2 == 0 {
                rig.pod_receives(&tcp(BACKEND, "10.0.0.1:1001", Segment::Ack));
            } else {
                rig.pod_sends(&tcp("10.0.0.1:1001", VIP, Segment::Ack));
            }
            assert_eq!(refused(), 1);
        }
        // There is room again: the next packet takes it.
        let first: Vec<_> = rig.datapath.flows().unwrap().into_iter().filter(|row| row.established).collect();
        rig.datapath.remove_flows(&[first[0].key, first[1].key]).unwrap();
        for mut row in rig.datapath.flows().unwrap() {
            row.flow.last_seen -= 1;
            write(&rig.datapath, &row);
        }
        rig.pod_sends(&tcp("10.0.0.1:1001", VIP, Segment::Ack));
        assert_eq!((rows(&rig), refused()), ((2, 0), 1));
        assert!(rig.datapath.flows().unwrap().iter().all(|row| row.flow.flags & flow_flag::REFUSED == 0));
    });
}

#[test]
fn shares_are_right_after_a_storm_with_passes_in_it() {
    isolated(|| {
        for rig in each_way(|config| (config.flows, config.flows_per_pod) = (4096, 4096)) {
            rig.service("10.96.0.1", 80, TCP, &[("10.1.0.1", 8080)]);
            for port in 5000..5500 {
                connect(&rig, port, VIP);
            }
            let over = AtomicBool::new(false);
            let (rig, over) = (&rig, &over);
            let in_use = std::thread::scope(|scope| {
                let passes = scope.spawn(|| {
                    let mut corrected = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        corrected.extend(pass(rig).corrected);
                    }
                    corrected
                });
                for round in 0..10 {
                    for port in 1000..1100 {
                        connect(rig, port, VIP);
                    }
                    if round % 3 == 0 {
                        age(rig, |row| row.established && row.key.low_port.swap_bytes() < 1050, GRACE + 1);
                    }
                    for port in 1000..1100 {
                        let client = format!("10.0.0.1:{port}");
                        rig.pod_sends(&tcp(&client, VIP, Segment::Fin));
                        rig.pod_receives(&tcp(BACKEND, &client, Segment::Fin));
                    }
                }
                over.store(true, Ordering::Relaxed);
                passes.join().unwrap()
            });
            assert_eq!(in_use, [], "what comes and goes is no error");
            for _ in 0..3 {
                pass(rig);
            }
            let found = pass(rig);
            assert_eq!((found.established.alive, found.corrected), (rows(rig).0 as u64, Vec::new()));
            assert_eq!(share(rig, 1), Some(found.established.alive));
            assert_eq!(rig.datapath.flow_fill().unwrap().established, found.established.alive);
        }
    });
}

#[test]
fn a_kernel_without_its_types_is_read_in_batches() {
    isolated(|| {
        const TYPES: &str = "/sys/kernel/btf/vmlinux";
        let none: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("/dev/null"), TYPES, none, MsFlags::MS_BIND, none).unwrap();
        let rig = Rig::fresh();
        let Way::Batch { because } = rig.datapath.reclaim_way() else { panic!("where did it find them?") };
        assert!(because.contains("reclaim"), "{because}");
        connect(&rig, 1000, "10.1.0.7:80");
        assert_eq!(rows(&rig), (1, 0), "established");
        age(&rig, |_| true, GRACE + 1);
        let pass = pass(&rig);
        assert_eq!(pass.established.expired, 1, "{pass:?}");
        assert_eq!((rows(&rig), share(&rig, 1)), ((0, 0), Some(0)));
    });
}
