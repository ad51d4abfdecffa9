//! `/proc/sys/net`: read before written, so that nothing is touched (and no lock taken) that is right already.
//!
//! Every function here blocks for microseconds and works on the network namespace of the *calling thread*
//! (kernel `Documentation/networking/ip-sysctl.rst`): call them through [`super::netlink::Netlink::run`] or
//! [`super::netns::NetNs::run`].

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

/// IP version of a per-interface key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// `net.ipv4`.
    V4,
    /// `net.ipv6`.
    V6,
}

impl Family {
    fn directory(self) -> &'static str {
        match self {
            Self::V4 => "/proc/sys/net/ipv4",
            Self::V6 => "/proc/sys/net/ipv6",
        }
    }
}

/// A key of `net.ipv4.conf.<interface>` or `net.ipv6.conf.<interface>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    family: Family,
    interface: String,
    name: &'static str,
}

impl Key {
    /// `interface` may be `all` or `default`; it must be a valid interface name otherwise.
    #[must_use]
    pub fn new(family: Family, interface: &str, name: &'static str) -> Self {
        Self { family, interface: interface.to_owned(), name }
    }

    fn path(&self) -> PathBuf {
        [self.family.directory(), "conf", self.interface.as_str(), self.name].iter().collect()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path().display())
    }
}

/// A key could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading failed, for another reason than that there is no such key.
    #[error("read {key}")]
    Read {
        /// The key.
        key: Key,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Writing failed: the interface is gone, or `/proc/sys` is mounted read-only.
    #[error("write {value} to {key}")]
    Write {
        /// The key.
        key: Key,
        /// What was to be written.
        value: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The value of a key without its line end; `None`: there is no such key or interface.
///
/// # Errors
/// [`Error::Read`].
pub fn get(key: &Key) -> Result<Option<String>, Error> {
    match fs::read_to_string(key.path()) {
        Ok(value) => Ok(Some(value.trim_end().to_owned())),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { key: key.clone(), source }),
    }
}

/// Makes a key have a value; returns the value it had if that was another one.
///
/// # Errors
/// [`Error::Read`], [`Error::Write`].
pub fn set(key: &Key, value: &'static str) -> Result<Option<String>, Error> {
    let before = get(key)?;
    if before.as_deref() == Some(value) {
        return Ok(None);
    }
    fs::write(key.path(), value).map_err(|source| Error::Write { key: key.clone(), value, source })?;
    Ok(Some(before.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing;

    #[test]
    fn set_changes_once_and_only_in_its_namespace() {
        let (ns, other) = (testing::namespace(), testing::namespace());
        let key = Key::new(Family::V6, "lo", "accept_ra");
        assert_eq!(ns.run(|| set(&key, "2")).unwrap().unwrap().as_deref(), Some("1"));
        assert_eq!(ns.run(|| set(&key, "2")).unwrap().unwrap(), None);
        assert_eq!(ns.run(|| get(&key)).unwrap().unwrap().as_deref(), Some("2"));
        assert_eq!(other.run(|| get(&key)).unwrap().unwrap().as_deref(), Some("1"));
    }

    #[test]
    fn missing_interface_reads_as_none_and_fails_to_write() {
        let ns = testing::namespace();
        let key = Key::new(Family::V4, "nosuch0", "rp_filter");
        assert_eq!(ns.run(|| get(&key)).unwrap().unwrap(), None);
        let error = ns.run(|| set(&key, "0")).unwrap().unwrap_err();
        assert_eq!(error.to_string(), "write 0 to /proc/sys/net/ipv4/conf/nosuch0/rp_filter");
    }
}
