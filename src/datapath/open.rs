//! Opening the datapath: adopting what an earlier agent left, moving it first where it is of another schema
//! or of other sizes.
//!
//! | found | done |
//! |---|---|
//! | nothing | new maps |
//! | this schema's maps | adopted; those of other sizes than the configuration's are moved first |
//! | only schema 1's | moved |
//! | a newer schema's | refused |
//! | what a move left that was cut off | the move begins again; after its last step it is only tidied up |
//!
//! Maps of other shapes than ours are refused by name.

use super::config::Config;
use super::gone::Gone;
use super::migrate::Move;
use super::migrate::sizes::{self, Rows};
use super::object::{self, Beside, Loaded};
use super::pin::{Pins, refuse_newer};
use super::reclaim::{Means, Reclaimer};
use super::registry::Registry;
use super::{Datapath, Error, attach, locked, mount, shape};
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuHashMap, RingBuf};
use netd_bpf::schema1;
use std::sync::{Mutex, RwLock};

/// What [`Datapath::open`] found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// A bpffs was mounted.
    pub mounted: bool,
    /// Maps of an earlier agent were adopted; false: all are new.
    pub adopted: bool,
    /// The schema from which everything was moved.
    pub migrated_from: Option<u32>,
    /// Maps that got another size.
    pub resized: Vec<Resized>,
    /// Maps that keep a size which is not the configuration's.
    pub kept: Vec<Kept>,
}

/// A map that got another size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resized {
    /// Its name.
    pub map: &'static str,
    /// Rows before.
    pub from: u32,
    /// Rows now.
    pub to: u32,
}

/// A map that keeps its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its name.
    pub map: &'static str,
    /// Rows that the configuration asks for.
    pub wanted: u32,
    /// Rows that it has.
    pub actual: u32,
    /// Why, in words.
    pub why: String,
}

pub(super) fn open(config: &Config) -> Result<(Datapath, OpenReport), Error> {
    if !object::embedded() {
        return Err(Error::NoPrograms);
    }
    let mut report = OpenReport { mounted: mount::ensure(&config.bpffs)?, ..OpenReport::default() };
    refuse_newer(&config.bpffs)?;
    let mut config = config.clone();
    adopt(&mut config, &mut report)?;

    let pins = Pins::current(&config.bpffs);
    pins.create()?;
    let mut loaded = object::load(&config, &pins, &Beside::Alone)?;
    tidy_up(&config, &pins, &mut loaded)?;
    // A table that kept a smaller size is not one pod's alone.
    config.flows_per_pod = config.flows_per_pod.min(config.flows);
    assemble(config, pins, loaded).map(|datapath| (datapath, report))
}

/// Brings what is pinned to this schema and, as far as that can be, to the sizes of the configuration, which
/// afterwards says the sizes that are.
fn adopt(config: &mut Config, report: &mut OpenReport) -> Result<(), Error> {
    let current = Pins::current(&config.bpffs);
    let (next, previous) = (Pins::next(&config.bpffs), Pins::previous(&config.bpffs));
    if !current.exist() && previous.exist() && next.exist() {
        // Cut off in the middle of its last step.
        next.rename(&current)?;
    }
    if current.exist() {
        report.adopted = shape::inspect(config, &current)?;
        (report.resized, report.kept) = sizes::settle(config, &current, Rows::Current)?;
        if report.resized.is_empty() {
            return Ok(());
        }
        if let Err(error) = Move::to_sizes(config).run() {
            if !current.exist() {
                // Cut off in the middle of its last step: the next start finishes it.
                return Err(error);
            }
            // Nothing is lost but room.
            let why = crate::telemetry::chain(&error);
            report.kept.extend(report.resized.drain(..).map(|Resized { map, from, to }| Kept {
                map,
                wanted: to,
                actual: from,
                why: why.clone(),
            }));
            sizes::adopt(config, &current)?;
        }
        return Ok(());
    }
    let old = Pins::schema1(&config.bpffs);
    if old.exist() && shape::inspect_schema1(&old)? {
        report.adopted = true;
        report.migrated_from = Some(schema1::SCHEMA);
        (report.resized, report.kept) = sizes::settle(config, &old, Rows::Schema1)?;
        Move::from_schema1(config).run()?;
    }
    Ok(())
}

/// Takes away what a move left, once no interface has a program that needs it.
fn tidy_up(config: &Config, pins: &Pins, loaded: &mut Loaded) -> Result<(), Error> {
    let bpffs = &config.bpffs;
    let left = [Pins::schema1(bpffs), Pins::next(bpffs), Pins::previous(bpffs)];
    if !left.iter().any(Pins::exist) {
        return Ok(());
    }
    attach::swap(&mut loaded.programs, pins, None, &mut 0)?;
    left.iter().try_for_each(Pins::remove)
}

fn assemble(config: Config, pins: Pins, mut loaded: Loaded) -> Result<Datapath, Error> {
    let (mut own, amend) = object::load_own(&config, &pins)?;
    // The maps that the agent's own programs have for themselves.
    let mut take =
        |name: &str| own.take_map(name).ok_or_else(|| Error::Missing { kind: "map", name: name.to_owned() });
    let sweeps = Array::try_from(take("SWEEPS")?).map_err(Error::map("SWEEPS"))?;
    let gone = HashMap::try_from(take("GONE")?).map_err(Error::map("GONE"))?;
    let pinned = |name| MapData::from_pin(pins.map(name)).map_err(Error::map(name));
    let datapath = Datapath {
        means: Means::find(&mut own, &pinned("ESTABLISHED")?, &pinned("NURSERY")?),
        reclaimer: Mutex::new(Reclaimer::new(sweeps)),
        counted: Mutex::default(),
        gone: Gone::new(gone),
        amend,
        pod_by_ifindex: Mutex::new(loaded.take("POD_BY_IFINDEX", HashMap::try_from)?),
        pod_by_addr: Mutex::new(loaded.take("POD_BY_ADDR", HashMap::try_from)?),
        pod_epoch: Mutex::new(loaded.take("POD_EPOCH", Array::try_from)?),
        registry: Mutex::default(),
        policy: Mutex::new(loaded.take("POLICY", HashMap::try_from)?),
        ranges: Mutex::new(loaded.take("RANGES", Array::try_from)?),
        identities: Mutex::new(loaded.take("IDENTITIES", HashMap::try_from)?),
        blocks: Mutex::new(loaded.take("BLOCKS", LpmTrie::try_from)?),
        policy_epoch: Mutex::new(loaded.take("POLICY_EPOCH", Array::try_from)?),
        frontends: Mutex::new(loaded.take("FRONTENDS", HashMap::try_from)?),
        slots: Mutex::new(loaded.take("SLOTS", Array::try_from)?),
        backends: Mutex::new(loaded.take("BACKENDS", Array::try_from)?),
        affinity: Mutex::new(loaded.take("AFFINITY", HashMap::try_from)?),
        established: Mutex::new(loaded.take("ESTABLISHED", HashMap::try_from)?),
        nursery: Mutex::new(loaded.take("NURSERY", HashMap::try_from)?),
        shares: Mutex::new(loaded.take("SHARES", HashMap::try_from)?),
        flow_counts: loaded.take("FLOW_COUNTS", PerCpuArray::try_from)?,
        drops: Mutex::new(loaded.take("DROPS", PerCpuHashMap::try_from)?),
        paths: loaded.take("PATHS", PerCpuArray::try_from)?,
        drop_totals: loaded.take("DROP_TOTALS", PerCpuArray::try_from)?,
        events: Mutex::new(Some(loaded.take("EVENTS", RingBuf::try_from)?)),
        audit: Mutex::new(loaded.take("AUDIT", Array::try_from)?),
        audited: loaded.take("AUDITED", PerCpuArray::try_from)?,
        secret: loaded.secret,
        programs: RwLock::new(loaded.programs),
        pins,
        config,
    };
    *locked(&datapath.registry) = Registry::of(&datapath.pod_rows()?);
    // Whoever changed rows before may not have come to say so.
    datapath.pods_changed()?;
    datapath.bump_policy_epoch()?;
    Ok(datapath)
}
