//! Configuration of the CNI side.

use std::path::PathBuf;
use std::time::Duration;

/// Validated: absolute paths, a bare file name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Install plugin and conflist when the agent is ready. Default true.
    pub install: bool,
    /// Default `/opt/cni/bin`.
    pub bin_dir: PathBuf,
    /// Default `/etc/cni/net.d`.
    pub conf_dir: PathBuf,
    /// Default `10-netd.conflist`.
    pub conf_name: String,
    /// How long an ADD waits for the source of state to be synced before it fails retryably. Default 10 s.
    pub sync_wait: Duration,
}
