//! Two nodes, pods with labels, and the moment at which a change is in the kernel.

use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::{Lab, Namespace, bpftool};
use netd_integration::node::{Node, Pod, Server};
use netd_integration::site::{Families, Site, VIP_PORT};
use netd_integration::state::{Policy, Workload, policy};
use netd_integration::traffic::{self, Proto, Question};
use netd_integration::wait;
use serde_json::Value;
use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr};

/// A spec that denies all pods of the namespace all that they are asked.
pub(crate) const DENY_INGRESS: &str = "{podSelector: {}, policyTypes: [Ingress]}";
/// A spec that denies all pods of the namespace all that they ask.
pub(crate) const DENY_EGRESS: &str = "{podSelector: {}, policyTypes: [Egress]}";
/// Both.
pub(crate) const DENY_ALL: &str = "{podSelector: {}, policyTypes: [Ingress, Egress]}";

/// The nodes a and b on one segment.
pub(crate) struct Scene<'lab> {
    pub(crate) site: Site<'lab>,
}

impl<'lab> Scene<'lab> {
    pub(crate) fn new(lab: &'lab Lab) -> Result<Self> {
        let scene = Self::not_started(lab)?;
        scene.site.start_all()?;
        Ok(scene)
    }

    /// With agents yet to be configured and started.
    pub(crate) fn not_started(lab: &'lab Lab) -> Result<Self> {
        let mut site = Site::new(lab, 1)?;
        for name in ["a", "b"] {
            site.add_node(name, 1, Families::Dual)?;
        }
        Ok(Self { site })
    }

    pub(crate) fn node(&self, name: &str) -> Result<&Node<'lab>> {
        self.site.node(name)
    }

    /// A pod with the label `app`, which is its name.
    pub(crate) fn pod(&self, node: &str, namespace: &str, name: &str) -> Result<Pod> {
        self.site.state.workload(&Workload::new(namespace, name, node, &[("app", name)]))?;
        self.node(node)?.add_pod_in(namespace, name)
    }

    /// [`Scene::pod`], and a server in it.
    pub(crate) fn server(&self, node: &str, namespace: &str, name: &str) -> Result<Server> {
        self.site.state.workload(&Workload::new(namespace, name, node, &[("app", name)]))?;
        self.node(node)?.add_server_in(namespace, name)
    }

    /// A Service with these endpoints, at the last number of its addresses.
    pub(crate) fn service(&self, name: &str, last: u8, addresses: &[IpAddr]) -> Result<[SocketAddr; 2]> {
        let ips: [IpAddr; 2] = [format!("10.96.0.{last}").parse()?, format!("fd00:96::{last}").parse()?];
        self.site.state.service(name, &ips, VIP_PORT, &[])?;
        self.site.state.slices(name, VIP_PORT.target, addresses)?;
        Ok(ips.map(|ip| SocketAddr::new(ip, VIP_PORT.port)))
    }

    pub(crate) fn put(&self, namespace: &str, name: &str, spec: &str) -> Result<Policy> {
        let policy = policy(namespace, name, spec);
        self.site.state.policy(&policy)?;
        Ok(policy)
    }

    pub(crate) fn remove(&self, policy: &Policy) -> Result<()> {
        self.site.state.remove_policy(policy)
    }

    /// Does a deed and waits until it is in these nodes' kernels, so that no packet is judged by what was before:
    /// their epochs are others, new flows are answered as they are to be, and the epochs rest.
    pub(crate) fn change(
        &self,
        nodes: &[&str],
        questions: &[Question],
        deed: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let before = self.epochs(nodes)?;
        deed()?;
        wait::holds("the change to be in the kernel", || {
            let now = self.epochs(nodes)?;
            if now.iter().zip(&before).any(|(now, before)| now == before) {
                return Ok(false);
            }
            traffic::expect(questions)?;
            Ok(self.epochs(nodes)? == now)
        })
    }

    fn epochs(&self, nodes: &[&str]) -> Result<Vec<Value>> {
        nodes.iter().map(|name| epoch(self.node(name)?)).collect()
    }
}

/// What `POLICY_EPOCH` holds.
fn epoch(node: &Node<'_>) -> Result<Value> {
    let schema = node.schemas()?.into_iter().find(|name| !name.contains('-')).context("no schema")?;
    let path = node.bpffs().join(schema).join("maps/POLICY_EPOCH");
    let words: [&OsStr; 4] = ["map".as_ref(), "dump".as_ref(), "pinned".as_ref(), path.as_os_str()];
    let dump = bpftool(&words)?;
    ensure!(dump.as_array().is_some_and(|rows| rows.len() == 1), "no epoch: {dump}");
    Ok(dump)
}

/// Each of these targets by TCP and UDP; answered by `by`, or by nobody.
pub(crate) fn asks(from: &Namespace, targets: &[SocketAddr], by: Option<&str>) -> Vec<Question> {
    let mut questions = Vec::new();
    for target in targets {
        for proto in Proto::ALL {
            questions.push(match by {
                Some(name) => Question::answered(from, proto, *target, name),
                None => Question::silent(from, proto, *target),
            });
        }
    }
    questions
}

/// Where a server is, by both families.
pub(crate) fn both(server: &Server) -> Result<[SocketAddr; 2]> {
    Ok([server.at(false)?, server.at(true)?])
}

/// `client` reaches each server directly, or none of them.
pub(crate) fn reaches(client: &Namespace, servers: &[&Server], allowed: bool) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    for server in servers {
        questions.extend(asks(client, &both(server)?, allowed.then_some(server.pod.name.as_str())));
    }
    Ok(questions)
}
