//! How long flows are remembered, and whose they are: through idle times, restarts and the ends of pods.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::{Lab, pinned};
use netd_integration::node::{Node, PORT, Pod, addresses};
use netd_integration::site::{Families, Site, VIP_PORT, VIPS, at};
use netd_integration::traffic::{self, Flow, Keeper, Load, Proto, Style, flood};
use netd_integration::wait;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// One node with a Service `web` and its server, under other keys below `datapath`.
fn scene<'lab>(lab: &'lab Lab, keys: &[(&str, &str)]) -> Result<Site<'lab>> {
    let mut site = Site::new(lab, 1)?;
    site.add_node("a", 1, Families::Dual)?;
    for (key, value) in keys {
        site.node("a")?.set(&format!("datapath.{key}"), value);
    }
    site.start_all()?;
    Ok(site)
}

fn count(node: &Node<'_>, name: &str, label: (&str, &str)) -> Result<u64> {
    // Counts, far below what a float holds exactly.
    Ok(format!("{:.0}", node.metric(name, &[label])?).parse()?)
}

fn established(node: &Node<'_>) -> Result<u64> {
    count(node, "netd_table_rows", ("table", "established"))
}

fn event(node: &Node<'_>, event: &str) -> Result<u64> {
    count(node, "netd_flow_events_total", ("event", event))
}

/// Asks for two passes over the tables, which is how many it takes to correct a share; what the status says of
/// them then.
fn passed(node: &Node<'_>) -> Result<Value> {
    let reclaim = || -> Result<Value> {
        let status = node.api_json("/v1/status")?;
        status.pointer("/datapath/reclaim").cloned().context("no passes in the status")
    };
    let passes = |of: &Value| of.get("passes").and_then(Value::as_u64).unwrap_or_default();
    for _ in 0..2 {
        let before = passes(&reclaim()?);
        node.reload()?;
        wait::holds("a pass", || Ok(passes(&reclaim()?) > before))?;
    }
    reclaim()
}

/// Rows that each owner holds among the established, by its endpoint number.
fn holders(node: &Node<'_>) -> Result<Vec<(u64, u64)>> {
    let summary = node.api_json("/v1/conntrack/summary")?;
    let pods = summary.get("pods").and_then(Value::as_array).context("no pods in the summary")?;
    let number = |pod: &Value, key: &str| pod.get(key).and_then(Value::as_u64).context("a number");
    let all = pods.iter().map(|pod| Ok((number(pod, "endpoint")?, number(pod, "established")?)));
    Ok(all.collect::<Result<Vec<_>>>()?.into_iter().filter(|(_, rows)| *rows > 0).collect())
}

#[test]
fn what_is_idle_for_its_lifetime_goes_and_what_is_not_stays() -> Result<()> {
    Lab::run(|lab| {
        let site = scene(lab, &[("timeouts.two_way", "2s"), ("timeouts.one_way", "1s")])?;
        let node = site.node("a")?;
        let (client, server) = (node.add_pod("client")?, node.add_server("server")?);
        site.state.service("web", &VIPS, VIP_PORT, &[])?;
        site.state.slices("web", PORT, &server.pod.addresses)?;
        let mut held = Vec::new();
        for vip in VIPS.map(at) {
            wait::holds("the Service", || Ok(traffic::ask(&client.netns, Proto::Tcp, vip).is_ok()))?;
            let (mut tcp, mut udp) = (
                traffic::open(&client.netns, Proto::Tcp, vip)?,
                traffic::open(&client.netns, Proto::Udp, vip)?,
            );
            for _ in 0..3 {
                ensure!(tcp.ask()? == "server" && udp.ask()? == "server");
            }
            held.push((tcp, udp));
        }
        wait::holds("the closed ones to leave", || Ok(established(node)? <= 8))?;
        wait::holds("UDP to expire", || {
            node.reload()?;
            Ok(established(node)? == 4)
        })?;
        ensure!(event(node, "expired")? == 4, "{}", event(node, "expired")?);
        let reclaim = passed(node)?;
        ensure!(reclaim.get("corrected").and_then(Value::as_u64) == Some(0), "{reclaim}");
        ensure!(holders(node)?.iter().map(|(_, rows)| rows).sum::<u64>() == 4);
        // TCP is as it was; UDP begins anew.
        for (tcp, udp) in &mut held {
            ensure!(tcp.ask()? == "server");
            for _ in 0..3 {
                ensure!(udp.ask()? == "server");
            }
        }
        ensure!(event(node, "promoted")? >= 12, "{}", event(node, "promoted")?);
        Ok(())
    })
}

#[test]
fn shares_outlive_agents_and_pods_take_theirs_along() -> Result<()> {
    Lab::run(|lab| {
        let site = scene(lab, &[])?;
        let node = site.node("a")?;
        let (client, server) = (node.add_pod("client")?, node.add_server("server")?);
        let at = server.at(false)?;
        let open = |pod: &Pod| -> Result<Vec<Flow>> {
            (0..10).map(|_| traffic::open(&pod.netns, Proto::Tcp, at)).collect()
        };
        let mut flows = open(&client)?;
        let all = |flows: &mut Vec<Flow>| -> Result<()> {
            flows.iter_mut().try_for_each(|flow| flow.ask().map(drop))
        };
        all(&mut flows)?;
        ensure!(established(node)? == 10);
        let holder = holders(node)?;
        let [(first, 10)] = holder.as_slice() else { anyhow::bail!("{holder:?}") };

        node.kill9()?;
        all(&mut flows)?;
        node.start()?;
        let reclaim = passed(node)?;
        ensure!(reclaim.get("corrected").and_then(Value::as_u64) == Some(0), "{reclaim}");
        ensure!(established(node)? == 10 && holders(node)? == holder);
        all(&mut flows)?;

        // Its namespace goes at once: no connection is closed, and no row goes before its time.
        node.runtime().del(&client.attachment)?;
        let reclaim = passed(node)?;
        ensure!(reclaim.get("ownerless").and_then(Value::as_u64) == Some(10), "{reclaim}");
        ensure!(established(node)? == 10);

        let next = node.add_pod("next")?;
        let mut flows = open(&next)?;
        all(&mut flows)?;
        let holder = holders(node)?;
        let second = holder.iter().find(|(endpoint, _)| endpoint != first).context("another number")?;
        ensure!(second.1 == 10 && holder.len() == 2, "{holder:?}");
        let reclaim = passed(node)?;
        ensure!(reclaim.get("corrected").and_then(Value::as_u64) == Some(0), "{reclaim}");
        all(&mut flows)
    })
}

/// What `netd conntrack list` tells of the client's flows.
fn flows_of(node: &Node<'_>, words: &str) -> Result<Vec<Value>> {
    let socket = node.dir().join("run/netd.sock");
    let line = format!("conntrack list --pod client --limit 0 -o json {words} --socket");
    let mut all: Vec<&std::ffi::OsStr> = line.split_whitespace().map(std::ffi::OsStr::new).collect();
    all.push(socket.as_os_str());
    let output = node.netd(&all)?;
    let told: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    told.get("flows").and_then(Value::as_array).cloned().with_context(|| format!("no flows in {told}"))
}

/// Protocol and client's end.
fn client_of(flow: &Value) -> Result<(String, SocketAddr)> {
    let text = |key| flow.get(key).and_then(Value::as_str).with_context(|| format!("no {key} in {flow}"));
    Ok((text("protocol")?.to_owned(), text("client")?.parse()?))
}

/// Rows that the kernel has among the established.
fn kernel_rows(lab: &Lab) -> Result<usize> {
    let all = pinned(&lab.bpffs().join("a"))?;
    all.iter()
        .find(|object| object.name == "ESTABLISHED")
        .context("no such map")?
        .rows()
        .map(|rows| rows.len())
}

#[test]
fn an_agent_that_is_absent_for_lifetimes_costs_nothing() -> Result<()> {
    const LIFETIME: Duration = Duration::from_secs(5);
    const IDLE: usize = 10;
    Lab::run(|lab| {
        let keys = [("timeouts.tcp_established", "5s"), ("timeouts.two_way", "5s"), ("nursery", "16384")];
        let site = scene(lab, &keys)?;
        let node = site.node("a")?;
        let client = node.add_pod("client")?;
        let others = [node.add_pod("flooding")?, node.add_pod("flooded")?];
        let [flooding, flooded] = &others;
        // Two, so that a flow that was forgotten may be seen to begin anew at the other.
        let servers = [node.add_server("one")?, node.add_server("two")?];
        site.state.service("web", &VIPS, VIP_PORT, &[])?;
        site.state.slices("web", PORT, &addresses(&servers))?;
        let (mut loads, mut idle, mut left) = (Vec::new(), Vec::new(), BTreeSet::new());
        for vip in VIPS.map(at) {
            for proto in Proto::ALL {
                traffic::answering(&client.netns, proto, vip, &["one", "two"])?;
                for _ in 0..IDLE {
                    let mut flow = traffic::open(&client.netns, proto, vip)?;
                    for _ in 0..3 {
                        flow.ask()?;
                    }
                    left.insert((proto.to_string().to_lowercase(), flow.local()?));
                    idle.push(flow);
                }
            }
            loads.extend(Load::all(&client.netns, vip, Duration::from_millis(10))?);
        }
        Load::all_more(&loads, 10)?;
        let idle_rows = 2 * left.len();
        ensure!(left.len() == 4 * IDLE);

        node.kill9()?;
        let absent = Instant::now();
        let mut new = 0;
        wait::holds("three lifetimes to pass", || {
            if new < 20_000 {
                for v6 in [false, true] {
                    flood(&flooding.netns, flooded.address(v6)?, 1_000)?;
                }
                new += 2_000;
            }
            Ok(absent.elapsed() > 3 * LIFETIME)
        })?;
        ensure!(new == 20_000, "{new} new flows");
        Load::all_more(&loads, 20)?;
        let rows = kernel_rows(lab)?;
        ensure!(rows >= idle_rows, "nobody was there to reclaim them: {rows} rows");

        let before = loads.iter().map(|load| load.tally().answered).sum::<u64>();
        node.start()?;
        wait::holds("the idle ones to be reclaimed", || {
            node.reload()?;
            let here = flows_of(node, "")?.iter().map(client_of).collect::<Result<BTreeSet<_>>>()?;
            Ok(here.is_disjoint(&left))
        })?;
        ensure!(event(node, "expired")? >= u64::try_from(idle_rows)?, "{}", event(node, "expired")?);
        let reclaim = passed(node)?;
        ensure!(reclaim.get("corrected").and_then(Value::as_u64) == Some(0), "{reclaim}");
        Load::all_more(&loads, 20)?;
        ensure!(loads.iter().map(|load| load.tally().answered).sum::<u64>() > before);
        for load in loads {
            let tally = load.stop()?;
            tally.none_failed()?;
            // Its flow was never forgotten.
            ensure!(
                tally.style == Style::Fresh || tally.names.len() == 1,
                "{}: {:?}",
                tally.name,
                tally.names
            );
        }
        // What was idle for too long begins anew: of datagrams nobody notices.
        for datagrams in idle.chunks_mut(IDLE).skip(1).step_by(2) {
            datagrams.iter_mut().try_for_each(|flow| flow.ask().map(drop))?;
        }
        Ok(())
    })
}

/// Does a deed, again if need be, until a flow to this frontend is in this state.
fn seen(
    node: &Node<'_>,
    state: &str,
    frontend: SocketAddr,
    mut deed: impl FnMut() -> Result<()>,
) -> Result<()> {
    wait::holds(&format!("a flow to {frontend} that is {state}"), || {
        deed()?;
        let flows = flows_of(node, &format!("--state {state}"))?;
        Ok(flows.iter().any(|flow| flow.get("frontend").is_some_and(|at| *at == frontend.to_string())))
    })
}

#[test]
fn tcp_lives_as_long_as_its_state_says() -> Result<()> {
    Lab::run(|lab| {
        let keys = [
            ("timeouts.tcp_opening", "3s"),
            ("timeouts.tcp_half_closed", "3s"),
            ("timeouts.tcp_closed", "3s"),
            ("timeouts.tcp_established", "1h"),
        ];
        let site = scene(lab, &keys)?;
        let node = site.node("a")?;
        let client = node.add_pod("client")?;
        let (echo, kept, silent) = (node.add_server("echo")?, node.add_pod("kept")?, node.add_pod("silent")?);
        let _keeper = Keeper::start(&kept.netns, PORT, 1_000)?;
        // What comes for it is nobody's, and a host that does not forward says nothing about that.
        for family in ["-4", "-6"] {
            silent.netns.ip(&format!("{family} address flush dev eth0"))?;
        }
        let at = |service: u32| -> Result<[SocketAddr; 2]> {
            let (v4, v6) = (format!("10.96.0.{service}").parse()?, format!("fd00:96::{service}").parse()?);
            Ok([SocketAddr::new(v4, 80), SocketAddr::new(v6, 80)])
        };
        for (name, service, pod) in [("echo", 1, &echo.pod), ("kept", 2, &kept), ("silent", 3, &silent)] {
            site.state.service(name, &at(service)?.map(|vip| vip.ip()), VIP_PORT, &[])?;
            site.state.slices(name, PORT, &pod.addresses)?;
        }
        let frontends = || Ok(node.metric("netd_service_rows", &[("table", "frontends")])? >= 12.0);
        wait::holds("the Services", frontends)?;

        let (mut open, mut half) = (Vec::new(), Vec::new());
        for family in 0..2 {
            let one = |service| -> Result<SocketAddr> { at(service)?.get(family).copied().context("two") };
            let mut flow = traffic::open(&client.netns, Proto::Tcp, one(1)?)?;
            ensure!(flow.ask()? == "echo");
            open.push(flow);
            let target = one(3)?;
            seen(node, "opening", target, || {
                let patience = Duration::from_millis(100);
                let tried = client.netns.enter(|| Ok(TcpStream::connect_timeout(&target, patience)))?;
                ensure!(tried.is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut), "not silent");
                Ok(())
            })?;
            let target = one(2)?;
            seen(node, "half-closed", target, || {
                let stream = client.netns.enter(|| Ok(TcpStream::connect(target)?))?;
                stream.shutdown(Shutdown::Write)?;
                half.push(stream);
                Ok(())
            })?;
            let target = one(1)?;
            seen(node, "closed", target, || {
                ensure!(traffic::ask(&client.netns, Proto::Tcp, target)? == "echo");
                Ok(())
            })?;
        }
        let rows = 2 * u64::try_from(half.len())?;
        wait::holds("all but the open to go", || {
            node.reload()?;
            let halves = flows_of(node, "--state half-closed")?;
            Ok(halves.is_empty()
                && established(node)? == 4
                && count(node, "netd_table_rows", ("table", "nursery"))? == 0)
        })?;
        // Those among the established were reclaimed, and counted.
        ensure!(event(node, "expired")? == rows, "{} of {rows}", event(node, "expired")?);
        for state in ["opening", "closed"] {
            let left = |flow: &Value| flow.get("expires_in_seconds").and_then(Value::as_u64);
            let flows = flows_of(node, &format!("--state {state}"))?;
            ensure!(flows.iter().all(|flow| left(flow) == Some(0)), "{state}: {flows:?}");
        }
        // The open ones do not know of it, and each port can be used again.
        for flow in &mut open {
            ensure!(flow.ask()? == "echo");
        }
        let open_now = flows_of(node, "--state established")?;
        ensure!(open_now.len() == 2, "{open_now:?}");
        Ok(())
    })
}
