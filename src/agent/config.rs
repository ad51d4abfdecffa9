//! Configuration of the agent itself.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Validated: names and paths are non-empty, paths absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Name of this node, as its Node object has it. Default: the host's name.
    pub node: String,
    /// Folder of the API socket (`netd.sock`) and the agent's lock. Default `/run/netd`.
    pub run_dir: PathBuf,
    /// Folder of what must survive a reboot: the address ledger. Default `/var/lib/netd`.
    pub state_dir: PathBuf,
    /// Where `/metrics`, `/healthz` and `/readyz` listen on TCP; none: only on the socket.
    pub metrics_listen: Option<SocketAddr>,
    /// How long a stopping agent waits for requests under way.
    pub drain: std::time::Duration,
}

impl Config {
    /// Path of the API socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("netd.sock")
    }

    /// Path of the address ledger.
    #[must_use]
    pub fn ledger(&self) -> PathBuf {
        self.state_dir.join("ledger.json")
    }
}
