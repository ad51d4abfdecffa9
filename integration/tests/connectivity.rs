//! Who reaches whom: pods, nodes and Services, by both families and transports.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::{Lab, Namespace, allow_big_tcp};
use netd_integration::node::{PORT, Pod, Server, addresses};
use netd_integration::site::{Families, Site, VIP_PORT, VIPS, at};
use netd_integration::traffic::{self, Echo, Flow, Proto, Sink};
use netd_integration::wait;
use nix::sys::socket::{setsockopt, sockopt};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

#[test]
fn a_host_port_by_portmap_reaches_its_pod_and_back() -> Result<()> {
    Lab::run(|lab| {
        let mut site = Site::new(lab, 1)?;
        site.add_node("a", 1, Families::Dual)?;
        let node = site.node("a")?;
        // Beside netd's own plugin, so that the agent chains it.
        std::fs::create_dir_all(node.dir().join("bin"))?;
        std::os::unix::fs::symlink("/usr/lib/cni/portmap", node.dir().join("bin/portmap"))?;
        site.start_all()?;
        wait::holds("the conflist", || Ok(node.runtime().network().is_ok()))?;
        let client = node.add_pod("client")?;
        let (netns, mut attachment) = node.sandbox("web")?;
        let ports = ["tcp", "udp"].map(
            |protocol| serde_json::json!({"hostPort": 8080, "containerPort": PORT, "protocol": protocol}),
        );
        attachment.capabilities.insert("portMappings".into(), ports.as_slice().into());
        node.runtime().add(&attachment)?;
        let _echo = Echo::start(&netns, "web", PORT)?;
        for host in ["10.1.0.11", "fd01::11"] {
            let target = SocketAddr::new(host.parse()?, 8080);
            for proto in Proto::ALL {
                for from in [site.router(), &client.netns] {
                    ensure!(traffic::ask(from, proto, target)? == "web", "{proto} at {target}");
                }
            }
        }
        node.runtime().del(&attachment)
    })
}

#[test]
fn every_pod_reaches_every_pod() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let mut servers = Vec::new();
        for (node, pod) in [("a", "a1"), ("a", "a2"), ("b", "b1"), ("c", "c1")] {
            servers.push(site.node(node)?.add_server(pod)?);
        }
        for from in &servers {
            for to in &servers {
                for v6 in [false, true] {
                    let target = to.at(v6)?;
                    traffic::ping(from.netns(), target.ip())?;
                    for proto in Proto::ALL {
                        let who = traffic::ask(from.netns(), proto, target)?;
                        ensure!(who == to.pod.name, "{who} answered for {}", to.pod.name);
                    }
                }
            }
        }
        // Nodes: their own pods, as the kubelet's probes; and pods elsewhere.
        for node in site.nodes() {
            for to in &servers {
                for v6 in [false, true] {
                    let who = traffic::ask(node.namespace(), Proto::Tcp, to.at(v6)?)?;
                    ensure!(who == to.pod.name, "{who} answered {}", node.name());
                }
            }
        }
        // What lies outside of the cluster, and the pods' own node.
        for from in &servers {
            for outside in ["10.1.0.1", "10.2.0.1", "fd01::1", "fd02::1", "10.1.0.11", "fd01::11"] {
                traffic::ping(from.netns(), outside.parse()?)?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_services_pods_answer_by_selector_and_by_slices() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let mut servers = Vec::new();
        for (node, pod) in [("a", "a1"), ("a", "a2"), ("b", "b1"), ("c", "c1")] {
            let label = if pod == "a1" { "client" } else { "web" };
            site.state.pod(pod, node, &[("app", label)], &[])?;
            servers.push(site.node(node)?.add_server(pod)?);
        }
        // No slices: the endpoints are the Pods, at the addresses that their agents reported.
        site.state.service("web", &VIPS, VIP_PORT, &[("app", "web")])?;
        let client = servers.iter().find(|server| server.pod.name == "a1").context("a1")?;
        for vip in VIPS {
            for proto in Proto::ALL {
                traffic::answering(client.netns(), proto, at(vip), &["a2", "b1", "c1"])?;
            }
        }
        // Slices take over; one family alone stays one family's.
        let [v4, _] = VIPS;
        let b1 = servers.iter().find(|server| server.pod.name == "b1").context("b1")?;
        site.state.service("other", &[v4.to_string().replace(".80", ".81").parse()?], VIP_PORT, &[])?;
        site.state.slices("other", PORT, &b1.pod.addresses)?;
        for from in servers.iter().filter(|server| server.pod.name != "b1") {
            traffic::answering(from.netns(), Proto::Tcp, "10.96.0.81:80".parse()?, &["b1"])?;
        }
        // What is no port of the Service is not translated.
        for from in &servers {
            let elsewhere = SocketAddr::new(v4, VIP_PORT.port + 1);
            let answer = from.netns().enter(|| {
                Ok(std::net::TcpStream::connect_timeout(&elsewhere, Duration::from_millis(300)).is_ok())
            })?;
            ensure!(!answer, "{elsewhere} was answered");
        }
        Ok(())
    })
}

#[test]
fn a_pod_reaches_itself_through_its_service() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let node = site.node("a")?;
        let (one, two) = (node.add_server("one")?, node.add_server("two")?);
        site.state.service("web", &VIPS, VIP_PORT, &[])?;
        site.state.slices("web", PORT, &addresses([&one, &two]))?;
        for from in [&one, &two] {
            for vip in VIPS {
                for proto in Proto::ALL {
                    traffic::answering(from.netns(), proto, at(vip), &["one", "two"])?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn pods_of_one_family() -> Result<()> {
    Lab::run(|lab| {
        let mut site = Site::new(lab, 1)?;
        for (name, families) in [("a", Families::V4), ("b", Families::V6), ("c", Families::Dual)] {
            site.add_node(name, 1, families)?;
        }
        site.start_all()?;
        let mut servers = Vec::new();
        for (node, name) in [("a", "four"), ("b", "six"), ("c", "both")] {
            for n in [1, 2] {
                servers.push(site.node(node)?.add_server(&format!("{name}{n}"))?);
            }
        }
        let families =
            |server: &Server| server.pod.addresses.iter().map(IpAddr::is_ipv6).collect::<BTreeSet<bool>>();
        for (server, expected) in servers.iter().zip([&[false][..], &[false], &[true], &[true]]) {
            let got: Vec<bool> = families(server).into_iter().collect();
            ensure!(got == expected, "{} has {:?}", server.pod.name, server.pod.addresses);
        }
        // One pod of each node is behind the Service, the other one asks.
        let behind = |server: &&Server| server.pod.name.ends_with('2');
        site.state.service("web", &VIPS, VIP_PORT, &[])?;
        site.state.slices("web", PORT, &addresses(servers.iter().filter(behind)))?;
        for from in servers.iter().filter(|server| !behind(server)) {
            for v6 in families(from) {
                let peers: Vec<&Server> = servers.iter().filter(|to| families(to).contains(&v6)).collect();
                for to in &peers {
                    traffic::ping(from.netns(), to.pod.address(v6)?)?;
                    let who = traffic::ask(from.netns(), Proto::Udp, to.at(v6)?)?;
                    ensure!(who == to.pod.name, "{who} answered for {}", to.pod.name);
                }
                let names: Vec<&str> =
                    peers.iter().copied().filter(behind).map(|to| to.pod.name.as_str()).collect();
                let [vip4, vip6] = VIPS;
                let target = at(if v6 { vip6 } else { vip4 });
                for proto in Proto::ALL {
                    traffic::answering(from.netns(), proto, target, &names)?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_port_is_used_again_for_the_service_and_for_its_backend() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let client = site.node("a")?.add_pod("client")?;
        let (near, far) = (site.node("a")?.add_server("near")?, site.node("c")?.add_server("far")?);
        site.state.service("web", &VIPS, VIP_PORT, &[])?;
        let mut port = 4000;
        for server in [&near, &far] {
            site.state.slices("web", PORT, &server.pod.addresses)?;
            for (vip, v6) in VIPS.into_iter().zip([false, true]) {
                for proto in Proto::ALL {
                    traffic::answering(&client.netns, proto, at(vip), &[&server.pod.name])?;
                    // One flow after the other, each at once when the one before has ended; and each only
                    // once from a port, as TIME-WAIT demands.
                    let direct = server.at(v6)?;
                    for targets in [[at(vip), direct], [direct, at(vip)]] {
                        port += 1;
                        for target in targets {
                            let who = client.netns.enter(|| Flow::open_from(port, proto, target)?.ask());
                            let who = who.with_context(|| format!("{targets:?} from port {port}"))?;
                            ensure!(who == server.pod.name);
                        }
                    }
                }
            }
        }
        Ok(())
    })
}

/// Sends much through a Service to a pod here and one on another node; gives the mean length of the packets.
fn transfers(lab: &Lab, prepare: impl Fn(&Pod) -> Result<()>) -> Result<Vec<(bool, u64)>> {
    const BYTES: u64 = 200 << 20;
    let site = Site::three_nodes(lab)?;
    site.start_all()?;
    let client = site.node("a")?.add_pod("client")?;
    let near = site.node("a")?.add_pod("near")?;
    let far = site.node("c")?.add_pod("far")?;
    prepare(&client)?;
    site.state.service("web", &VIPS, VIP_PORT, &[])?;
    let mut means = Vec::new();
    for (server, v6) in [(&near, false), (&far, false), (&near, true), (&far, true)] {
        site.state.slices("web", PORT, &server.addresses)?;
        let [vip4, vip6] = VIPS;
        let target = at(if v6 { vip6 } else { vip4 });
        let echo = traffic::Echo::start(&server.netns, &server.name, PORT)?;
        traffic::answering(&client.netns, Proto::Tcp, target, &[&server.name])?;
        drop(echo);
        let sink = Sink::start(&server.netns, PORT)?;
        let before = (sent(&client.netns)?, by_stack(&site)?);
        traffic::send_bulk(&client.netns, target, BYTES)?;
        ensure!(sink.join()? == BYTES);
        let (after, more) = (sent(&client.netns)?, by_stack(&site)? - before.1);
        let before = before.0;
        ensure!(more < 100, "{more} packets went through the node's own stack");
        means.push((v6, (after.0 - before.0) / (after.1 - before.1)));
    }
    Ok(means)
}

#[test]
fn large_transfers_keep_their_bytes_and_their_offloads() -> Result<()> {
    Lab::run(|lab| {
        for (v6, mean) in transfers(lab, |_| Ok(()))? {
            ensure!(
                mean > 4000,
                "{mean} bytes a packet (IPv6: {v6}): segmentation is not left to the device"
            );
        }
        Ok(())
    })
}

/// Packets beyond 64 KiB: with IPv6 they have a jumbo payload option (RFC 2675) on the way, with IPv4 a total length
/// of zero.
#[test]
fn big_tcp_passes_a_service() -> Result<()> {
    const MOST: u32 = 131_072;
    Lab::run(|lab| {
        let ipv4_too = std::cell::Cell::new(false);
        let means = transfers(lab, |client| {
            ipv4_too.set(allow_big_tcp(&client.netns, "eth0", MOST)?);
            Ok(())
        })?;
        if !ipv4_too.get() {
            println!("skipped: IPv4: this kernel has no size of its own for it");
        }
        for (v6, mean) in means {
            ensure!(mean > 4000, "{mean} bytes a packet (IPv6: {v6})");
            let big = v6 || ipv4_too.get();
            ensure!(!big || mean > 65_536, "{mean} bytes a packet (IPv6: {v6}): none is beyond 64 KiB");
        }
        Ok(())
    })
}

#[test]
fn udp_segments_through_a_service_arrive() -> Result<()> {
    const SEGMENT: usize = 1_400;
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let client = site.node("a")?.add_pod("client")?;
        let (near, far) = (site.node("a")?.add_server("near")?, site.node("c")?.add_server("far")?);
        site.state.service("web", &VIPS, VIP_PORT, &[])?;
        for server in [&near, &far] {
            site.state.slices("web", PORT, &server.pod.addresses)?;
            for vip in VIPS {
                let target = at(vip);
                traffic::answering(&client.netns, Proto::Udp, target, &[&server.pod.name])?;
                // Each byte tells its datagram and its place in it.
                let sent: Vec<u8> =
                    (0..10 * SEGMENT).map(|n| (n / SEGMENT * 23 + n % 251).to_le_bytes()[0]).collect();
                let socket = client.netns.enter(|| {
                    let local = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let socket = UdpSocket::bind(local)?;
                    setsockopt(&socket, sockopt::UdpGsoSegment, &i32::try_from(SEGMENT)?)?;
                    socket.set_read_timeout(Some(traffic::PATIENCE))?;
                    socket.connect(target)?;
                    Ok(socket)
                })?;
                ensure!(socket.send(&sent)? == sent.len(), "one send");
                let mut came = BTreeSet::new();
                for n in 0..10 {
                    let mut datagram = vec![0; 2 * SEGMENT];
                    let length = socket.recv(&mut datagram).with_context(|| {
                        format!("{n} of ten came back from {} by {target}", server.pod.name)
                    })?;
                    datagram.truncate(length);
                    let name = format!("{} ", server.pod.name);
                    let payload = datagram.strip_prefix(name.as_bytes()).context("another's answer")?;
                    came.insert(payload.to_vec());
                }
                let expected: BTreeSet<Vec<u8>> = sent.chunks(SEGMENT).map(<[u8]>::to_vec).collect();
                ensure!(expected.len() == 10 && came == expected, "not what was sent to {target}");
            }
        }
        Ok(())
    })
}

/// Packets that node a's programs left to its stack.
fn by_stack(site: &Site<'_>) -> Result<u64> {
    let status = site.node("a")?.api_json("/v1/status")?;
    status.pointer("/datapath/packets/stack").and_then(serde_json::Value::as_u64).context("no count")
}

/// Bytes and packets that a pod sent.
fn sent(pod: &Namespace) -> Result<(u64, u64)> {
    let text = pod.run("cat /proc/net/dev")?;
    let line = text.lines().map(str::trim).find_map(|line| line.strip_prefix("eth0:"));
    let numbers: Vec<u64> = line
        .context("no eth0 in /proc/net/dev")?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let number = |n: usize| numbers.get(n).copied().context("too few columns in /proc/net/dev");
    Ok((number(8)?, number(9)?))
}
