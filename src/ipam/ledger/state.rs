//! What the ledger says, in memory. Pure: clocks come in, and [`Ledger`](super::Ledger) does the writing.
//!
//! Invariants, which loading checks too: attachments, addresses and endpoint numbers are unique; every
//! address of an entry is held in the pool; every resting one is in the pool's cool-down.

use super::file::{CoolingRow, Position, Rows};
use super::{Clock, Ranges, Time};
use crate::cni::types::Attachment;
use crate::ipam::pool::{self, Pool, Usage};
use crate::model::ObjectName;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// One row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Whose interface.
    pub attachment: Attachment,
    /// Name of the CNI network it belongs to.
    pub network: String,
    /// The pod, if the runtime told.
    pub pod: Option<ObjectName>,
    /// The pod's UID, if the runtime told.
    pub pod_uid: Option<String>,
    /// At most one of each family.
    pub addresses: Vec<IpAddr>,
    /// `CNI_NETNS`; none in a row rebuilt from the kernel.
    pub netns: Option<PathBuf>,
    /// Name of the host's end of the link.
    pub host_name: String,
    /// When the addresses were given.
    pub allocated_at: Time,
    /// Number of the attachment on this node: never 0, stable, unique.
    pub endpoint: u32,
}

impl Entry {
    /// The pod's name, or the container's id where the runtime told no pod.
    #[must_use]
    pub fn called(&self) -> String {
        self.pod.as_ref().map_or_else(|| self.attachment.container_id.clone(), ToString::to_string)
    }
}

/// What an allocation asks for.
#[derive(Clone, Debug)]
pub struct New {
    /// Whose interface.
    pub attachment: Attachment,
    /// Name of the CNI network.
    pub network: String,
    /// The pod, if the runtime told.
    pub pod: Option<ObjectName>,
    /// The pod's UID, if the runtime told.
    pub pod_uid: Option<String>,
    /// Addresses it must have.
    pub fixed: Vec<IpAddr>,
    /// `CNI_NETNS`.
    pub netns: PathBuf,
    /// Name of the host's end of the link.
    pub host_name: String,
}

/// What the kernel tells of an attachment whose row is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// From the alias of the link.
    pub attachment: Attachment,
    /// From the alias of the link.
    pub pod: Option<ObjectName>,
    /// From the host's routes and the map rows.
    pub addresses: Vec<IpAddr>,
    /// Name of the host's end of the link.
    pub host_name: String,
    /// From the map rows; none, or one that is taken, is replaced.
    pub endpoint: Option<u32>,
}

/// Why nothing was allocated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// The attachment has a row.
    #[error("{attachment} is attached already")]
    Duplicate {
        /// Which.
        attachment: Attachment,
    },
    /// No address can be had.
    #[error(transparent)]
    Pool(#[from] pool::Error),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Released {
    pod: Option<ObjectName>,
    at: Time,
}

/// All rows, and the pool that follows from them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    generation: u64,
    status_dir: Option<PathBuf>,
    entries: BTreeMap<Attachment, Arc<Entry>>,
    cooling: BTreeMap<IpAddr, Released>,
    pool: Pool,
    cool_down: Duration,
    changed: bool,
}

impl State {
    pub(super) fn new(cool_down: Duration) -> Self {
        Self {
            generation: 0,
            status_dir: None,
            entries: BTreeMap::new(),
            cooling: BTreeMap::new(),
            pool: Pool::default(),
            cool_down,
            changed: false,
        }
    }

    /// From the rows of a file; the error says which row contradicts another.
    pub(super) fn load(rows: Rows, cool_down: Duration, clock: Clock) -> Result<Self, String> {
        let mut state = Self::new(cool_down);
        state.generation = rows.generation;
        state.status_dir = rows.status_dir;
        let mut endpoints = BTreeSet::new();
        for entry in rows.entries {
            if entry.endpoint == 0 || !endpoints.insert(entry.endpoint) {
                return Err(format!(
                    "endpoint number {} of {} is not unique",
                    entry.endpoint, entry.attachment
                ));
            }
            // Adopted numbers were above those of changes once.
            state.generation = state.generation.max(entry.endpoint.into());
            for address in &entry.addresses {
                if !state.pool.claim(*address, entry.pod.clone()) {
                    return Err(format!("address {address} of {} is not unique", entry.attachment));
                }
            }
            let attachment = entry.attachment.clone();
            if let Some(other) = state.entries.insert(attachment, Arc::new(entry)) {
                return Err(format!("{} stands there twice", other.attachment));
            }
        }
        for row in rows.cooling {
            // The wall clock may have been set since. Back: the whole cool-down is waited again. Forward:
            // it ends early, which needs a restart within the cool-down to happen at all.
            let rested = clock.time.since(row.released_at).unwrap_or_default();
            let until = clock.instant + cool_down.saturating_sub(rested);
            state.pool.rest(row.address, row.pod.clone(), until);
            state.cooling.insert(row.address, Released { pod: row.pod, at: row.released_at.min(clock.time) });
        }
        for Position { range, address } in rows.positions {
            state.pool.set_position(range, address);
        }
        Ok(state)
    }

    pub(super) fn rows(&self) -> Rows {
        Rows {
            generation: self.generation,
            status_dir: self.status_dir.clone(),
            entries: self.entries.values().map(|entry| Entry::clone(entry)).collect(),
            cooling: self
                .cooling
                .iter()
                .map(|(address, released)| CoolingRow {
                    address: *address,
                    pod: released.pod.clone(),
                    released_at: released.at,
                })
                .collect(),
            positions: self.pool.positions().map(|(range, address)| Position { range, address }).collect(),
        }
    }

    /// Whether anything the file holds has changed since the last call; if so, the generation goes up.
    pub(super) fn take_changed(&mut self) -> bool {
        let changed = std::mem::take(&mut self.changed);
        if changed {
            self.generation += 1;
        }
        changed
    }

    /// How often the rows were changed.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    #[cfg(test)]
    pub(super) const fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
        self.changed = false;
    }

    /// The folder of the status files, so that a plugin without an agent can remove a pod's.
    #[must_use]
    pub fn status_dir(&self) -> Option<&Path> {
        self.status_dir.as_deref()
    }

    /// Sets [`Self::status_dir`].
    pub fn set_status_dir(&mut self, dir: Option<PathBuf>) {
        self.changed |= self.status_dir != dir;
        self.status_dir = dir;
    }

    /// Changes what addresses are given from, and for how long they rest from now on.
    pub fn configure(&mut self, ranges: &Ranges, cool_down: Duration) {
        self.pool.set_ranges(&ranges.active, &ranges.draining);
        self.cool_down = cool_down;
    }

    /// The row of an attachment.
    #[must_use]
    pub fn get(&self, attachment: &Attachment) -> Option<&Arc<Entry>> {
        self.entries.get(attachment)
    }

    /// All rows.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values()
    }

    /// The row that holds an address.
    #[must_use]
    pub fn holder(&self, address: IpAddr) -> Option<&Arc<Entry>> {
        self.entries().find(|entry| entry.addresses.contains(&address))
    }

    /// Addresses that rest, as far as the last change knew.
    pub fn cooling(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.cooling.keys().copied()
    }

    /// How full the ranges are.
    #[must_use]
    pub fn usage(&self, clock: Clock) -> Vec<Usage> {
        self.pool.usage(clock.instant)
    }

    /// Whether a pod that asks for nothing in particular would get its addresses.
    pub fn probe(&self, clock: Clock) -> Result<(), pool::Error> {
        self.pool.probe(clock.instant)
    }

    /// Gives addresses and an endpoint number. A refusal changes nothing.
    pub fn allocate(&mut self, new: New, clock: Clock) -> Result<Arc<Entry>, AllocateError> {
        if self.entries.contains_key(&new.attachment) {
            return Err(AllocateError::Duplicate { attachment: new.attachment });
        }
        let addresses = self.pool.allocate(new.pod.as_ref(), &new.fixed, clock.instant)?;
        Ok(self.insert(
            Entry {
                attachment: new.attachment,
                network: new.network,
                pod: new.pod,
                pod_uid: new.pod_uid,
                addresses,
                netns: Some(new.netns),
                host_name: new.host_name,
                allocated_at: clock.time,
                endpoint: self.unused_endpoint(),
            },
            clock,
        ))
    }

    /// Takes a row back; its addresses rest. None: there was no such row.
    pub fn release(&mut self, attachment: &Attachment, clock: Clock) -> Option<Arc<Entry>> {
        let entry = self.entries.remove(attachment)?;
        for address in &entry.addresses {
            self.pool.release(*address, clock.instant + self.cool_down);
            self.cooling.insert(*address, Released { pod: entry.pod.clone(), at: clock.time });
        }
        self.touch(clock);
        Some(entry)
    }

    /// Writes a row for what the kernel holds. `Err` says with what it collides; then nothing changes.
    pub fn adopt(&mut self, found: Recovered, network: &str, clock: Clock) -> Result<Arc<Entry>, String> {
        let Recovered { attachment, pod, addresses, host_name, endpoint } = found;
        if self.entries.contains_key(&attachment) {
            return Err(format!("{attachment} has two links"));
        }
        if let Some((address, other)) =
            addresses.iter().find_map(|address| self.holder(*address).map(|other| (address, other)))
        {
            return Err(format!("{attachment} has address {address}, which {} holds", other.attachment));
        }
        for address in &addresses {
            self.pool.claim(*address, pod.clone());
        }
        let free = |number: &u32| *number != 0 && self.entries().all(|entry| entry.endpoint != *number);
        let endpoint = endpoint.filter(free).unwrap_or_else(|| self.unused_endpoint());
        let entry = self.insert(
            Entry {
                attachment,
                network: network.to_owned(),
                pod,
                pod_uid: None,
                addresses,
                netns: None,
                host_name,
                allocated_at: clock.time,
                endpoint,
            },
            clock,
        );
        // As if the lost ledger had counted on: else a number above all, given and released, is the next one
        // above all again. The change under way is the one after this.
        self.generation = self.generation.max(u64::from(endpoint) - 1);
        Ok(entry)
    }

    fn insert(&mut self, entry: Entry, clock: Clock) -> Arc<Entry> {
        let entry = Arc::new(entry);
        self.entries.insert(entry.attachment.clone(), Arc::clone(&entry));
        self.touch(clock);
        entry
    }

    fn touch(&mut self, clock: Clock) {
        // Changes that are written together count each: see `unused_endpoint`.
        self.generation += u64::from(self.changed);
        self.changed = true;
        self.pool.expire(clock.instant);
        let pool = &self.pool;
        self.cooling.retain(|address, _| pool.is_cooling(*address, clock.instant));
    }

    /// A number that nobody has, and that nobody had since the ledger was new: what is left of a pod in the
    /// datapath's tables must not be taken for its successor's. That of the change that makes the row, which
    /// adoption brings level with the numbers that it finds. Numbers start at
    /// 1, and begin again after four thousand million changes.
    fn unused_endpoint(&self) -> u32 {
        let taken: BTreeSet<u32> = self.entries().map(|entry| entry.endpoint).collect();
        let change = self.generation + u64::from(self.changed) + 1;
        let first = u32::try_from(change % (1 << 32)).unwrap_or_default();
        (first.max(1)..=u32::MAX).chain(1..).find(|number| !taken.contains(number)).unwrap_or(u32::MAX)
    }
}
