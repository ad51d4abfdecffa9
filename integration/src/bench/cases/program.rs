//! Nanoseconds of `pod_egress`, the program that every packet of a pod meets, by `BPF_PROG_TEST_RUN`.
//!
//! A packet is not as it was after a run (translated, TTL lower), so a frame is run once at a time and the
//! kernel's own clock around the program is read (`BPF_ENABLE_STATS`), not the time of a loop. What that clock
//! costs is measured by a program that does nothing, in the same rounds, and taken off. Between two runs is a
//! system call, which leaves the CPU's caches less warm than a stream of packets would: how much less shows
//! beside a packet that can be run in a loop, one between two pods without a Service.
//!
//! | metric | hot | random keys |
//! |---|---|---|
//! | established | one flow through a Service | any of 65 536 flows through all Services |
//! | reply | the same, the server's packets | the same |
//! | new connection | SYNs to one Service | SYNs to any of the Services |
//! | no Service | one established flow, single packets and in a loop | |
//!
//! The server's pod is one of 64 on this node.

mod empty;
mod rig;

use super::Case;
use crate::load::Cpus;
use crate::options::Options;
use crate::report::{Bar, Row};
use crate::rounds::Series;
use anyhow::{Context as _, Result};
use aya::programs::ProgramInfo;
use aya::sys::{Stats, enable_stats};
use empty::Empty;
use netd_integration::lab::Lab;
use rig::{Random, Rig};

const FLOWS: u32 = 65_536;

pub(super) fn run(lab: &Lab, options: &Options) -> Result<Vec<Row>> {
    let cpus = Cpus::choose()?;
    let services = options.sizes().last().copied().unwrap_or(1);
    let namespace = lab.namespace("program")?;
    Rig::links(&namespace)?;
    // A test-run finds interfaces in the namespace of its thread.
    namespace.enter(|| {
        crate::load::pin(cpus.server)?;
        let mut rig = Rig::new(&lab.bpffs().join("program"), services)?;
        rig.establish(FLOWS)?;
        measure(&rig, options)
    })
}

/// One kind of packet, hot or by random keys.
struct Kind {
    metric: &'static str,
    bar: Bar,
    /// Each packet takes a source port and rows of the tables.
    new: bool,
    act: fn(&Rig, &mut Random, bool) -> Result<()>,
}

const KINDS: [Kind; 3] = [
    Kind {
        metric: "established",
        bar: Bar::at_most(150.0, 120.0),
        new: false,
        act: |rig, random, hot| {
            let flow = rig.flow(if hot { 0 } else { random.below(rig.flows()) })?;
            rig.send(flow.client, &flow.forth).map(drop)
        },
    },
    Kind {
        metric: "reply",
        bar: Bar::at_most(150.0, 120.0),
        new: false,
        act: |rig, random, hot| {
            let flow = rig.flow(if hot { 0 } else { random.below(rig.flows()) })?;
            rig.send(flow.server, &flow.back).map(drop)
        },
    },
    Kind {
        metric: "new connection",
        bar: Bar::at_most(600.0, 400.0),
        new: true,
        act: |rig, random, hot| {
            let service = if hot { 0 } else { random.below(rig.services()) };
            rig.connect(service)
        },
    },
];

fn measure(rig: &Rig, options: &Options) -> Result<Vec<Row>> {
    let empty = Empty::load()?;
    let direct = rig.direct()?;
    let rounds = u32::try_from(options.rounds())?;
    let runs = options.pick(8_000, 2_000);
    // Hot and random each.
    let new = runs.min(rig::NEW / rounds / 2).max(1);
    let mut random = Random::new();
    let [mut clock, mut single, mut looped] = [(); 3].map(|()| Series::default());
    let mut all = KINDS.map(|_| [Series::default(), Series::default()]);
    for _ in 0..rounds {
        let frame = &rig.flow(0)?.forth;
        looped
            .push(mean(runs / 10, || rig.in_a_loop(&direct))? - mean(runs / 10, || empty.run(frame, 1_000))?);
        // Ends with the round: it slows every program of the machine down.
        let _stats = enable_stats(Stats::RunTime).context("asking for run times of programs")?;
        let cost = nanoseconds(runs, || empty.info(), || empty.run(frame, 1).map(drop))?;
        clock.push(cost);
        single.push(
            nanoseconds(runs, || rig.info(), || rig.send(direct.client, &direct.forth).map(drop))? - cost,
        );
        for (kind, series) in KINDS.iter().zip(&mut all) {
            let runs = if kind.new { new } else { runs };
            for (hot, series) in [true, false].into_iter().zip(series) {
                let act = || (kind.act)(rig, &mut random, hot);
                series.push(nanoseconds(runs, || rig.info(), act)? - cost);
            }
        }
    }
    let note = format!("less {:.0} ns for the clock", clock.median());
    let row = |metric: String, series| Row::new(Case::Program, "netd pod_egress", metric, "ns", series);
    let mut rows = Vec::new();
    for (kind, series) in KINDS.iter().zip(all) {
        let [hot, cold] = series;
        let (services, flows) = (rig.services(), rig.flows());
        let keys = format!("{}, random keys ({services} Services, {flows} flows)", kind.metric);
        for (metric, series) in [(format!("{}, hot", kind.metric), hot), (keys, cold)] {
            rows.push(row(metric, series).bar(kind.bar).note(note.clone()));
        }
    }
    rows.push(row("established, no Service, hot".into(), single.clone()).note(note));
    let ratio = row("established, no Service, hot, in a loop".into(), looped);
    rows.push(ratio.to("single packets", &single).note("less an empty loop"));
    rows.push(Row::new(Case::Program, "an empty program", "the clock", "ns", clock));
    Ok(rows)
}

/// Mean of what `act` gives.
fn mean(times: u32, mut act: impl FnMut() -> Result<f64>) -> Result<f64> {
    let mut sum = 0.0;
    for _ in 0..times {
        sum += act()?;
    }
    Ok(sum / f64::from(times))
}

/// Mean time of a program over a number of runs, by the kernel's clock.
fn nanoseconds(
    runs: u32,
    info: impl Fn() -> Result<ProgramInfo>,
    mut act: impl FnMut() -> Result<()>,
) -> Result<f64> {
    let before = info()?;
    for _ in 0..runs {
        act()?;
    }
    let after = info()?;
    let time = after.run_time().saturating_sub(before.run_time());
    let count = u32::try_from(after.run_count() - before.run_count())?;
    anyhow::ensure!(count >= runs, "{count} runs counted of {runs}");
    Ok(time.as_secs_f64() * 1e9 / f64::from(count))
}
