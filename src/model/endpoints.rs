//! The choice of endpoints of a Service port: one pure function.
//!
//! Services, the DNS zone and BGP ask [`select`] and nothing else, so they can never disagree. The rules are
//! those of kube-proxy (`pkg/proxy/topology.go`, `CategorizeEndpoints`): ready endpoints; if there is none,
//! those that terminate and still serve; with a `Local` traffic policy, of this node only. A Service with a
//! selector that no EndpointSlice names is served by its Pods, by the rules of the endpoint slice controller.
//!
//! [`EndpointIndex`] makes a full plan cost Services + endpoints + pods, not their product; [`Touched`] tells which
//! Services need no new one.

use super::{
    EndpointSlice, Family, Labels, Model, ObjectName, Pod, Service, ServicePort, TargetPort, TrafficPolicy,
};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

mod touched;

#[cfg(test)]
mod tests;

pub use touched::Touched;

/// Where traffic comes from: it decides which traffic policy holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// From pods and nodes: `internalTrafficPolicy`.
    Internal,
    /// From outside the cluster: `externalTrafficPolicy`.
    External,
}

/// Whose choice it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View<'a> {
    /// Name of this node.
    pub node: &'a str,
    /// Origin of the traffic.
    pub scope: Scope,
}

/// An endpoint that may be sent traffic.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chosen {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its node, if known.
    pub node: Option<Arc<str>>,
    /// Its node is this node.
    pub local: bool,
    /// Its pod, if it is one.
    pub pod: Option<ObjectName>,
}

/// What the choice looks up: slices by Service, and pods by the labels that selectors ask for.
#[derive(Debug, Default)]
pub struct EndpointIndex<'m> {
    slices: HashMap<(&'m str, &'m str), Vec<&'m EndpointSlice>>,
    pods: HashMap<(&'m str, &'m str, &'m str), Vec<&'m Pod>>,
}

impl<'m> EndpointIndex<'m> {
    /// The index of a snapshot.
    #[must_use]
    pub fn build(model: &'m Model) -> Self {
        let slices = model.slices.values().map(AsRef::as_ref);
        Self::of(model, model.services.values(), slices)
    }

    /// The index of a snapshot for those Services that were touched.
    #[must_use]
    pub fn build_for(model: &'m Model, touched: &Touched) -> Self {
        let slices = touched.services(model).flat_map(|service| model.slices_of(&service.name));
        Self::of(model, touched.services(model), slices)
    }

    fn of(
        model: &'m Model,
        services: impl Iterator<Item = &'m Arc<Service>>,
        all_slices: impl Iterator<Item = &'m EndpointSlice>,
    ) -> Self {
        let mut slices: HashMap<_, Vec<&EndpointSlice>> = HashMap::new();
        for slice in all_slices {
            if let Some(service) = &slice.service {
                slices.entry((&*slice.name.namespace, &**service)).or_default().push(slice);
            }
        }
        let mut pods: HashMap<_, Vec<&Pod>> = HashMap::new();
        for service in services {
            if !slices.contains_key(&(&*service.name.namespace, &*service.name.name)) {
                for (key, value) in &service.selector {
                    pods.entry((&*service.name.namespace, key.as_str(), value.as_str())).or_default();
                }
            }
        }
        if !pods.is_empty() {
            for pod in model.pods.values() {
                for (key, value) in &pod.labels {
                    if let Some(list) = pods.get_mut(&(&*pod.name.namespace, key.as_str(), value.as_str())) {
                        list.push(pod);
                    }
                }
            }
        }
        Self { slices, pods }
    }

    fn slices<'a>(&'a self, service: &'a ObjectName) -> Option<&'a [&'m EndpointSlice]> {
        self.slices.get(&(&*service.namespace, &*service.name)).map(Vec::as_slice)
    }

    /// Pods of a namespace whose labels include the selector, found by its rarest label.
    fn pods<'a>(&'a self, namespace: &'a str, selector: &'a Labels) -> impl Iterator<Item = &'a Pod> {
        selector
            .iter()
            .map(|(key, value)| {
                self.pods.get(&(namespace, key.as_str(), value.as_str())).map_or(&[][..], Vec::as_slice)
            })
            .min_by_key(|list| list.len())
            .unwrap_or_default()
            .iter()
            .copied()
            .filter(|pod| selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value)))
    }
}

/// An endpoint before the choice.
struct Candidate {
    ready: bool,
    /// Terminates and still serves: what is left when nothing is ready.
    last_resort: bool,
    node: Option<Arc<str>>,
    local: bool,
    pod: Option<ObjectName>,
}

impl Candidate {
    /// Of two entries of one address the more useful counts: a slice may still hold what another already
    /// updated. A tie goes to the local one, as with kube-proxy.
    fn rank(&self) -> (bool, bool, bool) {
        (self.ready, self.last_resort, self.local)
    }
}

/// The endpoints that traffic to a port of a Service may be sent to, local ones first, then by address.
///
/// `service` is one of the indexed model, and `port` one of its ports. Empty means that there are none: the
/// traffic is to be refused. Whether the Service is ours to serve at all (`skip_proxy`, headless) is the
/// caller's question.
#[must_use]
pub fn select(
    index: &EndpointIndex<'_>,
    service: &Service,
    port: &ServicePort,
    family: Family,
    view: View<'_>,
) -> Vec<Chosen> {
    let candidates = match index.slices(&service.name) {
        Some(slices) => from_slices(slices, port, family, view.node),
        None => from_pods(index, service, port, family, view.node),
    };
    let policy = match view.scope {
        Scope::Internal => service.internal_traffic_policy,
        Scope::External => service.external_traffic_policy,
    };
    let reachable = |candidate: &Candidate| policy == TrafficPolicy::Cluster || candidate.local;
    let any_ready = candidates.values().any(|candidate| candidate.ready && reachable(candidate));
    let mut chosen: Vec<Chosen> = candidates
        .into_iter()
        .filter(|(_, candidate)| {
            reachable(candidate) && if any_ready { candidate.ready } else { candidate.last_resort }
        })
        .map(|((address, port), Candidate { node, local, pod, .. })| Chosen {
            address,
            port,
            node,
            local,
            pod,
        })
        .collect();
    // The map gave them by address; the sort is stable.
    chosen.sort_by_key(|endpoint| !endpoint.local);
    chosen
}

type Candidates = BTreeMap<(IpAddr, u16), Candidate>;

fn add(candidates: &mut Candidates, at: (IpAddr, u16), candidate: Candidate) {
    match candidates.entry(at) {
        std::collections::btree_map::Entry::Vacant(entry) => {
            entry.insert(candidate);
        }
        std::collections::btree_map::Entry::Occupied(mut entry) => {
            if candidate.rank() > entry.get().rank() {
                entry.insert(candidate);
            }
        }
    }
}

fn from_slices(slices: &[&EndpointSlice], port: &ServicePort, family: Family, node: &str) -> Candidates {
    let mut candidates = Candidates::new();
    for slice in slices {
        let matching = slice.ports.iter().find(|p| p.name == port.name && p.protocol == port.protocol);
        let Some(number) = matching.map(|p| p.port) else { continue };
        for endpoint in slice.endpoints.iter().filter(|endpoint| Family::of(endpoint.address) == family) {
            let candidate = Candidate {
                ready: endpoint.ready,
                last_resort: endpoint.serving && endpoint.terminating,
                local: endpoint.node.as_deref() == Some(node),
                node: endpoint.node.clone(),
                pod: endpoint.pod.clone(),
            };
            add(&mut candidates, (endpoint.address, number), candidate);
        }
    }
    candidates
}

fn from_pods(
    index: &EndpointIndex<'_>,
    service: &Service,
    port: &ServicePort,
    family: Family,
    node: &str,
) -> Candidates {
    let mut candidates = Candidates::new();
    for pod in index.pods(&service.name.namespace, &service.selector) {
        if pod.finished {
            continue;
        }
        let Some(address) = pod.ips.iter().find(|ip| Family::of(**ip) == family) else { continue };
        let Some(number) = target_port(pod, port) else { continue };
        let candidate = Candidate {
            ready: service.publish_not_ready || (pod.ready && !pod.terminating),
            last_resort: pod.ready && pod.terminating,
            local: pod.node.as_deref() == Some(node),
            node: pod.node.clone(),
            pod: Some(pod.name.clone()),
        };
        add(&mut candidates, (*address, number), candidate);
    }
    candidates
}

/// The port of a pod that a Service port means; a name is that of a container's port of the same protocol.
fn target_port(pod: &Pod, port: &ServicePort) -> Option<u16> {
    match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => {
            pod.ports.iter().find(|p| p.name == *name && p.protocol == port.protocol).map(|p| p.port)
        }
    }
}
