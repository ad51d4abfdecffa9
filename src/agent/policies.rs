//! What is known of policies beside the tables: names of sets and rules, pods that are closed, the node's addresses.

use super::drops::Names as _;
use super::state::State;
use crate::answer::policy::{Closed, RuleName};
use crate::datapath::Error;
use crate::policy::{Problem, Sets};
use crate::reconcile::policy::PolicyStatus;
use netd_bpf::policy::set;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The policies that a set stands for or has stood for; nothing: nobody remembers.
pub(super) fn of_set(state: &State, number: u64) -> Vec<String> {
    let name = state.policy.names.set(number);
    name.iter().flat_map(|name| &name.policies).map(ToString::to_string).collect()
}

/// The rule that a number stands for or has stood for; none for 0.
pub(super) fn rule(state: &State, number: u32) -> Option<RuleName> {
    if number == 0 {
        return None;
    }
    let name = state.policy.names.rule(number);
    Some(name.map_or(RuleName { policy: None, index: None, number }, |name| name.told(number)))
}

/// The sets that the kernel has for this node's pods, by endpoint.
///
/// # Errors
/// The kernel cannot be read.
pub(super) fn held(state: &State) -> Result<BTreeMap<u32, Sets>, Error> {
    let rows = state.datapath.pod_rows()?;
    let sets = |row: &netd_bpf::pod::Pod| Sets { egress: row.egress_set, ingress: row.ingress_set };
    Ok(rows.by_ifindex.values().map(|row| (row.endpoint, sets(row))).collect())
}

/// Pods of this node that are closed, by endpoint; none where the kernel cannot be read.
pub(super) fn closed(state: &State) -> BTreeMap<u32, Closed> {
    let status = state.policy.status.borrow().clone();
    let called = |endpoint| state.pod(endpoint);
    closed_pods(&held(state).unwrap_or_default(), called, |endpoint, pod| {
        no_room(&status, endpoint).or_else(|| unusable_of(&status.problems, pod, &[]))
    })
}

/// What rows the policies of a pod lack, if they lack some.
fn no_room(status: &PolicyStatus, endpoint: u32) -> Option<String> {
    let of_this = status.closed.iter().filter(|closed| closed.endpoint == endpoint);
    let all: Vec<String> = of_this.map(|closed| format!("{}: {}", closed.direction, closed.why)).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// Why a pod that these policies isolate is closed, if it is not for want of room.
pub(super) fn unusable(state: &State, pod: &str, isolating: &[String]) -> Option<String> {
    unusable_of(&state.policy.status.borrow().problems, pod, isolating)
}

fn unusable_of(problems: &[Problem], pod: &str, isolating: &[String]) -> Option<String> {
    problems.iter().find(|problem| problem.concerns(pod, isolating)).map(ToString::to_string)
}

/// This node's own addresses, beside those that its Node object has.
pub(super) fn node_addresses(state: &State) -> Vec<IpAddr> {
    state.addresses.borrow().to_vec()
}

/// Pods that are closed, out of what the kernel's rows say and the reasons that are known.
fn closed_pods(
    held: &BTreeMap<u32, Sets>,
    called: impl Fn(u32) -> Option<String>,
    reason: impl Fn(u32, &str) -> Option<String>,
) -> BTreeMap<u32, Closed> {
    let closed = held.iter().filter(|(_, sets)| sets.egress == set::CLOSED || sets.ingress == set::CLOSED);
    closed
        .map(|(endpoint, _)| {
            let pod = called(*endpoint).unwrap_or_else(|| format!("number {endpoint}"));
            let reason = reason(*endpoint, &pod);
            (*endpoint, Closed { pod, reason })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;
    use crate::policy::Direction;
    use crate::reconcile::policy::Closed as Lacking;

    #[test]
    fn what_a_pods_policies_lack_is_told_by_direction() {
        let lacking = |endpoint, direction| Lacking {
            pod: None,
            endpoint,
            direction,
            why: "NetworkPolicy shop/db takes 4 more rows of 64 (datapath.policy_rows)".to_owned(),
        };
        let closed = vec![
            lacking(1, Direction::Ingress),
            lacking(2, Direction::Ingress),
            lacking(2, Direction::Egress),
        ];
        let status = PolicyStatus { closed, ..PolicyStatus::default() };
        let why = "NetworkPolicy shop/db takes 4 more rows of 64 (datapath.policy_rows)";
        assert_eq!(no_room(&status, 1), Some(format!("ingress: {why}")));
        assert_eq!(no_room(&status, 2), Some(format!("ingress: {why}; egress: {why}")));
        assert_eq!(no_room(&status, 3), None);
    }

    #[test]
    fn a_policy_that_cannot_be_used_is_told_to_those_whom_it_isolates() {
        let broken = Problem::Broken {
            policy: ObjectName::new("shop", "db"),
            direction: Direction::Ingress,
            why: "it names nobody".to_owned(),
        };
        let names = |all: &[&str]| all.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let told = unusable_of(std::slice::from_ref(&broken), "shop/web", &names(&["shop/all", "shop/db"]));
        assert_eq!(told, Some(broken.to_string()));
        assert_eq!(unusable_of(&[broken], "shop/web", &names(&["shop/all"])), None);
    }

    #[test]
    fn closed_pods_are_told_by_name_and_reason() {
        let open = Sets { egress: set::OPEN, ingress: set::MARK | 5 };
        let held = BTreeMap::from([
            (1, open),
            (2, Sets { ingress: set::CLOSED, ..open }),
            (3, Sets { egress: set::CLOSED, ..open }),
        ]);
        let called = |endpoint| (endpoint == 2).then(|| "shop/web".to_owned());
        let reason = |endpoint, _: &str| (endpoint == 2).then(|| "the table is full".to_owned());
        let closed: Vec<_> = closed_pods(&held, called, reason)
            .into_values()
            .map(|closed| (closed.pod, closed.reason))
            .collect();
        let expected =
            [("shop/web".to_owned(), Some("the table is full".to_owned())), ("number 3".to_owned(), None)];
        assert_eq!(closed, expected);
    }
}
