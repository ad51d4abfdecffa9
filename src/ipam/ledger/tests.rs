use super::*;
use crate::cni::types::Attachment;
use crate::model::ObjectName;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

const COOL_DOWN: Duration = Duration::from_secs(30);

fn open(path: &Path) -> Opened {
    Ledger::open(path, COOL_DOWN, Duration::ZERO).unwrap()
}

fn ranges() -> Ranges {
    Ranges {
        active: vec!["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()],
        draining: Vec::new(),
    }
}

fn attachment(id: &str) -> Attachment {
    Attachment { container_id: id.to_owned(), ifname: "eth0".to_owned() }
}

fn new(id: &str) -> New {
    New {
        attachment: attachment(id),
        network: "netd".to_owned(),
        pod: Some(ObjectName::new("shop", id)),
        pod_uid: Some("u-1".to_owned()),
        fixed: Vec::new(),
        netns: PathBuf::from("/run/netns/x"),
        host_name: format!("nd{id}"),
    }
}

fn allocate(ledger: &mut Ledger, id: &str) -> Result<Arc<Entry>, Error> {
    ledger
        .commit(|state, clock| {
            state.configure(&ranges(), COOL_DOWN);
            state.allocate(new(id), clock)
        })
        .map(|entry| entry.unwrap())
}

fn assert_consistent(state: &State) {
    let mut endpoints = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    for entry in state.entries() {
        assert!(entry.endpoint > 0 && endpoints.insert(entry.endpoint), "{entry:?}");
        for address in &entry.addresses {
            assert!(addresses.insert(*address), "{address} is held twice");
        }
    }
    for address in state.cooling() {
        assert!(!addresses.contains(&address), "{address} is held and rests");
    }
}

#[test]
fn what_was_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.json");
    let Opened { mut ledger, fresh } = open(&path);
    assert_eq!(fresh, Some(Fresh::Missing));
    for (id, endpoint) in [("a", 1), ("b", 2), ("c", 3)] {
        assert_eq!(allocate(&mut ledger, id).unwrap().endpoint, endpoint);
    }
    let gone = ledger.commit(|state, clock| state.release(&attachment("b"), clock)).unwrap().unwrap();
    assert_eq!(gone.addresses, ["10.0.0.2", "fd00::2"].map(|a| a.parse::<IpAddr>().unwrap()));
    ledger.commit(|state, _| state.set_status_dir(Some("/srv/status".into()))).unwrap();
    assert_eq!(ledger.state().generation(), 5);
    for file in [&path, &dir.path().join(LOCK_NAME)] {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let before = Arc::clone(ledger.state());
    drop(ledger);

    let Opened { mut ledger, fresh } = open(&path);
    assert_eq!(fresh, None);
    assert_eq!(ledger.state().rows(), before.rows());
    assert_eq!(ledger.state().status_dir(), Some(Path::new("/srv/status")));
    let entry = allocate(&mut ledger, "d").unwrap();
    assert_eq!(entry.endpoint, 6, "that of the sixth change");
    let expected = ["10.0.0.4", "fd00::4"].map(|a| a.parse::<IpAddr>().unwrap());
    assert_eq!(entry.addresses, expected, "next-fit goes on after a restart");
}

#[test]
fn the_file_is_for_humans() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.json");
    let mut ledger = open(&path).ledger;
    let clock = Clock { instant: Instant::now(), time: Time::from_seconds(1_800_000_000) };
    let mut state = State::clone(ledger.state());
    state.configure(&ranges(), COOL_DOWN);
    state.allocate(new("a"), clock).unwrap();
    state.allocate(new("b"), clock).unwrap();
    state.release(&attachment("b"), clock).unwrap();
    ledger.replace(state).unwrap();
    insta::assert_snapshot!(fs::read_to_string(&path).unwrap(), @r#"
    {
      "format": "netd address ledger",
      "version": 1,
      "crc32": "d6edad3c",
      "rows": {
        "generation": 3,
        "status_dir": null,
        "entries": [
          {
            "attachment": {
              "container_id": "a",
              "ifname": "eth0"
            },
            "network": "netd",
            "pod": {
              "namespace": "shop",
              "name": "a"
            },
            "pod_uid": "u-1",
            "addresses": [
              "10.0.0.1",
              "fd00::1"
            ],
            "netns": "/run/netns/x",
            "host_name": "nda",
            "allocated_at": "2027-01-15T08:00:00Z",
            "endpoint": 1
          }
        ],
        "cooling": [
          {
            "address": "10.0.0.2",
            "pod": {
              "namespace": "shop",
              "name": "b"
            },
            "released_at": "2027-01-15T08:00:00Z"
          },
          {
            "address": "fd00::2",
            "pod": {
              "namespace": "shop",
              "name": "b"
            },
            "released_at": "2027-01-15T08:00:00Z"
          }
        ],
        "positions": [
          {
            "range": "10.0.0.0/24",
            "address": "10.0.0.2"
          },
          {
            "range": "fd00::/64",
            "address": "fd00::2"
          }
        ]
      }
    }
    "#);
}

#[test]
fn an_unchanged_state_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.json");
    let mut ledger = open(&path).ledger;
    ledger.commit(|state, clock| state.release(&attachment("never"), clock)).unwrap();
    ledger.commit(|state, _| state.configure(&ranges(), COOL_DOWN)).unwrap();
    assert!(!path.exists());
    let duplicate = ledger.commit(|state, clock| {
        state.allocate(new("a"), clock).unwrap();
        state.allocate(new("a"), clock).unwrap_err().to_string()
    });
    assert_eq!(duplicate.unwrap(), "eth0 of container a is attached already");
    assert_eq!(ledger.state().generation(), 1);
}

#[test]
fn cool_down_outlives_a_restart_and_clock_jumps() {
    let start = Clock { instant: Instant::now(), time: Time::from_seconds(1_800_000_000) };
    let mut state = State::new(COOL_DOWN);
    let one = Ranges { active: vec!["10.0.0.5/32".parse().unwrap()], draining: Vec::new() };
    state.configure(&one, COOL_DOWN);
    let take = |state: &mut State, id: &str, clock| state.allocate(new(id), clock).is_ok();
    assert!(take(&mut state, "a", start));
    state.release(&attachment("a"), start).unwrap();
    let rows = state.rows();
    // Seconds that the wall clock shows after a restart; how long the address rests from then on.
    for (wall, rest) in [(0, 30), (10, 20), (29, 1), (-3600, 30), (3600, 0)] {
        let seconds = 1_800_000_000_u64.checked_add_signed(wall).unwrap();
        let clock = Clock { instant: start.instant, time: Time::from_seconds(seconds) };
        let mut state = State::load(rows.clone(), COOL_DOWN, clock).unwrap();
        state.configure(&one, COOL_DOWN);
        let at = |seconds: u64| Clock { instant: clock.instant + Duration::from_secs(seconds), ..clock };
        if rest > 0 {
            assert!(!take(&mut state, "b", at(rest - 1)), "{wall}");
        }
        assert!(take(&mut state, "b", at(rest)), "{wall}");
        assert_eq!(state.cooling().count(), 0);
    }
}

#[test]
fn only_one_owner() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.json");
    let first = open(&path).ledger;
    let error = Ledger::open(&path, COOL_DOWN, Duration::from_millis(50)).unwrap_err();
    let lock = dir.path().join(LOCK_NAME);
    assert_eq!(error.to_string(), format!("{} is locked by pid {}", lock.display(), std::process::id()));
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| Ledger::open(&path, COOL_DOWN, Duration::from_secs(20)));
        drop(first);
        waiting.join().unwrap()
    });
    waiting.unwrap();
}

#[test]
fn damaged_files_are_set_aside_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.json");
    allocate(&mut open(&path).ledger, "a").unwrap();
    let good = fs::read_to_string(&path).unwrap();
    let half = &good[..good.len() / 2];
    let moved = good.replace("10.0.0.1", "10.0.0.9");
    let cases = [
        (half, "not a ledger: EOF while parsing"),
        ("", "not a ledger: EOF while parsing"),
        ("\0\u{7f}\u{1}", "not a ledger: expected value"),
        ("[]", "not a ledger: invalid length 0"),
        (&moved, "checksum is "),
        (&good.replace("netd address ledger", "apples"), "not a ledger: its format is \"apples\""),
        (&good.replace("\"version\": 1", "\"version\": 0"), "format version 0 never was"),
        (&good.replace("\"pod_uid\"", "\"pod_uuid\""), "rows: unknown field `pod_uuid`"),
    ];
    for (n, (text, reason)) in cases.iter().enumerate() {
        fs::write(&path, text).unwrap();
        let Opened { ledger, fresh } = open(&path);
        let Some(Fresh::SetAside { to, reason: found }) = fresh else { panic!("{text}: {fresh:?}") };
        assert!(found.starts_with(reason), "{found}");
        assert!(to.to_str().unwrap().contains("ledger.json.corrupt-"), "{}", to.display());
        assert_eq!(fs::read_to_string(to).unwrap(), *text);
        assert_eq!(ledger.state().entries().count(), 0);
        assert!(!path.exists());
        let kept = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(kept, n + 2, "the lock and every damaged file are still there");
    }
    fs::write(&path, good.replace("\n", "\n\n").replace("  ", "\t")).unwrap();
    assert_eq!(open(&path).fresh, None, "white space is nobody's damage");
}

#[test]
fn a_newer_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.json");
    let text = r#"{"format": "netd address ledger", "version": 2, "crc32": "", "rows": {"new": 1}}"#;
    fs::write(&path, text).unwrap();
    let error = Ledger::open(&path, COOL_DOWN, Duration::ZERO).unwrap_err();
    assert!(error.to_string().contains("has format version 2, this netd knows 1"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn rows_that_contradict_each_other_are_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.json");
    let mut ledger = open(&path).ledger;
    let entry = allocate(&mut ledger, "a").unwrap();
    let second = Entry { attachment: attachment("b"), ..Entry::clone(&entry) };
    for (other, reason) in [
        (
            Entry { addresses: Vec::new(), ..second.clone() },
            "endpoint number 1 of eth0 of container b is not unique",
        ),
        (Entry { endpoint: 2, ..second }, "address 10.0.0.1 of eth0 of container b is not unique"),
        (
            Entry { endpoint: 2, addresses: Vec::new(), ..Entry::clone(&entry) },
            "eth0 of container a stands there twice",
        ),
    ] {
        let mut rows = ledger.state().rows();
        rows.entries.push(other);
        assert_eq!(State::load(rows, COOL_DOWN, Clock::now()).unwrap_err(), reason);
    }
}

#[test]
fn an_endpoint_number_is_given_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.json");
    let mut given = BTreeSet::new();
    for start in 0..3 {
        let mut ledger = open(&path).ledger;
        for write in 0..5 {
            let entries = ledger.commit(|state, clock| {
                state.configure(&ranges(), Duration::ZERO);
                let mut take = |n| state.allocate(new(&format!("{start}-{write}-{n}")), clock).unwrap();
                let entries = [take(0), take(1), take(2)];
                // The newest goes first, and all but one with their write.
                for n in [2, 1] {
                    state.release(&attachment(&format!("{start}-{write}-{n}")), clock).unwrap();
                }
                entries
            });
            for entry in entries.unwrap() {
                assert!(given.insert(entry.endpoint), "{} again", entry.endpoint);
            }
        }
    }
    let mut worn = State::new(Duration::ZERO);
    worn.configure(&ranges(), Duration::ZERO);
    let clock = Clock::now();
    let first = worn.allocate(new("first"), clock).unwrap().endpoint;
    worn.set_generation(u64::from(u32::MAX) - 1);
    let last = worn.allocate(new("last"), clock).unwrap().endpoint;
    let next = worn.allocate(new("next"), clock).unwrap().endpoint;
    assert_eq!((first, last, next), (1, u32::MAX, 2), "never zero, never one that is taken");
}

#[test]
fn rows_are_adopted_from_the_kernel() {
    let clock = Clock::now();
    let mut state = State::new(COOL_DOWN);
    let found = |id: &str, address: &str, endpoint| Recovered {
        attachment: attachment(id),
        pod: None,
        addresses: vec![address.parse().unwrap()],
        host_name: format!("nd{id}"),
        endpoint,
    };
    assert_eq!(state.adopt(found("a", "10.0.0.5", Some(7)), "netd", clock).unwrap().endpoint, 7);
    assert_eq!(state.adopt(found("b", "10.0.0.6", Some(7)), "netd", clock).unwrap().endpoint, 8);
    assert_eq!(state.adopt(found("c", "10.0.0.7", None), "netd", clock).unwrap().endpoint, 9);
    assert_eq!(
        state.adopt(found("d", "10.0.0.5", None), "netd", clock).unwrap_err(),
        "eth0 of container d has address 10.0.0.5, which eth0 of container a holds"
    );
    assert_eq!(
        state.adopt(found("a", "10.0.0.9", None), "netd", clock).unwrap_err(),
        "eth0 of container a has two links"
    );
    assert_consistent(&state);
    assert_eq!(state.holder("10.0.0.6".parse().unwrap()).unwrap().attachment, attachment("b"));
}

#[test]
fn a_number_above_adopted_ones_is_given_once_too() {
    let clock = Clock::now();
    let adopted = || {
        let mut state = State::new(Duration::ZERO);
        state.configure(&ranges(), Duration::ZERO);
        let found = Recovered {
            attachment: attachment("found"),
            pod: None,
            addresses: Vec::new(),
            host_name: "ndfound".to_owned(),
            endpoint: Some(5000),
        };
        assert_eq!(state.adopt(found, "netd", clock).unwrap().endpoint, 5000);
        state
    };
    let again = |mut state: State, forget: &str| {
        let first = state.allocate(new("a"), clock).unwrap().endpoint;
        for id in ["a", forget] {
            state.release(&attachment(id), clock);
            state.take_changed();
        }
        (first, state.allocate(new("b"), clock).unwrap().endpoint)
    };
    for forget in ["a", "found"] {
        let (first, second) = again(adopted(), forget);
        assert!(first == 5001 && second > 5001, "{first} {second}");
    }
    // By a netd that did not count on.
    let mut rows = adopted().rows();
    rows.generation = 1;
    let mut loaded = State::load(rows, Duration::ZERO, clock).unwrap();
    loaded.configure(&ranges(), Duration::ZERO);
    let (first, second) = again(loaded, "found");
    assert!(first == 5001 && second > 5001, "{first} {second}");
}

/// A small file system of its own.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        mount(Some("nt-ledger"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
        Self(dir)
    }

    /// By a read-only view on top of it: the file system itself is busy, the lock is open for writing.
    fn make_read_only(&self) {
        let (path, none) = (self.0.path(), None::<&str>);
        mount(Some(path), path, none, MsFlags::MS_BIND, none).unwrap();
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, path, none, flags, none).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        while umount2(self.0.path(), MntFlags::MNT_DETACH).is_ok() {}
    }
}

#[test]
fn a_full_or_read_only_disk_fails_the_operation_and_nothing_else() {
    let fs = Tmpfs::new();
    let path = fs.0.path().join("ledger.json");
    let mut ledger = open(&path).ledger;
    allocate(&mut ledger, "a").unwrap();
    let before = (Arc::clone(ledger.state()), std::fs::read(&path).unwrap());
    let ballast = fs.0.path().join("ballast");
    let mut file = fs::File::create(&ballast).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}

    let refused = |ledger: &mut Ledger, why: &str| {
        for _ in 0..3 {
            let error = allocate(ledger, "b").unwrap_err();
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.contains(why), "{error}: {source}");
            let error = ledger.commit(|state, clock| state.release(&attachment("a"), clock)).unwrap_err();
            assert!(error.to_string().starts_with("write "), "{error}");
        }
        assert_eq!(*ledger.state(), before.0);
        assert_eq!(std::fs::read(&path).unwrap(), before.1, "the file is intact");
        assert!(!path.with_extension("json.tmp").exists());
    };
    refused(&mut ledger, "No space left");
    std::fs::remove_file(&ballast).unwrap();
    drop(file);
    assert_eq!(allocate(&mut ledger, "b").unwrap().endpoint, 2);
    ledger.commit(|state, clock| state.release(&attachment("b"), clock)).unwrap();

    let before = (Arc::clone(ledger.state()), std::fs::read(&path).unwrap());
    drop(ledger);
    let mut ledger = open(&path).ledger;
    fs.make_read_only();
    let error = allocate(&mut ledger, "c").unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("Read-only"), "{error}");
    assert_eq!(ledger.state().rows(), before.0.rows());
    assert_eq!(std::fs::read(&path).unwrap(), before.1);
}

/// Set in the child of the crash test: the path of the ledger to work on.
const HAMMER: &str = "NETD_TEST_HAMMER_LEDGER";

/// Not a test by itself: what the child of the crash test does until it is killed. It says what is on disk.
#[test]
fn hammer() {
    let Ok(path) = std::env::var(HAMMER) else { return };
    let mut ledger = Ledger::open(Path::new(&path), Duration::ZERO, Duration::from_secs(10)).unwrap().ledger;
    let start = ledger.state().generation();
    for n in start.. {
        let id = format!("c{n}");
        allocate(&mut ledger, &id).unwrap();
        println!("\nhave {id}");
        if n % 3 == 0 {
            let oldest = ledger.state().entries().next().unwrap().attachment.clone();
            ledger.commit(|state, clock| state.release(&oldest, clock)).unwrap();
            println!("\ngone {}", oldest.container_id);
        }
        if ledger.state().entries().count() > 100 {
            let all: Vec<_> = ledger.state().entries().map(|entry| entry.attachment.clone()).collect();
            for one in &all {
                println!("\nmaybe {}", one.container_id);
            }
            ledger
                .commit(|state, clock| {
                    for one in &all {
                        state.release(one, clock);
                    }
                })
                .unwrap();
            for one in &all {
                println!("\ngone {}", one.container_id);
            }
        }
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Err: it is dead already, and waited for.
        drop(self.0.kill());
        self.0.wait().unwrap();
    }
}

#[test]
fn survives_being_killed_at_any_point() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.json");
    let mut there = BTreeSet::new();
    for round in 0..30_u64 {
        // By turns: killed from outside at a time that sweeps over a write, and by the kernel in the midst
        // of a write, at the first byte above a limit (SIGXFSZ).
        let outside = round % 2 == 0;
        let limit = if outside { "unlimited".to_owned() } else { format!("{}", 4 + 2 * round) };
        let test = "ipam::ledger::tests::hammer";
        let mut child = Killed(
            Command::new("/bin/sh")
                .args(["-c", "ulimit -c 0; ulimit -f $1; shift; exec \"$@\"", "sh", &limit])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", test, "--nocapture", "--test-threads=1"])
                .env(HAMMER, &path)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
        let mut unsure = BTreeSet::new();
        let mut follow = |line: String| {
            if let Some(id) = line.strip_prefix("have ") {
                there.insert(id.to_owned());
            } else if let Some(id) = line.strip_prefix("maybe ") {
                unsure.insert(id.to_owned());
            } else if let Some(id) = line.strip_prefix("gone ") {
                there.remove(id);
            }
        };
        if outside {
            let enough = usize::try_from(20 + round * 2).unwrap();
            lines.by_ref().take(enough).map_while(Result::ok).for_each(&mut follow);
            std::thread::sleep(Duration::from_micros(round * 40));
        } else {
            lines.by_ref().map_while(Result::ok).for_each(&mut follow);
            let killer = child.0.wait().unwrap().signal();
            assert_eq!(killer, Some(nix::libc::SIGXFSZ), "the write went over the limit");
        }
        drop(child);
        lines.map_while(Result::ok).for_each(&mut follow);

        let Opened { ledger, fresh } = Ledger::open(&path, Duration::ZERO, Duration::ZERO).unwrap();
        assert_eq!(fresh, None, "a kill must never damage the file");
        assert_consistent(ledger.state());
        let on_disk: BTreeSet<String> =
            ledger.state().entries().map(|entry| entry.attachment.container_id.clone()).collect();
        // One change may be on disk that the child had no time to tell of: an allocation, or a release of
        // the oldest or of all.
        let lost: Vec<_> = there.difference(&on_disk).filter(|id| !unsure.contains(*id)).collect();
        let oldest = there.iter().next();
        assert!(lost.is_empty() || (lost.len() == 1 && lost.first().copied() == oldest), "lost: {lost:?}");
        assert!(on_disk.difference(&there).count() <= 1, "{on_disk:?} against {there:?}");
        there = on_disk;
    }
    assert!(!there.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_wait_share_a_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ledger.json");
    let writer = Writer::start(open(&path).ledger).unwrap();
    writer.commit(|state, _| state.configure(&ranges(), COOL_DOWN)).await.unwrap();
    let writes = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    writes.add_watch(dir.path(), AddWatchFlags::IN_MOVED_TO).unwrap();
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let first = tokio::spawn({
        let writer = writer.clone();
        async move { writer.commit(move |_, _| held.recv().unwrap_err()).await }
    });
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..100 {
        let writer = writer.clone();
        waiting.spawn(async move {
            let entry = writer.commit(move |state, clock| state.allocate(new(&format!("c{n}")), clock)).await;
            entry.unwrap().unwrap()
        });
    }
    drop(hold);
    first.await.unwrap().unwrap();
    let entries = waiting.join_all().await;
    let addresses: BTreeSet<IpAddr> = entries.iter().flat_map(|entry| entry.addresses.clone()).collect();
    assert_eq!(addresses.len(), 200);
    let writes = writes.read_events().unwrap().len();
    assert!((1..50).contains(&writes), "{writes} writes for 100 changes");
    assert_eq!(writer.state().generation(), 100);
    let numbers: BTreeSet<u32> = entries.iter().map(|entry| entry.endpoint).collect();
    assert_eq!(numbers.len(), 100);
    let before = writer.state();
    drop(writer);
    let reopened = Ledger::open(&path, COOL_DOWN, Duration::from_secs(10)).unwrap().ledger;
    assert_eq!(reopened.state().rows(), before.rows(), "dropping the last writer frees the lock");
}

proptest! {
    #[test]
    fn bytes_that_are_no_ledger_never_panic_and_are_never_accepted(
        bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0..900_usize, flip in any::<u8>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.json");
        fs::write(&path, &bytes).unwrap();
        let damaged = matches!(open(&path).fresh, Some(Fresh::SetAside { .. }));
        prop_assert!(damaged);
        let good = {
            let mut ledger = open(&path).ledger;
            allocate(&mut ledger, "a").unwrap();
            ledger
        };
        let rows = good.state().rows();
        drop(good);
        let mut text = fs::read(&path).unwrap();
        let index = cut % text.len();
        text[index] ^= flip;
        fs::write(&path, &text).unwrap();
        match Ledger::open(&path, COOL_DOWN, Duration::ZERO) {
            Ok(Opened { ledger, fresh: None }) => prop_assert_eq!(ledger.state().rows(), rows),
            Ok(Opened { fresh: Some(_), .. }) | Err(Error::Newer { .. }) => {}
            Err(error) => prop_assert!(false, "{error}"),
        }
    }
}
