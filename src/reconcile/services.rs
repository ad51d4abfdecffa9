//! The Service reconciler: holds the kernel's service tables to the newest snapshot.
//!
//! One task, which alone writes these tables. Planning and map writes happen in a blocking thread, one step
//! at a time, so that no worker of the runtime is held up. A step begins when
//! - a new snapshot is there (only the newest counts; an unsynced one is never acted on, so that nothing is
//!   deleted before the source has spoken),
//! - a quarantine ends, or a failed step is due again (back-off, doubled up to a bound),
//! - the audit is due: the kernel is read back, and what differs is told and repaired.
//!
//! After a failed write the image is thrown away and read back from the kernel, as at start. A crash is safe
//! at any point, by the order of operations (see [`crate::service::tables`]), and so is aborting the task; but
//! the step under way then runs to its end, so another reconciler may only start after [`Reconciler::run`]
//! has returned.

mod metrics;
mod names;
mod status;
mod worker;

use crate::service::plan::Desired;
use crate::service::tables::Limits;
use netd_bpf::service::{Backend, Frontend, FrontendKey};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use worker::{Work, Worker};

pub use metrics::ServiceMetrics;
pub use names::{BackendLabel, Names, Register, ServiceLabel};
pub use status::ServiceStatus;

/// The kernel's service tables. Calls may block.
pub trait ServiceMaps: Send + Sync + 'static {
    /// Why a call failed, with the map in its text.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Sets a backend's row.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn set_backend(&self, id: u32, row: &Backend) -> Result<(), Self::Error>;

    /// Sets the slots from `base` on.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn set_slots(&self, base: u32, ids: &[u32]) -> Result<(), Self::Error>;

    /// Sets a frontend's row, in one update.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn set_frontend(&self, key: &FrontendKey, row: &Frontend) -> Result<(), Self::Error>;

    /// Deletes a frontend; well if it is not there.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn delete_frontend(&self, key: &FrontendKey) -> Result<(), Self::Error>;

    /// All frontends.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, Self::Error>;

    /// The slots from `base` on, `count` of them.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn slots(&self, base: u32, count: u32) -> Result<Vec<u32>, Self::Error>;

    /// All backend rows that are not all zero: the free ones among them tell their generation, which must
    /// not be given out twice.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn backends(&self) -> Result<Vec<(u32, Backend)>, Self::Error>;
}

/// How a snapshot becomes a plan.
pub trait Source: Send + Sync + 'static {
    /// What the store publishes.
    type Snapshot: Send + Sync + 'static;

    /// The snapshot's generation, if it is synced.
    fn generation(&self, snapshot: &Self::Snapshot) -> Option<u64>;

    /// The plan for it.
    fn desired(&self, snapshot: &Self::Snapshot) -> Desired;

    /// Turns the plan for `old` into that for `new`, if no more than endpoints differ, and gives the places of the
    /// Services that it changed. None: the plan is to be made whole; it is as it was.
    fn renew(&self, desired: &mut Desired, old: &Self::Snapshot, new: &Self::Snapshot) -> Option<Vec<usize>>;
}

/// Sizes and times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Sizes of the maps.
    pub limits: Limits,
    /// How long what a flip left is kept; longer than any BPF program runs.
    pub quarantine: Duration,
    /// Time between two audits.
    pub audit: Duration,
    /// First wait after a failed step; doubled with each failure in a row.
    pub retry_first: Duration,
    /// Longest wait after a failed step.
    pub retry_longest: Duration,
}

impl Config {
    /// The usual times: a quarantine of a second, an audit every five minutes.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            quarantine: Duration::from_secs(1),
            audit: Duration::from_secs(300),
            retry_first: Duration::from_millis(100),
            retry_longest: Duration::from_secs(30),
        }
    }
}

/// What others see of the reconciler.
#[derive(Clone, Debug)]
pub struct Handle {
    /// Its state, after each step.
    pub status: watch::Receiver<Arc<ServiceStatus>>,
    /// What the kernel's numbers stand for.
    pub names: Arc<Names>,
}

/// Why the task ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step panicked; the tables are as a crash leaves them.
    #[error("a step of the service reconciler did not end")]
    Step(#[source] tokio::task::JoinError),
}

/// The reconciler, before it runs.
#[derive(Debug)]
pub struct Reconciler<S: Source, M> {
    config: Config,
    source: Arc<S>,
    snapshots: watch::Receiver<Arc<S::Snapshot>>,
    /// The snapshot of the worker's goal.
    planned: Option<Arc<S::Snapshot>>,
    worker: Worker<M>,
}

impl<S: Source, M: ServiceMaps> Reconciler<S, M> {
    /// Over these maps, following these snapshots, counting in these metrics.
    #[must_use]
    pub fn new(
        config: Config,
        source: S,
        snapshots: watch::Receiver<Arc<S::Snapshot>>,
        maps: M,
        metrics: ServiceMetrics,
    ) -> (Self, Handle) {
        let (worker, handle) = Worker::new(config, maps, metrics);
        (Self { config, source: Arc::new(source), snapshots, planned: None, worker }, handle)
    }

    /// Runs until cancelled, or until no snapshot can come any more. What the kernel holds stays.
    ///
    /// # Errors
    /// If a step panics.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), Error> {
        let mut audit =
            tokio::time::interval_at(tokio::time::Instant::now() + self.config.audit, self.config.audit);
        audit.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.snapshots.mark_changed();
        loop {
            let wake = self.worker.wake_at();
            let work = tokio::select! {
                biased;
                () = cancel.cancelled() => return Ok(()),
                changed = self.snapshots.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
                    let Some(generation) = self.source.generation(&snapshot) else { continue };
                    let source = Arc::clone(&self.source);
                    let old = self.planned.replace(Arc::clone(&snapshot));
                    let plan = move |former: Option<Desired>| {
                        if let (Some(old), Some(mut desired)) = (old, former)
                            && let Some(changed) = source.renew(&mut desired, &old, &snapshot)
                        {
                            return (desired, Some(changed));
                        }
                        (source.desired(&snapshot), None)
                    };
                    Work::Goal(generation, Box::new(plan))
                }
                () = sleep_until(wake) => Work::Due,
                _ = audit.tick() => Work::Audit,
            };
            let mut worker = self.worker;
            let step = tokio::task::spawn_blocking(move || {
                worker.step(work);
                worker
            });
            self.worker = step.await.map_err(Error::Step)?;
        }
    }
}

/// Until `wake`; for ever without one.
async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
