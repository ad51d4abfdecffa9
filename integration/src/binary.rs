//! Which `netd` is under test, and which one it takes over from.
//!
//! `NETD_BIN` says it; else it is the one in the folder of this profile, beside the test; else it is built,
//! once. (`CARGO_BIN_EXE_…` knows the binaries of the own package only.)

use anyhow::{Context as _, Result, anyhow, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Path of the binary.
///
/// # Errors
/// It is nowhere and cannot be built.
pub fn netd() -> Result<&'static Path> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| find().map_err(|error| format!("{error:#}")));
    found.as_deref().map_err(|text| anyhow!("no netd to test: {text}"))
}

/// Path of the netd of the map schema before this one; `NETD_PREVIOUS` says it, else `cargo xtask previous`
/// builds it. None, with the reason on standard error: this source tree has no history to build it from.
///
/// # Errors
/// It cannot be built.
pub fn previous() -> Result<Option<&'static Path>> {
    static FOUND: OnceLock<Result<Option<PathBuf>, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| find_previous().map_err(|error| format!("{error:#}")));
    match found {
        Ok(path) => Ok(path.as_deref()),
        Err(text) => bail!("no previous netd: {text}"),
    }
}

fn find_previous() -> Result<Option<PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = match std::env::var_os("NETD_PREVIOUS") {
        Some(path) => PathBuf::from(path),
        None => {
            let status = Command::new("cargo")
                .args(["run", "--quiet", "--package", "xtask", "--", "previous"])
                .current_dir(&root)
                .status()
                .context("executing cargo xtask previous")?;
            if !status.success() {
                bail!("cargo xtask previous: {status}");
            }
            let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
            root.join(target).join("previous/netd")
        }
    };
    if path.is_file() {
        return path.canonicalize().map(Some).with_context(|| path.display().to_string());
    }
    let text = "SKIPPED, NOT TESTED: upgrades. There is no netd of an earlier map schema to upgrade from \
                (`cargo xtask previous` says why).\n";
    // Nobody is left to tell if stderr is gone.
    drop(std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()));
    Ok(None)
}

fn find() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("NETD_BIN") {
        return PathBuf::from(&path)
            .canonicalize()
            .with_context(|| format!("NETD_BIN is {}", path.display()));
    }
    let me = std::env::current_exe().context("asking for the path of this program")?;
    // target/PROFILE/netd-demo or target/PROFILE/deps/TEST.
    let folder = me
        .ancestors()
        .skip(1)
        .find(|folder| folder.file_name().is_some_and(|name| name != "deps"))
        .with_context(|| format!("{} is nowhere", me.display()))?;
    let binary = folder.join("netd");
    if !binary.is_file() {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
        let profile = match folder.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(other) => other,
        };
        let status = Command::new("cargo")
            .args(["build", "--package", "netd", "--bin", "netd", "--profile", profile])
            .args(["--manifest-path", manifest])
            .status()
            .context("executing cargo")?;
        if !status.success() {
            bail!("cargo build -p netd --bin netd: {status}");
        }
    }
    binary.canonicalize().with_context(|| binary.display().to_string())
}
