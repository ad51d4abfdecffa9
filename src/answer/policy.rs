//! `netd policy list|show|explain|eval`: NetworkPolicies, whom they isolate, what they allow; and in the words of
//! policy why a packet was dropped.

use super::Answer;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// In which direction a pod is isolated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// For what it is sent.
    Ingress,
    /// For what it sends.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// A rule, of the direction that is spoken of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleName {
    /// Its policy, `namespace/name`; none: it is gone, and nobody remembers it.
    pub policy: Option<String>,
    /// Which of the policy's rules of this direction, counted from 1.
    pub index: Option<usize>,
    /// Its number in the datapath.
    pub number: u32,
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.policy, self.index) {
            (Some(policy), Some(index)) => write!(f, "{policy} rule {index}"),
            (Some(policy), None) => f.write_str(policy),
            (None, _) => write!(f, "rule number {} (gone)", self.number),
        }
    }
}

/// Why policy drops a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    /// The pod that is isolated: `namespace/name`, or its container; none: it is gone.
    pub pod: Option<String>,
    /// In which direction.
    pub direction: Direction,
    /// The policies that isolate it; empty: it is closed, or they are gone.
    pub policies: Vec<String>,
    /// Its policies could not be put into effect, or are not known yet: nothing is allowed.
    pub closed: bool,
    /// The rule that denied it; none: no rule allows it.
    pub rule: Option<RuleName>,
    /// The packet answers a flow that is allowed no longer.
    pub reply: bool,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reply {
            f.write_str("answers a flow that is not allowed any more: ")?;
        }
        write!(f, "{} of {} is ", self.direction, self.pod.as_deref().unwrap_or("a pod that is gone"))?;
        if self.closed {
            return f.write_str("closed: its policies could not be put into effect: see netd status");
        }
        match self.policies.as_slice() {
            [] => f.write_str("isolated by policies that are gone meanwhile")?,
            some => write!(f, "isolated by {}", and(some))?,
        }
        match &self.rule {
            Some(rule) => write!(f, "; {rule} denies it"),
            None => f.write_str("; no rule allows it"),
        }
    }
}

/// `a`, `a and b`, `a, b and c`.
#[must_use]
pub fn and(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [others @ .., last] => format!("{} and {last}", others.join(", ")),
    }
}

/// `netd.policies/v1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policies {
    /// The node whose pods are counted; none: all pods of a folder.
    pub node: Option<String>,
    /// In the order of their names.
    pub policies: Vec<Policy>,
    /// Pods of this node to or from which nothing is allowed, because their policies could not be put into effect.
    pub closed: Vec<Closed>,
}

impl Answer for Policies {
    const SCHEMA: &'static str = "netd.policies/v1";
}

/// A pod that is closed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Closed {
    /// `namespace/name`, or its container.
    pub pod: String,
    /// Why, if that is known.
    pub reason: Option<String>,
}

/// A policy in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// `namespace/name`.
    pub policy: String,
    /// In which directions it isolates the pods that it selects.
    pub isolates: Vec<Direction>,
    /// Pods that it selects.
    pub pods: usize,
    /// Its rules for what they are sent; 0 if it does not isolate in this direction.
    pub ingress_rules: usize,
    /// The same for what they send.
    pub egress_rules: usize,
}

/// `netd.policy/v1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The node whose pods are told; none: all pods of a folder.
    pub node: Option<String>,
    /// `namespace/name`.
    pub policy: String,
    /// In which directions it isolates.
    pub isolates: Vec<Direction>,
    /// Which pods of its namespace it selects, as kubectl writes selectors; empty: all.
    pub selector: String,
    /// The pods that it selects.
    pub pods: Vec<String>,
    /// Its rules, those for ingress first.
    pub rules: Vec<Rule>,
}

impl Answer for Shown {
    const SCHEMA: &'static str = "netd.policy/v1";
}

/// What a rule allows, as far as it can be told now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Its policy.
    pub policy: String,
    /// Of its rules for this direction …
    pub direction: Direction,
    /// … the first, second, …
    pub index: usize,
    /// `policyTypes` leaves this direction out: the rule means nothing.
    pub ignored: bool,
    /// It names no peers: everybody.
    pub any_peer: bool,
    /// From or to whom.
    pub peers: Vec<Peer>,
    /// It names no ports: every port of every protocol.
    pub any_port: bool,
    /// On which ports of the one that is sent to.
    pub ports: Vec<Port>,
}

/// A peer of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Which pods, as kubectl writes selectors; none: it is a block.
    pub pod_selector: Option<String>,
    /// Of which namespaces, likewise; none: of the policy's own.
    pub namespace_selector: Option<String>,
    /// A block of addresses.
    pub block: Option<String>,
    /// What is not of it.
    pub except: Vec<String>,
    /// The pods that it matches now: of a block, those with an address in it.
    pub pods: Vec<String>,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(block) = &self.block {
            f.write_str(block)?;
            return match self.except.as_slice() {
                [] => Ok(()),
                some => write!(f, " except {}", some.join(", ")),
            };
        }
        match self.pod_selector.as_deref().unwrap_or_default() {
            "" => f.write_str("all pods")?,
            some => write!(f, "pods {some}")?,
        }
        match self.namespace_selector.as_deref() {
            None => Ok(()),
            Some("") => f.write_str(" of all namespaces"),
            Some(some) => write!(f, " of namespaces {some}"),
        }
    }
}

/// Ports of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The first; none: all, or it is named.
    pub port: Option<u16>,
    /// The last, if they are several.
    pub end_port: Option<u16>,
    /// Of a container of the pod that is sent to.
    pub name: Option<String>,
    /// What the name stands for now.
    pub resolved: Vec<Resolved>,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.port, self.end_port) {
            (Some(name), ..) => write!(f, "{name}/{}", self.protocol),
            (None, Some(first), Some(last)) => write!(f, "{first}-{last}/{}", self.protocol),
            (None, Some(port), None) => write!(f, "{port}/{}", self.protocol),
            (None, None, _) => write!(f, "all {}", self.protocol),
        }
    }
}

/// What a named port is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// The number.
    pub port: u16,
    /// Of these pods.
    pub pods: Vec<String>,
}

/// `netd.policy-explain/v1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// The node that was asked; none: a folder.
    pub node: Option<String>,
    /// `namespace/name`.
    pub pod: String,
    /// The pod's node, if it is known.
    pub runs_on: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Why no policy selects it: it uses its node's network, or has ended.
    pub exempt: Option<String>,
    /// Why its policies are not in force.
    pub problem: Option<String>,
    /// For what it is sent.
    pub ingress: Side,
    /// For what it sends.
    pub egress: Side,
}

impl Answer for Explained {
    const SCHEMA: &'static str = "netd.policy-explain/v1";
}

/// What is allowed in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// Some policy isolates the pod: what no rule allows is dropped.
    pub isolated: bool,
    /// Those that do.
    pub policies: Vec<String>,
    /// Their rules.
    pub rules: Vec<Rule>,
    /// How far that is; none: not a pod of the node that was asked.
    pub state: Option<Effect>,
}

/// How far policies are in effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The kernel judges by them.
    InForce,
    /// A change is on its way to the kernel.
    Pending,
    /// They could not be put into effect: nothing is allowed.
    Closed,
}

/// `netd.policy-eval/v1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluated {
    /// The node that was asked; none: a folder.
    pub node: Option<String>,
    /// Who would begin.
    pub from: End,
    /// With whom.
    pub to: End,
    /// `tcp`, `udp`, `sctp` or `icmp`.
    pub protocol: String,
    /// Of the one that is sent to; none for a protocol without.
    pub port: Option<u16>,
    /// All cases are allowed.
    pub allowed: bool,
    /// One for each family of addresses that both have; one where addresses do not matter.
    pub cases: Vec<Case>,
    /// What else there is to know.
    pub notes: Vec<String>,
}

impl Answer for Evaluated {
    const SCHEMA: &'static str = "netd.policy-eval/v1";
}

/// One end of what is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// A pod, an address, or the other end's node.
    pub name: String,
    /// The pod: by its name, or by an address that is its.
    pub pod: Option<String>,
}

/// The verdict for one family of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// The address of who begins; none: it has none (yet).
    pub from: Option<IpAddr>,
    /// The other's address, likewise.
    pub to: Option<IpAddr>,
    /// Both directions allow it.
    pub allowed: bool,
    /// Why no policy is asked.
    pub exempt: Option<String>,
    /// Of who begins; none: it is no pod.
    pub egress: Option<Verdict>,
    /// Of the other.
    pub ingress: Option<Verdict>,
}

/// What the policies of one pod say in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The pod.
    pub pod: String,
    /// May it be?
    pub allowed: bool,
    /// Some policy isolates the pod in this direction.
    pub isolated: bool,
    /// Those that do.
    pub policies: Vec<String>,
    /// The rule that decided; none: none matches, or none is needed.
    pub rule: Option<RuleName>,
}

impl Verdict {
    /// Why, in words.
    #[must_use]
    pub fn because(&self) -> String {
        if !self.isolated {
            return "no policy isolates it".to_owned();
        }
        let by = format!("isolated by {}", and(&self.policies));
        match (&self.rule, self.allowed) {
            (Some(rule), true) => format!("{by}; {rule} allows it"),
            (None, true) => format!("{by}; no rule is needed"),
            (Some(rule), false) => format!("{by}; {rule} denies it"),
            (None, false) => format!("{by}; no rule allows it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied() -> Denied {
        Denied {
            pod: Some("shop/db-0".to_owned()),
            direction: Direction::Ingress,
            policies: vec!["shop/default-deny".to_owned(), "shop/db-allow".to_owned()],
            closed: false,
            rule: None,
            reply: false,
        }
    }

    #[test]
    fn a_denial_is_a_sentence() {
        let rule = RuleName { policy: Some("shop/no".to_owned()), index: Some(2), number: 7 };
        let forgotten = RuleName { policy: None, index: None, number: 7 };
        let all = [
            denied(),
            Denied { policies: vec!["shop/default-deny".to_owned()], reply: true, ..denied() },
            Denied { rule: Some(rule), direction: Direction::Egress, ..denied() },
            Denied { rule: Some(forgotten), policies: Vec::new(), ..denied() },
            Denied { closed: true, policies: Vec::new(), ..denied() },
            Denied { pod: None, policies: Vec::new(), ..denied() },
        ];
        let lines: Vec<String> = all.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        ingress of shop/db-0 is isolated by shop/default-deny and shop/db-allow; no rule allows it
        answers a flow that is not allowed any more: ingress of shop/db-0 is isolated by shop/default-deny; no rule allows it
        egress of shop/db-0 is isolated by shop/default-deny and shop/db-allow; shop/no rule 2 denies it
        ingress of shop/db-0 is isolated by policies that are gone meanwhile; rule number 7 (gone) denies it
        ingress of shop/db-0 is closed: its policies could not be put into effect: see netd status
        ingress of a pod that is gone is isolated by policies that are gone meanwhile; no rule allows it
        ");
    }

    #[test]
    fn names_are_joined_as_people_do() {
        let names = |n: usize| ["a", "b", "c"].iter().take(n).map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!([0, 1, 2, 3].map(|n| and(&names(n))), ["", "a", "a and b", "a, b and c"]);
    }
}
