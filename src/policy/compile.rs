//! A NetworkPolicy, compiled: whom it selects, and per direction its rules in a form without synonyms.
//!
//! What the API means by a missing or empty field is decided here and nowhere else. A direction that cannot be
//! read is *broken*, with the reason: the pods that it isolates are closed in it.

use super::Direction;
use super::blocks::{block, contains, place};
use super::number::Text;
use super::selector::{Selector, Test};
use crate::model::{NetworkPolicy, ObjectName};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use netd_bpf::policy::{Block, point};
use std::sync::Arc;

/// Protocols with ports.
const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// Which namespaces' pods a peer is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Scope {
    /// The policy's own.
    Own(Arc<str>),
    /// Those with such labels.
    Selected(Selector),
}

/// The other end that a rule allows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Peer {
    /// Pods.
    Pods {
        /// Of which namespaces.
        scope: Scope,
        /// With which labels.
        pods: Selector,
    },
    /// Addresses.
    Block {
        /// Those in it,
        cidr: Block,
        /// but not in one of these, which lie in it, apart from each other, in the order of their addresses.
        except: Vec<Block>,
    },
    /// All pods that have a port of this name: what a rule without peers means by it.
    Named(PortName),
}

/// A port that each pod may have at another number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PortName {
    /// IANA protocol number.
    pub(super) proto: u8,
    /// The container port's name.
    pub(super) name: Arc<str>,
}

/// Ports that a rule allows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Port {
    /// From one [`point`] to another, which it includes.
    Range(u32, u32),
    /// Whatever the destination calls so.
    Named(PortName),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    /// Everybody is a peer.
    pub(super) everyone: bool,
    /// The peers, none twice; if everybody is one, those that the rule gives more than others.
    pub(super) peers: Vec<Peer>,
    /// The ports, none twice; nothing: all of any protocol.
    pub(super) ports: Option<Vec<Port>>,
}

impl Rule {
    /// The named ports.
    pub(super) fn names(&self) -> impl Iterator<Item = &PortName> {
        self.ports.iter().flatten().filter_map(|port| match port {
            Port::Named(name) => Some(name),
            Port::Range(..) => None,
        })
    }
}

/// What a policy says of one direction.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// In the order of the policy.
    pub(super) rules: Vec<Rule>,
    /// Why it cannot be used.
    pub(super) broken: Option<String>,
    /// Hash of its meaning.
    pub(super) digest: [u8; 32],
}

/// A policy.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// The pods of its namespace that it isolates.
    pub(super) subject: Selector,
    /// What it says, for the directions in which it isolates.
    pub(super) parts: Vec<(Direction, Part)>,
}

/// Compiles a policy.
pub(super) fn compile(policy: &NetworkPolicy) -> Policy {
    let (spec, namespace) = (&policy.spec, &policy.name.namespace);
    let subject = spec.pod_selector.as_ref().map_or_else(|| Ok(Selector::default()), Selector::compile);
    let directions = Direction::ALL.into_iter().filter(|direction| isolates(spec, *direction));
    let parts = directions.map(|direction| {
        let rules = match (&subject, direction) {
            (Err(why), _) => Err(format!("spec.podSelector: {why}")),
            (Ok(_), Direction::Ingress) => {
                let rules = spec.ingress.iter().flatten();
                rules
                    .map(|rule| {
                        compile_rule(namespace, direction, rule.from.as_deref(), rule.ports.as_deref())
                    })
                    .collect()
            }
            (Ok(_), Direction::Egress) => {
                let rules = spec.egress.iter().flatten();
                rules
                    .map(|rule| compile_rule(namespace, direction, rule.to.as_deref(), rule.ports.as_deref()))
                    .collect()
            }
        };
        (direction, part(&policy.name, direction, rules))
    });
    let parts = parts.collect();
    // Nobody knows whom it selects: all that it may.
    Policy { subject: subject.unwrap_or_default(), parts }
}

/// `policyTypes`, with its default: Ingress, and Egress if there is an egress rule.
fn isolates(spec: &api::NetworkPolicySpec, direction: Direction) -> bool {
    match (spec.policy_types.as_deref().unwrap_or_default(), direction) {
        ([], Direction::Ingress) => true,
        ([], Direction::Egress) => spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        (types, Direction::Ingress) => types.iter().any(|one| one == "Ingress"),
        (types, Direction::Egress) => types.iter().any(|one| one == "Egress"),
    }
}

fn part(name: &ObjectName, direction: Direction, rules: Result<Vec<Rule>, String>) -> Part {
    let (rules, broken) = match rules {
        Ok(rules) => (rules, None),
        Err(why) => (Vec::new(), Some(why)),
    };
    let mut text = Text::new("part");
    text.str(&name.namespace).str(&name.name).str(direction.name()).count(rules.len());
    rules.iter().for_each(|rule| write_rule(&mut text, rule));
    text.str(broken.as_deref().unwrap_or_default());
    Part { rules, broken, digest: text.digest() }
}

fn compile_rule(
    namespace: &Arc<str>,
    direction: Direction,
    peers: Option<&[api::NetworkPolicyPeer]>,
    ports: Option<&[api::NetworkPolicyPort]>,
) -> Result<Rule, String> {
    let (peers, ports) = (peers.unwrap_or_default(), ports.unwrap_or_default());
    let mut rule = Rule { everyone: peers.is_empty(), peers: Vec::new(), ports: None };
    for one in peers {
        rule.peers.push(peer(namespace, one)?);
    }
    if !ports.is_empty() {
        let mut list = ports.iter().map(port).collect::<Result<Vec<Port>, String>>()?;
        list.sort_unstable();
        list.dedup();
        rule.ports = Some(list);
    }
    if rule.everyone && direction == Direction::Egress {
        rule.peers = rule.names().cloned().map(Peer::Named).collect();
    }
    rule.peers.sort_unstable();
    rule.peers.dedup();
    Ok(rule)
}

fn peer(namespace: &Arc<str>, peer: &api::NetworkPolicyPeer) -> Result<Peer, String> {
    let pods = peer.pod_selector.as_ref().map(Selector::compile).transpose()?;
    let namespaces = peer.namespace_selector.as_ref().map(Selector::compile).transpose()?;
    match (&peer.ip_block, pods, namespaces) {
        (Some(ip_block), None, None) => {
            let cidr = cidr(&ip_block.cidr)?;
            let except = ip_block.except.iter().flatten().map(|text| self::cidr(text));
            let mut except = except.collect::<Result<Vec<Block>, String>>()?;
            // What lies elsewhere takes nothing away, and what lies in another exception no more than that.
            except.retain(|inner| contains(&cidr, inner));
            except.sort_unstable_by_key(place);
            except.dedup_by(|inner, outer| contains(outer, inner));
            Ok(Peer::Block { cidr, except })
        }
        (None, Some(pods), None) => Ok(Peer::Pods { scope: Scope::Own(Arc::clone(namespace)), pods }),
        (None, pods, Some(namespaces)) => {
            Ok(Peer::Pods { scope: Scope::Selected(namespaces), pods: pods.unwrap_or_default() })
        }
        (None, None, None) => Err("a peer names neither pods nor addresses".to_owned()),
        (Some(block), ..) => Err(format!("ipBlock {} stands beside a selector", block.cidr)),
    }
}

fn cidr(text: &str) -> Result<Block, String> {
    let net: IpNet = text.parse().map_err(|_| format!("{text:?} is not a CIDR block"))?;
    Ok(block(net))
}

fn port(port: &api::NetworkPolicyPort) -> Result<Port, String> {
    let proto = match port.protocol.as_deref() {
        None | Some("" | "TCP") => TCP,
        Some("UDP") => UDP,
        Some("SCTP") => SCTP,
        Some(other) => return Err(format!("protocol {other:?} is not TCP, UDP or SCTP")),
    };
    let number = |number: i32| u16::try_from(number).map_err(|_| format!("{number} is not a port"));
    let (first, last) = match (&port.port, port.end_port) {
        (None, _) => (0, u16::MAX),
        (Some(IntOrString::String(name)), _) => {
            return Ok(Port::Named(PortName { proto, name: name.as_str().into() }));
        }
        (Some(IntOrString::Int(first)), end) => (number(*first)?, number(end.unwrap_or(*first))?),
    };
    if last < first {
        return Err(format!("endPort {last} is below port {first}"));
    }
    Ok(Port::Range(point(proto, first), point(proto, last)))
}

fn write_rule(text: &mut Text, rule: &Rule) {
    text.number(rule.everyone.into()).count(rule.peers.len());
    for peer in &rule.peers {
        match peer {
            Peer::Pods { scope: Scope::Own(namespace), pods } => {
                text.str("own").str(namespace);
                write_selector(text, pods);
            }
            Peer::Pods { scope: Scope::Selected(namespaces), pods } => {
                text.str("selected");
                write_selector(text, namespaces);
                write_selector(text, pods);
            }
            Peer::Block { cidr, except } => {
                text.str("block").count(except.len());
                for block in [cidr].into_iter().chain(except) {
                    write_block(text, block);
                }
            }
            Peer::Named(PortName { proto, name }) => {
                text.str("named").number((*proto).into()).str(name);
            }
        }
    }
    text.count(rule.ports.as_ref().map_or(0, |ports| 1 + ports.len()));
    for port in rule.ports.iter().flatten() {
        match port {
            Port::Range(first, last) => text.str("range").number((*first).into()).number((*last).into()),
            Port::Named(PortName { proto, name }) => text.str("named").number((*proto).into()).str(name),
        };
    }
}

/// Writes a block.
pub(super) fn write_block(text: &mut Text, block: &Block) {
    text.number(block.prefix.into()).bytes(&super::blocks::bits(block.addr).to_be_bytes());
}

fn write_selector(text: &mut Text, selector: &Selector) {
    text.count(selector.requirements().len());
    for requirement in selector.requirements() {
        text.str(&requirement.key);
        let (test, values): (_, &[Arc<str>]) = match &requirement.test {
            Test::In(values) => ("in", values),
            Test::NotIn(values) => ("not in", values),
            Test::Exists => ("exists", &[]),
            Test::DoesNotExist => ("does not exist", &[]),
        };
        text.str(test).count(values.len());
        for value in values {
            text.str(value);
        }
    }
}
