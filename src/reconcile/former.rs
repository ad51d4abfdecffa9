//! What numbers stood for that stand for nothing any more: flows and events still bear them.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// How much of one kind is remembered at most.
pub(super) const REMEMBERED: usize = 4096;

/// The newest of what was deleted.
#[derive(Debug)]
pub(super) struct Former<K, V> {
    rows: HashMap<K, (u64, V)>,
    order: BTreeMap<u64, K>,
    next: u64,
}

impl<K, V> Default for Former<K, V> {
    fn default() -> Self {
        Self { rows: HashMap::new(), order: BTreeMap::new(), next: 0 }
    }
}

impl<K: Copy + Eq + Hash, V: Clone> Former<K, V> {
    pub(super) fn remember(&mut self, key: K, value: V) {
        self.forget(&key);
        self.rows.insert(key, (self.next, value));
        self.order.insert(self.next, key);
        self.next += 1;
        if self.order.len() > REMEMBERED
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.rows.remove(&oldest);
        }
    }

    pub(super) fn forget(&mut self, key: &K) {
        if let Some((at, _)) = self.rows.remove(key) {
            self.order.remove(&at);
        }
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.rows.get(key).map(|(_, value)| value)
    }

    pub(super) fn all(&self) -> HashMap<K, V> {
        self.rows.iter().map(|(key, (_, value))| (*key, value.clone())).collect()
    }
}
