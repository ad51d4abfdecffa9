//! What is asked of every subject: one client thread, one server, plain blocking sockets.
//!
//! Both sides are in their pods' namespaces and come before everything else on their CPU. With a CPU each, what
//! is measured is mostly how one wakes the other; on one CPU it is what the way between them costs. The first byte
//! of a connection says what it is for:
//!
//! | load | a connection | unit |
//! |---|---|---|
//! | [`Load::Requests`] | 64 bytes there, 64 back, over and over | answers per second |
//! | [`Load::Connections`] | connect, 64 bytes there, 64 back, the server closes, then the client | connections per second |
//! | [`Load::Stream`] | as many bytes as go | Gbit/s, counted by the server |

use anyhow::{Context as _, Result, anyhow, bail};
use netd_integration::lab::{Namespace, chrt};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, gettid};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where a server listens: its pod stands for four endpoints.
pub(crate) const PORTS: [u16; 4] = [8080, 8081, 8082, 8083];

/// Length of a request and of an answer, in bytes.
const MESSAGE: usize = 64;
/// Length of a write and a read of a stream, in bytes.
const CHUNK: usize = 256 * 1024;
/// Unmeasured requests at the start of a slice.
const WARM_UP: u32 = 50;
/// Share of a slice that is left to others after it: the load comes before everything else.
const REST: u32 = 20;
/// Nothing on one machine takes this long: a lost packet is repaired by TCP within it.
const STUCK: Duration = Duration::from_secs(10);

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    Requests,
    Connections,
    Stream,
}

impl Load {
    pub(crate) const ALL: [Self; 3] = [Self::Requests, Self::Connections, Self::Stream];

    /// Name of the metric.
    pub(crate) const fn metric(self) -> &'static str {
        match self {
            Self::Requests => "request/response",
            Self::Connections => "connect/request/close",
            Self::Stream => "one stream",
        }
    }

    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Requests | Self::Connections => "1/s",
            Self::Stream => "Gbit/s",
        }
    }

    const fn first_byte(self) -> u8 {
        match self {
            Self::Requests => b'r',
            Self::Connections => b'c',
            Self::Stream => b's',
        }
    }
}

/// Where both sides run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpus {
    client: usize,
    pub(crate) server: usize,
}

/// Where the client runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// For the table.
    pub(crate) name: &'static str,
    cpu: usize,
}

impl Cpus {
    /// The first two that this process may use; one for both if there is but one.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub(crate) fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("asking for this process's CPUs")?;
        let mut usable = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap_or(false));
        let client = usable.next().context("no CPU")?;
        Ok(Self { client, server: usable.next().unwrap_or(client) })
    }

    /// On the server's CPU.
    pub(crate) const fn together(self) -> Place {
        Place { name: "one CPU", cpu: self.server }
    }

    /// On one of its own, if there is one, and on the server's.
    pub(crate) fn places(self) -> Vec<Place> {
        let apart = Place { name: "two CPUs", cpu: self.client };
        [apart, self.together()]
            .into_iter()
            .filter(|place| place.name == "one CPU" || self.client != self.server)
            .collect()
    }
}

/// Moves the calling thread to a CPU, where it comes before everything else (`SCHED_FIFO`): on a busy machine
/// an answer would otherwise wait for others' turns, which are a hundred times as long as it takes.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("moving to CPU {cpu}"))?;
    chrt(&["--fifo", "--pid", "1"], gettid())
}

/// A server at [`PORTS`] of a namespace. Ends when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    ports: Vec<(TcpListener, Arc<AtomicU64>)>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Server {
    /// Listens, one thread to a port.
    ///
    /// # Errors
    /// A port is taken.
    pub(crate) fn start(namespace: &Namespace, cpus: Cpus) -> Result<Self> {
        let mut server = Self { ports: Vec::new(), threads: Vec::new() };
        for port in PORTS {
            let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            let listener = namespace.enter(|| Ok(TcpListener::bind(any)?))?;
            let (accepting, taken) = (listener.try_clone()?, Arc::new(AtomicU64::new(0)));
            let count = Arc::clone(&taken);
            server.threads.push(namespace.spawn_thread("server", move || {
                pin(cpus.server)?;
                accept(&accepting, &count)
            })?);
            server.ports.push((listener, taken));
        }
        Ok(server)
    }

    /// Connections taken so far, by port.
    pub(crate) fn taken(&self) -> Vec<u64> {
        self.ports.iter().map(|(_, taken)| taken.load(Ordering::Relaxed)).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for (listener, _) in &self.ports {
            // Wakes accept(2), which then says EINVAL.
            drop(socket2::SockRef::from(listener).shutdown(Shutdown::Both));
        }
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn accept(listener: &TcpListener, taken: &AtomicU64) -> Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::InvalidInput => return Ok(()),
            Err(error) => return Err(error).context("accepting"),
        };
        taken.fetch_add(1, Ordering::Relaxed);
        // What goes wrong here goes wrong at the client too, which tells.
        drop(serve(stream, &mut chunk));
    }
}

fn serve(mut stream: TcpStream, chunk: &mut [u8]) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    stream.read_exact(&mut message)?;
    match message {
        [b'r', ..] => loop {
            stream.write_all(&message)?;
            stream.read_exact(&mut message)?;
        },
        [b'c', ..] => Ok(stream.write_all(&message)?),
        _ => {
            let mut total: u64 = 0;
            loop {
                match stream.read(chunk)? {
                    0 => break,
                    n => total += u64::try_from(n)?,
                }
            }
            Ok(stream.write_all(&total.to_be_bytes())?)
        }
    }
}

/// Puts a load on `targets` (connections take turns) from `client` for a while; how much was done per second.
///
/// # Errors
/// A connection is refused, breaks or is stuck.
pub(crate) fn measure(
    client: &Namespace,
    targets: &[SocketAddr],
    load: Load,
    slice: Duration,
    place: Place,
) -> Result<f64> {
    let targets = targets.to_vec();
    let body = move || {
        pin(place.cpu)?;
        let mut turns = targets.iter().copied().cycle();
        let mut next = || turns.next().context("no target");
        match load {
            Load::Requests => requests(next()?, slice),
            Load::Connections => connections(next, slice),
            Load::Stream => stream(next()?, slice),
        }
    };
    let thread = client.spawn_thread("client", body)?;
    let measured = thread.join().map_err(|_| anyhow!("the client panicked"))?;
    std::thread::sleep(slice / REST);
    measured.with_context(|| format!("{} from {}", load.metric(), client.name()))
}

fn open(target: SocketAddr, load: Load) -> Result<(TcpStream, [u8; MESSAGE])> {
    let stream = TcpStream::connect(target).with_context(|| format!("connecting to {target}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STUCK))?;
    let mut message = [0; MESSAGE];
    message[0] = load.first_byte();
    Ok((stream, message))
}

fn requests(target: SocketAddr, slice: Duration) -> Result<f64> {
    let (mut stream, mut message) = open(target, Load::Requests)?;
    let mut ask = || -> Result<()> {
        stream.write_all(&message)?;
        Ok(stream.read_exact(&mut message)?)
    };
    for _ in 0..WARM_UP {
        ask()?;
    }
    per_second(slice, ask)
}

fn connections(mut next: impl FnMut() -> Result<SocketAddr>, slice: Duration) -> Result<f64> {
    per_second(slice, || {
        let (mut stream, mut message) = open(next()?, Load::Connections)?;
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        match stream.read(&mut message)? {
            0 => Ok(()),
            n => bail!("{n} bytes more than asked for"),
        }
    })
}

fn per_second(slice: Duration, mut act: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    let mut done: u32 = 0;
    loop {
        act()?;
        done += 1;
        let elapsed = start.elapsed();
        if elapsed >= slice {
            return Ok(f64::from(done) / elapsed.as_secs_f64());
        }
    }
}

fn stream(target: SocketAddr, slice: Duration) -> Result<f64> {
    let (mut stream, message) = open(target, Load::Stream)?;
    stream.write_all(&message)?;
    let chunk = vec![0; CHUNK];
    let start = Instant::now();
    while start.elapsed() < slice {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total).context("waiting for the server's count")?;
    let bits = u64::from_be_bytes(total) as f64 * 8.0;
    Ok(bits / start.elapsed().as_secs_f64() / 1e9)
}
