//! The agents killed with -9 under traffic, and started again.

use super::Pods;
use crate::report::Report;
use anyhow::Result;
use netd_integration::site::{Site, VIPS, at};
use netd_integration::traffic::{Load, Style};
use std::time::{Duration, Instant};

/// Between two requests of a load.
const PAUSE: Duration = Duration::from_millis(4);

/// Requests that each load has answered before, without and after the agents.
const REQUESTS: u64 = 250;

pub(crate) fn show(site: &Site<'_>, pods: &Pods, report: &mut Report) -> Result<()> {
    report.section("All three agents killed with -9 under traffic, and started again");
    let mut loads = Vec::new();
    for vip in VIPS {
        loads.extend(Load::all(pods.get("a1")?.netns(), at(vip), PAUSE)?);
    }
    let across = pods.get("c1")?.at(false)?;
    loads.extend(Load::all(pods.get("b1")?.netns(), across, PAUSE)?);

    let more = || Load::all_more(&loads, REQUESTS);
    more()?;
    for node in site.nodes() {
        report.check(&format!("kill -9 on {}", node.name()), node.kill9().map(|status| status.to_string()));
    }
    let killed = Instant::now();
    more()?;
    let away = killed.elapsed();
    for node in site.nodes() {
        node.launch()?;
    }
    for node in site.nodes() {
        let asked = format!("start again on {}", node.name());
        report.check(
            &asked,
            node.ready().map(|()| format!("ready, {} ms after the kill", killed.elapsed().as_millis())),
        );
    }
    more()?;
    report.line(&format!(
        "  no agent ran for at least {} ms; requests every {} ms in each of:",
        away.as_millis(),
        PAUSE.as_millis()
    ));
    for load in loads {
        let tally = load.stop()?;
        let text = format!(
            "{} failed, {} answered, slowest {:.1} ms",
            tally.failed,
            tally.answered,
            tally.slowest.as_secs_f64() * 1000.0
        );
        let flows = match tally.style {
            Style::Held => "one old",
            Style::Fresh => "new",
        };
        let asked = format!("{flows} {} to {}", tally.proto, tally.target);
        report.check(&asked, tally.none_failed().map(|()| text));
    }
    Ok(())
}
