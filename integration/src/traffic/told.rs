//! What a socket is told of its packets: refusals, and ICMP errors from its error queue (ip(7), ipv6(7)).
//! The kernel tells a socket only what quotes a packet as that socket sent it.

use super::{PATIENCE, Proto};
use crate::lab::Namespace;
use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Socket, Type};
use std::io::{ErrorKind, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;

/// An ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Who sent it.
    pub from: IpAddr,
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
}

/// A connected UDP socket that keeps the ICMP errors it is told.
#[derive(Debug)]
pub struct Probe {
    socket: Socket,
}

impl Probe {
    /// Opens one; its datagrams live for `hops` hops, 0: as many as usual.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open(from: &Namespace, target: SocketAddr, hops: u32) -> Result<Self> {
        from.enter(|| {
            let socket = Socket::new(Domain::for_address(target), Type::DGRAM, None)?;
            if target.is_ipv4() {
                setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
                if hops != 0 {
                    socket.set_ttl_v4(hops)?;
                }
            } else {
                setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
                if hops != 0 {
                    socket.set_unicast_hops_v6(hops)?;
                }
            }
            socket.connect(&target.into()).with_context(|| format!("UDP to {target}"))?;
            Ok(Self { socket })
        })
    }

    /// Sends a datagram of `length` bytes; what the socket was told before does not matter.
    ///
    /// # Errors
    /// It is longer than what passes, as far as the kernel knows, or cannot be sent for another reason than
    /// an earlier error.
    pub fn send(&self, length: usize) -> Result<()> {
        match self.socket.send(&vec![b'x'; length]) {
            Ok(sent) if sent == length => Ok(()),
            Ok(sent) => bail!("{sent} of {length} bytes sent"),
            // An earlier error, told now and forgotten then.
            Err(error)
                if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable) =>
            {
                Ok(())
            }
            Err(error) => Err(error).with_context(|| format!("sending {length} bytes")),
        }
    }

    /// The next ICMP error, if there is one.
    ///
    /// # Errors
    /// The socket fails.
    pub fn told(&self) -> Result<Option<Told>> {
        let mut payload = [0; 2048];
        let mut slices = [IoSliceMut::new(&mut payload)];
        let mut control = vec![0; 512];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message =
            match recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut slices, Some(&mut control), flags)
            {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(errno) => return Err(errno).context("reading the error queue"),
            };
        for part in message.cmsgs()? {
            let (error, from) = match part {
                ControlMessageOwned::Ipv4RecvErr(error, Some(from)) => {
                    (error, Ipv4Addr::from(from.sin_addr.s_addr.to_ne_bytes()).into())
                }
                ControlMessageOwned::Ipv6RecvErr(error, Some(from)) => {
                    (error, Ipv6Addr::from(from.sin6_addr.s6_addr).into())
                }
                _ => continue,
            };
            return Ok(Some(Told { from, kind: error.ee_type, code: error.ee_code }));
        }
        bail!("an error without its cause: {message:?}")
    }
}

/// Talks to `target` once and demands that it is refused: not left without an answer.
///
/// # Errors
/// It was accepted, or not answered, or failed otherwise.
pub fn refused(from: &Namespace, proto: Proto, target: SocketAddr) -> Result<()> {
    let result = from.enter(|| match proto {
        Proto::Tcp => Ok(TcpStream::connect_timeout(&target, PATIENCE).map(drop)),
        Proto::Udp => {
            let any: IpAddr =
                if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(target)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send(b"anybody?\n")?;
            Ok(socket.recv(&mut [0; 512]).map(drop))
        }
    })?;
    match result {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{proto} to {target} is not refused")),
        Ok(()) => bail!("{proto} to {target} is answered, not refused"),
    }
}
