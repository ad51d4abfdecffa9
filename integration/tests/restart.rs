//! An agent that ends in whatever way leaves its pods' traffic running, and the next one begins clean.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::Lab;
use netd_integration::node::{Node, PORT, addresses};
use netd_integration::site::{Site, VIP_PORT, VIPS, at};
use netd_integration::traffic::{self, Load, Proto};
use netd_integration::wait;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::ExitStatus;
use std::time::Duration;

type End = fn(&Node<'_>) -> Result<ExitStatus>;

/// Held and fresh flows, TCP and UDP, both families, to a Service and to a pod, while all agents end and
/// begin `times` times.
fn no_request_fails(end: End, times: u32) -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let (client, servers) = site.web()?;
        // One pod that used both the Service and its backends could draw one source port for both at once.
        let direct = site.node("a")?.add_pod("direct")?;
        let mut loads = Vec::new();
        for vip in VIPS {
            loads.extend(Load::all(&client.netns, at(vip), Duration::from_millis(3))?);
        }
        let far = servers.last().context("a server")?;
        loads.extend(Load::all(&direct.netns, far.at(true)?, Duration::from_millis(3))?);

        let more = || Load::all_more(&loads, 60);
        let mut known: BTreeSet<IpAddr> =
            addresses(&servers).iter().chain(&client.addresses).chain(&direct.addresses).copied().collect();
        for round in 0..times {
            more()?;
            for node in site.nodes() {
                end(node)?;
            }
            more()?;
            site.start_all()?;
            more()?;
            // The new agent knows what the old one gave.
            for node in site.nodes() {
                let pod = node.add_pod(&format!("new{round}"))?;
                for address in &pod.addresses {
                    ensure!(known.insert(*address), "{address} was given twice");
                }
                node.runtime().check(&pod.attachment)?;
            }
            node_check(&site, &client)?;
        }
        Load::none_failed(loads)
    })
}

fn node_check(site: &Site<'_>, client: &netd_integration::node::Pod) -> Result<()> {
    site.node(&client.node)?.runtime().check(&client.attachment)
}

#[test]
fn kill_9_fails_no_request() -> Result<()> {
    no_request_fails(|node| node.kill9(), 3)
}

#[test]
fn sigterm_fails_no_request_and_exits_well() -> Result<()> {
    no_request_fails(
        |node| {
            let status = node.terminate()?;
            ensure!(status.success(), "SIGTERM: {status}");
            Ok(status)
        },
        2,
    )
}

#[test]
fn an_agent_that_never_got_ready_ends_at_once_too() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let node = site.node("a")?;
        node.terminate()?;
        std::fs::remove_dir_all(site.state.dir())?;
        node.launch()?;
        wait::holds("the agent to answer", || Ok(node.api("/healthz").is_ok()))?;
        let status = node.terminate()?;
        ensure!(status.success(), "SIGTERM: {status}");
        let log = std::fs::read_to_string(node.log())?;
        ensure!(!log.contains("did not end"), "{log}");
        Ok(())
    })
}

#[test]
fn what_changed_while_the_agent_was_away_is_caught_up() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let node = site.node("a")?;
        let client = node.add_pod("client")?;
        let (one, two) = (node.add_server("one")?, node.add_server("two")?);
        let [vip, _] = VIPS;
        site.state.service("web", &[vip], VIP_PORT, &[])?;
        site.state.slices("web", PORT, &one.pod.addresses)?;
        let answering = |name| traffic::answering(&client.netns, Proto::Tcp, at(vip), &[name]);
        answering("one")?;
        node.kill9()?;
        site.state.slices("web", PORT, &two.pod.addresses)?;
        let leaving = node.runtime().clone();
        leaving.del(&one.pod.attachment)?;
        node.start()?;
        answering("two")?;
        // The address that was given back meanwhile is free, and only once.
        let mut again = BTreeSet::new();
        for n in 0..4 {
            again.extend(node.add_pod(&format!("again{n}"))?.addresses);
        }
        ensure!(again.len() == 8, "{again:?}");
        ensure!(again.is_disjoint(&two.pod.addresses.iter().chain(&client.addresses).copied().collect()));
        // A Service that went meanwhile is gone.
        node.kill9()?;
        site.state.remove("service-web.yaml")?;
        node.start()?;
        wait::holds("the Service to go", || {
            client.netns.enter(|| {
                Ok(std::net::TcpStream::connect_timeout(&at(vip), Duration::from_millis(300)).is_err())
            })
        })
    })
}
