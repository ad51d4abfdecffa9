//! How long flows are remembered, and whose they are: through idle times, restarts and the ends of pods.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::Lab;
use netd_integration::node::{Node, PORT};
use netd_integration::site::{Families, Site};
use netd_integration::state::Port;
use netd_integration::traffic::{self, Flow, Proto};
use netd_integration::wait;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};

const VIPS: [&str; 2] = ["10.96.0.80", "fd00:96::80"];

/// One node with a Service `web` and its server, under other keys below `datapath`.
fn scene<'lab>(lab: &'lab Lab, keys: &[(&str, &str)]) -> Result<Site<'lab>> {
    let mut site = Site::new(lab, 1)?;
    site.add_node("a", 1, Families::Dual)?;
    for (key, value) in keys {
        site.node("a")?.set(&format!("datapath.{key}"), value);
    }
    site.start_all()?;
    Ok(site)
}

fn vip(at: usize) -> Result<SocketAddr> {
    let ip: IpAddr = VIPS.get(at).context("two families")?.parse()?;
    Ok(SocketAddr::new(ip, 80))
}

fn count(node: &Node<'_>, name: &str, label: (&str, &str)) -> Result<u64> {
    // Counts, far below what a float holds exactly.
    Ok(format!("{:.0}", node.metric(name, &[label])?).parse()?)
}

fn established(node: &Node<'_>) -> Result<u64> {
    count(node, "netd_table_rows", ("table", "established"))
}

fn event(node: &Node<'_>, event: &str) -> Result<u64> {
    count(node, "netd_flow_events_total", ("event", event))
}

/// Asks for two passes over the tables, which is how many it takes to correct a share; what the status says of
/// them then.
fn passed(node: &Node<'_>) -> Result<Value> {
    let reclaim = || -> Result<Value> {
        let status = node.api_json("/v1/status")?;
        status.pointer("/datapath/reclaim").cloned().context("no passes in the status")
    };
    let passes = |of: &Value| of.get("passes").and_then(Value::as_u64).unwrap_or_default();
    for _ in 0..2 {
        let before = passes(&reclaim()?);
        node.reload()?;
        wait::holds("a pass", || Ok(passes(&reclaim()?) > before))?;
    }
    reclaim()
}

/// Rows that each owner holds among the established, by its endpoint number.
fn holders(node: &Node<'_>) -> Result<Vec<(u64, u64)>> {
    let summary = node.api_json("/v1/conntrack/summary")?;
    let pods = summary.get("pods").and_then(Value::as_array).context("no pods in the summary")?;
    let number = |pod: &Value, key: &str| pod.get(key).and_then(Value::as_u64).context("a number");
    let all = pods.iter().map(|pod| Ok((number(pod, "endpoint")?, number(pod, "established")?)));
    Ok(all.collect::<Result<Vec<_>>>()?.into_iter().filter(|(_, rows)| *rows > 0).collect())
}

#[test]
fn what_is_idle_for_its_lifetime_goes_and_what_is_not_stays() -> Result<()> {
    Lab::run(|lab| {
        let site = scene(lab, &[("timeouts.two_way", "2s"), ("timeouts.one_way", "1s")])?;
        let node = site.node("a")?;
        let (client, server) = (node.add_pod("client")?, node.add_server("server")?);
        let ips = [vip(0)?.ip(), vip(1)?.ip()];
        site.state.service("web", &ips, Port { port: 80, target: PORT }, &[])?;
        site.state.slices("web", PORT, &server.pod.addresses)?;
        let mut held = Vec::new();
        for family in 0..2 {
            wait::holds("the Service", || Ok(traffic::ask(&client.netns, Proto::Tcp, vip(family)?).is_ok()))?;
            let (mut tcp, mut udp) = (
                traffic::open(&client.netns, Proto::Tcp, vip(family)?)?,
                traffic::open(&client.netns, Proto::Udp, vip(family)?)?,
            );
            for _ in 0..3 {
                ensure!(tcp.ask()? == "server" && udp.ask()? == "server");
            }
            held.push((tcp, udp));
        }
        wait::holds("the closed ones to leave", || Ok(established(node)? <= 8))?;
        wait::holds("UDP to expire", || {
            node.reload()?;
            Ok(established(node)? == 4)
        })?;
        ensure!(event(node, "expired")? == 4, "{}", event(node, "expired")?);
        let reclaim = passed(node)?;
        ensure!(reclaim.get("corrected").and_then(Value::as_u64) == Some(0), "{reclaim}");
        ensure!(holders(node)?.iter().map(|(_, rows)| rows).sum::<u64>() == 4);
        // TCP is as it was; UDP begins anew.
        for (tcp, udp) in &mut held {
            ensure!(tcp.ask()? == "server");
            for _ in 0..3 {
                ensure!(udp.ask()? == "server");
            }
        }
        ensure!(event(node, "promoted")? >= 12, "{}", event(node, "promoted")?);
        Ok(())
    })
}

#[test]
fn shares_outlive_agents_and_pods_take_theirs_along() -> Result<()> {
    Lab::run(|lab| {
        let site = scene(lab, &[])?;
        let node = site.node("a")?;
        let (client, server) = (node.add_pod("client")?, node.add_server("server")?);
        let at = server.at(false)?;
        let open = |pod: &netd_integration::node::Pod| -> Result<Vec<Flow>> {
            (0..10).map(|_| traffic::open(&pod.netns, Proto::Tcp, at)).collect()
        };
        let mut flows = open(&client)?;
        let all = |flows: &mut Vec<Flow>| -> Result<()> {
            flows.iter_mut().try_for_each(|flow| flow.ask().map(drop))
        };
        all(&mut flows)?;
        ensure!(established(node)? == 10);
        let holder = holders(node)?;
        let [(first, 10)] = holder.as_slice() else { anyhow::bail!("{holder:?}") };

        node.kill9()?;
        all(&mut flows)?;
        node.start()?;
        let reclaim = passed(node)?;
        ensure!(reclaim.get("corrected").and_then(Value::as_u64) == Some(0), "{reclaim}");
        ensure!(established(node)? == 10 && holders(node)? == holder);
        all(&mut flows)?;

        // Its namespace goes at once: no connection is closed, and no row goes before its time.
        node.runtime().del(&client.attachment)?;
        let reclaim = passed(node)?;
        ensure!(reclaim.get("ownerless").and_then(Value::as_u64) == Some(10), "{reclaim}");
        ensure!(established(node)? == 10);

        let next = node.add_pod("next")?;
        let mut flows = open(&next)?;
        all(&mut flows)?;
        let holder = holders(node)?;
        let second = holder.iter().find(|(endpoint, _)| endpoint != first).context("another number")?;
        ensure!(second.1 == 10 && holder.len() == 2, "{holder:?}");
        let reclaim = passed(node)?;
        ensure!(reclaim.get("corrected").and_then(Value::as_u64) == Some(0), "{reclaim}");
        all(&mut flows)
    })
}
