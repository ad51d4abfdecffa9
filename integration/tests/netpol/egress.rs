//! What a pod may reach.

use anyhow::Result;
use netd_integration::state::{Policy, policy};
use netd_integration::truth::{Truth, Ways, case};

/// Isolates x/a for egress but for these peers.
fn to(name: &str, peers: &str) -> Policy {
    let spec = format!(
        "{{podSelector: {{matchLabels: {{pod: a}}}}, policyTypes: [Egress], egress: [{{to: {peers}}}]}}"
    );
    policy("x", name, spec)
}

fn blocks(cidrs: &[String]) -> String {
    let blocks: Vec<String> = cidrs.iter().map(|cidr| format!("{{ipBlock: {{cidr: \"{cidr}\"}}}}")).collect();
    format!("[{}]", blocks.join(", "))
}

fn all_but(except: &[String; 2]) -> String {
    // The halves of each family's addresses in which the pods are.
    let [v4, v6] = except;
    format!(
        "[{{ipBlock: {{cidr: 0.0.0.0/1, except: [{v4}]}}}}, \
          {{ipBlock: {{cidr: \"8000::/1\", except: [\"{v6}\"]}}}}]"
    )
}

/// "should enforce egress policy allowing traffic to a server in a different namespace based on PodSelector and
/// NamespaceSelector"
#[test]
fn a_server_in_another_namespace() -> Result<()> {
    case(|world| {
        let peers = "[{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: a}}}]";
        world.policies(&[to("to-a-of-y", peers)])?;
        world.expect(&Truth::open().deny("x/a", "*").allow("x/a", "y/a"))
    })
}

/// "should support denying of egress traffic on the client side (even if the server explicitly allows this traffic)"
#[test]
fn the_client_is_denied_what_the_server_allows() -> Result<()> {
    case(|world| {
        let client = "[{namespaceSelector: {matchLabels: {ns: x}}, podSelector: {matchLabels: {pod: a}}}]";
        let allow = |pod: &str| {
            let spec =
                format!("{{podSelector: {{matchLabels: {{pod: {pod}}}}}, ingress: [{{from: {client}}}]}}");
            policy("y", &format!("allow-client-to-{pod}"), spec)
        };
        let peers = "[{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: a}}}]";
        world.policies(&[to("to-a-of-y", peers), allow("a"), allow("b")])?;
        let truth = Truth::open().deny("x/a", "*").deny("*", "y/a").deny("*", "y/b");
        world.expect(&truth.allow("x/a", "y/a"))
    })
}

/// "should allow egress access to server in CIDR block"
#[test]
fn a_server_in_a_block() -> Result<()> {
    case(|world| {
        let both = world.blocks("y/b")?;
        world.policies(&[to("to-block", &blocks(&both))])?;
        let closed = Truth::open().deny("x/a", "*");
        world.expect(&closed.clone().allow("x/a", "y/b"))?;
        // A block is of one family.
        let [v4, v6] = both;
        world.policies(&[to("to-block", &blocks(&[v4]))])?;
        world.expect(&closed.clone().allow_by(Ways::V4, "x/a", "y/b"))?;
        world.policies(&[to("to-block", &blocks(&[v6]))])?;
        world.expect(&closed.allow_by(Ways::V6, "x/a", "y/b"))
    })
}

/// "should enforce except clause while egress access to server in CIDR block"
#[test]
fn all_of_a_block_but_one_server() -> Result<()> {
    case(|world| {
        world.policies(&[to("all-but-b", &all_but(&world.blocks("x/b")?))])?;
        world.expect(&Truth::open().deny("x/a", "x/b"))
    })
}

/// "should ensure an IP overlapping both IPBlock.CIDR and IPBlock.Except is allowed"
#[test]
fn what_one_policy_excepts_another_may_allow() -> Result<()> {
    case(|world| {
        let b = world.blocks("x/b")?;
        let except = to("all-but-b", &all_but(&b));
        let only = to("only-b", &blocks(&b));
        world.policies(std::slice::from_ref(&except))?;
        world.expect(&Truth::open().deny("x/a", "x/b"))?;
        world.policies(&[except, only.clone()])?;
        world.expect(&Truth::open())?;
        // As upstream has it: the second in the place of the first.
        world.policies(&[only])?;
        world.expect(&Truth::open().deny("x/a", "*").allow("x/a", "x/b"))
    })
}
