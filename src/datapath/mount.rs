//! Finding or mounting the BPF file system.

use super::Error;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::fs;
use std::path::Path;

/// Makes `path` a folder on a bpffs: used as it is where one is mounted at or above it, else one is mounted
/// at the path itself.
pub(super) fn ensure(path: &Path) -> Result<bool, Error> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
    let on_bpffs =
        statfs(existing).map_err(|errno| Error::path("inspect", existing)(errno.into()))?.filesystem_type()
            == BPF_FS_MAGIC;
    fs::create_dir_all(path).map_err(Error::path("create the bpffs folder", path))?;
    if on_bpffs {
        return Ok(false);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|errno| Error::path("mount a bpffs on", path)(errno.into()))?;
    Ok(true)
}
