//! Nanoseconds of `pod_egress`, the program that every packet of a pod meets, by `BPF_PROG_TEST_RUN`, in two ways.
//!
//! **In a loop** of the kernel's: a packet is not as it was after a run (translated, TTL lower), so a program of a few
//! instructions puts its headers back before each and then goes on as `pod_egress`; what that costs is measured by the
//! same one going on as a program that does nothing, and taken off. So it is for one packet of a stream.
//!
//! **Single**: one frame at a time, and the kernel's own clock around the program is read (`BPF_ENABLE_STATS`). What
//! that clock costs is measured by the program that does nothing, and taken off. Between two runs is a
//! system call, which leaves the CPU's caches and branch predictors less warm than a stream of packets would: so it is
//! for a packet that comes alone.
//!
//! | metric | hot | random keys (single only) |
//! |---|---|---|
//! | established | one flow through a Service | any of 65 536 flows through all Services |
//! | reply | the same, the server's packets | the same |
//! | new connection | SYNs to one Service | SYNs to any of the Services |
//! | no Service | one established flow | |
//!
//! The server's pod is one of 64 on this node.

mod rig;

use super::Case;
use super::frames::REDIRECTED;
use super::probe::{Jump, Loop, Probe};
use crate::load::Cpus;
use crate::options::Options;
use crate::report::{Bar, Row};
use crate::rounds::Series;
use anyhow::{Context as _, Result};
use aya::programs::ProgramInfo;
use aya::sys::{Stats, enable_stats};
use netd_integration::lab::Lab;
use rig::{Flow, Random, Rig};
use std::path::Path;

const FLOWS: u32 = 65_536;

/// Of a packet of an established flow.
const ESTABLISHED: Bar = Bar::at_most(150.0, 120.0);
/// Of the first packet of a connection.
const NEW: Bar = Bar::at_most(600.0, 400.0);

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
        measure(&rig, &lab.bpffs(), options)
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
        bar: ESTABLISHED,
        new: false,
        act: |rig, random, hot| {
            let flow = rig.flow(if hot { 0 } else { random.below(rig.flows()) })?;
            rig.send(flow.client, &flow.forth).map(drop)
        },
    },
    Kind {
        metric: "reply",
        bar: ESTABLISHED,
        new: false,
        act: |rig, random, hot| {
            let flow = rig.flow(if hot { 0 } else { random.below(rig.flows()) })?;
            rig.send(flow.server, &flow.back).map(drop)
        },
    },
    Kind {
        metric: "new connection",
        bar: NEW,
        new: true,
        act: |rig, random, hot| {
            let service = if hot { 0 } else { random.below(rig.services()) };
            rig.connect(service)
        },
    },
];

/// A kind of packet in a loop.
struct Looped {
    metric: &'static str,
    bar: Option<Bar>,
    packets: Loop,
}

impl Looped {
    /// All kinds. `folder`: of a bpffs, for what they need.
    fn all(rig: &Rig, direct: &Flow, empty: &mut Probe, folder: &Path) -> Result<[Self; 4]> {
        let nothing = folder.join("nothing");
        empty.pin(&nothing)?;
        let real = Jump::to(rig.program(), &folder.join("real"))?;
        let idle = Jump::to(&nothing, &folder.join("idle"))?;
        let jumps = [&real, &idle];
        let (flow, (client, syn)) = (rig.flow(0)?, rig.syn()?);
        let same = |metric, bar, frame: &[u8], ifindex| {
            anyhow::Ok(Self { metric, bar, packets: Loop::same(jumps, frame, ifindex)? })
        };
        Ok([
            same("established", Some(ESTABLISHED), &flow.forth, flow.client)?,
            same("reply", Some(ESTABLISHED), &flow.back, flow.server)?,
            Self {
                metric: "new connection",
                bar: Some(NEW),
                packets: Loop::counting(jumps, &syn, client, (folder, "new"))?,
            },
            same("established, no Service", None, &direct.forth, direct.client)?,
        ])
    }
}

fn measure(rig: &Rig, bpffs: &Path, options: &Options) -> Result<Vec<Row>> {
    let mut empty = Probe::empty()?;
    let direct = rig.direct()?;
    let loops = Looped::all(rig, &direct, &mut empty, bpffs)?;
    let rounds = u32::try_from(options.rounds())?;
    let runs = options.pick(8_000, 2_000);
    // Hot and random each.
    let new = runs.min(rig::NEW / rounds / 2).max(1);
    let mut random = Random::new();
    let [mut clock, mut single] = [(); 2].map(|()| Series::default());
    let mut looped = [(); 4].map(|()| Series::default());
    let mut all = KINDS.map(|_| [Series::default(), Series::default()]);
    for _ in 0..rounds {
        for (kind, series) in loops.iter().zip(&mut looped) {
            series.push(kind.packets.time(new, REDIRECTED)?);
        }
        let frame = &rig.flow(0)?.forth;
        // Ends with the round: it slows every program of the machine down.
        let _stats = enable_stats(Stats::RunTime).context("asking for run times of programs")?;
        let cost = nanoseconds(runs, || empty.info(), || empty.run(frame, 0, 1).map(drop))?;
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
    let row = |metric: String, series| Row::new(Case::Program, "netd pod_egress", metric, "ns", series);
    let mut rows = Vec::new();
    for (kind, series) in loops.iter().zip(looped) {
        let row = row(format!("{}, hot, in a loop", kind.metric), series).note("less the loop");
        rows.push(match kind.bar {
            Some(bar) => row.bar(bar),
            None => row,
        });
    }
    let note = format!("less {:.0} ns for the clock", clock.median());
    for (kind, series) in KINDS.iter().zip(all) {
        let [hot, cold] = series;
        let (services, flows) = (rig.services(), rig.flows());
        let keys = format!("{}, random keys ({services} Services, {flows} flows)", kind.metric);
        for (metric, series) in [(format!("{}, hot, single", kind.metric), hot), (keys, cold)] {
            rows.push(row(metric, series).bar(kind.bar).note(note.clone()));
        }
    }
    rows.push(row("established, no Service, hot, single".into(), single).note(note));
    rows.push(Row::new(Case::Program, "an empty program", "the clock", "ns", clock));
    Ok(rows)
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
