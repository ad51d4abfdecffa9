//! The `changes` task: what changes in the agent's state, as events for those who watch.
//!
//! It works only while somebody watches, from the same snapshots that everybody reads: what comes and goes
//! between two of them is not told. Comparing is pure: state before, state after, events.

use super::monitor::event;
use super::seams::OnNode;
use super::state::State;
use super::tasks;
use crate::answer::event::{Event, Kind};
use crate::model::ObjectName;
use crate::model::report::{Report, Severity};
use crate::reconcile::node::NodeStatus;
use crate::reconcile::services::ServiceStatus;
use crate::service::plan::{Desired, DesiredService};
use netd_bpf::flow::flow_count;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Time between two looks. All that is compared is at hand: a look costs microseconds while nothing changes.
const LOOK: Duration = Duration::from_millis(250);

/// Follows the agent's state until cancelled. Aborting it is safe: it only reads.
pub(super) async fn run(state: Arc<State>, cancel: CancellationToken) -> Result<(), tasks::Failure> {
    let monitor = state.monitor.clone();
    loop {
        if cancel.run_until_cancelled(monitor.watched()).await.is_none() {
            return Ok(());
        }
        let mut seen: Option<Seen> = None;
        while monitor.is_watched() {
            let (look, before) = (Arc::clone(&state), seen.take());
            // A changed model takes a whole plan, which is no work for a worker of the runtime.
            let (now, events) = tokio::task::spawn_blocking(move || Seen::look(&look, before)).await?;
            events.into_iter().for_each(|event| monitor.tell(event));
            seen = Some(now);
            if cancel.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_none() {
                return Ok(());
            }
        }
    }
}

/// What was there at the last look.
struct Seen {
    /// Generation and plan that the kernel holds.
    plan: Option<(u64, Desired)>,
    services: Arc<ServiceStatus>,
    node: Arc<NodeStatus>,
    report: Arc<Report>,
    pending: Pending,
    tasks: Tasks,
    flows: Option<[u64; flow_count::COUNT as usize]>,
}

impl Seen {
    /// The state now, and what is new since the last look.
    fn look(state: &State, before: Option<Self>) -> (Self, Vec<Event>) {
        let services = state.services.load().as_ref().map(|handle| Arc::clone(&handle.status.borrow()));
        let mut now = Self {
            plan: None,
            services: services.unwrap_or_default(),
            node: state.node_status.borrow().clone(),
            report: state.store.reports().borrow().clone(),
            pending: state.readiness.pending(),
            tasks: state.tasks.states(),
            flows: state.datapath.flow_counts().ok(),
        };
        let snapshot = state.store.current();
        let held = before.as_ref().and_then(|before| before.plan.as_ref()).map(|(generation, _)| *generation);
        let in_force = now.services.generation == Some(snapshot.generation);
        if in_force && held != Some(snapshot.generation) {
            let desired = OnNode(state.node.clone()).plan(&snapshot.model);
            now.plan = Some((snapshot.generation, desired));
        }
        let Some(mut before) = before else { return (now, Vec::new()) };
        let mut events = Vec::new();
        match (&before.plan, &now.plan) {
            (Some((_, old)), Some((_, new))) => service_events(&old.services, &new.services, &mut events),
            // Nothing new, or not in the kernel yet.
            (_, None) => now.plan = before.plan.take(),
            (None, Some(_)) => {}
        }
        refusal_events(&before.services, &now.services, &mut events);
        node_events(&before.node, &now.node, &mut events);
        source_events(&before.report, &now.report, &mut events);
        agent_events((&before.pending, &before.tasks), (&now.pending, &now.tasks), &mut events);
        if let (Some(old), Some(new)) = (before.flows, now.flows) {
            flow_events(&old, &new, &mut events);
        }
        (now, events)
    }
}

fn of(name: &ObjectName) -> Option<String> {
    Some(name.to_string())
}

/// Endpoints of the frontend that has the most: all, and those on this node.
fn endpoints(service: &DesiredService) -> (usize, usize) {
    let most = service.frontends.iter().max_by_key(|frontend| frontend.backends.len());
    most.map_or((0, 0), |frontend| (frontend.backends.len(), frontend.local()))
}

fn counted((all, local): (usize, usize)) -> String {
    let plural = if all == 1 { "" } else { "s" };
    format!("{all} endpoint{plural}, {local} on this node")
}

/// Both lists are in the order of their names.
fn service_events(old: &[DesiredService], new: &[DesiredService], events: &mut Vec<Event>) {
    let mut old = old.iter().peekable();
    let gone = |service: &DesiredService| event(Kind::Service, of(&service.name), "removed");
    for service in new {
        while let Some(missing) = old.next_if(|other| other.name < service.name) {
            events.push(gone(missing));
        }
        let now = endpoints(service);
        match old.next_if(|other| other.name == service.name) {
            None => events.push(event(Kind::Service, of(&service.name), format!("added: {}", counted(now)))),
            Some(same) if same == service => {}
            Some(before) => {
                let was = endpoints(before);
                let message = if was == now {
                    format!("changed: {}", counted(now))
                } else {
                    format!("changed: {}, had {} and {}", counted(now), was.0, was.1)
                };
                events.push(event(Kind::Service, of(&service.name), message));
            }
        }
    }
    events.extend(old.map(gone));
}

fn refusal_events(old: &ServiceStatus, new: &ServiceStatus, events: &mut Vec<Event>) {
    let bad = |subject, message: String| Event { bad: true, ..event(Kind::Service, subject, message) };
    // Once, whether it waits meanwhile or not.
    for refusal in new.refused.iter().chain(&new.waiting) {
        if new.told.contains_key(&refusal.service) && !old.told.contains_key(&refusal.service) {
            events.push(bad(of(&refusal.service), refusal.to_string()));
        }
    }
    for service in old.told.keys().filter(|service| !new.told.contains_key(*service)) {
        events.push(event(Kind::Service, of(service), "is no longer refused"));
    }
    for conflict in new.conflicts.iter().filter(|conflict| !old.conflicts.contains(conflict)) {
        events.push(bad(of(&conflict.service), conflict.to_string()));
    }
    for left_out in new.untranslatable.iter().filter(|one| !old.untranslatable.contains(one)) {
        events.push(bad(of(&left_out.port.service), left_out.to_string()));
    }
    if new.drift > old.drift {
        let found = new.drift - old.drift;
        let first = new.last_drift.first().map(|drift| format!(", first: {drift}")).unwrap_or_default();
        let message =
            format!("{found} rows of the Service tables were changed by others, and are mended{first}");
        events.push(bad(None, message));
    }
    match (&old.error, &new.error) {
        (before, Some(error)) if before.as_ref() != Some(error) => {
            events.push(bad(None, format!("the Service tables cannot be written: {error}")));
        }
        (Some(_), None) => events.push(event(Kind::Service, None, "the Service tables are as wanted again")),
        _ => {}
    }
}

fn node_events(old: &NodeStatus, new: &NodeStatus, events: &mut Vec<Event>) {
    for (name, how) in new.uplinks.iter().filter(|(name, how)| old.uplinks.get(*name) != Some(*how)) {
        // Why it is not attached is among the problems.
        let bad = new.problems.contains(how);
        let message = if bad { format!("no program: {how}") } else { format!("program: {how}") };
        events.push(Event { bad, ..event(Kind::Uplink, Some(name.clone()), message) });
    }
    for name in old.uplinks.keys().filter(|name| !new.uplinks.contains_key(*name)) {
        events.push(event(Kind::Uplink, Some(name.clone()), "is an uplink no longer"));
    }
    let (before, now): (BTreeSet<_>, BTreeSet<_>) =
        (old.routes.iter().collect(), new.routes.iter().collect());
    for route in now.difference(&before) {
        events.push(event(Kind::Route, Some((*route).clone()), "added"));
    }
    for route in before.difference(&now) {
        events.push(event(Kind::Route, Some((*route).clone()), "removed"));
    }
    let errors = |status: &NodeStatus| -> BTreeSet<String> {
        status.problems.iter().chain(&status.error).cloned().collect()
    };
    let told_with_its_uplink = |problem: &&String| new.uplinks.values().any(|how| how == *problem);
    for problem in errors(new).difference(&errors(old)).filter(|problem| !told_with_its_uplink(problem)) {
        events.push(Event { bad: true, ..event(Kind::Route, None, problem.clone()) });
    }
}

fn source_events(old: &Report, new: &Report, events: &mut Vec<Event>) {
    let before: BTreeSet<_> = old.problems.iter().collect();
    let now: BTreeSet<_> = new.problems.iter().collect();
    for problem in now.difference(&before) {
        let bad = problem.severity == Severity::Error;
        let file = Some(problem.path.display().to_string());
        events.push(Event { bad, ..event(Kind::Source, file, problem.to_string()) });
    }
    for problem in before.difference(&now) {
        let file = Some(problem.path.display().to_string());
        events.push(event(Kind::Source, file, format!("no longer: {problem}")));
    }
}

type Pending = BTreeMap<&'static str, String>;
type Tasks = BTreeMap<&'static str, tasks::State>;

fn agent_events(old: (&Pending, &Tasks), new: (&Pending, &Tasks), events: &mut Vec<Event>) {
    for (condition, why) in new.0 {
        if old.0.get(condition) != Some(why) {
            events.push(Event { bad: true, ..event(Kind::Agent, None, format!("not ready: {why}")) });
        }
    }
    if new.0.is_empty() && !old.0.is_empty() {
        events.push(event(Kind::Agent, None, "ready"));
    }
    for (name, task) in new.1 {
        if task.restarts > old.1.get(name).map_or(0, |task| task.restarts) {
            let why = task.last_failure.as_deref().unwrap_or("it ended");
            events
                .push(Event { bad: true, ..event(Kind::Agent, None, format!("task {name} failed: {why}")) });
        }
    }
}

fn flow_events(old: &[u64], new: &[u64], events: &mut Vec<Event>) {
    for (which, what) in [
        (
            flow_count::REFUSED_SHARE,
            "their pod's share of the table of established flows is used up (datapath.flows_per_pod)",
        ),
        (flow_count::REFUSED_FULL, "the table of established flows is full (datapath.flows)"),
    ] {
        let of = |counts: &[u64]| counts.get(which as usize).copied().unwrap_or_default();
        let more = of(new).saturating_sub(of(old));
        if more > 0 {
            let message = format!("{more} flows stay where newer ones may push them out: {what}");
            events.push(Event { bad: true, ..event(Kind::Flows, None, message) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;
    use crate::model::report::Problem;
    use crate::service::plan::{DesiredBackend, DesiredFrontend};
    use crate::service::tables::{List, Reason, Refusal};
    use netd_bpf::service::FrontendKey;
    use std::net::IpAddr;

    /// As `kind subject: message`, the bad ones with a mark.
    fn told(events: impl FnOnce(&mut Vec<Event>)) -> String {
        let mut all = Vec::new();
        events(&mut all);
        let line = |event: &Event| {
            let mark = if event.bad { "! " } else { "" };
            format!("{mark}{} {}: {}", event.kind, event.subject.as_deref().unwrap_or("-"), event.message)
        };
        all.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    fn service(name: &str, backends: &[(&str, bool)]) -> DesiredService {
        let addr = |text: &str| text.parse::<IpAddr>().unwrap().into();
        let backends = backends
            .iter()
            .map(|(ip, local)| DesiredBackend { addr: addr(ip), port: 80, local: *local, pod: None })
            .collect();
        let key = FrontendKey { addr: addr("10.96.0.1"), port: 80, proto: 6, scope: 0 };
        let frontend =
            DesiredFrontend { key, port: 80, protocol: Protocol::Tcp, affinity_seconds: None, backends };
        DesiredService { name: ObjectName::new("shop", name), frontends: vec![frontend] }
    }

    #[test]
    fn services_that_came_went_or_changed() {
        let old =
            [service("a", &[]), service("b", &[("10.0.0.1", true)]), service("d", &[]), service("z", &[])];
        let mut affine = service("d", &[]);
        affine.frontends[0].affinity_seconds = Some(9);
        let new = [
            service("b", &[("10.0.0.1", true), ("10.0.0.2", false)]),
            service("c", &[("10.0.0.3", false)]),
            affine,
        ];
        insta::assert_snapshot!(told(|events| service_events(&old, &new, events)), @r"
        service shop/a: removed
        service shop/b: changed: 2 endpoints, 1 on this node, had 1 and 1
        service shop/c: added: 1 endpoint, 0 on this node
        service shop/d: changed: 0 endpoints, 0 on this node
        service shop/z: removed
        ");
        assert_eq!(told(|events| service_events(&old, &old, events)), "");
    }

    fn unserved() -> List {
        let address = "10.96.0.1:80".parse().unwrap();
        List { address, protocol: Protocol::Tcp, endpoints: 1, in_force: 0 }
    }

    #[test]
    fn a_refusal_is_told_once_and_its_end_too() {
        let refusal = |needed| Refusal {
            service: ObjectName::new("shop", "big"),
            reason: Reason::Frontends { needed, used: 64, limit: 64 },
            waits: false,
            keeps_rows: false,
            list: unserved(),
        };
        let with = |refused: Vec<Refusal>| {
            let lacks = |one: &Refusal| (one.service.clone(), BTreeSet::from(["frontends"]));
            let told = refused.iter().map(lacks).collect();
            ServiceStatus { refused, told, ..ServiceStatus::default() }
        };
        let (none, one) = (with(Vec::new()), with(vec![refusal(3)]));
        insta::assert_snapshot!(told(|events| refusal_events(&none, &one, events)), @"! service shop/big: Service shop/big is not served: it needs 3 more frontends, 64 of 64 are in use (datapath.frontends)");
        assert_eq!(told(|events| refusal_events(&one, &with(vec![refusal(4)]), events)), "");
        insta::assert_snapshot!(told(|events| refusal_events(&one, &none, events)), @"service shop/big: is no longer refused");
        // Room comes out of quarantine, perhaps for others: it is not served yet.
        let wait = || Refusal { waits: true, ..refusal(3) };
        let waiting = ServiceStatus { refused: Vec::new(), waiting: vec![wait()], ..one.clone() };
        assert_eq!(told(|events| refusal_events(&one, &waiting, events)), "");
        assert_eq!(told(|events| refusal_events(&waiting, &one, events)), "");
        insta::assert_snapshot!(told(|events| refusal_events(&waiting, &none, events)), @"service shop/big: is no longer refused");
        // Who never was refused has nothing that ends.
        let new = ServiceStatus { waiting: vec![wait()], ..ServiceStatus::default() };
        assert_eq!(told(|events| refusal_events(&none, &new, events)), "");
        assert_eq!(told(|events| refusal_events(&new, &none, events)), "");
        let failed =
            ServiceStatus { error: Some("map full".to_owned()), drift: 2, ..ServiceStatus::default() };
        insta::assert_snapshot!(told(|events| refusal_events(&none, &failed, events)), @r"
        ! service -: 2 rows of the Service tables were changed by others, and are mended
        ! service -: the Service tables cannot be written: map full
        ");
        insta::assert_snapshot!(told(|events| refusal_events(&failed, &none, events)), @"service -: the Service tables are as wanted again");
    }

    #[test]
    fn uplinks_and_routes() {
        let status = |uplinks: &[(&str, &str)], routes: &[&str], problems: &[&str]| NodeStatus {
            uplinks: uplinks.iter().map(|(name, how)| ((*name).to_owned(), (*how).to_owned())).collect(),
            routes: routes.iter().map(|route| (*route).to_owned()).collect(),
            problems: problems.iter().map(|problem| (*problem).to_owned()).collect(),
            ..NodeStatus::default()
        };
        let old = status(&[("eth0", "TCX"), ("eth9", "TCX")], &["10.1.0.0/24 via 10.0.0.1"], &[]);
        let new = status(
            &[("eth0", "clsact"), ("eth1", "cannot attach to eth1")],
            &["10.2.0.0/24 via 10.0.0.2"],
            &["cannot attach to eth1", "10.3.0.0/24 is another's"],
        );
        insta::assert_snapshot!(told(|events| node_events(&old, &new, events)), @r"
        uplink eth0: program: clsact
        ! uplink eth1: no program: cannot attach to eth1
        uplink eth9: is an uplink no longer
        route 10.2.0.0/24 via 10.0.0.2: added
        route 10.1.0.0/24 via 10.0.0.1: removed
        ! route -: 10.3.0.0/24 is another's
        ");
        assert_eq!(told(|events| node_events(&new, &new, events)), "");
        // What follows from a failure is told with its uplink, not again as a route's.
        let again = status(&[("eth0", "clsact"), ("eth1", "no memory")], &[], &["no memory"]);
        insta::assert_snapshot!(told(|events| node_events(&again, &new, events)), @r"
        ! uplink eth1: no program: cannot attach to eth1
        route 10.2.0.0/24 via 10.0.0.2: added
        ! route -: 10.3.0.0/24 is another's
        ");
    }

    #[test]
    fn files_tasks_and_flows() {
        let problem = |severity| Problem {
            path: "/s/a.yaml".into(),
            line: Some(3),
            column: None,
            severity,
            object: None,
            message: "no mapping".to_owned(),
        };
        let report = |problems| Report { problems, ..Report::default() };
        let (old, new) = (report(vec![problem(Severity::Warning)]), report(vec![problem(Severity::Error)]));
        insta::assert_snapshot!(told(|events| source_events(&old, &new, events)), @r"
        ! source /s/a.yaml: /s/a.yaml:3: no mapping
        source /s/a.yaml: no longer: /s/a.yaml:3: no mapping
        ");

        let pending = Pending::from([("source", "not read yet".to_owned())]);
        let failed =
            tasks::State { restarts: 1, last_failure: Some("gone".to_owned()), ..tasks::State::default() };
        let failed = Tasks::from([("api", failed)]);
        let (ready, none) = (Pending::new(), Tasks::new());
        insta::assert_snapshot!(told(|events| agent_events((&pending, &none), (&ready, &failed), events)), @r"
        agent -: ready
        ! agent -: task api failed: gone
        ");
        insta::assert_snapshot!(told(|events| agent_events((&ready, &failed), (&pending, &failed), events)), @"! agent -: not ready: not read yet");

        let mut counts = [0; flow_count::COUNT as usize];
        counts[flow_count::REFUSED_SHARE as usize] = 7;
        let before = [0; flow_count::COUNT as usize];
        insta::assert_snapshot!(told(|events| flow_events(&before, &counts, events)), @"! flows -: 7 flows stay where newer ones may push them out: their pod's share of the table of established flows is used up (datapath.flows_per_pod)");
        assert_eq!(told(|events| flow_events(&counts, &counts, events)), "");
    }
}
