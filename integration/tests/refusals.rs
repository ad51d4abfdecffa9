//! What netd refuses, how it says so, and that nothing else suffers from it.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, ensure};
use netd_integration::cni::{Attachment, Refusal, refused};
use netd_integration::lab::{Lab, tail};
use netd_integration::node::{Node, PORT, Pod, addresses};
use netd_integration::site::{Families, Site, VIP_PORT, VIPS, at};
use netd_integration::traffic::{self, Load, Proto};
use netd_integration::wait;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

fn holds(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "no {word:?} in: {text}");
    }
    Ok(())
}

/// A site of one node, not started, with a range of six addresses and no cool-down.
fn small<'lab>(lab: &'lab Lab) -> Result<Site<'lab>> {
    let mut site = Site::new(lab, 1)?;
    site.add_node("a", 1, Families::Dual)?;
    site.node("a")?.configure(|config| {
        config.pod_cidrs = vec!["10.245.1.0/29".into()];
        config.cool_down = "0s".into();
    });
    Ok(site)
}

#[test]
fn a_config_with_a_typo() -> Result<()> {
    Lab::run(|lab| {
        let mut site = Site::new(lab, 1)?;
        site.add_node("a", 1, Families::Dual)?;
        let node = site.node("a")?;
        let path = node.write_config()?;
        let text = fs::read_to_string(&path)?.replace("cool_down:", "cooldown:");
        fs::write(&path, &text)?;
        let line = text.lines().position(|line| line.contains("cooldown:")).context("the typo")? + 1;
        let place = format!("{}:{line}:", path.display());
        let checked = node.netd(&["config".as_ref(), "check".as_ref(), path.as_os_str()])?;
        ensure!(checked.status.code() == Some(2), "{}: {}", checked.status, said(&checked));
        let started = node.to_end(&mut node.agent_command(&path)?)?;
        ensure!(started.status.code() == Some(2), "{}: {}", started.status, said(&started));
        for output in [&checked, &started] {
            holds(&said(output), &["cooldown", "cool_down", &place, "^"])?;
        }
        ensure!(!node.dir().join("bin").exists(), "it installed something");
        Ok(())
    })
}

#[test]
fn a_broken_file_of_state_leaves_the_last_good_one_in_force() -> Result<()> {
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
        let loads = Load::all(&client.netns, at(vip), Duration::from_millis(3))?;
        for broken in [
            "apiVersion: v1\nkind: Service\n  name: [oops\n",
            "\u{0}\u{1}",
            "kind: EndpointSlice\nendpoints: 7\n",
        ] {
            site.state.put("slices-web.yaml", broken)?;
            // Named where a user looks: file and line in the log.
            wait::holds("the file to be named", || {
                Ok(tail(&node.log(), 1000).lines().any(|line| line.contains("slices-web.yaml:")))
            })?;
            Load::all_more(&loads, 20)?;
            answering("one")?;
        }
        let status = node.api_json("/v1/status")?.to_string();
        holds(&status, &["slices-web.yaml"])?;
        Load::none_failed(loads)?;
        // Mended.
        site.state.slices("web", PORT, &two.pod.addresses)?;
        answering("two")?;
        wait::holds("the status to forget it", || {
            Ok(!node.api_json("/v1/status")?.to_string().contains("slices-web.yaml"))
        })
    })
}

#[test]
fn garbage_instead_of_a_cni_request() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let node = site.node("a")?;
        let (netns, attachment) = node.sandbox("pod")?;
        let refusal = |verb: &str, conf: &str, attachment: &Attachment| -> Result<Refusal> {
            refused(node.runtime().raw(verb, "netd", conf, Some(attachment)))
        };
        for garbage in ["", "{", "\u{fffd}\u{1}", "[]", "7", "{\"cniVersion\": 1}"] {
            for verb in ["ADD", "DEL", "CHECK"] {
                let refusal = refusal(verb, garbage, &attachment)?;
                ensure!(refusal.code == 6, "{verb} of {garbage:?}: {refusal}");
            }
        }
        let conf = |version: &str| json!({"cniVersion": version, "name": "netd", "type": "netd"}).to_string();
        let unknown = refusal("ADD", &conf("9.9.9"), &attachment)?;
        ensure!(unknown.code == 1, "{unknown}");
        let verb = refusal("DANCE", &conf("1.1.0"), &attachment)?;
        ensure!(verb.code == 4, "{verb}");
        let mut odd = attachment.clone();
        odd.container = "../../etc".into();
        let odd = refusal("ADD", &conf("1.1.0"), &odd)?;
        ensure!(odd.code == 4, "{odd}");
        let mut odd = attachment.clone();
        odd.ifname = "much-too-long-for-a-name".into();
        let odd = refusal("ADD", &conf("1.1.0"), &odd)?;
        ensure!(odd.code == 4, "{odd}");
        let mut nowhere = attachment.clone();
        nowhere.netns = Some(lab.dir().join("netns/none"));
        refusal("ADD", &conf("1.1.0"), &nowhere)?;
        nothing_of(node, &netns, &attachment)?;
        // The very same sandbox is fine after all that.
        node.runtime().add(&attachment)?;
        node.runtime().check(&attachment)
    })
}

/// Nothing of an attachment exists.
fn nothing_of(
    node: &Node<'_>,
    netns: &netd_integration::lab::Namespace,
    attachment: &Attachment,
) -> Result<()> {
    ensure!(netns.ip("-o link show")?.lines().count() == 1, "{}", netns.ip("-o link show")?);
    let links = node.namespace().ip("-o link show type veth")?;
    ensure!(links.lines().count() == 1, "more than the uplink: {links}");
    let ledger = fs::read_to_string(node.ledger())?;
    ensure!(!ledger.contains(&attachment.container), "{ledger}");
    Ok(())
}

#[test]
fn a_duplicate_add() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let node = site.node("a")?;
        let server = node.add_server("pod")?;
        let other = node.add_pod("other")?;
        let refusal = refused(node.runtime().add(&server.pod.attachment))?;
        ensure!(refusal.code == 100, "{refusal}");
        holds(&refusal.to_string(), &[&server.pod.attachment.container])?;
        // The runtime's DEL after a failed ADD would take the pod down; ours does not say it here. The pod
        // is as it was.
        node.runtime().check(&server.pod.attachment)?;
        for v6 in [false, true] {
            ensure!(traffic::ask(&other.netns, Proto::Tcp, server.at(v6)?)? == "pod");
        }
        // Another container that wants the same namespace's eth0.
        let mut second = server.pod.attachment.clone();
        second.container = "second".into();
        let refusal = refused(node.runtime().add(&second))?;
        ensure!(refusal.code == 101, "{refusal}");
        node.runtime().del(&second)?;
        node.runtime().check(&server.pod.attachment)
    })
}

#[test]
fn an_exhausted_range() -> Result<()> {
    Lab::run(|lab| {
        let site = small(lab)?;
        let node = site.node("a")?;
        node.start()?;
        node.runtime().status()?;
        let mut pods = Vec::new();
        for n in 0..6 {
            pods.push(node.add_pod(&format!("pod{n}"))?);
        }
        let unique: BTreeSet<_> = pods.iter().flat_map(|pod: &Pod| pod.addresses.clone()).collect();
        ensure!(unique.len() == 6, "{unique:?}");
        let (netns, attachment) = node.sandbox("last")?;
        let refusal = refused(node.runtime().add(&attachment))?;
        ensure!(refusal.code == 11, "{refusal}");
        holds(&refusal.to_string(), &["10.245.1.0/29", "6 used"])?;
        ensure!(netns.ip("-o link show")?.lines().count() == 1, "it left a link");
        let status = refused(node.runtime().status())?;
        ensure!(status.code == 50, "{status}");
        node.del_pod(pods.pop().context("a pod")?)?;
        node.runtime().status()?;
        node.runtime().add(&attachment).map(drop)
    })
}

#[test]
fn a_ledger_cut_in_half() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let node = site.node("a")?;
        let client = node.add_pod("client")?;
        let mut servers = Vec::new();
        for n in 0..4 {
            servers.push(node.add_server(&format!("pod{n}"))?);
        }
        let mut loads = Vec::new();
        for server in &servers {
            loads.extend(Load::all(&client.netns, server.at(false)?, Duration::from_millis(5))?);
        }
        let mut known: BTreeSet<_> = client.addresses.iter().copied().collect();
        known.extend(addresses(&servers));
        type Damage = fn(&Path) -> Result<()>;
        let cut: Damage = |path| {
            let bytes = fs::read(path)?;
            Ok(fs::write(path, bytes.get(..bytes.len() / 2).context("half")?)?)
        };
        let flip: Damage = |path| {
            let mut bytes = fs::read(path)?;
            let at = bytes.windows(3).position(|window| window == b"10.").context("an address")?;
            *bytes.get_mut(at).context("a byte")? = b'2';
            Ok(fs::write(path, bytes)?)
        };
        let empty: Damage = |path| Ok(fs::write(path, "")?);
        let gone: Damage = |path| Ok(fs::remove_file(path)?);
        for (round, damage) in [cut, flip, empty, gone].into_iter().enumerate() {
            node.kill9()?;
            let before = fs::read_dir(node.dir().join("state"))?.count();
            damage(&node.ledger())?;
            node.start()?;
            if round < 3 {
                // Set aside, not deleted, and the log says where.
                let now = fs::read_dir(node.dir().join("state"))?.count();
                ensure!(now == before + 1, "{now} files of state, {before} before");
                wait::holds("the log to say so", || {
                    Ok(tail(&node.log(), 1000).matches("ledger.json.").count() > round)
                })?;
            }
            // All pods work on, are known, and their addresses are not given again.
            Load::all_more(&loads, 10)?;
            for server in &servers {
                node.runtime().check(&server.pod.attachment)?;
            }
            let pod = node.add_pod(&format!("new{round}"))?;
            for address in &pod.addresses {
                ensure!(known.insert(*address), "{address} was given twice");
            }
        }
        Load::none_failed(loads)?;
        for server in servers {
            node.del_pod(server.pod)?;
        }
        Ok(())
    })
}

#[test]
fn a_second_agent() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let node = site.node("a")?;
        let server = node.add_server("pod")?;
        let pid = node.agent_id()?;
        let config = node.write_config()?;
        let second = node.to_end(&mut node.agent_command(&config)?)?;
        ensure!(second.status.code() == Some(1), "{}: {}", second.status, said(&second));
        holds(&said(&second), &["another netd agent", &pid.to_string()])?;
        // With folders of its own, but on the same network.
        let other = Node::new(lab, "a2", node.namespace().clone(), &site.state)?;
        let config = other.write_config()?;
        let third = other.to_end(&mut other.agent_command(&config)?)?;
        ensure!(third.status.code() == Some(1), "{}: {}", third.status, said(&third));
        holds(&said(&third), &["another netd agent", "network namespace"])?;
        // The first one did not notice.
        node.ready()?;
        node.runtime().check(&server.pod.attachment)?;
        ensure!(traffic::ask(node.namespace(), Proto::Tcp, server.at(false)?)? == "pod");
        node.add_pod("another").map(drop)
    })
}

#[test]
fn the_agent_is_away() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let node = site.node("a")?;
        let runtime = node.runtime();
        let mut pods = Vec::new();
        for n in 0..3 {
            pods.push(node.add_server(&format!("pod{n}"))?);
        }
        let [stays, leaves, collected] = pods.try_into().map_err(|_| anyhow::anyhow!("three pods"))?;
        node.kill9()?;
        let supported = runtime.versions()?;
        let list = |v: &Value| v.get("supportedVersions").cloned().unwrap_or_default();
        let expected = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
        ensure!(supported.iter().map(list).eq([expected]), "{supported:?}");
        let refusal = refused(runtime.status())?;
        ensure!(refusal.code == 50, "{refusal}");
        let (netns, attachment) = node.sandbox("new")?;
        let refusal = refused(runtime.add(&attachment))?;
        ensure!(refusal.code == 11, "{refusal}");
        ensure!(netns.ip("-o link show")?.lines().count() == 1, "it left a link");
        runtime.del(&attachment)?;

        runtime.check(&stays.pod.attachment)?;
        runtime.del(&leaves.pod.attachment)?;
        runtime.del(&leaves.pod.attachment)?;
        ensure!(leaves.netns().ip("-o link show")?.lines().count() == 1, "DEL left a link");
        ensure!(traffic::ask(stays.netns(), Proto::Tcp, collected.at(true)?)? == collected.pod.name);
        // GC by the plugin's own knowledge: the runtime lost its cache.
        fs::remove_dir_all(&runtime.cache)?;
        runtime.gc(std::slice::from_ref(&stays.pod.attachment))?;
        ensure!(collected.netns().ip("-o link show")?.lines().count() == 1, "GC left a link");
        // A namespace that went before DEL.
        let gone = Attachment { netns: None, ..collected.pod.attachment };
        runtime.del(&gone)?;
        ensure!(traffic::ask(node.namespace(), Proto::Tcp, stays.at(false)?)? == stays.pod.name);

        node.start()?;
        runtime.status()?;
        ensure!(traffic::ask(node.namespace(), Proto::Tcp, stays.at(false)?)? == stays.pod.name);
        runtime.add(&attachment).map(drop)
    })
}
