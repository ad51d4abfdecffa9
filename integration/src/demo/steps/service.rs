//! Services: the share of each backend, and a changed endpoint.

use super::Pods;
use crate::report::Report;
use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::Namespace;
use netd_integration::node::PORT;
use netd_integration::site::{Site, VIP_PORT, VIPS, at};
use netd_integration::traffic::{self, Proto};
use netd_integration::{stats, wait};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// One backend on each node.
const BACKENDS: [&str; 3] = ["a2", "b1", "c1"];

/// Connections over which the shares are counted.
const CONNECTIONS: u32 = 3000;

/// Connections in a row to the new backend that end the measurement.
const IN_A_ROW: u32 = 200;

pub(crate) fn show(site: &Site<'_>, pods: &Pods, report: &mut Report) -> Result<()> {
    report.section("A Service with three backends, one on each node: their shares");
    site.state.service("web", &VIPS, VIP_PORT, &[])?;
    let backends = pods.addresses(&BACKENDS)?;
    site.state.slices("web", PORT, &backends)?;
    let client = pods.get("a1")?.netns();
    serving(client, &BACKENDS)?;
    for target in VIPS.map(at) {
        for proto in Proto::ALL {
            let asked = format!("a1 -> {target}, {CONNECTIONS} x {proto}");
            report.check(&asked, shares(client, proto, target));
        }
    }

    report.section("The Service's endpoints change to b2 alone: written in one rename");
    let b2 = pods.addresses(&["b2"])?;
    for name in ["a1", "c2"] {
        let client = pods.get(name)?.netns();
        for target in VIPS.map(at) {
            site.state.slices("web", PORT, &backends)?;
            serving(client, &BACKENDS)?;
            let asked = format!("{name} -> {target}, TCP");
            report.check(&asked, change(site, client, target, &b2));
        }
    }
    site.state.slices("web", PORT, &backends)?;
    serving(client, &BACKENDS)
}

/// Waits until exactly these backends answer, by all families and protocols.
fn serving(client: &Namespace, backends: &[&str]) -> Result<()> {
    for target in VIPS.map(at) {
        for proto in Proto::ALL {
            traffic::answering(client, proto, target, backends)?;
        }
    }
    Ok(())
}

fn shares(client: &Namespace, proto: Proto, target: SocketAddr) -> Result<String> {
    let shares = traffic::shares(client, proto, target, CONNECTIONS)?;
    let counts: Vec<u32> = shares.values().copied().collect();
    let shown: Vec<String> = shares.iter().map(|(name, count)| format!("{name} {count}")).collect();
    let chi = stats::chi_square(&counts);
    let p = stats::p_of_three(chi);
    let text = format!("{}   chi2 {chi:.2}, p {p:.3}", shown.join(", "));
    ensure!(counts.len() == BACKENDS.len() && counts.iter().sum::<u32>() == CONNECTIONS, "{text}");
    ensure!(p > 0.001, "{text}: not equal shares");
    Ok(text)
}

/// From the rename until the first of an unbroken row of connections to the new backend.
fn change(site: &Site<'_>, client: &Namespace, target: SocketAddr, endpoint: &[IpAddr]) -> Result<String> {
    let (state, endpoint) = (site.state.clone(), endpoint.to_vec());
    let asking = client.spawn_thread("change", move || {
        let written = Instant::now();
        state.slices("web", PORT, &endpoint)?;
        let mut row: Option<(Duration, u32)> = None;
        while written.elapsed() < wait::DEADLINE {
            let who = traffic::Flow::open(Proto::Tcp, target)?.ask()?;
            row = match row {
                _ if who != "b2" => None,
                Some((first, count)) if count + 1 == IN_A_ROW => return Ok(first),
                Some((first, count)) => Some((first, count + 1)),
                None => Some((written.elapsed(), 1)),
            };
        }
        anyhow::bail!("the old endpoints still answer after {:?}", wait::DEADLINE)
    })?;
    let took = asking.join().map_err(|_| anyhow::anyhow!("the thread panicked"))?.context("asking")?;
    Ok(format!("only b2 answers, from {:.1} ms after the write", took.as_secs_f64() * 1000.0))
}
