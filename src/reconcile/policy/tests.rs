use super::*;
use crate::cni::types::Attachment;
use crate::ipam::ledger::{Ledger, Recovered, Writer};
use crate::model::{Namespace, Pod, convert};
use crate::store::Store;
use netd_bpf::policy::set;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Mutex;

const LIMITS: Limits = Limits { rows: 16, ranges: 16, identities: 16, blocks: 8 };
const NEVER: Duration = Duration::from_secs(3600);

/// What the kernel holds when the agent is gone, and what was done to it.
#[derive(Debug, Default)]
struct Rows {
    pods: BTreeMap<u32, Sets>,
    rows: BTreeMap<PolicyKey, PolicyRow>,
    ranges: BTreeMap<u32, Range>,
    identities: BTreeMap<Addr, IdentityRow>,
    blocks: BTreeMap<Block, u64>,
    /// Calls by name, reads included.
    calls: Vec<&'static str>,
    /// Calls that are refused.
    broken: BTreeSet<&'static str>,
}

#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<Rows>>);

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(&'static str, #[source] std::io::Error);

impl Memory {
    fn with<T>(&self, f: impl FnOnce(&mut Rows) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    fn call<T>(&self, name: &'static str, f: impl FnOnce(&mut Rows) -> T) -> Result<T, Refused> {
        self.with(|rows| {
            rows.calls.push(name);
            if rows.broken.contains(name) {
                return Err(Refused(name, std::io::Error::from_raw_os_error(libc::EPERM)));
            }
            Ok(f(rows))
        })
    }

    /// Calls since the last time, without reads.
    fn written(&self) -> Vec<&'static str> {
        let calls = self.with(|rows| std::mem::take(&mut rows.calls));
        calls.into_iter().filter(|call| !call.starts_with("read")).collect()
    }

    fn sets(&self, endpoint: u32) -> Option<Sets> {
        self.with(|rows| rows.pods.get(&endpoint).copied())
    }

    /// What the program would find for this pod and direction.
    fn has_rows(&self, set: u64) -> bool {
        self.with(|rows| rows.rows.keys().any(|key| key.set == set))
    }
}

impl PolicyMaps for Memory {
    type Error = Refused;

    fn set_ranges(&self, base: u32, ranges: &[Range]) -> Result<(), Refused> {
        self.call("set_ranges", |rows| rows.ranges.extend((base..).zip(ranges.iter().copied())))
    }

    fn set_rows(&self, new: &[(PolicyKey, PolicyRow)]) -> Result<(), Refused> {
        self.call("set_rows", |rows| rows.rows.extend(new.iter().copied()))
    }

    fn delete_rows(&self, keys: &[PolicyKey]) -> Result<(), Refused> {
        self.call("delete_rows", |rows| rows.rows.retain(|key, _| !keys.contains(key)))
    }

    fn set_identities(&self, new: &[(Addr, IdentityRow)]) -> Result<(), Refused> {
        self.call("set_identities", |rows| rows.identities.extend(new.iter().copied()))
    }

    fn delete_identities(&self, gone: &[Addr]) -> Result<(), Refused> {
        self.call("delete_identities", |rows| rows.identities.retain(|addr, _| !gone.contains(addr)))
    }

    fn set_blocks(&self, new: &[(Block, u64)]) -> Result<(), Refused> {
        self.call("set_blocks", |rows| rows.blocks.extend(new.iter().copied()))
    }

    fn delete_blocks(&self, gone: &[Block]) -> Result<(), Refused> {
        self.call("delete_blocks", |rows| rows.blocks.retain(|block, _| !gone.contains(block)))
    }

    fn set_pods(&self, pods: &[(u32, Sets)]) -> Result<(), Refused> {
        self.call("set_pods", |rows| rows.pods.extend(pods.iter().copied()))
    }

    fn remove_pods(&self, endpoints: &[u32]) -> Result<(), Refused> {
        self.call("remove_pods", |rows| rows.pods.retain(|endpoint, _| !endpoints.contains(endpoint)))
    }

    fn bump_epoch(&self) -> Result<(), Refused> {
        self.call("bump_epoch", |_| ())
    }

    fn ranges(&self, base: u32, count: u32) -> Result<Vec<Range>, Refused> {
        let range = |rows: &Rows, at| rows.ranges.get(&at).copied().unwrap_or_default();
        self.call("read ranges", |rows| (base..base + count).map(|at| range(rows, at)).collect())
    }

    fn rows(&self) -> Result<Vec<(PolicyKey, PolicyRow)>, Refused> {
        self.call("read rows", |rows| rows.rows.iter().map(|(key, row)| (*key, *row)).collect())
    }

    fn identities(&self) -> Result<Vec<(Addr, IdentityRow)>, Refused> {
        self.call("read identities", |rows| rows.identities.iter().map(|(a, row)| (*a, *row)).collect())
    }

    fn blocks(&self) -> Result<Vec<(Block, u64)>, Refused> {
        self.call("read blocks", |rows| rows.blocks.iter().map(|(b, n)| (*b, *n)).collect())
    }

    fn pods(&self) -> Result<BTreeMap<u32, Sets>, Refused> {
        self.call("read pods", |rows| rows.pods.clone())
    }
}

/// Web may be reached at port 80 from pods that are `app=client`; all else of the namespace not at all.
fn cluster(policies: &[(&str, Value)]) -> Model {
    let mut model = Model::default();
    let namespace = Namespace { name: "shop".into(), ..Namespace::default() };
    model.namespaces.insert("shop".into(), Arc::new(namespace));
    for (name, app, ip, node) in [
        ("web", "web", "10.0.0.1", "here"),
        ("client", "client", "10.0.1.1", "there"),
        ("odd", "odd", "10.0.1.2", "there"),
    ] {
        let pod = Pod {
            name: ObjectName::new("shop", name),
            labels: [("app".to_owned(), app.to_owned())].into(),
            node: Some(node.into()),
            ips: vec![ip.parse().unwrap()],
            ..Pod::default()
        };
        model.pods.insert(pod.name.clone(), Arc::new(pod));
    }
    for (name, spec) in policies {
        let object = json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec});
        let policy = convert::network_policy(serde_json::from_value(object).unwrap()).unwrap();
        model.policies.insert(policy.name.clone(), Arc::new(policy));
    }
    model
}

fn from_clients() -> (&'static str, Value) {
    let clients = json!({"podSelector": {"matchLabels": {"app": "client"}}});
    let ports = json!([{"port": 80}]);
    (
        "web",
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": [{"from": [clients], "ports": ports}]}),
    )
}

/// All that is wanted is in the kernel.
fn is_well(status: &PolicyStatus) -> bool {
    status.generation.is_some()
        && status.error.is_none()
        && status.closed.is_empty()
        && status.left_out.is_empty()
        && status.problems.is_empty()
}

fn local(endpoint: u32, pod: &str, ip: &str) -> LocalPod {
    let addresses = vec![ip.parse().unwrap()];
    LocalPod { endpoint, pod: Some(ObjectName::new("shop", pod)), uid: None, addresses }
}

/// A reconciler at work, over maps that outlive it.
struct Running {
    store: Store,
    ledger: Writer,
    _folder: tempfile::TempDir,
    handle: Handle,
    office: Arc<Office>,
    metrics: PolicyMetrics,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Running {
    fn start(maps: &Memory, audit: Duration) -> Self {
        Self::with(maps, audit, LIMITS)
    }

    fn with(maps: &Memory, audit: Duration, limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.json");
        let opened = Ledger::open(&path, Duration::ZERO, Duration::ZERO).unwrap();
        let (store, ledger) = (Store::new(), Writer::start(opened.ledger).unwrap());
        let config = Config {
            quarantine: Duration::from_millis(50),
            audit,
            retry_first: Duration::from_millis(5),
            retry_longest: Duration::from_millis(20),
            ..Config::new(limits)
        };
        let addresses = watch::Sender::new(Arc::new(vec!["192.0.2.1".parse().unwrap()])).subscribe();
        let inputs = Inputs { snapshots: store.subscribe(), pods: ledger.subscribe(), addresses };
        let (office, handle) = Office::open(store.subscribe());
        let metrics = PolicyMetrics::default();
        let all = (maps.clone(), metrics.clone());
        let reconciler = Reconciler::new(config, "here".to_owned(), inputs, Arc::clone(&office), all);
        let cancel = CancellationToken::new();
        let task = tokio::spawn(reconciler.run(cancel.clone()));
        Self { store, ledger, _folder: folder, handle, office, metrics, cancel, task }
    }

    /// Writes a pod into the ledger, as an ADD does.
    async fn attach(&self, pod: &LocalPod) {
        let found = Recovered {
            attachment: attachment(pod.endpoint),
            pod: pod.pod.clone(),
            addresses: pod.addresses.clone(),
            host_name: format!("nd{}", pod.endpoint),
            endpoint: Some(pod.endpoint),
        };
        let adopted = self.ledger.commit(move |state, clock| state.adopt(found, "netd", clock)).await;
        assert_eq!(adopted.unwrap().unwrap().endpoint, pod.endpoint);
    }

    async fn detach(&self, endpoint: u32) {
        let gone = attachment(endpoint);
        self.ledger.commit(move |state, clock| drop(state.release(&gone, clock))).await.unwrap();
    }

    fn publish(&self, policies: &[(&str, Value)]) {
        self.store.publish(Arc::new(cluster(policies)));
    }

    async fn until(&mut self, what: impl FnMut(&Arc<PolicyStatus>) -> bool) -> Arc<PolicyStatus> {
        let wait = self.handle.status.wait_for(what);
        let status = tokio::time::timeout(Duration::from_secs(20), wait).await;
        Arc::clone(&status.expect("it happens").unwrap())
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn attachment(endpoint: u32) -> Attachment {
    Attachment { container_id: format!("c{endpoint}"), ifname: "eth0".to_owned() }
}

/// Until the maps say so; they tell nobody.
async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn at(calls: &[&str], name: &str) -> usize {
    calls.iter().position(|call| *call == name).unwrap_or_else(|| panic!("{name} is not in {calls:?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_waits_for_the_source_and_then_for_its_rows() {
    let maps = Memory::default();
    let running = Running::start(&maps, Duration::from_millis(5));
    let web = local(7, "web", "10.0.0.1");
    running.attach(&web).await;
    let error = running.handle.prepare(web.clone(), Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(error.to_string(), "the source of state is not synced after 20ms");
    assert!(maps.with(|rows| rows.calls.is_empty()), "nothing is read and nothing written");

    let waiting = tokio::spawn({
        let (handle, web) = (running.handle.clone(), web.clone());
        async move { handle.prepare(web, Duration::from_secs(20)).await }
    });
    running.publish(&[from_clients()]);
    waiting.await.unwrap().unwrap();
    let sets = maps.sets(7).unwrap();
    assert_eq!(sets.egress, set::OPEN);
    assert!(sets.ingress & set::MARK != 0 && maps.has_rows(sets.ingress), "{sets:?}");
    let calls = maps.written();
    // One row before all others tells that a change is under way.
    let rows = calls.iter().rposition(|call| *call == "set_rows").unwrap();
    assert!(at(&calls, "set_ranges") < rows && rows < at(&calls, "set_pods"), "{calls:?}");
    assert!(at(&calls, "set_identities") < at(&calls, "set_pods"), "{calls:?}");
    // One that is known is told at once.
    running.handle.prepare(web, Duration::ZERO).await.unwrap();
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pods_at_once_are_all_answered() {
    let maps = Memory::default();
    let running = Running::with(&maps, NEVER, Limits { identities: 256, ..LIMITS });
    running.publish(&[from_clients()]);
    let mut adds = tokio::task::JoinSet::new();
    for n in 1..100 {
        let pod = local(n, if n % 2 == 0 { "web" } else { "odd" }, &format!("10.0.0.{n}"));
        running.attach(&pod).await;
        let (handle, maps) = (running.handle.clone(), maps.clone());
        adds.spawn(async move {
            handle.prepare(pod, Duration::from_secs(20)).await.unwrap();
            let sets = maps.sets(n).expect("said before it is answered");
            assert_eq!(sets == Sets::OPEN, n % 2 == 1, "{n}: {sets:?}");
        });
    }
    while let Some(done) = adds.join_next().await {
        done.unwrap();
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_kernel_refuses_lets_no_pod_in_and_heals_by_itself() {
    let maps = Memory::default();
    let mut running = Running::start(&maps, NEVER);
    maps.with(|rows| rows.broken.insert("set_rows"));
    let web = local(7, "web", "10.0.0.1");
    running.attach(&web).await;
    running.publish(&[from_clients()]);
    let waiting = tokio::spawn({
        let (handle, web) = (running.handle.clone(), web.clone());
        async move { handle.prepare(web, Duration::from_secs(20)).await }
    });
    let status = running.until(|status| status.failures > 2).await;
    let error = status.error.clone().unwrap();
    assert!(error.contains("setting policy row") && error.ends_with("(os error 1)"), "{error}");
    assert_eq!(status.generation, None);
    let calls = maps.written();
    assert!(
        !calls.contains(&"set_pods") && !calls.contains(&"set_identities"),
        "the rest of the plan: {calls:?}"
    );
    assert!(!waiting.is_finished());
    assert_eq!(maps.sets(7), None);
    maps.with(|rows| rows.broken.clear());
    waiting.await.unwrap().unwrap();
    let status = running.until(|status| is_well(status)).await;
    assert_eq!((status.failures, status.isolated, status.sets), (0, 1, 1));
    assert!(maps.has_rows(maps.sets(7).unwrap().ingress));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_policies_ask_for_labels_a_pod_waits_for_its_own() {
    let maps = Memory::default();
    let mut running = Running::start(&maps, NEVER);
    let late = local(7, "late", "10.0.0.1");
    running.attach(&late).await;
    // Nobody asks for a label.
    running.publish(&[("all", json!({"podSelector": {}}))]);
    running.handle.prepare(late.clone(), Duration::ZERO).await.unwrap();
    assert_eq!(maps.sets(7).unwrap().egress, set::OPEN);
    running.publish(&[from_clients()]);
    let error = running.handle.prepare(late.clone(), Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the source does not know this pod shop/late after 20ms, and policies of its namespace may ask for its labels"
    );
    let waiting = tokio::spawn({
        let (handle, late) = (running.handle.clone(), late.clone());
        async move { handle.prepare(late, Duration::from_secs(20)).await }
    });
    let mut model = cluster(&[from_clients()]);
    let web = &model.pods[&ObjectName::new("shop", "web")];
    let pod = Pod { name: late.pod.clone().unwrap(), uid: "first".into(), ..Pod::clone(web) };
    model.pods.insert(pod.name.clone(), Arc::new(pod));
    running.store.publish(Arc::new(model));
    waiting.await.unwrap().unwrap();
    assert!(maps.has_rows(maps.sets(7).unwrap().ingress));
    // Made anew under the same name: what the source has is of the former one.
    let again = |uid: &str| LocalPod { uid: Some(uid.into()), ..late.clone() };
    running.handle.prepare(again("first"), Duration::ZERO).await.unwrap();
    let error = running.handle.prepare(again("second"), Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, Unprepared::Unknown(..)), "{error}");
    // Another namespace, no pod, and a source without any.
    let elsewhere = LocalPod { pod: Some(ObjectName::new("other", "pod")), ..local(8, "", "10.0.0.2") };
    let nobody = LocalPod { pod: None, ..local(9, "", "10.0.0.3") };
    for pod in [elsewhere, nobody] {
        running.attach(&pod).await;
        running.handle.prepare(pod.clone(), Duration::ZERO).await.unwrap();
        assert_eq!(maps.sets(pod.endpoint), Some(Sets::OPEN));
    }
    let mut bare = cluster(&[from_clients()]);
    bare.pods = crate::model::Objects::default();
    running.store.publish(Arc::new(bare));
    let error = running.handle.prepare(late, Duration::ZERO).await.unwrap_err();
    assert!(matches!(error, Unprepared::Unknown(..)), "{error}");
    running.until(|status| !status.problems.is_empty()).await;
    assert_eq!(maps.sets(7).unwrap().ingress, set::CLOSED);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_has_waited_long_enough_is_told_why() {
    // No reconciler: nobody answers.
    let store = Store::new();
    let (office, handle) = Office::open(store.subscribe());
    let web = local(7, "web", "10.0.0.1");
    store.publish(Arc::new(cluster(&[])));
    let error = handle.prepare(web.clone(), Duration::ZERO).await.unwrap_err();
    assert_eq!(error, Unprepared::Late(PATIENCE));
    office.status.send_replace(Arc::new(PolicyStatus {
        error: Some("setting policy row 1/0: POLICY: no".to_owned()),
        ..PolicyStatus::default()
    }));
    let error = handle.prepare(web.clone(), Duration::from_secs(30)).await.unwrap_err();
    assert_eq!(error.to_string(), "the policy tables cannot be written: setting policy row 1/0: POLICY: no");
    office.desk.close();
    assert_eq!(handle.prepare(web, Duration::from_secs(30)).await.unwrap_err(), Unprepared::Stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn until_the_source_has_spoken_pods_keep_what_they_have() {
    let maps = Memory::default();
    let mut first = Running::start(&maps, NEVER);
    let web = local(7, "web", "10.0.0.1");
    first.attach(&web).await;
    first.publish(&[from_clients()]);
    first.handle.prepare(web.clone(), Duration::ZERO).await.unwrap();
    first.until(|status| is_well(status)).await;
    first.stop().await;
    let before = maps.with(|rows| (rows.pods.clone(), rows.rows.clone()));
    maps.written();

    let mut second = Running::start(&maps, Duration::from_millis(1));
    second.attach(&web).await;
    second.handle.audit();
    let error = second.handle.prepare(web, Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, Unprepared::Unsynced(_)), "{error:?}");
    assert!(maps.with(|rows| rows.calls.is_empty()));
    // The same cluster: nothing is written but what cannot be known to stand.
    second.publish(&[from_clients()]);
    second.until(|status| status.generation.is_some()).await;
    assert_eq!(maps.with(|rows| (rows.pods.clone(), rows.rows.clone())), before);
    let calls = maps.written();
    assert!(calls.iter().all(|call| *call == "bump_epoch"), "{calls:?}");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_reaches_the_kernel_and_the_end_of_a_pod_is_forgotten() {
    let maps = Memory::default();
    let mut running = Running::start(&maps, NEVER);
    running.publish(&[]);
    let web = local(7, "web", "10.0.0.1");
    running.attach(&web).await;
    running.handle.prepare(web, Duration::ZERO).await.unwrap();
    assert_eq!(maps.sets(7), Some(Sets::OPEN));
    maps.written();
    running.publish(&[from_clients()]);
    running.until(|status| status.sets == 1).await;
    let sets = maps.sets(7).unwrap();
    assert!(maps.has_rows(sets.ingress));
    let calls = maps.written();
    assert!(
        at(&calls, "set_rows") < at(&calls, "set_pods") && at(&calls, "set_pods") < at(&calls, "bump_epoch")
    );

    // What numbers stood for is remembered.
    let name = running.handle.names.set(sets.ingress).unwrap();
    assert_eq!(name.policies, [ObjectName::new("shop", "web")]);
    let rule = maps.with(|rows| rows.ranges.values().next().unwrap().decision.rule);
    running.publish(&[]);
    running.until(|status| status.generation == Some(3)).await;
    eventually("the rows are gone", || !maps.has_rows(sets.ingress)).await;
    assert_eq!(maps.sets(7), Some(Sets::OPEN));
    assert_eq!(running.handle.names.set(sets.ingress), Some(name));
    assert_eq!(running.handle.names.rule(rule).unwrap().to_string(), "shop/web ingress[0]");
    assert_eq!(running.handle.names.rule(rule.wrapping_add(1)), None);

    running.detach(7).await;
    eventually("the pod is forgotten", || maps.sets(7).is_none()).await;
    // The lists' quarantine ends by itself.
    let status =
        running.until(|status| status.usages.ranges.held == 0 && status.usages.ranges.used == 0).await;
    assert_eq!((status.isolated, status.policies), (0, 0));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_tells_and_repairs_what_others_changed() {
    let maps = Memory::default();
    let mut running = Running::start(&maps, Duration::from_millis(20));
    let web = local(7, "web", "10.0.0.1");
    running.attach(&web).await;
    running.publish(&[from_clients()]);
    running.handle.prepare(web, Duration::ZERO).await.unwrap();
    let status = running.until(|status| status.audits > 2).await;
    assert_eq!(status.drift, 0, "{:?}", status.last_drift);
    // A list that is written anew has another place.
    let state = |rows: &mut Rows| {
        let keys: Vec<PolicyKey> = rows.rows.keys().copied().collect();
        (rows.pods.clone(), keys, rows.identities.clone())
    };
    let before = maps.with(state);
    maps.with(|rows| {
        rows.calls.clear();
        rows.pods.insert(7, Sets::OPEN);
        let key = *rows.rows.keys().next().unwrap();
        rows.rows.remove(&key);
        rows.identities.values_mut().next().unwrap().seal ^= 1;
    });
    let status = running.until(|status| status.drift > 0).await;
    assert!(status.last_drift.contains(&"policy sets of endpoint 7 differ".to_owned()), "{status:?}");
    let (drift, audits) = (status.drift, status.audits);
    let status = running.until(|status| status.audits > audits + 2).await;
    assert_eq!(status.drift, drift, "the repair lasts");
    assert_eq!(maps.with(state), before);
    assert!(maps.written().contains(&"bump_epoch"), "whoever was judged meanwhile is judged anew");

    // On request, too.
    running.handle.audit();
    running.until(|status| status.audits > audits + 3).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_whose_rows_find_no_room_is_closed_and_named() {
    let maps = Memory::default();
    let mut running = Running::with(&maps, NEVER, Limits { ranges: 2, ..LIMITS });
    let web = local(7, "web", "10.0.0.1");
    running.attach(&web).await;
    let ports: Vec<Value> = (0..5).map(|n| json!({"port": 2 * n + 1})).collect();
    let wide = json!({"podSelector": {}, "ingress": [{"ports": ports}]});
    running.publish(&[("wide", wide)]);
    running.handle.prepare(web, Duration::ZERO).await.unwrap();
    assert_eq!(maps.sets(7), Some(Sets { ingress: set::CLOSED, egress: set::OPEN }));
    let status = running.until(|status| !status.closed.is_empty()).await;
    let told: Vec<String> = status.closed.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "pod shop/web is closed for ingress: NetworkPolicy shop/wide takes 5 ranges in one piece of 2 (datapath.policy_ranges)"
        ]
    );
    assert_eq!((status.closed_pods(), is_well(&status)), (1, false));
    running.publish(&[from_clients()]);
    let status = running.until(|status| is_well(status)).await;
    assert_eq!(status.generation, Some(2));
    assert!(maps.has_rows(maps.sets(7).unwrap().ingress));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_have_the_figures_of_the_status() {
    let maps = Memory::default();
    let mut running = Running::start(&maps, NEVER);
    let web = local(7, "web", "10.0.0.1");
    running.attach(&web).await;
    running.publish(&[from_clients()]);
    running.handle.prepare(web, Duration::ZERO).await.unwrap();
    running.until(|status| is_well(status)).await;
    let mut registry = prometheus_client::registry::Registry::with_prefix("netd");
    running.metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        "netd_policy_generation 1",
        "netd_policy_policies 1",
        "netd_policy_isolated_pods 1",
        "netd_policy_sets 1",
        "netd_policy_rows{table=\"policy_ranges\"} 1",
        "netd_policy_rows_limit{table=\"blocks\"} 8",
        "netd_policy_closed_pods 0",
        "netd_policy_failing 0",
        "netd_policy_drift_total 0",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
    }
    running.stop().await;
}

#[tokio::test]
async fn who_asks_a_stopped_reconciler_is_told_at_once() {
    let maps = Memory::default();
    let running = Running::start(&maps, NEVER);
    running.publish(&[]);
    let (handle, office) = (running.handle.clone(), Arc::clone(&running.office));
    let store = running.store.subscribe();
    running.stop().await;
    assert!(store.borrow().synced && Arc::strong_count(&office) >= 1);
    let error = handle.prepare(local(7, "web", "10.0.0.1"), Duration::from_secs(20)).await.unwrap_err();
    assert_eq!(error, Unprepared::Stopped);
}
