//! Loaded datapaths that tests hand on to each other: the verifier's work is most of a small test's time, minutes
//! of it where the machine is emulated.
//!
//! What is handed on has been wiped: every map of its programs, pinned or not, is as it was made, by the kernel's own
//! list of them. A datapath is thrown away instead if its test failed, if somebody still holds it, or if its folder
//! is not as it was, as when another was opened there. Filters on an interface leave nothing in it: a test that
//! attaches takes a datapath of its own ([`super::rig::Rig::fresh`]).

use super::rig::Folder;
use crate::datapath::{Datapath, OpenReport, locked};
use aya::maps::{MapInfo, MapType};
use aya::programs::SchedClassifier;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once};

/// Those that nobody uses.
static IDLE: Mutex<Vec<Loaded>> = Mutex::new(Vec::new());

/// A loaded datapath.
pub(super) struct Loaded {
    pub(super) datapath: Arc<Datapath>,
    pub(super) report: Arc<OpenReport>,
    pub(super) folder: Arc<Folder>,
    /// All paths in its bpffs, as they were when it was loaded.
    paths: BTreeSet<PathBuf>,
}

impl Loaded {
    fn new() -> Self {
        let folder = Folder::new();
        let (datapath, report) = Datapath::open(&folder.config()).expect("the programs load");
        let paths = paths(&folder.config().bpffs);
        Self { datapath: Arc::new(datapath), report: Arc::new(report), folder: Arc::new(folder), paths }
    }

    fn handles(&self) -> Self {
        Self {
            datapath: Arc::clone(&self.datapath),
            report: Arc::clone(&self.report),
            folder: Arc::clone(&self.folder),
            paths: BTreeSet::new(),
        }
    }

    /// Nobody has it, and it can be made as new.
    fn is_reusable(&self) -> bool {
        Arc::strong_count(&self.datapath) == 1
            && locked(&self.datapath.events).is_some()
            && paths(&self.folder.config().bpffs) == self.paths
            && self.pinned().is_subset(&maps(&self.datapath))
    }

    /// Numbers of the maps in its folder.
    fn pinned(&self) -> BTreeSet<u32> {
        let maps =
            self.paths.iter().filter(|path| path.parent().is_some_and(|folder| folder.ends_with("maps")));
        maps.map(|path| MapInfo::from_pin(path).expect("a map").id()).collect()
    }
}

/// The right to one of them; gives it back when it is dropped, which must be after all handles are.
pub(super) struct Lease(Option<Loaded>);

impl Lease {
    /// One as new, with handles to it.
    pub(super) fn take() -> (Loaded, Self) {
        let idle = locked(&IDLE).pop();
        let loaded = idle.unwrap_or_else(Loaded::new);
        (loaded.handles(), Self(Some(loaded)))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(loaded) = self.0.take() else { return };
        if std::thread::panicking() || !loaded.is_reusable() {
            return;
        }
        wipe(&loaded.datapath);
        locked(&IDLE).push(loaded);
        // Statics are not dropped, and the folders of these are mounts.
        static AT_EXIT: Once = Once::new();
        AT_EXIT.call_once(at_exit);
    }
}

#[expect(unsafe_code, reason = "the test harness ends the process by exit(3)")]
fn at_exit() {
    extern "C" fn let_go() {
        // Whoever panicked while he had it left it as it is.
        if let Ok(mut idle) = IDLE.lock() {
            idle.clear();
        }
    }
    // SAFETY: a function without arguments, which touches no thread-local memory.
    unsafe { libc::atexit(let_go) };
}

fn paths(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("the bpffs is mounted") {
            let entry = entry.expect("readable");
            if entry.file_type().expect("known").is_dir() {
                open.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

/// Numbers of all its programs' maps.
fn maps(datapath: &Datapath) -> BTreeSet<u32> {
    let programs = datapath.programs.read().expect("nobody panicked");
    let loaded: [&SchedClassifier; 4] =
        [&programs.pod_egress, &programs.pod_ingress, &programs.uplink_in, &datapath.amend];
    let ids = |program: &SchedClassifier| program.info().expect("loaded").map_ids().expect("told");
    loaded.into_iter().flat_map(|program| ids(program).expect("known to this kernel")).collect()
}

/// Empties every map.
fn wipe(datapath: &Datapath) {
    datapath.forget_passes();
    datapath.forget_all_policies();
    for id in maps(datapath) {
        let map = MapInfo::from_id(id).expect("a program has it");
        let name = map.name_as_str().unwrap_or_default().to_owned();
        match map.map_type().expect("a known type") {
            // What the loader wrote and froze.
            MapType::Array if name.starts_with(".rodata") => {}
            MapType::Array | MapType::PerCpuArray => zero(&map, &name),
            MapType::Hash | MapType::LruHash | MapType::LruPerCpuHash | MapType::LpmTrie => {
                empty(&map, &name);
            }
            MapType::RingBuf => {}
            other => panic!("no way to empty {name}, a map of type {other:?}"),
        }
    }
    if let Some(events) = &mut *locked(&datapath.events) {
        while events.next().is_some() {}
    }
}

fn zero(map: &MapInfo, name: &str) {
    let file = map.fd().expect("a descriptor");
    let cpus = aya::util::nr_cpus().expect("known");
    let each = map.value_size() as usize;
    let per_cpu = map.map_type().expect("a known type") == MapType::PerCpuArray;
    let zeros = vec![0_u8; if per_cpu { each.next_multiple_of(8) * cpus } else { each }];
    for index in 0..map.max_entries() {
        let result = bpf(Command::Update, file.as_fd().as_raw_fd(), &index.to_ne_bytes(), Some(&zeros));
        result.unwrap_or_else(|error| panic!("zeroing {name}: {error}"));
    }
}

fn empty(map: &MapInfo, name: &str) {
    let file = map.fd().expect("a descriptor");
    let fd = file.as_fd().as_raw_fd();
    let mut key = vec![0_u8; map.key_size() as usize];
    loop {
        match first(fd, &mut key) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return,
            Err(error) => panic!("emptying {name}: {error}"),
        }
        bpf(Command::Delete, fd, &key, None).unwrap_or_else(|error| panic!("emptying {name}: {error}"));
    }
}

/// Of `enum bpf_cmd`.
#[derive(Clone, Copy)]
enum Command {
    Update = 2,
    Delete = 3,
    NextKey = 4,
}

/// `union bpf_attr`, the variant for elements.
#[repr(C)]
struct Attr {
    map_fd: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn bpf(command: Command, fd: RawFd, key: &[u8], value: Option<&[u8]>) -> io::Result<()> {
    call(command, fd, key.as_ptr() as u64, value.map_or(0, |value| value.as_ptr() as u64))
}

/// The first key of a hash table or a trie.
fn first(fd: RawFd, key: &mut [u8]) -> io::Result<()> {
    call(Command::NextKey, fd, 0, key.as_mut_ptr() as u64)
}

#[expect(unsafe_code, reason = "maps of any key and value, which aya types at compile time")]
fn call(command: Command, fd: RawFd, key: u64, value: u64) -> io::Result<()> {
    let attr = Attr { map_fd: fd.cast_unsigned(), key, value, flags: 0 };
    // SAFETY: `attr` has the size that is told; key and value are of the map's own sizes, and outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, std::ptr::from_ref(&attr), size_of::<Attr>())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
