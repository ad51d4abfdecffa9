//! Kernel, maps, status folder and model, as far as the server can tell; and the hand that breaks them.

use super::super::{Fault, Host, HostEnd, Interface, Link, Lookup, Plumbing, Row, Status};
use crate::cni::types::Attachment;
use crate::ipam::ledger::Entry;
use crate::ipam::pool::ADDRESSES_ANNOTATION;
use crate::model::{ObjectName, Pod};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

const LINK: Link = Link {
    host_ifindex: 0,
    host_mac: [2, 0x6e, 0x65, 0x74, 0x64, 1],
    pod_mac: [2, 0, 0, 0, 0, 9],
    mtu: 1500,
};

/// The steps of ADD that follow the ledger.
pub(super) const STEPS: [&str; 6] = ["prepare", "create", "attach", "admit", "start", "write_status"];

/// What becomes of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It does nothing, and says so.
    Fails,
    /// It does its work, and fails afterwards.
    HappensAndFails,
    /// It does nothing and never returns.
    Hangs,
    /// It does its work and never returns.
    HappensAndHangs,
}

#[derive(Debug, Default)]
pub(super) struct Inside {
    pub(super) links: BTreeMap<String, HostEnd>,
    pub(super) attached: BTreeSet<u32>,
    pub(super) rows: BTreeMap<u32, Row>,
    pub(super) statuses: BTreeMap<ObjectName, String>,
    /// Links that have no alias yet.
    pub(super) nameless: BTreeSet<String>,
    pub(super) create_fault: Option<&'static str>,
    pub(super) unsynced: bool,
    /// Endpoints whose policies are in force.
    pub(super) prepared: BTreeSet<u32>,
    /// Links that are up.
    pub(super) started: BTreeSet<u32>,
    /// Attachments that the tables take; none: any number.
    pub(super) capacity: Option<usize>,
    annotations: BTreeMap<String, String>,
    last_index: u32,
    dooms: VecDeque<(&'static str, Fate)>,
    steps: Vec<&'static str>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct World {
    inside: Arc<Mutex<Inside>>,
    stuck: Arc<Notify>,
}

impl World {
    pub(super) fn inspect<T>(&self, look: impl FnOnce(&mut Inside) -> T) -> T {
        look(&mut self.inside.lock().unwrap())
    }

    /// The next time of this step.
    pub(super) fn doom(&self, step: &'static str, fate: Fate) {
        self.inspect(|inside| inside.dooms.push_back((step, fate)));
    }

    /// Returns when a step hangs.
    pub(super) async fn stuck(&self) {
        self.stuck.notified().await;
    }

    /// All steps so far.
    pub(super) fn steps(&self) -> Vec<&'static str> {
        self.inspect(|inside| inside.steps.clone())
    }

    pub(super) fn annotate(&self, pod: &str, addresses: &str) {
        self.inspect(|inside| inside.annotations.insert(pod.to_owned(), addresses.to_owned()));
    }

    async fn step<T>(
        &self,
        step: &'static str,
        work: impl FnOnce(&mut Inside) -> Result<T, Fault> + Send,
    ) -> Result<T, Fault> {
        // A real step takes its time, and lets others run.
        tokio::task::yield_now().await;
        let (fate, done) = self.inspect(|inside| {
            inside.steps.push(step);
            let doom = inside.dooms.iter().position(|(doomed, _)| *doomed == step);
            let fate = doom.and_then(|index| inside.dooms.remove(index)).map(|(_, fate)| fate);
            let happens = !matches!(fate, Some(Fate::Fails | Fate::Hangs));
            (fate, happens.then(|| work(inside)))
        });
        match (fate, done) {
            (None, Some(done)) => done,
            (Some(Fate::Hangs | Fate::HappensAndHangs), _) => {
                self.stuck.notify_one();
                std::future::pending().await
            }
            _ => Err(Fault::Failed(format!("{step} was doomed").into())),
        }
    }
}

impl Plumbing for World {
    async fn lookup(&self, name: &ObjectName, _: Duration) -> Lookup {
        self.inspect(|inside| {
            if inside.unsynced {
                return Lookup::Unsynced;
            }
            let Some(addresses) = inside.annotations.get(&*name.name) else { return Lookup::Unknown };
            let annotation = (ADDRESSES_ANNOTATION.to_owned(), addresses.clone());
            Lookup::Known(Arc::new(Pod {
                name: name.clone(),
                uid: "".into(),
                labels: BTreeMap::new(),
                annotations: BTreeMap::from([annotation]),
                node: None,
                host_network: false,
                ips: Vec::new(),
                ports: Vec::new(),
                ready: false,
                terminating: false,
                finished: false,
            }))
        })
    }

    fn unready(&self) -> Option<String> {
        self.inspect(|inside| inside.unsynced.then(|| "source not synced".to_owned()))
    }

    fn capacity(&self) -> usize {
        self.inspect(|inside| inside.capacity.unwrap_or(usize::MAX))
    }

    fn host_name(&self, attachment: &Attachment) -> String {
        format!("nd-{}-{}", attachment.container_id, attachment.ifname)
    }

    async fn prepare(&self, entry: &Entry, wait: Duration) -> Result<(), Fault> {
        self.step("prepare", |inside| {
            if inside.unsynced {
                return Err(Fault::NotYet(format!("not synced after {wait:?}").into()));
            }
            inside.prepared.insert(entry.endpoint);
            Ok(())
        })
        .await
    }

    async fn create(&self, interface: &Interface) -> Result<Link, Fault> {
        self.step("create", |inside| {
            match inside.create_fault.take() {
                Some("no netns") => return Err(Fault::NoNetns("no such namespace".into())),
                Some(_) => return Err(Fault::NameTaken("eth0 exists".into())),
                None => {}
            }
            inside.last_index += 1;
            let link = Link { host_ifindex: inside.last_index, ..LINK };
            let end = HostEnd {
                ifindex: link.host_ifindex,
                name: interface.host_name.clone(),
                alias: interface.alias.clone(),
                link: Some(link),
                // From routes, which there are none of yet.
                addresses: Vec::new(),
            };
            assert_eq!(inside.links.insert(end.name.clone(), end), None, "made over another");
            Ok(link)
        })
        .await
    }

    async fn delete(&self, host_name: &str) -> Result<bool, Fault> {
        self.step("delete", |inside| {
            let Some(end) = inside.links.remove(host_name) else { return Ok(false) };
            inside.attached.remove(&end.ifindex);
            inside.started.remove(&end.ifindex);
            Ok(true)
        })
        .await
    }

    async fn check(&self, interface: &Interface) -> Result<Link, Fault> {
        self.step("check", |inside| match inside.links.get(&interface.host_name) {
            Some(end) if end.addresses == interface.addresses => {
                Ok(Link { host_ifindex: end.ifindex, ..LINK })
            }
            _ => Err(Fault::Differs("the link is gone".into())),
        })
        .await
    }

    async fn links(&self) -> Result<Vec<HostEnd>, Fault> {
        self.step("links", |inside| {
            let mut links: Vec<HostEnd> = inside.links.values().cloned().collect();
            for end in links.iter_mut().filter(|end| inside.nameless.contains(&end.name)) {
                end.alias.clear();
            }
            Ok(links)
        })
        .await
    }

    async fn attach(&self, entry: &Entry, link: &Link) -> Result<(), Fault> {
        self.step("attach", |inside| {
            assert!(inside.links.contains_key(&entry.host_name));
            inside.attached.insert(link.host_ifindex);
            Ok(())
        })
        .await
    }

    async fn admit(&self, entry: &Entry, link: &Link) -> Result<(), Fault> {
        self.step("admit", |inside| {
            let (ifindex, endpoint) = (link.host_ifindex, entry.endpoint);
            inside.rows.insert(ifindex, Row { ifindex, endpoint, addresses: entry.addresses.clone() });
            Ok(())
        })
        .await
    }

    async fn start(&self, interface: &Interface) -> Result<(), Fault> {
        self.step("start", |inside| {
            let end = inside.links.get_mut(&interface.host_name).expect("it was made");
            let row = inside.rows.get(&end.ifindex).expect("rows before the first packet");
            assert!(inside.attached.contains(&end.ifindex), "programs before the first packet");
            assert!(inside.prepared.contains(&row.endpoint), "policies before the first packet");
            end.addresses.clone_from(&interface.addresses);
            inside.started.insert(end.ifindex);
            Ok(())
        })
        .await
    }

    async fn expel(&self, host: Host<'_>, addresses: &[IpAddr]) -> Result<(), Fault> {
        self.step("expel", |inside| {
            let index = match host {
                Host::Name(name) => inside.links.get(name).map(|end| end.ifindex),
                Host::Index(index) => Some(index),
            };
            inside.rows.retain(|ifindex, row| {
                Some(*ifindex) != index && !row.addresses.iter().any(|address| addresses.contains(address))
            });
            Ok(())
        })
        .await
    }

    async fn rows(&self) -> Result<Vec<Row>, Fault> {
        self.step("rows", |inside| Ok(inside.rows.values().cloned().collect())).await
    }

    async fn write_status(&self, entry: &Entry) -> Result<(), Fault> {
        self.step("write_status", |inside| {
            let status = Status::of(entry).unwrap();
            inside.statuses.insert(status.pod, status.container_id);
            Ok(())
        })
        .await
    }

    async fn remove_status(&self, status: &Status) -> Result<(), Fault> {
        self.step("remove_status", |inside| {
            if inside.statuses.get(&status.pod) == Some(&status.container_id) {
                inside.statuses.remove(&status.pod);
            }
            Ok(())
        })
        .await
    }

    async fn statuses(&self) -> Result<Vec<Status>, Fault> {
        self.step("statuses", |inside| {
            let all = inside.statuses.clone().into_iter();
            Ok(all.map(|(pod, container_id)| Status { pod, container_id }).collect())
        })
        .await
    }
}
