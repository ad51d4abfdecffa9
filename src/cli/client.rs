//! Asks the agent over its Unix socket: one blocking HTTP request, one JSON answer, or a stream of lines.
//!
//! The request is HTTP/1.0 (RFC 1945), so the answer ends with the connection and is never chunked. Everything
//! is bounded: an agent that hangs costs [`PATIENCE`], also when its queue of connections is full. A stream may
//! go on for ever, but never silently for longer than that.

mod lines;

pub(super) use lines::Lines;

use super::output;
use crate::answer::{self, Answer, Refused};
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

impl Query {
    /// Asks for a document; with `-o json` prints it as it came.
    pub(super) fn ask<T: Answer>(&self, loader: &Loader, path: &str) -> anyhow::Result<T> {
        let value = self.document(loader, path)?;
        if self.output == output::Format::Json {
            output::json(&value)?;
        }
        Ok(answer::read(&value)?)
    }

    /// Asks for a document, and prints nothing.
    pub(super) fn document(&self, loader: &Loader, path: &str) -> anyhow::Result<Value> {
        Ok(get(&self.socket(loader)?, path)?)
    }
}

/// A path with its question, encoded as a form is (RFC 3986 §2.1).
pub(super) fn question(path: &str, asked: &[(&str, Option<String>)]) -> String {
    let mut out = path.to_owned();
    let given = asked.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
    for ((key, value), before) in given.zip(std::iter::once('?').chain(std::iter::repeat('&'))) {
        out.push(before);
        out.push_str(key);
        out.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    out
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
    /// It has answered for a while, and stopped.
    #[error("the agent at {} has gone: is `netd agent` running?", socket.display())]
    Gone { socket: PathBuf },
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
    /// What was asked for does not exist.
    #[error("{0}")]
    Unknown(String),
    /// The agent does not understand the question.
    #[error("{0}")]
    Question(String),
    /// An HTTP error.
    #[error("the agent refused {path} with status {status}: {text}")]
    Refused { path: String, status: u16, text: String },
}

/// What was answered.
#[derive(Debug, PartialEq, Eq)]
struct Response {
    status: u16,
    body: Vec<u8>,
}

/// Asks for a JSON document.
pub(super) fn get(socket: &Path, path: &str) -> Result<Value, Error> {
    let malformed = |what: String| Error::Malformed { socket: socket.into(), path: path.into(), what };
    let bytes = exchange(socket, path, PATIENCE)?;
    let Response { status, body } = parse(&bytes).map_err(|what| malformed(what.into()))?;
    if status != 200 {
        return Err(refused(path, status, &body));
    }
    serde_json::from_slice(&body).map_err(|error| malformed(format!("bad JSON: {error}")))
}

/// An answer that is none.
fn refused(path: &str, status: u16, body: &[u8]) -> Error {
    match (status, serde_json::from_slice::<Refused>(body)) {
        (404, Ok(refused)) => Error::Unknown(refused.error),
        (400, Ok(refused)) => Error::Question(refused.error),
        (_, Ok(refused)) => Error::Refused { path: path.into(), status, text: refused.error },
        (404, Err(_)) => {
            Error::Unknown(format!("the agent knows no {path}: it is an older netd (`netd status` tells)"))
        }
        (_, Err(_)) => {
            let text = String::from_utf8_lossy(body).trim().to_owned();
            Error::Refused { path: path.into(), status, text }
        }
    }
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

/// Sends the question.
fn send(stream: &mut UnixStream, path: &str) -> io::Result<()> {
    stream.write_all(
        format!("GET {path} HTTP/1.0\r\nHost: netd\r\nAccept: application/json\r\n\r\n").as_bytes(),
    )
}

fn talk(stream: &mut UnixStream, path: &str, deadline: Instant) -> io::Result<Vec<u8>> {
    send(stream, path)?;
    let mut answer = Vec::new();
    while read(stream, &mut answer, deadline)? > 0 {
        if answer.len() > MAX_ANSWER {
            return Err(io::Error::other(format!("more than {MAX_ANSWER} bytes")));
        }
    }
    Ok(answer)
}

/// Reads what there is; 0: the agent has ended the connection.
fn read(stream: &mut UnixStream, into: &mut Vec<u8>, deadline: Instant) -> io::Result<usize> {
    let mut buffer = [0; 16 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(read) => {
                into.extend_from_slice(buffer.get(..read).unwrap_or_default());
                return Ok(read);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(e) => return Err(e),
        }
    }
}

/// Takes an HTTP/1 answer apart that ended with its connection.
fn parse(bytes: &[u8]) -> Result<Response, &'static str> {
    if bytes.is_empty() {
        return Err("nothing");
    }
    let (head, body) = split(bytes).ok_or("half an HTTP header")?;
    let Head { status, length } = parse_head(head)?;
    if length.is_some_and(|length| length != Some(body.len())) {
        return Err("half a document");
    }
    Ok(Response { status, body: body.to_vec() })
}

/// Head and body, once the head is complete.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let (head, body) = bytes.split_at(end);
    Some((head, body.get(4..).unwrap_or_default()))
}

struct Head {
    status: u16,
    /// Of the body, if the answer says; none inside: it says nonsense.
    length: Option<Option<usize>>,
}

fn parse_head(head: &[u8]) -> Result<Head, &'static str> {
    let head = std::str::from_utf8(head).map_err(|_| "something that is not HTTP")?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1."))
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .ok_or("something that is not HTTP")?;
    let mut length = None;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse().ok());
        }
        if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("an encoding it was not asked for");
        }
    }
    Ok(Head { status, length })
}

#[cfg(test)]
mod tests;
