//! `netd status`: how the agent and what it looks after are.

use super::Answer;
use crate::model::report;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// `netd.status/v1`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// No problem is an error.
    pub ok: bool,
    /// The agent's version.
    pub netd: String,
    /// Name of the node.
    pub node: String,
    /// The kernel's release.
    pub kernel: String,
    /// The agent's process.
    pub pid: u32,
    /// Since the agent started.
    pub uptime_seconds: u64,
    /// Nothing that the agent waited for at start is pending.
    pub ready: bool,
    /// What is not as it should be, errors first.
    pub problems: Vec<Problem>,
    /// Where the state of the cluster comes from.
    pub source: Source,
    /// Services in the kernel.
    pub services: Services,
    /// NetworkPolicies in the kernel.
    #[serde(default)]
    pub policies: Policies,
    /// Addresses of pods.
    pub addresses: Addresses,
    /// Uplinks and routes.
    pub network: Network,
    /// The eBPF programs.
    pub datapath: Datapath,
    /// Tables of the datapath.
    pub tables: Vec<Table>,
    /// Requests of container runtimes, by verb.
    pub cni: BTreeMap<String, Requests>,
    /// The agent's process.
    pub runtime: Runtime,
}

impl Answer for Status {
    const SCHEMA: &'static str = "netd.status/v1";
}

/// What a problem is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The source of state.
    Source,
    /// Services.
    Services,
    /// NetworkPolicies.
    Policies,
    /// Addresses.
    Addresses,
    /// Uplinks and routes.
    Network,
    /// Programs and tables.
    Datapath,
    /// The CNI plugin and its requests.
    Cni,
    /// The agent itself.
    Runtime,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Services => "services",
            Self::Policies => "policies",
            Self::Addresses => "addresses",
            Self::Network => "network",
            Self::Datapath => "datapath",
            Self::Cni => "cni",
            Self::Runtime => "runtime",
        })
    }
}

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Something wanted is not in force.
    Error,
    /// All wanted is in force; it may not stay so.
    Warning,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// How much it matters.
    pub level: Level,
    /// What it is of.
    pub part: Part,
    /// In one sentence, with names and numbers.
    pub message: String,
    /// The command to run next.
    pub next: String,
}

/// The source of state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// The watched folder.
    pub path: String,
    /// It was read once; what it said last stays in force.
    pub synced: bool,
    /// Counts the changes of what it says.
    pub generation: u64,
    /// Files in force.
    pub files: usize,
    /// Objects in force.
    pub objects: usize,
    /// What could not be used, with file and line.
    pub problems: Vec<report::Problem>,
}

/// NetworkPolicies in the kernel's tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policies {
    /// The source's generation that the kernel holds; none before the first.
    pub generation: Option<u64>,
    /// Policies of the cluster.
    pub wanted: usize,
    /// Pods of this node that a policy isolates in one direction or both.
    pub isolated: usize,
    /// Sets of policies that pods of this node have.
    pub sets: usize,
    /// Classes of addresses that policies tell apart.
    pub identities: usize,
    /// Pods of this node that nobody may reach, and that may reach nobody, because their rows find no room.
    pub closed: usize,
    /// Time of the last planning, in microseconds.
    pub last_compile_us: u64,
    /// Time of the last change, from plan to last write, in microseconds.
    pub last_change_us: u64,
    /// Audits of the tables done.
    pub audits: u64,
    /// Rows that audits found changed by others.
    pub drift: u64,
}

/// Services in the kernel's tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services {
    /// The source's generation that the kernel holds; none before the first.
    pub generation: Option<u64>,
    /// Services that ought to be served.
    pub wanted: usize,
    /// Those of them without endpoints.
    pub without_endpoints: usize,
    /// Those of them that do not fit, or fit in part.
    pub refused: usize,
    /// Those of them that fit in a moment.
    pub waiting: usize,
    /// Addresses that two Services claim.
    pub conflicts: usize,
    /// Time of the last change from plan to last write.
    pub last_change_us: u64,
    /// Comparisons of the kernel with what was written.
    pub audits: u64,
    /// Rows that audits found changed by others, and mended.
    pub drift: u64,
}

/// Addresses of pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// Attachments that hold addresses.
    pub pods: usize,
    /// Where addresses come from.
    pub ranges: Vec<Range>,
}

/// A range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// The range.
    pub range: IpNet,
    /// Nothing new comes out of it.
    pub draining: bool,
    /// Held by pods.
    pub used: usize,
    /// Resting before they are given out again.
    pub cooling: usize,
    /// Addresses that pods can have; a decimal number, which may be too large for a JSON reader's numbers.
    pub limit: String,
}

/// Uplinks and routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// MTU of pods' interfaces.
    pub mtu: u32,
    /// By name, with how the program is attached or why it is not.
    pub uplinks: BTreeMap<String, String>,
    /// Routes to other nodes' pods, as the kernel has them.
    pub routes: Vec<String>,
    /// Ranges of other nodes to which nothing of netd leads, and why.
    pub unreachable: Vec<String>,
}

/// The eBPF programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datapath {
    /// Version of the tables' layout.
    pub schema: u32,
    /// Packets by the way they left the programs, since the tables were made.
    pub packets: BTreeMap<String, u64>,
    /// What became of flows' rows, since the tables were made.
    pub flow_events: BTreeMap<String, u64>,
    /// Passes over the tables of flows, which take expired rows away.
    pub reclaim: Reclaim,
    /// Pods that were refused places among the established, those with the most refusals first.
    pub refused: Vec<Refused>,
}

/// Passes over the tables of flows, since the agent began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reclaim {
    /// `iterator`: by the kernel's map iterator; `batch`: by reading the tables.
    pub by: String,
    /// Why there is no iterator.
    pub because: Option<String>,
    /// Passes made.
    pub passes: u64,
    /// Expired rows that they removed.
    pub removed: u64,
    /// Shares of pods that were found off and corrected.
    pub corrected: u64,
    /// Shares that a pod lacked, made, and those of no pod, removed.
    pub mended: u64,
    /// Rows of pods that are gone, at the last pass.
    pub ownerless: u64,
    /// Length of the last pass.
    pub last_us: u64,
    /// The longest stretch of any pass without a pause.
    pub worst_slice_us: u64,
}

/// Flows of a pod that can be pushed out by new ones although they are conversations, since the agent began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Number of the pod's attachment.
    pub endpoint: u32,
    /// Namespace and name, or the container's id where no name is known; none for one that is gone.
    pub pod: Option<String>,
    /// Rows that it holds.
    pub rows: u64,
    /// Flows refused because its share is used up.
    pub share_used_up: u64,
    /// Flows refused because the table is full.
    pub table_full: u64,
    /// Of those refused because of the share, those of the last minute.
    pub share_used_up_lately: u64,
    /// Of those refused because of the table, those of the last minute.
    pub table_full_lately: u64,
    /// Some of either within the last minute.
    pub now: bool,
}

impl Refused {
    /// True if there was any.
    #[must_use]
    pub const fn any(&self) -> bool {
        self.share_used_up > 0 || self.table_full > 0
    }
}

/// How full a table is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Its name.
    pub table: String,
    /// Rows in use, of flows those within their lifetime at the last pass; none if only a walk would tell.
    pub used: Option<u64>,
    /// Rows there are.
    pub limit: u64,
    /// The key of the configuration that sets the limit.
    pub key: String,
}

impl Table {
    /// In percent of the limit, rounded down.
    #[must_use]
    pub fn percent(&self) -> Option<u64> {
        self.used?.saturating_mul(100).checked_div(self.limit)
    }
}

/// Requests of one verb.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// Answered well.
    pub done: u64,
    /// Answered with an error.
    pub failed: u64,
    /// Time of all of them together.
    pub total_us: u64,
}

/// The agent's process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// Resident memory.
    pub rss_bytes: u64,
    /// What start still waits for, and why.
    pub pending: BTreeMap<String, String>,
    /// The agent's tasks.
    pub tasks: BTreeMap<String, Task>,
}

/// A task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// It runs.
    pub running: bool,
    /// How often it was started again.
    pub restarts: u64,
    /// Why it failed last.
    pub last_failure: Option<String>,
}
