//! Namespaces for tests: never named, held by an open file only, so nothing can be left behind, not even by
//! `kill -9`. Pods are addressed by `/proc/<pid>/fd/<n>`, which opens the same namespace again.

use super::netns::NetNs;
use nix::sched::{CloneFlags, unshare};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// A fresh network namespace with `lo` down, as a container runtime makes it.
pub(crate) fn namespace() -> NetNs {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        NetNs::current().unwrap()
    })
    .join()
    .unwrap()
}

/// A path by which it can be opened as long as the handle lives.
pub(crate) fn path_of(ns: &NetNs) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), ns.as_raw_fd()).into()
}

/// Runs a shell line inside and returns what it printed; the test fails if the line does.
pub(crate) fn sh(ns: &NetNs, line: &str) -> String {
    let (ok, text) = try_sh(ns, line);
    assert!(ok, "`{line}` failed: {text}");
    text
}

/// Runs a shell line inside: whether it succeeded, and all it printed.
pub(crate) fn try_sh(ns: &NetNs, line: &str) -> (bool, String) {
    let output = ns.run(|| Command::new("sh").args(["-c", line]).output().unwrap()).unwrap();
    let mut text = String::from_utf8(output.stdout).unwrap();
    text.push_str(&String::from_utf8(output.stderr).unwrap());
    (output.status.success(), text)
}

/// Waits until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
