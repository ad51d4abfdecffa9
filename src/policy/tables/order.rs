//! The order of writes: after each of them, every packet gets the verdict of before or that of after.
//!
//! A verdict is looked up with the set of a pod and the identity of the other end, and what a row says follows from
//! these two numbers alone. So there are two flips, of a pod from one set to another, and of an address from one
//! identity to another, and each is safe where the rows of both sides stand: new rows are written before, unwanted ones
//! removed behind. Where in one plan sets *and* identities flip, a pod and an address would meet half-way, and be
//! judged by old policies with new labels or the other way round, which may allow what neither state does. There an
//! address that flips goes over a *bridge*, an identity of its own for this pair of identities. Its rows say in sets
//! that are left what the old identity gets there, and in all others what the new one gets:
//!
//! 1. lists, then rows;
//! 2. pods that become open, or go;
//! 3. rows of bridges, then addresses and blocks onto them;
//! 4. pods from one set to another;
//! 5. addresses and blocks to their new identities;
//! 6. pods from nothing, or from being open, to their sets;
//! 7. the epoch; 8. removal of rows and lists.
//!
//! A bridge without rows, for lack of room or because pods both leave and join a set, denies what the set does not
//! allow to everybody. Blocks are set from the longest on and removed from the shortest on, so that an exception is
//! never missing from the block around it. Where blocks old and new do not fit together, pods that flip are closed
//! meanwhile.

use super::room::sealed;
use super::{AddressChange, BlockChange, Next, Op, PodChange, Row, Tables, UNDER_WAY};
use crate::policy::number::Text;
use crate::policy::{Direction, Sets};
use netd_bpf::policy::{Block, IdentityRow, PolicyKey, PolicyRow, row_seal, set};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Pairs of identities times sets above which it is taken for granted that some verdict changes.
const MANY: usize = 100_000;

/// Pairs of an old and a new identity, with the bridge between them.
type Bridges = BTreeMap<(u64, u64), u64>;

impl Tables {
    /// Gives the operations, and brings the image to what it is behind them.
    pub(super) fn order(&mut self, next: Next, all: bool) -> Vec<Op> {
        let Next { lists, rows, stale, unused, mut blocks, identities, pods } = next;
        blocks.sort_unstable_by_key(|change| Reverse(change.block));
        let mut ops = Vec::new();
        ops.extend(lists.into_iter().map(|(base, ranges)| Op::SetRanges { base, ranges }));
        let mut replaced = false;
        for (key, row) in rows {
            replaced |= self.set_row(key, row, &mut ops);
        }

        let pairs = blocks.iter().map(|change| (change.from, change.to));
        let pairs = pairs.chain(identities.iter().map(|change| (change.from, change.to)));
        let pairs: BTreeSet<(u64, u64)> = pairs.filter(|(from, to)| from != to).collect();
        let nodes = identities.iter().any(AddressChange::flags_differ);
        let bumps = self.under_way
            || replaced
            || (all && !stale.is_empty())
            || pods.iter().any(|change| change.old.is_some() && change.new.is_some())
            || nodes
            || self.verdicts_differ(&pairs);
        let moves = moves(&pods);
        let crossing = !moves.is_empty() && (!pairs.is_empty() || nodes);
        let new_blocks =
            blocks.iter().filter(|change| change.new.is_some() && !self.blocks.contains_key(&change.block));
        let tight = self.blocks.len() + new_blocks.count() > self.limits.blocks as usize;

        for change in &pods {
            self.step(change, Stage::Open, &mut ops);
        }
        let mut bridges = Bridges::new();
        if crossing && !tight {
            bridges = pairs.iter().map(|(from, to)| ((*from, *to), bridge(*from, *to))).collect();
            self.build(&bridges, &moves, &mut ops);
            self.enter(&bridges, &blocks, &identities, &mut ops);
        }
        let stage = if crossing && tight { Stage::Shut } else { Stage::Move };
        for change in &pods {
            self.step(change, stage, &mut ops);
        }
        self.flip_blocks(&blocks, &mut ops);
        self.flip_identities(identities, &mut ops);
        for change in &pods {
            self.step(change, Stage::All, &mut ops);
        }

        let mut removed = Vec::new();
        let first = if all { &mut ops } else { &mut removed };
        for key in stale {
            self.remove_row(key, first);
        }
        for number in unused {
            let identities: Vec<u64> =
                self.rows.sets.get(&number).into_iter().flatten().map(|(one, _)| *one).collect();
            for identity in identities {
                self.remove_row(PolicyKey { set: number, identity }, &mut removed);
            }
        }
        if !bridges.is_empty() {
            let spans: BTreeSet<u64> = bridges.values().copied().collect();
            let all = self.rows.sets.iter().flat_map(|(set, rows)| {
                let found: Vec<u64> = if rows.len() < spans.len() {
                    rows.keys().filter(|one| spans.contains(one)).copied().collect()
                } else {
                    spans.iter().filter(|one| rows.contains_key(one)).copied().collect()
                };
                found.into_iter().map(|identity| PolicyKey { set: *set, identity })
            });
            let mut all: Vec<PolicyKey> = all.collect();
            all.sort_unstable();
            for key in all {
                self.remove_row(key, &mut removed);
            }
        }
        if bumps {
            if !self.under_way && !ops.is_empty() {
                let mut row = PolicyRow::default();
                row.seal = row_seal(&UNDER_WAY, &row);
                ops.insert(0, Op::SetRow { key: UNDER_WAY, row });
                self.under_way = true;
            }
            ops.push(Op::BumpEpoch);
            if std::mem::take(&mut self.under_way) {
                ops.push(Op::RemoveRow { key: UNDER_WAY });
            }
        }
        ops.append(&mut removed);
        ops
    }

    /// Whether some set in use tells the two of some pair apart.
    fn verdicts_differ(&self, pairs: &BTreeSet<(u64, u64)>) -> bool {
        if pairs.len().saturating_mul(self.whole.len()) > MANY {
            return true;
        }
        let differ = |number: &u64, from: u64, to: u64| match (
            self.rows.in_force(*number, from),
            self.rows.in_force(*number, to),
        ) {
            (None, None) => false,
            (Some(from), Some(to)) => !from.allows_the_same(to),
            (Some(_), None) | (None, Some(_)) => true,
        };
        pairs.iter().any(|(from, to)| self.whole.iter().any(|number| differ(number, *from, *to)))
    }

    /// Writes the rows of bridges, as far as there is room.
    fn build(&mut self, bridges: &Bridges, moves: &Moves, ops: &mut Vec<Op>) {
        let mut rows: Vec<(PolicyKey, Row)> = Vec::new();
        let left = moves.left.difference(&moves.joined).map(|number| (*number, true));
        let kept =
            self.whole.iter().filter(|number| !moves.left.contains(number)).map(|number| (*number, false));
        let mut by_end: [BTreeMap<u64, Vec<u64>>; 2] = Default::default();
        let [by_old, by_new] = &mut by_end;
        for ((from, to), bridge) in bridges {
            by_old.entry(*from).or_default().push(*bridge);
            by_new.entry(*to).or_default().push(*bridge);
        }
        for (number, old) in left.chain(kept) {
            let Some(held) = self.rows.sets.get(&number) else { continue };
            let ends = if old { &*by_old } else { &*by_new };
            let mut copy = |end: u64, row: &Row| {
                for bridge in ends.get(&end).into_iter().flatten() {
                    rows.push((PolicyKey { set: number, identity: *bridge }, row.clone()));
                }
            };
            if held.len() < ends.len() {
                held.iter().for_each(|(end, row)| copy(*end, row));
            } else {
                ends.keys()
                    .filter_map(|end| Some((*end, held.get(end)?)))
                    .for_each(|(end, row)| copy(end, row));
            }
        }
        rows.sort_unstable_by_key(|(key, _)| *key);
        for (key, mut row) in rows {
            if self.rows.count + 1 >= self.limits.rows as usize {
                break;
            }
            // The list is there: another row names it.
            let Some(named) = row.ranges.as_deref().and_then(|ranges| self.lists.acquire(ranges)) else {
                continue;
            };
            row.row.seal = row_seal(&key, &row.row);
            row.ranges = Some(named.ranges);
            self.set_row(key, row, ops);
        }
    }

    /// Addresses and blocks go onto their bridges.
    fn enter(
        &mut self,
        bridges: &Bridges,
        blocks: &[BlockChange],
        identities: &[AddressChange],
        ops: &mut Vec<Op>,
    ) {
        for change in blocks {
            match bridges.get(&(change.from, change.to)) {
                Some(bridge) => self.set_block(change.block, *bridge, ops),
                None => change.new.into_iter().for_each(|new| self.set_block(change.block, new, ops)),
            }
        }
        for change in identities {
            let bridge = bridges.get(&(change.from, change.to));
            // Whether this node's or not is one bit: set early and taken late it says of before or of after, too.
            let flags = |row: Option<IdentityRow>| row.map_or(0, |row| row.flags);
            let flags = flags(change.old) | flags(change.new);
            let row = IdentityRow { identity: *bridge.unwrap_or(&change.from), flags, seal: 0 };
            let row = sealed(&change.addr, row);
            // One for which there is no room yet has what the block around it has.
            let room = change.old.is_some() || self.identities.len() < self.limits.identities as usize;
            if room && (bridge.is_some() || change.flags_differ()) && change.old != Some(row) {
                self.identities.insert(change.addr, row);
                ops.push(Op::SetIdentity { addr: change.addr, row });
            }
        }
    }

    /// Blocks get what they are to have: less first, from the shortest on, then more, from the longest on.
    fn flip_blocks(&mut self, blocks: &[BlockChange], ops: &mut Vec<Op>) {
        for change in blocks.iter().rev().filter(|change| change.new.is_none()) {
            if self.blocks.remove(&change.block).is_some() {
                ops.push(Op::RemoveBlock { block: change.block });
            }
        }
        for change in blocks {
            change.new.into_iter().for_each(|new| self.set_block(change.block, new, ops));
        }
    }

    /// Addresses get what they are to have.
    fn flip_identities(&mut self, identities: Vec<AddressChange>, ops: &mut Vec<Op>) {
        let (gone, set): (Vec<_>, Vec<_>) = identities.into_iter().partition(|change| change.new.is_none());
        for AddressChange { addr, .. } in gone {
            if self.identities.remove(&addr).is_some() {
                ops.push(Op::RemoveIdentity { addr });
            }
        }
        for AddressChange { addr, new, .. } in set {
            let Some(row) = new else { continue };
            self.identities.insert(addr, row);
            ops.push(Op::SetIdentity { addr, row });
        }
    }

    fn set_block(&mut self, block: Block, identity: u64, ops: &mut Vec<Op>) {
        if self.blocks.insert(block, identity) != Some(identity) {
            ops.push(Op::SetBlock { block, identity });
        }
    }

    /// True if there was another.
    fn set_row(&mut self, key: PolicyKey, row: Row, ops: &mut Vec<Op>) -> bool {
        ops.push(Op::SetRow { key, row: row.row });
        let before = self.rows.insert(key, row);
        if let Some(ranges) = before.as_ref().and_then(|row| row.ranges.as_deref()) {
            self.lists.release(ranges, true);
        }
        before.is_some()
    }

    fn remove_row(&mut self, key: PolicyKey, ops: &mut Vec<Op>) {
        let Some(row) = self.rows.remove(&key) else { return };
        if let Some(ranges) = row.ranges.as_deref() {
            self.lists.release(ranges, true);
        }
        ops.push(Op::RemoveRow { key });
    }

    /// Takes a pod as far as this stage does.
    fn step(&mut self, change: &PodChange, stage: Stage, ops: &mut Vec<Op>) {
        let endpoint = change.endpoint;
        let Some(new) = change.new else {
            if self.pods.remove(&endpoint).is_some() {
                ops.push(Op::RemovePod { endpoint });
            }
            return;
        };
        // One that was not there gets all at once.
        let now = self.pods.get(&endpoint).copied();
        if now.is_none() && stage != Stage::All {
            return;
        }
        let mut sets = now.unwrap_or(Sets::CLOSED);
        for direction in Direction::ALL {
            let (from, to) = (sets.of(direction), new.of(direction));
            let step = match stage {
                Stage::Open if to == set::OPEN => to,
                Stage::Move if from != set::OPEN => to,
                Stage::Shut if from != set::OPEN && from != to => set::CLOSED,
                Stage::All => to,
                _ => from,
            };
            sets = sets.with(direction, step);
        }
        if now != Some(sets) {
            self.pods.insert(endpoint, sets);
            ops.push(Op::SetPod { endpoint, sets });
        }
    }
}

/// How far a pod is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// To being open.
    Open,
    /// From a set to what it is to have.
    Move,
    /// From a set that it is to leave to being closed.
    Shut,
    /// All the way.
    All,
}

/// Sets that pods leave for other sets, and those that they join; being closed is one that has no rows.
#[derive(Debug, Default)]
struct Moves {
    left: BTreeSet<u64>,
    joined: BTreeSet<u64>,
}

impl Moves {
    fn is_empty(&self) -> bool {
        self.left.is_empty()
    }
}

fn moves(pods: &[PodChange]) -> Moves {
    let mut moves = Moves::default();
    for change in pods {
        let (Some(old), Some(new)) = (change.old, change.new) else { continue };
        for direction in Direction::ALL {
            let (from, to) = (old.of(direction), new.of(direction));
            if from != to && from != set::OPEN && to != set::OPEN {
                moves.left.insert(from);
                moves.joined.insert(to);
            }
        }
    }
    moves
}

impl AddressChange {
    /// It becomes this node's, or stops being so.
    fn flags_differ(&self) -> bool {
        let flags = |row: Option<IdentityRow>| row.map_or(0, |row| row.flags);
        flags(self.old) != flags(self.new)
    }
}

fn bridge(from: u64, to: u64) -> u64 {
    let mut text = Text::new("bridge");
    text.number(from).number(to);
    text.marked(|_| false)
}
