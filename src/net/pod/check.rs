//! Comparing a pod's interface with what was asked for (CNI `CHECK`).

use super::create::gateway_net;
use super::{Error, PodInterface, PodLink, show_mac};
use crate::net::netlink::{Address, KernelRoute, Link, Neighbor, Netlink};
use crate::net::netns::NetNs;
use crate::net::{HOST_MAC, RTPROT_NETD};
use ipnet::IpNet;
use std::net::IpAddr;

/// Checks that a pod's interface is as [`super::create`] would make it. What others added to the pod (more
/// addresses, more routes) is none of netd's business.
///
/// # Errors
/// [`Error::Missing`]: there is no host end; [`Error::Differs`] lists everything that is otherwise;
/// [`Error::NetNs`]: the pod's namespace is gone.
pub async fn check(nl: &Netlink, pod: &PodInterface) -> Result<PodLink, Error> {
    pod.validate()?;
    let missing = || Error::Missing { host_name: pod.host_name.clone() };
    let end = nl.link_by_name(&pod.host_name).await?.ok_or_else(missing)?;
    let inside = Netlink::open_in(&NetNs::open(&pod.netns)?)?;
    let mut found = Findings::default();
    let Some(peer) = inside.link_by_name(&pod.pod_name).await? else {
        found.say(format!("the pod has no interface {}", pod.pod_name));
        return Err(found.into_error(pod));
    };
    if end.peer != Some(peer.index) || peer.peer != Some(end.index) {
        found.say(format!("{} of the pod is not its other end", pod.pod_name));
        return Err(found.into_error(pod));
    }
    let pod_mac = peer.mac.unwrap_or_default();
    compare_link(&mut found, "host end", &end, pod);
    compare_link(&mut found, "pod's end", &peer, pod);
    if end.alias.as_deref() != Some(pod.alias.as_str()) {
        found.say(format!("alias is `{}`, not `{}`", end.alias.as_deref().unwrap_or_default(), pod.alias));
    }
    if end.mac != Some(HOST_MAC) {
        found.say(format!(
            "host end's MAC is {}, not {}",
            show_mac(end.mac.unwrap_or_default()),
            show_mac(HOST_MAC)
        ));
    }
    let host_addresses = pod.has_v6().then(gateway_net);
    let pod_addresses = pod.addresses.iter().map(|address| IpNet::from(*address));
    compare_addresses(
        &mut found,
        "host end",
        host_addresses.into_iter(),
        &nl.addresses(Some(end.index)).await?,
    );
    compare_addresses(&mut found, "pod", pod_addresses, &inside.addresses(Some(peer.index)).await?);
    let host_neighbors = pod.addresses.iter().map(|address| (*address, pod_mac));
    let pod_neighbors = pod.gateways().map(|gateway| (gateway, HOST_MAC));
    compare_neighbors(&mut found, "node", host_neighbors, &nl.neighbors(Some(end.index)).await?);
    compare_neighbors(&mut found, "pod", pod_neighbors, &inside.neighbors(Some(peer.index)).await?);
    compare_routes(&mut found, "node", pod.host_routes(end.index), &nl.routes(Some(RTPROT_NETD)).await?);
    compare_routes(
        &mut found,
        "pod",
        pod.pod_routes(peer.index).into_iter(),
        &inside.routes(Some(RTPROT_NETD)).await?,
    );
    if found.0.is_empty() {
        Ok(PodLink { host_ifindex: end.index, host_mac: HOST_MAC, pod_mac })
    } else {
        Err(found.into_error(pod))
    }
}

#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn say(&mut self, difference: String) {
        self.0.push(difference);
    }

    fn into_error(self, pod: &PodInterface) -> Error {
        Error::Differs { host_name: pod.host_name.clone(), differences: self.0 }
    }
}

fn compare_link(found: &mut Findings, which: &str, link: &Link, pod: &PodInterface) {
    if !link.up {
        found.say(format!("{which} is down"));
    }
    if link.mtu != pod.mtu {
        found.say(format!("{which}'s MTU is {}, not {}", link.mtu, pod.mtu));
    }
}

fn compare_addresses(
    found: &mut Findings,
    which: &str,
    wanted: impl Iterator<Item = IpNet>,
    there: &[Address],
) {
    for net in wanted {
        match there.iter().find(|address| address.net == net) {
            None => found.say(format!("{which} lacks address {net}")),
            Some(address) if address.tentative => found.say(format!("{which}'s address {net} is not usable")),
            Some(_) => {}
        }
    }
}

fn compare_neighbors(
    found: &mut Findings,
    which: &str,
    wanted: impl Iterator<Item = (IpAddr, [u8; 6])>,
    there: &[Neighbor],
) {
    for (address, mac) in wanted {
        match there.iter().find(|neighbor| neighbor.address == address) {
            Some(neighbor) if neighbor.permanent && neighbor.mac == mac => {}
            Some(neighbor) if neighbor.permanent => {
                found.say(format!(
                    "{which} has {} as neighbour {address}, not {}",
                    show_mac(neighbor.mac),
                    show_mac(mac)
                ));
            }
            _ => found.say(format!("{which} lacks a permanent neighbour {address}")),
        }
    }
}

fn compare_routes(
    found: &mut Findings,
    which: &str,
    wanted: impl Iterator<Item = KernelRoute>,
    there: &[KernelRoute],
) {
    for route in wanted {
        if !there.iter().any(|other| other.prefix == route.prefix && other.next_hops == route.next_hops) {
            found.say(format!("{which} lacks route {route}"));
        }
    }
}
