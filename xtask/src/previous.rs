//! `cargo xtask previous`: the netd of the map schema before this one, built from the history: what the upgrade
//! is tested and shown with.
//!
//! Its source is taken out of the repository into `target/previous`, where it has a target folder of its own
//! (cargo takes workspace members of two trees for the same). What both have in common, all of crates.io, is
//! taken over from our own target folder, so that only netd and its BPF programs are compiled.
//!
//! A source tree without history has no previous netd; that is told, not hidden.

use anyhow::{Context, Result};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cargo::Profile;
use crate::{cargo, out};

/// The last commit of schema 1.
const COMMIT: &str = "a11e95192ed9af0289e7dd51fbf02820a4cae722";

/// The binary's path, or why there is none.
pub(crate) enum Previous {
    Built(PathBuf),
    Missing(String),
}

impl Previous {
    /// Tells a program of the lab where it is, or that there is none.
    pub(crate) fn tell(&self, command: &mut Command) {
        let path = match self {
            Self::Built(path) => path.as_path(),
            Self::Missing(_) => Path::new(""),
        };
        command.env("NETD_PREVIOUS", path);
    }
}

/// Builds it, if it is not there, the same way as what it is tested or shown with.
pub(crate) fn build(profile: Profile) -> Result<Previous> {
    let home = cargo::target_dir().join("previous");
    let binary = home.join("netd");
    let stamp = home.join("commit");
    if binary.is_file() && fs::read_to_string(&stamp).is_ok_and(|commit| commit == COMMIT) {
        out::line(&format!("{} is there", binary.display()));
        return Ok(Previous::Built(binary));
    }
    if let Err(error) =
        cargo::capture(cargo::program("git").args(["cat-file", "-e", &format!("{COMMIT}^{{commit}}")]))
    {
        let why = format!("this source tree has no history with commit {COMMIT}: {error:#}");
        out::line(&format!("NO PREVIOUS NETD, upgrades are neither tested nor shown: {why}"));
        return Ok(Previous::Missing(why));
    }
    let source = home.join("source");
    take_out(&source)?;
    let target = home.join("target");
    seed(&cargo::target_dir().join(profile.folder()), &target.join(profile.folder()))?;
    // All members are selected, so that crates have the features that they have in our own build.
    cargo::run(
        cargo::cargo(["build", "--locked", "--workspace", "--bin", "netd", "--profile", profile.name()])
            .arg("--target-dir")
            .arg(&target)
            .current_dir(&source),
    )
    .context("the previous netd does not build")?;
    let built = target.join(profile.folder()).join("netd");
    fs::copy(&built, &binary).with_context(|| format!("cannot copy {}", built.display()))?;
    // The rest is large, and of no more use.
    fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))?;
    fs::write(&stamp, COMMIT).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(Previous::Built(binary))
}

/// Extracts the commit.
fn take_out(to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to).with_context(|| format!("cannot remove {}", to.display()))?;
    }
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    let mut archive = cargo::program("git");
    archive.args(["archive", COMMIT]);
    cargo::pipe(&mut archive, cargo::program("tar").arg("-x").arg("-C").arg(to))
}

/// Takes over what is compiled from crates.io. cargo compares fingerprints and compiles what does not match,
/// so that nothing depends on this but time.
fn seed(from: &Path, to: &Path) -> Result<()> {
    for (folder, flags) in
        [("deps", &["--archive", "--link"][..]), ("build", &["--archive"]), (".fingerprint", &["--archive"])]
    {
        let Ok(entries) = fs::read_dir(from.join(folder)) else { continue };
        let target = to.join(folder);
        fs::create_dir_all(&target).with_context(|| format!("cannot make {}", target.display()))?;
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", from.display()))?;
            if is_shared(&entry.file_name(), folder) {
                files.push(entry.path());
            }
        }
        for some in files.chunks(256) {
            let mut copy = Command::new("cp");
            copy.args(flags).arg("--target-directory").arg(&target).args(some);
            cargo::capture(&mut copy).context("cannot take over what is compiled")?;
        }
    }
    Ok(())
}

/// True for what is not of this workspace. Of `deps` only libraries: the rest are programs.
fn is_shared(name: &OsStr, folder: &str) -> bool {
    const OURS: [&str; 6] = ["netd", "libnetd", "xtask", "pod-", "uplink-", "toolchain"];
    let Some(name) = name.to_str() else { return false };
    let library = folder != "deps" || name.starts_with("lib");
    library && !OURS.iter().any(|ours| name.starts_with(ours))
}

#[cfg(test)]
mod tests {
    use super::is_shared;

    #[test]
    fn only_what_both_have_is_taken_over() {
        for (name, folder, shared) in [
            ("libaya-0123.rlib", "deps", true),
            ("libnetd_bpf-0123.rlib", "deps", false),
            ("connectivity-0123", "deps", false),
            ("netd-0123", "build", false),
            ("netlink-sys-0123", ".fingerprint", true),
            ("uplink-0123", ".fingerprint", false),
        ] {
            assert_eq!(is_shared(name.as_ref(), folder), shared, "{folder}/{name}");
        }
    }
}
