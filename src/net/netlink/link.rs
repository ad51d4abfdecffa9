//! Links: `RTM_NEWLINK`, `RTM_SETLINK`, `RTM_DELLINK`, `RTM_GETLINK`.

use super::{Error, Netlink, Request};
use crate::net::netns::NetNs;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkExtentMask,
    LinkFlags, LinkInfo, LinkMessage, State,
};
use std::os::fd::AsRawFd;

/// A link as the kernel shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Index in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// `ifalias`.
    pub alias: Option<String>,
    /// MAC address, if it is an Ethernet-like link.
    pub mac: Option<[u8; 6]>,
    /// MTU.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// RFC 2863 operational state is up: it can send at once.
    pub operational: bool,
    /// Whether it is the loopback.
    pub loopback: bool,
    /// Kind, such as `veth`; none for hardware.
    pub kind: Option<String>,
    /// Index of the other end (veth) or of the lower link.
    pub peer: Option<u32>,
    /// Namespace of the peer by the id that this namespace knows it under; none: the same namespace.
    pub peer_netns: Option<i32>,
}

/// A veth pair to create: this end here, the peer elsewhere.
#[derive(Debug)]
pub struct Veth<'a> {
    /// Name of this end.
    pub name: &'a str,
    /// MAC address of this end.
    pub mac: [u8; 6],
    /// Namespace of the peer.
    pub peer_netns: &'a NetNs,
    /// Name of the peer in its namespace.
    pub peer_name: &'a str,
    /// MAC address of the peer.
    pub peer_mac: [u8; 6],
    /// MTU of both ends.
    pub mtu: u32,
}

/// What to change of a link; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// New name.
    pub name: Option<String>,
    /// New alias.
    pub alias: Option<String>,
    /// New MTU.
    pub mtu: Option<u32>,
    /// New MAC address.
    pub mac: Option<[u8; 6]>,
    /// Up or down.
    pub up: Option<bool>,
    /// The kernel shall make no link-local address when the link comes up.
    pub no_link_local: bool,
}

/// Changes the link of an index; `name` is for messages.
pub(in crate::net) fn change(index: u32, name: &str, change: &LinkChange) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    if let Some(up) = change.up {
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
    }
    let attributes = &mut message.attributes;
    attributes.extend(change.name.clone().map(LinkAttribute::IfName));
    attributes.extend(change.alias.clone().map(LinkAttribute::IfAlias));
    attributes.extend(change.mtu.map(LinkAttribute::Mtu));
    attributes.extend(change.mac.map(|mac| LinkAttribute::Address(mac.to_vec())));
    if change.no_link_local {
        attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
            AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
        ])]));
    }
    Request {
        operation: format!("change link {name}"),
        message: RouteNetlinkMessage::SetLink(message),
        flags: 0,
    }
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

/// Without the per-CPU counters, which make up most of a link's answer and most of its cost.
fn question(mut message: LinkMessage) -> RouteNetlinkMessage {
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

impl Netlink {
    /// All links.
    ///
    /// # Errors
    /// [`Error`], of the kernel or the connection.
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let dump = self.dump("list links", question(LinkMessage::default())).await?;
        Ok(dump.into_iter().filter_map(decode).collect())
    }

    /// A link by its name.
    ///
    /// # Errors
    /// [`Error`], of the kernel or the connection.
    pub async fn link_by_name(&self, name: &str) -> Result<Option<Link>, Error> {
        self.one_link(format!("find link {name}"), named(name)).await
    }

    /// A link by its index.
    ///
    /// # Errors
    /// [`Error`], of the kernel or the connection.
    pub async fn link(&self, index: u32) -> Result<Option<Link>, Error> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.one_link(format!("find link {index}"), message).await
    }

    async fn one_link(&self, operation: String, message: LinkMessage) -> Result<Option<Link>, Error> {
        let request = Request { operation: operation.clone(), message: question(message), flags: 0 };
        match self.get(request).await {
            Ok(answer) => answer.and_then(decode).map(Some).ok_or(Error::Undecodable { operation }),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates a veth pair, both ends down, the peer directly in its namespace and under its final name.
    ///
    /// # Errors
    /// [`Error`]; `EEXIST`: either name is taken.
    pub async fn create_veth(&self, veth: &Veth<'_>) -> Result<(), Error> {
        let mut peer = named(veth.peer_name);
        peer.attributes.extend([
            LinkAttribute::NetNsFd(veth.peer_netns.as_raw_fd()),
            LinkAttribute::Address(veth.peer_mac.to_vec()),
            LinkAttribute::Mtu(veth.mtu),
        ]);
        let mut message = named(veth.name);
        message.attributes.extend([
            LinkAttribute::Address(veth.mac.to_vec()),
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ]);
        self.apply(vec![Request {
            operation: format!(
                "create link {} with {} in {}",
                veth.name,
                veth.peer_name,
                veth.peer_netns.path().display()
            ),
            message: RouteNetlinkMessage::NewLink(message),
            flags: NLM_F_CREATE | NLM_F_EXCL,
        }])
        .await
    }

    /// Changes the link of an index; `name` is for messages.
    ///
    /// # Errors
    /// [`Error`]; `ENODEV`: there is no such link.
    pub async fn change_link(&self, index: u32, name: &str, to: &LinkChange) -> Result<(), Error> {
        self.apply(vec![change(index, name, to)]).await
    }

    /// Deletes a link by its name, with all that hangs on it; `false`: there was none.
    ///
    /// # Errors
    /// [`Error`], of the kernel or the connection.
    pub async fn delete_link(&self, name: &str) -> Result<bool, Error> {
        let request = Request {
            operation: format!("delete link {name}"),
            message: RouteNetlinkMessage::DelLink(named(name)),
            flags: 0,
        };
        match self.apply_deletion(request).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn decode(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        ..Link::default()
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::OperState(state) => link.operational = state == State::Up,
            LinkAttribute::Link(peer) => link.peer = Some(peer),
            LinkAttribute::LinkNetNsId(id) => link.peer_netns = Some(id),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(link)
}
