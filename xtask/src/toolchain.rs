//! Where the compiler and the linker of the BPF programs are looked for: the one search that `build.rs` and
//! `cargo xtask setup` share, so that what the one finds the other uses.
//!
//! The BPF target has no precompiled `core`, so the compiler must have its own library source beside it.
//! Order: the toolchain this build runs on, rustup's others, Debian's `rustc-web` (in `/usr/bin`). Nothing is
//! fetched here.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What installs the linker where LLVM 22's development files are in the usual place.
pub(crate) const INSTALL_LINKER: &str =
    "cargo install bpf-linker --version 0.13.0 --locked --no-default-features --features llvm-22";

/// A rustc with its own library source beside it, and its cargo.
pub(crate) struct Toolchain {
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    /// `(major, minor)`.
    pub(crate) release: (u32, u32),
}

impl Toolchain {
    /// The first usable one, or one line per place looked at, with why it will not do.
    pub(crate) fn find() -> Result<Self, Vec<String>> {
        let mut sysroots: Vec<PathBuf> = active_sysroot().into_iter().collect();
        for other in rustup_sysroots().into_iter().chain([PathBuf::from("/usr")]) {
            if !sysroots.contains(&other) {
                sysroots.push(other);
            }
        }
        let mut refused = Vec::new();
        for sysroot in sysroots {
            match Self::at(&sysroot) {
                Ok(found) => return Ok(found),
                Err(why) => refused.push(format!("{}: {why}", sysroot.join("bin/rustc").display())),
            }
        }
        Err(refused)
    }

    /// The toolchain of this sysroot, if it is new enough and has the source; else why not.
    fn at(sysroot: &Path) -> Result<Self, String> {
        let (cargo, rustc) = (sysroot.join("bin/cargo"), sysroot.join("bin/rustc"));
        if !rustc.is_file() || !cargo.is_file() {
            return Err("no cargo and rustc there".to_owned());
        }
        if !sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() {
            return Err("has no library source (rust-src)".to_owned());
        }
        let release = release_of(&rustc).ok_or("does not tell its version")?;
        let need = version(env!("CARGO_PKG_RUST_VERSION")).unwrap_or_default();
        if release < need {
            return Err(format!("is {}.{}, {}.{} is needed", release.0, release.1, need.0, need.1));
        }
        Ok(Self { cargo, rustc, release })
    }
}

/// Where the compiler of this very build lives.
pub(crate) fn active_sysroot() -> Option<PathBuf> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    path.is_absolute().then_some(path)
}

/// All toolchains of rustup, by name downwards: `stable` before `nightly` before numbered ones.
fn rustup_sysroots() -> Vec<PathBuf> {
    let Some(home) = folder_of("RUSTUP_HOME", ".rustup") else { return Vec::new() };
    let mut found: Vec<PathBuf> = fs::read_dir(home.join("toolchains"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    found.sort_by(|a, b| b.cmp(a));
    found
}

/// `bpf-linker` from `PATH` or from where `cargo install` puts it.
pub(crate) fn find_linker() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(folder_of("CARGO_HOME", ".cargo").map(|home| home.join("bin")))
        .map(|folder| folder.join("bpf-linker"))
        .find(|candidate| candidate.is_file())
}

/// The folder that a variable names, or its default below the user's home.
fn folder_of(variable: &str, below_home: &str) -> Option<PathBuf> {
    let named = env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    named.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(below_home)))
}

fn release_of(rustc: &Path) -> Option<(u32, u32)> {
    let output = Command::new(rustc).arg("--version").env_remove("LD_LIBRARY_PATH").output().ok()?;
    version(String::from_utf8(output.stdout).ok()?.split_whitespace().nth(1)?)
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}
