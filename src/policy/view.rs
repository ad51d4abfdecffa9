//! Policies as people ask for them: whom each selects, whom its rules mean now, what a pod may do and by which of them.
//!
//! Selectors and `policyTypes` are read as the planner reads them, and a verdict is that of tables which the planner
//! makes for the question, so that the answers of an agent and those of a folder of YAML are the same. Pure.

mod eval;
mod rules;

pub use eval::Question;

use super::compile::{Policy as Compiled, compile};
use super::{Direction, Input, LocalPod, Planner, Sets};
use crate::answer::policy::{self as answer, Explained, Policies, Policy, Rule, Shown, Side};
use crate::answer::{Refused, names};
use crate::model::{Model, NetworkPolicy, ObjectName, Pod};
use rules::{Destinations, Rules};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Who is asked, and what is known there.
#[derive(Clone, Copy, Debug)]
pub struct View<'m> {
    /// The cluster.
    pub model: &'m Model,
    /// The node that is asked; none: a folder, whose pods all count.
    pub node: Option<&'m str>,
    /// The pods of that node.
    pub locals: &'m BTreeMap<u32, LocalPod>,
    /// That node's own addresses, beside those that its Node object has.
    pub node_addresses: &'m [IpAddr],
}

/// Why a question is not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such thing, or more than one.
    #[error("{}", .0.error)]
    Unknown(Refused),
    /// It cannot be understood, or not be decided.
    #[error("{0}")]
    Bad(String),
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self::Unknown(refused)
    }
}

impl From<Direction> for answer::Direction {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self::Ingress,
            Direction::Egress => Self::Egress,
        }
    }
}

impl<'m> View<'m> {
    /// All policies, or those of a namespace.
    #[must_use]
    pub fn list(&self, namespace: Option<&str>) -> Policies {
        let subjects = self.subjects();
        let wanted = |name: &ObjectName| namespace.is_none_or(|namespace| *name.namespace == *namespace);
        let policies = self.model.policies.iter().filter(|(name, _)| wanted(name)).map(|(name, policy)| {
            let compiled = compile(policy);
            let isolates = isolates(&compiled);
            let count = |direction, rules: usize| if isolates.contains(&direction) { rules } else { 0 };
            let spec = &policy.spec;
            Policy {
                policy: name.to_string(),
                pods: selected(name, &compiled, &subjects).count(),
                ingress_rules: count(answer::Direction::Ingress, spec.ingress.iter().flatten().count()),
                egress_rules: count(answer::Direction::Egress, spec.egress.iter().flatten().count()),
                isolates,
            }
        });
        Policies { node: self.node.map(str::to_owned), policies: policies.collect(), closed: Vec::new() }
    }

    /// One policy, with whom its rules mean.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn show(&self, asked: &str) -> Result<Shown, Refusal> {
        let name = names::pick("NetworkPolicy", asked, self.model.policies.keys())?;
        let Some(policy) = self.model.policies.get(&name) else {
            return Err(Refusal::Bad(format!("there is no NetworkPolicy {name}")));
        };
        let compiled = compile(policy);
        let subjects = self.subjects();
        let pods: Vec<&Subject<'_>> = selected(&name, &compiled, &subjects).collect();
        let objects: Vec<&Pod> = pods.iter().filter_map(|subject| subject.pod).collect();
        let isolates = isolates(&compiled);
        let rules = Rules::of(self.model);
        let rules = Direction::ALL.into_iter().flat_map(|direction| {
            let means_something = isolates.contains(&direction.into());
            let mut told = rules.told(policy, direction, Destinations(&objects));
            told.iter_mut().for_each(|rule| rule.ignored = !means_something);
            told
        });
        Ok(Shown {
            node: self.node.map(str::to_owned),
            policy: name.to_string(),
            selector: rules::text(&compiled.subject),
            pods: pods.iter().map(|subject| subject.name.to_string()).collect(),
            rules: rules.collect(),
            isolates,
        })
    }

    /// What one pod may do.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn explain(&self, asked: &str) -> Result<Explained, Refusal> {
        let name = self.pick_pod(asked)?;
        let pod = self.model.pods.get(&name).map(Arc::as_ref);
        let exempt = pod.and_then(exempt);
        let subject = Subject { name: &name, pod };
        let rules = Rules::of(self.model);
        let side = |direction| {
            let isolating = self.isolating(&subject, direction);
            let objects: Vec<&Pod> = pod.into_iter().collect();
            let told = isolating.iter().flat_map(|policy| {
                rules.told(policy, direction, Destinations(&objects)).into_iter().collect::<Vec<Rule>>()
            });
            Side {
                isolated: !isolating.is_empty(),
                policies: isolating.iter().map(|policy| policy.name.to_string()).collect(),
                rules: told.collect(),
                state: None,
            }
        };
        Ok(Explained {
            node: self.node.map(str::to_owned),
            runs_on: self.runs_on(&name).map(|node| node.to_string()),
            addresses: self.addresses(&name),
            exempt: exempt.map(str::to_owned),
            problem: None,
            ingress: side(Direction::Ingress),
            egress: side(Direction::Egress),
            pod: name.to_string(),
        })
    }

    /// The sets that a pod of this node is to have, by its endpoint; none: it is not here.
    #[must_use]
    pub fn sets(&self, pod: &ObjectName) -> Vec<(u32, Sets)> {
        let locals: BTreeMap<u32, LocalPod> =
            self.local(pod).map(|one| (one.endpoint, one.clone())).collect();
        let planner = self.plan_part(&[pod], &locals, NetworkPolicy::clone);
        planner.desired().pods.iter().map(|(endpoint, sets)| (*endpoint, *sets)).collect()
    }

    /// Plans a node that has these pods only. Policies of other namespaces than the first one's, which is asked, say
    /// nothing about it.
    fn plan_part(
        &self,
        pods: &[&ObjectName],
        locals: &BTreeMap<u32, LocalPod>,
        read: impl Fn(&NetworkPolicy) -> NetworkPolicy,
    ) -> Planner {
        let objects = pods.iter().filter_map(|name| self.model.pods.get_key_value(*name));
        let namespace = pods.first().map(|pod| &pod.namespace);
        let here = self.model.policies.iter().filter(|(name, _)| Some(&name.namespace) == namespace);
        let model = Model {
            namespaces: self.model.namespaces.clone(),
            pods: objects.map(|(name, pod)| (name.clone(), Arc::clone(pod))).collect(),
            policies: here.map(|(name, policy)| (name.clone(), Arc::new(read(policy)))).collect(),
            ..Model::default()
        };
        let mut planner = Planner::new();
        planner.update(Input { model: &model, locals, node: "", node_addresses: &[] });
        planner
    }

    /// The policies that isolate a pod in a direction, by name.
    fn isolating(&self, subject: &Subject<'_>, direction: Direction) -> Vec<&'m NetworkPolicy> {
        if subject.pod.and_then(exempt).is_some() {
            return Vec::new();
        }
        let here = self.model.policies.iter().filter(|(name, _)| name.namespace == subject.name.namespace);
        let policies = here.filter(|(name, policy)| {
            let compiled = compile(policy);
            compiled.parts.iter().any(|(one, _)| *one == direction) && selects(name, &compiled, subject)
        });
        policies.map(|(_, policy)| &**policy).collect()
    }

    /// The pods that are counted, by name: those of the node that is asked, or all of a folder.
    fn subjects(&self) -> Vec<Subject<'_>> {
        let names: BTreeSet<&ObjectName> = match self.node {
            Some(_) => self.locals.values().filter_map(|local| local.pod.as_ref()).collect(),
            None => self.model.pods.keys().collect(),
        };
        let subject = |name| Subject { name, pod: self.model.pods.get(name).map(Arc::as_ref) };
        let all = names.into_iter().map(subject);
        all.filter(|subject| subject.pod.and_then(exempt).is_none()).collect()
    }

    /// The pod that is meant.
    fn pick_pod(&self, asked: &str) -> Result<ObjectName, Refusal> {
        let here = self.locals.values().filter_map(|local| local.pod.as_ref());
        Ok(names::pick("pod", asked, self.model.pods.keys().chain(here))?)
    }

    fn local(&self, name: &ObjectName) -> impl Iterator<Item = &'m LocalPod> {
        self.locals.values().filter(move |local| local.pod.as_ref() == Some(name))
    }

    /// Of a pod of this node the ledger knows best.
    fn addresses(&self, name: &ObjectName) -> Vec<IpAddr> {
        let here: Vec<IpAddr> = self.local(name).flat_map(|local| local.addresses.iter().copied()).collect();
        if here.is_empty() {
            self.model.pods.get(name).map(|pod| pod.ips.clone()).unwrap_or_default()
        } else {
            here
        }
    }

    fn runs_on(&self, name: &ObjectName) -> Option<Arc<str>> {
        let node = self.node.filter(|_| self.local(name).next().is_some()).map(Arc::from);
        node.or_else(|| self.model.pods.get(name)?.node.clone())
    }
}

/// A pod that policies may select. Of one that the model does not know (yet) nothing is known but its name.
#[derive(Clone, Copy, Debug)]
struct Subject<'m> {
    name: &'m ObjectName,
    pod: Option<&'m Pod>,
}

/// Why no policy selects the pod, if none can.
fn exempt(pod: &Pod) -> Option<&'static str> {
    if pod.host_network {
        Some("it uses its node's network, and no policy selects it")
    } else if pod.finished {
        Some("it has ended, and has no address any more")
    } else {
        None
    }
}

fn isolates(compiled: &Compiled) -> Vec<answer::Direction> {
    let mut all: Vec<_> = compiled.parts.iter().map(|(direction, _)| (*direction).into()).collect();
    all.sort_unstable();
    all
}

fn selects(policy: &ObjectName, compiled: &Compiled, subject: &Subject<'_>) -> bool {
    // Of one that is not known any may.
    let is_meant = |pod: &Pod| compiled.subject.matches(|key| pod.labels.get(key).map(String::as_str));
    policy.namespace == subject.name.namespace && subject.pod.is_none_or(is_meant)
}

fn selected<'s, 'm>(
    policy: &ObjectName,
    compiled: &Compiled,
    subjects: &'s [Subject<'m>],
) -> impl Iterator<Item = &'s Subject<'m>> {
    // They are in the order of their names, and so those of a namespace are side by side.
    let first = subjects.partition_point(|subject| subject.name.namespace < policy.namespace);
    let here = subjects.get(first..).unwrap_or_default().iter();
    here.take_while(|subject| subject.name.namespace == policy.namespace)
        .filter(|subject| selects(policy, compiled, subject))
}

#[cfg(test)]
mod tests;
