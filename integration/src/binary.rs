//! Which `netd` is under test.
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
