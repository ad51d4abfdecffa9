use super::*;
use crate::model::{ContainerPort, Endpoint, EndpointPort, Protocol};
use proptest::prelude::*;

fn view(node: &str) -> View<'_> {
    View { node, scope: Scope::Internal }
}

fn service(selector: &[(&str, &str)]) -> Service {
    Service {
        name: ObjectName::new("shop", "web"),
        selector: selector.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            target: TargetPort::Name("web".into()),
            node_port: None,
        }],
        ..Service::default()
    }
}

fn pod(name: &str, ip: &str, node: &str) -> Pod {
    Pod {
        name: ObjectName::new("shop", name),
        labels: [("app".to_owned(), "web".to_owned()), ("tier".to_owned(), "a".to_owned())].into(),
        node: Some(node.into()),
        ips: vec![ip.parse().unwrap()],
        ports: vec![ContainerPort { name: "web".into(), port: 8080, protocol: Protocol::Tcp }],
        ready: true,
        ..Pod::default()
    }
}

fn endpoint(ip: &str, node: &str) -> Endpoint {
    Endpoint {
        address: ip.parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(node.into()),
        zone: None,
        pod: None,
    }
}

fn slice(name: &str, port: u16, endpoints: Vec<Endpoint>) -> EndpointSlice {
    EndpointSlice {
        name: ObjectName::new("shop", name),
        service: Some("web".into()),
        ports: vec![EndpointPort { name: "http".into(), protocol: Protocol::Tcp, port }],
        endpoints,
    }
}

fn model(service: Service, pods: Vec<Pod>, slices: Vec<EndpointSlice>) -> Model {
    Model {
        services: [(service.name.clone(), Arc::new(service))].into(),
        pods: pods.into_iter().map(|pod| (pod.name.clone(), Arc::new(pod))).collect(),
        slices: slices.into_iter().map(|slice| (slice.key(), Arc::new(slice))).collect(),
        ..Model::default()
    }
}

fn addresses(model: &Model, family: Family, view: View<'_>) -> Vec<String> {
    let index = EndpointIndex::build(model);
    let service = model.services.values().next().unwrap();
    select(&index, service, &service.ports[0], family, view)
        .iter()
        .map(|chosen| {
            format!("{}:{}{}", chosen.address, chosen.port, if chosen.local { " local" } else { "" })
        })
        .collect()
}

#[test]
fn pods_serve_a_selector_that_no_slice_names() {
    let mut named = pod("d", "10.0.0.5", "b");
    named.ports[0].port = 9090;
    let mut nameless = pod("e", "10.0.0.6", "b");
    nameless.ports.clear();
    let mut other = pod("f", "10.0.0.7", "b");
    other.labels.insert("app".to_owned(), "db".to_owned());
    let mut elsewhere = pod("g", "10.0.0.8", "b");
    elsewhere.name = ObjectName::new("lab", "g");
    let mut finished = pod("h", "10.0.0.9", "b");
    finished.finished = true;
    let pods = vec![
        pod("a", "10.0.0.4", "b"),
        pod("c", "10.0.0.3", "a"),
        named,
        nameless,
        other,
        elsewhere,
        finished,
    ];
    let model = model(service(&[("app", "web"), ("tier", "a")]), pods, vec![]);
    assert_eq!(
        addresses(&model, Family::V4, view("a")),
        ["10.0.0.3:8080 local", "10.0.0.4:8080", "10.0.0.5:9090"]
    );
    assert!(addresses(&model, Family::V6, view("a")).is_empty());
}

#[test]
fn an_empty_slice_takes_the_service_from_its_pods() {
    let model =
        model(service(&[("app", "web")]), vec![pod("a", "10.0.0.4", "b")], vec![slice("s", 1, vec![])]);
    assert!(addresses(&model, Family::V4, view("a")).is_empty());
}

#[test]
fn a_service_without_selector_and_slice_has_no_endpoints() {
    let model = model(service(&[]), vec![pod("a", "10.0.0.4", "b")], vec![]);
    assert!(addresses(&model, Family::V4, view("a")).is_empty());
}

#[test]
fn slices_are_joined_and_their_duplicates_dropped() {
    let mut stale = endpoint("10.0.0.1", "a");
    stale.ready = false;
    let slices = vec![
        slice("s1", 80, vec![stale, endpoint("10.0.0.2", "b"), endpoint("fd00::2", "b")]),
        slice("s2", 80, vec![endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "b")]),
        slice("s3", 81, vec![endpoint("10.0.0.2", "b")]),
    ];
    let model = model(service(&[("app", "web")]), vec![], slices);
    assert_eq!(addresses(&model, Family::V4, view("a")), ["10.0.0.1:80 local", "10.0.0.2:80", "10.0.0.2:81"]);
    assert_eq!(addresses(&model, Family::V6, view("a")), ["[fd00::2]:80".replace(['[', ']'], "")]);
}

#[test]
fn the_terminating_serve_when_nothing_is_ready() {
    let mut leaving = endpoint("10.0.0.1", "a");
    leaving.ready = false;
    leaving.terminating = true;
    let mut dead = endpoint("10.0.0.2", "a");
    dead.ready = false;
    dead.serving = false;
    dead.terminating = true;
    let both = vec![leaving.clone(), dead.clone()];
    let falls_back = model(service(&[]), vec![], vec![slice("s", 80, both)]);
    assert_eq!(addresses(&falls_back, Family::V4, view("a")), ["10.0.0.1:80 local"]);
    let all = vec![leaving, dead, endpoint("10.0.0.3", "b")];
    let ready = model(service(&[]), vec![], vec![slice("s", 80, all)]);
    assert_eq!(addresses(&ready, Family::V4, view("a")), ["10.0.0.3:80"]);
}

#[test]
fn local_policy_keeps_to_this_node_and_only_for_its_scope() {
    let mut leaving = endpoint("10.0.0.1", "a");
    leaving.ready = false;
    leaving.terminating = true;
    let mut local = service(&[]);
    local.internal_traffic_policy = TrafficPolicy::Local;
    let model = model(local, vec![], vec![slice("s", 80, vec![leaving, endpoint("10.0.0.3", "b")])]);
    assert_eq!(addresses(&model, Family::V4, view("b")), ["10.0.0.3:80 local"]);
    // A ready endpoint elsewhere does not keep this node's last one from serving.
    assert_eq!(addresses(&model, Family::V4, view("a")), ["10.0.0.1:80 local"]);
    assert!(addresses(&model, Family::V4, view("c")).is_empty());
    assert_eq!(addresses(&model, Family::V4, View { node: "c", scope: Scope::External }), ["10.0.0.3:80"]);
}

#[test]
fn not_ready_pods_serve_if_published() {
    let mut pod = pod("a", "10.0.0.4", "b");
    pod.ready = false;
    let mut published = service(&[("app", "web")]);
    published.publish_not_ready = true;
    assert!(
        addresses(&model(service(&[("app", "web")]), vec![pod.clone()], vec![]), Family::V4, view("a"))
            .is_empty()
    );
    assert_eq!(addresses(&model(published, vec![pod], vec![]), Family::V4, view("a")), ["10.0.0.4:8080"]);
}

/// What the API's and kube-proxy's texts say, by exhaustion and without an index.
fn oracle(
    model: &Model,
    service: &Service,
    port: &ServicePort,
    family: Family,
    view: View<'_>,
) -> Vec<Chosen> {
    struct Seen {
        chosen: Chosen,
        ready: bool,
        leaving: bool,
    }
    let mut all = Vec::new();
    let mut named = false;
    for slice in model.slices.values() {
        if slice.name.namespace != service.name.namespace || slice.service != Some(service.name.name.clone())
        {
            continue;
        }
        named = true;
        for p in slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol) {
            for e in &slice.endpoints {
                let local = e.node.as_deref() == Some(view.node);
                let chosen = Chosen {
                    address: e.address,
                    port: p.port,
                    node: e.node.clone(),
                    local,
                    pod: e.pod.clone(),
                };
                all.push(Seen { chosen, ready: e.ready, leaving: e.serving && e.terminating });
            }
        }
    }
    if !named && !service.selector.is_empty() {
        for pod in model.pods.values() {
            let matches = pod.name.namespace == service.name.namespace
                && service.selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v));
            let number = match &port.target {
                TargetPort::Number(n) => Some(*n),
                TargetPort::Name(name) => pod
                    .ports
                    .iter()
                    .filter(|p| p.name == *name && p.protocol == port.protocol)
                    .map(|p| p.port)
                    .next(),
            };
            if let (true, false, Some(number)) = (matches, pod.finished, number) {
                for ip in pod.ips.iter().filter(|ip| Family::of(**ip) == family).take(1) {
                    let local = pod.node.as_deref() == Some(view.node);
                    let chosen = Chosen {
                        address: *ip,
                        port: number,
                        node: pod.node.clone(),
                        local,
                        pod: Some(pod.name.clone()),
                    };
                    let ready = service.publish_not_ready || pod.ready && !pod.terminating;
                    all.push(Seen { chosen, ready, leaving: pod.ready && pod.terminating });
                }
            }
        }
    }
    all.retain(|seen| Family::of(seen.chosen.address) == family);
    let policy = match view.scope {
        Scope::Internal => service.internal_traffic_policy,
        Scope::External => service.external_traffic_policy,
    };
    // One entry per address and port: the first of the best.
    let mut unique: Vec<&Seen> = Vec::new();
    for seen in &all {
        let same = |other: &&Seen| {
            (other.chosen.address, other.chosen.port) == (seen.chosen.address, seen.chosen.port)
        };
        let key = |s: &Seen| u8::from(s.ready) * 4 + u8::from(s.leaving) * 2 + u8::from(s.chosen.local);
        match unique.iter_mut().find(|other| same(other)) {
            Some(other) if key(seen) > key(other) => *other = seen,
            Some(_) => {}
            None => unique.push(seen),
        }
    }
    unique.retain(|seen| policy == TrafficPolicy::Cluster || seen.chosen.local);
    let ready: Vec<_> = unique.iter().filter(|seen| seen.ready).collect();
    let result: Vec<_> =
        if ready.is_empty() { unique.iter().filter(|seen| seen.leaving).collect() } else { ready };
    let mut result: Vec<Chosen> = result.into_iter().map(|seen| seen.chosen.clone()).collect();
    result.sort_by_key(|chosen| (!chosen.local, chosen.address, chosen.port));
    result
}

fn any_name() -> impl Strategy<Value = ObjectName> {
    ("[ab]", "[a-f]").prop_map(|(namespace, name)| ObjectName::new(&namespace, &name))
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (1u8..5).prop_map(|n| IpAddr::from([10, 0, 0, n])),
        (1u16..5).prop_map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n])),
    ]
}

fn any_node() -> impl Strategy<Value = Option<Arc<str>>> {
    proptest::option::weighted(0.9, "[xy]".prop_map(Arc::from))
}

fn any_labels(most: usize) -> impl Strategy<Value = Labels> {
    proptest::collection::btree_map("[kl]", "[vw]", 0..=most)
}

fn any_protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![3 => Just(Protocol::Tcp), 1 => Just(Protocol::Udp)]
}

fn any_policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)]
}

fn of(pods: Vec<Pod>, services: Vec<Service>, slices: Vec<EndpointSlice>) -> Model {
    Model {
        services: services.into_iter().map(|o| (o.name.clone(), Arc::new(o))).collect(),
        pods: pods.into_iter().map(|o| (o.name.clone(), Arc::new(o))).collect(),
        slices: slices.into_iter().map(|o| (o.key(), Arc::new(o))).collect(),
        ..Model::default()
    }
}

prop_compose! {
    fn any_pod()(
        name in any_name(), labels in any_labels(2), node in any_node(),
        ips in proptest::collection::vec(any_ip(), 0..3),
        ports in proptest::collection::vec(("[pq]", 1u16..4, any_protocol()), 0..3),
        ready in any::<bool>(), terminating in proptest::bool::weighted(0.3), finished in proptest::bool::weighted(0.1),
    ) -> Pod {
        Pod {
            name, labels, node, ips, ready, terminating, finished,
            ports: ports.into_iter().map(|(name, port, protocol)| ContainerPort { name: name.into(), port, protocol }).collect(),
            ..Pod::default()
        }
    }
}

prop_compose! {
    fn any_service()(
        name in any_name(), selector in any_labels(2), publish_not_ready in any::<bool>(),
        internal_traffic_policy in any_policy(), external_traffic_policy in any_policy(),
        ports in proptest::collection::vec(
            ("[mn]", any_protocol(), prop_oneof![
                (1u16..4).prop_map(TargetPort::Number),
                "[pq]".prop_map(|name| TargetPort::Name(name.into())),
            ]), 1..3),
    ) -> Service {
        Service {
            name, selector, publish_not_ready, internal_traffic_policy, external_traffic_policy,
            ports: ports.into_iter().map(|(name, protocol, target)| ServicePort {
                name: name.into(), protocol, port: 80, target, node_port: None,
            }).collect(),
            ..Service::default()
        }
    }
}

prop_compose! {
    fn any_slice()(
        name in any_name(), service in proptest::option::weighted(0.9, "[a-f]".prop_map(Arc::from)),
        ports in proptest::collection::btree_map("[mn]", (1u16..4, any_protocol()), 0..3),
        endpoints in proptest::collection::vec(
            (any_ip(), any::<bool>(), any::<bool>(), any::<bool>(), any_node(), proptest::option::of(any_name())), 0..6),
    ) -> EndpointSlice {
        EndpointSlice {
            name, service,
            ports: ports.into_iter().map(|(name, (port, protocol))| EndpointPort { name: name.into(), protocol, port }).collect(),
            endpoints: endpoints.into_iter().map(|(address, ready, serving, terminating, node, pod)| Endpoint {
                address, ready, serving, terminating, node, zone: None, pod,
            }).collect(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn agrees_with_the_oracle(
        pods in proptest::collection::vec(any_pod(), 0..10),
        services in proptest::collection::vec(any_service(), 1..6),
        slices in proptest::collection::vec(any_slice(), 0..4),
    ) {
        let model = of(pods, services, slices);
        let index = EndpointIndex::build(&model);
        for service in model.services.values() {
            for port in &service.ports {
                for family in [Family::V4, Family::V6] {
                    for scope in [Scope::Internal, Scope::External] {
                        let view = View { node: "x", scope };
                        let chosen = select(&index, service, port, family, view);
                        prop_assert_eq!(chosen, oracle(&model, service, port, family, view));
                    }
                }
            }
        }
    }

    /// Of two models, the second has some objects of the first and some of its own.
    #[test]
    fn of_untouched_services_two_models_say_the_same(
        first in (
            proptest::collection::vec(any_pod(), 0..10),
            proptest::collection::vec(any_service(), 1..6),
            proptest::collection::vec(any_slice(), 0..4),
        ),
        second in (
            proptest::collection::vec(any_pod(), 0..3),
            proptest::option::weighted(0.2, any_service()),
            proptest::collection::vec(any_slice(), 0..2),
        ),
        gone in proptest::collection::vec(any_name(), 0..3),
    ) {
        let old = of(first.0, first.1, first.2);
        let mut new = old.clone();
        for name in gone {
            new.pods.remove(&name);
            new.slices.retain(|key, _| key.name != name);
        }
        let more = of(second.0, second.1.into_iter().collect(), second.2);
        new.pods.extend(more.pods.iter().map(|(name, object)| (name.clone(), Arc::clone(object))));
        new.services.extend(more.services.iter().map(|(name, object)| (name.clone(), Arc::clone(object))));
        new.slices.extend(more.slices.iter().map(|(name, object)| (name.clone(), Arc::clone(object))));

        let Some(touched) = Touched::between(&old, &new) else {
            prop_assert!(old.services.changes(&new.services).next().is_some());
            return Ok(());
        };
        let before = EndpointIndex::build(&old);
        let after = EndpointIndex::build(&new);
        let partly = EndpointIndex::build_for(&new, &touched);
        for (name, service) in &new.services {
            let index = if touched.contains(name) { &partly } else { &before };
            for port in &service.ports {
                for family in [Family::V4, Family::V6] {
                    let whole = select(&after, service, port, family, view("x"));
                    prop_assert_eq!(select(index, service, port, family, view("x")), whole);
                }
            }
        }
    }
}
