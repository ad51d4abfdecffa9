//! What the tasks share, and what of it is told as the agent's status.

use super::drops::{Drops, Names};
use super::plumbing::Kernel;
use super::ready::Readiness;
use super::tasks::{self, Tasks};
use crate::cni::server::Server;
use crate::datapath::Datapath;
use crate::reconcile::node::NodeStatus;
use crate::reconcile::services::Handle;
use crate::store::Store;
use crate::telemetry::chain;
use arc_swap::ArcSwapOption;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;
use tokio::sync::watch;

/// Version of the status's shape.
const VERSION: u32 = 1;

/// Shared by all tasks; each part is written by one of them.
#[derive(Debug)]
pub(super) struct State {
    pub(super) node: String,
    pub(super) started: Instant,
    pub(super) mtu: Arc<AtomicU32>,
    pub(super) datapath: Arc<Datapath>,
    pub(super) store: Arc<Store>,
    pub(super) cni: Arc<Server<Kernel>>,
    pub(super) services: ArcSwapOption<Handle>,
    pub(super) node_status: watch::Sender<Arc<NodeStatus>>,
    pub(super) tasks: Tasks,
    pub(super) readiness: Readiness,
    pub(super) drops: Drops,
    pub(super) announced: AtomicBool,
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

    /// Body of `/v1/status`: `ok` is false if anything is not as it should be.
    pub(super) fn status(&self) -> Value {
        let pending = self.readiness.pending();
        let tasks = self.tasks.states();
        let report = self.store.reports().borrow().clone();
        let snapshot = self.store.current();
        let services = self.services.load().as_ref().map(|handle| handle.status.borrow().clone());
        let node = self.node_status.borrow().clone();
        let paths = match self.datapath.path_counts() {
            Ok(paths) => {
                paths.iter().map(|(name, count)| ((*name).to_owned(), json!(count.packets))).collect()
            }
            Err(error) => json!({ "error": chain(&error) }),
        };
        let ranges: Vec<Value> = self
            .cni
            .usage()
            .iter()
            .map(|usage| {
                json!({
                    "range": usage.range,
                    "draining": usage.draining,
                    "size": usage.size.to_string(),
                    "used": usage.used,
                    "cooling": usage.cooling,
                })
            })
            .collect();
        let well = pending.is_empty()
            && tasks.values().all(tasks::State::is_well)
            && report.errors().next().is_none()
            && services.as_ref().is_some_and(|services| services.is_well())
            && node.is_well();
        json!({
            "version": VERSION,
            "ok": well,
            "netd": env!("CARGO_PKG_VERSION"),
            "node": self.node,
            "pid": std::process::id(),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "pending": pending,
            "tasks": tasks,
            "source": { "generation": snapshot.generation, "synced": snapshot.synced, "report": *report },
            "services": services,
            "network": { "mtu": self.mtu.load(Ordering::Relaxed), "node": *node },
            "addresses": { "pods": self.cni.state().entries().count(), "ranges": ranges },
            "datapath": {
                "schema": netd_bpf::SCHEMA,
                "packets": paths,
            },
        })
    }
}

impl Names for State {
    fn pod(&self, endpoint: u32) -> Option<String> {
        let state = self.cni.state();
        let entry = state.entries().find(|entry| entry.endpoint == endpoint)?;
        Some(match &entry.pod {
            Some(pod) => pod.to_string(),
            None => entry.attachment.container_id.clone(),
        })
    }

    fn service(&self, service: u32) -> Option<String> {
        let handle = self.services.load();
        Some(handle.as_ref()?.names.service(service)?.port.to_string())
    }
}
