//! What the kernel's numbers stand for, for whoever tells events and states to people.
//!
//! Written by the reconciler only, with what changed; readers hold the lock for one look-up.

use crate::model::ObjectName;
use crate::service::plan::PortName;
use crate::service::tables::NameChange;
use serde::Serialize;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{PoisonError, RwLock};

/// A service number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceLabel {
    /// The Service port.
    pub port: PortName,
    /// Its frontends.
    pub addresses: Vec<SocketAddr>,
}

/// A backend id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendLabel {
    /// Address and port.
    pub address: SocketAddr,
    /// The pod behind it, if known.
    pub pod: Option<ObjectName>,
}

#[derive(Debug, Default)]
struct Inner {
    services: HashMap<u32, ServiceLabel>,
    backends: HashMap<u32, BackendLabel>,
}

/// The names.
#[derive(Debug, Default)]
pub struct Names(RwLock<Inner>);

impl Names {
    /// The Service port that a number stands for.
    #[must_use]
    pub fn service(&self, number: u32) -> Option<ServiceLabel> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).services.get(&number).cloned()
    }

    /// The backend that an id stands for, also while it terminates.
    #[must_use]
    pub fn backend(&self, id: u32) -> Option<BackendLabel> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).backends.get(&id).cloned()
    }

    /// The Services by number.
    #[must_use]
    pub fn services(&self) -> HashMap<u32, ObjectName> {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        inner.services.iter().map(|(number, label)| (*number, label.port.service.clone())).collect()
    }

    /// The backends' pods by address, of those that are known.
    #[must_use]
    pub fn pods(&self) -> HashMap<IpAddr, ObjectName> {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let pod = |label: &BackendLabel| Some((label.address.ip(), label.pod.clone()?));
        inner.backends.values().filter_map(pod).collect()
    }

    /// Takes over changes; `anew` forgets all that was before.
    pub(super) fn change(&self, changes: Vec<NameChange>, anew: bool) {
        if changes.is_empty() && !anew {
            return;
        }
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if anew {
            *inner = Inner::default();
        }
        for change in changes {
            match change {
                NameChange::Frontend { number, port, address } => {
                    let new = || ServiceLabel { port, addresses: Vec::new() };
                    inner.services.entry(number).or_insert_with(new).addresses.push(address);
                }
                NameChange::FrontendGone { number, address } => {
                    if let Some(label) = inner.services.get_mut(&number) {
                        label.addresses.retain(|known| *known != address);
                        if label.addresses.is_empty() {
                            inner.services.remove(&number);
                        }
                    }
                }
                NameChange::Backend { id, address, pod } => {
                    inner.backends.insert(id, BackendLabel { address, pod });
                }
                NameChange::BackendGone { id } => {
                    inner.backends.remove(&id);
                }
            }
        }
    }
}
