//! What the numbers of sets and rules stand for, for whoever tells drops and flows to people.
//!
//! Both outlive the policies: names are remembered when these are deleted, the newest few thousand, and none of an
//! earlier agent's time. Written by the reconciler only; readers hold the lock for one look-up.

use crate::policy::{Desired, RuleName, SetName, Touched};
use crate::reconcile::former::Former;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

#[derive(Debug, Default)]
struct Inner {
    sets: HashMap<u64, SetName>,
    rules: HashMap<u32, RuleName>,
    former_sets: Former<u64, SetName>,
    former_rules: Former<u32, RuleName>,
}

/// The names.
#[derive(Debug, Default)]
pub struct Names(RwLock<Inner>);

impl Names {
    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The policies that a set stands for or has stood for, and the direction in which they isolate.
    #[must_use]
    pub fn set(&self, number: u64) -> Option<SetName> {
        let inner = self.read();
        inner.sets.get(&number).or_else(|| inner.former_sets.get(&number)).cloned()
    }

    /// The rule that a number stands for or has stood for.
    #[must_use]
    pub fn rule(&self, number: u32) -> Option<RuleName> {
        let inner = self.read();
        inner.rules.get(&number).or_else(|| inner.former_rules.get(&number)).cloned()
    }

    /// Takes over what a plan has.
    pub(super) fn follow(&self, desired: &Desired, touched: &Touched) {
        if !touched.all && touched.sets.is_empty() && touched.rules.is_empty() {
            return;
        }
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Inner { sets, rules, former_sets, former_rules } = &mut *inner;
        let now = |number: &u64| desired.sets.get(number);
        follow(sets, former_sets, now, &touched.sets, touched.all.then(|| desired.sets.keys()));
        let now = |number: &u32| desired.rules.get(number);
        follow(rules, former_rules, now, &touched.rules, touched.all.then(|| desired.rules.keys()));
    }
}

/// Takes over those that are `touched`; with `all` those that are there now and those that were.
fn follow<'n, K: Copy + Ord + Hash + 'n, V: Clone + PartialEq + 'n>(
    known: &mut HashMap<K, V>,
    former: &mut Former<K, V>,
    now: impl Fn(&K) -> Option<&'n V>,
    touched: &BTreeSet<K>,
    all: Option<impl Iterator<Item = &'n K>>,
) {
    let mut numbers = touched.clone();
    if let Some(all) = all {
        numbers.extend(all.copied());
        numbers.extend(known.keys().copied());
    }
    for number in &numbers {
        match now(number) {
            Some(name) if known.get(number) == Some(name) => {}
            Some(name) => {
                former.forget(number);
                known.insert(*number, name.clone());
            }
            None => {
                if let Some(name) = known.remove(number) {
                    former.remember(*number, name);
                }
            }
        }
    }
}
