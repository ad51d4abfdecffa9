//! `cargo xtask bench`: sets up, makes the netd that is installed and the bench, and becomes the bench.

use anyhow::Result;

use crate::{dist, lab, out};

/// Runs it with these arguments.
pub(crate) fn run(args: &[String]) -> Result<()> {
    // What is measured is what ships: other optimisations make another size, and other times.
    let netd = dist::make()?;
    let mut bench = lab::build("netd-bench", Some(&netd))?;
    out::heading("bench");
    lab::exec(bench.args(args))
}
