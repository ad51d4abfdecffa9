//! A server that streams numbered records to a client which only asked once: to see the very packet at which a
//! conversation is cut, and which way the packets went.
//!
//! A record's number is counted before it is written. So whoever reads [`Stream::sent`] after something took effect
//! knows that every record with a higher number was sent after it.

use super::{PATIENCE, Proto};
use crate::lab::Namespace;
use crate::wait;
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two records.
const PACE: Duration = Duration::from_millis(1);
/// How soon a thread sees that it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// Length of a record in bytes: its number.
const RECORD: usize = 8;

/// A running stream. Ends when dropped.
#[derive(Debug)]
pub struct Stream {
    name: String,
    counters: Arc<Counters>,
    threads: Vec<JoinHandle<Result<()>>>,
    tcp: Option<[TcpStream; 2]>,
}

#[derive(Debug, Default)]
struct Counters {
    stop: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
    newest: AtomicU64,
}

impl Stream {
    /// Has `client` ask at `target`, which leads to `port` of `server`, and the server stream from then on.
    ///
    /// # Errors
    /// The port is taken, or nobody answers.
    pub fn start(
        client: &Namespace,
        proto: Proto,
        target: SocketAddr,
        server: &Namespace,
        port: u16,
    ) -> Result<Self> {
        let name = format!("stream by {proto} from {target} to {}", client.name());
        let counters = Arc::new(Counters::default());
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let (mine, theirs) = (Arc::clone(&counters), Arc::clone(&counters));
        let mut stream = Self { name: name.clone(), counters, threads: Vec::new(), tcp: None };
        match proto {
            Proto::Tcp => {
                let listener = server.enter(|| Ok(TcpListener::bind(any)?))?;
                let asked = client.enter(|| Ok(TcpStream::connect_timeout(&target, PATIENCE)?));
                let asked = asked.with_context(|| name.clone())?;
                let (answered, _) = listener.accept().with_context(|| name.clone())?;
                // With Nagle's algorithm: what cannot be sent waits in one packet, and so writing never waits for it.
                stream.tcp = Some([asked.try_clone()?, answered.try_clone()?]);
                stream.spawn("stream-write", move || mine.write(answered))?;
                stream.spawn("stream-read", move || theirs.read(asked))?;
            }
            Proto::Udp => {
                let answering = server.enter(|| Ok(UdpSocket::bind(any)?))?;
                answering.set_read_timeout(Some(PATIENCE))?;
                let asking = client.enter(|| {
                    let socket = Socket::new(Domain::for_address(target), Type::DGRAM, None)?;
                    socket.connect(&target.into())?;
                    Ok(UdpSocket::from(socket))
                })?;
                asking.send(b"stream!").with_context(|| name.clone())?;
                let (_, from) = answering.recv_from(&mut [0; 64]).with_context(|| name.clone())?;
                asking.set_read_timeout(Some(LOOK))?;
                stream.spawn("stream-send", move || mine.send(&answering, from))?;
                stream.spawn("stream-recv", move || theirs.recv(&asking))?;
            }
        }
        stream.flows()?;
        Ok(stream)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
        let builder = std::thread::Builder::new().name(name.into()).stack_size(128 * 1024);
        self.threads.push(builder.spawn(body).with_context(|| format!("starting the thread {name}"))?);
        Ok(())
    }

    /// What it is, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of the newest record that was, or is just being, sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.counters.sent.load(Ordering::SeqCst)
    }

    /// The highest number that arrived.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.counters.newest.load(Ordering::SeqCst)
    }

    /// Waits until `count` more records were sent, whether they arrive or not.
    ///
    /// # Errors
    /// They were not, by the deadline.
    pub fn more_sent(&self, count: u64) -> Result<()> {
        let goal = self.sent() + count;
        wait::holds(&format!("{}: record {goal} to be sent", self.name), || {
            self.lives()?;
            Ok(self.sent() >= goal)
        })
        .with_context(|| format!("{} were sent, {} arrived", self.sent(), self.newest()))
    }

    /// Waits until records arrive that were sent from now on.
    ///
    /// # Errors
    /// None did, by the deadline.
    pub fn flows(&self) -> Result<()> {
        let goal = self.sent() + 10;
        wait::holds(&format!("{}: record {goal} to arrive", self.name), || {
            self.lives()?;
            Ok(self.newest() >= goal)
        })
        .with_context(|| format!("{} were sent, {} arrived", self.sent(), self.newest()))
    }

    fn lives(&self) -> Result<()> {
        ensure!(!self.threads.iter().any(JoinHandle::is_finished), "the stream has ended");
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// The stream broke, or a record of TCP was lost.
    pub fn stop(mut self) -> Result<()> {
        self.end().into_iter().collect()
    }

    fn end(&mut self) -> Vec<Result<()>> {
        self.counters.stop.store(true, Ordering::SeqCst);
        for socket in self.tcp.iter().flatten() {
            drop(SockRef::from(socket).shutdown(Shutdown::Both));
        }
        let name = self.name.clone();
        let join = |thread: JoinHandle<Result<()>>| {
            thread.join().map_err(|_| anyhow!("a thread panicked"))?.with_context(|| name.clone())
        };
        self.threads.drain(..).map(join).collect()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        drop(self.end());
    }
}

impl Counters {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn next(&self) -> [u8; RECORD] {
        (self.sent.fetch_add(1, Ordering::SeqCst) + 1).to_be_bytes()
    }

    fn came(&self, record: [u8; RECORD]) -> u64 {
        let number = u64::from_be_bytes(record);
        self.newest.fetch_max(number, Ordering::SeqCst);
        self.received.fetch_add(1, Ordering::SeqCst);
        number
    }

    fn write(&self, mut stream: TcpStream) -> Result<()> {
        while self.goes_on() {
            let written = stream.write_all(&self.next());
            if self.goes_on() {
                written.context("writing")?;
            }
            std::thread::sleep(PACE);
        }
        Ok(())
    }

    fn read(&self, mut stream: TcpStream) -> Result<()> {
        let mut record = [0; RECORD];
        let mut before = 0;
        while self.goes_on() {
            match stream.read_exact(&mut record) {
                Err(error) if self.goes_on() => return Err(error).context("reading"),
                Err(_) => break,
                Ok(()) => {
                    let number = self.came(record);
                    ensure!(number == before + 1, "record {number} came after {before}");
                    before = number;
                }
            }
        }
        Ok(())
    }

    fn send(&self, socket: &UdpSocket, to: SocketAddr) -> Result<()> {
        while self.goes_on() {
            match socket.send_to(&self.next(), to) {
                // An ICMP error about an earlier one; the next may pass.
                Err(error)
                    if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable) => {}
                sent => drop(sent.context("sending")?),
            }
            std::thread::sleep(PACE);
        }
        Ok(())
    }

    fn recv(&self, socket: &UdpSocket) -> Result<()> {
        let mut record = [0; RECORD];
        while self.goes_on() {
            match socket.recv(&mut record) {
                Ok(RECORD) => drop(self.came(record)),
                Ok(length) => bail!("a record of {length} bytes"),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error).context("receiving"),
            }
        }
        Ok(())
    }
}
