//! Raw Ethernet frames, to send what no honest stack would and to see what arrives (packet(7)).

use crate::lab::Namespace;
use anyhow::{Context as _, Result, anyhow, bail};
use etherparse::{IpFragOffset, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, PacketBuilder, ip_number};
use nix::sys::socket::{LinkAddr, MsgFlags, SockaddrLike as _};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

/// `ETH_P_ALL` in network order, as `socket(2)` takes it.
const ETH_P_ALL: i32 = 0x0300;

/// A packet socket of one namespace, sending on one interface.
#[derive(Debug)]
pub struct Frames {
    socket: Socket,
    device: LinkAddr,
}

impl Frames {
    /// Opens one; from now on every frame of the namespace is kept for [`Frames::seen`].
    ///
    /// # Errors
    /// There is no such interface.
    pub fn open(namespace: &Namespace, ifname: &str) -> Result<Self> {
        namespace.enter(|| Self::here(ifname))
    }

    /// [`Frames::open`] in the namespace of the calling thread.
    ///
    /// # Errors
    /// As there.
    pub fn here(ifname: &str) -> Result<Self> {
        let device = link_address(ifname)?;
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(ETH_P_ALL)))
            .context("opening a packet socket")?;
        socket.set_recv_buffer_size(4 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(5)))?;
        Ok(Self { socket, device })
    }

    /// MAC address of the interface.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.device.addr().unwrap_or_default()
    }

    /// Sends a frame, Ethernet header included.
    ///
    /// # Errors
    /// The interface is down or the frame too long.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = nix::sys::socket::sendto(self.socket.as_raw_fd(), frame, &self.device, MsgFlags::empty())?;
        if sent != frame.len() {
            bail!("{sent} of {} bytes sent", frame.len());
        }
        Ok(())
    }

    /// Reads all frames that wait, in and out, and says whether one holds `mark`.
    ///
    /// # Errors
    /// The socket fails.
    pub fn seen(&mut self, mark: &[u8]) -> Result<bool> {
        Ok(self.seen_any(&[mark])?.contains(&true))
    }

    /// Reads all frames that wait, in and out, and says of each mark whether one holds it.
    ///
    /// # Errors
    /// The socket fails.
    pub fn seen_any(&mut self, marks: &[&[u8]]) -> Result<Vec<bool>> {
        let mut seen = vec![false; marks.len()];
        self.each(|frame| {
            for (mark, seen) in marks.iter().zip(&mut seen) {
                *seen |= frame.windows(mark.len()).any(|window| window == *mark);
            }
        })?;
        Ok(seen)
    }

    /// Takes all frames that wait, in and out.
    ///
    /// # Errors
    /// The socket fails.
    pub fn waiting(&mut self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        self.each(|frame| frames.push(frame.to_vec()))?;
        Ok(frames)
    }

    /// Reads all frames that wait, in and out, and counts the IP packets from one of `sources`.
    ///
    /// # Errors
    /// The socket fails.
    pub fn count_from(&mut self, sources: &[IpAddr]) -> Result<u64> {
        let mut count = 0;
        self.each(|frame| count += u64::from(source(frame).is_some_and(|source| sources.contains(&source))))?;
        Ok(count)
    }

    fn each(&mut self, mut look: impl FnMut(&[u8])) -> Result<()> {
        let mut frame = vec![0; 1 << 17];
        loop {
            match self.socket.read(&mut frame) {
                Ok(length) => look(frame.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("reading frames"),
            }
        }
    }
}

/// Source address of an IP packet in an Ethernet frame.
fn source(frame: &[u8]) -> Option<IpAddr> {
    match frame.get(12..14)? {
        [0x08, 0x00] => Some(<[u8; 4]>::try_from(frame.get(26..30)?).ok()?.into()),
        [0x86, 0xdd] => Some(<[u8; 16]>::try_from(frame.get(22..38)?).ok()?.into()),
        _ => None,
    }
}

/// The `AF_PACKET` address of an interface of the calling thread's namespace.
fn link_address(ifname: &str) -> Result<LinkAddr> {
    nix::ifaddrs::getifaddrs()
        .context("listing interfaces")?
        .filter(|interface| interface.interface_name == ifname)
        .find_map(|interface| interface.address.and_then(|address| address.as_link_addr().copied()))
        .filter(|address| address.len() > 0)
        .ok_or_else(|| anyhow!("no interface {ifname} here"))
}

/// MAC address of a namespace's `eth0`.
///
/// # Errors
/// It has none.
pub fn eth0_mac(namespace: &Namespace) -> Result<[u8; 6]> {
    namespace.enter(|| link_address("eth0")?.addr().ok_or_else(|| anyhow!("eth0 has no MAC address")))
}

/// MAC address of a pod's gateway: what its neighbour table says of the next hop of its default route.
///
/// # Errors
/// It has no default route, or no neighbour entry for it.
pub fn gateway_mac(pod: &Namespace, v6: bool) -> Result<[u8; 6]> {
    let family = if v6 { "-6" } else { "-4" };
    let after = |text: &str, word: &str| {
        let mut words = text.split_whitespace().skip_while(|w| *w != word);
        words.nth(1).map(str::to_owned)
    };
    let routes = pod.ip(&format!("{family} route show default"))?;
    let gateway = after(&routes, "via").with_context(|| format!("no gateway in {routes:?}"))?;
    let entry = pod.ip(&format!("neighbour show {gateway}"))?;
    let text =
        after(&entry, "lladdr").with_context(|| format!("no MAC address of {gateway} in {entry:?}"))?;
    let mut mac = [0; 6];
    for (byte, digits) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(digits, 16)?;
    }
    Ok(mac)
}

/// A UDP datagram in an Ethernet frame, everything as said.
///
/// # Errors
/// The addresses are of two families.
pub fn udp_frame(
    macs: ([u8; 6], [u8; 6]),
    source: SocketAddr,
    destination: SocketAddr,
    payload: &[u8],
) -> Result<Vec<u8>> {
    let link = PacketBuilder::ethernet2(macs.0, macs.1);
    let builder = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
        _ => bail!("{source} and {destination} are of two families"),
    };
    let builder = builder.udp(source.port(), destination.port());
    let mut frame = Vec::with_capacity(builder.size(payload.len()));
    builder.write(&mut frame, payload)?;
    Ok(frame)
}

/// A UDP datagram in Ethernet frames of fragments (RFC 791 §3.2, RFC 8200 §4.5) with `size` bytes each, a
/// multiple of eight, behind the IP header, in order.
///
/// # Errors
/// As [`udp_frame`], or the identification does not fit into an IPv4 header.
pub fn udp_fragments(
    macs: ([u8; 6], [u8; 6]),
    ends: (SocketAddr, SocketAddr),
    id: u32,
    payload: &[u8],
    size: usize,
) -> Result<Vec<Vec<u8>>> {
    let whole = udp_frame(macs, ends.0, ends.1, payload)?;
    let Some((link, packet)) = whole.split_at_checked(14) else { bail!("no frame") };
    let mut frames = Vec::new();
    let v6 = ends.0.is_ipv6();
    let Some((header, body)) = packet.split_at_checked(if v6 { 40 } else { 20 }) else { bail!("no packet") };
    for (n, part) in body.chunks(size).enumerate() {
        let offset = u16::try_from(n * size / 8)?;
        let more = (n + 1) * size < body.len();
        let mut frame = link.to_vec();
        if v6 {
            let (mut ip, _) = Ipv6Header::from_slice(header)?;
            ip.payload_length = u16::try_from(8 + part.len())?;
            let next = std::mem::replace(&mut ip.next_header, ip_number::IPV6_FRAG);
            ip.write(&mut frame)?;
            let offset = IpFragOffset::try_new(offset)?;
            Ipv6FragmentHeader::new(next, offset, more, id).write(&mut frame)?;
        } else {
            let (mut ip, _) = Ipv4Header::from_slice(header)?;
            ip.set_payload_len(part.len())?;
            ip.identification = u16::try_from(id)?;
            (ip.fragment_offset, ip.more_fragments, ip.dont_fragment) =
                (IpFragOffset::try_new(offset)?, more, false);
            ip.header_checksum = ip.calc_header_checksum();
            ip.write(&mut frame)?;
        }
        frame.extend_from_slice(part);
        frames.push(frame);
    }
    Ok(frames)
}

/// An ARP request (RFC 826) that claims `sender` to be at `mac` and asks for `target`.
#[must_use]
pub fn arp_request(mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    // ARP over Ethernet, IPv4 addresses, lengths 6 and 4, operation 1.
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}
