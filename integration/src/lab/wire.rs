//! Layer 2: a segment is a namespace with a bridge; hosts are plugged into it by veth.

use super::Namespace;
use anyhow::{Context as _, Result};
use std::sync::atomic::{AtomicU32, Ordering};

/// A layer-2 segment.
#[derive(Debug)]
pub struct Segment {
    namespace: Namespace,
    ports: AtomicU32,
}

impl Segment {
    pub(super) fn create(namespace: Namespace) -> Result<Self> {
        // A switch, not a host: no addresses of its own, no snooping that would delay neighbour discovery.
        namespace.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        namespace.ip("link add br0 type bridge forward_delay 0 mcast_snooping 0")?;
        namespace.ip("link set br0 up")?;
        Ok(Self { namespace, ports: AtomicU32::new(0) })
    }

    /// The segment's own namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Plugs `host` in: an interface named `ifname` with `addresses` (with prefix length), up and usable at
    /// once (no duplicate address detection to wait for).
    ///
    /// # Errors
    /// The kernel refuses a link or an address.
    pub fn plug(&self, host: &Namespace, ifname: &str, addresses: &[&str]) -> Result<()> {
        let port = format!("p{}", self.ports.fetch_add(1, Ordering::Relaxed));
        let peer = host.path().display();
        let context = || format!("plugging {} into {}", host.name(), self.namespace.name());
        self.namespace
            .ip(&format!("link add {port} type veth peer name {ifname} netns {peer}"))
            .with_context(context)?;
        self.namespace.ip(&format!("link set {port} master br0 up"))?;
        // Its link-local address must not be tentative either.
        host.sysctl(&format!("net/ipv6/conf/{ifname}/accept_dad"), "0")?;
        host.ip(&format!("link set {ifname} up"))?;
        for address in addresses {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            host.ip(&format!("address add {address} dev {ifname} {nodad}")).with_context(context)?;
        }
        Ok(())
    }
}
