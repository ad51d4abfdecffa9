//! Policy tables as the agent writes and reads them, through growth and moves; and which sets pods' rows have.

use super::frames::{Segment, addr, tcp, udp};
use super::growth::connect;
use super::moves::{folders, open, take};
use super::rig::{IFINDEX, OTHER_IFINDEX, Rig, isolated, pod};
use crate::datapath::config::Config;
use crate::datapath::migrate::Move;
use crate::datapath::pin::Pins;
use crate::datapath::{Datapath, Error, PolicyLimits, Sets, locked, remove_pod_offline};
use netd_bpf::Addr;
use netd_bpf::event::reason;
use netd_bpf::pod::Pod;
use netd_bpf::policy::{
    Block, Decision, IdentityRow, PolicyKey, PolicyRow, Range, action, identity, identity_flag,
    identity_seal, point, row_seal, set, tier,
};

const SHOT: i32 = 2;
const OTHER: Sets = Sets { egress: set::MARK | 1, ingress: set::MARK | 2 };

fn allow(rule: u32) -> Decision {
    Decision { rule, action: action::ALLOW, tier: tier::NAMESPACE, pad: 0 }
}

fn row(n: u64) -> (PolicyKey, PolicyRow) {
    let ranges = u32::try_from(n).unwrap();
    let key = PolicyKey { set: set::MARK | n, identity: identity::ANY };
    let row = PolicyRow { ranges, count: 1, otherwise: allow(7), seal: 0 };
    (key, PolicyRow { seal: row_seal(&key, &row), ..row })
}

fn identity(n: u32) -> (Addr, IdentityRow) {
    let addr = Addr([n, 2, 3, 4]);
    let row = IdentityRow { identity: identity::MARK | u64::from(n), flags: identity_flag::NODE, seal: 0 };
    (addr, IdentityRow { seal: identity_seal(&addr, &row), ..row })
}

/// 10.0.0.0/8 and longer, and as many of IPv6.
fn block(n: u32) -> (Block, u64) {
    let (prefix, of) = if n.is_multiple_of(2) { (104 + n / 2, "10.0.0.0") } else { (8 + n / 2, "fd00::") };
    (Block { prefix, addr: addr(of) }, identity::MARK | u64::from(n))
}

fn range(n: u16) -> Range {
    Range { first: point(6, n), last: point(6, n), decision: allow(n.into()) }
}

/// Fills the tables with so many rows each.
fn fill(datapath: &Datapath, rows: u32) {
    let ranges: Vec<Range> = (0..rows).map(|n| range(u16::try_from(n).unwrap())).collect();
    datapath.set_policy_ranges(0, &ranges).unwrap();
    datapath.set_policy_rows(&(0..rows.into()).map(row).collect::<Vec<_>>()).unwrap();
    datapath.set_blocks(&(0..rows).map(block).collect::<Vec<_>>()).unwrap();
    datapath.set_identities(&(0..rows).map(identity).collect::<Vec<_>>()).unwrap();
}

fn all_is_there(datapath: &Datapath, rows: u32) {
    let mut found = datapath.policy_rows().unwrap();
    found.sort_by_key(|(key, _)| *key);
    assert_eq!(found, (0..rows.into()).map(row).collect::<Vec<_>>());
    let mut found = datapath.identities().unwrap();
    found.sort_by_key(|(_, row)| row.identity);
    assert_eq!(found, (0..rows).map(identity).collect::<Vec<_>>());
    let mut found = datapath.blocks().unwrap();
    found.sort_by_key(|(_, identity)| *identity);
    assert_eq!(found, (0..rows).map(block).collect::<Vec<_>>());
    let ranges: Vec<Range> = (0..rows).map(|n| range(u16::try_from(n).unwrap())).collect();
    assert_eq!(datapath.policy_ranges(0, rows).unwrap(), ranges);
}

fn epoch(datapath: &Datapath) -> u64 {
    locked(&datapath.policy_epoch).get(&0, 0).unwrap()
}

#[test]
fn what_is_written_is_read_back_with_its_seal() {
    isolated(|| {
        let rig = Rig::new();
        let datapath = &rig.datapath;
        assert!(datapath.policy_rows().unwrap().is_empty());
        assert!(datapath.identities().unwrap().is_empty() && datapath.blocks().unwrap().is_empty());
        fill(datapath, 12);
        all_is_there(datapath, 12);
        // A second time is well, and changes nothing.
        fill(datapath, 12);
        all_is_there(datapath, 12);
        assert_eq!(datapath.policy_ranges(127, 9).unwrap(), [Range::default()]);
        assert!(datapath.policy_ranges(128, 1).unwrap().is_empty());
        assert!(datapath.set_policy_ranges(127, &[range(1), range(2)]).is_err());

        // Whoever writes need not seal.
        let ((key, written), (addr, known)) = (row(3), identity(3));
        datapath.set_policy_rows(&[(key, PolicyRow { seal: 9, ..written })]).unwrap();
        datapath.set_identities(&[(addr, IdentityRow { seal: 9, ..known })]).unwrap();
        all_is_there(datapath, 12);
        // A row that another's hand changed is told as it is.
        locked(&datapath.policy).insert(key, PolicyRow { count: 2, ..written }, 0).unwrap();
        assert!(datapath.policy_rows().unwrap().contains(&(key, PolicyRow { count: 2, ..written })));
        locked(&datapath.identities).insert(addr, IdentityRow { flags: 0, ..known }, 0).unwrap();
        assert!(datapath.identities().unwrap().contains(&(addr, IdentityRow { flags: 0, ..known })));

        for _ in 0..2 {
            datapath.remove_policy_rows(&(3..12).map(|n| row(n).0).collect::<Vec<_>>()).unwrap();
            datapath.remove_identities(&(3..12).map(|n| identity(n).0).collect::<Vec<_>>()).unwrap();
            datapath.remove_blocks(&(3..12).map(|n| block(n).0).collect::<Vec<_>>()).unwrap();
            all_is_there(datapath, 3);
        }
    });
}

#[test]
fn a_table_that_is_full_names_the_key_and_keeps_what_it_has() {
    isolated(|| {
        let rig = Rig::new();
        let datapath = &rig.datapath;
        let limits = PolicyLimits { rows: 64, ranges: 128, identities: 64, blocks: 16 };
        assert_eq!(datapath.policy_limits(), limits);
        let full = |written: Result<(), Error>| match written {
            Err(Error::Full { map, limit, key }) => (map, limit, key),
            other => panic!("{other:?}"),
        };
        let rows: Vec<_> = (0..65).map(row).collect();
        assert_eq!(full(datapath.set_policy_rows(&rows)), ("POLICY", 64, "datapath.policy_rows"));
        let rows: Vec<_> = (0..65).map(identity).collect();
        assert_eq!(full(datapath.set_identities(&rows)), ("IDENTITIES", 64, "datapath.identities"));
        let rows: Vec<_> = (0..17).map(block).collect();
        assert_eq!(full(datapath.set_blocks(&rows)), ("BLOCKS", 16, "datapath.blocks"));
        let found = (datapath.policy_rows().unwrap().len(), datapath.identities().unwrap().len());
        assert_eq!((found, datapath.blocks().unwrap().len()), ((64, 64), 16));
        // What is there can be written again.
        datapath.set_policy_rows(&[row(63)]).unwrap();
        datapath.set_identities(&[identity(63)]).unwrap();
        datapath.set_blocks(&[block(15)]).unwrap();
    });
}

#[test]
fn an_epoch_never_comes_again() {
    isolated(|| {
        let rig = Rig::fresh();
        let mut seen = vec![epoch(&rig.datapath)];
        assert_ne!(seen[0], 0, "said at the start, for whoever could not say it before");
        for _ in 0..3 {
            rig.datapath.bump_policy_epoch().unwrap();
            seen.push(epoch(&rig.datapath));
        }
        let config = rig.folder.config();
        drop(rig.datapath);
        seen.push(epoch(&open(&config).0));
        assert!(seen.is_sorted_by(|a, b| a < b), "{seen:?}");
    });
}

/// A configuration with larger policy tables only.
fn larger(config: &Config) -> Config {
    Config { policy_rows: 256, policy_ranges: 512, identities: 128, blocks: 32, ..config.clone() }
}

#[test]
fn policy_tables_grow_with_what_is_in_them() {
    isolated(|| {
        let rig = Rig::fresh();
        rig.service("10.96.0.1", 80, super::frames::TCP, &[("10.1.0.1", 8080)]);
        connect(&rig.datapath, "10.0.0.1:2000");
        fill(&rig.datapath, 16);
        rig.datapath.set_policy(1, OTHER).unwrap();
        let (before, flows) = (epoch(&rig.datapath), rig.datapath.flows().unwrap());
        let config = larger(&rig.folder.config());

        // Whole before the first interface gets a program that looks there.
        let mut moving = Move::to_sizes(&config);
        take(&mut moving, 3);
        let next = Pins::next(&config.bpffs);
        let rows = next.hash::<PolicyKey, PolicyRow>("POLICY").unwrap().unwrap();
        assert_eq!(rows.keys().count(), 16);
        let rows = next.hash::<Addr, IdentityRow>("IDENTITIES").unwrap().unwrap();
        assert_eq!(rows.keys().count(), 16);
        let ranges = next.array::<Range>("RANGES").unwrap().unwrap();
        assert_eq!((ranges.len(), ranges.get(&15, 0).unwrap()), (512, range(15)));
        drop(moving);
        drop(rig.datapath);

        let (datapath, report) = open(&config);
        let sizes: Vec<_> = report.resized.iter().map(|one| (one.map, one.from, one.to)).collect();
        assert_eq!(
            sizes,
            [("POLICY", 64, 256), ("RANGES", 128, 512), ("IDENTITIES", 64, 128), ("BLOCKS", 16, 32)]
        );
        assert!(report.kept.is_empty());
        assert_eq!(folders(&config), ["v2"]);
        let limits = PolicyLimits { rows: 256, ranges: 512, identities: 128, blocks: 32 };
        assert_eq!(datapath.policy_limits(), limits);
        all_is_there(&datapath, 16);
        assert_eq!(datapath.policies().unwrap()[&1], OTHER);
        assert!(epoch(&datapath) > before);
        assert_eq!(datapath.flows().unwrap(), flows);
        datapath.set_policy_ranges(511, &[range(1)]).unwrap();
    });
}

#[test]
fn a_policy_table_never_gets_smaller_than_what_is_in_it() {
    isolated(|| {
        let rig = Rig::fresh();
        fill(&rig.datapath, 12);
        // The last range that a row names is the last that counts.
        rig.datapath.set_policy_ranges(100, &[range(1); 28]).unwrap();
        let config =
            Config { policy_rows: 8, policy_ranges: 16, identities: 8, blocks: 8, ..rig.folder.config() };
        drop(rig.datapath);
        let (datapath, report) = open(&config);
        let kept: Vec<_> =
            report.kept.iter().map(|kept| (kept.map, kept.wanted, kept.actual, &*kept.why)).collect();
        let why = "12 rows of it are in use";
        assert_eq!(kept, [("POLICY", 8, 64, why), ("IDENTITIES", 8, 64, why), ("BLOCKS", 8, 16, why)]);
        let resized: Vec<_> = report.resized.iter().map(|one| (one.map, one.from, one.to)).collect();
        assert_eq!(resized, [("RANGES", 128, 16)]);
        all_is_there(&datapath, 12);
        let limits = PolicyLimits { rows: 64, ranges: 16, identities: 64, blocks: 16 };
        assert_eq!(datapath.policy_limits(), limits);
    });
}

/// The sets that all rows of a pod have, by interface and by address.
fn sets(datapath: &Datapath, pod: &Pod) -> Vec<Sets> {
    let rows = datapath.pod_rows().unwrap();
    let found = [pod.v4, pod.v6].into_iter().filter_map(|addr| rows.by_addr.get(&addr));
    let found = found.chain(rows.by_ifindex.get(&pod.ifindex)).filter(|row| row.endpoint == pod.endpoint);
    found.map(|row| Sets { egress: row.egress_set, ingress: row.ingress_set }).collect()
}

#[test]
fn a_pod_of_which_nothing_was_said_is_closed() {
    isolated(|| {
        let rig = Rig::new();
        let datapath = &rig.datapath;
        let one = pod(50, 5, "10.0.0.5", "fd00::5");
        // Whatever the caller says.
        let lies = Pod { egress_set: set::OPEN, ingress_set: OTHER.ingress, ..one };
        datapath.upsert_pod(&lies).unwrap();
        assert_eq!(sets(datapath, &one), [Sets::CLOSED; 3]);
        datapath.set_policy(5, OTHER).unwrap();
        assert_eq!(sets(datapath, &one), [OTHER; 3]);
        datapath.upsert_pod(&one).unwrap();
        assert_eq!(sets(datapath, &one), [OTHER; 3], "a repair keeps them");
        datapath.remove_pod(&one).unwrap();
        datapath.upsert_pod(&one).unwrap();
        assert_eq!(sets(datapath, &one), [Sets::CLOSED; 3], "the end of a pod is forgotten with it");

        // Said before there are rows.
        let other = pod(60, 6, "10.0.0.6", "");
        datapath.set_policy(6, OTHER).unwrap();
        assert_eq!(datapath.policies().unwrap()[&6], OTHER);
        datapath.upsert_pod(&other).unwrap();
        assert_eq!(sets(datapath, &other), [OTHER; 2]);
        // Who never got rows is forgotten, whose rows stand is closed.
        datapath.set_policy(7, OTHER).unwrap();
        datapath.remove_policies(&[6, 7]).unwrap();
        assert_eq!(sets(datapath, &other), [Sets::CLOSED; 2]);
        let known = datapath.policies().unwrap();
        assert_eq!((known.get(&6), known.get(&7)), (Some(&Sets::CLOSED), None));
    });
}

#[test]
fn a_change_of_sets_is_heard_of_and_leaves_a_successor_alone() {
    isolated(|| {
        let rig = Rig::new();
        let datapath = &rig.datapath;
        let before = locked(&datapath.pod_epoch).get(&0, 0).unwrap();
        let one = pod(IFINDEX, 1, "10.0.0.1", "fd00::1");
        // Another pod has got one of its addresses.
        let successor = pod(88, 3, "10.0.0.1", "");
        rig.upsert_pod(&successor).unwrap();
        datapath.set_policies(&[(1, OTHER), (2, Sets::CLOSED)]).unwrap();
        assert_eq!(sets(datapath, &one), [OTHER; 2]);
        assert_eq!(sets(datapath, &successor), [Sets::OPEN; 2]);
        assert_eq!(sets(datapath, &pod(OTHER_IFINDEX, 2, "10.0.0.2", "fd00::2")), [Sets::CLOSED; 3]);
        assert!(locked(&datapath.pod_epoch).get(&0, 0).unwrap() > before);
        // What others took away does not come back by a change of sets.
        locked(&datapath.pod_by_ifindex).remove(&OTHER_IFINDEX).unwrap();
        datapath.set_policy(2, OTHER).unwrap();
        assert_eq!(sets(datapath, &pod(OTHER_IFINDEX, 2, "10.0.0.2", "fd00::2")), [OTHER; 2]);
    });
}

#[test]
fn only_a_pod_that_comes_has_flows_judged_anew() {
    isolated(|| {
        let rig = Rig::new();
        let datapath = &rig.datapath;
        let epochs = || (epoch(datapath), locked(&datapath.pod_epoch).get(&0, 0).unwrap());
        let one = pod(IFINDEX, 1, "10.0.0.1", "fd00::1");
        for sets in [OTHER, Sets::OPEN] {
            datapath.set_policy(1, sets).unwrap();
            let before = epochs();
            for _ in 0..2 {
                datapath.upsert_pod(&one).unwrap();
                assert_eq!(epochs(), before, "all stands");
            }
            // It has another MAC address, or lost its share: nothing that a verdict comes of.
            let other = Pod { pod_mac: [2, 0, 0, 0, 9, 9], ..one };
            datapath.upsert_pod(&other).unwrap();
            assert_eq!(epochs().0, before.0);
            assert!(epochs().1 > before.1, "but where it is");
            locked(&datapath.shares).remove(&1).unwrap();
            datapath.upsert_pod(&other).unwrap();
            assert_eq!((epochs().0, datapath.share(1).unwrap()), (before.0, Some(0)));
            locked(&datapath.pod_by_ifindex).remove(&IFINDEX).unwrap();
            datapath.upsert_pod(&one).unwrap();
            assert_eq!((epochs().0, self::sets(datapath, &one)), (before.0, vec![sets; 3]));
            // An address that nobody had, or another one.
            let before = epochs();
            locked(&datapath.pod_by_addr).remove(&one.v6).unwrap();
            datapath.upsert_pod(&one).unwrap();
            let between = epochs();
            assert!(between.0 > before.0 && between.1 > before.1);
            let usurper = pod(88, 8, "10.0.0.1", "");
            locked(&datapath.pod_by_addr).insert(one.v4, usurper, 0).unwrap();
            datapath.upsert_pod(&one).unwrap();
            let after = epochs();
            assert!(after.0 > between.0 && after.1 > between.1);
            assert_eq!(self::sets(datapath, &one), [sets; 3]);
        }
    });
}

#[test]
fn the_rows_tell_a_new_agent_and_an_audit_which_sets_there_are() {
    isolated(|| {
        let rig = Rig::fresh();
        let one = pod(IFINDEX, 1, "10.0.0.1", "fd00::1");
        rig.datapath.set_policies(&[(1, OTHER), (2, Sets::CLOSED)]).unwrap();
        // A change that was cut off, or another's hand: the row of the interface counts.
        let row = Sets::OPEN.on(&one);
        locked(&rig.datapath.pod_by_addr).insert(one.v4, row, 0).unwrap();
        assert_eq!(rig.datapath.policies().unwrap()[&1], Sets::OPEN, "not what was said");
        rig.datapath.set_policy(1, OTHER).unwrap();
        assert_eq!(rig.datapath.policies().unwrap()[&1], OTHER, "mended");
        locked(&rig.datapath.pod_by_addr).insert(one.v4, row, 0).unwrap();
        let config = rig.folder.config();
        drop(rig.datapath);

        let (datapath, _) = open(&config);
        datapath.upsert_pod(&one).unwrap();
        assert_eq!(sets(&datapath, &one), [OTHER; 3]);
        let two = pod(OTHER_IFINDEX, 2, "10.0.0.2", "fd00::2");
        datapath.upsert_pod(&two).unwrap();
        assert_eq!(sets(&datapath, &two), [Sets::CLOSED; 3]);
        drop(datapath);
        // Without an agent.
        remove_pod_offline(&config.bpffs, Some(IFINDEX), &[]).unwrap();
        let (datapath, _) = open(&config);
        assert_eq!(datapath.policies().unwrap().into_iter().collect::<Vec<_>>(), [(2, Sets::CLOSED)]);
    });
}

#[test]
fn what_a_test_run_brings_to_a_pod_is_not_sent_by_the_node() {
    isolated(|| {
        let rig = Rig::new();
        rig.datapath.set_policy(1, Sets::CLOSED).unwrap();
        for (from, to) in [("192.0.2.1:1000", "10.0.0.1:80"), ("[2001:db8::1]:1000", "[fd00::1]:80")] {
            for frame in [tcp(from, to, Segment::Syn), udp(from, to)] {
                assert_eq!(rig.pod_receives(&frame).verdict, SHOT);
            }
        }
        assert_eq!(rig.drops(reason::INGRESS_DENIED), 4);
    });
}
