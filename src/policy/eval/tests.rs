use super::*;
use crate::model::Protocol;
use crate::policy::testing::{ICMP, NODE, SCTP, TCP, UDP, World, allowed, ip, name, packet, pod, verdict};
use crate::policy::{Direction, Problem};
use serde_json::{Value, json};

/// Web and database of `shop`, a client in `team`, one in `other`: `10.0.0.1` to `10.0.0.4`, all here.
fn world() -> World {
    let mut world = World::new();
    world.namespace("shop", "env=prod").namespace("team", "env=test").namespace("other", "");
    world
        .local(pod("shop/web", "app=web", &["10.0.0.1", "fd00::1"]))
        .local(pod("shop/db", "app=db tier=back", &["10.0.0.2", "fd00::2"]))
        .local(pod("team/client", "app=client", &["10.0.0.3", "fd00::3"]))
        .local(pod("other/client", "app=client tier=back", &["10.0.0.4", "fd00::4"]));
    world
}

const WEB: &str = "10.0.0.1";
const DB: &str = "10.0.0.2";
const TEAM: &str = "10.0.0.3";
const OTHER: &str = "10.0.0.4";
const WORLD: &str = "198.51.100.1";

/// Who of all reaches `to`, in the order of their addresses, the world last.
fn reach(world: &World, to: &str, protocol: u8, port: u16) -> String {
    allowed(&world.desired(), &[WEB, DB, TEAM, OTHER, WORLD].map(|from| (from, to, protocol, port)))
}

/// Whom `from` reaches.
fn reached(world: &World, from: &str, protocol: u8, port: u16) -> String {
    allowed(&world.desired(), &[WEB, DB, TEAM, OTHER, WORLD].map(|to| (from, to, protocol, port)))
}

/// A policy that isolates the web for ingress with these peers.
fn from(peers: &Value) -> World {
    let mut world = world();
    let spec = json!({ "podSelector": { "matchLabels": { "app": "web" } }, "ingress": [{ "from": peers }] });
    world.policy("shop/p", &spec);
    world
}

/// The same with these ports, for everybody.
fn ports(ports: &Value) -> World {
    let mut world = world();
    world.policy("shop/p", &json!({ "podSelector": {}, "ingress": [{ "ports": ports }] }));
    world
}

#[test]
fn without_policies_all_is_open() {
    assert_eq!(reach(&world(), WEB, TCP, 80), "+++++");
    assert_eq!(verdict(&world().desired(), WORLD, WEB, TCP, 80).ingress, Side::Open);
    assert_eq!(verdict(&world().desired(), WORLD, WEB, TCP, 80).egress, Side::Elsewhere);
}

#[test]
fn an_empty_policy_isolates_its_namespace_for_ingress_and_only_that() {
    for spec in [
        json!({}),
        json!({ "podSelector": {} }),
        json!({ "podSelector": {}, "ingress": [] }),
        json!({ "egress": [] }),
    ] {
        let mut world = world();
        world.policy("shop/deny", &spec);
        assert_eq!(reach(&world, WEB, TCP, 80), "+----", "a pod reaches itself");
        assert_eq!(reach(&world, TEAM, TCP, 80), "+++++");
        assert_eq!(reached(&world, WEB, TCP, 80), "+-+++");
    }
}

#[test]
fn policy_types_and_their_defaults() {
    let rule = json!([{}]);
    let cases = [
        // spec; from web: to team (egress of shop), from team to web (ingress of shop)
        (json!({ "policyTypes": ["Egress"] }), "-+"),
        (json!({ "policyTypes": ["Ingress"] }), "+-"),
        (json!({ "policyTypes": ["Ingress", "Egress"] }), "--"),
        (json!({ "policyTypes": [] }), "+-"),
        (json!({ "egress": rule }), "+-"),
        (json!({ "egress": [{ "ports": [{ "port": 1 }] }] }), "--"),
        (json!({ "ingress": rule }), "++"),
        (json!({ "ingress": rule, "policyTypes": ["Egress"] }), "-+"),
        (json!({ "egress": rule, "policyTypes": ["Ingress"] }), "+-"),
    ];
    for (spec, expected) in cases {
        let mut world = world();
        world.policy("shop/p", &spec);
        let packets = [(WEB, TEAM, TCP, 80), (TEAM, WEB, TCP, 80)];
        assert_eq!(allowed(&world.desired(), &packets), expected, "{spec}");
    }
}

#[test]
fn missing_and_empty_lists_of_peers_are_everybody() {
    for rule in [json!({}), json!({ "from": [] }), json!({ "from": [], "ports": [] })] {
        let mut world = world();
        world.policy("shop/p", &json!({ "ingress": [rule] }));
        assert_eq!(reach(&world, WEB, TCP, 80), "+++++");
        assert_eq!(reach(&world, WEB, ICMP, 0), "+++++");
    }
}

#[test]
fn peers_by_pod_by_namespace_and_by_both() {
    let back = json!({ "matchLabels": { "tier": "back" } });
    let cases = [
        (json!([{ "podSelector": {} }]), "++---"),
        (json!([{ "podSelector": back }]), "++---"),
        (json!([{ "namespaceSelector": {} }]), "++++-"),
        (json!([{ "namespaceSelector": { "matchLabels": { "env": "test" } } }]), "+-+--"),
        (json!([{ "namespaceSelector": {}, "podSelector": back }]), "++-+-"),
        (
            json!([{ "namespaceSelector": { "matchLabels": { "env": "test" } }, "podSelector": back }]),
            "+----",
        ),
        (
            json!([{ "namespaceSelector": { "matchLabels": { "env": "test" } } }, { "podSelector": back }]),
            "+++--",
        ),
        (
            json!([{ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "other" } } }]),
            "+--+-",
        ),
        (
            json!([{ "namespaceSelector": { "matchExpressions": [{ "key": "env", "operator": "DoesNotExist" }] } }]),
            "+--+-",
        ),
        (
            json!([{ "namespaceSelector": { "matchExpressions": [{ "key": "env", "operator": "NotIn", "values": ["prod"] }] } }]),
            "+-++-",
        ),
        (
            json!([{ "namespaceSelector": {}, "podSelector": { "matchExpressions": [
            { "key": "app", "operator": "In", "values": ["db", "client"] },
            { "key": "tier", "operator": "Exists" },
        ] } }]),
            "++-+-",
        ),
    ];
    for (peers, expected) in cases {
        assert_eq!(reach(&from(&peers), WEB, TCP, 80), expected, "{peers}");
    }
}

#[test]
fn a_pod_without_labels_matches_what_asks_for_none() {
    let world = from(
        &json!([{ "podSelector": { "matchExpressions": [{ "key": "tier", "operator": "DoesNotExist" }] } }]),
    );
    assert_eq!(reach(&world, WEB, TCP, 80), "+----");
    let mut world = world;
    world.local(pod("shop/new", "", &["10.0.0.9"]));
    assert_eq!(allowed(&world.desired(), &[("10.0.0.9", WEB, TCP, 80)]), "+");
}

#[test]
fn several_policies_add_up_and_the_first_rule_that_matches_is_told() {
    let mut world = world();
    world
        .policy("shop/a", &json!({ "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "none" } } }] }, { "ports": [{ "port": 80 }] }] }))
        .policy("shop/b", &json!({ "ingress": [{ "from": [{ "namespaceSelector": { "matchLabels": { "env": "test" } } }] }] }));
    assert_eq!(reach(&world, WEB, TCP, 80), "+++++");
    assert_eq!(reach(&world, WEB, TCP, 81), "+-+--");
    let planner = world.planned();
    let told = |from: &str, port| match verdict(planner.desired(), from, WEB, TCP, port).ingress {
        Side::Isolated { set, decision, .. } => {
            let set = &planner.desired().sets[&set];
            assert_eq!((set.direction, set.policies.len()), (Direction::Ingress, 2));
            planner.desired().rules.get(&decision.rule).map(ToString::to_string)
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(told(TEAM, 80).as_deref(), Some("shop/a ingress[1]"));
    assert_eq!(told(TEAM, 81).as_deref(), Some("shop/b ingress[0]"));
    assert_eq!(told(OTHER, 81), None);
}

#[test]
fn both_ends_have_to_agree() {
    let mut world = world();
    let only_web = json!([{ "podSelector": { "matchLabels": { "app": "web" } } }]);
    world.policy("shop/out", &json!({ "podSelector": { "matchLabels": { "app": "db" } }, "policyTypes": ["Egress"], "egress": [{ "to": only_web }] }));
    assert_eq!(reached(&world, DB, TCP, 80), "++---");
    world.policy("shop/in", &json!({ "podSelector": { "matchLabels": { "app": "web" } } }));
    assert_eq!(reached(&world, DB, TCP, 80), "-+---");
    let verdict = verdict(&world.desired(), DB, WEB, TCP, 80);
    assert!(verdict.egress.allows() && !verdict.ingress.allows());
}

#[test]
fn blocks_with_exceptions_overlap() {
    let mut world = from(&json!([
        { "ipBlock": { "cidr": "198.51.100.0/24", "except": ["198.51.100.0/25", "198.51.100.200/32"] } },
        { "ipBlock": { "cidr": "198.51.100.64/26", "except": ["198.51.100.100/31"] } },
        { "ipBlock": { "cidr": "2001:db8::/32" } },
    ]));
    let world = world.policy(
        "other/p",
        &json!({ "ingress": [{ "from": [{ "ipBlock": { "cidr": "198.51.100.201/32" } }] }] }),
    );
    let from = [
        "198.51.100.1",
        "198.51.100.65",
        "198.51.100.100",
        "198.51.100.128",
        "198.51.100.200",
        "198.51.100.201",
        "198.51.101.0",
    ];
    assert_eq!(allowed(&world.desired(), &from.map(|from| (from, WEB, TCP, 80))), "-+-+-+-");
    let from = ["2001:db8::1", "2001:db9::1"];
    assert_eq!(allowed(&world.desired(), &from.map(|from| (from, "fd00::1", TCP, 80))), "+-");
}

#[test]
fn all_of_ipv6_is_nothing_of_ipv4() {
    let world = from(&json!([{ "ipBlock": { "cidr": "::/0", "except": ["2001:db8::/32"] } }]));
    let desired = world.desired();
    let packets = [
        (WORLD, WEB, TCP, 80),
        ("2001:db9::1", "fd00::1", TCP, 80),
        ("2001:db8::1", "fd00::1", TCP, 80),
        (TEAM, WEB, TCP, 80),
        ("fd00::3", "fd00::1", TCP, 80),
    ];
    assert_eq!(allowed(&desired, &packets), "-+--+");
    let both = from(&json!([{ "ipBlock": { "cidr": "::/0" } }, { "ipBlock": { "cidr": "0.0.0.0/0" } }]));
    assert_eq!(allowed(&both.desired(), &packets), "+++++");
    let v4 = from(&json!([{ "ipBlock": { "cidr": "0.0.0.0/0" } }]));
    assert_eq!(allowed(&v4.desired(), &packets), "+--+-");
}

#[test]
fn a_block_has_the_pods_in_it_too() {
    let world = from(&json!([{ "ipBlock": { "cidr": "10.0.0.0/24", "except": ["10.0.0.4/32"] } }]));
    assert_eq!(reach(&world, WEB, TCP, 80), "+++--");
    let world = from(&json!([
        { "ipBlock": { "cidr": "10.0.0.0/24", "except": ["10.0.0.4/32"] } },
        { "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "other" } } },
    ]));
    assert_eq!(reach(&world, WEB, TCP, 80), "++++-", "an exception takes nothing from another peer");
}

#[test]
fn ports_and_protocols() {
    let cases = [
        // TCP 80, TCP 81, UDP 80, SCTP 80, ICMP
        (json!([{ "port": 80 }]), "+----"),
        (json!([{ "port": 80, "protocol": "UDP" }]), "--+--"),
        (json!([{ "port": 80, "protocol": "SCTP" }]), "---+-"),
        (json!([{ "protocol": "TCP" }]), "++---"),
        (json!([{}]), "++---"),
        (json!([{ "port": 79, "endPort": 81 }]), "++---"),
        (json!([{ "port": 81, "endPort": 81 }, { "port": 80, "protocol": "SCTP" }]), "-+-+-"),
        (json!([]), "+++++"),
        (json!([{ "port": 1, "endPort": 65535 }, { "protocol": "UDP" }]), "+++--"),
    ];
    for (list, expected) in cases {
        let packets = [(TCP, 80), (TCP, 81), (UDP, 80), (SCTP, 80), (ICMP, 0)];
        let packets = packets.map(|(protocol, port)| (TEAM, WEB, protocol, port));
        assert_eq!(allowed(&ports(&list).desired(), &packets), expected, "{list}");
    }
    let edges = ports(&json!([{ "port": 100, "endPort": 200 }])).desired();
    assert_eq!(allowed(&edges, &[99, 100, 200, 201].map(|port| (TEAM, WEB, TCP, port))), "-++-");
}

#[test]
fn named_ports_are_the_destinations_own() {
    let mut world = ports(&json!([{ "port": "http" }, { "port": "dns", "protocol": "UDP" }]));
    world
        .port("shop/web", "http", 8080, Protocol::Tcp)
        .port("shop/web", "dns", 53, Protocol::Tcp)
        .port("shop/db", "http", 5432, Protocol::Tcp)
        .port("team/client", "http", 9999, Protocol::Tcp);
    let desired = world.desired();
    let packets = [
        (TEAM, WEB, TCP, 8080),
        (TEAM, WEB, TCP, 5432),
        (TEAM, WEB, UDP, 53),
        (TEAM, WEB, TCP, 53),
        (TEAM, WEB, UDP, 8080),
        (TEAM, DB, TCP, 5432),
        (TEAM, DB, TCP, 8080),
        (TEAM, WEB, TCP, 9999),
    ];
    assert_eq!(allowed(&desired, &packets), "+----+--");
}

#[test]
fn named_ports_of_egress_are_the_peers_own() {
    let client = json!({ "matchLabels": { "app": "client" } });
    let spec = |rule: &Value| json!({ "podSelector": client, "policyTypes": ["Egress"], "egress": [rule] });
    let packets = [
        (TEAM, WEB, TCP, 8080),
        (TEAM, WEB, TCP, 5432),
        (TEAM, DB, TCP, 5432),
        (TEAM, OTHER, TCP, 8080),
        (TEAM, WORLD, TCP, 8080),
        (TEAM, WEB, UDP, 8080),
    ];
    for (rule, expected) in [
        (json!({ "ports": [{ "port": "http" }] }), "+-+---"),
        (
            json!({ "to": [{ "namespaceSelector": { "matchLabels": { "env": "prod" } } }], "ports": [{ "port": "http" }] }),
            "+-+---",
        ),
        (
            json!({ "to": [{ "ipBlock": { "cidr": "10.0.0.1/32" } }], "ports": [{ "port": "http" }] }),
            "+-----",
        ),
        (json!({ "ports": [{ "port": "http", "protocol": "UDP" }] }), "------"),
        (json!({ "ports": [{ "port": "none" }, { "port": 5432 }] }), "-++---"),
    ] {
        let mut world = world();
        world.port("shop/web", "http", 8080, Protocol::Tcp).port("shop/db", "http", 5432, Protocol::Tcp);
        world.policy("team/p", &spec(&rule));
        assert_eq!(allowed(&world.desired(), &packets), expected, "{rule}");
    }
}

#[test]
fn a_host_network_pod_is_its_node() {
    let mut world = from(&json!([{ "namespaceSelector": {} }]));
    let mut host = pod("shop/host", "app=web", &["192.168.0.2"]);
    host.host_network = true;
    world.remote(host);
    assert_eq!(allowed(&world.desired(), &[("192.168.0.2", WEB, TCP, 80)]), "-");
    let world = from(&json!([{ "ipBlock": { "cidr": "192.168.0.0/24" } }]));
    assert_eq!(allowed(&world.desired(), &[("192.168.0.2", WEB, TCP, 80)]), "+");
}

#[test]
fn a_pod_and_its_node_reach_each_other() {
    let mut world = world();
    world.policy("shop/deny", &json!({ "policyTypes": ["Ingress", "Egress"] }));
    let desired = world.desired();
    assert_eq!(
        allowed(&desired, &[(WEB, NODE, TCP, 22), (WEB, "192.168.0.2", TCP, 22), (NODE, WEB, TCP, 80)]),
        "+--"
    );
    let from_node = Packet { from_node: true, ..packet(NODE, WEB, TCP, 80) };
    assert_eq!(
        judge(&desired, &from_node).ingress,
        Side::Node,
        "that the node made it is not its address's doing"
    );
    assert!(judge(&desired, &from_node).allowed());
    assert_eq!(
        allowed(&desired, &[(WEB, WEB, TCP, 80), ("fd00::1", "fd00::1", TCP, 80), (WEB, DB, TCP, 80)]),
        "++-"
    );
}

#[test]
fn finished_pods_have_no_address() {
    let mut world = from(&json!([{ "namespaceSelector": {} }]));
    let mut job = pod("team/job", "app=job", &["10.0.1.1"]);
    world.remote(job.clone());
    assert_eq!(allowed(&world.desired(), &[("10.0.1.1", WEB, TCP, 80)]), "+");
    job.finished = true;
    world.remote(job);
    assert_eq!(allowed(&world.desired(), &[("10.0.1.1", WEB, TCP, 80)]), "-");
    // Its address is another's already.
    world.remote(pod("other/next", "", &["10.0.1.1"]));
    assert_eq!(allowed(&world.desired(), &[("10.0.1.1", WEB, TCP, 80)]), "+");
}

#[test]
fn who_claims_an_address_first_by_rank() {
    let mut world = from(&json!([{ "namespaceSelector": { "matchLabels": { "env": "test" } } }]));
    let mut going = pod("shop/a", "", &["10.0.1.31"]);
    going.terminating = true;
    world.remote(going).remote(pod("team/b", "", &["10.0.1.31"]));
    assert_eq!(allowed(&world.desired(), &[("10.0.1.31", WEB, TCP, 80)]), "+", "one that stays is right");
    world.here(Some(name("other/c")), &[ip("10.0.1.31")]);
    assert_eq!(allowed(&world.desired(), &[("10.0.1.31", WEB, TCP, 80)]), "-", "the ledger is right");
    world.node_addresses.push(ip("10.0.0.3"));
    assert_eq!(allowed(&world.desired(), &[(TEAM, WEB, TCP, 80)]), "-", "the node is right");
}

#[test]
fn the_ledger_knows_which_pods_are_here() {
    let mut world = world();
    world.here(None, &[ip("10.0.0.20")]);
    world.here(Some(name("shop/unknown")), &[ip("10.0.0.21")]);
    world.policy("shop/deny", &json!({}));
    let desired = world.desired();
    assert_eq!(
        verdict(&desired, TEAM, "10.0.0.20", TCP, 1).ingress,
        Side::Open,
        "no pod: nothing selects it"
    );
    assert!(!verdict(&desired, TEAM, "10.0.0.21", TCP, 1).allowed());
    assert_eq!(verdict(&desired, TEAM, "10.0.0.22", TCP, 1).ingress, Side::Elsewhere);
}

#[test]
fn what_cannot_be_read_closes_whom_it_selects() {
    let mut world = world();
    world.policy("shop/p", &json!({ "podSelector": { "matchLabels": { "app": "web" } }, "ingress": [{ "ports": [{ "port": 80 }] }] }));
    let key = name("shop/p");
    let mut policy = (*world.model.policies[&key]).clone();
    policy.spec.ingress.as_mut().unwrap()[0].ports.as_mut().unwrap()[0].protocol = Some("QUIC".into());
    world.model.policies.insert(key.clone(), policy.into());
    let desired = world.desired();
    assert_eq!(verdict(&desired, TEAM, WEB, TCP, 80).ingress, Side::Closed);
    assert!(
        verdict(&desired, TEAM, DB, TCP, 80).allowed() && verdict(&desired, WEB, TEAM, TCP, 80).allowed()
    );
    let why = "protocol \"QUIC\" is not TCP, UDP or SCTP".into();
    assert_eq!(
        desired.problems,
        [Problem::Broken { policy: key, direction: Direction::Ingress, why }].into()
    );
}

#[test]
fn a_list_that_is_too_long_closes_its_pods_until_it_is_shorter() {
    let odd = |count: u32| -> Value { (0..count).map(|n| json!({ "port": 1 + 2 * n })).collect() };
    let mut world = world();
    world.policy(
        "shop/p",
        &json!({ "podSelector": { "matchLabels": { "app": "web" } }, "ingress": [{ "ports": odd(4097) }] }),
    );
    let mut planner = world.planned();
    assert_eq!(verdict(planner.desired(), TEAM, WEB, TCP, 1).ingress, Side::Closed);
    let told: Vec<String> = planner.desired().problems.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(told.join("\n"), @"the ingress rules of NetworkPolicy shop/p come to 4097 ranges of ports for one peer, 4096 are possible; the pods that they select are closed for ingress");
    world.policy(
        "shop/p",
        &json!({ "podSelector": { "matchLabels": { "app": "web" } }, "ingress": [{ "ports": odd(4096) }] }),
    );
    planner.update(world.input());
    assert_eq!(
        allowed(planner.desired(), &[(TEAM, WEB, TCP, 1), (TEAM, WEB, TCP, 2), (TEAM, WEB, TCP, 8191)]),
        "+-+"
    );
    assert!(planner.desired().problems.is_empty());
}

/// Nothing is known of the labels of `shop/late`, which is here, and of those of the namespace `far`.
#[test]
fn what_is_not_known_is_not_allowed() {
    let mut world = World::new();
    world.namespace("shop", "").namespace("blog", "");
    world.local(pod("shop/web", "app=web", &["10.0.0.1"])).here(Some(name("shop/late")), &[ip("10.0.0.2")]);
    world.remote(pod("far/pod", "", &["10.1.0.1"])).remote(pod("blog/pod", "", &["10.1.0.2"]));
    let from = |peer: &Value| json!({ "podSelector": { "matchLabels": { "app": "web" } }, "ingress": [{ "from": [peer] }] });
    let (late, far, blog) = ("10.0.0.2", "10.1.0.1", "10.1.0.2");
    let reach = |world: &World| {
        let packets = [late, far, blog].map(|from| (from, "10.0.0.1", TCP, 80));
        allowed(&world.desired(), &packets)
    };
    for (peer, expected) in [
        (json!({ "namespaceSelector": {} }), "+++"),
        (json!({ "podSelector": {} }), "+--"),
        (not_labelled("podSelector", "DoesNotExist"), "---"),
        (not_labelled("podSelector", "NotIn"), "---"),
        (both(&json!({}), "podSelector", "DoesNotExist"), "-++"),
        (both(&json!({}), "podSelector", "NotIn"), "-++"),
        (not_labelled("namespaceSelector", "DoesNotExist"), "+-+"),
        (not_labelled("namespaceSelector", "NotIn"), "+-+"),
        (json!({ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "far" } } }), "-+-"),
    ] {
        let mut world = world.clone();
        world.policy("shop/web", &from(&peer));
        assert_eq!(reach(&world), expected, "{peer}");
    }
    // It may be what the policy is about.
    assert!(verdict(&world.desired(), blog, late, TCP, 80).allowed());
    world.policy("shop/web", &from(&json!({ "namespaceSelector": {} })));
    let desired = world.desired();
    assert!(
        !verdict(&desired, blog, late, TCP, 80).allowed() && verdict(&desired, late, blog, TCP, 80).allowed()
    );
    assert_eq!(desired.problems, [Problem::Unknown { pod: name("shop/late") }].into());
    // It is not, it is, and it is not known any more.
    let mut planner = world.planned();
    for (object, expected) in [
        (Some(pod("shop/late", "app=db", &[])), true),
        (Some(pod("shop/late", "app=web", &[])), true),
        (Some(pod("shop/late", "app=db", &[])), true),
        (None, false),
    ] {
        match object {
            Some(object) => drop(world.remote(object)),
            None => drop(world.model.pods.remove(&name("shop/late"))),
        }
        planner.update(world.input());
        assert_eq!(*planner.desired(), world.desired());
        assert_eq!(verdict(planner.desired(), blog, late, TCP, 80).allowed(), expected);
        assert_eq!(planner.desired().problems.is_empty(), expected);
    }
}

/// A peer without a label of this key, or without this value of it.
fn not_labelled(selector: &str, operator: &str) -> Value {
    let values = if operator == "NotIn" { json!(["yes"]) } else { json!([]) };
    json!({ selector: { "matchExpressions": [{ "key": "closed", "operator": operator, "values": values }] } })
}

/// Such a pod, in namespaces like this.
fn both(namespaces: &Value, selector: &str, operator: &str) -> Value {
    let mut peer = not_labelled(selector, operator);
    peer["namespaceSelector"] = namespaces.clone();
    peer
}
