use super::*;
use crate::net::testing::{eventually, namespace, sh};
use futures_util::future::{join_all, try_join_all};
use std::error::Error as _;

/// A namespace with a veth pair `a0`, `b0`, both up.
async fn pair() -> (NetNs, Netlink, Link) {
    let ns = namespace();
    sh(&ns, "ip link add a0 type veth peer name b0; ip link set a0 up; ip link set b0 up");
    let nl = Netlink::open_in(&ns).unwrap();
    let link = nl.link_by_name("a0").await.unwrap().unwrap();
    (ns, nl, link)
}

#[tokio::test]
async fn link_is_found_changed_and_deleted() {
    let (ns, nl, link) = pair().await;
    assert_eq!((link.kind.as_deref(), link.up, link.peer_netns), (Some("veth"), true, None));
    assert_eq!(nl.link(link.index).await.unwrap().unwrap().name, "a0");
    let peer = nl.link_by_name("b0").await.unwrap().unwrap();
    assert_eq!(link.peer, Some(peer.index));
    let to = LinkChange {
        name: Some("c0".into()),
        alias: Some("an alias".into()),
        mtu: Some(1300),
        mac: Some([2, 0, 0, 0, 0, 9]),
        up: Some(false),
        no_link_local: false,
    };
    // The kernel renames only what is down.
    let down = LinkChange { up: Some(false), ..LinkChange::default() };
    nl.change_link(link.index, "a0", &down).await.unwrap();
    nl.change_link(link.index, "a0", &to).await.unwrap();
    let changed = nl.link_by_name("c0").await.unwrap().unwrap();
    assert_eq!(
        changed,
        Link {
            name: "c0".into(),
            alias: Some("an alias".into()),
            mtu: 1300,
            mac: Some([2, 0, 0, 0, 0, 9]),
            up: false,
            operational: false,
            ..link
        }
    );
    let names: Vec<String> = nl.links().await.unwrap().into_iter().map(|link| link.name).collect();
    assert_eq!(names, ["lo", "b0", "c0"]);
    assert!(nl.delete_link("c0").await.unwrap());
    assert!(!nl.delete_link("c0").await.unwrap());
    assert_eq!(nl.link_by_name("c0").await.unwrap(), None);
    assert_eq!(nl.link(4711).await.unwrap(), None);
    assert_eq!(sh(&ns, "ip -o link | wc -l").trim(), "1");
}

#[tokio::test]
async fn addresses_and_neighbours_are_added_once() {
    let (ns, nl, link) = pair().await;
    let v4: ipnet::IpNet = "192.0.2.1/24".parse().unwrap();
    let v6: ipnet::IpNet = "2001:db8::1/128".parse().unwrap();
    for net in [v4, v6] {
        nl.add_address(link.index, "a0", net).await.unwrap();
        let again = nl.add_address(link.index, "a0", net).await.unwrap_err();
        assert!(again.is_exists() && !again.is_missing());
        assert!(again.to_string().starts_with(&format!("add address {net} to a0")), "{again}");
        assert_eq!(again.source().unwrap().to_string(), "File exists (os error 17)");
    }
    let found = nl.addresses(Some(link.index)).await.unwrap();
    for net in [v4, v6] {
        assert!(found.contains(&Address { index: link.index, net, tentative: false }), "{found:?}");
    }
    assert!(found.iter().all(|address| address.index == link.index));
    assert!(sh(&ns, "ip -4 addr show dev a0").contains("192.0.2.1/24 scope global"));
    assert!(nl.addresses(None).await.unwrap().len() > found.len());
    assert!(nl.addresses(Some(4711)).await.unwrap().is_empty());
    assert!(nl.add_address(4711, "gone0", v4).await.unwrap_err().is_missing());
    for address in ["192.0.2.9", "fe80::9"] {
        let address = address.parse().unwrap();
        nl.add_neighbor(link.index, "a0", address, [2, 0, 0, 0, 0, 9]).await.unwrap();
        assert!(
            nl.add_neighbor(link.index, "a0", address, [2, 0, 0, 0, 0, 9]).await.unwrap_err().is_exists()
        );
        let wanted = Neighbor { index: link.index, address, mac: [2, 0, 0, 0, 0, 9], permanent: true };
        assert!(nl.neighbors(Some(link.index)).await.unwrap().contains(&wanted));
    }
    assert!(nl.neighbors(Some(4711)).await.unwrap().is_empty());
}

#[tokio::test]
async fn addresses_that_come_and_go_are_told() {
    let (ns, nl, _) = pair().await;
    let mut changes = nl.watch_addresses().await.unwrap();
    changes.borrow_and_update();
    for (n, command) in ["add 10.1.0.1/24", "add 2001:db8::1/64", "del 10.1.0.1/24"].into_iter().enumerate() {
        sh(&ns, &format!("ip address {command} dev a0"));
        let told = tokio::time::timeout(std::time::Duration::from_secs(10), changes.changed()).await;
        told.unwrap_or_else(|_| panic!("{n}: {command} is not told")).unwrap();
        changes.borrow_and_update();
    }
    drop(nl);
    while changes.changed().await.is_ok() {}
}

#[tokio::test]
async fn routes_are_read_as_they_are() {
    let (ns, nl, link) = pair().await;
    sh(
        &ns,
        "ip addr add 192.0.2.1/24 dev a0; ip addr add 198.51.100.1/24 dev b0
         ip route add 10.1.0.0/24 proto bird metric 7 nexthop via 192.0.2.2 nexthop via 198.51.100.2
         ip route add blackhole 10.2.0.0/24 proto 110
         ip route add 10.3.0.0/24 via 192.0.2.2 table 300
         ip route add 10.4.0.1 dev a0 proto 110 scope link
         ip -6 route add 2001:db8:4::1 dev a0 proto 110",
    );
    let all = nl.routes(None).await.unwrap();
    let find = |prefix: &str| {
        let prefix: ipnet::IpNet = prefix.parse().unwrap();
        all.iter().find(|route| route.prefix == prefix)
    };
    let multipath = find("10.1.0.0/24").unwrap();
    assert_eq!((multipath.protocol, multipath.metric, multipath.next_hops.len()), (12, 7, 2));
    assert_eq!(multipath.next_hops[1].gateway, Some("198.51.100.2".parse().unwrap()));
    let blackhole = find("10.2.0.0/24").unwrap();
    assert!(!blackhole.unicast && blackhole.next_hops.is_empty());
    assert!(find("10.3.0.0/24").is_none(), "of another table");
    let direct = find("10.4.0.1/32").unwrap();
    assert!(direct.scope_link);
    assert_eq!(direct.next_hops, [NextHop { gateway: None, ifindex: link.index, onlink: false }]);
    assert_eq!(find("192.0.2.0/24").unwrap().protocol, 2);
    let ours = nl.routes(Some(110)).await.unwrap();
    assert_eq!(ours.len(), 3, "{ours:?}");
    for route in &ours {
        assert!(nl.delete_route(route).await.unwrap());
        assert!(!nl.delete_route(route).await.unwrap());
    }
    // What differs in protocol or next hop is not hit.
    let other = KernelRoute { protocol: 4, ..multipath.clone() };
    assert!(!nl.delete_route(&other).await.unwrap());
    assert!(nl.delete_route(multipath).await.unwrap());
    nl.add_route(direct).await.unwrap();
    assert!(nl.add_route(direct).await.unwrap_err().is_exists());
    assert!(nl.is_local("192.0.2.1".parse().unwrap()).await.unwrap());
    assert!(!nl.is_local("192.0.2.2".parse().unwrap()).await.unwrap());
    assert!(!nl.is_local("2001:db8:ff::1".parse().unwrap()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_dumps_do_not_refuse_each_other() {
    let (ns, nl, _) = pair().await;
    sh(
        &ns,
        "ip addr add 192.0.2.1/24 dev a0; for n in $(seq 200); do echo route add 10.0.$n.0/24 via 192.0.2.2; done | ip -batch -",
    );
    let dumps = try_join_all((0..40).map(|_| nl.routes(None))).await.unwrap();
    assert!(
        dumps.iter().all(|dump| dump.iter().filter(|route| route.prefix.prefix_len() == 24).count() == 201)
    );
}

#[tokio::test]
async fn dump_given_up_half_way_does_not_spoil_the_next() {
    let (_ns, nl, _) = pair().await;
    for n in 0..200 {
        // Polled once or a few times, then dropped.
        let given_up = timeout(Duration::from_micros(n * 5), nl.links()).await;
        drop(given_up);
        assert_eq!(nl.links().await.unwrap().len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_requests_are_all_answered() {
    let (ns, nl, link) = pair().await;
    sh(&ns, "ip addr add 192.0.2.1/24 dev a0");
    let results = join_all((0..20u8).map(|block| {
        let nl = nl.clone();
        async move {
            let requests = (0..100u8).map(|n| {
                let prefix = ipnet::IpNet::new([10, block, n, 0].into(), 24).unwrap();
                let hop =
                    NextHop { gateway: Some([192, 0, 2, 2].into()), ifindex: link.index, onlink: false };
                add_route(&KernelRoute::new(prefix, hop))
            });
            nl.apply(requests.collect()).await
        }
    }))
    .await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(nl.routes(Some(110)).await.unwrap().len(), 2000);
}

#[tokio::test]
async fn run_works_in_the_sockets_namespace() {
    let ns = namespace();
    let nl = Netlink::open_in(&ns).unwrap();
    assert_eq!(nl.identity(), ns.identity());
    assert_eq!(nl.run(|| NetNs::current().unwrap().identity()).await.unwrap(), ns.identity());
    // Opened inside, it works inside.
    let inner = nl.run(Netlink::open).await.unwrap().unwrap();
    assert_eq!(inner.identity(), ns.identity());
    assert_eq!(inner.links().await.unwrap().len(), 1);
}

#[tokio::test]
async fn thread_ends_with_the_last_clone() {
    let ns = namespace();
    let inside = |identity| {
        std::fs::read_dir("/proc/self/task").unwrap().flatten().any(|task| {
            let ns = NetNs::open(&task.path().join("ns/net"));
            ns.is_ok_and(|ns| ns.identity() == identity)
        })
    };
    let nl = Netlink::open_in(&ns).unwrap();
    let clone = nl.clone();
    drop(nl);
    assert_eq!(clone.links().await.unwrap().len(), 1);
    assert!(inside(ns.identity()));
    drop(clone);
    eventually("the thread ends", || !inside(ns.identity()));
}

#[test]
fn clone_outlives_the_runtime_that_opened_it() {
    let ns = namespace();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let nl = runtime().block_on(async { Netlink::open_in(&ns).unwrap() });
    assert_eq!(runtime().block_on(nl.links()).unwrap().len(), 1);
}
