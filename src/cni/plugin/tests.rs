//! The plugin without an agent, and with agents that misbehave.

use super::*;
use crate::cni::types::Attachment;
use crate::cni::types::ErrorObject;
use crate::ipam::ledger::{Clock, Entry, Ledger, New, Ranges};
use crate::model::ObjectName;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// A kernel that notes what is done to it.
#[derive(Default)]
struct Notes {
    links: RefCell<BTreeSet<String>>,
    done: RefCell<Vec<String>>,
    refuses: Option<&'static str>,
}

impl Notes {
    fn note(&self, what: String) -> Result<(), Problem> {
        match self.refuses {
            Some(verb) if what.starts_with(verb) => Err(format!("{verb} is refused").into()),
            _ => {
                self.done.borrow_mut().push(what);
                Ok(())
            }
        }
    }
}

impl Kernel for Notes {
    fn host_name(&self, attachment: &Attachment) -> String {
        format!("nd-{}", attachment.container_id)
    }

    fn delete(&self, host_name: &str) -> Result<bool, Problem> {
        self.note(format!("delete {host_name}"))?;
        Ok(self.links.borrow_mut().remove(host_name))
    }

    fn expel(&self, bpffs: &Path, host_name: &str, addresses: &[IpAddr]) -> Result<(), Problem> {
        self.note(format!("expel {} {host_name} {addresses:?}", bpffs.display()))
    }

    fn check(&self, entry: &Entry) -> Result<(), Problem> {
        self.note(format!("check {} in {:?}", entry.host_name, entry.netns))
    }

    fn remove_status(&self, dir: &Path, pod: &ObjectName, container_id: &str) -> Result<(), Problem> {
        self.note(format!("status {} {pod} {container_id}", dir.display()))
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    kernel: Notes,
}

fn attachment(id: &str) -> Attachment {
    Attachment { container_id: id.to_owned(), ifname: "eth0".to_owned() }
}

impl Fixture {
    /// A ledger with attachments `c1` and `c2`, and no agent.
    fn new() -> Self {
        let fixture = Self { dir: tempfile::tempdir().unwrap(), kernel: Notes::default() };
        let mut ledger = fixture.ledger();
        ledger
            .commit(|state, clock| {
                let active = vec!["10.0.0.0/24".parse().unwrap()];
                state.configure(&Ranges { active, draining: Vec::new() }, Duration::from_secs(30));
                state.set_status_dir(Some("/srv/status".into()));
                for id in ["c1", "c2"] {
                    let new = New {
                        attachment: attachment(id),
                        network: "netd".to_owned(),
                        pod: Some(ObjectName::new("shop", id)),
                        pod_uid: None,
                        fixed: Vec::new(),
                        netns: "/run/netns/x".into(),
                        host_name: format!("nd-{id}"),
                    };
                    state.allocate(new, clock).unwrap();
                    fixture.kernel.links.borrow_mut().insert(format!("nd-{id}"));
                }
            })
            .unwrap();
        fixture
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("ledger.json")
    }

    fn ledger(&self) -> Ledger {
        Ledger::open(&self.path(), Duration::from_secs(30), Duration::ZERO).unwrap().ledger
    }

    fn held(&self) -> Vec<String> {
        let ledger = self.ledger();
        ledger.state().entries().map(|entry| entry.attachment.container_id.clone()).collect()
    }

    /// What is printed: nothing, a JSON text, or the code and text of an error.
    fn run(&self, command: &str, more: &serde_json::Value) -> Result<String, (u32, String)> {
        let mut config = serde_json::json!({
            "cniVersion": "1.1.0", "name": "netd", "type": "netd",
            "socket": self.dir.path().join("sock"), "stateDir": self.dir.path(), "bpffs": "/bpf",
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.run_raw(command, "c1", config.to_string().as_bytes())
    }

    fn run_raw(&self, command: &str, id: &str, mut stdin: &[u8]) -> Result<String, (u32, String)> {
        let env = |name: &str| -> Option<OsString> {
            Some(match name {
                "CNI_COMMAND" => command.into(),
                "CNI_CONTAINERID" => id.into(),
                "CNI_IFNAME" => "eth0".into(),
                "CNI_NETNS" => "/run/netns/c1".into(),
                _ => return None,
            })
        };
        respond(&self.kernel, &env, &mut stdin, Duration::from_millis(200))
            .map_err(|(_, error)| (error.code.0, format!("{}: {}", error.msg, error.details)))
    }
}

fn none() -> serde_json::Value {
    serde_json::json!({})
}

#[test]
fn without_an_agent_add_and_status_are_retryable_and_version_is_known() {
    let fixture = Fixture::new();
    let (code, text) = fixture.run("ADD", &none()).unwrap_err();
    assert_eq!(code, 11);
    assert!(text.starts_with("the netd agent cannot be reached: cannot connect to /"), "{text}");
    assert!(
        text.ends_with("No such file or directory (os error 2). Is it running? see: netd status"),
        "{text}"
    );
    assert_eq!(fixture.run("STATUS", &none()).unwrap_err().0, 50);
    assert!(fixture.run("VERSION", &none()).unwrap().contains("supportedVersions"));
    assert_eq!(fixture.held(), ["c1", "c2"]);
    assert!(fixture.kernel.done.borrow().is_empty());
}

#[test]
fn without_an_agent_del_undoes_everything() {
    let fixture = Fixture::new();
    let garbage = serde_json::json!({"prevResult": {"ips": 5}});
    assert_eq!(fixture.run("DEL", &garbage), Ok(String::new()));
    let expected = ["status /srv/status shop/c1 c1", "expel /bpf nd-c1 [10.0.0.1]", "delete nd-c1"];
    assert_eq!(*fixture.kernel.done.borrow(), expected);
    assert_eq!(fixture.held(), ["c2"]);
    let resting: Vec<_> = fixture.ledger().state().cooling().collect();
    assert_eq!(resting, ["10.0.0.1".parse::<IpAddr>().unwrap()], "the agent will see that it rests");
    fixture.kernel.done.borrow_mut().clear();
    assert_eq!(fixture.run("DEL", &none()), Ok(String::new()));
    assert_eq!(*fixture.kernel.done.borrow(), ["expel /bpf nd-c1 []", "delete nd-c1"]);
}

#[test]
fn del_succeeds_where_nothing_was_ever_allocated_or_the_ledger_is_damaged() {
    let mut fixture = Fixture::new();
    fs::remove_file(fixture.path()).unwrap();
    assert_eq!(fixture.run("DEL", &none()), Ok(String::new()));
    fs::write(fixture.path(), "{").unwrap();
    assert_eq!(fixture.run("DEL", &none()), Ok(String::new()));
    assert_eq!(fs::read_to_string(fixture.path()).unwrap(), "{", "left for the agent to set aside");
    assert_eq!(fixture.kernel.done.borrow().len(), 4);
    let list = serde_json::json!({"cni.dev/valid-attachments": []});
    assert_eq!(fixture.run("GC", &list).unwrap_err().0, 11);
    let never = serde_json::json!({"stateDir": "/nonexistent/netd"});
    assert_eq!(fixture.run("DEL", &never), Ok(String::new()));
    assert!(!Path::new("/nonexistent").exists());
    fs::remove_file(fixture.path()).unwrap();
    assert_eq!(fixture.run("GC", &list), Ok(String::new()));
    fixture.kernel.refuses = Some("delete");
    assert_eq!(
        fixture.run("DEL", &none()).unwrap_err(),
        (103, "cannot remove link nd-c1: delete is refused".into())
    );
}

#[test]
fn a_row_stays_as_long_as_its_link() {
    for step in ["expel", "delete"] {
        let mut fixture = Fixture::new();
        fixture.kernel.refuses = Some(step);
        assert_eq!(fixture.run("DEL", &none()).unwrap_err().0, 103);
        assert_eq!(fixture.held(), ["c1", "c2"]);
        fixture.kernel.refuses = Some("status");
        assert_eq!(fixture.run("DEL", &none()), Ok(String::new()));
    }
}

#[test]
fn without_an_agent_gc_and_check_work_from_the_ledger() {
    let mut fixture = Fixture::new();
    let result = serde_json::json!({"prevResult": {"ips": [{"address": "10.0.0.1/32"}]}});
    assert_eq!(fixture.run("CHECK", &result), Ok(String::new()));
    assert_eq!(*fixture.kernel.done.borrow(), ["check nd-c1 in Some(\"/run/netns/c1\")"]);
    let (code, text) = fixture.run("CHECK", &serde_json::json!({"prevResult": {}})).unwrap_err();
    assert_eq!((code, text.contains("prevResult lacks its address 10.0.0.1")), (104, true));
    fixture.kernel.refuses = Some("check");
    assert_eq!(fixture.run("CHECK", &result).unwrap_err().0, 104);

    let list = serde_json::json!({"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]});
    let foreign = serde_json::json!({"name": "other", "cni.dev/valid-attachments": []});
    assert_eq!(fixture.run("GC", &foreign), Ok(String::new()));
    assert_eq!(fixture.held(), ["c1", "c2"]);
    assert_eq!(fixture.run("GC", &list), Ok(String::new()));
    assert_eq!(fixture.held(), ["c2"]);
    assert_eq!(fixture.run("CHECK", &result).unwrap_err().0, 3);
}

#[test]
fn a_locked_ledger_is_waited_for() {
    let fixture = Fixture::new();
    let owner = fixture.ledger();
    let (code, text) = fixture.run("DEL", &none()).unwrap_err();
    assert_eq!(code, 11);
    assert!(text.contains("is locked by pid") && text.contains("nobody answers at"), "{text}");
    drop(owner);
    assert_eq!(fixture.run("DEL", &none()), Ok(String::new()));
}

/// Serves one request each with these bytes, then closes.
fn agent(path: &Path, answers: Vec<&'static [u8]>) -> std::thread::JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        answers
            .into_iter()
            .map(|answer| {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                let mut chunk = [0; 4096];
                while !request.ends_with(b"}") {
                    let count = stream.read(&mut chunk).unwrap();
                    request.extend_from_slice(&chunk[..count]);
                }
                stream.write_all(answer).unwrap();
                String::from_utf8(request).unwrap()
            })
            .collect()
    })
}

#[test]
fn an_agent_that_starts_meanwhile_does_the_work() {
    let fixture = Fixture::new();
    let owner = fixture.ledger();
    let serving =
        agent(&fixture.dir.path().join("sock"), vec![b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"]);
    assert_eq!(
        fixture.run("DEL", &none()),
        Ok(String::new()),
        "the first answer breaks off, the second holds"
    );
    let requests = serving.join().unwrap();
    assert!(requests[1].starts_with("POST /v1/cni/del HTTP/1.1\r\n"), "{requests:?}");
    assert!(fixture.kernel.done.borrow().is_empty());
    drop(owner);
}

#[test]
fn answers_of_the_agent_are_handed_on() {
    let fixture = Fixture::new();
    let error = br#"{"cniVersion":"1.1.0","code":100,"msg":"twice","details":"d"}"#;
    let refusal = format!("HTTP/1.1 409 Conflict\r\nContent-Length: {}\r\n\r\n", error.len()).into_bytes();
    let refusal: &'static [u8] = [refusal, error.to_vec()].concat().leak();
    let serving = agent(
        &fixture.dir.path().join("sock"),
        vec![
            b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}",
            refusal,
            b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\noops",
            b"HTTP/1.1 200 OK\r\nContent-Length: 700\r\n\r\n{",
        ],
    );
    assert_eq!(fixture.run("ADD", &none()), Ok("{\"a\":1}".to_owned()));
    assert_eq!(fixture.run("ADD", &none()), Err((100, "twice: d".to_owned())));
    for why in ["does not speak as netd's agent does: status 500", "the answer breaks off"] {
        let (code, text) = fixture.run("ADD", &none()).unwrap_err();
        assert_eq!(code, 11);
        assert!(text.contains(why), "{text}");
    }
    serving.join().unwrap();
}

#[test]
fn what_is_printed_is_one_json_object_and_the_exit_code() {
    let fixture = Fixture::new();
    let print = |command: &str, stdin: &[u8]| {
        let env = |name: &str| (name == "CNI_COMMAND").then(|| OsString::from(command));
        let mut out = Vec::new();
        let code = run(&fixture.kernel, &env, &mut &*stdin, &mut out);
        (code == ExitCode::SUCCESS, String::from_utf8(out).unwrap())
    };
    let (ok, text) = print("STATUS", b"\xff\xfe garbage");
    assert!(!ok);
    let error: ErrorObject = serde_json::from_str(&text).unwrap();
    assert_eq!((error.code, error.cni_version.as_str()), (Code::DECODE, "1.1.0"));
    let (ok, text) = print("EXPLODE", b"{}");
    assert!(!ok);
    insta::assert_snapshot!(text, @r#"
    {
      "cniVersion": "1.1.0",
      "code": 4,
      "msg": "invalid environment variable CNI_COMMAND",
      "details": "\"EXPLODE\" is not one of ADD, DEL, CHECK, GC, STATUS, VERSION"
    }
    "#);
    let (ok, text) = print("VERSION", br#"{"cniVersion": "1.0.0"}"#);
    assert!(ok);
    insta::assert_snapshot!(text, @r#"
    {
      "cniVersion": "1.0.0",
      "supportedVersions": [
        "0.3.1",
        "0.4.0",
        "1.0.0",
        "1.1.0"
      ]
    }
    "#);
    let huge = vec![b' '; 5 << 20];
    let error: ErrorObject = serde_json::from_str(&print("STATUS", &huge).1).unwrap();
    assert_eq!(error.code, Code::IO);
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("unplugged"))
        }
    }
    let env = |name: &str| (name == "CNI_COMMAND").then(|| OsString::from("STATUS"));
    let (_, error) = respond(&fixture.kernel, &env, &mut Broken, Duration::ZERO).unwrap_err();
    assert_eq!((error.code, error.details.as_str()), (Code::IO, "unplugged"));
}

#[test]
fn offline_release_leaves_the_rest_of_others_alone() {
    let fixture = Fixture::new();
    fixture.ledger().commit(|state, clock| drop(state.release(&attachment("c2"), clock))).unwrap();
    assert_eq!(fixture.run("DEL", &none()), Ok(String::new()));
    let ledger = fixture.ledger();
    assert_eq!(ledger.state().cooling().count(), 2);
    assert!(ledger.state().probe(Clock::now()).is_err(), "ranges are the agent's to set");
}
