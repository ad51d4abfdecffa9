//! Metrics of the Service reconciler.

use super::status::ServiceStatus;
use crate::service::plan::Untranslatable;
use crate::service::tables::{Reason, Usage};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::collections::BTreeSet;

/// Which table.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Table {
    table: &'static str,
}

/// Why a Service is refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lack {
    reason: &'static str,
}

/// The metrics; clones share their values.
#[derive(Clone, Debug)]
pub struct ServiceMetrics {
    generation: Gauge,
    services: Gauge,
    rows: Family<Table, Gauge>,
    held: Family<Table, Gauge>,
    limit: Family<Table, Gauge>,
    refused: Family<Lack, Gauge>,
    waiting: Gauge,
    conflicts: Gauge,
    failing: Gauge,
    /// Map writes done.
    pub(super) operations: Counter,
    /// Steps that failed.
    pub(super) failures: Counter,
    /// Differences found by audits.
    pub(super) drift: Counter,
    /// Time of a step that wrote something, in seconds.
    pub(super) apply: Histogram,
}

impl Default for ServiceMetrics {
    fn default() -> Self {
        Self {
            generation: Gauge::default(),
            services: Gauge::default(),
            rows: Family::default(),
            held: Family::default(),
            limit: Family::default(),
            refused: Family::default(),
            waiting: Gauge::default(),
            conflicts: Gauge::default(),
            failing: Gauge::default(),
            operations: Counter::default(),
            failures: Counter::default(),
            drift: Counter::default(),
            // 50 µs to 26 s.
            apply: Histogram::new(exponential_buckets(0.000_05, 3.0, 13)),
        }
    }
}

impl ServiceMetrics {
    /// Registers all, as `netd_service_…` in a registry with the prefix `netd`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("service");
        registry.register(
            "generation",
            "Snapshot that the kernel's service tables hold",
            self.generation.clone(),
        );
        registry.register("services", "Services with a frontend", self.services.clone());
        registry.register("rows", "Rows of the service tables in use", self.rows.clone());
        registry.register("rows_held", "Rows of the service tables in quarantine", self.held.clone());
        registry.register("rows_limit", "Rows of the service tables", self.limit.clone());
        registry.register(
            "refused",
            "Services that are not served as wanted, by what they lack",
            self.refused.clone(),
        );
        registry.register("waiting", "Services that wait for the quarantine", self.waiting.clone());
        registry.register("conflicts", "Frontends that two Services claim", self.conflicts.clone());
        registry.register("failing", "1 while the last step failed", self.failing.clone());
        registry.register("operations", "Writes to the service tables", self.operations.clone());
        registry.register("failures", "Steps of the reconciler that failed", self.failures.clone());
        registry.register("drift", "Rows that audits found changed by others", self.drift.clone());
        registry.register_with_unit(
            "apply",
            "Time to plan and write a change",
            Unit::Seconds,
            self.apply.clone(),
        );
    }

    /// Takes over the gauges from a status.
    pub(super) fn observe(&self, status: &ServiceStatus) {
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        if let Some(generation) = status.generation {
            self.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        }
        self.services.set(gauge(status.services));
        let usages = &status.usages;
        for (table, Usage { used, held, limit }) in
            [("frontends", usages.frontends), ("backends", usages.backends), ("slots", usages.slots)]
        {
            let table = Table { table };
            self.rows.get_or_create(&table).set(used.into());
            self.held.get_or_create(&table).set(held.into());
            self.limit.get_or_create(&table).set(limit.into());
        }
        // All reasons from the start, so that an alert sees the first.
        for reason in Reason::NAMES {
            let lacking = status.refused.iter().filter(|refusal| refusal.reason.name() == reason).count();
            self.refused.get_or_create(&Lack { reason }).set(gauge(lacking));
        }
        let sctp: BTreeSet<_> = status.untranslatable.iter().map(|one| &one.port.service).collect();
        let reason = Untranslatable::NAME;
        self.refused.get_or_create(&Lack { reason }).set(gauge(sctp.len()));
        self.waiting.set(gauge(status.waiting.len()));
        self.conflicts.set(gauge(status.conflicts.len()));
        self.failing.set(i64::from(status.error.is_some()));
    }
}
