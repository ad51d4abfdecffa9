//! Neighbours: `RTM_NEWNEIGH`, `RTM_GETNEIGH`; netd makes permanent ones only, so that no pod asks by ARP or ND.

use super::{Error, Netlink, Request};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::IpAddr;

/// An entry of the neighbour table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// Index of the link.
    pub index: u32,
    /// Its IP address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// `NUD_PERMANENT`: configured, never aged.
    pub permanent: bool,
}

/// Adds a permanent entry; `link` is for messages.
pub(in crate::net) fn add(index: u32, link: &str, address: IpAddr, mac: [u8; 6]) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    let destination = match address {
        IpAddr::V4(address) => {
            message.header.family = AddressFamily::Inet;
            NeighbourAddress::Inet(address)
        }
        IpAddr::V6(address) => {
            message.header.family = AddressFamily::Inet6;
            NeighbourAddress::Inet6(address)
        }
    };
    message.attributes.extend([
        NeighbourAttribute::Destination(destination),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ]);
    Request {
        operation: format!("add neighbour {address} to {link}"),
        message: RouteNetlinkMessage::NewNeighbour(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}

impl Netlink {
    /// The IP neighbours of all links, or of one, that have a MAC address.
    ///
    /// # Errors
    /// [`Error`], of the kernel or the connection.
    pub async fn neighbors(&self, index: Option<u32>) -> Result<Vec<Neighbor>, Error> {
        let mut message = NeighbourMessage::default();
        message.attributes.extend(index.map(NeighbourAttribute::IfIndex));
        let dump = self.dump("list neighbours", RouteNetlinkMessage::GetNeighbour(message)).await?;
        Ok(dump
            .into_iter()
            .filter_map(decode)
            .filter(|n| index.is_none_or(|index| n.index == index))
            .collect())
    }

    /// Adds a permanent neighbour to the link of an index; `link` is for messages.
    ///
    /// # Errors
    /// [`Error`]; `EEXIST`: the link has an entry for the address.
    pub async fn add_neighbor(
        &self,
        index: u32,
        link: &str,
        address: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), Error> {
        self.apply(vec![add(index, link, address, mac)]).await
    }
}

fn decode(message: RouteNetlinkMessage) -> Option<Neighbor> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
    let (mut address, mut mac) = (None, None);
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok(),
            _ => {}
        }
    }
    Some(Neighbor {
        index: message.header.ifindex,
        address: address?,
        mac: mac?,
        permanent: message.header.state == NeighbourState::Permanent,
    })
}
