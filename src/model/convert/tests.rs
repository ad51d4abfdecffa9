use super::*;
use crate::model::endpoints::{EndpointIndex, Scope, View, select};
use crate::model::{
    EndpointPort, Family, Model, NetworkPolicy, ObjectName, Pod, Protocol, Service, TargetPort, TrafficPolicy,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;

/// Items of a list as a real API server (1.36.2) answered it.
macro_rules! recorded {
    ($file:literal) => {
        items(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/kubernetes-1.36/", $file)))
    };
}

fn items<T: DeserializeOwned>(list: &str) -> Vec<T> {
    let list: Value = serde_json::from_str(list).unwrap();
    serde_json::from_value(list["items"].clone()).unwrap()
}

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn recorded_services() -> Vec<Service> {
    recorded!("services.json").into_iter().map(|object| service(object).unwrap()).collect()
}

#[test]
fn recorded_nodes_and_namespaces() {
    let nodes: Vec<_> = recorded!("nodes.json").into_iter().map(|object| node(object).unwrap()).collect();
    assert_eq!(nodes.len(), 2);
    assert_eq!(&*nodes[1].name, "node-b");
    assert_eq!(nodes[1].labels["topology.kubernetes.io/zone"], "z2");
    assert_eq!(nodes[1].pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
    for object in recorded!("namespaces.json") {
        let namespace = namespace(object).unwrap();
        assert_eq!(namespace.labels[NAMESPACE_NAME], *namespace.name);
    }
}

#[test]
fn recorded_pods() {
    let pods: Vec<Pod> = recorded!("pods.json").into_iter().map(|object| pod(object).unwrap()).collect();
    let [first, second] = &pods[..] else { panic!("{pods:?}") };
    assert_eq!(first.name, ObjectName::new("shop", "web-1"));
    assert_eq!(first.node.as_deref(), Some("node-a"));
    assert_eq!(first.ips, ["10.244.0.11".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!((&*first.ports[0].name, first.ports[0].port), ("web", 8080));
    assert!(first.ready && !first.terminating && !first.finished && !first.host_network);
    assert!(first.annotations.is_empty());
    assert!(!second.ready);
}

#[test]
fn recorded_services_of_every_type() {
    let services = recorded_services();
    let of = |name: &str| services.iter().find(|service| &*service.name.name == name).unwrap();
    assert!(of("ext").cluster_ips.is_empty() && of("ext").ports.is_empty());
    assert!(of("hdls").cluster_ips.is_empty() && of("hdls").publish_not_ready);
    assert_eq!(of("np").ports[1].node_port, Some(30080));
    assert_eq!(of("np").ports[1].protocol, Protocol::Udp);
    assert_eq!(of("web").ports[0].target, TargetPort::Name("web".into()));
    assert_eq!(of("web").ports[1].target, TargetPort::Number(5353));
    assert_eq!(of("web-lb").external_traffic_policy, TrafficPolicy::Local);
    assert_eq!(of("web-lb").affinity_seconds, Some(10_800));
    assert_eq!(of("kubernetes").cluster_ips, ["10.96.0.1".parse::<std::net::IpAddr>().unwrap()]);
    assert!(services.iter().all(|service| !service.skip_proxy));
}

#[test]
fn recorded_policy() {
    let policies: Vec<NetworkPolicy> =
        recorded!("networkpolicies.json").into_iter().map(|object| network_policy(object).unwrap()).collect();
    assert_eq!(policies[0].name, ObjectName::new("shop", "web"));
    assert_eq!(policies[0].spec.ingress.as_ref().unwrap().len(), 1);
}

/// What the endpoint slice controller made of the pods is what we make of them without it.
#[test]
fn pods_alone_give_the_endpoints_that_the_real_controller_gave() {
    let mut model = Model::default();
    for object in recorded_services() {
        model.services.insert(object.name.clone(), Arc::new(object));
    }
    for object in recorded!("pods.json") {
        let object = pod(object).unwrap();
        model.pods.insert(object.name.clone(), Arc::new(object));
    }
    let pods_only = model.clone();
    for object in recorded!("endpointslices.json") {
        let object = endpoint_slice(object).unwrap();
        assert!(object.service.is_some());
        model.slices.insert(object.key(), Arc::new(object));
    }
    let (with, without) = (EndpointIndex::build(&model), EndpointIndex::build(&pods_only));
    let view = View { node: "node-a", scope: Scope::Internal };
    let mut found = 0;
    for service in model.services.values() {
        for port in &service.ports {
            let chosen = select(&with, service, port, Family::V4, view);
            assert_eq!(chosen, select(&without, service, port, Family::V4, view), "{}", service.name);
            found += chosen.len();
        }
    }
    // hdls publishes both pods, np and web have two ports and one ready pod, web-lb one and one.
    assert_eq!(found, 2 + 2 + 2 + 1);
}

#[test]
fn defaults_are_the_apis() {
    let service = service(read(json!({
        "metadata": {"name": "web"},
        "spec": {"clusterIP": "fd00::1", "ports": [{"port": 80}], "sessionAffinity": "ClientIP"},
    })))
    .unwrap();
    assert_eq!(service.name, ObjectName::new("default", "web"));
    assert_eq!(service.cluster_ips.len(), 1);
    assert_eq!(service.ports[0].target, TargetPort::Number(80));
    assert_eq!(service.ports[0].protocol, Protocol::Tcp);
    assert_eq!(service.affinity_seconds, Some(10_800));

    let slice = endpoint_slice(read(json!({
        "metadata": {"name": "s", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"port": 80}, {"name": "any"}],
        "endpoints": [
            {"addresses": ["10.0.0.1", "10.0.0.2"]},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false}},
            {"addresses": ["10.0.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": []},
        ],
    })))
    .unwrap();
    assert_eq!(slice.ports, [EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: 80 }]);
    let seen: Vec<_> =
        slice.endpoints.iter().map(|e| (e.address.to_string(), e.ready, e.serving, e.terminating)).collect();
    assert_eq!(
        seen,
        [
            ("10.0.0.1".to_owned(), true, true, false),
            ("10.0.0.3".to_owned(), false, false, false),
            ("10.0.0.4".to_owned(), false, true, true),
        ]
    );
}

#[test]
fn services_of_other_proxies_are_marked() {
    for label in ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"] {
        let object =
            json!({"metadata": {"name": "a", "labels": {label: ""}}, "spec": {"ports": [{"port": 1}]}});
        assert!(service(read(object)).unwrap().skip_proxy, "{label}");
    }
}

#[test]
fn an_external_name_has_no_addresses_and_no_endpoints() {
    let object = json!({"metadata": {"name": "a"}, "spec": {
        "type": "ExternalName", "externalName": "example.org", "clusterIP": "10.0.0.1", "selector": {"a": "b"}}});
    let service = service(read(object)).unwrap();
    assert!(service.cluster_ips.is_empty() && service.selector.is_empty());
}

#[test]
fn an_fqdn_slice_names_its_service_and_has_no_endpoints() {
    let object = json!({"metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "FQDN", "endpoints": [{"addresses": ["example.org"]}]});
    let slice = endpoint_slice(read(object)).unwrap();
    assert!(slice.endpoints.is_empty());
    assert_eq!(slice.service.as_deref(), Some("web"));
}

#[test]
fn pods_in_every_state() {
    let of = |phase: &str, status: &str| {
        pod(read(json!({
            "metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {"netd.io/address": "10.0.0.9", "other": "x"}},
            "spec": {
                "hostNetwork": true,
                "containers": [{"name": "c", "ports": [{"containerPort": 1}, {"name": "a", "containerPort": 2}]}],
                "initContainers": [
                    {"name": "once", "ports": [{"name": "x", "containerPort": 3}]},
                    {"name": "side", "restartPolicy": "Always", "ports": [{"name": "b", "containerPort": 4, "protocol": "UDP"}]},
                ],
            },
            "status": {"phase": phase, "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
                "conditions": [{"type": "Ready", "status": status}]},
        })))
        .unwrap()
    };
    let running = of("Running", "True");
    assert!(running.ready && running.terminating && running.host_network && !running.finished);
    assert_eq!(running.ips.len(), 2);
    let ports: Vec<_> = running.ports.iter().map(|port| (&*port.name, port.port, port.protocol)).collect();
    assert_eq!(ports, [("a", 2, Protocol::Tcp), ("b", 4, Protocol::Udp)]);
    assert_eq!(running.annotations.len(), 1);
    assert!(!of("Running", "Unknown").ready);
    assert!(of("Succeeded", "False").finished && of("Failed", "False").finished);
}

#[test]
fn addresses_are_read_as_kubernetes_reads_them() {
    let ips = |list: Value| {
        service(read(
            json!({"metadata": {"name": "a"}, "spec": {"clusterIPs": list, "ports": [{"port": 1}]}}),
        ))
        .map(|service| service.cluster_ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
        .map_err(|error| error.to_string())
    };
    assert_eq!(ips(json!(["10.0.0.1", "fd00:0::1"])).unwrap(), "10.0.0.1 fd00::1");
    assert_eq!(ips(json!(["010.000.0.08"])).unwrap(), "10.0.0.8");
    assert_eq!(ips(json!(["::ffff:10.0.0.1"])).unwrap(), "10.0.0.1");
    assert_eq!(ips(json!(["None"])).unwrap(), "");
    for bad in ["10.0.0.256", "10.0.0", "1.2.3.4.5", "0x1.0.0.1", "10.0.0.+1", "host"] {
        assert!(ips(json!([bad])).is_err(), "{bad}");
    }
}

#[track_caller]
fn refuses<T: std::fmt::Debug>(result: Result<T, Error>, expected: &str) {
    assert_eq!(result.unwrap_err().to_string(), expected);
}

#[test]
fn services_are_refused_by_field() {
    let of = |spec: Value| service(read(json!({"metadata": {"name": "a"}, "spec": spec})));
    let port = json!([{"port": 80}]);
    refuses(
        of(
            json!({"ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}, {"name": "c", "port": 70000}]}),
        ),
        "spec.ports[2].port: 70000 is not a port (1 to 65535)",
    );
    refuses(of(json!({"ports": [{"name": "a"}]})), "spec.ports[0].port: 0 is not a port (1 to 65535)");
    refuses(
        of(json!({"ports": [{"port": 1, "protocol": "tcp"}]})),
        "spec.ports[0].protocol: \"tcp\" is not a protocol (TCP, UDP or SCTP)",
    );
    refuses(
        of(json!({"ports": [{"port": 1, "targetPort": "not a name"}]})),
        "spec.ports[0].targetPort: \"not a name\" is neither a port number nor the name of a port",
    );
    refuses(
        of(json!({"ports": [{"port": 1}, {"port": 2}]})),
        "spec.ports[0].name: missing: of several ports each needs a name",
    );
    refuses(
        of(json!({"ports": [{"name": "a", "port": 1}, {"name": "b", "port": 1}]})),
        "spec.ports[1].port: 1/TCP is there twice",
    );
    refuses(
        of(json!({"ports": port, "clusterIP": "10.0.0.300"})),
        "spec.clusterIP: \"10.0.0.300\" is not an IP address",
    );
    refuses(
        of(json!({"ports": port, "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.2"]})),
        "spec.clusterIP: \"10.0.0.1\" differs from clusterIPs[0], which is \"10.0.0.2\"",
    );
    refuses(
        of(json!({"ports": port, "clusterIPs": ["10.0.0.1", "10.0.0.2"]})),
        "spec.clusterIPs[1]: 10.0.0.2 is a second IPv4 address",
    );
    refuses(
        of(json!({"ports": port, "clusterIPs": ["None", "10.0.0.2"]})),
        "spec.clusterIPs: \"None\" stands alone, never beside an address",
    );
    refuses(
        of(json!({"ports": port, "clusterIP": "127.0.0.1"})),
        "spec.clusterIP: 127.0.0.1 is unspecified, loopback, multicast or broadcast",
    );
    refuses(of(json!({"clusterIP": "10.0.0.1"})), "spec.ports: a Service with an address needs a port");
    refuses(of(json!({"type": "Cluster"})), "spec.type: \"Cluster\" is not a type of Service");
    refuses(
        of(json!({"internalTrafficPolicy": "local"})),
        "spec.internalTrafficPolicy: \"local\" is neither Cluster nor Local",
    );
    refuses(
        of(
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
        ),
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not between 1 and 86400",
    );
    refuses(service(read(json!({"spec": {}}))), "metadata.name: missing");
    refuses(
        service(read(json!({"metadata": {"name": "a", "namespace": "A_b"}}))),
        "metadata.namespace: \"A_b\" is not a name (lower-case letters, digits, '-' and at most 63 characters)",
    );
}

#[test]
fn others_are_refused_by_field() {
    let meta = json!({"name": "a"});
    refuses(
        node(read(json!({"metadata": meta, "spec": {"podCIDRs": ["10.0.0.0/24", "10.0.1.0"]}}))),
        "spec.podCIDRs[1]: \"10.0.1.0\" is not a CIDR block (such as 10.42.0.0/24)",
    );
    refuses(
        node(read(json!({"metadata": meta, "status": {"addresses": [
            {"type": "Hostname", "address": "a"}, {"type": "InternalIP", "address": "a"}]}}))),
        "status.addresses[1].address: \"a\" is not an IP address",
    );
    refuses(
        pod(read(
            json!({"metadata": meta, "spec": {"containers": [{"name": "c", "ports": [{"containerPort": -1}]}]}}),
        )),
        "spec.containers[0].ports[0].containerPort: -1 is not a port (1 to 65535)",
    );
    refuses(
        pod(read(json!({"metadata": meta, "status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]}}))),
        "status.podIPs[1]: 10.0.0.2 is a second IPv4 address",
    );
    refuses(
        endpoint_slice(read(json!({"metadata": meta, "addressType": "ipv4"}))),
        "addressType: \"ipv4\" is not IPv4, IPv6 or FQDN",
    );
    refuses(
        endpoint_slice(read(json!({"metadata": meta, "addressType": "IPv6",
            "endpoints": [{"addresses": ["fd00::1"]}, {"addresses": ["10.0.0.1"]}]}))),
        "endpoints[1].addresses[0]: 10.0.0.1 in a slice of IPv6 addresses",
    );
}

#[test]
fn policies_are_refused_by_field() {
    let of = |spec: Value| network_policy(read(json!({"metadata": {"name": "a"}, "spec": spec})));
    refuses(network_policy(read(json!({"metadata": {"name": "a"}}))), "spec: missing");
    refuses(
        of(json!({"policyTypes": ["ingress"]})),
        "spec.policyTypes[0]: \"ingress\" is neither Ingress nor Egress",
    );
    refuses(
        of(json!({"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]})),
        "spec.ingress[0].from[0].ipBlock.except[0]: 11.0.0.0/16 is not a part of 10.0.0.0/8",
    );
    refuses(
        of(json!({"ingress": [{"from": [{}]}]})),
        "spec.ingress[0].from[0]: names no peer: podSelector, namespaceSelector or ipBlock",
    );
    refuses(
        of(json!({"egress": [{"to": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]}]})),
        "spec.egress[0].to[0].ipBlock: stands alone, never beside a selector",
    );
    refuses(
        of(json!({"egress": [{"ports": [{"port": 10, "endPort": 9}]}]})),
        "spec.egress[0].ports[0].endPort: 9 is below the start of the range, 10",
    );
    refuses(
        of(json!({"egress": [{"ports": [{"port": "web", "endPort": 9}]}]})),
        "spec.egress[0].ports[0].endPort: needs a port number as the start of the range",
    );
    refuses(
        of(json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "in", "values": ["x"]}]}})),
        "spec.podSelector.matchExpressions[0].operator: \"in\" is not In, NotIn, Exists or DoesNotExist",
    );
    refuses(
        of(json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}})),
        "spec.podSelector.matchExpressions[0].values: missing: In needs some",
    );
}

#[test]
fn paths_quote_keys_that_are_no_words() {
    let path = FieldPath(vec![
        Segment::Key("metadata".to_owned()),
        Segment::Key("labels".to_owned()),
        Segment::Key("a.b/c".to_owned()),
    ]);
    assert_eq!(path.to_string(), "metadata.labels[\"a.b/c\"]");
}
