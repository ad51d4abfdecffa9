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
use std::iter::Peekable;
use std::net::{IpAddr, SocketAddr};
use std::vec;

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

impl fmt::Display for Untranslatable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { port, endpoint } = self;
        write!(
            f,
            "Service port {port} cannot lead to {endpoint}: the port of an SCTP packet is not translated"
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
///
/// Of a `former` plan that is taken over which holds yet: only those Services are planned anew that are `touched`,
/// or that get other frontends because of other Services' claims. A Service that was in the former model may only
/// be called untouched if it is the same object and `choose` would say the same.
pub fn desired<C>(
    former: Desired,
    model: &Model,
    touched: impl Fn(&ObjectName) -> bool,
    mut choose: impl FnMut(&Service, &ServicePort, IpAddr) -> C,
) -> Desired
where
    C: IntoIterator<Item = Choice>,
{
    let mut former = Former::from(former);
    let mut out = Desired { services: Vec::with_capacity(model.services.len()), ..Desired::default() };
    let mut holders: HashMap<FrontendKey, &ObjectName> = HashMap::with_capacity(model.services.len());
    for (name, service) in &model.services {
        let granted = claims(service, &mut holders, &mut out.conflicts);
        if granted.is_empty() {
            continue;
        }
        if let Some((planned, left_out)) = former.take(name).filter(|_| !touched(name))
            && planned.frontends.iter().map(|frontend| frontend.key).eq(granted.iter().map(|claim| claim.key))
        {
            out.services.push(planned);
            out.untranslatable.extend(left_out);
            continue;
        }
        let mut frontends = Vec::with_capacity(granted.len());
        for Claim { key, port, address } in granted {
            let mut backends = backends(choose(service, port, address), address);
            if let Some(endpoint) = leave_out(port, &mut backends) {
                let (service, protocol) = (name.clone(), port.protocol);
                let port = PortName { service, port: port.port, protocol };
                out.untranslatable.push(Untranslatable { port, endpoint });
            }
            frontends.push(DesiredFrontend {
                key,
                port: port.port,
                protocol: port.protocol,
                affinity_seconds: service.affinity_seconds,
                backends,
            });
        }
        out.services.push(DesiredService { name: name.clone(), frontends });
    }
    out
}

/// A former plan, to be taken apart in the order of names.
struct Former {
    services: Peekable<vec::IntoIter<DesiredService>>,
    untranslatable: Peekable<vec::IntoIter<Untranslatable>>,
}

impl From<Desired> for Former {
    fn from(plan: Desired) -> Self {
        Self {
            services: plan.services.into_iter().peekable(),
            untranslatable: plan.untranslatable.into_iter().peekable(),
        }
    }
}

impl Former {
    /// What it says of a Service, once all before it were asked for.
    fn take(&mut self, name: &ObjectName) -> Option<(DesiredService, Vec<Untranslatable>)> {
        while self.services.next_if(|service| service.name < *name).is_some() {}
        while self.untranslatable.next_if(|one| one.port.service < *name).is_some() {}
        let service = self.services.next_if(|service| service.name == *name)?;
        let left_out = std::iter::from_fn(|| self.untranslatable.next_if(|one| one.port.service == *name));
        Some((service, left_out.collect()))
    }
}

/// A frontend that a Service has.
struct Claim<'m> {
    key: FrontendKey,
    port: &'m ServicePort,
    address: IpAddr,
}

/// The frontends of a Service that no Service before it has.
fn claims<'m>(
    service: &'m Service,
    holders: &mut HashMap<FrontendKey, &'m ObjectName>,
    conflicts: &mut Vec<Conflict>,
) -> Vec<Claim<'m>> {
    let mut granted = Vec::new();
    if service.skip_proxy {
        return granted;
    }
    granted.reserve_exact(service.ports.len() * service.cluster_ips.len());
    for port in &service.ports {
        for &address in &service.cluster_ips {
            let key = FrontendKey {
                addr: address.into(),
                port: port.port.to_be(),
                proto: port.protocol.number(),
                scope: scope::INTERNAL,
            };
            match holders.entry(key) {
                Entry::Occupied(holder) => conflicts.push(Conflict {
                    service: service.name.clone(),
                    holder: (*holder.get()).clone(),
                    address: SocketAddr::new(address, port.port),
                    protocol: port.protocol,
                }),
                Entry::Vacant(vacant) => {
                    vacant.insert(&service.name);
                    granted.push(Claim { key, port, address });
                }
            }
        }
    }
    granted
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
