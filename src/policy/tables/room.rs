//! What fits, decided before anything is written.
//!
//! - A set is written whole or not at all. Sets that stand come first, then others by their numbers; the pods of one
//!   that does not fit are closed.
//! - An address that does not fit has the identity of the longest block around it, to which a set says no more than to
//!   the address: what policies allow to addresses they allow to the pods that have them.
//! - A block that does not fit would leave its addresses to the block around it, which may be allowed more: the
//!   longest blocks are kept, so that what is left out lies in no block that is kept.

use super::{AddressChange, BlockChange, Next, PodChange, Row, Tables};
use crate::model::ObjectName;
use crate::policy::blocks::{around, longest};
use crate::policy::desired::{Desired, Identity, List, Touched};
use crate::policy::{Direction, Sets};
use netd_bpf::Addr;
use netd_bpf::policy::{
    Block, IdentityRow, PolicyKey, PolicyRow, identity, identity_flag, identity_seal, row_seal, set,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// A table that can be full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    /// `POLICY`.
    Rows,
    /// `RANGES`.
    Ranges,
}

/// What a set lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Lack {
    /// The table that is full.
    pub table: Table,
    /// What it would take: rows more than there are, or ranges in one piece.
    pub needs: u32,
}

/// Something that does not fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Refusal {
    /// The rows of a set: its pods are closed.
    Set {
        /// The direction in which they are.
        direction: Direction,
        /// The policies that isolate them.
        policies: Vec<ObjectName>,
        /// The pods' numbers.
        endpoints: Vec<u32>,
        /// What lacks.
        lack: Lack,
        /// Of so many.
        limit: u32,
    },
    /// Pods' addresses: rules that select these pods do not find them.
    Identities {
        /// The addresses.
        addresses: Vec<IpAddr>,
        /// Rows there are.
        limit: u32,
    },
    /// CIDRs: rules that name them do not allow them.
    Blocks {
        /// Address and prefix length, of 128.
        blocks: Vec<(IpAddr, u32)>,
        /// Rows there are.
        limit: u32,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set { direction, policies, endpoints, lack, limit } => {
                let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
                let what = match lack.table {
                    Table::Rows => "more policy rows",
                    Table::Ranges => "policy ranges in one piece",
                };
                write!(
                    f,
                    "{} pods are closed for {direction}: NetworkPolicy {} takes {} {what}, there are {limit} in all",
                    endpoints.len(),
                    names.join(", "),
                    lack.needs
                )
            }
            Self::Identities { addresses, limit } => {
                let first = addresses.first().map(ToString::to_string).unwrap_or_default();
                write!(
                    f,
                    "policies do not know {} pod addresses, {first} the first: {limit} are possible",
                    addresses.len()
                )
            }
            Self::Blocks { blocks, limit } => {
                write!(f, "policies do not allow {} of their CIDR blocks: {limit} are possible", blocks.len())
            }
        }
    }
}

/// A row of `IDENTITIES`.
fn identity_row(addr: &Addr, identity: &Identity) -> IdentityRow {
    let flags = if identity.node { identity_flag::NODE } else { 0 };
    sealed(addr, IdentityRow { identity: identity.number, flags, seal: 0 })
}

/// With its seal.
pub(super) fn sealed(addr: &Addr, mut row: IdentityRow) -> IdentityRow {
    row.seal = identity_seal(addr, &row);
    row
}

impl Tables {
    /// Finds room for the rows of sets; true if some set has got room that had none, or the other way round.
    pub(super) fn admit_sets(
        &mut self,
        desired: &Desired,
        touched: &Touched,
        all: bool,
        next: &mut Next,
    ) -> bool {
        let mut some: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for key in &touched.rows {
            some.entry(key.set).or_default().push(key.identity);
        }
        // Sets that stand and of which only some rows may differ; all others that are used and may not stand.
        let mut order: Vec<u64> = if all {
            self.users.keys().copied().collect()
        } else {
            let pods = touched.pods.iter().filter_map(|endpoint| self.wanted.get(endpoint));
            let known = pods.flat_map(|sets| sets.both()).chain(touched.sets.iter().copied());
            let known: BTreeSet<u64> =
                known.chain(self.short.keys().copied()).chain(some.keys().copied()).collect();
            known.into_iter().filter(|number| self.users.contains_key(number)).collect()
        };
        order.sort_unstable_by_key(|number| {
            (!self.whole.contains(number), self.short.contains_key(number), *number)
        });
        let before: BTreeSet<u64> = self.short.keys().copied().collect();
        let mut added = 0;
        for number in order {
            let stands = self.whole.contains(&number);
            let partly = stands && !all && !touched.sets.contains(&number);
            if partly && !some.contains_key(&number) {
                continue;
            }
            let identities = if partly { some.get(&number).map(Vec::as_slice) } else { None };
            match self.admit(desired, number, identities, added, next) {
                Ok(more) => {
                    added += more;
                    self.whole.insert(number);
                    self.short.remove(&number);
                }
                Err(lack) => {
                    self.whole.remove(&number);
                    self.short.insert(number, lack);
                    next.unused.insert(number);
                }
            }
        }
        let users = &self.users;
        self.short.retain(|number, _| users.contains_key(number));
        if all {
            next.unused.extend(self.rows.sets.keys().filter(|number| !users.contains_key(number)));
            self.whole.retain(|number| users.contains_key(number));
        } else {
            // What nobody uses any more was a touched pod's.
            let left = touched
                .pods
                .iter()
                .filter_map(|endpoint| self.pods.get(endpoint))
                .flat_map(|sets| sets.both());
            for number in
                left.chain(touched.sets.iter().copied()).filter(|number| !users.contains_key(number))
            {
                self.whole.remove(&number);
                next.unused.insert(number);
            }
        }
        before != self.short.keys().copied().collect()
    }

    /// Finds room for the rows of one set, or for these of them. Gives how many more there will be.
    fn admit(
        &mut self,
        desired: &Desired,
        number: u64,
        identities: Option<&[u64]>,
        added: usize,
        next: &mut Next,
    ) -> Result<usize, Lack> {
        let key = |identity| PolicyKey { set: number, identity };
        let mut wanted: Vec<(PolicyKey, &Arc<List>)> = match identities {
            Some(some) => {
                some.iter().filter_map(|one| Some((key(*one), desired.rows.get(&key(*one))?))).collect()
            }
            None => desired.rows.of(number).map(|(one, list)| (key(one), list)).collect(),
        };
        wanted.retain(|(key, list)| !self.rows.get(key).is_some_and(|row| row.says(list)));
        wanted.sort_unstable_by_key(|(key, _)| *key);
        let more = wanted.iter().filter(|(key, _)| self.rows.get(key).is_none()).count();
        let room = (self.limits.rows as usize).saturating_sub(1 + self.rows.count + added);
        if more > room {
            return Err(Lack { table: Table::Rows, needs: u32::try_from(more).unwrap_or(u32::MAX) });
        }
        let (lists, rows) = (next.lists.len(), next.rows.len());
        for (key, list) in wanted {
            let Some(named) = self.lists.acquire(&list.ranges) else {
                next.lists.truncate(lists);
                for (_, row) in next.rows.drain(rows..) {
                    self.lists.release(row.ranges.as_deref().unwrap_or_default(), false);
                }
                let needs = u32::try_from(list.ranges.len()).unwrap_or(u32::MAX);
                return Err(Lack { table: Table::Ranges, needs });
            };
            if named.new {
                next.lists.push((named.base, Arc::clone(&named.ranges)));
            }
            let count = u32::try_from(list.ranges.len()).unwrap_or(u32::MAX);
            let mut row = PolicyRow { ranges: named.base, count, otherwise: list.otherwise, seal: 0 };
            row.seal = row_seal(&key, &row);
            next.rows.push((key, Row { row, ranges: Some(named.ranges) }));
        }
        let unwanted = |identity: &u64| desired.rows.get(&key(*identity)).is_none();
        let held = self.rows.sets.get(&number);
        match identities {
            Some(some) => next.stale.extend(
                some.iter()
                    .filter(|one| unwanted(one))
                    .map(|one| key(*one))
                    .filter(|key| self.rows.get(key).is_some()),
            ),
            None => next.stale.extend(
                held.iter().flat_map(|rows| rows.keys()).filter(|one| unwanted(one)).map(|one| key(*one)),
            ),
        }
        Ok(more)
    }

    /// The sets that pods get.
    pub(super) fn compare_pods(&self, touched: &Touched, all: bool, next: &mut Next) {
        let endpoints: BTreeSet<u32> = if all {
            self.wanted.keys().chain(self.pods.keys()).copied().collect()
        } else {
            touched.pods.clone()
        };
        for endpoint in endpoints {
            let new = self.wanted.get(&endpoint).map(|wanted| {
                let closed = |number: u64| number & set::MARK != 0 && !self.whole.contains(&number);
                let shut = |sets: Sets, direction: Direction| {
                    if closed(sets.of(direction)) { sets.with(direction, set::CLOSED) } else { sets }
                };
                Direction::ALL.into_iter().fold(*wanted, shut)
            });
            let old = self.pods.get(&endpoint).copied();
            if old != new {
                next.pods.push(PodChange { endpoint, old, new });
            }
        }
    }

    /// The identities that blocks get.
    pub(super) fn compare_blocks(
        &mut self,
        desired: &Desired,
        touched: &Touched,
        all: bool,
        next: &mut Next,
    ) {
        let limit = self.limits.blocks as usize;
        let tight = desired.blocks.len() > limit;
        if !all && touched.blocks.is_empty() && !tight && self.blocks_left_out.is_empty() {
            return;
        }
        let kept: BTreeMap<Block, u64>;
        let wanted = if tight {
            // They stand in the order of their lengths.
            kept = desired.blocks.iter().rev().take(limit).map(|(block, number)| (*block, *number)).collect();
            &kept
        } else {
            &desired.blocks
        };
        self.blocks_left_out =
            desired.blocks.keys().filter(|block| tight && !wanted.contains_key(block)).copied().collect();
        let may_differ: BTreeSet<Block> = if all || tight {
            wanted.keys().chain(self.blocks.keys()).copied().collect()
        } else {
            touched
                .blocks
                .iter()
                .chain(wanted.keys().filter(|block| !self.blocks.contains_key(block)))
                .copied()
                .collect()
        };
        for block in may_differ {
            let (old, new) = (self.blocks.get(&block).copied(), wanted.get(&block).copied());
            if old == new {
                continue;
            }
            let outside = |blocks: &BTreeMap<Block, u64>| {
                around(blocks, &block).map_or(identity::WORLD, |(_, one)| *one)
            };
            let from = old.unwrap_or_else(|| outside(&self.blocks));
            let to = new.unwrap_or_else(|| outside(wanted));
            next.blocks.push(BlockChange { block, new, from, to });
        }
    }

    /// The identities that addresses get. Blocks are compared already.
    pub(super) fn compare_identities(
        &mut self,
        desired: &Desired,
        touched: &Touched,
        all: bool,
        next: &mut Next,
    ) {
        let touched: HashSet<Addr> = if all {
            desired.identities.keys().chain(self.identities.keys()).copied().collect()
        } else {
            touched.identities.iter().chain(&self.left_out).copied().collect()
        };
        let mut changes: Vec<(Addr, Option<IdentityRow>, Option<IdentityRow>)> = touched
            .into_iter()
            .map(|addr| {
                let new = desired.identities.get(&addr).map(|identity| identity_row(&addr, identity));
                (addr, self.identities.get(&addr).copied(), new)
            })
            .filter(|(_, old, new)| old != new)
            .collect();
        // Those that need no room first, then this node's, then by address.
        let node = |row: &Option<IdentityRow>| row.is_some_and(|row| row.flags & identity_flag::NODE != 0);
        changes.sort_unstable_by_key(|(addr, old, new)| (old.is_none(), !node(new), IpAddr::from(*addr)));
        let gone = changes.iter().filter(|(_, _, new)| new.is_none()).count();
        let mut room = (self.limits.identities as usize).saturating_sub(self.identities.len() - gone);
        self.left_out.clear();
        let mut after = std::borrow::Cow::Borrowed(&self.blocks);
        for change in &next.blocks {
            match change.new {
                Some(number) => drop(after.to_mut().insert(change.block, number)),
                None => drop(after.to_mut().remove(&change.block)),
            }
        }
        for (addr, old, new) in changes {
            if old.is_none() {
                if room == 0 {
                    self.left_out.insert(addr);
                    continue;
                }
                room -= 1;
            }
            let of = |blocks: &BTreeMap<Block, u64>| {
                longest(blocks, addr).map_or(identity::WORLD, |(_, one)| *one)
            };
            let from = old.map_or_else(|| of(&self.blocks), |row| row.identity);
            let to = new.map_or_else(|| of(&after), |row| row.identity);
            next.identities.push(AddressChange { addr, old, new, from, to });
        }
    }

    /// All that does not fit.
    pub(super) fn refusals(&self, desired: &Desired) -> Vec<Refusal> {
        let mut refused = Vec::new();
        for (number, lack) in &self.short {
            let Some(name) = desired.sets.get(number) else { continue };
            let has = |sets: &Sets| sets.of(name.direction) == *number;
            refused.push(Refusal::Set {
                direction: name.direction,
                policies: name.policies.clone(),
                endpoints: self
                    .wanted
                    .iter()
                    .filter(|(_, sets)| has(sets))
                    .map(|(endpoint, _)| *endpoint)
                    .collect(),
                lack: *lack,
                limit: match lack.table {
                    Table::Rows => self.limits.rows.saturating_sub(1),
                    Table::Ranges => self.limits.ranges,
                },
            });
        }
        if !self.left_out.is_empty() {
            let addresses = self.left_out.iter().map(|addr| IpAddr::from(*addr)).collect();
            refused.push(Refusal::Identities { addresses, limit: self.limits.identities });
        }
        if !self.blocks_left_out.is_empty() {
            let blocks = self.blocks_left_out.iter().map(|block| (block.addr.into(), block.prefix)).collect();
            refused.push(Refusal::Blocks { blocks, limit: self.limits.blocks });
        }
        refused
    }
}
