//! One HTTP/1.1 request over the agent's Unix socket, blocking, with bounds on time and size (RFC 9112, as
//! much of it as the agent speaks: `Content-Length`, no transfer coding).

use crate::cni::types::{Error, ErrorObject, Verb};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long `connect` waits while the agent's backlog is full.
const CONNECT: i64 = 1;

/// More than any answer: a result is a few kilobytes.
const MAX_ANSWER: usize = 1 << 20;

/// Why the agent gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Nobody listens.
    #[error("cannot connect to {}: {source}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    /// It went away, or took too long.
    #[error("no answer from the agent at {}: {source}", path.display())]
    Lost { path: PathBuf, source: io::Error },
    /// Something else listens.
    #[error("{} does not speak as netd's agent does: {why}", path.display())]
    Strange { path: PathBuf, why: String },
}

/// The agent, by its socket.
pub(super) struct Client<'a> {
    pub(super) socket: &'a Path,
    pub(super) total: Duration,
}

impl Client<'_> {
    /// Asks; the answer is what is to be printed, or the agent's own error.
    pub(super) fn call(&self, verb: Verb, body: &str) -> Result<Result<String, Error>, Failure> {
        let deadline = Instant::now() + self.total;
        let path = || self.socket.to_owned();
        let mut stream =
            self.connect().map_err(|source| Failure::Connect { path: path(), source: source.into() })?;
        let request = format!(
            "POST /v1/cni/{} HTTP/1.1\r\nHost: netd\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            verb.path().unwrap_or_default(),
            body.len()
        );
        let answer = stream
            .set_write_timeout(Some(self.total))
            .and_then(|()| stream.write_all(request.as_bytes()))
            .and_then(|()| read_answer(&mut stream, deadline))
            .map_err(|source| Failure::Lost { path: path(), source })?;
        let (status, text) = parse(&answer).map_err(|why| Failure::Strange { path: path(), why })?;
        if status == 200 {
            // Only ADD has something to say.
            return Ok(Ok(if verb == Verb::Add { text.to_owned() } else { String::new() }));
        }
        match serde_json::from_str::<ErrorObject>(text) {
            Ok(ErrorObject { code, msg, details, .. }) => Ok(Err(Error { code, msg, details })),
            Err(_) => Err(Failure::Strange { path: path(), why: format!("status {status}") }),
        }
    }

    fn connect(&self) -> nix::Result<UnixStream> {
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        // On a Unix socket this bounds connect too (net/unix/af_unix.c, `unix_stream_connect`).
        setsockopt(&fd, sockopt::SendTimeout, &TimeVal::seconds(CONNECT))?;
        connect(fd.as_raw_fd(), &UnixAddr::new(self.socket)?)?;
        Ok(UnixStream::from(fd))
    }
}

/// Reads until the answer is whole, by its `Content-Length`, or the agent closes.
fn read_answer(stream: &mut UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut chunk = [0; 8192];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long"));
        }
        stream.set_read_timeout(Some(left))?;
        let count = match stream.read(&mut chunk) {
            Ok(0) => return Ok(answer),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        answer.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if answer.len() > MAX_ANSWER {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
        }
        if let Ok(Some(head)) = head(&answer)
            && head.length.is_some_and(|length| answer.len() >= head.size + length)
        {
            return Ok(answer);
        }
    }
}

struct Head {
    status: u16,
    length: Option<usize>,
    /// Up to and with the empty line.
    size: usize,
}

/// None: not whole yet.
fn head(bytes: &[u8]) -> Result<Option<Head>, String> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let text =
        bytes.get(..end).and_then(|head| std::str::from_utf8(head).ok()).ok_or("its head is no text")?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let mut length = None;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            let value = value.trim().parse::<usize>().ok().filter(|length| *length <= MAX_ANSWER);
            length = Some(value.ok_or("a bad Content-Length")?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err("a transfer coding".to_owned());
        }
    }
    Ok(Some(Head { status: status.ok_or("no status line")?, length, size: end + 4 }))
}

fn parse(bytes: &[u8]) -> Result<(u16, &str), String> {
    let Head { status, length, size } = head(bytes)?.ok_or("the answer breaks off")?;
    let body = bytes.get(size..).unwrap_or_default();
    let body = match length {
        Some(length) => body.get(..length).ok_or("the answer breaks off")?,
        None => body,
    };
    Ok((status, std::str::from_utf8(body).map_err(|_| "its body is no text")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_are_read_by_their_length() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcde";
        assert_eq!(parse(whole), Ok((200, "abc")));
        assert_eq!(parse(b"HTTP/1.1 503 X\r\n\r\nall of it"), Ok((503, "all of it")));
        for (bytes, why) in [
            (&b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"[..], "the answer breaks off"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nabc", "a bad Content-Length"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n", "a bad Content-Length"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "a transfer coding"),
            (b"SSH-2.0-OpenSSH\r\n\r\n", "no status line"),
            (b"", "the answer breaks off"),
        ] {
            assert_eq!(parse(bytes), Err(why.to_owned()));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0..60_usize) {
            let mut framed = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".to_vec();
            framed.truncate(cut);
            framed.extend_from_slice(&bytes);
            for input in [&bytes, &framed] {
                if let Ok((status, _)) = parse(input) {
                    prop_assert!(status < 1000);
                }
            }
        }
    }
}
