//! `cargo xtask demo`: sets up, builds netd and the demo, and becomes the demo.
//!
//! Becoming it (exec) rather than waiting for it gives the demo the terminal's Ctrl-C, its own clean-up and
//! its own exit status.

use anyhow::{Context, Result};
use std::os::unix::process::CommandExt;

use crate::cargo::Profile;
use crate::{cargo, out, previous, setup};

/// Builds with the `lab` profile: optimised, without the release profile's slow link.
pub(crate) fn run(args: &[String]) -> Result<()> {
    out::heading("setup");
    setup::run(setup::Purpose::Lab)?;
    out::heading("build");
    cargo::run(&mut cargo::cargo([
        "build",
        "--locked",
        "--profile",
        "lab",
        "--package",
        "netd",
        "--package",
        "netd-integration",
        "--bin",
        "netd",
        "--bin",
        "netd-demo",
    ]))
    .context("step build")?;
    out::heading("previous netd");
    let previous = previous::build(Profile::Lab)?;
    out::heading("demo");
    let built = cargo::target_dir().join("lab");
    let mut demo = cargo::program(built.join("netd-demo"));
    previous.tell(&mut demo);
    let error = demo.args(args).env("NETD_BIN", built.join("netd")).exec();
    Err(error).with_context(|| format!("cannot run {}", built.join("netd-demo").display()))
}
