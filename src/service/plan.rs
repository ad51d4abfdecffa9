//! The plan: what the service tables ought to hold for a model.
//!
//! One entry per Service that has cluster addresses, one frontend per cluster address and port. Invariants
//! of a [`Desired`]: services are in the order of their names; a frontend key occurs once; a backend list
//! holds no address twice, has local backends first and is otherwise sorted, so that a source that tells the
//! same endpoints in another order changes nothing.
//!
//! Headless Services have no cluster address; those labelled `service.kubernetes.io/service-proxy-name`
//! belong to another proxy, as in kube-proxy.

use crate::model::{Model, ObjectName, Protocol, Service, ServicePort};
use netd_bpf::Addr;
use netd_bpf::service::{FrontendKey, scope};
use serde::Serialize;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// A port of a Service: what a service number of the kernel stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PortName {
    /// The Service.
    pub service: ObjectName,
    /// The Service's port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.service, self.port, self.protocol)
    }
}

/// An endpoint chosen for a Service port, as the choice of endpoints gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The endpoint's address.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
    /// It is on this node.
    pub local: bool,
    /// The pod behind it, if known.
    pub pod: Option<ObjectName>,
}

/// A backend of a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredBackend {
    /// The endpoint's address.
    pub addr: Addr,
    /// Network order.
    pub port: u16,
    /// It is on this node.
    pub local: bool,
    /// The pod behind it, if known; for names only.
    pub pod: Option<ObjectName>,
}

/// What one frontend ought to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredFrontend {
    /// Its key.
    pub key: FrontendKey,
    /// The Service's port, in host order.
    pub port: u16,
    /// The port's protocol.
    pub protocol: Protocol,
    /// `sessionAffinity: ClientIP` with its time-out.
    pub affinity_seconds: Option<u32>,
    /// Local ones first, otherwise sorted, none twice.
    pub backends: Vec<DesiredBackend>,
}

impl DesiredFrontend {
    /// How many of the backends are on this node; they come first.
    #[must_use]
    pub fn local(&self) -> usize {
        self.backends.partition_point(|backend| backend.local)
    }
}

/// What one Service ought to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredService {
    /// The Service.
    pub name: ObjectName,
    /// One per address and port.
    pub frontends: Vec<DesiredFrontend>,
}

impl DesiredService {
    /// True if none of its frontends has a backend.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frontends.iter().all(|frontend| frontend.backends.is_empty())
    }

    /// The name of the port that a frontend of this Service stands for.
    #[must_use]
    pub fn port_name(&self, frontend: &DesiredFrontend) -> PortName {
        PortName { service: self.name.clone(), port: frontend.port, protocol: frontend.protocol }
    }
}

/// A frontend that a Service claims although another has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// The Service that does not get it.
    pub service: ObjectName,
    /// The Service that has it: the first by namespace and name.
    pub holder: ObjectName,
    /// Address and port.
    pub address: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, holder, address, protocol } = self;
        write!(f, "Service {service} claims {address}/{protocol}, which Service {holder} has")
    }
}

/// An SCTP port whose endpoints listen on another one. That would have to be written into each packet, and the
/// checksum over all of it (CRC32c, RFC 9260 §6.8) be made again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Untranslatable {
    /// The Service's port.
    pub port: PortName,
    /// The first of the endpoints that are left out.
    pub endpoint: SocketAddr,
}

impl Untranslatable {
    /// Short name of what is wrong, for metrics and programs.
    pub const NAME: &str = "target_port";
}

impl fmt::Display for Untranslatable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, endpoint } = self;
        write!(
            f,
            "Service port {port} cannot lead to {endpoint}: the port of an SCTP packet is not translated, its \
             targetPort must be {} as well",
            port.port
        )
    }
}

/// What the service tables ought to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// In the order of their names.
    pub services: Vec<DesiredService>,
    /// Claims that were turned down.
    pub conflicts: Vec<Conflict>,
    /// Ports with endpoints that are left out.
    pub untranslatable: Vec<Untranslatable>,
}

/// Plans all Services of `model`. `choose` gives the endpoints of a Service port that a client of the cluster
/// address may be sent to; the address tells the family.
pub fn desired<C>(model: &Model, mut choose: impl FnMut(&Service, &ServicePort, IpAddr) -> C) -> Desired
where
    C: IntoIterator<Item = Choice>,
{
    let mut out = Desired { services: Vec::with_capacity(model.services.len()), ..Desired::default() };
    let mut holders: HashMap<FrontendKey, &ObjectName> = HashMap::with_capacity(model.services.len());
    for service in model.services.values() {
        let claims = claims(service).filter(|claim| match holders.entry(claim.key) {
            Entry::Occupied(holder) => {
                out.conflicts.push(Conflict {
                    service: service.name.clone(),
                    holder: (*holder.get()).clone(),
                    address: SocketAddr::new(claim.address, claim.port.port),
                    protocol: claim.port.protocol,
                });
                false
            }
            Entry::Vacant(vacant) => {
                vacant.insert(&service.name);
                true
            }
        });
        let planned = plan(service, claims, &mut choose, &mut out.untranslatable);
        if !planned.frontends.is_empty() {
            out.services.push(planned);
        }
    }
    out
}

/// Plans some Services anew that are the same as before, but whose endpoints may differ; in the order of their
/// names. Gives the places in `desired.services` of those that do.
pub fn renew<'m, C>(
    desired: &mut Desired,
    services: impl Iterator<Item = &'m Arc<Service>>,
    mut choose: impl FnMut(&Service, &ServicePort, IpAddr) -> C,
) -> Vec<usize>
where
    C: IntoIterator<Item = Choice>,
{
    let mut changed = Vec::new();
    for service in services {
        // One that has no frontend gets none by its endpoints.
        let Ok(at) = desired.services.binary_search_by(|planned| planned.name.cmp(&service.name)) else {
            continue;
        };
        let Some(planned) = desired.services.get_mut(at) else { continue };
        let had: Vec<FrontendKey> = planned.frontends.iter().map(|frontend| frontend.key).collect();
        let claims = claims(service).filter(|claim| had.contains(&claim.key));
        let mut untranslatable = Vec::new();
        let new = plan(service, claims, &mut choose, &mut untranslatable);
        let told = &mut desired.untranslatable;
        let before = told.partition_point(|one| one.port.service < service.name);
        let after = told.partition_point(|one| one.port.service <= service.name);
        told.splice(before..after, untranslatable);
        if *planned != new {
            *planned = new;
            changed.push(at);
        }
    }
    changed
}

/// Plans the frontends that a Service has.
fn plan<'m, C>(
    service: &'m Service,
    claims: impl Iterator<Item = Claim<'m>>,
    choose: &mut impl FnMut(&Service, &ServicePort, IpAddr) -> C,
    untranslatable: &mut Vec<Untranslatable>,
) -> DesiredService
where
    C: IntoIterator<Item = Choice>,
{
    let frontends = claims.map(|Claim { key, port, address }| {
        let mut backends = backends(choose(service, port, address), address);
        if let Some(endpoint) = leave_out(port, &mut backends) {
            let port = PortName { service: service.name.clone(), port: port.port, protocol: port.protocol };
            untranslatable.push(Untranslatable { port, endpoint });
        }
        DesiredFrontend {
            key,
            port: port.port,
            protocol: port.protocol,
            affinity_seconds: service.affinity_seconds,
            backends,
        }
    });
    DesiredService { frontends: frontends.collect(), name: service.name.clone() }
}

/// A frontend that a Service claims.
struct Claim<'m> {
    key: FrontendKey,
    port: &'m ServicePort,
    address: IpAddr,
}

/// By port, then by address.
fn claims(service: &Service) -> impl Iterator<Item = Claim<'_>> {
    let ports = if service.skip_proxy { &[][..] } else { &service.ports };
    let all = ports.iter().flat_map(|port| service.cluster_ips.iter().map(move |address| (port, *address)));
    all.map(|(port, address)| {
        let key = FrontendKey {
            addr: address.into(),
            port: port.port.to_be(),
            proto: port.protocol.number(),
            scope: scope::INTERNAL,
        };
        Claim { key, port, address }
    })
}

/// Takes backends out that the programs could not send to; gives the first of them.
fn leave_out(port: &ServicePort, backends: &mut Vec<DesiredBackend>) -> Option<SocketAddr> {
    if port.protocol != Protocol::Sctp {
        return None;
    }
    let other = |backend: &DesiredBackend| u16::from_be(backend.port) != port.port;
    let first = backends.iter().find(|backend| other(backend))?;
    let endpoint = SocketAddr::new(first.addr.into(), u16::from_be(first.port));
    backends.retain(|backend| !other(backend));
    Some(endpoint)
}

/// The list in its one order. An endpoint of the other family cannot be reached through this address.
fn backends(chosen: impl IntoIterator<Item = Choice>, frontend: IpAddr) -> Vec<DesiredBackend> {
    let mut list: Vec<DesiredBackend> = chosen
        .into_iter()
        .filter(|choice| choice.address.is_ipv4() == frontend.is_ipv4())
        .map(|choice| DesiredBackend {
            addr: choice.address.into(),
            port: choice.port.to_be(),
            local: choice.local,
            pod: choice.pod,
        })
        .collect();
    list.sort_unstable_by_key(|backend| (backend.addr, backend.port, !backend.local));
    list.dedup_by_key(|backend| (backend.addr, backend.port));
    list.sort_by_key(|backend| !backend.local);
    list
}

#[cfg(test)]
mod tests;
