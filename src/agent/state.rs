//! What the tasks share.

use super::drops::{Dropped, Drops, Names};
use super::monitor::{Monitor, drop_event, flow_event};
use super::plumbing::Kernel;
use super::policies;
use super::questions::Book;
use super::ready::Readiness;
use super::reclaim::Reclaimed;
use super::requests::Requests;
use super::tasks::Tasks;
use crate::answer::event::Opened;
use crate::answer::policy::RuleName;
use crate::cni::server::Server;
use crate::datapath::Datapath;
use crate::reconcile::node::NodeStatus;
use crate::reconcile::policy;
use crate::reconcile::services::Handle;
use crate::store::Store;
use arc_swap::ArcSwapOption;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::watch;

/// Generations of model, ledger and Service tables.
type Edition = (u64, u64, Option<u64>);

/// Shared by all tasks; each part is written by one of them.
#[derive(Debug)]
pub(super) struct State {
    pub(super) node: String,
    /// The watched folder.
    pub(super) source: PathBuf,
    pub(super) started: Instant,
    pub(super) mtu: Arc<AtomicU32>,
    pub(super) datapath: Arc<Datapath>,
    pub(super) store: Arc<Store>,
    pub(super) cni: Arc<Server<Kernel>>,
    pub(super) services: ArcSwapOption<Handle>,
    pub(super) policy: policy::Handle,
    pub(super) node_status: watch::Sender<Arc<NodeStatus>>,
    /// The node's own.
    pub(super) addresses: watch::Sender<Arc<Vec<IpAddr>>>,
    pub(super) tasks: Tasks,
    pub(super) readiness: Readiness,
    pub(super) drops: Drops,
    pub(super) monitor: Monitor,
    pub(super) requests: Arc<Requests>,
    /// The newest [`Book`], and what it is of.
    pub(super) book: Mutex<Option<(Edition, Arc<Book>)>>,
    pub(super) reclaimed: Reclaimed,
    pub(super) announced: AtomicBool,
    /// New flows that are told in a second, at most; 0: none.
    pub(super) flow_audit: AtomicU32,
}

impl State {
    /// True once readiness was announced.
    pub(super) fn announced(&self) -> bool {
        self.announced.load(Ordering::Relaxed)
    }

    /// Says once that the agent is ready.
    pub(super) fn announce(&self) {
        if !self.announced.swap(true, Ordering::Relaxed) {
            tracing::info!(target: "netd::agent", "node {}: ready after {:?}", self.node, self.started.elapsed());
        }
    }

    /// Names of pods by address. Put together anew when the model, the ledger or the Services changed.
    pub(super) fn book(&self) -> Arc<Book> {
        let services = self.services.load().as_ref().and_then(|handle| handle.status.borrow().generation);
        let edition: Edition = (self.store.current().generation, self.cni.state().generation(), services);
        let mut kept = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_none_or(|(of, _)| *of != edition) {
            *kept = Some((edition, Arc::new(Book::of(self))));
        }
        kept.as_ref().map(|(_, book)| Arc::clone(book)).unwrap_or_default()
    }
}

impl Names for State {
    fn pod(&self, endpoint: u32) -> Option<String> {
        let state = self.cni.state();
        state.entries().find(|entry| entry.endpoint == endpoint).map(|entry| entry.called())
    }

    fn service(&self, service: u32) -> Option<String> {
        let handle = self.services.load();
        Some(handle.as_ref()?.names.service(service)?.port.service.to_string())
    }

    fn has(&self, endpoint: u32, address: IpAddr) -> bool {
        let state = self.cni.state();
        state.holder(address).is_some_and(|entry| entry.endpoint == endpoint)
    }

    fn called(&self, address: IpAddr) -> Option<String> {
        self.book().called(address)
    }

    fn backend(&self, backend: u32) -> Option<(SocketAddr, Option<String>)> {
        let label = self.services.load().as_ref()?.names.backend(backend)?;
        let pod = label.pod.map(|pod| pod.to_string());
        Some((label.address, pod.or_else(|| self.called(label.address.ip()))))
    }

    fn policies(&self, set: u64) -> Vec<String> {
        policies::of_set(self, set)
    }

    fn rule(&self, number: u32) -> Option<RuleName> {
        policies::rule(self, number)
    }

    fn opened(&self, opened: Opened) {
        if self.monitor.is_watched() {
            self.monitor.tell(flow_event(opened));
        }
    }

    fn dropped(&self, dropped: &Dropped) {
        if self.monitor.is_watched() {
            self.monitor.tell(drop_event(dropped, &self.book()));
        }
    }
}
