//! From the kernel's rows to the image, and the comparison of the two.
//!
//! An agent may have died between any two writes, and a table may be damaged. A row that names ranges beyond the array,
//! ranges of another list, or ranges out of order cannot be trusted: it is kept by its key, and the next plan writes it
//! anew or removes it.

use super::lists::Lists;
use super::{Limits, Row, Rows, Tables, UNDER_WAY};
use crate::policy::Sets;
use crate::policy::number::ByNumber;
use netd_bpf::Addr;
use netd_bpf::policy::{Block, IdentityRow, MAX_RANGES, PolicyKey, PolicyRow, Range, row_seal};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the kernel holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    /// The sets in pods' rows, by their numbers.
    pub pods: BTreeMap<u32, Sets>,
    /// All rows of `IDENTITIES`.
    pub identities: Vec<(Addr, IdentityRow)>,
    /// All rows of `BLOCKS`.
    pub blocks: Vec<(Block, u64)>,
    /// All rows of `POLICY`.
    pub rows: Vec<(PolicyKey, PolicyRow)>,
    /// All of `RANGES`.
    pub ranges: Vec<Range>,
}

/// A difference between the image and the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub enum Drift {
    /// A pod has other sets, or is not ours.
    Pod(u32),
    /// An address has another identity, or none, or is not ours.
    Identity(Addr),
    /// A block has another identity, or is missing, or is not ours.
    Block(Block),
    /// A row is another, or is missing, or is not ours.
    Row(PolicyKey),
    /// A row's list is another.
    List(PolicyKey),
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(endpoint) => write!(f, "policy sets of endpoint {endpoint} differ"),
            Self::Identity(addr) => write!(f, "identity of {addr} differs"),
            Self::Block(block) => write!(f, "block {}/{} differs", block.addr, block.prefix),
            Self::Row(key) => write!(f, "policy row {:x}/{:x} differs", key.set, key.identity),
            Self::List(key) => write!(f, "list of policy row {:x}/{:x} differs", key.set, key.identity),
        }
    }
}

impl From<Drift> for String {
    fn from(drift: Drift) -> Self {
        drift.to_string()
    }
}

/// What a row names, if that is a list.
fn list<'r>(ranges: &'r [Range], row: &PolicyRow) -> Option<&'r [Range]> {
    let end = row.ranges.checked_add(row.count)?;
    let list = ranges.get(row.ranges as usize..end as usize)?;
    let ordered = list.iter().all(|one| one.first <= one.last)
        && list.windows(2).all(|two| matches!(two, [a, b] if a.last < b.first));
    (row.count <= MAX_RANGES && ordered).then_some(list)
}

impl Tables {
    /// The image of what the kernel holds at `now`. `quarantine` must be longer than any program runs.
    #[must_use]
    pub fn read(limits: Limits, quarantine: Duration, kernel: &Kernel, now: Instant) -> Self {
        let mut content = kernel.ranges.clone();
        content.resize(limits.ranges as usize, Range::default());

        let mut sound: Vec<&(PolicyKey, PolicyRow)> = kernel
            .rows
            .iter()
            .filter(|(key, row)| *key != UNDER_WAY && row.seal == row_seal(key, row))
            .collect();
        sound.sort_unstable_by_key(|(key, row)| (row.ranges, row.count, *key));
        let mut named: BTreeMap<u32, (Arc<[Range]>, u32)> = BTreeMap::new();
        let mut places: HashMap<&[Range], u32> = HashMap::new();
        let mut trusted: HashMap<PolicyKey, Arc<[Range]>> = HashMap::new();
        let mut end = 0;
        for (key, row) in sound {
            let Some(list) = list(&content, row) else { continue };
            if list.is_empty() {
                trusted.insert(*key, Arc::default());
                continue;
            }
            if let Some((ranges, rows)) = named.get_mut(&row.ranges) {
                if ranges.len() == list.len() {
                    *rows += 1;
                    trusted.insert(*key, Arc::clone(ranges));
                }
            } else if row.ranges >= end && !places.contains_key(list) {
                let ranges: Arc<[Range]> = list.into();
                places.insert(list, row.ranges);
                end = row.ranges + row.count;
                named.insert(row.ranges, (Arc::clone(&ranges), 1));
                trusted.insert(*key, ranges);
            }
        }
        let mut rows = Rows::default();
        let mut under_way = false;
        for (key, row) in &kernel.rows {
            if *key == UNDER_WAY {
                under_way = true;
            } else {
                rows.insert(*key, Row { row: *row, ranges: trusted.remove(key) });
            }
        }
        Self {
            limits,
            quarantine,
            pods: kernel.pods.clone(),
            identities: kernel.identities.iter().copied().collect(),
            blocks: kernel.blocks.iter().copied().collect(),
            rows,
            lists: Lists::from_content(&content, named, now + quarantine),
            under_way,
            begun: false,
            wanted: BTreeMap::new(),
            users: ByNumber::default(),
            whole: HashSet::new(),
            short: BTreeMap::new(),
            left_out: std::collections::BTreeSet::new(),
            blocks_left_out: std::collections::BTreeSet::new(),
        }
    }

    /// What the kernel holds that this image does not, and the other way round.
    #[must_use]
    pub fn drift(&self, kernel: &Kernel) -> Vec<Drift> {
        let mut drift = Vec::new();
        // One that the kernel does not know is on its way out, and its rows are gone.
        let pods = kernel.pods.iter().filter(|(one, sets)| self.pods.get(one) != Some(sets));
        drift.extend(pods.map(|(one, _)| Drift::Pod(*one)));
        let identities: HashMap<Addr, IdentityRow> = kernel.identities.iter().copied().collect();
        let addresses = self.identities.keys().chain(identities.keys());
        drift.extend(
            addresses
                .filter(|addr| self.identities.get(addr) != identities.get(addr))
                .map(|addr| Drift::Identity(*addr)),
        );
        let blocks: BTreeMap<Block, u64> = kernel.blocks.iter().copied().collect();
        let all = self.blocks.keys().chain(blocks.keys());
        drift.extend(all.filter(|one| self.blocks.get(one) != blocks.get(one)).map(|one| Drift::Block(*one)));

        let mut there = HashSet::with_capacity(kernel.rows.len());
        for (key, row) in &kernel.rows {
            there.insert(*key);
            match self.rows.get(key) {
                Some(own) if own.row == *row => {
                    if own.ranges.as_deref().is_some_and(|ranges| list(&kernel.ranges, row) != Some(ranges)) {
                        drift.push(Drift::List(*key));
                    }
                }
                _ if *key == UNDER_WAY && self.under_way => {}
                _ => drift.push(Drift::Row(*key)),
            }
        }
        for (set, rows) in &self.rows.sets {
            let keys = rows.keys().map(|identity| PolicyKey { set: *set, identity: *identity });
            drift.extend(keys.filter(|key| !there.contains(key)).map(Drift::Row));
        }
        drift.sort_unstable();
        drift.dedup();
        drift
    }
}
