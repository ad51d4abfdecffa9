//! The plugin as runtimes of different age and in different company meet it.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, ensure};
use netd_integration::cni::{self, Runtime, refused};
use netd_integration::lab::Lab;
use netd_integration::site::{Families, Site};
use netd_integration::traffic::{self, Proto};
use netd_integration::wait;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;

/// Where Debian's `containernetworking-plugins` puts them.
const REFERENCE: &str = "/usr/lib/cni";

#[test]
fn every_version_gets_results_of_its_own() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let node = site.node("a")?;
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let runtime = Runtime { version: version.into(), ..node.runtime().clone() };
            ensure!(runtime.network()?.version == version, "{:?}", runtime.network()?);
            let (netns, attachment) = node.sandbox("pod")?;
            let result = runtime.add(&attachment)?;
            ensure!(result.get("cniVersion").is_some_and(|v| v == version), "{result}");
            let ips = result.get("ips").and_then(Value::as_array).context("no ips")?;
            for ip in ips {
                let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
                ensure!(text.ends_with("/32") || text.ends_with("/128"), "{ip}");
                let old = version < "1.0.0";
                ensure!(ip.get("version").is_some() == old, "{version} {ip}");
            }
            // What the result says is so.
            let addresses = netns.ip("-o address show dev eth0 scope global")?;
            for address in cni::addresses(&result)? {
                ensure!(addresses.contains(&address.to_string()), "{address} is not in {addresses}");
                traffic::ping(node.namespace(), address)?;
            }
            if version >= "0.4.0" {
                runtime.check(&attachment)?;
            }
            runtime.del(&attachment)?;
        }
        Ok(())
    })
}

#[test]
fn a_chain_goes_on_behind_netd() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let node = site.node("a")?;
        let mut runtime = node.runtime().clone();
        let installed = fs::read_dir(&runtime.conf_dir)?.next().context("a conflist")??.path();
        let mut list: Value = serde_json::from_slice(&fs::read(&installed)?)?;
        let plugins = list.get_mut("plugins").and_then(Value::as_array_mut).context("no plugins")?;
        plugins
            .push(json!({"type": "tuning", "mtu": 1333, "sysctl": {"net.ipv4.conf.eth0.log_martians": "1"}}));
        runtime.conf_dir = node.dir().join("chained.d");
        fs::create_dir(&runtime.conf_dir)?;
        fs::write(runtime.conf_dir.join("10-chained.conflist"), list.to_string())?;
        runtime.path.push(REFERENCE.into());
        // The reference plugins of Debian 12 speak up to 1.0.0.
        runtime.version = "1.0.0".into();

        let (netns, attachment) = node.sandbox("pod")?;
        let result = runtime.add(&attachment)?;
        let link = netns.ip("link show eth0")?;
        ensure!(link.contains("mtu 1333"), "{link}");
        for address in cni::addresses(&result)? {
            traffic::ping(node.namespace(), address)?;
        }
        runtime.del(&attachment)?;
        ensure!(netns.ip("-o link show")?.lines().count() == 1);
        Ok(())
    })
}

#[test]
fn check_finds_what_was_changed_behind_netds_back() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let node = site.node("a")?;
        let host_end = |netns: &netd_integration::lab::Namespace| -> Result<String> {
            let text = netns.ip("-o link show eth0")?;
            let index = text.split("eth0@if").nth(1).and_then(|rest| rest.split(':').next());
            let index = index.with_context(|| format!("no peer in {text}"))?.to_owned();
            let links = node.namespace().ip("-o link show")?;
            let line = links.lines().find(|line| line.starts_with(&format!("{index}: ")));
            let name = line.and_then(|line| line.split([' ', '@']).nth(1));
            Ok(name.with_context(|| format!("no link {index} in {links}"))?.to_owned())
        };
        let deeds: [(&str, bool); 5] = [
            ("address flush dev eth0", true),
            ("route del default", true),
            ("link set eth0 down", true),
            ("link set HOST down", false),
            ("link del HOST", false),
        ];
        for (deed, inside) in deeds {
            let pod = node.add_pod("pod")?;
            node.runtime().check(&pod.attachment)?;
            if inside {
                pod.netns.ip(deed)?;
            } else {
                node.namespace().ip(&deed.replace("HOST", &host_end(&pod.netns)?))?;
            }
            let refusal = refused(node.runtime().check(&pod.attachment)).context(deed)?;
            ensure!(refusal.code >= 100, "{deed}: {refusal}");
            node.del_pod(pod).context(deed)?;
        }
        Ok(())
    })
}

#[test]
fn a_pod_whose_namespace_went_first_is_removed_whole() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let node = site.node("a")?;
        let before = node.namespace().ip("-o link show")?.lines().count();
        let pod = node.add_pod("pod")?;
        let attachment = pod.attachment.clone();
        pod.netns.delete()?;
        node.runtime().del(&attachment)?;
        node.runtime().del(&attachment)?;
        wait::holds("the link to go", || Ok(node.namespace().ip("-o link show")?.lines().count() == before))?;
        ensure!(!fs::read_to_string(node.ledger())?.contains(&attachment.container));
        Ok(())
    })
}

#[test]
fn a_fixed_address_is_had_and_kept() -> Result<()> {
    Lab::run(|lab| {
        let mut site = Site::new(lab, 1)?;
        site.add_node("a", 1, Families::Dual)?;
        // Before the agent starts, which is ready when it has read them.
        let wanted = [("netd.io/addresses", "10.244.1.77, fd00:244:1::77")];
        site.state.pod("fixed", "a", &[], &wanted)?;
        site.state.pod("rival", "a", &[], &wanted)?;
        site.state.pod("outside", "a", &[], &[("netd.io/addresses", "192.0.2.1")])?;
        let node = site.node("a")?;
        node.start()?;
        for _ in 0..3 {
            let pod = node.add_pod("fixed")?;
            let got: BTreeSet<String> = pod.addresses.iter().map(ToString::to_string).collect();
            ensure!(got == ["10.244.1.77", "fd00:244:1::77"].map(String::from).into(), "{got:?}");
            let refusal = refused(node.add_pod("rival").map(|pod| pod.addresses))?;
            ensure!(
                refusal.message.contains("fixed") || refusal.details.contains("default/fixed"),
                "{refusal}"
            );
            node.del_pod(pod)?;
        }
        let refusal = refused(node.add_pod("outside").map(|pod| pod.addresses))?;
        ensure!(refusal.code == 102, "{refusal}");
        let free = node.add_server("free")?;
        ensure!(traffic::ask(node.namespace(), Proto::Tcp, free.at(true)?)? == "free");
        Ok(())
    })
}
