//! Supervised tasks: each has a name, an owner (this), a cancel token, and is started again when it fails.
//!
//! A task is a factory of futures. A future that ends with an error or a panic is logged and made anew
//! after a delay that doubles from 0.1 s to 10 s; one that ends well is done. Aborting is never needed:
//! a task ends when its token is cancelled.

use crate::telemetry::chain;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(10);
/// A task that ran for so long starts again with the first delay.
const SETTLED: Duration = Duration::from_secs(60);

/// What a task's future may end with.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// State of one task, for status and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct State {
    /// It runs now.
    pub(super) running: bool,
    /// How often it was started again.
    pub(super) restarts: u64,
    /// Why it failed last; none once it has ended well.
    pub(super) last_failure: Option<String>,
}

impl State {
    /// It runs, or has done what it was to do.
    #[must_use]
    pub(super) fn is_well(&self) -> bool {
        self.running || self.last_failure.is_none()
    }
}

/// The agent's tasks.
#[derive(Clone, Debug)]
pub(super) struct Tasks {
    tracker: TaskTracker,
    cancel: CancellationToken,
    states: Arc<Mutex<BTreeMap<&'static str, State>>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self { tracker: TaskTracker::new(), cancel: CancellationToken::new(), states: Arc::default() }
    }
}

impl Tasks {
    /// Starts a task under a name of its own.
    pub(super) fn spawn<F, R>(&self, name: &'static str, mut make: F)
    where
        F: FnMut(CancellationToken) -> R + Send + 'static,
        R: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let tasks = self.clone();
        self.tracker.spawn(async move {
            let mut delay = FIRST_DELAY;
            loop {
                tasks.update(name, |state| state.running = true);
                let started = Instant::now();
                // A task of its own, so that a panic ends it and not its supervisor.
                let ended = tasks.tracker.spawn(make(tasks.cancel.clone())).await;
                let failure = match ended {
                    Ok(Ok(())) => None,
                    Ok(Err(failure)) => Some(chain(failure.as_ref())),
                    Err(panic) => Some(format!("panicked: {panic}")),
                };
                tasks.update(name, |state| state.running = false);
                let Some(failure) = failure else {
                    tasks.update(name, |state| state.last_failure = None);
                    return;
                };
                if started.elapsed() > SETTLED {
                    delay = FIRST_DELAY;
                }
                tracing::error!(target: "netd::tasks", "task {name} failed: {failure}; again in {delay:?}");
                tasks.update(name, |state| {
                    state.restarts += 1;
                    state.last_failure = Some(failure);
                });
                let cancelled = tasks.cancel.run_until_cancelled(tokio::time::sleep(delay)).await.is_none();
                if cancelled {
                    return;
                }
                delay = (delay * 2).min(LAST_DELAY);
            }
        });
    }

    /// The token that ends all tasks.
    #[must_use]
    pub(super) fn token(&self) -> &CancellationToken {
        &self.cancel
    }

    /// States by name.
    #[must_use]
    pub(super) fn states(&self) -> BTreeMap<&'static str, State> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Cancels all tasks and waits for their ends, `limit` at most; false if some did not end.
    pub(super) async fn stop(&self, limit: Duration) -> bool {
        self.cancel.cancel();
        self.tracker.close();
        let stopped = tokio::time::timeout(limit, self.tracker.wait()).await.is_ok();
        for (name, state) in self.states() {
            if state.running {
                tracing::warn!(target: "netd::tasks", "task {name} did not end within {limit:?}");
            }
        }
        stopped
    }

    fn update(&self, name: &'static str, change: impl FnOnce(&mut State)) {
        change(self.states.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_failing_task_is_started_again_and_a_panic_ends_nothing_else() {
        let tasks = Tasks::default();
        let runs = Arc::new(AtomicU32::new(0));
        let count = runs.clone();
        tasks.spawn("frail", move |cancel| {
            let run = count.fetch_add(1, Ordering::Relaxed);
            async move {
                match run {
                    0 => Err("first".into()),
                    1 => panic!("second"),
                    _ => {
                        cancel.cancelled().await;
                        Ok(())
                    }
                }
            }
        });
        while runs.load(Ordering::Relaxed) < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let state = tasks.states()["frail"].clone();
        assert!(state.running);
        assert_eq!(state.restarts, 2);
        assert!(state.last_failure.is_some_and(|text| text.contains("panicked")));
        assert!(tasks.stop(Duration::from_secs(1)).await);
        assert!(!tasks.states()["frail"].running);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_failed_first_and_then_ended_is_well() {
        let tasks = Tasks::default();
        let mut runs = 0;
        tasks.spawn("install", move |_| {
            runs += 1;
            let failed = runs == 1;
            async move { if failed { Err("read-only".into()) } else { Ok(()) } }
        });
        let (mut failing, mut state) = (false, State::default());
        while state.restarts == 0 || !state.is_well() {
            tokio::time::sleep(Duration::from_millis(10)).await;
            state = tasks.states()["install"].clone();
            failing |= !state.is_well();
        }
        assert!(failing && !state.running);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stuck_task_does_not_hold_up_the_stop_for_ever() {
        let tasks = Tasks::default();
        tasks.spawn("stuck", |_| std::future::pending());
        tokio::task::yield_now().await;
        assert!(!tasks.stop(Duration::from_secs(1)).await);
    }
}
