//! How long the packets may be that a namespace leaves to its device to cut (BIG TCP): by rtnetlink, as the `ip`
//! of Debian 12 does not know the IPv4 one.

use super::Namespace;
use anyhow::{Context as _, Result, ensure};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use std::os::fd::{AsRawFd as _, OwnedFd};

const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
/// `nlmsghdr` and `ifinfomsg`, and where the message of an attribute begins.
const HEADERS: usize = 16 + 16;
const ATTRIBUTE: usize = 4;

/// `IFLA_GSO_MAX_SIZE`: IPv6, and before Linux 6.3 nothing else.
const ALL: u16 = 41;
/// `IFLA_GSO_IPV4_MAX_SIZE` (Linux 6.3).
const IPV4: u16 = 63;

/// Lets an interface have packets of so many bytes; false if this kernel has no such setting for IPv4.
///
/// # Errors
/// The kernel refuses.
pub fn allow_big_tcp(namespace: &Namespace, interface: &str, most: u32) -> Result<bool> {
    namespace.enter(|| {
        let index = i32::try_from(if_nametoindex(interface)?)?;
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        let attributes = [ALL, IPV4].map(|kind| (kind, most));
        let done = ask(&socket, NEW_LINK, ACK, index, &attributes)?;
        let error = done.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
        ensure!(error == Some(0), "the sizes of {interface}: {error:?}");
        let link = ask(&socket, GET_LINK, 0, index, &[])?;
        ensure!(value(&link, ALL) == Some(most), "{interface} has not taken its size");
        Ok(value(&link, IPV4) == Some(most))
    })
}

/// One message and its answer.
fn ask(socket: &OwnedFd, message: u16, flags: u16, index: i32, attributes: &[(u16, u32)]) -> Result<Vec<u8>> {
    let length = HEADERS + attributes.len() * (ATTRIBUTE + 4);
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length)?.to_ne_bytes());
    bytes.extend(message.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]);
    // `ifinfomsg`: of any family and type.
    bytes.extend([0; 4]);
    bytes.extend(index.to_ne_bytes());
    bytes.extend([0; 8]);
    for (kind, value) in attributes {
        bytes.extend(u16::try_from(ATTRIBUTE + 4)?.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value.to_ne_bytes());
    }
    let sent = send(socket.as_raw_fd(), &bytes, MsgFlags::empty()).context("asking rtnetlink")?;
    ensure!(sent == bytes.len(), "{sent} of {} bytes sent", bytes.len());
    let mut answer = vec![0; 32_768];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).context("rtnetlink's answer")?;
    answer.truncate(length);
    Ok(answer)
}

/// A number among the attributes of a link.
fn value(link: &[u8], wanted: u16) -> Option<u32> {
    let mut rest = link.get(HEADERS..)?;
    loop {
        let half = |at: usize| Some(u16::from_ne_bytes(rest.get(at..at + 2)?.try_into().ok()?));
        let (length, kind) = (usize::from(half(0)?), half(2)?);
        if kind == wanted {
            return Some(u32::from_ne_bytes(rest.get(ATTRIBUTE..ATTRIBUTE + 4)?.try_into().ok()?));
        }
        rest = rest.get(length.max(ATTRIBUTE).next_multiple_of(4)..)?;
    }
}
