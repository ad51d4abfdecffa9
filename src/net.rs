//! Links, addresses, routes: everything netd says to the kernel by netlink and `/proc/sys/net`.
//!
//! | file | owns |
//! |---|---|
//! | [`netns`] | entering network namespaces, in threads of their own |
//! | [`netlink`] | one rtnetlink socket per namespace, typed requests, errors that name the object |
//! | [`sysctl`] | `/proc/sys/net`, read before written |
//! | [`pod`] | a pod's pair of interfaces: create, check, delete, list |
//! | [`host`] | the node's uplinks, their MTU and addresses, forwarding |
//! | [`route`] | what a route is (types only, importable from every layer) |
//! | [`plan`] | routes to the other nodes' pods, a pure function of the model |
//! | [`routes`] | the one writer of routes |
//!
//! Invariants: nothing here runs another program; no thread of the async runtime ever changes its
//! namespace; only objects that netd made are changed or removed, known by name (links), by protocol number
//! [`RTPROT_NETD`] (routes) or by the link they hang on (addresses, neighbours).

pub mod config;
pub mod host;
pub mod netlink;
pub mod netns;
pub mod plan;
pub mod pod;
pub mod route;
pub mod routes;
pub mod sysctl;
#[cfg(test)]
mod testing;

use std::net::{Ipv4Addr, Ipv6Addr};

/// `rtm_protocol` of every route that netd installs (`rtnetlink(7)`; 110 is assigned to nobody).
pub const RTPROT_NETD: u8 = 110;

/// IPv4 gateway of every pod; no interface has it, a permanent neighbour entry answers for it.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// IPv6 gateway of every pod, an address of the host's end.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// MAC address of the host's end of every pod's interface: a moved or restored pod keeps its neighbour entry.
pub const HOST_MAC: [u8; 6] = [0x02, 0x6e, 0x65, 0x74, 0x64, 0x01];
