//! Names, shapes and sizes of the pinned maps, of this schema and of schema 1.

use super::Error;
use super::config::Config;
use super::pin::Pins;
use netd_bpf::flow::{Flow, FlowKey, Share};
use netd_bpf::pod::Pod;
use netd_bpf::policy::{Block, IdentityRow, PolicyKey, PolicyRow, Range};
use netd_bpf::service::{Affinity, AffinityKey, Backend, Frontend, FrontendKey};
use netd_bpf::{Addr, schema1};

/// A map whose size the configuration says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    /// Bytes.
    key: usize,
    /// Bytes.
    value: usize,
    /// Rows.
    pub(super) entries: u32,
}

/// Those of this schema.
pub(super) fn shapes(config: &Config) -> [Shape; 13] {
    let addresses = config.pods.saturating_mul(2);
    [
        shape::<u32, Pod>("POD_BY_IFINDEX", config.pods),
        shape::<Addr, Pod>("POD_BY_ADDR", addresses),
        shape::<FrontendKey, Frontend>("FRONTENDS", config.frontends),
        shape::<u32, u32>("SLOTS", config.slots),
        shape::<u32, Backend>("BACKENDS", config.backends),
        shape::<FlowKey, Flow>("ESTABLISHED", config.flows),
        shape::<FlowKey, Flow>("NURSERY", config.nursery),
        shape::<u32, Share>("SHARES", config.pods),
        shape::<AffinityKey, Affinity>("AFFINITY", config.affinity),
        shape::<PolicyKey, PolicyRow>("POLICY", config.policy_rows),
        shape::<u32, Range>("RANGES", config.policy_ranges),
        shape::<Addr, IdentityRow>("IDENTITIES", config.identities),
        shape::<Block, u64>("BLOCKS", config.blocks),
    ]
}

/// Those of schema 1 that a datapath cannot do without.
fn shapes_of_schema1() -> [Shape; 6] {
    [
        shape::<u32, schema1::Pod>("POD_BY_IFINDEX", 0),
        shape::<Addr, schema1::Pod>("POD_BY_ADDR", 0),
        shape::<FrontendKey, schema1::Frontend>("FRONTENDS", 0),
        shape::<u32, u32>("SLOTS", 0),
        shape::<u32, schema1::Backend>("BACKENDS", 0),
        shape::<FlowKey, schema1::Flow>("FLOWS", 0),
    ]
}

const fn shape<K, V>(name: &'static str, entries: u32) -> Shape {
    Shape { name, key: size_of::<K>(), value: size_of::<V>(), entries }
}

/// Maps that have one size for ever.
pub(super) const UNSIZED: [&str; 12] = [
    "POD_EPOCH",
    "POLICY_EPOCH",
    "AUDIT",
    "AUDITED",
    "DROPS",
    "DROP_TOTALS",
    "PATHS",
    "EVENTS",
    "FLOW_COUNTS",
    "FRAGMENTS",
    "HELD",
    "HELD_FRAMES",
];

/// Tables of flows, which change together.
pub(super) const OF_FLOWS: [&str; 3] = ["ESTABLISHED", "NURSERY", "SHARES"];

impl Shape {
    /// Rows that the pinned map has room for, if there is one; one of another shape is refused.
    pub(super) fn pinned(&self, pins: &Pins) -> Result<Option<u32>, Error> {
        let Some(map) = pins.open(self.name)? else { return Ok(None) };
        let info = map.info().map_err(Error::map(self.name))?;
        let (key, value) = (info.key_size(), info.value_size());
        if key as usize != self.key || value as usize != self.value {
            let (want_key, want_value) = (self.key, self.value);
            return Err(Error::Shape { path: pins.map(self.name), key, value, want_key, want_value });
        }
        Ok(Some(info.max_entries()))
    }

    /// True if the pinned map is as this one is to be.
    pub(super) fn fits(&self, pins: &Pins) -> bool {
        matches!(self.pinned(pins), Ok(Some(entries)) if entries == self.entries)
    }
}

/// Refuses what is not ours; true if anything of this schema is pinned.
pub(super) fn inspect(config: &Config, pins: &Pins) -> Result<bool, Error> {
    let mut any = false;
    for shape in shapes(config) {
        any |= shape.pinned(pins)?.is_some();
    }
    Ok(any)
}

/// Refuses what is not of schema 1; false if not all of it is there, and so no datapath to take over.
pub(super) fn inspect_schema1(pins: &Pins) -> Result<bool, Error> {
    let mut all = true;
    for shape in shapes_of_schema1() {
        all &= shape.pinned(pins)?.is_some();
    }
    Ok(all)
}
