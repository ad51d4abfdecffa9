//! What the policy reconciler tells of itself.

use crate::model::ObjectName;
use crate::policy::tables::{Refusal, Table, Usages};
use crate::policy::{Direction, LocalPod, Planner, Problem, Sets};
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use tracing::{info, warn};

/// State after the last step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PolicyStatus {
    /// The snapshot that the kernel holds; none until the first.
    pub generation: Option<u64>,
    /// Policies of that snapshot.
    pub policies: usize,
    /// Pods of this node that a policy isolates.
    pub isolated: usize,
    /// Sets that pods of this node have.
    pub sets: usize,
    /// Different identities of addresses and blocks.
    pub identities: usize,
    /// Time of the last planning, in microseconds.
    pub compile_us: u64,
    /// Time from plan to last write of the last change, in microseconds.
    pub took_us: u64,
    /// How full the tables are.
    pub usages: Usages,
    /// Pods that are shut off because the rows of their policies find no room.
    pub closed: Vec<Closed>,
    /// What else finds no room, in a sentence each: less is allowed than policies say.
    pub left_out: Vec<String>,
    /// What could not be planned as it is wanted.
    pub problems: Vec<Problem>,
    /// Why the kernel is not as it ought to be, if the last step failed.
    pub error: Option<String>,
    /// Steps that failed in a row.
    pub failures: u32,
    /// Audits done.
    pub audits: u64,
    /// Differences that audits found, all in all.
    pub drift: u64,
    /// What the last audit that found something found, at most [`PolicyStatus::DRIFT_TOLD`] of it.
    pub last_drift: Vec<String>,
}

/// A pod that is shut off in one direction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Closed {
    /// Its name, if it has one.
    pub pod: Option<ObjectName>,
    /// Its number on this node.
    pub endpoint: u32,
    /// The direction.
    pub direction: Direction,
    /// What lacks room.
    pub why: String,
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            Some(pod) => write!(f, "pod {pod}"),
            None => write!(f, "endpoint {}", self.endpoint),
        }?;
        write!(f, " is closed for {}: {}", self.direction, self.why)
    }
}

impl PolicyStatus {
    /// How much of the last drift is told.
    pub const DRIFT_TOLD: usize = 20;

    /// Number of pods that are shut off.
    #[must_use]
    pub fn closed_pods(&self) -> usize {
        self.closed.iter().map(|closed| closed.endpoint).collect::<HashSet<_>>().len()
    }

    /// Takes over what is planned.
    pub(super) fn count(&mut self, planner: &Planner) {
        let desired = planner.desired();
        self.isolated = desired.pods.values().filter(|sets| **sets != Sets::OPEN).count();
        self.sets = desired.sets.len();
        self.identities = planner.identities();
        let problems: Vec<Problem> = desired.problems.iter().cloned().collect();
        problems.iter().filter(|problem| !self.problems.contains(problem)).for_each(|new| warn!("{new}"));
        self.problems = problems;
    }

    /// Takes over what finds no room, and tells what is new and what is over.
    pub(super) fn refuse(&mut self, refused: &[Refusal], locals: &BTreeMap<u32, LocalPod>) {
        let (mut closed, mut left_out) = (Vec::new(), Vec::new());
        for refusal in refused {
            let Refusal::Set { direction, policies, endpoints, lack, limit } = refusal else {
                left_out.push(refusal.to_string());
                continue;
            };
            let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
            let (what, key) = match lack.table {
                Table::Rows => ("more rows", "datapath.policy_rows"),
                Table::Ranges => ("ranges in one piece", "datapath.policy_ranges"),
            };
            let why =
                format!("NetworkPolicy {} takes {} {what} of {limit} ({key})", names.join(", "), lack.needs);
            closed.extend(endpoints.iter().map(|endpoint| Closed {
                pod: locals.get(endpoint).and_then(|local| local.pod.clone()),
                endpoint: *endpoint,
                direction: *direction,
                why: why.clone(),
            }));
        }
        closed.sort();
        // The numbers in it change with every other pod.
        let same = |a: &Closed, b: &Closed| (a.endpoint, a.direction) == (b.endpoint, b.direction);
        for new in closed.iter().filter(|one| !self.closed.iter().any(|other| same(one, other))) {
            warn!("{new}");
        }
        for Closed { pod, endpoint, direction, .. } in &self.closed {
            if !closed.iter().any(|one| (one.endpoint, one.direction) == (*endpoint, *direction)) {
                let pod =
                    pod.as_ref().map_or_else(|| format!("endpoint {endpoint}"), |pod| format!("pod {pod}"));
                info!("{pod} is no longer closed for {direction}");
            }
        }
        if self.left_out.is_empty() {
            left_out.iter().for_each(|new| warn!("{new}"));
        }
        (self.closed, self.left_out) = (closed, left_out);
    }
}
