//! HTTP/1.1 (RFC 9112) over the agent's Unix socket, as much as a GET needs, and the Prometheus text format.

use anyhow::{Context as _, Result, bail};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Body.
    pub body: String,
}

pub(super) fn get(socket: &Path, path: &str) -> Result<Response> {
    let context = || format!("GET {path} from {}", socket.display());
    let mut stream = UnixStream::connect(socket).with_context(context)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: netd\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).with_context(context)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).with_context(context)?;
    parse(&bytes).with_context(context)
}

fn parse(bytes: &[u8]) -> Result<Response> {
    let text = std::str::from_utf8(bytes).context("the answer is not UTF-8")?;
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no end of headers")?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status line")?;
    let chunked = lines.any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"));
    let body = if chunked { unchunk(body)? } else { body.to_owned() };
    Ok(Response { status: status.parse().context("the status code")?, body })
}

fn unchunk(mut rest: &str) -> Result<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n").context("a chunk without size")?;
        let size = usize::from_str_radix(size.trim(), 16).context("the size of a chunk")?;
        if size == 0 {
            return Ok(body);
        }
        match (after.get(..size), after.get(size..).and_then(|tail| tail.strip_prefix("\r\n"))) {
            (Some(chunk), Some(next)) => {
                body.push_str(chunk);
                rest = next;
            }
            _ => bail!("a chunk is cut short"),
        }
    }
}

impl Response {
    /// Sum of the samples of `name` that bear all of `labels`, in the Prometheus text format.
    #[must_use]
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let sample = |line: &str| -> Option<f64> {
            let rest = line.strip_prefix(name)?;
            let (set, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.split_once('}')?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let has = |(key, value): &(&str, &str)| {
                let wanted = format!("{key}=\"{value}\"");
                set.split(',').any(|pair| pair == wanted)
            };
            labels.iter().all(has).then(|| value.split_whitespace().next()?.parse().ok())?
        };
        self.body.lines().filter_map(sample).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_plain_and_chunked() {
        let plain = parse(b"HTTP/1.1 503 Service Unavailable\r\nA: b\r\n\r\npending: ipam\n").unwrap();
        assert_eq!(plain, Response { status: 503, body: "pending: ipam\n".into() });
        let chunked =
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap().body, "abcde");
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc\r\n").is_err());
    }

    #[test]
    fn samples_are_summed_by_label() {
        let body = "# HELP d x\nd_total{a=\"1\",b=\"2\"} 3\nd_total{a=\"1\",b=\"3\"} 4\nd_total_x 9\nup 1\n";
        let response = Response { status: 200, body: body.into() };
        assert!((response.metric("d_total", &[("a", "1")]) - 7.0).abs() < 1e-9);
        assert!((response.metric("d_total", &[("b", "3"), ("a", "1")]) - 4.0).abs() < 1e-9);
        assert!((response.metric("up", &[]) - 1.0).abs() < 1e-9);
        assert!(response.metric("d_total", &[("a", "2")]).abs() < 1e-9);
    }
}
