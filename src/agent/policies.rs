//! What is known of policies beside the tables: names of sets and rules, pods that are closed, the node's addresses.

use super::drops::Names as _;
use super::state::State;
use crate::answer::policy::{Closed, RuleName};
use crate::datapath::Error;
use crate::policy::Sets;
use netd_bpf::policy::set;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The policies that a set stands for or has stood for; nothing: nobody remembers.
pub(super) fn of_set(state: &State, number: u64) -> Vec<String> {
    let name = state.policy.names.set(number);
    name.map(|name| name.policies.iter().map(ToString::to_string).collect()).unwrap_or_default()
}

/// The rule that a number stands for or has stood for; none for 0.
pub(super) fn rule(state: &State, number: u32) -> Option<RuleName> {
    let name = state.policy.names.rule(number);
    let (policy, index) = name.map(|name| (name.policy.to_string(), name.index + 1)).unzip();
    (number != 0).then_some(RuleName { policy, index, number })
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
    let reason = |endpoint| {
        let closed = status.closed.iter().find(|closed| closed.endpoint == endpoint);
        let failed =
            || status.error.as_ref().map(|error| format!("the policy tables cannot be written: {error}"));
        closed.map(|closed| closed.why.clone()).or_else(failed)
    };
    closed_pods(&held(state).unwrap_or_default(), |endpoint| state.pod(endpoint), reason)
}

/// This node's own addresses, beside those that its Node object has.
pub(super) fn node_addresses(state: &State) -> Vec<IpAddr> {
    state.addresses.borrow().to_vec()
}

/// Pods that are closed, out of what the kernel's rows say and the reasons that are known.
fn closed_pods(
    held: &BTreeMap<u32, Sets>,
    called: impl Fn(u32) -> Option<String>,
    reason: impl Fn(u32) -> Option<String>,
) -> BTreeMap<u32, Closed> {
    let closed = held.iter().filter(|(_, sets)| sets.egress == set::CLOSED || sets.ingress == set::CLOSED);
    closed
        .map(|(endpoint, _)| {
            let pod = called(*endpoint).unwrap_or_else(|| format!("number {endpoint}"));
            (*endpoint, Closed { pod, reason: reason(*endpoint) })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_pods_are_told_by_name_and_reason() {
        let open = Sets { egress: set::OPEN, ingress: set::MARK | 5 };
        let held = BTreeMap::from([
            (1, open),
            (2, Sets { ingress: set::CLOSED, ..open }),
            (3, Sets { egress: set::CLOSED, ..open }),
        ]);
        let called = |endpoint| (endpoint == 2).then(|| "shop/web".to_owned());
        let reason = |endpoint| (endpoint == 2).then(|| "the table is full".to_owned());
        let closed: Vec<_> = closed_pods(&held, called, reason)
            .into_values()
            .map(|closed| (closed.pod, closed.reason))
            .collect();
        let expected =
            [("shop/web".to_owned(), Some("the table is full".to_owned())), ("number 3".to_owned(), None)];
        assert_eq!(closed, expected);
    }
}
