//! Rules with whom they mean: pods by name, and ports by number.

use crate::answer::policy::{Peer, Port, Resolved, Rule};
use crate::model::{Labels, Model, NetworkPolicy, ObjectName, Pod};
use crate::policy::Direction;
use crate::policy::selector::{Selector, Test};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Label that every namespace has with its own name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The pods that a rule for ingress protects: of these its named ports are.
#[derive(Clone, Copy)]
pub(super) struct Destinations<'a>(pub(super) &'a [&'a Pod]);

/// Tells rules.
pub(super) struct Rules<'m> {
    model: &'m Model,
    /// Pods that can be peers.
    pods: Vec<&'m Pod>,
}

impl<'m> Rules<'m> {
    pub(super) fn of(model: &'m Model) -> Self {
        let pods = model.pods.values().map(Arc::as_ref);
        Self { model, pods: pods.filter(|pod| super::exempt(pod).is_none()).collect() }
    }

    /// The rules of a policy for a direction.
    pub(super) fn told(
        &self,
        policy: &NetworkPolicy,
        direction: Direction,
        destinations: Destinations<'_>,
    ) -> Vec<Rule> {
        let spec = &policy.spec;
        let rules: Vec<(Option<&[_]>, Option<&[_]>)> = match direction {
            Direction::Ingress => {
                let rules = spec.ingress.iter().flatten();
                rules.map(|rule| (rule.from.as_deref(), rule.ports.as_deref())).collect()
            }
            Direction::Egress => {
                let rules = spec.egress.iter().flatten();
                rules.map(|rule| (rule.to.as_deref(), rule.ports.as_deref())).collect()
            }
        };
        let told = (1..).zip(rules).map(|(index, (peers, ports))| {
            let (peers, ports) = (peers.unwrap_or_default(), ports.unwrap_or_default());
            let matched: Vec<Vec<&Pod>> = peers.iter().map(|peer| self.peers(&policy.name, peer)).collect();
            let sent_to: Vec<&Pod> = match direction {
                Direction::Ingress => destinations.0.to_vec(),
                Direction::Egress if peers.is_empty() => self.pods.clone(),
                Direction::Egress => matched.iter().flatten().copied().collect(),
            };
            Rule {
                policy: policy.name.to_string(),
                direction: direction.into(),
                index,
                ignored: false,
                any_peer: peers.is_empty(),
                peers: peers.iter().zip(&matched).map(|(peer, pods)| told_peer(peer, pods)).collect(),
                any_port: ports.is_empty(),
                ports: ports.iter().map(|port| told_port(port, &sent_to)).collect(),
            }
        });
        told.collect()
    }

    /// The pods that a peer is now, by name.
    fn peers(&self, policy: &ObjectName, peer: &api::NetworkPolicyPeer) -> Vec<&'m Pod> {
        let all = self.pods.iter().copied();
        if let Some(block) = &peer.ip_block {
            let Some((cidr, except)) = nets(block) else { return Vec::new() };
            let inside = |ip: &IpAddr| cidr.contains(ip) && !except.iter().any(|net| net.contains(ip));
            return all.filter(|pod| pod.ips.iter().any(inside)).collect();
        }
        let (Ok(pods), Ok(namespaces)) = (
            peer.pod_selector.as_ref().map_or_else(|| Ok(Selector::default()), Selector::compile),
            peer.namespace_selector.as_ref().map(Selector::compile).transpose(),
        ) else {
            return Vec::new();
        };
        let mut seen: BTreeMap<&str, bool> = BTreeMap::new();
        let mut of_namespace = |name: &'m str| match &namespaces {
            None => *policy.namespace == *name,
            Some(selector) => *seen.entry(name).or_insert_with(|| self.namespace(selector, name)),
        };
        let matches = |pod: &Pod| pods.matches(|key| label(&pod.labels, key));
        all.filter(|pod| of_namespace(&pod.name.namespace) && matches(pod)).collect()
    }

    /// Of a namespace that the model does not know nothing is sure but its name, which is a label of all.
    fn namespace(&self, selector: &Selector, name: &str) -> bool {
        match self.model.namespaces.get(name) {
            Some(namespace) => selector.matches(|key| label(&namespace.labels, key)),
            None => selector.matches_known(|key| (key == NAMESPACE_NAME).then_some(name), false),
        }
    }
}

fn label<'l>(labels: &'l Labels, key: &str) -> Option<&'l str> {
    labels.get(key).map(String::as_str)
}

/// The block, and what is not of it.
fn nets(block: &api::IPBlock) -> Option<(IpNet, Vec<IpNet>)> {
    let except = block.except.iter().flatten().filter_map(|text| text.parse().ok());
    Some((block.cidr.parse().ok()?, except.collect()))
}

fn told_peer(peer: &api::NetworkPolicyPeer, pods: &[&Pod]) -> Peer {
    let selector = |selector: &LabelSelector| text(&Selector::compile(selector).unwrap_or_default());
    let block = peer.ip_block.as_ref();
    // A namespace's pods are all of them, if nothing else is said.
    let all = || peer.namespace_selector.as_ref().map(|_| String::new());
    Peer {
        pod_selector: peer.pod_selector.as_ref().map(selector).or_else(all),
        namespace_selector: peer.namespace_selector.as_ref().map(selector),
        block: block.map(|block| block.cidr.clone()),
        except: block.and_then(|block| block.except.clone()).unwrap_or_default(),
        pods: pods.iter().map(|pod| pod.name.to_string()).collect(),
    }
}

fn told_port(port: &api::NetworkPolicyPort, sent_to: &[&Pod]) -> Port {
    let protocol = port.protocol.as_deref().filter(|name| !name.is_empty()).unwrap_or("TCP");
    let number = |number: i32| u16::try_from(number).ok();
    let mut told = Port {
        protocol: protocol.to_ascii_lowercase(),
        port: None,
        end_port: None,
        name: None,
        resolved: Vec::new(),
    };
    match &port.port {
        None => {}
        Some(IntOrString::Int(first)) => {
            told.port = number(*first);
            told.end_port = port.end_port.and_then(number).filter(|last| Some(*last) != told.port);
        }
        Some(IntOrString::String(name)) => {
            told.name = Some(name.clone());
            told.resolved = resolved(name, protocol, sent_to);
        }
    }
    told
}

/// What a port's name stands for: of each pod the first of its containers' ports that is called so.
fn resolved(name: &str, protocol: &str, pods: &[&Pod]) -> Vec<Resolved> {
    let mut numbers: BTreeMap<u16, Vec<String>> = BTreeMap::new();
    for pod in pods {
        let right = |port: &&crate::model::ContainerPort| {
            *port.name == *name && port.protocol.to_string() == protocol
        };
        if let Some(port) = pod.ports.iter().find(right) {
            let pods = numbers.entry(port.port).or_default();
            if pods.last().is_none_or(|last| *last != pod.name.to_string()) {
                pods.push(pod.name.to_string());
            }
        }
    }
    numbers.into_iter().map(|(port, pods)| Resolved { port, pods }).collect()
}

/// A selector as kubectl writes it; empty: everything.
pub(super) fn text(selector: &Selector) -> String {
    let list = |values: &[Arc<str>]| values.join(",");
    let all = selector.requirements().iter().map(|requirement| {
        let key = &requirement.key;
        match &requirement.test {
            Test::In(values) => match values.as_slice() {
                [one] => format!("{key}={one}"),
                several => format!("{key} in ({})", list(several)),
            },
            Test::NotIn(values) => match values.as_slice() {
                [one] => format!("{key}!={one}"),
                several => format!("{key} notin ({})", list(several)),
            },
            Test::Exists => key.to_string(),
            Test::DoesNotExist => format!("!{key}"),
        }
    });
    all.collect::<Vec<_>>().join(",")
}
