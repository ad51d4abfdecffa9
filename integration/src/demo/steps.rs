//! The steps of the demo, in order.

mod policy;
mod reach;
mod restart;
mod service;
mod spoof;
mod upgrade;

use crate::report::Report;
use anyhow::{Context as _, Result};
use netd_integration::binary;
use netd_integration::lab::{Lab, Pinned};
use netd_integration::node::{Pod, Server};
use netd_integration::site::Site;
use netd_integration::wait;
use std::net::IpAddr;
use std::time::Instant;

/// The six pods.
pub(crate) struct Pods(Vec<Server>);

impl Pods {
    pub(crate) fn get(&self, name: &str) -> Result<&Server> {
        self.0.iter().find(|server| server.pod.name == name).with_context(|| format!("no pod {name}"))
    }

    /// The addresses of several pods, both families.
    pub(crate) fn addresses(&self, names: &[&str]) -> Result<Vec<IpAddr>> {
        let mut all = Vec::new();
        for name in names {
            all.extend(&self.get(name)?.pod.addresses);
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
            let name = format!("{}{n}", node.name());
            site.state.pod(&name, node.name(), &[], &[])?;
            let start = Instant::now();
            let server = node.add_server(&name)?;
            let took = start.elapsed().as_millis();
            let pod = &server.pod;
            let shown: Vec<String> = pod.addresses.iter().map(IpAddr::to_string).collect();
            report.check(
                &format!("ADD {} on {}", pod.name, node.name()),
                both_families(pod).map(|()| format!("{} in {took} ms", shown.join(", "))),
            );
            pods.0.push(server);
        }
    }

    reach::show(&pods, report)?;
    service::show(&site, &pods, report)?;
    policy::show(&site, &pods, report)?;
    restart::show(&site, &pods, report)?;
    upgrade::show(report)?;
    spoof::show(&site, &pods, report)?;

    report.section("Pods and agents stop");
    for Server { pod, echo } in pods.0 {
        drop(echo);
        let asked = format!("DEL {} on {}", pod.name, pod.node);
        let node = site.node(&pod.node)?;
        report.check(&asked, node.del_pod(pod).map(|()| "gone".into()));
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
