//! Configuration of the directory source.

use std::path::PathBuf;

/// Validated: an absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The watched folder. Default `/etc/netd/state`.
    pub path: PathBuf,
}
