//! This node's place in the network: forwarding, the uplinks' program, routes to the other nodes.
//!
//! One task, the only one that writes routes and attaches uplinks, and the one that knows the node's own addresses,
//! which it reads again whenever the kernel tells that one came or went. It acts on a new snapshot, on a new
//! configuration, and every [`AUDIT`] to see uplinks that came or went and to mend what others broke. Each
//! round works from what the kernel says, so that aborting it anywhere is safe.

use crate::config::Config;
use crate::datapath::Datapath;
use crate::net::host::{self, Uplink};
use crate::net::netlink::Netlink;
use crate::net::plan;
use crate::net::routes::{Owner, Report, RouteWriter};
use crate::store::Snapshot;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Time between two looks at the kernel when nothing else happens.
pub const AUDIT: Duration = Duration::from_secs(30);

/// Time to the next round after one that failed.
const RETRY: Duration = Duration::from_secs(1);

/// State after the last round.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// The routes of a synced snapshot were written at least once.
    pub routed: bool,
    /// Uplinks by name, with how the program is attached, or why it is not.
    pub uplinks: BTreeMap<String, String>,
    /// Routes to other nodes' pods, as the kernel has them.
    pub routes: Vec<String>,
    /// podCIDRs of other nodes without a route of ours, and why.
    pub unreachable: Vec<String>,
    /// Uplinks without a program, wanted routes that are another's, and those the kernel refused.
    pub problems: Vec<String>,
    /// Why the last round failed, if it did.
    pub error: Option<String>,
}

impl NodeStatus {
    /// True if everything wanted is there.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.routed && self.error.is_none() && self.problems.is_empty()
    }
}

/// Why a round failed; the next one tries again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The uplinks cannot be found or set up.
    #[error("the node's uplinks")]
    Host(#[from] host::Error),
    /// A default route that flaps must not take the routes to the other nodes along.
    #[error("no default route leads off the node any more; uplinks and routes stay as they are")]
    NoUplinks,
    /// The routes cannot be read or written.
    #[error("the routes to other nodes")]
    Routes(#[from] crate::net::netlink::Error),
}

/// The task's state.
#[derive(Debug)]
pub struct Reconciler {
    node: String,
    netlink: Netlink,
    datapath: Arc<Datapath>,
    writer: RouteWriter,
    mtu: Arc<AtomicU32>,
    addresses: watch::Sender<Arc<Vec<IpAddr>>>,
    attached: BTreeSet<(u32, String)>,
    /// The kernel was asked which filters an earlier agent left on uplinks.
    asked: bool,
    told: BTreeSet<String>,
    status: watch::Sender<Arc<NodeStatus>>,
}

/// Waits for a change, for ever where none is told; false: none will be any more.
async fn changed(told: &mut Option<watch::Receiver<()>>) -> bool {
    match told {
        Some(told) => told.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}

impl Reconciler {
    /// For the node of that name; the state is sent to `status`, its own addresses to `addresses`, the MTU of pods kept
    /// in `mtu`.
    #[must_use]
    pub fn new(
        node: String,
        netlink: Netlink,
        datapath: Arc<Datapath>,
        mtu: Arc<AtomicU32>,
        addresses: watch::Sender<Arc<Vec<IpAddr>>>,
        status: watch::Sender<Arc<NodeStatus>>,
    ) -> Self {
        let writer = RouteWriter::new(netlink.clone(), &[Owner::Nodes]);
        Self {
            node,
            netlink,
            datapath,
            writer,
            attached: BTreeSet::new(),
            asked: false,
            mtu,
            addresses,
            told: BTreeSet::new(),
            status,
        }
    }

    /// Runs until cancelled. What is attached and routed stays.
    pub async fn run(
        mut self,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        mut settings: watch::Receiver<Arc<Config>>,
        cancel: CancellationToken,
    ) {
        let mut audit = tokio::time::interval(AUDIT);
        audit.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut moved = match self.netlink.watch_addresses().await {
            Ok(moved) => Some(moved),
            Err(error) => {
                let error = crate::telemetry::chain(&error);
                tracing::warn!(target: "netd::node", "{error}; the node's addresses are read every {AUDIT:?}");
                None
            }
        };
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                there = changed(&mut moved) => {
                    if !there {
                        moved = None;
                    }
                    if let Err(error) = self.read_addresses().await {
                        let error = crate::telemetry::chain(&error);
                        tracing::warn!(target: "netd::node", "the node's addresses: {error}");
                        audit.reset_after(RETRY);
                    }
                    continue;
                }
                changed = snapshots.changed() => if changed.is_err() { return },
                changed = settings.changed() => if changed.is_err() { return },
                _ = audit.tick() => {}
            }
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            let config = Arc::clone(&settings.borrow_and_update());
            let mut status = NodeStatus { routed: self.status.borrow().routed, ..NodeStatus::default() };
            match self.round(&snapshot, &config, &mut status).await {
                Ok(()) => status.routed |= snapshot.synced,
                Err(error) => {
                    let text = crate::telemetry::chain(&error);
                    if self.status.borrow().error.as_ref() != Some(&text) {
                        tracing::warn!(target: "netd::node", "{text}; tried again every {RETRY:?}");
                    }
                    status.error = Some(text);
                    audit.reset_after(RETRY);
                }
            }
            self.status.send_replace(Arc::new(status));
        }
    }

    async fn read_addresses(&self) -> Result<(), crate::net::netlink::Error> {
        let addresses = host::addresses(&self.netlink).await?;
        self.addresses.send_if_modified(|known| {
            let changed = **known != addresses;
            if changed {
                *known = Arc::new(addresses);
            }
            changed
        });
        Ok(())
    }

    async fn round(
        &mut self,
        snapshot: &Snapshot,
        config: &Config,
        status: &mut NodeStatus,
    ) -> Result<(), Error> {
        self.read_addresses().await?;
        let uplinks = host::uplinks(&self.netlink, &config.net).await?;
        for change in host::enable_forwarding(&self.netlink, &uplinks).await? {
            tracing::info!(target: "netd::node", "{change}");
        }
        if uplinks.is_empty() && !self.attached.is_empty() && config.net.uplinks.is_empty() {
            return Err(Error::NoUplinks);
        }
        if !uplinks.is_empty() {
            self.mtu.store(host::pod_mtu(&config.net, &uplinks), Ordering::Relaxed);
        }
        self.attach(&uplinks, status).await;
        // Before the source has spoken nothing is known of other nodes, and nothing of ours is removed.
        if !snapshot.synced {
            return Ok(());
        }
        let plan = if config.net.node_routes {
            plan::node_routes(
                &snapshot.model,
                &self.node,
                &host::link_addresses(&uplinks),
                &config.ipam.pod_cidrs,
            )
        } else {
            plan::NodeRoutes::default()
        };
        let faults = plan.unreachable.iter().filter(|one| one.reason.is_fault()).map(ToString::to_string);
        let mut faults: BTreeSet<String> = faults.collect();
        status.unreachable = plan.unreachable.iter().map(ToString::to_string).collect();
        status.routes = plan.routes.iter().map(ToString::to_string).collect();
        self.writer.state(Owner::Nodes, plan.routes);
        let applied = self.writer.apply().await;
        if let Ok(report) = &applied {
            faults.extend(report.conflicts.iter().map(ToString::to_string));
        }
        self.tell_faults(faults);
        let report = applied?;
        tell(&report);
        // Beside those of the uplinks.
        status.problems.extend(report.conflicts.iter().map(ToString::to_string));
        status.problems.extend(
            report
                .failed
                .iter()
                .map(|(prefix, error)| format!("{prefix}: {}", crate::telemetry::chain(error))),
        );
        Ok(())
    }

    /// Attaches the uplinks' program, lets go of what is an uplink no longer.
    async fn attach(&mut self, uplinks: &[Uplink], status: &mut NodeStatus) {
        // The program reads Ethernet frames. What comes in without, the node's stack brings to the pods.
        let (uplinks, others): (Vec<&Uplink>, Vec<&Uplink>) =
            uplinks.iter().partition(|uplink| uplink.ethernet);
        for uplink in others {
            status.uplinks.insert(uplink.name.clone(), "no Ethernet: by the node's stack".to_owned());
        }
        let wanted: BTreeSet<(u32, String)> =
            uplinks.iter().map(|uplink| (uplink.ifindex, uplink.name.clone())).collect();
        for (ifindex, name) in &wanted {
            // Each time, for what others took away: it is one system call where it stands already.
            let (datapath, target) = (Arc::clone(&self.datapath), name.clone());
            let ifindex = *ifindex;
            let done = tokio::task::spawn_blocking(move || datapath.attach_uplink(ifindex, &target)).await;
            let how = match done {
                Ok(Ok(hook)) => {
                    if self.attached.insert((ifindex, name.clone())) {
                        tracing::info!(target: "netd::node", "uplink {name}: attached by {hook}");
                    }
                    hook.to_string()
                }
                Ok(Err(error)) => {
                    let text = crate::telemetry::chain(&error);
                    status.problems.push(text.clone());
                    text
                }
                Err(error) => {
                    status.problems.push(error.to_string());
                    continue;
                }
            };
            status.uplinks.insert(name.clone(), how);
        }
        let mut known: BTreeSet<(u32, String)> = self.datapath.pinned_uplinks().into_iter().collect();
        known.extend(self.attached.iter().cloned());
        if !self.asked {
            let datapath = Arc::clone(&self.datapath);
            match tokio::task::spawn_blocking(move || datapath.filtered_uplinks()).await {
                Ok(Ok(filtered)) => {
                    known.extend(filtered);
                    self.asked = true;
                }
                Ok(Err(error)) => status.problems.push(crate::telemetry::chain(&error)),
                Err(error) => status.problems.push(error.to_string()),
            }
        }
        let gone: BTreeSet<(u32, String)> = known.difference(&wanted).cloned().collect();
        for (ifindex, name) in gone {
            let (datapath, doomed) = (Arc::clone(&self.datapath), name.clone());
            let done = tokio::task::spawn_blocking(move || datapath.detach_uplink(ifindex, &doomed)).await;
            tracing::info!(target: "netd::node", "{name} (index {ifindex}) is an uplink no longer");
            if let Ok(Err(error)) = done {
                tracing::warn!(target: "netd::node", "{}", crate::telemetry::chain(&error));
            }
            self.attached.remove(&(ifindex, name));
        }
    }

    /// Logs each fault in the Nodes, and each route that gives way to another's, once, and again when it
    /// comes back.
    fn tell_faults(&mut self, faults: BTreeSet<String>) {
        for fault in faults.difference(&self.told) {
            tracing::warn!(target: "netd::node", "not routed: {fault}");
        }
        self.told = faults;
    }
}

fn tell(report: &Report) {
    for route in &report.added {
        tracing::info!(target: "netd::node", "route {route}: added");
    }
    for route in &report.replaced {
        tracing::info!(target: "netd::node", "route {route}: next hop changed");
    }
    for prefix in &report.removed {
        tracing::info!(target: "netd::node", "route {prefix}: removed");
    }
    for (prefix, error) in &report.failed {
        tracing::warn!(target: "netd::node", "route {prefix}: {}", crate::telemetry::chain(error));
    }
}
