//! The ledger on disk: `ledger.json` and the lock beside it.
//!
//! A write goes to a temporary file in the same folder, is fsynced, renamed over the ledger, and the folder
//! is fsynced (rename(2), fsync(2)): at any moment, also after a power cut, the name leads to one whole
//! ledger, the old or the new. The checksum (CRC-32 of the rows in compact JSON, so that white space does
//! not count) is for what rename cannot see: bad disks and editors.

use super::{Entry, Error, LOCK_NAME, Time, VERSION};
use crate::model::ObjectName;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// First key of the file: says to a reader, human or not, what this is.
const FORMAT: &str = "netd address ledger";

/// Whoever may read the lock file may lock it, and keep every pod from starting.
const MODE: u32 = 0o600;

/// An address that rests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CoolingRow {
    pub(super) address: IpAddr,
    pub(super) pod: Option<ObjectName>,
    pub(super) released_at: Time,
}

/// Where next-fit stands in a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Position {
    pub(super) range: IpNet,
    pub(super) address: IpAddr,
}

/// Everything the checksum covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rows {
    pub(super) generation: u64,
    pub(super) status_dir: Option<PathBuf>,
    pub(super) entries: Vec<Entry>,
    pub(super) cooling: Vec<CoolingRow>,
    pub(super) positions: Vec<Position>,
}

#[derive(Serialize, Deserialize)]
struct Envelope<R> {
    format: String,
    version: u64,
    crc32: String,
    rows: R,
}

/// What lies under the ledger's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// No file.
    Nothing,
    /// A file that is not, or no longer, a ledger: what is wrong with it.
    Damaged(String),
    /// A ledger.
    Rows(Box<Rows>),
}

/// The ledger's file, and the lock on it for as long as this lives.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    dir: PathBuf,
    lock: File,
}

impl Store {
    /// Takes the lock, creating its file; [`Error::Locked`] if another has it.
    pub fn lock(path: &Path) -> Result<Self, Error> {
        let dir = path.parent().unwrap_or_else(|| Path::new("/")).to_owned();
        let lock_path = dir.join(LOCK_NAME);
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(MODE)
            .open(&lock_path)
            .map_err(|e| Error::io("open", &lock_path, e))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let read = Read::by_ref(&mut lock).take(32).read_to_string(&mut holder);
                if read.is_err() || holder.is_empty() {
                    "another process".clone_into(&mut holder);
                }
                return Err(Error::Locked { path: lock_path, holder: holder.trim_end().to_owned() });
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", &lock_path, e)),
        }
        // Who holds it is for humans: on a full disk the lock holds all the same.
        if let Err(error) = lock.set_len(0).and_then(|()| writeln!(lock, "pid {}", std::process::id())) {
            tracing::debug!(path = %lock_path.display(), %error, "cannot write the holder of the lock");
        }
        Ok(Self { path: path.to_owned(), dir, lock })
    }

    /// Reads and checks the ledger, and changes nothing.
    pub fn read(&self) -> Result<Found, Error> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(Error::io("read", &self.path, error)),
        };
        let envelope: Envelope<serde_json::Value> = match serde_json::from_slice(&bytes) {
            Ok(envelope) => envelope,
            Err(error) => return Ok(Found::Damaged(format!("not a ledger: {error}"))),
        };
        if envelope.format != FORMAT {
            return Ok(Found::Damaged(format!("not a ledger: its format is {:?}", envelope.format)));
        }
        if envelope.version > u64::from(VERSION) {
            return Err(Error::Newer { path: self.path.clone(), version: envelope.version });
        }
        if envelope.version != u64::from(VERSION) {
            return Ok(Found::Damaged(format!("format version {} never was", envelope.version)));
        }
        let rows = match serde_json::from_value::<Rows>(envelope.rows) {
            Ok(rows) => rows,
            Err(error) => return Ok(Found::Damaged(format!("rows: {error}"))),
        };
        let sum = checksum(&rows).map_err(|e| Error::io("check", &self.path, e))?;
        if sum != envelope.crc32 {
            let reason = format!("checksum is {sum}, the file says {:?}", envelope.crc32);
            return Ok(Found::Damaged(reason));
        }
        Ok(Found::Rows(Box::new(rows)))
    }

    /// Renames the ledger to `….corrupt-<unix time>`, which is returned.
    pub fn set_aside(&self, now: Time) -> Result<PathBuf, Error> {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".corrupt-{}", now.unix_seconds()));
        let mut to = PathBuf::from(&name);
        for n in 2_u32.. {
            if !to.exists() {
                break;
            }
            let mut next = name.clone();
            next.push(format!("-{n}"));
            to = PathBuf::from(next);
        }
        fs::rename(&self.path, &to).map_err(|e| Error::io("set aside", &self.path, e))?;
        self.sync_dir()?;
        Ok(to)
    }

    /// Replaces the ledger.
    pub(super) fn write(&self, rows: &Rows) -> Result<(), Error> {
        let crc32 = checksum(rows).map_err(|e| Error::io("encode", &self.path, e))?;
        let envelope = Envelope { format: FORMAT.to_owned(), version: u64::from(VERSION), crc32, rows };
        let mut bytes =
            serde_json::to_vec_pretty(&envelope).map_err(|e| Error::io("encode", &self.path, e.into()))?;
        bytes.push(b'\n');
        let temporary = self.path.with_extension("json.tmp");
        let written =
            write_synced(&temporary, &bytes).map_err(|e| Error::io("write", &temporary, e)).and_then(|()| {
                fs::rename(&temporary, &self.path).map_err(|e| Error::io("replace", &self.path, e))
            });
        if let Err(error) = written {
            if let Err(error) = fs::remove_file(&temporary) {
                tracing::debug!(path = %temporary.display(), %error, "a failed write leaves its file");
            }
            return Err(error);
        }
        self.sync_dir()
    }

    fn sync_dir(&self) -> Result<(), Error> {
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(|e| Error::io("sync", &self.dir, e))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Closing is not enough at once: a child that another thread is just starting has a copy of the
        // descriptor until it execs, and flock(2) locks belong to the open file, not to the descriptor.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(path = %self.path.display(), %error, "cannot unlock the ledger");
        }
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create(true).truncate(true).mode(MODE).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn checksum(rows: &Rows) -> io::Result<String> {
    Ok(format!("{:08x}", crc32fast::hash(&serde_json::to_vec(rows)?)))
}
