//! Pods by name and namespaces: what of them policies ask for.
//!
//! A pod is known by the model, by the ledger (then it is local), or by both. The ledger is right about which pods are
//! here and which addresses they have; the model is right about labels and ports. A local pod that the model does not
//! know may have any labels: a policy of its namespace that asks for some closes it, and who asks that others have none
//! does not mean it. So it is for one whose object came late, and for one that runs on after its object was deleted.

use super::Planner;
use super::addresses::Claim;
use super::classes::ProfileKey;
use crate::model::{Labels, Namespace, ObjectName, Pod};
use crate::policy::compile::PortName;
use crate::policy::selector::{Index, Selector};
use crate::policy::{LocalPod, Sets};
use netd_bpf::Addr;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

/// Label that every namespace has with its own name, also one that the model does not know.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// Pods times selectors above which all pods of a namespace are looked at anew, instead of each by each selector.
const MANY: usize = 100_000;

/// All pods.
#[derive(Debug, Default)]
pub(super) struct Pods {
    ids: HashMap<ObjectName, u32>,
    pub(super) records: HashMap<u32, PodRecord>,
    pub(super) namespaces: HashMap<Arc<str>, NamespaceRecord>,
    by_key: HashMap<String, BTreeSet<u32>>,
    by_port: HashMap<Arc<str>, BTreeSet<u32>>,
    /// Pods that one source knows no more.
    left: BTreeSet<u32>,
}

/// A pod.
#[derive(Debug)]
pub(super) struct PodRecord {
    pub(super) name: ObjectName,
    pub(super) object: Option<Arc<Pod>>,
    /// Its numbers on this node.
    pub(super) endpoints: BTreeSet<u32>,
    /// The addresses that the model gives it.
    remote: Vec<u128>,
    pub(super) profile: Option<u32>,
    /// The sets that it is a member of.
    pub(super) sets: Sets,
}

impl PodRecord {
    /// Its address may already be another's.
    pub(super) fn finished(&self) -> bool {
        self.object.as_ref().is_some_and(|pod| pod.finished)
    }

    fn labels(&self) -> Option<&Labels> {
        self.object.as_ref().map(|pod| &pod.labels)
    }

    /// The model has no object of it.
    pub(super) fn unknown(&self) -> bool {
        self.object.is_none()
    }

    /// A label.
    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.labels()?.get(key).map(String::as_str)
    }

    /// All labels.
    pub(super) fn all_labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.labels().into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// The first of its ports with this name and protocol, as for Services.
    pub(super) fn port(&self, name: &PortName) -> Option<u16> {
        let ports = self.object.iter().flat_map(|pod| &pod.ports);
        let mut right = ports.filter(|port| port.name == name.name && port.protocol.number() == name.proto);
        right.next().map(|port| port.port)
    }
}

/// A namespace.
#[derive(Debug, Default)]
pub(super) struct NamespaceRecord {
    object: Option<Arc<Namespace>>,
    pods: BTreeSet<u32>,
    pub(super) locals: BTreeSet<u32>,
    /// Its policies by whom they select.
    pub(super) subjects: Index,
}

impl NamespaceRecord {
    fn label<'l>(&'l self, name: &'l str, key: &str) -> Option<&'l str> {
        match &self.object {
            Some(object) => object.labels.get(key).map(String::as_str),
            None => (key == NAMESPACE_NAME).then_some(name),
        }
    }

    fn labels<'l>(&'l self, name: &'l str) -> impl Iterator<Item = (&'l str, &'l str)> {
        let known = self.object.iter().flat_map(|object| &object.labels);
        let known = known.map(|(key, value)| (key.as_str(), value.as_str()));
        known.chain(self.object.is_none().then_some((NAMESPACE_NAME, name)))
    }
}

impl Planner {
    /// The record of a namespace, which may be empty.
    pub(super) fn namespace(&mut self, name: &Arc<str>) -> &mut NamespaceRecord {
        self.pods.namespaces.entry(Arc::clone(name)).or_default()
    }

    /// Forgets a namespace of which nothing is known.
    pub(super) fn forget_namespace(&mut self, name: &Arc<str>) {
        let empty =
            |one: &NamespaceRecord| one.object.is_none() && one.pods.is_empty() && one.subjects.is_empty();
        if self.pods.namespaces.get(name).is_some_and(empty) {
            self.pods.namespaces.remove(name);
        }
    }

    pub(super) fn change_namespace(&mut self, old: Option<&Arc<Namespace>>, new: Option<&Arc<Namespace>>) {
        let Some(name) = old.or(new).map(|namespace| Arc::clone(&namespace.name)) else { return };
        let record = self.namespace(&name);
        record.object = new.cloned();
        // Which of its labels anybody asks for may change as well: all is looked at.
        let pods = record.pods.clone();
        self.dirty.profiles.extend(pods);
        self.forget_namespace(&name);
    }

    /// The number of a pod, which may be new.
    fn pod(&mut self, name: &ObjectName) -> u32 {
        if let Some(id) = self.pods.ids.get(name) {
            return *id;
        }
        let id = self.id();
        self.pods.ids.insert(name.clone(), id);
        let record = PodRecord {
            name: name.clone(),
            object: None,
            endpoints: BTreeSet::new(),
            remote: Vec::new(),
            profile: None,
            sets: Sets::OPEN,
        };
        self.pods.records.insert(id, record);
        self.namespace(&name.namespace).pods.insert(id);
        id
    }

    pub(super) fn change_pod(&mut self, old: Option<&Arc<Pod>>, new: Option<&Arc<Pod>>) {
        let Some(name) = old.or(new).map(|pod| &pod.name) else { return };
        let id = self.pod(name);
        for (pod, there) in [(old, false), (new, true)] {
            let Some(pod) = pod else { continue };
            for key in pod.labels.keys() {
                file(&mut self.pods.by_key, key, id, there);
            }
            for port in &pod.ports {
                file(&mut self.pods.by_port, &port.name, id, there);
            }
        }
        let own_node = self.seen.node.clone();
        let remote = new.filter(|pod| {
            // The ledger is right about this node's pods, and a node's address is no pod's.
            !pod.host_network && !pod.finished && pod.node.as_ref() != Some(&own_node)
        });
        let mut remote: Vec<u128> =
            remote.iter().flat_map(|pod| &pod.ips).map(|ip| super::addresses::bits_of(*ip)).collect();
        remote.sort_unstable();
        remote.dedup();
        let Some(record) = self.pods.records.get_mut(&id) else { return };
        let finished = record.finished();
        record.object = new.cloned();
        let here = finished != record.finished();
        let endpoints: Vec<u32> = if here { record.endpoints.iter().copied().collect() } else { Vec::new() };
        let order = |pod: Option<&Arc<Pod>>| pod.map(|pod| pod.terminating);
        let again = record.remote == remote && order(old) != order(new);
        let before = std::mem::replace(&mut record.remote, remote.clone());
        if before != remote {
            for address in &before {
                self.unclaim(*address, &Claim::Remote(id));
            }
            for address in &remote {
                self.claim(*address, Claim::Remote(id));
            }
        } else if again {
            self.dirty.addresses.extend(&remote);
        }
        for endpoint in endpoints {
            let addresses = self.seen.locals.get(&endpoint).map(addresses_of);
            self.dirty.addresses.extend(addresses.into_iter().flatten());
        }
        self.dirty.profiles.insert(id);
        self.dirty.subjects.insert(id);
        if new.is_none() {
            self.pods.left.insert(id);
        }
    }

    /// Takes over the ledger's pods.
    pub(super) fn change_locals(&mut self, locals: &BTreeMap<u32, LocalPod>) {
        if *locals == self.seen.locals {
            return;
        }
        let gone: Vec<u32> = {
            let same = |endpoint: &u32| locals.get(endpoint) == self.seen.locals.get(endpoint);
            self.seen.locals.keys().copied().filter(|endpoint| !same(endpoint)).collect()
        };
        for endpoint in gone {
            let Some(local) = self.seen.locals.remove(&endpoint) else { continue };
            let claim = self.local_claim(&local);
            for address in addresses_of(&local) {
                self.unclaim(address, &claim);
            }
            self.desired.pods.remove(&endpoint);
            self.touched.pods.insert(endpoint);
            let Claim::Local { pod, .. } = claim else { continue };
            let Some(record) = self.pods.records.get_mut(&pod) else { continue };
            record.endpoints.remove(&endpoint);
            if record.endpoints.is_empty() {
                let namespace = Arc::clone(&record.name.namespace);
                self.namespace(&namespace).locals.remove(&pod);
                self.pods.left.insert(pod);
            }
            self.dirty.profiles.insert(pod);
            self.dirty.subjects.insert(pod);
        }
        if locals.len() == self.seen.locals.len() {
            return;
        }
        for (endpoint, local) in locals {
            if self.seen.locals.contains_key(endpoint) {
                continue;
            }
            // The key is the number; what the value says of it counts for nothing.
            let local = LocalPod { endpoint: *endpoint, ..local.clone() };
            let claim = self.local_claim(&local);
            for address in addresses_of(&local) {
                self.claim(address, claim.clone());
            }
            if let Claim::Local { pod, .. } = claim {
                if let Some(record) = self.pods.records.get_mut(&pod) {
                    record.endpoints.insert(*endpoint);
                    let namespace = Arc::clone(&record.name.namespace);
                    self.namespace(&namespace).locals.insert(pod);
                }
                self.dirty.profiles.insert(pod);
                self.dirty.subjects.insert(pod);
            } else {
                self.desired.pods.insert(*endpoint, Sets::OPEN);
                self.touched.pods.insert(*endpoint);
            }
            self.seen.locals.insert(*endpoint, local);
        }
    }

    fn local_claim(&mut self, local: &LocalPod) -> Claim {
        let endpoint = local.endpoint;
        match &local.pod {
            Some(name) => Claim::Local { endpoint, pod: self.pod(name) },
            None => Claim::Container { endpoint },
        }
    }

    /// Pods of which policies ask something else than before.
    pub(super) fn settle_keys(&mut self) {
        let Self { peers, pods, dirty, policies, .. } = self;
        for (key, _) in peers.labels.settle() {
            dirty.profiles.extend(pods.by_key.get(&*key).into_iter().flatten());
        }
        for (name, _) in policies.port_names.settle() {
            dirty.profiles.extend(pods.by_port.get(&name).into_iter().flatten());
        }
        for (name, _) in peers.namespaces.settle() {
            dirty.profiles.extend(pods.namespaces.get(&name).into_iter().flat_map(|one| &one.pods));
        }
        let keys = peers.namespace_labels.settle();
        if !keys.is_empty() {
            for (name, namespace) in &pods.namespaces {
                if keys.iter().any(|(key, _)| namespace.label(name, key).is_some()) {
                    dirty.profiles.extend(&namespace.pods);
                }
            }
        }
    }

    /// Local pods that changed policies select, or did before.
    pub(super) fn mark_subjects(&mut self) {
        for (namespace, selectors) in std::mem::take(&mut self.dirty.selectors) {
            let Some(namespace) = self.pods.namespaces.get(&namespace) else { continue };
            if selectors.len().saturating_mul(namespace.locals.len()) > MANY {
                self.dirty.subjects.extend(&namespace.locals);
                continue;
            }
            for id in &namespace.locals {
                let Some(pod) = self.pods.records.get(id) else { continue };
                let selected = |selector: &Selector| pod.unknown() || selector.matches(|key| pod.label(key));
                if selectors.iter().any(selected) {
                    self.dirty.subjects.insert(*id);
                }
            }
        }
    }

    /// Gives pods the profiles that they are to have.
    pub(super) fn renew_profiles(&mut self) {
        for id in std::mem::take(&mut self.dirty.profiles) {
            let Some(pod) = self.pods.records.get(&id) else { continue };
            let has_address = !pod.remote.is_empty() || !pod.endpoints.is_empty();
            let key = has_address.then(|| self.profile_key(pod));
            if let (Some(own), Some(key)) = (pod.profile, &key)
                && self.classes.profiles.get(&own).is_some_and(|own| *own.key == *key)
            {
                continue;
            }
            let before = pod.profile;
            let now = key.map(|key| self.acquire_profile(key));
            if let Some(before) = before {
                self.release_profile(before);
            }
            let Some(pod) = self.pods.records.get_mut(&id) else { continue };
            pod.profile = now;
            if before != now {
                self.dirty.addresses.extend(&pod.remote);
                let locals = pod.endpoints.iter().filter_map(|endpoint| self.seen.locals.get(endpoint));
                self.dirty.addresses.extend(locals.flat_map(addresses_of));
            }
        }
    }

    fn profile_key(&self, pod: &PodRecord) -> ProfileKey {
        let own = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let name = &pod.name.namespace;
        let namespace = self.pods.namespaces.get(name);
        let namespace_labels = namespace.into_iter().flat_map(|namespace| namespace.labels(name));
        let asked = namespace_labels.filter(|(key, _)| self.peers.namespace_labels.has(*key));
        let mut ports: Vec<(PortName, u16)> = Vec::new();
        for port in pod.object.iter().flat_map(|object| &object.ports) {
            let name = PortName { proto: port.protocol.number(), name: Arc::clone(&port.name) };
            // The first of a name counts.
            if self.policies.port_names.has(&port.name) && ports.iter().all(|(other, _)| *other != name) {
                ports.push((name, port.port));
            }
        }
        ports.sort_unstable();
        ProfileKey {
            namespace: self.peers.namespaces.has(name).then(|| Arc::clone(name)),
            namespace_labels: asked.map(own).collect(),
            labels: pod.all_labels().filter(|(key, _)| self.peers.labels.has(*key)).map(own).collect(),
            ports,
            unknown: pod.unknown(),
            namespace_unknown: namespace.is_none_or(|namespace| namespace.object.is_none()),
        }
    }

    /// Forgets pods that neither source knows.
    pub(super) fn sweep_pods(&mut self) {
        for id in std::mem::take(&mut self.pods.left) {
            let gone = |pod: &PodRecord| pod.object.is_none() && pod.endpoints.is_empty();
            if !self.pods.records.get(&id).is_some_and(gone) {
                continue;
            }
            let Some(pod) = self.pods.records.remove(&id) else { continue };
            self.pods.ids.remove(&pod.name);
            self.namespace(&pod.name.namespace).pods.remove(&id);
            self.forget_namespace(&pod.name.namespace);
        }
    }
}

fn addresses_of(local: &LocalPod) -> impl Iterator<Item = u128> {
    local.addresses.iter().map(|address: &IpAddr| crate::policy::blocks::bits(Addr::from(*address)))
}

fn file<K, Q>(map: &mut HashMap<K, BTreeSet<u32>>, key: &Q, id: u32, there: bool)
where
    K: Eq + std::hash::Hash + std::borrow::Borrow<Q>,
    Q: Eq + std::hash::Hash + ToOwned<Owned = K> + ?Sized,
{
    match map.get_mut(key) {
        Some(all) if there => drop(all.insert(id)),
        Some(all) => {
            all.remove(&id);
            if all.is_empty() {
                map.remove(key);
            }
        }
        None if there => drop(map.insert(key.to_owned(), BTreeSet::from([id]))),
        None => {}
    }
}

#[cfg(test)]
impl Pods {
    /// What is not empty.
    pub(super) fn left(&self) -> Vec<&'static str> {
        left!(self; ids, records, namespaces, by_key, by_port, left)
    }
}
