//! A pod sends from its own addresses and its own MAC address only.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Result, ensure};
use netd_integration::lab::Lab;
use netd_integration::node::{Node, Server};
use netd_integration::site::Site;
use netd_integration::traffic::{self, Frames, Proto};
use netd_integration::wait;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};

const SPOOFED: (&str, &str) = ("reason", "spoofed_source");

/// Waits for a drop event of this source.
fn told(node: &Node<'_>, source: &str) -> Result<Value> {
    wait::until(&format!("a drop event of {source}"), || Ok(node.spoofed(source)?.pop()))
}

#[test]
fn a_forged_source_goes_nowhere() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let node = site.node("a")?;
        let (thief, victim) = (node.add_server("thief")?, node.add_server("victim")?);
        let far = site.node("c")?.add_server("far")?;
        let sender = Frames::open(thief.netns(), "eth0")?;
        let mut sent = 0;
        for v6 in [false, true] {
            let gateway = traffic::gateway_mac(thief.netns(), v6)?;
            let outside: IpAddr = if v6 { "2001:db8::1".parse()? } else { "192.0.2.1".parse()? };
            let node_itself: IpAddr = if v6 { "fd01::11".parse()? } else { "10.1.0.11".parse()? };
            for source in [victim.pod.address(v6)?, far.pod.address(v6)?, outside, node_itself] {
                for target in [&victim, &far] {
                    let mark = format!("forged as {source}.");
                    let mut receiver = Frames::open(target.netns(), "eth0")?;
                    let send = |source: IpAddr, mark: &str| {
                        let macs = (sender.mac(), gateway);
                        let from = SocketAddr::new(source, 999);
                        sender.send(&traffic::udp_frame(macs, from, target.at(v6)?, mark.as_bytes())?)
                    };
                    send(source, &mark)?;
                    sent += 1;
                    let honest = format!("honest after {source}.");
                    let mut forged = false;
                    // Each look sends one more: a single datagram may be lost on its way by any kernel.
                    wait::holds("the honest packet after it", || {
                        send(thief.pod.address(v6)?, &honest)?;
                        let seen = receiver.seen_any(&[mark.as_bytes(), honest.as_bytes()])?;
                        forged |= seen.first() == Some(&true);
                        Ok(seen.last() == Some(&true))
                    })?;
                    ensure!(!forged, "{mark} It arrived at {}", target.pod.name);
                }
                let event = told(node, &source.to_string())?;
                let text = event.to_string();
                ensure!(text.contains("thief"), "the event does not name the pod: {text}");
            }
        }
        wait::holds(&format!("{sent} counted"), || {
            Ok(node.metric("netd_drops_total", &[SPOOFED])? >= f64::from(sent))
        })?;
        // Nothing else was harmed.
        for v6 in [false, true] {
            ensure!(traffic::ask(thief.netns(), Proto::Udp, victim.at(v6)?)? == "victim");
            ensure!(traffic::ask(victim.netns(), Proto::Tcp, far.at(v6)?)? == "far");
        }
        Ok(())
    })
}

#[test]
fn a_second_address_of_a_pods_own_choice_goes_nowhere() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let node = site.node("a")?;
        let (thief, victim) = (node.add_server("thief")?, node.add_server("victim")?);
        for (v6, address) in [(false, "10.244.1.200"), (true, "fd00:244:1::200")] {
            let nodad = if v6 { "nodad" } else { "" };
            thief.netns().ip(&format!("address add {address} dev eth0 {nodad}"))?;
            let ping = format!("ping -n -c 1 -W 1 -I {address} {}", victim.pod.address(v6)?);
            ensure!(thief.netns().run(&ping).is_err(), "{ping} was answered");
            told(node, address)?;
            traffic::ping(thief.netns(), victim.pod.address(v6)?)?;
        }
        Ok(())
    })
}

#[test]
fn a_forged_arp_teaches_the_node_nothing() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let node = site.node("a")?;
        let (thief, victim) = (node.add_server("thief")?, node.add_server("victim")?);
        let gateway = "169.254.1.1".parse()?;
        let sender = Frames::open(thief.netns(), "eth0")?;
        let neighbours = |node: &Node<'_>| node.namespace().ip("-4 neighbour show");
        for claimed in [victim.pod.address(false)?, "10.1.0.1".parse()?] {
            let IpAddr::V4(claimed) = claimed else { continue };
            sender.send(&traffic::arp_request(sender.mac(), claimed, gateway))?;
            told(node, &claimed.to_string())?;
            let mac = sender.mac().map(|byte| format!("{byte:02x}")).join(":");
            let learnt = neighbours(node)?;
            let line =
                learnt.lines().find(|line| line.starts_with(&format!("{claimed} ")) && line.contains(&mac));
            ensure!(line.is_none(), "the node believes it: {line:?}");
        }
        wait::holds("both counted", || Ok(node.metric("netd_drops_total", &[SPOOFED])? >= 2.0))?;
        ensure!(reaches(&thief, &victim)? && reaches(&victim, &thief)?);
        Ok(())
    })
}

fn reaches(from: &Server, to: &Server) -> Result<bool> {
    Ok(traffic::ask(from.netns(), Proto::Tcp, to.at(false)?)? == to.pod.name)
}

#[test]
fn programs_that_others_took_away_come_back() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let node = site.node("a")?;
        let (thief, victim) = (node.add_server("thief")?, node.add_server("victim")?);
        // Nobody judges what the pods send any more: no program is left at their links.
        let mut bare = 0;
        for link in node.namespace().run("ip -o link show type veth")?.lines() {
            if let Some(name) = link.split([':', '@']).map(str::trim).find(|word| word.starts_with("nd")) {
                node.namespace().run(&format!("tc qdisc del dev {name} clsact"))?;
                bare += 1;
            }
        }
        ensure!(bare == 2, "{bare} links of pods");
        let sender = Frames::open(thief.netns(), "eth0")?;
        let gateway = traffic::gateway_mac(thief.netns(), false)?;
        let forged = "203.0.113.9";
        node.reload()?;
        wait::holds("a forged packet to be dropped and told again", || {
            let from = SocketAddr::new(forged.parse()?, 999);
            let to = victim.at(false)?;
            sender.send(&traffic::udp_frame((sender.mac(), gateway), from, to, b"forged")?)?;
            Ok(!node.spoofed(forged)?.is_empty())
        })?;
        ensure!(traffic::ask(thief.netns(), Proto::Udp, victim.at(false)?)? == "victim");
        Ok(())
    })
}
