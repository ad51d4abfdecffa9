//! The reaper: a process that sweeps a lab when the process that made the lab is gone.
//!
//! It is `netd-demo reap DIR`, in a process group of its own so that Ctrl-C does not reach it, and reads a
//! pipe of which the lab's process holds the only other end (close-on-exec, so no child inherits it). End
//! of file means that the lab was dismissed, or that its process died in whatever way.

use super::sweep;
use anyhow::{Context as _, Result, bail};
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The program that knows the word `reap`, and others.
const PROGRAM: &str = "netd-demo";

/// The living reaper of one lab.
#[derive(Debug)]
pub(super) struct Reaper(Child);

impl Reaper {
    pub(super) fn start(dir: &Path) -> Result<Self> {
        let program = helper()?;
        let child = Command::new(&program)
            .arg("reap")
            .arg(dir)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self(child))
    }

    /// Ends the reaper, after the lab has been swept.
    pub(super) fn dismiss(mut self) {
        drop(self.0.stdin.take());
        // It finds nothing to do; whether it says so matters to nobody.
        drop(self.0.wait());
    }
}

/// The program that does what needs a process of its own: this very one, or what cargo built beside the test.
///
/// # Errors
/// It was not built.
pub fn helper() -> Result<PathBuf> {
    let me = std::env::current_exe().context("asking for the path of this program")?;
    let beside = me.ancestors().skip(1).take(2).map(|dir| dir.join(PROGRAM));
    for candidate in beside {
        if candidate.is_file() {
            return Ok(candidate);
        }
    }
    bail!("{PROGRAM} is not beside {}: cargo build -p netd-integration", me.display())
}

/// What the reaper does: waits for the end of its standard input, then sweeps.
///
/// # Errors
/// As [`sweep`].
pub fn reap(dir: &Path) -> Result<()> {
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).context("reading the pipe to the lab")?;
    sweep(dir)
}
