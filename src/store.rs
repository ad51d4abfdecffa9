//! The present model, and the state of the source that gives it.
//!
//! A [`Store`] holds the newest [`Snapshot`] and the newest [`Report`], each behind a `watch`: readers that
//! are slow skip what is old, and always work from a whole. Invariants: generations only grow, by one for each
//! model that differs from the last; an object that did not change keeps its `Arc`, so that a later diff may
//! compare pointers; `synced` never goes back to false, since what a source once said stays in force when
//! it can say no more. The store owns no task.

use crate::model::report::{Problem, Report, Severity};
use crate::model::{Model, Objects};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

#[cfg(test)]
mod tests;

/// One immutable state of everything known.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// 0 until the source spoke; then one more for each change.
    pub generation: u64,
    /// The source spoke: what is missing here does not exist. Until then nothing may be removed or refused on
    /// the strength of this snapshot.
    pub synced: bool,
    /// The model. Objects that did not change since the last snapshot are the same `Arc`.
    pub model: Arc<Model>,
}

/// The newest snapshot and report, for any number of readers.
#[derive(Debug)]
pub struct Store {
    snapshot: watch::Sender<Arc<Snapshot>>,
    report: watch::Sender<Arc<Report>>,
    /// Serialises publishers, so that the comparison need not run inside the `watch`'s own lock.
    publishing: Mutex<()>,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty store, not synced.
    #[must_use]
    pub fn new() -> Self {
        Self {
            snapshot: watch::Sender::new(Arc::default()),
            report: watch::Sender::new(Arc::default()),
            publishing: Mutex::new(()),
        }
    }

    /// Puts a model in force. The first makes the store synced; one equal to the last changes nothing and
    /// wakes nobody.
    pub fn publish(&self, model: Arc<Model>) {
        let _one_at_a_time = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current();
        let mut model = model;
        let changed = match compare(&current.model, &model) {
            Difference::None => false,
            Difference::Objects => true,
            // Whoever else has the model keeps his own.
            Difference::Sharing => share(&current.model, Arc::make_mut(&mut model)),
        };
        if changed || !current.synced {
            self.snapshot.send_replace(Arc::new(Snapshot {
                generation: current.generation.saturating_add(1),
                synced: true,
                model,
            }));
        }
    }

    /// A receiver of snapshots; its first value is the present one.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.subscribe()
    }

    /// The present snapshot.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// Takes the source's state, and logs which problems came and which went.
    pub fn report(&self, report: Report) {
        self.report.send_if_modified(|current| {
            if **current == report {
                return false;
            }
            log_changes(&current.problems, &report.problems);
            *current = Arc::new(report);
            true
        });
    }

    /// A receiver of the source's state; its first value is the present one.
    #[must_use]
    pub fn reports(&self) -> watch::Receiver<Arc<Report>> {
        self.report.subscribe()
    }
}

fn log_changes(old: &[Problem], new: &[Problem]) {
    let old: BTreeSet<_> = old.iter().collect();
    let new: BTreeSet<_> = new.iter().collect();
    for problem in old.difference(&new) {
        tracing::info!("no longer: {problem}");
    }
    for problem in new.difference(&old) {
        match problem.severity {
            Severity::Error => tracing::warn!("not in force: {problem}"),
            Severity::Warning => tracing::warn!("{problem}"),
        }
    }
}

/// How a model differs from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    /// In nothing.
    None,
    /// In objects; what did not change is the same `Arc`.
    Objects,
    /// Some that did not change are other `Arc`s.
    Sharing,
}

fn compare(old: &Model, new: &Model) -> Difference {
    [
        compare_map(&old.nodes, &new.nodes),
        compare_map(&old.namespaces, &new.namespaces),
        compare_map(&old.pods, &new.pods),
        compare_map(&old.services, &new.services),
        compare_map(&old.slices, &new.slices),
        compare_map(&old.policies, &new.policies),
    ]
    .into_iter()
    .max()
    .unwrap_or(Difference::None)
}

fn compare_map<K: Ord, T: PartialEq>(old: &Objects<K, T>, new: &Objects<K, T>) -> Difference {
    let mut found = Difference::None;
    for change in old.changes(new) {
        match (change.old, change.new) {
            (Some(old), Some(new)) if old == new => return Difference::Sharing,
            _ => found = Difference::Objects,
        }
    }
    found
}

/// Puts the old `Arc` in the place of each new one that equals it; says whether anything differs.
fn share(old: &Model, new: &mut Model) -> bool {
    // Each map must be gone through, whatever the others said: no `||` here.
    share_map(&old.nodes, &mut new.nodes)
        | share_map(&old.namespaces, &mut new.namespaces)
        | share_map(&old.pods, &mut new.pods)
        | share_map(&old.services, &mut new.services)
        | share_map(&old.slices, &mut new.slices)
        | share_map(&old.policies, &mut new.policies)
}

fn share_map<K: Ord + Clone, T: PartialEq>(old: &Objects<K, T>, new: &mut Objects<K, T>) -> bool {
    if old.is_copy_of(new) {
        return false;
    }
    let mut changed = old.len() != new.len();
    // Both are in order: one walk instead of a look-up for each object.
    let mut before = old.iter().peekable();
    for (key, object) in new.iter_mut() {
        while before.next_if(|(other, _)| *other < key).is_some() {}
        match before.next_if(|(other, _)| *other == key) {
            Some((_, same)) if Arc::ptr_eq(same, object) => {}
            Some((_, equal)) if **equal == **object => *object = Arc::clone(equal),
            _ => changed = true,
        }
    }
    changed
}
