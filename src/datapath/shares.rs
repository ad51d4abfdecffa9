//! Are the shares what the pods hold? A pure comparison of what was counted along the way with what a pass
//! over the table met.
//!
//! Packets come and go while a pass runs, so that one pass only tells within which bounds a share is off:
//! of `taken` rows that came meanwhile it may have met each or not, and so of those that went. A share is
//! corrected by as much as two passes in a row agree on, and by addition, which commutes with whatever
//! packets do at that moment. Where nothing happens the bounds meet, and one correction is exact.

use netd_bpf::flow::Share;
use std::collections::BTreeMap;

/// By how much too high a share is, at least and at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    low: i64,
    high: i64,
}

impl Bounds {
    /// From a share before and after a pass.
    fn of(before: &Share, after: &Share) -> Self {
        let grown = |after: u64, before: u64| i64::try_from(after.wrapping_sub(before)).unwrap_or(i64::MAX);
        let (came, went) = (grown(after.taken, before.taken), grown(after.returned, before.returned));
        let off = before.rows().saturating_sub(grown(after.met, before.met));
        Self { low: off.saturating_sub(went), high: off.saturating_add(came) }
    }

    /// What both say for sure.
    fn agreed(self, other: Self) -> i64 {
        let (low, high) = (self.low.min(other.low), self.high.max(other.high));
        if low > 0 {
            low
        } else if high < 0 {
            high
        } else {
            0
        }
    }
}

/// What the pass before said.
#[derive(Debug, Default)]
pub(super) struct Audit {
    last: BTreeMap<u32, Bounds>,
}

impl Audit {
    /// Takes in a pass; gives how many rows to add to which shares. The caller does so before the next pass.
    pub(super) fn judge(
        &mut self,
        before: &BTreeMap<u32, Share>,
        after: &BTreeMap<u32, Share>,
    ) -> Vec<(u32, i64)> {
        let mut corrections = Vec::new();
        let mut now = BTreeMap::new();
        for (endpoint, before) in before {
            let Some(after) = after.get(endpoint) else { continue };
            let bounds = Bounds::of(before, after);
            let agreed = self.last.get(endpoint).map_or(0, |last| last.agreed(bounds));
            if agreed == 0 {
                now.insert(*endpoint, bounds);
            } else {
                corrections.push((*endpoint, -agreed));
            }
        }
        self.last = now;
        corrections
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POD: u32 = 7;

    fn share(taken: u64, returned: u64, met: u64) -> Share {
        Share { taken, returned, met, ..Share::default() }
    }

    fn judge(audit: &mut Audit, before: Share, after: Share) -> Option<i64> {
        let of = |share| BTreeMap::from([(POD, share)]);
        audit.judge(&of(before), &of(after)).first().map(|(_, rows)| *rows)
    }

    #[test]
    fn a_share_that_is_right_is_left_alone() {
        let mut audit = Audit::default();
        for met in [0, 10, 20] {
            assert_eq!(judge(&mut audit, share(15, 5, met), share(15, 5, met + 10)), None);
        }
    }

    #[test]
    fn a_quiet_share_is_corrected_exactly_by_the_second_pass() {
        for (rows, met, correction) in [(10, 4, -6), (4, 10, 6)] {
            let mut audit = Audit::default();
            assert_eq!(judge(&mut audit, share(rows, 0, 0), share(rows, 0, met)), None, "once may be chance");
            assert_eq!(
                judge(&mut audit, share(rows, 0, met), share(rows, 0, 2 * met)),
                Some(correction),
                "{rows} {met}"
            );
            assert_eq!(judge(&mut audit, share(rows, 0, 0), share(rows, 0, met)), None, "and only once");
        }
    }

    #[test]
    fn a_share_that_went_below_zero_comes_back() {
        let mut audit = Audit::default();
        judge(&mut audit, share(0, 3, 0), share(0, 3, 5));
        assert_eq!(judge(&mut audit, share(0, 3, 5), share(0, 3, 10)), Some(8));
    }

    #[test]
    fn what_came_and_went_meanwhile_is_no_error() {
        let mut audit = Audit::default();
        for _ in 0..5 {
            // Of 100 rows 30 went unmet, of 20 new ones 10 were met.
            assert_eq!(judge(&mut audit, share(100, 0, 0), share(120, 30, 80)), None);
        }
    }

    #[test]
    fn a_pod_that_came_or_went_between_is_not_judged() {
        let mut audit = Audit::default();
        let (some, none) = (BTreeMap::from([(POD, share(9, 0, 0))]), BTreeMap::new());
        for _ in 0..3 {
            assert_eq!(audit.judge(&some, &none), []);
            assert_eq!(audit.judge(&none, &some), []);
        }
    }

    /// One thing that happens while a pass goes over a table of rows.
    #[derive(Clone, Debug)]
    enum Event {
        Comes,
        Goes(prop::sample::Index),
        IsMet,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Comes),
            any::<prop::sample::Index>().prop_map(Event::Goes),
            Just(Event::IsMet)
        ]
    }

    /// A table whose rows a pass meets in a fixed order of places, as a hash table's buckets.
    struct Table {
        rows: Vec<u32>,
        share: Share,
        next: u32,
    }

    impl Table {
        fn pass(&mut self, events: &[Event]) -> (Share, Share) {
            let before = self.share;
            let mut hand = 0;
            for event in events {
                match event {
                    Event::Comes => {
                        // Anywhere, before or behind the hand.
                        self.next = self.next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        self.rows.push(self.next);
                        self.rows.sort_unstable();
                        self.share.taken = self.share.taken.wrapping_add(1);
                    }
                    Event::Goes(index) if !self.rows.is_empty() => {
                        self.rows.remove(index.index(self.rows.len()));
                        self.share.returned += 1;
                    }
                    Event::IsMet => self.meet(&mut hand),
                    Event::Goes(_) => {}
                }
            }
            while self.rows.iter().any(|place| *place >= hand) && hand < u32::MAX {
                self.meet(&mut hand);
            }
            (before, self.share)
        }

        fn meet(&mut self, hand: &mut u32) {
            if let Some(place) = self.rows.iter().find(|place| **place >= *hand) {
                self.share.met += 1;
                *hand = place.saturating_add(1);
            }
        }
    }

    proptest! {
        #[test]
        fn no_correction_ever_goes_too_far(
            off in -20_i64..20,
            rows in 0_u32..30,
            passes in prop::collection::vec(prop::collection::vec(event(), 0..40), 1..8),
        ) {
            let rows: Vec<u32> = (0..rows).map(|n| n * 1_000_000).collect();
            let taken = (rows.len() as u64).wrapping_add_signed(off);
            let mut table = Table { rows, share: share(taken, 0, 0), next: 5 };
            let (mut audit, mut left) = (Audit::default(), off);
            // The last three are quiet.
            for events in passes.into_iter().chain(vec![Vec::new(); 3]) {
                let (before, after) = table.pass(&events);
                let correction = judge(&mut audit, before, after).unwrap_or(0);
                prop_assert!(correction == 0 || correction.signum() == -left.signum(), "{left}: {correction}");
                prop_assert!(correction.abs() <= left.abs(), "{left}: {correction}");
                left += correction;
                table.share.taken = table.share.taken.wrapping_add_signed(correction);
            }
            prop_assert_eq!(left, 0);
        }
    }
}
