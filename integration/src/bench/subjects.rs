//! What is measured against each other: a node with a client's pod and a server's pod, and something between
//! the two.
//!
//! Pods are alike for all: a veth pair, a /32 address, the gateway 169.254.1.1 by a permanent neighbour
//! entry, a host route and a neighbour entry on the node, as netd makes them. What differs is what carries a
//! packet from one host end to the other.

mod iptables;
mod ipvs;
mod netd;
mod nftables;

pub(crate) use iptables::iptables;
pub(crate) use ipvs::{ipvs, missing as ipvs_missing};
pub(crate) use netd::{lone_node, memory_of, synced, tables_for, with_netd};
pub(crate) use nftables::nftables;

use crate::load::{self, Cpus, Load, PORTS, Place, Server};
use anyhow::{Result, bail};
use netd_integration::lab::{Lab, Namespace};
use netd_integration::node::Node;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// A subject, standing.
#[derive(Debug)]
pub(crate) struct Subject<'lab> {
    /// For the table.
    pub(crate) name: String,
    /// How it differs from what it is called.
    pub(crate) note: Option<String>,
    client: Namespace,
    targets: Vec<SocketAddr>,
    server: Server,
    /// Its agent, which ends with it.
    _node: Option<Node<'lab>>,
}

impl Subject<'_> {
    /// Puts a load on it for a while; how much was done per second.
    ///
    /// # Errors
    /// As [`load::measure`].
    pub(crate) fn measure(&self, load: Load, slice: Duration, place: Place) -> Result<f64> {
        load::measure(&self.client, &self.targets, load, slice, place)
            .map_err(|error| error.context(self.name.clone()))
    }

    /// Demands that all four endpoints get connections.
    ///
    /// # Errors
    /// One got none.
    pub(crate) fn check(&self, cpus: Cpus) -> Result<()> {
        let slice = Duration::from_millis(50);
        for _ in 0..20 {
            self.measure(Load::Connections, slice, cpus.together())?;
            if self.server.taken().iter().all(|&taken| taken > 0) {
                return Ok(());
            }
        }
        bail!("{}: connections by port: {:?}", self.name, self.server.taken())
    }
}

/// Two pods of a node whose stack forwards between them.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) node: Namespace,
    client: Namespace,
    server: Namespace,
    pub(crate) server_ip: Ipv4Addr,
}

/// Addresses of the pair's pods.
const PAIR: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 244, 1, 2), Ipv4Addr::new(10, 244, 1, 3)];

impl Pair {
    /// Makes a node called `name` with two pods.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn new(lab: &Lab, name: &str) -> Result<Self> {
        let node = lab.namespace(name)?;
        node.sysctl("net/ipv4/ip_forward", "1")?;
        let [client_ip, server_ip] = PAIR;
        let client = plug(lab, &node, &format!("{name}-client"), "pod0", client_ip)?;
        let server = plug(lab, &node, &format!("{name}-server"), "pod1", server_ip)?;
        Ok(Self { node, client, server, server_ip })
    }

    /// Starts the server; connections go to `targets`.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub(crate) fn subject<'lab>(
        self,
        name: String,
        targets: Vec<SocketAddr>,
        cpus: Cpus,
    ) -> Result<Subject<'lab>> {
        let server = Server::start(&self.server, cpus)?;
        Ok(Subject { name, note: None, client: self.client, targets, server, _node: None })
    }
}

/// A pod on a node whose stack forwards.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn plug(lab: &Lab, node: &Namespace, name: &str, port: &str, ip: Ipv4Addr) -> Result<Namespace> {
    const HOST_MAC: &str = "02:6e:65:74:64:01";
    const POD_MAC: &str = "02:00:00:00:00:02";
    let pod = lab.namespace(name)?;
    let peer = pod.path().display();
    node.ip(&format!(
        "link add {port} address {HOST_MAC} type veth peer name eth0 address {POD_MAC} netns {peer}"
    ))?;
    pod.ip("link set eth0 up")?;
    node.ip(&format!("link set {port} up"))?;
    pod.ip(&format!("address add {ip}/32 dev eth0"))?;
    pod.ip("route add 169.254.1.1 dev eth0 scope link")?;
    pod.ip(&format!("neighbour add 169.254.1.1 lladdr {HOST_MAC} dev eth0 nud permanent"))?;
    pod.ip("route add default via 169.254.1.1")?;
    node.ip(&format!("route add {ip}/32 dev {port}"))?;
    node.ip(&format!("neighbour add {ip} lladdr {POD_MAC} dev {port} nud permanent"))?;
    Ok(pod)
}

/// Plain routing: the client addresses the pod itself, and nothing looks at the packets.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn plain<'lab>(lab: &'lab Lab, cpus: Cpus) -> Result<Subject<'lab>> {
    let pair = Pair::new(lab, "plain")?;
    let targets = PORTS.map(|port| SocketAddr::from((pair.server_ip, port))).to_vec();
    pair.subject("plain routing".into(), targets, cpus)
}
