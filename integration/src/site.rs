//! Ready-made networks: segments, a router between them, nodes with their Node objects.
//!
//! | what | address |
//! |---|---|
//! | segment *s* | 10.*s*.0.0/24, fd0*s*::/64, the router at .1 and ::1 |
//! | node *i* on it | .1*i* and ::1*i* |
//! | its pods | 10.244.*i*.0/24, fd00:244:*i*::/64 |
//! | Services | 10.96.0.0/16, fd00:96::/112 |
//!
//! The router's routes to the pods are static; nodes have no routes but the default one and those netd makes.

use crate::lab::{Lab, Namespace, Segment};
use crate::node::{Node, PORT, Pod, Server, addresses};
use crate::state::{Port, State};
use crate::traffic::{self, Proto};
use anyhow::{Context as _, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Addresses of the Service that most tests have.
pub const VIPS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 80)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x80))];
/// Its port.
pub const VIP_PORT: Port = Port { port: 80, target: PORT };

/// A VIP with that port.
#[must_use]
pub fn at(vip: IpAddr) -> SocketAddr {
    SocketAddr::new(vip, VIP_PORT.port)
}

/// Which families the pods of a node have. Nodes themselves always have both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 and IPv6.
    Dual,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// Segments, their router, the shared state, the nodes.
#[derive(Debug)]
pub struct Site<'lab> {
    lab: &'lab Lab,
    /// The shared folder.
    pub state: State,
    router: Namespace,
    segments: Vec<Segment>,
    nodes: Vec<Node<'lab>>,
}

impl<'lab> Site<'lab> {
    /// `segments` segments with a router between them, no nodes yet.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(lab: &'lab Lab, segments: usize) -> Result<Self> {
        let router = lab.namespace("router")?;
        router.sysctl("net/ipv4/ip_forward", "1")?;
        router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let state = State::create(lab.dir().join("state"))?;
        let mut site = Self { lab, state, router, segments: Vec::new(), nodes: Vec::new() };
        for s in 1..=segments {
            let segment = lab.segment(&format!("segment{s}"))?;
            let (v4, v6) = (format!("10.{s}.0.1/24"), format!("fd0{s}::1/64"));
            segment.plug(&site.router, &format!("eth{s}"), &[&v4, &v6])?;
            site.segments.push(segment);
        }
        Ok(site)
    }

    /// Three nodes, dual stack: a and b on the first segment, c on the second.
    ///
    /// # Errors
    /// As [`Site::new`].
    pub fn three_nodes(lab: &'lab Lab) -> Result<Self> {
        let mut site = Self::new(lab, 2)?;
        for (name, segment) in [("a", 1), ("b", 1), ("c", 2)] {
            site.add_node(name, segment, Families::Dual)?;
        }
        Ok(site)
    }

    /// One segment with one dual-stack node `a`, its agent ready.
    ///
    /// # Errors
    /// As [`Site::new`] and [`Node::start`].
    pub fn one_node(lab: &'lab Lab) -> Result<Self> {
        let mut site = Self::new(lab, 1)?;
        site.add_node("a", 1, Families::Dual)?;
        site.start_all()?;
        Ok(site)
    }

    /// Adds a node to a segment (from 1), with its Node object; its agent is not started.
    ///
    /// # Errors
    /// As [`Site::new`].
    pub fn add_node(&mut self, name: &str, segment: usize, families: Families) -> Result<()> {
        let i = self.nodes.len() + 1;
        let s = segment;
        let wire = self.segment(segment)?;
        let namespace = self.lab.namespace(name)?;
        let (v4, v6) = (format!("10.{s}.0.1{i}"), format!("fd0{s}::1{i}"));
        wire.plug(&namespace, "eth0", &[&format!("{v4}/24"), &format!("{v6}/64")])?;
        namespace.ip(&format!("route add default via 10.{s}.0.1"))?;
        namespace.ip(&format!("route add default via fd0{s}::1"))?;
        let mut cidrs = Vec::new();
        if families != Families::V6 {
            let cidr = format!("10.244.{i}.0/24");
            self.router.ip(&format!("route add {cidr} via {v4}"))?;
            cidrs.push(cidr);
        }
        if families != Families::V4 {
            let cidr = format!("fd00:244:{i}::/64");
            self.router.ip(&format!("route add {cidr} via {v6}"))?;
            cidrs.push(cidr);
        }
        let addresses: Vec<IpAddr> = vec![v4.parse()?, v6.parse()?];
        self.state.node(name, &addresses, &cidrs)?;
        self.nodes.push(Node::new(self.lab, name, namespace, &self.state)?);
        Ok(())
    }

    /// Starts all agents, then waits until each is ready.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn start_all(&self) -> Result<()> {
        for node in &self.nodes {
            node.launch()?;
        }
        self.nodes.iter().try_for_each(Node::ready)
    }

    /// A pod `client` on the first node, and a server on each (`a1`, `b1`, …) behind the Service `web` at
    /// [`VIPS`]; they all answer.
    ///
    /// # Errors
    /// As [`Node::add_server`], or one does not answer by the deadline.
    pub fn web(&self) -> Result<(Pod, Vec<Server>)> {
        let client = self.nodes.first().context("no node")?.add_pod("client")?;
        let servers = self.nodes.iter().map(|node| node.add_server(&format!("{}1", node.name())));
        let servers: Vec<Server> = servers.collect::<Result<_>>()?;
        self.state.service("web", &VIPS, VIP_PORT, &[])?;
        self.state.slices("web", PORT, &addresses(&servers))?;
        let names: Vec<&str> = servers.iter().map(|server| server.pod.name.as_str()).collect();
        for vip in VIPS {
            for proto in Proto::ALL {
                traffic::answering(&client.netns, proto, at(vip), &names)?;
            }
        }
        Ok((client, servers))
    }

    /// A node by name.
    ///
    /// # Errors
    /// There is none.
    pub fn node(&self, name: &str) -> Result<&Node<'lab>> {
        self.nodes.iter().find(|node| node.name() == name).with_context(|| format!("no node {name}"))
    }

    /// All nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node<'lab>] {
        &self.nodes
    }

    /// A segment, from 1.
    ///
    /// # Errors
    /// There is none of this number.
    pub fn segment(&self, segment: usize) -> Result<&Segment> {
        segment.checked_sub(1).and_then(|n| self.segments.get(n)).context("no such segment")
    }

    /// The router between the segments.
    #[must_use]
    pub fn router(&self) -> &Namespace {
        &self.router
    }
}
