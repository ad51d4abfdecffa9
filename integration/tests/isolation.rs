//! Several agents on one kernel never see each other's pods, rows or Services; and what others on a node reset
//! comes back.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::{Lab, pinned};
use netd_integration::node::{PORT, Server};
use netd_integration::site::{Site, VIPS, at};
use netd_integration::state::Port;
use netd_integration::traffic::{self, Load, Proto, Style};
use netd_integration::wait;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Rows that a fresh node with one dual-stack pod and no Service has, by map.
fn rows(lab: &Lab, node: &str) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for object in pinned(&lab.bpffs().join(node))? {
        if object.kind == "map"
            && ["POD_BY_IFINDEX", "POD_BY_ADDR", "FRONTENDS"].contains(&object.name.as_str())
        {
            counts.insert(object.name.clone(), object.rows()?.len());
        }
    }
    Ok(counts)
}

#[test]
fn nodes_of_one_site_have_rows_of_their_own_pods_only() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let (a, b) = (site.node("a")?, site.node("b")?);
        let _one = a.add_pod("a1")?;
        let _two = [b.add_pod("b1")?, b.add_pod("b2")?];
        let mut seen = BTreeMap::new();
        for (node, pods) in [("a", 1), ("b", 2), ("c", 0)] {
            let rows = rows(lab, node)?;
            let expected = [("FRONTENDS", 0), ("POD_BY_ADDR", 2 * pods), ("POD_BY_IFINDEX", pods)]
                .map(|(k, n)| (k.to_owned(), n));
            ensure!(rows == BTreeMap::from(expected), "node {node}: {rows:?}");
            for object in pinned(&lab.bpffs().join(node))? {
                let other = seen.insert((object.kind, object.id), node);
                ensure!(other.is_none(), "{} {} is of {node} and of {other:?}", object.kind, object.id);
            }
        }
        Ok(())
    })
}

#[test]
fn two_sites_with_the_same_addresses_do_not_meet() -> Result<()> {
    Lab::run(|one| {
        let other = Lab::new()?;
        let sites = [Site::one_node(one)?, Site::one_node(&other)?];
        let vip: IpAddr = "10.96.0.80".parse()?;
        let mut pods: Vec<[Server; 2]> = Vec::new();
        for (site, name) in sites.iter().zip(["one", "other"]) {
            let node = site.node("a")?;
            let pair =
                [node.add_server(&format!("{name}-client"))?, node.add_server(&format!("{name}-server"))?];
            site.state.service("web", &[vip], Port { port: 80, target: PORT }, &[])?;
            let [_, server] = &pair;
            site.state.slices("web", PORT, &server.pod.addresses)?;
            pods.push(pair);
        }
        let addresses = |pair: &[Server; 2]| pair.each_ref().map(|server| server.pod.addresses.clone());
        let both: Vec<_> = pods.iter().map(addresses).collect();
        ensure!(both.first() == both.last(), "not the same addresses: {both:?}");
        for (pair, name) in pods.iter().zip(["one-server", "other-server"]) {
            let [client, server] = pair;
            for proto in Proto::ALL {
                for target in [server.at(false)?, server.at(true)?, (vip, 80).into()] {
                    let who =
                        wait::until("an answer", || Ok(traffic::ask(client.netns(), proto, target).ok()))?;
                    ensure!(who == name, "{who} answered at {target} instead of {name}");
                }
            }
        }
        // The first site goes; the second one is not touched.
        let [first, second] = sites;
        first.node("a")?.kill9()?;
        drop(first);
        let mut pods = pods.into_iter();
        drop(pods.next());
        let [client, server] = pods.next().context("the second pair")?;
        ensure!(traffic::ask(client.netns(), Proto::Tcp, (vip, 80).into())? == server.pod.name);
        drop(second);
        other.tear_down()
    })
}

#[test]
fn sysctls_that_were_reset_come_back() -> Result<()> {
    const FORWARDING: [&str; 2] = ["net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding"];
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let (client, servers) = site.web()?;
        let node = site.node("a")?;
        let read = |key: &str| -> Result<String> {
            let text = node.namespace().run(&format!("cat /proc/sys/{key}"))?;
            Ok(text.trim().to_owned())
        };
        let pause = Duration::from_millis(2);
        for round in 0..3 {
            let mut loads = Vec::new();
            for vip in VIPS {
                // To near and far: TCP says again what is lost while the node does not forward.
                for style in [Style::Held, Style::Fresh] {
                    loads.push(Load::start(&client.netns, Proto::Tcp, style, at(vip), pause)?);
                }
            }
            for v6 in [false, true] {
                // Datagrams are said once. Within a node nobody needs to forward.
                let near =
                    servers.iter().find(|server| server.pod.node == "a").context("a near one")?.at(v6)?;
                for style in [Style::Held, Style::Fresh] {
                    loads.push(Load::start(&client.netns, Proto::Udp, style, near, pause)?);
                }
            }
            Load::all_more(&loads, 20)?;
            for interface in ["all", "default", "eth0"] {
                node.namespace().sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "1")?;
            }
            for key in FORWARDING {
                node.namespace().sysctl(key, "0")?;
                ensure!(read(key)? == "0", "{key}");
            }
            node.reload()?;
            wait::holds("the node to forward again", || {
                Ok(FORWARDING.iter().map(|key| read(key)).collect::<Result<Vec<_>>>()? == ["1", "1"])
            })?;
            Load::all_more(&loads, 50).with_context(|| format!("round {round}"))?;
            Load::none_failed(loads).with_context(|| format!("round {round}"))?;
            // The strict filter is another's business, and in nobody's way.
            ensure!(read("net/ipv4/conf/all/rp_filter")? == "1");
            let all: Vec<&str> = servers.iter().map(|server| server.pod.name.as_str()).collect();
            for vip in VIPS {
                for proto in Proto::ALL {
                    traffic::answering(&client.netns, proto, at(vip), &all)?;
                }
            }
        }
        let log = std::fs::read_to_string(node.log())?;
        for key in FORWARDING {
            let told = log.lines().filter(|line| line.contains(&format!("{key}: 0 -> 1"))).count();
            ensure!(told >= 3, "{key} was told {told} times: {log}");
        }
        Ok(())
    })
}
