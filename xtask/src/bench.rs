//! `cargo xtask bench`: sets up, builds netd and the bench, and becomes the bench, as `cargo xtask demo` becomes
//! the demo.

use anyhow::{Context, Result};
use std::os::unix::process::CommandExt;

use crate::{cargo, out, setup};

/// Builds with the `lab` profile: optimised, without the release profile's slow link. The demo's program is every
/// lab's reaper.
pub(crate) fn run(args: &[String]) -> Result<()> {
    out::heading("setup");
    setup::run(setup::Purpose::Lab)?;
    out::heading("build");
    let mut build = cargo::cargo(["build", "--locked", "--profile", "lab"]);
    build.args(["--package", "netd", "--package", "netd-integration"]);
    build.args(["--bin", "netd", "--bin", "netd-demo", "--bin", "netd-bench"]);
    cargo::run(&mut build).context("step build")?;
    out::heading("bench");
    let built = cargo::target_dir().join("lab");
    let mut bench = cargo::program(built.join("netd-bench"));
    let error = bench.args(args).env("NETD_BIN", built.join("netd")).exec();
    Err(error).with_context(|| format!("cannot run {}", built.join("netd-bench").display()))
}
