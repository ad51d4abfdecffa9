//! The source on real folders with real inotify events.

use super::*;
use crate::model::ObjectName;
use crate::store::Store;
use std::fs;
use std::os::unix::fs::symlink;
use tempfile::TempDir;
use tokio::task::JoinHandle;

struct Fixture {
    dir: TempDir,
    store: Arc<Store>,
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
        let store = Arc::new(Store::new());
        let cancel = CancellationToken::new();
        let (models, reports) = (Arc::clone(&store), Arc::clone(&store));
        let task = tokio::spawn(run(
            Config { path: dir.path().join("state") },
            move |model| models.publish(model),
            move |report| reports.report(report),
            cancel.clone(),
        ));
        Self { dir, store, cancel, task }
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

    /// Waits until the nodes in force are these, and says after what time.
    async fn nodes(&self, expected: &[&str]) -> Duration {
        let started = Instant::now();
        let mut watch = self.store.subscribe();
        let wait = watch.wait_for(|snapshot| {
            snapshot.synced && snapshot.model.nodes.keys().map(|name| &**name).eq(expected.iter().copied())
        });
        if tokio::time::timeout(Duration::from_secs(10), wait).await.is_err() {
            panic!("{:?}\n{:?}", self.store.current(), self.store.reports().borrow());
        }
        started.elapsed()
    }

    /// Waits for a state of the problems.
    async fn problems(&self, what: impl Fn(&Report) -> bool) -> Arc<Report> {
        let mut watch = self.store.reports();
        let report =
            tokio::time::timeout(Duration::from_secs(10), watch.wait_for(|report| what(report))).await;
        match report {
            Ok(report) => Arc::clone(&report.unwrap()),
            Err(_) => panic!("{:?}", self.store.reports().borrow()),
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

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_folder_is_an_empty_model() {
    let fixture = Fixture::start(|_| {});
    fixture.nodes(&[]).await;
    assert!(fixture.store.current().synced);
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
    assert_eq!(fixture.store.reports().borrow().problems, []);

    fixture.write("c.yaml", &node("c"));
    let took = fixture.nodes(&["a", "b", "c"]).await;
    assert!(took < RESCAN_BLIND, "only the rescan saw it: {took:?}");
    // Plainly written into, in a folder that is new.
    fs::create_dir(fixture.root().join("new")).unwrap();
    fs::write(fixture.root().join("new/d.yaml"), node("d")).unwrap();
    fixture.nodes(&["a", "b", "c", "d"]).await;
    fs::write(fixture.root().join("new/d.yaml"), node("e")).unwrap();
    fixture.nodes(&["a", "b", "c", "e"]).await;
    fs::remove_dir_all(fixture.root().join("new")).unwrap();
    fixture.nodes(&["a", "b", "c"]).await;
    fs::remove_file(fixture.root().join("b.json")).unwrap();
    let took = fixture.nodes(&["a", "c"]).await;
    assert!(took < RESCAN_BLIND, "only the rescan saw it: {took:?}");
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
    assert!(!fixture.store.current().synced);
    fixture.write("b.yaml", &node("b"));
    fixture.nodes(&["a", "b"]).await;
    assert_eq!(fixture.store.current().generation, 1);
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
    let mut reports = fixture.store.reports();
    reports.mark_unchanged();
    fs::rename(fixture.root().join("b.yaml"), fixture.root().join("z.yaml")).unwrap();
    fixture.write("c.yaml", &node("y"));
    fixture.nodes(&["x", "y"]).await;
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vanished_folder_leaves_the_last_state_and_may_come_back() {
    let fixture = Fixture::start(|root| fs::write(root.join("a.yaml"), node("a")).unwrap());
    fixture.nodes(&["a"]).await;
    fs::rename(fixture.root(), fixture.dir.path().join("elsewhere")).unwrap();
    let report = fixture.problems(|report| report.errors().next().is_some()).await;
    assert_eq!(report.problems[0].path, fixture.root());
    assert_eq!(fixture.store.current().model.nodes.len(), 1);
    // Another folder in its place.
    fs::create_dir(fixture.dir.path().join("next")).unwrap();
    fs::write(fixture.dir.path().join("next/b.yaml"), node("b")).unwrap();
    fs::rename(fixture.dir.path().join("next"), fixture.root()).unwrap();
    fixture.nodes(&["b"]).await;
    fixture.problems(|report| report.problems.is_empty()).await;
    // The watch is on the new folder.
    fixture.write("c.yaml", &node("c"));
    let took = fixture.nodes(&["b", "c"]).await;
    assert!(took < RESCAN_BLIND, "only the rescan saw it: {took:?}");
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
    let took = fixture.nodes(&["b"]).await;
    assert!(took < RESCAN_BLIND, "only the rescan saw it: {took:?}");
    assert_eq!(fixture.store.reports().borrow().problems, []);
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
    // A circle is an error that is told, and no start; without it all is well.
    fixture.problems(|report| report.errors().any(|problem| problem.path.ends_with("circle"))).await;
    fs::remove_file(fixture.root().join("circle")).unwrap();
    fixture.nodes(&["v1"]).await;
    checkout(&fixture.root(), "v2");
    fixture.nodes(&["v2"]).await;
    // What the link leads to is watched as well.
    fs::write(fixture.dir.path().join("v2/b.yaml"), node("w")).unwrap();
    let took = fixture.nodes(&["v2", "w"]).await;
    assert!(took < RESCAN_BLIND, "only the rescan saw it: {took:?}");
    fixture.stop().await;
}

/// A file that is being written is never read in part, and one that is replaced is never missed.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_copy_takes_nothing_away() {
    use std::io::Write;
    let fixture = Fixture::start(|root| fs::write(root.join("a.yaml"), node("a") + &node("b")).unwrap());
    fixture.nodes(&["a", "b"]).await;
    let mut watch = fixture.store.subscribe();
    let seen = tokio::spawn(async move {
        let mut seen = Vec::new();
        while watch.changed().await.is_ok() {
            let names: Vec<String> =
                watch.borrow_and_update().model.nodes.keys().map(ToString::to_string).collect();
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
    // As git does: away, and anew.
    fs::remove_file(fixture.root().join("a.yaml")).unwrap();
    fs::write(fixture.root().join("a.yaml"), node("a") + &node("z")).unwrap();
    assert_eq!(seen.await.unwrap(), [vec!["a", "b", "c"], vec!["a", "z"]]);
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bursts_collapse() {
    let fixture = Fixture::start(|_| {});
    fixture.nodes(&[]).await;
    let before = fixture.store.current().generation;
    let names: Vec<String> = (0..200).map(|n| format!("n{n:03}")).collect();
    for name in &names {
        fixture.write(&format!("{name}.yaml"), &node(name));
    }
    let expected: Vec<&str> = names.iter().map(String::as_str).collect();
    fixture.nodes(&expected).await;
    let generations = fixture.store.current().generation - before;
    assert!(generations < 100, "{generations}");
    fixture.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_of_agents_become_addresses() {
    let pod = ObjectName::new("default", "web");
    let fixture = Fixture::start(|root| {
        fs::write(root.join("a.yaml"), "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n").unwrap();
    });
    fixture.nodes(&[]).await;
    let ready = |snapshot: &crate::store::Snapshot| {
        snapshot.model.pods.get(&pod).is_some_and(|pod| pod.ready && pod.node.as_deref() == Some("n1"))
    };
    let mut watch = fixture.store.subscribe();
    assert!(!ready(&watch.borrow_and_update()));
    let report = status::PodStatus::new(&pod, "n1", "c1", vec!["10.0.0.1".parse().unwrap()]);
    status::write(&fixture.root(), &report).unwrap();
    tokio::time::timeout(Duration::from_secs(10), watch.wait_for(|snapshot| ready(snapshot)))
        .await
        .unwrap()
        .unwrap();
    fs::write(fixture.root().join("status/default_cut.json"), "{").unwrap();
    let problems = fixture.problems(|report| !report.problems.is_empty()).await;
    let text = problems.problems[0].to_string();
    assert!(text.contains("default_cut.json: ignored: ") && text.contains("EOF"), "{text}");
    assert!(problems.errors().next().is_none());
    assert!(status::remove(&fixture.root(), &pod, "c1").unwrap());
    tokio::time::timeout(Duration::from_secs(10), watch.wait_for(|snapshot| !ready(snapshot)))
        .await
        .unwrap()
        .unwrap();
    fixture.stop().await;
}
