//! The oracle with mistakes that a planner could make: the random clusters must show each.
//!
//! A mistake is made in what the oracle is given, so that the oracle itself has no switches.

use super::super::{Direction, End, Packet, Side, verdict};
use super::{CLUSTERS, Case, PACKETS, case, runner, seed};
use crate::model::{Model, Pod, Protocol};
use k8s_openapi::api::networking::v1::{IPBlock, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proptest::strategy::{Strategy as _, ValueTree as _};
use std::sync::Arc;

type Mistake = (&'static str, fn(&mut Model, &mut Packet));

fn specs(model: &mut Model, change: impl FnMut(&mut NetworkPolicySpec)) {
    model.policies.values_mut().map(|policy| &mut Arc::make_mut(policy).spec).for_each(change);
}

fn pods(model: &mut Model, change: impl FnMut(&mut Pod)) {
    model.pods.values_mut().map(Arc::make_mut).for_each(change);
}

/// The lists of peers and of ports of each rule.
fn lists(
    model: &mut Model,
    mut change: impl FnMut(Direction, &mut Option<Vec<NetworkPolicyPeer>>, &mut Option<Vec<NetworkPolicyPort>>),
) {
    specs(model, |spec| {
        for rule in spec.ingress.iter_mut().flatten() {
            change(Direction::Ingress, &mut rule.from, &mut rule.ports);
        }
        for rule in spec.egress.iter_mut().flatten() {
            change(Direction::Egress, &mut rule.to, &mut rule.ports);
        }
    });
}

fn peers(model: &mut Model, mut change: impl FnMut(&mut NetworkPolicyPeer)) {
    lists(model, |_, peers, _| peers.iter_mut().flatten().for_each(&mut change));
}

fn blocks(model: &mut Model, mut change: impl FnMut(&mut IPBlock)) {
    peers(model, |peer| peer.ip_block.iter_mut().for_each(&mut change));
}

fn ports(model: &mut Model, mut change: impl FnMut(&mut NetworkPolicyPort)) {
    lists(model, |_, _, ports| ports.iter_mut().flatten().for_each(&mut change));
}

/// Those of peers, and those of what policies apply to.
fn selectors(model: &mut Model, mut change: impl FnMut(&mut LabelSelector)) {
    peers(model, |peer| {
        peer.pod_selector.iter_mut().chain(&mut peer.namespace_selector).for_each(&mut change);
    });
    specs(model, |spec| spec.pod_selector.iter_mut().for_each(&mut change));
}

fn forget(model: &mut Model, operator: &str) {
    selectors(model, |selector| {
        selector.match_expressions.iter_mut().for_each(|all| all.retain(|one| one.operator != operator));
    });
}

/// Ports that no packet has.
fn no_port() -> Option<Vec<NetworkPolicyPort>> {
    Some(vec![NetworkPolicyPort { end_port: None, port: Some(IntOrString::Int(-1)), protocol: None }])
}

fn prefix(cidr: &str) -> u8 {
    cidr.split_once('/').and_then(|(_, prefix)| prefix.parse().ok()).expect("a prefix")
}

/// Both ends, to change either.
fn ends(packet: &mut Packet) -> [&mut End; 2] {
    [&mut packet.from, &mut packet.to]
}

const MISTAKES: &[Mistake] = &[
    ("missing policyTypes are both", |model, _| {
        specs(model, |spec| {
            if spec.policy_types.as_ref().is_none_or(Vec::is_empty) {
                spec.policy_types = Some(vec!["Ingress".to_owned(), "Egress".to_owned()]);
            }
        });
    }),
    ("empty policyTypes are none", |model, _| {
        model
            .policies
            .retain(|_, policy| policy.spec.policy_types.as_ref().is_none_or(|types| !types.is_empty()));
    }),
    ("an empty egress section is one", |model, _| {
        specs(model, |spec| {
            if spec.policy_types.as_ref().is_none_or(Vec::is_empty) && spec.egress == Some(Vec::new()) {
                spec.policy_types = Some(vec!["Ingress".to_owned(), "Egress".to_owned()]);
            }
        });
    }),
    ("policyTypes are guessed from the rules", |model, _| specs(model, |spec| spec.policy_types = None)),
    ("a missing podSelector selects nobody", |model, _| {
        model.policies.retain(|_, policy| policy.spec.pod_selector.is_some());
    }),
    ("no peers: nobody", |model, _| {
        lists(model, |_, peers, ports| {
            if peers.as_ref().is_none_or(Vec::is_empty) {
                *ports = no_port();
            }
        });
    }),
    ("no ports: none", |model, _| {
        lists(model, |_, _, ports| {
            if ports.as_ref().is_none_or(Vec::is_empty) {
                *ports = no_port();
            }
        });
    }),
    ("only the first peer counts", |model, _| {
        lists(model, |_, peers, _| peers.iter_mut().for_each(|peers| peers.truncate(1)));
    }),
    ("only the first port counts", |model, _| {
        lists(model, |_, _, ports| ports.iter_mut().for_each(|ports| ports.truncate(1)));
    }),
    ("a podSelector alone reaches all namespaces", |model, _| {
        peers(model, |peer| {
            if peer.pod_selector.is_some() {
                peer.namespace_selector.get_or_insert_default();
            }
        });
    }),
    ("beside a namespaceSelector a podSelector is nothing", |model, _| {
        peers(model, |peer| {
            if peer.namespace_selector.is_some() {
                peer.pod_selector = None;
            }
        });
    }),
    ("beside a podSelector a namespaceSelector is nothing", |model, _| {
        peers(model, |peer| {
            if peer.pod_selector.is_some() {
                peer.namespace_selector = None;
            }
        });
    }),
    ("both selectors are two peers", |model, _| {
        lists(model, |_, peers, _| {
            if let Some(peers) = peers {
                let more: Vec<_> = peers
                    .iter()
                    .filter(|peer| peer.pod_selector.is_some() && peer.namespace_selector.is_some())
                    .map(|peer| NetworkPolicyPeer { pod_selector: None, ..peer.clone() })
                    .collect();
                peers.extend(more);
            }
        });
    }),
    ("matchLabels are nothing", |model, _| selectors(model, |selector| selector.match_labels = None)),
    ("one of matchLabels is enough", |model, _| {
        selectors(model, |selector| {
            if let Some(labels) = &mut selector.match_labels {
                labels
                    .pop_first()
                    .filter(|_| labels.is_empty())
                    .map(|(key, value)| labels.insert(key, value));
            }
        });
    }),
    ("In is nothing", |model, _| forget(model, "In")),
    ("NotIn is nothing", |model, _| forget(model, "NotIn")),
    ("Exists is nothing", |model, _| forget(model, "Exists")),
    ("DoesNotExist is nothing", |model, _| forget(model, "DoesNotExist")),
    ("NotIn needs the label", |model, _| {
        selectors(model, |selector| {
            if let Some(all) = &mut selector.match_expressions {
                let not_in = all.iter().filter(|one| one.operator == "NotIn");
                let exists = |one: &LabelSelectorRequirement| LabelSelectorRequirement {
                    operator: "Exists".to_owned(),
                    values: None,
                    ..one.clone()
                };
                let more: Vec<_> = not_in.map(exists).collect();
                all.extend(more);
            }
        });
    }),
    ("only the first value counts", |model, _| {
        selectors(model, |selector| {
            let all = selector.match_expressions.iter_mut().flatten();
            all.for_each(|one| one.values.iter_mut().for_each(|values| values.truncate(1)));
        });
    }),
    ("an empty value is no label", |model, _| {
        pods(model, |pod| pod.labels.retain(|_, value| !value.is_empty()));
    }),
    ("namespaces have only names", |model, _| model.namespaces.clear()),
    ("a namespace without an object is not selected", |model, _| {
        let known = |model: &Model, pod: &Pod| model.namespaces.contains_key(&pod.name.namespace);
        // No policy of its own: so it matters as a peer only.
        let own = |model: &Model, pod: &Pod| {
            model.policies.keys().any(|policy| policy.namespace == pod.name.namespace)
        };
        let former = model.clone();
        model.pods.retain(|_, pod| known(&former, pod) || own(&former, pod));
    }),
    ("excepts are nothing", |model, _| blocks(model, |block| block.except = None)),
    ("only the first except counts", |model, _| {
        blocks(model, |block| block.except.iter_mut().for_each(|except| except.truncate(1)));
    }),
    ("excepts hold for the whole rule", |model, _| {
        lists(model, |_, peers, _| {
            let peers = peers.as_deref_mut().unwrap_or_default();
            let all: Vec<String> = peers
                .iter()
                .flat_map(|peer| &peer.ip_block)
                .flat_map(|block| &block.except)
                .flatten()
                .cloned()
                .collect();
            for block in peers.iter_mut().flat_map(|peer| &mut peer.ip_block) {
                block.except.get_or_insert_default().extend(all.clone());
            }
        });
    }),
    ("a wide IPv6 block has all of IPv4", |model, _| {
        lists(model, |_, peers, _| {
            if let Some(peers) = peers {
                let wide = |block: &IPBlock| {
                    ["::/0", "::7:0:7/0"].contains(&&*block.cidr)
                        || block.cidr.starts_with("::7:0:7/") && prefix(&block.cidr) <= 80
                };
                if peers.iter().flat_map(|peer| &peer.ip_block).any(wide) {
                    let cidr = "0.0.0.0/0".to_owned();
                    peers.push(NetworkPolicyPeer {
                        ip_block: Some(IPBlock { cidr, except: None }),
                        ..NetworkPolicyPeer::default()
                    });
                }
            }
        });
    }),
    ("a block has no pods", |model, packet| {
        let is_pod = |end: &mut End| match end {
            End::Pod { name, .. } => model.pods.get(name).is_some_and(|pod| !pod.host_network),
            _ => false,
        };
        if ends(packet).map(is_pod) == [true, true] {
            lists(model, |_, peers, ports| {
                if let Some(list) = peers.as_mut().filter(|list| !list.is_empty()) {
                    list.retain(|peer| peer.ip_block.is_none());
                    if list.is_empty() {
                        *ports = no_port();
                    }
                }
            });
        }
    }),
    ("endPort is nothing", |model, _| ports(model, |port| port.end_port = None)),
    ("endPort is not included", |model, _| {
        ports(model, |port| port.end_port.iter_mut().for_each(|last| *last -= 1));
    }),
    ("a missing protocol is any", |model, packet| {
        ports(model, |port| {
            if port.protocol.as_ref().is_none_or(String::is_empty) && packet.protocol == 17 {
                port.protocol = Some("UDP".to_owned());
            }
        });
    }),
    ("SCTP is TCP", |_, packet| packet.protocol = if packet.protocol == 132 { 6 } else { packet.protocol }),
    ("ICMP is TCP", |_, packet| {
        packet.protocol = if [1, 58].contains(&packet.protocol) { 6 } else { packet.protocol };
    }),
    ("pods have no named ports", |model, _| pods(model, |pod| pod.ports.clear())),
    ("of named ports the last counts", |model, _| pods(model, |pod| pod.ports.reverse())),
    ("named ports are TCP's", |model, _| {
        pods(model, |pod| pod.ports.iter_mut().for_each(|port| port.protocol = Protocol::Tcp));
    }),
    ("named ports of a rule to send are the sender's", |model, packet| {
        if let End::Pod { name, .. } = &packet.from
            && let Some(sender) = model.pods.get(name).map(|pod| pod.ports.clone())
        {
            pods(model, |pod| pod.ports.clone_from(&sender));
        }
    }),
    ("hostNetwork pods are pods", |model, _| pods(model, |pod| pod.host_network = false)),
    ("a finished pod has its address", |model, packet| {
        let finished =
            |end: &End| model.pods.values().find(|pod| pod.finished && pod.ips.contains(&end.address()));
        let found = ends(packet).map(|end| finished(end).map(|pod| pod.name.clone()));
        for (end, name) in ends(packet).into_iter().zip(found) {
            if let (Some(name), End::Outside(address)) = (name, end.clone()) {
                *end = End::Pod { name, address };
            }
        }
        pods(model, |pod| pod.finished = false);
    }),
    ("a finished pod keeps an address that is another's", |model, packet| {
        let finished =
            |end: &End| model.pods.values().find(|pod| pod.finished && pod.ips.contains(&end.address()));
        let found = ends(packet).map(|end| finished(end).map(|pod| pod.name.clone()));
        for (end, name) in ends(packet).into_iter().zip(found) {
            if let (Some(name), End::Pod { address, .. }) = (name, end.clone()) {
                *end = End::Pod { name, address };
            }
        }
        pods(model, |pod| pod.finished = false);
    }),
    ("the own node is a node like others", |_, packet| {
        for end in ends(packet) {
            if let End::OwnNode(address) = end {
                *end = End::OtherNode(*address);
            }
        }
    }),
    ("another node is the own one", |_, packet| {
        for end in ends(packet) {
            if let End::OtherNode(address) = end {
                *end = End::OwnNode(*address);
            }
        }
    }),
    ("a pod is a stranger to itself", |_, packet| {
        if packet.from == packet.to {
            packet.from = End::Outside(packet.from.address());
        }
    }),
];

/// As often as this, so that it is no accident; a few hundred clusters do.
const ENOUGH: usize = 3;
const LONGEST: u32 = 3 * CLUSTERS;

#[test]
fn random_clusters_show_every_mistake() {
    let mut runner = runner(seed(), 1);
    let strategy = case(PACKETS);
    let mut shown = vec![0; MISTAKES.len()];
    for _ in 0..LONGEST {
        let case = strategy.new_tree(&mut runner).expect("nothing is rejected").current();
        let Case { before: cluster, early: packets, .. } = &case;
        for packet in packets {
            let right = verdict(&cluster.model, packet);
            let rest = MISTAKES.iter().zip(&mut shown).filter(|(_, shown)| **shown < ENOUGH);
            for ((_, make), shown) in rest {
                let (mut model, mut mistaken) = (cluster.model.clone(), packet.clone());
                make(&mut model, &mut mistaken);
                let wrong = verdict(&model, &mistaken);
                let differ = |end: &End, right: &Side, wrong: &Side| {
                    cluster.is_local(end) && right.lets_through() != wrong.lets_through()
                };
                let egress = differ(&packet.from, &right.egress, &wrong.egress);
                let ingress = differ(&packet.to, &right.ingress, &wrong.ingress);
                *shown += usize::from(egress || ingress);
            }
        }
        if shown.iter().all(|shown| *shown >= ENOUGH) {
            break;
        }
    }
    for ((name, _), shown) in MISTAKES.iter().zip(&shown) {
        assert!(*shown >= ENOUGH, "only {shown} packets of {LONGEST} clusters show that {name}");
    }
}
