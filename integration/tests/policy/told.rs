//! What `netd policy`, `netd conntrack` and the audit of flows say of policies, held against what packets meet.

use super::scene::{DENY_INGRESS, Scene};
use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::Lab;
use netd_integration::node::{Monitor, Node, PORT};
use netd_integration::site::VIP_PORT;
use netd_integration::traffic::{self, Proto, Question};
use netd_integration::wait;
use serde_json::Value;
use std::ffi::OsStr;
use std::net::SocketAddr;

/// Exit status and document of a command.
fn ask(node: &Node<'_>, words: &str) -> Result<(Option<i32>, Value)> {
    let socket = node.socket();
    let mut all: Vec<&OsStr> = words.split_whitespace().map(OsStr::new).collect();
    all.extend(["-o", "json", "--socket"].map(OsStr::new));
    all.push(socket.as_os_str());
    let output = node.netd(&all)?;
    let document = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("netd {words}: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok((output.status.code(), document))
}

fn at<'v>(value: &'v Value, pointer: &str) -> &'v Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

#[test]
fn policies_are_explained_as_packets_meet_them() -> Result<()> {
    Lab::run(|lab| {
        let scene = Scene::new(lab)?;
        let a = scene.node("a")?;
        let client = scene.pod("a", "x", "client")?;
        let server = scene.server("a", "y", "server")?;
        let [vip, _] = scene.service("api", 7, &[server.pod.address(false)?])?;
        scene.put("y", "deny", DENY_INGRESS)?;
        let peer = "namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: x}}";
        let rules = format!("[{{ports: [{{port: 1}}]}}, {{from: [{{{peer}}}], ports: [{{port: {PORT}}}]}}]");
        scene.put(
            "y",
            "allow",
            &format!("{{podSelector: {{matchLabels: {{app: server}}}}, ingress: {rules}}}"),
        )?;

        // Explained, and in force.
        wait::holds("the policies to be in force", || {
            let (code, told) = ask(a, "policy explain y/server")?;
            ensure!(code == Some(0), "{told}");
            let policies = ["y/allow", "y/deny"].map(Value::from).to_vec();
            Ok(*at(&told, "/ingress/state") == "in_force"
                && *at(&told, "/ingress/policies") == Value::from(policies))
        })?;
        let (_, told) = ask(a, "policy explain server")?;
        ensure!(*at(&told, "/ingress/rules/1/peers/0/pods/0") == "x/client", "{told}");
        let (_, list) = ask(a, "policy list -n y")?;
        ensure!(*at(&list, "/policies/0/pods") == 1 && *at(&list, "/policies/1/pods") == 1, "{list}");
        let (code, shown) = ask(a, "policy show allow")?;
        ensure!(code == Some(0) && *at(&shown, "/pods/0") == "y/server", "{shown}");

        // What the planner says packets meet.
        let target = server.at(false)?;
        let other = SocketAddr::new(target.ip(), target.port() + 1);
        for (proto, target, allowed) in
            [(Proto::Tcp, target, true), (Proto::Udp, target, false), (Proto::Tcp, other, false)]
        {
            let word = proto.to_string().to_lowercase();
            let (code, told) = ask(a, &format!("policy eval x/client y/server:{}/{word}", target.port()))?;
            ensure!(code == Some(i32::from(!allowed)), "{told}");
            ensure!(allowed == (*at(&told, "/cases/0/ingress/rule/index") == 2), "{told}");
            if allowed {
                traffic::expect(&[Question::answered(&client.netns, proto, target, &server.pod.name)])?;
            } else {
                traffic::expect(&[Question::silent(&client.netns, proto, target)])?;
            }
        }
        let (code, _) = ask(a, "policy eval y/server x/client:80")?;
        ensure!(code == Some(0), "x has no policies");

        // The rule that allowed a flow.
        let mut held = traffic::open(&client.netns, Proto::Tcp, target)?;
        held.ask()?;
        let (_, flows) = ask(a, "conntrack list --pod x/client --proto tcp --state established")?;
        let rule = at(&flows, "/flows/0/ingress_rule");
        ensure!(*at(rule, "/policy") == "y/allow" && *at(rule, "/index") == 2, "{flows}");
        ensure!(at(&flows, "/flows/0/egress_rule").is_null(), "{flows}");

        // New flows, once they are to be told.
        let refused = Monitor::start(a, "refused", &["--flows"])?;
        wait::holds("the question to be turned down", || {
            Ok(refused.said()?.contains("set datapath.audit.flows to on"))
        })?;
        a.configure(|config| config.audit = Some(5_000));
        a.reload()?;
        wait::holds("flows to be told", || {
            Ok(std::fs::read_to_string(a.log())?.contains("by each CPU its part of 5000 a second"))
        })?;
        let monitor = Monitor::start(a, "flows", &["--flows", "-o", "json"])?;
        let direct = format!("x/client → y/server:{PORT}/tcp allowed by ingress y/allow rule 2");
        let through = format!(
            "x/client → default/api ({vip}/tcp → y/server:{}) allowed by ingress y/allow rule 2",
            VIP_PORT.target
        );
        wait::holds("both flows in monitor and log", || {
            traffic::ask(&client.netns, Proto::Tcp, target)?;
            traffic::ask(&client.netns, Proto::Tcp, vip)?;
            let events = monitor.events("flow")?;
            let told = |line: &str| events.iter().any(|event| *at(event, "/message") == line);
            let log = std::fs::read_to_string(a.log())?;
            Ok([&direct, &through].iter().all(|line| told(line) && log.contains(line.as_str())))
        })?;
        // And no longer.
        a.configure(|config| config.audit = None);
        a.reload()?;
        wait::holds("flows to be told no longer", || {
            Ok(std::fs::read_to_string(a.log())?.contains("new flows are told no longer"))
        })
    })
}
