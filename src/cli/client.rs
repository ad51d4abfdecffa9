//! Asks the agent over its Unix socket: one blocking HTTP request, one JSON answer.
//!
//! The request is HTTP/1.0 (RFC 1945), so the answer ends with the connection and is never chunked. Everything
//! is bounded: an agent that hangs costs [`PATIENCE`], also when its queue of connections is full.

use super::output;
use crate::config::Loader;
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::TimeVal;
use serde_json::Value;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the whole exchange may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Larger than any answer.
const MAX_ANSWER: usize = 64 << 20;

/// What every query command takes.
#[derive(Debug, clap::Args)]
pub(super) struct Query {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    pub(super) output: output::Format,
    /// The agent's socket [default: netd.sock in the configured paths.run]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Query {
    /// The socket to ask: with `--socket` a broken configuration does not matter.
    pub(super) fn socket(&self, loader: &Loader) -> Result<PathBuf, crate::config::Error> {
        match &self.socket {
            Some(path) => Ok(path.clone()),
            None => Ok(loader.load()?.config.agent.socket()),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// Nobody listens.
    #[error("cannot reach the agent at {}: is `netd agent` running?", socket.display())]
    Unreachable {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The connection failed or took too long.
    #[error("the agent at {} did not answer {path}", socket.display())]
    Broken {
        socket: PathBuf,
        path: String,
        #[source]
        source: io::Error,
    },
    /// Not HTTP, or not all of it, or not JSON.
    #[error("the agent at {} answered {path} with {what}", socket.display())]
    Malformed { socket: PathBuf, path: String, what: String },
    /// An HTTP error.
    #[error("the agent refused {path} with status {status}: {text}")]
    Refused { path: String, status: u16, text: String },
}

/// What was answered.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    body: Vec<u8>,
}

/// Asks for a JSON document.
pub(super) fn get(socket: &Path, path: &str) -> Result<Value, Error> {
    let malformed = |what: String| Error::Malformed { socket: socket.into(), path: path.into(), what };
    let bytes = exchange(socket, path, PATIENCE)?;
    let Answer { status, body } = parse(&bytes).map_err(|what| malformed(what.into()))?;
    if status != 200 {
        let text = serde_json::from_slice::<Value>(&body)
            .ok()
            .and_then(|value| Some(value.get("error")?.as_str()?.to_owned()))
            .unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
        return Err(Error::Refused { path: path.into(), status, text });
    }
    serde_json::from_slice(&body).map_err(|error| malformed(format!("bad JSON: {error}")))
}

fn exchange(socket: &Path, path: &str, patience: Duration) -> Result<Vec<u8>, Error> {
    let deadline = Instant::now() + patience;
    let mut stream = connect(socket, patience)
        .map_err(|e| Error::Unreachable { socket: socket.into(), source: e.into() })?;
    talk(&mut stream, path, deadline).map_err(|source| Error::Broken {
        socket: socket.into(),
        path: path.into(),
        source,
    })
}

/// Connects with a time-out, which `UnixStream::connect` has not: a full queue would block it for ever.
fn connect(path: &Path, patience: Duration) -> Result<UnixStream, Errno> {
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let seconds = i64::try_from(patience.as_secs()).unwrap_or(i64::MAX);
    let micros = i64::from(patience.subsec_micros());
    socket::setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(seconds, micros))?;
    socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd.into())
}

fn talk(stream: &mut UnixStream, path: &str, deadline: Instant) -> io::Result<Vec<u8>> {
    stream.write_all(
        format!("GET {path} HTTP/1.0\r\nHost: netd\r\nAccept: application/json\r\n\r\n").as_bytes(),
    )?;
    let mut answer = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let read = match stream.read(&mut buffer) {
            Ok(0) => return Ok(answer),
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(e) => return Err(e),
        };
        answer.extend_from_slice(buffer.get(..read).unwrap_or_default());
        if answer.len() > MAX_ANSWER {
            return Err(io::Error::other(format!("more than {MAX_ANSWER} bytes")));
        }
    }
}

/// Takes an HTTP/1 answer apart that ended with its connection.
fn parse(bytes: &[u8]) -> Result<Answer, &'static str> {
    if bytes.is_empty() {
        return Err("nothing");
    }
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").ok_or("half an HTTP header")?;
    let (head, body) = bytes.split_at(end);
    let body = body.get(4..).unwrap_or_default();
    let head = std::str::from_utf8(head).map_err(|_| "something that is not HTTP")?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1."))
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .ok_or("something that is not HTTP")?;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") && value.trim().parse() != Ok(body.len()) {
            return Err("half a document");
        }
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("an encoding it was not asked for");
        }
    }
    Ok(Answer { status, body: body.to_vec() })
}

#[cfg(test)]
mod tests;
