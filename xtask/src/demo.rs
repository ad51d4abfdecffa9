//! `cargo xtask demo`: sets up, builds netd, the previous netd and the demo, and becomes the demo.

use anyhow::Result;

use crate::cargo::Profile;
use crate::{lab, out, previous};

/// Runs it with these arguments.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut demo = lab::build("netd-demo", None)?;
    out::heading("previous netd");
    previous::build(Profile::Lab)?.tell(&mut demo);
    out::heading("demo");
    lab::exec(demo.args(args))
}
