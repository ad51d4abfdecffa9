//! Copying the tables that only the agent writes, and the affinities.

use super::super::Error;
use super::super::answers::{NOEXIST, is};
use super::super::pin::Pins;
use super::sizes::Rows;
use super::{each, each_pod};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, Map, MapData, PerCpuArray};
use netd_bpf::event::Count;
use netd_bpf::pod::Pod;
use netd_bpf::policy::{IdentityRow, PolicyKey, PolicyRow, Range};
use netd_bpf::service::{Affinity, AffinityKey, Backend, Frontend, FrontendKey};
use netd_bpf::{Addr, schema1};
use std::collections::BTreeSet;

type New = BTreeSet<&'static str>;

/// Copies rows as they are.
pub(super) fn copy(from: &Pins, to: &Pins, new: &New) -> Result<(), Error> {
    copy_hash::<FrontendKey, Frontend>(from, to, new, "FRONTENDS")?;
    copy_array::<Backend>(from, to, new, "BACKENDS")?;
    copy_hash::<u32, Pod>(from, to, new, "POD_BY_IFINDEX")?;
    copy_hash::<Addr, Pod>(from, to, new, "POD_BY_ADDR")?;
    copy_array::<Range>(from, to, new, "RANGES")?;
    copy_hash::<PolicyKey, PolicyRow>(from, to, new, "POLICY")?;
    copy_hash::<Addr, IdentityRow>(from, to, new, "IDENTITIES")?;
    copy_blocks(from, to, new)?;
    copy_others(from, to, new)
}

/// Makes the rows of schema 1 rows of this one. It had no policies: those tables begin empty.
pub(super) fn import(from: &Pins, to: &Pins, new: &New) -> Result<(), Error> {
    if let Some(mut target) = to.hash("FRONTENDS")? {
        each(from, "FRONTENDS", |key: FrontendKey, row: schema1::Frontend| {
            target.insert(key, row.import(&key), 0).map_err(Error::map("FRONTENDS"))
        })?;
    }
    if let Some(mut target) = to.array::<Backend>("BACKENDS")? {
        each(from, "BACKENDS", |id: u32, row: schema1::Backend| {
            let used = row != schema1::Backend::default() && id < target.len();
            if used { set(&mut target, id, row.import(), "BACKENDS") } else { Ok(()) }
        })?;
    }
    import_pods::<u32>(from, to, "POD_BY_IFINDEX")?;
    import_pods::<Addr>(from, to, "POD_BY_ADDR")?;
    copy_others(from, to, new)
}

fn import_pods<K: aya::Pod + Default>(from: &Pins, to: &Pins, name: &'static str) -> Result<(), Error> {
    let Some(mut target) = to.hash::<K, Pod>(name)? else { return Ok(()) };
    each_pod((from, Rows::Schema1), name, |key: K, row| target.insert(key, row, 0).map_err(Error::map(name)))
}

/// The map of the paths' counters.
pub(super) const PATHS: &str = "PATHS";

/// Carries the paths' counters over, so that they do not jump. What the old programs count from here on is
/// not in the new ones.
pub(super) fn copy_paths(from: &Pins, to: &Pins, new: &New) -> Result<(), Error> {
    let (true, Some(old), Some(fresh)) = (new.contains(PATHS), from.open(PATHS)?, to.open(PATHS)?) else {
        return Ok(());
    };
    let old: PerCpuArray<MapData, Count> =
        PerCpuArray::try_from(Map::PerCpuArray(old)).map_err(Error::map(PATHS))?;
    let mut fresh: PerCpuArray<MapData, Count> =
        PerCpuArray::try_from(Map::PerCpuArray(fresh)).map_err(Error::map(PATHS))?;
    for path in 0..old.len().min(fresh.len()) {
        let counts = old.get(&path, 0).map_err(Error::map(PATHS))?;
        fresh.set(path, counts, 0).map_err(Error::map(PATHS))?;
    }
    Ok(())
}

fn copy_others(from: &Pins, to: &Pins, new: &New) -> Result<(), Error> {
    copy_array::<u32>(from, to, new, "SLOTS")?;
    copy_affinity(from, to, new)
}

/// Programs write these: a row that the new table has already is the newer one.
pub(super) fn copy_affinity(from: &Pins, to: &Pins, new: &New) -> Result<(), Error> {
    let name = "AFFINITY";
    let (true, Some(mut target)) = (new.contains(name), to.hash::<AffinityKey, Affinity>(name)?) else {
        return Ok(());
    };
    let mut rows: Vec<(AffinityKey, Affinity)> = Vec::new();
    each(from, name, |key, row| {
        rows.push((key, row));
        Ok(())
    })?;
    // Where there is not room for all of them the newest stay.
    rows.sort_unstable_by_key(|(_, row)| row.last_used);
    for (key, row) in rows {
        match target.insert(key, row, NOEXIST) {
            Err(error) if is(&error, libc::EEXIST) => {}
            other => other.map_err(Error::map(name))?,
        }
    }
    Ok(())
}

fn copy_hash<K: aya::Pod + Default, V: aya::Pod + Default>(
    from: &Pins,
    to: &Pins,
    new: &New,
    name: &'static str,
) -> Result<(), Error> {
    let (true, Some(mut target)) = (new.contains(name), to.hash::<K, V>(name)?) else { return Ok(()) };
    each(from, name, |key: K, row: V| target.insert(key, row, 0).map_err(Error::map(name)))
}

/// Its keys are of another size than those that [`super::batch`] goes on from.
fn copy_blocks(from: &Pins, to: &Pins, new: &New) -> Result<(), Error> {
    let name = "BLOCKS";
    let (true, Some(source), Some(mut target)) = (new.contains(name), blocks(from)?, blocks(to)?) else {
        return Ok(());
    };
    for row in source.iter() {
        let (key, identity) = row.map_err(Error::map(name))?;
        target.insert(&Key::new(key.prefix_len(), key.data()), identity, 0).map_err(Error::map(name))?;
    }
    Ok(())
}

/// The table of blocks, if there is one.
pub(super) fn blocks(pins: &Pins) -> Result<Option<LpmTrie<MapData, Addr, u64>>, Error> {
    let Some(data) = pins.open("BLOCKS")? else { return Ok(None) };
    LpmTrie::try_from(Map::LpmTrie(data)).map(Some).map_err(Error::map("BLOCKS"))
}

/// Rows beyond the end of the new array are unused, as [`super::sizes`] has seen to.
fn copy_array<V: aya::Pod + Default + PartialEq>(
    from: &Pins,
    to: &Pins,
    new: &New,
    name: &'static str,
) -> Result<(), Error> {
    let (true, Some(mut target)) = (new.contains(name), to.array::<V>(name)?) else { return Ok(()) };
    each(from, name, |index: u32, row: V| {
        let used = row != V::default() && index < target.len();
        if used { set(&mut target, index, row, name) } else { Ok(()) }
    })
}

fn set<V: aya::Pod>(
    array: &mut Array<MapData, V>,
    index: u32,
    row: V,
    name: &'static str,
) -> Result<(), Error> {
    array.set(index, row, 0).map_err(Error::map(name))
}
