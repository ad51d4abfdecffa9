//! Classes: a profile and a block, and the number of the two.
//!
//! A *profile* holds what policies ask of a pod and nothing else; equal ones are one. A *block* is a CIDR that a policy
//! names, as such or as an exception. The longest block that has an address tells for every other whether it has it,
//! too, so an address needs no more than one.

use super::Planner;
use crate::policy::blocks::{GUARD, Place, contains, covers_v4, place, span};
use crate::policy::compile::{PortName, write_block};
use crate::policy::number::{Numbers, Text};
use crate::policy::selector::{ByLabel, Selector};
use netd_bpf::policy::{Block, identity};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// All that policies ask of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct ProfileKey {
    /// Its namespace, if some policy there is about its own pods.
    pub(super) namespace: Option<Arc<str>>,
    /// Labels of its namespace with keys that policies ask for, ascending.
    pub(super) namespace_labels: Vec<(String, String)>,
    /// Labels of its own with keys that policies ask for, ascending.
    pub(super) labels: Vec<(String, String)>,
    /// Its ports of names that egress rules allow, ascending.
    pub(super) ports: Vec<(PortName, u16)>,
    /// The model has no object of it (yet, or any more): it may have any labels.
    pub(super) unknown: bool,
    /// The model has no object of its namespace: that may have any labels beside its name.
    pub(super) namespace_unknown: bool,
}

fn find<'l>(labels: &'l [(String, String)], key: &str) -> Option<&'l str> {
    let at = labels.binary_search_by(|(own, _)| own.as_str().cmp(key)).ok()?;
    labels.get(at).map(|(_, value)| value.as_str())
}

fn pairs(labels: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    labels.iter().map(|(key, value)| (key.as_str(), value.as_str()))
}

impl ProfileKey {
    /// Whether the pod is as a selector asks for, whatever labels it may have that are not known.
    pub(super) fn pod_matches(&self, selector: &Selector) -> bool {
        selector.matches_known(|key| find(&self.labels, key), !self.unknown)
    }

    /// The same for its namespace.
    pub(super) fn namespace_matches(&self, selector: &Selector) -> bool {
        selector.matches_known(|key| find(&self.namespace_labels, key), !self.namespace_unknown)
    }

    pub(super) fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        pairs(&self.labels)
    }

    pub(super) fn namespace_labels(&self) -> impl Iterator<Item = (&str, &str)> {
        pairs(&self.namespace_labels)
    }

    /// The number that it has for a named port.
    pub(super) fn port(&self, name: &PortName) -> Option<u16> {
        self.ports.iter().find(|(own, _)| own == name).map(|(_, port)| *port)
    }

    fn write(&self, text: &mut Text) {
        text.count(self.namespace.iter().len()).str(self.namespace.as_deref().unwrap_or_default());
        for labels in [&self.namespace_labels, &self.labels] {
            text.count(labels.len());
            for (key, value) in labels {
                text.str(key).str(value);
            }
        }
        text.count(self.ports.len());
        for (PortName { proto, name }, port) in &self.ports {
            text.number((*proto).into()).str(name).number((*port).into());
        }
        for unknown in [self.unknown, self.namespace_unknown] {
            text.number(unknown.into());
        }
    }
}

/// A profile.
#[derive(Debug)]
pub(super) struct ProfileRecord {
    pub(super) key: Arc<ProfileKey>,
    /// Pods that have it.
    refs: u32,
    /// Active peers that match it.
    pub(super) peers: BTreeSet<u32>,
    /// Its classes and their identities.
    pub(super) classes: Vec<(ClassKey, u64)>,
}

/// A block.
#[derive(Debug)]
pub(super) struct BlockRecord {
    pub(super) block: Block,
    /// Active peers that match it.
    pub(super) peers: BTreeSet<u32>,
    /// Active peers whose CIDR it is.
    pub(super) heads: BTreeSet<u32>,
    /// Its classes and their identities.
    pub(super) classes: Vec<(ClassKey, u64)>,
}

/// What tells a class from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ClassKey {
    /// The profile, of a pod's address.
    pub(super) profile: Option<u32>,
    /// The longest block.
    pub(super) block: Option<Block>,
}

/// A class.
#[derive(Debug)]
pub(super) struct ClassRecord {
    /// Its identity.
    pub(super) number: u64,
    /// Addresses that have it; a block counts for its own.
    refs: u32,
}

/// All classes.
#[derive(Debug, Default)]
pub(super) struct Classes {
    pub(super) profiles: HashMap<u32, ProfileRecord>,
    profile_ids: HashMap<Arc<ProfileKey>, u32>,
    pub(super) by_label: ByLabel<String, u32>,
    pub(super) by_namespace_label: ByLabel<String, u32>,
    pub(super) by_namespace: HashMap<Arc<str>, BTreeSet<u32>>,
    pub(super) by_port: HashMap<PortName, BTreeSet<u32>>,
    pub(super) blocks: BTreeMap<Place, BlockRecord>,
    /// Blocks that have the IPv4 addresses in the kernel, and not in the API.
    covering: u32,
    pub(super) classes: HashMap<ClassKey, ClassRecord>,
    numbers: Numbers,
    /// Profiles that lost a pod, and classes that lost an address.
    left_profiles: BTreeSet<u32>,
    left_classes: BTreeSet<ClassKey>,
    /// Classes whose rows are not made yet.
    pub(super) fresh: Vec<ClassKey>,
}

impl Classes {
    /// Blocks that lie in a block, itself included.
    pub(super) fn blocks_in(&self, outer: &Block) -> impl Iterator<Item = Place> {
        let (outer, last) = (*outer, *span(outer).end());
        let all = self.blocks.range(place(&outer)..=(last, u128::BITS));
        all.filter(move |(_, one)| contains(&outer, &one.block)).map(|(place, _)| *place)
    }

    /// Blocks around a block, itself included.
    pub(super) fn blocks_around(&self, inner: &Block) -> impl Iterator<Item = Place> {
        let inner = *inner;
        let up_to = (0..=inner.prefix).map(move |prefix| {
            let host = u128::BITS - prefix;
            let bits = *span(&inner).start();
            (bits.checked_shr(host).unwrap_or(0).checked_shl(host).unwrap_or(0), prefix)
        });
        let there = up_to.filter(|place| self.blocks.contains_key(place));
        there.filter(move |place| self.blocks.get(place).is_some_and(|one| contains(&one.block, &inner)))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.classes.len()
    }

    /// The identity of a class; it has one more address.
    pub(super) fn acquire(&mut self, key: ClassKey) -> u64 {
        if (key.profile, key.block) == (None, None) {
            return identity::WORLD;
        }
        if let Some(class) = self.classes.get_mut(&key) {
            class.refs += 1;
            return class.number;
        }
        let mut text = Text::new("identity");
        let profile = key.profile.and_then(|id| self.profiles.get_mut(&id));
        let block = key.block.and_then(|block| self.blocks.get_mut(&place(&block)));
        text.count(profile.iter().len());
        if let Some(profile) = &profile {
            profile.key.write(&mut text);
        }
        text.count(block.iter().len());
        if let Some(block) = &block {
            write_block(&mut text, &block.block);
        }
        let number = text.marked(|number| self.numbers.contains(&number));
        let lists = profile.map(|one| &mut one.classes).into_iter().chain(block.map(|one| &mut one.classes));
        lists.for_each(|classes| classes.push((key, number)));
        self.numbers.insert(number);
        self.classes.insert(key, ClassRecord { number, refs: 1 });
        self.fresh.push(key);
        number
    }

    /// A class has one address less.
    pub(super) fn release(&mut self, key: ClassKey) {
        // That of a block that went is gone before its addresses are.
        if let Some(class) = self.classes.get_mut(&key) {
            class.refs = class.refs.saturating_sub(1);
            if class.refs == 0 {
                self.left_classes.insert(key);
            }
        }
    }

    fn file_profile(&mut self, id: u32, key: &ProfileKey, there: bool) {
        let Self { by_label, by_namespace_label, by_namespace, by_port, .. } = self;
        for (index, labels) in [(by_label, &key.labels), (by_namespace_label, &key.namespace_labels)] {
            for (key, value) in labels {
                if there { index.insert(key, value, id) } else { index.remove(key, value, id) }
            }
        }
        fn put<K: Eq + std::hash::Hash + Clone>(
            map: &mut HashMap<K, BTreeSet<u32>>,
            key: &K,
            id: u32,
            there: bool,
        ) {
            let all = map.entry(key.clone()).or_default();
            if there {
                all.insert(id)
            } else {
                all.remove(&id)
            };
            if all.is_empty() {
                map.remove(key);
            }
        }
        if let Some(namespace) = &key.namespace {
            put(by_namespace, namespace, id, there);
        }
        for (name, _) in &key.ports {
            put(by_port, name, id, there);
        }
    }
}

impl Planner {
    /// The profile of one more pod.
    pub(super) fn acquire_profile(&mut self, key: ProfileKey) -> u32 {
        if let Some(id) = self.classes.profile_ids.get(&key).copied() {
            if let Some(profile) = self.classes.profiles.get_mut(&id) {
                profile.refs += 1;
            }
            return id;
        }
        let (id, key) = (self.id(), Arc::new(key));
        self.classes.file_profile(id, &key, true);
        self.classes.profile_ids.insert(Arc::clone(&key), id);
        let record = ProfileRecord { key, refs: 1, peers: BTreeSet::new(), classes: Vec::new() };
        self.classes.profiles.insert(id, record);
        self.match_profile(id);
        id
    }

    /// A pod has it no more.
    pub(super) fn release_profile(&mut self, id: u32) {
        if let Some(profile) = self.classes.profiles.get_mut(&id) {
            profile.refs = profile.refs.saturating_sub(1);
            if profile.refs == 0 {
                self.classes.left_profiles.insert(id);
            }
        }
    }

    /// Brings the blocks to what peers name.
    pub(super) fn settle_blocks(&mut self) {
        let mut changed = self.peers.blocks.settle();
        changed.sort_unstable();
        for (block, there) in &changed {
            let covers = u32::from(covers_v4(block));
            if *there {
                self.classes.covering += covers;
                let record = BlockRecord {
                    block: *block,
                    peers: BTreeSet::new(),
                    heads: BTreeSet::new(),
                    classes: Vec::new(),
                };
                self.classes.blocks.insert(place(block), record);
                self.match_block(block);
                let number = self.classes.acquire(ClassKey { profile: None, block: Some(*block) });
                self.desired.blocks.insert(*block, number);
            } else {
                self.classes.covering -= covers;
                let classes = self.classes.blocks.get(&place(block)).map(|record| record.classes.clone());
                for (class, _) in classes.into_iter().flatten() {
                    self.drop_class(class);
                }
                let record = self.classes.blocks.remove(&place(block));
                for peer in record.into_iter().flat_map(|record| record.peers) {
                    if let Some(peer) = self.peers.records.get_mut(&peer) {
                        peer.blocks.remove(block);
                    }
                }
                self.desired.blocks.remove(block);
            }
            self.touched.blocks.insert(*block);
            let inside = self.addresses.range(span(block)).map(|(address, _)| *address);
            self.dirty.addresses.extend(inside);
        }
        if !self.peers.blocks.has(&GUARD) {
            let wanted = (self.classes.covering > 0).then_some(identity::WORLD);
            if self.desired.blocks.get(&GUARD).copied() != wanted {
                match wanted {
                    Some(world) => self.desired.blocks.insert(GUARD, world),
                    None => self.desired.blocks.remove(&GUARD),
                };
                self.touched.blocks.insert(GUARD);
            }
        }
    }

    /// Forgets classes without addresses, and profiles without pods.
    pub(super) fn sweep_classes(&mut self) {
        for class in std::mem::take(&mut self.classes.left_classes) {
            if self.classes.classes.get(&class).is_some_and(|record| record.refs == 0) {
                self.drop_class(class);
            }
        }
        for id in std::mem::take(&mut self.classes.left_profiles) {
            if self.classes.profiles.get(&id).is_none_or(|profile| profile.refs > 0) {
                continue;
            }
            let Some(profile) = self.classes.profiles.remove(&id) else { continue };
            for peer in &profile.peers {
                if let Some(peer) = self.peers.records.get_mut(peer) {
                    peer.profiles.remove(&id);
                }
            }
            self.classes.profile_ids.remove(&profile.key);
            self.classes.file_profile(id, &profile.key, false);
        }
    }

    /// Forgets a class and its rows.
    fn drop_class(&mut self, key: ClassKey) {
        self.remove_rows_of(key);
        let Some(class) = self.classes.classes.remove(&key) else { return };
        self.classes.numbers.remove(&class.number);
        if let Some(profile) = key.profile.and_then(|id| self.classes.profiles.get_mut(&id)) {
            profile.classes.retain(|(own, _)| *own != key);
        }
        if let Some(block) = key.block.and_then(|block| self.classes.blocks.get_mut(&place(&block))) {
            block.classes.retain(|(own, _)| *own != key);
        }
    }
}

#[cfg(test)]
impl Classes {
    /// What is not empty.
    pub(super) fn left(&self) -> Vec<&'static str> {
        let mut left = left!(
            self; profiles, profile_ids, by_label, by_namespace_label, by_namespace, by_port, blocks, classes, numbers,
            left_profiles, left_classes, fresh; covering
        );
        left.extend((self.covering > 0).then_some("covering"));
        left
    }
}
