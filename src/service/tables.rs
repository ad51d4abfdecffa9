//! The agent's image of the kernel's service tables, and the operations that bring it to the plan.
//!
//! The image is built from what the kernel holds ([`Tables::read`]), at start as after a failure, so that
//! service numbers, backend ids and generations outlive the agent. [`Tables::plan`] compares a [`Desired`]
//! with it, key by key, and gives operations in an order that is safe to stop after any of them:
//!
//! 1. backends that left their quarantine become free;
//! 2. per changed frontend: rows of new backends, a new slot range, then the frontend's row, which flips all
//!    at once; a list that is as it was is not written;
//! 3. frontends that nobody wants are deleted (first, if the new ones need their room);
//! 4. backends that no frontend names any more terminate.
//!
//! What a flip leaves, slots and backends, may still be read by a program that runs: it is kept for the
//! quarantine, counted from [`Tables::applied`], before it is given out again. Programs must therefore
//! follow a slot to a backend that is terminating.
//!
//! A new Service is admitted, all of it, if its rows fit *and* the longest list could still be written a second
//! time, with other backends, so that every admitted list can be replaced whole; otherwise it is refused, and
//! named. Services that the kernel has come before new ones, and their lists change one by one. A list that is no
//! longer than before takes no more than it has: where no free slots lie side by side it is written over the
//! former one.
//!
//! A change that lacks room is refused and named, or waits if the quarantine will give the room. Until then no row
//! leads on to endpoints that are gone: in the place of the former list comes what fits there (`rest`), which the
//! refusal tells, and the row keeps its slots for more.

mod admit;
mod read;
mod rest;
mod write;

use super::backends::Backends;
use super::plan::{Desired, DesiredFrontend, DesiredService, PortName};
use crate::model::ObjectName;
use crate::slots::{Range, Slots};
use netd_bpf::service::{Backend, Frontend, FrontendKey, kind};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use write::Place;

pub(super) use write::row;

pub use admit::{List, Reason, Refusal};
pub use read::{Drift, Kernel};

/// Ends of quarantine that a forecast looks beyond: each leaves room to those that the one before made none for.
const FORESEEN: usize = 8;

/// Sizes of the kernel's maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows of `FRONTENDS`.
    pub frontends: u32,
    /// Rows of `BACKENDS`; id 0 is never used.
    pub backends: u32,
    /// Rows of `SLOTS`.
    pub slots: u32,
}

/// One write to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets a backend's row.
    SetBackend {
        /// Its id.
        id: u32,
        /// The row.
        row: Backend,
    },
    /// Fills a range of slots that no frontend names; or the first ones of the frontend that is set next, which
    /// programs then see one by one.
    SetSlots {
        /// The first slot.
        base: u32,
        /// Backend ids.
        ids: Vec<u32>,
    },
    /// Sets a frontend's row.
    SetFrontend {
        /// Its key.
        key: FrontendKey,
        /// The row.
        row: Frontend,
    },
    /// Deletes a frontend.
    DeleteFrontend {
        /// Its key.
        key: FrontendKey,
    },
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetBackend { id, .. } => write!(f, "setting backend {id}"),
            Self::SetSlots { base, ids } => write!(f, "setting {} slots from {base}", ids.len()),
            Self::SetFrontend { key, .. } => {
                write!(f, "setting frontend {} protocol {}", address(key), key.proto)
            }
            Self::DeleteFrontend { key } => {
                write!(f, "deleting frontend {} protocol {}", address(key), key.proto)
            }
        }
    }
}

/// A change of what a number of the kernel stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameChange {
    /// A frontend of a Service port.
    Frontend {
        /// The service number.
        number: u32,
        /// The Service port.
        port: PortName,
        /// Address and port of the frontend.
        address: SocketAddr,
    },
    /// The frontend is gone.
    FrontendGone {
        /// The service number.
        number: u32,
        /// Address and port of the frontend.
        address: SocketAddr,
    },
    /// A backend.
    Backend {
        /// Its id.
        id: u32,
        /// The id's generation.
        generation: u32,
        /// Address and port.
        address: SocketAddr,
        /// The pod behind it, if known.
        pod: Option<ObjectName>,
    },
    /// The backend's id is free.
    BackendGone {
        /// The id.
        id: u32,
    },
}

impl NameChange {
    pub(super) fn backend(id: u32, row: &Backend, pod: Option<ObjectName>) -> Self {
        let address = SocketAddr::new(row.addr.into(), u16::from_be(row.port));
        Self::Backend { id, generation: row.generation, address, pod }
    }
}

/// The address that a frontend key stands for.
fn address(key: &FrontendKey) -> SocketAddr {
    SocketAddr::new(key.addr.into(), u16::from_be(key.port))
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub ops: Vec<Op>,
    /// What numbers stand for, from now on.
    pub names: Vec<NameChange>,
    /// Services that do not fit.
    pub refused: Vec<Refusal>,
    /// Services that fit once the quarantine gives room.
    pub waiting: Vec<Refusal>,
}

/// Rows of one table, used and at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Rows that Services use.
    pub used: u32,
    /// Rows in quarantine.
    pub held: u32,
    /// Rows there are.
    pub limit: u32,
}

/// Use of all service tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usages {
    /// Address, port and protocol of Services.
    pub frontends: Usage,
    /// Endpoints, counted once per Service port.
    pub backends: Usage,
    /// Endpoints, counted once per frontend.
    pub slots: Usage,
}

/// A frontend as the kernel has it.
#[derive(Clone, Debug)]
struct Record {
    row: Frontend,
    /// Content of its slots; each id counted as a reference.
    ids: Vec<u32>,
    /// Its slots, more than `ids` if only a part of the list is in force; none if it has no backends, or names slots
    /// that are another's.
    range: Option<Range>,
    /// Whose it is; unknown after a restart until somebody claims it.
    owner: Option<PortName>,
    /// False if the row cannot be trusted: it names slots or backends that do not exist.
    intact: bool,
    /// The row has not yet got its owner's number.
    misnumbered: bool,
    /// The last round in which it was wanted.
    round: u64,
}

/// A Service port with rows in the kernel.
#[derive(Clone, Debug)]
struct Port {
    number: u32,
    rows: u32,
}

/// The image.
#[derive(Clone, Debug)]
pub struct Tables {
    limits: Limits,
    quarantine: Duration,
    frontends: HashMap<FrontendKey, Record>,
    ports: HashMap<PortName, Port>,
    numbers: HashSet<u32>,
    next_number: u32,
    slots: Slots,
    backends: Backends,
    round: u64,
}

/// What one Service changes.
struct Change<'a> {
    service: &'a DesiredService,
    /// Some of it is in the kernel.
    known: bool,
    /// Rows that take no room that they do not have.
    free: Vec<(&'a DesiredFrontend, Place)>,
    /// Rows that need another range of slots, each on its own.
    changed: Vec<&'a DesiredFrontend>,
    /// Rows that are not there, all or none.
    added: Vec<&'a DesiredFrontend>,
}

impl Tables {
    /// Brings the image to `desired`, as far as it fits, and says how to bring the kernel there. Call
    /// [`Self::applied`] when that is done; if it failed, start over from [`Self::read`].
    pub fn plan(&mut self, desired: &Desired, now: Instant) -> Plan {
        let mut plan = self.bring(desired.services.iter(), true, now);
        self.part_waiting(desired, now, &mut plan);
        plan
    }

    /// The same where all Services but those at these places are as in the last plan, which lacked no room, and these
    /// have the frontends that they had.
    pub fn plan_some(&mut self, desired: &Desired, places: &[usize], now: Instant) -> Plan {
        let services = places.iter().filter_map(|at| desired.services.get(*at));
        let mut plan = self.bring(services, false, now);
        self.part_waiting(desired, now, &mut plan);
        plan
    }

    /// A plan without those that wait: they are among those that are refused. `all`: these are all Services.
    fn bring<'a>(
        &mut self,
        services: impl Iterator<Item = &'a DesiredService>,
        all: bool,
        now: Instant,
    ) -> Plan {
        let mut plan = self.expire(now);
        self.round += u64::from(all);
        let rows_before = self.frontends.len();
        let mut changes = self.compare(services, &mut plan);

        let (mut sets, mut deletes) = (Vec::new(), Vec::new());
        for change in &mut changes {
            for (frontend, place) in change.free.drain(..) {
                self.write(change.service, frontend, place, &mut sets, &mut plan.names);
            }
        }
        if all {
            self.sweep(&mut deletes, &mut plan.names);
        }

        changes.sort_by_key(|change| !change.known);
        let mut added = 0;
        for change in &changes {
            let mut lacks = None;
            for unit in change.changed.chunks(1).chain([&change.added[..]]) {
                let rows = self.frontends.len();
                match self.admit(change.service, unit) {
                    Ok(places) => {
                        for (frontend, place) in unit.iter().zip(places) {
                            self.write(change.service, frontend, place, &mut sets, &mut plan.names);
                        }
                        added += self.frontends.len() - rows;
                    }
                    Err(reason) => {
                        self.part_with(change.service, unit, &mut deletes, &mut plan.names);
                        for frontend in unit {
                            self.write_rest(frontend, &mut sets, &mut plan.names);
                        }
                        lacks.get_or_insert(reason);
                    }
                }
            }
            if let Some(reason) = lacks {
                plan.refused.push(self.refusal(change.service, reason));
            }
        }

        let room = (self.limits.frontends as usize).saturating_sub(rows_before);
        let (first, last) = if added > room { (deletes, sets) } else { (sets, deletes) };
        plan.ops.extend(first);
        plan.ops.extend(last);
        self.backends.retire(&mut plan.ops);
        plan
    }

    /// Of those that are refused, those wait that will not be when what changes left is free again. The others have
    /// the reason that stays.
    fn part_waiting(&self, desired: &Desired, now: Instant, plan: &mut Plan) {
        if !self.may_wait(&plan.refused) {
            return;
        }
        let lacks = |plan: &Plan| -> HashMap<ObjectName, Reason> {
            plan.refused.iter().map(|refusal| (refusal.service.clone(), refusal.reason.clone())).collect()
        };
        let (mut later, mut now, mut lasting) = (self.clone(), now, lacks(plan));
        for _ in 0..FORESEEN {
            later.applied(now);
            let ends = [later.slots.last_expiry(), later.backends.last_expiry()];
            let Some(end) = ends.into_iter().flatten().max().filter(|_| !lasting.is_empty()) else { break };
            now = now.max(end);
            lasting = lacks(&later.bring(desired.services.iter(), true, now));
        }
        for mut refusal in std::mem::take(&mut plan.refused) {
            match lasting.remove(&refusal.service) {
                Some(reason) => {
                    refusal.reason = reason;
                    plan.refused.push(refusal);
                }
                None => {
                    refusal.waits = true;
                    plan.waiting.push(refusal);
                }
            }
        }
    }

    /// One of these may fit when what changes left is free again.
    fn may_wait(&self, refused: &[Refusal]) -> bool {
        let held = self.slots.waiting() > 0 || self.backends.waiting() > 0;
        held && refused.iter().any(|refusal| !self.lasts(&refusal.reason))
    }

    /// Frees what left its quarantine; all that is to be done while nothing changes.
    pub fn expire(&mut self, now: Instant) -> Plan {
        let mut plan = Plan::default();
        self.slots.expire(now);
        self.backends.expire(now, &mut plan.ops, &mut plan.names);
        let frontends = self
            .frontends
            .values()
            .map(|record| (if record.intact { record.row.service } else { 0 }, record.ids.as_slice()));
        self.backends.number(frontends, &mut plan.ops);
        plan
    }

    /// All operations of the last plan are in the kernel: the quarantine of what they left begins.
    pub fn applied(&mut self, now: Instant) {
        let until = now + self.quarantine;
        self.slots.applied(until);
        self.backends.applied(until);
    }

    /// When the next quarantine ends.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        [self.slots.next_expiry(), self.backends.next_expiry()].into_iter().flatten().min()
    }

    /// How full the tables are.
    #[must_use]
    pub fn usages(&self) -> Usages {
        let frontends = u32::try_from(self.frontends.len()).unwrap_or(u32::MAX);
        Usages {
            frontends: Usage { used: frontends, held: 0, limit: self.limits.frontends },
            backends: Usage {
                used: self.backends.in_use(),
                held: self.backends.waiting(),
                limit: self.limits.backends.saturating_sub(1),
            },
            slots: Usage { used: self.slots.in_use(), held: self.slots.waiting(), limit: self.limits.slots },
        }
    }

    /// What differs from the kernel, and marks all that is wanted with this round.
    fn compare<'a>(
        &mut self,
        services: impl Iterator<Item = &'a DesiredService>,
        plan: &mut Plan,
    ) -> Vec<Change<'a>> {
        let mut changes = Vec::new();
        for service in services {
            let mut change =
                Change { service, known: false, free: Vec::new(), changed: Vec::new(), added: Vec::new() };
            for frontend in &service.frontends {
                let Some(record) = self.frontends.get_mut(&frontend.key) else {
                    change.added.push(frontend);
                    continue;
                };
                change.known = true;
                record.round = self.round;
                if record.owner.is_none() {
                    self.adopt(service, frontend, plan);
                }
                let Some(record) = self.frontends.get(&frontend.key) else { continue };
                let owner = record.owner.as_ref().filter(|owner| {
                    owner.port == frontend.port
                        && owner.protocol == frontend.protocol
                        && owner.service == service.name
                });
                let number = match owner {
                    Some(owner) if record.misnumbered => self.ports.get(owner).map(|port| port.number),
                    Some(_) => Some(record.row.service),
                    None => None,
                };
                let same_list = record.intact
                    && record.row.kind == kind::BALANCE
                    && number.is_some_and(|number| {
                        let (ids, proto) = (&record.ids, frontend.key.proto);
                        self.backends.stand_for(ids, &frontend.backends, number, proto)
                    });
                if !same_list {
                    if frontend.backends.is_empty() {
                        change.free.push((frontend, Place::New(None)));
                    } else {
                        change.changed.push(frontend);
                    }
                    continue;
                }
                self.backends.name(&record.ids, &frontend.backends, &mut plan.names);
                let now = record.row;
                let right =
                    !record.misnumbered && now == row(frontend, now.service, now.slot_base, now.generation);
                if !right {
                    change.free.push((frontend, Place::Keep));
                }
                self.give_up_spare(&frontend.key);
            }
            if !(change.free.is_empty() && change.changed.is_empty() && change.added.is_empty()) {
                changes.push(change);
            }
        }
        changes
    }
}

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;
