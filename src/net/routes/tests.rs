use super::diff::{Wanted, diff, in_kernel, merge};
use super::*;
use crate::net::RTPROT_NETD;
use crate::net::netlink::NextHop;
use crate::net::netns::NetNs;
use crate::net::testing::{namespace, sh};
use proptest::prelude::*;

fn route(prefix: &str, gateway: &str, ifindex: u32) -> Route {
    Route { prefix: prefix.parse().unwrap(), gateway: gateway.parse().unwrap(), ifindex, onlink: false }
}

/// A node with an uplink `u0` at 192.0.2.1/24 and 2001:db8::1/64, and the uplink's index.
async fn node() -> (NetNs, Netlink, u32) {
    let ns = namespace();
    sh(
        &ns,
        "ip link set lo up; ip link add u0 type veth peer name far; ip link set far up addrgenmode none
         ip link set u0 up addrgenmode none
         ip addr add 192.0.2.1/24 dev u0; ip addr add 2001:db8::1/64 dev u0 nodad
         ip route add default via 192.0.2.254; ip -6 route add default via 2001:db8::fe",
    );
    let nl = Netlink::open_in(&ns).unwrap();
    let up = nl.link_by_name("u0").await.unwrap().unwrap().index;
    (ns, nl, up)
}

fn table(ns: &NetNs) -> String {
    sh(ns, "ip route; ip -6 route")
}

fn ours(ns: &NetNs) -> Vec<String> {
    let text = sh(ns, "ip route show proto 110; ip -6 route show proto 110");
    text.lines()
        .map(|line| line.split(" metric").next().unwrap().trim().replace("proto 110", "").trim().to_owned())
        .collect()
}

#[tokio::test]
async fn converges_and_stays() {
    let (ns, nl, up) = node().await;
    let before = table(&ns);
    let mut writer = RouteWriter::new(nl, &[Owner::Nodes]);
    writer.state(
        Owner::Nodes,
        vec![
            route("10.0.1.0/24", "192.0.2.2", up),
            route("10.0.2.0/24", "192.0.2.3", up),
            route("fd00:0:0:1::/64", "2001:db8::2", up),
        ],
    );
    let report = writer.apply().await.unwrap();
    assert_eq!((report.added.len(), report.replaced.len(), report.removed.len()), (3, 0, 0), "{report:?}");
    let expected = [
        "10.0.1.0/24 via 192.0.2.2 dev u0",
        "10.0.2.0/24 via 192.0.2.3 dev u0",
        "fd00:0:0:1::/64 via 2001:db8::2 dev u0",
    ];
    assert_eq!(ours(&ns), expected);
    assert!(writer.apply().await.unwrap().is_unchanged());
    // Somebody breaks it: mended.
    sh(
        &ns,
        "ip route del 10.0.1.0/24; ip route change 10.0.2.0/24 via 192.0.2.9 proto 110; ip route add 10.9.0.0/16 via 192.0.2.9 proto 110",
    );
    let report = writer.apply().await.unwrap();
    assert_eq!((report.added.len(), report.replaced.len()), (1, 1), "{report:?}");
    assert_eq!(report.removed, ["10.9.0.0/16".parse::<IpNet>().unwrap()]);
    assert_eq!(ours(&ns), expected);
    // Other next hops, one gone.
    writer.state(
        Owner::Nodes,
        vec![route("10.0.1.0/24", "192.0.2.7", up), route("fd00:0:0:1::/64", "2001:db8::7", up)],
    );
    let report = writer.apply().await.unwrap();
    assert_eq!((report.added.len(), report.replaced.len(), report.removed.len()), (0, 2, 1), "{report:?}");
    assert_eq!(ours(&ns), ["10.0.1.0/24 via 192.0.2.7 dev u0", "fd00:0:0:1::/64 via 2001:db8::7 dev u0"]);
    writer.state(Owner::Nodes, vec![]);
    assert_eq!(writer.apply().await.unwrap().removed.len(), 2);
    assert_eq!(table(&ns), before);
}

#[tokio::test]
async fn gateways_of_the_other_family_and_off_the_subnet() {
    let (ns, nl, up) = node().await;
    let mut writer = RouteWriter::new(nl, &[Owner::Nodes]);
    let onlink = |prefix, gateway| Route { onlink: true, ..route(prefix, gateway, up) };
    writer.state(
        Owner::Nodes,
        vec![
            route("10.0.1.0/24", "2001:db8::2", up),
            onlink("10.0.2.0/24", "203.0.113.9"),
            onlink("fd00:0:0:2::/64", "2001:db8:9::9"),
        ],
    );
    let report = writer.apply().await.unwrap();
    assert_eq!(report.added.len(), 3, "{report:?}");
    assert_eq!(
        ours(&ns),
        [
            "10.0.1.0/24 via inet6 2001:db8::2 dev u0",
            "10.0.2.0/24 via 203.0.113.9 dev u0 onlink",
            "fd00:0:0:2::/64 via 2001:db8:9::9 dev u0",
        ]
    );
    assert!(writer.apply().await.unwrap().is_unchanged());
}

#[tokio::test]
async fn foreign_routes_win_and_stay_untouched() {
    let (ns, nl, up) = node().await;
    let mut writer = RouteWriter::new(nl, &[Owner::Nodes]);
    let wanted = vec![
        route("10.0.1.0/24", "192.0.2.2", up),
        route("10.0.2.0/24", "192.0.2.2", up),
        route("fd00:0:0:1::/64", "2001:db8::2", up),
        route("192.0.2.0/24", "192.0.2.2", up),
    ];
    sh(&ns, "ip route add 10.0.1.0/24 via 192.0.2.99 proto static");
    // Another metric does not clash in the kernel, but it is another's prefix all the same.
    sh(&ns, "ip -6 route add fd00:0:0:1::/64 via 2001:db8::99 proto bird metric 5000");
    let before = table(&ns);
    writer.state(Owner::Nodes, wanted);
    let report = writer.apply().await.unwrap();
    assert_eq!(report.added, [route("10.0.2.0/24", "192.0.2.2", up)]);
    let told: Vec<String> = report.conflicts.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            format!(
                "route 10.0.1.0/24 via 192.0.2.2 dev #{up} of nodes: there is 10.0.1.0/24 via 192.0.2.99 dev #{up} proto 4"
            ),
            format!(
                "route 192.0.2.0/24 via 192.0.2.2 dev #{up} of nodes: there is 192.0.2.0/24 dev #{up} proto 2"
            ),
            format!(
                "route fd00:0:0:1::/64 via 2001:db8::2 dev #{up} of nodes: there is fd00:0:0:1::/64 via 2001:db8::99 dev #{up} proto 12 metric 5000"
            ),
        ]
    );
    // One comes later: ours gives way, at every run the same.
    sh(&ns, "ip route add 10.0.2.0/24 via 192.0.2.98 proto static metric 7");
    let report = writer.apply().await.unwrap();
    assert_eq!((report.removed.len(), report.conflicts.len()), (1, 4), "{report:?}");
    assert!(writer.apply().await.unwrap().is_unchanged());
    assert!(ours(&ns).is_empty());
    // It goes: ours comes back.
    sh(&ns, "ip route del 10.0.2.0/24 via 192.0.2.98");
    assert_eq!(writer.apply().await.unwrap().added.len(), 1);
    writer.state(Owner::Nodes, vec![]);
    writer.apply().await.unwrap();
    assert_eq!(table(&ns), before);
}

#[tokio::test]
async fn default_routes_are_never_touched() {
    let (ns, nl, up) = node().await;
    let mut writer = RouteWriter::new(nl, &[Owner::Nodes]);
    // Not even one of netd's own protocol.
    sh(&ns, "ip route add default via 192.0.2.77 metric 9 proto 110");
    let before = table(&ns);
    writer.state(Owner::Nodes, vec![route("0.0.0.0/0", "192.0.2.2", up), route("::/0", "2001:db8::2", up)]);
    let report = writer.apply().await.unwrap();
    assert!(report.is_unchanged(), "{report:?}");
    assert!(report.conflicts.iter().all(|conflict| conflict.with == Obstacle::DefaultRoute));
    assert_eq!(report.conflicts.len(), 2);
    assert_eq!(table(&ns), before);
}

#[tokio::test]
async fn restart_keeps_routes_until_every_owner_has_spoken() {
    let (ns, nl, up) = node().await;
    let (node_route, bgp_route) =
        (route("10.0.1.0/24", "192.0.2.2", up), route("10.7.0.0/16", "192.0.2.254", up));
    let mut writer = RouteWriter::new(nl.clone(), &[Owner::Nodes, Owner::Bgp]);
    writer.state(Owner::Nodes, vec![node_route, route("10.0.5.0/24", "192.0.2.5", up)]);
    writer.state(Owner::Bgp, vec![bgp_route]);
    writer.apply().await.unwrap();
    drop(writer);
    // The new life knows of one node less, and BGP has not converged.
    let mut writer = RouteWriter::new(nl, &[Owner::Nodes, Owner::Bgp]);
    writer.state(Owner::Nodes, vec![node_route]);
    let report = writer.apply().await.unwrap();
    assert!(report.is_unchanged(), "{report:?}");
    assert_eq!(report.waiting_for, [Owner::Bgp]);
    assert_eq!(ours(&ns).len(), 3);
    writer.state(Owner::Bgp, vec![bgp_route]);
    let report = writer.apply().await.unwrap();
    assert_eq!(report.removed, ["10.0.5.0/24".parse::<IpNet>().unwrap()]);
    assert_eq!(ours(&ns), ["10.0.1.0/24 via 192.0.2.2 dev u0", "10.7.0.0/16 via 192.0.2.254 dev u0"]);
}

#[tokio::test]
async fn routes_to_pods_are_left_alone() {
    let (ns, nl, up) = node().await;
    sh(&ns, "ip route add 10.0.0.5 dev u0 proto 110; ip -6 route add fd00::5 dev u0 proto 110");
    let before = table(&ns);
    let mut writer = RouteWriter::new(nl, &[Owner::Nodes]);
    writer.state(Owner::Nodes, vec![route("10.0.0.5/32", "192.0.2.2", up)]);
    let report = writer.apply().await.unwrap();
    assert!(report.is_unchanged(), "{report:?}");
    assert_eq!(report.conflicts.len(), 1);
    assert_eq!(table(&ns), before);
}

#[tokio::test]
async fn refused_route_does_not_hold_up_the_others() {
    let (ns, nl, up) = node().await;
    let mut writer = RouteWriter::new(nl, &[Owner::Nodes]);
    let mut wanted = vec![route("10.0.1.0/24", "203.0.113.1", up)];
    wanted.extend((2..200).map(|n| route(&format!("10.0.{n}.0/24"), "192.0.2.2", up)));
    writer.state(Owner::Nodes, wanted);
    let report = writer.apply().await.unwrap();
    assert_eq!((report.added.len(), report.failed.len()), (198, 1));
    let (prefix, error) = &report.failed[0];
    assert_eq!(prefix.to_string(), "10.0.1.0/24");
    assert_eq!(
        error.to_string(),
        format!("add route 10.0.1.0/24 via 203.0.113.1 dev #{up} proto 110 (Nexthop has invalid gateway)")
    );
    assert_eq!(error.errno(), Some(libc::ENETUNREACH));
    assert_eq!(ours(&ns).len(), 198);
}

#[test]
fn first_owner_gets_the_prefix_and_the_other_hears_of_it() {
    let stated = BTreeMap::from([
        (
            Owner::Nodes,
            Some(vec![route("10.0.1.0/24", "192.0.2.2", 2), route("10.0.1.9/24", "192.0.2.2", 2)]),
        ),
        (Owner::Bgp, Some(vec![route("10.0.1.0/24", "192.0.2.2", 2), route("10.0.1.0/24", "192.0.2.3", 2)])),
    ]);
    let (wanted, conflicts) = merge(&stated);
    assert_eq!(wanted.len(), 1);
    let told: Vec<String> = conflicts.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["route 10.0.1.0/24 via 192.0.2.3 dev #2 of bgp: nodes wants another next hop"]);
}

fn any_prefix() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (0u8..4, 23u8..=24).prop_map(|(n, length)| IpNet::new([10, 0, n, 0].into(), length).unwrap().trunc()),
        (0u16..4, 63u8..=64).prop_map(|(n, length)| IpNet::new([0xfd00, 0, 0, n, 0, 0, 0, 0].into(), length)
            .unwrap()
            .trunc()),
        Just("0.0.0.0/0".parse().unwrap()),
        Just("10.0.0.7/32".parse().unwrap()),
    ]
}

fn gateway(prefix: IpNet, n: u8) -> std::net::IpAddr {
    if prefix.addr().is_ipv4() {
        [192, 0, 2, n].into()
    } else {
        [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)].into()
    }
}

fn any_kernel_route() -> impl Strategy<Value = KernelRoute> {
    (any_prefix(), 1u8..4, prop_oneof![Just(RTPROT_NETD), Just(4u8)], 0u32..3, any::<bool>(), 1u8..3)
        .prop_map(|(prefix, n, protocol, metric, unicast, hops)| {
            let base = if prefix.addr().is_ipv6() { 1024 } else { 0 };
            let direct = n == 3;
            let hop =
                |n| NextHop { gateway: (!direct).then(|| gateway(prefix, n)), ifindex: 2, onlink: false };
            KernelRoute {
                protocol,
                metric: base + metric,
                unicast,
                next_hops: if unicast { (0..hops).map(|i| hop(n + i)).collect() } else { vec![] },
                ..KernelRoute::new(prefix, hop(n))
            }
        })
}

/// The kernel's table after a diff: what netlink does, in its order.
fn perform(table: &mut Vec<KernelRoute>, wanted: &Wanted, may_remove: bool) -> usize {
    let diff = diff(wanted, table.clone(), may_remove);
    let steps = diff.add.len() + diff.replace.len() + diff.remove.len();
    let same =
        |a: &KernelRoute, b: &KernelRoute| a.prefix == b.prefix && a.metric == b.metric && a.tos == b.tos;
    for route in &diff.replace {
        let new = in_kernel(route);
        let old = table.iter_mut().find(|old| same(old, &new)).expect("something to replace");
        assert_eq!(old.protocol, RTPROT_NETD, "a foreign route was replaced");
        *old = new;
    }
    for route in &diff.add {
        let new = in_kernel(route);
        assert!(!table.iter().any(|old| same(old, &new)), "EEXIST");
        table.push(new);
    }
    for route in &diff.remove {
        let at = table.iter().position(|old| old == route).expect("something to remove");
        table.remove(at);
    }
    steps
}

proptest! {
    #[test]
    fn one_run_is_enough_and_foreign_routes_survive(
        mut table in prop::collection::vec(any_kernel_route(), 0..12),
        stated in prop::collection::vec((any_prefix(), 1u8..4), 0..8),
    ) {
        let routes = stated.iter().map(|(prefix, n)| Route { prefix: *prefix, gateway: gateway(*prefix, *n), ifindex: 2, onlink: false });
        let (wanted, _) = merge(&BTreeMap::from([(Owner::Nodes, Some(routes.collect()))]));
        let is_foreign = |route: &KernelRoute| {
            route.protocol != RTPROT_NETD || route.prefix.prefix_len() == 0 || crate::net::pod::pod_of(route).is_some()
        };
        let foreign = |table: &[KernelRoute]| table.iter().filter(|r| is_foreign(r)).cloned().collect::<Vec<_>>();
        let before = foreign(&table);
        let stale: Vec<_> = table.iter().filter(|r| !is_foreign(r) && !wanted.contains_key(&r.prefix)).cloned().collect();
        let mut hesitant = table.clone();
        perform(&mut hesitant, &wanted, false);
        prop_assert!(stale.iter().all(|route| hesitant.contains(route)), "removed before all had spoken");
        perform(&mut table, &wanted, true);
        prop_assert_eq!(&foreign(&table), &before);
        prop_assert_eq!(perform(&mut table.clone(), &wanted, true), 0, "a second run had work");
        perform(&mut hesitant, &wanted, true);
        let sorted = |table: &[KernelRoute]| { let mut t: Vec<_> = table.iter().map(ToString::to_string).collect(); t.sort(); t };
        prop_assert_eq!(sorted(&hesitant), sorted(&table));
        for (prefix, (_, route)) in &wanted {
            let taken = before.iter().any(|other| other.prefix == *prefix);
            prop_assert_eq!(table.contains(&in_kernel(route)), !taken);
        }
        for route in table.iter().filter(|route| !is_foreign(route)) {
            prop_assert!(wanted.contains_key(&route.prefix));
        }
    }
}
