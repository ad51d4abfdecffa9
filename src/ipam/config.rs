//! Configuration of address management.

use ipnet::IpNet;
use std::time::Duration;

/// Validated: ranges do not overlap, have no host bits, and are at most /30 or /126 long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Ranges of this node, of either family; empty: the Node object's `podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Ranges out of which nothing new is given, but whose addresses stay in use until released.
    pub draining: Vec<IpNet>,
    /// How long a released address rests before it is given out again. Default 30 s.
    pub cool_down: Duration,
}
