//! The planner: from the model to the tables, and from one model to the next by what differs.
//!
//! What it knows, from both ends to the middle:
//!
//! - `policies`: each policy's *parts*, one per direction, with their rules; `peers`: the other ends that rules allow,
//!   each once, however many rules name it;
//! - `pods`: the pods by name, local or not, and the namespaces; `addresses`: who claims which address;
//! - `classes`: a *profile* is all that policies ask of a pod, a *block* the longest CIDR that has an address; an
//!   address's *class* is the two, and has a number, its identity;
//! - `sets`: which parts isolate a local pod in a direction, and the rows of those parts for each class.
//!
//! Peers match profiles and blocks, so rows are found from either end: all rows of a new set by its peers, all rows of
//! a new class by what matches it. Only peers of parts that are in a set are matched at all.
//!
//! Invariants between two updates: numbers follow from content (`number`), so the tables of an update are those of a
//! planner that starts with that model; a row exists if a rule allows the class more than everybody; nothing is kept of
//! what is gone.

/// Names of the fields that are not empty. All have to be told, those that need not be empty at the end.
#[cfg(test)]
macro_rules! left {
    ($of:expr; $($field:ident),+ $(; $other:ident)*) => {{
        let Self { $($field,)+ $($other: _,)* } = $of;
        let fields = [$((stringify!($field), $field.is_empty())),+];
        fields.into_iter().filter(|(_, empty)| !empty).map(|(name, _)| name).collect::<Vec<&str>>()
    }};
}

mod addresses;
mod classes;
mod peers;
mod pods;
mod policies;
mod sets;
mod uses;

use super::desired::{Desired, Touched};
use super::selector::Selector;
use super::{Input, LocalPod};
use crate::model::{Namespace, NetworkPolicy, ObjectName, Objects, Pod};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// See the module.
#[derive(Debug, Default)]
pub struct Planner {
    desired: Desired,
    touched: Touched,
    seen: Seen,
    next_id: u32,
    policies: policies::Policies,
    peers: peers::Peers,
    pods: pods::Pods,
    addresses: BTreeMap<u128, addresses::Address>,
    classes: classes::Classes,
    sets: sets::SetBook,
    dirty: Dirty,
}

/// The input of the last update.
#[derive(Debug, Default)]
struct Seen {
    begun: bool,
    policies: Objects<ObjectName, NetworkPolicy>,
    namespaces: Objects<Arc<str>, Namespace>,
    pods: Objects<ObjectName, Pod>,
    locals: BTreeMap<u32, LocalPod>,
    node: Arc<str>,
    node_addresses: BTreeSet<IpAddr>,
}

/// What is to be looked at before the update ends.
#[derive(Debug, Default)]
struct Dirty {
    /// Pods whose profile may be another.
    profiles: BTreeSet<u32>,
    /// Pods whose policies may be others.
    subjects: BTreeSet<u32>,
    /// Selectors of policies that came, went or changed, by namespace.
    selectors: BTreeMap<Arc<str>, Vec<Selector>>,
    /// Addresses whose class may be another.
    addresses: BTreeSet<u128>,
}

impl Planner {
    /// One that knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Brings the tables up to date; tells what of them may differ from the last update.
    pub fn update(&mut self, input: Input<'_>) -> Touched {
        let first = !self.seen.begun || *self.seen.node != *input.node;
        if first {
            *self = Self::default();
            self.seen.begun = true;
            self.seen.node = input.node.into();
        }
        let policies = std::mem::replace(&mut self.seen.policies, input.model.policies.clone());
        for change in policies.changes(&input.model.policies) {
            self.change_policy(change.old, change.new);
        }
        self.settle_blocks();
        let namespaces = std::mem::replace(&mut self.seen.namespaces, input.model.namespaces.clone());
        for change in namespaces.changes(&input.model.namespaces) {
            self.change_namespace(change.old, change.new);
        }
        let pods = std::mem::replace(&mut self.seen.pods, input.model.pods.clone());
        for change in pods.changes(&input.model.pods) {
            self.change_pod(change.old, change.new);
        }
        self.change_locals(input.locals);
        self.change_node_addresses(input.node_addresses);
        self.settle_keys();
        self.mark_subjects();

        self.renew_profiles();
        self.renew_addresses();
        self.sweep_classes();
        self.fill_new_classes();
        self.renew_sets();
        self.sweep_pods();
        let touched = std::mem::take(&mut self.touched);
        if first { Touched::all() } else { touched }
    }

    /// The tables as they are to be.
    #[must_use]
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// How many identities there are, beside that of all the world.
    #[must_use]
    pub fn identities(&self) -> usize {
        self.classes.len()
    }

    /// A number for something within this planner; none is given twice.
    fn id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }
}

#[cfg(test)]
impl Dirty {
    /// What is not empty.
    fn left(&self) -> Vec<&'static str> {
        left!(self; profiles, subjects, selectors, addresses)
    }
}

#[cfg(test)]
pub(super) mod tests;
