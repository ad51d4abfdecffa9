//! One agent per node: a locked file in the run folder, and a name in the node's network namespace.
//!
//! The file catches a second agent with the same folders, the abstract socket one with other folders on the
//! same network. The kernel gives both back however the agent ends.

use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Abstract socket names belong to a network namespace (unix(7)).
const NAME: &[u8] = b"netd.agent";

/// Why this agent may not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another one holds the run folder.
    #[error("another netd agent{} runs on this node: it holds {}", pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), path.display())]
    SameFolder {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, if it says so.
        pid: Option<u32>,
    },
    /// Another one, with other folders, serves this network namespace.
    #[error("another netd agent runs in this network namespace, with another run folder than {}", path.display())]
    SameNetwork {
        /// Our run folder.
        path: PathBuf,
    },
    /// The lock cannot be tried.
    #[error("cannot lock {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Held for the agent's life.
#[derive(Debug)]
pub(super) struct NodeLock {
    _file: Flock<File>,
    _name: Option<UnixListener>,
}

impl NodeLock {
    /// Takes the node, or says who has it.
    ///
    /// # Errors
    /// Another agent runs, or the run folder cannot be used.
    pub(super) fn take(run_dir: &Path) -> Result<Self, Error> {
        let path = run_dir.join("agent.lock");
        let io = |source| Error::Io { path: path.clone(), source };
        fs::DirBuilder::new().recursive(true).mode(0o755).create(run_dir).map_err(io)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io)?;
        let mut held = String::new();
        file.read_to_string(&mut held).map_err(io)?;
        let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            if errno == nix::errno::Errno::EWOULDBLOCK {
                Error::SameFolder { path: path.clone(), pid: held.trim().parse().ok() }
            } else {
                io(errno.into())
            }
        })?;
        let name = SocketAddr::from_abstract_name(NAME).and_then(|name| UnixListener::bind_addr(&name));
        let name = match name {
            Ok(name) => Some(name),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if holder().is_none_or(|uid| uid == 0) {
                    return Err(Error::SameNetwork { path: run_dir.to_owned() });
                }
                // Anybody may take an abstract name; nobody but root may keep an agent away with it.
                tracing::error!(target: "netd::agent", "a process that is not root's has taken netd's name");
                None
            }
            Err(error) => return Err(io(error)),
        };
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(io)?;
        Ok(Self { _file: file, _name: name })
    }
}

/// The user whose process has the name; none if it cannot be asked.
fn holder() -> Option<u32> {
    let name = SocketAddr::from_abstract_name(NAME).ok()?;
    let stream = UnixStream::connect_addr(&name).ok()?;
    Some(getsockopt(&stream, PeerCredentials).ok()?.uid())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_new_network<T: Send>(test: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
                test()
            });
            thread.join().expect("the test's own panic")
        })
    }

    #[test]
    fn a_second_agent_is_refused_with_the_first_ones_pid() {
        let folder = tempfile::tempdir().unwrap();
        in_new_network(|| {
            let first = NodeLock::take(folder.path()).unwrap();
            let error = NodeLock::take(folder.path()).unwrap_err();
            assert!(error.to_string().contains(&format!("(pid {})", std::process::id())), "{error}");
            let other = tempfile::tempdir().unwrap();
            assert!(matches!(NodeLock::take(other.path()), Err(Error::SameNetwork { .. })));
            in_new_network(|| NodeLock::take(other.path()).map(drop)).unwrap();
            drop(first);
            NodeLock::take(folder.path()).unwrap();
        });
    }
}
