//! Policies about SCTP (RFC 9260), from objects to packets: planner, tables and the real programs. The kernel here has
//! no SCTP sockets, so that associations are made frames: an INIT, its answer, and TCP to the same port beside it.

use super::oracle::World;
use crate::datapath::test_run::Stage;
use crate::datapath::tests::frames::{Segment, raw, tcp};
use crate::datapath::tests::rig::isolated;
use crate::model::{Model, Namespace, ObjectName, Pod, convert};
use crate::policy::Planner;
use crate::policy::oracle::cluster::{Local, NODES};
use crate::policy::oracle::tests::planned;
use netd_bpf::event::reason;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;

const SHOT: i32 = 2;
const SCTP: u8 = 132;
const SERVER: u32 = 1;
const CLIENT_PORT: u16 = 40_000;

/// The server, which is this node's, and clients of other nodes: by family.
const SERVERS: [&str; 2] = ["10.0.0.1", "fd00::1"];
const CLIENTS: [(&str, &str, &str, [&str; 2]); 3] = [
    ("shop", "client", "client", ["10.1.0.1", "fd77::1"]),
    ("other", "client", "client", ["10.1.0.2", "fd77::2"]),
    ("other", "stranger", "stranger", ["10.1.0.3", "fd77::3"]),
];

fn ips(of: [&str; 2]) -> Vec<IpAddr> {
    of.map(|ip| ip.parse().unwrap()).to_vec()
}

/// Namespaces, pods and policies of `shop` by their specs.
fn model(policies: &[Value]) -> Model {
    let mut model = Model::default();
    for (name, team) in [("shop", "a"), ("other", "b")] {
        let labels = [("team".to_owned(), team.to_owned())].into();
        model.namespaces.insert(name.into(), Arc::new(Namespace { name: name.into(), labels }));
    }
    let server = ("shop", "server", "server", SERVERS);
    for (namespace, name, app, of) in CLIENTS.into_iter().chain([server]) {
        let pod = Pod {
            name: ObjectName::new(namespace, name),
            labels: [("app".to_owned(), app.to_owned())].into(),
            node: Some(if name == "server" { NODES[0] } else { NODES[1] }.into()),
            ips: ips(of),
            ..Pod::default()
        };
        model.pods.insert(pod.name.clone(), Arc::new(pod));
    }
    for (n, spec) in policies.iter().enumerate() {
        let object = json!({"metadata": {"namespace": "shop", "name": format!("policy-{n}")}, "spec": spec});
        let policy = convert::network_policy(serde_json::from_value(object).unwrap()).unwrap();
        model.policies.insert(policy.name.clone(), Arc::new(policy));
    }
    model
}

/// A world in which these policies hold.
struct Scene {
    world: World,
    planner: Planner,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { world: World::new(), planner: Planner::new() };
        scene.world.rig.forget();
        scene
    }

    fn hold(&mut self, policies: &[Value]) {
        let server =
            Local { endpoint: SERVER, pod: ObjectName::new("shop", "server"), addresses: ips(SERVERS) };
        let touched = planned::update(&mut self.planner, &model(policies), std::slice::from_ref(&server));
        self.world.bring(self.planner.desired(), &touched);
        self.world.add_pod(&server);
    }

    /// Brings a frame to the server, at the uplink or by the node's stack; true if it passes.
    fn arrives(&self, frame: &[u8], by_stack: bool) -> bool {
        let mut frame = frame.to_vec();
        let (stage, ifindex) = if by_stack {
            (Stage::PodIngress, self.world.interface(SERVER))
        } else {
            frame[..6].copy_from_slice(&super::oracle::UPLINK_MAC);
            (Stage::UplinkIn, self.world.uplink)
        };
        self.world.rig.datapath.test_run(stage, &frame, ifindex, false, 1).unwrap().verdict != SHOT
    }

    /// The server sends a frame; true if it passes.
    fn leaves(&self, frame: &[u8]) -> bool {
        let interface = self.world.interface(SERVER);
        self.world.rig.datapath.test_run(Stage::PodEgress, frame, interface, false, 1).unwrap().verdict
            != SHOT
    }

    /// True if a client's association with the server's port comes about, both ways in, and its data passes.
    fn associates(&self, client: usize, family: usize, port: u16) -> bool {
        let (from, to) = (CLIENTS[client].3[family], SERVERS[family]);
        let ways = [false, true].map(|by_stack| {
            let own = CLIENT_PORT + u16::from(by_stack);
            let begun = self.arrives(&init(from, own, to, port), by_stack);
            if begun {
                assert!(self.leaves(&init_ack(to, port, from, own)), "{from} is answered");
                assert!(self.arrives(&data(from, own, to, port), by_stack), "{from} goes on");
            }
            begun
        });
        assert_eq!(ways[0], ways[1], "{from} by the uplink and by the stack");
        ways[0]
    }

    /// True if a client's SYN to the server's port passes.
    fn connects(&self, client: usize, family: usize, port: u16) -> bool {
        let socket = |ip: &str, port: u16| std::net::SocketAddr::new(ip.parse().unwrap(), port).to_string();
        let (from, to) = (socket(CLIENTS[client].3[family], CLIENT_PORT), socket(SERVERS[family], port));
        let syn = tcp(&from, &to, Segment::Syn);
        let ways = [false, true].map(|by_stack| self.arrives(&syn, by_stack));
        assert_eq!(ways[0], ways[1], "{from} by the uplink and by the stack");
        ways[0]
    }

    fn denied(&self) -> u64 {
        self.world.rig.drops(reason::INGRESS_DENIED)
    }
}

/// A packet with one chunk (RFC 9260 §3.1): ports, verification tag, no checksum that anybody here looks at.
fn chunk(from: &str, from_port: u16, to: &str, to_port: u16, chunk: &[u8]) -> Vec<u8> {
    let mut packet = [from_port.to_be_bytes(), to_port.to_be_bytes()].concat();
    packet.extend([0, 0, 0, 0, 1, 2, 3, 4]);
    packet.extend(chunk);
    raw(from, to, SCTP, &packet)
}

/// RFC 9260 §3.3.2.
fn init(from: &str, from_port: u16, to: &str, to_port: u16) -> Vec<u8> {
    chunk(from, from_port, to, to_port, &[1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1])
}

/// RFC 9260 §3.3.3.
fn init_ack(from: &str, from_port: u16, to: &str, to_port: u16) -> Vec<u8> {
    chunk(from, from_port, to, to_port, &[2, 0, 0, 20, 0, 0, 0, 2, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1])
}

/// RFC 9260 §3.3.1.
fn data(from: &str, from_port: u16, to: &str, to_port: u16) -> Vec<u8> {
    chunk(from, from_port, to, to_port, &[0, 3, 0, 20, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 7, 7, 7, 7])
}

#[test]
fn sctp_from_client_to_server_is_allowed_by_port() {
    isolated(|| {
        let mut scene = Scene::new();
        scene.hold(&[]);
        for family in [0, 1] {
            assert!(
                scene.associates(0, family, 80) && scene.associates(0, family, 81),
                "nothing isolates it"
            );
        }
        scene.hold(&[json!({
            "podSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{"ports": [{"protocol": "SCTP", "port": 80}]}]
        })]);
        for family in [0, 1] {
            for client in 0..CLIENTS.len() {
                assert!(scene.associates(client, family, 80));
                assert!(!scene.associates(client, family, 81), "also the association that was open");
                assert!(!scene.connects(client, family, 80) && !scene.connects(client, family, 81), "TCP");
            }
        }
        // Three clients, three tries each, both ways in, both families.
        assert_eq!(scene.denied(), 3 * 3 * 2 * 2);
        // The other port: what is open at the first is cut.
        scene.hold(&[json!({
            "podSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{"ports": [{"protocol": "SCTP", "port": 81}]}]
        })]);
        for family in [0, 1] {
            assert!(!scene.associates(0, family, 80) && scene.associates(0, family, 81));
            let answer = init_ack(SERVERS[family], 80, CLIENTS[0].3[family], CLIENT_PORT);
            assert!(!scene.leaves(&answer), "nor has it an answer");
            assert!(!scene.connects(0, family, 81));
        }
    });
}

#[test]
fn sctp_is_allowed_from_a_pod_of_another_namespace_that_both_selectors_name() {
    isolated(|| {
        let mut scene = Scene::new();
        let from = json!({
            "namespaceSelector": {"matchLabels": {"team": "b"}},
            "podSelector": {"matchLabels": {"app": "client"}}
        });
        scene.hold(&[json!({
            "podSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{"from": [from], "ports": [{"protocol": "SCTP", "port": 80}]}]
        })]);
        for family in [0, 1] {
            let who = [0, 1, 2].map(|client| scene.associates(client, family, 80));
            assert_eq!(who, [false, true, false], "only the namespace, both, only the pod");
            for client in 0..CLIENTS.len() {
                assert!(!scene.associates(client, family, 81));
                assert!(!scene.connects(client, family, 80));
            }
        }
    });
}

#[test]
fn a_default_deny_of_ingress_holds_for_sctp() {
    isolated(|| {
        let mut scene = Scene::new();
        scene.hold(&[json!({"podSelector": {}, "policyTypes": ["Ingress"]})]);
        for family in [0, 1] {
            for client in 0..CLIENTS.len() {
                assert!(!scene.associates(client, family, 80));
                assert!(!scene.connects(client, family, 80));
            }
            // What the server itself begins is answered.
            let (own, other) = (SERVERS[family], CLIENTS[0].3[family]);
            assert!(scene.leaves(&init(own, 5000, other, 80)));
            assert!(scene.arrives(&init_ack(other, 80, own, 5000), false));
            assert!(!scene.arrives(&init_ack(other, 81, own, 5000), false), "but by nobody else");
        }
        assert_eq!(scene.denied(), 2 * (3 * 2 * 2 + 1));
    });
}
