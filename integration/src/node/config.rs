//! The config file of a lab's agent.

use std::path::PathBuf;

/// Sizes of the datapath's tables, in rows: keys of `datapath`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// `flows`.
    pub flows: u32,
    /// `frontends`.
    pub frontends: u32,
    /// `backends`.
    pub backends: u32,
    /// `slots`.
    pub slots: u32,
    /// `pods`.
    pub pods: u32,
}

impl Tables {
    /// For tests: many agents share this kernel.
    pub const SMALL: Self = Self { flows: 16_384, frontends: 256, backends: 1024, slots: 4096, pods: 256 };
    /// The agent's own defaults.
    pub const DEFAULT: Self =
        Self { flows: 262_144, frontends: 65_536, backends: 65_536, slots: 262_144, pods: 1024 };
}

/// What differs between the agents of a lab.
#[derive(Clone, Debug)]
pub struct Config {
    /// `node.name`.
    pub node: String,
    /// The folder in which all others lie.
    pub dir: PathBuf,
    /// `source.directory`.
    pub source: PathBuf,
    /// `datapath.bpffs`.
    pub bpffs: PathBuf,
    /// `ipam.pod_cidrs`; empty: those of the Node object.
    pub pod_cidrs: Vec<String>,
    /// `ipam.draining`.
    pub draining: Vec<String>,
    /// `ipam.cool_down`.
    pub cool_down: String,
    /// `network.uplinks`.
    pub uplinks: Vec<String>,
    /// Sizes below `datapath`.
    pub tables: Tables,
    /// `datapath.audit.rate`; none: new flows are not told.
    pub audit: Option<u32>,
    /// `log.filter`.
    pub log: String,
}

impl Config {
    /// The file's text.
    #[must_use]
    pub fn render(&self) -> String {
        let dir = self.dir.display();
        let Tables { flows, frontends, backends, slots, pods } = self.tables;
        let audit = self.audit.map(|rate| format!("  audit: {{flows: on, rate: {rate}}}\n"));
        format!(
            r"node:
  name: {node}
paths:
  run: {dir}/run
  state: {dir}/state
source:
  directory: {source}
cni:
  bin_dir: {dir}/bin
  conf_dir: {dir}/net.d
ipam:
  pod_cidrs: {pod_cidrs}
  draining: {draining}
  cool_down: {cool_down}
network:
  uplinks: {uplinks}
datapath:
  bpffs: {bpffs}
  flows: {flows}
  frontends: {frontends}
  backends: {backends}
  slots: {slots}
  pods: {pods}
{audit}log:
  filter: {log}
",
            node = self.node,
            source = self.source.display(),
            bpffs = self.bpffs.display(),
            pod_cidrs = flow_list(&self.pod_cidrs),
            draining = flow_list(&self.draining),
            cool_down = self.cool_down,
            uplinks = flow_list(&self.uplinks),
            audit = audit.unwrap_or_default(),
            log = self.log,
        )
    }
}

fn flow_list(items: &[String]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| format!("\"{item}\"")).collect();
    format!("[{}]", quoted.join(", "))
}
