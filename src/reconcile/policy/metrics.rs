//! Metrics of the policy reconciler.

use super::status::PolicyStatus;
use crate::policy::tables::Usage;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Which table.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Table {
    table: &'static str,
}

/// The metrics; clones share their values.
#[derive(Clone, Debug)]
pub struct PolicyMetrics {
    generation: Gauge,
    policies: Gauge,
    isolated: Gauge,
    sets: Gauge,
    identities: Gauge,
    rows: Family<Table, Gauge>,
    held: Family<Table, Gauge>,
    limit: Family<Table, Gauge>,
    closed: Gauge,
    problems: Gauge,
    failing: Gauge,
    /// Map writes done.
    pub(super) operations: Counter,
    /// Steps that failed.
    pub(super) failures: Counter,
    /// Differences found by audits.
    pub(super) drift: Counter,
    /// Time to plan, in seconds.
    pub(super) compile: Histogram,
    /// Time of a step that wrote something, in seconds.
    pub(super) apply: Histogram,
}

impl Default for PolicyMetrics {
    fn default() -> Self {
        // 50 µs to 26 s.
        let times = || Histogram::new(exponential_buckets(0.000_05, 3.0, 13));
        Self {
            generation: Gauge::default(),
            policies: Gauge::default(),
            isolated: Gauge::default(),
            sets: Gauge::default(),
            identities: Gauge::default(),
            rows: Family::default(),
            held: Family::default(),
            limit: Family::default(),
            closed: Gauge::default(),
            problems: Gauge::default(),
            failing: Gauge::default(),
            operations: Counter::default(),
            failures: Counter::default(),
            drift: Counter::default(),
            compile: times(),
            apply: times(),
        }
    }
}

impl PolicyMetrics {
    /// Registers all, as `netd_policy_…` in a registry with the prefix `netd`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("policy");
        for (name, help, gauge) in [
            ("generation", "Snapshot that the kernel's policy tables hold", &self.generation),
            ("policies", "NetworkPolicies of the cluster", &self.policies),
            ("isolated_pods", "Pods of this node that a policy isolates", &self.isolated),
            ("sets", "Sets of policies that pods of this node have", &self.sets),
            ("identities", "Classes of addresses that policies tell apart", &self.identities),
            ("closed_pods", "Pods of this node that are shut off because rows lack room", &self.closed),
            ("problems", "Policies that cannot be put in force as they are", &self.problems),
            ("failing", "1 while the last step failed", &self.failing),
        ] {
            registry.register(name, help, gauge.clone());
        }
        registry.register("rows", "Rows of the policy tables in use", self.rows.clone());
        registry.register("rows_held", "Rows of the policy tables in quarantine", self.held.clone());
        registry.register("rows_limit", "Rows of the policy tables", self.limit.clone());
        registry.register("operations", "Writes to the policy tables", self.operations.clone());
        registry.register("failures", "Steps of the reconciler that failed", self.failures.clone());
        registry.register("drift", "Rows that audits found changed by others", self.drift.clone());
        registry.register_with_unit("compile", "Time to plan a change", Unit::Seconds, self.compile.clone());
        registry.register_with_unit(
            "apply",
            "Time to plan and write a change",
            Unit::Seconds,
            self.apply.clone(),
        );
    }

    /// Takes over the gauges from a status.
    pub(super) fn observe(&self, status: &PolicyStatus) {
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        if let Some(generation) = status.generation {
            self.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        }
        self.policies.set(gauge(status.policies));
        self.isolated.set(gauge(status.isolated));
        self.sets.set(gauge(status.sets));
        self.identities.set(gauge(status.identities));
        let usages = &status.usages;
        for (table, Usage { used, held, limit }) in [
            ("policy_rows", usages.rows),
            ("policy_ranges", usages.ranges),
            ("identities", usages.identities),
            ("blocks", usages.blocks),
        ] {
            let table = Table { table };
            self.rows.get_or_create(&table).set(used.into());
            self.held.get_or_create(&table).set(held.into());
            self.limit.get_or_create(&table).set(limit.into());
        }
        self.closed.set(gauge(status.closed_pods()));
        self.problems.set(gauge(status.problems.len()));
        self.failing.set(i64::from(status.error.is_some()));
    }
}
