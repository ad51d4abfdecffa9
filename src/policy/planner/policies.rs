//! Policies: their parts, one per direction, and the rules of these.
//!
//! A part is kept for as long as it says the same: a policy that gets another podSelector keeps its parts, and with them
//! the rows of all sets that they are in.

use super::Planner;
use super::uses::Uses;
use crate::model::{NetworkPolicy, ObjectName};
use crate::policy::Direction;
use crate::policy::compile::{self, Port, PortName, compile};
use crate::policy::desired::{Problem, RuleName};
use crate::policy::number::Text;
use crate::policy::selector::Selector;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// All policies.
#[derive(Debug, Default)]
pub(super) struct Policies {
    ids: HashMap<ObjectName, u32>,
    pub(super) records: HashMap<u32, PolicyRecord>,
    pub(super) parts: HashMap<u32, PartRecord>,
    /// By their number.
    pub(super) rules: HashMap<u32, RuleRecord>,
    /// Names of ports that egress rules allow: what pods make of them is part of their profile.
    pub(super) port_names: Uses<Arc<str>>,
}

/// A policy.
#[derive(Debug)]
pub(super) struct PolicyRecord {
    pub(super) name: ObjectName,
    pub(super) subject: Selector,
    /// The parts, for the directions in which it isolates.
    pub(super) parts: Vec<(Direction, u32)>,
}

/// What a policy says of one direction.
#[derive(Debug)]
pub(super) struct PartRecord {
    pub(super) policy: ObjectName,
    direction: Direction,
    /// Hash of its meaning, which goes into the numbers of sets.
    pub(super) digest: [u8; 32],
    pub(super) rules: Vec<u32>,
    /// Why it cannot be used.
    pub(super) broken: Option<String>,
    /// Named ports, which ingress resolves on the pod that is isolated.
    pub(super) names: BTreeSet<PortName>,
    /// The sets that it is in.
    pub(super) sets: BTreeSet<u64>,
}

/// A rule.
#[derive(Debug)]
pub(super) struct RuleRecord {
    /// No other rule has it, not even what comes in this one's place.
    pub(super) id: u32,
    pub(super) part: u32,
    pub(super) index: u32,
    pub(super) everyone: bool,
    pub(super) peers: Vec<u32>,
    pub(super) ports: Option<Vec<Port>>,
    /// Some of the ports are named.
    pub(super) named: bool,
}

impl Planner {
    pub(super) fn change_policy(
        &mut self,
        old: Option<&Arc<NetworkPolicy>>,
        new: Option<&Arc<NetworkPolicy>>,
    ) {
        let Some(name) = old.or(new).map(|policy| policy.name.clone()) else { return };
        if old == new {
            return;
        }
        let known = self.policies.ids.get(&name).copied();
        let before = known.and_then(|id| self.policies.records.remove(&id));
        let mut kept = Vec::new();
        if let (Some(id), Some(before)) = (known, before) {
            self.namespace(&name.namespace).subjects.remove(&before.subject, id);
            self.mark_selector(&name.namespace, before.subject);
            kept = before.parts;
        }
        let Some(new) = new else {
            for (_, part) in kept {
                self.remove_part(part);
            }
            self.policies.ids.remove(&name);
            self.forget_namespace(&name.namespace);
            return;
        };

        let id = known.unwrap_or_else(|| self.id());
        let compiled = compile(new);
        let mut parts = Vec::with_capacity(compiled.parts.len());
        for (direction, part) in compiled.parts {
            let same = kept.iter().position(|(own, id)| {
                let before = self.policies.parts.get(id);
                *own == direction && before.is_some_and(|before| before.digest == part.digest)
            });
            // What a part is replaced by may have its rules' numbers.
            let part = match same {
                Some(at) => kept.swap_remove(at).1,
                None => {
                    if let Some(at) = kept.iter().position(|(own, _)| *own == direction) {
                        let (_, old) = kept.swap_remove(at);
                        self.remove_part(old);
                    }
                    self.add_part(&name, direction, part)
                }
            };
            parts.push((direction, part));
        }
        for (_, part) in kept {
            self.remove_part(part);
        }
        self.namespace(&name.namespace).subjects.insert(&compiled.subject, id);
        self.mark_selector(&name.namespace, compiled.subject.clone());
        self.policies.ids.insert(name.clone(), id);
        self.policies.records.insert(id, PolicyRecord { name, subject: compiled.subject, parts });
    }

    fn mark_selector(&mut self, namespace: &Arc<str>, selector: Selector) {
        self.dirty.selectors.entry(Arc::clone(namespace)).or_default().push(selector);
    }

    fn add_part(&mut self, name: &ObjectName, direction: Direction, part: compile::Part) -> u32 {
        let id = self.id();
        let compile::Part { rules, broken, digest } = part;
        if let Some(why) = &broken {
            self.desired.problems.insert(Problem::Broken {
                policy: name.clone(),
                direction,
                why: why.clone(),
            });
        }
        let mut record = PartRecord {
            policy: name.clone(),
            direction,
            digest,
            rules: Vec::with_capacity(rules.len()),
            broken,
            names: BTreeSet::new(),
            sets: BTreeSet::new(),
        };
        for (index, rule) in rules.into_iter().enumerate() {
            let mut text = Text::new("rule");
            text.str(&name.namespace).str(&name.name).str(direction.name()).count(index);
            let number = text.short(|number| self.policies.rules.contains_key(&number));
            for port in rule.names() {
                record.names.insert(port.clone());
                if direction == Direction::Egress {
                    self.policies.port_names.add(&port.name);
                }
            }
            let named = rule.names().next().is_some();
            let rule = RuleRecord {
                id: self.id(),
                part: id,
                index: u32::try_from(index).unwrap_or(u32::MAX),
                everyone: rule.everyone,
                named,
                peers: rule.peers.into_iter().map(|peer| self.add_peer(peer, number)).collect(),
                ports: rule.ports,
            };
            self.policies.rules.insert(number, rule);
            self.desired.rules.insert(number, RuleName { policy: name.clone(), direction, index });
            self.touched.rules.insert(number);
            record.rules.push(number);
        }
        self.policies.parts.insert(id, record);
        id
    }

    fn remove_part(&mut self, id: u32) {
        let sets = self.policies.parts.get(&id).map(|part| part.sets.clone());
        for set in sets.into_iter().flatten() {
            self.drop_set(set);
        }
        let Some(part) = self.policies.parts.remove(&id) else { return };
        if let Some(why) = part.broken {
            let (policy, direction) = (part.policy, part.direction);
            self.desired.problems.remove(&Problem::Broken { policy, direction, why });
        }
        for number in &part.rules {
            let Some(rule) = self.policies.rules.remove(number) else { continue };
            self.desired.rules.remove(number);
            self.touched.rules.insert(*number);
            if part.direction == Direction::Egress {
                for port in rule.ports.iter().flatten() {
                    if let Port::Named(port) = port {
                        self.policies.port_names.remove(&port.name);
                    }
                }
            }
            for peer in rule.peers {
                self.remove_peer(peer, *number);
            }
        }
    }
}

#[cfg(test)]
impl Policies {
    /// What is not empty.
    pub(super) fn left(&self) -> Vec<&'static str> {
        left!(self; ids, records, parts, rules, port_names)
    }
}
