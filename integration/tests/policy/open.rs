//! Flows that are open when what was allowed is forbidden, and the other way round.

use super::scene::{DENY_EGRESS, DENY_INGRESS, Scene, both, reaches};
use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::Lab;
use netd_integration::node::{Pod, Server};
use netd_integration::state::{Workload, namespace, policy};
use netd_integration::traffic::{self, Flow, Frames, Load, Proto};
use std::net::SocketAddr;
use std::time::Duration;

/// How long retransmissions are given to try their luck.
const WHILE: Duration = Duration::from_millis(600);

/// A client on node a, a server there and one on node b, each also behind a Service of its own.
struct Trio<'lab> {
    scene: Scene<'lab>,
    client: Pod,
    near: Server,
    far: Server,
    targets: Vec<(SocketAddr, &'static str)>,
}

impl<'lab> Trio<'lab> {
    fn new(lab: &'lab Lab) -> Result<Self> {
        let scene = Scene::new(lab)?;
        let client = scene.pod("a", "x", "client")?;
        let (near, far) = (scene.server("a", "y", "near")?, scene.server("b", "y", "far")?);
        let mut targets = Vec::new();
        for (server, name, last) in [(&near, "near", 1), (&far, "far", 2)] {
            let vips = scene.service(name, last, &server.pod.addresses)?;
            for vip in vips {
                for proto in Proto::ALL {
                    traffic::answering(&client.netns, proto, vip, &[name])?;
                }
            }
            targets.extend(vips.into_iter().chain(both(server)?).map(|target| (target, name)));
        }
        Ok(Self { scene, client, near, far, targets })
    }

    /// To each target by each transport: a flow of one question, and one that is a conversation.
    fn flows(&self) -> Result<Vec<(Flow, &'static str)>> {
        let mut flows = Vec::new();
        for (target, name) in &self.targets {
            for proto in Proto::ALL {
                for questions in [1, 4] {
                    let mut flow = traffic::open(&self.client.netns, proto, *target)?;
                    for _ in 0..questions {
                        ensure!(flow.ask()? == *name);
                    }
                    flows.push((flow, *name));
                }
            }
        }
        Ok(flows)
    }

    /// Whether the client's new flows reach the servers.
    fn servers(&self, allowed: bool) -> Result<Vec<traffic::Question>> {
        reaches(&self.client.netns, &[&self.near, &self.far], allowed)
    }

    /// One packet of each flow, and what its stack does about it, while all is forbidden: nothing arrives at either end.
    fn cut(&self, flows: &mut [(Flow, &'static str)]) -> Result<()> {
        let mut at_servers =
            [Frames::open(self.near.netns(), "eth0")?, Frames::open(self.far.netns(), "eth0")?];
        let mut at_client = Frames::open(&self.client.netns, "eth0")?;
        for (flow, _) in &mut *flows {
            flow.say()?;
        }
        std::thread::sleep(WHILE);
        for frames in &mut at_servers {
            let passed = frames.count_from(&self.client.addresses)?;
            ensure!(passed == 0, "{passed} packets of {} open flows reached a server", flows.len());
        }
        let from: Vec<_> = self.targets.iter().map(|(target, _)| target.ip()).collect();
        let passed = at_client.count_from(&from)?;
        ensure!(passed == 0, "{passed} packets reached the client");
        Ok(())
    }

    /// The same connections go on: TCP says again what was lost, of datagrams the next one passes.
    fn flow_again(&self, flows: &mut [(Flow, &'static str)]) -> Result<()> {
        for (flow, name) in flows {
            let context = format!("{} to {} at {name}", flow.proto(), flow.target());
            let who = match flow.proto() {
                Proto::Tcp => flow.hear(),
                Proto::Udp => flow.ask(),
            };
            ensure!(who.with_context(|| context.clone())? == *name, "{context}");
        }
        Ok(())
    }

    /// The whole of it: flows are open, a deed forbids them at these nodes, another one allows them again.
    fn forbid_and_allow(
        &self,
        what: &str,
        nodes: &[&str],
        forbid: impl FnOnce() -> Result<()>,
        allow: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let mut flows = self.flows().with_context(|| format!("{what}: before"))?;
        let steps = |flows: &mut Vec<(Flow, &'static str)>| {
            self.scene.change(nodes, &self.servers(false)?, forbid)?;
            self.cut(flows)?;
            self.scene.change(nodes, &self.servers(true)?, allow)?;
            self.flow_again(flows)
        };
        steps(&mut flows).with_context(|| what.to_owned())
    }
}

#[test]
fn a_policy_cuts_open_flows_at_their_next_packet_until_it_goes() -> Result<()> {
    Lab::run(|lab| {
        let trio = Trio::new(lab)?;
        let state = &trio.scene.site.state;
        for (of, name, spec, nodes) in [
            ("x", "deny-egress", DENY_EGRESS, &["a"][..]),
            ("y", "deny-ingress", DENY_INGRESS, &["a", "b"]),
            (
                "x",
                "other-port",
                "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 9}]}]}",
                &["a"],
            ),
            ("y", "from-others", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}", &["a", "b"]),
        ] {
            let policy = policy(of, name, spec);
            trio.forbid_and_allow(
                &policy.full_name(),
                nodes,
                || state.policy(&policy),
                || state.remove_policy(&policy),
            )?;
        }
        Ok(())
    })
}

#[test]
fn a_label_that_goes_cuts_open_flows_until_it_comes_back() -> Result<()> {
    Lab::run(|lab| {
        let trio = Trio::new(lab)?;
        let state = &trio.scene.site.state;
        // Of the client's pod: as a peer, then as what makes it a subject.
        let client = |app: &str| state.workload(&Workload::new("x", "client", "a", &[("app", app)]));
        let by_pod = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, \
                       podSelector: {matchLabels: {app: client}}}]}]}";
        let nodes = &["a", "b"];
        let peer = policy("y", "from-clients", by_pod);
        trio.scene.change(nodes, &trio.servers(true)?, || state.policy(&peer))?;
        trio.forbid_and_allow("the label of a peer", nodes, || client("other"), || client("client"))?;
        trio.scene.remove(&peer)?;
        let isolates = "{podSelector: {matchLabels: {app: isolated}}, policyTypes: [Egress]}";
        let subject = trio.scene.put("x", "isolated", isolates)?;
        trio.forbid_and_allow("the label of a subject", &["a"], || client("isolated"), || client("client"))?;
        trio.scene.remove(&subject)?;

        // Of its namespace.
        let labelled = |team: &str| state.put("namespace-x.yaml", &namespace("x", &[("team", team)]));
        let by_namespace =
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: blue}}}]}]}";
        labelled("blue")?;
        let blue = policy("y", "from-blue", by_namespace);
        trio.scene.change(nodes, &trio.servers(true)?, || state.policy(&blue))?;
        trio.forbid_and_allow("the label of a namespace", nodes, || labelled("red"), || labelled("blue"))
    })
}

#[test]
fn what_stays_allowed_flows_on_while_policies_change() -> Result<()> {
    Lab::run(|lab| {
        let trio = Trio::new(lab)?;
        let mut loads = Vec::new();
        for (target, _) in &trio.targets {
            loads.extend(Load::all(&trio.client.netns, *target, Duration::from_millis(5))?);
        }
        Load::all_more(&loads, 10)?;
        let (state, nodes) = (&trio.scene.site.state, &["a", "b"]);
        // By other rules each time, and now and then by none.
        let ingress = [
            "[{}]",
            "[{from: [{namespaceSelector: {}}]}]",
            "[{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: client}}}]}]",
            "[{ports: [{port: 8080}, {protocol: UDP, port: 8080, endPort: 9000}]}]",
            "[{from: [{ipBlock: {cidr: 10.244.0.0/16}}, {ipBlock: {cidr: \"fd00:244::/32\"}}]}]",
        ];
        for round in 0..4 {
            for (n, rules) in ingress.iter().enumerate() {
                let to = format!("{{podSelector: {{}}, ingress: {rules}}}");
                let (y, x) = (policy("y", "changes", to), |spec| policy("x", "changes", spec));
                // Each is in force before the next one comes: it is flows under it that go on.
                trio.scene.change(nodes, &trio.servers(true)?, || state.policy(&y))?;
                let egress = rules.replace("from:", "to:");
                let from = format!("{{podSelector: {{}}, policyTypes: [Egress], egress: {egress}}}");
                // The client is a peer of itself only in what it is asked.
                if !rules.contains("app: client") {
                    trio.scene.change(&["a"], &trio.servers(true)?, || state.policy(&x(from)))?;
                }
                Load::all_more(&loads, 5).with_context(|| format!("round {round}: {rules}"))?;
                if n % 2 == 0 {
                    trio.scene.change(nodes, &trio.servers(true)?, || trio.scene.remove(&y))?;
                    Load::all_more(&loads, 5).with_context(|| format!("round {round}: without {rules}"))?;
                }
            }
        }
        Load::none_failed(loads)
    })
}
