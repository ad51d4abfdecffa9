//! `cargo xtask bench`: sets up, builds netd and the bench, and becomes the bench.

use anyhow::Result;

use crate::{lab, out};

/// Runs it with these arguments.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut bench = lab::build("netd-bench")?;
    out::heading("bench");
    lab::exec(bench.args(args))
}
