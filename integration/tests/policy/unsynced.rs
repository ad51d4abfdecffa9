//! An agent that does not know its policies opens nothing.

use super::away::Fort;
use super::scene::{DENY_ALL, reaches};
use anyhow::{Context as _, Result, ensure};
use netd_integration::cni::refused;
use netd_integration::lab::Lab;
use netd_integration::node::Node;
use netd_integration::traffic::{self, Trickle};
use netd_integration::wait;
use std::fs;
use std::path::PathBuf;

/// Takes the source away from all agents, as a shared folder that is not mounted.
fn hide(fort: &Fort<'_>) -> Result<PathBuf> {
    let hidden = fort.scene.site.state.dir().with_extension("hidden");
    fs::rename(fort.scene.site.state.dir(), &hidden).context("hiding the source")?;
    Ok(hidden)
}

/// Starts an agent that cannot be ready, and waits until it is at work.
fn launch(node: &Node<'_>) -> Result<()> {
    node.launch()?;
    wait::holds("the agent to answer", || Ok(node.api("/healthz").is_ok_and(|answer| answer.status == 200)))?;
    ensure!(node.api("/readyz")?.status != 200, "it is ready without its source");
    Ok(())
}

#[test]
fn a_restart_without_its_source_opens_nothing_and_adds_no_pod() -> Result<()> {
    Lab::run(|lab| {
        let fort = Fort::new(lab)?;
        let siege = fort.siege()?;
        let node = fort.scene.node("a")?;
        siege.more(20, 200)?;
        node.kill9()?;
        let hidden = hide(&fort)?;
        launch(node)?;
        siege.more(50, 2_000)?;
        siege.nothing_passed()?;

        // A pod that nobody can judge is not added, and the kubelet is told to come again, and why.
        for _ in 0..2 {
            let (netns, attachment) = node.sandbox_in("x", "late")?;
            let waiting = Trickle::start(&netns, 6_000, &[fort.vip()])?;
            let refusal = refused(node.runtime().add(&attachment))?;
            ensure!(refusal.code == 11, "{refusal}");
            let words = refusal.to_string();
            ensure!(words.contains("source") && words.contains("synced"), "{refusal}");
            waiting.stop()?;
            ensure!(netns.ip("-o link show")?.lines().count() == 1, "it left a link");
            node.runtime().del(&attachment)?;
        }
        siege.more(20, 200)?;
        fs::rename(&hidden, fort.scene.site.state.dir()).context("bringing the source back")?;
        node.ready()?;
        siege.more(20, 200)?;
        siege.end()?;
        fort.holds()
    })
}

#[test]
fn an_agent_that_finds_neither_tables_nor_its_source_opens_nothing() -> Result<()> {
    Lab::run(|lab| {
        let fort = Fort::new(lab)?;
        let siege = fort.siege()?;
        let node = fort.scene.node("a")?;
        siege.more(20, 200)?;
        node.kill9()?;
        let hidden = hide(&fort)?;
        fs::remove_dir_all(node.bpffs()).context("removing what is pinned")?;
        launch(node)?;
        siege.datagrams(2_000)?;
        siege.nothing_passed()?;
        fs::rename(&hidden, fort.scene.site.state.dir()).context("bringing the source back")?;
        node.ready()?;
        fort.holds()?;
        // What is allowed had no tables to be allowed by; what is denied passed at no time.
        siege.more(20, 2_000)?;
        siege.nothing_passed()
    })
}

#[test]
fn a_pod_that_is_added_is_isolated_when_add_returns() -> Result<()> {
    Lab::run(|lab| {
        let fort = Fort::new(lab)?;
        let closed = fort.scene.put("closed", "deny-all", DENY_ALL)?;
        // Nothing else tells when the policy is known: a pod of that namespace.
        let marker = fort.scene.server("a", "closed", "marker")?;
        traffic::expect(&reaches(&fort.client.netns, &[&marker], false)?)?;
        for n in 0..10 {
            // Known to the source before, and only afterwards.
            let name = format!("late{n}");
            let server = if n % 2 == 0 {
                fort.scene.server("a", "closed", &name)?
            } else {
                fort.scene.node("a")?.add_server_in("closed", &name)?
            };
            let mut ways = reaches(&fort.client.netns, &[&server], false)?;
            ways.extend(reaches(server.netns(), &[&marker], false)?);
            // At once, not after a while: the first round counts.
            let answers = traffic::once(&ways)?;
            ensure!(traffic::agree(&ways, &answers), "{name}: {answers:?}");
        }
        fort.scene.remove(&closed)?;
        traffic::expect(&reaches(&fort.client.netns, &[&marker], true)?)
    })
}
