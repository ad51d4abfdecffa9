//! Making a pod's interface: the pair first, then both ends at the same time; and, once the datapath knows the pod,
//! bringing it up.
//!
//! Until then both ends are down: not one packet passes, whatever the pod sends, and whatever waits for it. The inner
//! end has to be, too: `bpf_redirect_peer` asks for no carrier, only for an inner end that is up, and the datapath
//! delivers that way from the instant at which the first row of the pod stands, while other rows are yet to come.

use super::{Error, PodInterface, PodLink, pod_mac};
use crate::net::netlink::{
    Link, LinkChange, Netlink, Request, Veth, add_address, add_neighbor, add_route, change_link,
};
use crate::net::netns::NetNs;
use crate::net::sysctl::{self, Family, Key};
use crate::net::{GATEWAY_V6, HOST_MAC};
use futures_util::future;
use ipnet::IpNet;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// `LOOPBACK_IFINDEX` of the kernel's `include/net/flow.h`: `lo` is the first link of every namespace.
const LOOPBACK: u32 = 1;

/// The kernel's link watch takes microseconds, or until others release the rtnl lock.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Creates a pod's interface with all that belongs to it but what [`start`] does: all of it or, on any error,
/// nothing.
///
/// # Errors
/// [`Error::Exists`]: there is a host end of this name, untouched; [`Error::PodNameTaken`]; others name the
/// step that failed.
pub async fn create(nl: &Netlink, pod: &PodInterface) -> Result<PodLink, Error> {
    pod.validate()?;
    let ns = NetNs::open(&pod.netns)?;
    if ns.identity() == nl.identity() {
        return Err(Error::OwnNamespace { netns: pod.netns.clone() });
    }
    let inside = Netlink::open_in(&ns)?;
    let (host, pod) = (nl.clone(), pod.clone());
    let (link, mut unfinished) = nl
        .carry_out("create a pod's interface", async move {
            make_pair(&host, &inside, &pod, &ns).await?;
            let mut unfinished = Unfinished { nl: host, host_name: Some(pod.host_name.clone()) };
            match configure(&unfinished.nl, &inside, &pod).await {
                Ok(link) => Ok((link, unfinished)),
                Err(error) => {
                    unfinished.undo().await;
                    Err(error)
                }
            }
        })
        .await?;
    unfinished.keep();
    Ok(link)
}

/// A pair that nobody has taken yet: dropped, it is deleted. That happens when the future of [`create`] is.
struct Unfinished {
    nl: Netlink,
    host_name: Option<String>,
}

impl Unfinished {
    fn keep(&mut self) {
        self.host_name = None;
    }

    async fn undo(&mut self) {
        if let Some(name) = self.host_name.take() {
            remove(&self.nl, &name).await;
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(name) = self.host_name.take() {
            let nl = self.nl.clone();
            self.nl.start_detached(async move { remove(&nl, &name).await });
        }
    }
}

async fn remove(nl: &Netlink, host_name: &str) {
    if let Err(error) = nl.delete_link(host_name).await {
        // The alias, or its absence, lets the next reconciliation find it.
        tracing::error!(
            interface = host_name,
            error = &error as &dyn std::error::Error,
            "half-made interface stays"
        );
    }
}

async fn make_pair(host: &Netlink, inside: &Netlink, pod: &PodInterface, ns: &NetNs) -> Result<(), Error> {
    let pair = Veth {
        name: &pod.host_name,
        mac: HOST_MAC,
        peer_netns: ns,
        peer_name: &pod.pod_name,
        peer_mac: pod_mac(&pod.host_name),
        mtu: pod.mtu,
    };
    match host.create_veth(&pair).await {
        Err(error) if error.is_exists() => {
            // The kernel does not say which of the two names is taken.
            if host.link_by_name(&pod.host_name).await?.is_some() {
                Err(Error::Exists { host_name: pod.host_name.clone() })
            } else if inside.link_by_name(&pod.pod_name).await?.is_some() {
                Err(Error::PodNameTaken { netns: pod.netns.clone(), pod_name: pod.pod_name.clone() })
            } else {
                Err(error.into())
            }
        }
        result => Ok(result?),
    }
}

async fn configure(host: &Netlink, inside: &Netlink, pod: &PodInterface) -> Result<PodLink, Error> {
    let missing = || Error::Missing { host_name: pod.host_name.clone() };
    let end = host.link_by_name(&pod.host_name).await?.ok_or_else(missing)?;
    future::try_join(host_side(host, pod, &end), pod_side(inside, pod)).await?;
    Ok(PodLink { host_ifindex: end.index, host_mac: HOST_MAC, pod_mac: pod_mac(&pod.host_name) })
}

/// Brings both ends up, with the pod's addresses and all routes, and waits until both can send. Where it fails the
/// interface is to be deleted.
///
/// # Errors
/// [`Error::Missing`]: there is no such host end; [`Error::NotReady`]; others name the step that failed.
pub async fn start(nl: &Netlink, pod: &PodInterface) -> Result<(), Error> {
    pod.validate()?;
    let inside = Netlink::open_in(&NetNs::open(&pod.netns)?)?;
    let missing = || Error::Missing { host_name: pod.host_name.clone() };
    let end = nl.link_by_name(&pod.host_name).await?.ok_or_else(missing)?;
    let peer = end.peer.ok_or_else(missing)?;
    future::try_join(nl.apply(bring_up(pod, &end)), inside.apply(bring_up_inside(pod, peer))).await?;
    ready(nl, end.index, &inside, peer, pod).await
}

async fn pod_side(nl: &Netlink, pod: &PodInterface) -> Result<(), Error> {
    let (name, wants_v6) = (pod.pod_name.clone(), pod.has_v6());
    let has_v6 = nl.run(move || pod_settings(&name, wants_v6)).await??;
    if wants_v6 && !has_v6 {
        return Err(Error::NoIpv6 { host_name: pod.host_name.clone() });
    }
    Ok(())
}

/// As for the host end: no routes before it is up.
fn bring_up_inside(pod: &PodInterface, ifindex: u32) -> Vec<Request> {
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    let mut requests = vec![change_link(LOOPBACK, "lo", &up), change_link(ifindex, &pod.pod_name, &up)];
    requests.extend(pod.addresses.iter().map(|a| add_address(ifindex, &pod.pod_name, IpNet::from(*a))));
    requests.extend(pod.gateways().map(|gateway| add_neighbor(ifindex, &pod.pod_name, gateway, HOST_MAC)));
    requests.extend(pod.pod_routes(ifindex).iter().map(add_route));
    requests
}

/// Before the interface comes up: no router discovery, no duplicate detection; IPv6 on where it is needed,
/// since runtimes switch it off in namespaces that they think have none. Returns whether the interface has IPv6.
fn pod_settings(interface: &str, wants_v6: bool) -> Result<bool, sysctl::Error> {
    let has_v6 = has_v6(interface)?;
    if has_v6 {
        for name in ["accept_ra", "accept_dad"] {
            sysctl::set(&Key::new(Family::V6, interface, name), "0")?;
        }
        if wants_v6 {
            // A pod talks to its own address, and to ::1, over `lo`.
            for interface in ["lo", interface] {
                sysctl::set(&Key::new(Family::V6, interface, "disable_ipv6"), "0")?;
            }
        }
    }
    Ok(has_v6)
}

async fn host_side(nl: &Netlink, pod: &PodInterface, end: &Link) -> Result<(), Error> {
    // First of all, so that a crash leaves as little as possible without a name.
    let alias = LinkChange { alias: Some(pod.alias.clone()), ..LinkChange::default() };
    nl.change_link(end.index, &end.name, &alias).await?;
    let (name, wants_v6) = (pod.host_name.clone(), pod.has_v6());
    let has_v6 = nl.run(move || host_settings(&name, wants_v6)).await??;
    if wants_v6 && !has_v6 {
        return Err(Error::NoIpv6 { host_name: pod.host_name.clone() });
    }
    if has_v6 {
        // All host ends have one MAC address, so the kernel would give them all one address. `do_setlink`
        // looks at this after it has brought a link up: a request of its own.
        let no_link_local = LinkChange { no_link_local: true, ..LinkChange::default() };
        nl.change_link(end.index, &end.name, &no_link_local).await?;
    }
    Ok(())
}

/// The kernel takes no route to a link that is down.
fn bring_up(pod: &PodInterface, end: &Link) -> Vec<Request> {
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    let mut requests: Vec<Request> = Vec::with_capacity(2 + 2 * pod.addresses.len());
    requests.push(change_link(end.index, &end.name, &up));
    if pod.has_v6() {
        requests.push(add_address(end.index, &end.name, gateway_net()));
    }
    let mac = pod_mac(&pod.host_name);
    requests.extend(pod.addresses.iter().map(|address| add_neighbor(end.index, &end.name, *address, mac)));
    requests.extend(pod.host_routes(end.index).map(|route| add_route(&route)));
    requests
}

/// The host end forwards, believes no router and answers for nobody. Returns whether it has IPv6.
fn host_settings(interface: &str, wants_v6: bool) -> Result<bool, sysctl::Error> {
    for (name, value) in [("forwarding", "1"), ("rp_filter", "0"), ("proxy_arp", "0")] {
        sysctl::set(&Key::new(Family::V4, interface, name), value)?;
    }
    let has_v6 = has_v6(interface)?;
    if has_v6 {
        for (name, value) in [("accept_ra", "0"), ("forwarding", "1")] {
            sysctl::set(&Key::new(Family::V6, interface, name), value)?;
        }
        if wants_v6 {
            sysctl::set(&Key::new(Family::V6, interface, "disable_ipv6"), "0")?;
        }
    }
    Ok(has_v6)
}

/// None has where the kernel's IPv6 is off altogether, nor one whose MTU is below 1280 (`addrconf_notify`).
fn has_v6(interface: &str) -> Result<bool, sysctl::Error> {
    Ok(sysctl::get(&Key::new(Family::V6, interface, "disable_ipv6"))?.is_some())
}

/// [`GATEWAY_V6`] with the subnet of link-local addresses (RFC 4291 §2.5.6).
pub(super) fn gateway_net() -> IpNet {
    IpNet::V6(ipnet::Ipv6Net::new_assert(GATEWAY_V6, 64))
}

/// Two things happen in the kernel after it has acknowledged them, and until then packets are lost: an end that
/// came up before its peer has no queue until the link watch has seen the carrier (asking makes recent kernels
/// do it at once, `linkwatch_sync_dev`), and an IPv6 address gets its local route in a work queue.
async fn ready(
    host: &Netlink,
    end: u32,
    inside: &Netlink,
    peer: u32,
    pod: &PodInterface,
) -> Result<(), Error> {
    let deadline = Instant::now() + READY_WITHIN;
    let operational = |link: Option<Link>| link.is_some_and(|link| link.operational);
    loop {
        let links = future::try_join(host.link(end), inside.link(peer));
        let addresses = future::try_join_all(
            pod.addresses.iter().filter(|a| a.is_ipv6()).map(|address| inside.is_local(*address)),
        );
        let ((end, peer), local) = future::try_join(links, addresses).await?;
        if operational(end) && operational(peer) && local.into_iter().all(|local| local) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::NotReady { host_name: pod.host_name.clone() });
        }
        sleep(Duration::from_millis(1)).await;
    }
}
