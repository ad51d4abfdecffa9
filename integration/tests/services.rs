//! Which backend a Service's flows go to, and what becomes of them when its endpoints change.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::{Lab, Namespace};
use netd_integration::node::{PORT, addresses};
use netd_integration::site::{Site, VIPS, at};
use netd_integration::state::Port;
use netd_integration::traffic::{self, Load, Proto, Style};
use netd_integration::{stats, wait};
use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

#[test]
fn backends_get_equal_shares() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let (client, _servers) = site.web()?;
        for vip in VIPS {
            for proto in Proto::ALL {
                let shares = traffic::shares(&client.netns, proto, at(vip), 1500)?;
                let counts: Vec<u32> = shares.values().copied().collect();
                let p = stats::p_of_three(stats::chi_square(&counts));
                // Fair dice fail this once in a million runs.
                ensure!(p > 1e-6, "{proto} to {vip}: {shares:?}, p {p}");
            }
        }
        Ok(())
    })
}

/// Waits until nobody answers new connections.
fn refused(from: &Namespace, target: SocketAddr) -> Result<()> {
    wait::holds(&format!("the last endpoint of {target} to go"), || {
        from.enter(|| Ok(TcpStream::connect_timeout(&target, Duration::from_millis(300)).is_err()))
    })
}

#[test]
fn open_connections_outlive_their_endpoint_and_datagrams_move_at_once() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let (client, servers) = site.web()?;
        // Held flows, by name of their backend.
        let mut flows = Vec::new();
        for vip in VIPS {
            for proto in Proto::ALL {
                for _ in 0..12 {
                    let mut flow = traffic::open(&client.netns, proto, at(vip))?;
                    let who = flow.ask()?;
                    flows.push((proto, who, flow));
                }
            }
        }
        ensure!(flows.iter().any(|(_, who, _)| who == "b1"), "no flow went to b1: the test shows nothing");
        // b1 leaves, and runs on.
        site.state.slices("web", PORT, &addresses(servers.iter().filter(|s| s.pod.name != "b1")))?;
        for vip in VIPS {
            for proto in Proto::ALL {
                traffic::answering(&client.netns, proto, at(vip), &["a1", "c1"])?;
            }
        }
        for (proto, who, flow) in &mut flows {
            let now = flow.ask().with_context(|| format!("a {proto} flow to {who}"))?;
            if *proto == Proto::Udp && who == "b1" {
                ensure!(now != "b1", "still answered by b1");
                *who = now;
            }
            for _ in 0..3 {
                ensure!(flow.ask()? == *who, "a {proto} flow to {who} moved");
            }
        }
        // Nobody is left: new connections are not answered, open ones are.
        site.state.slices("web", PORT, &[])?;
        for vip in VIPS {
            refused(&client.netns, at(vip))?;
        }
        for (_, who, flow) in flows.iter_mut().filter(|(proto, _, _)| *proto == Proto::Tcp) {
            ensure!(flow.ask().with_context(|| format!("an open connection to {who}"))? == *who);
        }
        // And back.
        site.state.slices("web", PORT, &addresses(&servers))?;
        for vip in VIPS {
            traffic::answering(&client.netns, Proto::Tcp, at(vip), &["a1", "b1", "c1"])?;
        }
        for (_, who, flow) in flows.iter_mut().filter(|(proto, _, _)| *proto == Proto::Tcp) {
            ensure!(flow.ask()? == *who);
        }
        Ok(())
    })
}

#[test]
fn endpoints_change_under_traffic_without_a_failed_request() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let (client, servers) = site.web()?;
        let stays = servers.first().context("a server")?;
        // Another Service at the other port of the same addresses, with one endpoint of its own at a time;
        // both Services share b1, and each has an id of its own for it.
        let shared = servers.iter().find(|server| server.pod.name == "b1").context("b1")?;
        let own = site.node("c")?.add_server("own")?;
        site.state.service("other", &VIPS, Port { port: 81, target: PORT }, &[])?;
        site.state.slices("other", PORT, &own.pod.addresses)?;
        site.state.slices("web", PORT, &stays.pod.addresses)?;
        let other = |vip| SocketAddr::new(vip, 81);
        let mut loads = Vec::new();
        for vip in VIPS {
            traffic::answering(&client.netns, Proto::Tcp, at(vip), &["a1"])?;
            traffic::answering(&client.netns, Proto::Tcp, other(vip), &["own"])?;
            // Held before the others come: these must stay with a1. Fresh ones go wherever they are sent;
            // all servers live, so none may fail.
            loads.extend(Load::all(&client.netns, at(vip), Duration::from_millis(2))?);
            for proto in Proto::ALL {
                let pause = Duration::from_millis(2);
                loads.push(Load::start(&client.netns, proto, Style::Fresh, other(vip), pause)?);
            }
        }
        Load::all_more(&loads, 5)?;
        let all = addresses(&servers);
        for round in 0..10 {
            let more = round % 2 == 0;
            site.state.slices("web", PORT, if more { &all } else { &stays.pod.addresses })?;
            site.state.slices("other", PORT, &if more { shared } else { &own }.pod.addresses)?;
            for vip in VIPS {
                let names: &[&str] = if more { &["a1", "b1", "c1"] } else { &["a1"] };
                traffic::answering(&client.netns, Proto::Tcp, at(vip), names)?;
                let name = if more { "b1" } else { "own" };
                traffic::answering(&client.netns, Proto::Tcp, other(vip), &[name])?;
            }
        }
        Load::all_more(&loads, 5)?;
        for load in loads {
            let tally = load.stop()?;
            tally.none_failed()?;
            let names: BTreeSet<&str> = tally.names.iter().map(String::as_str).collect();
            let allowed: &[&str] = match (tally.target.port(), tally.style) {
                (81, _) => &["b1", "own"],
                (_, Style::Held) => &["a1"],
                (_, Style::Fresh) => &["a1", "b1", "c1"],
            };
            ensure!(names == allowed.iter().copied().collect(), "{}: answered by {names:?}", tally.name);
        }
        Ok(())
    })
}

#[test]
fn clients_stay_with_their_backend_where_the_service_asks_for_it() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let (client, servers) = site.web()?;
        let text = std::fs::read_to_string(site.state.dir().join("service-web.yaml"))?;
        let sticky = text.replace("  type: ClusterIP\n", "  type: ClusterIP\n  sessionAffinity: ClientIP\n");
        ensure!(sticky != text);
        site.state.put("service-web.yaml", &sticky)?;
        for vip in VIPS {
            for proto in Proto::ALL {
                let shares = || traffic::shares(&client.netns, proto, at(vip), 24);
                wait::holds("one backend for all flows", || Ok(shares()?.len() == 1))?;
                let chosen = shares()?.into_keys().next().context("an answer")?;
                // It goes: another one for all of them.
                let left = servers.iter().filter(|server| server.pod.name != chosen);
                site.state.slices("web", PORT, &addresses(left))?;
                wait::holds("another", || Ok(!shares()?.contains_key(&chosen)))?;
                let next = shares()?;
                ensure!(next.len() == 1, "{proto} to {vip}: {next:?}");
                site.state.slices("web", PORT, &addresses(&servers))?;
            }
        }
        Ok(())
    })
}
