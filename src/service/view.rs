//! What the kernel's tables say of a frontend, beside what is wanted: for people who ask.
//!
//! The comparison is with the maps as they are, not with the image that the reconciler keeps of them.

use super::plan::{DesiredBackend, DesiredFrontend};
use super::tables::{Kernel, row};
use crate::model::ObjectName;
use netd_bpf::Addr;
use netd_bpf::service::{Backend, Frontend, FrontendKey, backend_state, kind};
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

/// The kernel's tables, by key.
#[derive(Debug, Default)]
pub struct Index {
    frontends: HashMap<FrontendKey, Frontend>,
    slots: Vec<u32>,
    backends: HashMap<u32, Backend>,
}

impl From<Kernel> for Index {
    fn from(kernel: Kernel) -> Self {
        Self {
            frontends: kernel.frontends.into_iter().collect(),
            slots: kernel.slots,
            backends: kernel.backends.into_iter().collect(),
        }
    }
}

/// How a backend stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Wanted, and in the slots.
    Active,
    /// Wanted, and not in the slots.
    Missing,
    /// In the slots, and not wanted.
    Unwanted,
}

/// A backend of a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendView {
    /// Address and port.
    pub address: SocketAddr,
    /// The pod behind it, if known.
    pub pod: Option<ObjectName>,
    /// It is on this node.
    pub local: bool,
    /// How it stands.
    pub standing: Standing,
    /// Its id, if it is in the slots.
    pub id: Option<u32>,
}

/// A frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrontendView {
    /// The kernel's row, if there is one.
    pub row: Option<Frontend>,
    /// Wanted ones in the plan's order, then unwanted ones.
    pub backends: Vec<BackendView>,
    /// What the kernel has that is not wanted, and the other way round.
    pub differences: Vec<String>,
}

impl Index {
    /// Keys of all frontends.
    pub fn keys(&self) -> impl Iterator<Item = &FrontendKey> {
        self.frontends.keys()
    }

    /// One frontend.
    #[must_use]
    pub fn frontend(&self, wanted: &DesiredFrontend) -> FrontendView {
        let Some(found) = self.frontends.get(&wanted.key) else {
            let backends = wanted.backends.iter().map(|one| view(one, Standing::Missing, None)).collect();
            let differences = vec!["the kernel has no row for it".to_owned()];
            return FrontendView { row: None, backends, differences };
        };
        let mut out = FrontendView { row: Some(*found), ..FrontendView::default() };
        self.compare_row(found, wanted, &mut out.differences);
        let in_slots = self.in_slots(found, &mut out.differences);
        let ids: HashMap<(Addr, u16), u32> =
            in_slots.iter().map(|(id, row)| ((row.addr, row.port), *id)).collect();
        for one in &wanted.backends {
            let id = ids.get(&(one.addr, one.port)).copied();
            let standing = if id.is_some() { Standing::Active } else { Standing::Missing };
            out.backends.push(view(one, standing, id));
        }
        let known: HashSet<(Addr, u16)> = wanted.backends.iter().map(|one| (one.addr, one.port)).collect();
        for (id, row) in in_slots.iter().filter(|(_, row)| !known.contains(&(row.addr, row.port))) {
            let address = socket(row.addr, row.port);
            if out.backends.iter().all(|one| one.address != address) {
                let standing = Standing::Unwanted;
                out.backends.push(BackendView { address, pod: None, local: false, standing, id: Some(*id) });
            }
        }
        for one in &out.backends {
            match one.standing {
                Standing::Active => {}
                Standing::Missing => {
                    out.differences.push(format!("{} is wanted and not in the slots", one.address));
                }
                Standing::Unwanted => {
                    out.differences.push(format!("{} is in the slots and not wanted", one.address));
                }
            }
        }
        out
    }

    fn compare_row(&self, found: &Frontend, wanted: &DesiredFrontend, differences: &mut Vec<String>) {
        if found.seal != 0 {
            differences.push("the kernel's row is damaged: its seal does not fit".to_owned());
        }
        let right = row(wanted, found.service, found.slot_base, found.generation);
        let mut differs = |what: &str, kernel: String, plan: String| {
            if kernel != plan {
                differences.push(format!("{what}: {kernel} in the kernel, {plan} wanted"));
            }
        };
        differs("backends", found.backends.to_string(), right.backends.to_string());
        differs("backends of this node", found.backends_local.to_string(), right.backends_local.to_string());
        differs("flags", found.flags.to_string(), right.flags.to_string());
        differs("kind", found.kind.to_string(), right.kind.to_string());
        let seconds = |row: &Frontend| row.affinity_seconds.to_string();
        differs("affinity time-out in seconds", seconds(found), seconds(&right));
    }

    /// Ids and rows that the frontend's slots name.
    fn in_slots(&self, row: &Frontend, differences: &mut Vec<String>) -> Vec<(u32, Backend)> {
        let first = row.slot_base as usize;
        let listener = usize::from(row.kind == kind::LOCAL_REDIRECT);
        let Some(ids) = self.slots.get(first..first + usize::from(row.backends) + listener) else {
            differences.push(format!("its slots from {first} on are beyond the table"));
            return Vec::new();
        };
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            match self.backends.get(id) {
                Some(backend) if backend.state != backend_state::FREE => found.push((*id, *backend)),
                _ => differences.push(format!("its slots name backend {id}, which does not exist")),
            }
        }
        found
    }
}

fn view(wanted: &DesiredBackend, standing: Standing, id: Option<u32>) -> BackendView {
    BackendView {
        address: socket(wanted.addr, wanted.port),
        pod: wanted.pod.clone(),
        local: wanted.local,
        standing,
        id,
    }
}

fn socket(addr: Addr, port: u16) -> SocketAddr {
    SocketAddr::new(addr.into(), u16::from_be(port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;
    use std::net::IpAddr;

    fn addr(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    fn wanted(backends: &[&str]) -> DesiredFrontend {
        let one = |text: &&str| DesiredBackend {
            addr: addr(text),
            port: 8080_u16.to_be(),
            local: false,
            pod: Some(ObjectName::new("shop", text)),
        };
        DesiredFrontend {
            key: FrontendKey { addr: addr("10.96.0.1"), port: 80_u16.to_be(), proto: 6, scope: 0 },
            port: 80,
            protocol: Protocol::Tcp,
            affinity_seconds: None,
            backends: backends.iter().map(one).collect(),
        }
    }

    /// Backends by id from 1, all in slots 4 and up.
    fn kernel(wanted: &DesiredFrontend, backends: &[(&str, u8)]) -> Kernel {
        let frontend = Frontend { backends: u16::try_from(backends.len()).unwrap(), ..row(wanted, 7, 4, 3) };
        let mut slots = vec![0; 16];
        for (at, id) in (4..).zip(1..=u32::try_from(backends.len()).unwrap()) {
            slots[at] = id;
        }
        let backend = |(text, state): &(&str, u8)| Backend {
            addr: addr(text),
            port: 8080_u16.to_be(),
            proto: 6,
            state: *state,
            generation: 1,
            service: 7,
        };
        Kernel {
            frontends: vec![(wanted.key, frontend)],
            slots,
            backends: (1..).zip(backends.iter().map(backend)).collect(),
        }
    }

    #[test]
    fn a_frontend_as_it_ought_to_be_has_no_difference() {
        let wanted = wanted(&["10.0.0.1", "10.0.0.2"]);
        let held = [("10.0.0.1", backend_state::ACTIVE), ("10.0.0.2", backend_state::TERMINATING)];
        let found = Index::from(kernel(&wanted, &held)).frontend(&wanted);
        assert_eq!(found.differences, [""; 0]);
        let told: Vec<_> = found.backends.iter().map(|one| (one.id, one.standing)).collect();
        assert_eq!(told, [(Some(1), Standing::Active), (Some(2), Standing::Active)]);
        assert_eq!(found.row.map(|row| (row.service, row.slot_base)), Some((7, 4)));
    }

    #[test]
    fn each_difference_is_named() {
        let plan = wanted(&["10.0.0.1", "10.0.0.3"]);
        let active = backend_state::ACTIVE;
        let mut kernel = kernel(&plan, &[("10.0.0.1", active), ("10.0.0.2", active), ("10.0.0.9", 0)]);
        kernel.frontends[0].1.affinity_seconds = 9;
        kernel.frontends[0].1.seal = 5;
        let found = Index::from(kernel).frontend(&plan);
        insta::assert_snapshot!(found.differences.join("\n"), @r"
        the kernel's row is damaged: its seal does not fit
        backends: 3 in the kernel, 2 wanted
        affinity time-out in seconds: 9 in the kernel, 0 wanted
        its slots name backend 3, which does not exist
        10.0.0.3:8080 is wanted and not in the slots
        10.0.0.2:8080 is in the slots and not wanted
        ");
        let standings: Vec<_> = found.backends.iter().map(|one| one.standing).collect();
        assert_eq!(standings, [Standing::Active, Standing::Missing, Standing::Unwanted]);
    }

    #[test]
    fn a_frontend_that_is_not_there_and_slots_that_are_not() {
        let plan = wanted(&["10.0.0.1"]);
        let found = Index::default().frontend(&plan);
        assert_eq!(found.differences, ["the kernel has no row for it"]);
        assert_eq!(found.backends[0].standing, Standing::Missing);
        let mut kernel = kernel(&plan, &[("10.0.0.1", backend_state::ACTIVE)]);
        kernel.frontends[0].1.slot_base = u32::MAX;
        let found = Index::from(kernel).frontend(&plan);
        assert_eq!(found.differences[0], "its slots from 4294967295 on are beyond the table");
    }
}
