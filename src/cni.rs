//! The Container Network Interface: how a container runtime asks for a pod's network.
//!
//! Two processes share the work. The runtime executes [`plugin`] (`netd cni`), which checks what it was
//! given ([`types`], pure) and hands it over the agent's socket to [`server`], which does it. When no
//! agent is there, the plugin does what can be done from the ledger and the kernel. [`install`] puts the
//! plugin and its configuration where runtimes look.
//!
//! Follows the CNI specification 1.1.0 (github.com/containernetworking/cni, SPEC.md) and the result formats
//! down to 0.3.1.

pub mod config;
pub mod install;
pub mod plugin;
pub mod server;
pub mod types;
