//! What `netd status`, `endpoints`, `svc`, `conntrack` and `monitor` say of a running agent, held against what
//! the sockets, `ip` and `bpftool` say.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::{Lab, Process, pinned};
use netd_integration::node::{Monitor, Node, PORT, Server};
use netd_integration::site::Site;
use netd_integration::state::Port;
use netd_integration::traffic::{self, Flow, Frames, Proto};
use netd_integration::wait;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

const VIP_PORT: Port = Port { port: 80, target: PORT };

fn vips() -> Result<[IpAddr; 2]> {
    Ok(["10.96.0.80".parse()?, "fd00:96::80".parse()?])
}

/// What a command said, and its exit status.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.out).with_context(|| format!("{self:?}"))
    }
}

fn netd(node: &Node<'_>, words: &str) -> Result<Said> {
    let socket = node.socket();
    let mut all: Vec<&OsStr> = words.split_whitespace().map(OsStr::new).collect();
    all.extend([OsStr::new("--socket"), socket.as_os_str()]);
    let output = node.netd(&all)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) })
}

/// A question that is answered well, as JSON.
fn ask(node: &Node<'_>, words: &str) -> Result<Value> {
    let said = netd(node, &format!("{words} -o json"))?;
    ensure!(said.code == Some(0), "{words}: {said:?}");
    said.json()
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a Vec<Value>> {
    value.get(key).and_then(Value::as_array).with_context(|| format!("no list {key} in {value}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(u64::MAX)
}

fn count(value: &Value, key: &str) -> Result<u64> {
    Ok(u64::try_from(list(value, key)?.len())?)
}

/// Rows of a pinned table, as `bpftool` counts them.
fn rows(lab: &Lab, node: &Node<'_>, table: &str) -> Result<Vec<Value>> {
    let folder = lab.bpffs().join(node.name());
    let map = pinned(&folder)?.into_iter().find(|one| one.path.ends_with(format!("maps/{table}")));
    map.with_context(|| format!("no table {table}"))?.rows()
}

/// A held flow: where it was sent to, and who answers.
struct Held {
    flow: Flow,
    proto: Proto,
    target: SocketAddr,
    who: String,
}

fn hold(client: &Server, proto: Proto, target: SocketAddr) -> Result<Held> {
    let mut flow = traffic::open(client.netns(), proto, target)?;
    let who = flow.ask()?;
    Ok(Held { flow, proto, target, who })
}

#[test]
fn what_is_told_of_pods_and_flows_is_what_the_kernel_has() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::three_nodes(lab)?;
        site.start_all()?;
        let a = site.node("a")?;
        let (client, near) = (a.add_server("client")?, a.add_server("near")?);
        let far = site.node("c")?.add_server("far")?;
        site.state.pod("far", "c", &[("app", "web")], &[])?;
        site.state.service("web", &vips()?, VIP_PORT, &[])?;
        let both: Vec<IpAddr> = [&near, &far].iter().flat_map(|s| s.pod.addresses.clone()).collect();
        site.state.slices("web", PORT, &both)?;
        wait::holds("the Service to be told", || {
            let shown = netd(a, "svc show web -o json")?;
            Ok(shown.code == Some(0) && shown.json()?.get("state").is_some_and(|state| state == "ok"))
        })?;

        let mut held = Vec::new();
        for (vip, v6) in vips()?.into_iter().zip([false, true]) {
            for proto in Proto::ALL {
                for _ in 0..6 {
                    held.push(hold(&client, proto, SocketAddr::new(vip, VIP_PORT.port))?);
                }
                held.push(hold(&client, proto, near.at(v6)?)?);
            }
        }
        flows(a, &client, &[&near, &far], &held)?;
        filters(a, &held)?;
        summary(lab, a)?;
        endpoints(a, &[&client, &near])?;
        overview(a)?;

        // One that is closed, and one whose backend left.
        let closing = held.iter().position(|one| one.proto == Proto::Tcp).context("a TCP flow")?;
        let local = held.swap_remove(closing).flow.local()?;
        wait::holds("the closed connection to be told", || {
            let flows = ask(a, "conntrack list --state closed --pod client")?;
            let found = list(&flows, "flows")?.iter().any(|flow| text(flow, "client") == local.to_string());
            Ok(found)
        })?;
        let through_far = |one: &&Held| one.who == "far" && one.proto == Proto::Tcp && one.target.is_ipv4();
        ensure!(held.iter().any(|one| through_far(&one)), "no flow went to far: the test shows nothing");
        site.state.slices("web", PORT, &near.pod.addresses)?;
        let gone = far.at(false)?.to_string();
        wait::holds("the backend that left to be told with its flows", || {
            let shown = ask(a, "svc show default/web")?;
            let backends = list(&shown, "frontends")?.iter().map(|one| list(one, "backends"));
            let all: Vec<&Value> = backends.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
            let left = all.iter().find(|one| text(one, "address") == gone && text(one, "state") == "left");
            Ok(left.is_some_and(|one| number(one, "flows") >= 1 && text(one, "pod") == "default/far"))
        })?;
        let shown = netd(a, "svc show web")?;
        ensure!(shown.out.contains(" left "), "{shown:?}");

        // Then the Service goes too; its connections go on.
        let open =
            held.iter().find(|one| through_far(one)).context("a flow to far")?.flow.local()?.to_string();
        let told = |key: &str| -> Result<Option<Value>> {
            let flows = ask(a, "conntrack list --svc web --pod client --proto tcp --limit 0")?;
            let is =
                |flow: &&Value| text(flow, "client") == open && flow.get(key).is_some_and(|is| *is == true);
            Ok(list(&flows, "flows")?.iter().find(is).cloned())
        };
        let flow = wait::until("the backend to be told as deleted", || told("backend_deleted"))?;
        ensure!(
            text(&flow, "server_pod") == "default/far" && text(&flow, "service") == "default/web",
            "{flow}"
        );
        ensure!(flow.get("service_deleted").is_some_and(|deleted| *deleted == false), "{flow}");
        site.state.remove("service-web.yaml")?;
        let flow = wait::until("the Service to be told as deleted", || told("service_deleted"))?;
        ensure!((text(&flow, "service"), text(&flow, "state")) == ("default/web", "established"), "{flow}");
        let page = netd(a, "conntrack list --svc default/web")?;
        ensure!(page.code == Some(0) && page.out.contains("the Service is deleted"), "{page:?}");
        Ok(())
    })
}

/// Each held flow is told once, with its ends.
fn flows(node: &Node<'_>, client: &Server, servers: &[&Server], held: &[Held]) -> Result<()> {
    let told = ask(node, "conntrack list --pod default/client --limit 0")?;
    ensure!(
        text(&told, "schema") == "netd.conntrack/v1" && number(&told, "told") == number(&told, "matched")
    );
    let mut by_client: BTreeMap<(String, String), Vec<&Value>> = BTreeMap::new();
    for flow in list(&told, "flows")? {
        let key = (text(flow, "protocol").to_owned(), text(flow, "client").to_owned());
        by_client.entry(key).or_default().push(flow);
    }
    for one in held {
        let local = one.flow.local()?;
        ensure!(client.pod.addresses.contains(&local.ip()));
        let key = (one.proto.to_string().to_lowercase(), local.to_string());
        let found = by_client.get(&key).with_context(|| format!("{key:?} is not told"))?;
        let [flow] = found.as_slice() else { anyhow::bail!("{key:?} is told {} times", found.len()) };
        let server = servers.iter().find(|server| server.pod.name == one.who).context("who answered")?;
        ensure!(text(flow, "server") == server.at(local.is_ipv6())?.to_string(), "{flow}");
        ensure!(text(flow, "server_pod") == format!("default/{}", one.who), "{flow}");
        ensure!(text(flow, "client_pod") == "default/client", "{flow}");
        let direct = server.pod.addresses.contains(&one.target.ip());
        let frontend = if direct { "" } else { &one.target.to_string() };
        let service = if direct { "" } else { "default/web" };
        ensure!((text(flow, "frontend"), text(flow, "service")) == (frontend, service), "{flow}");
        let (state, table) = match one.proto {
            Proto::Tcp => ("established", "established"),
            // One question and its answer are no conversation.
            Proto::Udp => ("two_way", "nursery"),
        };
        ensure!((text(flow, "state"), text(flow, "table")) == (state, table), "{flow}");
        ensure!((number(flow, "service_number") == u64::MAX) == direct, "{flow}");
        ensure!((number(flow, "backend_number") == u64::MAX) == direct, "{flow}");
        ensure!(flow.get("half").is_some_and(|half| half == false), "{flow}");
        ensure!(number(flow, "expires_in_seconds") > 0 && number(flow, "idle_seconds") < 3600, "{flow}");
    }
    Ok(())
}

fn filters(node: &Node<'_>, held: &[Held]) -> Result<()> {
    let of = |wanted: &dyn Fn(&&Held) -> bool| u64::try_from(held.iter().filter(wanted).count());
    let [vip4, vip6] = vips()?;
    let is_vip = |one: &&Held| one.target.port() == VIP_PORT.port;
    for (words, expected) in [
        ("--svc web --limit 0".to_owned(), of(&is_vip)?),
        ("--svc default/web --proto tcp".to_owned(), of(&|one| is_vip(one) && one.proto == Proto::Tcp)?),
        (format!("--address {vip4}"), of(&|one| one.target.ip() == vip4)?),
        (
            format!("--address {vip6}/112 --proto 17"),
            of(&|one| one.target.ip() == vip6 && one.proto == Proto::Udp)?,
        ),
        ("--svc web --state opening".to_owned(), 0),
        (
            "--svc web --state two-way --pod client".to_owned(),
            of(&|one| is_vip(one) && one.proto == Proto::Udp)?,
        ),
    ] {
        let told = ask(node, &format!("conntrack list {words}"))?;
        ensure!(count(&told, "flows")? == expected, "{words}: {expected} expected in {told}");
    }
    let one = ask(node, "conntrack list --svc web --limit 1")?;
    let through = of(&is_vip)?;
    ensure!(
        (count(&one, "flows")?, number(&one, "told"), number(&one, "matched")) == (1, 1, through),
        "{one}"
    );
    let page = netd(node, "conntrack list --svc web --limit 1")?;
    ensure!(page.code == Some(0) && page.out.contains(&format!("{} more", through - 1)), "{page:?}");
    ensure!(page.out.starts_with("PROTO ") && page.out.contains("  default/client "), "{page:?}");
    for (words, code, said) in [
        ("conntrack list --pod clinet", 1, "there is no pod clinet: did you mean default/client?"),
        ("conntrack list --svc wbe", 1, "there is no Service wbe: did you mean default/web?"),
        ("conntrack list --proto tpc", 2, "tpc is no protocol"),
        ("conntrack list --address 10.0.0", 2, "10.0.0 is neither an address nor a range"),
        ("svc show weeb", 1, "there is no Service weeb: did you mean default/web?"),
        ("endpoints nera", 1, "there is no pod on this node nera: did you mean default/near?"),
        ("monitor --pod clint", 1, "there is no pod clint: did you mean default/client?"),
    ] {
        let answer = netd(node, words)?;
        ensure!(
            answer.code == Some(code) && answer.err.contains(said) && answer.out.is_empty(),
            "{words}: {answer:?}"
        );
    }
    Ok(())
}

/// The counts of both tables are those of the tables.
fn summary(lab: &Lab, node: &Node<'_>) -> Result<()> {
    let mut last = String::new();
    let agree = wait::holds("the summary to agree with the tables", || {
        let told = ask(node, "conntrack summary")?;
        let rows_of = |table: &str| -> Result<u64> {
            let table = told.get("tables").and_then(|tables| tables.get(table)).context("a table")?;
            ensure!(number(table, "used") <= number(table, "rows"), "{table}");
            Ok(number(table, "rows"))
        };
        let kernel = |table| -> Result<u64> { Ok(u64::try_from(rows(lab, node, table)?.len())?) };
        let (established, nursery) = (kernel("ESTABLISHED")?, kernel("NURSERY")?);
        let fill = node.metric("netd_table_rows", &[("table", "established")])?;
        last = format!("{told}, {established} established, {nursery} in the nursery, {fill} by the metric");
        let by_pod: u64 = list(&told, "pods")?.iter().map(|pod| number(pod, "established")).sum();
        let same = (rows_of("established")?, rows_of("nursery")?) == (established, nursery);
        #[expect(clippy::cast_precision_loss, reason = "few rows")]
        let filled = (fill - established as f64).abs() < 0.5;
        Ok(same && by_pod == established && filled && established > 0)
    });
    agree.with_context(|| last.clone())?;
    let page = netd(node, "conntrack summary")?;
    ensure!(page.code == Some(0) && page.out.contains("default/client"), "{page:?}");
    Ok(())
}

fn endpoints(node: &Node<'_>, servers: &[&Server]) -> Result<()> {
    let told = ask(node, "endpoints")?;
    ensure!(count(&told, "endpoints")? == u64::try_from(servers.len())?, "{told}");
    for server in servers {
        let name = format!("default/{}", server.pod.name);
        let one = ask(node, &format!("endpoints {name}"))?;
        let [one] = list(&one, "endpoints")?.as_slice() else { anyhow::bail!("{one}") };
        ensure!(text(one, "pod") == name && one.get("ok").is_some_and(|ok| ok == true), "{one}");
        let addresses: Vec<IpAddr> =
            list(one, "addresses")?.iter().filter_map(|address| address.as_str()?.parse().ok()).collect();
        ensure!(addresses == server.pod.addresses, "{one}");
        let link = node.namespace().ip(&format!("-o link show {}", text(one, "interface")))?;
        ensure!(link.starts_with(&format!("{}: ", number(one, "ifindex"))), "{one}: {link}");
        // Who opens a flow holds its rows.
        let holds = number(one, "flows");
        ensure!((holds > 0) == (server.pod.name == "client") && holds <= number(one, "flows_limit"), "{one}");
    }
    let page = netd(node, "endpoints")?;
    ensure!(page.code == Some(0) && page.out.lines().count() == servers.len() + 1, "{page:?}");
    Ok(())
}

fn overview(node: &Node<'_>) -> Result<()> {
    let told = ask(node, "status")?;
    ensure!(told.get("ok").is_some_and(|ok| ok == true) && list(&told, "problems")?.is_empty(), "{told}");
    ensure!(number(&told, "pid") == u64::from(node.agent_id()?), "{told}");
    let table = |name: &str| -> Result<u64> {
        let found = list(&told, "tables")?.iter().find(|table| text(table, "table") == name);
        Ok(number(found.with_context(|| format!("no table {name}"))?, "used"))
    };
    // Two addresses by two protocols; two pods.
    ensure!((table("frontends")?, table("pods")?) == (4, 2), "{told}");
    let added = told.get("cni").and_then(|cni| cni.get("ADD")).context("no ADD")?;
    ensure!((number(added, "done"), number(added, "failed")) == (2, 0), "{told}");
    let schema = told.get("datapath").map(|datapath| number(datapath, "schema")).context("no datapath")?;
    for (metric, labels, least) in [
        ("netd_table_rows", &[("table", "pods")][..], 2.0),
        ("netd_table_rows_limit", &[("table", "established")], 16384.0),
        ("netd_table_rows_limit", &[("table", "nursery")], 1.0),
        ("netd_cni_requests_total", &[("verb", "ADD"), ("code", "0")], 2.0),
        ("netd_cni_request_duration_seconds_count", &[("verb", "ADD")], 2.0),
        ("netd_flow_events_total", &[("event", "promoted")], 1.0),
        ("netd_build_info", &[("schema", &schema.to_string())], 1.0),
    ] {
        let value = node.metric(metric, labels)?;
        ensure!(value >= least, "{metric}{labels:?} is {value}");
    }
    let page = netd(node, "status")?;
    ensure!(page.code == Some(0) && page.out.contains(&format!("  {}  up ", node.name())), "{page:?}");
    ensure!(page.out.contains("Services   ok") && !page.out.contains('\u{1b}'), "{page:?}");
    Ok(())
}

#[test]
fn a_service_is_told_as_the_kernel_has_it() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let a = site.node("a")?;
        let server = a.add_server("server")?;
        let [vip4, vip6] = vips()?;
        site.state.service("empty", &["10.96.0.7".parse()?], VIP_PORT, &[])?;
        site.state.service("web", &[vip4, vip6], VIP_PORT, &[])?;
        site.state.slices("web", PORT, &server.pod.addresses)?;
        let service = |name: &str| -> Result<Value> {
            let told = netd(a, "svc list -o json")?.json()?;
            let found = list(&told, "services")?.iter().find(|one| text(one, "service") == name).cloned();
            found.with_context(|| format!("no {name} in {told}"))
        };
        wait::holds("both Services to be told", || {
            Ok(text(&service("default/web")?, "state") == "ok"
                && text(&service("default/empty")?, "state") == "no_endpoints")
        })?;
        let web = service("default/web")?;
        ensure!((number(&web, "endpoints"), count(&web, "frontends")?) == (1, 4), "{web}");
        let page = netd(a, "svc list")?;
        ensure!(page.code == Some(0), "Services without endpoints are nobody's fault: {page:?}");
        ensure!(page.out.contains("default/empty  10.96.0.7:80/tcp, 10.96.0.7:80/udp"), "{page:?}");

        // A second Service with the address of the first.
        site.state.service("wet", &[vip4], VIP_PORT, &[])?;
        wait::holds("the conflict to be told", || Ok(text(&service("default/wet")?, "state") == "conflict"))?;
        let page = netd(a, "svc list")?;
        ensure!(page.code == Some(1) && page.out.contains("next: netd svc show default/wet"), "{page:?}");
        let status = netd(a, "status")?;
        ensure!(status.code == Some(1) && status.out.contains("DEGRADED: services"), "{status:?}");
        ensure!(status.out.contains("next: netd svc show default/web"), "{status:?}");
        site.state.remove("service-wet.yaml")?;
        wait::holds("the status to forget it", || Ok(netd(a, "status")?.code == Some(0)))?;

        // Somebody deletes a row of the kernel behind the agent's back.
        let before = ask(a, "svc show web")?;
        ensure!(
            list(&before, "frontends")?.iter().all(|one| list(one, "differences").is_ok_and(Vec::is_empty))
        );
        let path = lab.bpffs().join(a.name());
        let map = pinned(&path)?.into_iter().find(|one| one.path.ends_with("maps/FRONTENDS"));
        let map = map.context("the table of frontends")?;
        let wanted: Vec<String> = [10, 96, 0, 80].map(|byte| format!("0x{byte:02x}")).to_vec();
        let doomed = map.rows()?.into_iter().find_map(|row| {
            let key: Vec<String> = row
                .get("key")?
                .as_array()?
                .iter()
                .filter_map(|byte| Some(byte.as_str()?.to_owned()))
                .collect();
            key.get(12..16).is_some_and(|address| address == wanted).then_some(key)
        });
        let doomed = doomed.context("the row of the Service")?;
        let mut command = Command::new("bpftool");
        command.args(["map", "delete", "pinned"]).arg(&map.path).arg("key").arg("hex");
        command.args(doomed.iter().map(|byte| byte.trim_start_matches("0x")));
        let output = command.output()?;
        ensure!(output.status.success(), "{output:?}");
        let shown = netd(a, "svc show default/web")?;
        ensure!(shown.code == Some(1), "{shown:?}");
        for words in ["differs", "the kernel has no row for it", "missing", "next: "] {
            ensure!(shown.out.contains(words), "no {words:?} in {shown:?}");
        }
        ensure!(text(&service("default/web")?, "state") == "differs");
        ensure!(text(&service("default/empty")?, "state") == "no_endpoints");
        Ok(())
    })
}

/// A pod whose runtime tells no name: it goes by its container, and is asked for by it.
#[test]
fn a_pod_without_a_name_is_told_and_asked_for_by_its_container() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let a = site.node("a")?;
        let server = a.add_server("server")?;
        let all = Monitor::start(a, "all", &["-o", "json"])?;
        let (netns, mut attachment) = a.sandbox("nameless")?;
        attachment.args.retain(|(key, _)| key == "IgnoreUnknown");
        let container = attachment.container.clone();
        // Nobody says when a monitor is there: it is once it tells an ADD.
        wait::holds("the ADD to be told", || {
            a.runtime().add(&attachment)?;
            let told = all.events("cni")?.iter().any(|event| text(event, "subject") == container);
            if !told {
                a.runtime().del(&attachment)?;
            }
            Ok(told)
        })?;
        let one = ask(a, &format!("endpoints {container}"))?;
        let [one] = list(&one, "endpoints")?.as_slice() else { anyhow::bail!("{one}") };
        ensure!(
            (text(one, "pod"), text(one, "container")) == (container.as_str(), container.as_str()),
            "{one}"
        );
        let mut flow = traffic::open(&netns, Proto::Tcp, server.at(false)?)?;
        ensure!(flow.ask()? == "server");
        let flows = ask(a, &format!("conntrack list --pod {container}"))?;
        let [told] = list(&flows, "flows")?.as_slice() else { anyhow::bail!("{flows}") };
        ensure!(text(told, "client_pod") == container, "{told}");
        let drops = Monitor::start(a, "drops", &["--pod", &container, "-o", "json"])?;
        let sender = Frames::open(&netns, "eth0")?;
        let gateway = traffic::gateway_mac(&netns, false)?;
        wait::holds("its drops to be told", || {
            let from = SocketAddr::new(server.pod.address(false)?, 999);
            sender.send(&traffic::udp_frame((sender.mac(), gateway), from, server.at(false)?, b"forged")?)?;
            Ok(drops.events("drop")?.iter().any(|event| text(event, "subject") == container))
        })
    })
}

#[test]
fn a_monitor_tells_what_happens_while_it_happens() -> Result<()> {
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let a = site.node("a")?;
        let (thief, victim) = (a.add_server("thief")?, a.add_server("victim")?);
        let sender = Frames::open(thief.netns(), "eth0")?;
        let gateway = traffic::gateway_mac(thief.netns(), false)?;
        let forge = || -> Result<()> {
            let from = SocketAddr::new(victim.pod.address(false)?, 999);
            sender.send(&traffic::udp_frame((sender.mac(), gateway), from, victim.at(false)?, b"forged")?)
        };
        let all = Monitor::start(a, "all", &["-o", "json"])?;
        let mut drops = Monitor::start(a, "drops", &["--drops", "--pod", "default/victim", "--count", "2"])?;
        let other = Monitor::start(a, "other", &["--reason", "no_route", "-o", "json"])?;
        // Nobody says when a monitor is there: it is once it tells the first drop.
        wait::holds("the first drop to be told", || {
            forge()?;
            Ok(!all.events("drop")?.is_empty())
        })?;
        let ended = wait::until("the counted monitor to end", || {
            forge()?;
            drops.process.ended()
        })?;
        let said = drops.said()?;
        ensure!(ended.code() == Some(0) && said.lines().count() == 2, "{ended}: {said}");
        for line in said.lines() {
            let address = victim.pod.address(false)?;
            for words in [
                "  DROP  ".to_owned(),
                format!(
                    "at default/thief: default/victim {address}:999 → default/victim {address}:{PORT} udp"
                ),
                "the source address is not the pod's".to_owned(),
            ] {
                ensure!(line.contains(&words), "no {words:?} in {line}");
            }
        }
        let drop = all.events("drop")?.pop().context("a drop")?;
        ensure!(
            text(&drop, "schema") == "netd.event/v1" && text(&drop, "subject") == "default/thief",
            "{drop}"
        );
        ensure!(drop.get("drop").is_some_and(|drop| text(drop, "reason") == "spoofed_source"), "{drop}");

        // What is remembered has the same form.
        let remembered = a.api_json("/v1/drops?limit=1")?;
        let newest = list(&remembered, "drops")?.first().context("a drop")?;
        ensure!(text(&remembered, "schema") == "netd.drops/v1" && text(&remembered, "node") == a.name());
        ensure!(text(newest, "message") == text(&drop, "message") && text(newest, "time").ends_with('Z'));
        for (key, value) in drop.get("drop").and_then(Value::as_object).context("the packet")? {
            ensure!(newest.get(key) == Some(value), "{key}: {newest} and {drop}");
        }

        // Changes.
        let late = a.add_pod("late")?;
        let told = |kind: &str, subject: &str, words: &str| {
            wait::holds(&format!("{kind} {subject} {words}"), || {
                let is = |event: &Value| {
                    text(event, "subject") == subject && text(event, "message").contains(words)
                };
                Ok(all.events(kind)?.iter().any(is))
            })
        };
        told("cni", "default/late", &format!("added with {}", late.address(false)?))?;
        a.del_pod(late)?;
        told("cni", "default/late", "removed")?;
        site.state.service("web", &vips()?, VIP_PORT, &[])?;
        told("service", "default/web", "added: 0 endpoints")?;
        site.state.slices("web", PORT, &victim.pod.addresses)?;
        told("service", "default/web", "changed: 1 endpoint")?;
        site.state.put("broken.yaml", "kind: [\n")?;
        let broken = site.state.dir().join("broken.yaml").display().to_string();
        told("source", &broken, "broken.yaml:")?;
        site.state.remove("broken.yaml")?;
        told("source", &broken, "no longer: ")?;
        site.state.remove("service-web.yaml")?;
        told("service", "default/web", "removed")?;
        ensure!(other.said()?.is_empty(), "nothing was dropped for that reason: {}", other.said()?);

        // The agent's end is theirs, and they do not hold it up.
        a.terminate()?;
        for mut monitor in [all, other] {
            let ended = monitor.process.wait()?;
            let said = monitor.said()?;
            ensure!(ended.code() == Some(3) && said.contains("is `netd agent` running?"), "{ended}: {said}");
        }
        let status = netd(a, "status")?;
        ensure!(status.code == Some(3), "{status:?}");
        Ok(())
    })
}

#[test]
fn full_tables_are_told_whole_and_the_agent_answers_meanwhile() -> Result<()> {
    const PORTS: std::ops::Range<u16> = 10_000..50_000;
    Lab::run(|lab| {
        let site = Site::one_node(lab)?;
        let a = site.node("a")?;
        let client = a.add_pod("client")?;
        let sender = Frames::open(&client.netns, "eth0")?;
        let gateway = traffic::gateway_mac(&client.netns, false)?;
        let nowhere: SocketAddr = "192.0.2.1:9".parse()?;
        for port in PORTS {
            let from = SocketAddr::new(client.address(false)?, port);
            sender.send(&traffic::udp_frame((sender.mac(), gateway), from, nowhere, b"")?)?;
        }
        let words = format!("conntrack list --limit 0 --proto udp --address {}", nowhere.ip());
        let mut asking = Command::new(netd_integration::binary::netd()?);
        let log = a.dir().join("flows.json");
        asking.args(words.split_whitespace()).args(["-o", "json", "--socket"]).arg(a.socket());
        let mut asking = Process::start(a.namespace(), "flows", &mut asking, &log)?;
        let mut answered = 0;
        let ended = wait::until("all flows", || {
            ensure!(a.api("/healthz")?.status == 200);
            answered += 1;
            asking.ended()
        })?;
        ensure!(ended.success() && answered > 0);
        let told: Value = serde_json::from_str(&fs::read_to_string(&log)?)?;
        let mut ports: Vec<u16> = list(&told, "flows")?
            .iter()
            .filter_map(|flow| Some(text(flow, "client").parse::<SocketAddr>().ok()?.port()))
            .collect();
        ports.sort_unstable();
        ensure!(ports.iter().copied().eq(PORTS), "{} of {} flows", ports.len(), PORTS.len());
        ensure!(number(&told, "matched") == u64::try_from(PORTS.len())?);
        // A reader that has seen enough: exit status 0, and the agent is well.
        let shell = format!(
            "{} conntrack list --limit 0 --socket {} 2>&1 >/dev/full; echo $?",
            netd_integration::binary::netd()?.display(),
            a.socket().display(),
        );
        let mut command = Command::new("sh");
        let full = a.to_end(command.args(["-c", &shell]))?;
        ensure!(String::from_utf8_lossy(&full.stdout).contains("No space left"), "{full:?}");
        let shell = shell
            .replace("2>&1 >/dev/full; echo $?", "-o json | head -c 100 >/dev/null; echo ${PIPESTATUS[0]}");
        let mut command = Command::new("bash");
        let gone = a.to_end(command.args(["-c", &shell]))?;
        ensure!(String::from_utf8_lossy(&gone.stdout).trim() == "0" && gone.stderr.is_empty(), "{gone:?}");
        ensure!(netd(a, "status")?.code == Some(0));
        Ok(())
    })
}
