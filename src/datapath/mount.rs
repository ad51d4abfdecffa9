//! Finding or mounting the BPF file system.

use super::Error;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::fs;
use std::path::Path;

/// Where distributions mount it. The folder is part of sysfs, in which no other can be made.
const USUAL: &str = "/sys/fs/bpf";

/// Makes `path` a folder on a bpffs: used as it is where one is mounted at or above it, else one is mounted
/// at the usual place if the path is below that, or at the path itself.
pub(super) fn ensure(path: &Path) -> Result<bool, Error> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
    let on_bpffs =
        statfs(existing).map_err(|errno| Error::path("inspect", existing)(errno.into()))?.filesystem_type()
            == BPF_FS_MAGIC;
    let create = || fs::create_dir_all(path).map_err(Error::path("create the bpffs folder", path));
    if on_bpffs {
        create()?;
        return Ok(false);
    }
    let at = if existing == Path::new(USUAL) {
        existing
    } else {
        create()?;
        path
    };
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), at, Some("bpf"), flags, Some("mode=0700"))
        .map_err(|errno| Error::path("mount a bpffs on", at)(errno.into()))?;
    create()?;
    Ok(true)
}
