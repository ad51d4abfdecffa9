//! `netd agent`: loads the configuration, starts the logs, and hands over to the agent.

use super::Exit;
use crate::config::{Loaded, Loader};
use crate::telemetry::logs;

pub(super) fn run(loader: Loader) -> anyhow::Result<Exit> {
    let loaded = loader.load()?;
    let handle = logs::init(&loaded.config.telemetry)?;
    start(loader, loaded, handle)
}

/// The one runtime of the process. Its workers only wait and plan; what blocks has threads of its own.
fn start(loader: Loader, loaded: Loaded, logs: logs::Handle) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 4)))
        .thread_name("netd-worker")
        .enable_all()
        .build()?;
    runtime.block_on(crate::agent::run(loaded.config, loader, logs))?;
    // Blocking calls still under way must not hold up the end.
    runtime.shutdown_background();
    Ok(Exit::Ok)
}
