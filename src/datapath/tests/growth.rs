//! Moving to other sizes: with what is in the tables, under traffic, cut off anywhere, on every interface.

use super::frames::{Segment, TCP, ip, read, tcp, udp};
use super::moves::{BACKEND, FAMILIES, VIP, folders, goes_on, open, row, service_for, take};
use super::rig::{IFINDEX, Rig, isolated, run};
use crate::datapath::Datapath;
use crate::datapath::config::Config;
use crate::datapath::migrate::{Move, STEPS};
use crate::datapath::pin::Pins;
use crate::datapath::test_run::Stage;
use netd_bpf::service::{Backend, backend_state};

pub(super) fn connect(datapath: &Datapath, client: &str) {
    let (vip, backend) = service_for(client);
    for (stage, frame) in [
        (Stage::PodEgress, tcp(client, vip, Segment::Syn)),
        (Stage::PodIngress, tcp(backend, client, Segment::SynAck)),
        (Stage::PodEgress, tcp(client, vip, Segment::Ack)),
    ] {
        datapath.test_run(stage, &frame, IFINDEX, false, 1).unwrap();
    }
}

fn larger(config: &Config) -> Config {
    Config {
        flows: 4096,
        nursery: 2048,
        frontends: 128,
        slots: 512,
        backends: 128,
        pods: 32,
        ..config.clone()
    }
}

#[test]
fn tables_grow_with_what_is_in_them() {
    isolated(|| {
        let rig = Rig::fresh();
        rig.service("10.96.0.1", 80, TCP, &[("10.1.0.1", 8080)]);
        for port in 2000..2300 {
            connect(&rig.datapath, &format!("10.0.0.1:{port}"));
        }
        assert_eq!(rig.datapath.share(1).unwrap(), Some(512), "all that it may have");
        rig.pod_sends(&udp("10.0.0.1:53", "10.1.0.9:53"));
        let before = (
            rig.datapath.frontends().unwrap(),
            rig.datapath.backends().unwrap(),
            rig.datapath.pods().unwrap(),
        );
        let counts = rig.datapath.flow_counts().unwrap();
        let config = Config { flows_per_pod: 4096, affinity: 128, ..larger(&rig.folder.config()) };
        drop(rig.datapath);
        let (datapath, report) = open(&config);
        let sizes: Vec<_> = report.resized.iter().map(|one| (one.map, one.from, one.to)).collect();
        assert_eq!(
            sizes,
            [
                ("POD_BY_IFINDEX", 16, 32),
                ("FRONTENDS", 64, 128),
                ("SLOTS", 256, 512),
                ("BACKENDS", 64, 128),
                ("ESTABLISHED", 1024, 4096),
                ("NURSERY", 1024, 2048),
                ("AFFINITY", 64, 128),
            ]
        );
        assert!(report.kept.is_empty());
        assert_eq!(folders(&config), ["v2"]);
        assert_eq!(
            before,
            (datapath.frontends().unwrap(), datapath.backends().unwrap(), datapath.pods().unwrap())
        );
        assert_eq!(datapath.slots(0, 1).unwrap(), [1]);
        assert_eq!(datapath.service_limits(), (128, 512, 128));
        assert_eq!(datapath.flow_counts().unwrap(), counts, "counters do not jump");
        let rows = datapath.flows().unwrap();
        assert_eq!(rows.len(), 601);
        assert_eq!(rows.iter().filter(|row| row.established).count(), 600, "the pod may have more now");
        assert_eq!(datapath.share(1).unwrap(), Some(600));
        for port in 2000..2300 {
            goes_on(&datapath, &format!("10.0.0.1:{port}"), VIP, BACKEND);
        }
        for map in ["ESTABLISHED", "NURSERY", "SHARES", "POD_BY_ADDR"] {
            let info = Pins::current(&config.bpffs).open(map).unwrap().unwrap().info().unwrap();
            let want = match map {
                "ESTABLISHED" => 4096,
                "NURSERY" => 2048,
                "SHARES" => 32,
                _ => 64,
            };
            assert_eq!(info.max_entries(), want, "{map}");
        }
        let last = Backend { state: backend_state::ACTIVE, ..Backend::default() };
        datapath.set_backend(127, &last).unwrap();
    });
}

#[test]
fn old_and_new_programs_share_flows_while_tables_grow() {
    isolated(|| {
        for [client, vip, backend] in FAMILIES {
            share_flows_while_tables_grow(client, vip, backend);
        }
    });
}

fn share_flows_while_tables_grow(client: &str, vip: &str, backend: &str) {
    let rig = Rig::fresh();
    rig.service(ip(vip), 80, TCP, &[(ip(backend), 8080)]);
    let config = larger(&rig.folder.config());
    let (pod, _) = client.rsplit_once(':').unwrap();
    let [closing, before] = [2000, 2001].map(|port| format!("{pod}:{port}"));
    connect(&rig.datapath, &closing);
    let mut moving = Move::to_sizes(&config);
    take(&mut moving, 3);
    // After the tables were filled: one connection by the old programs alone, others by both.
    connect(&rig.datapath, &before);
    let old = |stage, frame: &[u8]| rig.datapath.test_run(stage, frame, IFINDEX, false, 1).unwrap();
    let new = |stage, frame: &[u8]| moving.programs().test_run(stage, frame, IFINDEX, None, 1).unwrap();
    type Way<'a> = &'a dyn Fn(Stage, &[u8]) -> crate::datapath::test_run::Ran;
    let ways = [(&old as Way<'_>, &new as Way<'_>), (&new, &old), (&new, &new)];
    for (port, (forth, back)) in (3000..).zip(ways) {
        let client = &format!("{pod}:{port}");
        for segment in [Segment::Syn, Segment::Ack, Segment::Ack] {
            let sent = forth(Stage::PodEgress, &tcp(client, vip, segment));
            assert_eq!(read(&sent.packet).destination.to_string(), backend);
            let reply = if segment == Segment::Syn { Segment::SynAck } else { Segment::Ack };
            let reply = back(Stage::PodIngress, &tcp(backend, client, reply));
            assert_eq!(read(&reply.packet).source.to_string(), vip, "{client}");
        }
    }
    // Closed by one end here and by the other there.
    old(Stage::PodEgress, &tcp(&closing, vip, Segment::Fin));
    new(Stage::PodIngress, &tcp(backend, &closing, Segment::Fin));
    new(Stage::PodIngress, &tcp(backend, &closing, Segment::Ack));
    drop(moving);
    drop(rig.datapath);
    let (datapath, report) = open(&config);
    assert_eq!(report.resized.len(), 6, "the move began again: {report:?}");
    let rows = datapath.flows().unwrap();
    for client in [2001, 3000, 3001, 3002].map(|port| format!("{pod}:{port}")) {
        for other in [vip, backend] {
            let found = row(&rows, &client, other, TCP).unwrap_or_else(|| panic!("{client} {other}"));
            assert!(found.established, "{client} {other}: {found:?}");
        }
        goes_on(&datapath, &client, vip, backend);
    }
    let rows = datapath.flows().unwrap();
    let closed = row(&rows, &closing, backend, TCP).unwrap();
    assert!(!closed.established && closed.flow.done(), "{closed:?}");
    assert_eq!(datapath.share(1).unwrap(), Some(8));
}

#[test]
fn a_growth_cut_off_after_any_step_is_taken_up_again_or_back() {
    isolated(|| {
        for steps in 1..=STEPS.len() {
            // Back where it is of use: before the step that puts the new maps in force, and after it.
            let ways = [true, false].into_iter().filter(|grow| *grow || steps > 3);
            for (grow, [client, vip, backend]) in ways.flat_map(|grow| FAMILIES.map(|of| (grow, of))) {
                let rig = Rig::fresh();
                rig.service(ip(vip), 80, TCP, &[(ip(backend), 8080)]);
                connect(&rig.datapath, client);
                let small = rig.folder.config();
                let config = larger(&small);
                let mut moving = Move::to_sizes(&config);
                take(&mut moving, steps);
                drop(moving);
                let (datapath, report) = open(if grow { &config } else { &small });
                assert!(report.kept.is_empty(), "after {steps} steps: {report:?}");
                assert_eq!(folders(&config), ["v2"]);
                goes_on(&datapath, client, vip, backend);
                assert_eq!(datapath.share(1).unwrap(), Some(2), "{steps} {grow}");
                let frontends = if grow { 128 } else { 64 };
                assert_eq!(datapath.service_limits().0, frontends, "after {steps} steps");
            }
        }
    });
}

#[test]
fn every_interface_gets_the_new_programs_and_the_old_ones_go() {
    isolated(|| {
        for name in ["pod0", "up0.7", "up1"] {
            run(&["ip", "link", "add", name, "type", "veth", "peer", "name", &format!("far-{name}")]);
        }
        // Others' filters, one of them where ours could be.
        run(&["tc", "qdisc", "add", "dev", "far-up1", "clsact"]);
        for (interface, priority) in [("far-up1", "1"), ("pod0", "9")] {
            if interface == "pod0" {
                run(&["tc", "qdisc", "add", "dev", interface, "clsact"]);
            }
            let words = ["tc", "filter", "add", "dev", interface, "ingress", "prio", priority, "handle", "1"];
            run(&[&words[..], &["bpf", "bytecode", "1,6 0 0 0", "flowid", "1:1"]].concat());
        }
        let uplink = nix::net::if_::if_nametoindex("up0.7").unwrap();
        let rig = Rig::fresh();
        let config = larger(&rig.folder.config());
        rig.datapath.attach_pod("pod0").unwrap();
        if rig.datapath.attach_uplink(uplink, "up0.7").unwrap() != crate::datapath::attach::UplinkHook::Tcx {
            println!("skipped: this kernel has no TCX");
            return;
        }
        // As on kernels without TCX.
        run(&["tc", "qdisc", "add", "dev", "up1", "clsact"]);
        let ingress = aya::programs::tc::TcAttachType::Ingress;
        let mut programs = rig.datapath.programs.write().unwrap();
        crate::datapath::attach::filter(&mut programs.uplink_in, "up1", ingress).unwrap();
        drop(programs);
        let before = attached();
        assert_eq!(before.len(), 4, "{before:?}");
        drop(rig.datapath);
        let (datapath, _) = open(&config);
        let after = attached();
        let places = |all: &[(String, u64)]| all.iter().map(|(place, _)| place.clone()).collect::<Vec<_>>();
        assert_eq!(places(&after), places(&before));
        for ((place, old), (_, new)) in before.iter().zip(&after) {
            assert_ne!(old, new, "{place}");
        }
        assert_eq!(datapath.pinned_uplinks(), [(uplink, "up0.7".to_owned())]);
        assert_eq!(
            datapath.attach_uplink(uplink, "up0.7").unwrap(),
            crate::datapath::attach::UplinkHook::Tcx
        );
        assert_eq!(attached(), after, "it was there already");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        for (place, old) in &before {
            let lives = || {
                let show = ["prog", "show", "id", &old.to_string()];
                std::process::Command::new("bpftool").args(show).output().unwrap().status.success()
            };
            while lives() {
                assert!(std::time::Instant::now() < deadline, "{place}: the old program {old} is held");
                std::thread::yield_now();
            }
        }
        for interface in ["far-up1", "pod0"] {
            let shown = std::process::Command::new("tc")
                .args(["filter", "show", "dev", interface, "ingress"])
                .output()
                .unwrap();
            assert!(String::from_utf8_lossy(&shown.stdout).contains("bytecode"), "{interface}");
        }
    });
}

/// Where programs of ours are attached in this namespace, with the programs' ids, as `tc` and the kernel say.
fn attached() -> Vec<(String, u64)> {
    use aya::programs::SchedClassifier;
    use aya::programs::tc::TcAttachType;
    let mut found = Vec::new();
    for (interface, hook) in [("pod0", "ingress"), ("pod0", "egress"), ("up1", "ingress")] {
        let words = ["-j", "filter", "show", "dev", interface, hook];
        let output = std::process::Command::new("tc").args(words).output().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        for filter in json.as_array().unwrap() {
            if let Some(id) = filter.pointer("/options/prog/id").and_then(serde_json::Value::as_u64) {
                found.push((format!("{interface} {hook}"), id));
            }
        }
    }
    let (_, links) = SchedClassifier::query_tcx("up0.7", TcAttachType::Ingress).unwrap();
    found.extend(links.iter().map(|info| ("up0.7".to_owned(), u64::from(info.id()))));
    found
}

#[test]
fn a_table_never_gets_smaller_than_what_is_in_it() {
    isolated(|| {
        let rig = Rig::fresh();
        rig.service("10.96.0.1", 80, TCP, &[("10.1.0.1", 8080)]);
        for port in 2000..2010 {
            connect(&rig.datapath, &format!("10.0.0.1:{port}"));
        }
        rig.backend(40, "10.1.0.9", 80, TCP, backend_state::TERMINATING, 1);
        let before = rig.datapath.flows().unwrap().len();
        let config = Config {
            flows: 16,
            nursery: 512,
            frontends: 1,
            slots: 1,
            backends: 32,
            pods: 1,
            affinity: 32,
            ..rig.folder.config()
        };
        drop(rig.datapath);
        let (datapath, report) = open(&config);
        let kept: Vec<_> =
            report.kept.iter().map(|kept| (kept.map, kept.wanted, kept.actual, &*kept.why)).collect();
        assert_eq!(
            kept,
            [
                ("POD_BY_IFINDEX", 1, 16, "2 rows of it are in use"),
                ("BACKENDS", 32, 64, "41 rows of it are in use"),
                ("ESTABLISHED", 16, 1024, "20 rows of it are in use"),
            ]
        );
        let resized: Vec<_> = report.resized.iter().map(|one| (one.map, one.to)).collect();
        assert_eq!(resized, [("FRONTENDS", 1), ("SLOTS", 1), ("NURSERY", 512), ("AFFINITY", 32)]);
        assert_eq!(datapath.service_limits(), (1, 1, 64));
        assert_eq!(datapath.flows().unwrap().len(), before);
        goes_on(&datapath, "10.0.0.1:2009", VIP, BACKEND);
        datapath.set_backend(63, &Backend::default()).unwrap();
    });
}
