//! Moving everything from schema 1: with flows, cut off anywhere, failed, refused.

use super::frames::{Segment, TCP, UDP, addr, ip, read, tcp};
use super::growth::connect;
use super::rig::{Folder, IFINDEX, OTHER_IFINDEX, Rig, SERVICE, frontend_key, isolated, pod, run};
use crate::datapath::config::Config;
use crate::datapath::migrate::{Move, STEPS};
use crate::datapath::pin::Pins;
use crate::datapath::test_run::Stage;
use crate::datapath::{Datapath, Error, FlowRow};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuValues};
use netd_bpf::event::{Count, path, reason, stage, total_index};
use netd_bpf::flow::{FlowKey, flow_flag, role};
use netd_bpf::schema1;
use netd_bpf::service::{Backend, Frontend, FrontendKey, backend_state, seal};
use std::path::Path;

pub(super) const CLIENT: &str = "10.0.0.1:1000";
pub(super) const VIP: &str = "10.96.0.1:80";
pub(super) const BACKEND: &str = "10.1.0.1:8080";

/// A client, the Service and its backend, of each family.
pub(super) const FAMILIES: [[&str; 3]; 2] =
    [[CLIENT, VIP, BACKEND], ["[fd00::1]:1000", "[fd96::1]:80", "[fd01::1]:8080"]];

/// The Service and its backend that a client of this family has.
pub(super) fn service_for(client: &str) -> (&'static str, &'static str) {
    let [[_, vip, backend], [_, vip6, backend6]] = FAMILIES;
    if client.starts_with('[') { (vip6, backend6) } else { (vip, backend) }
}

/// Pod 1 or 2 of a family, at a port.
fn pod_at(family: usize, pod: u32, port: u16) -> String {
    if family == 0 { format!("10.0.0.{pod}:{port}") } else { format!("[fd00::{pod}]:{port}") }
}

/// Where the Service of a family stands in the tables: first slot, and backend.
const PLACES: [(u32, u32); 2] = [(5, 7), (6, 6)];

/// Seconds since boot.
fn now() -> u32 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap();
    u32::try_from(time.tv_sec()).unwrap()
}

fn hash<K: aya::Pod, V: aya::Pod>(pins: &Pins, name: &'static str) -> HashMap<MapData, K, V> {
    pins.hash(name).unwrap().unwrap_or_else(|| panic!("no map {name} at {}", pins.root().display()))
}

/// Key of a flow, and whether its first end is the higher one.
pub(super) fn key(from: &str, to: &str, proto: u8) -> (FlowKey, bool) {
    let end = |text: &str| {
        let socket: std::net::SocketAddr = text.parse().unwrap();
        (netd_bpf::Addr::from(socket.ip()), socket.port().to_be())
    };
    let (a, b) = (end(from), end(to));
    let words = |(addr, port): (netd_bpf::Addr, u16)| {
        let [w, x, y, z] = addr.0;
        (z, y, x, w, port)
    };
    let high = words(a) > words(b);
    let (low, upper) = if high { (b, a) } else { (a, b) };
    let (low, low_port, high_end, high_port) = (low.0, low.1, upper.0, upper.1);
    (FlowKey { low, high: high_end, low_port, high_port, proto, ..FlowKey::default() }, high)
}

/// A datapath of schema 1, as netd 0.1 left it: two pods, a Service of one backend in each family, counters.
struct Old {
    folder: Folder,
    pins: Pins,
}

impl Old {
    fn new() -> Self {
        let folder = Folder::new();
        let bpffs = folder.config().bpffs;
        std::fs::create_dir_all(&bpffs).unwrap();
        nix::mount::mount(Some("bpf"), &bpffs, Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>)
            .unwrap();
        let pins = Pins::schema1(&bpffs);
        pins.create().unwrap();
        for (name, kind, key, value, entries) in [
            ("POD_BY_IFINDEX", "hash", 4, 68, 16),
            ("POD_BY_ADDR", "hash", 16, 68, 32),
            ("FRONTENDS", "hash", 20, 24, 64),
            ("SLOTS", "array", 4, 4, 256),
            ("BACKENDS", "array", 4, 24, 64),
            ("FLOWS", "lru_hash", 40, 56, 1024),
            ("DROPS", "lru_percpu_hash", 16, 16, 1024),
            ("DROP_TOTALS", "percpu_array", 4, 16, 128),
            ("PATHS", "percpu_array", 4, 16, 4),
            ("EVENTS", "ringbuf", 0, 0, 256 * 1024),
        ] {
            make_map(&pins.map(name), name, kind, [key, value, entries]);
        }
        for one in [pod(IFINDEX, 1, "10.0.0.1", "fd00::1"), pod(OTHER_IFINDEX, 2, "10.0.0.2", "fd00::2")] {
            let one = schema1::Pod {
                v4: one.v4,
                v6: one.v6,
                ifindex: one.ifindex,
                endpoint: one.endpoint,
                pod_mac: one.pod_mac,
                host_mac: one.host_mac,
                ..schema1::Pod::default()
            };
            hash(&pins, "POD_BY_IFINDEX").insert(one.ifindex, one, 0).unwrap();
            for addr in [one.v4, one.v6] {
                hash(&pins, "POD_BY_ADDR").insert(addr, one, 0).unwrap();
            }
        }
        for ([_, vip, backend], (slot_base, id)) in FAMILIES.into_iter().zip(PLACES) {
            let row = schema1::Frontend {
                service: SERVICE,
                slot_base,
                backends: 1,
                generation: 3,
                ..Default::default()
            };
            hash(&pins, "FRONTENDS").insert(frontend_key(ip(vip), 80, TCP), row, 0).unwrap();
            array::<u32>(&pins, "SLOTS").set(slot_base, id, 0).unwrap();
            let backend = schema1::Backend {
                addr: addr(ip(backend)),
                port: 8080_u16.to_be(),
                proto: TCP,
                state: backend_state::ACTIVE,
                generation: 4,
            };
            array(&pins, "BACKENDS").set(id, backend, 0).unwrap();
        }
        let free = schema1::Backend { generation: 9, ..schema1::Backend::default() };
        array(&pins, "BACKENDS").set(8, free, 0).unwrap();
        for (name, index) in
            [("PATHS", path::PEER), ("DROP_TOTALS", total_index(stage::POD_EGRESS, reason::NO_ROUTE))]
        {
            let map = Map::from_map_data(pins.open(name).unwrap().unwrap()).unwrap();
            let mut counters: PerCpuArray<_, Count> = PerCpuArray::try_from(map).unwrap();
            let each = vec![Count { packets: 1, bytes: 100 }; aya::util::nr_cpus().unwrap()];
            counters.set(index, PerCpuValues::try_from(each).unwrap(), 0).unwrap();
        }
        Self { folder, pins }
    }

    fn config(&self) -> Config {
        self.folder.config()
    }

    fn flows(&self) -> HashMap<MapData, FlowKey, schema1::Flow> {
        hash(&self.pins, "FLOWS")
    }

    /// What schema 1's programs record of a flow through a Service.
    fn through_service(
        &self,
        client: &str,
        vip: &str,
        backend: &str,
        proto: u8,
        flags: u16,
        age: (u32, u32),
    ) {
        let mut flows = self.flows();
        let socket = |text: &str| text.parse::<std::net::SocketAddr>().unwrap();
        let (_, backend_id) = PLACES[usize::from(client.starts_with('['))];
        for (other, role, target) in [(vip, role::FORWARD, backend), (backend, role::REPLY, vip)] {
            let (key, high) = key(client, other, proto);
            let initiator = if high { flow_flag::INITIATOR_HIGH } else { 0 };
            let row = schema1::Flow {
                role,
                flags: u8::try_from(flags | initiator).unwrap(),
                xlat_port: socket(target).port().to_be(),
                xlat_addr: socket(target).ip().into(),
                service: SERVICE,
                backend: backend_id,
                backend_generation: 4,
                created: now().wrapping_sub(age.0),
                last_seen: now().wrapping_sub(age.1),
                ..schema1::Flow::default()
            };
            flows.insert(key, row, 0).unwrap();
        }
    }

    /// The flows that the tests look for afterwards.
    fn with_flows() -> Self {
        let old = Self::new();
        let replied = flow_flag::REPLIED;
        for (family, [_, vip, backend]) in FAMILIES.into_iter().enumerate() {
            for (pod, port, proto, flags, age) in [
                (1, 1000, TCP, replied, (100, 50)),
                (1, 1001, TCP, 0, (1, 1)),
                (1, 1002, TCP, replied | flow_flag::FIN_BOTH, (9, 1)),
                (2, 1003, UDP, replied, (30, 1)),
                (2, 1004, UDP, replied, (1, 1)),
                (2, 1005, UDP, replied, (900, 500)),
            ] {
                old.through_service(&pod_at(family, pod, port), vip, backend, proto, flags, age);
            }
        }
        old
    }

    fn moving(&self) -> Move {
        Move::from_schema1(&self.config())
    }
}

fn array<V: aya::Pod>(pins: &Pins, name: &'static str) -> Array<MapData, V> {
    Array::try_from(Map::from_map_data(pins.open(name).unwrap().unwrap()).unwrap()).unwrap()
}

fn make_map(path: &Path, name: &str, kind: &str, sizes: [u32; 3]) {
    let [key, value, entries] = sizes.map(|size| size.to_string());
    let path = path.to_str().unwrap();
    let mut words = vec!["bpftool", "map", "create", path, "type", kind];
    if kind != "ringbuf" {
        words.extend(["key", &key, "value", &value]);
    }
    words.extend(["entries", &entries, "name", name]);
    run(&words);
}

pub(super) fn take(moving: &mut Move, steps: usize) {
    for (what, step) in &STEPS[..steps] {
        step(moving).unwrap_or_else(|error| panic!("{what}: {}", crate::telemetry::chain(&error)));
    }
}

pub(super) fn folders(config: &Config) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(&config.bpffs)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('v'))
        .collect();
    names.sort();
    names
}

pub(super) fn open(config: &Config) -> (Datapath, crate::datapath::OpenReport) {
    Datapath::open(config).unwrap_or_else(|error| panic!("{}", crate::telemetry::chain(&error)))
}

pub(super) fn row<'a>(rows: &'a [FlowRow], from: &str, to: &str, proto: u8) -> Option<&'a FlowRow> {
    let (key, _) = key(from, to, proto);
    rows.iter().find(|row| row.key == key)
}

/// What must be true of what [`Old::with_flows`] became.
fn all_is_here(datapath: &Datapath) {
    let pods = [pod(IFINDEX, 1, "10.0.0.1", "fd00::1"), pod(OTHER_IFINDEX, 2, "10.0.0.2", "fd00::2")];
    assert_eq!(datapath.pods().unwrap(), pods, "and no policy isolates them");
    let mut frontends = datapath.frontends().unwrap();
    frontends.sort_by_key(|(_, row)| row.slot_base);
    let expected = FAMILIES.into_iter().zip(PLACES).map(|([_, vip, _], (slot_base, _))| {
        let row = Frontend { service: SERVICE, slot_base, backends: 1, generation: 3, ..Frontend::default() };
        (frontend_key(ip(vip), 80, TCP), row)
    });
    assert_eq!(frontends, expected.collect::<Vec<_>>());
    assert_eq!(datapath.slots(5, 2).unwrap(), [7, 6]);
    let backend = |[_, _, backend]: [&str; 3]| Backend {
        addr: addr(ip(backend)),
        port: 8080_u16.to_be(),
        proto: TCP,
        state: backend_state::ACTIVE,
        generation: 4,
        service: 0,
    };
    let [v4, v6] = FAMILIES.map(backend);
    let free = Backend { generation: 9, ..Backend::default() };
    assert_eq!(datapath.backends().unwrap(), [(6, v6), (7, v4), (8, free)]);

    let rows = datapath.flows().unwrap();
    for (family, [_, vip, backend]) in FAMILIES.into_iter().enumerate() {
        for (pod, port, proto, established) in [
            (1, 1000, TCP, Some(true)),
            (1, 1001, TCP, Some(false)),
            (1, 1002, TCP, Some(false)),
            (2, 1003, UDP, Some(true)),
            (2, 1004, UDP, Some(false)),
            (2, 1005, UDP, None),
        ] {
            let client = &pod_at(family, pod, port);
            for (other, expected) in [(vip, role::FORWARD), (backend, role::REPLY)] {
                let found = row(&rows, client, other, proto);
                assert_eq!(found.map(|row| row.established), established, "{client} {other}");
                let Some(found) = found else { continue };
                assert_eq!((found.flow.role, found.flow.owner), (expected, pod), "{client} {other}");
                let of = (found.flow.backend, found.flow.backend_generation);
                assert_eq!(of, (PLACES[family].1, 4), "{client} {other}");
            }
        }
    }
    assert_eq!((datapath.share(1).unwrap(), datapath.share(2).unwrap()), (Some(4), Some(4)));

    let cpus = u64::try_from(aya::util::nr_cpus().unwrap()).unwrap();
    assert_eq!(datapath.path_counts().unwrap()[path::PEER as usize].1.packets, cpus);
    let drops = datapath.drop_totals().unwrap();
    let routes = drops.iter().find(|(s, r, _)| (*s, *r) == (stage::POD_EGRESS, reason::NO_ROUTE));
    assert_eq!(routes.unwrap().2, Count { packets: cpus, bytes: cpus * 100 }, "counters do not jump");
}

pub(super) fn goes_on(datapath: &Datapath, client: &str, vip: &str, backend: &str) {
    let back = datapath.test_run(Stage::PodIngress, &tcp(backend, client, Segment::Ack), IFINDEX, false, 1);
    assert_eq!(read(&back.unwrap().packet).source.to_string(), vip, "{client}: the way back");
    let forth = datapath.test_run(Stage::PodEgress, &tcp(client, vip, Segment::Ack), IFINDEX, false, 1);
    assert_eq!(read(&forth.unwrap().packet).destination.to_string(), backend, "{client}: the way there");
}

#[test]
fn everything_of_schema_1_is_moved() {
    isolated(|| {
        let old = Old::with_flows();
        let (datapath, report) = open(&old.config());
        assert_eq!((report.adopted, report.migrated_from), (true, Some(1)));
        assert!(report.kept.is_empty() && report.resized.is_empty(), "{report:?}");
        assert_eq!(folders(&old.config()), ["v2"]);
        all_is_here(&datapath);
        let frontends: HashMap<_, FrontendKey, Frontend> =
            hash(&Pins::current(&old.config().bpffs), "FRONTENDS");
        for (family, [client, vip, backend]) in FAMILIES.into_iter().enumerate() {
            let key = frontend_key(ip(vip), 80, TCP);
            let frontend = frontends.get(&key, 0).unwrap();
            assert_eq!(frontend.seal, seal(&key, &frontend));
            goes_on(&datapath, client, vip, backend);
            let new = tcp(&pod_at(family, 1, 2000), vip, Segment::Syn);
            let new = datapath.test_run(Stage::PodEgress, &new, IFINDEX, false, 1);
            assert_eq!(read(&new.unwrap().packet).destination.to_string(), backend);
        }
    });
}

#[test]
fn a_move_may_be_cut_off_after_any_step() {
    isolated(|| {
        for steps in 0..=STEPS.len() {
            let old = Old::with_flows();
            let mut moving = old.moving();
            take(&mut moving, steps);
            drop(moving);
            let (datapath, _) = open(&old.config());
            assert_eq!(folders(&old.config()), ["v2"], "after {steps} steps");
            all_is_here(&datapath);
        }
    });
}

#[test]
fn a_move_cut_off_twice_is_whole_too() {
    isolated(|| {
        let old = Old::with_flows();
        for steps in [5, 3, 4] {
            take(&mut old.moving(), steps);
        }
        let (datapath, _) = open(&old.config());
        all_is_here(&datapath);
    });
}

#[test]
fn while_both_kinds_of_programs_run_each_finds_the_others_flows() {
    isolated(|| {
        for (family, [client, vip, backend]) in FAMILIES.into_iter().enumerate() {
            each_finds_the_others_flows(family, client, vip, backend);
        }
    });
}

fn each_finds_the_others_flows(family: usize, client: &str, vip: &str, backend: &str) {
    let old = Old::with_flows();
    let mut moving = old.moving();
    take(&mut moving, 3);
    let run = |stage, frame: &[u8]| {
        read(&moving.programs().test_run(stage, frame, IFINDEX, None, 1).unwrap().packet)
    };
    let (theirs, ours) = (&pod_at(family, 1, 3000), &pod_at(family, 1, 3001));
    let another = ["10.1.0.2:8080", "[fd01::2]:8080"][family];
    // Begun by a program of schema 1 after the tables were filled; its reply comes by an interface that
    // has a new program.
    old.through_service(theirs, vip, backend, TCP, 0, (0, 0));
    let back = run(Stage::PodIngress, &tcp(backend, theirs, Segment::SynAck));
    assert_eq!(back.source.to_string(), vip);
    let (reply, _) = key(theirs, backend, TCP);
    let told = u16::from(old.flows().get(&reply, 0).unwrap().flags);
    assert_eq!(told & flow_flag::REPLIED, 0, "what this packet says is told with the next one");
    run(Stage::PodIngress, &tcp(backend, theirs, Segment::Ack));
    let told = u16::from(old.flows().get(&reply, 0).unwrap().flags);
    assert_ne!(told & flow_flag::REPLIED, 0);

    // Begun by a new program: both rows are there as schema 1 writes them.
    let sent = run(Stage::PodEgress, &tcp(ours, vip, Segment::Syn));
    assert_eq!(sent.destination.to_string(), backend);
    let rows = [vip, backend].map(|other| old.flows().get(&key(ours, other, TCP).0, 0).unwrap());
    assert_eq!(rows.map(|row| row.role), [role::FORWARD, role::REPLY]);
    let of = (PLACES[family].1, 4, SERVICE);
    assert_eq!(rows.map(|row| (row.backend, row.backend_generation, row.service)), [of; 2]);
    assert_eq!(rows.map(|row| row.xlat_port.to_be()), [8080, 80]);

    // Ended by a program of schema 1 and begun anew, to another backend: the newer flow counts.
    old.through_service(client, vip, another, TCP, 0, (0, 0));
    let sent = run(Stage::PodEgress, &tcp(client, vip, Segment::Ack));
    assert_eq!(sent.destination.to_string(), another);

    // A FIN that a program of schema 1 saw ends the flow with the other end's FIN.
    let (near, high) = key(ours, vip, TCP);
    let fin = if high { flow_flag::INITIATOR_HIGH } else { 0 } | flow_flag::FIN_FORWARD | flow_flag::REPLIED;
    let seen = schema1::Flow { flags: u8::try_from(fin).unwrap(), ..old.flows().get(&near, 0).unwrap() };
    old.flows().insert(near, seen, 0).unwrap();
    run(Stage::PodEgress, &tcp(ours, vip, Segment::Ack));
    run(Stage::PodIngress, &tcp(backend, ours, Segment::Fin));

    drop(moving);
    let (datapath, _) = open(&old.config());
    goes_on(&datapath, theirs, vip, backend);
    goes_on(&datapath, client, vip, another);
    let rows = datapath.flows().unwrap();
    let ended = row(&rows, ours, vip, TCP).unwrap();
    assert!(!ended.established && ended.flow.done(), "{ended:?}");
}

#[test]
fn a_translated_port_outlives_a_move_that_was_cut_off() {
    isolated(|| {
        let old = Old::with_flows();
        let other = "10.96.0.2:80";
        hash(&old.pins, "FRONTENDS")
            .insert(
                frontend_key("10.96.0.2", 80, TCP),
                schema1::Frontend { service: 10, slot_base: 5, backends: 1, ..Default::default() },
                0,
            )
            .unwrap();
        let mut moving = old.moving();
        take(&mut moving, 4);
        let sent = tcp(CLIENT, other, Segment::Syn);
        let sent = moving.programs().test_run(Stage::PodEgress, &sent, IFINDEX, None, 1).unwrap();
        let sent = read(&sent.packet);
        assert_ne!(sent.source.port(), 1000, "the client's port has a flow to this backend");
        drop(moving);
        let (datapath, _) = open(&old.config());
        let back = tcp(BACKEND, &sent.source.to_string(), Segment::SynAck);
        let back = datapath.test_run(Stage::PodIngress, &back, IFINDEX, false, 1).unwrap();
        let back = read(&back.packet);
        assert_eq!(
            (back.source.to_string(), back.destination.to_string()),
            (other.to_owned(), CLIENT.to_owned())
        );
        goes_on(&datapath, CLIENT, VIP, BACKEND);
    });
}

#[test]
fn a_move_that_fails_leaves_all_as_it_was() {
    isolated(|| {
        let old = Old::with_flows();
        // More than the kernel can address in one map.
        let config = Config { flows: u32::MAX, ..old.config() };
        let Err(error) = Datapath::open(&config).map(drop) else { panic!("four billion rows") };
        assert!(matches!(error, Error::Move { .. }), "{error:?}");
        assert_eq!(folders(&config), ["v1"]);
        assert_eq!(old.flows().keys().count(), 24);
        let (datapath, _) = open(&old.config());
        all_is_here(&datapath);
        let clients = [0, 1].map(|family| pod_at(family, 1, 4000));
        clients.iter().for_each(|client| connect(&datapath, client));
        drop(datapath);
        let (datapath, report) = open(&config);
        let [kept] = report.kept.as_slice() else { panic!("{report:?}") };
        assert_eq!((kept.map, kept.wanted, kept.actual), ("ESTABLISHED", u32::MAX, 1024));
        assert!(kept.why.contains("ESTABLISHED"), "{}", kept.why);
        assert_eq!(folders(&config), ["v2"]);
        for client in &clients {
            let (vip, backend) = service_for(client);
            goes_on(&datapath, client, vip, backend);
        }
    });
}

#[test]
fn what_is_of_a_newer_schema_or_of_none_is_refused_by_name() {
    isolated(|| {
        let rig = Rig::fresh();
        let config = rig.folder.config();
        drop(rig.datapath);
        let newer = config.bpffs.join(format!("v{}", netd_bpf::SCHEMA + 1));
        std::fs::create_dir(&newer).unwrap();
        let Err(Error::Newer { path, schema: 3 }) = Datapath::open(&config).map(drop) else {
            panic!("a newer netd's maps were taken over");
        };
        assert_eq!(path, newer);

        let old = Old::with_flows();
        let path = old.pins.map("FLOWS");
        std::fs::remove_file(&path).unwrap();
        make_map(&path, "FLOWS", "lru_hash", [40, 60, 16]);
        let Err(Error::Shape { path: named, value: 60, want_value: 56, .. }) =
            Datapath::open(&old.config()).map(drop)
        else {
            panic!("a map of another shape was taken");
        };
        assert_eq!(named, path);
        assert_eq!(folders(&old.config()), ["v1"]);
    });
}
