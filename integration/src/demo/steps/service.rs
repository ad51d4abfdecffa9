//! Services: the share of each backend, and a changed endpoint.

use super::Pods;
use crate::report::Report;
use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::Namespace;
use netd_integration::node::PORT;
use netd_integration::site::Site;
use netd_integration::state::Port;
use netd_integration::traffic::{self, Proto};
use netd_integration::{stats, wait};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The Service's addresses and port.
pub(crate) const VIPS: [&str; 2] = ["10.96.0.80", "fd00:96::80"];
pub(crate) const VIP_PORT: u16 = 80;

/// One backend on each node.
pub(crate) const BACKENDS: [&str; 3] = ["a2", "b1", "c1"];

/// Connections over which the shares are counted.
const CONNECTIONS: u32 = 3000;

/// Connections in a row to the new backend that end the measurement.
const IN_A_ROW: u32 = 200;

pub(crate) fn targets() -> Result<[SocketAddr; 2]> {
    let [v4, v6] = VIPS;
    Ok([SocketAddr::new(v4.parse()?, VIP_PORT), SocketAddr::new(v6.parse()?, VIP_PORT)])
}

pub(crate) fn show(site: &Site<'_>, pods: &Pods, report: &mut Report) -> Result<()> {
    report.section("A Service with three backends, one on each node: their shares");
    let ips = targets()?.map(|target| target.ip());
    site.state.service("web", &ips, Port { port: VIP_PORT, target: PORT }, &[])?;
    let backends = pods.addresses(&BACKENDS)?;
    site.state.slices("web", PORT, &backends)?;
    let client = pods.get("a1")?.netns();
    serving(client, &BACKENDS)?;
    for target in targets()? {
        for proto in Proto::ALL {
            let asked = format!("a1 -> {target}, {CONNECTIONS} x {proto}");
            report.check(&asked, shares(client, proto, target));
        }
    }

    report.section("The Service's endpoints change to b2 alone: written in one rename");
    let b2 = pods.addresses(&["b2"])?;
    for name in ["a1", "c2"] {
        let client = pods.get(name)?.netns();
        for target in targets()? {
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
    for target in targets()? {
        for proto in Proto::ALL {
            wait::holds(&format!("{backends:?} to answer at {target} by {proto}"), || {
                let shares = traffic::shares(client, proto, target, 40)?;
                Ok(shares.keys().map(String::as_str).eq(backends.iter().copied()))
            })?;
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
