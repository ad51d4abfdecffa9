//! Policies while the agent is away, however long, and when it comes back.

use super::scene::{DENY_EGRESS, Scene, both, reaches};
use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::Lab;
use netd_integration::node::{Pod, Server};
use netd_integration::state::{Workload, policy};
use netd_integration::traffic::{self, Counter, Load, Proto, Style, Tally, Trickle};
use std::net::SocketAddr;
use std::time::Duration;

/// Where what is denied is counted.
const COUNTED: u16 = 5_000;

/// Two servers that only clients may ask, a client, one that is not, and one that may ask nobody.
pub(crate) struct Fort<'lab> {
    pub(crate) scene: Scene<'lab>,
    pub(crate) client: Pod,
    stranger: Pod,
    locked: Pod,
    near: Server,
    far: Server,
    /// One that anybody may ask.
    plaza: Server,
    vips: [SocketAddr; 2],
}

/// What goes on in it all the time.
pub(crate) struct Siege {
    allowed: Vec<Load>,
    denied: Vec<Load>,
    trickles: Vec<Trickle>,
    counters: Vec<Counter>,
}

impl<'lab> Fort<'lab> {
    pub(crate) fn new(lab: &'lab Lab) -> Result<Self> {
        let scene = Scene::not_started(lab)?;
        for node in scene.site.nodes() {
            node.set("cni.sync_wait", "1s");
        }
        scene.site.start_all()?;
        let near = scene.server("a", "y", "near")?;
        let (client, stranger) = (scene.pod("a", "x", "client")?, scene.pod("a", "x", "stranger")?);
        let far = scene.server("b", "y", "far")?;
        let (plaza, locked) = (scene.server("b", "open", "plaza")?, scene.pod("a", "z", "locked")?);
        let vips = scene.service("near", 1, &near.pod.addresses)?;
        let fort = Self { client, stranger, locked, near, far, plaza, vips, scene };
        let spec = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, \
                     podSelector: {matchLabels: {app: client}}}]}]}";
        fort.scene.put("y", "from-clients", spec)?;
        fort.scene.put("z", "deny-egress", DENY_EGRESS)?;
        fort.holds()?;
        Ok(fort)
    }

    /// Waits until all is as the policies say.
    pub(crate) fn holds(&self) -> Result<()> {
        let servers = [&self.near, &self.far];
        let mut questions = reaches(&self.client.netns, &servers, true)?;
        questions.extend(super::scene::asks(&self.client.netns, &self.vips, Some("near")));
        questions.extend(reaches(&self.stranger.netns, &servers, false)?);
        questions.extend(super::scene::asks(&self.stranger.netns, &self.vips, None));
        questions.extend(reaches(&self.locked.netns, &[&self.plaza], false)?);
        questions.extend(reaches(&self.stranger.netns, &[&self.plaza], true)?);
        traffic::expect(&questions)
    }

    /// Where the Service is.
    pub(crate) fn vip(&self) -> SocketAddr {
        let [v4, _] = self.vips;
        v4
    }

    /// Requests that are allowed, and requests and datagrams that are not.
    pub(crate) fn siege(&self) -> Result<Siege> {
        let (mut allowed, mut denied) = (Vec::new(), Vec::new());
        let pause = Duration::from_millis(5);
        let near_and_far = [both(&self.near)?, both(&self.far)?];
        for target in near_and_far.into_iter().chain([self.vips]).flatten() {
            allowed.extend(Load::all(&self.client.netns, target, pause)?);
            denied.push(Load::start(&self.stranger.netns, Proto::Tcp, Style::Fresh, target, pause)?);
        }
        for target in both(&self.plaza)? {
            denied.push(Load::start(&self.locked.netns, Proto::Tcp, Style::Fresh, target, pause)?);
        }
        let counted = |server: &Server| Counter::start(server.netns(), COUNTED);
        let at = |servers: &[&Server]| -> Vec<SocketAddr> {
            let all = servers.iter().flat_map(|server| &server.pod.addresses);
            all.map(|ip| SocketAddr::new(*ip, COUNTED)).collect()
        };
        Ok(Siege {
            allowed,
            denied,
            counters: vec![counted(&self.near)?, counted(&self.far)?, counted(&self.plaza)?],
            trickles: vec![
                Trickle::start(&self.stranger.netns, 6_000, &at(&[&self.near, &self.far]))?,
                Trickle::start(&self.locked.netns, 6_000, &at(&[&self.plaza]))?,
            ],
        })
    }
}

impl Siege {
    /// A while more.
    pub(crate) fn more(&self, requests: u64, datagrams: u64) -> Result<()> {
        Load::all_more(&self.allowed, requests)?;
        self.datagrams(datagrams)
    }

    /// So many datagrams more of those that are denied.
    pub(crate) fn datagrams(&self, datagrams: u64) -> Result<()> {
        self.trickles.iter().try_for_each(|trickle| trickle.more(datagrams))
    }

    /// Nothing that is denied has passed.
    pub(crate) fn nothing_passed(&self) -> Result<()> {
        let counted: u64 = self.counters.iter().map(Counter::received).sum();
        ensure!(counted == 0, "{counted} datagrams passed that are denied");
        for load in &self.denied {
            let Tally { name, answered, .. } = load.tally();
            ensure!(answered == 0, "{name}: {answered} requests were answered that are denied");
        }
        Ok(())
    }

    /// The end: nothing that is denied passed, nothing that is allowed was lost.
    pub(crate) fn end(self) -> Result<()> {
        self.nothing_passed()?;
        Load::none_failed(self.allowed)
    }
}

#[test]
fn policies_stay_in_force_through_kill_9() -> Result<()> {
    Lab::run(|lab| {
        let fort = Fort::new(lab)?;
        let siege = fort.siege()?;
        for round in 0..3 {
            siege.more(20, 200)?;
            for node in fort.scene.site.nodes() {
                node.kill9()?;
            }
            // Absent for a while, the last time for a longer one.
            siege.more(20, if round == 2 { 5_000 } else { 200 })?;
            fort.scene.site.start_all()?;
            siege.more(20, 200)?;
            siege.nothing_passed().with_context(|| format!("round {round}"))?;
            fort.holds()?;
        }
        siege.end()
    })
}

#[test]
fn an_agent_that_comes_back_obeys_what_was_changed_meanwhile() -> Result<()> {
    Lab::run(|lab| {
        let fort = Fort::new(lab)?;
        let scene = &fort.scene;
        let mut held = Vec::new();
        for server in [&fort.near, &fort.far] {
            for target in both(server)? {
                for proto in Proto::ALL {
                    let mut flow = traffic::open(&fort.client.netns, proto, target)?;
                    for _ in 0..4 {
                        ensure!(flow.ask()? == server.pod.name);
                    }
                    held.push((flow, server.pod.name.as_str()));
                }
            }
        }
        let nodes = scene.site.nodes();
        nodes.iter().try_for_each(|node| node.kill9().map(drop))?;
        // Who was allowed is not any more, who was denied is; and a policy is gone.
        let state = &scene.site.state;
        state.workload(&Workload::new("x", "client", "a", &[("app", "stranger")]))?;
        state.workload(&Workload::new("x", "stranger", "a", &[("app", "client")]))?;
        state.remove_policy(&policy("z", "deny-egress", DENY_EGRESS))?;
        // While nobody is there, all is as it was.
        for (flow, name) in &mut held {
            ensure!(flow.ask()? == *name);
        }
        fort.holds()?;
        scene.site.start_all()?;
        let servers = [&fort.near, &fort.far];
        let mut questions = reaches(&fort.client.netns, &servers, false)?;
        questions.extend(reaches(&fort.stranger.netns, &servers, true)?);
        questions.extend(reaches(&fort.locked.netns, &[&fort.plaza], true)?);
        traffic::expect(&questions)?;
        // The flows of the time before are cut as well.
        let before: u64 = servers.iter().map(|server| server.echo.answered()).sum();
        for (flow, _) in &mut held {
            flow.say()?;
        }
        let mut silent = Vec::new();
        for server in servers {
            silent.extend(reaches(&fort.client.netns, &[server], false)?);
        }
        traffic::expect(&silent)?;
        let after: u64 = servers.iter().map(|server| server.echo.answered()).sum();
        ensure!(after == before, "{} of {} held flows were answered", after - before, held.len());
        Ok(())
    })
}
