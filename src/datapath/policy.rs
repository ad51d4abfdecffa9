//! Policy rows; `policy::tables` decides what to write, and in which order.
//!
//! `POLICY`, `IDENTITIES` and `BLOCKS` take memory as they fill (`BPF_F_NO_PREALLOC`): they are made for more rows
//! than most nodes have. The kernel may have none at hand for a moment, and is asked again then.

use super::answers::{absent_is_fine, is};
use super::pods::next_epoch;
use super::{Datapath, Error, batch, locked};
use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use netd_bpf::Addr;
use netd_bpf::policy::{Block, IdentityRow, PolicyKey, PolicyRow, Range, identity_seal, row_seal};
use std::ops::ControlFlow;
use std::time::Duration;

/// Rows of the tables as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyLimits {
    /// Of `POLICY`.
    pub rows: u32,
    /// Of `RANGES`.
    pub ranges: u32,
    /// Of `IDENTITIES`.
    pub identities: u32,
    /// Of `BLOCKS`.
    pub blocks: u32,
}

impl Datapath {
    /// Limits of the tables as they are.
    #[must_use]
    pub fn policy_limits(&self) -> PolicyLimits {
        PolicyLimits {
            rows: self.config.policy_rows,
            ranges: locked(&self.ranges).len(),
            identities: self.config.identities,
            blocks: self.config.blocks,
        }
    }

    /// Writes consecutive ranges.
    ///
    /// # Errors
    /// They are beyond the table.
    pub fn set_policy_ranges(&self, base: u32, ranges: &[Range]) -> Result<(), Error> {
        let mut map = locked(&self.ranges);
        for (index, range) in (base..).zip(ranges) {
            map.set(index, range, 0).map_err(Error::map("RANGES"))?;
        }
        Ok(())
    }

    /// Seals rows and makes or replaces them, each in one step.
    ///
    /// # Errors
    /// The table is full; those before the first that found no room are written.
    pub fn set_policy_rows(&self, rows: &[(PolicyKey, PolicyRow)]) -> Result<(), Error> {
        let mut map = locked(&self.policy);
        let no_room = Error::room("POLICY", self.config.policy_rows, "datapath.policy_rows");
        rows.iter().try_for_each(|(key, row)| {
            let sealed = PolicyRow { seal: row_seal(key, row), ..*row };
            patient(|| map.insert(key, sealed, 0)).map_err(&no_room)
        })
    }

    /// Removes rows; those that are not there are no error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_policy_rows(&self, keys: &[PolicyKey]) -> Result<(), Error> {
        let mut map = locked(&self.policy);
        keys.iter().try_for_each(|key| absent_is_fine(map.remove(key), "POLICY"))
    }

    /// Seals the identities of addresses and makes or replaces them, each in one step.
    ///
    /// # Errors
    /// The table is full; those before the first that found no room are written.
    pub fn set_identities(&self, rows: &[(Addr, IdentityRow)]) -> Result<(), Error> {
        let mut map = locked(&self.identities);
        let no_room = Error::room("IDENTITIES", self.config.identities, "datapath.identities");
        rows.iter().try_for_each(|(addr, row)| {
            let sealed = IdentityRow { seal: identity_seal(addr, row), ..*row };
            patient(|| map.insert(addr, sealed, 0)).map_err(&no_room)
        })
    }

    /// Removes the identities of addresses; those that have none are no error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_identities(&self, addresses: &[Addr]) -> Result<(), Error> {
        let mut map = locked(&self.identities);
        addresses.iter().try_for_each(|addr| absent_is_fine(map.remove(addr), "IDENTITIES"))
    }

    /// Makes or replaces the identities of blocks.
    ///
    /// # Errors
    /// The table is full; those before the first that found no room are written.
    pub fn set_blocks(&self, rows: &[(Block, u64)]) -> Result<(), Error> {
        let mut map = locked(&self.blocks);
        let no_room = Error::room("BLOCKS", self.config.blocks, "datapath.blocks");
        rows.iter().try_for_each(|(block, identity)| {
            patient(|| map.insert(&trie_key(block), identity, 0)).map_err(&no_room)
        })
    }

    /// Removes blocks; those that are not there are no error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_blocks(&self, blocks: &[Block]) -> Result<(), Error> {
        let mut map = locked(&self.blocks);
        blocks.iter().try_for_each(|block| absent_is_fine(map.remove(&trie_key(block)), "BLOCKS"))
    }

    /// Has every flow judged anew by its next packet.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn bump_policy_epoch(&self) -> Result<(), Error> {
        next_epoch(&mut locked(&self.policy_epoch), "POLICY_EPOCH")
    }

    /// All rows as they are, with their seals.
    ///
    /// # Errors
    /// The kernel refuses the walk.
    pub fn policy_rows(&self) -> Result<Vec<(PolicyKey, PolicyRow)>, Error> {
        self.hash_rows("POLICY")
    }

    /// The `count` ranges from `base`; those beyond the table are missing.
    ///
    /// # Errors
    /// The kernel refuses the walk.
    pub fn policy_ranges(&self, base: u32, count: u32) -> Result<Vec<Range>, Error> {
        let count = count as usize;
        let mut all: Vec<Range> = Vec::new();
        if base >= locked(&self.ranges).len() {
            return Ok(all);
        }
        batch::visit("RANGES", &self.pins.map("RANGES"), base.checked_sub(1), |_: &[u32], ranges| {
            all.extend(ranges.iter().take(count - all.len()));
            if all.len() < count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(all)
    }

    /// The identities of all addresses as they are, with their seals.
    ///
    /// # Errors
    /// The kernel refuses the walk.
    pub fn identities(&self) -> Result<Vec<(Addr, IdentityRow)>, Error> {
        self.hash_rows("IDENTITIES")
    }

    fn hash_rows<K: aya::Pod + Default, V: aya::Pod + Default>(
        &self,
        map: &'static str,
    ) -> Result<Vec<(K, V)>, Error> {
        let mut all = Vec::new();
        batch::visit(map, &self.pins.map(map), None, |keys: &[K], rows: &[V]| {
            all.extend(keys.iter().copied().zip(rows.iter().copied()));
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }

    /// The identities of all blocks. Two system calls for each.
    ///
    /// # Errors
    /// The kernel refuses the walk.
    pub fn blocks(&self) -> Result<Vec<(Block, u64)>, Error> {
        let block = |key: Key<Addr>| Block { prefix: key.prefix_len(), addr: key.data() };
        let map = locked(&self.blocks);
        let rows = map.iter().map(|row| row.map(|(key, identity)| (block(key), identity)));
        rows.collect::<Result<_, _>>().map_err(Error::map("BLOCKS"))
    }
}

const fn trie_key(block: &Block) -> Key<Addr> {
    Key::new(block.prefix, block.addr)
}

/// Writes by `write`. Where rows are not there before they are needed, the kernel has a few at hand on each CPU, and
/// makes more in the background (`kernel/bpf/memalloc.c`): between the two it says `ENOMEM`.
fn patient(mut write: impl FnMut() -> Result<(), MapError>) -> Result<(), MapError> {
    const PAUSES: [Duration; 4] =
        [Duration::ZERO, Duration::from_micros(100), Duration::from_millis(1), Duration::from_millis(10)];
    for pause in PAUSES {
        match write() {
            Err(error) if is(&error, libc::ENOMEM) => std::thread::sleep(pause),
            done => return done,
        }
    }
    write()
}
