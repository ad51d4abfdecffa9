//! Finding and removing all that belongs to a lab, knowing nothing but its folder.
//!
//! Order: processes first (they hold namespaces and would make new files), then mounts, then the folder.
//! Idempotent, so that two sweepers (the lab's Drop and its reaper) may meet.

use super::netns;
use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long processes are given to end on SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

/// Removes everything of the lab in `dir`.
///
/// # Errors
/// Names what the kernel would not let go.
pub fn sweep(dir: &Path) -> Result<()> {
    if !belongs_to_a_lab(dir) {
        bail!("{} is not a lab's folder", dir.display());
    }
    end_processes(dir)?;
    for mount in mounts(dir)?.iter().rev() {
        if mount.starts_with(dir.join("netns")) {
            netns::unmount(mount)?;
            continue;
        }
        match umount2(mount, MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => return Err(errno).with_context(|| format!("unmounting {}", mount.display())),
        }
    }
    // Only what is on this filesystem: a mount that could not be seen above must not be emptied.
    if let Some(mount) = mounts(dir)?.first() {
        bail!("{} is still mounted", mount.display());
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// What is still there of the lab in `dir`.
///
/// # Errors
/// `/proc` cannot be read.
pub fn leftovers(dir: &Path) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for (pid, command) in processes(dir)? {
        left.push(format!("process {pid} ({command})"));
    }
    for mount in mounts(dir)? {
        left.push(format!("mount {}", mount.display()));
    }
    if dir.exists() {
        left.push(format!("folder {}", dir.display()));
    }
    Ok(left)
}

/// `/tmp/nd<digits>-<digits>`: nothing else is ever swept.
fn belongs_to_a_lab(dir: &Path) -> bool {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    dir.parent() == Some(Path::new("/tmp"))
        && dir
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("nd"))
            .and_then(|name| name.split_once('-'))
            .is_some_and(|(pid, n)| digits(pid) && digits(n))
}

fn end_processes(dir: &Path) -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let start = Instant::now();
        let mut told = HashSet::new();
        loop {
            let living = processes(dir)?;
            if living.is_empty() {
                return Ok(());
            }
            for (pid, _) in living {
                if told.insert(pid) {
                    match kill(pid, signal) {
                        Ok(()) | Err(Errno::ESRCH) => {}
                        Err(errno) => return Err(errno).with_context(|| format!("killing {pid}")),
                    }
                }
            }
            if start.elapsed() > GRACE {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    match processes(dir)?.as_slice() {
        [] => Ok(()),
        [(pid, command), ..] => bail!("process {pid} ({command}) does not end"),
    }
}

/// Processes that run in one of the lab's namespaces, except zombies and this one.
fn processes(dir: &Path) -> Result<Vec<(Pid, String)>> {
    let mut namespaces = HashSet::new();
    for mount in mounts(&dir.join("netns"))? {
        if let Ok(data) = fs::metadata(&mount) {
            namespaces.insert((data.dev(), data.ino()));
        }
    }
    let mut found = Vec::new();
    if namespaces.is_empty() {
        return Ok(found);
    }
    for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|s| s.parse().ok()).map(Pid::from_raw) else {
            continue;
        };
        // A process that ended meanwhile, and a zombie, has no namespace to read.
        let Ok(data) = fs::metadata(entry.path().join("ns/net")) else { continue };
        if pid != nix::unistd::getpid() && namespaces.contains(&(data.dev(), data.ino())) {
            let command = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
            found.push((pid, command.replace('\0', " ").trim().to_owned()));
        }
    }
    Ok(found)
}

/// Mount points at or below `dir`, outermost first.
fn mounts(dir: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    // Field 5 is the mount point; a lab's paths hold nothing that would be escaped there.
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(dir)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_labs_folder_is_swept() {
        assert!(belongs_to_a_lab(Path::new("/tmp/nd12-0")));
        for other in
            ["/tmp", "/", "/tmp/nd", "/tmp/nd12", "/tmp/nd12-", "/tmp/nd-1", "/tmp/x/nd1-2", "/tmp/nd1-2/.."]
        {
            assert!(!belongs_to_a_lab(Path::new(other)), "{other}");
            assert!(sweep(Path::new(other)).is_err(), "{other}");
        }
    }
}
