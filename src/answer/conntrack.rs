//! `netd conntrack list` and `netd conntrack summary`: the flows that the datapath knows.

use super::Answer;
use super::policy::RuleName;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

/// How far a flow has come.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// TCP: the handshake is not complete
    Opening,
    /// TCP: open
    Established,
    /// TCP: one end has finished
    #[value(alias = "half_closed")]
    HalfClosed,
    /// TCP: both ends have finished, or one reset it
    Closed,
    /// Not TCP: nobody has answered
    #[value(alias = "one_way")]
    OneWay,
    /// Not TCP: it was answered
    #[value(alias = "two_way")]
    TwoWay,
}

impl State {
    /// As documents and questions have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::HalfClosed => "half_closed",
            Self::Closed => "closed",
            Self::OneWay => "one_way",
            Self::TwoWay => "two_way",
        }
    }
}

/// For people.
impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opening => "opening",
            Self::Established => "established",
            Self::HalfClosed => "half-closed",
            Self::Closed => "closed",
            Self::OneWay => "one-way",
            Self::TwoWay => "two-way",
        })
    }
}

/// Which table a flow stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Table {
    /// Nothing pushes it out.
    Established,
    /// Newer ones may push it out.
    Nursery,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Established => "established",
            Self::Nursery => "nursery",
        })
    }
}

/// First line of the answer's stream, and the document's fields before its list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Name of the node.
    pub node: String,
    /// At most so many flows follow; none: all.
    pub limit: Option<usize>,
}

impl Answer for Head {
    const SCHEMA: &'static str = "netd.conntrack/v1";
}

/// Last line of the answer's stream, and the document's fields behind its list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tail {
    /// Flows that were asked for, told or not.
    pub matched: u64,
    /// Flows that were told.
    pub told: u64,
}

/// A line of the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A flow.
    Flow(Box<Flow>),
    /// There is no more.
    End(Tail),
    /// The tables could not be read on.
    Error(String),
}

/// One flow: both rows of it, if it has two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6` or a number.
    pub protocol: String,
    /// Who sent the first packet. The port of an ICMP echo is its identifier.
    pub client: SocketAddr,
    /// Its pod: `namespace/name`, or the container where no name is known.
    pub client_pod: Option<String>,
    /// The Service's address that the client sends to; none without a Service.
    pub frontend: Option<SocketAddr>,
    /// The Service: `namespace/name`.
    pub service: Option<String>,
    /// Number of the Service port in the datapath.
    pub service_number: Option<u32>,
    /// The Service port is not in the tables any more. Its name is known if that was in this agent's time.
    pub service_deleted: bool,
    /// Who answers: the Service's backend, or whom the client sends to.
    pub server: SocketAddr,
    /// Its pod, likewise.
    pub server_pod: Option<String>,
    /// Number of the Service's backend in the datapath.
    pub backend_number: Option<u32>,
    /// It is a backend no longer; open TCP connections go on.
    pub backend_deleted: bool,
    /// The client's port as the server sees it, if that is another.
    pub translated_port: Option<u16>,
    /// How far it has come.
    pub state: State,
    /// Where it stands.
    pub table: Table,
    /// Since the first packet.
    pub age_seconds: u32,
    /// Since the last packet.
    pub idle_seconds: u32,
    /// If no more packet comes.
    pub expires_in_seconds: u32,
    /// Number of the pod whose share it takes room of.
    pub endpoint: u32,
    /// One of its two rows is not there; it is made again with the next packet.
    pub half: bool,
    /// The pod sends to itself through the Service.
    pub hairpin: bool,
    /// It came to the pod from the node's own stack.
    pub from_stack: bool,
    /// It ought to be among the established, where there is no room.
    pub refused: bool,
    /// The policy rule that allowed it to leave the client; none: none was needed.
    pub egress_rule: Option<RuleName>,
    /// The policy rule that allowed it to enter the server; none: none was needed.
    pub ingress_rule: Option<RuleName>,
}

/// `netd.conntrack-summary/v1`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Name of the node.
    pub node: String,
    /// Rows of each table.
    pub tables: BTreeMap<String, Fill>,
    /// Flows within their lifetime, by protocol, state and table.
    pub flows: Vec<Group>,
    /// By pod of this node, those with the most rows first.
    pub pods: Vec<PodFlows>,
    /// What became of rows since the tables were made.
    pub events: BTreeMap<String, u64>,
    /// How long an idle flow is kept, by its state.
    pub lifetimes_seconds: BTreeMap<String, u32>,
}

impl Answer for Summary {
    const SCHEMA: &'static str = "netd.conntrack-summary/v1";
}

/// How full a table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// Rows within their lifetime, counted.
    pub used: u64,
    /// All rows, counted: also those whose time is over and that stay until somebody needs their place.
    pub rows: u64,
    /// Rows there are.
    pub limit: u64,
}

/// Flows that have something in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Group {
    /// As of a flow.
    pub protocol: String,
    /// As of a flow.
    pub state: State,
    /// As of a flow.
    pub table: Table,
    /// How many.
    pub flows: u64,
}

/// What a pod holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFlows {
    /// `namespace/name`, or the container's id where no name is known; none for one that is gone.
    pub pod: Option<String>,
    /// Its number.
    pub endpoint: u32,
    /// Rows among the established, counted, within their lifetime.
    pub established: u64,
    /// How many it may hold.
    pub limit: u64,
    /// Rows in the nursery, within their lifetime.
    pub nursery: u64,
}
