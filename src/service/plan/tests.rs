use super::*;
use crate::model::{TargetPort, TrafficPolicy};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

fn port(number: u16, protocol: Protocol) -> ServicePort {
    ServicePort {
        name: "".into(),
        protocol,
        port: number,
        target: TargetPort::Number(number),
        node_port: None,
    }
}

fn service(name: &str, ips: &[&str], ports: &[ServicePort]) -> Service {
    Service {
        name: ObjectName::new("default", name),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        cluster_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        ports: ports.to_vec(),
        selector: BTreeMap::new(),
        internal_traffic_policy: TrafficPolicy::Cluster,
        external_traffic_policy: TrafficPolicy::Cluster,
        affinity_seconds: None,
        publish_not_ready: false,
        skip_proxy: false,
    }
}

fn model(services: impl IntoIterator<Item = Service>) -> Model {
    let services = services.into_iter().map(|service| (service.name.clone(), Arc::new(service))).collect();
    Model { services, ..Model::default() }
}

fn choice(address: &str, local: bool) -> Choice {
    Choice { address: address.parse().unwrap(), port: 8080, local, pod: None }
}

fn nobody(_: &Service, _: &ServicePort, _: IpAddr) -> [Choice; 0] {
    []
}

#[test]
fn every_address_and_port_is_a_frontend() {
    let ports = [port(53, Protocol::Udp), port(53, Protocol::Tcp), port(38412, Protocol::Sctp)];
    let model = model([service("dns", &["10.96.0.10", "fd00::10"], &ports)]);
    let desired = desired(&model, nobody);
    let [dns] = &desired.services[..] else { panic!("{desired:?}") };
    let keys: Vec<(String, u16, u8, u8)> = dns
        .frontends
        .iter()
        .map(|f| (f.key.addr.to_string(), u16::from_be(f.key.port), f.key.proto, f.key.scope))
        .collect();
    let expected = [
        ("10.96.0.10", 53, 17),
        ("fd00::10", 53, 17),
        ("10.96.0.10", 53, 6),
        ("fd00::10", 53, 6),
        ("10.96.0.10", 38412, 132),
        ("fd00::10", 38412, 132),
    ]
    .map(|(address, port, proto)| (address.to_owned(), port, proto, scope::INTERNAL));
    assert_eq!(keys, expected);
    assert_eq!(dns.port_name(&dns.frontends[4]).to_string(), "default/dns:38412/SCTP");
}

#[test]
fn an_sctp_port_leads_only_to_endpoints_with_the_same_port() {
    let ports = [port(8080, Protocol::Sctp), port(38412, Protocol::Sctp), port(80, Protocol::Udp)];
    let model = model([service("amf", &["10.96.0.10", "fd00::10"], &ports)]);
    let choices = || ["10.0.0.1", "10.0.0.2", "fd00::1"].map(|address| choice(address, true));
    let desired = desired(&model, |_, _, _| choices());
    let [amf] = &desired.services[..] else { panic!("{desired:?}") };
    let backends: Vec<usize> = amf.frontends.iter().map(|frontend| frontend.backends.len()).collect();
    assert_eq!(backends, [2, 1, 0, 0, 2, 1]);
    let told: Vec<String> = desired.untranslatable.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        ["10.0.0.1:8080", "[fd00::1]:8080"].map(|endpoint| format!(
            "Service port default/amf:38412/SCTP cannot lead to {endpoint}: the port of an SCTP packet is not \
             translated, its targetPort must be 38412 as well"
        ))
    );
}

#[test]
fn headless_services_and_those_of_another_proxy_are_not_ours() {
    let http = [port(80, Protocol::Tcp)];
    let mut other = service("other", &["10.96.0.2"], &http);
    other.skip_proxy = true;
    let desired = desired(&model([service("headless", &[], &http), other]), nobody);
    assert_eq!(desired, Desired::default());
}

#[test]
fn backends_have_one_order_and_stand_once() {
    let http = [port(80, Protocol::Tcp)];
    let mut web = service("web", &["10.96.0.1", "fd00::1"], &http);
    web.affinity_seconds = Some(10800);
    let model = model([web]);
    let told = [
        choice("10.0.0.9", false),
        choice("10.0.0.1", false),
        choice("10.0.0.5", true),
        choice("10.0.0.9", true),
        choice("fd00::9", false),
    ];
    let plan = desired(&model, |_, _, _| told.clone());
    assert_eq!(plan, desired(&model, |_, _, _| told.iter().rev().cloned().collect::<Vec<_>>()));

    let [v4, v6] = &plan.services[0].frontends[..] else { panic!("{plan:?}") };
    let list: Vec<(String, bool)> = v4.backends.iter().map(|b| (b.addr.to_string(), b.local)).collect();
    let expected = [("10.0.0.5", true), ("10.0.0.9", true), ("10.0.0.1", false)];
    assert_eq!(list, expected.map(|(address, local)| (address.to_owned(), local)));
    assert_eq!((v4.local(), v4.affinity_seconds), (2, Some(10800)));
    assert_eq!(v4.backends[0].port, 8080_u16.to_be());
    assert_eq!(v6.backends.len(), 1, "the other family is out of reach");
}

#[test]
fn the_first_by_name_has_an_address_that_two_claim() {
    let http = [port(80, Protocol::Tcp)];
    let both = [port(80, Protocol::Tcp), port(81, Protocol::Tcp)];
    let services = [service("b", &["10.96.0.1"], &both), service("a", &["10.96.0.1"], &http)];
    let plan = desired(&model(services), nobody);
    let names: Vec<(String, usize)> =
        plan.services.iter().map(|s| (s.name.to_string(), s.frontends.len())).collect();
    assert_eq!(names, [("default/a".to_owned(), 1), ("default/b".to_owned(), 1)]);
    assert_eq!(
        plan.conflicts[0].to_string(),
        "Service default/b claims 10.96.0.1:80/TCP, which Service default/a has"
    );
    assert_eq!(plan.conflicts.len(), 1);
}

/// Addresses, ports and number of endpoints of a Service; it has another look with each of them.
type Spec = (Vec<u8>, Vec<(u16, bool)>, u8);

fn any_services() -> impl Strategy<Value = BTreeMap<u8, Spec>> {
    let addresses = proptest::collection::btree_set(1_u8..6, 0..3).prop_map(|set| set.into_iter().collect());
    let ports = proptest::collection::btree_map(1_u16..4, any::<bool>(), 0..3);
    let ports = ports.prop_map(|map| map.into_iter().collect());
    proptest::collection::btree_map(0_u8..8, (addresses, ports, 0_u8..3), 0..8)
}

/// Endpoints at port 2, so that other ports cannot be reached by SCTP.
fn endpoints(specs: &BTreeMap<u8, Spec>) -> impl FnMut(&Service, &ServicePort, IpAddr) -> Vec<Choice> {
    |service, _, _| {
        let (_, _, count) = &specs[&service.name.name.parse().unwrap()];
        (0..*count).map(|n| Choice { port: 2, ..choice(&format!("10.1.0.{n}"), n == 1) }).collect()
    }
}

proptest! {
    #[test]
    fn a_plan_renewed_is_what_a_whole_one_says(
        mut specs in any_services(),
        counts in proptest::collection::btree_map(0_u8..9, 0_u8..3, 0..8),
    ) {
        let model = model(specs.iter().map(|(name, (addresses, ports, _))| {
            let addresses: Vec<String> = addresses.iter().map(|n| format!("10.96.0.{n}")).collect();
            let ports: Vec<ServicePort> = ports
                .iter()
                .map(|(n, sctp)| port(*n, if *sctp { Protocol::Sctp } else { Protocol::Tcp }))
                .collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            service(&name.to_string(), &addresses, &ports)
        }));
        let before = desired(&model, endpoints(&specs));
        for (name, count) in &counts {
            if let Some(spec) = specs.get_mut(name) {
                spec.2 = *count;
            }
        }
        let touched: Vec<&Arc<Service>> =
            model.services.values().filter(|service| counts.contains_key(&service.name.name.parse().unwrap())).collect();
        let mut renewed = before.clone();
        let changed = renew(&mut renewed, touched.into_iter(), endpoints(&specs));
        prop_assert_eq!(&renewed, &desired(&model, endpoints(&specs)));
        let differ: Vec<usize> =
            (0..before.services.len()).filter(|at| before.services[*at] != renewed.services[*at]).collect();
        prop_assert_eq!(changed, differ);
    }
}
