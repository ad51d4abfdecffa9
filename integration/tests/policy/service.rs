//! Services and policies: what a pod may reach is the backend, never the Service's address; who it is that asks is the
//! pod, on the same node and across nodes, also where a packet skipped the node's stack.

use super::scene::{DENY_ALL, Scene, asks, both};
use anyhow::{Context as _, Result};
use netd_integration::lab::Lab;
use netd_integration::node::{Pod, Server};
use netd_integration::traffic::{self, Question};
use std::net::SocketAddr;

/// On both nodes a client and a pod of another label, and a server, which is behind a Service of its own.
struct Town<'lab> {
    scene: Scene<'lab>,
    clients: [Pod; 2],
    others: [Pod; 2],
    /// Each with all that it is reached at.
    servers: [(Server, Vec<SocketAddr>); 2],
}

impl<'lab> Town<'lab> {
    fn new(lab: &'lab Lab) -> Result<Self> {
        let scene = Scene::new(lab)?;
        let pods = |name: &str| -> Result<[Pod; 2]> {
            Ok([scene.pod("a", "x", &format!("{name}-a"))?, scene.pod("b", "x", &format!("{name}-b"))?])
        };
        let (clients, others) = (pods("client")?, pods("other")?);
        let serve = |node: &str, last: u8| -> Result<(Server, Vec<SocketAddr>)> {
            let server = scene.server(node, "y", &format!("server-{node}"))?;
            let vips = scene.service(&format!("of-{node}"), last, &server.pod.addresses)?;
            let at = vips.into_iter().chain(both(&server)?).collect();
            Ok((server, at))
        };
        let servers = [serve("a", 1)?, serve("b", 2)?];
        let town = Self { scene, clients, others, servers };
        traffic::expect(&town.questions(true, true)?)?;
        Ok(town)
    }

    /// Whether the clients and the others reach all servers, by their Services and directly.
    fn questions(&self, clients: bool, others: bool) -> Result<Vec<Question>> {
        let mut questions = Vec::new();
        for (pods, allowed) in [(&self.clients, clients), (&self.others, others)] {
            for pod in pods {
                for (server, at) in &self.servers {
                    questions.extend(asks(&pod.netns, at, allowed.then_some(server.pod.name.as_str())));
                }
            }
        }
        Ok(questions)
    }

    /// Puts a policy in the place of the one before and waits until it is in force on both nodes: what is asked next may
    /// be answered by both alike.
    fn obeys(&self, namespace: &str, name: &str, spec: &str, questions: &[Question]) -> Result<()> {
        self.scene.change(&["a", "b"], questions, || self.scene.put(namespace, name, spec).map(drop))
    }
}

/// Egress of the clients but not of the others, by these rules.
fn egress(rules: &str) -> String {
    let clients = "{matchExpressions: [{key: app, operator: In, values: [client-a, client-b]}]}";
    format!("{{podSelector: {clients}, policyTypes: [Egress], egress: {rules}}}")
}

#[test]
fn egress_policies_see_the_backend() -> Result<()> {
    Lab::run(|lab| {
        let town = Town::new(lab)?;
        let servers = "[{namespaceSelector: {}, podSelector: {matchExpressions: \
                        [{key: app, operator: In, values: [server-a, server-b]}]}}]";
        let vips = "[{ipBlock: {cidr: 10.96.0.0/16}}, {ipBlock: {cidr: \"fd00:96::/112\"}}]";
        let ports = |port: u16| format!("[{{protocol: TCP, port: {port}}}, {{protocol: UDP, port: {port}}}]");
        let blocks = |last: &str| -> String {
            let all: Vec<String> = town
                .servers
                .iter()
                .flat_map(|(server, _)| &server.pod.addresses)
                .map(|ip| format!("{{ipBlock: {{cidr: \"{ip}/{}\"}}}}", if ip.is_ipv4() { 32 } else { 128 }))
                .collect();
            format!("[{{to: [{}]{last}}}]", all.join(", "))
        };
        for (rules, allowed) in [
            (format!("[{{to: {servers}}}]"), true),
            // The Service's address is nowhere any more when the policy is asked.
            (format!("[{{to: {vips}}}]"), false),
            (format!("[{{to: {servers}, ports: {}}}]", ports(8080)), true),
            // So is the Service's port.
            (format!("[{{to: {servers}, ports: {}}}]", ports(80)), false),
            (format!("[{{ports: {}}}]", ports(80)), false),
            (format!("[{{ports: {}}}]", ports(8080)), true),
            (blocks(""), true),
            (blocks(&format!(", ports: {}", ports(80))), false),
        ] {
            town.obeys("x", "egress", &egress(&rules), &town.questions(allowed, true)?)
                .with_context(|| rules.clone())?;
        }
        Ok(())
    })
}

#[test]
fn ingress_policies_see_the_pod_that_asks() -> Result<()> {
    Lab::run(|lab| {
        let town = Town::new(lab)?;
        let clients = "{matchExpressions: [{key: app, operator: In, values: [client-a, client-b]}]}";
        let ports = |port: u16| format!("[{{protocol: TCP, port: {port}}}, {{protocol: UDP, port: {port}}}]");
        let addresses: Vec<String> = town
            .clients
            .iter()
            .flat_map(|pod| &pod.addresses)
            .map(|ip| format!("{{ipBlock: {{cidr: \"{ip}/{}\"}}}}", if ip.is_ipv4() { 32 } else { 128 }))
            .collect();
        for (rule, clients, others) in [
            (format!("{{from: [{{namespaceSelector: {{}}, podSelector: {clients}}}]}}"), true, false),
            (format!("{{from: [{}]}}", addresses.join(", ")), true, false),
            (
                "{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: x}}}]}".into(),
                true,
                true,
            ),
            // Not the node's address, nor that of its end of the link, nor the Service's.
            (
                "{from: [{ipBlock: {cidr: 10.1.0.0/24}}, {ipBlock: {cidr: \"fd01::/64\"}}, \
                  {ipBlock: {cidr: 169.254.0.0/16}}, {ipBlock: {cidr: 10.96.0.0/16}}]}"
                    .into(),
                false,
                false,
            ),
            (format!("{{ports: {}}}", ports(8080)), true, true),
            (format!("{{ports: {}}}", ports(80)), false, false),
        ] {
            let spec = format!("{{podSelector: {{}}, ingress: [{rule}]}}");
            town.obeys("y", "ingress", &spec, &town.questions(clients, others)?)
                .with_context(|| rule.clone())?;
        }
        Ok(())
    })
}

#[test]
fn an_isolated_pod_reaches_itself_through_its_service() -> Result<()> {
    Lab::run(|lab| {
        let town = Town::new(lab)?;
        let own = || -> Result<Vec<Question>> {
            let mut questions = Vec::new();
            for (server, at) in &town.servers {
                questions.extend(asks(server.netns(), at, Some(&server.pod.name)));
            }
            Ok(questions)
        };
        traffic::expect(&own()?)?;
        town.scene.put("y", "deny-all", DENY_ALL)?;
        let mut questions = town.questions(false, false)?;
        for ((server, _), (_, others)) in town.servers.iter().zip(town.servers.iter().rev()) {
            questions.extend(asks(server.netns(), others, None));
        }
        questions.extend(own()?);
        traffic::expect(&questions)
    })
}
