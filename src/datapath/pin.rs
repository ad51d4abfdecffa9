//! Where things are pinned: `<bpffs>/v<schema>/{maps,programs,links}/<name>`.
//!
//! While tables are moved (to this schema, to another size) the new ones stand in `v<schema>-next`, whole but
//! not in force. They come into force by taking the name of the current folder, which by then is of an older
//! schema or is `v<schema>-previous`; what it was before goes last. So there is a whole set under a name that
//! tells what it is at any moment.

use super::Error;
use aya::maps::{Array, HashMap, Map, MapData};
use netd_bpf::{SCHEMA, schema1};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// One set of pins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    /// Those of this schema that are in force.
    pub(super) fn current(bpffs: &Path) -> Self {
        Self { root: bpffs.join(format!("v{SCHEMA}")) }
    }

    /// Those that are to come into force.
    pub(super) fn next(bpffs: &Path) -> Self {
        Self { root: bpffs.join(format!("v{SCHEMA}-next")) }
    }

    /// Those of this schema that were in force before.
    pub(super) fn previous(bpffs: &Path) -> Self {
        Self { root: bpffs.join(format!("v{SCHEMA}-previous")) }
    }

    /// Those of schema 1.
    pub(super) fn schema1(bpffs: &Path) -> Self {
        Self { root: bpffs.join(format!("v{}", schema1::SCHEMA)) }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn exist(&self) -> bool {
        self.root.exists()
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.root.join("programs").join(name)
    }

    /// By index too: a name may pass to another device. bpffs refuses names with a dot, which an interface's
    /// may have.
    pub(super) fn uplink(&self, ifindex: u32, interface: &str) -> PathBuf {
        self.root.join("links").join(format!("uplink-{ifindex}-{}", interface.replace('.', ":")))
    }

    /// Interfaces whose uplink link is pinned, by index and name.
    pub(super) fn uplinks(&self) -> Vec<(u32, String)> {
        let Ok(entries) = fs::read_dir(self.root.join("links")) else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| {
                let name = entry.file_name();
                let (ifindex, name) = name.to_str()?.strip_prefix("uplink-")?.split_once('-')?;
                Some((ifindex.parse().ok()?, name.replace(':', ".")))
            })
            .collect()
    }

    /// Makes the folders, for root only.
    pub(super) fn create(&self) -> Result<(), Error> {
        for folder in ["maps", "programs", "links"] {
            let path = self.root.join(folder);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(Error::path("create the pin folder", &path))?;
        }
        Ok(())
    }

    /// Gives the whole set another name.
    pub(super) fn rename(&self, to: &Self) -> Result<(), Error> {
        fs::rename(&self.root, &to.root).map_err(Error::path("rename the pin folder", &self.root))
    }

    /// Unpins all, from the leaves up. What nothing else holds is freed by the kernel.
    pub(super) fn remove(&self) -> Result<(), Error> {
        match fs::remove_dir_all(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(Error::path("remove the pin folder", &self.root)),
        }
    }

    /// A pinned map, if there is one of the name.
    pub(super) fn open(&self, name: &'static str) -> Result<Option<MapData>, Error> {
        let path = self.map(name);
        if !path.exists() {
            return Ok(None);
        }
        MapData::from_pin(&path).map(Some).map_err(Error::map(name))
    }

    /// A pinned hash map of either kind.
    pub(super) fn hash<K: aya::Pod, V: aya::Pod>(
        &self,
        name: &'static str,
    ) -> Result<Option<HashMap<MapData, K, V>>, Error> {
        let Some(data) = self.open(name)? else { return Ok(None) };
        let map = Map::from_map_data(data).and_then(HashMap::try_from);
        map.map(Some).map_err(Error::map(name))
    }

    /// A pinned array.
    pub(super) fn array<V: aya::Pod>(&self, name: &'static str) -> Result<Option<Array<MapData, V>>, Error> {
        let Some(data) = self.open(name)? else { return Ok(None) };
        let map = Map::from_map_data(data).and_then(Array::try_from);
        map.map(Some).map_err(Error::map(name))
    }

    /// Pins a map here; what has the name gives way.
    pub(super) fn pin(&self, name: &'static str, map: &MapData) -> Result<(), Error> {
        let path = self.map(name);
        unpin(&path)?;
        map.pin(&path).map_err(|error| Error::path("pin a map at", &path)(io::Error::other(error)))
    }
}

/// Removes a pin; one that is not there is no error.
pub(super) fn unpin(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::path("unpin", path)(error)),
        _ => Ok(()),
    }
}

/// Fails if a newer netd was here: its tables are not ours to judge, and ours would know nothing of its
/// flows.
pub(super) fn refuse_newer(bpffs: &Path) -> Result<(), Error> {
    let entries = fs::read_dir(bpffs).map_err(Error::path("list", bpffs))?;
    for entry in entries {
        let entry = entry.map_err(Error::path("list", bpffs))?;
        let name = entry.file_name();
        let found = name.to_str().and_then(|name| name.strip_prefix('v')?.parse::<u32>().ok());
        if let Some(schema) = found.filter(|schema| *schema > SCHEMA) {
            return Err(Error::Newer { path: entry.path(), schema });
        }
    }
    Ok(())
}
