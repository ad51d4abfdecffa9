//! What the running kernel decides: each program is loaded and attached by what the kernel has, packets pass
//! every one of them, and the next agent takes them over.
//!
//! `cargo xtask vm` runs this on several kernels and gathers the lines that begin with `kernel: `.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, bail, ensure};
use netd_integration::lab::{Lab, pinned};
use netd_integration::node::{Node, PORT, addresses};
use netd_integration::site::{Families, Site, VIP_PORT, VIPS, at};
use netd_integration::traffic::{self, Load, Proto};
use netd_integration::wait;
use std::collections::BTreeSet;
use std::time::Duration;

/// Each program where it belongs, once; returns the programs' numbers and how the uplink's is attached.
fn attached(lab: &Lab, node: &Node<'_>) -> Result<(BTreeSet<String>, String)> {
    let mut programs = BTreeSet::new();
    let links = node.namespace().run("ip -o link show type veth")?;
    let names = links.lines().filter_map(|line| line.split([':', '@']).map(str::trim).nth(1));
    for name in names.filter(|name| name.starts_with("nd")) {
        for (hook, program) in [("ingress", "pod_egress"), ("egress", "pod_ingress")] {
            let found = filters(node, name, hook)?;
            ensure!(found.len() == 1, "{name} {hook}: {found:?}");
            ensure!(found.iter().all(|line| line.contains(program)), "{name} {hook}: {found:?}");
            programs.extend(found);
        }
    }
    ensure!(programs.len() >= 2, "no pod's interface: {links}");
    let status = node.api_json("/v1/status")?;
    let how = status.pointer("/network/uplinks/eth0").and_then(|how| how.as_str());
    let how = how.with_context(|| format!("the uplink is missing in {status}"))?.to_owned();
    match (how.as_str(), on_uplink(lab, node, "eth0")?) {
        ("TCX", (0, 1)) | ("clsact", (1, 0)) => Ok((programs, how)),
        (_, found) => bail!("eth0 by {how}: filters and links {found:?}"),
    }
}

/// How many filters and how many links an uplink has.
fn on_uplink(lab: &Lab, node: &Node<'_>, interface: &str) -> Result<(usize, usize)> {
    let links = pinned(&lab.bpffs().join(node.name()))?.into_iter().filter(|object| {
        let name = object.path.file_name().unwrap_or_default().to_string_lossy();
        object.kind == "link" && name.starts_with("uplink-") && name.ends_with(&format!("-{interface}"))
    });
    Ok((filters(node, interface, "ingress")?.len(), links.count()))
}

/// The BPF filters of an interface, as `tc` has them.
fn filters(node: &Node<'_>, interface: &str, hook: &str) -> Result<Vec<String>> {
    let text = node.namespace().run(&format!("tc filter show dev {interface} {hook}"))?;
    Ok(text.lines().filter(|line| line.contains("direct-action")).map(str::to_owned).collect())
}

#[test]
fn the_agent_attaches_by_what_this_kernel_has() -> Result<()> {
    Lab::run(|lab| {
        let mut site = Site::new(lab, 1)?;
        site.add_node("a", 1, Families::Dual)?;
        site.add_node("b", 1, Families::Dual)?;
        let node = site.node("a")?;
        node.namespace().ip("link add eth1 type veth peer name far1")?;
        node.configure(|config| config.uplinks.push("eth1".into()));
        site.start_all()?;
        let client = node.add_pod("client")?;
        let servers = [node.add_server("near")?, site.node("b")?.add_server("far")?];
        site.state.service("web", &VIPS, VIP_PORT, &[])?;
        site.state.slices("web", PORT, &addresses(&servers))?;
        let reached = || -> Result<()> {
            for vip in VIPS {
                for proto in Proto::ALL {
                    traffic::answering(&client.netns, proto, at(vip), &["far", "near"])?;
                }
            }
            for server in &servers {
                for v6 in [false, true] {
                    traffic::ping(&client.netns, server.pod.address(v6)?)?;
                    for proto in Proto::ALL {
                        let who = traffic::ask(&client.netns, proto, server.at(v6)?)?;
                        ensure!(who == server.pod.name, "{who} answered for {}", server.pod.name);
                    }
                }
            }
            Ok(())
        };
        reached()?;
        let (first, how) = attached(lab, node)?;
        println!("kernel: uplinks by {how}");
        let (filters, links) = on_uplink(lab, node, "eth1")?;
        ensure!(filters + links == 1, "eth1: {filters} filters, {links} links");

        // The next agents take over while packets flow: few, as emulated machines are slow.
        let [vip, _] = VIPS;
        let loads = Load::all(&client.netns, at(vip), Duration::from_millis(200))?;
        Load::all_more(&loads, 3)?;
        for node in site.nodes() {
            node.kill9()?;
        }
        Load::all_more(&loads, 3)?;
        node.configure(|config| config.uplinks.retain(|name| name != "eth1"));
        site.start_all()?;
        Load::all_more(&loads, 3)?;
        Load::none_failed(loads)?;
        let (second, still) = attached(lab, node)?;
        ensure!(still == how, "attached by {how}, then by {still}");
        wait::holds("the former uplink to be let go", || Ok(on_uplink(lab, node, "eth1")? == (0, 0)))?;
        ensure!(first.is_disjoint(&second), "the next agent's programs are not its own: {second:?}");
        reached()
    })
}
