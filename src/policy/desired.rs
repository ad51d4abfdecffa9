//! What the policy tables ought to hold, what of it changed, and what its numbers stand for.

use super::number::{ByNumber, NumberHasher};
use super::{Direction, Sets};
use crate::model::ObjectName;
use netd_bpf::Addr;
use netd_bpf::policy::{Block, Decision, PolicyKey, Range, action};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

/// The ranges of a row and what holds beside them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct List {
    /// Disjoint, ascending.
    pub ranges: Vec<Range>,
    /// Where no range is.
    pub otherwise: Decision,
}

impl List {
    /// What it decides of a [`netd_bpf::policy::point`].
    #[must_use]
    pub fn decide(&self, point: u32) -> Decision {
        let behind = self.ranges.partition_point(|range| range.first <= point);
        let last = behind.checked_sub(1).and_then(|at| self.ranges.get(at));
        last.filter(|range| range.last >= point).map_or(self.otherwise, |range| range.decision)
    }

    /// It allows everything.
    pub(super) fn allows_all(&self) -> bool {
        let allows = |decision: &Decision| decision.action == action::ALLOW;
        allows(&self.otherwise) && self.ranges.iter().all(|range| allows(&range.decision))
    }
}

/// Rows of `POLICY` by set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows(ByNumber<ByNumber<Arc<List>>>);

impl Rows {
    /// One row.
    #[must_use]
    pub fn get(&self, key: &PolicyKey) -> Option<&Arc<List>> {
        self.0.get(&key.set)?.get(&key.identity)
    }

    /// The rows of a set, by identity and in no order.
    pub fn of(&self, set: u64) -> impl Iterator<Item = (u64, &Arc<List>)> {
        self.0.get(&set).into_iter().flatten().map(|(identity, list)| (*identity, list))
    }

    /// All rows, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (PolicyKey, &Arc<List>)> {
        self.0.iter().flat_map(|(set, rows)| {
            rows.iter().map(|(identity, list)| (PolicyKey { set: *set, identity: *identity }, list))
        })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.values().map(HashMap::len).sum()
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn insert(&mut self, key: PolicyKey, list: Arc<List>) {
        self.0.entry(key.set).or_default().insert(key.identity, list);
    }

    pub(super) fn remove(&mut self, key: &PolicyKey) -> bool {
        let Some(rows) = self.0.get_mut(&key.set) else { return false };
        let was = rows.remove(&key.identity).is_some();
        if rows.is_empty() {
            self.0.remove(&key.set);
        }
        was
    }

    pub(super) fn remove_set(&mut self, set: u64) {
        self.0.remove(&set);
    }
}

/// What `IDENTITIES` says of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The number.
    pub number: u64,
    /// An address of this node.
    pub node: bool,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RuleName {
    /// The policy.
    pub policy: ObjectName,
    /// Under `ingress` or `egress`.
    pub direction: Direction,
    /// Its place there, from 0.
    pub index: usize,
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}[{}]", self.policy, self.direction, self.index)
    }
}

/// What a set stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SetName {
    /// The direction in which it isolates.
    pub direction: Direction,
    /// The policies that do, by name.
    pub policies: Vec<ObjectName>,
}

/// Something that could not be planned as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Problem {
    /// A policy cannot be read: whomever it isolates is closed in that direction.
    Broken {
        /// The policy.
        policy: ObjectName,
        /// The direction.
        direction: Direction,
        /// Why.
        why: String,
    },
    /// The model has no object of a pod of this node, and policies of its namespace ask for labels: it is closed in the
    /// directions that these are about.
    Unknown {
        /// The pod.
        pod: ObjectName,
    },
    /// Policies that isolate a pod together need more ranges than a list may have: such pods are closed.
    TooLong {
        /// The direction.
        direction: Direction,
        /// The policies.
        policies: Vec<ObjectName>,
        /// Ranges of the longest list.
        ranges: usize,
    },
}

impl Problem {
    /// Whether it is about this pod, isolated by these policies.
    #[must_use]
    pub fn concerns(&self, pod: &str, isolating: &[String]) -> bool {
        let isolates = |name: &ObjectName| isolating.contains(&name.to_string());
        match self {
            Self::Unknown { pod: unknown } => unknown.to_string() == pod,
            Self::Broken { policy, .. } => isolates(policy),
            Self::TooLong { policies, .. } => policies.iter().all(isolates),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken { policy, direction, why } => {
                write!(
                    f,
                    "NetworkPolicy {policy} cannot be read: {why}; the pods that it selects are closed for {direction}"
                )
            }
            Self::Unknown { pod } => write!(
                f,
                "the source has no Pod {pod}, and NetworkPolicies of its namespace ask for labels: it is closed for what \
                 these are about"
            ),
            Self::TooLong { direction, policies, ranges } => {
                let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "the {direction} rules of NetworkPolicy {} come to {ranges} ranges of ports for one peer, {} are \
                     possible; the pods that they select are closed for {direction}",
                    names.join(", "),
                    netd_bpf::policy::MAX_RANGES
                )
            }
        }
    }
}

/// The tables as they are to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The sets of each pod of this node, by endpoint.
    pub pods: BTreeMap<u32, Sets>,
    /// Whose an address of this node's pods is.
    pub endpoints: HashMap<Addr, u32>,
    /// Rows of `IDENTITIES`.
    pub identities: HashMap<Addr, Identity>,
    /// Rows of `BLOCKS`.
    pub blocks: BTreeMap<Block, u64>,
    /// Rows of `POLICY`. What a row says follows from the numbers in its key: a set whose policies change gets another
    /// number.
    pub rows: Rows,
    /// What rules' numbers stand for.
    pub rules: HashMap<u32, RuleName>,
    /// What sets' numbers stand for.
    pub sets: HashMap<u64, SetName, BuildHasherDefault<NumberHasher>>,
    /// What could not be planned as it is wanted.
    pub problems: BTreeSet<Problem>,
}

/// What of a [`Desired`] may differ from before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// All of it may.
    pub all: bool,
    /// Sets of these pods.
    pub pods: BTreeSet<u32>,
    /// Rows of `IDENTITIES`.
    pub identities: HashSet<Addr>,
    /// Rows of `BLOCKS`.
    pub blocks: BTreeSet<Block>,
    /// Rows of `POLICY`, of sets that were there before and still are.
    pub rows: HashSet<PolicyKey>,
    /// Sets that came or went, with all their rows.
    pub sets: BTreeSet<u64>,
    /// Rules that came or went.
    pub rules: BTreeSet<u32>,
}

impl Touched {
    /// All may differ.
    #[must_use]
    pub fn all() -> Self {
        Self { all: true, ..Self::default() }
    }

    /// Nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let Self { all, pods, identities, blocks, rows, sets, rules } = self;
        !all && pods.is_empty()
            && identities.is_empty()
            && blocks.is_empty()
            && rows.is_empty()
            && sets.is_empty()
            && rules.is_empty()
    }
}
