//! What netd tells of a packet that a policy forbade: who, to whom, what, which way, and why.

use super::scene::{DENY_EGRESS, DENY_INGRESS, Scene};
use anyhow::{Result, ensure};
use netd_integration::lab::Lab;
use netd_integration::node::{Monitor, Node, PORT, Pod, Server};
use netd_integration::state::policy;
use netd_integration::traffic::{self, Proto, Question};
use netd_integration::wait;
use serde_json::Value;

/// One direction in which a packet is forbidden, where, and by which policies.
struct Case<'c> {
    node: &'c Node<'c>,
    reason: &'static str,
    direction: &'static str,
    server: &'c Server,
    policies: &'c [&'static str],
}

impl Case<'_> {
    /// Asks until both monitors and the drops that are remembered tell it, by each way.
    fn told(&self, client: &Pod, text: &Monitor, json: &Monitor) -> Result<()> {
        for proto in Proto::ALL {
            for v6 in [false, true] {
                let target = self.server.at(v6)?;
                let proto_word = proto.to_string().to_lowercase();
                let port = format!(":{PORT}");
                let address = client.address(v6)?.to_string();
                let (from, to) = (format!("x/{}", client.name), format!("y/{}", self.server.pod.name));
                let mut words = vec![from.as_str(), &to, &port, &proto_word, self.direction, &address];
                words.extend(self.policies);
                let all = |said: &str| words.iter().all(|word| said.contains(word));
                // Pods go by their names in what people read.
                let named_in = |said: &str| words.iter().all(|word| *word == address || said.contains(word));
                let named = format!("{} {proto} drop from {from} to {target}", self.direction);
                wait::holds(&named, || {
                    traffic::expect(&[Question::silent(&client.netns, proto, target)])?;
                    let lines = text.said()?.lines().any(|line| line.contains("DROP") && named_in(line));
                    let events = json.events("drop")?;
                    let event = events.iter().any(|event| self.is(event) && all(&event.to_string()));
                    let remembered = self.node.api_json("/v1/drops?limit=512")?;
                    let drops =
                        remembered.get("drops").and_then(Value::as_array).cloned().unwrap_or_default();
                    let kept = drops.iter().any(|drop| all(&drop.to_string()));
                    ensure!(
                        lines && event && kept,
                        "{words:?}: by the monitor's lines: {lines}, its events: {event}, as remembered: {kept}\n{}",
                        text.said()?
                    );
                    Ok(true)
                })?;
            }
        }
        Ok(())
    }

    fn is(&self, event: &Value) -> bool {
        event.pointer("/drop/reason").is_some_and(|reason| reason == self.reason)
    }
}

#[test]
fn drops_by_policies_name_both_pods_the_port_the_direction_and_why() -> Result<()> {
    Lab::run(|lab| {
        let scene = Scene::new(lab)?;
        let client = scene.pod("a", "x", "client")?;
        let (near, far) = (scene.server("a", "y", "near")?, scene.server("b", "y", "far")?);
        let (a, b) = (scene.node("a")?, scene.node("b")?);
        let mut monitors = Vec::new();
        for node in [a, b] {
            let text = Monitor::start(node, "monitor-text", &["--drops"])?;
            let json = Monitor::start(node, "monitor-json", &["--drops", "-o", "json"])?;
            monitors.push((text, json));
        }
        // Two policies isolate the servers, and neither allows the client.
        let from_nobody =
            "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: nobody}}}]}]}";
        let ingress = [policy("y", "deny-ingress", DENY_INGRESS), policy("y", "from-nobody", from_nobody)];
        for policy in &ingress {
            scene.site.state.policy(policy)?;
        }
        let policies = &["y/deny-ingress", "y/from-nobody"];
        for ((node, server), (text, json)) in [(a, &near), (b, &far)].into_iter().zip(&monitors) {
            let case = Case { node, reason: "ingress_denied", direction: "ingress", server, policies };
            case.told(&client, text, json)?;
        }
        for policy in &ingress {
            scene.remove(policy)?;
        }
        scene.put("x", "deny-egress", DENY_EGRESS)?;
        let Some((text, json)) = monitors.first() else { anyhow::bail!("no monitor") };
        for server in [&near, &far] {
            let policies = &["x/deny-egress"];
            let case = Case { node: a, reason: "egress_denied", direction: "egress", server, policies };
            case.told(&client, text, json)?;
        }
        Ok(())
    })
}
