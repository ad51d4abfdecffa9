//! "NetworkPolicy between server and client using UDP".

use anyhow::Result;
use netd_integration::state::policy;
use netd_integration::truth::{Truth, Ways, case};

/// "should support a 'default-deny-ingress' policy"
#[test]
fn a_default_deny_of_ingress() -> Result<()> {
    case(|world| {
        // All but what TCP says, which this is not about.
        let spec = "{podSelector: {}, ingress: [{ports: [{protocol: TCP}]}]}";
        world.policies(&[policy("x", "deny-udp", spec)])?;
        world.expect(&Truth::open().deny_by(Ways::UDP, "*", "x"))?;
        world.policies(&[policy("x", "deny-ingress", "{podSelector: {}}")])?;
        world.expect(&Truth::open().deny("*", "x"))
    })
}

/// "should enforce policy based on Ports"
#[test]
fn one_port_from_one_namespace() -> Result<()> {
    case(|world| {
        let spec = "{podSelector: {matchLabels: {pod: a}}, ingress: [{\
                     from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{protocol: UDP, port: 81}]}]}";
        world.policies(&[policy("x", "from-y-81", spec)])?;
        world.expect(&Truth::open().deny("*", "x/a").allow_by(Ways::UDP.port(81), "y", "x/a"))
    })
}

/// "should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and
/// NamespaceSelector"
#[test]
fn one_pod_of_another_namespace() -> Result<()> {
    case(|world| {
        let spec = "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{protocol: UDP}], from: [{\
                     namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: a}}}]}]}";
        world.policies(&[policy("x", "from-a-of-y", spec)])?;
        world.expect(&Truth::open().deny("*", "x/a").allow_by(Ways::UDP, "y/a", "x/a"))
    })
}
