//! An agent of the map schema before this one replaced by this one, and its tables grown, under traffic. In a
//! lab of its own: two nodes that begin with the previous netd, built from its own source.

use crate::report::Report;
use anyhow::{Context as _, Result, ensure};
use netd_integration::binary;
use netd_integration::lab::{Lab, pinned};
use netd_integration::node::Node;
use netd_integration::site::{Families, Site, VIPS, at};
use netd_integration::traffic::{Load, Style};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Between two requests of a load.
const PAUSE: Duration = Duration::from_millis(4);
/// Requests that each load has answered before, during and after.
const REQUESTS: u64 = 150;
/// Rows of the table of flows: first, and grown.
const FLOWS: [u32; 2] = [65_536, 131_072];

pub(crate) fn show(report: &mut Report) -> Result<()> {
    report.section("An agent of another map schema replaced by this one under traffic, then larger tables");
    let Some(previous) = binary::previous()? else {
        report.line("  SKIPPED: this source tree has no history to build the previous netd from.");
        return Ok(());
    };
    let lab = Lab::new()?;
    let shown = upgrade(&lab, previous, report);
    if shown.is_err() {
        lab.explain();
    }
    shown?;
    lab.tear_down()
}

fn upgrade(lab: &Lab, previous: &Path, report: &mut Report) -> Result<()> {
    report.line(&format!("  two nodes in a lab of their own, first with {}", version(previous)?));
    let mut site = Site::new(lab, 1)?;
    for name in ["a", "b"] {
        site.add_node(name, 1, Families::Dual)?;
        let node = site.node(name)?;
        node.replace_netd(Some(previous));
        node.configure(|config| config.tables.flows = FLOWS[0]);
    }
    site.start_all()?;
    let (client, servers) = site.web()?;
    let mut loads = Vec::new();
    for vip in VIPS {
        loads.extend(Load::all(&client.netns, at(vip), PAUSE)?);
    }
    let back = site.node("b")?.add_pod("back")?;
    let across = servers.first().context("a server")?.at(false)?;
    loads.extend(Load::all(&back.netns, across, PAUSE)?);
    Load::all_more(&loads, REQUESTS)?;

    for node in site.nodes() {
        let before = node.schemas()?;
        node.kill9()?;
        Load::all_more(&loads, REQUESTS)?;
        node.replace_netd(None);
        let start = Instant::now();
        node.start()?;
        let took = start.elapsed().as_millis();
        let asked = format!("kill -9 on {}, this netd started instead", node.name());
        report.check(&asked, node.schemas().and_then(|after| changed(&before, &after, took)));
        Load::all_more(&loads, REQUESTS)?;
    }
    for node in site.nodes() {
        node.terminate()?;
        node.configure(|config| config.tables.flows = FLOWS[1]);
        node.start()?;
        let asked = format!("datapath.flows on {}: {} to {}", node.name(), FLOWS[0], FLOWS[1]);
        report.check(&asked, grown(node));
        Load::all_more(&loads, REQUESTS)?;
    }
    report.line(&format!("  requests every {} ms all the time, in each of:", PAUSE.as_millis()));
    for load in loads {
        let tally = load.stop()?;
        let slowest = tally.slowest.as_secs_f64() * 1000.0;
        let text = format!("{} failed, {} answered, slowest {slowest:.1} ms", tally.failed, tally.answered);
        let flows = match tally.style {
            Style::Held => "one old",
            Style::Fresh => "new",
        };
        let asked = format!("{flows} {} to {}", tally.proto, tally.target);
        report.check(&asked, tally.none_failed().map(|()| text));
    }
    for node in site.nodes() {
        node.terminate()?;
    }
    Ok(())
}

fn version(netd: &Path) -> Result<String> {
    let said = Command::new(netd).arg("--version").output().context("asking netd for its version")?;
    Ok(format!("{}, {}", String::from_utf8_lossy(&said.stdout).trim(), netd.display()))
}

fn changed(before: &[String], after: &[String], took: u128) -> Result<String> {
    let [before] = before else { anyhow::bail!("pins of {before:?} before") };
    let [after] = after else { anyhow::bail!("pins of {after:?} afterwards") };
    ensure!(before != after, "the schema is {before} as before");
    Ok(format!("maps {before} -> {after}, ready after {took} ms"))
}

fn grown(node: &Node<'_>) -> Result<String> {
    let all = pinned(&node.bpffs())?;
    let map = all.iter().find(|object| object.kind == "map" && object.path.ends_with("ESTABLISHED"));
    let entries = map.context("no table of flows")?.entries()?;
    ensure!(entries == u64::from(FLOWS[1]), "it has {entries} rows");
    Ok(format!("{entries} rows, says bpftool"))
}
