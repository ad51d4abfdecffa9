//! Who gets in: the check, before anything is written, that a Service's change fits.

use super::Tables;
use super::write::Place;
use crate::model::ObjectName;
use crate::service::backends::BackendKey;
use crate::service::plan::{DesiredBackend, DesiredFrontend, DesiredService, PortName};
use crate::service::slots::Range;
use netd_bpf::service::kind;
use serde::Serialize;
use std::collections::HashSet;
use std::fmt;

/// Endpoints that one frontend's row can count.
const MAX_ENDPOINTS: usize = u16::MAX as usize;

/// A Service that is not as it ought to be, for want of room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// The Service.
    pub service: ObjectName,
    /// What it lacks.
    pub reason: Reason,
    /// True if it lacks only what the quarantine will give.
    pub waits: bool,
    /// True if clients are still served as before the change; false if the Service has no row.
    pub keeps_rows: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.keeps_rows { "stays as it was" } else { "is not served" };
        write!(f, "Service {} {state}: {}", self.service, self.reason)
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
        "it needs {needed} more backends, {used} of {limit} are in use and {held} in quarantine \
         (datapath.backends)"
    )]
    Backends {
        /// More ids.
        needed: u32,
        /// In use.
        used: u32,
        /// In quarantine.
        held: u32,
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

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Tables {
    /// Checks that these frontends of a Service fit together, and takes their slots.
    pub(super) fn admit(
        &mut self,
        service: &DesiredService,
        unit: &[&DesiredFrontend],
    ) -> Result<Vec<Place>, Refusal> {
        let refusal =
            |reason, waits| Refusal { service: service.name.clone(), reason, waits, keeps_rows: false };
        if let Some(frontend) = unit.iter().find(|f| f.backends.len() > MAX_ENDPOINTS) {
            let port = service.port_name(frontend);
            return Err(refusal(Reason::Endpoints { port, endpoints: frontend.backends.len() }, false));
        }
        self.check_frontends(unit).map_err(|reason| refusal(reason, false))?;
        self.check_slots(unit).map_err(|reason| refusal(reason, false))?;
        self.check_backends(service, unit).map_err(|(reason, waits)| refusal(reason, waits))?;
        match self.take_slots(unit) {
            Ok(ranges) => Ok(ranges.into_iter().map(Place::New).collect()),
            Err((reason, waits)) => match self.take_own_slots(service, unit) {
                Some(place) => Ok(vec![place]),
                None => Err(refusal(reason, waits)),
            },
        }
    }

    /// The slots that a row has, for a list that is no longer: where free slots lie in pieces that are too
    /// short, and stay so, each slot is written for itself. Until the row flips, a packet may find a backend of
    /// the former list or of the new one, which is better than to send it on to those that are gone.
    fn take_own_slots(&mut self, service: &DesiredService, unit: &[&DesiredFrontend]) -> Option<Place> {
        let [frontend] = unit else { return None };
        let record = self.frontends.get(&frontend.key)?;
        let (range, len) = (record.range?, number(frontend.backends.len()));
        let trusted = record.intact && !record.misnumbered && record.row.kind == kind::BALANCE;
        let own = trusted && record.owner.as_ref() == Some(&service.port_name(frontend));
        let fits = own && len > 0 && len <= range.len && !self.slots.fits_later(len);
        fits.then(|| Place::Over(self.slots.shrink(range, len)))
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
    fn check_slots(&self, unit: &[&DesiredFrontend]) -> Result<(), Reason> {
        let (mut old, mut new, mut longest) = (0_u32, 0_u32, self.slots.longest());
        for frontend in unit {
            let len = number(frontend.backends.len());
            new = new.saturating_add(len);
            longest = longest.max(len);
            let range = self.frontends.get(&frontend.key).and_then(|record| record.range);
            old += range.map_or(0, |range| range.len);
        }
        let used = self.slots.in_use() - old;
        let limit = self.limits.slots;
        if new > old && used.saturating_add(new).saturating_add(longest) > limit {
            return Err(Reason::Slots { needed: new, used, reserved: longest, limit });
        }
        Ok(())
    }

    fn check_backends(
        &self,
        service: &DesiredService,
        unit: &[&DesiredFrontend],
    ) -> Result<(), (Reason, bool)> {
        let mut new = HashSet::new();
        for frontend in unit {
            let proto = frontend.key.proto;
            let port = self.ports.get(&service.port_name(frontend));
            let known = |backend: &&DesiredBackend| {
                port.is_some_and(|port| self.backends.knows(&BackendKey::new(backend, port.number, proto)))
            };
            let unknown = frontend.backends.iter().filter(|backend| !known(backend));
            new.extend(unknown.map(|backend| (frontend.port, proto, backend.addr, backend.port)));
        }
        let (needed, free, held) = (number(new.len()), self.backends.available(), self.backends.waiting());
        if needed > free {
            let usage = self.usages().backends;
            let reason = Reason::Backends { needed, used: usage.used, held, limit: usage.limit };
            return Err((reason, needed - free <= held));
        }
        Ok(())
    }

    fn take_slots(&mut self, unit: &[&DesiredFrontend]) -> Result<Vec<Option<Range>>, (Reason, bool)> {
        let lengths = unit.iter().map(|frontend| number(frontend.backends.len()));
        let (free, held) = (self.slots.available(), self.slots.waiting());
        let mut taken = Vec::with_capacity(unit.len());
        for len in lengths.clone() {
            match if len == 0 { Some(None) } else { self.slots.allocate(len).map(Some) } {
                Some(range) => taken.push(range),
                None => {
                    taken.into_iter().flatten().for_each(|range| self.slots.cancel(range));
                    let (needed, limit) = (lengths.sum(), self.limits.slots);
                    return Err((Reason::Room { needed, free, held, limit }, held > 0));
                }
            }
        }
        Ok(taken)
    }
}
