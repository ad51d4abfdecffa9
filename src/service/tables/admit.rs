//! Who gets in: the check, before anything is written, that a Service's change fits.

use super::write::Place;
use super::{Tables, Usage};
use crate::model::{ObjectName, Protocol};
use crate::service::backends::BackendKey;
use crate::service::plan::{DesiredFrontend, DesiredService, PortName};
use crate::slots::Range;
use netd_bpf::service::kind;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;

/// Endpoints that one frontend's row can count.
const MAX_ENDPOINTS: usize = u16::MAX as usize;

/// A Service that is not as it ought to be, for want of room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// The Service.
    pub service: ObjectName,
    /// What it lacks.
    pub reason: Reason,
    /// True if all of it will fit when what changes left comes out of quarantine.
    pub waits: bool,
    /// True if the Service has a row, if only one that leads to nothing; false if it has none.
    pub keeps_rows: bool,
    /// The list that lacks the most of its endpoints.
    pub list: List,
}

/// How much of a frontend's list is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct List {
    /// Address and port of the frontend.
    pub address: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
    /// Endpoints that are wanted.
    pub endpoints: usize,
    /// Those of them that the frontend leads to. It leads to no others.
    pub in_force: usize,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, reason, list, .. } = self;
        let List { address, protocol, endpoints, in_force } = list;
        if !self.keeps_rows {
            write!(f, "Service {service} is not served: {reason}")
        } else if in_force == endpoints {
            write!(f, "Service {service} stays as it was: {reason}")
        } else {
            write!(
                f,
                "Service {service} leads to {in_force} of {endpoints} endpoints at {address}/{protocol}: {reason}"
            )
        }
    }
}

/// What is lacking, with the numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "lacks")]
pub enum Reason {
    /// One row cannot count them.
    #[error("port {}/{} has {endpoints} endpoints, one frontend takes {MAX_ENDPOINTS}", port.port, port.protocol)]
    Endpoints {
        /// The port.
        port: PortName,
        /// How many.
        endpoints: usize,
    },
    /// The frontend table is full.
    #[error("it needs {needed} more frontends, {used} of {limit} are in use (datapath.frontends)")]
    Frontends {
        /// More rows.
        needed: u32,
        /// In use.
        used: u32,
        /// All.
        limit: u32,
    },
    /// The backend table is full.
    #[error(
        "it needs {needed} more backends, {used} of {limit} are in use, {held} in quarantine and {reserved} kept \
         for changes (datapath.backends)"
    )]
    Backends {
        /// More ids.
        needed: u32,
        /// In use, and to stay so.
        used: u32,
        /// In quarantine.
        held: u32,
        /// The longest list, for which there must be as many ids once more; 0 for a list that is no longer than
        /// before, which may use them.
        reserved: u32,
        /// All.
        limit: u32,
    },
    /// The slot array is full.
    #[error(
        "it needs {needed} slots, others use {used} of {limit} and {reserved} are kept for changes \
         (datapath.slots)"
    )]
    Slots {
        /// The Service's slots.
        needed: u32,
        /// Slots of the others.
        used: u32,
        /// The longest list, which must fit a second time.
        reserved: u32,
        /// All.
        limit: u32,
    },
    /// The slots are there, but not in one piece, or in quarantine.
    #[error(
        "it needs {needed} slots side by side, {free} of {limit} are free in pieces and {held} in quarantine \
         (datapath.slots)"
    )]
    Room {
        /// The Service's new slots.
        needed: u32,
        /// Free slots.
        free: u32,
        /// In quarantine.
        held: u32,
        /// All.
        limit: u32,
    },
}

impl Reason {
    /// The short names of all reasons.
    pub const NAMES: [&str; 5] = ["endpoints", "frontends", "backends", "slots", "room"];

    /// Its short name, for metrics and programs.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Endpoints { .. } => "endpoints",
            Self::Frontends { .. } => "frontends",
            Self::Backends { .. } => "backends",
            Self::Slots { .. } => "slots",
            Self::Room { .. } => "room",
        }
    }
}

/// What a change asks of the slots.
#[derive(Default)]
struct Lists {
    /// Slots that the frontends have.
    old: u32,
    /// Slots that they are to have.
    new: u32,
    /// The longest of the new lists.
    longest: u32,
}

impl Lists {
    fn grow(&self) -> bool {
        self.new > self.old
    }
}

/// What a change asks of the backends.
struct Need {
    /// Backends that no frontend names yet.
    fresh: u32,
    /// Those of them that have no id.
    unknown: u32,
    /// Ids that nobody names any more after it.
    left: u32,
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Tables {
    /// Checks that these frontends of a Service fit together, and takes their slots.
    pub(super) fn admit(
        &mut self,
        service: &DesiredService,
        unit: &[&DesiredFrontend],
    ) -> Result<Vec<Place>, Reason> {
        if let Some(frontend) = unit.iter().find(|f| f.backends.len() > MAX_ENDPOINTS) {
            let (port, endpoints) = (service.port_name(frontend), frontend.backends.len());
            return Err(Reason::Endpoints { port, endpoints });
        }
        self.check_frontends(unit)?;
        let lists = self.lists(unit);
        self.check_slots(&lists)?;
        self.check_backends(&lists, &self.need(service, unit))?;
        match self.take_slots(unit) {
            Ok(ranges) => Ok(ranges.into_iter().map(Place::New).collect()),
            Err(reason) => self.take_own_slots(service, unit).map(|place| vec![place]).ok_or(reason),
        }
    }

    /// True of a reason that no room among slots and backends takes away.
    pub(super) fn lasts(&self, reason: &Reason) -> bool {
        match *reason {
            Reason::Endpoints { .. } => true,
            // Of the rows one may have gone since, another's that led astray.
            Reason::Frontends { needed, limit, .. } => {
                number(self.frontends.len()).saturating_add(needed) > limit
            }
            Reason::Backends { .. } | Reason::Slots { .. } | Reason::Room { .. } => false,
        }
    }

    /// What becomes of a Service that lacks room.
    pub(super) fn refusal(&self, service: &DesiredService, reason: Reason) -> Refusal {
        let record = |frontend: &DesiredFrontend| self.frontends.get(&frontend.key);
        let list = |frontend: &DesiredFrontend| List {
            address: super::address(&frontend.key),
            protocol: frontend.protocol,
            endpoints: frontend.backends.len(),
            in_force: record(frontend).map_or(0, |record| record.ids.len()),
        };
        let lacks = |list: &List| Reverse((list.endpoints.saturating_sub(list.in_force), list.endpoints));
        let unspecified = SocketAddr::from(([0; 4], 0));
        let none = List { address: unspecified, protocol: Protocol::Tcp, endpoints: 0, in_force: 0 };
        Refusal {
            service: service.name.clone(),
            reason,
            waits: false,
            keeps_rows: service.frontends.iter().any(|frontend| record(frontend).is_some()),
            list: service.frontends.iter().map(list).min_by_key(lacks).unwrap_or(none),
        }
    }

    /// The slots that a row has, for a list that is no longer: where no free ones lie side by side, each slot is
    /// written for itself. Until the row flips, a packet may find a backend of the former list or of the new
    /// one, which is better than to send it on to those that are gone.
    fn take_own_slots(&mut self, service: &DesiredService, unit: &[&DesiredFrontend]) -> Option<Place> {
        let [frontend] = unit else { return None };
        let record = self.frontends.get(&frontend.key)?;
        let (range, len) = (record.range?, number(frontend.backends.len()));
        let trusted = record.intact && !record.misnumbered && record.row.kind == kind::BALANCE;
        let own = trusted && record.owner.as_ref() == Some(&service.port_name(frontend));
        let fits = own && len > 0 && len <= range.len;
        if fits { self.slots.shrink(range, len).map(Place::Over) } else { None }
    }

    fn check_frontends(&self, unit: &[&DesiredFrontend]) -> Result<(), Reason> {
        let new = unit.iter().filter(|f| !self.frontends.contains_key(&f.key)).count();
        let (used, limit) = (self.frontends.len(), self.limits.frontends);
        if new > 0 && used + new > limit as usize {
            return Err(Reason::Frontends { needed: number(new), used: number(used), limit });
        }
        Ok(())
    }

    /// The state after the change, and room to write the longest list once more. A change that takes no more
    /// than the Service has is not held up by this.
    fn check_slots(&self, lists: &Lists) -> Result<(), Reason> {
        let (used, limit) = (self.slots.in_use() - lists.old, self.limits.slots);
        let reserved = self.slots.longest().max(lists.longest);
        if lists.grow() && used.saturating_add(lists.new).saturating_add(reserved) > limit {
            return Err(Reason::Slots { needed: lists.new, used, reserved, limit });
        }
        Ok(())
    }

    /// The same for backends, which the longest list would have all new; and ids for those that have none.
    fn check_backends(&self, lists: &Lists, need: &Need) -> Result<(), Reason> {
        let Usage { used, held, limit } = self.usages().backends;
        let reserved = self.slots.longest().max(lists.longest);
        let stay = used - need.left;
        if lists.grow() && stay.saturating_add(need.fresh).saturating_add(reserved) > limit {
            return Err(Reason::Backends { needed: need.fresh, used: stay, held, reserved, limit });
        }
        if need.unknown > self.backends.available() {
            return Err(Reason::Backends { needed: need.unknown, used, held, reserved: 0, limit });
        }
        Ok(())
    }

    fn lists(&self, unit: &[&DesiredFrontend]) -> Lists {
        let mut lists = Lists::default();
        for frontend in unit {
            let len = number(frontend.backends.len());
            lists.new = lists.new.saturating_add(len);
            lists.longest = lists.longest.max(len);
            let range = self.frontends.get(&frontend.key).and_then(|record| record.range);
            lists.old += range.map_or(0, |range| range.len);
        }
        lists
    }

    fn need(&self, service: &DesiredService, unit: &[&DesiredFrontend]) -> Need {
        let (mut fresh, mut unknown, mut wanted) = (HashSet::new(), 0, HashSet::new());
        for frontend in unit {
            let proto = frontend.key.proto;
            let port = self.ports.get(&service.port_name(frontend));
            for backend in &frontend.backends {
                let key = port.map(|port| BackendKey::new(backend, port.number, proto));
                let id = key.and_then(|key| self.backends.id(&key));
                wanted.extend(id);
                let idle = id.is_none_or(|id| self.backends.refs(id) == 0);
                if idle && fresh.insert((frontend.port, proto, backend.addr, backend.port)) && id.is_none() {
                    unknown += 1;
                }
            }
        }
        let records = unit.iter().filter_map(|frontend| self.frontends.get(&frontend.key));
        let ids = records.flat_map(|record| &record.ids);
        let left = ids.filter(|id| !wanted.contains(*id) && self.backends.refs(**id) == 1).count();
        Need { fresh: number(fresh.len()), unknown, left: number(left) }
    }

    /// A range for each list, or none for any.
    fn take_slots(&mut self, unit: &[&DesiredFrontend]) -> Result<Vec<Option<Range>>, Reason> {
        let (free, held) = (self.slots.available(), self.slots.waiting());
        let mut taken = Vec::with_capacity(unit.len());
        for frontend in unit {
            let len = number(frontend.backends.len());
            match if len == 0 { Some(None) } else { self.slots.allocate(len).map(Some) } {
                Some(range) => taken.push(range),
                None => {
                    taken.into_iter().flatten().for_each(|range| self.slots.cancel(range));
                    let (needed, limit) = (self.lists(unit).new, self.limits.slots);
                    return Err(Reason::Room { needed, free, held, limit });
                }
            }
        }
        Ok(taken)
    }
}
