//! Which of the sizes that the configuration asks for can be had: a table never gets smaller than what is in
//! it.

use super::super::config::Config;
use super::super::conversation::now;
use super::super::pin::Pins;
use super::super::{Error, Kept, Resized};
use super::{each, each_pod, rows};
use netd_bpf::flow::{Flow, FlowKey, expired};
use netd_bpf::policy::{IdentityRow, PolicyKey, PolicyRow};
use netd_bpf::service::{Backend, Frontend, FrontendKey, backend_state, kind};
use netd_bpf::{Addr, schema1};

/// A size of the configuration: its map, and where it stands.
struct Size {
    map: &'static str,
    of: fn(&mut Config) -> &mut u32,
    /// Rows of a table at `pins` that must fit.
    used: fn(&Config, &Pins, Rows) -> Result<u32, Error>,
}

/// Which shape the rows at some pins have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::datapath) enum Rows {
    Schema1,
    Current,
}

const SIZES: [Size; 11] = [
    Size { map: "POD_BY_IFINDEX", of: |config| &mut config.pods, used: |_, pins, rows| pods(pins, rows) },
    Size {
        map: "FRONTENDS",
        of: |config| &mut config.frontends,
        used: |_, pins, rows| Ok(frontends(pins, rows)?.0),
    },
    Size { map: "SLOTS", of: |config| &mut config.slots, used: |_, pins, rows| Ok(frontends(pins, rows)?.1) },
    Size { map: "BACKENDS", of: |config| &mut config.backends, used: |_, pins, rows| backends(pins, rows) },
    Size {
        map: "ESTABLISHED",
        of: |config| &mut config.flows,
        used: |c, pins, _| flows(c, pins, "ESTABLISHED"),
    },
    Size { map: "NURSERY", of: |config| &mut config.nursery, used: |c, pins, _| flows(c, pins, "NURSERY") },
    // Its rows are worth less the older they are, and it is always full of old ones.
    Size { map: "AFFINITY", of: |config| &mut config.affinity, used: |_, _, _| Ok(0) },
    Size { map: "POLICY", of: |config| &mut config.policy_rows, used: |_, pins, _| Ok(policy(pins)?.0) },
    Size { map: "RANGES", of: |config| &mut config.policy_ranges, used: |_, pins, _| Ok(policy(pins)?.1) },
    Size { map: "IDENTITIES", of: |config| &mut config.identities, used: |_, pins, _| identities(pins) },
    Size { map: "BLOCKS", of: |config| &mut config.blocks, used: |_, pins, _| blocks(pins) },
];

/// Compares the sizes of `config` with those at `pins`, and sets those that cannot be had to what is there.
/// Gives what is to change, and what is kept.
pub(in crate::datapath) fn settle(
    config: &mut Config,
    pins: &Pins,
    rows: Rows,
) -> Result<(Vec<Resized>, Vec<Kept>), Error> {
    let (mut resized, mut kept) = (Vec::new(), Vec::new());
    for Size { map, of, used } in SIZES {
        let Some(pinned) = pins.open(map)? else { continue };
        let actual = pinned.info().map_err(Error::map(map))?.max_entries();
        let wanted = *of(config);
        if wanted == actual {
            continue;
        }
        let used = if wanted < actual { used(config, pins, rows)? } else { 0 };
        if used <= wanted {
            resized.push(Resized { map, from: actual, to: wanted });
        } else {
            kept.push(Kept { map, wanted, actual, why: format!("{used} rows of it are in use") });
            *of(config) = actual;
        }
    }
    Ok((resized, kept))
}

/// Sets all sizes to those at `pins`.
pub(in crate::datapath) fn adopt(config: &mut Config, pins: &Pins) -> Result<(), Error> {
    for Size { map, of, .. } in SIZES {
        if let Some(pinned) = pins.open(map)? {
            *of(config) = pinned.info().map_err(Error::map(map))?.max_entries();
        }
    }
    Ok(())
}

/// There is room for twice as many addresses as pods.
fn pods(pins: &Pins, rows: Rows) -> Result<u32, Error> {
    let (mut interfaces, mut addresses) = (0, 0_u32);
    each_pod((pins, rows), "POD_BY_IFINDEX", |_: u32, _| {
        interfaces += 1;
        Ok(())
    })?;
    each_pod((pins, rows), "POD_BY_ADDR", |_: Addr, _| {
        addresses += 1;
        Ok(())
    })?;
    Ok(addresses.div_ceil(2).max(interfaces))
}

/// Number of frontends, and one more than the last slot that they name.
fn frontends(pins: &Pins, rows: Rows) -> Result<(u32, u32), Error> {
    let (mut count, mut end) = (0, 0);
    let mut look = |base: u32, backends: u16, of_kind: u8| {
        count += 1;
        let length = u32::from(backends) + u32::from(of_kind == kind::LOCAL_REDIRECT);
        if length > 0 {
            end = base.saturating_add(length).max(end);
        }
    };
    match rows {
        Rows::Schema1 => each(pins, "FRONTENDS", |_: FrontendKey, row: schema1::Frontend| {
            look(row.slot_base, row.backends, row.kind);
            Ok(())
        }),
        Rows::Current => each(pins, "FRONTENDS", |_: FrontendKey, row: Frontend| {
            look(row.slot_base, row.backends, row.kind);
            Ok(())
        }),
    }?;
    Ok((count, end))
}

/// One more than the last id that stands for a backend.
fn backends(pins: &Pins, rows: Rows) -> Result<u32, Error> {
    let mut end = 0;
    let mut look = |id: u32, state: u8| {
        if state != backend_state::FREE {
            end = id.saturating_add(1).max(end);
        }
    };
    match rows {
        Rows::Schema1 => each(pins, "BACKENDS", |id: u32, row: schema1::Backend| {
            look(id, row.state);
            Ok(())
        }),
        Rows::Current => each(pins, "BACKENDS", |id: u32, row: Backend| {
            look(id, row.state);
            Ok(())
        }),
    }?;
    Ok(end)
}

/// Flows that are not over.
fn flows(config: &Config, pins: &Pins, name: &'static str) -> Result<u32, Error> {
    let (limits, now) = (config.limits(), now());
    let mut alive = 0;
    each(pins, name, |key: FlowKey, row: Flow| {
        alive += u32::from(!expired(&row, key.proto, &limits, now));
        Ok(())
    })?;
    Ok(alive)
}

/// Number of policy rows, and one more than the last range that they name.
fn policy(pins: &Pins) -> Result<(u32, u32), Error> {
    let (mut count, mut end) = (0, 0);
    each(pins, "POLICY", |_: PolicyKey, row: PolicyRow| {
        count += 1;
        if row.count > 0 {
            end = row.ranges.saturating_add(row.count).max(end);
        }
        Ok(())
    })?;
    Ok((count, end))
}

fn identities(pins: &Pins) -> Result<u32, Error> {
    let mut count = 0;
    each(pins, "IDENTITIES", |_: Addr, _: IdentityRow| {
        count += 1;
        Ok(())
    })?;
    Ok(count)
}

fn blocks(pins: &Pins) -> Result<u32, Error> {
    let count = rows::blocks(pins)?.map_or(0, |blocks| blocks.keys().flatten().count());
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}
