//! `netd-bench`: netd measured against what would stand in its place, as ratios taken in one interleaved run.
//! `cargo xtask bench` builds and runs it.
//!
//! Everything happens in namespaces of a lab, one lab for each case, and all subjects of a case stand at the
//! same time: a round measures each of them for a short slice, one right after the other, so that what else
//! happens on the machine hits all alike. A ratio is the median over rounds of the ratio within a round.
//!
//! | module | owns |
//! |---|---|
//! | [`cases`] | what is measured; each gives rows |
//! | [`subjects`] | nodes with pods: by kernel routing, kube-proxy's rules, netd |
//! | [`services`] | which Services there are, the same for all subjects |
//! | [`load`] | the servers and clients in pods |
//! | [`rounds`] | the order of measurements, medians and ratios |
//! | [`report`] | rows, the table, the files |

mod cases;
mod load;
mod options;
mod report;
mod rounds;
mod services;
mod subjects;

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use netd_integration::lab::{self, Lab};
use options::Options;
use report::Report;
use std::process::{Command, ExitCode};
use std::time::Instant;

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    go_first()?;
    lab::clean_up_on_signals()?;
    let report = Report::new(&options)?;
    for case in options.cases() {
        report.progress(&format!("{case}: {}", case.about()));
        let start = Instant::now();
        let mut rows = Vec::new();
        Lab::run(|lab| {
            rows = case.run(lab, &options, &report)?;
            Ok(())
        })
        .with_context(|| format!("case {case}"))?;
        report.table(&rows);
        let path = report.write(case, &rows, start.elapsed())?;
        report.progress(&format!("{case}: {:.0} s, {}", start.elapsed().as_secs_f64(), path.display()));
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts this process, and all that it will start, before what else runs on the machine: agents and plugins alike.
fn go_first() -> Result<()> {
    let me = std::process::id().to_string();
    let output =
        Command::new("renice").args(["-n", "-20", "-p", &me]).output().context("executing renice")?;
    ensure!(output.status.success(), "renice: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
