//! The answers to `netd policy`: what policies say, out of the newest snapshot, beside what the kernel judges by.

use super::ask::Refusal;
use crate::agent::policies;
use crate::agent::state::State;
use crate::answer::policy::{Direction, Effect, Evaluated, Explained, Policies, Shown};
use crate::model::ObjectName;
use crate::policy::view::{self, Question, View};
use crate::policy::{LocalPod, Sets};
use crate::reconcile::policy::local_pod;
use netd_bpf::policy::set;
use std::collections::BTreeMap;
use std::net::IpAddr;

impl From<view::Refusal> for Refusal {
    fn from(refusal: view::Refusal) -> Self {
        match refusal {
            view::Refusal::Unknown(refused) => Self::Unknown(refused),
            view::Refusal::Bad(error) => Self::Bad(error),
        }
    }
}

/// Answers from the newest snapshot, and this node's pods as the ledger has them.
fn viewed<T>(
    state: &State,
    answer: impl FnOnce(&View<'_>) -> Result<T, view::Refusal>,
) -> Result<T, Refusal> {
    let snapshot = state.store.current();
    if !snapshot.synced {
        return Err(Refusal::Failed("the source was not read yet: see netd status".to_owned()));
    }
    let ledger = state.cni.state();
    let locals: BTreeMap<u32, LocalPod> =
        ledger.entries().map(|entry| (entry.endpoint, local_pod(entry))).collect();
    let addresses: Vec<IpAddr> = policies::node_addresses(state);
    let view =
        View { model: &snapshot.model, node: Some(&state.node), locals: &locals, node_addresses: &addresses };
    Ok(answer(&view)?)
}

/// `netd policy list`.
///
/// # Errors
/// The source was not read yet.
pub(in crate::agent) fn list(state: &State, namespace: Option<&str>) -> Result<Policies, Refusal> {
    let mut list = viewed(state, |view| Ok(view.list(namespace)))?;
    let closed = policies::closed(state).into_values();
    list.closed = closed.filter(|closed| is_of(&closed.pod, namespace)).collect();
    list.closed.sort();
    Ok(list)
}

/// Whether a pod is of the namespace that is asked for. A container that goes by its number is of none.
fn is_of(pod: &str, namespace: Option<&str>) -> bool {
    namespace.is_none_or(|namespace| pod.split_once('/').is_some_and(|(own, _)| own == namespace))
}

/// `netd policy show`.
///
/// # Errors
/// There is no such policy, or the source was not read yet.
pub(in crate::agent) fn show(state: &State, name: &str) -> Result<Shown, Refusal> {
    viewed(state, |view| view.show(name))
}

/// `netd policy explain`.
///
/// # Errors
/// There is no such pod, the source was not read yet, or the kernel cannot be read.
pub(in crate::agent) fn explain(state: &State, pod: &str) -> Result<Explained, Refusal> {
    let (mut told, wanted) = viewed(state, |view| {
        let told = view.explain(pod)?;
        let wanted = named(&told.pod).map(|name| view.sets(&name)).unwrap_or_default();
        Ok((told, wanted))
    })?;
    let held = policies::held(state).map_err(|error| Refusal::failed(&error))?;
    // A pod may have several interfaces: what is worst counts.
    for (endpoint, wanted) in &wanted {
        let Some(held) = held.get(endpoint) else { continue };
        let worse = |state: &mut Option<Effect>, effect| *state = (*state).max(Some(effect));
        worse(&mut told.ingress.state, effect(wanted.ingress, held.ingress));
        worse(&mut told.egress.state, effect(wanted.egress, held.egress));
    }
    if [told.ingress.state, told.egress.state].contains(&Some(Effect::Closed)) {
        let closed = policies::closed(state);
        let reason = wanted.iter().find_map(|(endpoint, _)| closed.get(endpoint)?.reason.clone());
        let isolating = [told.ingress.policies.clone(), told.egress.policies.clone()].concat();
        let reason = reason.or_else(|| policies::unusable(state, &told.pod, &isolating));
        let reason = reason.unwrap_or_else(|| "its policies could not be put into effect".to_owned());
        told.problem = Some(format!("nothing is allowed: {reason}"));
    }
    Ok(told)
}

/// `netd policy eval`.
///
/// # Errors
/// An end is unknown, it cannot be decided, or the source was not read yet.
pub(in crate::agent) fn eval(state: &State, from: &str, to: &str) -> Result<Evaluated, Refusal> {
    let (mut told, wanted) = viewed(state, |view| {
        let told = view.eval(&Question::new(from, to)?)?;
        let ends = [(&told.from, Direction::Egress), (&told.to, Direction::Ingress)];
        let sets = ends.map(|(end, direction)| {
            let name = end.pod.as_deref().and_then(named);
            (end.name.clone(), direction, name.map(|name| view.sets(&name)).unwrap_or_default())
        });
        Ok((told, sets))
    })?;
    let held = policies::held(state).map_err(|error| Refusal::failed(&error))?;
    for (name, direction, sets) in wanted {
        let of = |sets: Sets| match direction {
            Direction::Ingress => sets.ingress,
            Direction::Egress => sets.egress,
        };
        let effects =
            sets.iter().filter_map(|(endpoint, sets)| Some(effect(of(*sets), of(*held.get(endpoint)?))));
        match effects.max() {
            Some(Effect::Closed) => told.notes.push(format!(
                "{direction} of {name} is closed meanwhile: its policies could not be put into effect: see netd status"
            )),
            Some(Effect::Pending) => {
                told.notes.push(format!("a change for {direction} of {name} is on its way to the kernel"));
            }
            Some(Effect::InForce) | None => {}
        }
    }
    Ok(told)
}

fn named(text: &str) -> Option<ObjectName> {
    let (namespace, name) = text.split_once('/')?;
    Some(ObjectName::new(namespace, name))
}

const fn effect(wanted: u64, held: u64) -> Effect {
    if held == set::CLOSED {
        Effect::Closed
    } else if held == wanted {
        Effect::InForce
    } else {
        Effect::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_closed_pods_of_the_namespace_that_is_asked_for_count() {
        let pods = ["shop/big-0", "shopping/cart", "c2", "number 7"];
        let of = |namespace| pods.map(|pod| is_of(pod, namespace));
        assert_eq!(of(Some("shop")), [true, false, false, false]);
        assert_eq!(of(Some("blog")), [false; 4]);
        assert_eq!(of(None), [true; 4]);
    }

    #[test]
    fn what_the_kernel_judges_by_is_held_against_what_is_wanted() {
        let set = set::MARK | 5;
        assert_eq!(effect(set, set), Effect::InForce);
        assert_eq!(effect(set::OPEN, set::OPEN), Effect::InForce);
        assert_eq!(effect(set, set::OPEN), Effect::Pending);
        assert_eq!(effect(set::OPEN, set), Effect::Pending);
        assert_eq!(effect(set, set::CLOSED), Effect::Closed);
        assert_eq!(effect(set::CLOSED, set::CLOSED), Effect::Closed);
        assert!(Effect::Closed > Effect::Pending && Effect::Pending > Effect::InForce);
    }
}
