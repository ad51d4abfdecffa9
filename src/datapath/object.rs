//! The embedded objects: loading them over pinned maps, pinning programs.

use super::Error;
use super::config::Config;
use super::pin::{Pins, unpin};
use super::shape::{UNSIZED, shapes};
use aya::maps::{Map, MapError};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use netd_bpf::event::EXPLAIN_WORDS;
use netd_bpf::flow::beside;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

#[cfg(not(netd_bpf_stub))]
static OBJECTS: [(&str, &[u8]); 2] = [
    ("pod", aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/pod.o"))),
    ("uplink", aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/uplink.o"))),
];
#[cfg(netd_bpf_stub)]
static OBJECTS: [(&str, &[u8]); 0] = [];

/// The object of the programs that the agent runs itself.
const RECLAIM: &str = "reclaim";
#[cfg(not(netd_bpf_stub))]
static RECLAIM_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/reclaim.o"));
#[cfg(netd_bpf_stub)]
static RECLAIM_OBJECT: &[u8] = &[];

/// Names of the programs, which the kernel tells for filters too.
pub(super) const PROGRAMS: [&str; 3] = ["pod_egress", "pod_ingress", "uplink_in"];

/// The loaded programs.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) pod_egress: SchedClassifier,
    pub(super) pod_ingress: SchedClassifier,
    pub(super) uplink_in: SchedClassifier,
}

impl Programs {
    /// Those that are pinned; none if one is missing.
    pub(super) fn pinned(pins: &Pins) -> Option<Self> {
        let open = |name| SchedClassifier::from_pin(pins.program(name)).ok();
        Some(Self {
            pod_egress: open("pod_egress")?,
            pod_ingress: open("pod_ingress")?,
            uplink_in: open("uplink_in")?,
        })
    }

    /// By the name of [`PROGRAMS`].
    pub(super) fn by_name(&mut self, name: &str) -> Option<&mut SchedClassifier> {
        match name {
            "pod_egress" => Some(&mut self.pod_egress),
            "pod_ingress" => Some(&mut self.pod_ingress),
            "uplink_in" => Some(&mut self.uplink_in),
            _ => None,
        }
    }
}

/// Which programs run on the node beside those that are loaded, and where their tables of flows are pinned.
#[derive(Clone, Debug)]
pub(super) enum Beside {
    /// None.
    Alone,
    /// Those of schema 1.
    Schema1(Pins),
    /// Those of this schema with tables of another size.
    SameSchema(Pins),
}

impl Beside {
    const fn mode(&self) -> u32 {
        match self {
            Self::Alone => beside::ALONE,
            Self::Schema1(_) => beside::SCHEMA_1,
            Self::SameSchema(_) => beside::SAME_SCHEMA,
        }
    }

    /// The programs' names for the others' tables, with the others' pins.
    fn tables(&self) -> Vec<(&'static str, PathBuf)> {
        match self {
            Self::Alone => Vec::new(),
            Self::Schema1(pins) => vec![("OLD_FLOWS", pins.map("FLOWS"))],
            Self::SameSchema(pins) => {
                vec![("OLD_NURSERY", pins.map("NURSERY")), ("OLD_ESTABLISHED", pins.map("ESTABLISHED"))]
            }
        }
    }
}

/// What loading gives.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) programs: Programs,
    pub(super) secret: [u32; EXPLAIN_WORDS],
    maps: Vec<(String, Map)>,
}

impl Loaded {
    /// Takes a map.
    pub(super) fn take<T>(
        &mut self,
        name: &'static str,
        convert: impl FnOnce(Map) -> Result<T, MapError>,
    ) -> Result<T, Error> {
        let at = self.maps.iter().position(|(have, _)| have == name);
        let at = at.ok_or_else(|| Error::Missing { kind: "map", name: name.to_owned() })?;
        convert(self.maps.swap_remove(at).1).map_err(Error::map(name))
    }
}

/// True if this binary has programs.
pub(super) fn embedded() -> bool {
    !OBJECTS.is_empty()
}

/// Loads the programs over the maps of `pins`, whose shapes and sizes must be those of `config`: aya takes
/// the size it is told for the map's own, and would look beyond the end of an array that is smaller. Maps
/// that are not there are made, programs that are there are replaced.
pub(super) fn load(config: &Config, pins: &Pins, beside: &Beside) -> Result<Loaded, Error> {
    let secret = draw_secret()?;
    let mut maps = Vec::new();
    let mut objects = Vec::new();
    for (object, bytes) in OBJECTS {
        let mut ebpf = open((object, bytes), config, pins, beside, &secret)?;
        let names: Vec<String> = ebpf.maps().map(|(name, _)| name.to_owned()).collect();
        for name in names {
            if let Some(taken) = ebpf.take_map(&name) {
                maps.push((name, taken));
            }
        }
        objects.push(ebpf);
    }
    let programs = Programs {
        pod_egress: program(&mut objects, pins, "pod_egress")?,
        pod_ingress: program(&mut objects, pins, "pod_ingress")?,
        uplink_in: program(&mut objects, pins, "uplink_in")?,
    };
    Ok(Loaded { programs, secret, maps })
}

/// Loads the object of the agent's own programs over the same maps, but not its iterators yet; gives the
/// program `amend` too.
pub(super) fn load_own(config: &Config, pins: &Pins) -> Result<(Ebpf, SchedClassifier), Error> {
    let object = open((RECLAIM, RECLAIM_OBJECT), config, pins, &Beside::Alone, &[0; EXPLAIN_WORDS])?;
    let mut objects = [object];
    let amend = program(&mut objects, pins, "amend")?;
    let [object] = objects;
    Ok((object, amend))
}

fn open(
    (object, bytes): (&'static str, &[u8]),
    config: &Config,
    pins: &Pins,
    beside: &Beside,
    secret: &[u32; EXPLAIN_WORDS],
) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    let (limits, mode) = (config.limits(), beside.mode());
    // Those of the agent alone need the limits only.
    let all = object != RECLAIM;
    loader
        .override_global("EXPLAIN_SECRET", &secret[..], all)
        .override_global("LIMITS", &limits, true)
        .override_global("BESIDE", &mode, all);
    for shape in shapes(config) {
        loader.map_max_entries(shape.name, shape.entries);
        loader.map_pin_path(shape.name, pins.map(shape.name));
    }
    for name in UNSIZED {
        loader.map_pin_path(name, pins.map(name));
    }
    for (name, path) in beside.tables() {
        loader.map_pin_path(name, path);
    }
    loader.load(bytes).map_err(|source| Error::Load { object, source: Box::new(source) })
}

/// Takes a program out of whichever object has it, loads it and pins it in place of an older one.
fn program(objects: &mut [Ebpf], pins: &Pins, name: &str) -> Result<SchedClassifier, Error> {
    let missing = || Error::Missing { kind: "program", name: name.to_owned() };
    let object = objects.iter_mut().find_map(|object| object.program_mut(name)).ok_or_else(missing)?;
    let loaded: &mut SchedClassifier = object.try_into().map_err(Error::program("use", name))?;
    verified(|| loaded.load()).map_err(Error::load(name))?;
    let path = pins.program(name);
    unpin(&path)?;
    loaded
        .pin(&path)
        .map_err(|error| Error::path("pin a program at", &path)(std::io::Error::other(error)))?;
    SchedClassifier::from_pin(&path).map_err(Error::program("reopen", name))
}

/// Loads a program by `load`. The verifier gives up when the kernel wants something of its thread, and wants to be
/// asked again (`EAGAIN`). Some kernels were seen to want it for tens of milliseconds, in which the five times
/// at once that libbpf asks were all in vain: so there is a pause before each, and they take a second together.
pub(super) fn verified(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const PAUSES: [u64; 9] = [1, 2, 4, 8, 16, 64, 128, 256, 512];
    let again = |error: &ProgramError| match error {
        ProgramError::LoadError { io_error, .. } | ProgramError::IOError(io_error) => {
            io_error.kind() == std::io::ErrorKind::WouldBlock
        }
        _ => false,
    };
    for pause in PAUSES {
        match load() {
            Err(error) if again(&error) => std::thread::sleep(Duration::from_millis(pause)),
            done => return done,
        }
    }
    load()
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

#[cfg(test)]
mod tests {
    use super::verified;
    use aya::programs::ProgramError;

    #[test]
    fn the_verifier_is_asked_again_when_it_wants_to_be() {
        let fails = |times: u32, code: i32| {
            let mut asked = 0;
            let result = verified(|| {
                asked += 1;
                if asked > times {
                    return Ok(());
                }
                Err(ProgramError::IOError(std::io::Error::from_raw_os_error(code)))
            });
            (asked, result.is_ok())
        };
        assert_eq!(fails(0, libc::EAGAIN), (1, true));
        assert_eq!(fails(7, libc::EAGAIN), (8, true));
        assert_eq!(fails(u32::MAX, libc::EAGAIN), (10, false));
        assert_eq!(fails(1, libc::EACCES), (1, false));
    }
}
