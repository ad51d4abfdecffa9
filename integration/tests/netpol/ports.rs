//! Which ports and protocols a rule names.

use anyhow::Result;
use netd_integration::state::policy;
use netd_integration::truth::{Truth, Ways, World, case};

/// Isolates x/a for ingress but for what this rule allows.
fn rule(world: &mut World<'_>, rule: &str) -> Result<()> {
    let spec = format!("{{podSelector: {{matchLabels: {{pod: a}}}}, ingress: [{rule}]}}");
    world.policies(&[policy("x", "rule", spec)])
}

fn isolated() -> Truth {
    Truth::open().deny("*", "x/a")
}

/// "should enforce policy based on Ports"
#[test]
fn one_port_from_one_namespace() -> Result<()> {
    case(|world| {
        let from_y =
            "{from: [{namespaceSelector: {matchLabels: {ns: y}}}], ports: [{protocol: TCP, port: 81}]}";
        rule(world, from_y)?;
        world.expect(&isolated().allow_by(Ways::TCP.port(81), "y", "x/a"))
    })
}

/// "should enforce ingress policy allowing any port traffic to a server on a specific protocol"
#[test]
fn all_ports_of_one_protocol() -> Result<()> {
    case(|world| {
        rule(world, "{ports: [{protocol: TCP}]}")?;
        world.expect(&isolated().allow_by(Ways::TCP, "*", "x/a"))
    })
}

/// "should allow ingress access on one named port"
#[test]
fn a_named_port() -> Result<()> {
    case(|world| {
        // TCP is what a port without a protocol means.
        let spec = "{podSelector: {}, ingress: [{ports: [{port: serve-81-tcp}]}]}";
        world.policies(&[policy("x", "named", spec)])?;
        world.expect(&Truth::open().deny("*", "x").allow_by(Ways::TCP.port(81), "*", "x"))?;
        // The name of a port of another protocol is nobody's.
        let spec = "{podSelector: {}, ingress: [{ports: [{port: serve-81-udp}]}]}";
        world.policies(&[policy("x", "named", spec)])?;
        world.expect(&Truth::open().deny("*", "x"))
    })
}

/// "should allow ingress access from namespace on one named port"
#[test]
fn a_named_port_from_one_namespace() -> Result<()> {
    case(|world| {
        let from_y = "{from: [{namespaceSelector: {matchLabels: {ns: y}}}], \
                       ports: [{protocol: TCP, port: serve-80-tcp}]}";
        rule(world, from_y)?;
        world.expect(&isolated().allow_by(Ways::TCP.port(80), "y", "x/a"))
    })
}

/// "should allow egress access on one named port"
#[test]
fn a_named_port_of_whoever_is_asked() -> Result<()> {
    case(|world| {
        let spec = "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: serve-80-tcp}]}]}";
        world.policies(&[policy("x", "named", spec)])?;
        world.expect(&Truth::open().deny("x", "*").allow_by(Ways::TCP.port(80), "x", "*"))
    })
}

/// Not a title of its own: what a name means is each destination's own matter, in both directions.
#[test]
fn a_named_port_has_a_number_on_each_pod() -> Result<()> {
    case(|world| {
        for pod in ["x/c", "y/b"] {
            world.renumber(pod, "serve-80-tcp", 81)?;
        }
        let spec = "{podSelector: {}, ingress: [{ports: [{port: serve-80-tcp}]}]}";
        world.policies(&[policy("x", "named", spec)])?;
        let eighty = Truth::open().deny("*", "x").allow_by(Ways::TCP.port(80), "*", "x");
        let eighty = eighty.deny("*", "x/c").allow_by(Ways::TCP.port(81), "*", "x/c");
        world.expect(&eighty)?;
        let spec = "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: serve-80-tcp}]}]}";
        world.policies(&[policy("z", "named", spec)])?;
        let mut truth = Truth::open().deny("z", "*").allow_by(Ways::TCP.port(80), "z", "*");
        for pod in ["x/c", "y/b"] {
            truth = truth.deny("z", pod).allow_by(Ways::TCP.port(81), "z", pod);
        }
        world.expect(&truth)?;
        world.renumber("y/b", "serve-80-tcp", 80)?;
        world.expect(&truth.deny("z", "y/b").allow_by(Ways::TCP.port(80), "z", "y/b"))
    })
}

/// "should not allow access by TCP when a policy specifies only UDP"
#[test]
fn udp_is_not_tcp() -> Result<()> {
    case(|world| {
        rule(world, "{ports: [{protocol: UDP, port: 81}]}")?;
        world.expect(&isolated().allow_by(Ways::UDP.port(81), "*", "x/a"))
    })
}

/// "should not mistakenly treat 'protocol: SCTP' as 'protocol: TCP', even if the plugin doesn't support SCTP"
#[test]
fn sctp_is_not_tcp() -> Result<()> {
    case(|world| {
        world.policies(&[
            policy("x", "deny-ingress", "{podSelector: {}}"),
            policy(
                "x",
                "allow-sctp",
                "{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{protocol: SCTP, port: 81}]}]}",
            ),
        ])?;
        world.expect(&Truth::open().deny("*", "x"))
    })
}

/// "should properly isolate pods that are selected by a policy allowing SCTP, even if the plugin doesn't support SCTP"
#[test]
fn a_policy_that_allows_sctp_isolates() -> Result<()> {
    case(|world| {
        rule(world, "{ports: [{protocol: SCTP, port: 80}]}")?;
        world.expect(&isolated())?;
        rule(world, "{ports: [{protocol: SCTP}]}")?;
        world.expect(&isolated())
    })
}
