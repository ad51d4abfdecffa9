//! Every key with its value in force and what a change of it takes.
//!
//! The one list behind `netd config show`, the report of a reload, and the test that the example file is
//! complete. It takes the configuration apart field by field, so that a new field cannot be forgotten.

use super::{Config, duration};
use crate::{agent, cni, datapath, directory, ipam, net, telemetry};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Display;
use std::path::Path;

/// When a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// With the reload.
    AtOnce,
    /// When the agent is started again.
    Restart,
}

/// A key and its value, as the file would have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Dotted path.
    pub path: &'static str,
    /// The value in force.
    pub value: Value,
    /// What a change of it takes.
    pub effect: Effect,
}

/// A value as one would write it in the file.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(text).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// All keys, in the order of the example file.
pub(super) fn keys(config: &Config) -> Vec<Key> {
    use Effect::{AtOnce, Restart};
    let Config { agent, cni, ipam, net, datapath, directory, telemetry } = config;
    let agent::config::Config { node, run_dir, state_dir, metrics_listen, drain } = agent;
    let cni::config::Config { install, bin_dir, conf_dir, conf_name, sync_wait } = cni;
    let ipam::config::Config { pod_cidrs, draining, cool_down } = ipam;
    let net::config::Config { uplinks, mtu, node_routes } = net;
    let datapath::config::Config {
        bpffs,
        flows,
        flows_per_pod,
        nursery,
        affinity,
        frontends,
        backends,
        slots,
        pods,
        policy_rows,
        policy_ranges,
        identities,
        blocks,
        timeouts,
        audit,
    } = datapath;
    let datapath::config::Timeouts {
        tcp_established,
        tcp_opening,
        tcp_half_closed,
        tcp_closed,
        one_way,
        two_way,
    } = timeouts;
    let datapath::config::Audit { flows: audit_flows, rate: audit_rate } = audit;
    let directory::config::Config { path } = directory;
    let telemetry::config::Config { filter, format } = telemetry;
    let key = |path, value: Value, effect| Key { path, value, effect };
    vec![
        key("node.name", node.as_str().into(), Restart),
        key("paths.run", file(run_dir), Restart),
        key("paths.state", file(state_dir), Restart),
        key("source.directory", file(path), Restart),
        key("cni.install", (*install).into(), Restart),
        key("cni.bin_dir", file(bin_dir), Restart),
        key("cni.conf_dir", file(conf_dir), Restart),
        key("cni.conf_name", conf_name.as_str().into(), Restart),
        key("cni.sync_wait", duration::format(*sync_wait).into(), AtOnce),
        key("ipam.pod_cidrs", list(pod_cidrs), AtOnce),
        key("ipam.draining", list(draining), AtOnce),
        key("ipam.cool_down", duration::format(*cool_down).into(), AtOnce),
        key("network.uplinks", list(uplinks), Restart),
        key("network.mtu", mtu.map_or_else(|| "auto".into(), Value::from), Restart),
        key("network.node_routes", (*node_routes).into(), AtOnce),
        key("datapath.bpffs", file(bpffs), Restart),
        key("datapath.flows", (*flows).into(), Restart),
        key("datapath.flows_per_pod", (*flows_per_pod).into(), Restart),
        key("datapath.nursery", (*nursery).into(), Restart),
        key("datapath.affinity", (*affinity).into(), Restart),
        key("datapath.frontends", (*frontends).into(), Restart),
        key("datapath.backends", (*backends).into(), Restart),
        key("datapath.slots", (*slots).into(), Restart),
        key("datapath.pods", (*pods).into(), Restart),
        key("datapath.policy_rows", (*policy_rows).into(), Restart),
        key("datapath.policy_ranges", (*policy_ranges).into(), Restart),
        key("datapath.identities", (*identities).into(), Restart),
        key("datapath.blocks", (*blocks).into(), Restart),
        key("datapath.timeouts.tcp_established", duration::format(*tcp_established).into(), Restart),
        key("datapath.timeouts.tcp_opening", duration::format(*tcp_opening).into(), Restart),
        key("datapath.timeouts.tcp_half_closed", duration::format(*tcp_half_closed).into(), Restart),
        key("datapath.timeouts.tcp_closed", duration::format(*tcp_closed).into(), Restart),
        key("datapath.timeouts.one_way", duration::format(*one_way).into(), Restart),
        key("datapath.timeouts.two_way", duration::format(*two_way).into(), Restart),
        key("datapath.audit.flows", switch(*audit_flows), AtOnce),
        key("datapath.audit.rate", (*audit_rate).into(), AtOnce),
        key("agent.drain", duration::format(*drain).into(), Restart),
        key(
            "metrics.listen",
            metrics_listen.map_or_else(|| "none".into(), |a| a.to_string().into()),
            Restart,
        ),
        key("log.filter", filter.as_str().into(), AtOnce),
        key("log.format", serde_json::to_value(format).unwrap_or_default(), Restart),
    ]
}

/// Takes over from `new` what applies at once; everything else stays as it is in force.
pub(super) fn adopt(config: &mut Config, new: &Config) {
    config.cni.sync_wait = new.cni.sync_wait;
    config.ipam.clone_from(&new.ipam);
    config.net.node_routes = new.net.node_routes;
    config.datapath.audit = new.datapath.audit;
    config.telemetry.filter.clone_from(&new.telemetry.filter);
}

fn switch(on: bool) -> Value {
    if on { "on" } else { "off" }.into()
}

fn file(path: &Path) -> Value {
    path.to_string_lossy().into_owned().into()
}

fn list<T: Display>(items: &[T]) -> Value {
    items.iter().map(ToString::to_string).collect()
}
