//! Nine pods in three namespaces on two nodes, what each is to reach of the others, and whether that is so.
//!
//! | what | where |
//! |---|---|
//! | `x/a` `x/b` `y/a` `y/c` `z/b` | node a |
//! | `x/c` `y/b` `z/a` `z/c` | node b |
//! | `m/a` `m/b` | a marker on each node |
//!
//! So each pod has others of its own and of other namespaces on both nodes. Each serves TCP and UDP on ports 80 and
//! 81, by IPv4 and IPv6, which Kubernetes knows as `serve-80-tcp` and so on; Pods have the label `pod` with their
//! name, namespaces the label `ns` with theirs.
//!
//! All policies stand in one file, and each version of it moves the markers from one port to the other one: what an
//! agent's marker answers tells which version its node obeys, so that a table that should not change is not believed
//! before the change that should not change it is in force.

mod shared;
mod table;

pub use shared::case;
pub use table::{Cell, PODS, PORTS, Truth, Way, Ways};

use crate::lab::{Lab, tail};
use crate::node::Pod;
use crate::site::{Families, Site};
use crate::state::{Policy, Workload, namespace, policy};
use crate::traffic::{self, Echo, Proto, Question};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};

/// Which pods are on node a; the others are on node b.
const ON_A: [&str; 5] = ["x/a", "x/b", "y/a", "y/c", "z/b"];
/// The markers.
const MARKERS: [&str; 2] = ["m/a", "m/b"];
/// Namespaces of the pods.
const NAMESPACES: [&str; 3] = ["x", "y", "z"];
/// The file of the namespaces and the Pods.
const CLUSTER: &str = "cluster.yaml";
/// The file of the policies.
const POLICIES: &str = "policies.yaml";

type Labels = BTreeMap<String, String>;

/// The nodes, the pods, and what Kubernetes is told of them.
#[derive(Debug)]
pub struct World<'lab> {
    site: Site<'lab>,
    pods: BTreeMap<&'static str, Pod>,
    /// They end with this.
    _servers: Vec<Echo>,
    namespaces: BTreeMap<&'static str, Labels>,
    workloads: BTreeMap<&'static str, Workload>,
    policies: Vec<Policy>,
    /// Of the policies' file.
    version: u16,
}

impl<'lab> World<'lab> {
    /// Starts the nodes and the pods; waits until all reach all.
    ///
    /// # Errors
    /// They do not.
    pub fn start(lab: &'lab Lab) -> Result<Self> {
        let mut site = Site::new(lab, 1)?;
        for name in ["a", "b"] {
            site.add_node(name, 1, Families::Dual)?;
        }
        let mut world = Self {
            site,
            pods: BTreeMap::new(),
            _servers: Vec::new(),
            namespaces: namespaces(),
            workloads: PODS.into_iter().chain(MARKERS).map(|pod| (pod, workload(pod))).collect(),
            policies: Vec::new(),
            version: 0,
        };
        world.write_cluster()?;
        world.write_policies()?;
        world.site.start_all()?;
        for pod in PODS.into_iter().chain(MARKERS) {
            let (of, name) = parts(pod);
            let attached = world.site.node(node_of(pod))?.add_pod_in(of, name)?;
            for port in PORTS {
                world._servers.push(Echo::start(&attached.netns, pod, port)?);
            }
            world.pods.insert(pod, attached);
        }
        world.in_force()?;
        world.expect(&Truth::open())?;
        Ok(world)
    }

    /// The nodes.
    #[must_use]
    pub fn site(&self) -> &Site<'lab> {
        &self.site
    }

    /// A pod, such as `x/a`.
    ///
    /// # Errors
    /// There is none.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.get(name).with_context(|| format!("there is no pod {name}"))
    }

    /// A pod's addresses as `ipBlock` takes them.
    ///
    /// # Errors
    /// There is no such pod.
    pub fn blocks(&self, name: &str) -> Result<[String; 2]> {
        let pod = self.pod(name)?;
        Ok([format!("{}/32", pod.address(false)?), format!("{}/128", pod.address(true)?)])
    }

    /// Puts these policies, and no others, in force.
    ///
    /// # Errors
    /// They are not, by the deadline.
    pub fn policies(&mut self, policies: &[Policy]) -> Result<()> {
        self.policies = policies.to_vec();
        self.in_force()
    }

    /// Gives a pod a label, or takes it away.
    ///
    /// # Errors
    /// There is no such pod, or the change is not in force by the deadline.
    pub fn label_pod(&mut self, pod: &str, key: &str, value: Option<&str>) -> Result<()> {
        let workload = self.workloads.get_mut(pod).with_context(|| format!("there is no pod {pod}"))?;
        set(&mut workload.labels, key, value);
        self.write_cluster()?;
        self.in_force()
    }

    /// Gives a namespace a label, or takes it away.
    ///
    /// # Errors
    /// As [`World::label_pod`].
    pub fn label_namespace(&mut self, of: &str, key: &str, value: Option<&str>) -> Result<()> {
        let labels = self.namespaces.get_mut(of).with_context(|| format!("there is no namespace {of}"))?;
        set(labels, key, value);
        self.write_cluster()?;
        self.in_force()
    }

    /// Gives a named port of a pod another number.
    ///
    /// # Errors
    /// As [`World::label_pod`].
    pub fn renumber(&mut self, pod: &str, name: &str, number: u16) -> Result<()> {
        let workload = self.workloads.get_mut(pod).with_context(|| format!("there is no pod {pod}"))?;
        for (_, port, _) in workload.ports.iter_mut().filter(|(of, _, _)| of == name) {
            *port = number;
        }
        self.write_cluster()?;
        self.in_force()
    }

    /// Everything as it was at the start, whatever a test left behind.
    ///
    /// # Errors
    /// It is not, by the deadline.
    pub fn reset(&mut self) -> Result<()> {
        for entry in fs::read_dir(self.site.state.dir())? {
            let file = entry?.file_name().to_string_lossy().into_owned();
            if file.starts_with("policy-") {
                self.site.state.remove(&file)?;
            }
        }
        self.namespaces = namespaces();
        self.workloads = PODS.into_iter().chain(MARKERS).map(|pod| (pod, workload(pod))).collect();
        self.policies.clear();
        self.write_cluster()?;
        self.in_force()
    }

    /// Waits until the whole table is as it is to be.
    ///
    /// # Errors
    /// It is not, by the deadline: what was expected, what was observed, and where they differ.
    pub fn expect(&self, truth: &Truth) -> Result<()> {
        let questions: Vec<Question> =
            truth.cells().iter().map(|cell| self.question(cell)).collect::<Result<_>>()?;
        match truth.differs(&traffic::settled(&questions)?) {
            None => Ok(()),
            Some(text) => bail!("{text}{}", self.in_words()),
        }
    }

    fn question(&self, cell: &Cell) -> Result<Question> {
        let from = &self.pod(cell.from)?.netns;
        let target = SocketAddr::new(self.pod(cell.to)?.address(cell.way.v6)?, cell.way.port);
        Ok(if cell.allowed {
            Question::answered(from, cell.way.proto, target, cell.to)
        } else {
            Question::silent(from, cell.way.proto, target)
        })
    }

    /// Writes another version of the policies and waits until both nodes obey it.
    ///
    /// # Errors
    /// They do not, by the deadline.
    pub fn in_force(&mut self) -> Result<()> {
        self.version += 1;
        self.write_policies()?;
        let mut questions = Vec::new();
        for (from, to) in [("m/a", "m/b"), ("m/b", "m/a")] {
            let address: IpAddr = self.pod(to)?.address(false)?;
            let target = SocketAddr::new(address, self.marked());
            questions.push(Question::answered(&self.pod(from)?.netns, Proto::Udp, target, to));
        }
        traffic::reached(&questions).with_context(|| format!("the markers of version {}", self.version))
    }

    /// The port at which the markers answer.
    fn marked(&self) -> u16 {
        80 + self.version % 2
    }

    fn write_policies(&self) -> Result<()> {
        let spec = format!(
            "{{podSelector: {{}}, ingress: [{{ports: [{{protocol: UDP, port: {}}}]}}]}}",
            self.marked()
        );
        let marker = policy("m", "marker", spec);
        let all: String = self.policies.iter().chain([&marker]).map(Policy::yaml).collect();
        self.site.state.put(POLICIES, &all)
    }

    fn write_cluster(&self) -> Result<()> {
        let mut text = String::new();
        for (name, labels) in &self.namespaces {
            let labels: Vec<(&str, &str)> = labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            text += &namespace(name, &labels);
        }
        text.extend(self.workloads.values().map(Workload::yaml));
        self.site.state.put(CLUSTER, &text)
    }

    /// What was in force, for a message.
    fn in_words(&self) -> String {
        let mut text: String = self.policies.iter().map(Policy::yaml).collect();
        for node in self.site.nodes() {
            // What it does every ten seconds is of no interest.
            let log = tail(&node.log(), 200);
            let lines: Vec<&str> = log.lines().filter(|line| !line.contains("DEBUG netd::flows")).collect();
            let end = lines.get(lines.len().saturating_sub(15)..).unwrap_or_default();
            text += &format!("---- end of {}\n{}\n", node.log().display(), end.join("\n"));
        }
        text
    }
}

fn set(labels: &mut Labels, key: &str, value: Option<&str>) {
    match value {
        Some(value) => drop(labels.insert(key.into(), value.into())),
        None => drop(labels.remove(key)),
    }
}

fn namespaces() -> BTreeMap<&'static str, Labels> {
    let labels = |name: &str| Labels::from([("ns".to_owned(), name.to_owned())]);
    NAMESPACES.into_iter().chain(["m"]).map(|name| (name, labels(name))).collect()
}

fn workload(pod: &str) -> Workload {
    let (of, name) = parts(pod);
    let mut workload = Workload::new(of, name, node_of(pod), &[("pod", name)]);
    for port in PORTS {
        for proto in Proto::ALL {
            workload.ports.push((format!("serve-{port}-{proto}").to_lowercase(), port, proto));
        }
    }
    workload
}

/// Namespace and name.
fn parts(pod: &str) -> (&str, &str) {
    pod.split_once('/').unwrap_or(("", pod))
}

fn node_of(pod: &str) -> &'static str {
    if ON_A.contains(&pod) || pod == "m/a" { "a" } else { "b" }
}
