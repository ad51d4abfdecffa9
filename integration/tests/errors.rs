//! What pods are told when something is wrong beyond a Service: refusals, ICMP errors, path MTU. And what
//! passes a Service unharmed.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use netd_integration::lab::{Lab, Namespace};
use netd_integration::node::{Node, PORT, Server};
use netd_integration::site::{Site, VIP_PORT, VIPS, at};
use netd_integration::state::Port;
use netd_integration::traffic::{self, Flow, Frames, Probe, Proto, Sink, Told};
use netd_integration::wait;
use nix::sys::socket::{setsockopt, sockopt};
use std::net::{IpAddr, SocketAddr, UdpSocket};

/// Where nobody listens.
const DISCARD: u16 = 9;
/// Where a [`Sink`] listens.
const SINK: u16 = 9000;
/// Bytes of a transfer, more than any window.
const BULK: u64 = 16_000_000;

/// The Service with these endpoints at `target`.
fn serve(site: &Site<'_>, target: u16, endpoints: &[IpAddr]) -> Result<()> {
    site.state.slices("web", target, endpoints)?;
    site.state.service("web", &VIPS, Port { target, ..VIP_PORT }, &[])
}

/// Waits until the Service refuses.
fn refuses(from: &Namespace) -> Result<()> {
    for socket in VIPS.map(at) {
        for proto in Proto::ALL {
            wait::holds("the Service to refuse", || Ok(traffic::refused(from, proto, socket).is_ok()))?;
        }
    }
    Ok(())
}

/// Waits until the Service answers, and by whom.
fn answers(from: &Namespace, name: &str) -> Result<()> {
    for socket in VIPS.map(at) {
        for proto in Proto::ALL {
            wait::holds("the Service to answer", || {
                Ok(traffic::ask(from, proto, socket).is_ok_and(|who| who == name))
            })?;
        }
    }
    Ok(())
}

#[test]
fn an_empty_service_refuses_at_once() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let node = site.node("a")?;
        let client = node.add_pod("client")?;
        let server = node.add_server("server")?;
        serve(&site, PORT, &[])?;
        refuses(&client.netns)?;
        // From now on at the first try, each of them.
        for _ in 0..20 {
            for socket in VIPS.map(at) {
                for proto in Proto::ALL {
                    traffic::refused(&client.netns, proto, socket)?;
                }
            }
        }
        // More than a packet: one that the pod's kernel cuts into fragments, one that is left to the
        // hardware to cut into datagrams.
        for socket in VIPS.map(at) {
            for segment in [0, 1400] {
                let error = client.netns.enter(|| {
                    let local = if socket.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let udp = UdpSocket::bind(local)?;
                    if segment != 0 {
                        setsockopt(&udp, sockopt::UdpGsoSegment, &segment)?;
                    }
                    udp.connect(socket)?;
                    udp.set_read_timeout(Some(traffic::PATIENCE))?;
                    udp.send(&[7; 14_000])?;
                    Ok(udp.recv(&mut [0; 16]).err().map(|error| error.kind()))
                })?;
                ensure!(
                    error == Some(std::io::ErrorKind::ConnectionRefused),
                    "{socket} in segments of {segment}: {error:?}"
                );
            }
        }
        // It is told as what it is.
        let no_backend = ("reason", "no_backend");
        wait::holds("the refusals to be counted", || {
            Ok(node.metric("netd_drops_total", &[no_backend])? >= 80.0)
        })?;
        let drops = node.api_json("/v1/drops?limit=512")?.to_string();
        ensure!(drops.contains("no_backend") && drops.contains("client"), "{drops}");
        ensure!(node.metric("netd_packets_total", &[("path", "reject")])? >= 80.0, "no path of their own");
        // With an endpoint it answers, without it refuses again: also a socket that was answered before.
        serve(&site, PORT, &server.pod.addresses)?;
        answers(&client.netns, "server")?;
        let mut flows = Vec::new();
        for socket in VIPS.map(at) {
            let mut flow = traffic::open(&client.netns, Proto::Udp, socket)?;
            ensure!(flow.ask()? == "server");
            flows.push(flow);
        }
        serve(&site, PORT, &[])?;
        refuses(&client.netns)?;
        for mut flow in flows {
            let error = flow.ask().err().context("answered by nobody's endpoint")?;
            ensure!(format!("{error:#}").contains("refused"), "{error:#}");
        }
        Ok(())
    })
}

/// Sends until the socket is told something.
fn told(probe: &Probe) -> Result<Told> {
    wait::until("an ICMP error", || {
        probe.send(32)?;
        probe.told()
    })
}

#[test]
fn a_closed_port_behind_a_service_refuses() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let client = site.node("a")?.add_pod("client")?;
        for name in ["a", "b", "c"] {
            let server = site.node(name)?.add_server(&format!("{name}1"))?;
            // That the change has arrived is seen where somebody listens.
            serve(&site, PORT, &server.pod.addresses)?;
            answers(&client.netns, &server.pod.name)?;
            serve(&site, DISCARD, &server.pod.addresses)?;
            refuses(&client.netns)?;
            for socket in VIPS.map(at) {
                let said = told(&Probe::open(&client.netns, socket, 0)?)?;
                let (kind, code) = if socket.is_ipv4() { (3, 3) } else { (1, 4) };
                ensure!(said == Told { from: socket.ip(), kind, code }, "{name}: {said:?}");
            }
        }
        // A pod that is its own closed port.
        serve(&site, DISCARD, &client.addresses)?;
        for socket in VIPS.map(at) {
            wait::holds("the pod's own port to be the endpoint", || {
                let own = site.node("a")?.metric("netd_packets_total", &[("path", "reject")])?;
                ensure!(own.abs() < 1e-9, "the Service was empty for a while");
                Ok(traffic::refused(&client.netns, Proto::Udp, socket).is_ok())
            })?;
            let said = told(&Probe::open(&client.netns, socket, 0)?)?;
            ensure!(said.from == socket.ip(), "{said:?}");
        }
        Ok(())
    })
}

#[test]
fn hops_on_the_way_to_a_service_name_themselves() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let client = site.node("a")?.add_pod("client")?;
        let server = site.node("c")?.add_server("server")?;
        serve(&site, PORT, &server.pod.addresses)?;
        answers(&client.netns, "server")?;
        let hops = [["10.1.0.11", "10.1.0.1", "10.2.0.13"], ["fd01::11", "fd01::1", "fd02::13"]];
        for (socket, hops) in VIPS.map(at).into_iter().zip(hops) {
            for (ttl, name) in (1..).zip(hops) {
                let said = told(&Probe::open(&client.netns, socket, ttl)?)
                    .with_context(|| format!("{ttl} hops to {socket}"))?;
                let kind = if socket.is_ipv4() { 11 } else { 3 };
                ensure!(said == Told { from: name.parse()?, kind, code: 0 }, "{ttl} hops: {said:?}");
            }
        }
        Ok(())
    })
}

/// The MTU of the path to an address, as the kernel has learned it.
fn learned(pod: &Namespace, target: IpAddr) -> Result<Option<u32>> {
    let route = pod.ip(&format!("route get {target}"))?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "mtu");
    Ok(words.nth(1).and_then(|mtu| mtu.parse().ok()))
}

/// Sends by UDP until the path's MTU is known, and what is longer then arrives in fragments.
fn learns(pod: &Namespace, server: &Server, target: SocketAddr, mtu: u32) -> Result<()> {
    let probe = Probe::open(pod, target, 0)?;
    wait::holds(&format!("{} to learn the MTU to {target}", pod.name()), || {
        probe.send(1430)?;
        Ok(learned(pod, target.ip())? == Some(mtu))
    })?;
    let said = probe.told()?.context("the socket was told nothing")?;
    let (kind, code) = if target.is_ipv4() { (3, 4) } else { (2, 0) };
    ensure!((said.kind, said.code) == (kind, code), "{said:?}");
    let before = server.echo.answered();
    probe.send(1430)?;
    wait::holds("the datagram to be answered", || Ok(server.echo.answered() > before))
}

/// The Service with a pod's sink as its endpoint.
fn serve_sink(site: &Site<'_>, from: &Namespace, to: &Server) -> Result<()> {
    // First where it answers, then where nobody listens yet: that is how each change shows.
    serve(site, PORT, &to.pod.addresses)?;
    answers(from, &to.pod.name)?;
    serve(site, SINK, &to.pod.addresses)?;
    refuses(from)
}

/// A transfer through the Service.
fn transfer(from: &Namespace, to: &Server, socket: SocketAddr) -> Result<()> {
    let sink = Sink::start(to.netns(), SINK)?;
    traffic::send_bulk(from, socket, BULK)?;
    ensure!(sink.join()? == BULK);
    Ok(())
}

#[test]
fn the_mtu_of_a_path_is_learned_through_a_service() -> Result<()> {
    const NARROW: u32 = 1400;
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let (near, far) = (site.node("a")?, site.node("c")?);
        let clients = [near.add_pod("near-tcp")?, near.add_pod("near-udp")?];
        let others = [far.add_pod("far-tcp")?, far.add_pod("far-udp")?];
        let (here, there) = (near.add_server("here")?, far.add_server("there")?);
        // Narrower behind the router; and, seen from the other end, at the node's own uplink.
        site.router().ip(&format!("link set eth2 mtu {NARROW}"))?;
        far.namespace().ip(&format!("link set eth0 mtu {NARROW}"))?;
        for (clients, server) in [(&clients, &there), (&others, &here)] {
            let [tcp, udp] = clients;
            serve(&site, PORT, &server.pod.addresses)?;
            answers(&tcp.netns, &server.pod.name)?;
            for socket in VIPS.map(at) {
                learns(&udp.netns, server, socket, NARROW)
                    .with_context(|| format!("to {}", server.pod.name))?;
            }
            serve_sink(&site, &tcp.netns, server)?;
            for socket in VIPS.map(at) {
                transfer(&tcp.netns, server, socket).with_context(|| format!("to {}", server.pod.name))?;
            }
            for vip in VIPS {
                ensure!(learned(&tcp.netns, vip)? == Some(NARROW), "TCP to {vip} got through otherwise");
            }
            // Nobody has learned a thing about the backend behind it.
            for address in &server.pod.addresses {
                ensure!(learned(&tcp.netns, *address)? != Some(NARROW), "{address} is known");
            }
        }
        Ok(())
    })
}

#[test]
fn what_may_be_fragmented_is_fragmented() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let (a, c) = (site.node("a")?, site.node("c")?);
        let (server, client) = (a.add_server("server")?, c.add_pod("client")?);
        c.namespace().ip("link set eth0 mtu 1400")?;
        // Without DF from now on.
        client.netns.sysctl("net/ipv4/ip_no_pmtu_disc", "1")?;
        let mut receiver = Frames::open(server.netns(), "eth0")?;
        let probe = Probe::open(&client.netns, server.at(false)?, 0)?;
        probe.send(1440)?;
        wait::holds("both fragments to arrive", || {
            Ok(receiver.seen(&[b'x'; 1000])? && server.echo.answered() > 0)
        })?;
        ensure!(probe.told()?.is_none(), "nothing is wrong");
        Ok(())
    })
}

#[test]
fn a_pod_takes_what_is_longer_than_its_own_mtu() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let node = site.node("a")?;
        let (client, server) = (node.add_pod("client")?, node.add_server("server")?);
        // As when the configured MTU was changed between two pods.
        let host = host_end(node, server.netns())?;
        node.namespace().ip(&format!("link set {host} mtu 1300"))?;
        server.netns().ip("link set eth0 mtu 1300")?;
        serve(&site, PORT, &server.pod.addresses)?;
        answers(&client.netns, "server")?;
        for socket in VIPS.map(at) {
            let probe = Probe::open(&client.netns, socket, 0)?;
            let before = server.echo.answered();
            probe.send(1400)?;
            wait::holds("the long datagram to be answered", || Ok(server.echo.answered() > before))?;
            ensure!(probe.told()?.is_none(), "nothing is wrong");
        }
        serve_sink(&site, &client.netns, &server)?;
        VIPS.map(at).into_iter().try_for_each(|socket| transfer(&client.netns, &server, socket))
    })
}

/// The name of the host's end of a pod's interface.
fn host_end(node: &Node<'_>, pod: &Namespace) -> Result<String> {
    let link = pod.ip("-o link show eth0")?;
    let index = link.split_once("@if").and_then(|(_, rest)| rest.split(':').next()).context("no peer")?;
    let all = node.namespace().ip("-o link show")?;
    let line = all.lines().find(|line| line.starts_with(&format!("{index}:"))).context("no host end")?;
    let name = line.split(' ').nth(1).and_then(|name| name.split('@').next()).context("no name")?;
    Ok(name.to_owned())
}

/// The sum of words (RFC 1071).
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2).map(|word| match word {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    words.fold(0, |sum, word| {
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    })
}

/// True if a frame is a train of TCP segments whose checksum is prepared for the hardware.
fn offloaded(frame: &[u8]) -> Result<bool> {
    let Ok(sliced) = SlicedPacket::from_ethernet(frame) else { return Ok(false) };
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { return Ok(false) };
    if tcp.destination_port() != SINK || frame.len() < 4000 {
        return Ok(false);
    }
    let length = u32::try_from(tcp.slice().len())?;
    let pseudo = match sliced.net.context("no IP header")? {
        NetSlice::Ipv4(ip) => sum(&ip.header().source()) + sum(&ip.header().destination()),
        NetSlice::Ipv6(ip) => sum(&ip.header().source()) + sum(&ip.header().destination()),
        other => bail!("not IP: {other:?}"),
    };
    let pseudo = pseudo + 6 + (length >> 16) + (length & 0xffff);
    let folded = (pseudo & 0xffff) + (pseudo >> 16);
    ensure!(u32::from(tcp.checksum()) == folded, "the checksum of a train of segments was completed");
    Ok(true)
}

#[test]
fn segmentation_and_checksums_stay_with_the_hardware() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let client = site.node("a")?.add_pod("client")?;
        for (node, name) in [("a", "near"), ("b", "far")] {
            let server = site.node(node)?.add_server(name)?;
            serve_sink(&site, &client.netns, &server)?;
            for socket in VIPS.map(at) {
                let mut receiver = Frames::open(server.netns(), "eth0")?;
                transfer(&client.netns, &server, socket)?;
                let mut trains = 0;
                for frame in receiver.waiting()? {
                    trains += u32::from(offloaded(&frame)?);
                }
                ensure!(trains > 0, "each segment alone from {socket} to {name}");
            }
        }
        Ok(())
    })
}

/// kubernetes/kubernetes#74839: a conntrack that judged sequence numbers would let this one pass with the
/// backend's address, and the client would reset a connection that it does not know.
#[test]
fn a_segment_out_of_the_window_comes_from_the_service_too() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let client = site.node("a")?.add_pod("client")?;
        for (node, name) in [("a", "near"), ("c", "far")] {
            let server = site.node(node)?.add_server(name)?;
            serve(&site, PORT, &server.pod.addresses)?;
            answers(&client.netns, name)?;
            for (socket, v6) in VIPS.map(at).into_iter().zip([false, true]) {
                let mut flow: Flow = traffic::open(&client.netns, Proto::Tcp, socket)?;
                ensure!(flow.ask()? == name);
                let sender = Frames::open(server.netns(), "eth0")?;
                let mut receiver = Frames::open(&client.netns, "eth0")?;
                let mark = format!("out of {name}'s window.");
                let link = PacketBuilder::ethernet2(sender.mac(), traffic::gateway_mac(server.netns(), v6)?);
                let (from, to) = (server.at(v6)?, flow.local()?);
                let network = match (from.ip(), to.ip()) {
                    (IpAddr::V4(from), IpAddr::V4(to)) => link.ipv4(from.octets(), to.octets(), 64),
                    (IpAddr::V6(from), IpAddr::V6(to)) => link.ipv6(from.octets(), to.octets(), 64),
                    _ => bail!("two families"),
                };
                let mut frame = Vec::new();
                network
                    .tcp(from.port(), to.port(), 0x1234_5678, 512)
                    .ack(0x8765_4321)
                    .psh()
                    .write(&mut frame, mark.as_bytes())?;
                sender.send(&frame)?;
                let mut seen = Vec::new();
                wait::holds("the segment to arrive", || {
                    seen.extend(receiver.waiting()?);
                    Ok(seen.iter().any(|frame| frame.ends_with(mark.as_bytes())))
                })?;
                // The connection is as it was, and nobody spoke of the backend or of a reset.
                ensure!(flow.ask()? == name);
                seen.extend(receiver.waiting()?);
                for frame in &seen {
                    let sliced = SlicedPacket::from_ethernet(frame)?;
                    let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else { continue };
                    if ![tcp.source_port(), tcp.destination_port()].contains(&to.port()) {
                        continue;
                    }
                    ensure!(!tcp.rst(), "a reset");
                    let (source, destination): (IpAddr, IpAddr) = match &sliced.net {
                        Some(NetSlice::Ipv4(ip)) => {
                            (ip.header().source_addr().into(), ip.header().destination_addr().into())
                        }
                        Some(NetSlice::Ipv6(ip)) => {
                            (ip.header().source_addr().into(), ip.header().destination_addr().into())
                        }
                        other => bail!("not IP: {other:?}"),
                    };
                    ensure!([source, destination].contains(&socket.ip()), "{source} to {destination}");
                }
            }
        }
        Ok(())
    })
}
