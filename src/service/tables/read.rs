//! From the kernel's rows to the image, and the comparison of the two.
//!
//! An agent may have died between any two writes, and a table may be damaged. What is half-made is simply
//! not named by anything: slots without a frontend, backends without a slot. A frontend that names slots
//! beyond the array, slots of another frontend, or backends that do not exist is kept as *not intact*: its
//! key and number are known, and the next plan writes it anew or removes it.

use super::{Limits, Record, Tables};
use crate::service::backends::Backends;
use crate::slots::{Range, Slots};
use netd_bpf::service::{Backend, Frontend, FrontendKey, backend_state, kind};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::{Duration, Instant};

/// What the kernel holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// All rows of `FRONTENDS`.
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// All of `SLOTS`.
    pub slots: Vec<u32>,
    /// All rows of `BACKENDS` that are not all zero; those that are `FREE` tell their generation.
    pub backends: Vec<(u32, Backend)>,
}

/// A difference between the image and the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub enum Drift {
    /// A frontend that was written is not there.
    FrontendMissing(FrontendKey),
    /// A frontend that was not written is there.
    FrontendUnknown(FrontendKey),
    /// Its row is another.
    FrontendDiffers(FrontendKey),
    /// Its slots hold something else.
    SlotsDiffer(FrontendKey),
    /// A backend's row is another.
    BackendDiffers(u32),
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, what) = match self {
            Self::FrontendMissing(key) => (key, "is missing"),
            Self::FrontendUnknown(key) => (key, "is not ours"),
            Self::FrontendDiffers(key) => (key, "was changed"),
            Self::SlotsDiffer(key) => (key, "has other slots"),
            Self::BackendDiffers(id) => return write!(f, "backend {id} was changed"),
        };
        write!(f, "frontend {} protocol {} {what}", super::address(key), key.proto)
    }
}

impl From<Drift> for String {
    fn from(drift: Drift) -> Self {
        drift.to_string()
    }
}

/// Slots that a row names; a local redirect has its listener before its backends.
fn length(row: &Frontend) -> u32 {
    u32::from(row.backends) + u32::from(row.kind == kind::LOCAL_REDIRECT)
}

/// Ranges that do not overlap.
#[derive(Default)]
struct Claims(BTreeMap<u32, u32>);

impl Claims {
    fn claim(&mut self, range: Range) -> bool {
        let Range { base, len } = range;
        let before = self.0.range(..=base).next_back().is_some_and(|(start, its)| start + its > base);
        let after = self.0.range(base..).next().is_some_and(|(start, _)| *start < base + len);
        if before || after {
            return false;
        }
        self.0.insert(base, len);
        true
    }
}

impl Tables {
    /// The image of what the kernel holds at `now`. `quarantine` must be longer than any program runs.
    #[must_use]
    pub fn read(limits: Limits, quarantine: Duration, kernel: &Kernel, now: Instant) -> Self {
        let mut content = kernel.slots.clone();
        content.resize(limits.slots as usize, 0);
        let mut backends = Backends::from_rows(limits.backends, &kernel.backends);

        // Whoever is sound gets its slots before whoever may only name them by damage.
        let mut found: Vec<(bool, &FrontendKey, &Frontend, Option<&[u32]>)> = kernel
            .frontends
            .iter()
            .map(|(key, row)| {
                let end = row.slot_base.checked_add(length(row));
                let ids = end.and_then(|end| content.get(row.slot_base as usize..end as usize));
                let sound = ids.is_some_and(|ids| ids.iter().all(|id| backends.given_out(*id)));
                (!sound, key, row, ids)
            })
            .collect();
        found.sort_unstable_by_key(|(unsound, key, row, _)| (*unsound, row.slot_base, **key));

        let mut claims = Claims::default();
        let mut frontends = HashMap::with_capacity(found.len());
        let mut last_number = backends.last_service();
        for (unsound, key, row, ids) in found {
            last_number = last_number.max(row.service);
            let wanted = Range { base: row.slot_base, len: length(row) };
            let range = (wanted.len > 0 && ids.is_some() && claims.claim(wanted)).then_some(wanted);
            let intact = !unsound && range.is_some() == (wanted.len > 0);
            let ids = ids.unwrap_or_default().iter().copied().filter(|id| backends.adopt(*id)).collect();
            let record = Record { row: *row, ids, range, owner: None, intact, misnumbered: false, round: 0 };
            frontends.insert(*key, record);
        }
        backends.settle(now + quarantine);
        Self {
            limits,
            quarantine,
            frontends,
            ports: HashMap::new(),
            numbers: HashSet::new(),
            next_number: last_number.wrapping_add(1),
            slots: Slots::from_content(&content, &claims.0, now + quarantine),
            backends,
            round: 0,
        }
    }

    /// What the kernel holds that this image does not, and the other way round.
    #[must_use]
    pub fn drift(&self, kernel: &Kernel) -> Vec<Drift> {
        let mut drift = Vec::new();
        let mut there = HashSet::with_capacity(kernel.frontends.len());
        for (key, row) in &kernel.frontends {
            there.insert(key);
            match self.frontends.get(key) {
                None => drift.push(Drift::FrontendUnknown(*key)),
                Some(record) if record.row != *row => drift.push(Drift::FrontendDiffers(*key)),
                Some(record) => {
                    let slots = record.range.map_or(Some(&[][..]), |Range { base, .. }| {
                        kernel.slots.get(base as usize..base as usize + record.ids.len())
                    });
                    if slots != Some(&record.ids) {
                        drift.push(Drift::SlotsDiffer(*key));
                    }
                }
            }
        }
        let missing = self.frontends.keys().filter(|key| !there.contains(key));
        drift.extend(missing.map(|key| Drift::FrontendMissing(*key)));

        let rows: HashMap<u32, &Backend> = kernel.backends.iter().map(|(id, row)| (*id, row)).collect();
        let known = rows.len();
        let mut matched = 0;
        for (id, row) in self.backends.rows() {
            let held = rows.get(&id).copied();
            matched += usize::from(held.is_some());
            // A free row that nobody wrote is as good as one never used.
            let free = row.state == backend_state::FREE && held.is_none();
            if held != Some(row) && !free {
                drift.push(Drift::BackendDiffers(id));
            }
        }
        if matched != known {
            let ours: HashSet<u32> = self.backends.rows().map(|(id, _)| id).collect();
            let others = kernel.backends.iter().filter(|(id, _)| *id != 0 && !ours.contains(id));
            drift.extend(others.map(|(id, _)| Drift::BackendDiffers(*id)));
        }
        drift
    }
}
