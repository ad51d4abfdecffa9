//! A pod's interface: a veth pair, one end in the pod's namespace, the other ("host end") in the node's.
//!
//! Pod side: the interface under its asked name, `/32` and `/128` addresses, a default route by a gateway that
//! a permanent neighbour entry resolves ([`GATEWAY_V4`], [`GATEWAY_V6`]), `lo` up. No ARP, no ND, no duplicate
//! detection: the addresses are usable when [`start`] returns. Host side: `<pod>/32` and `<pod>/128` routes
//! of protocol [`RTPROT_NETD`], permanent neighbours for the pod's addresses, forwarding on.
//!
//! Invariants:
//! - Everything of a pod hangs on the pair: deleting the host end removes addresses, routes, neighbours.
//! - [`create`] leaves all or nothing, also when its future is dropped half-way.
//! - Between [`create`] and [`start`] no packet passes: there is time for the datapath to learn of the pod.
//! - The host end's name is a function of container and interface, its alias says whose it is: what
//!   [`list`] returns is enough to rebuild a ledger.
//! - The pod's MAC address is a function of the name too, set explicitly, so that no udev policy changes it.

mod check;
mod create;
mod list;
#[cfg(test)]
mod tests;

pub use check::check;
pub use create::{create, start};
pub(super) use list::pod_of;
pub use list::{HostEnd, list};

use super::netlink::{self, KernelRoute, Netlink, NextHop};
use super::{GATEWAY_V4, GATEWAY_V6, HOST_MAC, netns, sysctl};
use ipnet::IpNet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

/// What a pod is to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodInterface {
    /// Path of the pod's network namespace.
    pub netns: PathBuf,
    /// Name of the interface in the pod, e.g. `eth0`.
    pub pod_name: String,
    /// Name of the host end, see [`host_name`].
    pub host_name: String,
    /// The pod's addresses: one or more, of one family or both.
    pub addresses: Vec<IpAddr>,
    /// MTU of both ends.
    pub mtu: u32,
    /// `ifalias` of the host end: `netd:<container_id>:<pod_ifname>:<namespace>/<name>`.
    pub alias: String,
}

/// What the datapath needs to know of a pod's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Index of the host end.
    pub host_ifindex: u32,
    /// MAC address of the host end: the pod's gateway.
    pub host_mac: [u8; 6],
    /// MAC address of the pod's end.
    pub pod_mac: [u8; 6],
}

/// A pod's interface could not be made, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request makes no sense; nothing was touched.
    #[error("pod interface {host_name}: {reason}")]
    Invalid {
        /// Host end as asked.
        host_name: String,
        /// What is wrong with the request.
        reason: String,
    },
    /// The pod's namespace is the node's own.
    #[error("{} is the node's own network namespace", netns.display())]
    OwnNamespace {
        /// Path as asked.
        netns: PathBuf,
    },
    /// The pod's namespace cannot be used.
    #[error(transparent)]
    NetNs(#[from] netns::Error),
    /// There is a host end of this name already: the pod has its interface, or a former life of it left one.
    #[error("interface {host_name} exists already")]
    Exists {
        /// Name of the host end.
        host_name: String,
    },
    /// The pod has an interface of the asked name, which is not this pod's host end's peer.
    #[error("the pod's network namespace {} has an interface {pod_name} already", netns.display())]
    PodNameTaken {
        /// The pod's namespace.
        netns: PathBuf,
        /// The name asked for.
        pod_name: String,
    },
    /// An IPv6 address was asked for on a kernel whose IPv6 is off (`ipv6.disable=1`).
    #[error("pod interface {host_name}: the kernel has no IPv6")]
    NoIpv6 {
        /// Host end as asked.
        host_name: String,
    },
    /// The pair did not become able to send.
    #[error("interface {host_name} did not come up")]
    NotReady {
        /// Name of the host end.
        host_name: String,
    },
    /// There is no such host end.
    #[error("interface {host_name} does not exist")]
    Missing {
        /// Name of the host end.
        host_name: String,
    },
    /// [`check`] found something else than what was asked for.
    #[error("interface {host_name}: {}", differences.join("; "))]
    Differs {
        /// Name of the host end.
        host_name: String,
        /// One sentence each.
        differences: Vec<String>,
    },
    /// The kernel refused a step.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// A setting could not be made.
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
}

impl Error {
    /// The host end is there already ([`Error::Exists`]): the caller may check or delete it.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        matches!(self, Self::Exists { .. })
    }

    /// The pod's namespace is gone.
    #[must_use]
    pub fn is_netns_gone(&self) -> bool {
        matches!(self, Self::NetNs(error) if error.is_gone())
    }
}

/// Name of the host end for an interface of a container: `nd` and 12 hexadecimal digits, the same for ever.
#[must_use]
pub fn host_name(container_id: &str, pod_ifname: &str) -> String {
    let hash = fnv1a(&[container_id.as_bytes(), &[0], pod_ifname.as_bytes()]);
    format!("nd{:012x}", (hash ^ (hash >> 48)) & 0xffff_ffff_ffff)
}

/// Whether a name is one that [`host_name`] makes.
#[must_use]
pub fn is_host_name(name: &str) -> bool {
    name.strip_prefix("nd").is_some_and(|digits| {
        digits.len() == 12 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// MAC address of the pod's end: locally administered, the same for ever, never the host end's.
fn pod_mac(host_name: &str) -> [u8; 6] {
    let [a, b, c, d, e, ..] = fnv1a(&[b"mac", host_name.as_bytes()]).to_le_bytes();
    let mac = [0x02, a, b, c, d, e];
    if mac == HOST_MAC { [0x06, a, b, c, d, e] } else { mac }
}

/// 64-bit FNV-1a: stable across versions and machines, which names in the kernel must be.
fn fnv1a(parts: &[&[u8]]) -> u64 {
    parts
        .iter()
        .flat_map(|part| part.iter())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Removes a pod's interface with all that hangs on it; `false`: it was not there. The pod's namespace need not
/// exist any more.
///
/// # Errors
/// [`Error::Invalid`]: not a host end's name; [`Error::Netlink`].
pub async fn delete(nl: &Netlink, host_name: &str) -> Result<bool, Error> {
    if !is_host_name(host_name) {
        return Err(invalid(host_name, "not a name of netd's interfaces"));
    }
    Ok(nl.delete_link(host_name).await?)
}

impl PodInterface {
    fn validate(&self) -> Result<(), Error> {
        let invalid = |reason: &str| Err(invalid(&self.host_name, reason));
        if !is_host_name(&self.host_name) {
            return invalid("not a name of netd's interfaces");
        }
        if !is_interface_name(&self.pod_name) {
            return invalid(&format!("`{}` cannot be an interface's name", self.pod_name.escape_debug()));
        }
        if self.alias.is_empty() || self.alias.len() > 255 || self.alias.contains('\0') {
            return invalid("the alias must have 1 to 255 bytes");
        }
        if self.addresses.is_empty() {
            return invalid("no address");
        }
        for (n, address) in self.addresses.iter().enumerate() {
            if !is_usable(*address) {
                return invalid(&format!("{address} cannot be a pod's address"));
            }
            if self.addresses.iter().skip(n + 1).any(|other| other == address) {
                return invalid(&format!("{address} is given twice"));
            }
        }
        // RFC 791 and RFC 8200 §5: the least that every link must carry.
        let least = if self.has_v6() { 1280 } else { 68 };
        if !(least..=65535).contains(&self.mtu) {
            return invalid(&format!("MTU {} is not between {least} and 65535", self.mtu));
        }
        Ok(())
    }

    fn has_v4(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv4)
    }

    fn has_v6(&self) -> bool {
        self.addresses.iter().any(IpAddr::is_ipv6)
    }

    /// Gateways of the families that the pod has addresses of.
    fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.has_v4().then_some(IpAddr::V4(GATEWAY_V4));
        let v6 = self.has_v6().then_some(IpAddr::V6(GATEWAY_V6));
        v4.into_iter().chain(v6)
    }

    /// Routes inside the pod. Kept in the order in which the kernel can take them: the gateway first.
    fn pod_routes(&self, ifindex: u32) -> Vec<KernelRoute> {
        let direct = NextHop { gateway: None, ifindex, onlink: false };
        let mut routes = Vec::with_capacity(3);
        for gateway in self.gateways() {
            let default = match gateway {
                IpAddr::V4(_) => {
                    routes.push(KernelRoute::new(IpNet::from(gateway), direct));
                    IpNet::V4(ipnet::Ipv4Net::default())
                }
                IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
            };
            routes.push(KernelRoute::new(default, NextHop { gateway: Some(gateway), ..direct }));
        }
        routes
    }

    /// Routes of the node to the pod.
    fn host_routes(&self, ifindex: u32) -> impl Iterator<Item = KernelRoute> {
        let direct = NextHop { gateway: None, ifindex, onlink: false };
        self.addresses.iter().map(move |address| KernelRoute::new(IpNet::from(*address), direct))
    }
}

fn invalid(host_name: &str, reason: &str) -> Error {
    Error::Invalid { host_name: host_name.escape_debug().to_string(), reason: reason.to_owned() }
}

/// The kernel's `dev_valid_name`, and none that would be a template or a folder of `/proc/sys`.
fn is_interface_name(name: &str) -> bool {
    (1..16).contains(&name.len())
        && !matches!(name, "." | ".." | "lo" | "all" | "default")
        && !name.contains(|c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace())
}

fn is_usable(address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    !special
        && match address {
            IpAddr::V4(v4) => !v4.is_broadcast() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local() && v6.to_ipv4_mapped().is_none(),
        }
}

fn show_mac(mac: [u8; 6]) -> String {
    let mut text = String::with_capacity(17);
    for (n, byte) in mac.iter().enumerate() {
        // Writing to a string cannot fail.
        let _infallible = write!(text, "{}{byte:02x}", if n == 0 { "" } else { ":" });
    }
    text
}
