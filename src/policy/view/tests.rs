use super::*;
use crate::directory;

const CLUSTER: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: a}}
---
apiVersion: v1
kind: Node
metadata: {name: node-1}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {nodeName: node-1, containers: [{name: c}]}
status: {podIP: 10.42.3.5, podIPs: [{ip: 10.42.3.5}, {ip: "fd00:42:3::5"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-0, namespace: shop, labels: {app: db}}
spec: {nodeName: node-2, containers: [{name: c, ports: [{name: pg, containerPort: 5432}]}]}
status: {podIP: 10.42.4.6, podIPs: [{ip: 10.42.4.6}, {ip: "fd00:42:4::6"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db-1, namespace: shop, labels: {app: db}}
spec: {containers: [{name: c, ports: [{name: pg, containerPort: 5433}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: wiki-0, namespace: blog, labels: {app: wiki}}
spec: {nodeName: node-1, containers: [{name: c}]}
status: {podIP: 10.42.3.9}
---
apiVersion: v1
kind: Pod
metadata: {name: proxy, namespace: blog, labels: {app: web}}
spec: {nodeName: node-1, hostNetwork: true, containers: [{name: c}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.7, selector: {app: db}, ports: [{port: 5432}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: default-deny, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db-allow, namespace: shop}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [db, cache]}]}
  ingress:
  - from: [{podSelector: {matchLabels: {app: web}}}, {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: blog}}}]
    ports: [{port: pg}]
  - from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.42.3.0/24]}}]
    ports: [{port: 9000, endPort: 9010}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  ingress: [{}]
  egress:
  - ports: [{port: 53, protocol: UDP}]
  - to: [{podSelector: {matchLabels: {app: db}}, namespaceSelector: {matchLabels: {team: a}}}]
    ports: [{port: pg}]
  - to: [{ipBlock: {cidr: 0.0.0.0/0}}]
    ports: [{port: 443}]
"#;

/// As of a folder.
fn cluster(more: &str) -> Arc<Model> {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("a.yaml"), format!("{CLUSTER}{more}")).expect("written");
    directory::load(folder.path()).expect("a model")
}

static NOBODY: BTreeMap<u32, LocalPod> = BTreeMap::new();

fn folder(model: &Model) -> View<'_> {
    View { model, node: None, locals: &NOBODY, node_addresses: &[] }
}

fn locals() -> BTreeMap<u32, LocalPod> {
    let pod = |endpoint, name: Option<(&str, &str)>, address: &str| {
        let addresses = vec![address.parse().unwrap()];
        let pod = name.map(|(namespace, name)| ObjectName::new(namespace, name));
        (endpoint, LocalPod { endpoint, pod, uid: None, addresses })
    };
    BTreeMap::from([
        pod(7, Some(("shop", "web-0")), "10.42.3.5"),
        pod(8, Some(("blog", "wiki-0")), "10.42.3.9"),
        // The runtime told no name; the model does not know it yet.
        pod(9, None, "10.42.3.10"),
        pod(10, Some(("shop", "new-0")), "10.42.3.11"),
    ])
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Refusal>) -> String {
    answer.expect_err("refused").to_string()
}

#[test]
fn a_list_counts_the_pods_of_the_node_or_of_the_folder() {
    let model = cluster("");
    let told = |view: &View<'_>| -> Vec<String> {
        let list = view.list(None);
        let line = |one: &Policy| {
            let directions: Vec<String> = one.isolates.iter().map(ToString::to_string).collect();
            let (ingress, egress) = (one.ingress_rules, one.egress_rules);
            format!("{} {} pods {} rules {ingress}+{egress}", one.policy, directions.join("+"), one.pods)
        };
        list.policies.iter().map(line).collect()
    };
    assert_eq!(
        told(&folder(&model)),
        [
            "shop/db-allow ingress pods 2 rules 2+0",
            "shop/default-deny ingress+egress pods 3 rules 0+0",
            "shop/web egress pods 1 rules 0+3",
        ]
    );
    let locals = locals();
    let view = View { node: Some("node-1"), locals: &locals, ..folder(&model) };
    let pods: Vec<usize> = view.list(None).policies.iter().map(|one| one.pods).collect();
    assert_eq!(pods, [1, 2, 2], "the one that the model does not know may have any labels");
    assert_eq!((view.list(Some("blog")).policies.len(), view.list(Some("shop")).policies.len()), (0, 3));
    assert_eq!(view.list(None).node.as_deref(), Some("node-1"));
}

#[test]
fn a_policy_is_shown_with_whom_its_rules_mean() {
    let model = cluster("");
    let shown = folder(&model).show("db-allow").expect("shown");
    assert_eq!(
        (shown.selector.as_str(), &shown.pods[..]),
        ("app in (cache,db)", &["shop/db-0".to_owned(), "shop/db-1".to_owned()][..])
    );
    let rule = |index: usize| shown.rules.iter().find(|rule| rule.index == index).expect("a rule");
    let peers: Vec<String> =
        rule(1).peers.iter().map(|peer| format!("{peer}: {}", peer.pods.join(" "))).collect();
    // The one with the node's network is nobody's peer.
    assert_eq!(
        peers,
        ["pods app=web: shop/web-0", "all pods of namespaces kubernetes.io/metadata.name=blog: blog/wiki-0"]
    );
    let resolved: Vec<(u16, String)> =
        rule(1).ports[0].resolved.iter().map(|one| (one.port, one.pods.join(" "))).collect();
    assert_eq!(resolved, [(5432, "shop/db-0".to_owned()), (5433, "shop/db-1".to_owned())]);
    assert_eq!(rule(2).peers[0].to_string(), "10.0.0.0/8 except 10.42.3.0/24");
    assert_eq!(
        (rule(2).peers[0].pods.join(" "), rule(2).ports[0].to_string()),
        ("shop/db-0".into(), "9000-9010/tcp".into())
    );

    let web = folder(&model).show("shop/web").expect("shown");
    let ignored: Vec<(bool, bool)> = web.rules.iter().map(|rule| (rule.ignored, rule.any_peer)).collect();
    assert_eq!(ignored, [(true, true), (false, true), (false, false), (false, false)]);
    assert_eq!(
        refused(folder(&model).show("db-alow")),
        "there is no NetworkPolicy db-alow: did you mean shop/db-allow?"
    );
}

#[test]
fn a_pod_is_explained_by_direction() {
    let model = cluster("");
    let told = folder(&model).explain("web-0").expect("explained");
    assert_eq!((told.runs_on.as_deref(), told.addresses.len()), (Some("node-1"), 2));
    assert_eq!(told.ingress.policies, ["shop/default-deny"]);
    assert!(told.ingress.isolated && told.ingress.rules.is_empty());
    assert_eq!(told.egress.policies, ["shop/default-deny", "shop/web"]);
    let rules: Vec<(String, usize)> =
        told.egress.rules.iter().map(|rule| (rule.policy.clone(), rule.index)).collect();
    assert_eq!(rules, [("shop/web".into(), 1), ("shop/web".into(), 2), ("shop/web".into(), 3)]);
    let wiki = folder(&model).explain("blog/wiki-0").expect("explained");
    assert!(!wiki.ingress.isolated && !wiki.egress.isolated && wiki.exempt.is_none());
    let host = folder(&model).explain("proxy").expect("explained");
    assert_eq!(host.exempt.as_deref(), Some("it uses its node's network, and no policy selects it"));
    // The agent has it, the model not yet.
    let locals = locals();
    let view = View { node: Some("node-1"), locals: &locals, ..folder(&model) };
    assert_eq!(
        view.explain("new-0").expect("explained").egress.policies,
        ["shop/default-deny", "shop/web"],
        "it may have any labels"
    );
    assert_eq!(refused(view.explain("web0")), "there is no pod web0: did you mean shop/web-0?");
}

/// `allowed` or `denied` for each case with the reasons, or why it is not decided.
fn judged(view: &View<'_>, from: &str, to: &str) -> String {
    let asked = Question::new(from, to).and_then(|question| view.eval(&question));
    let evaluated = match asked {
        Ok(evaluated) => evaluated,
        Err(refusal) => return format!("? {refusal}"),
    };
    let case = |case: &answer::Case| {
        let word = if case.allowed { "allowed" } else { "denied" };
        let sides = [("egress", &case.egress), ("ingress", &case.ingress)].into_iter();
        let sides = sides.filter_map(|(direction, verdict)| {
            let verdict = verdict.as_ref()?;
            Some(format!("{direction} of {}: {}", verdict.pod, verdict.because()))
        });
        let why: Vec<String> = case.exempt.iter().cloned().chain(sides).collect();
        format!("{word} ({})", why.join(" | "))
    };
    let mut cases: Vec<String> = evaluated.cases.iter().map(case).collect();
    cases.dedup();
    cases.extend(evaluated.notes.iter().map(|note| format!("note: {note}")));
    assert_eq!(evaluated.allowed, evaluated.cases.iter().all(|case| case.allowed));
    cases.join(" ; ")
}

#[test]
fn a_flow_is_judged_by_the_planner() {
    let model = cluster("");
    let view = folder(&model);
    let asked = [
        ("web-0", "db-0:5432"),
        ("web-0", "db-0:5433"),
        ("web-0", "db-0:5432/udp"),
        ("web-0", "db-0:icmp"),
        ("blog/wiki-0", "shop/db-0:5432"),
        ("db-0", "web-0:80"),
        ("web-0", "192.0.2.99:53/udp"),
        ("web-0", "192.0.2.99:443"),
        ("web-0", "[2001:db8::1]:443"),
        ("10.9.9.9", "db-0:9005"),
        ("10.42.3.7", "db-0:9005"),
        ("wiki-0", "proxy:80"),
    ];
    let lines: Vec<String> =
        asked.iter().map(|(from, to)| format!("{from} → {to}: {}", judged(&view, from, to))).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    web-0 → db-0:5432: allowed (egress of shop/web-0: isolated by shop/default-deny and shop/web; shop/web rule 2 allows it | ingress of shop/db-0: isolated by shop/db-allow and shop/default-deny; shop/db-allow rule 1 allows it)
    web-0 → db-0:5433: denied (egress of shop/web-0: isolated by shop/default-deny and shop/web; no rule allows it | ingress of shop/db-0: isolated by shop/db-allow and shop/default-deny; no rule allows it)
    web-0 → db-0:5432/udp: denied (egress of shop/web-0: isolated by shop/default-deny and shop/web; no rule allows it | ingress of shop/db-0: isolated by shop/db-allow and shop/default-deny; no rule allows it)
    web-0 → db-0:icmp: denied (egress of shop/web-0: isolated by shop/default-deny and shop/web; no rule allows it | ingress of shop/db-0: isolated by shop/db-allow and shop/default-deny; no rule allows it)
    blog/wiki-0 → shop/db-0:5432: allowed (egress of blog/wiki-0: no policy isolates it | ingress of shop/db-0: isolated by shop/db-allow and shop/default-deny; shop/db-allow rule 1 allows it)
    db-0 → web-0:80: denied (egress of shop/db-0: isolated by shop/default-deny; no rule allows it | ingress of shop/web-0: isolated by shop/default-deny; no rule allows it)
    web-0 → 192.0.2.99:53/udp: allowed (egress of shop/web-0: isolated by shop/default-deny and shop/web; shop/web rule 1 allows it)
    web-0 → 192.0.2.99:443: allowed (egress of shop/web-0: isolated by shop/default-deny and shop/web; shop/web rule 3 allows it)
    web-0 → [2001:db8::1]:443: denied (egress of shop/web-0: isolated by shop/default-deny and shop/web; no rule allows it)
    10.9.9.9 → db-0:9005: allowed (ingress of shop/db-0: isolated by shop/db-allow and shop/default-deny; shop/db-allow rule 2 allows it)
    10.42.3.7 → db-0:9005: denied (ingress of shop/db-0: isolated by shop/db-allow and shop/default-deny; no rule allows it)
    wiki-0 → proxy:80: allowed (a pod and its own node always reach each other)
    ");
}

/// What a block allows to one of its addresses it does not to the other.
#[test]
fn a_pod_with_its_nodes_network_is_judged_by_all_its_addresses() {
    let host = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: probe, namespace: blog}\n\
                spec: {nodeName: node-9, hostNetwork: true, containers: [{name: c}]}\n\
                status: {podIP: 192.0.2.9, podIPs: [{ip: 192.0.2.9}, {ip: \"2001:db8::9\"}]}\n";
    let model = cluster(host);
    let view = folder(&model);
    let by_family = |from: &str, to: &str| {
        let told = view.eval(&Question::new(from, to).unwrap()).unwrap();
        let case = |case: &answer::Case| (case.from.map(|ip| ip.is_ipv4()), case.allowed);
        (told.allowed, told.cases.iter().map(case).collect::<Vec<_>>())
    };
    // 0.0.0.0/0 alone may be asked at 443.
    let (v4, v6) = (Some(true), Some(false));
    assert_eq!(by_family("web-0", "probe:443"), (false, vec![(v4, true), (v6, false)]));
    assert_eq!(by_family("web-0", "probe:53/udp"), (true, vec![(v4, true), (v6, true)]));
    assert_eq!(by_family("probe", "db-0:5432"), (false, vec![(v4, false), (v6, false)]));
    // The other end has one family only.
    assert_eq!(by_family("wiki-0", "probe:80"), (true, vec![(v4, true)]));
    assert_eq!(by_family("2001:db8::1", "probe:80"), (true, vec![(v6, true)]));
}

#[test]
fn a_pod_always_reaches_itself_and_its_own_node() {
    let model = cluster("");
    let view = folder(&model);
    let node = "allowed (a pod and its own node always reach each other)";
    assert_eq!(judged(&view, "web-0", "node:22"), node);
    assert_eq!(judged(&view, "node", "web-0:80"), node);
    assert_eq!(judged(&view, "web-0", "192.0.2.1:22"), node);
    assert_eq!(judged(&view, "192.0.2.1", "web-0:80"), node);
    assert_eq!(judged(&view, "web-0", "blog/proxy:22"), node, "it has its node's network");
    assert_eq!(judged(&view, "web-0", "web-0:80"), "allowed (a pod always reaches itself)");
    // Another node is anybody.
    assert!(judged(&view, "192.0.2.1", "db-0:5432").starts_with("denied"));
    let agent = View { node_addresses: &["192.0.2.77".parse().unwrap()], ..view };
    assert!(judged(&agent, "web-0", "192.0.2.77:22").starts_with("denied"), "nobody's");
    let locals = locals();
    let agent = View { node: Some("node-1"), locals: &locals, ..agent };
    assert_eq!(judged(&agent, "web-0", "192.0.2.77:22"), node);
    assert_eq!(judged(&view, "node", "node:1"), "? one end must be a pod, or an address");
}

#[test]
fn a_pod_without_an_address_is_judged_unless_its_address_would_decide() {
    let model = cluster("");
    let view = folder(&model);
    assert!(judged(&view, "web-0", "db-1:5433").starts_with(
        "allowed (egress of shop/web-0: isolated by shop/default-deny and shop/web; shop/web rule 2 allows it"
    ));
    assert!(judged(&view, "web-0", "db-1:5432").starts_with("denied"));
    let two = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: web-1, namespace: shop, labels: {app: web}}\n\
               spec: {containers: [{name: c}]}\n";
    let late = two.replace("web-1, namespace: shop", "late, namespace: blog");
    let model = cluster(&format!("{two}{late}"));
    let view = folder(&model);
    assert_eq!(
        judged(&view, "web-0", "late:443"),
        "? blog/late has no address (yet), by which egress shop/web rule 3 decides: give it one (status.podIP), or ask \
         for an address"
    );
    assert!(judged(&view, "web-0", "late:444").starts_with("denied"));
    let case = view.eval(&Question::new("web-1", "db-1:5433").unwrap()).unwrap();
    assert!(case.allowed && case.cases.len() == 1, "{case:?}");
    assert_eq!((case.cases[0].from, case.cases[0].to), (None, None));
    // The one that is not known would not help: the other end denies it anyhow.
    let told = judged(&view, "web-1", "db-0:9005");
    assert!(told.starts_with("denied (egress of shop/web-1: isolated"), "{told}");
    let note = "note: shop/web-1 has no address (yet), by which ingress shop/db-allow rule 2 decides";
    assert!(told.ends_with(note), "{told}");
}

#[test]
fn what_is_no_question_says_why() {
    let model = cluster("");
    let view = folder(&model);
    let lines: Vec<String> = [
        ("web-0", "db-0"),
        ("web-0", "fd00::1"),
        ("web-0", "db-0:0"),
        ("web-0", "db-0:http"),
        ("web-0", "db-0:80/tpc"),
        ("web-0", "10.96.0.7:5432"),
        ("web0", "db-0:80"),
        ("wiki-0", "[2001:db8::1]:80"),
        ("10.0.0.1", "10.0.0.2:80"),
    ]
    .iter()
    .map(|(from, to)| format!("{from} → {to}: {}", judged(&view, from, to)))
    .collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    web-0 → db-0: ? db-0 is not of the form TO:PORT[/PROTOCOL], as shop/db-0:5432, 10.0.0.1:53/udp, [fd00::1]:80, shop/db-0:icmp
    web-0 → fd00::1: ? fd00::1 is not of the form TO:PORT[/PROTOCOL], as shop/db-0:5432, 10.0.0.1:53/udp, [fd00::1]:80, shop/db-0:icmp
    web-0 → db-0:0: ? 0 is no port: 1 to 65535
    web-0 → db-0:http: ? http is no port: 1 to 65535
    web-0 → db-0:80/tpc: ? tpc is no protocol: tcp, udp or sctp
    web-0 → 10.96.0.7:5432: ? 10.96.0.7 is Service shop/db; policies are about the pods behind it: netd svc show tells them
    web0 → db-0:80: ? there is no pod web0: did you mean shop/web-0?
    wiki-0 → [2001:db8::1]:80: ? one end has IPv4 addresses only, the other IPv6 addresses only
    10.0.0.1 → 10.0.0.2:80: allowed () ; note: neither end is a pod that policies select
    ");
}

#[test]
fn the_sets_of_a_pod_are_those_of_the_whole_plan() {
    let model = cluster("");
    let locals = locals();
    let view = View { node: Some("node-1"), locals: &locals, ..folder(&model) };
    let mut planner = Planner::new();
    planner.update(Input { model: &model, locals: &locals, node: "node-1", node_addresses: &[] });
    for (endpoint, local) in &locals {
        let Some(name) = &local.pod else { continue };
        assert_eq!(view.sets(name), [(*endpoint, planner.desired().pods[endpoint])], "{name}");
    }
    assert_eq!(view.sets(&ObjectName::new("shop", "db-0")), []);
}
