//! The answers to `netd conntrack`: flows by name, in a stream, and their summary.
//!
//! The tables are walked on a blocking thread, some thousand rows per system call, and told as they come: a
//! table of any size costs the agent a few hundred kilobytes.

use super::ask::{Book, Refusal, pick};
use super::status::flow_events;
use crate::agent::drops::Names;
use crate::agent::state::State;
use crate::answer::conntrack::{
    Fill, Flow, Group, Head, Line, PodFlows, State as FlowState, Summary, Table, Tail,
};
use crate::answer::{document, protocol};
use crate::datapath::FlowRow;
use crate::datapath::conversation::{self, Conversation, now};
use crate::model::ObjectName;
use crate::reconcile::services::Register;
use crate::telemetry::chain;
use axum::body::{Body, Bytes};
use futures_util::stream;
use ipnet::IpNet;
use netd_bpf::flow::{Limits, expired, role};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Bytes gathered before they are handed on.
const CHUNK: usize = 32 << 10;

/// Pods in a summary.
const PODS: usize = 1024;

/// The question, as it comes.
#[derive(Debug, Default, serde::Deserialize)]
pub(in crate::agent) struct Asked {
    pod: Option<String>,
    service: Option<String>,
    protocol: Option<String>,
    state: Option<FlowState>,
    address: Option<String>,
    limit: Option<usize>,
}

/// Which flows are wanted, and the names to tell them by.
pub(in crate::agent) struct Question {
    limit: Option<usize>,
    pod: Option<HashSet<IpAddr>>,
    service: Option<ObjectName>,
    protocol: Option<u8>,
    state: Option<FlowState>,
    address: Option<IpNet>,
    book: Arc<Book>,
    /// None before the first plan: then nobody knows what is deleted.
    numbers: Option<Register>,
}

impl Question {
    /// Understands it.
    ///
    /// # Errors
    /// A name is unknown, or something is not what it ought to be.
    pub(in crate::agent) fn new(asked: Asked, state: &State) -> Result<Self, Refusal> {
        let book = state.book();
        let services = state.services.load();
        let planned = services.as_ref().filter(|handle| handle.status.borrow().generation.is_some());
        let numbers = planned.map(|handle| handle.names.register());
        let pod = match asked.pod {
            Some(pod) => Some(book.addresses(&pod)?.1.into_iter().collect()),
            None => None,
        };
        let service = match asked.service {
            Some(asked) => {
                let model = state.store.current();
                // One that was deleted may still have flows. Numbers are given out again one day, and an agent
                // knows none that were deleted before its time.
                let numbers = numbers.iter().flat_map(|all| [&all.services, &all.former_services]);
                let services = numbers.flat_map(|services| services.values());
                Some(pick("Service", &asked, model.model.services.keys().chain(services))?)
            }
            None => None,
        };
        Ok(Self {
            limit: asked.limit,
            pod,
            service,
            protocol: asked.protocol.as_deref().map(protocol_number).transpose()?,
            state: asked.state,
            address: asked.address.as_deref().map(network).transpose()?,
            book,
            numbers,
        })
    }

    /// The Service of a number, and whether it is deleted.
    fn service(&self, number: u32) -> (Option<&ObjectName>, bool) {
        match &self.numbers {
            Some(numbers) if number != 0 => match numbers.services.get(&number) {
                Some(service) => (Some(service), false),
                None => (numbers.former_services.get(&number), true),
            },
            _ => (None, false),
        }
    }

    /// The pod of a flow's backend if it was deleted, and whether it was.
    fn former_backend(&self, flow: &Conversation) -> (Option<String>, bool) {
        let id = (flow.backend, flow.backend_generation);
        match &self.numbers {
            Some(numbers) if flow.backend != 0 && !numbers.backends.contains_key(&id) => {
                let label = numbers.former_backends.get(&id).filter(|label| label.address == flow.server);
                (label.and_then(|label| label.pod.as_ref()).map(ToString::to_string), true)
            }
            _ => (None, false),
        }
    }

    /// Of what both rows of a flow tell alike.
    fn wants(&self, flow: &Conversation) -> bool {
        let ends = || {
            let frontend = flow.frontend.map(|at| at.ip());
            [Some(flow.client.ip()), frontend, Some(flow.server.ip())].into_iter().flatten()
        };
        self.protocol.is_none_or(|proto| proto == flow.proto)
            && self.service.as_ref().is_none_or(|service| self.service(flow.service).0 == Some(service))
            && self.pod.as_ref().is_none_or(|pod| ends().any(|ip| pod.contains(&ip)))
            && self.address.is_none_or(|net| ends().any(|ip| net.contains(&ip)))
    }

    fn pod(&self, address: IpAddr) -> Option<String> {
        self.book.called(address)
    }

    fn told(&self, flow: &Conversation, now: u32, names: &dyn Names) -> Flow {
        let (service, service_deleted) = self.service(flow.service);
        let (former_pod, backend_deleted) = self.former_backend(flow);
        Flow {
            protocol: protocol(flow.proto),
            client: flow.client,
            client_pod: self.pod(flow.client.ip()),
            frontend: flow.frontend,
            service: service.map(ToString::to_string),
            service_number: Some(flow.service).filter(|number| *number != 0),
            service_deleted,
            server: flow.server,
            server_pod: self.pod(flow.server.ip()).or(former_pod),
            backend_number: Some(flow.backend).filter(|number| *number != 0),
            backend_deleted,
            translated_port: flow.client_port_there,
            state: shown(flow.state),
            table: table(flow.established),
            age_seconds: flow.age(now),
            idle_seconds: flow.idle(now),
            expires_in_seconds: flow.expires_in(now),
            endpoint: flow.owner,
            half: !flow.whole,
            hairpin: flow.hairpin,
            from_stack: flow.from_stack,
            refused: flow.refused,
            egress_rule: names.rule(flow.egress_rule),
            ingress_rule: names.rule(flow.ingress_rule),
        }
    }
}

const fn shown(state: conversation::State) -> FlowState {
    match state {
        conversation::State::Opening => FlowState::Opening,
        conversation::State::Established => FlowState::Established,
        conversation::State::HalfClosed => FlowState::HalfClosed,
        conversation::State::Closed => FlowState::Closed,
        conversation::State::OneWay => FlowState::OneWay,
        conversation::State::TwoWay => FlowState::TwoWay,
    }
}

const fn table(established: bool) -> Table {
    if established { Table::Established } else { Table::Nursery }
}

fn protocol_number(asked: &str) -> Result<u8, Refusal> {
    let named = [1, 6, 17, 58, 132].into_iter().find(|number| protocol(*number).eq_ignore_ascii_case(asked));
    let number = named.or_else(|| asked.parse().ok());
    number.ok_or_else(|| {
        Refusal::Bad(format!("{asked} is no protocol: tcp, udp, sctp, icmp, icmpv6 or a number"))
    })
}

fn network(asked: &str) -> Result<IpNet, Refusal> {
    let address = asked.parse::<IpAddr>().map(IpNet::from);
    address
        .or_else(|_| asked.parse())
        .map_err(|_| Refusal::Bad(format!("{asked} is neither an address nor a range")))
}

/// Lines on their way to who asked.
struct Lines {
    buffer: Vec<u8>,
    to: mpsc::Sender<Bytes>,
}

impl Lines {
    /// Breaks off when nobody reads any more.
    fn push(&mut self, line: &impl serde::Serialize) -> ControlFlow<()> {
        // Only what cannot be JSON at all fails here, and nothing of this is.
        serde_json::to_writer(&mut self.buffer, line).ok();
        self.buffer.push(b'\n');
        if self.buffer.len() < CHUNK { ControlFlow::Continue(()) } else { self.flush() }
    }

    fn flush(&mut self) -> ControlFlow<()> {
        match self.to.blocking_send(std::mem::take(&mut self.buffer).into()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

/// A body of lines: [`Head`], flows, [`Tail`]. Slow readers are waited for.
pub(in crate::agent) fn list(state: Arc<State>, question: Question) -> Body {
    let (to, lines) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || walk(&state, &question, &mut Lines { buffer: Vec::new(), to }));
    Body::from_stream(stream::unfold(lines, |mut lines| async move {
        let chunk = lines.recv().await?;
        Some((Ok::<_, Infallible>(chunk), lines))
    }))
}

fn walk(state: &State, question: &Question, lines: &mut Lines) {
    let head = Head { node: state.node.clone(), limit: question.limit };
    if lines.push(&document(&head)).is_break() {
        return;
    }
    let now = now();
    let (mut matched, mut told) = (0_u64, 0_u64);
    let mut gone = false;
    let limit = question.limit.and_then(|limit| u64::try_from(limit).ok()).unwrap_or(u64::MAX);
    let walked = state.datapath.visit_conversations(
        |flow| question.wants(flow),
        |flow| {
            if question.state.is_some_and(|state| state != shown(flow.state)) {
                return ControlFlow::Continue(());
            }
            matched += 1;
            if told == limit {
                return ControlFlow::Continue(());
            }
            told += 1;
            let pushed = lines.push(&Line::Flow(Box::new(question.told(&flow, now, state))));
            gone = pushed.is_break();
            pushed
        },
    );
    if gone {
        return;
    }
    let last = match walked {
        Ok(()) => Line::End(Tail { matched, told }),
        Err(error) => Line::Error(chain(&error)),
    };
    // Whoever left before the end has lost nothing.
    if lines.push(&last).is_continue() && lines.flush().is_break() {
        tracing::debug!(target: "netd::api", "nobody waited for the last of the flows");
    }
}

/// Rows of both tables, counted: those within their lifetime, as everywhere; beside them all that are there.
#[derive(Debug, Default)]
struct Counts {
    established: Rows,
    nursery: Rows,
    groups: HashMap<(u8, FlowState, Table), u64>,
    owners: HashMap<u32, [u64; 2]>,
}

/// Rows of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rows {
    alive: u64,
    all: u64,
}

impl Counts {
    fn add(&mut self, row: &FlowRow, limits: &Limits, now: u32) {
        let rows = if row.established { &mut self.established } else { &mut self.nursery };
        rows.all += 1;
        if expired(&row.flow, row.key.proto, limits, now) {
            return;
        }
        rows.alive += 1;
        let [nursery, established] = self.owners.entry(row.flow.owner).or_default();
        *if row.established { established } else { nursery } += 1;
        if row.flow.role != role::REPLY {
            let state = shown(conversation::state(&row.flow, row.key.proto));
            *self.groups.entry((row.key.proto, state, table(row.established))).or_default() += 1;
        }
    }
}

/// Counts all rows.
///
/// # Errors
/// The kernel refuses.
pub(in crate::agent) fn summary(state: &State) -> Result<Summary, Refusal> {
    let (limits, now) = (state.datapath.flow_limits(), now());
    let mut counts = Counts::default();
    let walked = state.datapath.visit_flows(|batch| {
        batch.for_each(|row| counts.add(&row, &limits, now));
        ControlFlow::Continue(())
    });
    walked.map_err(|error| Refusal::failed(&error))?;
    let Counts { established, nursery, groups, owners } = counts;
    let config = state.datapath.config();
    let tables = [("established", established, config.flows), ("nursery", nursery, config.nursery)];
    let fill = |Rows { alive, all }, limit: u32| Fill { used: alive, rows: all, limit: limit.into() };
    let mut flows: Vec<Group> = groups
        .into_iter()
        .map(|((proto, state, table), flows)| Group { protocol: protocol(proto), state, table, flows })
        .collect();
    flows.sort();
    let events = state.datapath.flow_counts().map_err(|error| Refusal::failed(&error))?;
    Ok(Summary {
        node: state.node.clone(),
        tables: tables.into_iter().map(|(name, rows, limit)| (name.to_owned(), fill(rows, limit))).collect(),
        flows,
        pods: pods(state, owners),
        events: flow_events(&events),
        lifetimes_seconds: lifetimes(&limits),
    })
}

/// By the keys of the configuration.
fn lifetimes(limits: &Limits) -> BTreeMap<String, u32> {
    let all = [
        ("tcp_opening", limits.tcp_opening),
        ("tcp_established", limits.tcp_established),
        ("tcp_half_closed", limits.tcp_half_closed),
        ("tcp_closed", limits.tcp_closed),
        ("one_way", limits.one_way),
        ("two_way", limits.two_way),
    ];
    all.into_iter().map(|(name, seconds)| (name.to_owned(), seconds)).collect()
}

fn pods(state: &State, owners: HashMap<u32, [u64; 2]>) -> Vec<PodFlows> {
    let ledger = state.cni.state();
    let names = ledger.entries().map(|entry| (entry.endpoint, entry.called())).collect();
    named(owners, &names, state.datapath.config().flows_per_pod.into())
}

/// Those with the most rows first.
fn named(owners: HashMap<u32, [u64; 2]>, names: &HashMap<u32, String>, limit: u64) -> Vec<PodFlows> {
    let mut pods: Vec<PodFlows> = owners
        .into_iter()
        .map(|(endpoint, [nursery, established])| PodFlows {
            pod: names.get(&endpoint).cloned(),
            endpoint,
            established,
            limit,
            nursery,
        })
        .collect();
    pods.sort_by_key(|pod| (std::cmp::Reverse((pod.established, pod.nursery)), pod.endpoint));
    pods.truncate(PODS);
    pods
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::drops::testing::Two;
    use crate::reconcile::services::BackendLabel;
    use netd_bpf::flow::{Flow, FlowKey};

    fn question() -> Question {
        Question {
            limit: None,
            pod: None,
            service: None,
            protocol: None,
            state: None,
            address: None,
            book: Arc::default(),
            numbers: Some(Register {
                services: HashMap::from([(4, ObjectName::new("shop", "api"))]),
                backends: HashMap::from([((1, 1), label("api-1"))]),
                former_services: HashMap::from([(3, ObjectName::new("shop", "old"))]),
                former_backends: HashMap::from([((1, 0), label("api-0"))]),
            }),
        }
    }

    fn label(pod: &str) -> BackendLabel {
        let (address, pod) = ("10.0.1.9:8080".parse().unwrap(), Some(ObjectName::new("shop", pod)));
        BackendLabel { generation: 1, address, pod }
    }

    fn flow() -> Conversation {
        Conversation {
            proto: 6,
            client: "10.0.0.1:4000".parse().unwrap(),
            frontend: Some("10.96.0.1:80".parse().unwrap()),
            server: "10.0.1.9:8080".parse().unwrap(),
            client_port_there: None,
            state: conversation::State::Established,
            established: true,
            whole: true,
            hairpin: false,
            from_stack: false,
            refused: false,
            egress_rule: 1,
            ingress_rule: 0,
            service: 4,
            backend: 1,
            backend_generation: 1,
            owner: 2,
            created: 100,
            last_seen: 150,
            lifetime: 8000,
        }
    }

    #[test]
    fn every_filter_lets_its_own_through_and_nothing_else() {
        let flow = flow();
        let net = |text: &str| Some(network(text).unwrap());
        let pod = |text: &str| Some(HashSet::from([text.parse().unwrap()]));
        assert!(question().wants(&flow));
        for (question, wanted) in [
            (Question { protocol: Some(6), ..question() }, true),
            (Question { protocol: Some(17), ..question() }, false),
            (Question { service: Some(ObjectName::new("shop", "api")), ..question() }, true),
            (Question { service: Some(ObjectName::new("shop", "db")), ..question() }, false),
            (Question { address: net("10.0.0.1"), ..question() }, true),
            (Question { address: net("10.96.0.0/16"), ..question() }, true),
            (Question { address: net("10.0.1.9"), ..question() }, true),
            (Question { address: net("fd00::/8"), ..question() }, false),
            (Question { pod: pod("10.0.1.9"), ..question() }, true),
            (Question { pod: pod("10.0.0.2"), ..question() }, false),
            (Question { pod: pod("10.0.1.9"), protocol: Some(17), ..question() }, false),
        ] {
            assert_eq!(question.wants(&flow), wanted, "{:?} {:?}", question.address, question.pod);
        }
    }

    #[test]
    fn a_flow_is_told_by_names_and_times() {
        let told = question().told(&flow(), 160, &Two);
        assert_eq!((told.age_seconds, told.idle_seconds, told.expires_in_seconds), (60, 10, 7990));
        assert_eq!((told.service.as_deref(), told.protocol.as_str()), (Some("shop/api"), "tcp"));
        assert_eq!((told.service_number, told.backend_number), (Some(4), Some(1)));
        assert_eq!(told.egress_rule.map(|rule| rule.to_string()).as_deref(), Some("shop/web rule 1"));
        assert_eq!(told.ingress_rule, None);
        let direct = Conversation { service: 0, backend: 0, frontend: None, ..flow() };
        let direct = question().told(&direct, 160, &Two);
        assert_eq!((direct.service, direct.service_number, direct.backend_number), (None, None, None));
        assert!(!told.service_deleted && !told.backend_deleted && told.server_pod.is_none());
        let overdue = question().told(&Conversation { lifetime: 5, ..flow() }, 160, &Two);
        assert_eq!(overdue.expires_in_seconds, 0);
    }

    #[test]
    fn a_flow_of_a_deleted_service_is_found_by_its_name_and_told_as_that() {
        let told = |flow: &Conversation| {
            let told = question().told(flow, 160, &Two);
            (told.service, told.service_deleted, told.server_pod, told.backend_deleted)
        };
        let old = Conversation { service: 3, backend_generation: 0, ..flow() };
        assert_eq!(told(&old), (Some("shop/old".to_owned()), true, Some("shop/api-0".to_owned()), true));
        let asked = Question { service: Some(ObjectName::new("shop", "old")), ..question() };
        assert!(asked.wants(&old) && !asked.wants(&flow()));
        // Of before this agent's time, at another address, without a Service.
        let unknown = Conversation { service: 2, backend: 9, ..flow() };
        assert_eq!(told(&unknown), (None, true, None, true));
        let moved = Conversation { server: "10.0.1.8:8080".parse().unwrap(), ..old };
        assert_eq!(told(&moved).2, None);
        let direct = Conversation { service: 0, backend: 0, frontend: None, ..flow() };
        assert_eq!(told(&direct), (None, false, None, false));
        // Before the first plan nothing is known to be deleted.
        let early = Question { numbers: None, ..question() }.told(&old, 160, &Two);
        assert_eq!((early.service, early.service_deleted, early.backend_deleted), (None, false, false));
    }

    #[test]
    fn lifetimes_are_told_by_the_keys_of_the_configuration() {
        let example = include_str!("../../config/example.yaml");
        for key in lifetimes(&Limits::DEFAULT).into_keys() {
            assert!(example.contains(&format!("    {key}: ")), "{key}");
        }
    }

    #[test]
    fn what_is_asked_for_must_make_sense() {
        assert_eq!(protocol_number("UDP"), Ok(17));
        assert_eq!(protocol_number("47"), Ok(47));
        assert!(matches!(protocol_number("tpc"), Err(Refusal::Bad(_))));
        assert!(matches!(network("10.0.0.0/33"), Err(Refusal::Bad(_))));
    }

    #[test]
    fn rows_whose_time_is_over_are_counted_apart() {
        let limits = Limits { one_way: 30, two_way: 120, ..Limits::DEFAULT };
        let row = |established, last_seen, owner| FlowRow {
            key: FlowKey { proto: 17, ..FlowKey::default() },
            flow: Flow { last_seen, owner, ..Flow::default() },
            established,
        };
        let mut counts = Counts::default();
        for row in
            [row(false, 970, 1), row(false, 969, 1), row(false, 900, 2), row(true, 990, 1), row(true, 1, 1)]
        {
            counts.add(&row, &limits, 1000);
        }
        assert_eq!(counts.nursery, Rows { alive: 1, all: 3 });
        assert_eq!(counts.established, Rows { alive: 1, all: 2 });
        assert_eq!(counts.owners, HashMap::from([(1, [1, 1])]));
        assert_eq!(counts.groups.values().sum::<u64>(), 2);
    }

    #[test]
    fn a_pod_without_a_name_is_not_told_as_gone() {
        let entry = |endpoint, pod| crate::ipam::ledger::Entry {
            attachment: crate::cni::types::Attachment {
                container_id: format!("c{endpoint}"),
                ifname: "eth0".to_owned(),
            },
            network: "netd".to_owned(),
            pod,
            pod_uid: None,
            addresses: Vec::new(),
            netns: None,
            host_name: format!("nd{endpoint}"),
            allocated_at: crate::ipam::ledger::Clock::now().time,
            endpoint,
        };
        let entries = [entry(1, Some(ObjectName::new("shop", "web-0"))), entry(2, None)];
        let names = entries.iter().map(|entry| (entry.endpoint, entry.called())).collect();
        let owners = HashMap::from([(1, [0, 9]), (2, [0, 8]), (3, [0, 7])]);
        let told: Vec<_> = named(owners, &names, 64).into_iter().map(|pod| pod.pod).collect();
        assert_eq!(told, [Some("shop/web-0".to_owned()), Some("c2".to_owned()), None]);
    }
}
