//! What policies cost, by their number, in a cluster that is always the same (`cluster`).
//!
//! | metric | what |
//! |---|---|
//! | established, new connection | `pod_egress` by test-runs in a loop, from pod to pod of this node: with policies both are isolated in both directions |
//! | of it for policies | what a new connection takes more than without policies, within a round |
//! | plan from nothing | the planner, and then the order of writes to empty tables too; nothing is written |
//! | one label -> epoch | from the rename of a pod's file until the agent's tables have the row and the new epoch, by which open flows are judged anew: a pod of another node gets another identity, one of this node other policies |
//!
//! There is a node with an agent for each number of policies; all stand at the same time.

mod cluster;

use super::Case;
use super::frames::{REDIRECTED, Segment, frame};
use super::pins::{memory, open};
use super::probe::{Jump, Loop, Probe};
use crate::load::{self, Cpus};
use crate::options::Options;
use crate::report::{Bar, Report, Row};
use crate::rounds::{Series, order};
use crate::subjects::{lone_node, memory_of};
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, HashMap, MapData, MapError};
use cluster::Cluster;
use netd::model::ObjectName;
use netd::policy::tables::{Kernel, Limits, Tables};
use netd::policy::{Input, LocalPod, Planner, Touched};
use netd_bpf::Addr;
use netd_bpf::pod::Pod as PodRow;
use netd_bpf::policy::IdentityRow;
use netd_integration::lab::Lab;
use netd_integration::node::{Node, Pod};
use netd_integration::state::{State, Workload};
use netd_integration::{stats, wait};
use nix::net::if_::if_nametoindex;
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

/// Test-runs of an established flow's packet in a round.
const RUNS: u32 = 100_000;
/// Connections in a round, each of which stays in the flow table.
const CONNECTIONS: u32 = 2_000;
const PORT: u16 = 8_080;
const FIRST_NEW: u16 = 1_024;
const ESTABLISHED_PORT: u16 = 60_000;
/// Address of endpoint 0 where planning is measured.
const FIRST_HERE: u32 = u32::from_be_bytes([10, 244, 1, 0]);

/// How long an agent may take to be ready.
const SYNC: Duration = Duration::from_secs(300);
/// Lets the agent come to rest between two changes.
const REST: Duration = Duration::from_millis(20);
/// Pause between two looks, with what the kernel adds to it.
const LOOK: Duration = Duration::from_micros(50);

/// To what it is without policies.
const ESTABLISHED: Bar = Bar::ratio_at_most(1.05, 1.02);
/// More than without policies.
const NEW: Bar = Bar::at_most(300.0, 200.0);
const COMPILE: Bar = Bar::at_most(1_000.0, 500.0);
const CHANGE: Bar = Bar::at_most(10.0, 5.0);

/// A node with policies and the measurements of it.
struct Subject<'lab> {
    cluster: Cluster,
    node: Node<'lab>,
    state: State,
    /// Of pod 0, which is on this node.
    first: Ipv4Addr,
    established: Loop,
    new: Loop,
    identities: HashMap<MapData, Addr, IdentityRow>,
    pods: HashMap<MapData, Addr, PodRow>,
    epoch: Array<MapData, u64>,
    measured: Measured,
}

#[derive(Default)]
struct Measured {
    established: Series,
    new: Series,
    plan: Series,
    compile: Series,
    elsewhere: Series,
    here: Series,
}

pub(super) fn run(lab: &Lab, options: &Options, report: &Report) -> Result<Vec<Row>> {
    let cpus = Cpus::choose()?;
    let mut nothing = Probe::empty()?;
    let at = lab.bpffs().join("nothing");
    nothing.pin(&at)?;
    let idle = Jump::to(&at, &lab.bpffs().join("idle"))?;
    let mut subjects = Vec::new();
    for policies in options.policies() {
        report.progress(&format!("  {policies} policies"));
        let cluster = Cluster {
            namespaces: options.pick(100, 4),
            pods: options.pick(10_000, 400),
            local: options.pick(62, 2),
            policies,
        };
        subjects.push(Subject::new(lab, cluster, &idle)?);
    }
    for round in 0..options.rounds() {
        for i in order(subjects.len(), round) {
            let subject = subjects.get_mut(i).context("no such subject")?;
            subject.packets(cpus)?;
            if subject.cluster.policies > 0 {
                subject.plan()?;
                subject.changes(options.pick(20, 3))?;
            }
        }
    }
    rows(&subjects)
}

/// Rows of all; packets of the others are compared with the first's.
fn rows(subjects: &[Subject<'_>]) -> Result<Vec<Row>> {
    let first = subjects.first().context("no subject")?;
    let base = format!("{} policies", first.cluster.policies);
    let mut rows = Vec::new();
    for Subject { cluster, node, measured, .. } in subjects {
        let Cluster { policies, pods, .. } = *cluster;
        let row = |metric: &str, unit, series: &Series| {
            Row::new(Case::Policy, format!("netd, {policies}"), metric, unit, series.clone())
        };
        let established = row("established", "ns", &measured.established);
        let new = row("new connection", "ns", &measured.new);
        if policies == first.cluster.policies {
            rows.extend([established, new]);
        } else {
            let without = first.measured.new.values();
            let more =
                measured.new.values().iter().zip(without).map(|(with, without)| with - without).collect();
            rows.extend([
                established.to(&base, &first.measured.established).bar(ESTABLISHED),
                new.to(&base, &first.measured.new),
                row("new connection, of it for policies", "ns", &more).bar(NEW),
            ]);
        }
        if policies > 0 {
            rows.extend([
                row("plan from nothing", "ms", &measured.plan),
                row("plan and order of writes from nothing", "ms", &measured.compile)
                    .bar(COMPILE)
                    .note(format!("{pods} pods, {} here", cluster.local)),
                row("one label elsewhere -> epoch", "ms", &measured.elsewhere).bar(CHANGE),
                row("one label here -> epoch", "ms", &measured.here).bar(CHANGE),
            ]);
        }
        rows.push(row("resident", "MiB", &[memory_of(node, "VmRSS")?].into_iter().collect()));
        rows.push(row("maps", "MiB", &[memory(&node.bpffs())?].into_iter().collect()));
    }
    Ok(rows)
}

fn v4(pod: &Pod) -> Result<Ipv4Addr> {
    let IpAddr::V4(ip) = pod.address(false)? else { bail!("{} has no IPv4 address", pod.name) };
    Ok(ip)
}

/// Index of the host's end of a pod's interface.
fn interface(node: &Node<'_>, pod: &Pod) -> Result<u32> {
    let name = pod.result.pointer("/interfaces/0/name").and_then(|name| name.as_str());
    let name = name.with_context(|| format!("no interface in {}", pod.result))?;
    node.namespace().enter(|| if_nametoindex(name).with_context(|| name.to_owned()))
}

impl<'lab> Subject<'lab> {
    /// Starts a node, adds its pods, and shakes hands between two of them. `idle` goes on as a program that does
    /// nothing.
    fn new(lab: &'lab Lab, cluster: Cluster, idle: &Jump) -> Result<Self> {
        let name = format!("policy-{}", cluster.policies);
        let (node, state) = lone_node(lab, &name, netd_integration::node::Tables::DEFAULT)?;
        cluster.write(&state, &name)?;
        // Beside the cluster's own pods, of one namespace and app with the first.
        let ends = ["client", "server"].map(|end| {
            let mut pod = cluster.pod(0, &name);
            pod.name = end.into();
            pod
        });
        ends.iter().try_for_each(|pod| cluster::put(&state, pod))?;
        node.launch()?;
        node.ready_within(SYNC)?;
        let [client, server] = ends.map(|pod| node.add_pod_in(&pod.namespace, &pod.name));
        let (client, server) = (client?, server?);
        let mut first = None;
        for i in 0..cluster.local {
            let Workload { namespace, name, .. } = cluster.pod(i, &name);
            let pod = node.add_pod_in(&namespace, &name)?;
            first.get_or_insert(v4(&pod)?);
        }

        let real = node.bpffs().join(format!("v{}/programs/pod_egress", netd_bpf::SCHEMA));
        let folder = lab.bpffs();
        let jump = Jump::to(&real, &folder.join(format!("{name}-jump")))?;
        let jumps = [&jump, idle];
        let (at, back) = (interface(&node, &client)?, interface(&node, &server)?);
        let (client, to) = (v4(&client)?, SocketAddrV4::new(v4(&server)?, PORT));
        let [from, new] = [ESTABLISHED_PORT, FIRST_NEW].map(|port| SocketAddrV4::new(client, port));
        for (ifindex, frame) in [
            (at, frame(from, to, Segment::Syn)?),
            (back, frame(to, from, Segment::SynAck)?),
            (at, frame(from, to, Segment::Ack)?),
        ] {
            let once = Loop::same(jumps, &frame, ifindex)?;
            node.namespace().enter(|| once.once(REDIRECTED))?;
        }
        Ok(Self {
            established: Loop::same(jumps, &frame(from, to, Segment::Data)?, at)?,
            new: Loop::counting(jumps, &frame(new, to, Segment::Syn)?, at, (&folder, &name))?,
            first: first.context("no pod of the cluster on this node")?,
            identities: open(&node.bpffs(), "IDENTITIES")?.try_into()?,
            pods: open(&node.bpffs(), "POD_BY_ADDR")?.try_into()?,
            epoch: open(&node.bpffs(), "POLICY_EPOCH")?.try_into()?,
            measured: Measured::default(),
            cluster,
            node,
            state,
        })
    }

    /// Nanoseconds of packets.
    fn packets(&mut self, cpus: Cpus) -> Result<()> {
        let (established, new) = self.node.namespace().enter(|| {
            load::pin(cpus.server)?;
            Ok((self.established.time(RUNS, REDIRECTED)?, self.new.time(CONNECTIONS, REDIRECTED)?))
        })?;
        self.measured.established.push(established);
        self.measured.new.push(new);
        Ok(())
    }
    /// What it takes to plan everything from nothing.
    fn plan(&mut self) -> Result<()> {
        let model = netd::directory::load(self.state.dir())?;
        let here = |(i, endpoint)| {
            let Workload { namespace, name, .. } = self.cluster.pod(i, self.node.name());
            let address = Ipv4Addr::from(FIRST_HERE + endpoint).into();
            let pod = Some(ObjectName::new(&namespace, &name));
            (endpoint, LocalPod { endpoint, pod, uid: None, addresses: vec![address] })
        };
        let locals: BTreeMap<u32, LocalPod> = (0..self.cluster.local).zip(1..).map(here).collect();
        let input = Input { model: &model, locals: &locals, node: self.node.name(), node_addresses: &[] };
        // The defaults of the configuration.
        let limits = Limits { rows: 65_536, ranges: 65_536, identities: 131_072, blocks: 16_384 };
        let mut tables = Tables::read(limits, Duration::from_secs(1), &Kernel::default(), Instant::now());
        let start = Instant::now();
        let mut planner = Planner::new();
        planner.update(input);
        let planned = start.elapsed();
        let plan = tables.plan(planner.desired(), &Touched::all(), Instant::now());
        let all = start.elapsed();
        ensure!(plan.refused.is_empty(), "no room: {:?}", plan.refused);
        self.measured.plan.push(milliseconds(planned));
        self.measured.compile.push(milliseconds(all));
        Ok(())
    }

    /// Gives two pods the labels of another app and their own again, several times.
    fn changes(&mut self, count: u32) -> Result<()> {
        let (cluster, node) = (self.cluster, self.node.name());
        let [mut elsewhere, mut here] = [cluster.like_the_first(), 0].map(|i| cluster.pod(i, node));
        let Some(&IpAddr::V4(peer)) = elsewhere.ips.first() else { bail!("a pod without an address") };
        let [mut there, mut local] = [(); 2].map(|()| Vec::new());
        for i in (0..count).flat_map(|_| [1, 0]) {
            elsewhere.labels = cluster::labels(i);
            here.labels = cluster::labels(i);
            there.push(self.change(&elsewhere, |subject| subject.identity(peer))?);
            local.push(self.change(&here, |subject| subject.sets(subject.first))?);
        }
        self.measured.elsewhere.push(stats::median(&there));
        self.measured.here.push(stats::median(&local));
        Ok(())
    }

    /// Changes a pod's file; milliseconds until the kernel says something else, of flows that are open as well.
    fn change<T: PartialEq>(&self, pod: &Workload, look: impl Fn(&Self) -> Result<T>) -> Result<f64> {
        let (path, beside) = (self.state.dir().join(cluster::file(pod)), self.state.dir().join(".change"));
        fs::write(&beside, pod.yaml())?;
        let before = (look(self)?, self.epoch.get(&0, 0)?);
        let start = Instant::now();
        fs::rename(&beside, &path)?;
        loop {
            let now = (look(self)?, self.epoch.get(&0, 0)?);
            let took = start.elapsed();
            if now.0 != before.0 && now.1 != before.1 {
                std::thread::sleep(REST);
                return Ok(milliseconds(took));
            }
            ensure!(took < wait::DEADLINE, "{}: nothing changes in the kernel", path.display());
            std::thread::sleep(LOOK);
        }
    }

    fn identity(&self, pod: Ipv4Addr) -> Result<Option<u64>> {
        Ok(get(&self.identities, pod)?.map(|row| row.identity))
    }

    fn sets(&self, pod: Ipv4Addr) -> Result<Option<(u64, u64)>> {
        Ok(get(&self.pods, pod)?.map(|row| (row.egress_set, row.ingress_set)))
    }
}

fn get<T: aya::Pod>(map: &HashMap<MapData, Addr, T>, ip: Ipv4Addr) -> Result<Option<T>> {
    match map.get(&IpAddr::V4(ip).into(), 0) {
        Err(MapError::KeyNotFound) => Ok(None),
        other => Ok(Some(other?)),
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
