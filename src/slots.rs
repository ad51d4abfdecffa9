//! Which slots of a flat kernel array are whose: an allocator of ranges with a quarantine.
//!
//! A slot is free, in use (a row of another table names its range), or held: no row names it any more, but a
//! program that read the row before may still be about to read the slot. Best fit, lowest first;
//! neighbouring free ranges are one. A retired range is held from the moment at which the flip that left it
//! is known to be in the kernel ([`Slots::applied`]), not from when it was planned.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

/// A range of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Range {
    /// First slot.
    pub(crate) base: u32,
    /// How many.
    pub(crate) len: u32,
}

/// The allocator.
#[derive(Clone, Debug, Default)]
pub(crate) struct Slots {
    capacity: u32,
    /// Free ranges by start.
    free: BTreeMap<u32, u32>,
    /// The same by length, for the best fit.
    fits: BTreeSet<(u32, u32)>,
    /// Left by a flip that is planned.
    retired: Vec<Range>,
    /// Left by a flip that is done, until when.
    held: VecDeque<(Instant, Range)>,
    /// Slots in `retired` and `held`.
    waiting: u32,
    in_use: u32,
    /// Lengths of the ranges in use, with their number.
    lengths: BTreeMap<u32, u32>,
}

impl Slots {
    /// From the array's content and the ranges that rows name, which do not overlap. What nobody names
    /// but was written at some time may have been named a moment ago, and is held until `until`.
    pub(crate) fn from_content<T: Default + PartialEq>(
        content: &[T],
        used: &BTreeMap<u32, u32>,
        until: Instant,
    ) -> Self {
        let mut slots =
            Self { capacity: u32::try_from(content.len()).unwrap_or(u32::MAX), ..Self::default() };
        let mut cursor = 0;
        for (&base, &len) in used {
            slots.take_unused(content, cursor, base, until);
            slots.in_use += len;
            *slots.lengths.entry(len).or_default() += 1;
            cursor = base + len;
        }
        slots.take_unused(content, cursor, slots.capacity, until);
        slots
    }

    /// Sorts the slots from `start` to `end` into free and held stretches.
    fn take_unused<T: Default + PartialEq>(&mut self, content: &[T], start: u32, end: u32, until: Instant) {
        let (mut base, unwritten) = (start, T::default());
        let stretch = content.get(start as usize..end as usize).unwrap_or_default();
        for run in stretch.chunk_by(|a, b| (*a == unwritten) == (*b == unwritten)) {
            let len = u32::try_from(run.len()).unwrap_or(u32::MAX);
            let range = Range { base, len };
            if run.first() == Some(&unwritten) {
                self.give(range);
            } else {
                self.waiting += len;
                self.held.push_back((until, range));
            }
            base += len;
        }
    }

    /// Takes a range of `len` slots, if some free range is long enough. `len` is not 0.
    pub(crate) fn allocate(&mut self, len: u32) -> Option<Range> {
        let &(have, base) = self.fits.range((len, 0)..).next()?;
        self.fits.remove(&(have, base));
        self.free.remove(&base);
        if have > len {
            self.free.insert(base + len, have - len);
            self.fits.insert((have - len, base + len));
        }
        self.in_use += len;
        *self.lengths.entry(len).or_default() += 1;
        Some(Range { base, len })
    }

    /// Gives back a range that was never named.
    pub(crate) fn cancel(&mut self, range: Range) {
        self.leave(range);
        self.give(range);
    }

    /// Of a range in use the first `len` slots stay so, if any; a planned flip leaves the others.
    pub(crate) fn shrink(&mut self, range: Range, len: u32) -> Option<Range> {
        self.leave(range);
        let left = Range { base: range.base + len, len: range.len - len };
        if left.len > 0 {
            self.waiting += left.len;
            self.retired.push(left);
        }
        if len == 0 {
            return None;
        }
        self.in_use += len;
        *self.lengths.entry(len).or_default() += 1;
        Some(Range { base: range.base, len })
    }

    /// A range that a planned flip leaves.
    pub(crate) fn retire(&mut self, range: Range) {
        self.leave(range);
        self.waiting += range.len;
        self.retired.push(range);
    }

    /// The planned flips are done: what they left is held until `until`.
    pub(crate) fn applied(&mut self, until: Instant) {
        self.held.extend(self.retired.drain(..).map(|range| (until, range)));
    }

    /// Frees what was held for long enough.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((_, range)) = self.held.pop_front_if(|(until, _)| *until <= now) {
            self.waiting -= range.len;
            self.give(range);
        }
    }

    /// When the next held range becomes free.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        self.held.front().map(|(until, _)| *until)
    }

    /// When the last held range becomes free.
    pub(crate) fn last_expiry(&self) -> Option<Instant> {
        self.held.back().map(|(until, _)| *until)
    }

    /// Slots that rows name.
    pub(crate) fn in_use(&self) -> u32 {
        self.in_use
    }

    /// Slots that will become free by waiting.
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting
    }

    /// Slots free now, in whatever pieces.
    pub(crate) fn available(&self) -> u32 {
        self.capacity - self.in_use - self.waiting
    }

    /// Length of the longest range in use.
    pub(crate) fn longest(&self) -> u32 {
        self.lengths.last_key_value().map_or(0, |(&len, _)| len)
    }

    fn leave(&mut self, range: Range) {
        self.in_use -= range.len;
        if let Some(count) = self.lengths.get_mut(&range.len) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&range.len);
            }
        }
    }

    /// Adds to the free ranges, joined with its neighbours.
    fn give(&mut self, Range { mut base, mut len }: Range) {
        if let Some((&before, &its)) = self.free.range(..base).next_back()
            && before + its == base
        {
            self.free.remove(&before);
            self.fits.remove(&(its, before));
            base = before;
            len += its;
        }
        if let Some(its) = self.free.remove(&(base + len)) {
            self.fits.remove(&(its, base + len));
            len += its;
        }
        self.free.insert(base, len);
        self.fits.insert((len, base));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn empty(capacity: usize) -> Slots {
        Slots::from_content(&vec![0_u32; capacity], &BTreeMap::new(), Instant::now())
    }

    #[test]
    fn the_best_fit_is_taken_and_neighbours_are_joined() {
        let now = Instant::now();
        let mut slots = empty(20);
        let [a, b, c, d] = [4, 6, 3, 7].map(|len| slots.allocate(len).unwrap());
        assert_eq!(slots.allocate(1), None);
        slots.retire(b);
        slots.retire(d);
        slots.applied(now);
        slots.expire(now);
        assert_eq!(slots.allocate(5), Some(Range { base: 4, len: 5 }), "6 fits better than 7");
        slots.cancel(Range { base: 4, len: 5 });
        for range in [c, a] {
            slots.retire(range);
        }
        slots.applied(now);
        slots.expire(now);
        assert_eq!(slots.allocate(20), Some(Range { base: 0, len: 20 }));
        assert_eq!((slots.available(), slots.longest()), (0, 20));
    }

    #[test]
    fn a_retired_range_waits_from_the_flip_on() {
        let start = Instant::now();
        let mut slots = empty(4);
        let range = slots.allocate(4).unwrap();
        slots.retire(range);
        slots.expire(start + 100 * SECOND);
        assert_eq!(slots.allocate(4), None, "the flip is not known to be done");
        slots.applied(start + 101 * SECOND);
        slots.expire(start + 100 * SECOND);
        assert_eq!(slots.allocate(1), None);
        assert_eq!(slots.next_expiry(), Some(start + 101 * SECOND));
        slots.expire(start + 101 * SECOND);
        assert_eq!(slots.allocate(4), Some(range));
    }

    #[test]
    fn a_shrunk_range_keeps_its_head() {
        let now = Instant::now();
        let mut slots = empty(8);
        let [a, b] = [5, 2].map(|len| slots.allocate(len).unwrap());
        let a = slots.shrink(a, 2).unwrap();
        assert_eq!(
            (a, slots.in_use(), slots.waiting(), slots.longest()),
            (Range { base: 0, len: 2 }, 4, 3, 2)
        );
        assert_eq!(slots.allocate(2), None);
        assert_eq!((slots.shrink(b, 2), slots.waiting()), (Some(b), 3), "nothing is left");
        assert_eq!((slots.shrink(b, 0), slots.waiting()), (None, 5), "all is left");
        slots.applied(now);
        slots.expire(now);
        assert_eq!(slots.allocate(7), None);
        assert_eq!(slots.allocate(6), Some(Range { base: 2, len: 6 }));
    }

    #[test]
    fn written_slots_that_nobody_names_are_held_after_a_restart() {
        let now = Instant::now();
        let used = BTreeMap::from([(2, 2)]);
        let mut slots = Slots::from_content(&[7_u32, 0, 1, 2, 0, 0, 9, 9], &used, now + SECOND);
        assert_eq!((slots.in_use(), slots.waiting(), slots.available()), (2, 3, 3));
        assert_eq!(slots.allocate(2), Some(Range { base: 4, len: 2 }));
        assert_eq!(slots.allocate(2), None);
        slots.expire(now + SECOND);
        assert_eq!(slots.allocate(2), Some(Range { base: 0, len: 2 }));
        assert_eq!(slots.allocate(2), Some(Range { base: 6, len: 2 }));
    }
}
