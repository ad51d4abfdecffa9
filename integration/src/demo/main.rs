//! `netd-demo`: shows netd's main job on real packets, and tells by its exit status whether all held.
//! `netd-demo reap DIR` is the lab's reaper.

mod report;
mod steps;

use anyhow::{Context as _, Result, bail};
use netd_integration::lab::{self, Lab};
use nix::sys::signal::{SigSet, Signal};
use report::Report;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> Result<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    match (args.next(), args.next()) {
        (None, None) => {
            let mut report = Report::new();
            let outcome = show(&mut report);
            if let Err(error) = &outcome {
                report.check("the demo itself", Err(anyhow::anyhow!("{error:#}")));
            }
            Ok(if report.end() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        (Some(word), Some(dir)) if word == OsStr::new("reap") => {
            lab::reap(Path::new(&dir)).map(|()| ExitCode::SUCCESS)
        }
        _ => bail!("usage: netd-demo"),
    }
}

fn show(report: &mut Report) -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("blocking signals")?;
    let lab = Lab::new()?;
    clean_up_on(signals, lab.dir().into())?;

    report.line(&format!(
        "netd demo. Everything below happens in network namespaces that this program makes under {}.\n\n  \
         segment 1: node a, node b --- router --- segment 2: node c        two pods on each node, IPv4 and IPv6",
        lab.dir().display()
    ));
    let result = steps::all(&lab, report);
    if result.is_err() {
        lab.show_logs();
    }
    report.section("Everything removed");
    let objects = lab::pinned(&lab.bpffs());
    report.check("namespaces, links, processes, mounts, files", lab.tear_down().map(|()| "none left".into()));
    report.check("eBPF maps and programs", objects.and_then(|objects| steps::gone(&objects)));
    result
}

/// On Ctrl-C and its kin: removes everything and ends. What the main thread makes meanwhile is left to the
/// reaper, which comes last.
fn clean_up_on(signals: SigSet, dir: PathBuf) -> Result<()> {
    let body = move || {
        let Ok(signal) = signals.wait() else { return };
        // An error is the reaper's to overcome.
        drop(lab::sweep(&dir));
        std::process::exit(128 + signal as i32);
    };
    std::thread::Builder::new().name("signals".into()).spawn(body).map(drop).context("starting a thread")
}
