//! One step of the policy reconciler: plan, write, audit. Blocking, no clock but the monotonic one.

use super::desk::Request;
use super::metrics::PolicyMetrics;
use super::names::Names;
use super::status::PolicyStatus;
use super::{Config, Office, PolicyMaps, local_pod};
use crate::ipam::ledger;
use crate::policy::tables::{Kernel, Op, Plan, Tables, UNDER_WAY};
use crate::policy::{Input, LocalPod, Planner, Touched};
use crate::store::Snapshot;
use crate::telemetry::chain;
use std::collections::BTreeMap;
use std::fmt;
use std::mem::discriminant;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

/// Longer than a program runs.
const GRACE: Duration = Duration::from_millis(1);

/// What a step is about.
pub(super) enum Work {
    /// Something is new, or somebody asks.
    Goal(Goal, Vec<Request>),
    /// A quarantine ended, or a failed step is to be tried again.
    Due,
    /// Read the kernel back.
    Audit,
}

/// What is to be in force. The snapshot is synced.
#[derive(Debug)]
pub(super) struct Goal {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) pods: Arc<ledger::State>,
    pub(super) addresses: Arc<Vec<IpAddr>>,
}

/// All that the reconciler knows.
#[derive(Debug)]
pub(super) struct Worker<M> {
    config: Config,
    node: String,
    maps: M,
    planner: Planner,
    /// None: to be read back from the kernel.
    tables: Option<Tables>,
    /// The generation of what is planned; none before the first.
    planned: Option<u64>,
    locals: BTreeMap<u32, LocalPod>,
    /// Who waits until all that is planned is written.
    waiting: Vec<Request>,
    retry_at: Option<Instant>,
    status: PolicyStatus,
    publish: watch::Sender<Arc<PolicyStatus>>,
    names: Arc<Names>,
    metrics: PolicyMetrics,
}

fn context<E: std::error::Error>(what: impl fmt::Display) -> impl FnOnce(E) -> String {
    move |error| format!("{what}: {}", chain(&error))
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

impl<M: PolicyMaps> Worker<M> {
    pub(super) fn new(
        config: Config,
        node: String,
        office: &Office,
        (maps, metrics): (M, PolicyMetrics),
    ) -> Self {
        Self {
            config,
            node,
            maps,
            planner: Planner::new(),
            tables: None,
            planned: None,
            locals: BTreeMap::new(),
            waiting: Vec::new(),
            retry_at: None,
            status: PolicyStatus::default(),
            publish: office.status.clone(),
            names: Arc::clone(&office.names),
            metrics,
        }
    }

    /// When there is something to do without anything new.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.retry_at.or_else(|| self.tables.as_ref().and_then(Tables::next_expiry))
    }

    /// Does it, and tells.
    pub(super) fn step(&mut self, work: Work) {
        let start = Instant::now();
        let result = match work {
            Work::Goal(goal, requests) => {
                self.waiting.extend(requests);
                let touched = self.plan(&goal);
                self.converge(touched, start)
            }
            Work::Due => self.due(start),
            Work::Audit => self.audit(start),
        };
        match result {
            Ok(()) => {
                if self.status.error.take().is_some() {
                    info!("the policy tables are as wanted again");
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
        if self.status.error.is_none() && self.planned.is_some() {
            self.answer();
        }
    }

    /// The image may not be what the kernel holds: it is read back before the next try.
    fn failed(&mut self, error: String) {
        self.tables = None;
        let factor = 2_u32.saturating_pow(self.status.failures);
        let wait = self.config.retry_first.saturating_mul(factor).min(self.config.retry_longest);
        self.retry_at = Some(Instant::now() + wait);
        self.status.failures = self.status.failures.saturating_add(1);
        self.metrics.failures.inc();
        error!(%error, failures = self.status.failures, retry_in = ?wait, "cannot update the policy tables");
        self.status.error = Some(error);
    }

    /// Everything planned is in the kernel: who waited for it goes on.
    fn answer(&mut self) {
        for Request { pod, answer } in self.waiting.drain(..) {
            if self.locals.contains_key(&pod.endpoint) {
                // Who does not wait any more needs no answer.
                answer.send(()).ok();
            }
        }
    }

    /// Brings the plan up to date; gives what may differ from the last one.
    fn plan(&mut self, goal: &Goal) -> Touched {
        let start = Instant::now();
        let mut locals = of_this_node(&goal.pods);
        self.waiting.retain(|request| !request.answer.is_closed());
        for Request { pod, .. } in &self.waiting {
            locals.entry(pod.endpoint).or_insert_with(|| pod.clone());
        }
        let model = &goal.snapshot.model;
        // One behind a translation has its outer address on no interface.
        let told = model.nodes.get(self.node.as_str()).into_iter().flat_map(|node| &node.internal_ips);
        let addresses: Vec<IpAddr> = goal.addresses.iter().chain(told).copied().collect();
        let input = Input { model, locals: &locals, node: &self.node, node_addresses: &addresses };
        let touched = self.planner.update(input);
        self.status.compile_us = micros(start);
        self.metrics.compile.observe(start.elapsed().as_secs_f64());
        let desired = self.planner.desired();
        self.names.follow(desired, &touched);
        self.status.policies = goal.snapshot.model.policies.len();
        self.status.count(&self.planner);
        self.locals = locals;
        self.planned = Some(goal.snapshot.generation);
        touched
    }

    fn due(&mut self, start: Instant) -> Result<(), String> {
        match &mut self.tables {
            Some(tables) => {
                if tables.expire(Instant::now()) {
                    return self.converge(Touched::default(), start);
                }
                Ok(())
            }
            None => self.converge(Touched::all(), start),
        }
    }

    /// Brings the kernel to what is planned, as far as it fits. `touched`: what may differ from what was last brought
    /// there.
    fn converge(&mut self, mut touched: Touched, start: Instant) -> Result<(), String> {
        let Some(generation) = self.planned else { return Ok(()) };
        if self.tables.is_none() {
            let kernel = self.read()?;
            self.take_image(&kernel);
            touched = Touched::all();
        }
        let mut writes = 0;
        loop {
            let Some(tables) = &mut self.tables else { return Ok(()) };
            let Plan { ops, refused, again } = tables.plan(self.planner.desired(), &touched, Instant::now());
            self.status.refuse(&refused, &self.locals);
            writes += ops.len();
            self.write(&ops)?;
            if let Some(tables) = &mut self.tables {
                tables.applied(Instant::now());
            }
            if !again {
                break;
            }
            touched = Touched::default();
        }
        self.status.generation = Some(generation);
        if writes > 0 {
            self.status.took_us = micros(start);
            self.metrics.apply.observe(start.elapsed().as_secs_f64());
            debug!(generation, writes, took = ?start.elapsed(), "policy tables updated");
        }
        Ok(())
    }

    fn audit(&mut self, start: Instant) -> Result<(), String> {
        let Some(tables) = &self.tables else { return self.converge(Touched::all(), start) };
        let kernel = self.read()?;
        let drift = tables.drift(&kernel);
        self.status.audits += 1;
        if drift.is_empty() {
            return Ok(());
        }
        for row in drift.iter().take(PolicyStatus::DRIFT_TOLD) {
            warn!("policy tables: {row}; repairing");
        }
        self.metrics.drift.inc_by(u64::try_from(drift.len()).unwrap_or(u64::MAX));
        self.status.drift += u64::try_from(drift.len()).unwrap_or(u64::MAX);
        self.status.last_drift =
            drift.iter().take(PolicyStatus::DRIFT_TOLD).map(ToString::to_string).collect();
        self.take_image(&kernel);
        self.converge(Touched::all(), start)?;
        // Flows may have been judged by what was there.
        self.maps.bump_epoch().map_err(context(Op::BumpEpoch))
    }

    fn take_image(&mut self, kernel: &Kernel) {
        let Config { limits, quarantine, .. } = self.config;
        self.tables = Some(Tables::read(limits, quarantine, kernel, Instant::now()));
    }

    fn read(&self) -> Result<Kernel, String> {
        let ranges = self.maps.ranges(0, self.config.limits.ranges);
        Ok(Kernel {
            pods: self.maps.pods().map_err(context("reading back the sets of pods"))?,
            identities: self.maps.identities().map_err(context("reading back the identities"))?,
            blocks: self.maps.blocks().map_err(context("reading back the blocks"))?,
            rows: self.maps.rows().map_err(context("reading back the policy rows"))?,
            ranges: ranges.map_err(context("reading back the ranges"))?,
        })
    }

    /// Writes operations in their order, up to the first that fails.
    fn write(&self, ops: &[Op]) -> Result<(), String> {
        for alike in ops.chunk_by(|a, b| discriminant(a) == discriminant(b)) {
            let Some(first) = alike.first() else { continue };
            if alike.iter().any(|op| matches!(op, Op::RemoveRow { key } if *key != UNDER_WAY)) {
                // A program that looked up whose row it is just before that changed looks the row up now.
                std::thread::sleep(GRACE);
            }
            self.write_alike(first, alike).map_err(context(first))?;
            self.metrics.operations.inc_by(u64::try_from(alike.len()).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Writes operations of one kind.
    fn write_alike(&self, first: &Op, ops: &[Op]) -> Result<(), M::Error> {
        macro_rules! all {
            ($pattern:pat => $value:expr) => {
                &ops.iter()
                    .filter_map(|op| if let $pattern = op { Some($value) } else { None })
                    .collect::<Vec<_>>()
            };
        }
        match first {
            Op::SetRanges { .. } => ops.iter().try_for_each(|op| match op {
                Op::SetRanges { base, ranges } => self.maps.set_ranges(*base, ranges),
                _ => Ok(()),
            }),
            Op::SetRow { .. } => self.maps.set_rows(all!(Op::SetRow { key, row } => (*key, *row))),
            Op::RemoveRow { .. } => self.maps.delete_rows(all!(Op::RemoveRow { key } => *key)),
            Op::SetBlock { .. } => {
                self.maps.set_blocks(all!(Op::SetBlock { block, identity } => (*block, *identity)))
            }
            Op::RemoveBlock { .. } => self.maps.delete_blocks(all!(Op::RemoveBlock { block } => *block)),
            Op::SetIdentity { .. } => {
                self.maps.set_identities(all!(Op::SetIdentity { addr, row } => (*addr, *row)))
            }
            Op::RemoveIdentity { .. } => {
                self.maps.delete_identities(all!(Op::RemoveIdentity { addr } => *addr))
            }
            Op::SetPod { .. } => {
                self.maps.set_pods(all!(Op::SetPod { endpoint, sets } => (*endpoint, *sets)))
            }
            Op::RemovePod { .. } => self.maps.remove_pods(all!(Op::RemovePod { endpoint } => *endpoint)),
            Op::BumpEpoch => self.maps.bump_epoch(),
        }
    }
}

/// The ledger's pods.
fn of_this_node(state: &ledger::State) -> BTreeMap<u32, LocalPod> {
    state.entries().map(|entry| (entry.endpoint, local_pod(entry))).collect()
}
