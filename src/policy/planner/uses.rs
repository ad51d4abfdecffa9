//! Counts of who uses something, and what came into use or fell out of it since one last asked.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// See the module.
#[derive(Debug)]
pub(super) struct Uses<K> {
    counts: HashMap<K, u32>,
    /// Whether it was in use when one last asked.
    before: HashMap<K, bool>,
}

impl<K> Default for Uses<K> {
    fn default() -> Self {
        Self { counts: HashMap::new(), before: HashMap::new() }
    }
}

impl<K: Eq + Hash + Clone> Uses<K> {
    /// One more uses it.
    pub(super) fn add(&mut self, key: &K) {
        match self.counts.get_mut(key) {
            Some(count) => *count += 1,
            None => {
                self.counts.insert(key.clone(), 1);
                self.before.entry(key.clone()).or_insert(false);
            }
        }
    }

    /// One less uses it.
    pub(super) fn remove(&mut self, key: &K) {
        let Some(count) = self.counts.get_mut(key) else { return };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(key);
            self.before.entry(key.clone()).or_insert(true);
        }
    }

    /// Somebody uses it.
    pub(super) fn has<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.counts.contains_key(key)
    }

    /// What changed since the last time, and whether it is in use now.
    pub(super) fn settle(&mut self) -> Vec<(K, bool)> {
        let before = std::mem::take(&mut self.before);
        let now = before.into_iter().map(|(key, was)| {
            let is = self.counts.contains_key(&key);
            (key, was, is)
        });
        now.filter(|(_, was, is)| was != is).map(|(key, _, is)| (key, is)).collect()
    }
}

#[cfg(test)]
impl<K> Uses<K> {
    /// Nobody uses anything, and nobody did who would have to be told.
    pub(super) fn is_empty(&self) -> bool {
        let Self { counts, before } = self;
        counts.is_empty() && before.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_told() {
        let mut uses = Uses::default();
        uses.add(&"a");
        uses.add(&"a");
        uses.add(&"b");
        uses.remove(&"b");
        assert_eq!(uses.settle(), [("a", true)]);
        uses.remove(&"a");
        assert_eq!((uses.has("a"), uses.settle()), (true, vec![]));
        uses.remove(&"a");
        uses.add(&"a");
        assert_eq!(uses.settle(), []);
        uses.remove(&"a");
        assert_eq!((uses.settle(), uses.has("a")), (vec![("a", false)], false));
    }
}
