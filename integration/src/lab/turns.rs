//! Whose turn it is on a CPU.

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Pid;
use std::process::Command;

/// Changes by `chrt` how a thread, or all of a process, are scheduled; `how` is all of its words but the number.
///
/// # Errors
/// There is no `chrt`, no such thread, or no such way.
pub fn chrt(how: &[&str], who: Pid) -> Result<()> {
    let output = Command::new("chrt").args(how).arg(who.to_string()).output().context("executing chrt")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "chrt {how:?} {who}: {}: {}", output.status, said.trim());
    Ok(())
}
