//! Connections by the ten thousand, left idle and later asked whether they live; and floods of flows that
//! nobody answers.
//!
//! The sockets are held by processes (`netd-demo crowd …`, `netd-demo keep …`), because one may only have so
//! many files open. A process does what the lines on its standard input say, answers each with a line, and
//! ends with that input. A round is one byte written to each connection by the clients, read and given back by
//! the servers, then read by the clients: nothing waits on one connection while others could go on.

use crate::lab::{Namespace, helper};
use crate::wait;
use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a byte may be under way: so long that only one that is lost takes it.
const STUCK: Duration = Duration::from_secs(20);

/// Connections of one process. Files beside them must fit into the usual limits too.
const OF_ONE: u32 = 15_000;

/// A process that holds sockets.
#[derive(Debug)]
struct Holder {
    child: Child,
    /// None once it is told to end.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Holder {
    fn start(namespace: &Namespace, words: &[String]) -> Result<Self> {
        let mut command = Command::new(helper()?);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = namespace.spawn(&mut command)?;
        let answers = BufReader::new(child.stdout.take().context("no standard output")?);
        Ok(Self { orders: child.stdin.take(), child, answers })
    }

    fn tell(&mut self, order: &str) -> Result<()> {
        let orders = self.orders.as_mut().context("it is ending")?;
        writeln!(orders, "{order}").with_context(|| format!("telling {} to {order}", self.child.id()))
    }

    /// The number of connections that what it was told concerned.
    fn answer(&mut self) -> Result<u32> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        match line.trim_end().split_once(' ') {
            Some(("ok", count)) => Ok(count.parse()?),
            _ => bail!("process {}: {}", self.child.id(), line.trim_end()),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.orders.take());
        drop(self.child.wait());
    }
}

/// Tells all, then hears all; the sum of what they say.
fn together(holders: &mut [Holder], order: &str) -> Result<u32> {
    holders.iter_mut().try_for_each(|holder| holder.tell(order))?;
    holders.iter_mut().map(Holder::answer).sum()
}

/// A server that takes connections and keeps them. Ends when dropped.
#[derive(Debug)]
pub struct Keeper(Vec<Holder>);

impl Keeper {
    /// Listens in `namespace`, and has room for `count` connections.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(namespace: &Namespace, port: u16, count: u32) -> Result<Self> {
        // The kernel spreads connections by a hash: not quite evenly.
        let processes = count / (OF_ONE * 9 / 10) + 1;
        let words = ["keep".to_owned(), port.to_string()];
        let holders = (0..processes).map(|_| Holder::start(namespace, &words));
        let mut holders = holders.collect::<Result<Vec<_>>>()?;
        // The answer comes once it listens.
        together(&mut holders, "count")?;
        Ok(Self(holders))
    }

    /// Waits until it has so many connections.
    ///
    /// # Errors
    /// It has not by the deadline.
    pub fn wait_for(&mut self, count: u32) -> Result<()> {
        wait::holds(&format!("{count} connections to be accepted"), || {
            Ok(together(&mut self.0, "count")? >= count)
        })
    }

    /// Gives each connection one byte back that it has sent, or is about to; how many there were.
    ///
    /// # Errors
    /// One sends none.
    pub fn answer(&mut self) -> Result<u32> {
        together(&mut self.0, "answer")
    }
}

/// Connections from one namespace to a [`Keeper`]. Closed when dropped.
#[derive(Debug)]
pub struct Crowd {
    holders: Vec<Holder>,
    count: u32,
}

impl Crowd {
    /// Opens `count` connections.
    ///
    /// # Errors
    /// One cannot be opened.
    pub fn connect(from: &Namespace, target: SocketAddr, count: u32) -> Result<Self> {
        let processes = (count / OF_ONE + 1).max(2);
        let holders = (0..processes).map(|n| {
            let mine = count / processes + u32::from(n < count % processes);
            Holder::start(from, &["crowd".to_owned(), target.to_string(), mine.to_string()])
        });
        let mut holders = holders.collect::<Result<Vec<_>>>()?;
        let opened = together(&mut holders, "count")?;
        if opened != count {
            bail!("{opened} connections were opened, not {count}");
        }
        Ok(Self { holders, count })
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Sends `byte` on each connection.
    ///
    /// # Errors
    /// One is broken.
    pub fn say(&mut self, byte: u8) -> Result<u32> {
        together(&mut self.holders, &format!("say {byte}"))
    }

    /// Takes `byte` back on each connection.
    ///
    /// # Errors
    /// One gets none, or another.
    pub fn hear(&mut self, byte: u8) -> Result<u32> {
        together(&mut self.holders, &format!("hear {byte}"))
    }
}

/// What a process that holds sockets does: `crowd TARGET COUNT` or `keep PORT`.
///
/// # Errors
/// Its first step fails, or it cannot answer. The errors of later ones are answers.
pub fn hold(words: &[OsString]) -> Result<()> {
    let words: Vec<&str> = words.iter().filter_map(|word| word.to_str()).collect();
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let held = Arc::default();
    match words.as_slice() {
        ["crowd", target, count] => connect(&held, target.parse()?, count.parse()?)?,
        ["keep", port] => keep(&held, port.parse()?)?,
        _ => bail!("no such word: {words:?}"),
    }
    let mut answers = std::io::stdout();
    for order in std::io::stdin().lines() {
        match obey(&mut lock(&held), &order?) {
            Ok(count) => writeln!(answers, "ok {count}"),
            Err(error) => writeln!(answers, "{error:#}"),
        }
        .and_then(|()| answers.flush())?;
    }
    Ok(())
}

type Held = Arc<Mutex<Vec<TcpStream>>>;

fn connect(held: &Held, target: SocketAddr, count: u32) -> Result<()> {
    let mut held = lock(held);
    for n in 0..count {
        let stream = TcpStream::connect(target).with_context(|| format!("connection {n} to {target}"))?;
        stream.set_read_timeout(Some(STUCK))?;
        held.push(stream);
    }
    Ok(())
}

fn keep(held: &Held, port: u16) -> Result<()> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    // Several processes may listen.
    socket.set_reuse_port(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    // As many as `net.core.somaxconn` lets wait.
    socket.listen(i32::MAX)?;
    let (listener, held) = (TcpListener::from(socket), Arc::clone(held));
    let accept = move || {
        while let Ok((stream, _)) = listener.accept() {
            if stream.set_read_timeout(Some(STUCK)).is_ok() {
                lock(&held).push(stream);
            }
        }
    };
    // It ends with the process.
    std::thread::Builder::new().name("keep".into()).spawn(accept).map(drop).context("starting a thread")
}

fn obey(held: &mut [TcpStream], order: &str) -> Result<usize> {
    let (order, byte) = order.split_once(' ').unwrap_or((order, "0"));
    let byte: u8 = byte.parse()?;
    for stream in &mut *held {
        let ends = (stream.local_addr()?, stream.peer_addr());
        let context = || format!("{order} from {} to {:?}", ends.0, ends.1);
        let mut heard = [0];
        match order {
            "say" => stream.write_all(&[byte]).with_context(context)?,
            "hear" | "answer" => stream.read_exact(&mut heard).with_context(context)?,
            _ => {}
        }
        match order {
            "answer" => stream.write_all(&heard).with_context(context)?,
            "hear" if heard != [byte] => bail!("{}: {heard:?} for {byte}", context()),
            _ => {}
        }
    }
    Ok(held.len())
}

fn lock(held: &Held) -> MutexGuard<'_, Vec<TcpStream>> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends `count` datagrams from `from` to ports of `target`, each from another pair of ports: as many flows,
/// and no answer to any.
///
/// # Errors
/// The kernel refuses a datagram.
pub fn flood(from: &Namespace, target: IpAddr, count: u32) -> Result<()> {
    const LANES: u32 = 2;
    let lanes = (0..LANES).map(|lane| {
        let mine = count / LANES + u32::from(lane < count % LANES);
        from.spawn_thread("flood", move || send(target, mine))
    });
    for lane in lanes.collect::<Result<Vec<_>>>()? {
        lane.join().map_err(|_| anyhow!("a thread panicked"))??;
    }
    Ok(())
}

fn send(target: IpAddr, count: u32) -> Result<()> {
    let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    // Lower ones may have servers.
    let ports = || 10_000..=u16::MAX;
    let mut sockets = Vec::new();
    let mut left = count;
    while left > 0 {
        // Kept, so that the next one has another port.
        let socket = UdpSocket::bind((any, 0))?;
        for port in ports().take(usize::try_from(left)?) {
            socket.send_to(&[0], (target, port)).with_context(|| format!("to port {port} of {target}"))?;
            left -= 1;
        }
        sockets.push(socket);
    }
    Ok(())
}
