//! Planner, reconciler and the real programs together: what a snapshot does to packets.

use super::{Maps, OnNode};
use crate::datapath::test_run::Ran;
use crate::datapath::tests::frames::{Segment, TCP, UDP, read, tcp, udp};
use crate::datapath::tests::rig::{Rig, frontend_key, isolated};
use crate::model::{
    Endpoint, EndpointPort, EndpointSlice, Model, ObjectName, Protocol, Service, ServicePort, TargetPort,
};
use crate::reconcile::services::{Config as Times, Reconciler, ServiceMaps as _, ServiceMetrics};
use crate::service::plan::Desired;
use crate::service::tables::{Kernel, Limits, Op, Plan, Tables};
use crate::store::Store;
use netd_bpf::event::reason;
use netd_bpf::service::{backend_state, seal};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

mod hammer;
mod oracle;
mod policy;
mod sctp;

const QUARANTINE: Duration = Duration::from_secs(1);
const SHOT: i32 = 2;

/// The planner's image of a rig's tables, and its clock.
struct Writer<'a> {
    maps: &'a Maps,
    tables: Tables,
    now: Instant,
}

impl<'a> Writer<'a> {
    fn new(maps: &'a Maps) -> Self {
        let (frontends, slots, backends) = maps.0.service_limits();
        let (limits, now) = (Limits { frontends, backends, slots }, Instant::now());
        Self { maps, tables: Tables::read(limits, QUARANTINE, &kernel(maps), now), now }
    }

    /// Plans and writes.
    fn bring(&mut self, desired: &Desired) -> Plan {
        let plan = self.tables.plan(desired, self.now);
        for op in &plan.ops {
            match op {
                Op::SetBackend { id, row } => self.maps.set_backend(*id, row),
                Op::SetSlots { base, ids } => self.maps.set_slots(*base, ids),
                Op::SetFrontend { key, row } => self.maps.set_frontend(key, row),
                Op::DeleteFrontend { key } => self.maps.delete_frontend(key),
            }
            .unwrap();
        }
        self.tables.applied(self.now);
        plan
    }
}

fn kernel(maps: &Maps) -> Kernel {
    let (_, slots, _) = maps.0.service_limits();
    Kernel {
        frontends: maps.frontends().unwrap(),
        slots: maps.slots(0, slots).unwrap(),
        backends: maps.backends().unwrap(),
    }
}

const VIPS: [&str; 2] = ["10.96.0.1", "fd96::1"];
const CLIENTS: [&str; 2] = ["10.0.0.1", "fd00::1"];
const ENDPOINTS: [[&str; 2]; 3] = [["10.1.0.1", "fd01::1"], ["10.1.0.2", "fd01::2"], ["10.1.0.3", "fd01::3"]];

/// State of an endpoint, as its conditions say it.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Ready,
    /// Terminates, and still serves.
    Last,
    Gone,
}

/// A Service `web` by TCP and UDP, dual stack, with these endpoints.
fn web(states: &[State]) -> Model {
    let protocols = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
    let service = Service {
        name: ObjectName::new("shop", "web"),
        cluster_ips: VIPS.iter().map(|ip| ip.parse().unwrap()).collect(),
        ports: protocols
            .map(|(name, protocol)| ServicePort {
                name: name.into(),
                protocol,
                port: 80,
                target: TargetPort::Number(8080),
                node_port: None,
            })
            .to_vec(),
        ..Service::default()
    };
    let slice = |family: usize| EndpointSlice {
        name: ObjectName::new("shop", &format!("web-{family}")),
        service: Some("web".into()),
        ports: protocols
            .map(|(name, protocol)| EndpointPort { name: name.into(), protocol, port: 8080 })
            .to_vec(),
        endpoints: ENDPOINTS
            .iter()
            .zip(states)
            .map(|(ips, state)| Endpoint {
                address: ips[family].parse().unwrap(),
                ready: *state == State::Ready,
                serving: *state != State::Gone,
                terminating: *state != State::Ready,
                node: None,
                zone: None,
                pod: None,
            })
            .collect(),
    };
    Model {
        services: [(service.name.clone(), Arc::new(service))].into(),
        slices: [0, 1].map(slice).map(|slice| (slice.key(), Arc::new(slice))).into(),
        ..Model::default()
    }
}

fn desired(model: &Model) -> Desired {
    OnNode("a".to_owned()).plan(model)
}

/// Verdict and destination of a packet to the Service.
fn sent(rig: &Rig, family: usize, proto: u8, port: u16, segment: Segment) -> (i32, IpAddr) {
    let ran = rig.pod_sends(&through(family, proto, port, segment));
    (ran.verdict, read(&ran.packet).destination.ip())
}

fn through(family: usize, proto: u8, port: u16, segment: Segment) -> Vec<u8> {
    let socket = |ip: &str, port| SocketAddr::new(ip.parse().unwrap(), port).to_string();
    let (from, to) = (socket(CLIENTS[family], port), socket(VIPS[family], 80));
    if proto == TCP { tcp(&from, &to, segment) } else { udp(&from, &to) }
}

/// The packet was dropped, or answered: what went out goes to who sent it.
fn refused(ran: &Ran, frame: &[u8]) -> bool {
    let (source, destination, length) = if frame[12..14] == [8, 0] { (26, 30, 4) } else { (22, 38, 16) };
    ran.verdict == SHOT || ran.packet[destination..destination + length] == frame[source..source + length]
}

#[test]
fn endpoints_that_all_terminate_but_serve_stay_in_use() {
    isolated(|| {
        use State::{Gone, Last, Ready};
        let rig = Rig::new();
        let maps = Maps(Arc::clone(&rig.datapath));
        let mut writer = Writer::new(&maps);
        let endpoint = |n: usize, family: usize| -> IpAddr { ENDPOINTS[n][family].parse().unwrap() };
        writer.bring(&desired(&web(&[Ready, Ready])));
        // By family and protocol: a flow to each of the two.
        let kinds = [(0, TCP), (0, UDP), (1, TCP), (1, UDP)];
        let mut flows = Vec::new();
        for (family, proto) in kinds {
            for n in [0, 1] {
                let port = (1000..)
                    .find(|port| sent(&rig, family, proto, *port, Segment::Syn).1 == endpoint(n, family));
                flows.push((family, proto, port.unwrap(), n));
            }
        }
        let all_stay = || {
            for (family, proto, port, n) in &flows {
                for _ in 0..20 {
                    let (_, to) = sent(&rig, *family, *proto, *port, Segment::Ack);
                    assert_eq!(to, endpoint(*n, *family), "protocol {proto} port {port}");
                }
            }
        };
        all_stay();
        let plan = writer.bring(&desired(&web(&[Last, Last])));
        assert_eq!(plan.ops, [], "they are as good as before");
        all_stay();
        let states: Vec<u8> = maps.backends().unwrap().iter().map(|(_, row)| row.state).collect();
        assert_eq!(states, [backend_state::ACTIVE; 8]);
        for (family, proto) in kinds {
            let new: BTreeSet<IpAddr> =
                (2000..2040).map(|port| sent(&rig, family, proto, port, Segment::Syn).1).collect();
            assert_eq!(new.len(), 2, "new flows too");
        }
        // One that is ready ends it: open connections stay to their end, datagrams move and stay there.
        writer.bring(&desired(&web(&[Last, Last, Ready])));
        for (family, proto, port, n) in &flows {
            let expected = if *proto == TCP { *n } else { 2 };
            for _ in 0..20 {
                let (_, to) = sent(&rig, *family, *proto, *port, Segment::Ack);
                assert_eq!(to, endpoint(expected, *family));
            }
        }
        // That one terminates too: three of a kind; nobody moves.
        writer.bring(&desired(&web(&[Last, Last, Last])));
        for (family, proto, port, n) in &flows {
            let expected = if *proto == TCP { *n } else { 2 };
            let (_, to) = sent(&rig, *family, *proto, *port, Segment::Ack);
            assert_eq!(to, endpoint(expected, *family));
        }
        // And nobody is left.
        writer.bring(&desired(&web(&[Gone, Gone, Gone])));
        for (family, proto) in kinds {
            let frame = through(family, proto, 3000, Segment::Syn);
            assert!(refused(&rig.pod_sends(&frame), &frame));
        }
        assert_eq!(rig.drops(reason::NO_BACKEND), 4);
    });
}

#[test]
fn an_audit_repairs_rows_whose_seal_is_broken() {
    isolated(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let rig = Rig::new();
            let (frontends, slots, backends) = rig.datapath.service_limits();
            let times = Times {
                audit: Duration::from_millis(20),
                ..Times::new(Limits { frontends, backends, slots })
            };
            let store = Store::new();
            store.publish(Arc::new(web(&[State::Ready])));
            let maps = Maps(Arc::clone(&rig.datapath));
            let metrics = ServiceMetrics::default();
            let (reconciler, mut handle) =
                Reconciler::new(times, OnNode("a".to_owned()), store.subscribe(), maps, metrics);
            let cancel = CancellationToken::new();
            let task = tokio::spawn(reconciler.run(cancel.clone()));
            let deadline = Duration::from_secs(60);
            let written = handle.status.wait_for(|status| status.generation == Some(1));
            tokio::time::timeout(deadline, written).await.expect("it is written").unwrap();

            let rows = rig.datapath.frontends().unwrap();
            let mut found = 0;
            for (family, vip) in VIPS.into_iter().enumerate() {
                let key = frontend_key(vip, 80, UDP);
                let row = rows.iter().find(|(at, _)| *at == key).unwrap().1;
                // A seal of another key, one of another row, and none.
                for broken in [seal(&frontend_key(VIPS[1 - family], 80, UDP), &row), seal(&key, &row) ^ 1, 0]
                {
                    let mut torn = row;
                    torn.seal = broken;
                    rig.raw_frontend(&key, &torn);
                    found += 1;
                    let told = handle.status.wait_for(|status| status.drift >= found);
                    tokio::time::timeout(deadline, told).await.expect("the audit finds it").unwrap();
                    let (verdict, to) = sent(&rig, family, UDP, 1000, Segment::Syn);
                    assert_ne!(verdict, SHOT);
                    assert_eq!(to.to_string(), ENDPOINTS[0][family]);
                }
            }
            cancel.cancel();
            task.await.unwrap().unwrap();
            let changed: Vec<_> = rig.datapath.frontends().unwrap();
            assert!(changed.iter().all(|(_, row)| row.seal == 0));
            assert_eq!(changed.len(), rows.len());
        });
    });
}
