//! One step of the Service reconciler: plan, write, audit. Blocking, no clock but the monotonic one.

use super::metrics::ServiceMetrics;
use super::names::Names;
use super::status::{News, ServiceStatus};
use super::{Config, Handle, ServiceMaps};
use crate::service::plan::Desired;
use crate::service::tables::{Kernel, Op, Plan, Tables};
use crate::telemetry::chain;
use netd_bpf::service::backend_state;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

/// What a step is about.
pub(super) enum Work {
    /// A new snapshot, and how to plan it out of the last one's plan.
    Goal(u64, Box<Replan>),
    /// A quarantine ended, or a failed step is to be tried again.
    Due,
    /// Read the kernel back.
    Audit,
}

/// Out of the former plan comes the new one, and the places of the Services that may differ; none: all may.
pub(super) type Replan = dyn FnOnce(Option<Desired>) -> (Desired, Option<Vec<usize>>) + Send;

/// The newest snapshot's plan.
#[derive(Debug)]
struct Goal {
    generation: u64,
    desired: Desired,
}

/// All that the reconciler knows.
#[derive(Debug)]
pub(super) struct Worker<M> {
    config: Config,
    maps: M,
    /// None: to be read back from the kernel.
    tables: Option<Tables>,
    /// The names are of a former image.
    names_stale: bool,
    goal: Option<Goal>,
    retry_at: Option<Instant>,
    status: ServiceStatus,
    publish: watch::Sender<Arc<ServiceStatus>>,
    names: Arc<Names>,
    metrics: ServiceMetrics,
}

fn context<E: std::error::Error>(what: impl fmt::Display) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {}", chain(&error))
}

impl<M: ServiceMaps> Worker<M> {
    pub(super) fn new(config: Config, maps: M, metrics: ServiceMetrics) -> (Self, Handle) {
        let (publish, status) = watch::channel(Arc::new(ServiceStatus::default()));
        let names = Arc::new(Names::default());
        let handle = Handle { status, names: Arc::clone(&names) };
        let worker = Self {
            config,
            maps,
            tables: None,
            names_stale: true,
            goal: None,
            retry_at: None,
            status: ServiceStatus::default(),
            publish,
            names,
            metrics,
        };
        (worker, handle)
    }

    /// When there is something to do without a new snapshot.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.retry_at.or_else(|| self.tables.as_ref().and_then(Tables::next_expiry))
    }

    /// Does it, and tells.
    pub(super) fn step(&mut self, work: Work) {
        let result = match work {
            Work::Goal(generation, plan) => {
                let former = self.goal.take().map(|goal| goal.desired);
                let (desired, changed) = plan(former);
                self.goal = Some(Goal { generation, desired });
                self.converge(changed.as_deref())
            }
            Work::Due => self.due(),
            Work::Audit => self.audit(),
        };
        match result {
            Ok(()) => {
                if self.status.error.take().is_some() {
                    info!("the service tables are as wanted again");
                }
                self.status.failures = 0;
                self.retry_at = None;
            }
            Err(error) => self.failed(error),
        }
        if let Some(tables) = &self.tables {
            self.status.usages = tables.usages();
        }
        self.metrics.observe(&self.status);
        self.publish.send_replace(Arc::new(self.status.clone()));
    }

    /// The image may not be what the kernel holds: it is read back before the next try.
    fn failed(&mut self, error: String) {
        self.tables = None;
        let factor = 2_u32.saturating_pow(self.status.failures);
        let wait = self.config.retry_first.saturating_mul(factor).min(self.config.retry_longest);
        self.retry_at = Some(Instant::now() + wait);
        self.status.failures = self.status.failures.saturating_add(1);
        self.metrics.failures.inc();
        error!(%error, failures = self.status.failures, retry_in = ?wait, "cannot update the service tables");
        self.status.error = Some(error);
    }

    fn due(&mut self) -> Result<(), String> {
        let short = self.short();
        match &mut self.tables {
            Some(tables) if !short => {
                let plan = tables.expire(Instant::now());
                self.write(plan)
            }
            _ => self.converge(None),
        }
    }

    /// Something lacks room.
    fn short(&self) -> bool {
        !self.status.refused.is_empty() || !self.status.waiting.is_empty()
    }

    /// Brings the kernel to the goal, as far as it fits. `changed`: places of the Services that differ from what
    /// was last brought there; none: all may.
    fn converge(&mut self, changed: Option<&[usize]>) -> Result<(), String> {
        if self.goal.is_none() {
            return Ok(());
        }
        let start = Instant::now();
        // What had no room may have some now.
        let mut changed = changed.filter(|_| !self.short());
        if self.tables.is_none() {
            changed = None;
            let kernel = self.read()?;
            self.take_image(&kernel);
        }
        let (Some(tables), Some(goal)) = (&mut self.tables, &self.goal) else { return Ok(()) };
        let mut plan = match changed {
            Some(places) => tables.plan_some(&goal.desired, places, Instant::now()),
            None => tables.plan(&goal.desired, Instant::now()),
        };
        let (refused, waiting) = (std::mem::take(&mut plan.refused), std::mem::take(&mut plan.waiting));
        let News { refused, over } = self.status.refuse(refused, waiting);
        refused.iter().for_each(|refusal| warn!("{refusal}"));
        over.iter().for_each(|service| info!("Service {service} is no longer refused"));
        take_over(&mut self.status.conflicts, &goal.desired.conflicts);
        take_over(&mut self.status.untranslatable, &goal.desired.untranslatable);
        self.status.services = goal.desired.services.len();
        let empty = goal.desired.services.iter().filter(|service| service.is_empty());
        self.status.without_endpoints = empty.count();
        let (generation, writes) = (goal.generation, plan.ops.len());
        self.write(plan)?;
        self.status.generation = Some(generation);
        let took = start.elapsed();
        self.status.took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if writes > 0 {
            self.metrics.apply.observe(took.as_secs_f64());
            debug!(generation, writes, ?took, "service tables updated");
        }
        Ok(())
    }

    fn audit(&mut self) -> Result<(), String> {
        let Some(tables) = &self.tables else { return self.converge(None) };
        if self.goal.is_none() {
            return Ok(());
        }
        let kernel = self.read()?;
        let drift = tables.drift(&kernel);
        self.status.audits += 1;
        if drift.is_empty() {
            return Ok(());
        }
        for row in drift.iter().take(ServiceStatus::DRIFT_TOLD) {
            warn!("service tables: {row}; repairing");
        }
        self.metrics.drift.inc_by(u64::try_from(drift.len()).unwrap_or(u64::MAX));
        self.status.drift += u64::try_from(drift.len()).unwrap_or(u64::MAX);
        self.status.last_drift = drift.into_iter().take(ServiceStatus::DRIFT_TOLD).collect();
        self.take_image(&kernel);
        self.converge(None)
    }

    fn take_image(&mut self, kernel: &Kernel) {
        let Config { limits, quarantine, .. } = self.config;
        self.tables = Some(Tables::read(limits, quarantine, kernel, Instant::now()));
        self.names_stale = true;
    }

    fn read(&self) -> Result<Kernel, String> {
        Ok(Kernel {
            frontends: self.maps.frontends().map_err(context("reading back the frontends"))?,
            slots: self.maps.slots(0, self.config.limits.slots).map_err(context("reading back the slots"))?,
            backends: self.maps.backends().map_err(context("reading back the backends"))?,
        })
    }

    /// Writes a plan of `self.tables`. What fails takes along only what builds on it: other Services get
    /// their change.
    fn write(&mut self, plan: Plan) -> Result<(), String> {
        self.names.change(plan.names, std::mem::take(&mut self.names_stale));
        let mut failures = Vec::new();
        let (mut bad_ids, mut bad_bases) = (HashSet::new(), HashSet::new());
        for op in &plan.ops {
            let result = match op {
                // A row that was not flipped may still name what is to go.
                Op::SetBackend { row, .. } if row.state != backend_state::ACTIVE && !failures.is_empty() => {
                    continue;
                }
                Op::SetSlots { base, ids } if ids.iter().any(|id| bad_ids.contains(id)) => {
                    bad_bases.insert(*base);
                    continue;
                }
                Op::SetFrontend { row, .. } if row.backends > 0 && bad_bases.contains(&row.slot_base) => {
                    continue;
                }
                Op::SetBackend { id, row } => self.maps.set_backend(*id, row),
                Op::SetSlots { base, ids } => self.maps.set_slots(*base, ids),
                Op::SetFrontend { key, row } => self.maps.set_frontend(key, row),
                Op::DeleteFrontend { key } => self.maps.delete_frontend(key),
            };
            match result {
                Ok(()) => {
                    self.metrics.operations.inc();
                }
                Err(error) => {
                    match op {
                        Op::SetBackend { id, .. } => drop(bad_ids.insert(*id)),
                        Op::SetSlots { base, .. } => drop(bad_bases.insert(*base)),
                        Op::SetFrontend { .. } | Op::DeleteFrontend { .. } => {}
                    }
                    failures.push(context(op)(error));
                }
            }
        }
        match &failures[..] {
            [] => {
                if let Some(tables) = &mut self.tables {
                    tables.applied(Instant::now());
                }
                Ok(())
            }
            [one] => Err(one.clone()),
            [first, rest @ ..] => Err(format!("{first} (and {} more writes failed)", rest.len())),
        }
    }
}

/// Puts what is so now in the place of what was, and warns of what is new.
fn take_over<T: Clone + PartialEq + fmt::Display>(known: &mut Vec<T>, now: &[T]) {
    for new in now.iter().filter(|item| !known.contains(item)) {
        warn!("{new}");
    }
    now.clone_into(known);
}
