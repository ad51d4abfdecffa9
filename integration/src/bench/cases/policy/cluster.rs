//! A cluster with policies, by number: the same pods whatever the number of policies.
//!
//! | what | which |
//! |---|---|
//! | namespace *n* | team *n* mod 10 |
//! | pod *i* | namespace *i* mod namespaces, app *i* / namespaces mod 10; on other nodes 10.128.0.0 + *i* |
//! | policy *i* | namespace and app of pod *i*, which it isolates in both directions |
//! | what it allows | the app's own pods; from another team's pods of some app two ports; to a CIDR but for half of it one port |

use anyhow::Result;
use netd_integration::state::{Policy, State, Workload, namespace, policy};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

const TEAMS: u32 = 10;
const APPS: u32 = 10;
const FIRST_POD: u32 = u32::from_be_bytes([10, 128, 0, 0]);
/// Where pods are that are not on this node.
const ELSEWHERE: &str = "elsewhere";

/// How much there is of everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cluster {
    pub(super) namespaces: u32,
    pub(super) pods: u32,
    /// So many of them are on this node, one for each of the first namespaces.
    pub(super) local: u32,
    pub(super) policies: u32,
}

/// What a pod's namespace is called.
pub(super) fn namespace_name(n: u32) -> String {
    format!("ns{n:03}")
}

fn app(app: u32) -> String {
    format!("app{}", app % APPS)
}

impl Cluster {
    /// A pod of the cluster, at `node` if it is one of this node's.
    pub(super) fn pod(self, i: u32, node: &str) -> Workload {
        let local = i < self.local;
        Workload {
            namespace: namespace_name(i % self.namespaces),
            name: format!("pod{i:05}"),
            node: if local { node } else { ELSEWHERE }.into(),
            labels: labels(i / self.namespaces),
            ips: if local { Vec::new() } else { vec![Ipv4Addr::from(FIRST_POD + i).into()] },
            ..Workload::default()
        }
    }

    /// The first pod on another node that is of one namespace and app with pod 0.
    pub(super) const fn like_the_first(self) -> u32 {
        self.namespaces * APPS
    }

    fn policy(self, i: u32) -> Policy {
        let (own, other, team) = (app(i / self.namespaces), app(3 * i + 1), 7 * i % TEAMS);
        let (port, block) = (8_000 + i % 50, i % 256);
        let spec = format!(
            "{{podSelector: {{matchLabels: {{app: {own}}}}}, policyTypes: [Ingress, Egress], \
             ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {own}}}}}}}]}}, \
             {{from: [{{namespaceSelector: {{matchLabels: {{team: t{team}}}}}, \
             podSelector: {{matchLabels: {{app: {other}}}}}}}], \
             ports: [{{port: {port}}}, {{port: 53, protocol: UDP}}]}}], \
             egress: [{{to: [{{podSelector: {{matchLabels: {{app: {own}}}}}}}]}}, \
             {{to: [{{ipBlock: {{cidr: 172.16.{block}.0/24, except: [172.16.{block}.128/25]}}}}], \
             ports: [{{port: 443}}]}}]}}"
        );
        policy(&namespace_name(i % self.namespaces), &format!("policy{i:05}"), spec)
    }

    /// Writes everything: namespaces in one file, each pod and each policy in its own.
    pub(super) fn write(self, state: &State, node: &str) -> Result<()> {
        let mut namespaces = String::new();
        for n in 0..self.namespaces {
            write!(namespaces, "{}", namespace(&namespace_name(n), &[("team", &format!("t{}", n % TEAMS))]))?;
        }
        state.put("namespaces.yaml", &namespaces)?;
        (0..self.pods).try_for_each(|i| put(state, &self.pod(i, node)))?;
        (0..self.policies).try_for_each(|i| state.policy(&self.policy(i)))
    }
}

/// The labels of all pods of an app, by its number.
pub(super) fn labels(number: u32) -> BTreeMap<String, String> {
    BTreeMap::from([("app".into(), app(number))])
}

/// The pod's own file.
pub(super) fn file(pod: &Workload) -> String {
    format!("pod-{}-{}.yaml", pod.namespace, pod.name)
}

/// Writes it.
pub(super) fn put(state: &State, pod: &Workload) -> Result<()> {
    state.put(&file(pod), &pod.yaml())
}
