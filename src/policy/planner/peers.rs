//! Peers: what rules allow, each once, and which profiles and blocks each of them matches.
//!
//! A peer is *active* while a rule of a part in some set names it: then it is filed where new profiles and blocks find
//! it, and knows which it matches. The keys that a peer asks for count from the time it is known, active or not:
//! identities must not depend on which pods happen to be on this node.

use super::Planner;
use super::classes::ProfileKey;
use super::uses::Uses;
use crate::policy::blocks::{Place, any_contains, contains, place};
use crate::policy::compile::{Peer, PortName, Scope};
use crate::policy::selector::{ByLabel, Index, Selector};
use netd_bpf::policy::Block;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Profiles, one by one.
type Found<'f> = Box<dyn Iterator<Item = u32> + 'f>;

/// All peers.
#[derive(Debug, Default)]
pub(super) struct Peers {
    ids: HashMap<Arc<Peer>, u32>,
    pub(super) records: HashMap<u32, PeerRecord>,
    /// Active ones about pods of one namespace.
    own: HashMap<Arc<str>, Index>,
    /// Other active ones that need some label of the pod.
    by_pods: Index,
    /// The other active ones about pods.
    by_namespace: Index,
    /// Active ones about a named port.
    by_port: HashMap<PortName, u32>,
    /// Keys of pods' labels that peers ask for.
    pub(super) labels: Uses<Arc<str>>,
    /// Keys of namespaces' labels.
    pub(super) namespace_labels: Uses<Arc<str>>,
    /// Namespaces whose policies are about their own pods.
    pub(super) namespaces: Uses<Arc<str>>,
    /// Blocks, as such or as exceptions.
    pub(super) blocks: Uses<Block>,
}

/// A peer.
#[derive(Debug)]
pub(super) struct PeerRecord {
    peer: Arc<Peer>,
    /// The rules that name it.
    pub(super) rules: BTreeSet<u32>,
    /// How many of them are in sets.
    active: u32,
    /// What it matches, while it is active.
    pub(super) profiles: BTreeSet<u32>,
    /// What it matches, while it is active.
    pub(super) blocks: BTreeSet<Block>,
}

impl Peer {
    fn matches_profile(&self, profile: &ProfileKey) -> bool {
        match self {
            Self::Pods { scope: Scope::Own(namespace), pods } => {
                profile.namespace.as_ref() == Some(namespace) && profile.pod_matches(pods)
            }
            Self::Pods { scope: Scope::Selected(namespaces), pods } => {
                profile.namespace_matches(namespaces) && profile.pod_matches(pods)
            }
            Self::Named(name) => profile.port(name).is_some(),
            Self::Block { .. } => false,
        }
    }

    /// Whether the addresses whose longest block this is are meant.
    fn matches_block(&self, block: &Block) -> bool {
        let Self::Block { cidr, except } = self else { return false };
        contains(cidr, block) && !any_contains(except, block)
    }
}

impl Planner {
    /// A rule names a peer.
    pub(super) fn add_peer(&mut self, peer: Peer, rule: u32) -> u32 {
        let id = match self.peers.ids.get(&peer) {
            Some(id) => *id,
            None => {
                let (id, peer) = (self.id(), Arc::new(peer));
                self.count_keys(&peer, true);
                self.peers.ids.insert(Arc::clone(&peer), id);
                let record = PeerRecord {
                    peer,
                    rules: BTreeSet::new(),
                    active: 0,
                    profiles: BTreeSet::new(),
                    blocks: BTreeSet::new(),
                };
                self.peers.records.insert(id, record);
                id
            }
        };
        if let Some(record) = self.peers.records.get_mut(&id) {
            record.rules.insert(rule);
        }
        id
    }

    /// A rule that is in no set names it no more.
    pub(super) fn remove_peer(&mut self, id: u32, rule: u32) {
        let Some(record) = self.peers.records.get_mut(&id) else { return };
        record.rules.remove(&rule);
        if record.rules.is_empty() {
            let peer = Arc::clone(&record.peer);
            self.peers.records.remove(&id);
            self.peers.ids.remove(&peer);
            self.count_keys(&peer, false);
        }
    }

    fn count_keys(&mut self, peer: &Peer, more: bool) {
        fn count<'k>(uses: &mut Uses<Arc<str>>, keys: impl Iterator<Item = &'k Arc<str>>, more: bool) {
            keys.for_each(|key| if more { uses.add(key) } else { uses.remove(key) });
        }
        let peers = &mut self.peers;
        match peer {
            Peer::Pods { scope, pods } => {
                count(&mut peers.labels, pods.keys(), more);
                match scope {
                    Scope::Own(namespace) => count(&mut peers.namespaces, std::iter::once(namespace), more),
                    Scope::Selected(selector) => count(&mut peers.namespace_labels, selector.keys(), more),
                }
            }
            Peer::Block { cidr, except } => {
                for block in [cidr].into_iter().chain(except) {
                    if more { peers.blocks.add(block) } else { peers.blocks.remove(block) }
                }
            }
            // Port names count where their rules do.
            Peer::Named(_) => {}
        }
    }

    /// A rule that names the peer is in a set now.
    pub(super) fn activate(&mut self, id: u32) {
        let Some(record) = self.peers.records.get_mut(&id) else { return };
        record.active += 1;
        if record.active > 1 {
            return;
        }
        let peer = Arc::clone(&record.peer);
        if let Peer::Block { cidr, .. } = &*peer {
            if let Some(block) = self.classes.blocks.get_mut(&place(cidr)) {
                block.heads.insert(id);
            }
            let inside: Vec<Place> = self.classes.blocks_in(cidr).collect();
            for place in inside {
                if let Some(block) = self.classes.blocks.get_mut(&place)
                    && peer.matches_block(&block.block)
                {
                    block.peers.insert(id);
                    record.blocks.insert(block.block);
                }
            }
            return;
        }
        file(&mut self.peers, &peer, id, true);
        let found: BTreeSet<u32> = {
            let classes = &self.classes;
            let matches =
                |id: &u32| classes.profiles.get(id).is_some_and(|profile| peer.matches_profile(&profile.key));
            self.candidates(&peer).filter(matches).collect()
        };
        for profile in &found {
            if let Some(profile) = self.classes.profiles.get_mut(profile) {
                profile.peers.insert(id);
            }
        }
        if let Some(record) = self.peers.records.get_mut(&id) {
            record.profiles = found;
        }
    }

    /// Such a rule is in no set any more.
    pub(super) fn deactivate(&mut self, id: u32) {
        let Some(record) = self.peers.records.get_mut(&id) else { return };
        record.active = record.active.saturating_sub(1);
        if record.active > 0 {
            return;
        }
        for profile in std::mem::take(&mut record.profiles) {
            if let Some(profile) = self.classes.profiles.get_mut(&profile) {
                profile.peers.remove(&id);
            }
        }
        for block in std::mem::take(&mut record.blocks) {
            if let Some(block) = self.classes.blocks.get_mut(&place(&block)) {
                block.peers.remove(&id);
            }
        }
        let peer = Arc::clone(&record.peer);
        if let Peer::Block { cidr, .. } = &*peer {
            if let Some(block) = self.classes.blocks.get_mut(&place(cidr)) {
                block.heads.remove(&id);
            }
        } else {
            file(&mut self.peers, &peer, id, false);
        }
    }

    /// Profiles that a peer may match: the fewest that some requirement leaves.
    fn candidates<'p>(&'p self, peer: &'p Peer) -> Found<'p> {
        let classes = &self.classes;
        let labelled =
            |index: &'p ByLabel<String, u32>, selector: &'p Selector| -> Option<(usize, Found<'p>)> {
                let (key, values) = selector.equality()?;
                Some((index.count(key, values), Box::new(index.having(key, values))))
            };
        let of = |namespace| -> (usize, Found<'p>) {
            let all = classes.by_namespace.get(namespace);
            (all.map_or(0, BTreeSet::len), Box::new(all.into_iter().flatten().copied()))
        };
        match peer {
            Peer::Pods { scope, pods } => {
                let scoped = match scope {
                    Scope::Own(namespace) => Some(of(namespace)),
                    Scope::Selected(namespaces) => labelled(&classes.by_namespace_label, namespaces),
                };
                let some = [scoped, labelled(&classes.by_label, pods)].into_iter().flatten();
                match some.min_by_key(|(count, _)| *count) {
                    Some((_, fewest)) => fewest,
                    None => Box::new(classes.profiles.keys().copied()),
                }
            }
            Peer::Named(name) => Box::new(classes.by_port.get(name).into_iter().flatten().copied()),
            Peer::Block { .. } => Box::new(std::iter::empty()),
        }
    }

    /// Makes a new profile and the active peers that match it known to each other.
    pub(super) fn match_profile(&mut self, id: u32) {
        let Some(profile) = self.classes.profiles.get_mut(&id) else { return };
        let key = &profile.key;
        let peers = &mut self.peers;
        let own = key.namespace.as_ref().and_then(|namespace| peers.own.get(namespace));
        let found: Vec<u32> = own
            .into_iter()
            .flat_map(|index| index.candidates(key.labels()))
            .chain(peers.by_pods.candidates(key.labels()))
            .chain(peers.by_namespace.candidates(key.namespace_labels()))
            .chain(key.ports.iter().filter_map(|(name, _)| peers.by_port.get(name).copied()))
            .collect();
        for found in found {
            if let Some(record) = peers.records.get_mut(&found)
                && record.peer.matches_profile(key)
            {
                record.profiles.insert(id);
                profile.peers.insert(found);
            }
        }
    }

    /// Makes a new block and the active peers that match it known to each other.
    pub(super) fn match_block(&mut self, new: &Block) {
        let around: Vec<Place> = self.classes.blocks_around(new).collect();
        let heads: Vec<u32> = around
            .iter()
            .filter_map(|place| self.classes.blocks.get(place))
            .flat_map(|one| &one.heads)
            .copied()
            .collect();
        let Some(block) = self.classes.blocks.get_mut(&place(new)) else { return };
        for id in heads {
            if let Some(record) = self.peers.records.get_mut(&id)
                && record.peer.matches_block(new)
            {
                record.blocks.insert(*new);
                block.peers.insert(id);
            }
        }
    }
}

/// Files an active peer about pods where profiles find it, or takes it away.
fn file(peers: &mut Peers, peer: &Peer, id: u32, there: bool) {
    let put = |index: &mut Index, selector: &Selector| {
        if there { index.insert(selector, id) } else { index.remove(selector, id) }
    };
    match peer {
        Peer::Pods { scope: Scope::Own(namespace), pods } => {
            let index = peers.own.entry(Arc::clone(namespace)).or_default();
            put(index, pods);
            if index.is_empty() {
                peers.own.remove(namespace);
            }
        }
        Peer::Pods { scope: Scope::Selected(_), pods } if pods.equality().is_some() => {
            put(&mut peers.by_pods, pods);
        }
        Peer::Pods { scope: Scope::Selected(namespaces), .. } => put(&mut peers.by_namespace, namespaces),
        Peer::Named(name) if there => drop(peers.by_port.insert(name.clone(), id)),
        Peer::Named(name) => drop(peers.by_port.remove(name)),
        Peer::Block { .. } => {}
    }
}

#[cfg(test)]
impl Peers {
    /// What is not empty.
    pub(super) fn left(&self) -> Vec<&'static str> {
        left!(self; ids, records, own, by_pods, by_namespace, by_port, labels, namespace_labels, namespaces, blocks)
    }
}
