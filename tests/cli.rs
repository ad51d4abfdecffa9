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
}

/// An agent that gives these answers, at a socket in the folder.
struct Agent {
    folder: tempfile::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Agent {
    fn new(router: axum::Router) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let socket = folder.path().join("netd.sock");
        let listener = runtime.block_on(async { tokio::net::UnixListener::bind(socket) }).expect("bound");
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { folder, _runtime: runtime }
    }

    fn ask(&self, arguments: &[&str]) -> Command {
        let mut command = netd();
        command.args(arguments).env("NETD_PATHS__RUN", self.folder.path());
        command
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn get<T: Into<String>>(answer: T) -> axum::routing::MethodRouter {
    let answer: String = answer.into();
    axum::routing::get(async || answer)
}

fn endpoints(ok: bool) -> serde_json::Value {
    serde_json::json!({
        "schema": "netd.endpoints/v1", "node": "edge-1", "later": "more",
        "endpoints": [{
            "pod": "shop/web-0", "container": "c1", "pod_interface": "eth0", "interface": "nd1", "ifindex": 3,
            "endpoint": 7, "addresses": ["10.0.0.5"], "since": "2026-01-02T03:04:05Z", "age_seconds": 61,
            "ok": ok, "problem": null, "next": null, "flows": 2, "flows_limit": 100, "drops": [],
        }],
    })
}

#[test]
fn a_degraded_answer_is_exit_code_1_in_either_form_and_json_is_passed_on_as_it_came() {
    for (ok, code) in [(true, 0), (false, 1)] {
        let router = axum::Router::new().route("/v1/endpoints", get(endpoints(ok).to_string()));
        let agent = Agent::new(router);
        let table = agent.ask(&["endpoints"]).assert().code(code);
        let expected = "POD         ADDRESSES  INTERFACE  NUMBER  FLOWS        DROPS  AGE\n\
                        shop/web-0  10.0.0.5   nd1        7       2/100 (2 %)  0      1m1s\n";
        assert_eq!(text(&table.get_output().stdout), expected);
        let json = agent.ask(&["endpoints", "-o", "json"]).assert().code(code);
        let json: serde_json::Value = serde_json::from_slice(&json.get_output().stdout).expect("JSON");
        assert_eq!(json, endpoints(ok), "also the field that this netd does not know");
    }
}

#[test]
fn another_versions_answer_is_named() {
    let router = axum::Router::new().route("/v1/services", get(r#"{"schema": "netd.services/v9"}"#));
    let asked = Agent::new(router).ask(&["svc", "list"]).assert().code(1);
    let expected = "error: the agent answers in netd.services/v9, this netd reads netd.services/v1: ask with the \
                    agent's own netd\n";
    assert_eq!(text(&asked.get_output().stderr), expected);
}

#[test]
fn an_unknown_name_is_exit_code_1_and_a_question_that_makes_no_sense_2() {
    let refuse = |status: u16, error: &str| {
        let body = serde_json::json!({"error": error, "suggestions": ["shop/web"]}).to_string();
        let status = axum::http::StatusCode::from_u16(status).expect("a status");
        axum::routing::get(async move || (status, body))
    };
    let router = axum::Router::new()
        .route("/v1/service", refuse(404, "there is no Service wbe: did you mean shop/web?"))
        .route("/v1/conntrack", refuse(400, "tpc is no protocol"));
    let agent = Agent::new(router);
    let asked = agent.ask(&["svc", "show", "wbe"]).assert().code(1);
    let expected = "error: there is no Service wbe: did you mean shop/web?\n";
    assert_eq!(text(&asked.get_output().stderr), expected);
    assert_eq!(text(&asked.get_output().stdout), "");
    let asked = agent.ask(&["conntrack", "list", "--proto", "tpc"]).assert().code(2);
    assert_eq!(text(&asked.get_output().stderr), "error: tpc is no protocol\n");
    let asked = agent.ask(&["conntrack", "summary"]).assert().code(1);
    assert!(text(&asked.get_output().stderr).contains("it is an older netd"));
}

fn flow(port: u16) -> serde_json::Value {
    serde_json::json!({"flow": {
        "protocol": "tcp", "client": format!("10.0.0.5:{port}"), "client_pod": "shop/web-0",
        "frontend": "10.96.0.1:80", "service": "shop/api", "service_number": 4, "service_deleted": false, "server": "10.0.0.6:8080",
        "server_pod": null, "backend_number": 9, "backend_deleted": false, "translated_port": null, "state": "half_closed", "table": "established", "age_seconds": 5,
        "idle_seconds": 1, "expires_in_seconds": 599, "endpoint": 7, "half": false, "hairpin": false,
        "from_stack": false, "refused": false,
    }})
}

fn flows(count: u16, end: bool) -> String {
    let mut lines = vec![serde_json::json!({"schema": "netd.conntrack/v1", "node": "edge-1", "limit": 1000})];
    lines.extend((0..count).map(flow));
    if end {
        lines.push(serde_json::json!({"end": {"matched": count + 3, "told": count}}));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_stream_of_flows_is_one_table_or_one_document() {
    let agent = Agent::new(axum::Router::new().route("/v1/conntrack", get(flows(2, true))));
    let list = agent.ask(&["conntrack", "list"]).assert().success();
    let list = text(&list.get_output().stdout);
    assert!(
        list.contains("shop/web-0 10.0.0.5:1  shop/api 10.96.0.1:80  10.0.0.6:8080  half-closed"),
        "{list}"
    );
    assert!(list.ends_with("3 more: netd conntrack list --limit 0\n"), "{list}");
    let json = agent.ask(&["conntrack", "list", "-o", "json"]).assert().success();
    let json: serde_json::Value = serde_json::from_slice(&json.get_output().stdout).expect("JSON");
    assert_eq!(
        (&json["schema"], &json["matched"], &json["told"]),
        (&"netd.conntrack/v1".into(), &5.into(), &2.into())
    );
    assert_eq!(json["flows"], serde_json::json!([flow(0)["flow"], flow(1)["flow"]]));

    let agent = Agent::new(axum::Router::new().route("/v1/conntrack", get(flows(2, false))));
    for form in ["text", "json"] {
        let cut = agent.ask(&["conntrack", "list", "-o", form]).assert().code(3);
        assert!(text(&cut.get_output().stderr).contains("has gone: is `netd agent` running?"));
    }
}

fn event(n: u64) -> String {
    let event = serde_json::json!({
        "schema": "netd.event/v1", "time": "2026-01-02T12:04:31.118Z", "kind": "service",
        "subject": "shop/api", "message": format!("changed: {n} endpoints"), "bad": false, "drop": null,
        "lost": null,
    });
    format!("{event}\n\n")
}

/// Tells so many events and then nothing for ever.
fn endless(events: u64) -> axum::routing::MethodRouter {
    axum::routing::get(async move || {
        let stream = futures_util::stream::unfold(0, move |n| async move {
            if n == events {
                std::future::pending::<()>().await;
            }
            Some((Ok::<_, std::convert::Infallible>(event(n)), n + 1))
        });
        axum::body::Body::from_stream(stream)
    })
}

#[test]
fn a_monitor_ends_after_as_many_events_as_were_asked_for() {
    let agent = Agent::new(axum::Router::new().route("/v1/events", endless(5)));
    let told = agent.ask(&["monitor", "--count", "2"]).assert().success();
    let line = |n: u64| format!("12:04:31.118Z  service  shop/api  changed: {n} endpoints\n");
    assert_eq!(text(&told.get_output().stdout), line(0) + &line(1));
    let told = agent.ask(&["monitor", "--count", "3", "-o", "json"]).assert().success();
    let told = text(&told.get_output().stdout);
    let messages: Vec<serde_json::Value> =
        told.lines().map(|line| serde_json::from_str(line).expect("a document per line")).collect();
    assert_eq!(messages.len(), 3);
    assert_eq!(messages[2]["message"], "changed: 2 endpoints");
    let asked = agent.ask(&["monitor", "--reason", "spoofed_sorce"]).assert().code(2);
    assert!(text(&asked.get_output().stderr).contains("'spoofed_source'"), "a suggestion");
}

#[test]
fn a_reader_that_has_seen_enough_of_an_answer_is_no_error() {
    let router = axum::Router::new()
        .route("/v1/endpoints", get(endpoints(true).to_string()))
        .route("/v1/conntrack", get(flows(5_000, true)))
        .route("/v1/events", endless(1));
    let agent = Agent::new(router);
    let run = agent.folder.path();
    for arguments in [
        &["endpoints"][..],
        &["endpoints", "-o", "json"],
        &["conntrack", "list"],
        &["conntrack", "list", "-o", "json"],
        &["monitor"],
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let child = bare()
            .args(arguments)
            .env("NETD_PATHS__RUN", run)
            .stdout(OwnedFd::from(writer))
            .stderr(Stdio::piped())
            .spawn();
        let output = child.expect("started").wait_with_output().expect("ended");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
    }
}

#[test]
fn a_monitor_whose_reader_goes_while_nothing_happens_ends_at_once() {
    let agent = Agent::new(axum::Router::new().route("/v1/events", endless(1)));
    let mut child = bare()
        .arg("monitor")
        .env("NETD_PATHS__RUN", agent.folder.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let mut reader = std::io::BufReader::new(child.stdout.take().expect("its output"));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut reader, &mut line).expect("a line");
    assert!(line.contains("changed: 0 endpoints"), "{line}");
    // Nothing more is ever told: only the end of the pipe can end it.
    drop(reader);
    assert_eq!(child.wait().expect("ended").code(), Some(0));
}

#[test]
fn the_verdict_is_the_status_also_when_nobody_reads_the_words() {
    let cluster = tempfile::tempdir().expect("a folder");
    let pod = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{containers: [{{name: c}}]}}\n"
        )
    };
    let deny = "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny, namespace: shop}\n\
                spec: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}\n";
    std::fs::write(cluster.path().join("a.yaml"), pod("web") + &pod("db") + deny).expect("written");
    for (to, status) in [("db:80", 0), ("db:81", 1)] {
        let ask = ["policy", "eval", "web", to, "-o", "json", "--source"];
        let output = netd().args(ask).arg(cluster.path()).output().expect("ended");
        assert_eq!(output.status.code(), Some(status), "{to}");
        let agent = Agent::new(axum::Router::new().route("/v1/policy/eval", get(text(&output.stdout))));
        let socket = agent.folder.path().join("netd.sock");
        for (option, of) in [("--source", cluster.path()), ("--socket", &socket)] {
            for form in ["text", "json"] {
                let of = of.to_str().expect("a path");
                let arguments = ["policy", "eval", "web", to, option, of, "-o", form];
                let (reader, writer) = std::io::pipe().expect("a pipe");
                drop(reader);
                let output = spawn(&arguments, OwnedFd::from(writer));
                assert_eq!(output.status.code(), Some(status), "{arguments:?}");
                assert_eq!(text(&output.stderr), "", "{arguments:?}");
                let full = File::options().write(true).open("/dev/full").expect("/dev/full");
                let output = spawn(&arguments, full);
                assert_eq!(output.status.code(), Some(status), "{arguments:?}");
                assert!(text(&output.stderr).contains("cannot write"), "{arguments:?}");
            }
        }
    }
}

#[test]
fn no_agent_is_exit_code_3_for_every_question() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("netd.sock");
    for arguments in [
        &["status"][..],
        &["endpoints"],
        &["svc", "list"],
        &["svc", "show", "x"],
        &["policy", "list", "-n", "shop"],
        &["policy", "show", "x"],
        &["policy", "explain", "x"],
        &["policy", "eval", "x", "y:80"],
        &["conntrack", "list"],
        &["conntrack", "summary", "-o", "json"],
        &["monitor", "--drops"],
        &["monitor", "--flows"],
    ] {
        let asked = netd().args(arguments).arg("--socket").arg(&socket).assert().code(3);
        let told = text(&asked.get_output().stderr);
        assert!(told.contains("is `netd agent` running?"), "{arguments:?}: {told}");
        assert_eq!(text(&asked.get_output().stdout), "", "{arguments:?}");
    }
}

/// A folder with two pods, of which one is isolated.
fn folder_of_policies() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let pod = |name: &str, ip: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
             spec: {{containers: [{{name: c}}]}}\nstatus: {{podIP: {ip}}}\n---\n"
        )
    };
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: db, namespace: shop}\nspec:\n\
                  \x20 podSelector: {matchLabels: {app: db}}\n  ingress:\n  - ports: [{port: 5432}]\n";
    let text = pod("web", "10.0.0.1") + &pod("db", "10.0.0.2") + policy;
    std::fs::write(folder.path().join("state.yaml"), text).expect("written");
    folder
}

#[test]
fn policies_of_a_folder_are_told_without_an_agent() {
    let folder = folder_of_policies();
    let ask = |arguments: &[&str]| {
        let mut command = netd();
        command.arg("policy").args(arguments).arg("--source").arg(folder.path());
        command.env("NETD_PATHS__RUN", "/nonexistent");
        command
    };
    let told = |arguments: &[&str], code: i32| text(&ask(arguments).assert().code(code).get_output().stdout);
    assert_eq!(told(&["list"], 0), "POLICY   ISOLATES  PODS  RULES\nshop/db  ingress   1     1 ingress\n");
    assert!(told(&["list", "-n", "blog"], 0).starts_with("no NetworkPolicies in blog"));
    assert!(told(&["list", "-A", "-o", "json"], 0).contains("\"schema\": \"netd.policies/v1\""));
    assert!(told(&["show", "db"], 0).contains("ingress rule 1\n  from   everybody\n  ports  5432/tcp\n"));
    assert!(told(&["explain", "db"], 0).contains("everybody  5432/tcp  shop/db rule 1"));
    let allowed = told(&["eval", "web", "db:5432"], 0);
    assert!(
        allowed.contains("shop/web → shop/db:5432/tcp  allowed")
            && allowed.contains("shop/db rule 1 allows it")
    );
    let denied = told(&["eval", "web", "shop/db:80", "-o", "json"], 1);
    let denied: serde_json::Value = serde_json::from_str(&denied).expect("JSON");
    assert_eq!((&denied["schema"], &denied["allowed"]), (&"netd.policy-eval/v1".into(), &false.into()));
    assert_eq!(denied["cases"][0]["ingress"]["policies"], serde_json::json!(["shop/db"]));
}

#[test]
fn only_a_denial_is_exit_code_1_of_an_evaluation() {
    let folder = folder_of_policies();
    let broken = tempfile::tempdir().expect("a folder");
    std::fs::write(broken.path().join("a.yaml"), "kind: [\n").expect("written");
    let source = |folder: &tempfile::TempDir| folder.path().to_str().expect("UTF-8").to_owned();
    for (arguments, folder, expected) in [
        (["eval", "wbe", "db:80"], &folder, "there is no pod wbe: did you mean shop/web?"),
        (["eval", "web", "db"], &folder, "is not of the form TO:PORT[/PROTOCOL]"),
        (["eval", "web", "db:80"], &broken, "a.yaml:"),
    ] {
        let asked = netd().arg("policy").args(arguments).args(["--source", &source(folder)]).assert().code(2);
        let told = text(&asked.get_output().stderr);
        assert!(told.contains(expected), "{arguments:?}: {told}");
    }
    let unknown = netd().args(["policy", "explain", "wbe", "--source", &source(&folder)]).assert().code(1);
    assert!(text(&unknown.get_output().stderr).contains("did you mean shop/web?"));
    let both = netd().args(["policy", "list", "--source", "/x", "--socket", "/y"]).assert().code(2);
    assert!(text(&both.get_output().stderr).contains("cannot be used with"));
    // What an agent refuses for whatever reason is no denial, either.
    let status = axum::http::StatusCode::INTERNAL_SERVER_ERROR;
    let refusal = r#"{"error": "the source was not read yet"}"#;
    let router = axum::Router::new()
        .route("/v1/policy/eval", axum::routing::get(async move || (status, refusal)))
        .route("/v1/policies", axum::routing::get(async move || (status, refusal)));
    let agent = Agent::new(router);
    let asked = agent.ask(&["policy", "eval", "a", "b:1"]).assert().code(2);
    assert!(text(&asked.get_output().stderr).contains("the source was not read yet"));
    agent.ask(&["policy", "list"]).assert().code(1);
}
