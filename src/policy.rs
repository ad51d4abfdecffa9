//! NetworkPolicy: from the model to the rows of the kernel's policy tables. Pure, layer 2.
//!
//! [`Planner`] says what the tables ought to hold, and brings that up to date by what changed in the model;
//! [`eval`] gives the verdict that the kernel comes to with them; [`tables`] knows what the kernel holds and
//! gives the operations that lead from the one to the other, safe to stop after any of them. The ABI and its
//! meaning are in [`netd_bpf::policy`].
//!
//! Follows the reference of `networking.k8s.io/v1` and the concept page's two exceptions: a pod reaches itself, and
//! a pod and its own node reach each other.

mod blocks;
mod compile;
mod desired;
pub mod eval;
mod list;
mod number;
#[cfg(test)]
pub(crate) mod oracle;
mod planner;
pub mod selector;
pub mod tables;
#[cfg(test)]
mod testing;
pub mod view;

pub use desired::{Desired, Identity, List, Problem, Rows, RuleName, SetName, Touched};
pub use planner::Planner;

use crate::model::{Model, ObjectName};
use netd_bpf::policy::set;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Which way packets go, seen from the pod whose policies are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A pod of this node, as the ledger has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// Its number on this node.
    pub endpoint: u32,
    /// Its name; a container that no pod is behind has none, and no policy selects it.
    pub pod: Option<ObjectName>,
    /// `metadata.uid` of the pod, if the runtime told.
    pub uid: Option<Arc<str>>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// What planning starts from.
#[derive(Clone, Copy, Debug)]
pub struct Input<'m> {
    /// The cluster. Of a pod on this node its labels and ports count, not its addresses.
    pub model: &'m Model,
    /// The pods of this node by endpoint.
    pub locals: &'m BTreeMap<u32, LocalPod>,
    /// This node's name.
    pub node: &'m str,
    /// This node's own addresses, in any order.
    pub node_addresses: &'m [IpAddr],
}

/// The sets of a pod: numbers as in [`netd_bpf::policy::set`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sets {
    /// For what it sends.
    pub egress: u64,
    /// For what it receives.
    pub ingress: u64,
}

impl Sets {
    /// No policy isolates the pod.
    pub const OPEN: Self = Self { egress: set::OPEN, ingress: set::OPEN };
    /// Nothing is allowed.
    pub const CLOSED: Self = Self { egress: set::CLOSED, ingress: set::CLOSED };

    /// The one of a direction.
    #[must_use]
    pub const fn of(self, direction: Direction) -> u64 {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// The same with another one in this direction.
    #[must_use]
    pub(crate) const fn with(mut self, direction: Direction, set: u64) -> Self {
        match direction {
            Direction::Ingress => self.ingress = set,
            Direction::Egress => self.egress = set,
        }
        self
    }

    /// The two.
    pub(crate) const fn both(self) -> [u64; 2] {
        [self.ingress, self.egress]
    }
}
