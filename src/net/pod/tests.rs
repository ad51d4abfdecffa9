use super::*;
use crate::net::netns::NetNs;
use crate::net::testing::{eventually, namespace, path_of, sh, try_sh};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A node: a namespace of its own with an address, forwarding, and its netlink socket.
struct Node {
    ns: NetNs,
    nl: Netlink,
}

fn node() -> Node {
    let ns = namespace();
    sh(
        &ns,
        "ip link set lo up; ip addr add 192.0.2.1/32 dev lo; ip addr add 2001:db8:ffff::1/128 dev lo;
         sysctl -qw net.ipv4.conf.all.forwarding=1 net.ipv6.conf.all.forwarding=1",
    );
    let nl = Netlink::open_in(&ns).unwrap();
    Node { ns, nl }
}

fn pod(ns: &NetNs, n: u16, addresses: &[&str]) -> PodInterface {
    let id = format!("c{n:04}");
    PodInterface {
        netns: path_of(ns),
        pod_name: "eth0".into(),
        host_name: host_name(&id, "eth0"),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        mtu: 1450,
        alias: format!("netd:{id}:eth0:shop/web-{n}"),
    }
}

/// Links, routes, neighbours and addresses of a namespace, to compare before and after.
fn traces(ns: &NetNs) -> String {
    sh(ns, "ip -o link | cut -d' ' -f2; ip route; ip -6 route; ip neigh; ip -o addr | awk '{print $2,$3,$4}'")
}

fn pings(ns: &NetNs, to: &str) {
    let (ok, text) = try_sh(ns, &format!("ping -n -c1 -W2 {to}"));
    assert!(ok, "{text}\n{}", sh(ns, "ip addr; ip route; ip -6 route; ip neigh; ip -s link"));
}

/// Makes an interface and brings it up.
async fn make(nl: &Netlink, pod: &PodInterface) -> Result<PodLink, Error> {
    let link = create(nl, pod).await?;
    start(nl, pod).await?;
    Ok(link)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dual_stack_pods_reach_the_node_and_each_other() {
    let node = node();
    let (first, second) = (namespace(), namespace());
    let (before_node, before_pod) = (traces(&node.ns), traces(&first));
    let a = pod(&first, 1, &["10.1.0.2", "2001:db8:1::2"]);
    let b = pod(&second, 2, &["10.1.0.3", "2001:db8:1::3"]);
    let link = make(&node.nl, &a).await.unwrap();
    make(&node.nl, &b).await.unwrap();
    for (from, to) in [
        (&node.ns, "10.1.0.2"),
        (&node.ns, "2001:db8:1::2"),
        (&first, "10.1.0.3"),
        (&first, "2001:db8:1::3"),
        (&second, "192.0.2.1"),
        (&second, "2001:db8:ffff::1"),
        (&first, "10.1.0.2"),
        (&first, "2001:db8:1::2"),
        (&first, "::1"),
        (&first, "127.0.0.1"),
    ] {
        pings(from, to);
    }
    let shown = sh(&node.ns, &format!("ip -d link show {}; ip addr show dev {}", a.host_name, a.host_name));
    for part in [&a.alias, "02:6e:65:74:64:01", "mtu 1450", "fe80::1/64", "veth", "addrgenmode none"] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }
    assert_eq!(check(&node.nl, &a).await.unwrap(), link);
    assert!(delete(&node.nl, &a.host_name).await.unwrap());
    assert!(!delete(&node.nl, &a.host_name).await.unwrap());
    assert!(matches!(check(&node.nl, &a).await, Err(Error::Missing { .. })));
    assert!(delete(&node.nl, &b.host_name).await.unwrap());
    assert_eq!(traces(&node.ns), before_node);
    // `lo` stays up, that is all.
    assert_eq!(sh(&first, "ip -o link | wc -l").trim(), "1", "before: {before_pod}");
    assert_eq!(sh(&first, "ip route; ip neigh").trim(), "");
}

/// Packets that the host end has seen, of either direction.
fn seen(node: &Node, host_name: &str) -> u64 {
    let shown = sh(&node.ns, &format!("ip -j -s link show dev {host_name}"));
    let links: serde_json::Value = serde_json::from_str(&shown).unwrap();
    ["rx", "tx"].iter().map(|way| links[0]["stats64"][way]["packets"].as_u64().unwrap()).sum()
}

#[tokio::test]
async fn until_it_is_started_not_one_packet_passes() {
    let node = node();
    let ns = namespace();
    let a = pod(&ns, 1, &["10.1.0.2", "2001:db8:1::2"]);
    create(&node.nl, &a).await.unwrap();
    for to in ["192.0.2.1", "2001:db8:ffff::1"] {
        assert!(!try_sh(&ns, &format!("ping -n -c2 -i0.1 -W1 {to}")).0, "{to}");
    }
    assert!(!try_sh(&node.ns, "ping -n -c1 -W1 10.1.0.2").0);
    assert_eq!(seen(&node, &a.host_name), 0);
    let error = check(&node.nl, &a).await.unwrap_err().to_string();
    assert!(error.contains("host end is down"), "{error}");
    // Of a node that dies here nobody takes it for a pod's: there is no route to it.
    assert_eq!(list(&node.nl).await.unwrap()[0].addresses, Vec::<std::net::IpAddr>::new());
    start(&node.nl, &a).await.unwrap();
    for to in ["192.0.2.1", "2001:db8:ffff::1"] {
        pings(&ns, to);
    }
    assert!(seen(&node, &a.host_name) >= 4);
    check(&node.nl, &a).await.unwrap();
}

#[tokio::test]
async fn ipv4_only_pod_has_no_ipv6_route() {
    let node = node();
    let (ns, peer) = (namespace(), namespace());
    let a = pod(&ns, 1, &["10.1.0.2"]);
    make(&node.nl, &a).await.unwrap();
    make(&node.nl, &pod(&peer, 2, &["10.1.0.3"])).await.unwrap();
    pings(&node.ns, "10.1.0.2");
    pings(&ns, "10.1.0.3");
    assert!(!sh(&ns, "ip -6 route").contains("default"));
    assert!(!sh(&node.ns, &format!("ip -6 addr show dev {}", a.host_name)).contains("inet6"));
    check(&node.nl, &a).await.unwrap();
}

#[tokio::test]
async fn ipv6_only_pod_has_no_ipv4_route() {
    let node = node();
    let (ns, peer) = (namespace(), namespace());
    let a = pod(&ns, 1, &["2001:db8:1::2"]);
    make(&node.nl, &a).await.unwrap();
    make(&node.nl, &pod(&peer, 2, &["2001:db8:1::3"])).await.unwrap();
    pings(&node.ns, "2001:db8:1::2");
    pings(&ns, "2001:db8:1::3");
    assert_eq!(sh(&ns, "ip -4 route; ip -4 neigh").trim(), "");
    check(&node.nl, &a).await.unwrap();
}

#[tokio::test]
async fn ipv6_comes_on_where_the_runtime_switched_it_off() {
    let node = node();
    sh(&node.ns, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    sh(&node.ns, "sysctl -qw net.ipv6.conf.lo.disable_ipv6=0; ip addr add 2001:db8:ffff::1/128 dev lo");
    let ns = namespace();
    sh(&ns, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    let a = pod(&ns, 1, &["10.1.0.2", "2001:db8:1::2"]);
    make(&node.nl, &a).await.unwrap();
    pings(&node.ns, "2001:db8:1::2");
    pings(&ns, "2001:db8:1::2");
    check(&node.nl, &a).await.unwrap();
    // A pod without IPv6 leaves it off.
    let other = namespace();
    sh(&other, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    make(&node.nl, &pod(&other, 2, &["10.1.0.3"])).await.unwrap();
    pings(&ns, "10.1.0.3");
    assert_eq!(sh(&other, "sysctl -n net.ipv6.conf.eth0.disable_ipv6").trim(), "1");
}

#[tokio::test]
async fn settings_hold_on_both_ends() {
    let node = node();
    sh(&node.ns, "sysctl -qw net.ipv4.conf.default.rp_filter=1 net.ipv4.conf.default.proxy_arp=1");
    sh(&node.ns, "sysctl -qw net.ipv4.conf.default.forwarding=0 net.ipv6.conf.default.forwarding=0");
    let ns = namespace();
    let a = pod(&ns, 1, &["10.1.0.2", "2001:db8:1::2"]);
    make(&node.nl, &a).await.unwrap();
    for (key, value) in [
        ("ipv4.conf.{}.forwarding", "1"),
        ("ipv4.conf.{}.rp_filter", "0"),
        ("ipv4.conf.{}.proxy_arp", "0"),
        ("ipv6.conf.{}.forwarding", "1"),
        ("ipv6.conf.{}.accept_ra", "0"),
    ] {
        let key = key.replace("{}", &a.host_name);
        assert_eq!(sh(&node.ns, &format!("sysctl -n net.{key}")).trim(), value, "{key}");
    }
    for key in ["accept_ra", "accept_dad"] {
        assert_eq!(sh(&ns, &format!("sysctl -n net.ipv6.conf.eth0.{key}")).trim(), "0", "{key}");
    }
    assert!(!sh(&ns, "ip -6 addr show dev eth0").contains("tentative"));
}

#[tokio::test]
async fn taken_names_are_told_apart_and_left_alone() {
    let node = node();
    let (ns, other) = (namespace(), namespace());
    let a = pod(&ns, 1, &["10.1.0.2"]);
    let link = make(&node.nl, &a).await.unwrap();
    let (node_before, pod_before) = (traces(&node.ns), traces(&ns));
    let again = make(&node.nl, &a).await.unwrap_err();
    assert!(again.is_exists(), "{again}");
    assert_eq!(again.to_string(), format!("interface {} exists already", a.host_name));
    let elsewhere = PodInterface { netns: path_of(&other), ..a.clone() };
    assert!(make(&node.nl, &elsewhere).await.unwrap_err().is_exists());
    let second = PodInterface { netns: path_of(&ns), ..pod(&ns, 2, &["10.1.0.9"]) };
    let taken = make(&node.nl, &second).await.unwrap_err();
    assert!(matches!(&taken, Error::PodNameTaken { pod_name, .. } if pod_name == "eth0"), "{taken}");
    assert_eq!((traces(&node.ns), traces(&ns)), (node_before, pod_before));
    assert_eq!(check(&node.nl, &a).await.unwrap(), link);
}

#[tokio::test]
async fn a_start_that_fails_is_undone_with_the_link() {
    let node = node();
    // The last request of the host side fails: somebody has a route to the pod's second address.
    sh(
        &node.ns,
        "ip link add other type veth peer name other2; ip link set other up; ip -6 route add 2001:db8:1::2 dev other",
    );
    let ns = namespace();
    let before = traces(&node.ns);
    let a = pod(&ns, 1, &["10.1.0.2", "2001:db8:1::2"]);
    create(&node.nl, &a).await.unwrap();
    let error = start(&node.nl, &a).await.unwrap_err();
    assert!(error.to_string().starts_with("add route 2001:db8:1::2/128 dev #"), "{error}");
    assert!(matches!(&error, Error::Netlink(e) if e.is_exists()), "{error:?}");
    assert!(delete(&node.nl, &a.host_name).await.unwrap());
    assert_eq!(traces(&node.ns), before);
    assert_eq!(sh(&ns, "ip -o link | wc -l").trim(), "1");
}

#[tokio::test]
async fn failure_in_the_pod_half_way_leaves_nothing() {
    let node = node();
    let ns = namespace();
    sh(&ns, "ip link add net9 type veth peer name net8; ip link set net9 up; ip route add default dev net9");
    let before = (traces(&node.ns), sh(&ns, "ip -o link | cut -d' ' -f2; ip -4 route; ip neigh"));
    let pod = pod(&ns, 1, &["10.1.0.2"]);
    let error = make(&node.nl, &pod).await.unwrap_err();
    assert!(error.to_string().starts_with("add route 0.0.0.0/0 via 169.254.1.1"), "{error}");
    // As whoever starts it does then.
    assert!(delete(&node.nl, &pod.host_name).await.unwrap());
    assert_eq!((traces(&node.ns), sh(&ns, "ip -o link | cut -d' ' -f2; ip -4 route; ip neigh")), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropping_the_future_half_way_leaves_nothing() {
    let node = node();
    let before = traces(&node.ns);
    let mut cut = 0;
    for n in 0..40 {
        let ns = namespace();
        let a = pod(&ns, n, &["10.1.0.2", "2001:db8:1::2"]);
        let patience = Duration::from_micros(100 * u64::from(n));
        match tokio::time::timeout(patience, create(&node.nl, &a)).await {
            Ok(done) => {
                done.unwrap();
                assert!(delete(&node.nl, &a.host_name).await.unwrap());
            }
            Err(_elapsed) => {
                cut += 1;
                // The same pod again, as a retrying runtime does; until the clean-up is done the name is taken.
                eventually("the host end goes", || {
                    !try_sh(&node.ns, &format!("ip link show {}", a.host_name)).0
                });
            }
        }
    }
    assert!(cut > 0, "no future was dropped");
    eventually("all traces go", || traces(&node.ns) == before);
}

#[tokio::test]
async fn bad_requests_are_refused_by_name() {
    let node = node();
    let ns = namespace();
    let good = pod(&ns, 1, &["10.1.0.2"]);
    let with = |change: &dyn Fn(&mut PodInterface)| {
        let mut pod = good.clone();
        change(&mut pod);
        pod
    };
    for (bad, reason) in [
        (with(&|p| p.addresses.clear()), "no address"),
        (with(&|p| p.addresses.push("10.1.0.2".parse().unwrap())), "10.1.0.2 is given twice"),
        (with(&|p| p.addresses.push("fe80::5".parse().unwrap())), "fe80::5 cannot be a pod's address"),
        (with(&|p| p.addresses.push("0.0.0.0".parse().unwrap())), "0.0.0.0 cannot be a pod's address"),
        (with(&|p| p.pod_name = "a/b".into()), "`a/b` cannot be an interface's name"),
        (with(&|p| p.pod_name = "eth%d".into()), "`eth%d` cannot be an interface's name"),
        (
            with(&|p| p.pod_name = "sixteen-bytes-xx".into()),
            "`sixteen-bytes-xx` cannot be an interface's name",
        ),
        (with(&|p| p.host_name = "eth0".into()), "not a name of netd's interfaces"),
        (with(&|p| p.alias = "x".repeat(256)), "the alias must have 1 to 255 bytes"),
        (with(&|p| p.mtu = 67), "MTU 67 is not between 68 and 65535"),
        (
            with(&|p| {
                p.mtu = 1279;
                p.addresses.push("2001:db8::1".parse().unwrap());
            }),
            "MTU 1279 is not between 1280 and 65535",
        ),
    ] {
        let error = make(&node.nl, &bad).await.unwrap_err();
        assert_eq!(error.to_string(), format!("pod interface {}: {reason}", bad.host_name));
    }
    let own = PodInterface { netns: path_of(&node.ns), ..good.clone() };
    assert!(matches!(make(&node.nl, &own).await, Err(Error::OwnNamespace { .. })));
    let gone = PodInterface { netns: "/run/netns/nt-net-no-such".into(), ..good.clone() };
    assert!(make(&node.nl, &gone).await.unwrap_err().is_netns_gone());
    assert!(matches!(delete(&node.nl, "lo").await, Err(Error::Invalid { .. })));
    assert!(list(&node.nl).await.unwrap().is_empty());
}

#[tokio::test]
async fn small_mtu_works_without_ipv6() {
    let node = node();
    let ns = namespace();
    let a = PodInterface { mtu: 1000, ..pod(&ns, 1, &["10.1.0.2"]) };
    make(&node.nl, &a).await.unwrap();
    pings(&node.ns, "10.1.0.2");
    check(&node.nl, &a).await.unwrap();
}

#[tokio::test]
async fn check_names_everything_that_differs() {
    let node = node();
    let ns = namespace();
    let a = pod(&ns, 1, &["10.1.0.2", "2001:db8:1::2"]);
    make(&node.nl, &a).await.unwrap();
    let host = &a.host_name;
    sh(&node.ns, &format!("ip link set {host} alias other mtu 1400; ip neigh del 10.1.0.2 dev {host}"));
    sh(&node.ns, &format!("ip route del 10.1.0.2; ip addr del fe80::1/64 dev {host}"));
    sh(
        &ns,
        "ip -6 route del default; ip addr add 10.9.9.9/32 dev eth0; ip addr del 2001:db8:1::2/128 dev eth0",
    );
    let Err(Error::Differs { differences, .. }) = check(&node.nl, &a).await else { panic!("no difference") };
    let joined = differences.join("\n");
    for part in [
        &format!("alias is `other`, not `{}`", a.alias),
        "host end's MTU is 1400, not 1450",
        "host end lacks address fe80::1/64",
        "pod lacks address 2001:db8:1::2/128",
        "node lacks a permanent neighbour 10.1.0.2",
        "node lacks route 10.1.0.2/32 dev #",
        "pod lacks route ::/0 via fe80::1",
    ] {
        assert!(joined.contains(part), "`{part}` is not in:\n{joined}");
    }
    assert_eq!(differences.len(), 7, "{joined}");
    // A plugin after netd changed the pod's MAC address: the node would send to the old one.
    let other = namespace();
    let b = pod(&other, 2, &["10.1.0.3"]);
    make(&node.nl, &b).await.unwrap();
    sh(&other, "ip link set eth0 address 02:00:00:00:00:07");
    let error = check(&node.nl, &b).await.unwrap_err().to_string();
    assert!(error.contains("as neighbour 10.1.0.3, not 02:00:00:00:00:07"), "{error}");
    sh(&other, "ip link set eth0 down; ip link set eth0 name x");
    let error = check(&node.nl, &b).await.unwrap_err().to_string();
    assert!(error.contains("the pod has no interface eth0"), "{error}");
}

#[tokio::test]
async fn list_tells_what_a_ledger_needs() {
    let node = node();
    sh(&node.ns, "ip link add decoy type veth peer name ndzzz; ip link set decoy up");
    let (first, second) = (namespace(), namespace());
    let a = pod(&first, 1, &["10.1.0.2", "2001:db8:1::2"]);
    let b = pod(&second, 2, &["10.1.0.3"]);
    let link_a = make(&node.nl, &a).await.unwrap();
    make(&node.nl, &b).await.unwrap();
    let ends = list(&node.nl).await.unwrap();
    assert_eq!(ends.len(), 2);
    assert_eq!(
        ends[0],
        HostEnd {
            ifindex: link_a.host_ifindex,
            name: a.host_name.clone(),
            alias: a.alias.clone(),
            host_mac: link_a.host_mac,
            pod_mac: Some(link_a.pod_mac),
            addresses: a.addresses.clone(),
            mtu: 1450,
            up: true,
        }
    );
    assert_eq!(ends[1].addresses, b.addresses);
}

#[tokio::test]
async fn host_end_goes_with_the_pods_namespace() {
    let node = node();
    let ns = namespace();
    let a = pod(&ns, 1, &["10.1.0.2"]);
    make(&node.nl, &a).await.unwrap();
    drop(ns);
    eventually("the host end goes", || !try_sh(&node.ns, &format!("ip link show {}", a.host_name)).0);
    assert!(!delete(&node.nl, &a.host_name).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundred_pods_at_once() {
    let node = node();
    let pods: Vec<NetNs> = (0..100).map(|_| namespace()).collect();
    let wanted: Vec<PodInterface> = (1..=100u16)
        .zip(&pods)
        .map(|(n, ns)| pod(ns, n, &[format!("10.1.0.{n}").as_str(), format!("2001:db8:1::{n:x}").as_str()]))
        .collect();
    let started = Instant::now();
    let links = futures_util::future::join_all(wanted.iter().map(|pod| make(&node.nl, pod))).await;
    println!("100 creates: {:?}", started.elapsed());
    let indexes: BTreeSet<u32> = links.into_iter().map(|link| link.unwrap().host_ifindex).collect();
    assert_eq!(indexes.len(), 100);
    let checks = futures_util::future::join_all(wanted.iter().map(|pod| check(&node.nl, pod))).await;
    assert!(checks.iter().all(Result::is_ok), "{checks:?}");
    pings(&pods[7], "10.1.0.99");
    let started = Instant::now();
    let deletes =
        futures_util::future::join_all(wanted.iter().map(|pod| delete(&node.nl, &pod.host_name))).await;
    println!("100 deletes: {:?}", started.elapsed());
    assert!(deletes.into_iter().all(|deleted| deleted.unwrap()));
    assert!(list(&node.nl).await.unwrap().is_empty());
    let started = Instant::now();
    for pod in &wanted {
        make(&node.nl, pod).await.unwrap();
    }
    println!("100 creates one by one: {:?}", started.elapsed());
}

#[test]
fn names_are_stable_and_recognised() {
    assert_eq!(host_name("c0001", "eth0"), "nd6a970599e548");
    assert_ne!(host_name("c0001", "eth1"), host_name("c0001", "eth0"));
    // The separator counts: no two pairs run into each other.
    assert_ne!(host_name("ab", "c"), host_name("a", "bc"));
    assert!(is_host_name(&host_name("x", "y")));
    for other in ["nd", "ndABCDEF012345", "nd00000000000", "nd0000000000000", "eth0", "xx000000000000"] {
        assert!(!is_host_name(other), "{other}");
    }
}

proptest::proptest! {
    #[test]
    fn any_container_gets_a_valid_name_and_mac(id in "\\PC{0,80}", ifname in "[a-z]{1,8}[0-9]{0,3}") {
        let name = host_name(&id, &ifname);
        assert!(is_host_name(&name) && name.len() < 16);
        let mac = pod_mac(&name);
        // Locally administered, not multicast, not the host end's.
        assert_eq!(mac[0] & 3, 2);
        assert_ne!(mac, HOST_MAC);
    }
}

/// The kernel acknowledges an IPv6 address before it delivers to it: one first packet in twenty was lost.
#[tokio::test]
async fn first_packet_to_a_new_ipv6_pod_arrives() {
    let node = node();
    for n in 0..40 {
        let ns = namespace();
        let a = pod(&ns, n, &["2001:db8:1::2"]);
        make(&node.nl, &a).await.unwrap();
        pings(&node.ns, "2001:db8:1::2");
        delete(&node.nl, &a.host_name).await.unwrap();
    }
}
