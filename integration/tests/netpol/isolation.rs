//! What isolates pods, and what lets everybody in again.

use anyhow::Result;
use netd_integration::state::policy;
use netd_integration::truth::{Truth, case};

/// "should support a 'default-deny-ingress' policy"
#[test]
fn a_default_deny_of_ingress() -> Result<()> {
    case(|world| {
        world.policies(&[policy("x", "deny-ingress", "{podSelector: {}, policyTypes: [Ingress]}")])?;
        world.expect(&Truth::open().deny("*", "x"))?;
        // Without policyTypes it is the same, and so with an empty list of rules.
        world.policies(&[policy("x", "deny-ingress", "{podSelector: {}, ingress: []}")])?;
        world.expect(&Truth::open().deny("*", "x"))
    })
}

/// "should support a 'default-deny-all' policy"
#[test]
fn a_default_deny_of_all() -> Result<()> {
    case(|world| {
        world.policies(&[policy("x", "deny-all", "{podSelector: {}, policyTypes: [Ingress, Egress]}")])?;
        world.expect(&Truth::open().deny("*", "x").deny("x", "*"))
    })
}

/// "should enforce policy to allow ingress traffic for a target"
#[test]
fn ingress_is_allowed_to_one_pod_of_a_denied_namespace() -> Result<()> {
    case(|world| {
        world.policies(&[
            policy("x", "deny-ingress", "{podSelector: {}, policyTypes: [Ingress]}"),
            policy(
                "x",
                "allow-all-to-a",
                "{podSelector: {matchLabels: {pod: a}}, \
                 ingress: [{from: [{podSelector: {}, namespaceSelector: {}}]}]}",
            ),
        ])?;
        world.expect(&Truth::open().deny("*", "x").allow("*", "x/a"))
    })
}

/// "should enforce policy to allow ingress traffic from pods in all namespaces"
#[test]
fn ingress_is_allowed_from_pods_of_all_namespaces() -> Result<()> {
    case(|world| {
        let deny = policy("x", "deny-ingress", "{podSelector: {matchLabels: {pod: a}}}");
        world.policies(std::slice::from_ref(&deny))?;
        world.expect(&Truth::open().deny("*", "x/a"))?;
        let allow = policy(
            "x",
            "allow-from-all-namespaces",
            "{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {}}]}]}",
        );
        world.policies(&[deny, allow])?;
        world.expect(&Truth::open())
    })
}

/// "should deny ingress from pods on other namespaces"
#[test]
fn ingress_is_denied_from_pods_of_other_namespaces() -> Result<()> {
    case(|world| {
        // An empty podSelector as a peer: the pods of the policy's own namespace.
        let spec = "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}";
        world.policies(&[policy("x", "own-namespace-only", spec)])?;
        world.expect(&Truth::open().deny("y", "x").deny("z", "x"))
    })
}

/// "should support allow-all policy"
#[test]
fn a_policy_that_allows_all() -> Result<()> {
    case(|world| {
        world.policies(&[policy("x", "allow-all", "{podSelector: {}, ingress: [{}]}")])?;
        world.expect(&Truth::open())?;
        // It isolates nobody for egress, whether it has such rules or not.
        let spec = "{podSelector: {}, ingress: [{}], egress: [{}], policyTypes: [Ingress, Egress]}";
        world.policies(&[policy("x", "allow-all", spec)])?;
        world.expect(&Truth::open())
    })
}

/// "should deny egress from all pods in a namespace"
#[test]
fn egress_is_denied_to_all_pods_of_a_namespace() -> Result<()> {
    case(|world| {
        world.policies(&[policy("x", "deny-egress", "{podSelector: {}, policyTypes: [Egress]}")])?;
        world.expect(&Truth::open().deny("x", "*"))
    })
}

/// "should deny egress from pods based on PodSelector"
#[test]
fn egress_is_denied_to_pods_of_a_label() -> Result<()> {
    case(|world| {
        let spec = "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: []}";
        world.policies(&[policy("x", "deny-egress", spec)])?;
        world.expect(&Truth::open().deny("x/a", "*"))
    })
}
