//! `netd-demo`: shows netd's main job on real packets, and tells by its exit status whether all held.
//! `netd-demo reap DIR` is the lab's reaper, `netd-demo crowd …` and `keep …` hold sockets for its tests.

mod report;
mod steps;

use anyhow::{Result, bail};
use netd_integration::lab::{self, Lab};
use netd_integration::traffic;
use report::Report;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> Result<ExitCode> {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.as_slice() {
        [] => {
            let mut report = Report::new();
            let outcome = show(&mut report);
            if let Err(error) = &outcome {
                report.check("the demo itself", Err(anyhow::anyhow!("{error:#}")));
            }
            Ok(if report.end() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        [word, dir] if word == "reap" => lab::reap(Path::new(dir)).map(|()| ExitCode::SUCCESS),
        [word, ..] if word == "crowd" || word == "keep" => traffic::hold(&args).map(|()| ExitCode::SUCCESS),
        _ => bail!("usage: netd-demo"),
    }
}

fn show(report: &mut Report) -> Result<()> {
    lab::clean_up_on_signals()?;
    let lab = Lab::new()?;

    report.line(&format!(
        "netd demo. Everything below happens in network namespaces that this program makes under {}.\n\n  \
         segment 1: node a, node b --- router --- segment 2: node c        two pods on each node, IPv4 and IPv6",
        lab.dir().display()
    ));
    let result = steps::all(&lab, report);
    if result.is_err() {
        lab.explain();
    }
    report.section("Everything removed");
    let objects = lab::pinned(&lab.bpffs());
    report.check("namespaces, links, processes, mounts, files", lab.tear_down().map(|()| "none left".into()));
    report.check("eBPF maps and programs", objects.and_then(|objects| steps::gone(&objects)));
    result
}
