//! Several policies for the same pods: what one allows, no other takes away.

use anyhow::Result;
use netd_integration::state::policy;
use netd_integration::truth::{Truth, Ways, case};

/// "should enforce multiple, stacked policies with overlapping podSelectors"
#[test]
fn policies_stack() -> Result<()> {
    case(|world| {
        let from_y = |port: u16| {
            let spec = format!(
                "{{podSelector: {{matchLabels: {{pod: a}}}}, ingress: [{{\
                 from: [{{namespaceSelector: {{matchLabels: {{ns: y}}}}}}], \
                 ports: [{{protocol: TCP, port: {port}}}]}}]}}"
            );
            policy("x", &format!("from-y-{port}"), spec)
        };
        let closed = Truth::open().deny("*", "x/a");
        world.policies(&[from_y(81)])?;
        world.expect(&closed.clone().allow_by(Ways::TCP.port(81), "y", "x/a"))?;
        world.policies(&[from_y(81), from_y(80)])?;
        world.expect(&closed.allow_by(Ways::TCP, "y", "x/a"))
    })
}

/// "should enforce multiple ingress policies with ingress allow-all policy taking precedence"
#[test]
fn an_allow_all_of_ingress_beside_a_narrow_policy() -> Result<()> {
    case(|world| {
        let narrow = policy("x", "port-80", "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}");
        world.policies(std::slice::from_ref(&narrow))?;
        world.expect(&Truth::open().deny("*", "x").allow_by(Ways::TCP.port(80), "*", "x"))?;
        world.policies(&[narrow, policy("x", "allow-all", "{podSelector: {}, ingress: [{}]}")])?;
        world.expect(&Truth::open())
    })
}

/// "should enforce multiple egress policies with egress allow-all policy taking precedence"
#[test]
fn an_allow_all_of_egress_beside_a_narrow_policy() -> Result<()> {
    case(|world| {
        let egress = |name: &str, rules: &str| {
            policy("x", name, format!("{{podSelector: {{}}, policyTypes: [Egress], egress: {rules}}}"))
        };
        let narrow = egress("port-80", "[{ports: [{port: 80}]}]");
        world.policies(std::slice::from_ref(&narrow))?;
        world.expect(&Truth::open().deny("x", "*").allow_by(Ways::TCP.port(80), "x", "*"))?;
        world.policies(&[narrow, egress("allow-all", "[{}]")])?;
        world.expect(&Truth::open())
    })
}

/// "should enforce policies to check ingress and egress policies can be controlled independently based on PodSelector"
#[test]
fn the_directions_are_independent() -> Result<()> {
    case(|world| {
        let egress = policy(
            "x",
            "allow-egress",
            "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{}]}",
        );
        world.policies(std::slice::from_ref(&egress))?;
        world.expect(&Truth::open())?;
        let ingress =
            policy("x", "deny-ingress", "{podSelector: {matchLabels: {pod: a}}, policyTypes: [Ingress]}");
        world.policies(&[egress, ingress])?;
        world.expect(&Truth::open().deny("*", "x/a"))
    })
}
