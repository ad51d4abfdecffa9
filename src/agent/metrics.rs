//! The agent's own metrics: read from where they are when Prometheus asks.

use super::drops::{reason_name, stage_name};
use super::questions::tables;
use super::state::State;
use crate::reconcile::policy::PolicyMetrics;
use crate::reconcile::services::ServiceMetrics;
use crate::telemetry::metrics::Metrics;
use netd_bpf::event::Count;
use netd_bpf::flow::flow_count;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use std::fmt;
use std::sync::{Arc, Weak};

/// Registers everything of the agent.
pub(super) fn build(state: &Arc<State>, services: &ServiceMetrics, policies: &PolicyMetrics) -> Metrics {
    let mut metrics = Metrics::new();
    services.register(metrics.registry());
    policies.register(metrics.registry());
    state.requests.register(metrics.registry());
    let build = vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("schema", netd_bpf::SCHEMA.to_string()),
        ("arch", std::env::consts::ARCH.to_owned()),
    ];
    metrics.registry().register("build", "What this netd is", Info::new(build));
    metrics.registry().register_collector(Box::new(Agent(Arc::downgrade(state))));
    metrics
}

/// A weak reference: the registry must not keep the agent alive.
#[derive(Debug)]
struct Agent(Weak<State>);

#[derive(Debug, EncodeLabelSet)]
struct DropLabels {
    stage: &'static str,
    reason: &'static str,
}

#[derive(Debug, EncodeLabelSet)]
struct Named {
    name: &'static str,
}

#[derive(Debug, EncodeLabelSet)]
struct InTable {
    table: String,
}

#[derive(Debug, EncodeLabelSet)]
struct FlowEvent {
    event: &'static str,
}

#[derive(Debug, EncodeLabelSet)]
struct Path {
    path: &'static str,
}

#[derive(Debug, EncodeLabelSet)]
struct Range {
    range: String,
    state: &'static str,
}

impl Collector for Agent {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(state) = self.0.upgrade() else { return Ok(()) };
        let ready = ConstGauge::new(i64::from(state.readiness.is_ready()));
        ready.encode(encoder.encode_descriptor(
            "ready",
            "1 when nothing is pending",
            None,
            MetricType::Gauge,
        )?)?;
        let pods = i64::try_from(state.cni.state().entries().count()).unwrap_or(i64::MAX);
        ConstGauge::new(pods).encode(encoder.encode_descriptor(
            "pods",
            "Attachments in the ledger",
            None,
            MetricType::Gauge,
        )?)?;
        drops(&state, &mut encoder)?;
        paths(&state, &mut encoder)?;
        flow_events(&state, &mut encoder)?;
        untold_flows(&state, &mut encoder)?;
        table_rows(&state, &mut encoder)?;
        passes(&state, &mut encoder)?;
        let mut restarts = encoder.encode_descriptor(
            "task_restarts",
            "Times a task was started again",
            None,
            MetricType::Counter,
        )?;
        for (name, task) in state.tasks.states() {
            ConstCounter::new(task.restarts).encode(restarts.encode_family(&Named { name })?)?;
        }
        let mut addresses = encoder.encode_descriptor(
            "addresses",
            "Addresses of the ranges by state",
            None,
            MetricType::Gauge,
        )?;
        for usage in state.cni.usage() {
            for (label, count) in [("used", usage.used), ("cooling", usage.cooling)] {
                let labels = Range { range: usage.range.to_string(), state: label };
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                ConstGauge::new(count).encode(addresses.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Without pods, Services and rules: those are in the events, not in labels without bound. Every reason is
/// there from the start, so that an alert on its rate sees the first drop.
fn drops(state: &State, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut family =
        encoder.encode_descriptor("drops", "Packets dropped by the datapath", None, MetricType::Counter)?;
    for (stage, reason, Count { packets, .. }) in state.datapath.drop_totals().unwrap_or_default() {
        let labels = DropLabels { stage: stage_name(stage), reason: reason_name(reason).0 };
        ConstCounter::new(packets).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// How the passes over the tables of flows go.
fn passes(state: &State, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let totals = state.reclaimed.totals();
    for (name, help, count) in [
        ("reclaim_passes", "Passes over the tables of flows", totals.passes),
        ("reclaim_shares_corrected", "Times that a pod's share of the flows was off", totals.corrected),
        ("reclaim_shares_mended", "Shares of flows that a pod lacked or that were nobody's", totals.mended),
    ] {
        let counter = ConstCounter::new(count);
        counter.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
    }
    for (name, help, time) in [
        ("reclaim_last_pass_seconds", "Length of the last pass over the tables of flows", totals.last),
        ("reclaim_worst_slice_seconds", "Longest stretch of a pass without a pause", totals.worst_slice),
    ] {
        let gauge = ConstGauge::new(time.as_secs_f64());
        gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
    }
    Ok(())
}

fn paths(state: &State, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let counts = state.datapath.path_counts().unwrap_or_default();
    let mut family =
        encoder.encode_descriptor("packets", "Packets by the way they left", None, MetricType::Counter)?;
    for (path, count) in &counts {
        ConstCounter::new(count.packets).encode(family.encode_family(&Path { path })?)?;
    }
    let mut family =
        encoder.encode_descriptor("bytes", "Bytes by the way they left", None, MetricType::Counter)?;
    for (path, count) in &counts {
        ConstCounter::new(count.bytes).encode(family.encode_family(&Path { path })?)?;
    }
    Ok(())
}

/// All of them from the start, as with drops.
fn flow_events(state: &State, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let Ok(counts) = state.datapath.flow_counts() else { return Ok(()) };
    let help = "What became of rows of flows";
    let mut family = encoder.encode_descriptor("flow_events", help, None, MetricType::Counter)?;
    for (event, count) in flow_count::NAMES.into_iter().zip(counts) {
        ConstCounter::new(count).encode(family.encode_family(&FlowEvent { event })?)?;
    }
    Ok(())
}

/// Of those that the audit of flows was to tell.
fn untold_flows(state: &State, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let Ok(count) = state.datapath.untold_flows() else { return Ok(()) };
    let help = "New flows left out of the audit of flows: too many on a CPU, or faster than they were read";
    let counter = ConstCounter::new(count);
    counter.encode(encoder.encode_descriptor("flow_audit_untold", help, None, MetricType::Counter)?)
}

/// Tables of which nobody knows how full they are have a limit only.
fn table_rows(state: &State, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let services = state.services.load().as_ref().map(|handle| handle.status.borrow().clone());
    let tables = tables(state, &services.unwrap_or_default());
    let gauge = |rows: u64| ConstGauge::new(i64::try_from(rows).unwrap_or(i64::MAX));
    let help = "Rows of the datapath's tables in use";
    let mut family = encoder.encode_descriptor("table_rows", help, None, MetricType::Gauge)?;
    for table in &tables {
        if let Some(used) = table.used {
            gauge(used).encode(family.encode_family(&InTable { table: table.table.clone() })?)?;
        }
    }
    let help = "Rows of the datapath's tables";
    let mut family = encoder.encode_descriptor("table_rows_limit", help, None, MetricType::Gauge)?;
    for table in tables {
        gauge(table.limit).encode(family.encode_family(&InTable { table: table.table })?)?;
    }
    Ok(())
}
