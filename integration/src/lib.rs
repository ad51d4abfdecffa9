//! The lab: network namespaces as nodes, routers and pods, the real `netd` binary started by its real
//! command line, its CNI plugin executed as a container runtime does it, real traffic between pods.
//!
//! | module | owns |
//! |---|---|
//! | [`lab`] | namespaces, links, processes, folders of one test, and their removal whatever happens |
//! | [`traffic`] | what pods say to each other: servers, questions, loads with counters, raw frames |
//! | [`cni`] | a small container runtime: conflist in, plugins executed, results out |
//! | [`binary`] | which `netd` is under test |
//! | [`node`] | a node: a namespace, an agent, its pods |
//! | [`state`] | the folder of Kubernetes YAML that the nodes share |
//! | [`site`] | ready-made networks of several nodes |
//! | [`truth`] | nine pods, policies between them, and tables of who reaches whom |
//! | [`wait`] | conditions with a deadline |
//! | [`stats`] | is a share fair? |
//!
//! Nothing here touches the machine's own interfaces, routes or sysctls: everything happens in network
//! namespaces that the lab made, on threads that entered them.

pub mod binary;
pub mod cni;
pub mod lab;
pub mod node;
pub mod site;
pub mod state;
pub mod stats;
pub mod traffic;
pub mod truth;
pub mod wait;
