//! What a route is: types only, of layer 0, shared by the pure planners and the one writer of routes.

use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;

/// A route through another router or node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Where it leads; the host bits are zero.
    pub prefix: IpNet,
    /// The next hop; it may be of the other family (RFC 8950).
    pub gateway: IpAddr,
    /// Index of the link it leaves by.
    pub ifindex: u32,
    /// The gateway is on the link although no address of the link says so.
    pub onlink: bool,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} via {} dev #{}", self.prefix, self.gateway, self.ifindex)?;
        if self.onlink { f.write_str(" onlink") } else { Ok(()) }
    }
}

/// An address of one of this node's uplinks, with its subnet: what is in the subnet shares the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkAddress {
    /// Index of the uplink.
    pub ifindex: u32,
    /// The address with the length of its subnet's prefix.
    pub net: IpNet,
}
