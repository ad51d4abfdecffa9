//! What stays when the agent goes.

use super::frames::{Segment, TCP, read, tcp};
use super::rig::{Rig, isolated, pod, run};
use crate::datapath::attach::UplinkHook;
use crate::datapath::{Datapath, Error, remove_pod_offline};
use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use std::net::IpAddr;
use std::time::{Duration, Instant};

#[test]
fn a_new_agent_adopts_rows_and_flows() {
    isolated(|| {
        let rig = Rig::fresh();
        assert!(!rig.report.adopted);
        rig.service("10.96.0.1", 80, TCP, &[("10.1.0.1", 80)]);
        rig.pod_sends(&tcp("10.0.0.1:1000", "10.96.0.1:80", Segment::Syn));
        let (before, frontends) = (rig.datapath.flows().unwrap(), rig.datapath.frontends().unwrap());
        let config = rig.folder.config();
        drop(rig.datapath);
        let (datapath, report) = Datapath::open(&config).unwrap();
        assert!(report.adopted && report.resized.is_empty() && report.kept.is_empty());
        assert_eq!(datapath.flows().unwrap(), before);
        assert_eq!(datapath.frontends().unwrap(), frontends);
        assert_eq!(datapath.pods().unwrap().len(), 2);
        assert_eq!(datapath.slots(0, 1).unwrap(), [1]);
        assert_eq!(datapath.backends().unwrap().len(), 1);
    });
}

#[test]
fn a_foreign_map_is_refused_by_name() {
    isolated(|| {
        let rig = Rig::fresh();
        let config = rig.folder.config();
        let path = config.bpffs.join(format!("v{}/maps/FRONTENDS", netd_bpf::SCHEMA));
        drop(rig.datapath);
        std::fs::remove_file(&path).unwrap();
        let path_text = path.to_str().unwrap();
        run(&[
            "bpftool", "map", "create", path_text, "type", "hash", "key", "4", "value", "4", "entries", "1",
            "name", "x",
        ]);
        let Err(Error::Shape { path: named, key: 4, value: 4, .. }) = Datapath::open(&config).map(drop)
        else {
            panic!("a map of another shape was taken");
        };
        assert_eq!(named, path);
    });
}

#[test]
fn filters_and_links_outlive_their_agent_and_are_never_doubled() {
    isolated(|| {
        run(&["ip", "link", "add", "pod0", "type", "veth", "peer", "name", "eth0"]);
        run(&["ip", "link", "add", "up0.7", "type", "veth", "peer", "name", "far0"]);
        let uplink = nix::net::if_::if_nametoindex("up0.7").unwrap();
        let rig = Rig::fresh();
        let config = rig.folder.config();
        rig.datapath.attach_pod("pod0").unwrap();
        let hook = rig.datapath.attach_uplink(uplink, "up0.7").unwrap();
        let first = attached();
        assert_eq!(first.len(), 3, "{first:?}");
        drop(rig.datapath);
        assert_eq!(attached(), first, "the agent went, its filters did not");
        let (datapath, _) = Datapath::open(&config).unwrap();
        datapath.attach_pod("pod0").unwrap();
        assert_eq!(datapath.attach_uplink(uplink, "up0.7").unwrap(), hook);
        let second = attached();
        assert_eq!(second.len(), 3, "{second:?}");
        assert!(second.iter().all(|id| !first.contains(id)), "new programs: {first:?} {second:?}");
        // A filter is held by its device, a link by its pin; either tells what an earlier agent attached.
        let there = vec![(uplink, "up0.7".to_owned())];
        let (linked, filtered) = match hook {
            UplinkHook::Tcx => (there, Vec::new()),
            UplinkHook::Clsact => (Vec::new(), there),
        };
        assert_eq!((datapath.pinned_uplinks(), datapath.filtered_uplinks().unwrap()), (linked, filtered));
        datapath.detach_uplink(uplink + 1, "up0.7").unwrap();
        assert_eq!(attached().len(), 3, "the name was another device's");
        datapath.detach_uplink(uplink, "up0.7").unwrap();
        // The kernel may let go of a link a moment after its last file.
        let deadline = Instant::now() + Duration::from_secs(10);
        while attached().len() != 2 {
            assert!(Instant::now() < deadline, "{:?} are attached yet", attached());
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(datapath.attach_pod("nowhere0").is_err());
    });
}

/// Ids of the programs that the kernel says are attached in this namespace.
fn attached() -> Vec<u64> {
    let output = std::process::Command::new("bpftool").args(["-j", "net", "show"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let tc = json[0]["tc"].as_array().unwrap();
    let uplink = SchedClassifier::query_tcx("up0.7", TcAttachType::Ingress);
    let links = uplink.map(|(_, programs)| programs).unwrap_or_default();
    let mut ids: Vec<u64> = links.iter().map(|info| u64::from(info.id())).collect();
    ids.extend(tc.iter().map(|row| row["id"].as_u64().or(row["prog_id"].as_u64()).unwrap()));
    ids.sort_unstable();
    ids
}

#[test]
fn rows_of_a_pod_go_without_an_agent() {
    isolated(|| {
        let rig = Rig::fresh();
        let bpffs = rig.folder.config().bpffs;
        let ip: IpAddr = "10.0.0.1".parse().unwrap();
        remove_pod_offline(&bpffs, None, &[ip]).unwrap();
        let left = rig.datapath.pods().unwrap();
        assert_eq!(left, [pod(super::rig::OTHER_IFINDEX, 2, "10.0.0.2", "fd00::2")]);
        remove_pod_offline(&bpffs, Some(super::rig::OTHER_IFINDEX), &[]).unwrap();
        remove_pod_offline(&bpffs, Some(super::rig::OTHER_IFINDEX), &[ip]).unwrap();
        assert!(rig.datapath.pods().unwrap().is_empty());
        remove_pod_offline(&rig.folder.path().join("nothing"), Some(1), &[ip]).unwrap();
    });
}

#[test]
fn a_removed_pod_leaves_the_address_of_its_successor() {
    isolated(|| {
        let rig = Rig::fresh();
        let successor = pod(88, 3, "10.0.0.1", "fd00::1");
        rig.upsert_pod(&successor).unwrap();
        rig.datapath.remove_pod(&pod(super::rig::IFINDEX, 1, "10.0.0.1", "fd00::1")).unwrap();
        assert!(rig.datapath.pods().unwrap().contains(&successor));
        let back = rig.pod_receives(&tcp("10.0.0.2:80", "10.0.0.1:1000", Segment::Ack));
        assert_eq!(read(&back.packet).source.port(), 80);
    });
}
