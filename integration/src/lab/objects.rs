//! What the kernel holds of a lab's eBPF: asked of `bpftool`, so that netd is not its own witness.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A pinned map, program or link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// `map`, `prog` or `link`.
    pub kind: &'static str,
    /// The kernel's number of it.
    pub id: u64,
    /// Its name, empty for links.
    pub name: String,
    /// Where it is pinned.
    pub path: PathBuf,
}

impl Pinned {
    /// Is the object still in the kernel?
    #[must_use]
    pub fn lives(&self) -> bool {
        bpftool(&[self.kind, "show", "id", &self.id.to_string()]).is_ok()
    }

    /// How many rows a map has room for.
    ///
    /// # Errors
    /// It is no map.
    pub fn entries(&self) -> Result<u64> {
        let shown = bpftool(&["map", "show", "id", &self.id.to_string()])?;
        let entries = shown.get("max_entries").and_then(Value::as_u64);
        entries.with_context(|| format!("{} is no map: {shown}", self.path.display()))
    }

    /// The rows of a map, as `bpftool -j map dump` has them.
    ///
    /// # Errors
    /// It is no map.
    pub fn rows(&self) -> Result<Vec<Value>> {
        let dump = bpftool(&["map", "dump", "id", &self.id.to_string()])?;
        dump.as_array().cloned().with_context(|| format!("the dump of {} is no list", self.path.display()))
    }
}

/// All that is pinned below `folder` of a bpffs.
///
/// # Errors
/// `bpftool` is missing or does not know an object.
pub fn pinned(folder: &Path) -> Result<Vec<Pinned>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            // The kernel puts these two into every new bpffs.
            if path.extension().is_some_and(|extension| extension == "debug") {
                continue;
            }
            let shown = ["map", "prog", "link"].into_iter().find_map(|kind| {
                let words = [kind.as_ref(), "show".as_ref(), "pinned".as_ref(), path.as_os_str()];
                bpftool(&words).ok().map(|shown| (kind, shown))
            });
            let Some((kind, shown)) = shown else { bail!("bpftool does not know {}", path.display()) };
            let id = shown.get("id").and_then(Value::as_u64);
            let name = shown.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            found.push(Pinned { kind, id: id.context("an object without id")?, name, path });
        }
    }
    Ok(found)
}

/// `bpftool -j WORDS`: what it says.
///
/// # Errors
/// It is missing or fails.
pub fn bpftool<S: AsRef<OsStr>>(words: &[S]) -> Result<Value> {
    let output = Command::new("bpftool").arg("-j").args(words).output().context("executing bpftool")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("bpftool: {}: {text}", output.status);
    }
    serde_json::from_str(&text).with_context(|| format!("bpftool said {text:?}"))
}
