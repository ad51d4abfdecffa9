//! netd: one static binary that is the whole network of a node.
//!
//! The table of contents; ARCHITECTURE.md tells how the parts work together. Modules import downwards
//! only (`cargo xtask arch` checks it):
//!
//! | layer | modules |
//! |---|---|
//! | 0 | `netd_bpf` (the kernel ABI), [`model`], [`answer`], `slots`, each module's `config` |
//! | 1 | [`config`], [`datapath`], [`directory`], [`net`], [`telemetry`] |
//! | 2 | pure planners and cores: [`policy`], [`service`], [`ipam`], `net::plan`, `cni::types` |
//! | 3 | [`store`], [`reconcile`], [`cni`] |
//! | 4 | [`agent`] |
//! | 5 | [`cli`] |

pub mod agent;
pub mod answer;
pub mod cli;
pub mod cni;
pub mod config;
pub mod datapath;
pub mod directory;
pub mod ipam;
pub mod model;
pub mod net;
pub mod policy;
pub mod reconcile;
pub mod service;
mod slots;
pub mod store;
pub mod telemetry;
