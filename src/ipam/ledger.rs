//! The ledger: the one file that says which container holds which address, and the only truth of it.
//!
//! Owned by whoever holds the lock on `ledger.lock` beside it: the agent for its life, or, while no agent
//! runs, a CNI plugin for the length of one operation. A change is made on a copy of the [`State`], written
//! out whole and fsynced, and only then becomes the state: a full disk fails the operation and nothing
//! else. [`Writer`] puts changes that arrive together into one write.
//!
//! A damaged file is set aside, never deleted, and the caller is told to rebuild the ledger from what the
//! kernel holds ([`Fresh`], [`State::adopt`]). A file of a newer netd is left alone and opening it fails.

mod file;
mod state;
#[cfg(test)]
mod tests;
mod writer;

use ipnet::IpNet;
use k8s_openapi::jiff;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

pub use file::{Found, Rows, Store};
pub use state::{AllocateError, Entry, New, Recovered, State};
pub use writer::Writer;

/// Name of the lock file beside the ledger.
pub const LOCK_NAME: &str = "ledger.lock";

/// Version of the file format. A change that an older netd would misread gets a new one.
pub const VERSION: u32 = 1;

/// Why the ledger could not be opened or written. Cheap to clone: one failed write answers many requests.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("{action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Arc<io::Error>,
    },
    /// Somebody else owns it.
    #[error("{} is locked by {holder}", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// `pid N`, as the owner wrote it.
        holder: String,
    },
    /// Written by a netd that knows more than this one.
    #[error("{} has format version {version}, this netd knows {VERSION}: install the newer netd again", path.display())]
    Newer {
        /// The file, untouched.
        path: PathBuf,
        /// Its version.
        version: u64,
    },
    /// The thread that writes is gone.
    #[error("the ledger is closed")]
    Closed,
}

impl Error {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source: Arc::new(source) }
    }
}

/// A point in wall-clock time, in the file as RFC 3339 UTC with whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(jiff::Timestamp);

impl Time {
    /// Seconds since 1970.
    #[must_use]
    pub fn unix_seconds(self) -> i64 {
        self.0.as_second()
    }

    /// Time passed since `earlier`; none if the clock was set back.
    #[must_use]
    pub fn since(self, earlier: Self) -> Option<Duration> {
        Duration::try_from(self.0.duration_since(earlier.0)).ok()
    }

    fn from_seconds(seconds: u64) -> Self {
        let timestamp = i64::try_from(seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
        Self(timestamp.unwrap_or(jiff::Timestamp::UNIX_EPOCH))
    }
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl serde::Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

/// Both clocks at one moment: the monotonic one measures cool-down while a process runs, the wall clock is
/// what the file can remember.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Monotonic.
    pub instant: Instant,
    /// Wall.
    pub time: Time,
}

impl Clock {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { instant: Instant::now(), time: Time::from_seconds(now.as_secs()) }
    }
}

/// What addresses are given from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// New addresses come from here.
    pub active: Vec<IpNet>,
    /// What is held here stays held, nothing new is given.
    pub draining: Vec<IpNet>,
}

/// Why a ledger that was just opened is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fresh {
    /// There was none: a new node, or somebody deleted it.
    Missing,
    /// There was one that could not be read.
    SetAside {
        /// Its new name.
        to: PathBuf,
        /// What was wrong with it.
        reason: String,
    },
}

/// The ledger in memory and on disk, and the lock on it.
#[derive(Debug)]
pub struct Ledger {
    store: Store,
    state: Arc<State>,
}

/// A ledger just opened.
#[derive(Debug)]
pub struct Opened {
    /// The ledger.
    pub ledger: Ledger,
    /// Set if it starts empty, and is to be rebuilt from the kernel before anything is allocated.
    pub fresh: Option<Fresh>,
}

impl Ledger {
    /// Locks and reads the ledger, waiting up to `patience` for another owner to finish. Makes its folder,
    /// if there is none.
    pub fn open(path: &Path, cool_down: Duration, patience: Duration) -> Result<Opened, Error> {
        let deadline = Instant::now() + patience;
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        }
        let store = loop {
            match Store::lock(path) {
                Err(Error::Locked { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                result => break result?,
            }
        };
        let (store, reason) = match store.read()? {
            Found::Nothing => {
                let ledger = Self { store, state: Arc::new(State::new(cool_down)) };
                return Ok(Opened { ledger, fresh: Some(Fresh::Missing) });
            }
            Found::Damaged(reason) => (store, reason),
            Found::Rows(rows) => match Self::from_rows(store, *rows, cool_down) {
                Ok(ledger) => return Ok(Opened { ledger, fresh: None }),
                Err(damaged) => *damaged,
            },
        };
        let to = store.set_aside(Clock::now().time)?;
        let ledger = Self { store, state: Arc::new(State::new(cool_down)) };
        Ok(Opened { ledger, fresh: Some(Fresh::SetAside { to, reason }) })
    }

    /// From rows just read; gives the store back, and the reason, if they contradict each other.
    pub fn from_rows(store: Store, rows: Rows, cool_down: Duration) -> Result<Self, Box<(Store, String)>> {
        match State::load(rows, cool_down, Clock::now()) {
            Ok(state) => Ok(Self { store, state: Arc::new(state) }),
            Err(reason) => Err(Box::new((store, reason))),
        }
    }

    /// The state, as it is on disk.
    #[must_use]
    pub const fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Makes a change: all of it is on disk when this returns, or none of it is anywhere.
    pub fn commit<R>(&mut self, change: impl FnOnce(&mut State, Clock) -> R) -> Result<R, Error> {
        let mut next = State::clone(&self.state);
        let result = change(&mut next, Clock::now());
        self.replace(next)?;
        Ok(result)
    }

    /// Writes `next` if it differs in what the file holds, and makes it the state.
    fn replace(&mut self, mut next: State) -> Result<(), Error> {
        if next.take_changed() {
            // Should only the last step fail, the fsync of the folder, then the file may hold rows that
            // the state does not. The next write sets that right, and so does recovery: such a row has no
            // link.
            self.store.write(&next.rows())?;
        }
        self.state = Arc::new(next);
        Ok(())
    }
}
