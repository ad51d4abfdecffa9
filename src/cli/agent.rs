//! `netd agent`: loads the configuration, starts the logs, and hands over to the agent.

use super::Exit;
use crate::config::{Loaded, Loader};
use crate::telemetry::logs;

pub(super) fn run(loader: Loader) -> anyhow::Result<Exit> {
    let loaded = loader.load()?;
    let handle = logs::init(&loaded.config.telemetry)?;
    start(loader, loaded, handle)
}

/// Seam: becomes the runtime and `crate::agent::run` when that is there. The agent needs all three: on
/// SIGHUP it loads again, reports [`crate::config::diff`], and changes the filter.
fn start(loader: Loader, loaded: Loaded, logs: logs::Handle) -> anyhow::Result<Exit> {
    drop((loader, loaded, logs));
    anyhow::bail!("this build has no agent")
}
