//! The node itself: which interfaces lead off it, what MTU and addresses they have, and whether it forwards.
//!
//! Invariants: [`enable_forwarding`] changes nothing that is right already and tells everything that it changes;
//! a node that configures itself by router advertisements goes on doing so (RFC 4861 §6.2.2 and the kernel's
//! `accept_ra=2`: a router ignores advertisements unless told otherwise, and drops what it had learnt).

use super::GATEWAY_V6;
use super::config::Config;
use super::netlink::{self, Link, Netlink};
use super::route::LinkAddress;
use super::sysctl::{self, Family, Key};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

/// MTU of pods where no uplink tells one: Ethernet's (RFC 894).
const ETHERNET_MTU: u32 = 1500;

/// An interface that leads off the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Index.
    pub ifindex: u32,
    /// Name.
    pub name: String,
    /// MTU.
    pub mtu: u32,
    /// Its packets begin with an Ethernet header. Those of tunnels, PPP and WireGuard do not.
    pub ethernet: bool,
    /// Its usable addresses, each with its subnet.
    pub addresses: Vec<IpNet>,
}

/// A setting that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Path below `/proc/sys`.
    pub key: Key,
    /// The value it had.
    pub from: String,
    /// The value it has now.
    pub to: &'static str,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.key, self.from, self.to)
    }
}

/// The node's interfaces could not be read or set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration names an uplink that the node does not have.
    #[error("net.uplinks: there is no interface {name}; this node has {present}")]
    NoSuchUplink {
        /// As configured.
        name: String,
        /// The interfaces there are.
        present: String,
    },
    /// The kernel refused a question.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// A setting could not be read or made.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
}

/// The configured uplinks in their order, or else the interfaces of the main table's default routes, the
/// preferred first. A node without either has none: it is not connected (yet).
///
/// # Errors
/// [`Error::NoSuchUplink`]: a configured one is missing.
pub async fn uplinks(nl: &Netlink, config: &Config) -> Result<Vec<Uplink>, Error> {
    let links = nl.links().await?;
    let chosen: Vec<&Link> = if config.uplinks.is_empty() {
        default_route_links(nl, &links).await?
    } else {
        let find = |name: &String| {
            links.iter().find(|link| link.name == *name).ok_or_else(|| Error::NoSuchUplink {
                name: name.clone(),
                present: links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>().join(", "),
            })
        };
        config.uplinks.iter().map(find).collect::<Result<_, _>>()?
    };
    let addresses = nl.addresses(None).await?;
    let of = |index| addresses.iter().filter(move |a| a.index == index && !a.tentative).map(|a| a.net);
    Ok(chosen
        .into_iter()
        .map(|link| Uplink {
            ifindex: link.index,
            name: link.name.clone(),
            mtu: link.mtu,
            ethernet: link.mac.is_some(),
            addresses: of(link.index).collect(),
        })
        .collect())
}

async fn default_route_links<'a>(nl: &Netlink, links: &'a [Link]) -> Result<Vec<&'a Link>, Error> {
    let mut defaults = nl.routes(None).await?;
    defaults.retain(|route| route.prefix.prefix_len() == 0 && route.unicast);
    defaults.sort_by_key(|route| (route.prefix.addr().is_ipv6(), route.metric));
    let mut chosen: Vec<&Link> = Vec::new();
    for hop in defaults.iter().flat_map(|route| &route.next_hops) {
        let link = links.iter().find(|link| link.index == hop.ifindex && !link.loopback);
        if let Some(link) = link.filter(|link| !chosen.iter().any(|other| other.index == link.index)) {
            chosen.push(link);
        }
    }
    Ok(chosen)
}

/// All addresses of the node itself as others see it, in order: those of all its interfaces but the loopback's own,
/// and the one by which pods know it ([`GATEWAY_V6`]), which it gets with the first of them.
///
/// # Errors
/// [`netlink::Error`].
pub async fn addresses(nl: &Netlink) -> Result<Vec<IpAddr>, netlink::Error> {
    let all = nl.addresses(None).await?;
    let own = all.iter().map(|address| address.net.addr()).filter(|address| !address.is_loopback());
    let own: BTreeSet<IpAddr> = own.chain([IpAddr::V6(GATEWAY_V6)]).collect();
    Ok(own.into_iter().collect())
}

/// MTU of pods: the configured, or the smallest of the uplinks', so that no pod sends what one cannot carry.
#[must_use]
pub fn pod_mtu(config: &Config, uplinks: &[Uplink]) -> u32 {
    let smallest = uplinks.iter().map(|uplink| uplink.mtu).min();
    config.mtu.or(smallest).unwrap_or(ETHERNET_MTU)
}

/// The uplinks' addresses in the form that [`super::plan::node_routes`] takes.
#[must_use]
pub fn link_addresses(uplinks: &[Uplink]) -> Vec<LinkAddress> {
    let of = |uplink: &Uplink| {
        let ifindex = uplink.ifindex;
        uplink.addresses.iter().map(move |net| LinkAddress { ifindex, net: *net }).collect::<Vec<_>>()
    };
    uplinks.iter().flat_map(of).collect()
}

/// Makes the node forward IPv4 and, where the kernel has it, IPv6; returns what had to be changed, in order.
///
/// # Errors
/// [`Error::Sysctl`]: `/proc/sys` is read-only, or not for us.
pub async fn enable_forwarding(nl: &Netlink, uplinks: &[Uplink]) -> Result<Vec<Change>, Error> {
    let names: Vec<String> = uplinks.iter().map(|uplink| uplink.name.clone()).collect();
    Ok(nl.run(move || forward(&names)).await??)
}

fn forward(uplinks: &[String]) -> Result<Vec<Change>, sysctl::Error> {
    let mut changes = Vec::new();
    let mut set = |key: Key, to| -> Result<(), sysctl::Error> {
        let from = sysctl::set(&key, to)?;
        changes.extend(from.map(|from| Change { key, from, to }));
        Ok(())
    };
    set(Key::new(Family::V4, "all", "forwarding"), "1")?;
    let forwarding = Key::new(Family::V6, "all", "forwarding");
    if sysctl::get(&forwarding)?.is_some() {
        // First: once it forwards, the kernel forgets the default routes of links that still say 1.
        for uplink in uplinks {
            let accept_ra = Key::new(Family::V6, uplink, "accept_ra");
            if sysctl::get(&accept_ra)?.as_deref() == Some("1") {
                set(accept_ra, "2")?;
            }
        }
        set(forwarding, "1")?;
    }
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::netns::NetNs;
    use crate::net::testing::{namespace, sh};

    fn config(uplinks: &[&str]) -> Config {
        Config { uplinks: uplinks.iter().map(ToString::to_string).collect(), mtu: None, node_routes: true }
    }

    /// A node with two links and `lo`, the second the better way out.
    fn node() -> (NetNs, Netlink) {
        let ns = namespace();
        sh(
            &ns,
            "ip link set lo up
             ip link add up0 type veth peer name far0; ip link add up1 type veth peer name far1
             for i in up0 up1 far0 far1; do ip link set $i up addrgenmode none; done
             ip link set up0 mtu 1400; ip link set up1 mtu 9000
             ip addr add 192.0.2.1/24 dev up0; ip addr add 2001:db8::1/64 dev up0 nodad
             ip addr add 198.51.100.1/25 dev up1
             ip route add default via 192.0.2.254 metric 200
             ip route add default via 198.51.100.100 metric 100
             ip -6 route add default via 2001:db8::ff",
        );
        let nl = Netlink::open_in(&ns).unwrap();
        (ns, nl)
    }

    #[tokio::test]
    async fn default_routes_tell_the_uplinks_the_preferred_first() {
        let (_ns, nl) = node();
        let uplinks = uplinks(&nl, &config(&[])).await.unwrap();
        let names: Vec<_> = uplinks.iter().map(|u| (u.name.as_str(), u.mtu)).collect();
        assert_eq!(names, [("up1", 9000), ("up0", 1400)]);
        let shown: Vec<String> = link_addresses(&uplinks).iter().map(|a| a.net.to_string()).collect();
        assert_eq!(shown, ["198.51.100.1/25", "192.0.2.1/24", "2001:db8::1/64"]);
        assert_eq!(pod_mtu(&config(&[]), &uplinks), 1400);
        assert_eq!(pod_mtu(&Config { mtu: Some(1300), ..config(&[]) }, &uplinks), 1300);
    }

    #[tokio::test]
    async fn multipath_default_route_names_all_its_links() {
        let (ns, nl) = node();
        sh(
            &ns,
            "ip route del default; ip route del default; ip -6 route del default
             ip route add default nexthop via 192.0.2.254 nexthop via 198.51.100.100",
        );
        let names: Vec<_> = uplinks(&nl, &config(&[])).await.unwrap().into_iter().map(|u| u.name).collect();
        assert_eq!(names, ["up0", "up1"]);
    }

    #[tokio::test]
    async fn configured_uplinks_win_and_must_exist() {
        let (_ns, nl) = node();
        let chosen = uplinks(&nl, &config(&["up0"])).await.unwrap();
        assert_eq!(chosen.len(), 1);
        assert_eq!(chosen[0].name, "up0");
        let error = uplinks(&nl, &config(&["up0", "eth7"])).await.unwrap_err().to_string();
        assert!(error.starts_with("net.uplinks: there is no interface eth7; this node has lo, "), "{error}");
        assert!(error.contains("up1"), "{error}");
    }

    #[tokio::test]
    async fn an_uplink_without_ethernet_is_told_apart() {
        let (ns, nl) = node();
        sh(&ns, "ip tuntap add tun0 mode tun");
        let chosen = uplinks(&nl, &config(&["up0", "tun0"])).await.unwrap();
        assert_eq!(chosen.iter().map(|uplink| uplink.ethernet).collect::<Vec<_>>(), [true, false]);
    }

    #[tokio::test]
    async fn unconnected_node_has_no_uplinks() {
        let ns = namespace();
        let nl = Netlink::open_in(&ns).unwrap();
        let none = uplinks(&nl, &config(&[])).await.unwrap();
        assert!(none.is_empty());
        assert_eq!(pod_mtu(&config(&[]), &none), 1500);
    }

    #[tokio::test]
    async fn forwarding_comes_on_once_and_router_advertisements_stay_believed() {
        let (ns, nl) = node();
        sh(&ns, "sysctl -qw net.ipv4.conf.all.forwarding=0 net.ipv6.conf.all.forwarding=0");
        sh(&ns, "sysctl -qw net.ipv6.conf.up0.accept_ra=1 net.ipv6.conf.up1.accept_ra=0");
        let uplinks = uplinks(&nl, &config(&[])).await.unwrap();
        let changes: Vec<String> =
            enable_forwarding(&nl, &uplinks).await.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(
            changes,
            [
                "/proc/sys/net/ipv4/conf/all/forwarding: 0 -> 1",
                "/proc/sys/net/ipv6/conf/up0/accept_ra: 1 -> 2",
                "/proc/sys/net/ipv6/conf/all/forwarding: 0 -> 1",
            ]
        );
        assert_eq!(enable_forwarding(&nl, &uplinks).await.unwrap(), []);
        let shown = sh(
            &ns,
            "sysctl -n net.ipv4.ip_forward net.ipv6.conf.up1.forwarding net.ipv6.conf.up0.accept_ra net.ipv6.conf.up1.accept_ra",
        );
        assert_eq!(shown.split_whitespace().collect::<Vec<_>>(), ["1", "1", "2", "0"]);
    }
}
