//! The objects of one kind, cheap to copy and to compare with what they were.

use std::cmp::Ordering;
use std::collections::{BTreeMap, btree_map};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Objects of one kind by name. A copy shares all with what it was copied from until one of the two is changed.
#[derive(Debug)]
pub struct Objects<K, T>(Arc<BTreeMap<K, Arc<T>>>);

/// An object before and after; one of the two at least is there.
#[derive(Debug)]
pub struct Change<'a, T> {
    /// As it was.
    pub old: Option<&'a Arc<T>>,
    /// As it is.
    pub new: Option<&'a Arc<T>>,
}

impl<K, T> Objects<K, T> {
    /// One is a copy of the other, and neither was changed.
    #[must_use]
    pub fn is_copy_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<K: Ord, T> Objects<K, T> {
    /// The objects that came, went or are another `Arc`, in the order of their names. One walk: an object that is
    /// the same `Arc` costs a comparison of pointers, and a copy that was not changed costs one for all.
    pub fn changes<'a>(&'a self, new: &'a Self) -> impl Iterator<Item = Change<'a, T>> {
        let copy = self.is_copy_of(new);
        let (mut old, mut new) = (self.iter().peekable(), new.iter().peekable());
        std::iter::from_fn(move || {
            if copy {
                return None;
            }
            loop {
                let order = match (old.peek(), new.peek()) {
                    (Some((_, before)), Some((_, after))) if Arc::ptr_eq(before, after) => {
                        old.next();
                        new.next();
                        continue;
                    }
                    (Some((before, _)), Some((after, _))) => before.cmp(after),
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (None, None) => return None,
                };
                let old = order.is_le().then(|| old.next()).flatten();
                let new = order.is_ge().then(|| new.next()).flatten();
                return Some(Change {
                    old: old.map(|(_, object)| object),
                    new: new.map(|(_, object)| object),
                });
            }
        })
    }
}

impl<K, T> Clone for Objects<K, T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K, T> Default for Objects<K, T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: PartialEq, T: PartialEq> PartialEq for Objects<K, T> {
    fn eq(&self, other: &Self) -> bool {
        self.is_copy_of(other) || self.0 == other.0
    }
}

impl<K, T> Deref for Objects<K, T> {
    type Target = BTreeMap<K, Arc<T>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// Copies the map, not the objects, if another has it, too.
impl<K: Clone, T> DerefMut for Objects<K, T> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        Arc::make_mut(&mut self.0)
    }
}

impl<'a, K, T> IntoIterator for &'a Objects<K, T> {
    type Item = (&'a K, &'a Arc<T>);
    type IntoIter = btree_map::Iter<'a, K, Arc<T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<K: Ord, T> FromIterator<(K, Arc<T>)> for Objects<K, T> {
    fn from_iter<I: IntoIterator<Item = (K, Arc<T>)>>(objects: I) -> Self {
        Self(Arc::new(objects.into_iter().collect()))
    }
}

impl<K: Ord, T, const N: usize> From<[(K, Arc<T>); N]> for Objects<K, T> {
    fn from(objects: [(K, Arc<T>); N]) -> Self {
        objects.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_copy_shares_until_it_is_changed() {
        let first: Objects<u8, u8> = [(1, Arc::new(1)), (2, Arc::new(2))].into();
        let mut second = first.clone();
        assert!(second.is_copy_of(&first) && first.changes(&second).next().is_none());
        second.insert(1, Arc::new(7));
        assert!(!second.is_copy_of(&first));
        assert_eq!((*first[&1], *second[&1]), (1, 7));
        assert!(Arc::ptr_eq(&first[&2], &second[&2]));
    }

    proptest! {
        #[test]
        fn changes_are_what_differs(
            old in proptest::collection::btree_map(0_u8..12, 0_u8..2, 0..10),
            edits in proptest::collection::btree_map(0_u8..12, proptest::option::of(0_u8..2), 0..10),
        ) {
            let old: Objects<u8, u8> = old.into_iter().map(|(key, value)| (key, Arc::new(value))).collect();
            let mut new = old.clone();
            for (key, value) in &edits {
                match value {
                    Some(value) => drop(new.insert(*key, Arc::new(*value))),
                    None => drop(new.remove(key)),
                }
            }
            let value = |object: Option<&Arc<u8>>| object.map(|object| **object);
            let told: Vec<_> = old.changes(&new).map(|change| (value(change.old), value(change.new))).collect();
            let expected: Vec<_> = edits
                .iter()
                .map(|(key, value)| (old.get(key).map(|object| **object), *value))
                .filter(|change| *change != (None, None))
                .collect();
            prop_assert_eq!(told, expected);
        }
    }
}
