//! Addresses: `RTM_NEWADDR`, `RTM_GETADDR`.

use super::{Error, Netlink, Request};
use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::IpAddr;

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the link.
    pub index: u32,
    /// The address with the length of its subnet's prefix.
    pub net: IpNet,
    /// Not usable yet (RFC 4862 duplicate detection under way) or not any more (it failed).
    pub tentative: bool,
}

/// Adds an address, usable at once: IPv6 without duplicate detection. `link` is for messages.
pub(in crate::net) fn add(index: u32, link: &str, net: IpNet) -> Request {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = net.prefix_len();
    message.attributes.push(AddressAttribute::Local(net.addr()));
    match net.addr() {
        IpAddr::V4(_) => {
            message.header.family = AddressFamily::Inet;
            message.attributes.push(AddressAttribute::Address(net.addr()));
        }
        IpAddr::V6(address) => {
            message.header.family = AddressFamily::Inet6;
            message.header.flags = AddressHeaderFlags::Nodad;
            if address.is_unicast_link_local() {
                message.header.scope = AddressScope::Link;
            }
        }
    }
    Request {
        operation: format!("add address {net} to {link}"),
        message: RouteNetlinkMessage::NewAddress(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
    }
}

impl Netlink {
    /// The addresses of all links, or of one.
    ///
    /// # Errors
    /// [`Error`], of the kernel or the connection.
    pub async fn addresses(&self, index: Option<u32>) -> Result<Vec<Address>, Error> {
        let mut message = AddressMessage::default();
        message.header.index = index.unwrap_or(0);
        let dump = match self.dump("list addresses", RouteNetlinkMessage::GetAddress(message)).await {
            // Of a link that is not there.
            Err(error) if index.is_some() && error.is_missing() => Vec::new(),
            dump => dump?,
        };
        Ok(dump
            .into_iter()
            .filter_map(decode)
            .filter(|a| index.is_none_or(|index| a.index == index))
            .collect())
    }

    /// Adds an address to the link of an index, usable at once; `link` is for messages.
    ///
    /// # Errors
    /// [`Error`]; `EEXIST`: the link has it already.
    pub async fn add_address(&self, index: u32, link: &str, net: IpNet) -> Result<(), Error> {
        self.apply(vec![add(index, link, net)]).await
    }
}

fn decode(message: RouteNetlinkMessage) -> Option<Address> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    let (mut local, mut address, mut tentative) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(own) => local = Some(*own),
            AddressAttribute::Address(own_or_peer) => address = Some(*own_or_peer),
            AddressAttribute::Flags(flags) => {
                tentative = flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed);
            }
            _ => {}
        }
    }
    // IFA_ADDRESS is the peer's on point-to-point links (`if_addr.h`).
    let net = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some(Address { index: message.header.index, net, tentative })
}
