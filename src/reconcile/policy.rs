//! The policy reconciler: holds the kernel's policy tables and the sets of this node's pods to the newest snapshot.
//!
//! One task, which alone writes these tables and says which sets a pod has. Planning and map writes happen in a
//! blocking thread, one step at a time. A step begins when
//! - a new snapshot is there, the ledger of pods changed, or the node's own addresses (an unsynced snapshot is never
//!   acted on: nothing is opened and nothing taken away before the source has spoken, and pods that an earlier agent
//!   left keep the sets that their rows have),
//! - a pod that is being added asks ([`Handle::prepare`]),
//! - a quarantine ends, or a failed step is due again (back-off, doubled up to a bound),
//! - the audit is due: the kernel is read back, and what differs is told and repaired.
//!
//! After a failed write nothing more of the plan is written: any beginning of it is safe, any other part of it is
//! not. Then the image is thrown away and read back from the kernel, as at start. A crash is safe at any point, by
//! the order of operations (see [`crate::policy::tables`]), and so is aborting the task; but the step under way then
//! runs to its end, so another reconciler may only start after [`Reconciler::run`] has returned.

mod desk;
mod metrics;
mod names;
mod status;
mod worker;

use crate::ipam::ledger;
use crate::model::{Model, ObjectName};
use crate::policy::tables::Limits;
use crate::policy::{LocalPod, Sets};
use crate::store::Snapshot;
use desk::Desk;
use netd_bpf::Addr;
use netd_bpf::policy::{Block, IdentityRow, PolicyKey, PolicyRow, Range};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use worker::{Goal, Work, Worker};

pub use metrics::PolicyMetrics;
pub use names::Names;
pub use status::{Closed, PolicyStatus};

/// How long a pod that is being added waits for its rows once the source is synced, at least.
const PATIENCE: Duration = Duration::from_secs(5);

/// The kernel's policy tables, and the sets of pods. Calls may block.
pub trait PolicyMaps: Send + Sync + 'static {
    /// Why a call failed, with the map in its text.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Sets the ranges from `base` on.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn set_ranges(&self, base: u32, ranges: &[Range]) -> Result<(), Self::Error>;

    /// Sets rows, each in one update.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn set_rows(&self, rows: &[(PolicyKey, PolicyRow)]) -> Result<(), Self::Error>;

    /// Deletes rows; well if they are not there.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn delete_rows(&self, keys: &[PolicyKey]) -> Result<(), Self::Error>;

    /// Sets the identities of addresses, each in one update.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn set_identities(&self, rows: &[(Addr, IdentityRow)]) -> Result<(), Self::Error>;

    /// Deletes the identities of addresses; well if they have none.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn delete_identities(&self, addresses: &[Addr]) -> Result<(), Self::Error>;

    /// Sets the identities of blocks.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn set_blocks(&self, rows: &[(Block, u64)]) -> Result<(), Self::Error>;

    /// Deletes blocks; well if they are not there.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn delete_blocks(&self, blocks: &[Block]) -> Result<(), Self::Error>;

    /// Says which sets pods have, of which there may be no rows yet.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn set_pods(&self, pods: &[(u32, Sets)]) -> Result<(), Self::Error>;

    /// Forgets pods that are none any more; those that have rows all the same are closed.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn remove_pods(&self, endpoints: &[u32]) -> Result<(), Self::Error>;

    /// Has every flow judged anew by its next packet.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn bump_epoch(&self) -> Result<(), Self::Error>;

    /// The ranges from `base` on, `count` of them.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn ranges(&self, base: u32, count: u32) -> Result<Vec<Range>, Self::Error>;

    /// All rows as they are, with their seals.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn rows(&self) -> Result<Vec<(PolicyKey, PolicyRow)>, Self::Error>;

    /// All identities of addresses as they are, with their seals.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn identities(&self) -> Result<Vec<(Addr, IdentityRow)>, Self::Error>;

    /// All identities of blocks.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn blocks(&self) -> Result<Vec<(Block, u64)>, Self::Error>;

    /// The sets of all pods: as their rows have them, where these say something else than was said.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn pods(&self) -> Result<BTreeMap<u32, Sets>, Self::Error>;
}

/// Sizes and times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Sizes of the maps.
    pub limits: Limits,
    /// How long ranges are kept that no row names any more; longer than any BPF program runs.
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

/// What the reconciler follows.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The model.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The pods of this node.
    pub pods: watch::Receiver<Arc<ledger::State>>,
    /// The node's own addresses, beside those that its Node object has.
    pub addresses: watch::Receiver<Arc<Vec<IpAddr>>>,
}

/// What others see of the reconciler, and where they ask it. It outlives a reconciler that fails: the next one goes
/// on with what was asked.
#[derive(Clone, Debug)]
pub struct Handle {
    /// Its state, after each step.
    pub status: watch::Receiver<Arc<PolicyStatus>>,
    /// What the kernel's numbers stand for.
    pub names: Arc<Names>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    desk: Arc<Desk>,
}

/// Why a pod's policies are not in force (yet). Each is worth another try.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unprepared {
    /// The source has not spoken.
    #[error("the source of state is not synced after {0:?}")]
    Unsynced(Duration),
    /// The source has no object of this pod (yet): its labels tell which of its namespace's policies are about it.
    #[error(
        "the source does not know this pod {0} after {1:?}, and policies of its namespace may ask for its labels"
    )]
    Unknown(ObjectName, Duration),
    /// The kernel refuses.
    #[error("the policy tables cannot be written: {0}")]
    Failed(String),
    /// They are still being made.
    #[error("the policy tables were not written within {0:?}")]
    Late(Duration),
    /// The reconciler ended meanwhile.
    #[error("the policy reconciler was stopped")]
    Stopped,
}

impl Handle {
    /// Returns when all that the pod's policies say stands in the kernel and its sets are said, so that rows which
    /// are written for it afterwards have them. Waits up to `wait` for the source to be synced and, where that matters,
    /// to know the pod.
    ///
    /// # Errors
    /// They are not, and the pod must not be let in.
    pub async fn prepare(&self, pod: LocalPod, wait: Duration) -> Result<(), Unprepared> {
        self.told_of(&pod, wait).await?;
        let bound = wait.max(PATIENCE);
        match tokio::time::timeout(bound, self.desk.ask(pod)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Unprepared::Stopped),
            Err(_) => Err(match &self.status.borrow().error {
                Some(error) => Unprepared::Failed(error.clone()),
                None => Unprepared::Late(bound),
            }),
        }
    }

    /// Waits until a snapshot says what planning needs to know of the pod.
    async fn told_of(&self, pod: &LocalPod, wait: Duration) -> Result<(), Unprepared> {
        let mut snapshots = self.snapshots.clone();
        let tells = |snapshot: &Arc<Snapshot>| snapshot.synced && tells(&snapshot.model, pod);
        if let Ok(Ok(_)) = tokio::time::timeout(wait, snapshots.wait_for(tells)).await {
            return Ok(());
        }
        let synced = self.snapshots.borrow().synced;
        Err(match &pod.pod {
            Some(name) if synced => Unprepared::Unknown(name.clone(), wait),
            _ => Unprepared::Unsynced(wait),
        })
    }

    /// Asks for an audit now.
    pub fn audit(&self) {
        self.desk.ask_for_audit();
    }
}

/// Why the task ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step panicked; the tables are as a crash leaves them.
    #[error("a step of the policy reconciler did not end")]
    Step(#[source] tokio::task::JoinError),
}

/// What reconcilers of one node hand on to each other, if one fails.
#[derive(Debug)]
pub struct Office {
    status: watch::Sender<Arc<PolicyStatus>>,
    names: Arc<Names>,
    desk: Arc<Desk>,
}

impl Office {
    /// With the handle that others have.
    #[must_use]
    pub fn open(snapshots: watch::Receiver<Arc<Snapshot>>) -> (Arc<Self>, Handle) {
        let office = Self { status: watch::Sender::default(), names: Arc::default(), desk: Arc::default() };
        let handle = Handle {
            status: office.status.subscribe(),
            names: Arc::clone(&office.names),
            snapshots,
            desk: Arc::clone(&office.desk),
        };
        (Arc::new(office), handle)
    }
}

/// The reconciler, before it runs.
#[derive(Debug)]
pub struct Reconciler<M> {
    config: Config,
    inputs: Inputs,
    office: Arc<Office>,
    worker: Worker<M>,
}

impl<M: PolicyMaps> Reconciler<M> {
    /// For the node of this name, over these maps, counting in these metrics.
    #[must_use]
    pub fn new(
        config: Config,
        node: String,
        inputs: Inputs,
        office: Arc<Office>,
        (maps, metrics): (M, PolicyMetrics),
    ) -> Self {
        let worker = Worker::new(config, node, &office, (maps, metrics));
        Self { config, inputs, office, worker }
    }

    /// Runs until cancelled, or until nothing new can come any more. What the kernel holds stays.
    ///
    /// # Errors
    /// If a step panics.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<(), Error> {
        let mut audit =
            tokio::time::interval_at(tokio::time::Instant::now() + self.config.audit, self.config.audit);
        audit.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.inputs.snapshots.mark_changed();
        loop {
            let wake = self.worker.wake_at();
            let work = tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                changed = self.inputs.snapshots.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.goal()
                }
                changed = self.inputs.pods.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    self.goal()
                }
                Ok(()) = self.inputs.addresses.changed() => self.goal(),
                () = self.office.desk.asked() => self.goal(),
                () = sleep_until(wake) => Some(Work::Due),
                () = self.office.desk.audit_asked() => Some(Work::Audit),
                _ = audit.tick() => Some(Work::Audit),
            };
            let Some(work) = work else { continue };
            let mut worker = self.worker;
            let step = tokio::task::spawn_blocking(move || {
                worker.step(work);
                worker
            });
            self.worker = step.await.map_err(Error::Step)?;
        }
        // Whoever asks now would wait for nothing.
        self.office.desk.close();
        Ok(())
    }

    /// The newest of everything; none before the source has spoken: who asks goes on waiting.
    fn goal(&mut self) -> Option<Work> {
        let snapshot = Arc::clone(&self.inputs.snapshots.borrow_and_update());
        let pods = Arc::clone(&self.inputs.pods.borrow_and_update());
        let addresses = Arc::clone(&self.inputs.addresses.borrow_and_update());
        snapshot.synced.then(|| Work::Goal(Goal { snapshot, pods, addresses }, self.office.desk.take()))
    }
}

/// What planning needs to know of an entry of the ledger.
#[must_use]
pub fn local_pod(entry: &ledger::Entry) -> LocalPod {
    LocalPod {
        endpoint: entry.endpoint,
        pod: entry.pod.clone(),
        uid: entry.pod_uid.as_deref().map(Into::into),
        addresses: entry.addresses.clone(),
    }
}

/// False where the model has another pod of this name than this one, or none, and policies of its namespace ask for
/// labels.
fn tells(model: &Model, pod: &LocalPod) -> bool {
    let Some(name) = &pod.pod else { return true };
    if let Some(object) = model.pods.get(name) {
        // One source or the other may not give a pod's UID.
        return object.uid.is_empty() || pod.uid.as_ref().is_none_or(|uid| **uid == *object.uid);
    }
    let first = ObjectName { namespace: Arc::clone(&name.namespace), name: "".into() };
    let own = model.policies.range(first..).take_while(|(other, _)| other.namespace == name.namespace);
    own.map(|(_, policy)| policy).all(|policy| {
        policy.spec.pod_selector.as_ref().is_none_or(|selector| {
            let (labels, expressions) = (&selector.match_labels, &selector.match_expressions);
            labels.as_ref().is_none_or(BTreeMap::is_empty) && expressions.as_ref().is_none_or(Vec::is_empty)
        })
    })
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
