//! Service tables that are full: who is refused and how it is told, and that nobody else suffers from it.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::Lab;
use netd_integration::node::{Node, PORT, Tables};
use netd_integration::site::{Families, Site, VIP_PORT, VIPS, at};
use netd_integration::traffic::{self, Load, Proto};
use netd_integration::wait;
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Rows of the table that is small, and Services that fit into it; each has four frontends (two families, TCP
/// and UDP), of one endpoint each.
struct Small {
    tables: Tables,
    fit: u32,
    /// The metric's label, and the words.
    lacks: (&'static str, &'static str),
}

fn count(node: &Node<'_>, name: &str) -> Result<u64> {
    count_of(node, name, &[])
}

fn count_of(node: &Node<'_>, name: &str, labels: &[(&str, &str)]) -> Result<u64> {
    // Counts, far below what a float holds exactly.
    Ok(format!("{:.0}", node.metric(name, labels)?).parse()?)
}

/// The newer, the earlier its name: that it is refused is not for its name.
fn name(n: u32) -> String {
    format!("s{:02}", 99 - n)
}

fn ips(n: u32) -> Result<[IpAddr; 2]> {
    Ok([format!("10.96.1.{n}").parse()?, format!("fd00:96::1:{n}").parse()?])
}

/// The errors that `netd status` tells; that a table is nearly full is but a warning.
fn problems(node: &Node<'_>) -> Result<Vec<Value>> {
    let socket = node.dir().join("run/netd.sock");
    let words = ["status".as_ref(), "-o".as_ref(), "json".as_ref(), "--socket".as_ref(), socket.as_os_str()];
    let output = node.netd(&words)?;
    let told: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    let mut problems = told.get("problems").and_then(Value::as_array).cloned().context("no problems")?;
    problems.retain(|one| one.get("level").is_some_and(|level| level == "error"));
    let ok = told.get("ok").context("not whether it is ok")?;
    ensure!(*ok == Value::Bool(problems.is_empty()), "{told}");
    Ok(problems)
}

fn refuses_the_newest(small: &Small) -> Result<()> {
    Lab::run(|lab| {
        let mut site = Site::new(lab, 1)?;
        site.add_node("a", 1, Families::Dual)?;
        let node = site.node("a")?;
        node.configure(|config| config.tables = small.tables);
        site.start_all()?;
        let (client, servers) = site.web()?;
        let addresses = servers.first().context("one server")?.pod.addresses.clone();
        let mut loads = Vec::new();
        for vip in VIPS {
            loads.extend(Load::all(&client.netns, at(vip), Duration::from_millis(2))?);
        }
        Load::all_more(&loads, 20)?;
        // One after the other, as `web` is one of those that fit.
        let add = |n: u32| {
            site.state.service(&name(n), &ips(n)?, VIP_PORT, &[])?;
            site.state.slices(&name(n), PORT, &addresses)
        };
        let answers = |n: u32| -> Result<()> {
            for ip in ips(n)? {
                for proto in Proto::ALL {
                    traffic::answering(&client.netns, proto, SocketAddr::new(ip, VIP_PORT.port), &["a1"])?;
                }
            }
            Ok(())
        };
        for n in 1..small.fit {
            add(n)?;
        }
        wait::holds("all to fit", || Ok(count(node, "netd_service_services")? == u64::from(small.fit)))?;
        answers(small.fit - 1)?;
        ensure!(count(node, "netd_service_refused")? == 0);
        ensure!(problems(node)?.is_empty(), "{:?}", problems(node)?);

        let newest = small.fit;
        let refusal = format!("Service default/{} is not served: {}", name(newest), small.lacks.1);
        let told = |when: &str| -> Result<()> {
            wait::holds(&format!("{refusal}, {when}"), || {
                let problems = problems(node)?;
                let message = |one: &Value| one.get("message").is_some_and(|text| *text == *refusal);
                Ok(problems.len() == 1 && problems.iter().all(message))
            })
            .with_context(|| format!("{:?}", problems(node)))?;
            let reason = ("reason", small.lacks.0);
            let by_reason = count_of(node, "netd_service_refused", &[reason])?;
            ensure!((by_reason, count(node, "netd_service_refused")?) == (1, 1), "{when}");
            let log = std::fs::read_to_string(node.log())?;
            ensure!(
                log.lines().any(|line| line.contains("WARN") && line.contains(&refusal)),
                "{when}: {log}"
            );
            Load::all_more(&loads, 20)
        };
        add(newest)?;
        told("as it came")?;
        // Whose place is whose is known from the kernel's tables, not from the order of names.
        node.kill9()?;
        Load::all_more(&loads, 20)?;
        node.start()?;
        told("after a restart")?;
        for n in 1..newest {
            answers(n).with_context(|| format!("{} of {newest}", name(n)))?;
        }
        Load::all_more(&loads, 20)?;

        // Another makes room.
        site.state.remove(&format!("service-{}.yaml", name(1)))?;
        site.state.remove(&format!("slices-{}.yaml", name(1)))?;
        wait::holds("room for the newest", || {
            Ok(count(node, "netd_service_refused")? == 0 && problems(node)?.is_empty())
        })?;
        answers(newest)?;
        Load::all_more(&loads, 20)?;
        Load::none_failed(loads)
    })
}

#[test]
fn a_full_table_of_frontends_refuses_the_newest_by_name() -> Result<()> {
    refuses_the_newest(&Small {
        tables: Tables { frontends: 64, ..Tables::SMALL },
        fit: 16,
        lacks: ("frontends", "it needs 4 more frontends, 64 of 64 are in use (datapath.frontends)"),
    })
}

#[test]
fn a_full_table_of_backends_refuses_the_newest_by_name() -> Result<()> {
    refuses_the_newest(&Small {
        tables: Tables { backends: 64, ..Tables::SMALL },
        fit: 15,
        lacks: (
            "backends",
            "it needs 4 more backends, 60 of 63 are in use, 0 in quarantine and 1 kept for changes \
             (datapath.backends)",
        ),
    })
}

#[test]
fn full_slots_refuse_the_newest_by_name() -> Result<()> {
    refuses_the_newest(&Small {
        tables: Tables { slots: 128, ..Tables::SMALL },
        fit: 31,
        lacks: (
            "slots",
            "it needs 4 slots, others use 124 of 128 and 1 are kept for changes (datapath.slots)",
        ),
    })
}

/// Every slot is taken or kept: a list that grows does not fit, but it leads no more to the endpoint that left it.
#[test]
fn a_standing_service_without_room_leads_to_no_endpoint_that_is_gone() -> Result<()> {
    Lab::run(|lab| {
        let mut site = Site::new(lab, 1)?;
        site.add_node("a", 1, Families::Dual)?;
        let node = site.node("a")?;
        node.configure(|config| config.tables = Tables { slots: 128, ..Tables::SMALL });
        site.start_all()?;
        let client = node.add_pod("client")?;
        let [gone, stays, comes] = ["gone", "stays", "comes"].map(|name| node.add_server(name));
        let (gone, stays, comes) = (gone?, stays?, comes?);
        let answered_by = |names: &[&str]| -> Result<()> {
            for vip in VIPS {
                for proto in Proto::ALL {
                    traffic::answering(&client.netns, proto, at(vip), names)?;
                }
            }
            Ok(())
        };
        site.state.service("web", &VIPS, VIP_PORT, &[])?;
        site.state.slices("web", PORT, &[&gone.pod.addresses[..], &stays.pod.addresses].concat())?;
        answered_by(&["gone", "stays"])?;
        // Four lists of 24, and the longest once more: 8 + 96 + 24.
        let nobody: Vec<IpAddr> = (1..=24)
            .flat_map(|n| [format!("10.255.0.{n}"), format!("fdff::{n}")])
            .map(|ip| Ok(ip.parse()?))
            .collect::<Result<_>>()?;
        site.state.service("wide", &ips(1)?, VIP_PORT, &[])?;
        site.state.slices("wide", PORT, &nobody)?;
        let slots = || count_of(node, "netd_service_rows", &[("table", "slots")]);
        wait::holds("all slots", || Ok(slots()? == 104))?;
        ensure!(problems(node)?.is_empty(), "{:?}", problems(node)?);

        // The last ones in the order of lists.
        let [last4, last6]: [IpAddr; 2] = ["10.255.255.255".parse()?, "fdff:ffff::1".parse()?];
        let wanted = [&stays.pod.addresses[..], &comes.pod.addresses, &[last4, last6]].concat();
        site.state.slices("web", PORT, &wanted)?;
        answered_by(&["stays", "comes"])?;
        let shown = || -> Result<Value> {
            let socket = node.dir().join("run/netd.sock");
            let words = ["svc", "show", "web", "-o", "json", "--socket"].map(std::ffi::OsStr::new);
            let output = node.netd(&[&words[..], &[socket.as_os_str()]].concat())?;
            serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
        };
        let web = shown()?;
        let refusal = web.get("refusal").context("a refusal")?;
        let field = |name: &str| refusal.get(name).cloned().unwrap_or_default();
        ensure!((field("endpoints"), field("in_force")) == (3.into(), 2.into()), "{web}");
        ensure!((web.get("state"), field("lacks")) == (Some(&"refused".into()), "slots".into()), "{web}");
        let problems_now = problems(node)?;
        let told = "Service default/web leads to 2 of 3 endpoints at ";
        let is_told = |one: &Value| one.get("message").is_some_and(|text| text.to_string().contains(told));
        ensure!(problems_now.len() == 1 && problems_now.iter().all(is_told), "{problems_now:?}");

        // With room the whole list comes.
        site.state.slices("wide", PORT, &nobody[..2])?;
        wait::holds("the whole list", || Ok(slots()? == 12 + 4 && problems(node)?.is_empty()))?;
        ensure!(shown()?.get("refusal") == Some(&Value::Null), "{}", shown()?);
        Ok(())
    })
}
