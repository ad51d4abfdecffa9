//! Routes of the main table: `RTM_NEWROUTE`, `RTM_DELROUTE`, `RTM_GETROUTE`.

use super::{Error, Netlink, Request};
use crate::net::RTPROT_NETD;
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteNextHop, RouteNextHopFlags,
    RouteProtocol, RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where a route sends its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Next router; none: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the link.
    pub ifindex: u32,
    /// The gateway is on the link although no address of the link says so.
    pub onlink: bool,
}

/// A unicast, blackhole or unreachable route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelRoute {
    /// Destination.
    pub prefix: IpNet,
    /// `rtm_protocol`: who installed it.
    pub protocol: u8,
    /// Lower wins among routes of one prefix; 0 is the kernel's default (1024 in IPv6).
    pub metric: u32,
    /// Type of service it is limited to, 0: none.
    pub tos: u8,
    /// It forwards packets; else it drops them (blackhole, unreachable, prohibit).
    pub unicast: bool,
    /// Scope link: the destination itself is on the link (IPv4; IPv6 has no scopes).
    pub scope_link: bool,
    /// Next hops: none if it does not forward, several if it is multipath.
    pub next_hops: Vec<NextHop>,
}

impl KernelRoute {
    /// The route that netd makes: main table, unicast, its own protocol.
    #[must_use]
    pub fn new(prefix: IpNet, next_hop: NextHop) -> Self {
        Self {
            prefix,
            protocol: RTPROT_NETD,
            metric: 0,
            tos: 0,
            unicast: true,
            scope_link: next_hop.gateway.is_none() && prefix.addr().is_ipv4(),
            next_hops: vec![next_hop],
        }
    }
}

impl fmt::Display for KernelRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.prefix)?;
        if !self.unicast {
            f.write_str(" without a next hop")?;
        }
        for hop in &self.next_hops {
            if let Some(gateway) = hop.gateway {
                write!(f, " via {gateway}")?;
            }
            write!(f, " dev #{}", hop.ifindex)?;
        }
        write!(f, " proto {}", self.protocol)?;
        if self.metric == 0 { Ok(()) } else { write!(f, " metric {}", self.metric) }
    }
}

/// Adds a route; `EEXIST` if there is one of its prefix and metric, whoever's it is.
pub(in crate::net) fn add(route: &KernelRoute) -> Request {
    Request {
        operation: format!("add route {route}"),
        message: RouteNetlinkMessage::NewRoute(encode(route)),
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}

/// Puts a route in the place of the one of its prefix and metric, in one step.
pub(in crate::net) fn replace(route: &KernelRoute) -> Request {
    Request {
        operation: format!("replace route {route}"),
        message: RouteNetlinkMessage::NewRoute(encode(route)),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}

/// Deletes a route; protocol and next hop must match, so another's is never hit.
pub(in crate::net) fn delete(route: &KernelRoute) -> Request {
    Request {
        operation: format!("delete route {route}"),
        message: RouteNetlinkMessage::DelRoute(encode(route)),
        flags: 0,
    }
}

fn encode(route: &KernelRoute) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.prefix);
    message.header.destination_prefix_length = route.prefix.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.tos = route.tos;
    message.header.kind = if route.unicast { RouteType::Unicast } else { RouteType::BlackHole };
    message.header.scope = if route.scope_link { RouteScope::Link } else { RouteScope::Universe };
    if route.prefix.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(route.prefix.addr().into()));
    }
    if route.metric > 0 {
        message.attributes.push(RouteAttribute::Priority(route.metric));
    }
    match route.next_hops.as_slice() {
        [] => {}
        [hop] => {
            if hop.onlink {
                message.header.flags |= RouteFlags::Onlink;
            }
            message.attributes.extend(hop.gateway.map(|gateway| via(route.prefix, gateway)));
            message.attributes.push(RouteAttribute::Oif(hop.ifindex));
        }
        hops => {
            let hops = hops.iter().map(|hop| {
                let mut encoded = RouteNextHop::default();
                encoded.interface_index = hop.ifindex;
                if hop.onlink {
                    encoded.flags |= RouteNextHopFlags::Onlink;
                }
                encoded.attributes.extend(hop.gateway.map(|gateway| via(route.prefix, gateway)));
                encoded
            });
            message.attributes.push(RouteAttribute::MultiPath(hops.collect()));
        }
    }
    message
}

fn family(prefix: IpNet) -> AddressFamily {
    match prefix {
        IpNet::V4(_) => AddressFamily::Inet,
        IpNet::V6(_) => AddressFamily::Inet6,
    }
}

/// `RTA_GATEWAY`, or `RTA_VIA` where the families differ.
fn via(prefix: IpNet, gateway: IpAddr) -> RouteAttribute {
    match (prefix, gateway) {
        (IpNet::V4(_), IpAddr::V6(v6)) => RouteAttribute::Via(RouteVia::Inet6(v6)),
        (IpNet::V6(_), IpAddr::V4(v4)) => RouteAttribute::Via(RouteVia::Inet(v4)),
        _ => RouteAttribute::Gateway(gateway.into()),
    }
}

impl Netlink {
    /// The main table's routes of both families, optionally of one protocol only (the kernel filters).
    ///
    /// # Errors
    /// [`Error`], of the kernel or the connection.
    pub async fn routes(&self, protocol: Option<u8>) -> Result<Vec<KernelRoute>, Error> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            message.header.protocol = protocol.map(RouteProtocol::from).unwrap_or_default();
            let dump = match self.dump("list routes", RouteNetlinkMessage::GetRoute(message)).await {
                // An empty table of a family that is off.
                Err(error) if error.is_missing() || error.errno() == Some(libc::EAFNOSUPPORT) => continue,
                dump => dump?,
            };
            let decoded = dump.into_iter().filter_map(decode);
            routes.extend(decoded.filter(|r| protocol.is_none_or(|protocol| r.protocol == protocol)));
        }
        Ok(routes)
    }

    /// Whether the namespace would deliver packets for an address to itself. The kernel gets there some time after
    /// it has acknowledged an IPv6 address, even one without duplicate detection (`addrconf_dad_work`).
    ///
    /// # Errors
    /// [`Error`], of the kernel or the connection.
    pub async fn is_local(&self, address: IpAddr) -> Result<bool, Error> {
        let to = IpNet::from(address);
        let mut message = RouteMessage::default();
        message.header.address_family = family(to);
        message.header.destination_prefix_length = to.prefix_len();
        message.attributes.push(RouteAttribute::Destination(address.into()));
        let operation = format!("find route to {address}");
        let message = RouteNetlinkMessage::GetRoute(message);
        match self.get(Request { operation, message, flags: 0 }).await {
            Ok(Some(RouteNetlinkMessage::NewRoute(route))) => Ok(route.header.kind == RouteType::Local),
            Ok(_) => Ok(false),
            Err(error) if error.errno() == Some(libc::ENETUNREACH) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Adds a route.
    ///
    /// # Errors
    /// [`Error`]; `EEXIST`: there is one of its prefix and metric, whoever's it is.
    pub async fn add_route(&self, route: &KernelRoute) -> Result<(), Error> {
        self.apply(vec![add(route)]).await
    }

    /// Deletes a route; protocol and next hop must match. `false`: there was none.
    ///
    /// # Errors
    /// [`Error`], of the kernel or the connection.
    pub async fn delete_route(&self, route: &KernelRoute) -> Result<bool, Error> {
        match self.apply(vec![delete(route)]).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn decode(message: RouteNetlinkMessage) -> Option<KernelRoute> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let header = &message.header;
    let unicast = match header.kind {
        RouteType::Unicast => true,
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => false,
        _ => return None,
    };
    let unspecified: IpAddr = match header.address_family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut destination, mut metric, mut table) = (unspecified, 0, u32::from(header.table));
    let (mut gateway, mut oif, mut hops) = (None, None, Vec::new());
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => destination = v4.into(),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => destination = v6.into(),
            RouteAttribute::Priority(priority) => metric = priority,
            RouteAttribute::Table(id) => table = id,
            RouteAttribute::Oif(index) => oif = Some(index),
            RouteAttribute::MultiPath(several) => hops = several.iter().map(decode_hop).collect(),
            other => gateway = gateway.or(decode_gateway(&other)),
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    if let (true, Some(ifindex)) = (unicast && hops.is_empty(), oif) {
        hops.push(NextHop { gateway, ifindex, onlink: header.flags.contains(RouteFlags::Onlink) });
    }
    Some(KernelRoute {
        prefix: IpNet::new(destination, header.destination_prefix_length).ok()?,
        protocol: header.protocol.into(),
        metric,
        tos: header.tos,
        unicast,
        scope_link: header.scope == RouteScope::Link,
        next_hops: hops,
    })
}

fn decode_gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(v4)) | RouteAttribute::Via(RouteVia::Inet(v4)) => {
            Some((*v4).into())
        }
        RouteAttribute::Gateway(RouteAddress::Inet6(v6)) | RouteAttribute::Via(RouteVia::Inet6(v6)) => {
            Some((*v6).into())
        }
        _ => None,
    }
}

fn decode_hop(hop: &RouteNextHop) -> NextHop {
    NextHop {
        gateway: hop.attributes.iter().find_map(decode_gateway),
        ifindex: hop.interface_index,
        onlink: hop.flags.contains(RouteNextHopFlags::Onlink),
    }
}
