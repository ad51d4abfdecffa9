//! The agent's side of CNI: attaches containers, detaches them, and knows after a crash what it was doing.
//!
//! An attachment is made in steps, each of which can be undone: the row in the ledger (fsynced), its policies, the
//! link, the programs, the map rows, the link's start, the status file. The row comes first and goes last, so that whatever exists
//! is found from the ledger: a crash between any two steps leaves a row that [`recover`](Server::recover)
//! completes or takes back.
//!
//! One lock per attachment; recovery has the whole server for itself. Each request runs in a task of its
//! own (tracked, waited for by [`Server::drain`]): a runtime that hangs up does not stop it between two
//! steps.

mod add;
mod api;
mod locks;
mod plumbing;
mod recover;
#[cfg(test)]
mod tests;

use super::types::{Add, AttachResult, Check, Code, Del, Error, Gc};
use crate::ipam::ledger::{self, Clock, Entry, Ledger, Ranges, State, Writer};
use crate::ipam::pool::Usage;
use crate::telemetry::chain;
use locks::Locks;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{RwLock, watch};
use tokio_util::task::TaskTracker;

pub use api::{Answered, Observer, router};
pub use plumbing::{
    Fault, Host, HostEnd, Interface, Link, Lookup, Plumbing, Row, Status, alias, parse_alias,
};
pub use recover::Recovery;

/// How long another owner of the ledger (a plugin that works without an agent) may keep the agent waiting.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);

/// What the server needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// Path of the ledger.
    pub ledger: PathBuf,
    /// Folder of the status files, for plugins that work without an agent.
    pub status_dir: Option<PathBuf>,
    /// Rest of a released address.
    pub cool_down: Duration,
    /// How long an ADD waits for the source of state.
    pub sync_wait: Duration,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The ledger cannot be opened or written.
    #[error("cannot open the address ledger")]
    Ledger(#[source] ledger::Error),
    /// The kernel cannot be read.
    #[error("cannot read {what} to compare with the ledger")]
    Read {
        /// What.
        what: &'static str,
        /// Why not.
        #[source]
        source: Fault,
    },
}

/// The CNI verbs, over some [`Plumbing`].
#[derive(Debug)]
pub struct Server<P> {
    plumbing: P,
    ledger: Writer,
    locks: Locks,
    /// Requests share it, recovery has it alone.
    gate: RwLock<()>,
    tasks: TaskTracker,
    sync_wait: watch::Sender<Duration>,
}

impl<P: Plumbing> Server<P> {
    /// Opens the ledger and reconciles it with the kernel, before anything is served. Give it ranges
    /// ([`Self::set_ranges`]) next; until then ADD is refused with the retryable code.
    pub async fn open(plumbing: P, options: Options) -> Result<(Arc<Self>, Recovery), OpenError> {
        let Options { ledger, status_dir, cool_down, sync_wait } = options;
        let opened =
            tokio::task::spawn_blocking(move || Ledger::open(&ledger, cool_down, LOCK_PATIENCE)).await;
        let opened = opened.unwrap_or(Err(ledger::Error::Closed)).map_err(OpenError::Ledger)?;
        let writer = Writer::start(opened.ledger).map_err(OpenError::Ledger)?;
        writer.commit(move |state, _| state.set_status_dir(status_dir)).await.map_err(OpenError::Ledger)?;
        let server = Arc::new(Self {
            plumbing,
            ledger: writer,
            locks: Locks::default(),
            gate: RwLock::new(()),
            tasks: TaskTracker::new(),
            sync_wait: watch::Sender::new(sync_wait),
        });
        let recovery = server.reconcile(opened.fresh).await?;
        Ok((server, recovery))
    }

    /// Changes what addresses are given from. Takes effect with the next ADD.
    pub async fn set_ranges(&self, ranges: Ranges, cool_down: Duration) -> Result<(), ledger::Error> {
        self.ledger.commit(move |state, _| state.configure(&ranges, cool_down)).await
    }

    /// Changes how long an ADD waits for the source of state. Takes effect with the next ADD.
    pub fn set_sync_wait(&self, sync_wait: Duration) {
        self.sync_wait.send_replace(sync_wait);
    }

    /// All attachments and addresses, as they are on disk.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.ledger.state()
    }

    /// A receiver of the same; its first value is the present one.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<State>> {
        self.ledger.subscribe()
    }

    /// How full the ranges are.
    #[must_use]
    pub fn usage(&self) -> Vec<Usage> {
        self.ledger.state().usage(Clock::now())
    }

    /// The kernel side.
    pub const fn plumbing(&self) -> &P {
        &self.plumbing
    }

    /// Waits for the requests under way. Those that come later are still served.
    pub async fn drain(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// ADD.
    pub async fn add(self: &Arc<Self>, add: Add) -> Result<AttachResult, Error> {
        let server = Arc::clone(self);
        self.run(async move { server.attach(add).await }).await
    }

    /// DEL: success also if there is nothing to detach.
    pub async fn del(self: &Arc<Self>, del: Del) -> Result<(), Error> {
        let server = Arc::clone(self);
        self.run(async move {
            let _gate = server.gate.read().await;
            let _lock = server.locks.lock(&del.attachment).await;
            match server.ledger.state().get(&del.attachment) {
                Some(entry) => server.detach(entry).await,
                // Never added, or its row was lost: there may be a link all the same.
                None => server.unplug(&server.plumbing.host_name(&del.attachment), &[]).await,
            }
        })
        .await
    }

    /// CHECK.
    pub async fn check(self: &Arc<Self>, check: Check) -> Result<(), Error> {
        let server = Arc::clone(self);
        self.run(async move {
            let _gate = server.gate.read().await;
            let _lock = server.locks.lock(&check.attachment).await;
            server.compare(check).await
        })
        .await
    }

    /// GC: detaches everything of this network that is not listed. An attachment that is being worked on is
    /// no garbage.
    pub async fn gc(self: &Arc<Self>, gc: Gc) -> Result<(), Error> {
        let server = Arc::clone(self);
        self.run(async move {
            let _gate = server.gate.read().await;
            let mut failed = Vec::new();
            for entry in server.ledger.state().entries() {
                if entry.network != gc.network || gc.valid.contains(&entry.attachment) {
                    continue;
                }
                let Some(_lock) = server.locks.try_lock(&entry.attachment) else { continue };
                let Some(entry) = server.ledger.state().get(&entry.attachment).cloned() else { continue };
                tracing::info!(attachment = %entry.attachment, "detached by GC");
                if let Err(error) = server.detach(&entry).await {
                    failed.push(format!("{}: {error}", entry.attachment));
                }
            }
            if failed.is_empty() {
                return Ok(());
            }
            Err(Error::because(Code::KERNEL, "some attachments were not removed", failed.join("; ")))
        })
        .await
    }

    /// STATUS.
    pub fn status(&self) -> Result<(), Error> {
        let unavailable =
            |details: String| Error::because(Code::UNAVAILABLE, "netd cannot serve ADD", details);
        if let Some(reason) = self.plumbing.unready() {
            return Err(unavailable(reason));
        }
        self.ledger.state().probe(Clock::now()).map_err(|error| unavailable(error.to_string()))
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        // Nobody aborts these tasks: what ends one early is a panic, or the end of the runtime.
        self.tasks.spawn(work).await.unwrap_or_else(|error| {
            Err(Error::because(Code::TRY_LATER, "the agent could not finish", error.to_string()))
        })
    }

    /// Undoes all steps of an attachment, whichever were done. The row stays if the kernel refuses, so that
    /// its addresses are not given to another.
    async fn detach(&self, entry: &Entry) -> Result<(), Error> {
        let same_container = |other: &&Arc<Entry>| {
            other.attachment.container_id == entry.attachment.container_id
                && other.attachment != entry.attachment
        };
        if let Some(status) = Status::of(entry)
            && self.ledger.state().entries().find(same_container).is_none()
            && let Err(fault) = self.plumbing.remove_status(&status).await
        {
            // Recovery will find it again; the pod's end must not wait for a folder.
            tracing::warn!(pod = %status.pod, error = chain(&fault), "cannot remove the pod's status");
        }
        self.unplug(&entry.host_name, &entry.addresses).await?;
        let attachment = entry.attachment.clone();
        self.ledger
            .commit(move |state, clock| drop(state.release(&attachment, clock)))
            .await
            .map_err(|error| ledger_failed(&error))
    }

    async fn unplug(&self, host_name: &str, addresses: &[IpAddr]) -> Result<(), Error> {
        let refused = |what: &str, fault: &Fault| {
            Error::because(Code::KERNEL, format!("cannot remove {what} {host_name}"), chain(fault))
        };
        self.plumbing
            .expel(Host::Name(host_name), addresses)
            .await
            .map_err(|fault| refused("the map rows of", &fault))?;
        self.plumbing.delete(host_name).await.map_err(|fault| refused("link", &fault))?;
        Ok(())
    }

    async fn compare(&self, check: Check) -> Result<(), Error> {
        let differs = |details: String| {
            Error::because(Code::DIFFERS, format!("{} is not as it was added", check.attachment), details)
        };
        let state = self.ledger.state();
        let Some(entry) = state.get(&check.attachment) else {
            let msg = format!("{} is unknown to netd", check.attachment);
            return Err(Error::new(Code::UNKNOWN_CONTAINER, msg));
        };
        for address in &entry.addresses {
            if !check.previous.ips.iter().any(|ip| ip.address.addr() == *address) {
                return Err(differs(format!("prevResult lacks its address {address}")));
            }
        }
        let entry = Entry { netns: Some(check.netns.clone()), ..Entry::clone(entry) };
        let Some(interface) = Interface::of(&entry) else { return Err(differs("no namespace".to_owned())) };
        let link = self.plumbing.check(&interface).await.map_err(|fault| match &fault {
            Fault::Differs(_) | Fault::NoNetns(_) | Fault::NameTaken(_) => differs(chain(&fault)),
            Fault::NotYet(_) | Fault::Failed(_) => {
                Error::because(Code::KERNEL, "cannot look at the link", chain(&fault))
            }
        })?;
        let rows = self
            .plumbing
            .rows()
            .await
            .map_err(|fault| Error::because(Code::KERNEL, "cannot read the map rows", chain(&fault)))?;
        match rows.iter().find(|row| row.ifindex == link.host_ifindex) {
            Some(row) if row.endpoint == entry.endpoint && row.addresses == entry.addresses => Ok(()),
            Some(row) => Err(differs(format!(
                "its map row is of endpoint {} with {:?}, not {} with {:?}",
                row.endpoint, row.addresses, entry.endpoint, entry.addresses
            ))),
            None => Err(differs(format!("no map row for interface {}", link.host_ifindex))),
        }
    }
}

fn ledger_failed(error: &ledger::Error) -> Error {
    Error::because(Code::IO, "the address ledger was not written", chain(error))
}
