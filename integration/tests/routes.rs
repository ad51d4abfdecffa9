//! Routes to the other nodes' pods, and the ranges of this node's own.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::{Lab, Namespace};
use netd_integration::site::Site;
use netd_integration::wait;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// `rtm_protocol` of netd's routes.
const PROTOCOL: &str = "110";

/// All IPv4 and IPv6 routes of the main table, one a line, without what the kernel itself made and what
/// leads to this node's own pods.
fn routes(node: &Namespace) -> Result<BTreeSet<String>> {
    let text = node.ip("-4 route show")? + &node.ip("-6 route show")?;
    let wanted = |line: &&str| !line.contains("proto kernel") && !line.contains(" dev nd");
    // What is counted or aged is no part of a route.
    let lines = text.lines().filter(wanted).map(|line| line.split(" expires").next().unwrap_or(line).trim());
    Ok(lines.map(str::to_owned).collect())
}

fn ours(routes: &BTreeSet<String>) -> Vec<(String, String)> {
    let word = |line: &str, n: usize| line.split(' ').nth(n).unwrap_or_default().to_owned();
    routes
        .iter()
        .filter(|line| line.contains(&format!("proto {PROTOCOL}")))
        .map(|line| (word(line, 0), word(line, 2)))
        .collect()
}

fn foreign(routes: &BTreeSet<String>) -> BTreeSet<String> {
    routes.iter().filter(|line| !line.contains(&format!("proto {PROTOCOL}"))).cloned().collect()
}

#[test]
fn node_routes_come_and_go_with_the_nodes() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        let a = site.node("a")?;
        let netns = a.namespace();
        // Somebody else's, one of them to where node c's pods are, which share no link with a.
        netns.ip("route add 192.0.2.0/24 via 10.1.0.1 proto static")?;
        netns.ip("route add 10.244.3.0/25 via 10.1.0.1 proto 186 metric 50")?;
        netns.ip("route add 2001:db8::/32 via fd01::1 proto static")?;
        let before = routes(netns)?;
        ensure!(before.len() == 5, "{before:?}");
        site.start_all()?;

        let to_b = |v4: &str, v6: &str| {
            vec![(v4.to_owned(), "10.1.0.12".to_owned()), (v6.to_owned(), "fd01::12".to_owned())]
        };
        let become_ = |expected: Vec<(String, String)>| {
            let mut last = BTreeSet::new();
            wait::holds(&format!("the routes {expected:?}"), || {
                last = routes(netns)?;
                Ok(ours(&last) == expected)
            })
            .with_context(|| format!("{last:?}"))?;
            ensure!(foreign(&last) == before, "foreign routes changed: {last:?}, before: {before:?}");
            Ok(())
        };
        let b = to_b("10.244.2.0/24", "fd00:244:2::/64");
        become_(b.clone())?;
        site.state.remove("node-b.yaml")?;
        become_(Vec::new())?;
        let addresses: Vec<IpAddr> = vec!["10.1.0.12".parse()?, "fd01::12".parse()?];
        let cidrs = |v4: &str, v6: &str| [v4.to_owned(), v6.to_owned()];
        site.state.node("b", &addresses, &cidrs("10.244.22.0/24", "fd00:244:22::/64"))?;
        become_(to_b("10.244.22.0/24", "fd00:244:22::/64"))?;
        site.state.node("b", &addresses, &cidrs("10.244.2.0/24", "fd00:244:2::/64"))?;
        become_(b.clone())?;
        // They stay when the agent goes, and one that went meanwhile is removed by the next.
        a.terminate()?;
        become_(b.clone())?;
        a.start()?;
        become_(b)?;
        a.kill9()?;
        site.state.remove("node-b.yaml")?;
        a.start()?;
        become_(Vec::new())
    })
}

#[test]
fn ranges_are_added_and_drained_by_sighup() -> Result<()> {
    Lab::run(|lab| {
        let mut site = Site::new(lab, 1)?;
        site.add_node("a", 1, netd_integration::site::Families::Dual)?;
        let node = site.node("a")?;
        let range = |text: &str| vec![text.to_owned()];
        node.configure(|config| {
            config.pod_cidrs = range("10.245.1.0/29");
            config.cool_down = "0s".into();
        });
        node.start()?;
        let starts = |address: &IpAddr, prefix: &str| address.to_string().starts_with(prefix);
        let mut old = Vec::new();
        // A /29 has six for pods.
        for n in 0..6 {
            old.push(node.add_server(&format!("old{n}"))?);
        }
        ensure!(node.add_pod("full").is_err());
        node.configure(|config| {
            config.pod_cidrs = range("10.245.2.0/29");
            config.draining = range("10.245.1.0/29");
        });
        node.reload()?;
        let new = wait::until("an address of the added range", || Ok(node.add_server("new").ok()))?;
        ensure!(new.pod.addresses.iter().all(|ip| starts(ip, "10.245.2.")), "{:?}", new.pod.addresses);
        // Pods of the drained range work on; what they give back is not given again.
        for server in &old {
            let who = netd_integration::traffic::ask(
                new.netns(),
                netd_integration::traffic::Proto::Tcp,
                server.at(false)?,
            )?;
            ensure!(who == server.pod.name);
        }
        for server in old {
            node.del_pod(server.pod)?;
        }
        for n in 0..5 {
            let pod = node.add_pod(&format!("later{n}"))?;
            ensure!(pod.addresses.iter().all(|ip| starts(ip, "10.245.2.")), "{:?}", pod.addresses);
        }
        ensure!(node.add_pod("full again").is_err());
        Ok(())
    })
}
