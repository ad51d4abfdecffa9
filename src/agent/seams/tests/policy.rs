//! Policies from a snapshot to packets: planner, reconciler, tables and the real programs.

use super::super::PolicyTables;
use crate::datapath::test_run::Ran;
use crate::datapath::tests::frames::{Segment, read, tcp, udp};
use crate::datapath::tests::rig::{IFINDEX, Rig, isolated, pod};
use crate::ipam::ledger::{Ledger, Recovered, Writer};
use crate::model::{Model, Namespace, ObjectName, Pod, convert};
use crate::policy::LocalPod;
use crate::reconcile::policy::{Config, Inputs, Office, PolicyMetrics, Reconciler, Unprepared};
use crate::store::Store;
use netd_bpf::event::reason;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const SHOT: i32 = 2;
const LONG: Duration = Duration::from_secs(20);

/// Pods `web` (this node) and `client` (another one), dual stack, and policies by their specs.
fn cluster(client_app: &str, policies: &[Value]) -> Arc<Model> {
    let mut model = Model::default();
    let namespace = Namespace { name: "shop".into(), ..Namespace::default() };
    model.namespaces.insert("shop".into(), Arc::new(namespace));
    for (name, app, ips, node) in [
        ("web", "web", ["10.0.0.1", "fd00::1"], "here"),
        ("client", client_app, ["10.1.0.1", "fd01::1"], "there"),
    ] {
        let pod = Pod {
            name: ObjectName::new("shop", name),
            labels: [("app".to_owned(), app.to_owned())].into(),
            node: Some(node.into()),
            ips: ips.map(|ip| ip.parse().unwrap()).to_vec(),
            ..Pod::default()
        };
        model.pods.insert(pod.name.clone(), Arc::new(pod));
    }
    for (n, spec) in policies.iter().enumerate() {
        let object = json!({"metadata": {"namespace": "shop", "name": format!("policy-{n}")}, "spec": spec});
        let policy = convert::network_policy(serde_json::from_value(object).unwrap()).unwrap();
        model.policies.insert(policy.name.clone(), Arc::new(policy));
    }
    Arc::new(model)
}

/// Web sends to clients at port 80 only, and TCP.
fn to_clients() -> Value {
    let clients = json!({"podSelector": {"matchLabels": {"app": "client"}}});
    json!({
        "podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [clients], "ports": [{"port": 80}]}]
    })
}

fn web() -> LocalPod {
    let addresses: Vec<IpAddr> = ["10.0.0.1", "fd00::1"].map(|ip| ip.parse().unwrap()).to_vec();
    LocalPod { endpoint: 1, pod: Some(ObjectName::new("shop", "web")), uid: None, addresses }
}

fn passes(ran: &Ran) -> bool {
    ran.verdict != SHOT
}

#[test]
fn a_pod_obeys_its_policies_from_its_first_packet_and_open_connections_obey_a_new_one() {
    isolated(|| {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(obeys());
    });
}

async fn obeys() {
    let rig = Rig::new();
    // One is a pod that is being added: nothing is known of it. The other would be in no ledger.
    for pod in rig.datapath.pods().unwrap() {
        rig.datapath.remove_pod(&pod).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let opened = Ledger::open(&folder.path().join("ledger.json"), Duration::ZERO, Duration::ZERO).unwrap();
    let (store, ledger) = (Store::new(), Writer::start(opened.ledger).unwrap());
    let found = Recovered {
        attachment: crate::cni::types::Attachment { container_id: "c1".into(), ifname: "eth0".into() },
        pod: web().pod,
        addresses: web().addresses,
        host_name: "nd1".to_owned(),
        endpoint: Some(1),
    };
    ledger.commit(move |state, clock| state.adopt(found, "netd", clock).map(drop)).await.unwrap().unwrap();
    let (office, handle) = Office::open(store.subscribe());
    let tables = PolicyTables(Arc::clone(&rig.datapath));
    let addresses = tokio::sync::watch::Sender::new(Arc::new(vec!["192.0.2.1".parse().unwrap()]));
    let inputs =
        Inputs { snapshots: store.subscribe(), pods: ledger.subscribe(), addresses: addresses.subscribe() };
    let all = (PolicyTables(Arc::clone(&rig.datapath)), PolicyMetrics::default());
    let reconciler = Reconciler::new(Config::new(tables.limits()), "here".to_owned(), inputs, office, all);
    let cancel = CancellationToken::new();
    let task = tokio::spawn(reconciler.run(cancel.clone()));

    // Unsynced: rows that are written all the same let nothing pass.
    let error = handle.prepare(web(), Duration::from_millis(10)).await.unwrap_err();
    assert!(matches!(error, Unprepared::Unsynced(_)));
    rig.datapath.upsert_pod(&pod(IFINDEX, 1, "10.0.0.1", "fd00::1")).unwrap();
    let sends = |from: &str, to: &str, segment| passes(&rig.pod_sends(&tcp(from, to, segment)));
    assert!(!sends("10.0.0.1:1000", "10.1.0.1:80", Segment::Syn));
    assert_eq!(rig.drops(reason::EGRESS_DENIED), 1);

    store.publish(cluster("client", &[to_clients()]));
    handle.prepare(web(), LONG).await.unwrap();
    let mut status = handle.status.clone();
    for (from, client, other) in
        [("10.0.0.1", "10.1.0.1", "10.1.0.9"), ("[fd00::1]", "[fd01::1]", "[fd01::9]")]
    {
        assert!(sends(&format!("{from}:1001"), &format!("{client}:80"), Segment::Syn), "{client}");
        assert!(!sends(&format!("{from}:1001"), &format!("{client}:81"), Segment::Syn), "{client}");
        assert!(!sends(&format!("{from}:1001"), &format!("{other}:80"), Segment::Syn), "{other}");
        let query = udp(&format!("{from}:1001"), &format!("{client}:80"));
        assert!(!passes(&rig.pod_sends(&query)), "UDP to {client}");
    }
    // The node itself, always.
    assert!(sends("10.0.0.1:1002", "192.0.2.1:22", Segment::Syn));
    let back = rig.pod_receives(&tcp("10.1.0.1:80", "10.0.0.1:1001", Segment::SynAck));
    assert!(passes(&back));
    assert_eq!(read(&back.packet).source.to_string(), "10.1.0.1:80");
    assert!(sends("10.0.0.1:1001", "10.1.0.1:80", Segment::Ack));

    // A label goes: the open connection is cut with its next packet, of either direction, and is back with the label.
    let mut generation = 1;
    for (app, passing) in [("other", false), ("client", true)] {
        store.publish(cluster(app, &[to_clients()]));
        generation += 1;
        let wait = status.wait_for(|status| status.generation == Some(generation));
        tokio::time::timeout(LONG, wait).await.unwrap().unwrap();
        assert_eq!(sends("10.0.0.1:1001", "10.1.0.1:80", Segment::Ack), passing, "{app}");
        let back = rig.pod_receives(&tcp("10.1.0.1:80", "10.0.0.1:1001", Segment::Ack));
        assert_eq!(passes(&back), passing, "{app}");
    }
    // A policy that denies all, and none at all.
    for (policies, passing) in
        [(vec![json!({"podSelector": {}, "policyTypes": ["Egress"]})], false), (Vec::new(), true)]
    {
        store.publish(cluster("client", &policies));
        generation += 1;
        let wait = status.wait_for(|status| status.generation == Some(generation));
        tokio::time::timeout(LONG, wait).await.unwrap().unwrap();
        assert_eq!(sends("10.0.0.1:1001", "10.1.0.1:80", Segment::Ack), passing, "{policies:?}");
        assert_eq!(sends("10.0.0.1:1003", "10.1.0.9:443", Segment::Syn), passing, "{policies:?}");
    }
    // An audit finds what is there as it is wanted.
    store.publish(cluster("client", &[to_clients()]));
    tokio::time::timeout(LONG, status.wait_for(|status| status.sets == 1)).await.unwrap().unwrap();
    handle.audit();
    let audited = tokio::time::timeout(LONG, status.wait_for(|status| status.audits == 1)).await;
    let audited = Arc::clone(&audited.unwrap().unwrap());
    assert_eq!((audited.drift, &audited.error), (0, &None), "{:?}", audited.last_drift);
    cancel.cancel();
    task.await.unwrap().unwrap();
}
