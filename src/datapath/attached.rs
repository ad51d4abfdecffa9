//! Where our clsact filters are, asked of the kernel (`rtnetlink(7)`, `RTM_GETTFILTER`).
//!
//! Ours are those of our priority, handle and program names: what an earlier agent put somewhere is found
//! without anybody having to remember it.

use super::Error;
use super::attach::{HANDLE, PRIORITY};
use super::object::PROGRAMS;
use aya::programs::tc::TcAttachType;
use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use std::io;

/// A filter of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// The interface's index.
    pub(super) ifindex: u32,
    /// The interface's name.
    pub(super) interface: String,
    /// Its direction.
    pub(super) hook: TcAttachType,
    /// The program's name.
    pub(super) program: &'static str,
}

/// All our filters in this thread's network namespace.
pub(super) fn filters() -> Result<Vec<Filter>, Error> {
    let failed = |action| move |source: io::Error| Error::Filters { action, source };
    let interfaces = nix::net::if_::if_nameindex()
        .map_err(|errno| Error::Filters { action: "list the interfaces", source: errno.into() })?;
    let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed("open a netlink socket"))?;
    socket.bind_auto().map_err(failed("bind a netlink socket"))?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(failed("connect a netlink socket"))?;
    let mut found = Vec::new();
    for interface in &interfaces {
        let Ok(name) = interface.name().to_str() else { continue };
        for (hook, minor) in
            [(TcAttachType::Ingress, TcHandle::MIN_INGRESS), (TcAttachType::Egress, TcHandle::MIN_EGRESS)]
        {
            let parent = TcHandle { major: u16::MAX, minor };
            let programs = dump(&socket, interface.index(), parent).map_err(failed("list the filters"))?;
            found.extend(programs.into_iter().map(|program| Filter {
                ifindex: interface.index(),
                interface: name.to_owned(),
                hook,
                program,
            }));
        }
    }
    Ok(found)
}

/// Our programs at one hook of one interface. An interface that is gone has none.
fn dump(socket: &Socket, index: u32, parent: TcHandle) -> io::Result<Vec<&'static str>> {
    let mut message = TcMessage::with_index(index.cast_signed());
    message.header.parent = parent;
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetTrafficFilter(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut found = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while let Some(length) = rest.first_chunk().map(|length| u32::from_ne_bytes(*length) as usize) {
            let Some((one, more)) = rest.split_at_checked(length).filter(|_| length != 0) else { break };
            // Messages are aligned to four bytes.
            rest = more.get(length.next_multiple_of(4) - length..).unwrap_or_default();
            // A filter of another kind, which nobody here can read, is not ours.
            let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(one) else { continue };
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => match error.code {
                    None => return Ok(found),
                    Some(code) if matches!(-code.get(), libc::ENODEV | libc::EINVAL) => return Ok(found),
                    Some(_) => return Err(error.to_io()),
                },
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(filter)) => {
                    found.extend(ours(&filter));
                }
                _ => {}
            }
        }
    }
}

/// The name of the program, if the filter is one of ours.
fn ours(filter: &TcMessage) -> Option<&'static str> {
    if filter.header.info >> 16 != u32::from(PRIORITY) || u32::from(filter.header.handle) != u32::from(HANDLE)
    {
        return None;
    }
    let options = filter.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let name = options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name),
        _ => None,
    })?;
    PROGRAMS.into_iter().find(|program| program == name)
}
