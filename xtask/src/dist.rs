//! `cargo xtask dist`: one stripped static-pie `netd`, and the proof that it is one.
//!
//! glibc is linked in (`+crt-static`); the flags need an explicit `--target`, or they would reach build
//! scripts and macros too. The proof: the ELF file asks for no interpreter and no library, and it starts in
//! a root folder in which there is nothing else.

mod elf;

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

use crate::cargo::Profile;
use crate::{cargo, out, setup};

/// What the binary may weigh.
const LARGEST: u64 = 20 * 1024 * 1024;

/// Builds, proves and prints where it is.
pub(crate) fn run() -> Result<()> {
    make().map(drop)
}

/// The same; gives where it is.
pub(crate) fn make() -> Result<PathBuf> {
    out::heading("setup");
    setup::run(setup::Purpose::Build)?;
    out::heading("build");
    let target = target()?;
    let built = build(&target, Profile::Release).context("step build")?;

    out::heading("check");
    let folder = cargo::target_dir().join("dist");
    let binary = folder.join("netd");
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let size = bytes.len() as u64;
    let shape = elf::Shape::read(&bytes).with_context(|| format!("{} is no ELF file", built.display()))?;
    shape.must_be_static_pie().with_context(|| format!("{}", built.display()))?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // A running netd keeps its file: the new one takes the name, not the place.
    let fresh = folder.join("netd.new");
    fs::copy(&built, &fresh).with_context(|| format!("cannot write {}", fresh.display()))?;
    let said = in_empty_root(&fresh, &folder.join("root"))?;
    fs::rename(&fresh, &binary).with_context(|| format!("cannot write {}", binary.display()))?;

    out::line(&format!("static-pie, stripped, runs in an empty root: {said:?}"));
    out::line(&format!("{}  {:.1} MiB  {target}", binary.display(), size as f64 / 1_048_576.0));
    if size > LARGEST {
        bail!("the binary is larger than {} MiB", LARGEST / 1_048_576);
    }
    Ok(binary)
}

/// A static `netd` as fast to build as any: for tests.
pub(crate) fn build_for_tests() -> Result<PathBuf> {
    build(&target()?, Profile::Dev)
}

/// Builds a static `netd` by a profile; where it is.
fn build(target: &str, profile: Profile) -> Result<PathBuf> {
    cargo::run(
        cargo::cargo(["build", "--locked", "--package", "netd", "--bin", "netd"])
            .args(["--profile", profile.name(), "--target", target])
            .env_remove("RUSTFLAGS")
            .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\u{1f}-Crelocation-model=pie"),
    )?;
    Ok(cargo::target_dir().join(target).join(profile.folder()).join("netd"))
}

/// The host's target triple.
fn target() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = cargo::capture(cargo::program(rustc).arg("-vV"))?;
    let host =
        text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    if !host.ends_with("-linux-gnu") {
        bail!("{host}: the static binary is made for *-unknown-linux-gnu");
    }
    Ok(host.to_owned())
}

/// Runs `netd --version` with a root folder that holds nothing but the binary; what it said.
fn in_empty_root(binary: &Path, root: &PathBuf) -> Result<String> {
    let _absent = fs::remove_dir_all(root);
    fs::create_dir_all(root).with_context(|| format!("cannot make {}", root.display()))?;
    fs::copy(binary, root.join("netd")).with_context(|| format!("cannot fill {}", root.display()))?;
    let mut command = cargo::program("unshare");
    if !setup::is_root()? {
        command.arg("--map-root-user");
    }
    command.arg("chroot").arg(root).args(["/netd", "--version"]);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let said = cargo::capture(&mut command).context("the binary does not run in an empty root folder");
    fs::remove_dir_all(root).with_context(|| format!("cannot remove {}", root.display()))?;
    Ok(said?.trim().to_owned())
}
