//! One frontend's change in the image, with the operations it takes: written, taken over, deleted.

use super::{NameChange, Op, Plan, Port, Record, Tables, address};
use crate::service::backends::BackendKey;
use crate::service::plan::{DesiredFrontend, DesiredService, PortName};
use crate::slots::Range;
use netd_bpf::service::{Frontend, FrontendKey, frontend_flag, kind};

/// How a frontend's row comes by its slots.
pub(super) enum Place {
    /// The list is as it was.
    Keep,
    /// A new list, in this range; none if it is empty.
    New(Option<Range>),
    /// A new list over the head of the former one, to which the range is cut already.
    Over(Range),
}

impl Tables {
    /// Gives a row that a former agent wrote to who claims it first, with its number, unless another port
    /// has taken that.
    pub(super) fn adopt(&mut self, service: &DesiredService, frontend: &DesiredFrontend, plan: &mut Plan) {
        let name = service.port_name(frontend);
        let Some(record) = self.frontends.get(&frontend.key) else { return };
        let written = record.row.service;
        if written != 0 && !self.ports.contains_key(&name) && self.numbers.insert(written) {
            self.ports.insert(name.clone(), Port { number: written, rows: 0 });
        }
        let number = self.number(&name);
        if let Some(port) = self.ports.get_mut(&name) {
            port.rows += 1;
        }
        plan.names.push(NameChange::Frontend { number, port: name.clone(), address: address(&frontend.key) });
        if let Some(record) = self.frontends.get_mut(&frontend.key) {
            record.misnumbered = number != written;
            record.owner = Some(name);
        }
    }

    /// Writes a frontend: its new backends, its slots, its row.
    pub(super) fn write(
        &mut self,
        service: &DesiredService,
        frontend: &DesiredFrontend,
        place: Place,
        ops: &mut Vec<Op>,
        names: &mut Vec<NameChange>,
    ) {
        let name = service.port_name(frontend);
        let old = self.frontends.remove(&frontend.key);
        let number = self.number(&name);
        let generation = old.as_ref().map_or(0, |old| old.row.generation).wrapping_add(1);
        let same_owner = old.as_ref().is_some_and(|old| old.owner.as_ref() == Some(&name));
        if !same_owner {
            if let Some(port) = self.ports.get_mut(&name) {
                port.rows += 1;
            }
            if let Some(owner) = old.as_ref().and_then(|old| old.owner.as_ref()) {
                self.disown(owner, &frontend.key, names);
            }
            names.push(NameChange::Frontend { number, port: name.clone(), address: address(&frontend.key) });
        }
        let (ids, range) = match (place, old) {
            (Place::Keep, Some(old)) => (old.ids, old.range),
            (Place::Keep, None) => (Vec::new(), None),
            (Place::New(range), old) => {
                let ids = self.list(frontend, number, range, ops, names);
                if let Some(old) = old {
                    self.leave(&old);
                }
                (ids, range)
            }
            (Place::Over(range), old) => {
                let ids = self.list(frontend, number, Some(range), ops, names);
                if let Some(old) = old {
                    self.release(&old);
                }
                (ids, Some(range))
            }
        };
        let row = row(frontend, number, range.map_or(0, |range| range.base), generation);
        ops.push(Op::SetFrontend { key: frontend.key, row });
        let record = Record {
            row,
            ids,
            range,
            owner: Some(name),
            intact: true,
            misnumbered: false,
            round: self.round,
        };
        self.frontends.insert(frontend.key, record);
    }

    /// Writes a frontend's new backends, and their list into the slots, if it has any.
    fn list(
        &mut self,
        frontend: &DesiredFrontend,
        number: u32,
        range: Option<Range>,
        ops: &mut Vec<Op>,
        names: &mut Vec<NameChange>,
    ) -> Vec<u32> {
        let proto = frontend.key.proto;
        let ids: Vec<u32> = frontend
            .backends
            .iter()
            .filter_map(|backend| {
                let key = BackendKey::new(backend, number, proto);
                self.backends.acquire(&key, backend.pod.as_ref(), ops, names)
            })
            .collect();
        self.backends.name(&ids, &frontend.backends, names);
        if let Some(range) = range {
            ops.push(Op::SetSlots { base: range.base, ids: ids.clone() });
        }
        ids
    }

    /// Deletes what was not wanted in this round.
    pub(super) fn sweep(&mut self, ops: &mut Vec<Op>, names: &mut Vec<NameChange>) {
        let gone: Vec<FrontendKey> = self
            .frontends
            .iter()
            .filter_map(|(key, record)| (record.round != self.round).then_some(*key))
            .collect();
        for key in gone {
            self.delete(&key, ops, names);
        }
    }

    /// Of rows that cannot change for want of room, one that cannot be trusted, or that was another Service's, would
    /// send its clients astray, and goes.
    pub(super) fn part_with(
        &mut self,
        service: &DesiredService,
        unit: &[&DesiredFrontend],
        ops: &mut Vec<Op>,
        names: &mut Vec<NameChange>,
    ) {
        for frontend in unit {
            let astray = self.frontends.get(&frontend.key).is_some_and(|record| {
                !record.intact || record.owner.as_ref().is_some_and(|owner| owner.service != service.name)
            });
            if astray {
                self.delete(&frontend.key, ops, names);
            }
        }
    }

    fn delete(&mut self, key: &FrontendKey, ops: &mut Vec<Op>, names: &mut Vec<NameChange>) {
        let Some(record) = self.frontends.remove(key) else { return };
        ops.push(Op::DeleteFrontend { key: *key });
        self.leave(&record);
        if let Some(owner) = &record.owner {
            self.disown(owner, key, names);
        }
    }

    /// What a row leaves when it is replaced or deleted.
    fn leave(&mut self, record: &Record) {
        self.release(record);
        if let Some(range) = record.range {
            self.slots.retire(range);
        }
    }

    /// The same, but its slots stay in use.
    fn release(&mut self, record: &Record) {
        for id in &record.ids {
            self.backends.release(*id);
        }
    }

    fn disown(&mut self, owner: &PortName, key: &FrontendKey, names: &mut Vec<NameChange>) {
        let Some(port) = self.ports.get_mut(owner) else { return };
        port.rows -= 1;
        names.push(NameChange::FrontendGone { number: port.number, address: address(key) });
        if port.rows == 0 {
            self.numbers.remove(&port.number);
            self.ports.remove(owner);
        }
    }

    /// The port's number. New ones count upwards, so that a number is not soon given out again.
    fn number(&mut self, name: &PortName) -> u32 {
        if let Some(port) = self.ports.get(name) {
            return port.number;
        }
        while self.next_number == 0 || !self.numbers.insert(self.next_number) {
            self.next_number = self.next_number.wrapping_add(1);
        }
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        self.ports.insert(name.clone(), Port { number, rows: 0 });
        number
    }
}

/// The row of a frontend. Lists longer than the row can count are refused before.
pub(in crate::service) fn row(
    frontend: &DesiredFrontend,
    service: u32,
    slot_base: u32,
    generation: u32,
) -> Frontend {
    let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    Frontend {
        service,
        slot_base,
        backends: count(frontend.backends.len()),
        backends_local: count(frontend.local()),
        flags: if frontend.affinity_seconds.is_some() { frontend_flag::AFFINITY } else { 0 },
        kind: kind::BALANCE,
        pad: 0,
        affinity_seconds: frontend.affinity_seconds.unwrap_or(0),
        generation,
        seal: 0,
    }
}
