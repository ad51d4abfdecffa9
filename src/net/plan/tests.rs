use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn node(name: &str, ips: &[&str], cidrs: &[&str]) -> Node {
    Node {
        name: name.into(),
        internal_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        pod_cidrs: cidrs.iter().map(|cidr| net(cidr)).collect(),
        ..Node::default()
    }
}

fn model(nodes: impl IntoIterator<Item = Node>) -> Model {
    Model { nodes: nodes.into_iter().map(|n| (n.name.clone(), Arc::new(n))).collect(), ..Model::default() }
}

fn links(of: &[(u32, &str)]) -> Vec<LinkAddress> {
    of.iter().map(|(ifindex, text)| LinkAddress { ifindex: *ifindex, net: net(text) }).collect()
}

/// Plans for `a` at 192.0.2.1/24 and 2001:db8::1/64 on link 2.
fn plan_with(others: impl IntoIterator<Item = Node>) -> NodeRoutes {
    let this = node("a", &["192.0.2.1", "2001:db8::1"], &["10.0.0.0/24", "fd00:0::/64"]);
    let links = links(&[(2, "192.0.2.1/24"), (2, "2001:db8::1/64"), (2, "fe80::1/64")]);
    node_routes(&model([this].into_iter().chain(others)), "a", &links, &[net("10.255.0.0/24")])
}

fn shown(plan: &NodeRoutes) -> (Vec<String>, Vec<String>) {
    (
        plan.routes.iter().map(ToString::to_string).collect(),
        plan.unreachable.iter().map(ToString::to_string).collect(),
    )
}

#[test]
fn neighbours_are_reached_by_their_address_of_the_same_family() {
    let plan = plan_with([
        node("b", &["192.0.2.2", "2001:db8::2"], &["10.0.1.0/24", "fd00:0:0:1::/64"]),
        node("c", &["203.0.113.9", "192.0.2.3"], &["10.0.2.0/24"]),
        node("d", &["192.0.2.4"], &[]),
    ]);
    let (routes, unreachable) = shown(&plan);
    assert_eq!(
        routes,
        [
            "10.0.1.0/24 via 192.0.2.2 dev #2",
            "10.0.2.0/24 via 192.0.2.3 dev #2",
            "fd00:0:0:1::/64 via 2001:db8::2 dev #2",
        ]
    );
    assert!(unreachable.is_empty(), "{unreachable:?}");
}

#[test]
fn what_has_no_shared_link_or_no_address_is_reported() {
    let plan = plan_with([
        node("b", &["203.0.113.2"], &["10.0.1.0/24", "fd00:0:0:1::/64"]),
        node("c", &["fe80::9"], &["fd00:0:0:2::/64"]),
        node("d", &["192.0.2.1"], &["10.0.3.0/24"]),
    ]);
    let (routes, unreachable) = shown(&plan);
    assert!(routes.is_empty(), "{routes:?}");
    assert_eq!(
        unreachable,
        [
            "node b, podCIDR 10.0.1.0/24: 203.0.113.2 is on no link of this node; left to the fabric",
            "node b, podCIDR fd00:0:0:1::/64: the node has no InternalIP of this family",
            "node c, podCIDR fd00:0:0:2::/64: fe80::9 is on no link of this node; left to the fabric",
            "node d, podCIDR 10.0.3.0/24: its address 192.0.2.1 is this node's own",
        ]
    );
    let faults: Vec<bool> = plan.unreachable.iter().map(|u| u.reason.is_fault()).collect();
    assert_eq!(faults, [false, true, false, true]);
}

#[test]
fn first_by_name_keeps_an_overlapping_range() {
    let plan = plan_with([
        node("b", &["192.0.2.2"], &["10.0.0.0/24", "10.1.0.0/16"]),
        node("c", &["192.0.2.3"], &["10.1.7.0/24", "10.2.0.0/24"]),
        node("e", &["203.0.113.5"], &["10.3.0.0/24"]),
        node("f", &["192.0.2.6"], &["10.3.0.0/24"]),
    ]);
    let (routes, unreachable) = shown(&plan);
    assert_eq!(routes, ["10.1.0.0/16 via 192.0.2.2 dev #2", "10.2.0.0/24 via 192.0.2.3 dev #2"]);
    assert_eq!(
        unreachable,
        [
            "node b, podCIDR 10.0.0.0/24: overlaps this node's own 10.0.0.0/24",
            "node c, podCIDR 10.1.7.0/24: overlaps 10.1.0.0/16 of node b",
            "node e, podCIDR 10.3.0.0/24: 203.0.113.5 is on no link of this node; left to the fabric",
            "node f, podCIDR 10.3.0.0/24: overlaps 10.3.0.0/24 of node e",
        ]
    );
}

#[test]
fn refused_range_does_not_shadow_good_ones() {
    // b's mistake covers everything; c must not pay for it.
    let plan =
        plan_with([node("b", &["192.0.2.2"], &["10.0.0.0/8"]), node("c", &["192.0.2.3"], &["10.2.0.0/24"])]);
    assert_eq!(shown(&plan).0, ["10.2.0.0/24 via 192.0.2.3 dev #2"]);
}

#[test]
fn ranges_that_are_not_for_pods_are_refused() {
    let refused = [
        ("0.0.0.0/0", "not a range that can be routed"),
        ("::/0", "not a range that can be routed"),
        ("0.0.0.0/1", "not a range that can be routed"),
        ("127.0.0.0/24", "not a range that can be routed"),
        ("169.254.1.0/24", "not a range that can be routed"),
        ("224.0.0.0/24", "not a range that can be routed"),
        ("fe80::/64", "not a range that can be routed"),
        ("ff02::/64", "not a range that can be routed"),
        ("192.0.0.0/16", "overlaps the uplink's 192.0.2.1/24"),
        ("192.0.2.128/25", "overlaps the uplink's 192.0.2.1/24"),
        ("2001:db8::/32", "overlaps the uplink's 2001:db8::1/64"),
        ("10.255.0.128/25", "overlaps this node's own 10.255.0.0/24"),
    ];
    for (cidr, reason) in refused {
        let plan = plan_with([node("b", &["192.0.2.2", "2001:db8::2"], &[cidr])]);
        assert!(plan.routes.is_empty(), "{cidr}");
        assert_eq!(shown(&plan).1, [format!("node b, podCIDR {cidr}: {reason}")]);
    }
}

#[test]
fn most_specific_link_wins_and_of_equal_ones_the_lowest() {
    let other = node("b", &["192.0.2.130"], &["10.0.1.0/24"]);
    let all = model([other]);
    for (of, expected) in [
        (vec![(2, "192.0.2.1/24"), (3, "192.0.2.129/25"), (4, "192.0.2.7/24")], 3),
        (vec![(9, "192.0.2.1/24"), (4, "192.0.2.7/24"), (3, "203.0.113.1/24")], 4),
    ] {
        let mut of = links(&of);
        assert_eq!(node_routes(&all, "a", &of, &[]).routes[0].ifindex, expected);
        of.reverse();
        assert_eq!(node_routes(&all, "a", &of, &[]).routes[0].ifindex, expected);
    }
}

#[test]
fn host_bits_and_repetitions_do_not_matter() {
    let plan = plan_with([node("b", &["192.0.2.2"], &["10.0.1.7/24", "10.0.1.0/24"])]);
    assert_eq!(shown(&plan), (vec!["10.0.1.0/24 via 192.0.2.2 dev #2".into()], vec![]));
}

/// Prefixes from a small space, so that they meet.
fn any_net() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (0u8..4, 0u8..8, any::<u8>(), 8u8..=32).prop_map(|(a, b, c, length)| {
            let address = std::net::Ipv4Addr::new([10, 10, 192, 224][usize::from(a)], b, c, 0);
            IpNet::new(address.into(), length).unwrap()
        }),
        (0u16..4, 0u16..8, 8u8..=128).prop_map(|(a, b, length)| {
            let address = std::net::Ipv6Addr::new(
                [0xfd00, 0xfd00, 0x2001, 0xfe80][usize::from(a)],
                b,
                0,
                0,
                0,
                0,
                0,
                1,
            );
            IpNet::new(address.into(), length).unwrap()
        }),
    ]
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u8..3, 1u8..6).prop_map(|(a, b)| std::net::Ipv4Addr::new(192, 0, a, b).into()),
        (0u16..3, 1u16..6).prop_map(|(a, b)| std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, a, 0, 0, 0, b).into()),
    ]
}

fn any_node(name: usize) -> impl Strategy<Value = Node> {
    (prop::collection::vec(any_address(), 0..4), prop::collection::vec(any_net(), 0..4)).prop_map(
        move |(internal_ips, pod_cidrs)| Node {
            name: format!("n{name}").as_str().into(),
            internal_ips,
            pod_cidrs,
            ..Node::default()
        },
    )
}

fn any_links() -> impl Strategy<Value = Vec<LinkAddress>> {
    prop::collection::vec((2u32..5, any_address(), 0u8..9), 0..5).prop_map(|all| {
        all.into_iter()
            .map(|(ifindex, address, shorter)| {
                let full = if address.is_ipv4() { 32 } else { 128 };
                let length = if address.is_ipv4() { 24 - shorter } else { 64 - shorter };
                let length = if shorter == 8 { full } else { length };
                LinkAddress { ifindex, net: IpNet::new(address, length).unwrap() }
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn routes_are_sound_and_everything_is_accounted_for(
        nodes in (0usize..6).prop_flat_map(|n| (0..n).map(any_node).collect::<Vec<_>>()),
        mut links in any_links(),
        own in prop::collection::vec(any_net(), 0..2),
    ) {
        let all = model(nodes.clone());
        let plan = node_routes(&all, "n0", &links, &own);
        let foreign = || nodes.iter().filter(|node| node.name.as_ref() != "n0");
        for (at, route) in plan.routes.iter().enumerate() {
            prop_assert!(route.prefix.prefix_len() > 0 && route.prefix == route.prefix.trunc());
            prop_assert_eq!(route.prefix.addr().is_ipv4(), route.gateway.is_ipv4());
            for other in plan.routes.iter().skip(at + 1) {
                prop_assert!(!overlap(&route.prefix, &other.prefix), "{} and {}", route, other);
            }
            let own_of_node = all.nodes.get("n0").map(|n| n.pod_cidrs.clone()).unwrap_or_default();
            for taken in own.iter().chain(&own_of_node).chain(links.iter().map(|link| &link.net)) {
                prop_assert!(!overlap(taken, &route.prefix), "{} takes {}", route, taken);
            }
            // By the address of the first node that has the range, on a link that reaches it.
            let holder = foreign().find(|n| n.pod_cidrs.iter().any(|c| c.trunc() == route.prefix)).unwrap();
            prop_assert!(holder.internal_ips.contains(&route.gateway));
            let best = links.iter().filter(|l| l.net.contains(&route.gateway)).map(|l| l.net.prefix_len()).max();
            let used = links.iter().filter(|l| l.ifindex == route.ifindex && l.net.contains(&route.gateway));
            prop_assert_eq!(used.map(|l| l.net.prefix_len()).max(), best);
            prop_assert!(!links.iter().any(|l| l.net.addr() == route.gateway));
        }
        let wanted: BTreeSet<_> = foreign().flat_map(|n| n.pod_cidrs.iter().map(|c| (n.name.clone(), c.trunc()))).collect();
        let reported: BTreeSet<_> = plan.unreachable.iter().map(|u| (u.node.clone(), u.cidr)).collect();
        prop_assert_eq!(reported.len(), plan.unreachable.len());
        prop_assert_eq!(wanted.len(), plan.routes.len() + plan.unreachable.len());
        prop_assert!(reported.is_subset(&wanted));
        links.reverse();
        prop_assert_eq!(node_routes(&all, "n0", &links, &own), plan);
    }
}
