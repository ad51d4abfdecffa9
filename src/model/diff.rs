//! What differs between two models: pure, in one walk over each map.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

/// An object before and after; one of the two at least is there.
#[derive(Debug)]
pub struct Change<'a, T> {
    /// As it was.
    pub old: Option<&'a Arc<T>>,
    /// As it is.
    pub new: Option<&'a Arc<T>>,
}

/// The objects that came, went or are another `Arc`, in the order of their names. An object that is the same `Arc`
/// costs a comparison of pointers.
pub fn changes<'a, K: Ord, T>(
    old: &'a BTreeMap<K, Arc<T>>,
    new: &'a BTreeMap<K, Arc<T>>,
) -> impl Iterator<Item = Change<'a, T>> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    std::iter::from_fn(move || {
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
            return Some(Change { old: old.map(|(_, object)| object), new: new.map(|(_, object)| object) });
        }
    })
}
