//! An agent whose maps are of another schema, or of another size, takes over from one that runs, under traffic,
//! and may be killed while it does. The one it takes over from is the real one, built from its own source.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::{Lab, Pinned, chrt, pinned};
use netd_integration::node::{Node, PORT, Pod, Server, addresses};
use netd_integration::site::{Site, VIP_PORT, VIPS, at};
use netd_integration::traffic::{self, Flow, Load, Proto};
use netd_integration::{binary, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, gettid};
use std::process::Command;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(3);

/// Pods that do nothing, on each node.
const PODS: usize = 40;

/// Held connections that say nothing while the agents change.
const IDLE: usize = 20;

/// Three nodes with a server each, a Service of all three, and loads and idle connections of every kind: to the
/// Service and to pods, of both families, from the first node and towards it.
struct Traffic {
    client: Pod,
    servers: Vec<Server>,
    loads: Vec<Load>,
    idle: Vec<Flow>,
}

impl Traffic {
    fn start(site: &Site<'_>) -> Result<Self> {
        Self::start_among(site, 0)
    }

    /// With so many pods on each node that do nothing, made after the clients and before the servers.
    fn start_among(site: &Site<'_>, pods: usize) -> Result<Self> {
        let client = site.node("a")?.add_pod("client")?;
        let far = site.node("c")?.add_pod("far")?;
        // One pod that used both the Service and its backends could draw one source port for both at once.
        let direct = site.node("a")?.add_pod("direct")?;
        let back = site.node("c")?.add_pod("back")?;
        let mut servers = Vec::new();
        for node in site.nodes() {
            for n in 0..pods {
                node.add_pod(&format!("idle{n}"))?;
            }
            servers.push(node.add_server(&format!("{}1", node.name()))?);
        }
        site.state.service("web", &VIPS, VIP_PORT, &[])?;
        site.state.slices("web", PORT, &addresses(&servers))?;
        let names: Vec<&str> = servers.iter().map(|server| server.pod.name.as_str()).collect();
        let (mut loads, mut idle) = (Vec::new(), Vec::new());
        for target in VIPS.map(at) {
            for from in [&client.netns, &far.netns] {
                for proto in Proto::ALL {
                    traffic::answering(from, proto, target, &names)?;
                }
                loads.extend(Load::all(from, target, PAUSE)?);
            }
            for n in 0..IDLE {
                let from = if n % 2 == 0 { &client.netns } else { &far.netns };
                let mut flow = traffic::open(from, Proto::Tcp, target)?;
                flow.ask()?;
                idle.push(flow);
            }
        }
        let [first, .., last] = servers.as_slice() else { anyhow::bail!("no servers") };
        loads.extend(Load::all(&direct.netns, last.at(true)?, PAUSE)?);
        loads.extend(Load::all(&back.netns, first.at(false)?, PAUSE)?);
        Ok(Self { client, servers, loads, idle })
    }

    /// Each load had some more requests answered.
    fn goes_on(&self) -> Result<()> {
        Load::all_more(&self.loads, 40)
    }

    /// No request failed, and the idle connections are those they were.
    fn none_failed(mut self) -> Result<()> {
        let mut failures = Vec::new();
        for (n, flow) in self.idle.iter_mut().enumerate() {
            if let Err(error) = flow.ask() {
                failures.push(format!("idle connection {n} from {:?}: {error:#}", flow.local()?));
            }
        }
        if let Err(error) = Load::none_failed(self.loads) {
            failures.push(error.to_string());
        }
        ensure!(failures.is_empty(), "{}", failures.join("\n"));
        Ok(())
    }
}

/// Three nodes that run the previous netd; none if there is no such.
fn previous_site(lab: &Lab) -> Result<Option<Site<'_>>> {
    let Some(previous) = binary::previous()? else { return Ok(None) };
    let site = Site::three_nodes(lab)?;
    for node in site.nodes() {
        node.replace_netd(Some(previous));
        // New flows push idle ones out of schema 1's one table: it is to be large enough for all of a test.
        node.configure(|config| config.tables.flows = 262_144);
    }
    site.start_all()?;
    for node in site.nodes() {
        ensure!(node.schemas()? == ["v1"], "the previous netd is to have schema 1");
    }
    Ok(Some(site))
}

/// All of the first set that is not in the second is freed by the kernel.
fn freed(before: &[Pinned], after: &[Pinned]) -> Result<()> {
    for object in before {
        if after.iter().any(|other| (other.kind, other.id) == (object.kind, object.id)) {
            continue;
        }
        let what = format!("{} {} ({}) to be freed", object.kind, object.id, object.path.display());
        wait::holds(&what, || Ok(!object.lives()))?;
    }
    Ok(())
}

fn all_pinned(site: &Site<'_>) -> Result<Vec<Pinned>> {
    let mut all = Vec::new();
    for node in site.nodes() {
        all.extend(pinned(&node.bpffs())?);
    }
    Ok(all)
}

/// The map of an agent by its name.
fn map(node: &Node<'_>, name: &str) -> Result<Pinned> {
    let all = pinned(&node.bpffs())?;
    let found = all.into_iter().find(|object| object.kind == "map" && object.path.ends_with(name));
    found.with_context(|| format!("{} has no map {name}", node.name()))
}

/// Packets that left the programs of a node, however they did.
fn packets(node: &Node<'_>) -> Result<f64> {
    node.metric("netd_packets_total", &[])
}

#[test]
fn another_schema_takes_over_without_a_lost_request() -> Result<()> {
    Lab::run(|lab| {
        let Some(site) = previous_site(lab)? else { return Ok(()) };
        let traffic = Traffic::start(&site)?;
        traffic.goes_on()?;
        let before = all_pinned(&site)?;
        let mut counted = Vec::new();
        for node in site.nodes() {
            counted.push(packets(node)?);
        }
        for node in site.nodes() {
            node.terminate()?;
        }
        traffic.goes_on()?;
        for node in site.nodes() {
            node.replace_netd(None);
        }
        site.start_all()?;
        traffic.goes_on()?;
        for (node, before) in site.nodes().iter().zip(counted) {
            ensure!(node.schemas()? == ["v2"], "{:?}", node.schemas()?);
            let now = packets(node)?;
            ensure!(now > before, "{}: {now} packets after {before}", node.name());
        }
        freed(&before, &all_pinned(&site)?)?;

        // The new agent is a whole one: pods come and go, Services change.
        let client = &traffic.client;
        site.node(&client.node)?.runtime().check(&client.attachment)?;
        for node in site.nodes() {
            let pod = node.add_pod("new")?;
            ensure!(traffic.servers.iter().all(|server| server.pod.addresses != pod.addresses));
            node.del_pod(pod)?;
        }
        traffic.goes_on()?;
        let (from, alone) = (traffic.client.netns.clone(), traffic.servers.first().context("a server")?);
        site.state.slices("web", PORT, &alone.pod.addresses)?;
        traffic::answering(&from, Proto::Tcp, at(VIPS[0]), &[&alone.pod.name])?;
        traffic.none_failed()
    })
}

#[test]
fn a_takeover_killed_halfway_loses_nothing_and_begins_again() -> Result<()> {
    Lab::run(|lab| {
        let Some(site) = previous_site(lab)? else { return Ok(()) };
        let traffic = Traffic::start(&site)?;
        traffic.goes_on()?;
        for node in site.nodes() {
            node.kill9()?;
            node.replace_netd(None);
        }
        // As far as each of these, and then not a step further.
        for seen in ["v2-next", "v2-next/programs/pod_egress", "v2-next/programs/uplink_in", "v2"] {
            for node in site.nodes() {
                let path = node.bpffs().join(seen);
                let stale = node.bpffs().join("v2-next/programs");
                if stale.exists() {
                    // Of the try before; what is waited for is made anew.
                    std::fs::remove_dir_all(&stale)?;
                }
                node.launch()?;
                wait::holds(&format!("{} to appear", path.display()), || Ok(path.exists()))?;
                node.kill9()?;
            }
            traffic.goes_on()?;
        }
        site.start_all()?;
        for node in site.nodes() {
            ensure!(node.schemas()? == ["v2"], "{:?}", node.schemas()?);
        }
        traffic.goes_on()?;
        traffic.none_failed()
    })
}

#[test]
fn a_node_left_with_programs_of_both_schemas_loses_nothing() -> Result<()> {
    Lab::run(|lab| {
        let Some(site) = previous_site(lab)? else { return Ok(()) };
        // One interface after the other gets its new programs, the oldest first: with many there is time to die
        // between the clients and the servers.
        let traffic = Traffic::start_among(&site, PODS)?;
        traffic.goes_on()?;
        // A machine that stands still may let an agent come through; not two of them.
        let mut mixed = 0;
        for (node, moment) in site.nodes().iter().zip([Moment::Uplink, Moment::Pods, Moment::Pods]) {
            node.kill9()?;
            node.replace_netd(None);
            let before = programs(node)?;
            ensure!(before == (before.0, 0) && before.0 >= 2 * PODS, "{before:?}");
            node.launch()?;
            kill_at(node, moment)?;
            let (old, new) = programs(node)?;
            match moment {
                Moment::Uplink => ensure!(old > 0, "all pods have new programs already"),
                Moment::Pods => {
                    ensure!(new > 0, "no pod has new programs");
                    mixed += usize::from(old > 0);
                }
            }
            traffic.goes_on()?;
        }
        ensure!(mixed > 0, "no agent died between two pods");
        traffic.goes_on()?;
        traffic.goes_on()?;
        site.start_all()?;
        traffic.goes_on()?;
        traffic.none_failed()
    })
}

/// When to kill an agent.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// When the uplink has its new program; the pods' come next.
    Uplink,
    /// When the first pod has one.
    Pods,
}

/// Kills the agent at a moment between two interfaces: it goes on by fractions of a millisecond, and what it
/// has done so far is looked at while it stands.
fn kill_at(node: &Node<'_>, moment: Moment) -> Result<()> {
    let (next, agent) = (node.bpffs().join("v2-next"), Pid::from_raw(node.agent_id()?.try_into()?));
    chrt(&["--fifo", "--pid", "2"], gettid())?;
    // Not before: signals make the verifier give up.
    let last = next.join("programs/uplink_in");
    let begun = Instant::now();
    while !last.exists() {
        ensure!(begun.elapsed() < wait::DEADLINE, "the programs are not loaded");
        std::thread::sleep(Duration::from_millis(1));
    }
    let reached = || -> Result<bool> {
        let links: Vec<_> = std::fs::read_dir(next.join("links"))?.collect::<Result<_, _>>()?;
        let uplink = links.iter().any(|link| link.file_name().to_string_lossy().starts_with("uplink-"));
        Ok(match moment {
            Moment::Uplink => uplink,
            Moment::Pods => uplink && programs(node)?.1 > 0,
        })
    };
    // It too before everything else, so that a fraction of a millisecond is one.
    chrt(&["--all-tasks", "--fifo", "--pid", "1"], agent)?;
    wait::within(wait::DEADLINE * 2, "the moment", || {
        kill(agent, Signal::SIGSTOP)?;
        wait::holds("the agent to stand", || stands(agent))?;
        if reached()? {
            return Ok(Some(()));
        }
        kill(agent, Signal::SIGCONT)?;
        std::thread::sleep(Duration::from_micros(300));
        kill(agent, Signal::SIGSTOP)?;
        Ok(None)
    })?;
    chrt(&["--other", "--pid", "0"], gettid())?;
    node.kill9().map(drop)
}

/// All threads of a process are stopped (proc(5), field 3 of `stat`).
fn stands(process: Pid) -> Result<bool> {
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let stat = std::fs::read_to_string(thread?.path().join("stat"))?;
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        if state != Some('T') {
            return Ok(false);
        }
    }
    Ok(true)
}

/// How many of the filters on a node have programs that are pinned for the old set of maps, and how many others.
fn programs(node: &Node<'_>) -> Result<(usize, usize)> {
    let pinned = pinned(&node.bpffs().join("v1/programs"))?;
    let shown = node.to_end(Command::new("bpftool").args(["-j", "net", "show"]))?;
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout)?;
    let filters = shown.pointer("/0/tc").and_then(|tc| tc.as_array()).context("no list of filters")?;
    let ids = filters.iter().filter_map(|row| row.get("id").or(row.get("prog_id"))?.as_u64());
    let (old, new): (Vec<u64>, Vec<u64>) = ids.partition(|id| pinned.iter().any(|one| one.id == *id));
    Ok((old.len(), new.len()))
}

#[test]
fn larger_tables_take_over_without_a_lost_request() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let traffic = Traffic::start(&site)?;
        traffic.goes_on()?;
        for (flows, pods) in [(65_536, 512), (32_768, 128)] {
            let before = all_pinned(&site)?;
            for node in site.nodes() {
                node.kill9()?;
                node.configure(|config| (config.tables.flows, config.tables.pods) = (flows, pods));
            }
            traffic.goes_on()?;
            site.start_all()?;
            traffic.goes_on()?;
            for node in site.nodes() {
                ensure!(map(node, "ESTABLISHED")?.entries()? == u64::from(flows));
                ensure!(map(node, "POD_BY_IFINDEX")?.entries()? == u64::from(pods));
            }
            freed(&before, &all_pinned(&site)?)?;
        }
        // Less than is in use: kept, and told.
        let node = site.node("a")?;
        node.terminate()?;
        node.configure(|config| config.tables.pods = 2);
        node.start()?;
        ensure!(map(node, "POD_BY_IFINDEX")?.entries()? == 128);
        let log = std::fs::read_to_string(node.log())?;
        let told = "map POD_BY_IFINDEX keeps its 128 rows, the configuration asks for 2: 3 rows of it";
        ensure!(log.contains(told), "{log}");
        traffic.goes_on()?;
        traffic.none_failed()
    })
}
