//! The agent by the number of Services: full sync, one changed endpoint, memory.
//!
//! The folder of state has two files for each Service, one of them with its EndpointSlice. A change is a
//! rename over the latter; it has arrived when the kernel's tables show the new endpoint and no longer the old
//! one, which is looked at every tenth of a millisecond.

mod endpoints;

use super::Case;
use super::pins::memory;
use crate::options::Options;
use crate::report::{Bar, Report, Row};
use crate::rounds::Series;
use crate::services::{PORT, Service, Services};
use crate::subjects::{lone_node, memory_of, synced, tables_for};
use anyhow::{Context as _, Result, ensure};
use endpoints::Endpoints;
use netd_integration::lab::Lab;
use netd_integration::node::Node;
use netd_integration::state::State;
use netd_integration::{stats, wait};
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

/// Rounds of the largest size, whose syncs take the longest.
const LARGE: u32 = 10_000;
const LARGE_ROUNDS: usize = 3;

/// The address that the changing endpoint has in turn.
const TURNS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 244, 1, 3), Ipv4Addr::new(10, 244, 1, 4)];

/// Lets the agent come to rest between two changes.
const REST: Duration = Duration::from_millis(20);
/// Pause between two looks, with what the kernel adds to it.
const LOOK: Duration = Duration::from_micros(50);
/// After this no more changes are made.
const CHANGING: Duration = Duration::from_secs(15);

/// A metric, its unit, and what is aimed at with 5 000 Services.
const METRICS: [(&str, &str, Option<Bar>); 9] = [
    ("full sync, new tables", "ms", None),
    ("full sync, restart", "ms", None),
    ("one endpoint -> map, p50", "ms", Some(Bar::at_most(5.0, 2.0))),
    ("one endpoint -> map, worst", "ms", None),
    ("of it plan and write", "ms", None),
    ("resident after sync", "MiB", Some(Bar::at_most(40.0, 30.0))),
    ("resident after changes", "MiB", None),
    ("resident at most", "MiB", None),
    ("maps", "MiB", None),
];
const BAR_AT: u32 = 5_000;

pub(super) fn run(lab: &Lab, options: &Options, report: &Report) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for count in options.sizes() {
        report.progress(&format!("  {count} Services"));
        let (node, state) = lone_node(lab, &format!("agent-{count}"), tables_for(count))?;
        let [server, _] = TURNS;
        let services = Services::new(count, server);
        services.write_unused(&state)?;
        let rounds = if count > LARGE { options.rounds().min(LARGE_ROUNDS) } else { options.rounds() };
        let mut all = METRICS.map(|_| Series::default());
        for _ in 0..rounds {
            services.used().write(&state)?;
            let values = round(lab, &node, &state, services, options.pick(20, 5))?;
            for (series, value) in all.iter_mut().zip(values) {
                series.push(value);
            }
        }
        for ((metric, unit, bar), series) in METRICS.into_iter().zip(all) {
            let mut row = Row::new(Case::Agent, format!("netd, {count}"), metric, unit, series);
            if let Some(bar) = bar.filter(|_| count == BAR_AT) {
                row = row.bar(bar);
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

/// From nothing in the kernel to nothing again; the values of [`METRICS`].
fn round(
    lab: &Lab,
    node: &Node<'_>,
    state: &State,
    services: Services,
    changes: usize,
) -> Result<[f64; METRICS.len()]> {
    let pins = lab.bpffs().join(node.name());
    let new = started(node, services.count)?;
    let resident = memory_of(node, "VmRSS")?;
    let maps = memory(&pins)?;

    let endpoints = Endpoints::open(&pins)?;
    let before = applied(node)?;
    let mut times = Vec::new();
    let start = Instant::now();
    for i in (1..=changes).take_while(|_| start.elapsed() < CHANGING) {
        times.push(change(&endpoints, state, services.used(), i)?);
        std::thread::sleep(REST);
    }
    let after = applied(node)?;
    let plan_and_write = (after.0 - before.0) / (after.1 - before.1) * 1e3;
    let resident_changed = memory_of(node, "VmRSS")?;
    let most = memory_of(node, "VmHWM")?;
    drop(endpoints);
    node.terminate()?;

    let again = started(node, services.count)?;
    node.terminate()?;
    fs::remove_dir_all(&pins).with_context(|| format!("removing {}", pins.display()))?;
    Ok([
        new,
        again,
        stats::median(&times),
        stats::quantile(&times, 1.0),
        plan_and_write,
        resident,
        resident_changed,
        most,
        maps,
    ])
}

/// Starts the agent; milliseconds until it is ready.
fn started(node: &Node<'_>, count: u32) -> Result<f64> {
    let start = Instant::now();
    node.launch()?;
    synced(node, count)?;
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// Changes the first endpoint of a Service for the `i`th time; milliseconds until the kernel has it.
fn change(endpoints: &Endpoints, state: &State, mut service: Service, i: usize) -> Result<f64> {
    let [even, odd] = TURNS;
    let (old, new) = if i % 2 == 1 { (even, odd) } else { (odd, even) };
    let first = service.endpoints.first_mut().context("a Service without endpoints")?;
    let (old, new) = (SocketAddrV4::new(old, first.port()), SocketAddrV4::new(new, first.port()));
    *first = new;
    let (path, beside) = (state.dir().join(service.slices_file()), state.dir().join(".change"));
    fs::write(&beside, service.slices()?)?;
    let frontend = SocketAddrV4::new(service.vip, PORT);
    ensure!(endpoints.of(frontend)?.contains(&old), "{old} is not in the kernel");
    let start = Instant::now();
    fs::rename(&beside, &path)?;
    loop {
        let now = endpoints.of(frontend)?;
        let took = start.elapsed();
        if now.contains(&new) && !now.contains(&old) {
            return Ok(took.as_secs_f64() * 1e3);
        }
        ensure!(took < wait::DEADLINE, "the kernel still has {now:?} after {took:?}");
        std::thread::sleep(LOOK);
    }
}

/// Seconds that the agent spent planning and writing Service tables, and how often.
fn applied(node: &Node<'_>) -> Result<(f64, f64)> {
    let response = node.api("/metrics")?;
    let metric = |name| response.metric(name, &[]);
    Ok((metric("netd_service_apply_seconds_sum"), metric("netd_service_apply_seconds_count")))
}
