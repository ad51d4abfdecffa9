//! The agent's image of the kernel's policy tables, and the operations that bring it to the plan.
//!
//! The image is built from what the kernel holds ([`Tables::read`]), at start as after a failure. [`Tables::plan`]
//! compares a [`Desired`] with it and gives operations in an order that is safe to stop after any of them: each packet
//! gets the verdict of before or that of after, or, while room is short, none. The order and why is in `order`.
//!
//! Room is looked at before anything is written. A set whose rows do not fit is not written at all and its pods are
//! closed; an address or block that does not fit is left out, so that less is allowed and never more (`room`). All that
//! is refused is named, and tried again with every plan.

mod lists;
mod order;
mod read;
mod room;

pub use read::{Drift, Kernel};
pub use room::{Lack, Refusal, Table};

use super::Sets;
use super::desired::{Desired, List, Touched};
use super::number::ByNumber;
use lists::Lists;
use netd_bpf::Addr;
use netd_bpf::policy::{Block, IdentityRow, PolicyKey, PolicyRow, Range, set};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The row that stands in `POLICY` while a change is under way which ends with another epoch: no program asks for it,
/// and whoever finds it after a crash knows that the epoch is still to be changed.
pub const UNDER_WAY: PolicyKey = PolicyKey { set: set::OPEN, identity: netd_bpf::policy::identity::ANY };

/// Sizes of the kernel's maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows of `POLICY`; one is never a set's.
    pub rows: u32,
    /// Elements of `RANGES`.
    pub ranges: u32,
    /// Rows of `IDENTITIES`.
    pub identities: u32,
    /// Rows of `BLOCKS`.
    pub blocks: u32,
}

/// One write to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Fills elements of `RANGES` that no row names.
    SetRanges {
        /// The first.
        base: u32,
        /// What is written.
        ranges: Arc<[Range]>,
    },
    /// Sets a row of `POLICY`.
    SetRow {
        /// Its key.
        key: PolicyKey,
        /// The row, sealed.
        row: PolicyRow,
    },
    /// Sets a row of `BLOCKS`.
    SetBlock {
        /// The block.
        block: Block,
        /// Its identity.
        identity: u64,
    },
    /// Sets a row of `IDENTITIES`.
    SetIdentity {
        /// The address.
        addr: Addr,
        /// The row, sealed.
        row: IdentityRow,
    },
    /// Gives a pod its sets, in all of its rows.
    SetPod {
        /// The pod's number.
        endpoint: u32,
        /// The sets.
        sets: Sets,
    },
    /// A pod is none any more: whoever still has this number is closed.
    RemovePod {
        /// The pod's number.
        endpoint: u32,
    },
    /// Gives `POLICY_EPOCH` another value.
    BumpEpoch,
    /// Deletes a row of `IDENTITIES`.
    RemoveIdentity {
        /// The address.
        addr: Addr,
    },
    /// Deletes a row of `BLOCKS`.
    RemoveBlock {
        /// The block.
        block: Block,
    },
    /// Deletes a row of `POLICY`.
    RemoveRow {
        /// Its key.
        key: PolicyKey,
    },
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetRanges { base, ranges } => write!(f, "setting {} ranges from {base}", ranges.len()),
            Self::SetRow { key, .. } => write!(f, "setting policy row {:x}/{:x}", key.set, key.identity),
            Self::SetBlock { block, .. } => write!(f, "setting block {}/{}", block.addr, block.prefix),
            Self::SetIdentity { addr, .. } => write!(f, "setting the identity of {addr}"),
            Self::SetPod { endpoint, .. } => write!(f, "setting the policy sets of endpoint {endpoint}"),
            Self::RemovePod { endpoint } => write!(f, "closing endpoint {endpoint}"),
            Self::BumpEpoch => f.write_str("changing the policy epoch"),
            Self::RemoveIdentity { addr } => write!(f, "deleting the identity of {addr}"),
            Self::RemoveBlock { block } => write!(f, "deleting block {}/{}", block.addr, block.prefix),
            Self::RemoveRow { key } => write!(f, "deleting policy row {:x}/{:x}", key.set, key.identity),
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub ops: Vec<Op>,
    /// What does not fit.
    pub refused: Vec<Refusal>,
    /// The operations make room for some of it: plan again once they are done.
    pub again: bool,
}

/// Rows of one table, used and at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Rows in use.
    pub used: u32,
    /// Rows in quarantine.
    pub held: u32,
    /// Rows there are.
    pub limit: u32,
}

/// Use of all policy tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usages {
    /// What sets say of identities.
    pub rows: Usage,
    /// Ports of lists.
    pub ranges: Usage,
    /// Pods' and this node's addresses.
    pub identities: Usage,
    /// CIDRs.
    pub blocks: Usage,
}

/// A row as the kernel has it.
#[derive(Clone, Debug)]
struct Row {
    row: PolicyRow,
    /// What it names in `RANGES`; nothing: it cannot be trusted.
    ranges: Option<Arc<[Range]>>,
}

impl Row {
    fn says(&self, list: &List) -> bool {
        self.row.otherwise == list.otherwise && self.ranges.as_deref() == Some(list.ranges.as_slice())
    }

    /// The same about who gets what, whoever decides it.
    fn allows_the_same(&self, other: &Self) -> bool {
        let (Some(own), Some(others)) = (&self.ranges, &other.ranges) else { return false };
        let same = |(a, b): (&Range, &Range)| {
            (a.first, a.last, a.decision.action) == (b.first, b.last, b.decision.action)
        };
        self.row.otherwise.action == other.row.otherwise.action
            && own.len() == others.len()
            && own.iter().zip(others.iter()).all(same)
    }
}

/// Rows by set and identity.
#[derive(Clone, Debug, Default)]
struct Rows {
    sets: ByNumber<ByNumber<Row>>,
    count: usize,
}

impl Rows {
    fn get(&self, key: &PolicyKey) -> Option<&Row> {
        self.sets.get(&key.set)?.get(&key.identity)
    }

    /// The row that a program uses.
    fn in_force(&self, set: u64, identity: u64) -> Option<&Row> {
        let rows = self.sets.get(&set)?;
        rows.get(&identity).or_else(|| rows.get(&netd_bpf::policy::identity::ANY))
    }

    fn insert(&mut self, key: PolicyKey, row: Row) -> Option<Row> {
        let before = self.sets.entry(key.set).or_default().insert(key.identity, row);
        self.count += usize::from(before.is_none());
        before
    }

    fn remove(&mut self, key: &PolicyKey) -> Option<Row> {
        let rows = self.sets.get_mut(&key.set)?;
        let row = rows.remove(&key.identity);
        if rows.is_empty() {
            self.sets.remove(&key.set);
        }
        self.count -= usize::from(row.is_some());
        row
    }
}

/// The image.
#[derive(Clone, Debug)]
pub struct Tables {
    limits: Limits,
    quarantine: Duration,
    pods: BTreeMap<u32, Sets>,
    identities: HashMap<Addr, IdentityRow>,
    blocks: BTreeMap<Block, u64>,
    rows: Rows,
    lists: Lists,
    /// The kernel holds [`UNDER_WAY`].
    under_way: bool,
    /// Something was planned since the image was read.
    begun: bool,
    /// What pods are to have, and how many are to have each set.
    wanted: BTreeMap<u32, Sets>,
    users: ByNumber<u32>,
    /// Sets whose rows stand.
    whole: HashSet<u64>,
    /// Sets that found no room, and what lacked.
    short: BTreeMap<u64, Lack>,
    /// What else found no room.
    left_out: BTreeSet<Addr>,
    blocks_left_out: BTreeSet<Block>,
}

/// What a plan comes to, before it is put in order.
#[derive(Debug, Default)]
struct Next {
    /// Lists that are to be written.
    lists: Vec<(u32, Arc<[Range]>)>,
    /// Rows that are to be written.
    rows: Vec<(PolicyKey, Row)>,
    /// Rows of sets in use that nobody wants.
    stale: Vec<PolicyKey>,
    /// Sets that nobody uses, with all their rows.
    unused: BTreeSet<u64>,
    blocks: Vec<BlockChange>,
    identities: Vec<AddressChange>,
    pods: Vec<PodChange>,
}

/// Another identity of a block, or none; and of the addresses that have it from there.
#[derive(Clone, Copy, Debug)]
struct BlockChange {
    block: Block,
    new: Option<u64>,
    from: u64,
    to: u64,
}

/// Another row of an address, or none.
#[derive(Clone, Copy, Debug)]
struct AddressChange {
    addr: Addr,
    old: Option<IdentityRow>,
    new: Option<IdentityRow>,
    from: u64,
    to: u64,
}

/// Other sets of a pod, or none.
#[derive(Clone, Copy, Debug)]
struct PodChange {
    endpoint: u32,
    old: Option<Sets>,
    new: Option<Sets>,
}

impl Tables {
    /// Brings the image to `desired`, as far as it fits, and says how to bring the kernel there. `touched` is what
    /// differs from the `desired` of the plan before. Call [`Self::applied`] when that is done; if it failed, start over
    /// from [`Self::read`].
    pub fn plan(&mut self, desired: &Desired, touched: &Touched, now: Instant) -> Plan {
        self.lists.expire(now);
        let all = touched.all || !self.begun;
        self.begun = true;
        let mut next = Next::default();
        self.take_wanted(desired, touched, all);
        let judged = self.admit_sets(desired, touched, all, &mut next);
        self.compare_pods(touched, all || judged, &mut next);
        self.compare_blocks(desired, touched, all, &mut next);
        self.compare_identities(desired, touched, all, &mut next);
        let ops = self.order(next, all);
        let refused = self.refusals(desired);
        let removes = |op: &Op| {
            matches!(op, Op::RemoveIdentity { .. } | Op::RemoveBlock { .. })
                || matches!(op, Op::RemoveRow { key } if *key != UNDER_WAY)
        };
        let again = !refused.is_empty() && ops.iter().any(removes);
        Plan { ops, refused, again }
    }

    /// All operations of the last plan are in the kernel: the quarantine of the lists that they left begins.
    pub fn applied(&mut self, now: Instant) {
        self.lists.applied(now + self.quarantine);
    }

    /// Frees what left its quarantine; true if that may be room for what was refused: plan again.
    pub fn expire(&mut self, now: Instant) -> bool {
        self.lists.expire(now) && !self.short.is_empty()
    }

    /// When the next quarantine ends.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Instant> {
        self.lists.next_expiry()
    }

    /// How full the tables are.
    #[must_use]
    pub fn usages(&self) -> Usages {
        let Limits { rows, identities, blocks, .. } = self.limits;
        let usage =
            |used: usize, limit| Usage { used: u32::try_from(used).unwrap_or(u32::MAX), held: 0, limit };
        Usages {
            rows: usage(self.rows.count, rows.saturating_sub(1)),
            ranges: self.lists.usage(),
            identities: usage(self.identities.len(), identities),
            blocks: usage(self.blocks.len(), blocks),
        }
    }

    /// The sets of a pod as the kernel has them once the last plan is done.
    #[must_use]
    pub fn pod(&self, endpoint: u32) -> Option<Sets> {
        self.pods.get(&endpoint).copied()
    }

    /// Takes over which pods are to have which sets.
    fn take_wanted(&mut self, desired: &Desired, touched: &Touched, all: bool) {
        if all {
            self.wanted.clone_from(&desired.pods);
            self.users.clear();
            for number in self.wanted.values().flat_map(|sets| sets.both()).filter(|set| set & set::MARK != 0)
            {
                *self.users.entry(number).or_default() += 1;
            }
            return;
        }
        for endpoint in &touched.pods {
            let new = desired.pods.get(endpoint).copied();
            let old = match new {
                Some(sets) => self.wanted.insert(*endpoint, sets),
                None => self.wanted.remove(endpoint),
            };
            let marked = |sets: Option<Sets>| {
                sets.into_iter().flat_map(Sets::both).filter(|number| number & set::MARK != 0)
            };
            for number in marked(new) {
                *self.users.entry(number).or_default() += 1;
            }
            for number in marked(old) {
                if let Some(users) = self.users.get_mut(&number) {
                    *users -= 1;
                    if *users == 0 {
                        self.users.remove(&number);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod proptests;
#[cfg(test)]
mod tests;
