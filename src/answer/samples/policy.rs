//! Of policies.

use super::{rule, text};
use crate::answer::policy::{
    Case, Closed, Direction, Effect, End, Evaluated, Explained, Peer, Policies, Policy, Port, Resolved, Rule,
    Shown, Side, Verdict,
};
use std::net::IpAddr;

fn all(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn ip(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

pub(crate) fn policies() -> Policies {
    let policy = |name: &str, isolates: &[Direction], pods, ingress_rules, egress_rules| Policy {
        policy: format!("shop/{name}"),
        isolates: isolates.to_vec(),
        pods,
        ingress_rules,
        egress_rules,
    };
    let both = [Direction::Ingress, Direction::Egress];
    Policies {
        node: text("node-1"),
        policies: vec![
            policy("api", &both, 2, 2, 1),
            policy("db-allow", &[Direction::Ingress], 1, 1, 0),
            policy("default-deny", &both, 9, 0, 0),
        ],
        closed: vec![
            Closed {
                pod: "shop/big-0".to_owned(),
                reason: text(
                    "its policies need 40 more rows, 65530 of 65536 are in use (datapath.policy_rows)",
                ),
            },
            Closed { pod: "c2".to_owned(), reason: None },
        ],
    }
}

pub(crate) fn folder_policies() -> Policies {
    Policies { node: None, closed: Vec::new(), ..policies() }
}

fn peers() -> [Peer; 3] {
    let pods = Peer {
        pod_selector: text("app=web"),
        namespace_selector: None,
        block: None,
        except: Vec::new(),
        pods: all(&["shop/web-0", "shop/web-1", "shop/web-2", "shop/web-3", "shop/web-4", "shop/web-5"]),
    };
    let others = Peer {
        pod_selector: text(""),
        namespace_selector: text("team in (a,b)"),
        pods: Vec::new(),
        ..pods.clone()
    };
    let block = Peer {
        pod_selector: None,
        block: text("10.0.0.0/8"),
        except: all(&["10.1.0.0/16"]),
        pods: Vec::new(),
        ..pods.clone()
    };
    [pods, others, block]
}

fn ports() -> [Port; 3] {
    let one = Port {
        protocol: "tcp".to_owned(),
        port: Some(5432),
        end_port: None,
        name: None,
        resolved: Vec::new(),
    };
    let range = Port { protocol: "udp".to_owned(), port: Some(9000), end_port: Some(9010), ..one.clone() };
    let named = Port {
        port: None,
        name: text("pg"),
        resolved: vec![
            Resolved { port: 5432, pods: all(&["shop/db-0"]) },
            Resolved { port: 5433, pods: all(&["shop/db-1"]) },
        ],
        ..one.clone()
    };
    [one, range, named]
}

fn rules() -> Vec<Rule> {
    let [pods, others, block] = peers();
    let [one, range, named] = ports();
    let rule = |index, peers, ports| Rule {
        policy: "shop/db-allow".to_owned(),
        direction: Direction::Ingress,
        index,
        ignored: false,
        any_peer: false,
        peers,
        any_port: false,
        ports,
    };
    vec![
        rule(1, vec![pods, others], vec![one, named]),
        rule(2, vec![block], vec![range]),
        Rule { any_port: true, ..rule(3, Vec::new(), Vec::new()) },
    ]
    .into_iter()
    .map(|rule| Rule { any_peer: rule.peers.is_empty(), ..rule })
    .collect()
}

pub(crate) fn policy() -> Shown {
    let mut rules = rules();
    rules.truncate(2);
    rules.extend(self::rules().pop().map(|rule| Rule {
        direction: Direction::Egress,
        index: 1,
        ignored: true,
        ..rule
    }));
    Shown {
        node: text("node-1"),
        policy: "shop/db-allow".to_owned(),
        isolates: vec![Direction::Ingress],
        selector: "app=db".to_owned(),
        pods: all(&["shop/db-0"]),
        rules,
    }
}

pub(crate) fn denying_policy() -> Shown {
    Shown {
        node: None,
        policy: "shop/default-deny".to_owned(),
        isolates: vec![Direction::Ingress, Direction::Egress],
        selector: String::new(),
        pods: Vec::new(),
        rules: Vec::new(),
    }
}

pub(crate) fn explained() -> Explained {
    Explained {
        node: text("node-1"),
        pod: "shop/db-0".to_owned(),
        runs_on: text("node-1"),
        addresses: vec![ip("10.42.3.6"), ip("fd00:42:3::6")],
        exempt: None,
        problem: None,
        ingress: Side {
            isolated: true,
            policies: all(&["shop/db-allow", "shop/default-deny"]),
            rules: rules(),
            state: Some(Effect::InForce),
        },
        egress: Side {
            isolated: false,
            policies: Vec::new(),
            rules: Vec::new(),
            state: Some(Effect::Pending),
        },
    }
}

pub(crate) fn closed_pod() -> Explained {
    let explained = explained();
    let denied = Side {
        rules: Vec::new(),
        policies: all(&["shop/default-deny"]),
        state: Some(Effect::Closed),
        ..explained.ingress
    };
    Explained {
        problem: text(
            "nothing is allowed: its policies need 40 more rows, 65530 of 65536 are in use (datapath.policy_rows)",
        ),
        ingress: denied.clone(),
        egress: denied,
        ..explained
    }
}

pub(crate) fn exempt_pod() -> Explained {
    let open = Side { isolated: false, policies: Vec::new(), rules: Vec::new(), state: None };
    Explained {
        node: None,
        pod: "kube-system/proxy".to_owned(),
        runs_on: None,
        addresses: Vec::new(),
        exempt: text("it uses its node's network, and no policy selects it"),
        ingress: open.clone(),
        egress: open,
        ..explained()
    }
}

fn end(pod: &str) -> End {
    End { name: pod.to_owned(), pod: text(pod) }
}

pub(crate) fn evaluated() -> Evaluated {
    let egress = Verdict {
        pod: "shop/web-0".to_owned(),
        allowed: true,
        isolated: true,
        policies: all(&["shop/web"]),
        rule: rule("shop/web", 2),
    };
    let ingress = Verdict {
        pod: "shop/db-0".to_owned(),
        allowed: false,
        policies: all(&["shop/db-allow", "shop/default-deny"]),
        rule: None,
        ..egress
    };
    let case = Case {
        from: Some(ip("10.42.3.5")),
        to: Some(ip("10.42.4.6")),
        allowed: false,
        exempt: None,
        egress: Some(egress),
        ingress: Some(ingress),
    };
    let other = Case { from: Some(ip("fd00:42:3::5")), to: Some(ip("fd00:42:4::6")), ..case.clone() };
    Evaluated {
        node: text("node-1"),
        from: end("shop/web-0"),
        to: end("shop/db-0"),
        protocol: "tcp".to_owned(),
        port: Some(5432),
        allowed: false,
        cases: vec![case, other],
        notes: vec!["a change for ingress of shop/db-0 is on its way to the kernel".to_owned()],
    }
}

pub(crate) fn evaluated_by_family() -> Evaluated {
    let mut evaluated = evaluated();
    if let Some(case) = evaluated.cases.first_mut() {
        case.allowed = true;
        case.ingress = case.ingress.take().map(|ingress| Verdict {
            allowed: true,
            isolated: false,
            policies: Vec::new(),
            ..ingress
        });
    }
    evaluated.notes.clear();
    evaluated
}

pub(crate) fn exempt_flow() -> Evaluated {
    let case = Case {
        from: None,
        to: None,
        allowed: true,
        exempt: text("a pod and its own node always reach each other"),
        egress: None,
        ingress: None,
    };
    Evaluated {
        node: None,
        to: End { name: "node node-1".to_owned(), pod: None },
        protocol: "icmp".to_owned(),
        port: None,
        allowed: true,
        cases: vec![case],
        notes: Vec::new(),
        ..evaluated()
    }
}
