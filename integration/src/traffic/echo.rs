//! Servers that answer with their pod's name.
//!
//! Three kinds of thread: one accepts TCP (ended by `shutdown` of the listener), one per connection, one for
//! UDP (ended by a flag it looks at after each receive time-out). Both sockets are dual stack.

use crate::lab::Namespace;
use anyhow::{Context as _, Result};
use socket2::SockRef;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How soon a thread sees the flag.
const LOOK: Duration = Duration::from_millis(100);

/// A TCP and a UDP server on one port. Ends when dropped.
#[derive(Debug)]
pub struct Echo {
    listener: TcpListener,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    stop: AtomicBool,
    answered: AtomicU64,
}

impl Echo {
    /// Starts both servers in `namespace`.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(namespace: &Namespace, name: &str, port: u16) -> Result<Self> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let (listener, socket) = namespace
            .enter(|| Ok((TcpListener::bind(any)?, UdpSocket::bind(any)?)))
            .with_context(|| format!("serving port {port} in {}", namespace.name()))?;
        let shared =
            Arc::new(Shared { name: name.into(), stop: AtomicBool::new(false), answered: AtomicU64::new(0) });
        socket.set_read_timeout(Some(LOOK))?;
        let accepting = listener.try_clone()?;
        let (for_tcp, for_udp) = (Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            thread("echo-accept", move || accept(&accepting, &for_tcp))?,
            thread("echo-udp", move || datagrams(&socket, &for_udp))?,
        ];
        Ok(Self { listener, shared, threads })
    }

    /// Requests answered so far.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes accept(2), which then says EINVAL.
        drop(SockRef::from(&self.listener).shutdown(Shutdown::Both));
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.into())
        .stack_size(128 * 1024)
        .spawn(body)
        .with_context(|| format!("starting the thread {name}"))
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while !shared.stop.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else { continue };
        let shared = Arc::clone(shared);
        // A client that is not served notices; there is nobody else to tell.
        drop(thread("echo-tcp", move || drop(serve(stream, &shared))));
    }
}

fn serve(stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LOOK))?;
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while !shared.stop.load(Ordering::Relaxed) {
        match stream.read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) if line.ends_with(b"\n") => {
                let mut answer = format!("{} ", shared.name).into_bytes();
                answer.append(&mut line);
                stream.get_mut().write_all(&answer)?;
                shared.answered.fetch_add(1, Ordering::Relaxed);
            }
            // What came before the time-out stays in `line`.
            Ok(_) => {}
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn datagrams(socket: &UdpSocket, shared: &Shared) {
    let mut datagram = vec![0; 1 << 16];
    while !shared.stop.load(Ordering::Relaxed) {
        // A time-out, or an ICMP error about an earlier answer.
        let Ok((length, from)) = socket.recv_from(&mut datagram) else { continue };
        let mut answer = format!("{} ", shared.name).into_bytes();
        answer.extend_from_slice(datagram.get(..length).unwrap_or_default());
        if socket.send_to(&answer, from).is_ok() {
            shared.answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}
