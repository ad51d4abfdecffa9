//! What pods say to each other.
//!
//! The protocol is one line each way, over TCP or in UDP datagrams: a request is any line, the answer is the
//! name of the server's pod, a blank, and the request again. So an answer tells who answered, and a late
//! answer to an earlier request is not taken for the current one. Nothing is ever sent twice: a lost packet
//! that TCP does not repair by itself is a failed request.

mod bulk;
mod crowd;
mod echo;
mod frames;
mod load;
mod stream;
mod survey;
mod told;
mod trickle;

pub use bulk::{Sink, send_bulk};
pub use crowd::{Crowd, Keeper, flood, hold};
pub use echo::Echo;
pub use frames::{Frames, arp_request, eth0_mac, gateway_mac, udp_fragments, udp_frame};
pub use load::{Load, Style, Tally};
pub use stream::Stream;
pub use survey::{Answer, Question, agree, expect, once, reached, settled};
pub use told::{Probe, Told, refused};
pub use trickle::{Counter, Trickle};

use crate::lab::Namespace;
use crate::wait;
use anyhow::{Context as _, Result, anyhow, bail};
use socket2::{Domain, Socket, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// How long a request may take before it counts as failed. TCP repairs a loss within it several times.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proto {
    /// A byte stream.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Proto {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// One flow to a server, usable on the thread of any namespace once connected.
#[derive(Debug)]
pub struct Flow {
    target: SocketAddr,
    socket: FlowSocket,
    asked: u64,
}

#[derive(Debug)]
enum FlowSocket {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
}

impl Flow {
    /// Connects from the namespace of the calling thread.
    ///
    /// # Errors
    /// Refused, unreachable or timed out.
    pub fn open(proto: Proto, target: SocketAddr) -> Result<Self> {
        Self::open_from(0, proto, target)
    }

    /// [`Flow::open`] from a given local port, 0: any.
    ///
    /// # Errors
    /// As [`Flow::open`], or the port is taken.
    pub fn open_from(port: u16, proto: Proto, target: SocketAddr) -> Result<Self> {
        let socket = Self::connect(port, proto, target).with_context(|| format!("{proto} to {target}"))?;
        Ok(Self { target, socket, asked: 0 })
    }

    fn connect(port: u16, proto: Proto, target: SocketAddr) -> Result<FlowSocket> {
        let kind = match proto {
            Proto::Tcp => Type::STREAM,
            Proto::Udp => Type::DGRAM,
        };
        let socket = Socket::new(Domain::for_address(target), kind, None)?;
        if port != 0 {
            // Also after an earlier flow from it that is not quite over.
            socket.set_reuse_address(true)?;
            let any: IpAddr =
                if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            socket.bind(&SocketAddr::new(any, port).into())?;
        }
        socket.connect_timeout(&target.into(), PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(match proto {
            Proto::Tcp => {
                socket.set_tcp_nodelay(true)?;
                FlowSocket::Tcp(BufReader::new(socket.into()))
            }
            Proto::Udp => FlowSocket::Udp(socket.into()),
        })
    }

    /// Asks once; the name of who answered.
    ///
    /// # Errors
    /// No answer in time, a reset, or an answer to something else.
    pub fn ask(&mut self) -> Result<String> {
        self.say()?;
        self.hear()
    }

    /// Sends the next question and does not wait for the answer.
    ///
    /// # Errors
    /// The flow is broken.
    pub fn say(&mut self) -> Result<()> {
        self.asked += 1;
        let question = format!("{}\n", self.asked);
        let target = self.target;
        match &mut self.socket {
            FlowSocket::Tcp(stream) => {
                stream.get_mut().write_all(question.as_bytes()).with_context(|| format!("TCP to {target}"))
            }
            FlowSocket::Udp(socket) => {
                socket.send(question.as_bytes()).map(drop).with_context(|| format!("UDP to {target}"))
            }
        }
    }

    /// Waits for the answer to the newest question; the name of who gave it.
    ///
    /// # Errors
    /// As [`Flow::ask`].
    pub fn hear(&mut self) -> Result<String> {
        let target = self.target;
        let answer = match &mut self.socket {
            FlowSocket::Tcp(stream) => {
                let mut line = String::new();
                if stream.read_line(&mut line).with_context(|| format!("TCP to {target}"))? == 0 {
                    bail!("TCP to {target}: closed by the other side");
                }
                line
            }
            FlowSocket::Udp(socket) => {
                let mut datagram = [0; 512];
                let length = socket.recv(&mut datagram).with_context(|| format!("UDP to {target}"))?;
                String::from_utf8_lossy(datagram.get(..length).unwrap_or_default()).into_owned()
            }
        };
        let (name, echoed) = answer
            .trim_end()
            .split_once(' ')
            .ok_or_else(|| anyhow!("{target} answered {answer:?}: not an echo"))?;
        if echoed != self.asked.to_string() {
            bail!("{target} answered {answer:?} to question {}", self.asked);
        }
        Ok(name.to_owned())
    }

    /// Sends one datagram of a UDP flow and gives what comes back behind the name of who answered.
    ///
    /// # Errors
    /// Not UDP, no answer in time, or one without a name.
    pub fn exchange(&mut self, payload: &[u8]) -> Result<(String, Vec<u8>)> {
        let FlowSocket::Udp(socket) = &self.socket else { bail!("datagrams are UDP's") };
        let context = || format!("{} bytes by UDP to {}", payload.len(), self.target);
        socket.send(payload).with_context(context)?;
        self.answer().with_context(context)
    }

    /// The next datagram of a UDP flow that comes in: who sent it, and what is behind that name.
    ///
    /// # Errors
    /// As [`Flow::exchange`].
    pub fn answer(&self) -> Result<(String, Vec<u8>)> {
        let FlowSocket::Udp(socket) = &self.socket else { bail!("datagrams are UDP's") };
        let mut datagram = vec![0; 1 << 16];
        let length = socket.recv(&mut datagram)?;
        datagram.truncate(length);
        let blank = datagram.iter().position(|byte| *byte == b' ').context("not an echo")?;
        let payload = datagram.split_off(blank + 1);
        Ok((String::from_utf8_lossy(&datagram).trim_end().to_owned(), payload))
    }

    /// Where it was opened to.
    #[must_use]
    pub fn target(&self) -> SocketAddr {
        self.target
    }

    /// By what.
    #[must_use]
    pub fn proto(&self) -> Proto {
        match self.socket {
            FlowSocket::Tcp(_) => Proto::Tcp,
            FlowSocket::Udp(_) => Proto::Udp,
        }
    }

    /// The local address of the flow.
    ///
    /// # Errors
    /// The socket does not tell.
    pub fn local(&self) -> Result<SocketAddr> {
        Ok(match &self.socket {
            FlowSocket::Tcp(stream) => stream.get_ref().local_addr()?,
            FlowSocket::Udp(socket) => socket.local_addr()?,
        })
    }
}

/// Opens a flow from `from`.
///
/// # Errors
/// As [`Flow::open`].
pub fn open(from: &Namespace, proto: Proto, target: SocketAddr) -> Result<Flow> {
    from.enter(|| Flow::open(proto, target)).with_context(|| format!("from {}", from.name()))
}

/// Asks once over a new flow; who answered.
///
/// # Errors
/// As [`Flow::open`] and [`Flow::ask`].
pub fn ask(from: &Namespace, proto: Proto, target: SocketAddr) -> Result<String> {
    from.enter(|| Flow::open(proto, target)?.ask()).with_context(|| format!("from {}", from.name()))
}

/// Asks `count` times over as many new flows, four at a time; how often each answered.
///
/// # Errors
/// The first failure.
pub fn shares(
    from: &Namespace,
    proto: Proto,
    target: SocketAddr,
    count: u32,
) -> Result<BTreeMap<String, u32>> {
    const LANES: u32 = 4;
    let mut lanes = Vec::new();
    for lane in 0..LANES {
        let mine = count / LANES + u32::from(lane < count % LANES);
        lanes.push(from.spawn_thread("shares", move || {
            let mut tally = BTreeMap::new();
            for _ in 0..mine {
                *tally.entry(Flow::open(proto, target)?.ask()?).or_insert(0) += 1;
            }
            Ok::<_, anyhow::Error>(tally)
        })?);
    }
    let mut tally = BTreeMap::new();
    for lane in lanes {
        let part = lane.join().map_err(|_| anyhow!("a thread panicked"))??;
        for (name, n) in part {
            *tally.entry(name).or_insert(0) += n;
        }
    }
    Ok(tally)
}

/// Waits until exactly `names` answer at `target`.
///
/// # Errors
/// Others do, or not all of them, until the deadline.
pub fn answering(from: &Namespace, proto: Proto, target: SocketAddr, names: &[&str]) -> Result<()> {
    let names: BTreeSet<&str> = names.iter().copied().collect();
    // With three servers one is missed once in a hundred million times.
    let count = 16 * u32::try_from(names.len())?;
    wait::holds(&format!("{names:?} to answer {proto} at {target}"), || {
        let shares = shares(from, proto, target, count)?;
        Ok(shares.keys().map(String::as_str).eq(names.iter().copied()))
    })
}

/// One ICMP echo by the system's `ping`; its summary line.
///
/// # Errors
/// No reply.
pub fn ping(from: &Namespace, target: IpAddr) -> Result<String> {
    let text = from.run(&format!("ping -n -c 1 -W 3 {target}"))?;
    let line = text.lines().find(|line| line.contains("time=")).unwrap_or_default();
    Ok(line.to_owned())
}
