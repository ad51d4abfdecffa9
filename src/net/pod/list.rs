//! The host ends that are on this node, as the kernel knows them: what a lost ledger is rebuilt from.

use super::{Error, is_host_name};
use crate::net::RTPROT_NETD;
use crate::net::netlink::{KernelRoute, Netlink};
use std::collections::HashMap;
use std::net::IpAddr;

/// A host end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostEnd {
    /// Index.
    pub ifindex: u32,
    /// Name, as [`super::host_name`] makes it.
    pub name: String,
    /// Whose it is; empty if the agent died right after it had made the link.
    pub alias: String,
    /// Its MAC address.
    pub host_mac: [u8; 6],
    /// The pod's MAC address, if the node has a neighbour entry for the pod.
    pub pod_mac: Option<[u8; 6]>,
    /// The pod's addresses, by the node's routes to it.
    pub addresses: Vec<IpAddr>,
    /// MTU.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
}

/// All host ends of this node, by index.
///
/// # Errors
/// [`Error::Netlink`].
pub async fn list(nl: &Netlink) -> Result<Vec<HostEnd>, Error> {
    let links = nl.links().await?;
    let mut addresses: HashMap<u32, Vec<IpAddr>> = HashMap::new();
    for route in nl.routes(Some(RTPROT_NETD)).await? {
        if let Some((ifindex, address)) = pod_of(&route) {
            addresses.entry(ifindex).or_default().push(address);
        }
    }
    let neighbors = nl.neighbors(None).await?;
    let macs: HashMap<u32, [u8; 6]> =
        neighbors.iter().filter(|n| n.permanent).map(|n| (n.index, n.mac)).collect();
    let mut ends: Vec<HostEnd> = links
        .into_iter()
        .filter(|link| link.kind.as_deref() == Some("veth") && is_host_name(&link.name))
        .map(|link| HostEnd {
            ifindex: link.index,
            alias: link.alias.unwrap_or_default(),
            host_mac: link.mac.unwrap_or_default(),
            pod_mac: macs.get(&link.index).copied(),
            addresses: addresses.remove(&link.index).unwrap_or_default(),
            mtu: link.mtu,
            up: link.up,
            name: link.name,
        })
        .collect();
    ends.sort_by_key(|end| end.ifindex);
    Ok(ends)
}

/// The host end's index and the pod's address, if this is a route of the node to a pod.
pub(in crate::net) fn pod_of(route: &KernelRoute) -> Option<(u32, IpAddr)> {
    let [hop] = route.next_hops.as_slice() else { return None };
    let to_one = route.prefix.prefix_len() == route.prefix.max_prefix_len();
    (route.protocol == RTPROT_NETD && to_one && route.unicast && hop.gateway.is_none())
        .then_some((hop.ifindex, route.prefix.addr()))
}
