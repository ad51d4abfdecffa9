//! Configuration of links and routes.

/// Validated: interface names fit `IFNAMSIZ`, MTU is 1280 to 65535.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Interfaces that lead off the node; empty: those of the default routes.
    pub uplinks: Vec<String>,
    /// MTU of pod interfaces; none: the smallest of the uplinks'.
    pub mtu: Option<u32>,
    /// Install routes to the other Nodes' podCIDRs where they share a link. Default true.
    pub node_routes: bool,
}
