//! Policies as objects: made, changed, refused, removed.

use anyhow::{Result, ensure};
use netd_integration::state::policy;
use netd_integration::truth::{Truth, Ways, case};
use netd_integration::wait;

/// "Netpol API should support creating NetworkPolicy API operations"
#[test]
fn policies_are_created_replaced_refused_and_deleted() -> Result<()> {
    case(|world| {
        // Two objects of one name in two namespaces are two.
        let in_x = policy("x", "own", "{podSelector: {}}");
        let in_y = policy("y", "own", "{podSelector: {}}");
        let state = world.site().state.clone();
        state.policy(&in_x)?;
        world.in_force()?;
        world.expect(&Truth::open().deny("*", "x"))?;
        state.policy(&in_y)?;
        world.in_force()?;
        let both = Truth::open().deny("*", "x").deny("*", "y");
        world.expect(&both)?;

        // One that the API server would refuse is named, and what was in force stays in force.
        state.policy(&policy("x", "own", "{podSelector: {}, policyTypes: [Sideways]}"))?;
        for node in world.site().nodes() {
            wait::holds("the refused policy to be named", || {
                let status = node.api_json("/v1/status")?.to_string();
                Ok(status.contains(&in_x.file()) && status.contains("Sideways"))
            })?;
        }
        world.in_force()?;
        world.expect(&both)?;

        state.policy(&policy(
            "x",
            "own",
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}",
        ))?;
        world.in_force()?;
        world.expect(&Truth::open().deny("*", "y"))?;
        state.remove_policy(&in_x)?;
        state.remove_policy(&in_y)?;
        world.in_force()?;
        world.expect(&Truth::open())?;
        ensure!(!state.dir().join(in_x.file()).exists());
        Ok(())
    })
}

/// "Netpol API should support creating NetworkPolicy API with endport field"
#[test]
fn a_range_of_ports_by_end_port() -> Result<()> {
    case(|world| {
        let range = |first: u16, last: u16| {
            let ports = format!("[{{protocol: TCP, port: {first}, endPort: {last}}}]");
            [policy(
                "x",
                "range",
                format!("{{podSelector: {{matchLabels: {{pod: a}}}}, ingress: [{{ports: {ports}}}]}}"),
            )]
        };
        let closed = Truth::open().deny("*", "x/a");
        world.policies(&range(80, 81))?;
        world.expect(&closed.clone().allow_by(Ways::TCP, "*", "x/a"))?;
        world.policies(&range(81, 32_768))?;
        world.expect(&closed.clone().allow_by(Ways::TCP.port(81), "*", "x/a"))?;
        world.policies(&range(1, 80))?;
        world.expect(&closed.clone().allow_by(Ways::TCP.port(80), "*", "x/a"))?;
        // A range of one port.
        world.policies(&range(81, 81))?;
        world.expect(&closed.clone().allow_by(Ways::TCP.port(81), "*", "x/a"))?;
        world.policies(&range(82, 65_535))?;
        world.expect(&closed)
    })
}
