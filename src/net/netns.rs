//! Network namespaces: a handle that keeps one alive, and a way to run code inside it.
//!
//! A thread that has entered a foreign namespace never returns to a pool: [`NetNs::run`] makes a fresh thread,
//! enters, works, and ends. Sockets stay in the namespace they were opened in, and `/proc/sys/net` shows the
//! namespace of the thread that opens a file there (`network_namespaces(7)`), so this is all that is needed.

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread;

/// What can go wrong with a namespace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path cannot be opened: gone, or not ours to open.
    #[error("open network namespace {}", path.display())]
    Open {
        /// Path as asked.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The path is an ordinary file, e.g. what `ip netns` leaves behind when its mount is gone.
    #[error("{} is not a network namespace", path.display())]
    NotANamespace {
        /// Path as asked.
        path: PathBuf,
    },
    /// No thread could be started.
    #[error("start a thread for a network namespace")]
    Thread(#[source] io::Error),
    /// The kernel refused `setns`: a namespace of another kind (`EINVAL`) or no privilege (`EPERM`).
    #[error("enter network namespace {}", path.display())]
    Enter {
        /// Path it was opened by.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// The namespace is not there (any more): what hung on it is gone too.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Open { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::NotANamespace { .. } => true,
            Self::Thread(_) | Self::Enter { .. } => false,
        }
    }
}

/// An open network namespace; it lives at least as long as this handle.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
    path: PathBuf,
    identity: (u64, u64),
}

impl NetNs {
    /// Opens a namespace by a path: `/run/netns/x`, `/proc/<pid>/ns/net`, or what a runtime hands to CNI.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::NotANamespace`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Open { path: path.to_owned(), source };
        // A path from outside could be a FIFO, whose plain open would wait for a writer.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
        let kind = fstatfs(&file).map_err(|errno| failed(errno.into()))?;
        if kind.filesystem_type() != NSFS_MAGIC {
            return Err(Error::NotANamespace { path: path.to_owned() });
        }
        let metadata = file.metadata().map_err(failed)?;
        Ok(Self { identity: (metadata.dev(), metadata.ino()), fd: file.into(), path: path.to_owned() })
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn current() -> Result<Self, Error> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace of a process.
    ///
    /// # Errors
    /// [`Error::Open`]: there is no such process.
    pub fn of_process(pid: u32) -> Result<Self, Error> {
        Self::open(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// Device and inode: two handles with the same pair are one namespace, and while a handle is open no other
    /// namespace can get the pair.
    #[must_use]
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// The path it was opened by, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `f` inside the namespace, in a fresh thread that ends with it, and waits. Blocks: from async code
    /// use [`super::netlink::Netlink::run`], which has a thread there already.
    ///
    /// # Errors
    /// [`Error::Thread`], [`Error::Enter`]; then `f` was not called.
    ///
    /// # Panics
    /// If `f` panics.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
        thread::scope(|scope| {
            let thread = thread::Builder::new()
                .name("netd-netns".into())
                .spawn_scoped(scope, || self.enter().map(|()| f()))
                .map_err(Error::Thread)?;
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the namespace, for good: only for threads that netd started for it.
    pub(super) fn enter(&self) -> Result<(), Error> {
        setns(&self.fd, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::Enter { path: self.path.clone(), source: errno.into() })
    }

    /// A second handle of the same namespace.
    pub(super) fn try_clone(&self) -> Result<Self, Error> {
        let fd = self.fd.try_clone().map_err(|source| Error::Open { path: self.path.clone(), source })?;
        Ok(Self { fd, path: self.path.clone(), identity: self.identity })
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for NetNs {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing;

    #[test]
    fn run_works_inside_and_leaves_the_caller_outside() {
        let before = NetNs::current().unwrap().identity();
        let ns = testing::namespace();
        let inside = ns.run(|| NetNs::current().unwrap().identity()).unwrap();
        assert_eq!(inside, ns.identity());
        assert_ne!(inside, before);
        assert_eq!(NetNs::current().unwrap().identity(), before);
    }

    #[test]
    fn one_namespace_opened_twice_has_one_identity() {
        let ns = testing::namespace();
        let again = NetNs::open(&testing::path_of(&ns)).unwrap();
        assert_eq!(again.identity(), ns.identity());
        assert_ne!(again.identity(), testing::namespace().identity());
    }

    #[test]
    fn own_process_is_found_by_pid() {
        let own = NetNs::of_process(std::process::id()).unwrap();
        assert_eq!(own.identity(), NetNs::current().unwrap().identity());
    }

    #[test]
    fn missing_path_and_ordinary_file_are_told_apart() {
        let missing = NetNs::open(Path::new("/run/netns/nt-net-no-such")).unwrap_err();
        assert!(missing.is_gone());
        assert_eq!(missing.to_string(), "open network namespace /run/netns/nt-net-no-such");
        let file = tempfile::NamedTempFile::new().unwrap();
        let ordinary = NetNs::open(file.path()).unwrap_err();
        assert!(matches!(ordinary, Error::NotANamespace { .. }) && ordinary.is_gone());
    }

    #[test]
    fn namespace_of_another_kind_is_refused() {
        let uts = NetNs::open(Path::new("/proc/self/ns/uts")).unwrap();
        let error = uts.run(|| ()).unwrap_err();
        assert!(matches!(error, Error::Enter { .. }), "{error}");
    }

    #[test]
    fn panic_inside_reaches_the_caller() {
        let ns = testing::namespace();
        let caught = std::panic::catch_unwind(|| ns.run(|| panic!("inside")));
        assert_eq!(*caught.unwrap_err().downcast::<&str>().unwrap(), "inside");
    }
}
