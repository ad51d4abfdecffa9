//! The kernel's tables, simulated: every write is checked as a careful reviewer would.

use super::{QUARANTINE, Target, targets};
use crate::model::ObjectName;
use crate::service::plan::Desired;
use crate::service::tables::{Kernel, Limits, Op, Plan, Tables};
use netd_bpf::Addr;
use netd_bpf::service::{Backend, Frontend, FrontendKey, backend_state};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

/// The kernel's maps, and what a reviewer of every write would remember.
#[derive(Clone)]
pub(super) struct Sim {
    pub(super) limits: Limits,
    pub(super) now: Instant,
    pub(super) frontends: BTreeMap<FrontendKey, Frontend>,
    pub(super) slots: Vec<u32>,
    pub(super) backends: Vec<Backend>,
    pub(super) slot_named: HashMap<usize, (FrontendKey, Instant)>,
    pub(super) backend_named: HashMap<u32, Instant>,
    /// By id and generation: whose it is.
    pub(super) given: HashMap<(u32, u32), (Addr, u16, u8, u32)>,
    pub(super) owners: BTreeMap<FrontendKey, ObjectName>,
    /// Services for which the last plan had no room: what they took over from a former agent may be put right
    /// by the next.
    pub(super) short: BTreeSet<ObjectName>,
    /// Those of them that the quarantine's end helps.
    pub(super) waiting: BTreeSet<ObjectName>,
    /// No agent died, and none of an older schema was here.
    pub(super) orderly: bool,
}

impl Sim {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            now: Instant::now(),
            frontends: BTreeMap::new(),
            slots: vec![0; limits.slots as usize],
            backends: vec![Backend::default(); limits.backends as usize],
            slot_named: HashMap::new(),
            backend_named: HashMap::new(),
            given: HashMap::new(),
            owners: BTreeMap::new(),
            short: BTreeSet::new(),
            orderly: true,
            waiting: BTreeSet::new(),
        }
    }

    /// Services that a plan has no room for.
    pub(super) fn note(&mut self, plan: &Plan) -> BTreeSet<ObjectName> {
        self.waiting = plan.waiting.iter().map(|refusal| refusal.service.clone()).collect();
        self.short = plan.refused.iter().map(|refusal| refusal.service.clone()).collect();
        self.short.extend(self.waiting.iter().cloned());
        self.short.clone()
    }

    pub(super) fn kernel(&self) -> Kernel {
        let rows = (0..).zip(self.backends.iter().copied());
        Kernel {
            frontends: self.frontends.iter().map(|(key, row)| (*key, *row)).collect(),
            slots: self.slots.clone(),
            backends: rows.filter(|(_, row)| *row != Backend::default()).collect(),
        }
    }

    pub(super) fn read(&self) -> Tables {
        Tables::read(self.limits, QUARANTINE, &self.kernel(), self.now)
    }

    pub(super) fn range(row: &Frontend) -> std::ops::Range<usize> {
        row.slot_base as usize..row.slot_base as usize + usize::from(row.backends)
    }

    pub(super) fn ids(&self, row: &Frontend) -> &[u32] {
        &self.slots[Self::range(row)]
    }

    pub(super) fn resolve(&self, key: &FrontendKey) -> Option<Vec<Target>> {
        let row = self.frontends.get(key)?;
        let target = |id: &u32| {
            let backend = &self.backends[*id as usize];
            assert_ne!(backend.state, backend_state::FREE, "{key:?} leads to a free backend");
            assert_eq!(backend.proto, key.proto, "{key:?} leads to another protocol");
            assert!([0, row.service].contains(&backend.service), "{key:?} leads to another's id {id}");
            (backend.addr, backend.port)
        };
        Some(self.ids(row).iter().map(target).collect())
    }

    pub(super) fn named(&self, id: u32) -> bool {
        !self.namers(id).is_empty()
    }

    /// Numbers of the Service ports whose frontends name a backend.
    pub(super) fn namers(&self, id: u32) -> BTreeSet<u32> {
        let naming = self.frontends.values().filter(|row| self.ids(row).contains(&id));
        naming.map(|row| row.service).collect()
    }

    /// True if nobody else can claim what the frontend's slots name.
    pub(super) fn owns_its_backends(&self, key: &FrontendKey) -> bool {
        let row = &self.frontends[key];
        self.ids(row).iter().all(|id| {
            let own = self.backends[*id as usize];
            let numbered = Backend { service: row.service, ..own };
            own == numbered
                || own.service == 0
                    && self.namers(*id) == BTreeSet::from([row.service])
                    && !(0..).zip(&self.backends).any(|(other, row)| {
                        let same = Backend { state: own.state, generation: own.generation, ..*row };
                        same == numbered && self.named(other)
                    })
        })
    }

    /// The tables as an agent of schema 1 leaves them: one id for all Services of an endpoint, and no row
    /// says whose it is.
    pub(super) fn back_to_schema_1(&mut self) {
        let same = |a: &Backend, b: &Backend| (a.addr, a.port, a.proto) == (b.addr, b.port, b.proto);
        let ids: BTreeSet<u32> = self.frontends.values().flat_map(|row| self.ids(row)).copied().collect();
        for id in 1..self.limits.backends {
            let row = self.backends[id as usize];
            let first = ids.iter().find(|first| same(&self.backends[**first as usize], &row));
            if let Some(first) = first.copied()
                && first != id
                && row.state != backend_state::FREE
            {
                self.slots.iter_mut().filter(|slot| **slot == id).for_each(|slot| *slot = first);
                self.backends[id as usize] = Backend { generation: row.generation + 1, ..Backend::default() };
            }
        }
        self.given.clear();
        for (id, row) in (0..).zip(&mut self.backends) {
            row.service = 0;
            if row.state != backend_state::FREE {
                self.given.insert((id, row.generation), (row.addr, row.port, row.proto, 0));
            }
        }
    }

    /// Remembers when the row's slots and backends were last named.
    pub(super) fn leave(&mut self, key: &FrontendKey) {
        if let Some(row) = self.frontends.get(key).copied() {
            for id in self.ids(&row).to_vec() {
                self.backend_named.insert(id, self.now);
            }
            for slot in Self::range(&row) {
                self.slot_named.insert(slot, (*key, self.now));
            }
        }
    }

    /// The one frontend that names some of these slots, or did so a moment ago and has nothing else.
    pub(super) fn owner(&self, range: std::ops::Range<usize>) -> Option<FrontendKey> {
        let naming = self.frontends.iter().filter(|(_, row)| {
            let its = Self::range(row);
            row.backends > 0 && its.start < range.end && range.start < its.end
        });
        let naming: Vec<FrontendKey> = naming.map(|(key, _)| *key).collect();
        assert!(naming.len() < 2, "slots {range:?} are named by {naming:?}");
        let late = |(key, since): &&(FrontendKey, Instant)| {
            let row = self.frontends.get(key);
            !self.rested(Some(since)) && row.is_some_and(|row| row.slot_base as usize == range.start)
        };
        let last = || range.clone().filter_map(|slot| self.slot_named.get(&slot)).find(late);
        naming.first().copied().or_else(|| last().map(|(key, _)| *key))
    }

    pub(super) fn rested(&self, since: Option<&Instant>) -> bool {
        since.is_none_or(|since| self.now - *since >= QUARANTINE)
    }

    /// Writes without looking.
    pub(super) fn put(&mut self, op: &Op) {
        match op {
            Op::SetBackend { id, row } => self.backends[*id as usize] = *row,
            Op::SetSlots { base, ids } => {
                self.slots[*base as usize..*base as usize + ids.len()].copy_from_slice(ids);
            }
            Op::SetFrontend { key, row } => drop(self.frontends.insert(*key, *row)),
            Op::DeleteFrontend { key } => drop(self.frontends.remove(key)),
        }
    }

    /// Writes, and checks that a careful agent may.
    pub(super) fn apply(&mut self, op: &Op, desired: &Desired) {
        match op {
            Op::SetBackend { id, row } => {
                assert!(*id != 0 && *id < self.limits.backends, "id {id}");
                let before = self.backends[*id as usize];
                match row.state {
                    backend_state::ACTIVE => {
                        let is = (row.addr, row.port, row.proto, row.service);
                        let first = *self.given.entry((*id, row.generation)).or_insert(is);
                        if before.state == backend_state::FREE {
                            assert!(row.generation >= before.generation && row.generation > 0);
                        } else {
                            assert_eq!(before.generation, row.generation, "id {id} is in use");
                        }
                        if first.3 == 0 {
                            // A row of schema 1 gets its number, which no other's flow may find there.
                            assert!(self.namers(*id).iter().all(|namer| *namer == row.service), "id {id}");
                            self.given.insert((*id, row.generation), is);
                        }
                        assert_eq!((first.0, first.1, first.2), (is.0, is.1, is.2), "id {id} for two");
                        assert!([0, is.3].contains(&first.3) && is.3 != 0, "id {id} for two Services");
                    }
                    backend_state::TERMINATING => {
                        assert!(!self.named(*id), "id {id} is named");
                        assert_eq!(Backend { state: row.state, ..before }, *row);
                    }
                    backend_state::FREE => {
                        assert!(!self.named(*id), "id {id} is named");
                        assert!(self.rested(self.backend_named.get(id)), "id {id} freed too soon");
                        assert_eq!(before.state, backend_state::TERMINATING);
                        assert_ne!(before.generation, row.generation);
                    }
                    other => panic!("state {other}"),
                }
            }
            Op::SetSlots { base, ids } => {
                let range = *base as usize..*base as usize + ids.len();
                assert!(range.end <= self.limits.slots as usize, "slots {range:?}");
                // A list may be written over itself, with what is wanted of it, also where it was longer before.
                let own = self.owner(range.clone());
                if let Some(key) = own {
                    assert_eq!(self.frontends[&key].slot_base, *base, "{key:?}");
                    let wanted = desired.services.iter().flat_map(|s| &s.frontends).find(|f| f.key == key);
                    let mut wanted = targets(wanted.unwrap()).into_iter();
                    for id in ids {
                        let Backend { addr, port, .. } = self.backends[*id as usize];
                        assert!(wanted.any(|one| one == (addr, port)), "{key:?}: {id} in {op:?}");
                    }
                    self.leave(&key);
                }
                for slot in range {
                    let namer = self.slot_named.get(&slot);
                    let rested = self.rested(namer.map(|(_, since)| since));
                    assert!(rested || own == namer.map(|(key, _)| *key), "slot {slot} reused too soon");
                }
            }
            Op::SetFrontend { key, row } => {
                assert!(usize::from(row.backends_local) <= usize::from(row.backends) && row.service != 0);
                self.leave(key);
                let mut services = desired.services.iter();
                let owner = services.find(|s| s.frontends.iter().any(|f| f.key == *key)).unwrap();
                self.owners.insert(*key, owner.name.clone());
            }
            Op::DeleteFrontend { key } => {
                assert!(self.frontends.contains_key(key), "{key:?} is not there");
                self.leave(key);
                self.owners.remove(key);
            }
        }
        self.put(op);
        assert!(self.frontends.len() <= self.limits.frontends as usize, "frontends");
    }

    /// Every id is that of the Service port that names it.
    pub(super) fn all_is_numbered(&self) {
        for row in self.frontends.values() {
            for id in self.ids(row) {
                assert_eq!(self.backends[*id as usize].service, row.service, "id {id}");
            }
        }
    }

    pub(super) fn resolved(&self) -> BTreeMap<FrontendKey, Vec<Target>> {
        self.frontends.keys().map(|key| (*key, self.resolve(key).unwrap())).collect()
    }

    /// The ids that frontends name for each backend of each Service port: one, but while ids are parted.
    pub(super) fn ids_by_target(&self) -> BTreeMap<(u32, Target, u8), BTreeSet<u32>> {
        let mut ids: BTreeMap<_, BTreeSet<u32>> = BTreeMap::new();
        for (key, row) in &self.frontends {
            for id in self.ids(row) {
                let backend = self.backends[*id as usize];
                let target = (row.service, (backend.addr, backend.port), key.proto);
                ids.entry(target).or_default().insert(*id);
            }
        }
        ids
    }
}
