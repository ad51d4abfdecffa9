//! The examples of the API's documentation, and each of its exact words, as truth tables written by hand.

use super::{End, Packet, Side, verdict};
use crate::model::convert::network_policy;
use crate::model::{ContainerPort, Labels, Model, Namespace, ObjectName, Pod, Protocol};
use std::net::IpAddr;
use std::sync::Arc;

fn labels(text: &str) -> Labels {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').expect("key=value");
        (key.to_owned(), value.to_owned())
    };
    text.split_whitespace().map(pair).collect()
}

fn add_namespace(model: &mut Model, name: &str, text: &str) {
    let namespace = Namespace { name: name.into(), labels: labels(text) };
    model.namespaces.insert(name.into(), Arc::new(namespace));
}

fn add_pod(model: &mut Model, name: &str, ip: &str, text: &str) -> Pod {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    let name = ObjectName::new(namespace, name);
    let ips = ip.split_whitespace().map(|ip| ip.parse().expect("an address")).collect();
    let node = Some("here".into());
    let pod = Pod { name: name.clone(), labels: labels(text), ips, node, ..Pod::default() };
    model.pods.insert(name, Arc::new(pod.clone()));
    pod
}

fn put_pod(model: &mut Model, pod: Pod) {
    model.pods.insert(pod.name.clone(), Arc::new(pod));
}

/// A policy `namespace/name`; `spec` is YAML.
fn add_policy(model: &mut Model, name: &str, spec: &str) {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    let spec = spec.replace('\n', "\n  ");
    let text = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  namespace: {namespace}\n  name: {name}\nspec:\n  {spec}"
    );
    let policy = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let policy = network_policy(policy).expect("the API takes it");
    model.policies.insert(policy.name.clone(), Arc::new(policy));
}

fn with_policy(model: &Model, spec: &str) -> Model {
    let mut model = model.clone();
    add_policy(&mut model, "default/policy", spec);
    model
}

/// `namespace/name` (and ` v6` for its second address), `own ADDRESS`, `node ADDRESS`, or an address outside.
fn end(model: &Model, text: &str) -> End {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let mut words = text.split_whitespace();
    let (first, second) = (words.next().expect("a word"), words.next());
    match (first, second) {
        ("own", Some(ip)) => End::OwnNode(address(ip)),
        ("node", Some(ip)) => End::OtherNode(address(ip)),
        _ => match first.split_once('/') {
            Some((namespace, name)) => {
                let name = ObjectName::new(namespace, name);
                let address = model.pods[&name].ips[usize::from(second.is_some())];
                End::Pod { name, address }
            }
            None => End::Outside(address(first)),
        },
    }
}

fn packet(model: &Model, from: &str, to: &str, what: &str) -> Packet {
    let (protocol, port) = what.split_once(' ').unwrap_or((what, "0"));
    let protocol = match protocol {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        "icmp" => 1,
        "icmp6" => 58,
        other => panic!("{other}"),
    };
    Packet { from: end(model, from), to: end(model, to), protocol, port: port.parse().expect("a port") }
}

/// `open`, `exempt`, `denied`, or the policies and rules that allow it.
fn word(side: &Side) -> String {
    match side {
        Side::NotIsolated => "open".to_owned(),
        Side::Exempt => "exempt".to_owned(),
        Side::Denied(_) => "denied".to_owned(),
        Side::Allowed(rules) => {
            let rules: Vec<String> =
                rules.iter().map(|(policy, index)| format!("{}.{index}", policy.name)).collect();
            rules.join(" ")
        }
    }
}

/// Each row: from, to, protocol and port, what the sender's policies say, what the receiver's say.
fn check(model: &Model, rows: &[[&str; 5]]) {
    for [from, to, what, egress, ingress] in rows {
        let verdict = verdict(model, &packet(model, from, to, what));
        let said = [word(&verdict.egress), word(&verdict.ingress)];
        assert_eq!(said, [*egress, *ingress], "{from} to {to} {what}");
    }
}

/// Three namespaces, the last without an object; `default` has the pods of the documentation's examples.
fn cluster() -> Model {
    let mut model = Model::default();
    add_namespace(&mut model, "default", "kubernetes.io/metadata.name=default");
    add_namespace(&mut model, "mine", "kubernetes.io/metadata.name=mine project=myproject user=alice");
    for (name, ip, labels) in [
        ("default/db", "10.0.0.1 fd00::1", "role=db"),
        ("default/front", "10.0.0.2 fd00::2", "role=frontend"),
        ("default/client", "10.0.0.3 fd00::3", "role=client"),
        ("mine/client", "10.0.0.4 fd00::4", "role=client"),
        ("mine/front", "10.0.0.5 fd00::5", "role=frontend"),
        ("nowhere/client", "10.0.0.6 fd00::6", "role=client tier="),
    ] {
        add_pod(&mut model, name, ip, labels);
    }
    model
}

#[test]
fn the_page_s_first_example() {
    let mut model = cluster();
    add_policy(
        &mut model,
        "default/test",
        "podSelector:
  matchLabels:
    role: db
policyTypes: [Ingress, Egress]
ingress:
- from:
  - ipBlock:
      cidr: 172.17.0.0/16
      except: [172.17.1.0/24]
  - namespaceSelector:
      matchLabels:
        project: myproject
  - podSelector:
      matchLabels:
        role: frontend
  ports:
  - protocol: TCP
    port: 6379
egress:
- to:
  - ipBlock:
      cidr: 10.0.0.0/24
  ports:
  - protocol: TCP
    port: 5978",
    );
    check(
        &model,
        &[
            ["default/front", "default/db", "tcp 6379", "open", "test.0"],
            ["default/front", "default/db", "tcp 6380", "open", "denied"],
            ["default/front", "default/db", "udp 6379", "open", "denied"],
            ["default/client", "default/db", "tcp 6379", "open", "denied"],
            ["mine/client", "default/db", "tcp 6379", "open", "test.0"],
            ["mine/front", "default/db v6", "tcp 6379", "open", "test.0"],
            ["nowhere/client", "default/db", "tcp 6379", "open", "denied"],
            ["172.17.0.255", "default/db", "tcp 6379", "open", "test.0"],
            ["172.17.1.0", "default/db", "tcp 6379", "open", "denied"],
            ["172.17.1.255", "default/db", "tcp 6379", "open", "denied"],
            ["172.17.2.0", "default/db", "tcp 6379", "open", "test.0"],
            ["172.18.0.0", "default/db", "tcp 6379", "open", "denied"],
            ["default/db", "10.0.0.255", "tcp 5978", "test.0", "open"],
            ["default/db", "10.0.1.0", "tcp 5978", "denied", "open"],
            // A pod's address is an address as any other.
            ["default/db", "default/front", "tcp 5978", "test.0", "open"],
            ["default/db v6", "default/front v6", "tcp 5978", "denied", "open"],
            // Who is not selected is as before.
            ["default/front", "mine/client", "udp 1", "open", "open"],
        ],
    );
}

#[test]
fn default_policies() {
    let rows = |policy: &str, egress: &str, ingress: &str| {
        let model = with_policy(&cluster(), policy);
        for what in ["tcp 1", "udp 65535", "sctp 9", "icmp"] {
            check(
                &model,
                &[
                    ["default/db", "mine/client", what, egress, "open"],
                    ["mine/client", "default/db", what, "open", ingress],
                    ["default/db", "8.8.8.8", what, egress, "open"],
                    ["8.8.8.8", "default/db", what, "open", ingress],
                    ["node 192.168.0.2", "default/db", what, "open", ingress],
                ],
            );
        }
    };
    let all = "podSelector: {}\n";
    rows(&format!("{all}policyTypes: [Ingress]"), "open", "denied");
    rows(&format!("{all}ingress: [{{}}]\npolicyTypes: [Ingress]"), "open", "policy.0");
    rows(&format!("{all}policyTypes: [Egress]"), "denied", "open");
    rows(&format!("{all}egress: [{{}}]\npolicyTypes: [Egress]"), "policy.0", "open");
    rows(&format!("{all}policyTypes: [Ingress, Egress]"), "denied", "denied");
    // "If this field is not specified, it will default based on the existence of ingress or egress rules".
    rows(all, "open", "denied");
    rows("ingress: []\negress: []", "open", "denied");
    rows(&format!("{all}policyTypes: []\negress: [{{}}]"), "policy.0", "denied");
    rows(&format!("{all}ingress: [{{}}]"), "open", "policy.0");
    rows(&format!("{all}ingress: [{{}}]\negress: [{{}}]"), "policy.0", "policy.0");
    // What is said about a direction that the policy is not about, is not said.
    rows(&format!("{all}policyTypes: [Egress]\ningress: [{{}}]"), "denied", "open");
    rows(&format!("{all}policyTypes: [Ingress]\negress: [{{}}]"), "open", "denied");
    // Missing, empty: everybody.
    rows("ingress: [{from: [], ports: []}]", "open", "policy.0");
}

#[test]
fn one_peer_with_both_selectors_is_not_two_peers() {
    let (user, role) =
        ("namespaceSelector: {matchLabels: {user: alice}}", "podSelector: {matchLabels: {role: client}}");
    let both = with_policy(&cluster(), &format!("ingress: [{{from: [{{{user}, {role}}}]}}]"));
    let either = with_policy(&cluster(), &format!("ingress: [{{from: [{{{user}}}, {{{role}}}]}}]"));
    for (from, as_one, as_two) in [
        ("mine/client", "policy.0", "policy.0"),
        ("mine/front", "denied", "policy.0"),
        ("default/client", "denied", "policy.0"),
        ("nowhere/client", "denied", "denied"),
        ("default/front", "denied", "denied"),
    ] {
        check(&both, &[[from, "default/db", "tcp 1", "open", as_one]]);
        check(&either, &[[from, "default/db", "tcp 1", "open", as_two]]);
    }
}

#[test]
fn selectors() {
    // By labels of namespaces and of pods: which of these clients they select.
    let clients = ["default/client", "mine/client", "mine/front", "nowhere/client"];
    for (peer, selected) in [
        ("namespaceSelector: {}", [true, true, true, true]),
        ("podSelector: {}", [true, false, false, false]),
        ("podSelector: {}, namespaceSelector: {}", [true, true, true, true]),
        ("podSelector: {matchLabels: {}, matchExpressions: []}", [true, false, false, false]),
        ("podSelector: {matchLabels: {role: client}}, namespaceSelector: {}", [true, true, false, true]),
        (
            "namespaceSelector: {matchExpressions: [{key: user, operator: In, values: [bob, alice]}]}",
            [false, true, true, false],
        ),
        (
            "namespaceSelector: {matchExpressions: [{key: user, operator: NotIn, values: [alice]}]}",
            [true, false, false, false],
        ),
        (
            "namespaceSelector: {matchExpressions: [{key: user, operator: Exists}]}",
            [false, true, true, false],
        ),
        (
            "namespaceSelector: {matchExpressions: [{key: user, operator: DoesNotExist}]}",
            [true, false, false, false],
        ),
        (
            "namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [default, nowhere]}]}",
            [true, false, false, true],
        ),
        // An empty value is one.
        (
            "namespaceSelector: {}, podSelector: {matchExpressions: [{key: tier, operator: Exists}]}",
            [false, false, false, true],
        ),
        ("namespaceSelector: {}, podSelector: {matchLabels: {tier: ''}}", [false, false, false, true]),
        // All of a selector must hold.
        (
            "namespaceSelector: {}, podSelector: {matchLabels: {role: client}, matchExpressions: [{key: tier, operator: DoesNotExist}, {key: role, operator: NotIn, values: [x]}]}",
            [true, true, false, false],
        ),
    ] {
        let model = with_policy(&cluster(), &format!("ingress: [{{from: [{{{peer}}}]}}]"));
        for (client, selected) in clients.into_iter().zip(selected) {
            let said = if selected { "policy.0" } else { "denied" };
            check(&model, &[[client, "default/db", "tcp 1", "open", said]]);
        }
        // A selector of whatever kind selects pods.
        check(&model, &[["8.8.8.8", "default/db", "tcp 1", "open", "denied"]]);
        check(&model, &[["node 192.168.0.2", "default/db", "tcp 1", "open", "denied"]]);
    }
}

#[test]
fn ports() {
    let from = ["tcp 32000", "tcp 31999", "tcp 32768", "tcp 32769", "udp 32000", "sctp 32000", "icmp"];
    for (ports, allowed) in [
        ("{protocol: TCP, port: 32000, endPort: 32768}", [true, false, true, false, false, false, false]),
        ("{port: 32000}", [true, false, false, false, false, false, false]),
        ("{port: 32000, endPort: 32000}", [true, false, false, false, false, false, false]),
        ("{protocol: UDP, port: 32000}", [false, false, false, false, true, false, false]),
        ("{protocol: SCTP, port: 32000}", [false, false, false, false, false, true, false]),
        ("{protocol: SCTP}", [false, false, false, false, false, true, false]),
        ("{}", [true, true, true, true, false, false, false]),
        ("{port: 31999}, {protocol: UDP}", [false, true, false, false, true, false, false]),
    ] {
        let model = with_policy(&cluster(), &format!("ingress: [{{ports: [{ports}]}}]"));
        for (what, allowed) in from.into_iter().zip(allowed) {
            let said = if allowed { "policy.0" } else { "denied" };
            check(&model, &[["mine/client", "default/db", what, "open", said]]);
        }
    }
}

#[test]
fn named_ports_are_those_of_the_pod_that_is_sent_to() {
    let mut model = cluster();
    let named = |name: &str, port, protocol| ContainerPort { name: name.into(), port, protocol };
    for (pod, port) in [("db", 80), ("front", 8080)] {
        let name = ObjectName::new("default", pod);
        let mut pod = (*model.pods[&name]).clone();
        pod.ports = vec![named("web", port, Protocol::Tcp), named("web", 53, Protocol::Udp)];
        put_pod(&mut model, pod);
    }
    let ingress = with_policy(&model, "ingress: [{ports: [{port: web}]}]");
    let egress = with_policy(&model, "egress: [{ports: [{port: web}]}]\npolicyTypes: [Egress]");
    check(
        &ingress,
        &[
            ["mine/client", "default/db", "tcp 80", "open", "policy.0"],
            ["mine/client", "default/db", "tcp 8080", "open", "denied"],
            ["mine/client", "default/db", "tcp 53", "open", "denied"],
            ["mine/client", "default/db", "udp 53", "open", "denied"],
            ["mine/client", "default/front", "tcp 8080", "open", "policy.0"],
            ["mine/client", "default/client", "tcp 80", "open", "denied"],
        ],
    );
    check(
        &egress,
        &[
            ["default/client", "default/db", "tcp 80", "policy.0", "open"],
            ["default/client", "default/front", "tcp 80", "denied", "open"],
            ["default/client", "default/front", "tcp 8080", "policy.0", "open"],
            ["default/db", "mine/client", "tcp 80", "denied", "open"],
            ["default/db", "8.8.8.8", "tcp 80", "denied", "open"],
        ],
    );
}

#[test]
fn blocks() {
    let allows = |block: &str, from: &str, yes: bool| {
        let model = with_policy(&cluster(), &format!("ingress: [{{from: [{{ipBlock: {{{block}}}}}]}}]"));
        let to = if from.contains(':') { "default/db v6" } else { "default/db" };
        check(&model, &[[from, to, "tcp 1", "open", if yes { "policy.0" } else { "denied" }]]);
    };
    allows("cidr: 0.0.0.0/0", "8.8.8.8", true);
    allows("cidr: 0.0.0.0/0", "2001:db8::1", false);
    allows("cidr: '::/0'", "8.8.8.8", false);
    allows("cidr: '::/0'", "2001:db8::1", true);
    allows("cidr: '::/80'", "8.8.8.8", false);
    allows("cidr: 10.9.8.7/32", "10.9.8.7", true);
    allows("cidr: 10.9.8.7/32", "10.9.8.6", false);
    allows("cidr: 10.9.8.7/31", "10.9.8.6", true);
    allows("cidr: 10.9.8.7/31", "10.9.8.8", false);
    allows("cidr: '2001:db8::ff/127'", "2001:db8::fe", true);
    allows("cidr: '2001:db8::ff/127'", "2001:db8::fd", false);
    let two = "cidr: 10.0.0.0/8, except: [10.0.0.0/30, 10.0.0.0/31, 10.64.0.0/10]";
    allows(two, "10.0.0.4", true);
    allows(two, "10.0.0.3", false);
    allows(two, "10.64.0.1", false);
    allows(two, "10.128.0.1", true);
    // What one block leaves out another may have.
    let model = with_policy(
        &cluster(),
        "ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}, {from: [{ipBlock: {cidr: 10.1.1.0/24}}]}]",
    );
    check(
        &model,
        &[
            ["10.2.0.1", "default/db", "tcp 1", "open", "policy.0"],
            ["10.1.0.1", "default/db", "tcp 1", "open", "denied"],
            ["10.1.1.1", "default/db", "tcp 1", "open", "policy.1"],
            ["default/front", "default/db", "tcp 1", "open", "policy.0"],
        ],
    );
}

#[test]
fn policies_add_up() {
    let mut model = cluster();
    add_policy(
        &mut model,
        "default/a",
        "ingress: [{ports: [{port: 80}]}, {ports: [{port: 80, endPort: 81}]}]",
    );
    add_policy(
        &mut model,
        "default/b",
        "podSelector: {matchLabels: {role: db}}\ningress: [{ports: [{port: 81}]}]",
    );
    add_policy(&mut model, "mine/c", "ingress: [{}]\negress: [{ports: [{port: 82}]}]");
    check(
        &model,
        &[
            ["default/front", "default/db", "tcp 80", "open", "a.0 a.1"],
            ["default/front", "default/db", "tcp 81", "open", "a.1 b.0"],
            ["default/db", "default/front", "tcp 81", "open", "a.1"],
            ["default/front", "default/db", "tcp 82", "open", "denied"],
            // Both ends must agree.
            ["mine/client", "default/db", "tcp 82", "c.0", "denied"],
            ["mine/client", "default/db", "tcp 81", "denied", "a.1 b.0"],
            ["default/db", "mine/client", "tcp 9", "open", "c.0"],
        ],
    );
}

#[test]
fn the_pod_itself_and_its_node() {
    let mut model = cluster();
    let host = add_pod(&mut model, "default/host", "192.168.0.1 fd01::1", "role=frontend");
    put_pod(&mut model, Pod { host_network: true, ..host });
    let far = add_pod(&mut model, "default/far", "192.168.0.2 fd01::2", "role=frontend");
    put_pod(&mut model, Pod { host_network: true, node: Some("there".into()), ..far });
    let done = add_pod(&mut model, "default/done", "10.0.0.9", "role=frontend");
    put_pod(&mut model, Pod { finished: true, ..done });
    let deny = with_policy(&model, "policyTypes: [Ingress, Egress]");
    check(
        &deny,
        &[
            ["default/db", "default/db", "tcp 1", "exempt", "exempt"],
            ["default/db v6", "default/db v6", "icmp6", "exempt", "exempt"],
            ["default/db", "own 192.168.0.1", "tcp 1", "exempt", "open"],
            ["own 192.168.0.1", "default/db", "icmp", "open", "exempt"],
            ["default/db", "node 192.168.0.2", "tcp 1", "denied", "open"],
            ["node 192.168.0.2", "default/db", "tcp 1", "open", "denied"],
            // A hostNetwork pod is its node.
            ["default/host", "default/db", "tcp 1", "open", "exempt"],
            ["default/db", "default/host", "tcp 1", "exempt", "open"],
            ["default/far", "default/db", "tcp 1", "open", "denied"],
            ["default/db", "default/far", "tcp 1", "denied", "open"],
        ],
    );
    // Selectors see neither it nor a pod that has ended; blocks see addresses.
    let rule = |peer: &str| format!("ingress: [{{from: [{{{peer}}}]}}]");
    let selected = with_policy(&model, &rule("podSelector: {matchLabels: {role: frontend}}"));
    let blocked = with_policy(&model, &rule("ipBlock: {cidr: 192.168.0.2/32}"));
    check(
        &selected,
        &[
            ["default/front", "default/db", "tcp 1", "open", "policy.0"],
            ["default/far", "default/db", "tcp 1", "open", "denied"],
            ["default/done", "default/db", "tcp 1", "open", "denied"],
        ],
    );
    check(
        &blocked,
        &[
            ["default/front", "default/db", "tcp 1", "open", "denied"],
            ["default/far", "default/db", "tcp 1", "open", "policy.0"],
            ["node 192.168.0.2", "default/db", "tcp 1", "open", "policy.0"],
        ],
    );
}
