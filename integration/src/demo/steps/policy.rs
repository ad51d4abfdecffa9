//! A NetworkPolicy that comes and goes under an open connection, and what netd says of it.

use super::Pods;
use crate::report::Report;
use anyhow::{Context as _, Result, ensure};
use netd_integration::node::Node;
use netd_integration::site::Site;
use netd_integration::state::policy;
use netd_integration::traffic::{self, Flow, Proto, Question};
use netd_integration::wait;
use serde_json::Value;
use std::ffi::OsStr;

pub(crate) fn show(site: &Site<'_>, pods: &Pods, report: &mut Report) -> Result<()> {
    report.section("A policy that denies all comes while b1 talks with a1, and goes again");
    let deny = policy("default", "deny-all", "{podSelector: {}}");
    let (client, server) = (pods.get("b1")?, pods.get("a1")?);
    let node = site.node("a")?;
    for v6 in [false, true] {
        let target = server.at(v6)?;
        let family = if v6 { "IPv6" } else { "IPv4" };
        let mut flow = traffic::open(client.netns(), Proto::Tcp, target)?;
        let by = flow.ask()?;
        report.check(&format!("b1 has a TCP connection to a1, {family}"), Ok(format!("answered by {by}")));

        site.state.policy(&deny)?;
        let udp = Question::silent(client.netns(), Proto::Udp, target);
        report.check("new flows with the policy", traffic::expect(&[udp]).map(|()| "no answer".into()));
        report.check("the connection that was open", cut(node, &mut flow));
        let asked = format!("default/b1 default/a1:{}", target.port());
        report.check(&format!("netd policy eval {asked}"), eval(node, &asked));

        site.state.remove_policy(&deny)?;
        let udp = Question::answered(client.netns(), Proto::Udp, target, &server.pod.name);
        report.check("new flows without the policy", traffic::expect(&[udp]).map(|()| "answered".into()));
        // What was asked meanwhile is sent again by TCP.
        report.check("the same connection", flow.hear().map(|by| format!("goes on, answered by {by}")));
    }
    Ok(())
}

/// Asks over a flow, and gives what the node says of the packet that it drops.
fn cut(node: &Node<'_>, flow: &mut Flow) -> Result<String> {
    flow.say()?;
    let source = Value::from(flow.local()?.to_string());
    let drop = wait::until("its packet in /v1/drops", || {
        let told = node.api_json("/v1/drops")?;
        let drops = told.pointer("/drops").and_then(Value::as_array).cloned().unwrap_or_default();
        Ok(drops.into_iter().find(|drop| drop.get("source") == Some(&source)))
    })?;
    let message = drop.get("message").and_then(Value::as_str).context("a message")?;
    ensure!(message.contains("default/deny-all"), "{message}");
    Ok(format!("cut\n{message}"))
}

/// What `netd policy eval` says, which is to be that it is denied.
fn eval(node: &Node<'_>, asked: &str) -> Result<String> {
    let socket = node.socket();
    let mut words: Vec<&OsStr> = ["policy", "eval"].map(OsStr::new).to_vec();
    words.extend(asked.split_whitespace().map(OsStr::new));
    words.extend([OsStr::new("--socket"), socket.as_os_str()]);
    let output = node.netd(&words)?;
    let said = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {said}{error}", output.status);
    Ok(said)
}
