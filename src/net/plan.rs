//! Routes to the other nodes' pods: a pure function of the model and of this node's links.
//!
//! Where two nodes share a link (layer 2), the one sends to the other's pods by the other's address; everything
//! else is left to the fabric (routers, or BGP), and said so. A podCIDR comes from an object that anybody who
//! may edit Nodes can write: one that would take over this node's own pods, its uplinks' subnets, another
//! node's pods or addresses that are never routed (RFC 6890) is refused.
//!
//! Invariants: the result depends on the arguments only, not on their order; no two routes overlap; every
//! podCIDR of every other node is either routed or reported, once.

#[cfg(test)]
mod tests;

use super::route::{LinkAddress, Route};
use crate::model::{Model, Node};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// What [`node_routes`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRoutes {
    /// To be installed, by prefix.
    pub routes: Vec<Route>,
    /// podCIDRs that this node does not route itself, by node.
    pub unreachable: Vec<Unreachable>,
}

/// A podCIDR without a route, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// Name of the node.
    pub node: Arc<str>,
    /// Its podCIDR.
    pub cidr: IpNet,
    /// Why there is no route.
    pub reason: Reason,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}, podCIDR {}: {}", self.node, self.cidr, self.reason)
    }
}

/// Why a podCIDR has no route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The node's address is on no link of this node: routers between must know the way. No fault.
    LeftToFabric {
        /// Address of the node, of the podCIDR's family.
        address: IpAddr,
    },
    /// The node has no InternalIP of the podCIDR's family.
    NoAddress,
    /// The node claims an address of this node.
    OwnAddress {
        /// The address.
        address: IpAddr,
    },
    /// Never routed between nodes: default route, multicast, loopback, link-local.
    NotRoutable,
    /// It would take packets for this node's own pods.
    OverlapsOwn {
        /// CIDR of this node.
        cidr: IpNet,
    },
    /// It would take packets for hosts on an uplink.
    OverlapsUplink {
        /// Address and subnet of the uplink.
        subnet: IpNet,
    },
    /// A node whose name comes first has it.
    OverlapsNode {
        /// The other node, or the same.
        node: Arc<str>,
        /// Its podCIDR.
        cidr: IpNet,
    },
}

impl Reason {
    /// Whether this is a fault in the Nodes' addresses or CIDRs, which somebody should mend.
    #[must_use]
    pub fn is_fault(&self) -> bool {
        !matches!(self, Self::LeftToFabric { .. })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeftToFabric { address } => {
                write!(f, "{address} is on no link of this node; left to the fabric")
            }
            Self::NoAddress => f.write_str("the node has no InternalIP of this family"),
            Self::OwnAddress { address } => write!(f, "its address {address} is this node's own"),
            Self::NotRoutable => f.write_str("not a range that can be routed"),
            Self::OverlapsOwn { cidr } => write!(f, "overlaps this node's own {cidr}"),
            Self::OverlapsUplink { subnet } => write!(f, "overlaps the uplink's {subnet}"),
            Self::OverlapsNode { node, cidr } => write!(f, "overlaps {cidr} of node {node}"),
        }
    }
}

/// Plans the routes to the podCIDRs of all nodes but `this_node`. `links` are the addresses of this node's
/// uplinks; `own_cidrs` are the ranges this node gives to its pods beside its Node's podCIDRs.
#[must_use]
pub fn node_routes(model: &Model, this_node: &str, links: &[LinkAddress], own_cidrs: &[IpNet]) -> NodeRoutes {
    let of_node = model.nodes.get(this_node).into_iter().flat_map(|node| &node.pod_cidrs);
    let own: Vec<IpNet> = own_cidrs.iter().chain(of_node).map(IpNet::trunc).collect();
    let mut claims = Claims::default();
    let mut plan = NodeRoutes::default();
    for (name, node) in model.nodes.iter().filter(|(name, _)| name.as_ref() != this_node) {
        let mut cidrs: Vec<IpNet> = node.pod_cidrs.iter().map(IpNet::trunc).collect();
        cidrs.sort_unstable();
        cidrs.dedup();
        for cidr in cidrs {
            let hop = refuse(cidr, &own, links)
                .map_or(Ok(()), Err)
                .and_then(|()| claims.claim(cidr, name))
                .and_then(|()| next_hop(node, cidr, links));
            match hop {
                Ok((gateway, ifindex)) => {
                    plan.routes.push(Route { prefix: cidr, gateway, ifindex, onlink: false });
                }
                Err(reason) => plan.unreachable.push(Unreachable { node: name.clone(), cidr, reason }),
            }
        }
    }
    plan.routes.sort_unstable();
    plan
}

fn refuse(cidr: IpNet, own: &[IpNet], links: &[LinkAddress]) -> Option<Reason> {
    if !is_routable(cidr) {
        return Some(Reason::NotRoutable);
    }
    if let Some(own) = own.iter().filter(|own| overlap(own, &cidr)).min() {
        return Some(Reason::OverlapsOwn { cidr: *own });
    }
    let uplink = links.iter().map(|link| link.net).filter(|net| overlap(net, &cidr)).min();
    uplink.map(|subnet| Reason::OverlapsUplink { subnet })
}

fn is_routable(cidr: IpNet) -> bool {
    let never = |range: &str| range.parse::<IpNet>().is_ok_and(|range| overlap(&range, &cidr));
    cidr.prefix_len() > 0
        && !["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"].into_iter().any(never)
        && !["::/96", "::ffff:0:0/96", "fe80::/10", "ff00::/8"].into_iter().any(never)
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    // Prefixes are either nested or disjoint.
    a.contains(b) || b.contains(a)
}

/// The node's first address of the family that shares a link, and that link: the most specific subnet wins.
fn next_hop(node: &Node, cidr: IpNet, links: &[LinkAddress]) -> Result<(IpAddr, u32), Reason> {
    let same_family = |address: &&IpAddr| address.is_ipv4() == cidr.addr().is_ipv4();
    let mut first = None;
    for address in node.internal_ips.iter().filter(same_family).copied() {
        if links.iter().any(|link| link.net.addr() == address) {
            return Err(Reason::OwnAddress { address });
        }
        let shares = |link: &&LinkAddress| link.net.contains(&address) && !is_link_local(address);
        let best = links.iter().filter(shares).max_by_key(|link| {
            // Of equal subnets the lowest index, whatever the order of the addresses.
            (link.net.prefix_len(), std::cmp::Reverse(link.ifindex))
        });
        if let Some(link) = best {
            return Ok((address, link.ifindex));
        }
        first.get_or_insert(address);
    }
    Err(first.map_or(Reason::NoAddress, |address| Reason::LeftToFabric { address }))
}

/// Every link has that subnet, so it tells nothing about sharing one.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

/// Who has which range; the ranges are disjoint, so only the neighbours of a new one can overlap it.
#[derive(Default)]
struct Claims {
    by_first: BTreeMap<IpAddr, (IpNet, Arc<str>)>,
}

impl Claims {
    fn claim(&mut self, cidr: IpNet, node: &Arc<str>) -> Result<(), Reason> {
        // The last that begins at or before its end: it either reaches into it or nobody does.
        if let Some((_, (other, owner))) = self.by_first.range(..=cidr.broadcast()).next_back()
            && overlap(other, &cidr)
        {
            return Err(Reason::OverlapsNode { node: owner.clone(), cidr: *other });
        }
        self.by_first.insert(cidr.network(), (cidr, node.clone()));
        Ok(())
    }
}
