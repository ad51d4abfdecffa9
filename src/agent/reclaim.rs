//! The task that makes passes over the tables of flows, and what they came to: for status, metrics and log.
//!
//! A pass runs on a blocking thread in slices, between which it looks at the cancel token; ending it anywhere
//! is safe, as the next one begins anew. Passes come the more often the fuller the table is, and take no more than
//! a twentieth of a processor, but for those that somebody asks for (SIGHUP), which come at once.

use super::drops::Names;
use super::state::State;
use super::tasks::Failure;
use crate::answer::status::Refused;
use crate::datapath::{FlowFill, Pass, Way};
use netd_bpf::flow::Share;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Time between two passes while there is room.
const RELAXED: Duration = Duration::from_secs(10);
/// Time between two passes over a table that is more than three quarters full.
const PRESSED: Duration = Duration::from_secs(2);
/// A pass may take so much of the time from its end to the next one's: one part in ...
const LOAD: u32 = 20;
/// Refusals of one pod for one cause are logged once in so long, with their number.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// Refusals no older than this go on.
const LATELY: Duration = Duration::from_secs(60);

/// What passes have come to since the agent began.
#[derive(Debug, Default)]
pub(super) struct Reclaimed {
    books: Mutex<Books>,
    asked: Notify,
}

#[derive(Debug, Default)]
struct Books {
    totals: Totals,
    refusals: Refusals,
}

/// The numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Passes made.
    pub(super) passes: u64,
    /// Expired rows that passes removed.
    pub(super) removed: u64,
    /// Shares found off and corrected.
    pub(super) corrected: u64,
    /// Shares made or removed because pods lacked them or nobody had them.
    pub(super) mended: u64,
    /// Rows of pods that are gone, at the last pass.
    pub(super) ownerless: u64,
    /// Length of the last pass.
    pub(super) last: Duration,
    /// Longest stretch of any pass without a pause.
    pub(super) worst_slice: Duration,
}

impl Reclaimed {
    /// Asks for a pass now.
    pub(super) fn ask(&self) {
        self.asked.notify_one();
    }

    /// The numbers so far.
    #[must_use]
    pub(super) fn totals(&self) -> Totals {
        self.books().totals.clone()
    }

    /// Pods with refusals, those with the most first.
    #[must_use]
    pub(super) fn refused(&self, names: &dyn Names) -> Vec<Refused> {
        let mut refused = self.books().refusals.list(Instant::now());
        for one in &mut refused {
            one.pod = names.pod(one.endpoint);
        }
        refused
    }

    fn note(&self, pass: &Pass) {
        let totals = &mut self.books().totals;
        totals.passes += 1;
        totals.removed += pass.established.expired;
        totals.corrected += pass.corrected.len() as u64;
        totals.mended += pass.mended;
        totals.ownerless = pass.ownerless;
        totals.last = pass.took;
        totals.worst_slice = totals.worst_slice.max(pass.worst_slice);
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes passes until the token is cancelled.
///
/// # Errors
/// The kernel refuses a pass.
pub(super) async fn run(state: Arc<State>, cancel: CancellationToken) -> Result<(), Failure> {
    match state.datapath.reclaim_way() {
        Way::Iterator => {
            tracing::info!(target: "netd::flows", "expired flows are removed by the kernel's map iterator");
        }
        Way::Batch { because } => tracing::warn!(
            target: "netd::flows",
            "expired flows are read and removed in batches, as there is no map iterator: {because}"
        ),
    }
    loop {
        let (worker, token) = (Arc::clone(&state), cancel.clone());
        let pass = tokio::task::spawn_blocking(move || step(&worker, &token)).await??;
        let Some(pause) = pass else { return Ok(()) };
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = state.reclaimed.asked.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One pass and what follows from it; how long to wait for the next, none if it was stopped.
fn step(state: &State, cancel: &CancellationToken) -> Result<Option<Duration>, Failure> {
    let Some(pass) = state.datapath.reclaim(&|| cancel.is_cancelled())? else { return Ok(None) };
    let (fill, shares) = (state.datapath.flow_fill()?, state.datapath.shares()?);
    state.reclaimed.note(&pass);
    tracing::debug!(
        target: "netd::flows",
        "a pass in {:?} and {} slices: {} established, {} removed, {} of pods that are gone; {} of {} new, {} \
         of them within their lifetime",
        pass.took,
        pass.slices,
        pass.established.alive,
        pass.established.expired,
        pass.ownerless,
        fill.nursery,
        fill.nursery_limit,
        fill.nursery_alive,
    );
    for (endpoint, rows) in &pass.corrected {
        tracing::warn!(
            target: "netd::flows",
            "the share of {} was off by {} rows, and is right now",
            named(state, *endpoint),
            rows.unsigned_abs(),
        );
    }
    let lines = state.reclaimed.books().refusals.note(&shares, Instant::now());
    for Refused { endpoint, rows, share_used_up, table_full, .. } in lines {
        let pod = named(state, endpoint);
        if table_full > 0 {
            tracing::error!(
                target: "netd::flows",
                "the table of flows is full ({} of {} rows): {table_full} connections of {pod} can be pushed \
                 out by new ones (datapath.flows)",
                fill.established,
                fill.established_limit,
            );
        }
        if share_used_up > 0 {
            tracing::warn!(
                target: "netd::flows",
                "{pod} has used up its share of the table of flows ({rows} rows): {share_used_up} of its \
                 connections can be pushed out by new ones (datapath.flows_per_pod)"
            );
        }
    }
    Ok(Some(pause(&fill, pass.took)))
}

fn named(state: &State, endpoint: u32) -> String {
    state.pod(endpoint).map_or_else(|| format!("endpoint {endpoint}"), |name| format!("pod {name}"))
}

/// Time to the next pass.
fn pause(fill: &FlowFill, took: Duration) -> Duration {
    let pressed = fill.established > u64::from(fill.established_limit) / 4 * 3;
    let wanted = if pressed { PRESSED } else { RELAXED };
    wanted.max(took.saturating_mul(LOAD))
}

/// Refusals by pod, from counters that only grow while a share is open.
#[derive(Debug, Default)]
struct Refusals {
    pods: BTreeMap<u32, Tally>,
    /// The counters of an earlier agent's time are known.
    begun: bool,
}

#[derive(Debug)]
struct Tally {
    /// At the last pass.
    share: Share,
    share_used_up: Cause,
    table_full: Cause,
}

/// Refusals of one pod for one cause.
#[derive(Debug, Default)]
struct Cause {
    /// Since the agent, or the pod, began.
    all: u64,
    untold: u64,
    told_at: Option<Instant>,
    /// When passes found more, and how many; what is older than [`LATELY`] is forgotten at the next pass.
    grown: VecDeque<(Instant, u64)>,
}

impl Cause {
    fn add(&mut self, more: u64, now: Instant) {
        self.grown.retain(|(at, _)| is_late(*at, now));
        if more > 0 {
            self.all += more;
            self.untold += more;
            self.grown.push_back((now, more));
        }
    }

    /// What is to be logged now: zero if nothing is, or if it is too soon.
    fn due(&mut self, now: Instant) -> u64 {
        if self.untold == 0 || self.told_at.is_some_and(|at| now.duration_since(at) < LOG_EVERY) {
            return 0;
        }
        self.told_at = Some(now);
        std::mem::take(&mut self.untold)
    }

    fn lately(&self, now: Instant) -> u64 {
        self.grown.iter().filter(|(at, _)| is_late(*at, now)).map(|(_, more)| more).sum()
    }
}

fn is_late(at: Instant, now: Instant) -> bool {
    now.duration_since(at) < LATELY
}

impl Refusals {
    /// Takes in the counters; gives what to log: refusals since the last line about that pod and cause.
    fn note(&mut self, shares: &BTreeMap<u32, Share>, now: Instant) -> Vec<Refused> {
        let mut lines = Vec::new();
        self.pods.retain(|endpoint, _| shares.contains_key(endpoint));
        for (endpoint, share) in shares {
            let before = if self.begun { Share::default() } else { *share };
            let fresh =
                || Tally { share: before, share_used_up: Cause::default(), table_full: Cause::default() };
            let tally = self.pods.entry(*endpoint).or_insert_with(fresh);
            let mut before = tally.share;
            if share.refused_share < before.refused_share || share.refused_full < before.refused_full {
                // Closed and opened again meanwhile.
                before = Share::default();
            }
            tally.share_used_up.add(share.refused_share.saturating_sub(before.refused_share), now);
            tally.table_full.add(share.refused_full.saturating_sub(before.refused_full), now);
            tally.share = *share;
            let line = Refused {
                endpoint: *endpoint,
                rows: rows(share),
                share_used_up: tally.share_used_up.due(now),
                table_full: tally.table_full.due(now),
                ..Refused::default()
            };
            if line.any() {
                lines.push(line);
            }
        }
        self.begun = true;
        lines
    }

    fn list(&self, now: Instant) -> Vec<Refused> {
        let all = self.pods.iter().map(|(endpoint, tally)| {
            let (share, table) = (&tally.share_used_up, &tally.table_full);
            let (share_used_up_lately, table_full_lately) = (share.lately(now), table.lately(now));
            Refused {
                endpoint: *endpoint,
                pod: None,
                rows: rows(&tally.share),
                share_used_up: share.all,
                table_full: table.all,
                share_used_up_lately,
                table_full_lately,
                now: share_used_up_lately + table_full_lately > 0,
            }
        });
        let mut some: Vec<Refused> = all.filter(Refused::any).collect();
        some.sort_by_key(|one| std::cmp::Reverse(one.share_used_up + one.table_full));
        some
    }
}

fn rows(share: &Share) -> u64 {
    share.rows().try_into().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fuller_table_is_looked_at_more_often_but_never_all_the_time() {
        let fill = |established| FlowFill { established, established_limit: 1000, ..FlowFill::default() };
        let short = Duration::from_millis(50);
        assert_eq!(pause(&fill(0), short), RELAXED);
        assert_eq!(pause(&fill(750), short), RELAXED);
        assert_eq!(pause(&fill(751), short), PRESSED);
        assert_eq!(pause(&fill(1000), Duration::from_secs(3)), Duration::from_secs(60));
    }

    fn share(refused_share: u64, refused_full: u64) -> Share {
        Share { taken: 9, refused_share, refused_full, ..Share::default() }
    }

    #[test]
    fn refusals_are_told_by_pod_and_not_again_and_again() {
        let mut refusals = Refusals::default();
        let start = Instant::now();
        // What happened before the agent began is another's news.
        assert_eq!(refusals.note(&BTreeMap::from([(1, share(5, 5))]), start), []);
        assert!(refusals.list(start).is_empty());

        let both = |first, second| BTreeMap::from([(1, first), (2, second)]);
        let lines = refusals.note(&both(share(8, 5), share(2, 0)), start);
        let told: Vec<_> =
            lines.iter().map(|line| (line.endpoint, line.share_used_up, line.table_full)).collect();
        assert_eq!(told, [(1, 3, 0), (2, 2, 0)]);
        assert_eq!(refusals.note(&both(share(10, 5), share(2, 0)), start + LOG_EVERY / 2), []);
        let lines = refusals.note(&both(share(10, 6), share(2, 0)), start + LOG_EVERY);
        let told: Vec<_> =
            lines.iter().map(|line| (line.endpoint, line.share_used_up, line.table_full)).collect();
        assert_eq!(told, [(1, 2, 1)], "with what was not told before");
        let list = refusals.list(start + LOG_EVERY);
        let listed: Vec<_> = list.iter().map(|one| (one.endpoint, one.share_used_up, one.now)).collect();
        assert_eq!(listed, [(1, 5, true), (2, 2, false)], "all since the agent began");

        assert_eq!(refusals.note(&BTreeMap::from([(2, share(2, 0))]), start + LOG_EVERY), []);
        assert_eq!(refusals.list(start + LOG_EVERY).len(), 1, "a pod that is gone has no refusals");
    }

    #[test]
    fn each_cause_has_its_own_time() {
        let mut refusals = Refusals::default();
        let (start, minute) = (Instant::now(), Duration::from_secs(60));
        let mut note = |refused_share, refused_full, at| {
            let lines = refusals.note(&BTreeMap::from([(1, share(refused_share, refused_full))]), at);
            let told: Vec<_> = lines.iter().map(|line| (line.share_used_up, line.table_full)).collect();
            let list = refusals.list(at);
            let of = |one: &Refused| {
                (one.share_used_up, one.share_used_up_lately, one.table_full, one.table_full_lately, one.now)
            };
            (told, list.iter().map(of).collect::<Vec<_>>())
        };
        assert_eq!(note(0, 0, start), (vec![], vec![]));
        assert_eq!(note(0, 1, start), (vec![(0, 1)], vec![(0, 0, 1, 1, true)]));
        // A line about the table holds back none about the share, and an old refusal is not a new one.
        let late = start + minute / 2;
        assert_eq!(note(4, 1, late), (vec![(4, 0)], vec![(4, 4, 1, 1, true)]));
        assert_eq!(note(4, 1, start + minute), (vec![], vec![(4, 4, 1, 0, true)]));
        assert_eq!(note(5, 1, late + minute), (vec![(1, 0)], vec![(5, 1, 1, 0, true)]));
        assert_eq!(note(5, 1, late + 2 * minute), (vec![], vec![(5, 0, 1, 0, false)]));
    }

    #[test]
    fn a_share_that_was_opened_again_hides_no_refusals() {
        let mut refusals = Refusals::default();
        let start = Instant::now();
        let mut note = |refused_share, refused_full| {
            refusals.note(&BTreeMap::from([(1, share(refused_share, refused_full))]), start);
            refusals.list(start).first().map(|one| (one.share_used_up, one.table_full))
        };
        assert_eq!(note(100, 7), None);
        assert_eq!(note(103, 7), Some((3, 0)));
        // Counted from zero again, the one beyond what it was.
        assert_eq!(note(2, 9), Some((5, 9)));
        assert_eq!(note(3, 9), Some((6, 9)));
    }
}
