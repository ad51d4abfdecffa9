//! Nodes: each reaches its own pods whatever isolates them, and is reached by them. Whoever only looks like the node
//! is not.

use super::scene::{DENY_ALL, Scene, asks, both, reaches};
use anyhow::{Result, ensure};
use netd_integration::lab::{Lab, Namespace};
use netd_integration::node::{PORT, Server};
use netd_integration::state::policy;
use netd_integration::traffic::{self, Echo, Frames};
use std::net::{IpAddr, SocketAddr};

/// Where the nodes serve.
const NODE_PORT: u16 = 10_250;

fn address(node: &str, v6: bool) -> Result<IpAddr> {
    let last = if node == "a" { 11 } else { 12 };
    Ok(if v6 { format!("fd01::{last}").parse()? } else { format!("10.1.0.{last}").parse()? })
}

fn at_node(node: &str) -> Result<[SocketAddr; 2]> {
    Ok([SocketAddr::new(address(node, false)?, NODE_PORT), SocketAddr::new(address(node, true)?, NODE_PORT)])
}

#[test]
fn an_isolated_pod_and_its_own_node_reach_each_other_and_no_other_node() -> Result<()> {
    Lab::run(|lab| {
        let scene = Scene::new(lab)?;
        let pods = [scene.server("a", "x", "one")?, scene.server("b", "x", "two")?];
        let mut echoes = Vec::new();
        for node in scene.site.nodes() {
            echoes.push(Echo::start(node.namespace(), node.name(), NODE_PORT)?);
        }
        let questions = |isolated: bool| -> Result<Vec<traffic::Question>> {
            let mut questions = Vec::new();
            for pod in &pods {
                for node in scene.site.nodes() {
                    let allowed = pod.pod.node == node.name() || !isolated;
                    let by = |name| allowed.then_some(name);
                    questions.extend(asks(node.namespace(), &both(pod)?, by(pod.pod.name.as_str())));
                    questions.extend(asks(pod.netns(), &at_node(node.name())?, by(node.name())));
                }
                // Itself, by its own address.
                questions.extend(reaches(pod.netns(), &[pod], true)?);
            }
            Ok(questions)
        };
        traffic::expect(&questions(false)?)?;
        scene.put("x", "deny-all", DENY_ALL)?;
        traffic::expect(&questions(true)?)?;
        // ICMP, too: the kubelet's and people's.
        for pod in &pods {
            for v6 in [false, true] {
                let own = scene.node(&pod.pod.node)?;
                traffic::ping(own.namespace(), pod.pod.address(v6)?)?;
                traffic::ping(pod.netns(), address(own.name(), v6)?)?;
            }
        }
        Ok(())
    })
}

/// Loads a rule of netfilter for one family.
fn rule(node: &Namespace, v6: bool, rule: &str) -> Result<()> {
    let program = if v6 { "ip6tables" } else { "iptables" };
    node.run(&format!("{program} -w -t nat {rule}")).map(drop)
}

/// Asks `target` from `from` and says whether a packet of the node's own address came to the pod.
fn seen_as_the_node(from: &Namespace, target: SocketAddr, pod: &Server, node: IpAddr) -> Result<bool> {
    let mut frames = Frames::open(pod.netns(), "eth0")?;
    traffic::expect(&asks(from, &[target], Some(&pod.pod.name)))?;
    Ok(frames.count_from(&[node])? > 0)
}

#[test]
fn whoever_is_masqueraded_as_the_node_is_not_the_node() -> Result<()> {
    const PUBLIC: u16 = 8_888;
    Lab::run(|lab| {
        let scene = Scene::new(lab)?;
        let (a, outsider) = (scene.node("a")?, scene.site.router());
        let pod = scene.server("a", "x", "one")?;
        let mut targets = Vec::new();
        for v6 in [false, true] {
            // As a node port of another proxy has it: the node's address outside, and inside too.
            let (ip, own) = (pod.pod.address(v6)?, address("a", v6)?);
            let inside = SocketAddr::new(ip, PORT);
            for proto in ["tcp", "udp"] {
                let outside = format!("-d {own} -p {proto} --dport {PUBLIC}");
                rule(
                    a.namespace(),
                    v6,
                    &format!("-A PREROUTING {outside} -j DNAT --to-destination {inside}"),
                )?;
                let hidden = format!("-d {ip} -p {proto} --dport {PORT} ! -s {own}");
                rule(a.namespace(), v6, &format!("-A POSTROUTING {hidden} -j SNAT --to-source {own}"))?;
            }
            let target = SocketAddr::new(own, PUBLIC);
            ensure!(seen_as_the_node(outsider, target, &pod, own)?, "{target} shows nothing: no masquerade");
            targets.push(target);
        }
        let deny = policy("x", "deny-all", DENY_ALL);
        let mut denied = asks(outsider, &targets, None);
        denied.extend(reaches(outsider, &[&pod], false)?);
        scene.change(&["a"], &denied, || scene.site.state.policy(&deny))?;
        // The node itself, at the same time.
        traffic::expect(&reaches(a.namespace(), &[&pod], true)?)?;
        traffic::expect(&denied)?;
        scene.remove(&deny)?;
        traffic::expect(&asks(outsider, &targets, Some("one")))
    })
}

#[test]
fn an_outsider_is_judged_by_its_address() -> Result<()> {
    Lab::run(|lab| {
        let scene = Scene::new(lab)?;
        let pods = [scene.server("a", "x", "one")?, scene.server("b", "x", "two")?];
        let [one, two] = &pods;
        let outside: Vec<SocketAddr> = ["10.1.0.1", "fd01::1"]
            .iter()
            .map(|ip| Ok((ip.parse::<IpAddr>()?, NODE_PORT).into()))
            .collect::<Result<_>>()?;
        let _echo = Echo::start(scene.site.router(), "router", NODE_PORT)?;
        let questions = |allowed: bool| -> Result<Vec<traffic::Question>> {
            let mut questions = reaches(scene.site.router(), &[one, two], allowed)?;
            for pod in &pods {
                questions.extend(asks(pod.netns(), &outside, allowed.then_some("router")));
            }
            Ok(questions)
        };
        traffic::expect(&questions(true)?)?;
        let block = |v4: &str, v6: &str| {
            let blocks = format!("[{{ipBlock: {{cidr: {v4}}}}}, {{ipBlock: {{cidr: \"{v6}\"}}}}]");
            let spec = format!(
                "{{podSelector: {{}}, policyTypes: [Ingress, Egress], \
                 ingress: [{{from: {blocks}}}], egress: [{{to: {blocks}}}]}}"
            );
            scene.put("x", "block", &spec)
        };
        block("192.0.2.0/24", "2001:db8::/32")?;
        traffic::expect(&questions(false)?)?;
        block("10.1.0.1/32", "fd01::1/128")?;
        traffic::expect(&questions(true)?)?;
        block("10.1.0.128/25", "fd01:1::/32")?;
        traffic::expect(&questions(false)?)?;
        block("10.0.0.0/8", "fd01::/16")?;
        traffic::expect(&questions(true)?)
    })
}
