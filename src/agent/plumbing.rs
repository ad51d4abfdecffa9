//! The CNI server's [`Plumbing`] over the real kernel, datapath, state folder and store.

use super::ready::Readiness;
use crate::cni::server::{Fault, Host, HostEnd, Interface, Link, Lookup, Plumbing, Row, Status};
use crate::cni::types::Attachment;
use crate::datapath::{self, Datapath};
use crate::directory::status::{self, PodStatus};
use crate::ipam::ledger::Entry;
use crate::model::ObjectName;
use crate::net::netlink::Netlink;
use crate::net::pod::{self, PodInterface, PodLink};
use crate::reconcile::policy;
use crate::store::Store;
use netd_bpf::pod::Pod;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::task::JoinError;

/// How far the source may lag behind what a runtime knows: its debounce, and as much again.
const SOURCE_LAG: Duration = Duration::from_millis(50);

/// What the agent's CNI server works on.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The node's own network namespace.
    pub(super) netlink: Netlink,
    /// The loaded programs.
    pub(super) datapath: Arc<Datapath>,
    /// The model.
    pub(super) store: Arc<Store>,
    /// The state folder, whose `status/` the pods' addresses go to.
    pub(super) state: PathBuf,
    /// Name of this node.
    pub(super) node: String,
    /// MTU of pods' interfaces, as the uplinks allow now.
    pub(super) mtu: Arc<AtomicU32>,
    /// What ADD waits for.
    pub(super) readiness: Readiness,
    /// Who puts policies in force.
    pub(super) policy: policy::Handle,
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Fault {
    Fault::Failed(Box::new(error))
}

/// The network's errors by what CNI makes of them.
fn link_fault(error: pod::Error) -> Fault {
    let boxed = |error: pod::Error| Box::new(error);
    match error {
        error if error.is_netns_gone() => Fault::NoNetns(boxed(error)),
        pod::Error::NetNs(_) | pod::Error::OwnNamespace { .. } => Fault::NoNetns(boxed(error)),
        pod::Error::PodNameTaken { .. } => Fault::NameTaken(boxed(error)),
        pod::Error::Differs { .. } | pod::Error::Missing { .. } => Fault::Differs(boxed(error)),
        error => Fault::Failed(boxed(error)),
    }
}

impl Kernel {
    /// Runs something that makes blocking system calls.
    async fn blocking<T, E>(
        &self,
        call: impl FnOnce(&Datapath) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Fault>
    where
        T: Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
    {
        let datapath = Arc::clone(&self.datapath);
        let done: Result<Result<T, E>, JoinError> =
            tokio::task::spawn_blocking(move || call(&datapath)).await;
        done.map_err(failed)?.map_err(failed)
    }

    fn pod_interface(interface: &Interface, mtu: u32) -> PodInterface {
        PodInterface {
            netns: interface.netns.clone(),
            pod_name: interface.pod_name.clone(),
            host_name: interface.host_name.clone(),
            addresses: interface.addresses.clone(),
            mtu,
            alias: interface.alias.clone(),
        }
    }
}

const fn link(link: PodLink, mtu: u32) -> Link {
    Link { host_ifindex: link.host_ifindex, host_mac: link.host_mac, pod_mac: link.pod_mac, mtu }
}

/// The rows of an attachment.
fn pod_row(entry: &Entry, link: &Link) -> Pod {
    let of_family = |v4: bool| {
        let found = entry.addresses.iter().find(|address| address.is_ipv4() == v4);
        found.map_or(netd_bpf::Addr::UNSPECIFIED, |address| (*address).into())
    };
    Pod {
        v4: of_family(true),
        v6: of_family(false),
        ifindex: link.host_ifindex,
        endpoint: entry.endpoint,
        pod_mac: link.pod_mac,
        host_mac: link.host_mac,
        ..Pod::default()
    }
}

impl Plumbing for Kernel {
    async fn lookup(&self, pod: &ObjectName, wait: Duration) -> Lookup {
        let mut snapshots = self.store.subscribe();
        match tokio::time::timeout(wait, snapshots.wait_for(|snapshot| snapshot.synced)).await {
            Ok(Ok(_)) => {}
            _ => return Lookup::Unsynced,
        }
        if snapshots.borrow().model.pods.is_empty() {
            // A source that keeps no Pods, as on a bare machine, will not bring this one.
            return Lookup::Unknown;
        }
        // What was written just before the ADD must count: its annotations may ask for an address.
        let known = snapshots.wait_for(|snapshot| snapshot.model.pods.contains_key(pod));
        let found = tokio::time::timeout(SOURCE_LAG, known).await;
        let snapshot = match found {
            Ok(Ok(snapshot)) => Arc::clone(&snapshot),
            _ => return Lookup::Unknown,
        };
        snapshot.model.pods.get(pod).cloned().map_or(Lookup::Unknown, Lookup::Known)
    }

    fn unready(&self) -> Option<String> {
        let pending = self.readiness.pending();
        let reasons: Vec<String> = pending.iter().map(|(what, why)| format!("{what}: {why}")).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    fn capacity(&self) -> usize {
        self.datapath.config().pods as usize
    }

    fn host_name(&self, attachment: &Attachment) -> String {
        pod::host_name(&attachment.container_id, &attachment.ifname)
    }

    async fn prepare(&self, entry: &Entry, wait: Duration) -> Result<(), Fault> {
        let prepared = self.policy.prepare(policy::local_pod(entry), wait).await;
        prepared.map_err(|error| Fault::NotYet(Box::new(error)))
    }

    async fn create(&self, interface: &Interface) -> Result<Link, Fault> {
        let mtu = self.mtu.load(Ordering::Relaxed);
        let made = pod::create(&self.netlink, &Self::pod_interface(interface, mtu)).await;
        made.map(|made| link(made, mtu)).map_err(link_fault)
    }

    async fn delete(&self, host_name: &str) -> Result<bool, Fault> {
        pod::delete(&self.netlink, host_name).await.map_err(link_fault)
    }

    async fn check(&self, interface: &Interface) -> Result<Link, Fault> {
        // The uplinks' MTU may have changed since: what the host's end has is what the pod must have.
        let end = self.netlink.link_by_name(&interface.host_name).await.map_err(failed)?;
        let mtu = end.map_or_else(|| self.mtu.load(Ordering::Relaxed), |end| end.mtu);
        let found = pod::check(&self.netlink, &Self::pod_interface(interface, mtu)).await;
        found.map(|found| link(found, mtu)).map_err(link_fault)
    }

    async fn links(&self) -> Result<Vec<HostEnd>, Fault> {
        let ends = pod::list(&self.netlink).await.map_err(link_fault)?;
        let ends = ends.into_iter().map(|end| HostEnd {
            ifindex: end.ifindex,
            link: end.pod_mac.map(|pod_mac| Link {
                host_ifindex: end.ifindex,
                host_mac: end.host_mac,
                pod_mac,
                mtu: end.mtu,
            }),
            name: end.name,
            alias: end.alias,
            addresses: end.addresses,
        });
        Ok(ends.collect())
    }

    async fn attach(&self, entry: &Entry, _: &Link) -> Result<(), Fault> {
        let name = entry.host_name.clone();
        self.blocking(move |datapath| datapath.attach_pod(&name)).await
    }

    async fn admit(&self, entry: &Entry, link: &Link) -> Result<(), Fault> {
        let row = pod_row(entry, link);
        self.blocking(move |datapath| datapath.upsert_pod(&row)).await
    }

    async fn start(&self, interface: &Interface) -> Result<(), Fault> {
        let mtu = self.mtu.load(Ordering::Relaxed);
        pod::start(&self.netlink, &Self::pod_interface(interface, mtu)).await.map_err(link_fault)
    }

    async fn expel(&self, host: Host<'_>, addresses: &[IpAddr]) -> Result<(), Fault> {
        let ifindex = match host {
            Host::Index(ifindex) => Some(ifindex),
            Host::Name(name) => self.netlink.link_by_name(name).await.map_err(failed)?.map(|link| link.index),
        };
        let addresses: Vec<_> = addresses.iter().map(|address| netd_bpf::Addr::from(*address)).collect();
        self.blocking(move |datapath| {
            for pod in datapath.pods()? {
                let own = Some(pod.ifindex) == ifindex;
                if own || addresses.iter().any(|addr| *addr == pod.v4 || *addr == pod.v6) {
                    datapath.remove_pod(&pod)?;
                }
            }
            Ok::<_, datapath::Error>(())
        })
        .await
    }

    async fn rows(&self) -> Result<Vec<Row>, Fault> {
        let pods = self.blocking(|datapath| datapath.pods()).await?;
        Ok(pods.iter().map(Row::from).collect())
    }

    async fn write_status(&self, entry: &Entry) -> Result<(), Fault> {
        let Some(pod) = &entry.pod else { return Ok(()) };
        let report = PodStatus::new(pod, &self.node, &entry.attachment.container_id, entry.addresses.clone());
        let state = self.state.clone();
        self.blocking(move |_| status::write(&state, &report)).await
    }

    async fn remove_status(&self, status: &Status) -> Result<(), Fault> {
        let (state, status) = (self.state.clone(), status.clone());
        let remove = move |_: &Datapath| status::remove(&state, &status.pod, &status.container_id);
        self.blocking(remove).await.map(drop)
    }

    async fn statuses(&self) -> Result<Vec<Status>, Fault> {
        let (state, node) = (self.state.clone(), self.node.clone());
        let (reports, _) = self.blocking(move |_| status::read_all(&state)).await?;
        let own = reports.into_iter().filter(|report| report.node == node);
        Ok(own.map(|report| Status { pod: report.pod(), container_id: report.container_id }).collect())
    }
}
