//! What the numbers of sets and rules stand for, for whoever tells drops and flows to people.
//!
//! Both outlive the policies: names are remembered when these are deleted, the newest few thousand, and none of an
//! earlier agent's time. Written by the reconciler only; readers hold the lock for one look-up.

use crate::policy::{Desired, RuleName, SetName, Touched};
use crate::reconcile::former::Former;
use std::collections::{HashMap, HashSet};
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

    /// Takes over what a plan has. A policy that changes gives its sets other numbers, so that without a set which
    /// came or went there is nothing new.
    pub(super) fn follow(&self, desired: &Desired, touched: &Touched) {
        if !touched.all && touched.sets.is_empty() {
            return;
        }
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Inner { sets, rules, former_sets, former_rules } = &mut *inner;
        follow(sets, former_sets, desired.sets.iter());
        follow(rules, former_rules, desired.rules.iter());
    }
}

fn follow<'n, K: Copy + Eq + std::hash::Hash + 'n, V: Clone + PartialEq + 'n>(
    known: &mut HashMap<K, V>,
    former: &mut Former<K, V>,
    now: impl Iterator<Item = (&'n K, &'n V)>,
) {
    let mut gone: HashSet<K> = known.keys().copied().collect();
    for (number, name) in now {
        gone.remove(number);
        if known.get(number) != Some(name) {
            former.forget(number);
            known.insert(*number, name.clone());
        }
    }
    for number in gone {
        if let Some(name) = known.remove(&number) {
            former.remember(number, name);
        }
    }
}
