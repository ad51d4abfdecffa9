//! Which backend id is whose: one id per Service port and endpoint (address, port, protocol), shared by the
//! port's frontends. An endpoint of two Services has two ids, so that its leaving one of them is seen.
//!
//! Life of an id: free → given out (`ACTIVE`) → no frontend names it (`TERMINATING`) → after the quarantine
//! `FREE`, with the generation counted up, and to be given out again. A backend that comes back before the
//! quarantine ends gets its id, and with it its flows, back. So an (id, generation) pair never stands for
//! two backends, and a flow that remembers one either finds its backend or decides anew.
//!
//! Generations of free ids are remembered by their kernel rows, which therefore are never zeroed.
//!
//! Rows that an agent of schema 1 wrote say no Service (number 0), and several may share one. Of the ports
//! whose frontends name such an id the one with the lowest number keeps it; the others get ids of their own.
//! The number is written once the kernel has no other port's frontend that names the id: until then a program
//! must take 0 for any.

use super::plan::DesiredBackend;
use super::tables::{NameChange, Op};
use crate::model::ObjectName;
use netd_bpf::Addr;
use netd_bpf::service::{Backend, backend_state};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::time::Instant;

/// What makes a backend the same backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct BackendKey {
    service: u32,
    addr: Addr,
    port: u16,
    proto: u8,
}

impl BackendKey {
    /// The backend of the Service port with number `service` and protocol `proto`.
    pub(super) fn new(backend: &DesiredBackend, service: u32, proto: u8) -> Self {
        Self { service, addr: backend.addr, port: backend.port, proto }
    }

    fn of(row: &Backend, service: u32) -> Self {
        Self { service, addr: row.addr, port: row.port, proto: row.proto }
    }
}

#[derive(Clone, Debug, Default)]
struct Record {
    /// The kernel's row.
    row: Backend,
    /// The Service port whose it is: the row's, or the one that claimed a row which says none; 0: nobody's.
    service: u32,
    /// Slots in use that name it.
    refs: u32,
    pod: Option<ObjectName>,
    /// What it stands for was told.
    named: bool,
    /// When it becomes free, once that is settled.
    until: Option<Instant>,
    /// False for the second id of one backend, which only a damaged table has.
    canonical: bool,
}

/// The ids.
#[derive(Clone, Debug, Default)]
pub(super) struct Backends {
    /// Rows of the kernel's array.
    capacity: u32,
    /// By id, up to the highest that was ever used; id 0 is never given out.
    records: Vec<Record>,
    by_key: HashMap<BackendKey, u32>,
    free: BinaryHeap<Reverse<u32>>,
    /// Ids whose last reference went, or which need a look after a restart.
    unsettled: Vec<u32>,
    /// Ids whose `TERMINATING` is planned.
    retired: Vec<u32>,
    /// Ids whose `TERMINATING` is done, until when.
    held: VecDeque<(Instant, u32)>,
    in_use: u32,
    /// Ids whose rows say no Service port yet.
    unnumbered: Vec<u32>,
}

impl Backends {
    /// From the kernel's rows, among them the `FREE` ones that were used before.
    pub(super) fn from_rows(capacity: u32, rows: &[(u32, Backend)]) -> Self {
        let mut records = vec![Record::default()];
        for (id, row) in rows {
            if *id == 0 || *id >= capacity {
                continue;
            }
            let at = *id as usize;
            if records.len() <= at {
                records.resize(at + 1, Record::default());
            }
            if let Some(record) = records.get_mut(at) {
                record.row = *row;
            }
        }
        Self { capacity, records, ..Self::default() }
    }

    /// Counts a reference found in the kernel; false if the id stands for no backend.
    pub(super) fn adopt(&mut self, id: u32) -> bool {
        if !self.given_out(id) {
            return false;
        }
        if let Some(record) = self.records.get_mut(id as usize) {
            record.refs += 1;
            self.in_use += u32::from(record.refs == 1);
        }
        true
    }

    /// True if the id stands for a backend.
    pub(super) fn given_out(&self, id: u32) -> bool {
        id != 0 && self.records.get(id as usize).is_some_and(|record| record.row.state != backend_state::FREE)
    }

    /// Ends the read-back, once all references are adopted: builds the index, merges doubles, and holds what
    /// was terminating until `until`.
    pub(super) fn settle(&mut self, until: Instant) {
        // The best of the ids of one backend is the first to come: used ones, then active ones, then low ones.
        let mut ids: Vec<(bool, bool, u32)> = Vec::with_capacity(self.records.len());
        for (id, record) in (0_u32..).zip(&self.records).skip(1) {
            if record.row.state == backend_state::FREE {
                self.free.push(Reverse(id));
            } else {
                ids.push((record.refs == 0, record.row.state != backend_state::ACTIVE, id));
            }
        }
        ids.sort_unstable();
        for (_, _, id) in ids {
            let Some(record) = self.records.get_mut(id as usize) else { continue };
            record.service = record.row.service;
            if record.service != 0 {
                let key = BackendKey::of(&record.row, record.service);
                record.canonical = *self.by_key.entry(key).or_insert(id) == id;
            } else if record.refs > 0 {
                self.unnumbered.push(id);
            }
            if record.refs == 0 && record.row.state == backend_state::TERMINATING {
                record.until = Some(until);
                self.held.push_back((until, id));
            } else if record.refs == 0 || record.row.state != backend_state::ACTIVE {
                self.unsettled.push(id);
            }
        }
    }

    /// The highest number of a Service port that has an id.
    pub(super) fn last_service(&self) -> u32 {
        let given_out = self.records.iter().filter(|record| record.row.state != backend_state::FREE);
        given_out.map(|record| record.row.service).max().unwrap_or(0)
    }

    /// Finds owners for ids that are nobody's, and writes the numbers of those that nobody shares.
    /// `frontends`: all that the kernel has, with the numbers of their Service ports (0: not to be trusted).
    pub(super) fn number<'a>(
        &mut self,
        frontends: impl Iterator<Item = (u32, &'a [u32])>,
        ops: &mut Vec<Op>,
    ) {
        if self.unnumbered.is_empty() {
            return;
        }
        let mut namers: BTreeMap<u32, BTreeSet<u32>> =
            self.unnumbered.drain(..).map(|id| (id, BTreeSet::new())).collect();
        for (service, ids) in frontends {
            for id in ids {
                if let Some(namers) = namers.get_mut(id) {
                    namers.insert(service);
                }
            }
        }
        for (id, namers) in namers {
            let claimed =
                self.records.get(id as usize).is_some_and(|record| namers.contains(&record.service));
            if !claimed {
                let mut ports = namers.iter().filter(|service| **service != 0);
                ports.find(|service| self.claim(id, **service));
            }
            let Some(record) = self.records.get_mut(id as usize) else { continue };
            if record.row.state == backend_state::FREE || record.row.service != 0 {
                continue;
            }
            if record.service != 0 && namers.iter().eq([&record.service]) {
                record.row.service = record.service;
                ops.push(Op::SetBackend { id, row: record.row });
            } else {
                self.unnumbered.push(id);
            }
        }
    }

    /// Gives an id that says no Service port to one, unless that uses another id for the same backend.
    fn claim(&mut self, id: u32, service: u32) -> bool {
        let Some(record) = self.records.get(id as usize) else { return false };
        let (before, key) =
            (BackendKey::of(&record.row, record.service), BackendKey::of(&record.row, service));
        if let Some(other) = self.by_key.get(&key).and_then(|other| self.records.get_mut(*other as usize)) {
            if other.refs > 0 {
                return false;
            }
            other.canonical = false;
        }
        if self.by_key.get(&before) == Some(&id) {
            self.by_key.remove(&before);
        }
        self.by_key.insert(key, id);
        if let Some(record) = self.records.get_mut(id as usize) {
            record.service = service;
            record.canonical = true;
        }
        true
    }

    /// True if the ids stand for exactly these backends of a Service port, in this order.
    pub(super) fn stand_for(
        &self,
        ids: &[u32],
        backends: &[DesiredBackend],
        service: u32,
        proto: u8,
    ) -> bool {
        ids.len() == backends.len()
            && ids.iter().zip(backends).all(|(id, backend)| {
                self.records.get(*id as usize).is_some_and(|record| {
                    record.service == service
                        && record.row.addr == backend.addr
                        && record.row.port == backend.port
                        && record.row.proto == proto
                        && record.canonical
                })
            })
    }

    /// Notes the pods behind the backends, and tells of ids that a former image gave out.
    pub(super) fn name(&mut self, ids: &[u32], backends: &[DesiredBackend], names: &mut Vec<NameChange>) {
        for (id, backend) in ids.iter().zip(backends) {
            if let Some(record) = self.records.get_mut(*id as usize)
                && (!record.named || backend.pod.is_some() && record.pod != backend.pod)
            {
                record.pod.clone_from(&backend.pod);
                record.named = true;
                names.push(NameChange::backend(*id, &record.row, record.pod.clone()));
            }
        }
    }

    /// The backend's id, if it has one.
    pub(super) fn id(&self, key: &BackendKey) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// Slots in use that name the id.
    pub(super) fn refs(&self, id: u32) -> u32 {
        self.records.get(id as usize).map_or(0, |record| record.refs)
    }

    /// Address, port and protocol that the id stands for.
    pub(super) fn target(&self, id: u32) -> Option<(Addr, u16, u8)> {
        self.records.get(id as usize).map(|Record { row, .. }| (row.addr, row.port, row.proto))
    }

    /// Takes one reference more of an id that has some, whosever it is.
    pub(super) fn hold(&mut self, id: u32) {
        if let Some(record) = self.records.get_mut(id as usize) {
            record.refs += 1;
        }
    }

    /// Gives a backend's id, one more reference, and the operation that makes its row right, if it is not.
    /// `None`: no id is free.
    pub(super) fn acquire(
        &mut self,
        key: &BackendKey,
        pod: Option<&ObjectName>,
        ops: &mut Vec<Op>,
        names: &mut Vec<NameChange>,
    ) -> Option<u32> {
        let id = match self.by_key.get(key) {
            Some(id) => *id,
            None => {
                let id = self.take_id()?;
                self.by_key.insert(*key, id);
                id
            }
        };
        let record = self.records.get_mut(id as usize)?;
        if record.row.state != backend_state::ACTIVE {
            let generation = record.row.generation.max(1);
            record.row = Backend {
                addr: key.addr,
                port: key.port,
                proto: key.proto,
                state: backend_state::ACTIVE,
                generation,
                service: key.service,
            };
            record.service = key.service;
            record.until = None;
            record.canonical = true;
            record.pod = pod.cloned();
            record.named = true;
            ops.push(Op::SetBackend { id, row: record.row });
            names.push(NameChange::backend(id, &record.row, record.pod.clone()));
        }
        record.refs += 1;
        self.in_use += u32::from(record.refs == 1);
        Some(id)
    }

    fn take_id(&mut self) -> Option<u32> {
        if let Some(Reverse(id)) = self.free.pop() {
            return Some(id);
        }
        let id = u32::try_from(self.records.len()).ok().filter(|id| *id < self.capacity)?;
        self.records.push(Record::default());
        Some(id)
    }

    /// Takes one reference away.
    pub(super) fn release(&mut self, id: u32) {
        if let Some(record) = self.records.get_mut(id as usize) {
            record.refs -= 1;
            if record.refs == 0 {
                self.in_use -= 1;
                self.unsettled.push(id);
            }
        }
    }

    /// Ends a plan: backends that nobody names any more terminate, and those that are named are active.
    pub(super) fn retire(&mut self, ops: &mut Vec<Op>) {
        for id in self.unsettled.drain(..) {
            let Some(record) = self.records.get_mut(id as usize) else { continue };
            let (state, settled) = match (record.refs, record.row.state) {
                (_, backend_state::FREE) | (0, backend_state::TERMINATING) => continue,
                (0, _) => (backend_state::TERMINATING, false),
                (_, state) => (backend_state::ACTIVE, state == backend_state::ACTIVE),
            };
            if settled {
                continue;
            }
            record.row.state = state;
            ops.push(Op::SetBackend { id, row: record.row });
            if state == backend_state::TERMINATING {
                record.until = None;
                self.retired.push(id);
            }
        }
    }

    /// The planned operations are done: what terminates is held until `until`.
    pub(super) fn applied(&mut self, until: Instant) {
        for id in self.retired.drain(..) {
            if let Some(record) = self.records.get_mut(id as usize)
                && record.refs == 0
                && record.row.state == backend_state::TERMINATING
            {
                record.until = Some(until);
                self.held.push_back((until, id));
            }
        }
    }

    /// Frees what terminated long enough ago.
    pub(super) fn expire(&mut self, now: Instant, ops: &mut Vec<Op>, names: &mut Vec<NameChange>) {
        while let Some((until, id)) = self.held.pop_front_if(|(until, _)| *until <= now) {
            let Some(record) = self.records.get_mut(id as usize) else { continue };
            // It came back, and perhaps went again, in the meantime.
            if record.until != Some(until) || record.refs != 0 {
                continue;
            }
            let key = BackendKey::of(&record.row, record.service);
            if self.by_key.get(&key) == Some(&id) {
                self.by_key.remove(&key);
            }
            let generation = record.row.generation.checked_add(1).unwrap_or(1);
            *record = Record { row: Backend { generation, ..Backend::default() }, ..Record::default() };
            self.free.push(Reverse(id));
            ops.push(Op::SetBackend { id, row: record.row });
            names.push(NameChange::BackendGone { id });
        }
    }

    /// When the next held id becomes free.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.held.front().map(|(until, _)| *until)
    }

    /// When the last held id becomes free.
    pub(super) fn last_expiry(&self) -> Option<Instant> {
        self.held.back().map(|(until, _)| *until)
    }

    /// Ids that frontends name.
    pub(super) fn in_use(&self) -> u32 {
        self.in_use
    }

    /// Ids that can be given out now.
    pub(super) fn available(&self) -> u32 {
        let unused = u32::try_from(self.records.len()).map_or(0, |used| self.capacity.saturating_sub(used));
        u32::try_from(self.free.len()).unwrap_or(u32::MAX).saturating_add(unused)
    }

    /// Ids that become available by waiting.
    pub(super) fn waiting(&self) -> u32 {
        self.capacity.saturating_sub(1).saturating_sub(self.in_use).saturating_sub(self.available())
    }

    /// The kernel rows as this image has them, without those never used.
    pub(super) fn rows(&self) -> impl Iterator<Item = (u32, &Backend)> {
        (0_u32..).zip(&self.records).skip(1).map(|(id, record)| (id, &record.row))
    }
}
