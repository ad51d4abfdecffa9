//! Are the shares what the pods hold? A pure comparison of what was counted along the way with what a pass
//! over the table met.
//!
//! Packets come and go while a pass runs, so that one pass only tells within which bounds a share is off:
//! of `taken` rows that came meanwhile it may have met each or not, and so of those that went. And rows of
//! others mislead it ([`Churn`]). A share is corrected by as much as two passes in a row agree on, and by
//! addition, which commutes with whatever packets do at that moment. Where nothing happens the bounds meet, and
//! one correction is exact.

use netd_bpf::flow::Share;
use std::collections::BTreeMap;

/// Rows of all pods that came to the table and that went, by packets or by the pass itself, while it ran.
///
/// The kernel goes on after a pause by the number of the bucket and of the rows met there
/// (`bpf_hash_map_seq_find_next`, kernel/bpf/hashtab.c): for each that went meanwhile it skips one that is
/// there, and as rows come to the head of a bucket it meets another twice for each. And a row that went may
/// have come again in another bucket while the walk stood on it: the walk goes on there, leaves out the
/// [`REST`] of its own bucket and meets that of the other once more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Churn {
    pub(super) came: u64,
    pub(super) went: u64,
}

/// More rows than one bucket has, of a table with at least as many buckets as rows: of a thousand million
/// buckets about a thousand have more.
const REST: i64 = 8;

impl Churn {
    /// Rows that a pass may have skipped, and met twice, at most.
    fn misled(self) -> (i64, i64) {
        let [came, went] = [self.came, self.went].map(|rows| i64::try_from(rows).unwrap_or(i64::MAX));
        let astray = came.min(went).saturating_mul(REST);
        (went.saturating_add(astray), came.saturating_add(astray))
    }
}

/// By how much too high a share is, at least and at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bounds {
    low: i64,
    high: i64,
}

impl Bounds {
    /// From a share before and after a pass.
    fn of(before: &Share, after: &Share, churn: Churn) -> Self {
        let grown = |after: u64, before: u64| i64::try_from(after.wrapping_sub(before)).unwrap_or(i64::MAX);
        let (came, went) = (grown(after.taken, before.taken), grown(after.returned, before.returned));
        let off = before.rows().saturating_sub(grown(after.met, before.met));
        let (skipped, twice) = churn.misled();
        Self {
            low: off.saturating_sub(went).saturating_sub(skipped),
            high: off.saturating_add(came).saturating_add(twice),
        }
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
        churn: Churn,
    ) -> Vec<(u32, i64)> {
        let mut corrections = Vec::new();
        let mut now = BTreeMap::new();
        for (endpoint, before) in before {
            let Some(after) = after.get(endpoint) else { continue };
            let bounds = Bounds::of(before, after, churn);
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
    use proptest::sample::Index;

    const POD: u32 = 7;

    fn share(taken: u64, returned: u64, met: u64) -> Share {
        Share { taken, returned, met, ..Share::default() }
    }

    fn judge(audit: &mut Audit, before: Share, after: Share) -> Option<i64> {
        judge_amid(audit, before, after, Churn::default())
    }

    fn judge_amid(audit: &mut Audit, before: Share, after: Share, churn: Churn) -> Option<i64> {
        let of = |share| BTreeMap::from([(POD, share)]);
        audit.judge(&of(before), &of(after), churn).first().map(|(_, rows)| *rows)
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
            assert_eq!(audit.judge(&some, &none, Churn::default()), []);
            assert_eq!(audit.judge(&none, &some, Churn::default()), []);
        }
    }

    #[test]
    fn rows_skipped_because_others_went_are_no_error() {
        let mut audit = Audit::default();
        for met in [0, 97, 194] {
            // Quiet itself, but each pass removes three rows of others and skips three of its.
            let (before, after) = (share(100, 0, met), share(100, 0, met + 97));
            assert_eq!(judge_amid(&mut audit, before, after, Churn { came: 0, went: 3 }), None);
        }
        for met in [0, 103, 206] {
            let (before, after) = (share(100, 0, met), share(100, 0, met + 103));
            assert_eq!(judge_amid(&mut audit, before, after, Churn { came: 3, went: 0 }), None);
        }
    }

    /// One thing that happens while a pass goes over a table of rows.
    #[derive(Clone, Debug)]
    enum Event {
        Comes {
            to: Index,
            own: bool,
        },
        Goes(Index),
        /// The walk comes to the next row, finds it expired and removes it or not, and pauses on it or not.
        IsMet {
            expired: bool,
            pauses: bool,
        },
        /// The row just met goes, and its memory becomes a row of another bucket.
        IsReused {
            to: Index,
            own: bool,
        },
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            2 => (any::<Index>(), any::<bool>()).prop_map(|(to, own)| Event::Comes { to, own }),
            2 => any::<Index>().prop_map(Event::Goes),
            5 => (any::<bool>(), any::<bool>())
                .prop_map(|(expired, pauses)| Event::IsMet { expired, pauses }),
            1 => (any::<Index>(), any::<bool>()).prop_map(|(to, own)| Event::IsReused { to, own }),
        ]
    }

    const BUCKETS: usize = 16;

    /// A hash table; of a row only this matters, whether it is the pod's.
    struct Table {
        buckets: Vec<Vec<bool>>,
        share: Share,
        churn: Churn,
    }

    /// Where a walk is: so many rows of a bucket are met.
    #[derive(Default)]
    struct Hand {
        bucket: usize,
        met: usize,
        /// In another bucket than it believes.
        astray: Option<(usize, usize)>,
    }

    impl Table {
        /// One pass, with what happens meanwhile: the share before and after.
        fn pass(&mut self, events: &[Event]) -> (Share, Share, Churn) {
            let (before, mut hand) = (self.share, Hand::default());
            self.churn = Churn::default();
            for event in events {
                match event {
                    Event::Comes { to, own } => self.comes(to.index(BUCKETS), *own),
                    Event::Goes(index) => {
                        let rows: Vec<_> = (0..BUCKETS)
                            .flat_map(|at| (0..self.buckets[at].len()).map(move |row| (at, row)))
                            .collect();
                        if !rows.is_empty() {
                            let (bucket, row) = rows[index.index(rows.len())];
                            self.goes(bucket, row);
                        }
                    }
                    Event::IsMet { expired, pauses } => drop(self.meet(&mut hand, *expired, *pauses)),
                    Event::IsReused { to, own } => {
                        let other = (hand.bucket + 1 + to.index(BUCKETS - 1)) % BUCKETS;
                        let stands = hand.astray.is_none() && hand.met > 0 && hand.bucket < BUCKETS;
                        if stands && hand.met <= self.buckets[hand.bucket].len() && self.has_room(other) {
                            self.goes(hand.bucket, hand.met - 1);
                            self.comes(other, *own);
                            hand.astray = Some((other, 1));
                        }
                    }
                }
            }
            while self.meet(&mut hand, false, false) {}
            (before, self.share, self.churn)
        }

        fn has_room(&self, bucket: usize) -> bool {
            self.buckets[bucket].len() < usize::try_from(REST).unwrap()
        }

        fn comes(&mut self, bucket: usize, own: bool) {
            if self.has_room(bucket) {
                self.buckets[bucket].insert(0, own);
                self.share.taken = self.share.taken.wrapping_add(own.into());
                self.churn.came += 1;
            }
        }

        fn goes(&mut self, bucket: usize, row: usize) {
            let own = self.buckets[bucket].remove(row);
            self.share.returned += u64::from(own);
            self.churn.went += 1;
        }

        /// False at the end of the table.
        fn meet(&mut self, hand: &mut Hand, expired: bool, pauses: bool) -> bool {
            if let Some((bucket, row)) = hand.astray {
                if let Some(own) = self.buckets[bucket].get(row) {
                    self.share.met += u64::from(*own);
                    hand.astray = Some((bucket, row + 1));
                    return true;
                }
                (hand.bucket, hand.met, hand.astray) = (hand.bucket + 1, 0, None);
            }
            while hand.bucket < BUCKETS && hand.met >= self.buckets[hand.bucket].len() {
                (hand.bucket, hand.met) = (hand.bucket + 1, 0);
            }
            let Some(bucket) = self.buckets.get(hand.bucket) else { return false };
            if expired {
                self.goes(hand.bucket, hand.met);
                // Without a pause the walk goes on from the row, not by number.
                hand.met += usize::from(pauses);
            } else {
                self.share.met += u64::from(bucket[hand.met]);
                hand.met += 1;
            }
            true
        }
    }

    proptest! {
        #[test]
        fn no_correction_ever_goes_too_far(
            off in -20_i64..20,
            rows in prop::collection::vec((any::<Index>(), any::<bool>()), 0..60),
            passes in prop::collection::vec(prop::collection::vec(event(), 0..60), 1..8),
        ) {
            let mut table =
                Table { buckets: vec![Vec::new(); BUCKETS], share: share(0, 0, 0), churn: Churn::default() };
            for (to, own) in rows {
                table.comes(to.index(BUCKETS), own);
            }
            table.share.taken = table.share.taken.wrapping_add_signed(off);
            let (mut audit, mut left) = (Audit::default(), off);
            // The last three are quiet.
            for events in passes.into_iter().chain(vec![Vec::new(); 3]) {
                let (before, after, churn) = table.pass(&events);
                let correction = judge_amid(&mut audit, before, after, churn).unwrap_or(0);
                prop_assert!(correction == 0 || correction.signum() == -left.signum(), "{left}: {correction}");
                prop_assert!(correction.abs() <= left.abs(), "{left}: {correction}");
                left += correction;
                table.share.taken = table.share.taken.wrapping_add_signed(correction);
            }
            prop_assert_eq!(left, 0);
        }
    }
}
