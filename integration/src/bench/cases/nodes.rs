//! Pod ↔ pod across two nodes on one segment, against two hosts on the same segment that have nothing but
//! their stack.

use super::Case;
use crate::load::{self, Cpus, Load, PORTS, Server};
use crate::options::Options;
use crate::report::{Bar, Row};
use crate::rounds;
use crate::subjects::plug;
use anyhow::Result;
use netd_integration::lab::{Lab, Namespace};
use netd_integration::node::Tables;
use netd_integration::site::{Families, Site};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

const REFERENCE: &str = "node <-> node";

struct Pair {
    name: &'static str,
    client: Namespace,
    target: SocketAddr,
    _server: Server,
}

impl Pair {
    fn new(
        name: &'static str,
        client: &Namespace,
        server: &Namespace,
        ip: IpAddr,
        cpus: Cpus,
    ) -> Result<Self> {
        let [port, ..] = PORTS;
        let target = SocketAddr::new(ip, port);
        Ok(Self { name, client: client.clone(), target, _server: Server::start(server, cpus)? })
    }
}

pub(super) fn run(lab: &Lab, options: &Options) -> Result<Vec<Row>> {
    let cpus = Cpus::choose()?;
    let mut site = Site::new(lab, 1)?;
    for name in ["a", "b"] {
        site.add_node(name, 1, Families::V4)?;
        site.node(name)?.configure(|config| {
            config.tables = Tables::DEFAULT;
            config.log = "info".into();
        });
    }
    site.start_all()?;
    let (a, b) = (site.node("a")?, site.node("b")?);
    let (from, to) = (a.add_pod("from")?, b.add_pod("to")?);
    let [x, y] = bare_hosts(lab, &site)?;
    let [plain_from, plain_to] = plain_nodes(lab, &site)?;
    let pairs = [
        Pair::new(REFERENCE, &x, &y, [10, 1, 0, 102].into(), cpus)?,
        Pair::new("plain routing, pod <-> pod", &plain_from, &plain_to, PLAIN_TO.into(), cpus)?,
        Pair::new("netd, pod <-> pod", &from.netns, &to.netns, to.address(false)?, cpus)?,
        Pair::new("netd, node <-> node", a.namespace(), b.namespace(), [10, 1, 0, 12].into(), cpus)?,
    ];

    let mut rows = Vec::new();
    for load in Load::ALL {
        for place in cpus.places() {
            let measured = rounds::interleave(options.rounds(), &pairs, |pair| {
                load::measure(&pair.client, &[pair.target], load, options.slice(), place)
            })?;
            let reference = measured.first().cloned().unwrap_or_default();
            for (pair, series) in pairs.iter().zip(measured) {
                let metric = format!("{}, {}", load.metric(), place.name);
                let mut row = Row::new(Case::Nodes, pair.name, metric, load.unit(), series);
                if pair.name != REFERENCE {
                    row = row.to(REFERENCE, &reference);
                }
                if pair.name == "netd, pod <-> pod" {
                    row = row.bar(Bar::ratio(0.95, 0.98));
                }
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

/// Two hosts without netd.
fn bare_hosts(lab: &Lab, site: &Site<'_>) -> Result<[Namespace; 2]> {
    let hosts = [lab.namespace("x")?, lab.namespace("y")?];
    for (host, ip) in hosts.iter().zip(["10.1.0.101/24", "10.1.0.102/24"]) {
        site.segment(1)?.plug(host, "eth0", &[ip])?;
    }
    Ok(hosts)
}

const PLAIN_FROM: Ipv4Addr = Ipv4Addr::new(10, 244, 101, 2);
const PLAIN_TO: Ipv4Addr = Ipv4Addr::new(10, 244, 102, 2);

/// Two nodes that route between a pod each; the pods.
fn plain_nodes(lab: &Lab, site: &Site<'_>) -> Result<[Namespace; 2]> {
    let nodes = [lab.namespace("p")?, lab.namespace("q")?];
    for (node, ip) in nodes.iter().zip(["10.1.0.111/24", "10.1.0.112/24"]) {
        node.sysctl("net/ipv4/ip_forward", "1")?;
        site.segment(1)?.plug(node, "eth0", &[ip])?;
    }
    let [p, q] = &nodes;
    p.ip("route add 10.244.102.0/24 via 10.1.0.112")?;
    q.ip("route add 10.244.101.0/24 via 10.1.0.111")?;
    Ok([plug(lab, p, "p-pod", "pod0", PLAIN_FROM)?, plug(lab, q, "q-pod", "pod0", PLAIN_TO)?])
}
