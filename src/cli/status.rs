//! `netd status`: how the agent and what it looks after are, as it says itself (`GET /v1/status`).

use super::Exit;
use super::client::Query;
use super::output::{self, Page};
use super::units::{bytes, counted, filled, span};
use crate::answer::status::{Level, Part, Status};
use crate::config::Loader;

/// Problems of one level and part that are told to people; JSON has all.
const TOLD: usize = 20;

pub(super) fn run(query: &Query, loader: &Loader) -> anyhow::Result<Exit> {
    let status: Status = query.ask(loader, "/v1/status")?;
    if query.output == output::Format::Text {
        output::page(&page(&status))?;
    }
    Ok(if status.ok { Exit::Ok } else { Exit::Failed })
}

fn page(status: &Status) -> Page {
    let mut page = Page::default();
    page.judged(!status.ok, head(status));
    let rows = [
        (Some(Part::Source), "Source", source(status)),
        (Some(Part::Services), "Services", services(status)),
        (Some(Part::Policies), "Policies", policies(status)),
        (Some(Part::Addresses), "Addresses", addresses(status)),
        (Some(Part::Network), "Network", network(status)),
        (Some(Part::Datapath), "Datapath", datapath(status)),
        (Some(Part::Cni), "CNI", cni(status)),
        (None, "Tables", tables(status)),
        (Some(Part::Runtime), "Runtime", runtime(status)),
    ];
    let rows = rows.map(|(part, name, text)| {
        let level = part.and_then(|part| worst(status, part));
        let word = match (part, level) {
            (None, _) => "",
            (_, None) => "ok",
            (_, Some(Level::Warning)) => "warning",
            (_, Some(Level::Error)) => "degraded",
        };
        (level == Some(Level::Error), [name.to_owned(), word.to_owned(), text])
    });
    let (bad, cells): (Vec<bool>, Vec<[String; 3]>) = rows.into_iter().unzip();
    for (bad, line) in bad.into_iter().zip(output::columns(&cells)) {
        page.judged(bad, line);
    }
    // Sorted by level and part.
    for alike in status.problems.chunk_by(|a, b| (a.level, a.part) == (b.level, b.part)) {
        for problem in alike.iter().take(TOLD) {
            tell(&mut page, problem.level, problem.part, &problem.message, &problem.next);
        }
        if let (Some(rest @ 1..), Some(of)) = (alike.len().checked_sub(TOLD), alike.first()) {
            tell(&mut page, of.level, of.part, &format!("{rest} more like these"), "netd status -o json");
        }
    }
    page
}

/// [`counted`], of what is counted in the agent.
fn many(count: u64, what: &str) -> String {
    counted(usize::try_from(count).unwrap_or(usize::MAX), what)
}

fn tell(page: &mut Page, level: Level, part: Part, message: &str, next: &str) {
    page.line("");
    page.judged(level == Level::Error, format!("{part}: {message}"));
    page.line(format!("  next: {next}"));
}

fn worst(status: &Status, part: Part) -> Option<Level> {
    status.problems.iter().filter(|problem| problem.part == part).map(|problem| problem.level).min()
}

fn head(status: &Status) -> String {
    let Status { netd, node, pid, kernel, .. } = status;
    let mut degraded: Vec<String> = Vec::new();
    for problem in status.problems.iter().filter(|problem| problem.level == Level::Error) {
        let part = problem.part.to_string();
        if !degraded.contains(&part) {
            degraded.push(part);
        }
    }
    let health = match (status.ok, status.ready) {
        (true, true) => "ok".to_owned(),
        (true, false) => "NOT READY".to_owned(),
        (false, true) => format!("DEGRADED: {}", degraded.join(", ")),
        (false, false) => format!("NOT READY: {}", degraded.join(", ")),
    };
    format!("netd {netd}  {node}  up {}  pid {pid}  kernel {kernel}  {health}", span(status.uptime_seconds))
}

fn source(status: &Status) -> String {
    let source = &status.source;
    format!(
        "{}: {}, {}, generation {}",
        source.path,
        counted(source.files, "file"),
        counted(source.objects, "object"),
        source.generation,
    )
}

fn services(status: &Status) -> String {
    let services = &status.services;
    let mut text = match services.generation {
        None => "none written yet".to_owned(),
        Some(generation) if generation == status.source.generation => {
            format!("{}, in the kernel", counted(services.wanted, "Service"))
        }
        Some(generation) => {
            format!("{}, the kernel has generation {generation}", counted(services.wanted, "Service"))
        }
    };
    for (count, what) in [
        (services.without_endpoints, "without endpoints"),
        (services.refused, "refused"),
        (services.waiting, "waiting"),
        (services.conflicts, "in conflict"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    if services.drift > 0 {
        text.push_str(&format!(", {} mended", many(services.drift, "row")));
    }
    text
}

fn policies(status: &Status) -> String {
    let policies = &status.policies;
    let all = match policies.wanted {
        1 => "1 policy".to_owned(),
        many => format!("{many} policies"),
    };
    let mut text = match policies.generation {
        None => "none written yet".to_owned(),
        Some(generation) if generation == status.source.generation => format!("{all}, in the kernel"),
        Some(generation) => format!("{all}, the kernel has generation {generation}"),
    };
    for (count, what) in [(policies.isolated, "isolated"), (policies.closed, "CLOSED")] {
        if count > 0 {
            text.push_str(&format!(", {} {what}", counted(count, "pod")));
        }
    }
    if policies.drift > 0 {
        text.push_str(&format!(", {} mended", many(policies.drift, "row")));
    }
    text
}

fn addresses(status: &Status) -> String {
    let ranges = status.addresses.ranges.iter().map(|range| {
        // The size of an IPv6 range says nothing to anybody.
        let limit = if range.limit.len() > 9 { String::new() } else { format!("/{}", range.limit) };
        let cooling = if range.cooling > 0 { format!(", {} cooling", range.cooling) } else { String::new() };
        let draining = if range.draining { ", draining" } else { "" };
        format!("{} {}{limit} used{cooling}{draining}", range.range, range.used)
    });
    let ranges: Vec<String> = ranges.collect();
    if ranges.is_empty() { "no range".to_owned() } else { ranges.join(" · ") }
}

fn network(status: &Status) -> String {
    let network = &status.network;
    let uplinks: Vec<String> = network.uplinks.iter().map(|(name, how)| format!("{name} ({how})")).collect();
    let uplinks = if uplinks.is_empty() { "no uplink".to_owned() } else { uplinks.join(", ") };
    let unreachable = match network.unreachable.len() {
        0 => String::new(),
        count => format!(", {} of other nodes by other routes", counted(count, "range")),
    };
    format!(
        "{uplinks}, {} to other nodes{unreachable}, pods' mtu {}",
        counted(network.routes.len(), "route"),
        network.mtu
    )
}

fn datapath(status: &Status) -> String {
    let packets: Vec<String> =
        status.datapath.packets.iter().map(|(way, count)| format!("{way} {count}")).collect();
    format!("schema {}, packets: {}", status.datapath.schema, packets.join(", "))
}

fn cni(status: &Status) -> String {
    let verbs: Vec<String> = status
        .cni
        .iter()
        .map(|(verb, requests)| {
            let failed =
                if requests.failed > 0 { format!(" ({} failed)", requests.failed) } else { String::new() };
            let all = requests.done + requests.failed;
            let mean = requests.total_us.checked_div(all).unwrap_or_default();
            format!("{verb} {all}{failed} in {}.{} ms", mean / 1_000, mean % 1_000 / 100)
        })
        .collect();
    let pods = counted(status.addresses.pods, "pod");
    if verbs.is_empty() { format!("{pods}, no request yet") } else { format!("{pods}, {}", verbs.join(", ")) }
}

fn tables(status: &Status) -> String {
    let tables = status
        .tables
        .iter()
        .filter_map(|table| Some(format!("{} {}", table.table, filled(table.used?, table.limit))));
    tables.collect::<Vec<_>>().join(" · ")
}

fn runtime(status: &Status) -> String {
    let tasks = &status.runtime.tasks;
    let restarts: u64 = tasks.values().map(|task| task.restarts).sum();
    format!(
        "rss {}, {}, {}",
        bytes(status.runtime.rss_bytes),
        counted(tasks.len(), "task"),
        many(restarts, "restart")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::samples;
    use crate::answer::status::Problem;

    #[test]
    fn a_healthy_agent() {
        insta::assert_snapshot!(page(&samples::status()).render(false), @r"
        netd 0.1.0  node-1  up 6d4h  pid 1412  kernel 6.12.0  ok
        Source     ok  /etc/netd/state: 3 files, 12 objects, generation 4
        Services   ok  318 Services, in the kernel, 2 without endpoints
        Policies   ok  25 policies, in the kernel, 38 pods isolated
        Addresses  ok  10.42.3.0/24 41/253 used, 2 cooling · fd00:42:3::/64 41 used, draining
        Network    ok  eth0 (TCX), 1 route to other nodes, 1 range of other nodes by other routes, pods' mtu 1500
        Datapath   ok  schema 2, packets: drop 3, neighbor 2000, peer 5000, stack 12
        CNI        ok  41 pods, ADD 42 (1 failed) in 3.1 ms, DEL 3 in 1.5 ms
        Tables         frontends 640/65536 · established 125829/262144 (47 %)
        Runtime    ok  rss 38 MiB, 1 task, 0 restarts
        ");
    }

    #[test]
    fn one_pod_is_no_pods() {
        let mut status = samples::status();
        status.policies.wanted = 1;
        let told = |status: &Status, isolated, closed| {
            let mut status = status.clone();
            (status.policies.isolated, status.policies.closed, status.policies.drift) = (isolated, closed, 1);
            policies(&status)
        };
        assert_eq!(
            told(&status, 1, 1),
            "1 policy, in the kernel, 1 pod isolated, 1 pod CLOSED, 1 row mended"
        );
        assert_eq!(
            told(&status, 2, 2),
            "1 policy, in the kernel, 2 pods isolated, 2 pods CLOSED, 1 row mended"
        );
    }

    #[test]
    fn what_is_wrong_is_named_with_the_next_command() {
        insta::assert_snapshot!(page(&samples::degraded()).render(false), @r"
        netd 0.1.0  node-1  up 6d4h  pid 1412  kernel 6.12.0  NOT READY: services, addresses
        Source     ok        /etc/netd/state: 3 files, 12 objects, generation 4
        Services   degraded  318 Services, the kernel has generation 3, 2 without endpoints, 2 refused, 1 waiting, 1 in conflict, 5 rows mended
        Policies   ok        25 policies, in the kernel, 38 pods isolated
        Addresses  degraded  no range
        Network    ok        no uplink, 0 routes to other nodes, pods' mtu 1500
        Datapath   warning   schema 2, packets: drop 3, neighbor 2000, peer 5000, stack 12
        CNI        ok        41 pods, no request yet
        Tables               frontends 640/65536 · established 125829/262144 (47 %)
        Runtime    ok        rss 38 MiB, 2 tasks, 2 restarts

        services: Service shop/api is not served: it needs 3 more frontends, 64 of 64 are in use (datapath.frontends)
          next: netd svc show shop/api

        services: another
          next: netd svc list

        addresses: not ready: no range to give addresses from is known yet
          next: netd config show

        datapath: table established is 91 % full
          next: netd conntrack summary
        ");
        let red = page(&samples::degraded()).render(true);
        assert!(red.contains("\x1b[31mServices   degraded"), "{red}");
        assert!(!red.contains("\x1b[31mSource"), "{red}");
    }

    #[test]
    fn of_many_problems_alike_the_first_are_told_and_the_rest_counted_at_their_level() {
        let mut status = samples::status();
        status.problems = (0..TOLD + 7)
            .map(|n| Problem {
                level: Level::Warning,
                part: Part::Source,
                message: format!("file {n}"),
                next: "ls".to_owned(),
            })
            .collect();
        let text = page(&status).render(true);
        assert!(text.ends_with("\nsource: 7 more like these\n  next: netd status -o json\n"), "{text}");
        assert_eq!(text.matches("source: file").count(), TOLD);
        assert!(!text.contains("\x1b[31m"), "{text}");
        status.problems.truncate(TOLD);
        assert!(!page(&status).render(false).contains("more like these"));
    }
}
