//! What agents report: one file per pod in the `status/` subfolder.
//!
//! A file is `<namespace>_<name>.json` (neither part can hold a `_`), written by the agent that gave the pod
//! its addresses and read by all agents that share the folder. Writers hold a lock on `status/.lock`, so a
//! removal is one step with its comparison: a late DEL of an old container cannot take away the report of the
//! pod that came after it. Files are written aside, synced and renamed: a reader sees the old report or the
//! new one. The user's own files are never touched.

use crate::model::ObjectName;
use crate::model::convert::{is_label, is_subdomain};
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Name of the subfolder.
pub const FOLDER: &str = "status";
/// The form of the files that this netd writes and reads.
pub const VERSION: u32 = 1;
/// NAME_MAX of Linux's file systems.
const LONGEST_NAME: usize = 255;
/// No report is anywhere near as long.
const LONGEST_FILE: u64 = 64 << 10;

/// The report on one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// [`VERSION`].
    pub version: u32,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The node it runs on.
    pub node: String,
    /// The sandbox that has the addresses.
    pub container_id: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// When this was written: RFC 3339, for people to read.
    pub updated: String,
}

impl PodStatus {
    /// A report as of now.
    #[must_use]
    pub fn new(pod: &ObjectName, node: &str, container_id: &str, addresses: Vec<IpAddr>) -> Self {
        Self {
            version: VERSION,
            namespace: pod.namespace.to_string(),
            name: pod.name.to_string(),
            node: node.to_owned(),
            container_id: container_id.to_owned(),
            addresses,
            updated: now(),
        }
    }

    /// The pod it is about.
    #[must_use]
    pub fn pod(&self) -> ObjectName {
        ObjectName::new(&self.namespace, &self.name)
    }
}

fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .unwrap_or_default()
        .to_string()
}

/// Why a report could not be written, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The names came from a container runtime, and end up in a path.
    #[error("{namespace:?}/{name:?} is not the name of a pod")]
    Name {
        /// The namespace as given.
        namespace: String,
        /// The name as given.
        name: String,
    },
    /// A step on the file system failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not a report.
    #[error("{} is not a pod's status", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// A report that says something else than it should.
    #[error("{} is not a usable status: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { action, path: path.to_owned(), source }
}

/// Path of a pod's report in the folder `source`, which is the directory source's own.
///
/// # Errors
/// The name is not that of a pod.
pub fn path(source: &Path, pod: &ObjectName) -> Result<PathBuf, Error> {
    if !is_label(&pod.namespace) || !is_subdomain(&pod.name) {
        return Err(Error::Name { namespace: pod.namespace.to_string(), name: pod.name.to_string() });
    }
    Ok(source.join(FOLDER).join(file_name(pod)))
}

/// `<namespace>_<name>.json`; names that the file system has no room for end in a hash instead.
fn file_name(pod: &ObjectName) -> String {
    let plain = format!("{}_{}.json", pod.namespace, pod.name);
    if plain.len() <= LONGEST_NAME {
        return plain;
    }
    // FNV-1a, 64 bits: the name must be the same for every version of netd.
    let hash = plain
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let head: String = plain.chars().take(LONGEST_NAME.saturating_sub(22)).collect();
    format!("{head}~{hash:016x}.json")
}

/// Writes a pod's report into `status/` of the folder `source`, in place of an older one.
///
/// # Errors
/// The name is not that of a pod, or the file system refused a step; nothing is half written then.
pub fn write(source: &Path, status: &PodStatus) -> Result<(), Error> {
    let target = path(source, &status.pod())?;
    let folder = source.join(FOLDER);
    // Never the source itself: one that is not there (not mounted, say) must not become one that is empty.
    match fs::create_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(io_error("create", &folder))?,
    }
    let _lock = lock(&folder)?;
    // Under the lock nobody else has this name; what a crash left of it is overwritten.
    let aside = folder.join(".writing");
    let mut text =
        serde_json::to_vec_pretty(status).map_err(|source| Error::Format { path: target.clone(), source })?;
    text.push(b'\n');
    let mut file = File::create(&aside).map_err(io_error("create", &aside))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(io_error("write", &aside))?;
    fs::rename(&aside, &target).map_err(io_error("rename to", &target))?;
    sync_folder(&folder)
}

/// Removes a pod's report if it is about this container; says whether it did.
///
/// # Errors
/// The name is not that of a pod, or the file system refused a step.
pub fn remove(source: &Path, pod: &ObjectName, container_id: &str) -> Result<bool, Error> {
    let target = path(source, pod)?;
    let folder = source.join(FOLDER);
    if !folder.is_dir() {
        return Ok(false);
    }
    let _lock = lock(&folder)?;
    match read(&target) {
        Ok(status) if status.container_id != container_id => return Ok(false),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error @ Error::Io { .. }) => return Err(error),
        // A file that nobody can read is about nobody: the pod of that name goes, and it with it.
        Ok(_) | Err(_) => {}
    }
    fs::remove_file(&target).map_err(io_error("remove", &target))?;
    sync_folder(&folder)?;
    Ok(true)
}

/// Reads all reports in `status/` of the folder `source`, in order of their files. What is broken is in the
/// second list.
///
/// # Errors
/// The folder cannot be listed. Without a folder there are no reports, which is no error.
pub fn read_all(source: &Path) -> Result<(Vec<PodStatus>, Vec<Error>), Error> {
    let folder = source.join(FOLDER);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
        entries => entries.map_err(io_error("list", &folder))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error("list", &folder))?;
        if is_report(&entry.path()) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    let (mut reports, mut broken) = (Vec::new(), Vec::new());
    for path in paths {
        match read(&path) {
            Ok(status) => reports.push(status),
            Err(error) => broken.push(error),
        }
    }
    Ok((reports, broken))
}

/// A name that a report can have: `.lock` and `.writing` are none.
pub(super) fn is_report(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
        && path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b"."))
}

/// Reads one report.
pub(super) fn read(path: &Path) -> Result<PodStatus, Error> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST_FILE).read_to_end(&mut text))
        .map_err(io_error("read", path))?;
    let status: PodStatus =
        serde_json::from_slice(&text).map_err(|source| Error::Format { path: path.to_owned(), source })?;
    let refuse = |message: String| Err(Error::Content { path: path.to_owned(), message });
    if status.version != VERSION {
        return refuse(format!("version {} is not one this netd knows ({VERSION})", status.version));
    }
    if path.file_name().is_none_or(|name| name.as_encoded_bytes() != file_name(&status.pod()).as_bytes()) {
        return refuse(format!("it is about {}, which its name is not", status.pod()));
    }
    if let Some(address) =
        status.addresses.iter().find(|a| a.is_unspecified() || a.is_multicast() || a.is_loopback())
    {
        return refuse(format!("{address} is no pod's address"));
    }
    Ok(status)
}

fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join(".lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io_error("open", &path))?;
    // Held for a few file operations at most; given back when the file is closed, also by a crash.
    file.lock().map_err(io_error("lock", &path))?;
    Ok(file)
}

fn sync_folder(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error("sync", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> ObjectName {
        ObjectName::new("shop", "web-0")
    }

    fn report(container: &str) -> PodStatus {
        PodStatus::new(&pod(), "n1", container, vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()])
    }

    #[test]
    fn what_is_written_is_read() {
        let source = tempfile::tempdir().unwrap();
        assert_eq!(read_all(source.path()).unwrap().0, []);
        let first = report("c1");
        write(source.path(), &first).unwrap();
        assert!(source.path().join("status/shop_web-0.json").is_file());
        let (reports, broken) = read_all(source.path()).unwrap();
        assert_eq!(reports, [first]);
        assert!(broken.is_empty());
        let value: serde_json::Value =
            serde_json::from_slice(&fs::read(source.path().join("status/shop_web-0.json")).unwrap()).unwrap();
        assert_eq!(value["version"], 1);
        assert!(value["updated"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn a_late_del_does_not_remove_a_newer_report() {
        let source = tempfile::tempdir().unwrap();
        assert!(!remove(source.path(), &pod(), "c1").unwrap());
        write(source.path(), &report("c1")).unwrap();
        write(source.path(), &report("c2")).unwrap();
        assert!(!remove(source.path(), &pod(), "c1").unwrap());
        assert_eq!(read_all(source.path()).unwrap().0[0].container_id, "c2");
        assert!(remove(source.path(), &pod(), "c2").unwrap());
        assert!(!remove(source.path(), &pod(), "c2").unwrap());
        assert_eq!(read_all(source.path()).unwrap().0, []);
    }

    #[test]
    fn broken_reports_are_named_and_the_others_read() {
        let source = tempfile::tempdir().unwrap();
        write(source.path(), &report("c1")).unwrap();
        let folder = source.path().join(FOLDER);
        fs::write(folder.join("shop_cut.json"), "{\"version\": 1,").unwrap();
        let mut later = report("c1");
        later.version = 2;
        later.name = "later".to_owned();
        fs::write(folder.join("shop_later.json"), serde_json::to_vec(&later).unwrap()).unwrap();
        fs::copy(folder.join("shop_web-0.json"), folder.join("shop_copy.json")).unwrap();
        let (reports, broken) = read_all(source.path()).unwrap();
        assert_eq!(reports.len(), 1);
        let names: Vec<_> =
            broken.iter().map(|e| e.to_string().replace(folder.to_str().unwrap(), "")).collect();
        assert_eq!(
            names,
            [
                "/shop_copy.json is not a usable status: it is about shop/web-0, which its name is not",
                "/shop_cut.json is not a pod's status",
                "/shop_later.json is not a usable status: version 2 is not one this netd knows (1)",
            ]
        );
        // A broken report goes with its pod.
        assert!(remove(source.path(), &ObjectName::new("shop", "cut"), "any").unwrap());
    }

    #[test]
    fn a_source_that_is_not_there_is_not_made() {
        let source = tempfile::tempdir().unwrap();
        let gone = source.path().join("gone");
        assert!(matches!(write(&gone, &report("c1")), Err(Error::Io { action: "create", .. })));
        assert!(!gone.exists());
    }

    #[test]
    fn names_cannot_leave_the_folder() {
        let source = tempfile::tempdir().unwrap();
        for (namespace, name) in
            [("..", "x"), ("a/b", "x"), ("a", "../x"), ("", "x"), ("a", ""), ("a_b", "x"), ("a", ".x")]
        {
            let mut status = report("c");
            status.namespace = namespace.to_owned();
            status.name = name.to_owned();
            assert!(matches!(write(source.path(), &status), Err(Error::Name { .. })), "{namespace}/{name}");
        }
        assert!(!source.path().join(FOLDER).exists());
    }

    #[test]
    fn the_longest_names_have_files_of_their_own() {
        let source = tempfile::tempdir().unwrap();
        for last in ["a", "b"] {
            let mut status = report("c");
            status.namespace = "n".repeat(63);
            status.name = format!("{}{last}", "p".repeat(252));
            write(source.path(), &status).unwrap();
        }
        let (reports, broken) = read_all(source.path()).unwrap();
        assert_eq!((reports.len(), broken.len()), (2, 0), "{broken:?}");
    }

    /// Two writers and a reader at once: the reader never sees a half, and nothing is left over.
    #[test]
    fn writers_do_not_disturb_each_other() {
        let source = tempfile::tempdir().unwrap();
        write(source.path(), &report("c0")).unwrap();
        std::thread::scope(|scope| {
            for writer in 0..2 {
                let source = source.path();
                scope.spawn(move || {
                    for turn in 0..50 {
                        let container = format!("c{writer}-{turn}");
                        write(source, &report(&container)).unwrap();
                        let other = ObjectName::new("shop", &format!("own-{writer}"));
                        write(source, &PodStatus::new(&other, "n1", &container, vec![])).unwrap();
                        assert!(remove(source, &other, &container).unwrap());
                    }
                });
            }
            for _ in 0..200 {
                // `own-*` may go between the listing and the reading.
                for error in read_all(source.path()).unwrap().1 {
                    assert!(matches!(error, Error::Io { .. }), "{error}");
                }
                assert_eq!(read(&source.path().join("status/shop_web-0.json")).unwrap().pod(), pod());
            }
        });
        let left: Vec<_> =
            fs::read_dir(source.path().join(FOLDER)).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "{left:?}");
    }
}
