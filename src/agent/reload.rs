//! SIGHUP: the configuration is loaded again; what can change changes, what cannot is told.

use crate::config::{Config, Effect, Loader, diff};
use crate::telemetry::{chain, logs};

/// Loads the configuration and takes over into `in_force` what applies at once. A broken file changes
/// nothing.
pub(super) fn reload(loader: &Loader, in_force: &mut Config, logs: &logs::Handle) {
    let loaded = match loader.load() {
        Ok(loaded) => loaded,
        Err(error) => {
            tracing::error!(target: "netd::config", "the configuration stays as it was: {}", chain(&error));
            return;
        }
    };
    let changes = diff(in_force, &loaded.config);
    if changes.is_empty() {
        tracing::info!(target: "netd::config", "{}: nothing changed", loader.path().display());
        return;
    }
    for change in changes.iter() {
        match change.effect {
            Effect::AtOnce => tracing::info!(target: "netd::config", "{change}"),
            Effect::Restart => tracing::warn!(target: "netd::config", "{change}"),
        }
    }
    in_force.adopt(&loaded.config);
    if let Err(error) = logs.set_filter(&in_force.telemetry.filter) {
        tracing::error!(target: "netd::config", "{}", chain(&error));
    }
}
