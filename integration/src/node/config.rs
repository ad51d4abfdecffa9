//! The config file of a lab's agent.

use std::path::PathBuf;

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
    /// `datapath.flows`.
    pub flows: u32,
    /// `datapath.pods`.
    pub pods: u32,
}

impl Config {
    /// The file's text.
    #[must_use]
    pub fn render(&self) -> String {
        let dir = self.dir.display();
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
  # Small tables: many agents share this kernel.
  flows: {flows}
  frontends: 256
  backends: 1024
  slots: 4096
  pods: {pods}
log:
  filter: info,netd=debug
",
            node = self.node,
            source = self.source.display(),
            bpffs = self.bpffs.display(),
            pod_cidrs = flow_list(&self.pod_cidrs),
            draining = flow_list(&self.draining),
            cool_down = self.cool_down,
            uplinks = flow_list(&self.uplinks),
            flows = self.flows,
            pods = self.pods,
        )
    }
}

fn flow_list(items: &[String]) -> String {
    let quoted: Vec<String> = items.iter().map(|item| format!("\"{item}\"")).collect();
    format!("[{}]", quoted.join(", "))
}
