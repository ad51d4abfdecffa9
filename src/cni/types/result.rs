//! The result of ADD, in each version of the format (SPEC.md, section 5; 0.3.1 and 0.4.0 as they were then).
//!
//! What another plugin of the chain put there is handed on as it came, also keys that netd does not know.

use super::Version;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use std::net::IpAddr;

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(de: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(de)?.unwrap_or_default())
}

/// An interface, of the container or the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Its MTU; shown from 1.1.0 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// `CNI_NETNS`, none for the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
    /// What else another plugin said.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// `4` or `6`, up to 0.4.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// With its prefix length.
    pub address: IpNet,
    /// Its gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index of its interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    /// What else another plugin said.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl Ip {
    /// On an interface of the same result.
    #[must_use]
    pub fn new(address: IpNet, gateway: IpAddr, interface: usize) -> Self {
        Self { version: None, address, gateway: Some(gateway), interface: Some(interface), more: Map::new() }
    }
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// By which next hop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// What else another plugin said.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// The container's resolver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// In order of priority.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// Local domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search list.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The result of ADD.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachResult {
    #[serde(rename = "cniVersion", default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// Created by the attachment.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Given to the attachment.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// In the container.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// The container's resolver.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
    /// What else another plugin said.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl AttachResult {
    /// Adds what a later plugin of the chain made: its lists go behind, its resolver counts where `self` has
    /// none.
    #[must_use]
    pub fn followed_by(mut self, later: Self) -> Self {
        let shift = self.interfaces.len();
        self.interfaces.extend(later.interfaces);
        self.ips.extend(later.ips.into_iter().map(|mut ip| {
            ip.interface = ip.interface.map(|index| index.saturating_add(shift));
            ip
        }));
        self.routes.extend(later.routes);
        if self.dns.is_empty() {
            self.dns = later.dns;
        }
        self
    }

    /// As the given version has it.
    #[must_use]
    pub fn in_version(mut self, version: Version) -> Self {
        self.version = Some(version.as_str().to_owned());
        for ip in &mut self.ips {
            ip.version = (version < Version::V1_0_0)
                .then(|| if ip.address.addr().is_ipv4() { "4" } else { "6" }.into());
        }
        if version < Version::V1_1_0 {
            for interface in &mut self.interfaces {
                interface.mtu = None;
            }
        }
        self
    }
}
