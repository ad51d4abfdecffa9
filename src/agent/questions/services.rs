//! The answers to `netd svc`: what is wanted, beside the kernel's maps as they are.

use super::ask::{Book, Refusal, pick};
use crate::agent::seams::OnNode;
use crate::agent::state::State;
use crate::answer::protocol;
use crate::answer::services::{
    Backend, BackendState, Frontend, Port, Refusal as Refused, Service, Services, Shown,
    State as ServiceState,
};
use crate::datapath;
use crate::model::endpoints::{self, EndpointIndex, Scope, View};
use crate::model::{self, Family, Model, ObjectName, TrafficPolicy};
use crate::reconcile::services::ServiceStatus;
use crate::service::plan::{Conflict, Desired, DesiredFrontend, DesiredService, Untranslatable};
use crate::service::tables::{self, Kernel};
use crate::service::view::{BackendView, FrontendView, Index, Standing};
use crate::store::Snapshot;
use netd_bpf::flow::role;
use netd_bpf::service::FrontendKey;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Everything known of Services at one moment.
struct Moment {
    snapshot: Arc<Snapshot>,
    desired: Desired,
    status: ServiceStatus,
    kernel: Index,
    /// The kernel was being written while it was read: what differs means nothing.
    moving: bool,
}

impl Moment {
    fn read(state: &State) -> Result<Self, Refusal> {
        let status = || {
            let handle = state.services.load();
            handle.as_ref().map(|handle| Arc::clone(&handle.status.borrow())).unwrap_or_default()
        };
        let snapshot = state.store.current();
        let before = status();
        let kernel = kernel(&state.datapath).map_err(|error| Refusal::failed(&error))?;
        let after = status();
        let steady = before.generation == Some(snapshot.generation)
            && after.generation == Some(snapshot.generation)
            && state.store.current().generation == snapshot.generation;
        let desired = OnNode(state.node.clone()).plan(&snapshot.model);
        Ok(Self {
            snapshot,
            desired,
            status: ServiceStatus::clone(&after),
            kernel: kernel.into(),
            moving: !steady,
        })
    }

    fn model(&self) -> &Model {
        &self.snapshot.model
    }

    /// State of a Service, and why.
    fn state(
        &self,
        service: &model::Service,
        desired: Option<&DesiredService>,
        views: &[FrontendView],
        lacks: &Lacks<'_>,
    ) -> (ServiceState, Option<String>) {
        let name = &service.name;
        if let Some(conflict) = lacks.conflicts.get(name) {
            return (ServiceState::Conflict, Some(conflict.to_string()));
        }
        let Some(desired) = desired else {
            return (ServiceState::NotServed, Some(why_not_served(service).to_owned()));
        };
        if let Some((how, refusal)) = lacks.room.get(name) {
            return (*how, Some(refusal.to_string()));
        }
        if let Some(left_out) = lacks.port.get(name) {
            return (ServiceState::Refused, Some(left_out.to_string()));
        }
        let differences: Vec<&str> =
            views.iter().flat_map(|view| &view.differences).map(String::as_str).collect();
        match differences.first() {
            Some(_) if self.moving => (ServiceState::Pending, None),
            Some(first) => {
                let more = if differences.len() > 1 {
                    format!(" (and {} more)", differences.len() - 1)
                } else {
                    String::new()
                };
                (ServiceState::Differs, Some(format!("{first}{more}")))
            }
            None if desired.is_empty() => (ServiceState::NoEndpoints, None),
            None => (ServiceState::Ok, None),
        }
    }
}

fn kernel(datapath: &datapath::Datapath) -> Result<Kernel, datapath::Error> {
    let (_, slots, _) = datapath.service_limits();
    Ok(Kernel {
        frontends: datapath.frontends()?,
        slots: datapath.slots(0, slots)?,
        backends: datapath.backends()?,
    })
}

/// What Services lack, by name: of several of a kind the first.
struct Lacks<'m> {
    conflicts: HashMap<&'m ObjectName, &'m Conflict>,
    /// Refused or waiting.
    room: HashMap<&'m ObjectName, (ServiceState, &'m tables::Refusal)>,
    port: HashMap<&'m ObjectName, &'m Untranslatable>,
    /// Of the model, if a Service lacks a port.
    endpoints: Option<EndpointIndex<'m>>,
}

impl<'m> Lacks<'m> {
    fn of(moment: &'m Moment) -> Self {
        let Moment { desired: Desired { conflicts, untranslatable, .. }, status, .. } = moment;
        let refused = status.refused.iter().map(|refusal| (ServiceState::Refused, refusal));
        let waiting = status.waiting.iter().map(|refusal| (ServiceState::Waiting, refusal));
        let index = (!untranslatable.is_empty()).then(|| EndpointIndex::build(moment.model()));
        Self {
            conflicts: conflicts.iter().rev().map(|one| (&one.service, one)).collect(),
            room: refused.chain(waiting).rev().map(|(how, one)| (&one.service, (how, one))).collect(),
            port: untranslatable.iter().rev().map(|one| (&one.port.service, one)).collect(),
            endpoints: index,
        }
    }

    /// What a Service lacks.
    fn refusal(
        &self,
        service: &model::Service,
        desired: Option<&DesiredService>,
        node: &str,
    ) -> Option<Refused> {
        if let Some((_, refusal)) = self.room.get(&service.name) {
            return Some(lacking(refusal));
        }
        let (left_out, index) = (self.port.get(&service.name)?, self.endpoints.as_ref()?);
        untranslatable(left_out, service, desired?, index, node)
    }
}

fn lacking(refusal: &tables::Refusal) -> Refused {
    let tables::List { address, protocol: proto, endpoints, in_force } = refusal.list;
    Refused {
        lacks: refusal.reason.name().to_owned(),
        port: Port { address, protocol: protocol(proto.number()) },
        endpoints,
        in_force,
    }
}

/// How much of an SCTP port's list is in force.
fn untranslatable(
    left_out: &Untranslatable,
    service: &model::Service,
    desired: &DesiredService,
    index: &EndpointIndex<'_>,
    node: &str,
) -> Option<Refused> {
    let v4 = left_out.endpoint.is_ipv4();
    let frontend = desired.frontends.iter().find(|f| {
        (f.port, f.protocol) == (left_out.port.port, left_out.port.protocol)
            && IpAddr::from(f.key.addr).is_ipv4() == v4
    })?;
    let port_of =
        service.ports.iter().find(|port| (port.port, port.protocol) == (frontend.port, frontend.protocol))?;
    let family = if v4 { Family::V4 } else { Family::V6 };
    let view = View { node, scope: Scope::Internal };
    let chosen = endpoints::select(index, service, port_of, family, view);
    let chosen: HashSet<SocketAddr> =
        chosen.into_iter().map(|one| SocketAddr::new(one.address, one.port)).collect();
    Some(Refused {
        lacks: Untranslatable::NAME.to_owned(),
        port: port(&frontend.key),
        endpoints: chosen.len(),
        in_force: frontend.backends.len(),
    })
}

fn why_not_served(service: &model::Service) -> &'static str {
    if service.skip_proxy {
        "its labels give it to another proxy"
    } else if service.cluster_ips.is_empty() {
        "it has no address of its own (headless or ExternalName)"
    } else {
        "it has no ports"
    }
}

fn port(key: &FrontendKey) -> Port {
    let address = SocketAddr::new(key.addr.into(), u16::from_be(key.port));
    Port { address, protocol: protocol(key.proto) }
}

/// All Services.
///
/// # Errors
/// The kernel cannot be read.
pub(in crate::agent) fn list(state: &State) -> Result<Services, Refusal> {
    let moment = Moment::read(state)?;
    let lacks = Lacks::of(&moment);
    let wanted: HashMap<&ObjectName, &DesiredService> =
        moment.desired.services.iter().map(|service| (&service.name, service)).collect();
    let mut known: HashSet<FrontendKey> = HashSet::new();
    let mut services = Vec::with_capacity(moment.model().services.len());
    for (name, service) in &moment.model().services {
        let desired = wanted.get(name).copied();
        let frontends: &[DesiredFrontend] = desired.map_or(&[], |desired| &desired.frontends);
        known.extend(frontends.iter().map(|frontend| frontend.key));
        let views: Vec<FrontendView> = frontends.iter().map(|one| moment.kernel.frontend(one)).collect();
        let (how, reason) = moment.state(service, desired, &views, &lacks);
        let most = frontends.iter().max_by_key(|frontend| frontend.backends.len());
        services.push(Service {
            service: name.to_string(),
            frontends: frontends.iter().map(|frontend| port(&frontend.key)).collect(),
            endpoints: most.map_or(0, |frontend| frontend.backends.len()),
            endpoints_local: most.map_or(0, DesiredFrontend::local),
            affinity_seconds: service.affinity_seconds,
            state: how,
            reason,
            refusal: lacks.refusal(service, desired, &state.node),
        });
    }
    let mut strays: Vec<Port> = Vec::new();
    if !moment.moving && moment.snapshot.synced {
        strays.extend(moment.kernel.keys().filter(|key| !known.contains(key)).map(port));
        strays.sort();
    }
    Ok(Services { node: state.node.clone(), services, strays })
}

/// One Service.
///
/// # Errors
/// There is none of that name, or the kernel cannot be read.
pub(in crate::agent) fn show(state: &State, asked: &str) -> Result<Shown, Refusal> {
    let moment = Moment::read(state)?;
    let name = pick("Service", asked, moment.model().services.keys())?;
    let Some(service) = moment.model().services.get(&name) else {
        return Err(Refusal::Failed(format!("Service {name} has just gone")));
    };
    let lacks = Lacks::of(&moment);
    let desired = moment.desired.services.iter().find(|service| service.name == name);
    let frontends: &[DesiredFrontend] = desired.map_or(&[], |desired| &desired.frontends);
    let views: Vec<FrontendView> = frontends.iter().map(|one| moment.kernel.frontend(one)).collect();
    let (how, reason) = moment.state(service, desired, &views, &lacks);
    let numbers: HashSet<u32> = views.iter().filter_map(|view| Some(view.row?.service)).collect();
    let flows = flows(&state.datapath, &numbers).map_err(|error| Refusal::failed(&error))?;
    let book = state.book();
    let places = Places::of(service, moment.model(), &book, &state.node);
    Ok(Shown {
        node: state.node.clone(),
        service: name.to_string(),
        state: how,
        reason,
        refusal: lacks.refusal(service, desired, &state.node),
        affinity_seconds: service.affinity_seconds,
        internal_traffic_policy: match service.internal_traffic_policy {
            TrafficPolicy::Cluster => "Cluster",
            TrafficPolicy::Local => "Local",
        }
        .to_owned(),
        frontends: frontends
            .iter()
            .zip(views)
            .map(|(frontend, view)| shown(frontend, view, &flows, &places))
            .collect(),
    })
}

/// Flows by Service port's number and server.
type Flows = BTreeMap<(u32, SocketAddr), u64>;

/// One walk over all flows: some ten milliseconds for a hundred thousand.
fn flows(datapath: &datapath::Datapath, numbers: &HashSet<u32>) -> Result<Flows, datapath::Error> {
    let mut flows = Flows::new();
    if numbers.is_empty() {
        return Ok(flows);
    }
    datapath.visit_flows(|rows| {
        for row in rows {
            if row.flow.role == role::FORWARD && numbers.contains(&row.flow.service) {
                let server = SocketAddr::new(row.flow.xlat_addr.into(), u16::from_be(row.flow.xlat_port));
                *flows.entry((row.flow.service, server)).or_default() += 1;
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(flows)
}

/// Who is behind an address, as the endpoints say it, or else the pods themselves.
struct Places<'a> {
    endpoints: HashMap<IpAddr, (Option<ObjectName>, Option<Arc<str>>)>,
    model: &'a Model,
    book: &'a Book,
}

impl<'a> Places<'a> {
    fn of(service: &model::Service, model: &'a Model, book: &'a Book, node: &str) -> Self {
        let index = EndpointIndex::build(model);
        let view = View { node, scope: Scope::Internal };
        let mut endpoints = HashMap::new();
        for port in &service.ports {
            for family in [Family::V4, Family::V6] {
                let chosen = endpoints::select(&index, service, port, family, view);
                endpoints.extend(chosen.into_iter().map(|one| (one.address, (one.pod, one.node))));
            }
        }
        Self { endpoints, model, book }
    }

    /// Pod and node.
    fn at(&self, address: IpAddr) -> (Option<String>, Option<String>) {
        let (pod, node) = self.endpoints.get(&address).cloned().unwrap_or_default();
        let pod = pod.or_else(|| self.book.pod(address).cloned());
        let of_pod = || self.model.pods.get(pod.as_ref()?)?.node.clone();
        let node = node.or_else(of_pod);
        let called = pod.map(|pod| pod.to_string()).or_else(|| self.book.called(address));
        (called, node.map(|node| node.to_string()))
    }
}

fn shown(frontend: &DesiredFrontend, view: FrontendView, flows: &Flows, places: &Places<'_>) -> Frontend {
    let number = view.row.map(|row| row.service);
    let to = |address: SocketAddr| {
        number.and_then(|number| flows.get(&(number, address))).copied().unwrap_or_default()
    };
    let backend = |one: &BackendView| {
        let (pod, node) = places.at(one.address.ip());
        Backend {
            address: one.address,
            pod: one.pod.as_ref().map(ToString::to_string).or(pod),
            node,
            local: one.local,
            state: match one.standing {
                Standing::Active => BackendState::Active,
                Standing::Missing => BackendState::Missing,
                Standing::Unwanted => BackendState::Unwanted,
            },
            number: one.id,
            flows: to(one.address),
        }
    };
    let mut backends: Vec<Backend> = view.backends.iter().map(backend).collect();
    if let Some(number) = number {
        let family = |address: &SocketAddr| address.is_ipv4() == IpAddr::from(frontend.key.addr).is_ipv4();
        let range = flows.range((number, SocketAddr::from(([0, 0, 0, 0], 0)))..);
        let of_port = range.take_while(|((service, _), _)| *service == number);
        for ((_, address), count) in of_port.filter(|((_, address), _)| family(address)) {
            if view.backends.iter().all(|one| one.address != *address) {
                let (pod, node) = places.at(address.ip());
                backends.push(Backend {
                    address: *address,
                    pod,
                    node,
                    local: false,
                    state: BackendState::Left,
                    number: None,
                    flows: *count,
                });
            }
        }
    }
    Frontend {
        port: port(&frontend.key),
        number,
        slot_base: view.row.filter(|row| row.backends > 0).map(|row| row.slot_base),
        slots: view.row.map_or(0, |row| row.backends.into()),
        endpoints: frontend.backends.len(),
        differences: view.differences,
        backends,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, EndpointPort, EndpointSlice, Protocol, ServicePort, TargetPort};

    #[test]
    fn an_sctp_port_with_another_target_port_is_told_with_what_is_in_force() {
        let (name, protocol) = (ObjectName::new("shop", "amf"), Protocol::Sctp);
        let service = model::Service {
            name: name.clone(),
            cluster_ips: vec!["10.96.0.10".parse().unwrap()],
            ports: vec![ServicePort {
                name: "sctp".into(),
                protocol,
                port: 38412,
                target: TargetPort::Number(9),
                node_port: None,
            }],
            ..model::Service::default()
        };
        let slice = |n: u8, port| EndpointSlice {
            name: ObjectName::new("shop", &format!("amf-{n}")),
            service: Some("amf".into()),
            ports: vec![EndpointPort { name: "sctp".into(), protocol, port }],
            endpoints: vec![Endpoint {
                address: IpAddr::from([10, 0, 0, n]),
                ready: true,
                serving: true,
                terminating: false,
                node: None,
                zone: None,
                pod: None,
            }],
        };
        let slices = [slice(1, 38412), slice(2, 9), slice(3, 9)].map(|one| (one.key(), Arc::new(one)));
        let model = Model {
            services: [(name, Arc::new(service.clone()))].into(),
            slices: slices.into(),
            ..Model::default()
        };
        let snapshot = Arc::new(Snapshot { generation: 1, synced: true, model: model.into() });
        let desired = OnNode("n".to_owned()).plan(&snapshot.model);
        let (kernel, status) = (Index::default(), ServiceStatus::default());
        let moment = Moment { snapshot, desired, status, kernel, moving: false };
        let desired = moment.desired.services.first();
        let refusal = Lacks::of(&moment).refusal(&service, desired, "n").unwrap();
        assert_eq!((refusal.lacks.as_str(), refusal.endpoints, refusal.in_force), ("target_port", 3, 1));
        assert_eq!(refusal.port.to_string(), "10.96.0.10:38412/sctp");
    }
}
