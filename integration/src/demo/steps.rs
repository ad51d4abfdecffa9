//! The steps of the demo, in order.

mod reach;
mod restart;
mod service;
mod spoof;

use crate::report::Report;
use anyhow::{Context as _, Result};
use netd_integration::binary;
use netd_integration::lab::{Lab, Pinned};
use netd_integration::node::Pod;
use netd_integration::site::Site;
use netd_integration::traffic::Echo;
use netd_integration::wait;
use std::net::IpAddr;
use std::time::Instant;

/// Where every pod serves.
pub(crate) const PORT: u16 = 8080;

/// A pod that serves.
pub(crate) struct Served<'lab> {
    pub(crate) node: &'lab str,
    pub(crate) pod: Pod,
    echo: Echo,
}

/// The six pods by name.
pub(crate) struct Pods<'lab>(Vec<Served<'lab>>);

impl Pods<'_> {
    pub(crate) fn get(&self, name: &str) -> Result<&Pod> {
        let found = self.0.iter().find(|served| served.pod.name == name);
        found.map(|served| &served.pod).with_context(|| format!("no pod {name}"))
    }

    /// The addresses of several pods, both families.
    pub(crate) fn addresses(&self, names: &[&str]) -> Result<Vec<IpAddr>> {
        let mut all = Vec::new();
        for name in names {
            all.extend(&self.get(name)?.addresses);
        }
        Ok(all)
    }
}

/// Runs all steps; the error of one whose failure leaves nothing to show.
pub(crate) fn all(lab: &Lab, report: &mut Report) -> Result<()> {
    report.section("Three nodes: `netd agent --config …` in each");
    let site = Site::three_nodes(lab)?;
    report.line(&format!("  using {}", binary::netd()?.display()));
    let start = Instant::now();
    for node in site.nodes() {
        node.launch()?;
    }
    for node in site.nodes() {
        node.ready()?;
        let asked = format!("GET /readyz on {}", node.name());
        let took = start.elapsed().as_millis();
        report.check(
            &asked,
            resident(node.agent_id()?).map(|rss| format!("ready after {took} ms, resident {rss}")),
        );
    }

    report.section("Six pods: CNI ADD by the installed conflist and plugin");
    let mut pods = Pods(Vec::new());
    for node in site.nodes() {
        for n in 1..=2 {
            let start = Instant::now();
            let pod = node.add_pod(&format!("{}{n}", node.name()))?;
            let took = start.elapsed().as_millis();
            let shown: Vec<String> = pod.addresses.iter().map(IpAddr::to_string).collect();
            report.check(
                &format!("ADD {} on {}", pod.name, node.name()),
                both_families(&pod).map(|()| format!("{} in {took} ms", shown.join(", "))),
            );
            let echo = Echo::start(&pod.netns, &pod.name, PORT)?;
            pods.0.push(Served { node: node.name(), pod, echo });
        }
    }

    reach::show(&pods, report)?;
    service::show(&site, &pods, report)?;
    restart::show(&site, &pods, report)?;
    spoof::show(&site, &pods, report)?;

    report.section("Pods and agents stop");
    for Served { node, pod, echo } in pods.0 {
        let name = pod.name.clone();
        drop(echo);
        report.check(&format!("DEL {name} on {node}"), site.node(node)?.del_pod(pod).map(|()| "gone".into()));
    }
    for node in site.nodes() {
        let ended = node.terminate().map(|status| status.to_string());
        report.check(&format!("SIGTERM to the agent of {}", node.name()), ended);
    }
    Ok(())
}

/// Waits until the kernel has let go of all of them, which it does in the background.
pub(crate) fn gone(objects: &[Pinned]) -> Result<String> {
    for object in objects {
        let what = format!("{} {} ({}) to be freed", object.kind, object.id, object.path.display());
        wait::holds(&what, || Ok(!object.lives()))?;
    }
    Ok(format!("all {} freed by the kernel", objects.len()))
}

fn both_families(pod: &Pod) -> Result<()> {
    pod.address(false)?;
    pod.address(true).map(drop)
}

/// Resident memory of a process.
fn resident(pid: u32) -> Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(format!("{:.1} MiB", kib / 1024.0))
}
