//! Programs that make labs (`cargo xtask demo`, `cargo xtask bench`): the machine is set up, netd and they are
//! built, and this process becomes one of them.
//!
//! Becoming it (exec) rather than waiting for it gives it the terminal's Ctrl-C, its own clean-up and its own
//! exit status.

use anyhow::{Context, Result};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::cargo::Profile;
use crate::{cargo, out, setup};

/// Every lab's reaper: the demo's program.
const REAPER: &str = "netd-demo";

/// Sets up and builds; the program's command, told which netd is meant: this one, or else one built beside it.
pub(crate) fn build(program: &str, netd: Option<&Path>) -> Result<Command> {
    out::heading("setup");
    setup::run(setup::Purpose::Lab)?;
    out::heading("build");
    let mut build = cargo::cargo(["build", "--locked", "--profile", Profile::Lab.name()]);
    build.args(["--package", "netd-integration", "--bin", REAPER]);
    if program != REAPER {
        build.args(["--bin", program]);
    }
    if netd.is_none() {
        build.args(["--package", "netd", "--bin", "netd"]);
    }
    cargo::run(&mut build).context("step build")?;
    let built = cargo::target_dir().join(Profile::Lab.folder());
    let mut command = cargo::program(built.join(program));
    command.env("NETD_BIN", netd.map_or_else(|| built.join("netd"), Path::to_owned));
    Ok(command)
}

/// Becomes the command; what kept it from that.
pub(crate) fn exec(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", Path::new(command.get_program()).display()))
}
