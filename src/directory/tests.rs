//! The source on real folders with real inotify events.

use super::*;
use crate::model::ObjectName;
use crate::store::Store;
use nix::unistd::{Uid, setfsuid};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

struct Fixture {
    dir: TempDir,
    models: watch::Sender<Option<Arc<Model>>>,
    reports: watch::Sender<Report>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Fixture {
    fn start(prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("state");
        fs::create_dir(&root).unwrap();
        prepare(&root);
        Self::start_in(dir)
    }

    fn start_in(dir: TempDir) -> Self {
        let cancel = CancellationToken::new();
        let (models, reports) = (watch::Sender::new(None), watch::Sender::new(Report::default()));
        let (model_out, report_out) = (models.clone(), reports.clone());
        let task = tokio::spawn(run(
            Config { path: dir.path().join("state") },
            // As the store does: only what differs is news.
            move |model: Arc<Model>| {
                model_out.send_if_modified(|last| {
                    let differs = last.as_ref() != Some(&model);
                    *last = Some(model);
                    differs
                });
            },
            move |report| {
                report_out.send_replace(report);
            },
            cancel.clone(),
        ));
        Self { dir, models, reports, cancel, task }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn write(&self, name: &str, text: &str) {
        // As a careful editor does it.
        let aside = self.dir.path().join("aside");
        fs::write(&aside, text).unwrap();
        fs::rename(aside, self.root().join(name)).unwrap();
    }

    /// Waits until the nodes in force are these: for less than the time between full scans, so what this
    /// sees is what inotify told.
    async fn nodes(&self, expected: &[&str]) {
        const { assert!(RESCAN.as_secs() > 20) };
        let mut watch = self.models.subscribe();
        let wait = watch.wait_for(|model| {
            model
                .as_ref()
                .is_some_and(|model| model.nodes.keys().map(|name| &**name).eq(expected.iter().copied()))
        });
        if tokio::time::timeout(Duration::from_secs(10), wait).await.is_err() {
            panic!("{:?}\n{:?}", self.models.borrow(), self.reports.borrow());
        }
    }

    /// Waits for a state of the problems.
    async fn problems(&self, what: impl Fn(&Report) -> bool) -> Report {
        let mut watch = self.reports.subscribe();
        let report =
            tokio::time::timeout(Duration::from_secs(10), watch.wait_for(|report| what(report))).await;
        match report {
            Ok(report) => report.unwrap().clone(),
            Err(_) => panic!("{:?}", self.reports.borrow()),
        }
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

fn node(name: &str) -> String {
    format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n")
}

fn broken_line(report: &Report) -> Option<(String, u32)> {
    let problem = report.errors().next()?;
    Some((problem.path.file_name()?.to_str()?.to_owned(), problem.line?))
}

#[test]
fn one_change_beside_the_files_delays_no_look_and_many_do() {
    let start = Instant::now();
    let mut pace = Pace { last: start, idle: false };
    let looks = [(false, DEBOUNCE), (true, Duration::ZERO), (true, DEBOUNCE), (true, DEBOUNCE)];
    let again = [(false, DEBOUNCE), (true, Duration::ZERO)];
    let mut now = start;
    for (n, (idle, wait)) in looks.into_iter().chain(again).enumerate() {
        now += DEBOUNCE;
        pace.looked(idle, now);
        assert_eq!(pace.wait(now), wait, "after look {n}");
    }
    assert_eq!(pace.wait(now + DEBOUNCE), Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_folder_is_an_empty_model() {
    let fixture = Fixture::start(|_| {});
    fixture.nodes(&[]).await;
    assert!(fixture.reports.borrow().synced);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_take_effect_at_once() {
    let fixture = Fixture::start(|root| {
        fs::create_dir_all(root.join("sub/deep")).unwrap();
        fs::write(root.join("sub/deep/a.yml"), node("a")).unwrap();
        fs::write(
            root.join("b.json"),
            "{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"b\"}}",
        )
        .unwrap();
        for not_read in [".hidden.yaml", "notes.txt", "c.yaml~"] {
            fs::write(root.join(not_read), "kind: [").unwrap();
        }
        fs::create_dir(root.join(".git")).unwrap();
        fs::write(root.join(".git/x.yaml"), "kind: [").unwrap();
        fs::create_dir(root.join("folder.yaml")).unwrap();
    });
    fixture.nodes(&["a", "b"]).await;
    assert_eq!(fixture.reports.borrow().problems, []);

    fixture.write("c.yaml", &node("c"));
    fixture.nodes(&["a", "b", "c"]).await;
    // Plainly written into, in a folder that is new.
    fs::create_dir(fixture.root().join("new")).unwrap();
    fs::write(fixture.root().join("new/d.yaml"), node("d")).unwrap();
    fixture.nodes(&["a", "b", "c", "d"]).await;
    fs::write(fixture.root().join("new/d.yaml"), node("e")).unwrap();
    fixture.nodes(&["a", "b", "c", "e"]).await;
    fs::remove_dir_all(fixture.root().join("new")).unwrap();
    fixture.nodes(&["a", "b", "c"]).await;
    fs::remove_file(fixture.root().join("b.json")).unwrap();
    fixture.nodes(&["a", "c"]).await;
    fixture.stop().await;
}

/// File systems give the number of a removed folder to the next one at once: the watch is gone all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_made_anew_or_moved_back_is_watched_again() {
    let fixture = Fixture::start(|_| {});
    let sub = fixture.root().join("sub");
    for turn in 0..3 {
        fs::create_dir(&sub).unwrap();
        fs::write(sub.join("a.yaml"), node("a")).unwrap();
        fixture.nodes(&["a"]).await;
        fs::write(sub.join("b.yaml"), node(&format!("b{turn}"))).unwrap();
        fixture.nodes(&["a", &format!("b{turn}")]).await;
        fs::remove_dir_all(&sub).unwrap();
        if turn != 1 {
            fixture.nodes(&[]).await;
        }
    }
    fs::create_dir(&sub).unwrap();
    fs::write(sub.join("a.yaml"), node("a")).unwrap();
    fixture.nodes(&["a"]).await;
    let away = fixture.dir.path().join("away");
    fs::rename(&sub, &away).unwrap();
    fixture.nodes(&[]).await;
    fs::rename(&away, &sub).unwrap();
    fixture.nodes(&["a"]).await;
    fs::write(sub.join("a.yaml"), node("c")).unwrap();
    fixture.nodes(&["c"]).await;
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_file_is_named_and_changes_nothing_until_mended() {
    let fixture = Fixture::start(|root| fs::write(root.join("a.yaml"), node("a")).unwrap());
    fixture.nodes(&["a"]).await;
    fixture.write("a.yaml", "kind: Node\nmetadata: [\n");
    let report = fixture.problems(|report| report.errors().next().is_some()).await;
    assert_eq!(broken_line(&report), Some(("a.yaml".to_owned(), 2)));
    assert!(report.synced);
    fixture.write("b.yaml", &node("b"));
    fixture.nodes(&["a", "b"]).await;
    fixture.write("a.yaml", &node("c"));
    fixture.nodes(&["b", "c"]).await;
    fixture.problems(|report| report.problems.is_empty()).await;
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_broken_file_waits_for_it() {
    let fixture = Fixture::start(|root| {
        fs::write(root.join("a.yaml"), node("a")).unwrap();
        fs::write(root.join("b.yaml"), node("B")).unwrap();
    });
    let report = fixture.problems(|report| !report.problems.is_empty()).await;
    assert!(!report.synced);
    assert_eq!(broken_line(&report), Some(("b.yaml".to_owned(), 4)));
    assert!(fixture.models.borrow().is_none());
    fixture.write("b.yaml", &node("b"));
    fixture.nodes(&["a", "b"]).await;
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_in_two_files_names_both() {
    let fixture = Fixture::start(|root| fs::write(root.join("b.yaml"), node("x")).unwrap());
    fixture.nodes(&["x"]).await;
    fixture.write("a.yaml", &(node("x") + &node("y")));
    let report = fixture.problems(|report| !report.problems.is_empty()).await;
    let text = report.problems[0].to_string();
    assert!(text.contains("a.yaml:2:1: Node x: is also in ") && text.ends_with("b.yaml:2"), "{text}");
    // A rename is no duplicate.
    fs::remove_file(fixture.root().join("a.yaml")).unwrap();
    fixture.problems(|report| report.problems.is_empty()).await;
    fs::rename(fixture.root().join("b.yaml"), fixture.root().join("z.yaml")).unwrap();
    fixture.write("c.yaml", &node("y"));
    fixture.nodes(&["x", "y"]).await;
    assert_eq!(fixture.reports.borrow().problems, []);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vanished_folder_leaves_the_last_state_and_may_come_back() {
    let fixture = Fixture::start(|root| fs::write(root.join("a.yaml"), node("a")).unwrap());
    fixture.nodes(&["a"]).await;
    fs::rename(fixture.root(), fixture.dir.path().join("elsewhere")).unwrap();
    let report = fixture.problems(|report| report.errors().next().is_some()).await;
    assert_eq!(report.problems[0].path, fixture.root());
    fixture.nodes(&["a"]).await;
    // Another folder in its place.
    fs::create_dir(fixture.dir.path().join("next")).unwrap();
    fs::write(fixture.dir.path().join("next/b.yaml"), node("b")).unwrap();
    fs::rename(fixture.dir.path().join("next"), fixture.root()).unwrap();
    fixture.nodes(&["b"]).await;
    fixture.problems(|report| report.problems.is_empty()).await;
    // The watch is on the new folder.
    fixture.write("c.yaml", &node("c"));
    fixture.nodes(&["b", "c"]).await;
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_not_there_yet_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = Fixture::start_in(dir);
    let report = fixture.problems(|report| !report.problems.is_empty()).await;
    assert!(!report.synced);
    fs::create_dir(fixture.root()).unwrap();
    fixture.nodes(&[]).await;
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn links_are_swapped_as_a_config_map_does() {
    let version = |root: &Path, version: &str, nodes: &str| {
        let folder = root.join(version);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("nodes.yaml"), nodes).unwrap();
        symlink(version, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    let fixture = Fixture::start(|root| {
        version(root, "..2026_01", &node("a"));
        symlink("..data/nodes.yaml", root.join("nodes.yaml")).unwrap();
    });
    fixture.nodes(&["a"]).await;
    version(&fixture.root(), "..2026_02", &node("b"));
    fixture.nodes(&["b"]).await;
    assert_eq!(fixture.reports.borrow().problems, []);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_to_a_folder_is_swapped_as_a_checkout_is() {
    let checkout = |root: &Path, name: &str| {
        let folder = root.parent().unwrap().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a.yaml"), node(name)).unwrap();
        symlink(&folder, root.join(".link")).unwrap();
        fs::rename(root.join(".link"), root.join("current")).unwrap();
    };
    let fixture = Fixture::start(|root| {
        checkout(root, "v1");
        symlink(root, root.join("circle")).unwrap();
    });
    fixture.nodes(&["v1"]).await;
    fixture.problems(|report| report.problems.iter().any(|problem| problem.path.ends_with("circle"))).await;
    checkout(&fixture.root(), "v2");
    fixture.nodes(&["v2"]).await;
    // What the link leads to is watched as well.
    fs::write(fixture.dir.path().join("v2/b.yaml"), node("w")).unwrap();
    fixture.nodes(&["v2", "w"]).await;
    fixture.stop().await;
}

/// A file that is being written is never read in part.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_copy_takes_nothing_away() {
    use std::io::Write;
    let fixture = Fixture::start(|root| fs::write(root.join("a.yaml"), node("a") + &node("b")).unwrap());
    fixture.nodes(&["a", "b"]).await;
    let mut watch = fixture.models.subscribe();
    let seen = tokio::spawn(async move {
        let mut seen = Vec::new();
        while watch.changed().await.is_ok() {
            let names: Vec<String> = watch
                .borrow_and_update()
                .iter()
                .flat_map(|model| model.nodes.keys().map(ToString::to_string))
                .collect();
            let last = names.iter().any(|name| name == "z");
            seen.push(names);
            if last {
                break;
            }
        }
        seen
    });
    // Truncates, and writes piece by piece with pauses longer than the debounce.
    let mut file = fs::File::create(fixture.root().join("a.yaml")).unwrap();
    for piece in [node("a"), node("b"), node("c")] {
        file.write_all(piece.as_bytes()).unwrap();
        tokio::time::sleep(DEBOUNCE * 3).await;
    }
    drop(file);
    fixture.nodes(&["a", "b", "c"]).await;
    fixture.write("a.yaml", &(node("a") + &node("z")));
    fixture.nodes(&["a", "z"]).await;
    assert_eq!(seen.await.unwrap(), [vec!["a", "b", "c"], vec!["a", "z"]]);
    fixture.stop().await;
}

/// As git and some editors do it: away, and anew.
#[test]
fn a_file_that_is_made_anew_is_never_missed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    let mut source = Source::new(dir.path());
    fs::write(&file, node("a")).unwrap();
    assert_eq!(source.refresh(Why::Time).model.unwrap().nodes.len(), 1);
    fs::remove_file(&file).unwrap();
    let outcome = source.refresh(Why::Time);
    assert!(outcome.model.is_none() && outcome.next <= GRACE);
    fs::write(&file, node("b")).unwrap();
    // Whether the scan saw the file before or after it was closed, no model was ever without it.
    loop {
        if let Some(model) = source.refresh(Why::Time).model {
            assert_eq!(model.nodes.len(), 1);
            if model.nodes.contains_key("b") {
                break;
            }
        }
        std::thread::sleep(DEBOUNCE);
    }
    fs::remove_file(&file).unwrap();
    while source.refresh(Why::Time).model.is_none_or(|model| !model.nodes.is_empty()) {
        std::thread::sleep(DEBOUNCE);
    }
}

/// A folder that notify's thread may not read, though we may, has no watch. Needs root.
#[test]
fn a_folder_without_a_watch_is_told_after_changes_elsewhere_too() {
    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let (file, closed) = (dir.path().join("a.yaml"), dir.path().join("closed"));
    mode(dir.path(), 0o755);
    fs::write(&file, node("a")).unwrap();
    fs::create_dir(&closed).unwrap();
    mode(&closed, 0o700);
    let mut source = Source::new(dir.path());
    // The thread keeps the rights of the one that started it.
    let root = setfsuid(Uid::from_raw(65534));
    source.watch.begin();
    setfsuid(root);

    let told = |outcome: &Outcome| {
        let message = format!("cannot watch {}", closed.display());
        assert!(outcome.next <= RESCAN_BLIND, "{:?}", outcome.next);
        assert!(outcome.report.problems[0].message.starts_with(&message), "{:?}", outcome.report);
    };
    told(&source.refresh(Why::Time));
    fs::write(&file, node("b")).unwrap();
    loop {
        let outcome = source.refresh(Why::Alarm);
        told(&outcome);
        if outcome.model.is_some_and(|model| model.nodes.contains_key("b")) {
            break;
        }
        std::thread::sleep(DEBOUNCE);
    }
    // Once it can be watched, all is well with the next scan.
    mode(&closed, 0o755);
    assert_eq!(source.refresh(Why::Alarm).report.problems, []);
}

#[test]
fn one_file_read_anew_is_counted_as_all_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = Source::new(dir.path());
    let nodes = |names: &[&str]| names.iter().map(|name| node(name) + "---\n").collect::<String>();
    fs::write(dir.path().join("a.yaml"), nodes(&["a"])).unwrap();
    let service = |port: u16| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\n\
             spec: {{clusterIP: 10.96.0.1, ports: [{{port: {port}}}]}}\n"
        )
    };
    fs::write(dir.path().join("s.yaml"), service(80)).unwrap();
    let report = source.refresh(Why::Time).report;
    assert_eq!((report.files, report.objects, report.problems), (2, 2, vec![]));
    // A file that says more, one that says less, one with a word to say, and one that is broken.
    for (text, objects, problems) in [
        (service(81) + "---\n" + &node("b"), 3, 0),
        (service(82), 2, 0),
        (service(83) + "---\n{apiVersion: v1, kind: Secret, metadata: {name: x}}\n", 2, 1),
        ("kind: [".to_owned(), 2, 1),
        (service(84), 2, 0),
    ] {
        fs::write(dir.path().join("s.yaml"), &text).unwrap();
        let report = loop {
            let outcome = source.refresh(Why::Time);
            if outcome.next > Duration::from_secs(1) {
                break outcome.report;
            }
            std::thread::sleep(outcome.next);
        };
        assert_eq!((report.files, report.objects, report.problems.len()), (2, objects, problems), "{text}");
    }
}

/// Looks until the model is as wanted, and publishes each as the agent does.
fn publish_until(source: &mut Source, store: &Store, wanted: impl Fn(&Model) -> bool) -> Arc<Model> {
    loop {
        if let Some(model) = source.refresh(Why::Time).model {
            store.publish(model);
            let now = store.current();
            if wanted(&now.model) {
                return Arc::clone(&now.model);
            }
        }
        std::thread::sleep(DEBOUNCE);
    }
}

#[test]
fn what_did_not_change_is_shared_from_one_snapshot_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let meta = |kind: &str, name: &str| format!("kind: {kind}\nmetadata: {{name: {name}");
    let service = |name: &str, port: u16| {
        let spec = format!("spec: {{clusterIP: 10.96.0.{port}, ports: [{{port: {port}}}]}}\n");
        format!("---\napiVersion: v1\n{}}}\n{spec}", meta("Service", name))
    };
    let services = |port| service("web", port) + &service("db", 1);
    let slice = |addresses: &[&str]| {
        let endpoints: Vec<String> = addresses.iter().map(|a| format!("{{addresses: [{a}]}}")).collect();
        format!(
            "apiVersion: discovery.k8s.io/v1\n{}, labels: {{kubernetes.io/service-name: web}}}}\n\
             addressType: IPv4\nports: [{{port: 80}}]\nendpoints: [{}]\n",
            meta("EndpointSlice", "web-1"),
            endpoints.join(", ")
        )
    };
    let pod = |name: &str| format!("---\napiVersion: v1\n{}}}\n", meta("Pod", name));
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("pods.yaml", &(pod("a") + &pod("b")));
    write("services.yaml", &services(2));
    write("slice.yaml", &slice(&["10.0.0.1"]));
    let (mut source, store) = (Source::new(dir.path()), Store::new());
    publish_until(&mut source, &store, |model| model.pods.len() == 2);

    // Two reports, each of which has all put together anew; then one Service of two in a file.
    for (name, address) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
        let name = ObjectName::new("default", name);
        let report = status::PodStatus::new(&name, "n1", "c", vec![address.parse().unwrap()]);
        status::write(dir.path(), &report).unwrap();
        publish_until(&mut source, &store, |model| model.pods[&name].ready);
    }
    write("services.yaml", &services(3));
    let web = ObjectName::new("default", "web");
    let before = publish_until(&mut source, &store, |model| model.services[&web].ports[0].port == 3);
    write("slice.yaml", &slice(&["10.0.0.1", "10.0.0.2"]));
    let after = publish_until(&mut source, &store, |model| {
        model.slices.values().all(|slice| slice.endpoints.len() == 2)
    });
    assert!(before.pods.is_copy_of(&after.pods));
    assert!(before.services.is_copy_of(&after.services));
    assert!(!before.slices.is_copy_of(&after.slices));
}

#[tokio::test(flavor = "multi_thread")]
async fn bursts_collapse() {
    let fixture = Fixture::start(|_| {});
    fixture.nodes(&[]).await;
    let mut models = fixture.models.subscribe();
    let counter = tokio::spawn(async move {
        let mut count = 0;
        while models.changed().await.is_ok() {
            count += 1;
            if models.borrow_and_update().as_ref().is_some_and(|model| model.nodes.len() == 200) {
                break;
            }
        }
        count
    });
    let names: Vec<String> = (0..200).map(|n| format!("n{n:03}")).collect();
    for name in &names {
        fixture.write(&format!("{name}.yaml"), &node(name));
    }
    let expected: Vec<&str> = names.iter().map(String::as_str).collect();
    fixture.nodes(&expected).await;
    let changes = counter.await.unwrap();
    assert!(changes < 100, "{changes}");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_of_agents_become_addresses() {
    let pod = ObjectName::new("default", "web");
    let fixture = Fixture::start(|root| {
        fs::write(root.join("a.yaml"), "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n").unwrap();
    });
    fixture.nodes(&[]).await;
    let ready = |model: &Option<Arc<Model>>| {
        let pod = model.as_ref().and_then(|model| model.pods.get(&pod));
        pod.is_some_and(|pod| pod.ready && pod.node.as_deref() == Some("n1"))
    };
    let mut watch = fixture.models.subscribe();
    assert!(!ready(&watch.borrow_and_update()));
    let report = status::PodStatus::new(&pod, "n1", "c1", vec!["10.0.0.1".parse().unwrap()]);
    status::write(&fixture.root(), &report).unwrap();
    tokio::time::timeout(Duration::from_secs(10), watch.wait_for(|model| ready(model)))
        .await
        .unwrap()
        .unwrap();
    fs::write(fixture.root().join("status/default_cut.json"), "{").unwrap();
    let problems = fixture.problems(|report| !report.problems.is_empty()).await;
    let text = problems.problems[0].to_string();
    assert!(text.contains("default_cut.json: ignored: ") && text.contains("EOF"), "{text}");
    assert!(problems.errors().next().is_none());
    assert!(status::remove(&fixture.root(), &pod, "c1").unwrap());
    tokio::time::timeout(Duration::from_secs(10), watch.wait_for(|model| !ready(model)))
        .await
        .unwrap()
        .unwrap();
    fixture.stop().await;
}
