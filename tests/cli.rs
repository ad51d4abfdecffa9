//! The command line as a user meets it: the real binary, its output and its exit code.
//!
//! The transcripts in `tests/cmd` are run as they stand; `TRYCMD=overwrite` writes them anew.

use assert_cmd::Command;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::Stdio;

/// netd with nothing of the caller's environment that it would read.
fn bare() -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_netd"));
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("NETD_")) {
        command.env_remove(name);
    }
    command.env_remove("CNI_COMMAND").env("NETD_NODE__NAME", "edge-1");
    command
}

fn netd() -> Command {
    Command::from_std(bare())
}

fn spawn(arguments: &[&str], stdout: impl Into<Stdio>) -> std::process::Output {
    let child = bare().args(arguments).stdout(stdout).stderr(Stdio::piped()).spawn();
    child.expect("started").wait_with_output().expect("ended")
}

#[test]
fn transcripts() {
    let netd = std::path::Path::new(env!("CARGO_BIN_EXE_netd"));
    // This machine's name may be no Node's name; one file has a name of its own to complain of.
    let cases = trycmd::TestCases::new();
    cases.register_bin("netd", netd).env("NETD_NODE__NAME", "edge-1");
    cases.case("tests/cmd/*.trycmd").skip("tests/cmd/names.trycmd").run();
    trycmd::TestCases::new().register_bin("netd", netd).case("tests/cmd/names.trycmd").run();
}

#[test]
fn show_has_a_json_form() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("netd.yaml");
    std::fs::write(&file, "ipam:\n  cool_down: 1m\n").expect("written");
    let shown = netd()
        .args(["config", "show", "-o", "json"])
        .env("NETD_CONFIG", &file)
        .env("NETD_NETWORK__MTU", "1400")
        .assert()
        .success();
    let json: serde_json::Value = serde_json::from_slice(&shown.get_output().stdout).expect("JSON");
    assert_eq!(json["schema"], "netd.config/v1");
    let key =
        |name: &str| json["keys"].as_array().expect("keys").iter().find(|k| k["key"] == name).expect("key");
    let place = serde_json::json!({"kind": "file", "path": file.to_str(), "line": 2, "column": 14});
    assert_eq!((&key("ipam.cool_down")["value"], &key("ipam.cool_down")["origin"]), (&"1m".into(), &place));
    let variable = serde_json::json!({"kind": "environment", "variable": "NETD_NETWORK__MTU"});
    assert_eq!((&key("network.mtu")["value"], &key("network.mtu")["origin"]), (&1400.into(), &variable));
    assert_eq!(key("network.mtu")["change"], "restart");
    assert_eq!(key("ipam.pod_cidrs")["value"], serde_json::json!([]));
}

#[test]
fn the_example_passes_its_own_check() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("netd.yaml");
    let example = netd().args(["config", "example"]).assert().success();
    std::fs::write(&file, &example.get_output().stdout).expect("written");
    let checked = netd().args(["config", "check"]).arg(&file).assert().success();
    let text = String::from_utf8_lossy(&checked.get_output().stdout).into_owned();
    assert!(text.contains(" from the file, 1 from the environment, 0 by default"), "{text}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    for arguments in [&["config", "example"][..], &["config", "show"], &["--help"], &["--version"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = spawn(arguments, OwnedFd::from(writer));
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let full = File::options().write(true).open("/dev/full").expect("opened");
    let output = spawn(&["config", "example"], full);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.starts_with("error: cannot write to standard output\n  caused by: No space left"), "{text}");
}

#[test]
fn cni_command_decides_before_the_arguments() {
    let output = netd().env("CNI_COMMAND", "NONSENSE").arg("--help").write_stdin("").output().expect("ended");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!text.contains("Usage") && !output.status.success(), "{text}");
}

#[test]
fn status_finds_the_socket_by_the_configuration() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = folder.path().to_str().expect("UTF-8");
    let output = netd().arg("status").env("NETD_PATHS__RUN", run).output().expect("ended");
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = format!("error: cannot reach the agent at {run}/netd.sock: is `netd agent` running?\n");
    assert!(text.starts_with(&expected), "{text}");

    let socket = folder.path().join("netd.sock");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let listener = runtime.block_on(async { tokio::net::UnixListener::bind(&socket) }).expect("bound");
    let answer = axum::routing::get(async || axum::Json(serde_json::json!({"ok": false, "node": "edge-1"})));
    runtime
        .spawn(async move { axum::serve(listener, axum::Router::new().route("/v1/status", answer)).await });
    let text = netd().arg("status").env("NETD_PATHS__RUN", run).assert().code(1);
    assert_eq!(String::from_utf8_lossy(&text.get_output().stdout), "node  edge-1\nok    false\n");
    let json = netd().args(["status", "-o", "json"]).env("NETD_PATHS__RUN", run).assert().code(1);
    let json: serde_json::Value = serde_json::from_slice(&json.get_output().stdout).expect("JSON");
    assert_eq!(json["node"], "edge-1");
}
