//! The embedded objects: loading, adopting pinned maps, pinning programs.

use super::config::Config;
use super::pin::Pins;
use super::{Datapath, Error, mount};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuHashMap, RingBuf};
use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};
use netd_bpf::Addr;
use netd_bpf::event::{Count, DropKey, EXPLAIN_WORDS};
use netd_bpf::flow::{Flow, FlowKey, Share};
use netd_bpf::pod::Pod;
use netd_bpf::service::{Affinity, AffinityKey, Backend, Frontend, FrontendKey};
use std::fs;
use std::io::Read;
use std::sync::{Mutex, RwLock};

#[cfg(not(netd_bpf_stub))]
static OBJECTS: [(&str, &[u8]); 2] = [
    ("pod", aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pod.o"))),
    ("uplink", aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/uplink.o"))),
];
#[cfg(netd_bpf_stub)]
static OBJECTS: [(&str, &[u8]); 0] = [];

/// What [`Datapath::open`] found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// A bpffs was mounted.
    pub mounted: bool,
    /// Maps of an earlier agent were adopted; false: all are new.
    pub adopted: bool,
    /// Adopted maps of another size than the configuration's: name, wanted, actual. They keep their size
    /// until the node restarts.
    pub sizes: Vec<(&'static str, u32, u32)>,
}

/// The loaded programs.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) pod_egress: SchedClassifier,
    pub(super) pod_ingress: SchedClassifier,
    pub(super) uplink_in: SchedClassifier,
}

/// Shape of a map: name, key size, value size, entries; 0: not ours to check.
fn shapes(config: &Config) -> [(&'static str, usize, usize, u32); 9] {
    [
        ("POD_BY_IFINDEX", size_of::<u32>(), size_of::<Pod>(), config.pods),
        ("POD_BY_ADDR", size_of::<Addr>(), size_of::<Pod>(), config.pods.saturating_mul(2)),
        ("FRONTENDS", size_of::<FrontendKey>(), size_of::<Frontend>(), config.frontends),
        ("SLOTS", size_of::<u32>(), size_of::<u32>(), config.slots),
        ("BACKENDS", size_of::<u32>(), size_of::<Backend>(), config.backends),
        ("ESTABLISHED", size_of::<FlowKey>(), size_of::<Flow>(), config.flows),
        ("NURSERY", size_of::<FlowKey>(), size_of::<Flow>(), config.nursery),
        ("SHARES", size_of::<u32>(), size_of::<Share>(), config.pods),
        ("AFFINITY", size_of::<AffinityKey>(), size_of::<Affinity>(), config.affinity),
    ]
}

const UNSIZED: [&str; 5] = ["DROPS", "DROP_TOTALS", "PATHS", "EVENTS", "FLOW_COUNTS"];

pub(super) fn open(config: &Config) -> Result<(Datapath, OpenReport), Error> {
    if OBJECTS.is_empty() {
        return Err(Error::NoPrograms);
    }
    let mut report = OpenReport { mounted: mount::ensure(&config.bpffs)?, ..OpenReport::default() };
    let pins = Pins::new(&config.bpffs);
    pins.create()?;
    inspect_pinned(config, &pins, &mut report)?;
    let config = &in_force(config, &report);
    let secret = draw_secret()?;

    let mut maps = Vec::new();
    let mut programs = Vec::new();
    for (name, bytes) in OBJECTS {
        let mut ebpf = load(name, bytes, config, &pins, &secret)?;
        let map_names: Vec<String> = ebpf.maps().map(|(name, _)| name.to_owned()).collect();
        for map in map_names {
            if let Some(taken) = ebpf.take_map(&map) {
                maps.push((map, taken));
            }
        }
        programs.push(ebpf);
    }
    let programs = Programs {
        pod_egress: program(&mut programs, &pins, "pod_egress")?,
        pod_ingress: program(&mut programs, &pins, "pod_ingress")?,
        uplink_in: program(&mut programs, &pins, "uplink_in")?,
    };

    let mut take = |name: &'static str| {
        let at = maps.iter().position(|(have, _)| have == name);
        at.map(|at| maps.swap_remove(at).1)
            .ok_or_else(|| Error::Missing { kind: "map", name: name.to_owned() })
    };
    let datapath = Datapath {
        pod_by_ifindex: Mutex::new(typed("POD_BY_IFINDEX", take("POD_BY_IFINDEX")?, HashMap::try_from)?),
        pod_by_addr: Mutex::new(typed("POD_BY_ADDR", take("POD_BY_ADDR")?, HashMap::try_from)?),
        frontends: Mutex::new(typed("FRONTENDS", take("FRONTENDS")?, HashMap::try_from)?),
        slots: Mutex::new(typed("SLOTS", take("SLOTS")?, Array::try_from)?),
        backends: Mutex::new(typed("BACKENDS", take("BACKENDS")?, Array::try_from)?),
        affinity: Mutex::new(typed("AFFINITY", take("AFFINITY")?, HashMap::try_from)?),
        established: Mutex::new(typed("ESTABLISHED", take("ESTABLISHED")?, HashMap::try_from)?),
        nursery: Mutex::new(typed("NURSERY", take("NURSERY")?, HashMap::try_from)?),
        shares: Mutex::new(typed("SHARES", take("SHARES")?, HashMap::try_from)?),
        flow_counts: typed::<PerCpuArray<MapData, u64>>(
            "FLOW_COUNTS",
            take("FLOW_COUNTS")?,
            PerCpuArray::try_from,
        )?,
        drops: Mutex::new(typed::<PerCpuHashMap<MapData, DropKey, Count>>(
            "DROPS",
            take("DROPS")?,
            PerCpuHashMap::try_from,
        )?),
        paths: typed::<PerCpuArray<MapData, Count>>("PATHS", take("PATHS")?, PerCpuArray::try_from)?,
        drop_totals: typed::<PerCpuArray<MapData, Count>>(
            "DROP_TOTALS",
            take("DROP_TOTALS")?,
            PerCpuArray::try_from,
        )?,
        events: Mutex::new(Some(typed("EVENTS", take("EVENTS")?, RingBuf::try_from)?)),
        pins,
        config: config.clone(),
        secret,
        programs: RwLock::new(programs),
    };
    Ok((datapath, report))
}

/// The configuration with the sizes that adopted maps have: aya takes the size it is told for the map's own,
/// and would look beyond the end of an array that is smaller.
fn in_force(config: &Config, report: &OpenReport) -> Config {
    let mut config = config.clone();
    for (name, _, actual) in &report.sizes {
        let size = match *name {
            "POD_BY_IFINDEX" => &mut config.pods,
            "FRONTENDS" => &mut config.frontends,
            "SLOTS" => &mut config.slots,
            "BACKENDS" => &mut config.backends,
            "ESTABLISHED" => &mut config.flows,
            "NURSERY" => &mut config.nursery,
            "AFFINITY" => &mut config.affinity,
            _ => continue,
        };
        *size = *actual;
    }
    config
}

/// Refuses pinned maps of another shape, notes those of another size.
fn inspect_pinned(config: &Config, pins: &Pins, report: &mut OpenReport) -> Result<(), Error> {
    for (name, want_key, want_value, entries) in shapes(config) {
        let path = pins.map(name);
        if !path.exists() {
            continue;
        }
        let pinned = MapData::from_pin(&path).map_err(Error::map(name))?;
        let info = pinned.info().map_err(Error::map(name))?;
        let (key, value) = (info.key_size(), info.value_size());
        if key as usize != want_key || value as usize != want_value {
            return Err(Error::Shape { path, key, value, want_key, want_value });
        }
        report.adopted = true;
        if info.max_entries() != entries {
            report.sizes.push((name, entries, info.max_entries()));
        }
    }
    Ok(())
}

fn load(
    object: &'static str,
    bytes: &[u8],
    config: &Config,
    pins: &Pins,
    secret: &[u32; EXPLAIN_WORDS],
) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    let limits = config.limits();
    loader.override_global("EXPLAIN_SECRET", &secret[..], true).override_global("LIMITS", &limits, true);
    for (name, _, _, entries) in shapes(config) {
        loader.map_max_entries(name, entries);
        loader.map_pin_path(name, pins.map(name));
    }
    for name in UNSIZED {
        loader.map_pin_path(name, pins.map(name));
    }
    loader.load(bytes).map_err(|source| Error::Load { object, source: Box::new(source) })
}

/// Takes a program out of whichever object has it, loads it and pins it in place of an older one.
fn program(objects: &mut [Ebpf], pins: &Pins, name: &str) -> Result<SchedClassifier, Error> {
    let missing = || Error::Missing { kind: "program", name: name.to_owned() };
    let object = objects.iter_mut().find_map(|object| object.program_mut(name)).ok_or_else(missing)?;
    let loaded: &mut SchedClassifier = object.try_into().map_err(Error::program("use", name))?;
    loaded.load().map_err(Error::program("load", name))?;
    let path = pins.program(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::path("unpin", &path)(error));
        }
        _ => {}
    }
    loaded
        .pin(&path)
        .map_err(|error| Error::path("pin a program at", &path)(std::io::Error::other(error)))?;
    SchedClassifier::from_pin(&path).map_err(Error::program("reopen", name))
}

fn typed<T>(
    name: &'static str,
    map: Map,
    convert: impl FnOnce(Map) -> Result<T, aya::maps::MapError>,
) -> Result<T, Error> {
    convert(map).map_err(Error::map(name))
}

/// The explain secret: random, never zero in its first word.
fn draw_secret() -> Result<[u32; EXPLAIN_WORDS], Error> {
    const SOURCE: &str = "/dev/urandom";
    let mut bytes = [0; EXPLAIN_WORDS * 4];
    fs::File::open(SOURCE)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(Error::path("read", SOURCE))?;
    let mut secret = [0; EXPLAIN_WORDS];
    for (word, chunk) in secret.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = chunk.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
    }
    if let Some(first) = secret.first_mut() {
        *first |= 1;
    }
    Ok(secret)
}
