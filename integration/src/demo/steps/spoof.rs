//! A packet with another pod's source address.

use super::Pods;
use crate::report::Report;
use anyhow::{Result, ensure};
use netd_integration::node::{Node, Server};
use netd_integration::site::Site;
use netd_integration::traffic::{self, Frames};
use netd_integration::wait;
use std::net::SocketAddr;

pub(crate) fn show(site: &Site<'_>, pods: &Pods, report: &mut Report) -> Result<()> {
    report.section("A packet from a1 that claims to be from a2");
    let (a1, a2, c1) = (pods.get("a1")?, pods.get("a2")?, pods.get("c1")?);
    for v6 in [false, true] {
        let asked = format!("UDP {} -> {}", a2.pod.address(v6)?, c1.pod.address(v6)?);
        report.check(&asked, spoof(site.node("a")?, a1, a2, c1, v6));
    }
    Ok(())
}

fn spoof(node: &Node<'_>, from: &Server, claimed: &Server, to: &Server, v6: bool) -> Result<String> {
    let labels = [("reason", "spoofed_source"), ("stage", "pod_egress")];
    let before = node.metric("netd_drops_total", &labels)?;
    let pod = Frames::open(from.netns(), "eth0")?;
    let mut target = Frames::open(to.netns(), "eth0")?;
    // What the pod itself would send to: its gateway.
    let gateway = traffic::gateway_mac(from.netns(), v6)?;
    let destination = to.at(v6)?;
    let send = |source: &Server, mark: &str| {
        let source = SocketAddr::new(source.pod.address(v6)?, 4000);
        pod.send(&traffic::udp_frame((pod.mac(), gateway), source, destination, mark.as_bytes())?)
    };
    let (forged, honest) = (format!("forged {v6}"), format!("honest {v6}"));
    send(claimed, &forged)?;
    // The honest one, sent after it, must arrive; then the forged one would have.
    send(from, &honest)?;
    let mut forged_seen = false;
    wait::holds("the honest packet to arrive", || {
        let seen = target.seen_any(&[forged.as_bytes(), honest.as_bytes()])?;
        forged_seen |= seen.first() == Some(&true);
        Ok(seen.get(1) == Some(&true))
    })?;
    ensure!(!forged_seen, "it arrived at {}", to.pod.name);

    let source = claimed.pod.address(v6)?.to_string();
    let event = wait::until("the drop in /v1/drops", || Ok(node.spoofed(&source)?.pop()))?;
    wait::holds("the metric to count it", || Ok(node.metric("netd_drops_total", &labels)? > before))?;
    let word = |key: &str| event.get(key).and_then(|value| value.as_str()).unwrap_or("?").to_owned();
    Ok(format!(
        "dropped, and the honest one after it arrived\n/v1/drops: pod {}, {}: {}",
        word("pod"),
        word("reason"),
        word("message")
    ))
}
