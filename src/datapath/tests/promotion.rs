//! Packets that look for a flow while another CPU moves it between the tables.
//!
//! Between the looks at the two tables are some nanoseconds, which nobody hits by chance. So the first look takes
//! long here: all rows of the table of the established are in one bucket, the flow's own will be at its head, and
//! whoever is on its way through the bucket does not see it come.

use super::frames::{Segment, TCP, addr, ip, tcp};
use super::moves::{FAMILIES, key, take};
use super::rig::{IFINDEX, OTHER_IFINDEX, Rig, isolated, pod, run};
use crate::datapath::config::Config;
use crate::datapath::conversation::now;
use crate::datapath::migrate::Move;
use crate::datapath::pin::Pins;
use crate::datapath::test_run::Stage;
use crate::datapath::{Datapath, locked};
use netd_bpf::flow::{Flow, FlowKey, Share, flow_count};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows of the table, and buckets.
const ROWS: u32 = 256;
/// Those in the bucket.
const CROWD: usize = 200;
/// Connections of each family.
const CONNECTIONS: usize = 1000;
/// So many at a time, of two rows each, for which the table has room.
const BATCH: usize = 25;

/// Two CPUs that this thread may have.
fn two_cpus() -> Option<[usize; 2]> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("always told");
    let mut all = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).is_ok_and(|set| set));
    Some([all.next()?, all.next()?])
}

fn on_cpu(cpu: usize) {
    let mut one = CpuSet::new();
    one.set(cpu).expect("within the set");
    sched_setaffinity(Pid::from_raw(0), &one).expect("allowed");
}

/// The bucket of a key, where the map's hash has no seed (`htab_map_hash`, kernel/bpf/hashtab.c; `jhash2`,
/// include/linux/jhash.h).
fn bucket(key: &FlowKey) -> u32 {
    let [a, b, c, d] = key.low.0;
    let [e, f, g, h] = key.high.0;
    let halves = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
    let ports = halves(key.low_port, key.high_port);
    let words = [a, b, c, d, e, f, g, h, ports, u32::from_le_bytes([key.proto, key.leg, 0, 0])];
    let start = 0xdead_beef_u32.wrapping_add(40);
    let (mut a, mut b, mut c) = (start, start, start);
    let step = |to: &mut u32, by: &mut u32, bits: u32, add: u32| {
        *to = to.wrapping_sub(*by) ^ by.rotate_left(bits);
        *by = by.wrapping_add(add);
    };
    for block in words[..9].chunks_exact(3) {
        (a, b, c) = (a.wrapping_add(block[0]), b.wrapping_add(block[1]), c.wrapping_add(block[2]));
        step(&mut a, &mut c, 4, b);
        step(&mut b, &mut a, 6, c);
        step(&mut c, &mut b, 8, a);
        step(&mut a, &mut c, 16, b);
        step(&mut b, &mut a, 19, c);
        step(&mut c, &mut b, 4, a);
    }
    a = a.wrapping_add(words[9]);
    let last = |to: &mut u32, by: u32, bits: u32| *to = (*to ^ by).wrapping_sub(by.rotate_left(bits));
    last(&mut c, b, 14);
    last(&mut a, c, 11);
    last(&mut b, a, 25);
    last(&mut c, b, 16);
    last(&mut a, c, 4);
    last(&mut b, a, 14);
    last(&mut c, b, 24);
    c & (ROWS - 1)
}

/// A rig whose table of the established has all its rows in bucket 0.
fn crowded() -> Rig {
    let mut rig = Rig::with(|config| (config.flows, config.flows_per_pod) = (ROWS, ROWS));
    let config = rig.datapath.config().clone();
    let pin = Pins::current(&config.bpffs).map("ESTABLISHED");
    drop(rig.datapath);
    std::fs::remove_file(&pin).unwrap();
    let (pin, rows) = (pin.to_str().unwrap().to_owned(), ROWS.to_string());
    // `BPF_F_ZERO_SEED`.
    let words = ["type", "hash", "key", "40", "value", "64", "entries", &rows, "name", "x", "flags", "0x40"];
    run(&[&["bpftool", "map", "create", &pin], &words[..]].concat());
    let (datapath, _) = Datapath::open(&config).unwrap();
    rig.datapath = datapath.into();
    rig.upsert_pod(&pod(IFINDEX, 1, "10.0.0.1", "fd00::1")).unwrap();
    rig.upsert_pod(&pod(OTHER_IFINDEX, 2, "10.0.0.2", "fd00::2")).unwrap();
    let keys = (0..).map(|n: u32| FlowKey {
        low: addr("10.7.0.1"),
        high: addr(&format!("10.8.{}.{}", n >> 8 & 0xff, n & 0xff)),
        low_port: (n >> 16) as u16,
        proto: TCP,
        ..FlowKey::default()
    });
    let flow = Flow { last_seen: now(), owner: 2, ..Flow::default() };
    let mut table = locked(&rig.datapath.established);
    let elsewhere = keys.clone().filter(|key| bucket(key) != 0).take(20);
    let elsewhere: Vec<_> = elsewhere.inspect(|key| table.insert(key, flow, 0).unwrap()).collect();
    for key in keys.filter(|key| bucket(key) == 0).take(CROWD) {
        table.insert(key, flow, 0).unwrap();
    }
    // By buckets.
    let order: Vec<FlowKey> = table.keys().map(Result::unwrap).collect();
    assert_eq!(order.len(), CROWD + elsewhere.len());
    assert!(order[..CROWD].iter().all(|key| !elsewhere.contains(key)), "this kernel's hash is another");
    for key in elsewhere {
        table.remove(&key).unwrap();
    }
    drop(table);
    rig
}

fn wait_for(place: &AtomicUsize, number: usize) {
    while place.load(Ordering::Acquire) < number {
        std::thread::yield_now();
    }
}

/// A crowded rig, perhaps while its tables are being moved.
struct Scene {
    rig: Rig,
    moving: Option<Move>,
}

impl Scene {
    fn new(move_it: bool) -> Self {
        let rig = crowded();
        let moving = move_it.then(|| {
            let config = Config { nursery: 2048, ..rig.datapath.config().clone() };
            let mut moving = Move::to_sizes(&config);
            take(&mut moving, 3);
            moving
        });
        Self { rig, moving }
    }

    /// Sends a packet by the programs that take over, if there are any.
    fn sends(&self, frame: &[u8]) {
        match &self.moving {
            None => drop(self.rig.pod_sends(frame)),
            Some(moving) => {
                drop(moving.programs().test_run(Stage::PodEgress, frame, IFINDEX, None, 1).unwrap());
            }
        }
    }

    fn forget(&self, rows: &[FlowKey]) {
        self.rig.datapath.remove_flows(rows).unwrap();
        if self.moving.is_some() {
            // While tables are moved nobody keeps the books of the former ones.
            locked(&self.rig.datapath.shares).insert(1, Share::default(), 0).unwrap();
            let next = Pins::next(&self.rig.datapath.config().bpffs);
            for table in ["ESTABLISHED", "NURSERY"] {
                let mut table = next.hash::<FlowKey, Flow>(table).unwrap().unwrap();
                for key in rows {
                    table.remove(key).ok();
                }
            }
        }
    }
}

/// Has connections established while another CPU has packets of the same: `other` sends some of one. Before a
/// connection is established there are so many packets for the other to have come to it.
fn race(move_it: bool, before: usize, other: impl Fn(&Scene, &str, &str) + Sync) {
    let Some([here, there]) = two_cpus() else {
        println!("skipped: one processor only, and so nobody to race with");
        return;
    };
    on_cpu(here);
    for [client, vip, backend] in FAMILIES {
        let scene = Scene::new(move_it);
        let rig = &scene.rig;
        rig.service(ip(vip), 80, TCP, &[(ip(backend), 8080)]);
        let (pod, _) = client.rsplit_once(':').unwrap();
        let clients = (1024..u16::MAX).map(|port| format!("{pod}:{port}"));
        let clients: Vec<String> = clients.filter(|client| bucket(&key(client, vip, TCP).0) == 0).collect();
        let clients: Vec<&String> = clients.iter().cycle().take(CONNECTIONS).collect();
        let (scene, clients, other, current) = (&scene, &clients, &other, &AtomicUsize::new(0));
        let [ready, over, left] = &[const { AtomicUsize::new(0) }; 3];
        std::thread::scope(|scope| {
            scope.spawn(move || {
                on_cpu(there);
                for batch in 1..=CONNECTIONS / BATCH {
                    wait_for(ready, batch);
                    while over.load(Ordering::Acquire) < batch {
                        other(scene, clients[current.load(Ordering::Relaxed)], vip);
                    }
                    left.store(batch, Ordering::Release);
                }
            });
            for (batch, those) in (1..).zip(clients.chunks_exact(BATCH)) {
                for client in those {
                    rig.pod_sends(&tcp(client, vip, Segment::Syn));
                    rig.pod_receives(&tcp(backend, client, Segment::SynAck));
                }
                for (at, client) in ((batch - 1) * BATCH..).zip(those) {
                    let (again, last) = (tcp(client, vip, Segment::Syn), tcp(client, vip, Segment::Ack));
                    current.store(at, Ordering::Relaxed);
                    ready.store(batch, Ordering::Release);
                    for _ in 0..before {
                        rig.pod_sends(&again);
                    }
                    rig.pod_sends(&last);
                }
                over.store(batch, Ordering::Release);
                wait_for(left, batch);
                let rows = those.iter().flat_map(|client| [vip, backend].map(|to| key(client, to, TCP).0));
                scene.forget(&rows.collect::<Vec<_>>());
            }
        });
        let counts = rig.datapath.flow_counts().unwrap();
        let (made, moved) = (counts[flow_count::OPENED as usize], counts[flow_count::PROMOTED as usize]);
        let rows = CONNECTIONS as u64 * 2;
        assert_eq!(made, rows, "rows made for {CONNECTIONS} connections: packets missed those that were");
        assert!(moved >= rows, "{moved} of {rows} moved");
    }
}

#[test]
fn a_connection_that_is_being_established_is_not_balanced_anew() {
    isolated(|| race(false, 3, |scene, client, vip| scene.sends(&tcp(client, vip, Segment::Syn))));
}

#[test]
fn a_reply_finds_the_connection_that_is_being_established() {
    isolated(|| {
        race(false, 3, |scene, client, vip| {
            // As it leaves the way back: such a packet stays as it is, and so can be run in a loop.
            let frame = tcp(vip, client, Segment::Ack);
            scene.rig.datapath.test_run(Stage::PodIngress, &frame, IFINDEX, false, 20).unwrap();
        });
    });
}

#[test]
fn programs_that_take_over_find_what_the_former_ones_are_establishing() {
    // Only the first packet of each looks into the former tables.
    isolated(|| race(true, 1, |scene, client, vip| scene.sends(&tcp(client, vip, Segment::Syn))));
}
