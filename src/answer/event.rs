//! `netd monitor`: what happens, as it happens, one document per line; and the newest drops, remembered.

use super::Answer;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A packet was dropped.
    Drop,
    /// Events were lost before they could be told.
    Lost,
    /// A container runtime's request was answered.
    Cni,
    /// A Service changed in the kernel, or was refused.
    Service,
    /// A route to other nodes' pods came or went.
    Route,
    /// An uplink's program was attached or detached, or could not be.
    Uplink,
    /// The source of state has a problem, or has one no longer.
    Source,
    /// Flows found no room.
    Flows,
    /// A task of the agent failed, or start waits for something.
    Agent,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drop => "DROP",
            Self::Lost => "LOST",
            Self::Cni => "cni",
            Self::Service => "service",
            Self::Route => "route",
            Self::Uplink => "uplink",
            Self::Source => "source",
            Self::Flows => "flows",
            Self::Agent => "agent",
        })
    }
}

/// `netd.event/v1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// RFC 3339, UTC, to the millisecond.
    pub time: String,
    /// What it is about.
    pub kind: Kind,
    /// The object: `namespace/name` of a pod or Service, the container of a pod without a name, a route, an interface,
    /// a file.
    pub subject: Option<String>,
    /// In one sentence.
    pub message: String,
    /// Something wanted is not in force, or a packet was lost.
    pub bad: bool,
    /// The packet, of a drop.
    pub drop: Option<Drop>,
    /// How many events, of a loss.
    pub lost: Option<u64>,
}

impl Answer for Event {
    const SCHEMA: &'static str = "netd.event/v1";
}

/// `netd.drops/v1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// Name of the node.
    pub node: String,
    /// The newest, the oldest of them first.
    pub drops: Vec<Dropped>,
}

impl Answer for Drops {
    const SCHEMA: &'static str = "netd.drops/v1";
}

/// A drop that the agent remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// As of an event.
    pub time: String,
    /// Why, in one sentence.
    pub message: String,
    /// The packet.
    #[serde(flatten)]
    pub packet: Drop,
}

/// A dropped packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drop {
    /// As the metric's label has it.
    pub reason: String,
    /// Where in the datapath.
    pub stage: String,
    /// The pod at whose interface it was, if known: `namespace/name`, or its container.
    pub pod: Option<String>,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6` or a number; for what is not IP, its Ethernet protocol.
    pub protocol: String,
    /// As the packet had it; port 0 without one.
    pub source: SocketAddr,
    /// The pod that has this address, likewise.
    pub source_pod: Option<String>,
    /// As the packet had it, before any translation; port 0 without one.
    pub destination: SocketAddr,
    /// The pod that has this address, likewise.
    pub destination_pod: Option<String>,
    /// The Service that the packet was for: `namespace/name`.
    pub service: Option<String>,
    /// TCP's flags, such as `SYN,ACK`.
    pub tcp_flags: Option<String>,
    /// Bytes, with the link header.
    pub length: u32,
}
