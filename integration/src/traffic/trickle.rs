//! Datagrams that never stop, whatever becomes of them, and counters of those that arrive: what a pod sends that
//! may not, and what waits for a pod that is not there yet.

use super::{Frames, udp_frame};
use crate::lab::Namespace;
use crate::wait;
use anyhow::{Context as _, Result, anyhow};
use socket2::{Domain, Socket, Type};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two datagrams that could be sent. One that could not be is tried again at once.
const PACE: Duration = Duration::from_micros(250);
/// How soon a counter sees that it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// Datagrams to some targets in turn, over and over, from one port: so each is of the same flow as ever. Ends when
/// dropped.
#[derive(Debug)]
pub struct Trickle {
    name: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    count: AtomicU64,
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Trickle {
    /// By sockets in `from`, which may have no interface yet.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(from: &Namespace, port: u16, targets: &[SocketAddr]) -> Result<Self> {
        let sockets = from.enter(|| Ok([bind(false, port)?, bind(true, port)?]))?;
        let targets = targets.to_vec();
        Self::spawn(from, move |shared| {
            let [v4, v6] = &sockets;
            while shared.goes_on() {
                for target in &targets {
                    let socket = if target.is_ipv4() { v4 } else { v6 };
                    // No route, no interface, an ICMP error: it is tried again.
                    if socket.send_to(b"trickle", target).is_ok() {
                        shared.count.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(PACE);
                    } else {
                        std::thread::yield_now();
                    }
                }
            }
            Ok(())
        })
    }

    /// By frames, from the instant at which there is an `eth0` in `from` that is up, whether it has addresses and
    /// routes yet or not; `sources` are the addresses it is to get.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn frames(from: &Namespace, port: u16, sources: &[IpAddr], targets: &[SocketAddr]) -> Result<Self> {
        let (sources, targets) = (sources.to_vec(), targets.to_vec());
        Self::spawn(from, move |shared| {
            let frames = loop {
                if !shared.goes_on() {
                    return Ok(());
                }
                match Frames::here("eth0") {
                    Ok(frames) => break frames,
                    Err(_) => std::thread::yield_now(),
                }
            };
            let mut made = Vec::new();
            for target in &targets {
                let source = sources.iter().find(|source| source.is_ipv4() == target.is_ipv4());
                let source = SocketAddr::new(*source.context("a source of that family")?, port);
                made.push(udp_frame((frames.mac(), netd::net::HOST_MAC), source, *target, b"trickle")?);
            }
            while shared.goes_on() {
                for frame in &made {
                    // The interface is down yet, or gone.
                    if frames.send(frame).is_ok() {
                        shared.count.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(PACE);
                    } else {
                        std::thread::yield_now();
                    }
                }
            }
            Ok(())
        })
    }

    fn spawn(from: &Namespace, body: impl FnOnce(&Shared) -> Result<()> + Send + 'static) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = from.spawn_thread("trickle", move || body(&theirs))?;
        Ok(Self { name: format!("datagrams from {}", from.name()), shared, thread: Some(thread) })
    }

    /// How many could be sent.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.shared.count()
    }

    /// Waits until `count` more were sent.
    ///
    /// # Errors
    /// They were not, by the deadline.
    pub fn more(&self, count: u64) -> Result<()> {
        let goal = self.sent() + count;
        wait::holds(&format!("{goal} {}", self.name), || Ok(self.sent() >= goal))
    }

    /// Ends it; how many were sent.
    ///
    /// # Errors
    /// Its thread failed.
    pub fn stop(mut self) -> Result<u64> {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("{}: the thread panicked", self.name))??;
        }
        Ok(self.sent())
    }
}

impl Drop for Trickle {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn bind(v6: bool, port: u16) -> Result<UdpSocket> {
    let (domain, any): (_, IpAddr) = if v6 {
        (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into())
    } else {
        (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into())
    };
    let socket = Socket::new(domain, Type::DGRAM, None)?;
    if v6 {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SocketAddr::new(any, port).into()).with_context(|| format!("taking port {port}"))?;
    Ok(socket.into())
}

/// Counts the datagrams that arrive at a port. Ends when dropped.
#[derive(Debug)]
pub struct Counter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Counter {
    /// Listens in `namespace`.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let socket = namespace.enter(|| Ok(UdpSocket::bind(any)?))?;
        socket.set_read_timeout(Some(LOOK))?;
        let shared = Arc::new(Shared::default());
        let mine = Arc::clone(&shared);
        let thread = namespace.spawn_thread("counter", move || {
            while mine.goes_on() {
                match socket.recv(&mut [0; 512]) {
                    Ok(_) => drop(mine.count.fetch_add(1, Ordering::Relaxed)),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(error) => return Err(error).context("counting datagrams"),
                }
            }
            Ok(())
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// How many came.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.shared.count()
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
