//! One of each document, with every field in use: what the command line's texts, the schemas' shapes and
//! the documentation are tested with.

mod policy;

pub(crate) use policy::{
    closed_pod, denying_policy, evaluated, evaluated_by_family, exempt_flow, exempt_pod, explained,
    folder_policies, policies, policy,
};

use super::conntrack::{Fill, Flow, Group, PodFlows, State as FlowState, Summary, Table as FlowTable};
use super::endpoints::{Drops as EndpointDrops, Endpoint, Endpoints};
use super::event::{Drop, Dropped, Drops, Event, Kind, Opened};
use super::policy::{Denied, Direction, RuleName};
use super::services::{
    Backend, BackendState, Frontend, Port, Refusal, Service, Services, Shown, State as ServiceState,
};
use super::status::{
    Addresses, Datapath, Level, Network, Part, Policies, Problem, Range, Reclaim, Refused, Requests, Runtime,
    Services as ServiceStatus, Source, Status, Table, Task,
};
use crate::model::report;
use std::collections::BTreeMap;
use std::net::SocketAddr;

fn map<T>(rows: impl IntoIterator<Item = (&'static str, T)>) -> BTreeMap<String, T> {
    rows.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

pub(crate) fn status() -> Status {
    let table = |table: &str, key: &str, used, limit| Table {
        table: table.to_owned(),
        used,
        limit,
        key: format!("datapath.{key}"),
    };
    Status {
        ok: true,
        netd: "0.1.0".to_owned(),
        node: "node-1".to_owned(),
        kernel: "6.12.0".to_owned(),
        pid: 1412,
        uptime_seconds: 533_000,
        ready: true,
        problems: Vec::new(),
        source: Source {
            path: "/etc/netd/state".to_owned(),
            synced: true,
            generation: 4,
            files: 3,
            objects: 12,
            problems: Vec::new(),
        },
        services: ServiceStatus {
            generation: Some(4),
            wanted: 318,
            without_endpoints: 2,
            refused: 0,
            waiting: 0,
            conflicts: 0,
            last_change_us: 420,
            audits: 17,
            drift: 0,
        },
        policies: Policies {
            generation: Some(4),
            wanted: 25,
            isolated: 38,
            sets: 12,
            identities: 31,
            closed: 0,
            last_compile_us: 900,
            last_change_us: 1_300,
            audits: 17,
            drift: 0,
        },
        addresses: Addresses {
            pods: 41,
            ranges: vec![
                Range {
                    range: "10.42.3.0/24".parse().expect("a range"),
                    draining: false,
                    used: 41,
                    cooling: 2,
                    limit: "253".to_owned(),
                },
                Range {
                    range: "fd00:42:3::/64".parse().expect("a range"),
                    draining: true,
                    used: 41,
                    cooling: 0,
                    limit: "18446744073709551613".to_owned(),
                },
            ],
        },
        network: Network {
            mtu: 1500,
            uplinks: map([("eth0", "TCX".to_owned())]),
            routes: vec!["10.42.4.0/24 via 10.0.0.4".to_owned()],
            unreachable: vec!["10.42.9.0/24: no node address on a link of this node".to_owned()],
        },
        datapath: Datapath {
            schema: 2,
            packets: map([("drop", 3), ("neighbor", 2_000), ("peer", 5_000), ("stack", 12)]),
            flow_events: map([("opened", 900), ("promoted", 640)]),
            reclaim: Reclaim {
                by: "batch".to_owned(),
                because: Some("this kernel does not tell its types (BTF)".to_owned()),
                passes: 60,
                removed: 31,
                corrected: 0,
                mended: 1,
                ownerless: 2,
                last_us: 31_000,
                worst_slice_us: 900,
            },
            refused: vec![Refused {
                endpoint: 17,
                pod: Some("shop/web-0".to_owned()),
                rows: 65_536,
                share_used_up: 12,
                table_full: 0,
                share_used_up_lately: 0,
                table_full_lately: 0,
                now: false,
            }],
        },
        tables: vec![
            table("frontends", "frontends", Some(640), 65_536),
            table("established", "flows", Some(125_829), 262_144),
            table("nursery", "nursery", None, 131_072),
        ],
        cni: map([
            ("ADD", Requests { done: 41, failed: 1, total_us: 130_200 }),
            ("DEL", Requests { done: 3, failed: 0, total_us: 4_500 }),
        ]),
        runtime: Runtime {
            rss_bytes: 40_000_000,
            pending: BTreeMap::new(),
            tasks: map([("api", Task { running: true, restarts: 0, last_failure: None })]),
        },
    }
}

pub(crate) fn degraded() -> Status {
    let problem = |level, part, message: &str, next: &str| Problem {
        level,
        part,
        message: message.to_owned(),
        next: next.to_owned(),
    };
    let mut status = status();
    status.ok = false;
    status.ready = false;
    status.problems = vec![
        problem(
            Level::Error,
            Part::Services,
            "Service shop/api is not served: it needs 3 more frontends, 64 of 64 are in use (datapath.frontends)",
            "netd svc show shop/api",
        ),
        problem(Level::Error, Part::Services, "another", "netd svc list"),
        problem(
            Level::Error,
            Part::Addresses,
            "not ready: no range to give addresses from is known yet",
            "netd config show",
        ),
        problem(Level::Warning, Part::Datapath, "table established is 91 % full", "netd conntrack summary"),
    ];
    status.services = ServiceStatus {
        generation: Some(3),
        refused: 2,
        waiting: 1,
        conflicts: 1,
        drift: 5,
        ..status.services
    };
    status.addresses.ranges.clear();
    status.cni.clear();
    status.network = Network { mtu: 1500, ..Network::default() };
    status.source.problems = vec![report::Problem {
        path: "/etc/netd/state/a.yaml".into(),
        line: Some(3),
        column: Some(5),
        severity: report::Severity::Warning,
        object: text("Service shop/api"),
        message: "unknown field".to_owned(),
    }];
    status.runtime.pending = map([("addresses", "no range to give addresses from is known yet".to_owned())]);
    let failed = Task { running: false, restarts: 2, last_failure: text("read-only file system") };
    status.runtime.tasks.insert("install".to_owned(), failed);
    status
}

pub(crate) fn endpoints() -> Endpoints {
    let well = Endpoint {
        pod: "shop/web-0".to_owned(),
        container: "c1".to_owned(),
        pod_interface: "eth0".to_owned(),
        interface: "nd1a2b".to_owned(),
        ifindex: Some(12),
        endpoint: 7,
        addresses: vec![
            "10.42.3.5".parse().expect("an address"),
            "fd00:42:3::5".parse().expect("an address"),
        ],
        since: "2026-01-02T03:04:05Z".to_owned(),
        age_seconds: 14_500,
        ok: true,
        problem: None,
        next: None,
        flows: 12,
        flows_limit: 65_536,
        drops: vec![
            EndpointDrops { reason: "no_backend".to_owned(), stage: "pod_egress".to_owned(), packets: 4 },
            EndpointDrops { reason: "malformed".to_owned(), stage: "pod_egress".to_owned(), packets: 1 },
        ],
    };
    let lost = Endpoint {
        pod: "c2".to_owned(),
        container: "c2".to_owned(),
        ifindex: None,
        endpoint: 8,
        addresses: vec!["10.42.3.6".parse().expect("an address")],
        ok: false,
        problem: text("the datapath does not know it"),
        next: text("kill -HUP 1412"),
        flows: 32_768,
        drops: Vec::new(),
        ..well.clone()
    };
    Endpoints { node: "node-1".to_owned(), endpoints: vec![well, lost] }
}

fn port(address: &str, protocol: &str) -> Port {
    Port { address: at(address), protocol: protocol.to_owned() }
}

fn refusal() -> Refusal {
    Refusal { lacks: "slots".to_owned(), port: port("10.96.0.10:80", "tcp"), endpoints: 3, in_force: 2 }
}

pub(crate) fn services() -> Services {
    let well = Service {
        service: "shop/api".to_owned(),
        frontends: vec![port("10.96.0.10:80", "tcp"), port("[fd00:96::10]:80", "tcp")],
        endpoints: 3,
        endpoints_local: 1,
        affinity_seconds: Some(10_800),
        state: ServiceState::Ok,
        reason: None,
        refusal: None,
    };
    let of = |name: &str, state, reason: Option<&str>| Service {
        service: format!("shop/{name}"),
        endpoints: 0,
        endpoints_local: 0,
        state,
        reason: reason.map(str::to_owned),
        ..well.clone()
    };
    let many = (1..=6).map(|n| port(&format!("10.96.0.11:{n}"), "udp")).collect();
    let services = vec![
        well.clone(),
        Service { frontends: many, ..of("dns", ServiceState::NoEndpoints, None) },
        Service {
            frontends: Vec::new(),
            ..of(
                "db",
                ServiceState::NotServed,
                Some("it has no address of its own (headless or ExternalName)"),
            )
        },
        Service {
            refusal: Some(refusal()),
            endpoints: 3,
            ..of(
                "big",
                ServiceState::Refused,
                Some("Service shop/big leads to 2 of 3 endpoints at 10.96.0.10:80/TCP: it needs 3 slots"),
            )
        },
        of("odd", ServiceState::Differs, Some("the kernel has no row for it")),
    ];
    Services { node: "node-1".to_owned(), services, strays: vec![port("10.96.0.99:53", "udp")] }
}

pub(crate) fn service() -> Shown {
    let backend = |address: &str, pod: &str, node: &str, local, flows| Backend {
        address: at(address),
        pod: text(pod),
        node: text(node),
        local,
        state: BackendState::Active,
        number: Some(4),
        flows,
    };
    let gone = Backend {
        pod: None,
        node: None,
        state: BackendState::Left,
        number: None,
        ..backend("10.42.4.9:8080", "", "", false, 1)
    };
    Shown {
        node: "node-1".to_owned(),
        service: "shop/api".to_owned(),
        state: ServiceState::Ok,
        reason: None,
        refusal: None,
        affinity_seconds: Some(10_800),
        internal_traffic_policy: "Cluster".to_owned(),
        frontends: vec![
            Frontend {
                port: port("10.96.0.10:80", "tcp"),
                number: Some(4),
                slot_base: Some(12),
                slots: 2,
                endpoints: 2,
                differences: Vec::new(),
                backends: vec![
                    backend("10.42.3.5:8080", "shop/api-0", "node-1", true, 2),
                    backend("10.42.4.6:8080", "shop/api-1", "node-2", false, 0),
                    gone,
                ],
            },
            Frontend {
                port: port("[fd00:96::10]:80", "tcp"),
                number: Some(4),
                slot_base: None,
                slots: 0,
                endpoints: 0,
                differences: Vec::new(),
                backends: Vec::new(),
            },
        ],
    }
}

pub(crate) fn differing_service() -> Shown {
    let mut shown = service();
    shown.state = ServiceState::Differs;
    shown.reason = text("10.42.3.5:8080 is wanted and not in the slots (and 1 more)");
    shown.affinity_seconds = None;
    shown.frontends.truncate(1);
    for frontend in &mut shown.frontends {
        frontend.differences = vec!["10.42.3.5:8080 is wanted and not in the slots".to_owned()];
        frontend.backends.truncate(1);
        for backend in &mut frontend.backends {
            backend.state = BackendState::Missing;
            backend.number = None;
        }
    }
    shown
}

pub(crate) fn refused_service() -> Shown {
    Shown {
        state: ServiceState::Refused,
        reason: text("Service shop/api leads to 2 of 3 endpoints at 10.96.0.10:80/TCP: it needs 3 slots"),
        refusal: Some(refusal()),
        ..service()
    }
}

fn rule(policy: &str, index: usize) -> Option<RuleName> {
    Some(RuleName { policy: text(policy), index: Some(index), number: 3_141_592_653 })
}

fn gone_rule() -> Option<RuleName> {
    Some(RuleName { policy: None, index: None, number: 271_828_182 })
}

pub(crate) fn flows() -> Vec<Flow> {
    let through = Flow {
        protocol: "tcp".to_owned(),
        client: at("10.42.3.5:40312"),
        client_pod: text("shop/web-0"),
        frontend: Some(at("10.96.0.10:80")),
        service: text("shop/api"),
        service_number: Some(4),
        service_deleted: false,
        server: at("10.42.4.6:8080"),
        server_pod: text("shop/api-1"),
        backend_number: Some(9),
        backend_deleted: false,
        translated_port: Some(2_022),
        state: FlowState::Established,
        table: FlowTable::Established,
        age_seconds: 400,
        idle_seconds: 3,
        expires_in_seconds: 7_997,
        endpoint: 7,
        half: true,
        hairpin: true,
        from_stack: false,
        refused: false,
        egress_rule: rule("shop/web", 1),
        ingress_rule: gone_rule(),
    };
    let direct = Flow {
        protocol: "udp".to_owned(),
        client: at("[fd00:42:3::5]:5353"),
        client_pod: None,
        frontend: None,
        service: None,
        service_number: None,
        server: at("[2001:db8::1]:53"),
        server_pod: None,
        backend_number: None,
        translated_port: None,
        state: FlowState::OneWay,
        table: FlowTable::Nursery,
        half: false,
        hairpin: false,
        from_stack: true,
        refused: true,
        egress_rule: None,
        ingress_rule: None,
        ..through
    };
    let closing = Flow {
        state: FlowState::HalfClosed,
        service_deleted: true,
        backend_deleted: true,
        half: false,
        hairpin: false,
        translated_port: None,
        ..through.clone()
    };
    vec![through, direct, closing]
}

pub(crate) fn summary() -> Summary {
    let group =
        |protocol: &str, state, table, flows| Group { protocol: protocol.to_owned(), state, table, flows };
    let pod = |name: Option<&str>, endpoint, established, nursery| PodFlows {
        pod: name.map(str::to_owned),
        endpoint,
        established,
        limit: 512,
        nursery,
    };
    Summary {
        node: "node-1".to_owned(),
        tables: map([
            ("established", Fill { used: 612, rows: 612, limit: 1_024 }),
            ("nursery", Fill { used: 3, rows: 1_024, limit: 1_024 }),
        ]),
        flows: vec![
            group("tcp", FlowState::Established, FlowTable::Established, 306),
            group("udp", FlowState::OneWay, FlowTable::Nursery, 3),
        ],
        pods: vec![pod(Some("shop/web-0"), 7, 512, 3), pod(None, 9, 100, 0)],
        events: map([("opened", 900), ("refused_share", 12)]),
        lifetimes_seconds: map([("tcp_established", 8_000), ("one_way", 30)]),
    }
}

pub(crate) fn drops() -> Drops {
    let of = |event: Event| {
        let Event { time, message, drop, .. } = event;
        Some(Dropped { time, message, packet: drop? })
    };
    Drops { node: "node-1".to_owned(), drops: events().into_iter().filter_map(of).collect() }
}

pub(crate) fn events() -> Vec<Event> {
    let event = |kind, subject: Option<&str>, message: &str| Event {
        time: "2026-01-02T12:04:31.118Z".to_owned(),
        kind,
        subject: subject.map(str::to_owned),
        message: message.to_owned(),
        bad: false,
        drop: None,
        flow: None,
        lost: None,
    };
    let drop = Drop {
        reason: "no_backend".to_owned(),
        stage: "pod_egress".to_owned(),
        pod: text("shop/web-0"),
        protocol: "tcp".to_owned(),
        source: at("10.42.3.5:40312"),
        source_pod: text("shop/web-0"),
        destination: at("10.96.0.10:80"),
        destination_pod: None,
        service: text("shop/api"),
        tcp_flags: text("SYN"),
        length: 74,
        policy: None,
    };
    let forged = Drop {
        protocol: "icmp".to_owned(),
        source: at("192.0.2.1:0"),
        source_pod: None,
        destination: at("10.42.3.6:0"),
        destination_pod: text("shop/db-0"),
        service: None,
        tcp_flags: None,
        ..drop.clone()
    };
    let denied = Denied {
        pod: text("shop/db-0"),
        direction: Direction::Ingress,
        policies: ["shop/default-deny", "shop/db-allow"].map(str::to_owned).to_vec(),
        closed: false,
        rule: None,
        reply: false,
    };
    let denied = Drop {
        reason: "ingress_denied".to_owned(),
        pod: text("shop/db-0"),
        destination: at("10.42.3.6:5432"),
        destination_pod: text("shop/db-0"),
        service: None,
        policy: Some(denied),
        ..drop.clone()
    };
    let cut = Drop {
        reason: "egress_denied".to_owned(),
        pod: text("shop/web-0"),
        source: denied.destination,
        source_pod: denied.destination_pod.clone(),
        destination: denied.source,
        destination_pod: denied.source_pod.clone(),
        tcp_flags: text("ACK"),
        policy: Some(Denied {
            pod: text("shop/web-0"),
            direction: Direction::Egress,
            policies: vec!["shop/web".to_owned()],
            closed: false,
            rule: rule("shop/web", 2),
            reply: true,
        }),
        ..denied.clone()
    };
    let opened = Opened {
        protocol: "tcp".to_owned(),
        source: at("10.42.3.5:40312"),
        source_pod: text("shop/web-0"),
        destination: at("10.96.0.10:80"),
        service: text("shop/api"),
        server: Some(at("10.42.4.6:8080")),
        server_pod: text("shop/api-1"),
        egress_rule: rule("shop/web", 1),
        ingress_rule: None,
    };
    let of_policy = |drop: Drop| {
        let why = drop.policy.as_ref().expect("a drop by policy").to_string();
        Event { bad: true, subject: drop.pod.clone(), drop: Some(drop), ..event(Kind::Drop, None, &why) }
    };
    let dropped = |drop: Drop, why: &str| Event {
        bad: true,
        drop: Some(drop),
        ..event(Kind::Drop, Some("shop/web-0"), why)
    };
    vec![
        dropped(drop, "the Service has no ready endpoint"),
        dropped(forged, "the source address is not the pod's"),
        of_policy(denied),
        of_policy(cut),
        Event { flow: Some(opened.clone()), ..event(Kind::Flow, Some("shop/web-0"), &opened.to_string()) },
        Event {
            lost: Some(57),
            ..event(
                Kind::Flow,
                None,
                "57 new flows were not told: their CPUs had told their parts of datapath.audit.rate (100 a second), \
                 or events came faster than they were read",
            )
        },
        Event {
            bad: true,
            lost: Some(40),
            ..event(Kind::Lost, None, "40 events were lost: they came faster than they were read")
        },
        event(Kind::Service, Some("shop/api"), "changed: 3 endpoints, 1 on this node, had 2 and 1"),
        event(Kind::Cni, Some("shop/web-1"), "added with 10.42.3.7 in 3.1ms"),
        event(Kind::Service, Some("shop/big"), "Service shop/big is not served: it needs 3 more frontends"),
    ]
}
