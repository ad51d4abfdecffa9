//! The task that makes passes over the tables of flows, and what they came to: for status, metrics and log.
//!
//! A pass runs on a blocking thread in slices, between which it looks at the cancel token; ending it anywhere
//! is safe, as the next one begins anew. Passes come the more often the fuller the table is, and never take
//! more than a twentieth of a processor.

use super::drops::Names;
use super::state::State;
use super::tasks::Failure;
use crate::answer::status::Refused;
use crate::datapath::{FlowFill, Pass, Way};
use netd_bpf::flow::Share;
use std::collections::BTreeMap;
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
/// Refusals of one pod are logged once in so long, with their number.
const LOG_EVERY: Duration = Duration::from_secs(60);

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
        "a pass in {:?}: {} established, {} removed, {} of pods that are gone; {} new, {} of them expired",
        pass.took,
        pass.established.alive,
        pass.established.expired,
        pass.ownerless,
        pass.nursery.alive + pass.nursery.expired,
        pass.nursery.expired,
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

/// Refusals by pod, from counters that only grow.
#[derive(Debug, Default)]
struct Refusals {
    pods: BTreeMap<u32, Tally>,
    /// The counters of an earlier agent's time are known.
    begun: bool,
}

#[derive(Debug)]
struct Tally {
    /// As the agent, or the pod, began.
    base: Share,
    now: Share,
    told: Share,
    told_at: Option<Instant>,
    /// When there was more than before.
    grew_at: Option<Instant>,
}

impl Refusals {
    /// Takes in the counters; gives what to log: refusals since the last line about that pod.
    fn note(&mut self, shares: &BTreeMap<u32, Share>, now: Instant) -> Vec<Refused> {
        let mut lines = Vec::new();
        self.pods.retain(|endpoint, _| shares.contains_key(endpoint));
        for (endpoint, share) in shares {
            let base = if self.begun { Share::default() } else { *share };
            let fresh = || Tally { base, now: base, told: base, told_at: None, grew_at: None };
            let tally = self.pods.entry(*endpoint).or_insert_with(fresh);
            if refusals(*endpoint, &tally.now, share).any() {
                tally.grew_at = Some(now);
            }
            tally.now = *share;
            let since = refusals(*endpoint, &tally.told, share);
            let quiet = tally.told_at.is_some_and(|at| now.duration_since(at) < LOG_EVERY);
            if since.any() && !quiet {
                (tally.told, tally.told_at) = (*share, Some(now));
                lines.push(since);
            }
        }
        self.begun = true;
        lines
    }

    fn list(&self, now: Instant) -> Vec<Refused> {
        let recent = |at: Instant| now.duration_since(at) < LOG_EVERY;
        let all = self.pods.iter().map(|(endpoint, tally)| Refused {
            now: tally.grew_at.is_some_and(recent),
            ..refusals(*endpoint, &tally.base, &tally.now)
        });
        let mut some: Vec<Refused> = all.filter(Refused::any).collect();
        some.sort_by_key(|one| std::cmp::Reverse(one.share_used_up + one.table_full));
        some
    }
}

fn refusals(endpoint: u32, before: &Share, after: &Share) -> Refused {
    Refused {
        endpoint,
        rows: after.rows().try_into().unwrap_or_default(),
        share_used_up: after.refused_share.saturating_sub(before.refused_share),
        table_full: after.refused_full.saturating_sub(before.refused_full),
        ..Refused::default()
    }
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
        assert_eq!(refusals.list(start).len(), 1, "a pod that is gone has no refusals");
    }
}
