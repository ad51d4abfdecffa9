//! Whom a rule names: pods by their labels, by those of their namespaces, and by both.

use anyhow::Result;
use netd_integration::state::policy;
use netd_integration::truth::{Truth, World, case};

/// Isolates x/a for ingress but for these peers.
fn from(world: &mut World<'_>, name: &str, peers: &str) -> Result<()> {
    let spec = format!("{{podSelector: {{matchLabels: {{pod: a}}}}, ingress: [{{from: {peers}}}]}}");
    world.policies(&[policy("x", name, spec)])
}

/// Nobody reaches x/a, but for those that a test allows.
fn isolated() -> Truth {
    Truth::open().deny("*", "x/a")
}

/// "should enforce policy to allow traffic from pods within server namespace based on PodSelector"
#[test]
fn pods_of_the_same_namespace_by_label() -> Result<()> {
    case(|world| {
        from(world, "from-b", "[{podSelector: {matchLabels: {pod: b}}}]")?;
        world.expect(&isolated().allow("x/b", "x/a"))
    })
}

/// "should enforce policy based on PodSelector with MatchExpressions"
#[test]
fn pods_by_expressions() -> Result<()> {
    case(|world| {
        let by = |expression: &str| format!("[{{podSelector: {{matchExpressions: [{{{expression}}}]}}}}]");
        from(world, "in", &by("key: pod, operator: In, values: [b]"))?;
        world.expect(&isolated().allow("x/b", "x/a"))?;
        from(world, "not-in", &by("key: pod, operator: NotIn, values: [b]"))?;
        world.expect(&isolated().allow("x/c", "x/a"))?;
        from(world, "exists", &by("key: pod, operator: Exists"))?;
        world.expect(&isolated().allow("x", "x/a"))?;
        from(world, "does-not-exist", &by("key: pod, operator: DoesNotExist"))?;
        world.expect(&isolated())
    })
}

/// "should enforce policy to allow traffic only from a different namespace, based on NamespaceSelector"
#[test]
fn pods_of_another_namespace_only() -> Result<()> {
    case(|world| {
        from(world, "from-y", "[{namespaceSelector: {matchLabels: {ns: y}}}]")?;
        world.expect(&isolated().allow("y", "x/a"))
    })
}

/// "should enforce policy based on NamespaceSelector with MatchExpressions"
#[test]
fn namespaces_by_expressions() -> Result<()> {
    case(|world| {
        let by =
            |expression: &str| format!("[{{namespaceSelector: {{matchExpressions: [{{{expression}}}]}}}}]");
        from(world, "in", &by("key: ns, operator: In, values: [y]"))?;
        world.expect(&isolated().allow("y", "x/a"))?;
        from(world, "not-in", &by("key: ns, operator: NotIn, values: [y, m]"))?;
        world.expect(&isolated().allow("x", "x/a").allow("z", "x/a"))?;
        from(world, "does-not-exist", &by("key: other, operator: DoesNotExist"))?;
        world.expect(&Truth::open())
    })
}

/// "should enforce policy to allow traffic based on NamespaceSelector with MatchLabels using default ns label"
#[test]
fn namespaces_by_the_label_that_each_has() -> Result<()> {
    case(|world| {
        from(world, "from-y", "[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}}]")?;
        world.expect(&isolated().allow("y", "x/a"))
    })
}

/// "should enforce policy based on NamespaceSelector with MatchExpressions using default ns label"
#[test]
fn namespaces_by_expressions_on_the_label_that_each_has() -> Result<()> {
    case(|world| {
        let selector =
            "{matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [y]}]}";
        let spec = format!(
            "{{podSelector: {{matchLabels: {{pod: a}}}}, policyTypes: [Egress], \
             egress: [{{to: [{{namespaceSelector: {selector}}}]}}]}}"
        );
        world.policies(&[policy("x", "not-to-y", spec)])?;
        world.expect(&Truth::open().deny("x/a", "y"))
    })
}

/// "should enforce policy based on PodSelector or NamespaceSelector"
#[test]
fn pods_or_namespaces() -> Result<()> {
    case(|world| {
        let peers = "[{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}}, \
                      {podSelector: {matchLabels: {pod: b}}}]";
        from(world, "others-or-b", peers)?;
        world.expect(&Truth::open().deny("x/c", "x/a"))
    })
}

/// "should enforce policy based on PodSelector and NamespaceSelector"
#[test]
fn pods_of_namespaces() -> Result<()> {
    case(|world| {
        let peers = "[{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}, \
                      podSelector: {matchLabels: {pod: b}}}]";
        from(world, "b-of-others", peers)?;
        world.expect(&isolated().allow("y/b", "x/a").allow("z/b", "x/a"))
    })
}

/// "should enforce policy based on Multiple PodSelectors and NamespaceSelectors"
#[test]
fn several_pods_of_several_namespaces() -> Result<()> {
    case(|world| {
        let peers = "[{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}, \
                      podSelector: {matchExpressions: [{key: pod, operator: In, values: [b, c]}]}}]";
        from(world, "b-and-c-of-others", peers)?;
        world.expect(&Truth::open().deny("x", "x/a").deny("y/a", "x/a").deny("z/a", "x/a"))
    })
}

/// "should enforce policy based on any PodSelectors"
#[test]
fn any_of_several_selectors() -> Result<()> {
    case(|world| {
        let peers = "[{podSelector: {matchLabels: {pod: b}}}, {podSelector: {matchLabels: {pod: c}}}]";
        from(world, "b-or-c", peers)?;
        world.expect(&isolated().allow("x/b", "x/a").allow("x/c", "x/a"))
    })
}

/// "should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and
/// NamespaceSelector"
#[test]
fn one_pod_of_another_namespace() -> Result<()> {
    case(|world| {
        let peers = "[{namespaceSelector: {matchLabels: {ns: y}}, podSelector: {matchLabels: {pod: a}}}]";
        from(world, "a-of-y", peers)?;
        world.expect(&isolated().allow("y/a", "x/a"))
    })
}
