//! The answer to `netd status`: all parts, and what is not as it should be, each with the next command.

use crate::agent::reclaim::Totals;
use crate::agent::state::State;
use crate::agent::tasks;
use crate::answer::status::{
    Addresses, Datapath, Level, Network, Part, Policies, Problem, Range, Reclaim, Refused, Runtime, Services,
    Source, Status, Table, Task,
};
use crate::datapath::Way;
use crate::ipam::ledger::Clock;
use crate::ipam::pool::Usage;
use crate::model::report::{self, Report, Severity};
use crate::reconcile::node::NodeStatus;
use crate::reconcile::policy::PolicyStatus;
use crate::reconcile::services::ServiceStatus;
use crate::service::tables::Refusal;
use crate::telemetry::chain;
use crate::telemetry::metrics::resident_bytes;
use netd_bpf::flow::flow_count;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// From so many percent on a table is called nearly full.
const NEARLY_FULL: u64 = 90;

/// Asks everyone.
pub(in crate::agent) fn status(state: &State) -> Status {
    let report = state.store.reports().borrow().clone();
    let snapshot = state.store.current();
    let services = state.services.load().as_ref().map(|handle| handle.status.borrow().clone());
    let services = services.unwrap_or_default();
    let policies = state.policy.status.borrow().clone();
    let node = state.node_status.borrow().clone();
    let pending = state.readiness.pending();
    let tasks = state.tasks.states();
    let tables = tables(state, &services);
    let mut problems = Vec::new();
    let datapath = datapath(state, &mut problems);
    source_problems(&report, &mut problems);
    pending_problems(state, &pending, &report, &mut problems);
    service_problems(&services, &mut problems);
    policy_problems(&policies, &mut problems);
    node_problems(&node, &mut problems);
    task_problems(&tasks, &mut problems);
    table_problems(&tables, &mut problems);
    refusal_problems(&datapath.refused, &mut problems);
    if pending.is_empty()
        && let Err(error) = state.cni.state().probe(Clock::now())
    {
        let message = format!("no pod can be added: {error}");
        problems.push(error_of(Part::Addresses, message, "netd endpoints"));
    }
    problems.sort();
    Status {
        ok: problems.iter().all(|problem| problem.level != Level::Error),
        netd: env!("CARGO_PKG_VERSION").to_owned(),
        node: state.node.clone(),
        kernel: kernel_release(),
        pid: std::process::id(),
        uptime_seconds: state.started.elapsed().as_secs(),
        ready: pending.is_empty(),
        problems,
        source: Source {
            path: state.source.display().to_string(),
            synced: snapshot.synced,
            generation: snapshot.generation,
            files: report.files,
            objects: report.objects,
            problems: report.problems.clone(),
        },
        services: Services {
            generation: services.generation,
            wanted: services.services,
            without_endpoints: services.without_endpoints,
            refused: services.refused_services().len(),
            waiting: services.waiting.len(),
            conflicts: services.conflicts.len(),
            last_change_us: services.took_us,
            audits: services.audits,
            drift: services.drift,
        },
        policies: Policies {
            generation: policies.generation,
            wanted: policies.policies,
            isolated: policies.isolated,
            sets: policies.sets,
            identities: policies.identities,
            closed: policies.closed_pods(),
            last_compile_us: policies.compile_us,
            last_change_us: policies.took_us,
            audits: policies.audits,
            drift: policies.drift,
        },
        addresses: Addresses {
            pods: state.cni.state().entries().count(),
            ranges: state.cni.usage().iter().map(range).collect(),
        },
        network: Network {
            mtu: state.mtu.load(Ordering::Relaxed),
            uplinks: node.uplinks.clone(),
            routes: node.routes.clone(),
            unreachable: node.unreachable.clone(),
        },
        datapath,
        tables,
        cni: state.requests.totals(),
        runtime: Runtime {
            rss_bytes: resident_bytes().unwrap_or_default(),
            pending: pending.into_iter().map(|(name, why)| (name.to_owned(), why)).collect(),
            tasks: tasks.into_iter().map(|(name, task)| (name.to_owned(), shown(task))).collect(),
        },
    }
}

/// How full each table of the datapath is, as far as somebody knows.
pub(in crate::agent) fn tables(state: &State, services: &ServiceStatus) -> Vec<Table> {
    let config = state.datapath.config();
    let table = |name: &str, key: &str, used: Option<u64>, limit: u32| Table {
        table: name.to_owned(),
        used,
        limit: limit.into(),
        key: format!("datapath.{key}"),
    };
    let usages = &services.usages;
    let known = |used: u32| services.generation.is_some().then_some(u64::from(used));
    let policies = state.policy.status.borrow().clone();
    let written = |used: u32| policies.generation.is_some().then_some(u64::from(used));
    let of_policies = state.datapath.policy_limits();
    let (frontends, slots, backends) = state.datapath.service_limits();
    let pods = u64::try_from(state.cni.state().entries().count()).ok();
    let fill = state.datapath.flow_fill().ok();
    // Once full of flows, most of them over, the nursery stays so.
    let counted = state.reclaimed.totals().passes > 0;
    let nursery = fill.as_ref().filter(|_| counted).map(|fill| fill.nursery_alive);
    vec![
        table("frontends", "frontends", known(usages.frontends.used), frontends),
        table("backends", "backends", known(usages.backends.used), backends),
        table("slots", "slots", known(usages.slots.used), slots),
        table("pods", "pods", pods, config.pods),
        table("established", "flows", fill.map(|fill| fill.established), config.flows),
        table("nursery", "nursery", nursery, config.nursery),
        table("affinity", "affinity", None, config.affinity),
        table("policy_rows", "policy_rows", written(policies.usages.rows.used), of_policies.rows),
        table("policy_ranges", "policy_ranges", written(policies.usages.ranges.used), of_policies.ranges),
        table("identities", "identities", written(policies.usages.identities.used), of_policies.identities),
        table("blocks", "blocks", written(policies.usages.blocks.used), of_policies.blocks),
    ]
}

fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

fn range(usage: &Usage) -> Range {
    Range {
        range: usage.range,
        draining: usage.draining,
        used: usage.used,
        cooling: usage.cooling,
        limit: usage.size.to_string(),
    }
}

fn shown(task: tasks::State) -> Task {
    Task { running: task.running, restarts: task.restarts, last_failure: task.last_failure }
}

fn datapath(state: &State, problems: &mut Vec<Problem>) -> Datapath {
    let mut unreadable = |error: &dyn std::error::Error| {
        let message = format!("the kernel's tables cannot be read: {}", chain(error));
        problems.push(error_of(Part::Datapath, message, "ls -l /sys/fs/bpf"));
    };
    let packets = state.datapath.path_counts().inspect_err(|error| unreadable(error)).unwrap_or_default();
    let events = state.datapath.flow_counts().inspect_err(|error| unreadable(error)).ok();
    Datapath {
        schema: netd_bpf::SCHEMA,
        packets: packets.into_iter().map(|(name, count)| (name.to_owned(), count.packets)).collect(),
        flow_events: events.map(|counts| flow_events(&counts)).unwrap_or_default(),
        reclaim: reclaim(state),
        refused: state.reclaimed.refused(state),
    }
}

fn reclaim(state: &State) -> Reclaim {
    let (by, because) = match state.datapath.reclaim_way() {
        Way::Iterator => ("iterator", None),
        Way::Batch { because } => ("batch", Some(because)),
    };
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let Totals { passes, removed, corrected, mended, ownerless, last, worst_slice } =
        state.reclaimed.totals();
    Reclaim {
        by: by.to_owned(),
        because,
        passes,
        removed,
        corrected,
        mended,
        ownerless,
        last_us: micros(last),
        worst_slice_us: micros(worst_slice),
    }
}

/// Refusals that go on, each cause for itself.
fn refusal_problems(refused: &[Refused], problems: &mut Vec<Problem>) {
    for one in refused {
        let pod = one.pod.as_ref();
        let pod = pod.map_or_else(|| format!("endpoint {}", one.endpoint), |pod| format!("pod {pod}"));
        let mut tell = |level, message| {
            problems.push(Problem { level, ..error_of(Part::Datapath, message, "netd conntrack summary") });
        };
        if one.table_full_lately > 0 {
            let message = format!(
                "the table of flows is full: {} flows of {pod} can be pushed out by new ones, all of the last \
                 minute (datapath.flows)",
                one.table_full_lately,
            );
            tell(Level::Error, message);
        }
        if one.share_used_up_lately > 0 {
            let message = format!(
                "{pod} holds its whole share of {} rows of flows: {} more can be pushed out by new ones, all of \
                 the last minute (datapath.flows_per_pod)",
                one.rows, one.share_used_up_lately,
            );
            tell(Level::Warning, message);
        }
    }
}

/// The counters of flows by name.
pub(super) fn flow_events(counts: &[u64]) -> BTreeMap<String, u64> {
    flow_count::NAMES.iter().zip(counts).map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

fn error_of(part: Part, message: impl Into<String>, next: impl Into<String>) -> Problem {
    Problem { level: Level::Error, part, message: message.into(), next: next.into() }
}

fn source_problems(report: &Report, problems: &mut Vec<Problem>) {
    problems.extend(report.problems.iter().map(|problem| Problem {
        level: match problem.severity {
            Severity::Error => Level::Error,
            Severity::Warning => Level::Warning,
        },
        part: Part::Source,
        message: problem.to_string(),
        next: look_at(problem),
    }));
}

/// The command that shows the place.
fn look_at(problem: &report::Problem) -> String {
    match problem.line {
        Some(line) => format!("sed -n {line}p {}", quoted(&problem.path)),
        None => format!("ls -l {}", quoted(&problem.path)),
    }
}

/// As a shell takes it for one word.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+,=".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

fn pending_problems(
    state: &State,
    pending: &BTreeMap<&'static str, String>,
    report: &Report,
    problems: &mut Vec<Problem>,
) {
    for (condition, why) in pending {
        let (part, next) = match *condition {
            // Its own problems say more.
            "source" if report.errors().next().is_some() => continue,
            "source" => (Part::Source, format!("ls -l {}", quoted(&state.source))),
            "services" => (Part::Services, "netd svc list".to_owned()),
            "policies" => (Part::Policies, logs()),
            "node" => (Part::Network, "ip route show default".to_owned()),
            "addresses" => (Part::Addresses, "netd config show".to_owned()),
            _ => (Part::Runtime, logs()),
        };
        problems.push(error_of(part, format!("not ready: {why}"), next));
    }
}

fn service_problems(services: &ServiceStatus, problems: &mut Vec<Problem>) {
    if let Some(error) = &services.error {
        let message = format!("the Service tables cannot be written: {error}");
        problems.push(error_of(Part::Services, message, "netd svc list"));
    }
    let of = |refusal: &Refusal| {
        error_of(Part::Services, refusal.to_string(), format!("netd svc show {}", refusal.service))
    };
    problems.extend(services.refused.iter().map(of));
    problems.extend(services.conflicts.iter().map(|conflict| {
        error_of(Part::Services, conflict.to_string(), format!("netd svc show {}", conflict.holder))
    }));
    problems.extend(
        services.untranslatable.iter().map(|one| {
            error_of(Part::Services, one.to_string(), format!("netd svc show {}", one.port.service))
        }),
    );
    let waiting = |refusal| Problem { level: Level::Warning, ..of(refusal) };
    problems.extend(services.waiting.iter().map(waiting));
}

fn policy_problems(policies: &PolicyStatus, problems: &mut Vec<Problem>) {
    if let Some(error) = &policies.error {
        let message = format!("the policy tables cannot be written: {error}");
        problems.push(error_of(Part::Policies, message, logs()));
    }
    let lack = policies.closed.iter().map(ToString::to_string).chain(policies.left_out.iter().cloned());
    let lack = lack.map(|message| (message, "netd config show".to_owned()));
    let others = policies.problems.iter().map(|problem| (problem.to_string(), logs()));
    problems.extend(lack.chain(others).map(|(message, next)| error_of(Part::Policies, message, next)));
}

fn node_problems(node: &NodeStatus, problems: &mut Vec<Problem>) {
    if let Some(error) = &node.error {
        problems.push(error_of(Part::Network, error, "ip route show default"));
    }
    let one = |problem| error_of(Part::Network, problem, "ip route show proto 110");
    problems.extend(node.problems.iter().map(one));
}

fn task_problems(tasks: &BTreeMap<&'static str, tasks::State>, problems: &mut Vec<Problem>) {
    for (name, task) in tasks.iter().filter(|(_, task)| !task.is_well()) {
        let why = task.last_failure.as_deref().unwrap_or("it ended");
        let part = if *name == "install" { Part::Cni } else { Part::Runtime };
        problems.push(error_of(part, format!("task {name} failed: {why}"), logs()));
    }
}

/// Where the agent's log is, if systemd runs it.
fn logs() -> String {
    format!("journalctl _PID={} -n 50", std::process::id())
}

fn table_problems(tables: &[Table], problems: &mut Vec<Problem>) {
    for table in tables {
        let Some((used, percent)) = table.used.zip(table.percent()) else { continue };
        if percent < NEARLY_FULL {
            continue;
        }
        let (name, limit, key) = (&table.table, table.limit, &table.key);
        let message = format!("table {name} is {percent} % full: {used} of {limit} rows ({key})");
        let next = if name == "established" { "netd conntrack summary" } else { "netd config show" };
        problems.push(Problem { level: Level::Warning, ..error_of(Part::Datapath, message, next) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectName, Protocol};
    use crate::service::tables::{List, Reason};
    use std::path::PathBuf;

    fn unserved() -> List {
        let address = "10.96.0.1:80".parse().unwrap();
        List { address, protocol: Protocol::Tcp, endpoints: 1, in_force: 0 }
    }

    #[test]
    fn each_problem_names_the_next_command() {
        let mut problems = Vec::new();
        let refusal = Refusal {
            service: ObjectName::new("shop", "api"),
            reason: Reason::Frontends { needed: 3, used: 64, limit: 64 },
            waits: false,
            keeps_rows: false,
            list: unserved(),
        };
        let services = ServiceStatus { refused: vec![refusal], ..ServiceStatus::default() };
        service_problems(&services, &mut problems);
        let broken = report::Problem {
            path: PathBuf::from("/etc/netd/the state/a.yaml"),
            line: Some(3),
            column: Some(9),
            severity: Severity::Warning,
            object: None,
            message: "unknown field".to_owned(),
        };
        source_problems(&Report { problems: vec![broken], ..Report::default() }, &mut problems);
        let node =
            NodeStatus { problems: vec!["10.1.0.0/24 is another's".to_owned()], ..NodeStatus::default() };
        node_problems(&node, &mut problems);
        let table =
            Table { table: "slots".to_owned(), used: Some(91), limit: 100, key: "datapath.slots".to_owned() };
        table_problems(
            &[Table { used: Some(89), ..table.clone() }, Table { used: None, ..table.clone() }, table],
            &mut problems,
        );
        problems.sort();
        let lines: Vec<String> = problems
            .iter()
            .map(|p| format!("{:?} {}: {} → {}", p.level, p.part, p.message, p.next))
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        Error services: Service shop/api is not served: it needs 3 more frontends, 64 of 64 are in use (datapath.frontends) → netd svc show shop/api
        Error network: 10.1.0.0/24 is another's → ip route show proto 110
        Warning source: /etc/netd/the state/a.yaml:3:9: unknown field → sed -n 3p '/etc/netd/the state/a.yaml'
        Warning datapath: table slots is 91 % full: 91 of 100 rows (datapath.slots) → netd config show
        ");
    }

    #[test]
    fn a_pod_that_is_refused_places_is_named_while_it_goes_on_by_each_cause() {
        let one = |endpoint, share_used_up_lately, table_full_lately| Refused {
            endpoint,
            pod: (endpoint == 1).then(|| "shop/web".to_owned()),
            rows: 64,
            // Since the agent began: of no concern now.
            share_used_up: 700,
            table_full: 800,
            share_used_up_lately,
            table_full_lately,
            now: share_used_up_lately + table_full_lately > 0,
        };
        let mut problems = Vec::new();
        refusal_problems(&[one(1, 5, 0), one(2, 1, 3), one(3, 0, 0)], &mut problems);
        let lines: Vec<String> = problems.iter().map(|p| format!("{:?}: {}", p.level, p.message)).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        Warning: pod shop/web holds its whole share of 64 rows of flows: 5 more can be pushed out by new ones, all of the last minute (datapath.flows_per_pod)
        Error: the table of flows is full: 3 flows of endpoint 2 can be pushed out by new ones, all of the last minute (datapath.flows)
        Warning: endpoint 2 holds its whole share of 64 rows of flows: 1 more can be pushed out by new ones, all of the last minute (datapath.flows_per_pod)
        ");
    }

    #[test]
    fn of_many_problems_none_is_kept_back_and_none_is_made_worse() {
        let refusal = |n: usize| Refusal {
            service: ObjectName::new("shop", &format!("api-{n}")),
            reason: Reason::Frontends { needed: 3, used: 64, limit: 64 },
            waits: true,
            keeps_rows: false,
            list: unserved(),
        };
        let services = ServiceStatus { waiting: (0..300).map(refusal).collect(), ..ServiceStatus::default() };
        let mut problems = Vec::new();
        service_problems(&services, &mut problems);
        assert_eq!(problems.len(), 300);
        assert!(problems.iter().all(|problem| problem.level == Level::Warning));
    }
}
