//! What the kernel's numbers stand for, for whoever tells events and states to people.
//!
//! Flows outlive the Services and backends whose numbers they bear, so names are remembered when they are deleted:
//! a Service port's until its number is given out again, a backend's by number and generation, which never come
//! again; of either the newest few thousand, and none of an earlier agent's time.
//!
//! Written by the reconciler only, with what changed; readers hold the lock for one look-up or copy.

use crate::model::ObjectName;
use crate::reconcile::former::Former;
use crate::service::plan::PortName;
use crate::service::tables::NameChange;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

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
    /// The id's generation.
    pub generation: u32,
    /// Address and port.
    pub address: SocketAddr,
    /// The pod behind it, if known.
    pub pod: Option<ObjectName>,
}

/// What numbers stand for or have stood for, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Register {
    /// Service ports in the tables.
    pub services: HashMap<u32, ObjectName>,
    /// Backends in the tables, by id and generation.
    pub backends: HashMap<(u32, u32), BackendLabel>,
    /// Service ports that were deleted.
    pub former_services: HashMap<u32, ObjectName>,
    /// Backends that were deleted.
    pub former_backends: HashMap<(u32, u32), BackendLabel>,
}

#[derive(Debug, Default)]
struct Inner {
    services: HashMap<u32, ServiceLabel>,
    backends: HashMap<u32, BackendLabel>,
    former_services: Former<u32, ObjectName>,
    former_backends: Former<(u32, u32), BackendLabel>,
}

impl Inner {
    /// All names are of a former image: those that the changes do not tell again are deleted. The others are not even
    /// for a moment, since there may be more of them than are remembered.
    fn start_over(&mut self, changes: &[NameChange]) {
        let (mut numbers, mut ids) = (HashSet::new(), HashSet::new());
        for change in changes {
            match change {
                NameChange::Frontend { number, .. } => drop(numbers.insert(*number)),
                NameChange::Backend { id, generation, .. } => drop(ids.insert((*id, *generation))),
                NameChange::FrontendGone { .. } | NameChange::BackendGone { .. } => {}
            }
        }
        for (number, label) in std::mem::take(&mut self.services) {
            if !numbers.contains(&number) {
                self.former_services.remember(number, label.port.service);
            }
        }
        for (id, label) in std::mem::take(&mut self.backends) {
            let key = (id, label.generation);
            if !ids.contains(&key) {
                self.former_backends.remember(key, label);
            }
        }
    }

    fn service_gone(&mut self, number: u32) {
        if let Some(label) = self.services.remove(&number) {
            self.former_services.remember(number, label.port.service);
        }
    }

    fn backend_gone(&mut self, id: u32) {
        if let Some(label) = self.backends.remove(&id) {
            self.former_backends.remember((id, label.generation), label);
        }
    }
}

/// The names.
#[derive(Debug, Default)]
pub struct Names(RwLock<Inner>);

impl Names {
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The Service port that a number stands for.
    #[must_use]
    pub fn service(&self, number: u32) -> Option<ServiceLabel> {
        self.read().services.get(&number).cloned()
    }

    /// The backend that an id stands for, also while it terminates.
    #[must_use]
    pub fn backend(&self, id: u32) -> Option<BackendLabel> {
        self.read().backends.get(&id).cloned()
    }

    /// All numbers.
    #[must_use]
    pub fn register(&self) -> Register {
        let inner = self.read();
        let service = |(number, label): (&u32, &ServiceLabel)| (*number, label.port.service.clone());
        let backend = |(id, label): (&u32, &BackendLabel)| ((*id, label.generation), label.clone());
        Register {
            services: inner.services.iter().map(service).collect(),
            backends: inner.backends.iter().map(backend).collect(),
            former_services: inner.former_services.all(),
            former_backends: inner.former_backends.all(),
        }
    }

    /// The backends' pods by address, of those that are known.
    #[must_use]
    pub fn pods(&self) -> HashMap<IpAddr, ObjectName> {
        let pod = |label: &BackendLabel| Some((label.address.ip(), label.pod.clone()?));
        self.read().backends.values().filter_map(pod).collect()
    }

    /// Takes over changes; `anew`: they tell all that is there, and what was before and is not told is gone.
    pub(super) fn change(&self, changes: Vec<NameChange>, anew: bool) {
        if changes.is_empty() && !anew {
            return;
        }
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if anew {
            inner.start_over(&changes);
        }
        for change in changes {
            match change {
                NameChange::Frontend { number, port, address } => {
                    inner.former_services.forget(&number);
                    let new = || ServiceLabel { port, addresses: Vec::new() };
                    inner.services.entry(number).or_insert_with(new).addresses.push(address);
                }
                NameChange::FrontendGone { number, address } => {
                    if let Some(label) = inner.services.get_mut(&number) {
                        label.addresses.retain(|known| *known != address);
                        if label.addresses.is_empty() {
                            inner.service_gone(number);
                        }
                    }
                }
                NameChange::Backend { id, generation, address, pod } => {
                    if inner.backends.get(&id).is_some_and(|label| label.generation != generation) {
                        inner.backend_gone(id);
                    }
                    inner.former_backends.forget(&(id, generation));
                    inner.backends.insert(id, BackendLabel { generation, address, pod });
                }
                NameChange::BackendGone { id } => inner.backend_gone(id),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;
    use crate::reconcile::former::REMEMBERED;

    fn address(n: u32) -> SocketAddr {
        SocketAddr::from(((0x0a60_0000 + n).to_be_bytes(), 80))
    }

    fn came(number: u32, name: &str) -> NameChange {
        let port = PortName { service: ObjectName::new("shop", name), port: 80, protocol: Protocol::Tcp };
        NameChange::Frontend { number, port, address: address(number) }
    }

    fn went(number: u32) -> NameChange {
        NameChange::FrontendGone { number, address: address(number) }
    }

    fn backend(id: u32, generation: u32, pod: &str) -> NameChange {
        let pod = Some(ObjectName::new("shop", pod));
        NameChange::Backend { id, generation, address: address(id), pod }
    }

    fn former(names: &Names, number: u32) -> Option<String> {
        names.register().former_services.get(&number).map(ToString::to_string)
    }

    #[test]
    fn a_deleted_service_is_remembered_until_its_number_is_given_out_again() {
        let names = Names::default();
        names.change(vec![came(1, "api"), came(2, "db")], true);
        names.change(vec![went(1)], false);
        assert_eq!((names.service(1), former(&names, 1)), (None, Some("shop/api".to_owned())));
        assert_eq!(former(&names, 2), None);
        names.change(vec![came(1, "web")], false);
        assert_eq!((names.register().services[&1].to_string(), former(&names, 1)), ("shop/web".into(), None));
    }

    #[test]
    fn a_deleted_backend_is_remembered_by_its_generation() {
        let names = Names::default();
        names.change(vec![backend(7, 1, "old")], true);
        names.change(vec![NameChange::BackendGone { id: 7 }, backend(7, 2, "new")], false);
        let register = names.register();
        let pod = |label: &BackendLabel| label.pod.as_ref().map(ToString::to_string);
        assert_eq!(pod(&register.former_backends[&(7, 1)]), Some("shop/old".to_owned()));
        assert_eq!(pod(&register.backends[&(7, 2)]), Some("shop/new".to_owned()));
        assert_eq!((register.backends.len(), register.former_backends.len()), (1, 1));
    }

    #[test]
    fn what_a_new_image_does_not_tell_is_deleted() {
        let names = Names::default();
        names.change(vec![came(1, "api"), came(2, "db"), backend(7, 1, "a"), backend(8, 1, "b")], true);
        names.change(vec![came(2, "db"), backend(8, 1, "b")], true);
        let register = names.register();
        let numbers: Vec<_> = register.services.keys().chain(register.former_services.keys()).collect();
        assert_eq!(numbers, [&2, &1]);
        let ids: Vec<_> = register.backends.keys().chain(register.former_backends.keys()).collect();
        assert_eq!(ids, [&(8, 1), &(7, 1)]);
    }

    #[test]
    fn a_new_image_of_more_than_is_remembered_leaves_what_was_deleted_before() {
        let names = Names::default();
        names.change(vec![came(1, "old"), backend(1, 1, "old")], true);
        names.change(vec![went(1), NameChange::BackendGone { id: 1 }], false);
        let last = u32::try_from(REMEMBERED).unwrap() + 2;
        let all: Vec<_> = (2..=last).flat_map(|n| [came(n, "api"), backend(n, 1, "pod")]).collect();
        names.change(all.clone(), true);
        names.change(all, true);
        let register = names.register();
        assert_eq!((register.services.len(), register.backends.len()), (REMEMBERED + 1, REMEMBERED + 1));
        assert_eq!(register.former_services.into_keys().collect::<Vec<_>>(), [1]);
        assert_eq!(register.former_backends.into_keys().collect::<Vec<_>>(), [(1, 1)]);
    }

    #[test]
    fn of_what_is_deleted_the_oldest_is_forgotten() {
        let names = Names::default();
        let last = u32::try_from(REMEMBERED).unwrap() + 1;
        for number in 1..=last {
            names.change(vec![came(number, "api"), backend(number, 1, "pod")], false);
            names.change(vec![went(number), NameChange::BackendGone { id: number }], false);
        }
        let register = names.register();
        assert_eq!(
            (register.former_services.len(), register.former_backends.len()),
            (REMEMBERED, REMEMBERED)
        );
        assert_eq!((former(&names, 1), former(&names, last)), (None, Some("shop/api".to_owned())));
    }
}
