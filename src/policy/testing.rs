//! Small clusters for tests: objects as the API has them, read as every source reads them.

use super::eval::{Packet, Verdict, judge};
use super::{Desired, Input, LocalPod, Planner};
use crate::model::{ContainerPort, Model, Namespace, ObjectName, Pod, Protocol, convert};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SCTP: u8 = 132;
pub(super) const ICMP: u8 = 1;

/// This node's address.
pub(super) const NODE: &str = "192.168.0.1";

/// A cluster as a node sees it.
#[derive(Clone)]
pub(super) struct World {
    pub(super) model: Model,
    pub(super) locals: BTreeMap<u32, LocalPod>,
    pub(super) node_addresses: Vec<IpAddr>,
}

pub(super) fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName::new(namespace, name)
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn labels(text: &str) -> BTreeMap<String, String> {
    text.split_whitespace()
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (key.into(), value.into()))
        .collect()
}

/// A pod with labels as in `app=web tier=front`.
pub(super) fn pod(text: &str, pod_labels: &str, ips: &[&str]) -> Pod {
    Pod {
        name: name(text),
        labels: labels(pod_labels),
        node: Some("other".into()),
        ips: ips.iter().map(|text| ip(text)).collect(),
        ready: true,
        ..Pod::default()
    }
}

impl World {
    pub(super) fn new() -> Self {
        let (model, locals) = (Model::default(), BTreeMap::new());
        Self { model, locals, node_addresses: vec![ip(NODE)] }
    }

    pub(super) fn namespace(&mut self, name: &str, text: &str) -> &mut Self {
        let mut labels = labels(text);
        labels.insert("kubernetes.io/metadata.name".into(), name.into());
        self.model.namespaces.insert(name.into(), Arc::new(Namespace { name: name.into(), labels }));
        self
    }

    pub(super) fn remote(&mut self, pod: Pod) -> &mut Self {
        self.model.pods.insert(pod.name.clone(), Arc::new(pod));
        self
    }

    /// A pod of this node; its endpoint is the last byte of its first address.
    pub(super) fn local(&mut self, mut pod: Pod) -> &mut Self {
        self.here(Some(pod.name.clone()), &pod.ips);
        // What the model says of its address counts for nothing.
        pod.ips = vec![ip("203.0.113.9")];
        pod.node = Some("here".into());
        self.remote(pod)
    }

    /// Something in the ledger that the model need not know.
    pub(super) fn here(&mut self, pod: Option<ObjectName>, addresses: &[IpAddr]) -> &mut Self {
        let endpoint = match addresses[0] {
            IpAddr::V4(v4) => v4.octets()[3].into(),
            IpAddr::V6(v6) => v6.octets()[15].into(),
        };
        self.locals.insert(endpoint, LocalPod { endpoint, pod, uid: None, addresses: addresses.to_vec() });
        self
    }

    pub(super) fn port(&mut self, pod: &str, port: &str, number: u16, protocol: Protocol) -> &mut Self {
        let mut changed = (*self.model.pods[&name(pod)]).clone();
        changed.ports.push(ContainerPort { name: port.into(), port: number, protocol });
        self.remote(changed)
    }

    pub(super) fn label(&mut self, pod: &str, text: &str) -> &mut Self {
        let mut changed = (*self.model.pods[&name(pod)]).clone();
        changed.labels = labels(text);
        self.remote(changed)
    }

    /// A policy by its spec.
    pub(super) fn policy(&mut self, text: &str, spec: &Value) -> &mut Self {
        let name = name(text);
        let object =
            json!({ "metadata": { "namespace": &*name.namespace, "name": &*name.name }, "spec": spec });
        let object = serde_json::from_value(object).unwrap();
        let policy = convert::network_policy(object).unwrap();
        self.model.policies.insert(name, Arc::new(policy));
        self
    }

    pub(super) fn input(&self) -> Input<'_> {
        Input { model: &self.model, locals: &self.locals, node: "here", node_addresses: &self.node_addresses }
    }

    pub(super) fn planned(&self) -> Planner {
        let mut planner = Planner::new();
        assert!(planner.update(self.input()).all);
        planner
    }

    /// Planned from nothing.
    pub(super) fn desired(&self) -> Desired {
        self.planned().desired().clone()
    }
}

pub(super) fn packet(from: &str, to: &str, protocol: u8, port: u16) -> Packet {
    Packet { from: ip(from), to: ip(to), protocol, port, from_node: false }
}

pub(super) fn verdict(desired: &Desired, from: &str, to: &str, protocol: u8, port: u16) -> Verdict {
    judge(desired, &packet(from, to, protocol, port))
}

/// Which of these are let through, in a string of `+` and `-`.
pub(super) fn allowed(desired: &Desired, packets: &[(&str, &str, u8, u16)]) -> String {
    let one = |(from, to, protocol, port): &(&str, &str, u8, u16)| {
        if verdict(desired, from, to, *protocol, *port).allowed() { '+' } else { '-' }
    };
    packets.iter().map(one).collect()
}
