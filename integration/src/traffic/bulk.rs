//! Large transfers, every byte of which is compared.
//!
//! The stream is a fixed block of pseudo-random bytes repeated; its length is prime, so that a lost,
//! doubled or moved segment of any usual size cannot go unseen. When the sender has shut its half, the sink
//! answers with the number of good bytes.

use crate::lab::Namespace;
use anyhow::{Context as _, Result, anyhow, bail};
use std::io::{Read as _, Write as _};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::LazyLock;
use std::thread::JoinHandle;
use std::time::Duration;

/// Length of the repeated block, a prime.
const BLOCK: usize = 262_139;

/// The block: a multiplicative congruential generator is random enough to be unlike itself when shifted.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state: u32 = 0x2545_F491;
    let mut step = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let [high, ..] = state.to_be_bytes();
        high
    };
    (0..BLOCK).map(|_| step()).collect()
});

/// Bounds a stuck transfer.
const STUCK: Duration = Duration::from_secs(60);

/// Takes one transfer.
#[derive(Debug)]
pub struct Sink(JoinHandle<Result<u64>>);

impl Sink {
    /// Listens in `namespace`.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = namespace.enter(|| Ok(TcpListener::bind(any)?))?;
        socket2::SockRef::from(&listener).set_read_timeout(Some(STUCK))?;
        Ok(Self(namespace.spawn_thread("sink", move || take(&listener))?))
    }

    /// Waits for the end of the transfer; the number of bytes, all of them right.
    ///
    /// # Errors
    /// A wrong byte, or the transfer broke.
    pub fn join(self) -> Result<u64> {
        self.0.join().map_err(|_| anyhow!("the sink panicked"))?
    }
}

fn take(listener: &TcpListener) -> Result<u64> {
    let (mut stream, _) = listener.accept().context("waiting for the sender")?;
    stream.set_read_timeout(Some(STUCK))?;
    let mut total: u64 = 0;
    let mut expected: &[u8] = &PATTERN;
    let mut buffer = vec![0; 1 << 18];
    loop {
        let length = stream.read(&mut buffer).with_context(|| format!("after {total} bytes"))?;
        if length == 0 {
            break;
        }
        let mut got = buffer.get(..length).unwrap_or_default();
        while !got.is_empty() {
            let n = got.len().min(expected.len());
            let (now, later) = got.split_at(n);
            let (want, rest) = expected.split_at(n);
            if now != want {
                let at = now.iter().zip(want).take_while(|(a, b)| a == b).count();
                bail!("byte {} is wrong", total + u64::try_from(at)?);
            }
            total += u64::try_from(n)?;
            got = later;
            expected = if rest.is_empty() { &PATTERN } else { rest };
        }
    }
    stream.write_all(&total.to_be_bytes())?;
    Ok(total)
}

/// Sends `bytes` bytes from `from` to a [`Sink`].
///
/// # Errors
/// The transfer broke, or the sink counted other than was sent.
pub fn send_bulk(from: &Namespace, target: SocketAddr, bytes: u64) -> Result<()> {
    from.enter(|| {
        let mut stream =
            TcpStream::connect_timeout(&target, STUCK).with_context(|| format!("connecting to {target}"))?;
        stream.set_write_timeout(Some(STUCK))?;
        stream.set_read_timeout(Some(STUCK))?;
        let mut left = bytes;
        while left > 0 {
            let n = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
            let part = PATTERN.get(..n).unwrap_or_default();
            stream.write_all(part).with_context(|| format!("with {left} bytes to go to {target}"))?;
            left -= u64::try_from(n)?;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut counted = [0; 8];
        stream.read_exact(&mut counted).context("waiting for the sink's count")?;
        let counted = u64::from_be_bytes(counted);
        if counted != bytes {
            bail!("{bytes} bytes sent, {counted} arrived");
        }
        Ok(())
    })
}
