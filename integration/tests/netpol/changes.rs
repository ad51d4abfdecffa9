//! Policies, pods and namespaces that change.

use anyhow::Result;
use netd_integration::state::policy;
use netd_integration::truth::{Truth, case};

/// "should enforce updated policy"
#[test]
fn a_policy_that_changes() -> Result<()> {
    case(|world| {
        world.policies(&[policy("x", "changes", "{podSelector: {}, ingress: [{}]}")])?;
        world.expect(&Truth::open())?;
        world.policies(&[policy("x", "changes", "{podSelector: {}, ingress: []}")])?;
        world.expect(&Truth::open().deny("*", "x"))?;
        // Other pods, and the other direction.
        let spec = "{podSelector: {matchLabels: {pod: b}}, policyTypes: [Egress]}";
        world.policies(&[policy("x", "changes", spec)])?;
        world.expect(&Truth::open().deny("x/b", "*"))
    })
}

/// "should allow ingress access from updated namespace"
#[test]
fn a_namespace_that_gets_the_label() -> Result<()> {
    case(|world| {
        let spec = "{podSelector: {matchLabels: {pod: a}}, \
                     ingress: [{from: [{namespaceSelector: {matchLabels: {ns2: updated}}}]}]}";
        world.policies(&[policy("x", "from-updated", spec)])?;
        let closed = Truth::open().deny("*", "x/a");
        world.expect(&closed)?;
        world.label_namespace("y", "ns2", Some("updated"))?;
        world.expect(&closed.clone().allow("y", "x/a"))?;
        world.label_namespace("y", "ns2", Some("outdated"))?;
        world.expect(&closed)?;
        world.label_namespace("y", "ns2", None)?;
        world.label_namespace("z", "ns2", Some("updated"))?;
        world.expect(&closed.allow("z", "x/a"))
    })
}

/// "should allow ingress access from updated pod"
#[test]
fn a_pod_that_gets_the_label() -> Result<()> {
    case(|world| {
        let spec = "{podSelector: {matchLabels: {pod: a}}, \
                     ingress: [{from: [{podSelector: {matchLabels: {pod: b, pod2: updated}}}]}]}";
        world.policies(&[policy("x", "from-updated", spec)])?;
        let closed = Truth::open().deny("*", "x/a");
        world.expect(&closed)?;
        // The same labels elsewhere are of no use.
        world.label_pod("y/b", "pod2", Some("updated"))?;
        world.label_pod("x/b", "pod2", Some("updated"))?;
        world.expect(&closed.clone().allow("x/b", "x/a"))?;
        world.label_pod("x/b", "pod2", None)?;
        world.expect(&closed)
    })
}

/// "should deny ingress access to updated pod"
#[test]
fn a_pod_that_gets_the_label_of_the_isolated() -> Result<()> {
    case(|world| {
        let spec = "{podSelector: {matchLabels: {target: isolated}}, policyTypes: [Ingress]}";
        world.policies(&[policy("x", "deny-ingress", spec)])?;
        world.expect(&Truth::open())?;
        world.label_pod("x/a", "target", Some("isolated"))?;
        world.expect(&Truth::open().deny("*", "x/a"))?;
        world.label_pod("x/c", "target", Some("isolated"))?;
        world.label_pod("x/a", "target", None)?;
        world.expect(&Truth::open().deny("*", "x/c"))
    })
}

/// "should stop enforcing policies after they are deleted"
#[test]
fn policies_that_are_deleted() -> Result<()> {
    case(|world| {
        let deny = |of: &str| policy(of, "deny-all", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
        world.policies(&[deny("x"), deny("y")])?;
        let closed = Truth::open().deny("*", "x").deny("x", "*");
        world.expect(&closed.clone().deny("*", "y").deny("y", "*"))?;
        world.policies(&[deny("x")])?;
        world.expect(&closed)?;
        world.policies(&[])?;
        world.expect(&Truth::open())
    })
}
