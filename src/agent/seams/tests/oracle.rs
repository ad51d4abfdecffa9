//! Planner and the real programs together, measured against the oracle: every random packet is the first of its flow,
//! judged by an explain run and by a real one, which must say the same. What was allowed has its rules in the flow's
//! row, and its answer passes. After a change of the cluster the same flows are asked again, by a packet of either
//! direction.
//!
//! What the node itself sends is told by its socket, and that of a test run is none of the node's: such packets are
//! the lab's.

use super::QUARANTINE;
use crate::agent::seams::policy::PolicyTables;
use crate::datapath::test_run::{Ran, Stage};
use crate::datapath::tests::frames::{Segment, TCP, UDP, raw, tcp, udp};
use crate::datapath::tests::rig::{IFINDEX, OTHER_IFINDEX, Rig, isolated, pod, run, uplink};
use crate::policy::oracle::cluster::{Cluster, ENDPOINTS, Local};
use crate::policy::oracle::tests::{CLUSTERS, Judged, PACKETS, Subject, Told, measure, planned};
use crate::policy::oracle::{End, Packet};
use crate::policy::tables::{Kernel, Op, Tables};
use crate::policy::{Desired, Direction, Planner, Touched};
use crate::reconcile::policy::PolicyMaps as _;
use netd_bpf::Addr;
use netd_bpf::event::reason;
use netd_bpf::flow::FlowKey;
use netd_bpf::pod::Pod;
use proptest::test_runner::TestCaseError;
use proptest::{prop_assert_eq, prop_assert_ne};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

const SHOT: i32 = 2;
const SCTP: u8 = 132;
const ICMP: [u8; 2] = [1, 58];
/// Pods of this node, at most.
const PODS: u32 = 10;
/// MAC address of the uplink.
pub(super) const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x99];

/// What all clusters have in common: the loaded programs, the tables and their image, interfaces for pods.
pub(super) struct World {
    pub(super) rig: Rig,
    maps: PolicyTables,
    tables: RefCell<Tables>,
    now: Cell<Instant>,
    /// The pods that have rows, and their rows.
    pods: RefCell<Vec<(Local, Pod)>>,
    /// Interface of each endpoint, by its remainder.
    interfaces: Vec<u32>,
    pub(super) uplink: u32,
}

impl World {
    pub(super) fn new() -> Self {
        let rig = Rig::with(|config| {
            (config.policy_rows, config.policy_ranges) = (4096, 8192);
            (config.identities, config.blocks) = (256, 1024);
            config.nursery = 16_384;
        });
        // The rig's own pods.
        for pod in [pod(IFINDEX, 1, "10.0.0.1", "fd00::1"), pod(OTHER_IFINDEX, 2, "10.0.0.2", "fd00::2")] {
            rig.datapath.remove_pod(&pod).unwrap();
        }
        let interface = |number: u32| {
            let name = format!("pod{number}");
            run(&["ip", "link", "add", &name, "type", "veth", "peer", "name", &format!("{name}c")]);
            nix::net::if_::if_nametoindex(&*name).unwrap()
        };
        let interfaces = (0..PODS).map(interface).collect();
        let (maps, now) = (PolicyTables(Arc::clone(&rig.datapath)), Instant::now());
        let tables = Tables::read(maps.limits(), QUARANTINE, &kernel(&maps), now);
        Self {
            rig,
            maps,
            tables: tables.into(),
            now: now.into(),
            pods: RefCell::default(),
            interfaces,
            uplink: uplink(),
        }
    }

    pub(super) fn interface(&self, endpoint: u32) -> u32 {
        self.interfaces[(endpoint % ENDPOINTS) as usize]
    }

    /// Plans and writes. No program runs meanwhile, so that a quarantine is over at once.
    pub(super) fn bring(&self, desired: &Desired, touched: &Touched) {
        let mut tables = self.tables.borrow_mut();
        self.now.set(self.now.get() + 2 * QUARANTINE);
        let plan = tables.plan(desired, touched, self.now.get());
        assert_eq!(plan.refused, [], "there is room");
        for op in plan.ops {
            let maps = &self.maps;
            match op {
                Op::SetRanges { base, ranges } => maps.set_ranges(base, &ranges),
                Op::SetRow { key, row } => maps.set_rows(&[(key, row)]),
                Op::SetBlock { block, identity } => maps.set_blocks(&[(block, identity)]),
                Op::SetIdentity { addr, row } => maps.set_identities(&[(addr, row)]),
                Op::SetPod { endpoint, sets } => maps.set_pods(&[(endpoint, sets)]),
                Op::RemovePod { endpoint } => maps.remove_pods(&[endpoint]),
                Op::BumpEpoch => maps.bump_epoch(),
                Op::RemoveIdentity { addr } => maps.delete_identities(&[addr]),
                Op::RemoveBlock { block } => maps.delete_blocks(&[block]),
                Op::RemoveRow { key } => maps.delete_rows(&[key]),
            }
            .unwrap();
        }
        tables.applied(self.now.get());
    }

    /// Takes away the pods that are not in `wanted` as they are.
    fn remove_pods(&self, wanted: &[Local]) {
        self.pods.borrow_mut().retain(|(local, row)| {
            let stays = wanted.contains(local);
            if !stays {
                self.rig.datapath.remove_pod(row).unwrap();
            }
            stays
        });
    }

    pub(super) fn add_pod(&self, local: &Local) {
        let mut pods = self.pods.borrow_mut();
        if pods.iter().any(|(other, _)| other == local) {
            return;
        }
        let address = |v6: bool| {
            let found = local.addresses.iter().find(|address| address.is_ipv6() == v6);
            found.map_or(Addr::UNSPECIFIED, |address| (*address).into())
        };
        let row = pod(self.interface(local.endpoint), local.endpoint, "", "");
        let row = Pod { v4: address(false), v6: address(true), ..row };
        self.rig.datapath.upsert_pod(&row).unwrap();
        pods.push((local.clone(), row));
    }
}

fn kernel(maps: &PolicyTables) -> Kernel {
    Kernel {
        pods: maps.pods().unwrap(),
        identities: maps.identities().unwrap(),
        blocks: maps.blocks().unwrap(),
        rows: maps.rows().unwrap(),
        ranges: maps.ranges(0, maps.limits().ranges).unwrap(),
    }
}

/// A planner, and the programs on its tables.
struct Programs<'w> {
    world: &'w World,
    planner: Planner,
    /// Flows that were let through at least once: who began them, and the pod whose they are.
    open: HashMap<FlowKey, (IpAddr, u32)>,
}

impl<'w> Programs<'w> {
    /// On empty tables.
    fn new(world: &'w World) -> Self {
        world.remove_pods(&[]);
        world.bring(&Desired::default(), &Touched::all());
        world.rig.forget();
        Self { world, planner: Planner::new(), open: HashMap::new() }
    }

    /// As the program says it that meets the packet first: what a pod of this node sends at its interface, what comes
    /// from outside at the uplink or, brought by the node's stack, at the pod's interface.
    fn send(&self, cluster: &Cluster, end: [&End; 2], frame: &[u8], explain: bool, by_stack: bool) -> Ran {
        let endpoint = |end: &End| {
            let local = cluster.locals.iter().find(|local| local.addresses.contains(&end.address()))?;
            cluster.is_local(end).then(|| self.world.interface(local.endpoint))
        };
        let [from, to] = end.map(endpoint);
        let mut frame = frame.to_vec();
        let (stage, ifindex) = match (from, to) {
            (Some(from), _) => (Stage::PodEgress, from),
            (None, Some(to)) if by_stack => (Stage::PodIngress, to),
            _ => {
                frame[..6].copy_from_slice(&UPLINK_MAC);
                (Stage::UplinkIn, self.world.uplink)
            }
        };
        self.world.rig.datapath.test_run(stage, &frame, ifindex, explain, 1).unwrap()
    }
}

impl Subject for Programs<'_> {
    fn change_to(&mut self, cluster: &Cluster) {
        // As it comes: who goes is gone before the plan knows, who comes is planned before he is there.
        let (world, planner) = (self.world, &mut self.planner);
        world.remove_pods(&cluster.locals);
        let stay: Vec<Local> = world.pods.borrow().iter().map(|(local, _)| local.clone()).collect();
        for locals in [&stay, &cluster.locals] {
            let touched = planned::update(planner, &cluster.model, locals);
            world.bring(planner.desired(), &touched);
        }
        cluster.locals.iter().for_each(|local| world.add_pod(local));
    }

    fn judge(&mut self, cluster: &Cluster, packet: &Packet) -> Result<Option<Judged>, TestCaseError> {
        if planned::node_addresses().contains(&packet.from.address()) {
            return Ok(None);
        }
        let addresses = [&packet.from, &packet.to].map(End::address);
        let number = BuildHasherDefault::<DefaultHasher>::default().hash_one((
            addresses,
            packet.protocol,
            packet.port,
        ));
        let by_stack = number.is_multiple_of(2);
        let Flow { frame, answer, key } = Flow::of(packet, number);
        let (forth, back) = ([&packet.from, &packet.to], [&packet.to, &packet.from]);
        let datapath = &self.world.rig.datapath;

        let opened = self.open.get(&key).copied();
        let from = packet.from.address();
        let local = |end: &End| {
            let found = cluster.locals.iter().find(|local| local.addresses.contains(&end.address()))?;
            cluster.is_local(end).then_some(found.endpoint)
        };
        let owner = local(&packet.from).or(local(&packet.to)).unwrap_or_default();
        if opened.is_some_and(|(other, _)| other != from) {
            // Without ports it would be an answer to what went the other way, also if that is forbidden by now.
            self.open.remove(&key);
            datapath.remove_flow(&key).unwrap();
        }
        // Of a flow that stood before the cluster changed the next packet may be the answer; but not to a pod that has
        // the address of the one whose it was.
        let stands = opened == Some((from, owner)) && self.world.rig.flow(&key).is_some();
        let first_back = stands && number.is_multiple_of(3);
        let answered = first_back.then(|| self.send(cluster, back, &answer, false, by_stack));
        let explained = self.send(cluster, forth, &frame, true, by_stack).explained.unwrap();
        let ran = self.send(cluster, forth, &frame, false, by_stack);
        let why = explained.outcome.to_le_bytes()[1];
        prop_assert_eq!(ran.verdict == SHOT, why != 0, "{:?} was explained with reason {}", packet, why);
        if let Some(answered) = answered {
            prop_assert_eq!(
                answered.verdict == SHOT,
                why != 0,
                "the first packet is the answer to {:?}",
                packet
            );
        }
        if why != 0 {
            let judged = match why {
                reason::EGRESS_DENIED => Judged { egress: Some(Told::Denied), ingress: None },
                reason::INGRESS_DENIED => {
                    Judged { egress: Some(Told::LetThrough), ingress: Some(Told::Denied) }
                }
                _ => return Err(TestCaseError::fail(format!("{packet:?} was dropped for reason {why}"))),
            };
            return Ok(Some(judged));
        }
        self.open.insert(key, (from, owner));
        let answered = self.send(cluster, back, &answer, false, by_stack);
        prop_assert_ne!(answered.verdict, SHOT, "the answer to {:?}", packet);
        let row = self.world.rig.flow(&key);
        let row = row.ok_or_else(|| TestCaseError::fail(format!("{packet:?} left no row")))?;
        if stands {
            // A change that leaves all verdicts as they are has no flow judged anew: its rules are those of before.
            return Ok(Some(Judged { egress: Some(Told::LetThrough), ingress: Some(Told::LetThrough) }));
        }
        let egress = planned::rule(&self.planner, row.egress_rule, Direction::Egress);
        let ingress = planned::rule(&self.planner, row.ingress_rule, Direction::Ingress);
        Ok(Some(Judged { egress: Some(egress), ingress: Some(ingress) }))
    }
}

/// The first packet of a flow, its answer, and its key.
struct Flow {
    frame: Vec<u8>,
    answer: Vec<u8>,
    key: FlowKey,
}

impl Flow {
    /// The same packet is always of the same flow, two hardly ever of one: by its number.
    fn of(packet: &Packet, number: u64) -> Self {
        let port = 20_000 + u16::try_from(number % 40_000).unwrap();
        let (from, to) = (packet.from.address(), packet.to.address());
        let socket = |address: IpAddr, port: u16| SocketAddr::new(address, port).to_string();
        let (client, server) = (socket(from, port), socket(to, packet.port));
        let (source, destination) = (from.to_string(), to.to_string());
        let [high, low] = port.to_be_bytes();
        let mut key = FlowKey::default();
        let mut at = |client_port: u16, server_port: u16| {
            key.set((&from.into(), client_port.to_be()), (&to.into(), server_port.to_be()), packet.protocol);
            key
        };
        match packet.protocol {
            TCP => Self {
                frame: tcp(&client, &server, Segment::Syn),
                answer: tcp(&server, &client, Segment::SynAck),
                key: at(port, packet.port),
            },
            UDP => Self {
                frame: udp(&client, &server),
                answer: udp(&server, &client),
                key: at(port, packet.port),
            },
            SCTP => {
                let [server_high, server_low] = packet.port.to_be_bytes();
                // RFC 9260 §3.1: ports, verification tag, checksum.
                let mut init =
                    [high, low, server_high, server_low, 0, 0, 0, 0, 1, 2, 3, 4, 1, 0, 0, 20, 0, 0, 0, 1];
                let frame = raw(&source, &destination, SCTP, &init);
                init[..4].rotate_left(2);
                Self { frame, answer: raw(&destination, &source, SCTP, &init), key: at(port, packet.port) }
            }
            proto if ICMP.contains(&proto) => {
                // RFC 792 and RFC 4443 §4: echo, and its reply.
                let (request, reply) = if proto == ICMP[0] { (8, 0) } else { (128, 129) };
                let echo = |kind: u8| [kind, 0, 0, 0, high, low, 0, 1];
                Self {
                    frame: raw(&source, &destination, proto, &echo(request)),
                    answer: raw(&destination, &source, proto, &echo(reply)),
                    key: at(port, port),
                }
            }
            // A flow is all of the protocol between two addresses.
            proto => Self {
                frame: raw(&source, &destination, proto, &[0; 16]),
                answer: raw(&destination, &source, proto, &[0; 16]),
                key: at(0, 0),
            },
        }
    }
}

#[test]
fn random_packets_through_random_clusters_meet_what_the_api_says() {
    isolated(|| {
        let world = World::new();
        let (tally, packets) = measure(CLUSTERS, PACKETS, || Programs::new(&world));
        assert!(packets >= 100_000, "{packets}");
        tally.check();
        assert_eq!(world.tables.borrow().drift(&kernel(&world.maps)), []);
    });
}
