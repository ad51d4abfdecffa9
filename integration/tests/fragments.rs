//! Datagrams longer than a packet: through Services, both ways, in whatever order their fragments come.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::{Lab, Namespace};
use netd_integration::node::{Node, PORT, Server};
use netd_integration::site::{Site, VIP_PORT, VIPS, at};
use netd_integration::traffic::{self, Frames, Proto};
use netd_integration::wait;
use std::net::{IpAddr, SocketAddr};

/// Bytes that differ from place to place and from one `seed` to the next.
fn bytes(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 + n / 251 + seed * 7).to_le_bytes()[0]).collect()
}

/// Datagrams that were put together in a namespace.
fn reassembled(namespace: &Namespace, v6: bool) -> Result<u64> {
    if v6 {
        let text = namespace.run("cat /proc/net/snmp6")?;
        let line = text.lines().find(|line| line.starts_with("Ip6ReasmOKs")).context("no Ip6ReasmOKs")?;
        return Ok(line.split_whitespace().nth(1).context("no value")?.parse()?);
    }
    let text = namespace.run("cat /proc/net/snmp")?;
    let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
    let (names, values) = (lines.next().context("no names")?, lines.next().context("no values")?);
    let pairs = names.split_whitespace().zip(values.split_whitespace());
    let (_, value) = pairs.into_iter().find(|(name, _)| *name == "ReasmOKs").context("no ReasmOKs")?;
    Ok(value.parse()?)
}

/// The Service with one server; waits until it answers.
fn serve(site: &Site<'_>, client: &Namespace, server: &Server) -> Result<()> {
    let addresses: Vec<IpAddr> = server.pod.addresses.clone();
    site.state.slices("web", PORT, &addresses)?;
    for vip in VIPS.map(at) {
        wait::holds(&format!("{} at {vip}", server.pod.name), || {
            Ok(traffic::ask(client, Proto::Udp, vip)? == server.pod.name)
        })?;
    }
    Ok(())
}

fn nothing_dropped(nodes: &[Node<'_>]) -> Result<()> {
    for node in nodes {
        for reason in ["fragment_lost", "fragment_too_long", "fragment_of_dropped", "malformed"] {
            let dropped = node.metric("netd_drops_total", &[("reason", reason)])?;
            ensure!(dropped == 0.0, "{}: {dropped} dropped as {reason}", node.name());
        }
    }
    Ok(())
}

#[test]
fn long_datagrams_are_echoed_whole() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let client = site.node("a")?.add_pod("client")?;
        let (near, far) = (site.node("a")?.add_server("near")?, site.node("c")?.add_server("far")?);
        site.state.service("web", &VIPS, VIP_PORT, &[])?;
        for server in [&near, &far] {
            serve(&site, &client.netns, server)?;
            for (vip, v6) in VIPS.map(at).into_iter().zip([false, true]) {
                for target in [vip, server.at(v6)?] {
                    let mut flow = traffic::open(&client.netns, Proto::Udp, target)?;
                    let before = reassembled(&client.netns, v6)?;
                    let mut sent = 0;
                    for length in [1473, 2960, 4000, 5001, 8000, 20_000, 60_000] {
                        let payload = bytes(length, sent);
                        let (who, echoed) = flow.exchange(&payload)?;
                        ensure!(who == server.pod.name, "{who} answered at {target}");
                        ensure!(echoed == payload, "{length} bytes to {target} came back changed");
                        sent += 1;
                    }
                    let whole = usize::try_from(reassembled(&client.netns, v6)? - before)?;
                    ensure!(whole == sent, "{whole} of {sent} answers came in fragments: nothing is shown");
                }
                // From the node's own stack, which cuts into fragments behind the pod's last hook but one.
                let mut flow = traffic::open(site.node("a")?.namespace(), Proto::Udp, server.at(v6)?)?;
                let payload = bytes(8000, 3);
                ensure!(flow.exchange(&payload)? == (server.pod.name.clone(), payload));
            }
        }
        nothing_dropped(site.nodes())
    })
}

/// Where raw frames are sent: the socket, and the MAC addresses, own first.
struct Wire {
    frames: Frames,
    macs: ([u8; 6], [u8; 6]),
}

impl Wire {
    fn of_pod(pod: &Namespace, v6: bool) -> Result<Self> {
        let frames = Frames::open(pod, "eth0")?;
        let macs = (frames.mac(), traffic::gateway_mac(pod, v6)?);
        Ok(Self { frames, macs })
    }

    /// Sends a datagram, its last fragment first; gives the number of its fragments.
    fn reversed(&self, ends: (SocketAddr, SocketAddr), id: u32, payload: &[u8]) -> Result<usize> {
        let pieces = traffic::udp_fragments(self.macs, ends, id, payload, 1440)?;
        pieces.iter().rev().try_for_each(|piece| self.frames.send(piece))?;
        Ok(pieces.len())
    }
}

#[test]
fn fragments_in_reverse_arrive_whole() -> Result<()> {
    const LENGTHS: [usize; 4] = [1500, 4000, 8000, 60_000];
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let node = site.node("a")?;
        let client = node.add_pod("client")?;
        let (near, far) = (node.add_server("near")?, site.node("c")?.add_server("far")?);
        site.state.service("web", &VIPS, VIP_PORT, &[])?;
        let mut held = 0;
        for server in [&near, &far] {
            serve(&site, &client.netns, server)?;
            for (vip, v6) in VIPS.map(at).into_iter().zip([false, true]) {
                let mut flow = traffic::open(&client.netns, Proto::Udp, vip)?;
                ensure!(flow.ask()? == server.pod.name);
                let own = SocketAddr::new(client.address(v6)?, flow.local()?.port());
                let asking = Wire::of_pod(&client.netns, v6)?;
                let mut answering = vec![Wire::of_pod(server.netns(), v6)?];
                if server.pod.name == "far" {
                    // As the network may deliver it: to the uplink of the client's node.
                    let frames = Frames::open(site.router(), "eth1")?;
                    let macs = (frames.mac(), traffic::eth0_mac(node.namespace())?);
                    answering.push(Wire { frames, macs });
                }
                for (round, length) in (1..).zip(LENGTHS) {
                    let payload = bytes(length, round);
                    let id = u32::try_from(round)?;
                    held += asking.reversed((own, vip), id, &payload)? - 1;
                    let (who, echoed) = flow.answer().with_context(|| format!("{length} bytes to {vip}"))?;
                    ensure!(who == server.pod.name, "{who} answered");
                    ensure!(echoed == payload, "{length} bytes to {vip} came back changed");
                    for (place, wire) in answering.iter().enumerate() {
                        let answer = [format!("place{place} ").into_bytes(), payload.clone()].concat();
                        // Identifiers that the server's stack does not use at the same time.
                        let id = 50_000 + id + 100 * u32::try_from(place)?;
                        held += wire.reversed((server.at(v6)?, own), id, &answer)? - 1;
                        let (who, got) =
                            flow.answer().with_context(|| format!("{length} bytes from place {place}"))?;
                        ensure!(who == format!("place{place}"), "an answer of {who}");
                        ensure!(got == payload, "{length} bytes from place {place} were changed");
                    }
                }
            }
        }
        let mut counted = 0.0;
        for node in site.nodes() {
            counted += node.metric("netd_packets_total", &[("path", "held")])?;
        }
        ensure!(counted >= f64::from(u32::try_from(held)?), "{counted} held of {held} sent too early");
        nothing_dropped(site.nodes())
    })
}
