//! What floods of new flows do to connections that stand: nothing; and what is told of it.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, ensure};
use netd_integration::cni;
use netd_integration::lab::Lab;
use netd_integration::node::{Node, PORT, Pod};
use netd_integration::site::{Families, Site};
use netd_integration::state::Port;
use netd_integration::traffic::{self, Crowd, Flow, Keeper, Proto, flood};
use netd_integration::wait;
use serde_json::Value;
use std::net::SocketAddr;

const VIP_PORT: Port = Port { port: 80, target: PORT };

/// Set to `full` for as many connections and flows as the requirement names, instead of a fifth.
const SIZE: &str = "NETD_FLOOD";

/// A node whose agent is ready.
struct Scene<'lab> {
    site: Site<'lab>,
}

/// A Service with one backend, which keeps its connections.
struct Web {
    server: Pod,
    keeper: Keeper,
    /// One of each family.
    vips: [SocketAddr; 2],
}

/// Connections by both families, half of them each.
fn crowds(pod: &Pod, web: &Web, count: u32) -> Result<Vec<Crowd>> {
    web.vips.into_iter().map(|vip| Crowd::connect(&pod.netns, vip, count / 2)).collect()
}

/// New flows to a server that answers none, half of them by each family.
fn flood_both(pod: &Pod, server: &Pod, count: u32) -> Result<()> {
    [false, true].into_iter().try_for_each(|v6| flood(&pod.netns, server.address(v6)?, count / 2))
}

impl Web {
    /// A byte there and back on every connection it has, of these crowds.
    fn all_alive(&mut self, crowds: &mut [Crowd], byte: u8) -> Result<()> {
        let count: u32 = crowds.iter().map(Crowd::count).sum();
        self.keeper.wait_for(count)?;
        let said: u32 = crowds.iter_mut().map(|crowd| crowd.say(byte)).sum::<Result<_>>()?;
        let answered = self.keeper.answer()?;
        let heard: u32 = crowds.iter_mut().map(|crowd| crowd.hear(byte)).sum::<Result<_>>()?;
        ensure!([said, answered, heard] == [count; 3], "{said}, {answered}, {heard} of {count}");
        Ok(())
    }
}

impl<'lab> Scene<'lab> {
    /// `keys`: of the agent's configuration, below `datapath`.
    fn new(lab: &'lab Lab, keys: &[(&str, &str)]) -> Result<Self> {
        let mut site = Site::new(lab, 1)?;
        site.add_node("a", 1, Families::Dual)?;
        for (key, value) in keys {
            site.node("a")?.set(&format!("datapath.{key}"), value);
        }
        site.start_all()?;
        Ok(Self { site })
    }

    /// A Service with room for so many connections, at these addresses of both families.
    fn web(&self, name: &str, at: u32, count: u32) -> Result<Web> {
        let server = self.node()?.add_pod(name)?;
        let keeper = Keeper::start(&server.netns, PORT, count)?;
        let slots = || self.metric("netd_service_rows", &[("table", "slots")]);
        let before = slots()?;
        let ips = [format!("10.96.0.{at}").parse()?, format!("fd00:96::{at}").parse()?];
        self.site.state.service(name, &ips, VIP_PORT, &[])?;
        self.site.state.slices(name, PORT, &server.addresses)?;
        wait::holds("the Service", || Ok(slots()? == before + 4))?;
        Ok(Web { server, keeper, vips: ips.map(|ip| SocketAddr::new(ip, VIP_PORT.port)) })
    }

    fn node(&self) -> Result<&Node<'lab>> {
        self.site.node("a")
    }

    /// A pod whose source ports are many.
    fn client(&self, name: &str) -> Result<Pod> {
        let pod = self.node()?.add_pod(name)?;
        pod.netns.sysctl("net/ipv4/ip_local_port_range", "1024 65000")?;
        Ok(pod)
    }

    fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<u64> {
        // Counts, far below what a float holds exactly.
        let text = format!("{:.0}", self.node()?.metric(name, labels)?);
        text.parse().with_context(|| format!("{name}: {text}"))
    }

    fn event(&self, event: &str) -> Result<u64> {
        self.metric("netd_flow_events_total", &[("event", event)])
    }

    fn established(&self) -> Result<u64> {
        self.metric("netd_table_rows", &[("table", "established")])
    }

    /// For the message of a failure.
    fn told(&self) -> String {
        format!("{:?}", self.node().and_then(|node| node.api_json("/v1/conntrack/summary")))
    }

    fn status(&self) -> Result<Value> {
        self.node()?.api_json("/v1/status")
    }

    fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.node()?.log())?)
    }
}

/// The pod's part of the answer of `netd status`.
fn refused(status: &Value, pod: &str) -> Result<Value> {
    let list = status.pointer("/datapath/refused").and_then(Value::as_array).context("no list")?;
    let of_pod = |one: &&Value| one.get("pod").is_some_and(|name| name == pod);
    list.iter().find(of_pod).cloned().with_context(|| format!("{pod} is not in {list:?}"))
}

fn number(value: &Value, path: &str) -> Result<u64> {
    value.pointer(path).and_then(Value::as_u64).with_context(|| format!("no {path} in {value}"))
}

#[test]
fn idle_connections_survive_a_flood_of_new_flows() -> Result<()> {
    let full = std::env::var(SIZE).is_ok_and(|size| size == "full");
    let (each, flows) = if full { (25_000, 2_000_000) } else { (5_000, 400_000) };
    let count = 4 * u64::from(each);
    Lab::run(|lab| {
        // The agent's defaults.
        let scene = Scene::new(lab, &[("flows", "262144"), ("flows_per_pod", "65536")])?;
        let mut web = scene.web("web", 80, 4 * each)?;
        let mut all = Vec::new();
        for n in 0..4 {
            let pod = scene.client(&format!("client{n}"))?;
            all.extend(crowds(&pod, &web, each)?);
        }
        web.keeper.wait_for(4 * each)?;
        web.all_alive(&mut all, b'a')?;
        ensure!(scene.established()? == 2 * count, "{} rows", scene.established()?);
        ensure!(scene.event("refused_share")? + scene.event("refused_full")? == 0);

        let opened = scene.event("opened")?;
        let flooding = scene.client("flooding")?;
        flood_both(&flooding, &web.server, flows)?;
        let grown = scene.event("opened")? - opened;
        ensure!(grown >= u64::from(flows), "{grown} new flows of {flows}");
        ensure!(scene.established()? == 2 * count, "{} rows are left", scene.established()?);

        web.all_alive(&mut all, b'b')?;
        // Two passes later all tell the same.
        let passes = || scene.metric("netd_reclaim_passes_total", &[]);
        for _ in 0..2 {
            let before = passes()?;
            scene.node()?.reload()?;
            wait::holds("a pass", || Ok(passes()? > before))?;
        }
        let summary = scene.node()?.api_json("/v1/conntrack/summary")?;
        ensure!(number(&summary, "/tables/established/used")? == 2 * count, "{summary}");
        let nursery = number(&summary, "/tables/nursery/used")?;
        ensure!(nursery > 100_000, "the nursery is full of the flood: {nursery}");
        ensure!(number(&summary, "/events/opened")? >= u64::from(flows), "{summary}");
        let status = scene.status()?;
        ensure!(status.get("ok") == Some(&Value::Bool(true)), "{status}");
        let reclaim = status.pointer("/datapath/reclaim").context("no passes")?;
        ensure!(reclaim.get("by").is_some_and(|by| by == "iterator"), "{reclaim}");
        ensure!(number(reclaim, "/corrected")? == 0, "{reclaim}");
        ensure!(scene.established()? == 2 * count, "{} rows", scene.established()?);
        Ok(())
    })
}

#[test]
fn a_pod_with_too_many_connections_fills_its_share_and_no_more() -> Result<()> {
    Lab::run(|lab| {
        let scene = Scene::new(lab, &[("flows", "16384"), ("flows_per_pod", "4096"), ("nursery", "16384")])?;
        let mut web = scene.web("web", 80, 1_500)?;
        let other = scene.web("other", 81, 6_000)?;
        let (modest, greedy) = (scene.client("modest")?, scene.client("greedy")?);
        let mut some = crowds(&modest, &web, 1_500)?;
        web.all_alive(&mut some, b'a')?;
        ensure!(scene.established()? == 3_000);
        // Three times its share, all of them complete and open.
        let many = crowds(&greedy, &other, 6_000)?;
        let beyond = 6_000 - 2_048;
        wait::holds("the share to be used up", || {
            Ok(scene.established()? == 3_000 + 4_096 && scene.event("refused_share")? == beyond)
        })
        .with_context(|| scene.told())?;
        scene.node()?.reload()?;
        wait::holds("the status to name the pod", || {
            let one = refused(&scene.status()?, "default/greedy");
            Ok(one.is_ok_and(|one| number(&one, "/share_used_up").is_ok_and(|n| n == beyond)))
        })?;
        let status = scene.status()?;
        let one = refused(&status, "default/greedy")?;
        ensure!(number(&one, "/rows")? == 4_096 && number(&one, "/table_full")? == 0, "{one}");
        ensure!(refused(&status, "default/modest").is_err());
        let line = "pod default/greedy has used up its share of the table of flows (4096 rows)";
        // It is written after the status has it.
        wait::holds("the log to name the pod", || Ok(scene.log()?.contains(line)))?;
        // Only a warning: everything wanted is in force.
        ensure!(status.get("ok") == Some(&Value::Bool(true)), "{status}");
        let problem = "pod default/greedy holds its whole share of 4096 rows";
        ensure!(status.get("problems").is_some_and(|all| all.to_string().contains(problem)), "{status}");

        // New flows push out what is beyond the share, and of the other pod nothing.
        flood_both(&greedy, &other.server, 60_000)?;
        ensure!(scene.established()? == 3_000 + 4_096);
        web.all_alive(&mut some, b'b')?;
        drop(many);
        web.all_alive(&mut some, b'c')
    })
}

#[test]
fn a_full_table_refuses_the_newest_by_name_and_breaks_nothing() -> Result<()> {
    Lab::run(|lab| {
        let scene = Scene::new(lab, &[("flows", "4096"), ("flows_per_pod", "4096")])?;
        let mut web = scene.web("web", 80, 2_000)?;
        let other = scene.web("other", 81, 1_500)?;
        let (first, last) = (scene.client("first")?, scene.client("last")?);
        let mut some = crowds(&first, &web, 1_000)?;
        let many = crowds(&last, &other, 1_500)?;
        let beyond = 2_500 - 2_048;
        wait::holds("the table to be full", || {
            Ok(scene.established()? == 4_096 && scene.event("refused_full")? == beyond)
        })
        .with_context(|| scene.told())?;
        scene.node()?.reload()?;
        wait::holds("the status to name the pod", || {
            let one = refused(&scene.status()?, "default/last");
            Ok(one.is_ok_and(|one| number(&one, "/table_full").is_ok_and(|n| n == beyond)))
        })?;
        let status = scene.status()?;
        ensure!(status.get("ok") == Some(&Value::Bool(false)), "{status}");
        let problem = "the table of flows is full: 452 flows of pod default/last can be pushed out";
        ensure!(status.get("problems").is_some_and(|all| all.to_string().contains(problem)), "{status}");
        let line = "the table of flows is full (4096 of 4096 rows): 452 connections of pod default/last";
        // It is written after the status has it.
        wait::holds("the log to name the pod", || Ok(scene.log()?.contains(line)))?;
        flood_both(&last, &other.server, 60_000)?;
        web.all_alive(&mut some, b'a')?;
        // Room again: those that come now are as good as any.
        drop(many);
        drop(other);
        wait::holds("the closed to go", || Ok(scene.established()? == 2_000))?;
        let refused = scene.event("refused_full")?;
        let mut more = crowds(&last, &web, 500)?;
        more.extend(some);
        web.all_alive(&mut more, b'b')?;
        ensure!(scene.established()? == 3_000 && scene.event("refused_full")? == refused);
        Ok(())
    })
}

#[test]
fn questions_and_answers_take_no_place_among_conversations() -> Result<()> {
    Lab::run(|lab| {
        let scene = Scene::new(lab, &[])?;
        let dns = scene.node()?.add_server("dns")?;
        let ips = ["10.96.0.10".parse()?, "fd00:96::10".parse()?];
        scene.site.state.service("dns", &ips, VIP_PORT, &[])?;
        scene.site.state.slices("dns", PORT, &dns.pod.addresses)?;
        let client = scene.client("client")?;
        let vips = ips.map(|ip| SocketAddr::new(ip, VIP_PORT.port));
        for vip in vips {
            wait::holds("the Service", || Ok(traffic::ask(&client.netns, Proto::Udp, vip).is_ok()))?;
        }
        let (opened, promoted) = (scene.event("opened")?, scene.event("promoted")?);
        client.netns.enter(|| {
            for vip in vips {
                for port in 2_000..4_000 {
                    let answer = Flow::open_from(port, Proto::Udp, vip)?.ask()?;
                    ensure!(answer == "dns", "{answer} answered");
                }
            }
            Ok(())
        })?;
        let new = scene.event("opened")? - opened;
        ensure!(new >= 2 * 3_990, "two rows each, but for ports used before: {new}");
        ensure!(scene.event("promoted")? == promoted && scene.established()? == 0);
        Ok(())
    })
}

#[test]
fn a_node_full_of_pods_refuses_the_next_by_name() -> Result<()> {
    Lab::run(|lab| {
        let scene = Scene::new(lab, &[("pods", "3")])?;
        let mut web = scene.web("web", 80, 10)?;
        let (one, two) = (scene.client("one")?, scene.client("two")?);
        let mut some = crowds(&one, &web, 10)?;
        let refusal = cni::refused(scene.node()?.add_pod("three"))?;
        ensure!(refusal.code == 11, "{refusal}");
        ensure!(refusal.message == "no room for another pod on this node", "{refusal}");
        let details = "netd's tables are made for 3 pods, and all are in use (datapath.pods)";
        ensure!(refusal.details == details, "{refusal}");
        web.all_alive(&mut some, b'a')?;
        scene.node()?.runtime().check(&one.attachment)?;
        scene.node()?.del_pod(two)?;
        let three = scene.node()?.add_pod("three")?;
        scene.node()?.runtime().check(&three.attachment)
    })
}
