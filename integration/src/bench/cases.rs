//! The cases: each builds its subjects in a lab of its own and gives rows.

mod agent;
mod cni;
mod frames;
mod nodes;
mod pins;
mod policy;
mod probe;
mod program;
mod service;

use crate::options::Options;
use crate::report::{Report, Row};
use anyhow::Result;
use netd_integration::lab::Lab;
use std::fmt;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Case {
    /// Pod → Service → pod on one node, by the number of Services.
    Service,
    /// Pod ↔ pod across nodes.
    Nodes,
    /// Nanoseconds of the programs, by test-run.
    Program,
    /// The agent: full sync, one changed endpoint, memory, by the number of Services.
    Agent,
    /// Packets, plans, changed labels and memory by the number of policies.
    Policy,
    /// ADD and DEL.
    Cni,
}

impl Case {
    pub(crate) const ALL: [Self; 6] =
        [Self::Service, Self::Nodes, Self::Program, Self::Agent, Self::Policy, Self::Cni];

    pub(crate) const fn about(self) -> &'static str {
        match self {
            Self::Service => "pod -> Service -> pod on one node, against plain routing without a Service",
            Self::Nodes => "pod <-> pod across nodes, against node <-> node",
            Self::Program => "nanoseconds of the programs, by test-run",
            Self::Agent => "full sync, one changed endpoint, memory",
            Self::Policy => "packets, plans, changed labels and memory, by the number of policies",
            Self::Cni => "ADD and DEL, against Debian's bridge + host-local",
        }
    }

    pub(crate) fn run(self, lab: &Lab, options: &Options, report: &Report) -> Result<Vec<Row>> {
        match self {
            Self::Service => service::run(lab, options, report),
            Self::Nodes => nodes::run(lab, options),
            Self::Program => program::run(lab, options),
            Self::Agent => agent::run(lab, options, report),
            Self::Policy => policy::run(lab, options, report),
            Self::Cni => cni::run(lab, options),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Service => "service",
            Self::Nodes => "nodes",
            Self::Program => "program",
            Self::Agent => "agent",
            Self::Policy => "policy",
            Self::Cni => "cni",
        })
    }
}
