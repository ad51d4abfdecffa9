//! An answer of one JSON document per line, read as it comes.
//!
//! Blank lines mean that the agent is still there. Whoever reads our own output may go while there is nothing
//! to tell: that is noticed at once, not with the next line.

use super::{Error, PATIENCE, connect, output, parse_head, read, refused, send, split};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A line longer than this is no line of ours.
const MAX_LINE: usize = 1 << 20;

/// The lines.
#[derive(Debug)]
pub(in crate::cli) struct Lines {
    socket: PathBuf,
    path: String,
    stream: UnixStream,
    /// What was read.
    buffer: Vec<u8>,
    /// How much of it was given out.
    given: usize,
}

impl Lines {
    /// Asks, and waits for the answer to begin.
    pub(in crate::cli) fn open(socket: &Path, path: &str) -> Result<Self, Error> {
        let deadline = Instant::now() + PATIENCE;
        let mut stream = connect(socket, PATIENCE)
            .map_err(|e| Error::Unreachable { socket: socket.into(), source: e.into() })?;
        let broken = |source| Error::Broken { socket: socket.into(), path: path.into(), source };
        let malformed =
            |what: &str| Error::Malformed { socket: socket.into(), path: path.into(), what: what.into() };
        send(&mut stream, path).map_err(broken)?;
        let mut bytes = Vec::new();
        let (status, mut body) = loop {
            let more = read(&mut stream, &mut bytes, deadline).map_err(broken)?;
            if let Some((head, body)) = split(&bytes) {
                break (parse_head(head).map_err(malformed)?.status, body.to_vec());
            }
            if more == 0 || bytes.len() > MAX_LINE {
                return Err(malformed(if bytes.is_empty() { "nothing" } else { "half an HTTP header" }));
            }
        };
        if status != 200 {
            while body.len() < MAX_LINE && read(&mut stream, &mut body, deadline).map_err(broken)? > 0 {}
            return Err(refused(path, status, &body));
        }
        Ok(Self { socket: socket.into(), path: path.into(), stream, buffer: body, given: 0 })
    }

    /// The next line that is not blank; none at the end of the answer.
    pub(in crate::cli) fn next(&mut self) -> anyhow::Result<Option<Vec<u8>>> {
        let mut deadline = Instant::now() + PATIENCE;
        loop {
            let unread = self.buffer.get(self.given..).unwrap_or_default();
            if let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
                let line = unread.get(..end).unwrap_or_default().to_vec();
                self.given += end + 1;
                if line.is_empty() {
                    deadline = Instant::now() + PATIENCE;
                    continue;
                }
                return Ok(Some(line));
            }
            self.buffer.drain(..self.given);
            self.given = 0;
            if self.buffer.len() > MAX_LINE {
                let what = format!("a line of more than {MAX_LINE} bytes");
                return Err(
                    Error::Malformed { socket: self.socket.clone(), path: self.path.clone(), what }.into()
                );
            }
            if self.fill(deadline)? == 0 {
                if self.buffer.is_empty() {
                    return Ok(None);
                }
                return Err(Error::Gone { socket: self.socket.clone() }.into());
            }
        }
    }

    /// The agent ended an answer that has no end.
    pub(in crate::cli) fn gone(&self) -> Error {
        Error::Gone { socket: self.socket.clone() }
    }

    fn fill(&mut self, deadline: Instant) -> anyhow::Result<usize> {
        let broken = |source| Error::Broken { socket: self.socket.clone(), path: self.path.clone(), source };
        self.wait(deadline).map_err(|error| match error {
            Wait::Closed => anyhow::Error::new(output::Error::Closed),
            Wait::Failed(source) => broken(source).into(),
        })?;
        match read(&mut self.stream, &mut self.buffer, deadline) {
            Ok(read) => Ok(read),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(0),
            Err(source) => Err(broken(source).into()),
        }
    }

    /// Waits for more, and for the end of our own reader.
    fn wait(&self, deadline: Instant) -> Result<(), Wait> {
        let stdout = io::stdout();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Wait::Failed(io::ErrorKind::TimedOut.into()));
            }
            // Errors are told without being asked for (poll(2)).
            let mut fds = [
                PollFd::new(self.stream.as_fd(), PollFlags::POLLIN),
                PollFd::new(stdout.as_fd(), PollFlags::empty()),
            ];
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(Wait::Failed(error.into())),
            }
            let [stream, stdout] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
            if stdout.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
                return Err(Wait::Closed);
            }
            if !stream.is_empty() {
                return Ok(());
            }
        }
    }
}

enum Wait {
    /// Nobody reads our output any more.
    Closed,
    Failed(io::Error),
}
