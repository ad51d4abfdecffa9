//! Runs cargo and other programs for the tasks: from the workspace's root, with the user's own environment.
//!
//! `cargo run` sets `CARGO_*` variables of the xtask package for us; they are kept from the children, where
//! they would be another package's.

use anyhow::{Context, Result, bail};
use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::out;

/// How something is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// For tests.
    Dev,
    /// For the lab: optimised, without the slow link of a release.
    Lab,
    /// To be installed.
    Release,
}

impl Profile {
    /// What cargo calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Lab => "lab",
            Self::Release => "release",
        }
    }

    /// Where cargo puts what it builds, below a target folder.
    pub(crate) const fn folder(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Lab | Self::Release => self.name(),
        }
    }
}

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR").filter(|value| !value.is_empty()) {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// A cargo of the same toolchain.
pub(crate) fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut command = program(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}

/// A program started in the workspace's root, with `sbin` in its `PATH` also after a bare `su`.
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(root());
    for (key, _) in env::vars_os() {
        let text = key.to_string_lossy();
        if ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"]
            .iter()
            .any(|prefix| text.starts_with(prefix))
        {
            command.env_remove(&key);
        }
    }
    let path = env::var_os("PATH").unwrap_or_default();
    if let Ok(path) =
        env::join_paths(env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from)))
    {
        command.env("PATH", path);
    }
    command
}

/// Shows the command, runs it with our own output, and fails unless it succeeded.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    out::line(&format!("$ {shown}"));
    let status = command.status().with_context(|| format!("cannot run `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// Shows and runs two commands of which the second reads what the first writes, and fails unless both succeeded.
pub(crate) fn pipe(from: &mut Command, to: &mut Command) -> Result<()> {
    let (first, second) = (shown(from), shown(to));
    out::line(&format!("$ {first} | {second}"));
    let mut writer = from.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot run `{first}`"))?;
    let read = to.stdin(writer.stdout.take().map_or_else(Stdio::null, Stdio::from)).status();
    // The command holds the pipe's end, too: with it a writer without reader would wait forever.
    to.stdin(Stdio::null());
    let written = writer.wait().with_context(|| format!("cannot wait for `{first}`"))?;
    let read = read.with_context(|| format!("cannot run `{second}`"))?;
    if !written.success() || !read.success() {
        bail!("`{first}`: {written}, `{second}`: {read}");
    }
    Ok(())
}

/// Runs a command quietly: its standard output, or what it said on failure.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command.output().with_context(|| format!("cannot run `{shown}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{shown}` failed ({}): {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command line as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut words = vec![program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::{pipe, program};

    #[test]
    fn a_pipe_needs_both_ends() {
        assert!(pipe(program("echo").arg("well"), program("grep").args(["--quiet", "well"])).is_ok());
        assert!(pipe(&mut program("true"), &mut program("false")).is_err());
        assert!(pipe(&mut program("false"), &mut program("true")).is_err());
        // Writes until nobody reads.
        assert!(pipe(&mut program("yes"), &mut program("true")).is_err());
        assert!(pipe(&mut program("yes"), &mut program("netd-has-no-such-program")).is_err());
    }
}
