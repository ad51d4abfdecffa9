//! Lists in `RANGES`: each content once, with its place, for as long as a row names it.

use super::Usage;
use crate::slots::{self, Slots};
use netd_bpf::policy::Range;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Lists {
    slots: Slots,
    limit: u32,
    held: HashMap<Arc<[Range]>, Held>,
}

/// A list in the array.
#[derive(Clone, Copy, Debug)]
struct Held {
    place: slots::Range,
    /// Rows that name it.
    rows: u32,
}

/// A list that one more row names.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) base: u32,
    pub(super) ranges: Arc<[Range]>,
    /// It is to be written first.
    pub(super) new: bool,
}

impl Lists {
    /// From the array, and the lists that rows name with the number of these, which do not overlap and are of different
    /// content.
    pub(super) fn from_content(
        content: &[Range],
        named: BTreeMap<u32, (Arc<[Range]>, u32)>,
        until: Instant,
    ) -> Self {
        let len = |ranges: &[Range]| u32::try_from(ranges.len()).unwrap_or(u32::MAX);
        let used = named.iter().map(|(base, (ranges, _))| (*base, len(ranges))).collect();
        let slots = Slots::from_content(content, &used, until);
        let held = named.into_iter().map(|(base, (ranges, rows))| {
            let place = slots::Range { base, len: len(&ranges) };
            (ranges, Held { place, rows })
        });
        Self { slots, limit: len(content), held: held.collect() }
    }

    /// One more row names this list; nothing if it finds no room.
    pub(super) fn acquire(&mut self, ranges: &[Range]) -> Option<Named> {
        if ranges.is_empty() {
            return Some(Named { base: 0, ranges: Arc::default(), new: false });
        }
        if let Some((key, held)) = self.held.get_key_value(ranges) {
            let (key, base) = (Arc::clone(key), held.place.base);
            if let Some(held) = self.held.get_mut(ranges) {
                held.rows += 1;
            }
            return Some(Named { base, ranges: key, new: false });
        }
        let place = self.slots.allocate(u32::try_from(ranges.len()).ok()?)?;
        let ranges: Arc<[Range]> = ranges.into();
        self.held.insert(Arc::clone(&ranges), Held { place, rows: 1 });
        Some(Named { base: place.base, ranges, new: true })
    }

    /// A row names it no more; `written`: programs may know it.
    pub(super) fn release(&mut self, ranges: &[Range], written: bool) {
        let Some(held) = self.held.get_mut(ranges) else { return };
        held.rows = held.rows.saturating_sub(1);
        if held.rows == 0 {
            let place = held.place;
            self.held.remove(ranges);
            if written {
                self.slots.retire(place);
            } else {
                self.slots.cancel(place);
            }
        }
    }

    /// What was released is held until then.
    pub(super) fn applied(&mut self, until: Instant) {
        self.slots.applied(until);
    }

    /// Frees what was held for long enough; true if there was any.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.slots.waiting();
        self.slots.expire(now);
        self.slots.waiting() < before
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.slots.next_expiry()
    }

    pub(super) fn usage(&self) -> Usage {
        Usage { used: self.slots.in_use(), held: self.slots.waiting(), limit: self.limit }
    }
}
