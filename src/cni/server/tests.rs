//! The server over a world in memory, in which any step can be made to fail or never to end.

mod recovery;
mod world;

use super::*;
use crate::cni::types::Attachment;
use crate::cni::types::Version;
use crate::model::ObjectName;
use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use world::{Fate, STEPS, World};

const NETNS: &str = "/proc/self/ns/net";

fn attachment(id: &str) -> Attachment {
    Attachment { container_id: id.to_owned(), ifname: "eth0".to_owned() }
}

fn add(id: &str) -> Add {
    Add {
        version: Version::V1_1_0,
        network: "netd".to_owned(),
        attachment: attachment(id),
        netns: NETNS.into(),
        pod: Some(ObjectName::new("shop", id)),
        pod_uid: None,
        fixed: Vec::new(),
        dns: None,
        previous: None,
    }
}

fn del(id: &str) -> Del {
    Del { version: Version::V1_1_0, attachment: attachment(id) }
}

fn ranges(active: &[&str]) -> Ranges {
    Ranges { active: active.iter().map(|text| text.parse().unwrap()).collect(), draining: Vec::new() }
}

async fn open(world: &World, dir: &Path) -> (Arc<Server<World>>, Recovery) {
    let options = Options {
        ledger: dir.join("ledger.json"),
        status_dir: Some("/srv/status".into()),
        cool_down: Duration::from_secs(30),
        sync_wait: Duration::from_millis(10),
    };
    let (server, recovery) = Server::open(world.clone(), options).await.unwrap();
    let both = ranges(&["10.0.0.0/24", "fd00::/64"]);
    server.set_ranges(both, Duration::from_secs(30)).await.unwrap();
    (server, recovery)
}

fn addresses(result: &AttachResult) -> Vec<IpAddr> {
    result.ips.iter().map(|ip| ip.address.addr()).collect()
}

/// Whatever is in the kernel has a row, and whatever has a row is whole.
fn assert_agree(server: &Server<World>, world: &World) {
    let state = server.state();
    let names: BTreeSet<String> = state.entries().map(|entry| entry.host_name.clone()).collect();
    world.inspect(|inside| {
        assert_eq!(names, inside.links.keys().cloned().collect(), "links");
        let indexes: BTreeSet<u32> = inside.links.values().map(|end| end.ifindex).collect();
        assert_eq!(indexes, inside.rows.keys().copied().collect(), "map rows");
        assert_eq!(indexes, inside.attached, "programs");
        assert_eq!(indexes, inside.started, "links that are up");
        let pods = state.entries().filter_map(|entry| Status::of(entry)).map(|s| (s.pod, s.container_id));
        assert_eq!(pods.collect::<std::collections::BTreeMap<_, _>>(), inside.statuses, "status files");
        for entry in state.entries() {
            let end = &inside.links[&entry.host_name];
            assert_eq!(end.addresses, entry.addresses);
            let row = &inside.rows[&end.ifindex];
            assert_eq!((&row.addresses, row.endpoint), (&entry.addresses, entry.endpoint));
        }
    });
}

#[tokio::test]
async fn the_wait_for_the_source_can_be_changed() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let (server, _) = open(&world, dir.path()).await;
    world.inspect(|inside| inside.unsynced = true);
    assert!(server.add(add("c1")).await.unwrap_err().details.ends_with("after 10ms"));
    server.set_sync_wait(Duration::from_secs(3));
    assert!(server.add(add("c1")).await.unwrap_err().details.ends_with("after 3s"));
}

#[tokio::test]
async fn without_its_policies_a_pod_gets_no_link() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let (server, _) = open(&world, dir.path()).await;
    world.inspect(|inside| inside.unsynced = true);
    let before = world.steps().len();
    // A container that is no pod's is not looked up first.
    let bare = Add { pod: None, ..add("c1") };
    let error = server.add(bare.clone()).await.unwrap_err();
    assert_eq!(
        (error.code, error.msg.as_str(), error.details.as_str()),
        (
            Code::TRY_LATER,
            "cannot put the policies in force for eth0 of container c1 yet",
            "not synced after 10ms"
        )
    );
    assert_eq!(world.steps()[before..], ["prepare", "expel", "delete"], "nothing was made");
    assert_eq!(server.state().entries().count(), 0);
    // That the source is synced when the pod is looked up is not enough.
    world.inspect(|inside| inside.unsynced = false);
    for fate in [Fate::Fails, Fate::HappensAndFails] {
        world.doom("prepare", fate);
        server.add(add("c1")).await.unwrap_err();
        world.inspect(|inside| assert!(inside.links.is_empty() && inside.rows.is_empty()));
    }
    let before = world.steps().len();
    server.add(bare).await.unwrap();
    assert_eq!(world.steps()[before..], STEPS[..5]);
    let before = world.steps().len();
    server.add(add("c2")).await.unwrap();
    assert_eq!(world.steps()[before..], STEPS);
}

#[tokio::test]
async fn a_restart_lets_nobody_wait_for_policies() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    {
        let (server, _) = open(&world, dir.path()).await;
        server.add(add("c1")).await.unwrap();
    }
    world.inspect(|inside| inside.unsynced = true);
    let before = world.steps().len();
    let (server, recovery) = open(&world, dir.path()).await;
    assert_eq!((recovery.kept, recovery.problems.len()), (1, 0));
    assert!(!world.steps()[before..].contains(&"prepare"), "the rows keep what they have");
    assert_agree(&server, &world);
}

#[tokio::test]
async fn a_node_without_room_says_so_before_anything_is_made() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let (server, _) = open(&world, dir.path()).await;
    world.inspect(|inside| inside.capacity = Some(8));
    // More at once than there is room for: exactly so many get in.
    let mut adds = tokio::task::JoinSet::new();
    for n in 0..20 {
        let server = Arc::clone(&server);
        adds.spawn(async move { server.add(add(&format!("c{n}"))).await.map(drop) });
    }
    let errors: Vec<Error> = adds.join_all().await.into_iter().filter_map(Result::err).collect();
    assert_eq!((errors.len(), server.state().entries().count()), (12, 8));
    for error in errors {
        assert_eq!(
            (error.code, error.msg.as_str()),
            (Code::TRY_LATER, "no room for another pod on this node")
        );
        assert_eq!(error.details, "netd's tables are made for 8 pods, and all are in use (datapath.pods)");
    }
    assert_eq!(world.steps().iter().filter(|step| **step == "create").count(), 8);
    assert_agree(&server, &world);
    server.status().expect("those that are here are served");
    let one = server.state().entries().next().unwrap().attachment.container_id.clone();
    server.del(del(&one)).await.unwrap();
    server.add(add("after")).await.expect("room again");
    assert_agree(&server, &world);
}

#[tokio::test]
async fn add_check_del() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let (server, recovery) = open(&world, dir.path()).await;
    assert_eq!(recovery.fresh, Some(ledger::Fresh::Missing));
    let result = server.add(add("c1")).await.unwrap();
    let shown = serde_json::to_string_pretty(&result.clone().in_version(Version::V1_1_0)).unwrap();
    insta::assert_snapshot!(shown, @r#"
    {
      "cniVersion": "1.1.0",
      "interfaces": [
        {
          "name": "nd-c1-eth0",
          "mac": "02:6e:65:74:64:01",
          "mtu": 1500
        },
        {
          "name": "eth0",
          "mac": "02:00:00:00:00:09",
          "mtu": 1500,
          "sandbox": "/proc/self/ns/net"
        }
      ],
      "ips": [
        {
          "address": "10.0.0.1/32",
          "gateway": "169.254.1.1",
          "interface": 1
        },
        {
          "address": "fd00::1/128",
          "gateway": "fe80::1",
          "interface": 1
        }
      ],
      "routes": [
        {
          "dst": "0.0.0.0/0",
          "gw": "169.254.1.1"
        },
        {
          "dst": "::/0",
          "gw": "fe80::1"
        }
      ]
    }
    "#);
    assert_agree(&server, &world);

    let check = Check {
        version: Version::V1_1_0,
        attachment: attachment("c1"),
        netns: NETNS.into(),
        previous: result.clone(),
    };
    server.check(check.clone()).await.unwrap();
    let other = Check { previous: AttachResult::default(), ..check.clone() };
    let error = server.check(other).await.unwrap_err();
    assert_eq!(
        (error.code, error.details.as_str()),
        (Code::DIFFERS, "prevResult lacks its address 10.0.0.1")
    );
    world.inspect(|inside| inside.rows.clear());
    let error = server.check(check.clone()).await.unwrap_err();
    assert_eq!((error.code, error.details.as_str()), (Code::DIFFERS, "no map row for interface 1"));
    world.inspect(|inside| {
        inside.links.clear();
        inside.attached.clear();
        inside.started.clear();
    });
    assert_eq!(server.check(check.clone()).await.unwrap_err().code, Code::DIFFERS);
    let unknown = Check { attachment: attachment("c2"), ..check };
    assert_eq!(server.check(unknown).await.unwrap_err().code, Code::UNKNOWN_CONTAINER);

    for _ in 0..2 {
        server.del(del("c1")).await.unwrap();
        server.del(del("never")).await.unwrap();
    }
    assert_agree(&server, &world);
    let next = server.add(add("c2")).await.unwrap();
    assert_ne!(addresses(&next), addresses(&result), "a released address rests");
}

#[tokio::test]
async fn a_duplicate_is_refused_and_harms_nothing() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let (server, _) = open(&world, dir.path()).await;
    server.add(add("c1")).await.unwrap();
    let before = (server.state().generation(), world.steps());
    let error = server.add(add("c1")).await.unwrap_err();
    assert_eq!(
        (error.code, error.msg.as_str()),
        (Code::DUPLICATE, "eth0 of container c1 is attached already")
    );
    assert!(error.details.starts_with("it has 10.0.0.1 and fd00::1 since 20"), "{error}");
    assert_eq!((server.state().generation(), world.steps()), before);
    let second = Attachment { ifname: "net1".to_owned(), ..attachment("c1") };
    server.add(Add { attachment: second.clone(), ..add("c1") }).await.unwrap();
    assert_eq!(
        world.steps().iter().filter(|step| **step == "write_status").count(),
        1,
        "the first interface counts"
    );
    server.del(Del { version: Version::V1_1_0, attachment: second }).await.unwrap();
    assert_agree(&server, &world);
}

#[tokio::test]
async fn a_step_that_fails_leaves_nothing_behind() {
    for step in STEPS {
        let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
        let (server, _) = open(&world, dir.path()).await;
        for fate in [Fate::Fails, Fate::HappensAndFails] {
            world.doom(step, fate);
            let error = server.add(add("c1")).await.unwrap_err();
            assert_eq!(error.code, Code::KERNEL, "{step}");
            assert_eq!(error.details, format!("{step} was doomed"));
            assert_eq!(server.state().entries().count(), 0);
            assert_agree(&server, &world);
        }
        let result = server.add(add("c1")).await.unwrap();
        let third: IpAddr = "10.0.0.3".parse().unwrap();
        assert_eq!(addresses(&result)[0], third, "the addresses of a failed ADD rest");
    }
}

#[tokio::test]
async fn what_cannot_be_undone_keeps_its_row() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let (server, _) = open(&world, dir.path()).await;
    world.doom("admit", Fate::Fails);
    world.doom("delete", Fate::Fails);
    let error = server.add(add("c1")).await.unwrap_err();
    assert!(error.details.contains("admit was doomed; and it could not be undone"), "{error}");
    assert_eq!(server.state().entries().count(), 1);
    world.doom("delete", Fate::Fails);
    assert_eq!(server.del(del("c1")).await.unwrap_err().code, Code::KERNEL);
    world.doom("expel", Fate::Fails);
    assert_eq!(server.del(del("c1")).await.unwrap_err().code, Code::KERNEL);
    world.doom("remove_status", Fate::Fails);
    server.del(del("c1")).await.unwrap();
    assert_agree(&server, &world);
}

#[tokio::test]
async fn gc_keeps_what_is_listed_and_what_is_not_its_own() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let (server, _) = open(&world, dir.path()).await;
    for id in ["a", "b", "c"] {
        server.add(add(id)).await.unwrap();
    }
    server.add(Add { network: "other".to_owned(), ..add("d") }).await.unwrap();
    let gc = Gc { version: Version::V1_1_0, network: "netd".to_owned(), valid: vec![attachment("b")] };
    world.doom("delete", Fate::Fails);
    let error = server.gc(gc.clone()).await.unwrap_err();
    assert!(error.details.contains("delete was doomed"), "{error}");
    let left = |server: &Server<World>| -> Vec<String> {
        server.state().entries().map(|entry| entry.attachment.container_id.clone()).collect()
    };
    assert_eq!(left(&server), ["a", "b", "d"], "one failure does not stop the rest");
    let busy = server.locks.lock(&attachment("a")).await;
    server.gc(gc.clone()).await.unwrap();
    assert_eq!(left(&server), ["a", "b", "d"], "what is being worked on is no garbage");
    drop(busy);
    server.gc(gc).await.unwrap();
    assert_eq!(left(&server), ["b", "d"]);
    assert_agree(&server, &world);
}

#[tokio::test]
async fn status_and_refusals_say_why() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let (server, _) = open(&world, dir.path()).await;
    server.status().unwrap();
    server.set_ranges(Ranges::default(), Duration::ZERO).await.unwrap();
    assert_eq!(server.status().unwrap_err().code, Code::UNAVAILABLE);
    assert_eq!(server.add(add("a")).await.unwrap_err().code, Code::TRY_LATER);
    server.set_ranges(ranges(&["10.0.0.0/30"]), Duration::from_secs(30)).await.unwrap();
    for id in ["a", "b"] {
        server.add(add(id)).await.unwrap();
    }
    let full = "no IPv4 address left: 10.0.0.0/30 (2 addresses, 2 used, 0 cooling)";
    let error = server.status().unwrap_err();
    assert_eq!((error.code, error.details.as_str()), (Code::UNAVAILABLE, full));
    let error = server.add(add("c")).await.unwrap_err();
    assert_eq!((error.code, error.details.as_str()), (Code::TRY_LATER, full));

    let gone = Add { netns: "/run/netns/gone".into(), ..add("d") };
    let error = server.add(gone).await.unwrap_err();
    assert_eq!(
        (error.code, error.msg.as_str()),
        (Code::ENVIRONMENT, "CNI_NETNS=/run/netns/gone does not exist")
    );
    server.del(del("b")).await.unwrap();
    server.set_ranges(ranges(&["10.0.1.0/24"]), Duration::ZERO).await.unwrap();
    for (fault, code) in [("no netns", Code::ENVIRONMENT), ("name taken", Code::NAME_TAKEN)] {
        world.inspect(|inside| inside.create_fault = Some(fault));
        assert_eq!(server.add(add("c")).await.unwrap_err().code, code);
    }
    world.inspect(|inside| inside.unsynced = true);
    assert_eq!(server.add(add("c")).await.unwrap_err().code, Code::TRY_LATER);
    let error = server.status().unwrap_err();
    assert_eq!((error.code, error.details.as_str()), (Code::UNAVAILABLE, "source not synced"));
    assert_agree(&server, &world);
}

#[tokio::test]
async fn fixed_addresses_come_from_annotation_or_runtime() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let (server, _) = open(&world, dir.path()).await;
    let web = |id: &str| Add { pod: Some(ObjectName::new("shop", "web-0")), ..add(id) };
    world.annotate("web-0", "10.0.0.50");
    let result = server.add(web("c1")).await.unwrap();
    let fifty: IpAddr = "10.0.0.50".parse().unwrap();
    assert_eq!(addresses(&result)[0], fifty);

    world.annotate("thief", "10.0.0.50");
    let thief = Add { pod: Some(ObjectName::new("shop", "thief")), ..add("c2") };
    let error = server.add(thief.clone()).await.unwrap_err();
    assert_eq!(error.code, Code::FIXED_ADDRESS);
    assert_eq!(error.details, "fixed address 10.0.0.50 is held by pod shop/web-0");

    let result = server.add(web("c3")).await.unwrap();
    assert_eq!(addresses(&result)[0], fifty, "the pod's new sandbox takes over");
    let left: Vec<_> = server.state().entries().map(|entry| entry.attachment.container_id.clone()).collect();
    assert_eq!(left, ["c3"]);
    server.add(Add { fixed: vec!["10.0.0.51".parse().unwrap()], ..web("c4") }).await.unwrap();
    server.del(del("c3")).await.unwrap();
    world.inspect(|inside| assert_eq!(inside.statuses[&ObjectName::new("shop", "web-0")], "c4"));
    server.del(del("c1")).await.unwrap();
    assert_agree(&server, &world);

    world.annotate("thief", "10.0.0.x");
    let error = server.add(thief.clone()).await.unwrap_err();
    assert_eq!(error.code, Code::FIXED_ADDRESS);
    let fixed = vec!["10.0.0.60".parse().unwrap()];
    let result = server.add(Add { fixed: fixed.clone(), ..thief }).await.unwrap();
    assert_eq!(addresses(&result)[0], fixed[0], "the runtime's word counts before the annotation");
    assert_agree(&server, &world);
}

#[tokio::test]
async fn a_chain_and_a_resolver_are_handed_on() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let (server, _) = open(&world, dir.path()).await;
    let previous = serde_json::json!({"interfaces": [{"name": "lo"}]});
    let dns = serde_json::json!({"nameservers": ["10.96.0.10"]});
    let request = Add {
        previous: Some(serde_json::from_value(previous).unwrap()),
        dns: Some(serde_json::from_value(dns).unwrap()),
        ..add("a")
    };
    let result = server.add(request).await.unwrap();
    assert_eq!(result.interfaces[0].name, "lo");
    assert_eq!(result.ips[0].interface, Some(2));
    assert_eq!(result.dns.nameservers, ["10.96.0.10"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_never_share_an_address() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let (server, _) = open(&world, dir.path()).await;
    server.set_ranges(ranges(&["10.0.0.0/22", "fd00::/64"]), Duration::ZERO).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200 {
        let server = Arc::clone(&server);
        tasks.spawn(async move {
            let id = format!("c{}", n % 150);
            let added = server.add(add(&id)).await;
            if n % 3 == 0 {
                server.del(del(&id)).await.unwrap();
            }
            added.map(drop).or_else(|error| if error.code == Code::DUPLICATE { Ok(()) } else { Err(error) })
        });
    }
    for result in tasks.join_all().await {
        result.unwrap();
    }
    assert_agree(&server, &world);
    let held: Vec<IpAddr> = server.state().entries().flat_map(|entry| entry.addresses.clone()).collect();
    assert_eq!(held.iter().collect::<BTreeSet<_>>().len(), held.len());
}

#[tokio::test]
async fn a_caller_that_hangs_up_does_not_stop_an_add() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let (server, _) = open(&world, dir.path()).await;
    {
        let mut call = std::pin::pin!(server.add(add("a")));
        assert!(futures_util::poll!(call.as_mut()).is_pending());
    }
    server.drain().await;
    assert_eq!(server.state().entries().count(), 1);
    assert_agree(&server, &world);
}

#[test]
fn aliases_are_read_back() {
    let one = attachment("c1");
    let pod = ObjectName::new("shop", "web-0");
    assert_eq!(alias(&one, Some(&pod)), "netd:c1:eth0:shop/web-0");
    assert_eq!(parse_alias("netd:c1:eth0:shop/web-0"), Some((one.clone(), Some(pod))));
    assert_eq!(parse_alias(&alias(&one, None)), Some((one, None)));
    let long = attachment(&"a".repeat(200));
    let name = ObjectName::new("shop", &"b".repeat(60));
    let text = alias(&long, Some(&name));
    assert!(text.len() < 256);
    assert_eq!(parse_alias(&text), Some((long, None)), "the attachment counts before the pod");
    for text in ["", "netd:", "netd:a:b", "netd::eth0:", "netd:a:eth0:pod", "eth0"] {
        assert_eq!(parse_alias(text), None, "{text}");
    }
}

/// The plugin has no kernel to work on here: the agent is there.
struct NoKernel;

impl crate::cni::plugin::Kernel for NoKernel {
    fn host_name(&self, _: &Attachment) -> String {
        panic!("the agent answers")
    }
    fn delete(&self, _: &str) -> Result<bool, crate::cni::plugin::Problem> {
        panic!("the agent answers")
    }
    fn expel(&self, _: &Path, _: &str, _: &[IpAddr]) -> Result<(), crate::cni::plugin::Problem> {
        panic!("the agent answers")
    }
    fn check(&self, _: &ledger::Entry) -> Result<(), crate::cni::plugin::Problem> {
        panic!("the agent answers")
    }
    fn remove_status(&self, _: &Path, _: &ObjectName, _: &str) -> Result<(), crate::cni::plugin::Problem> {
        panic!("the agent answers")
    }
}

/// Notes what it hears.
#[derive(Default)]
struct Notes(std::sync::Mutex<Vec<String>>);

impl Observer for Notes {
    fn answered(&self, answered: &Answered<'_>) {
        let Answered { verb, attachment, pod, addresses, error, .. } = answered;
        let of = attachment.map(|one| one.container_id.as_str());
        let pod = pod.as_ref().map(ToString::to_string);
        let code = error.map(|error| error.code.0);
        self.0.lock().unwrap().push(format!("{verb} {of:?} {pod:?} {addresses:?} {code:?}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plugin_reaches_the_server_over_its_socket() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let (server, _) = open(&world, dir.path()).await;
    let socket = dir.path().join("netd.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let notes = Arc::new(Notes::default());
    let router = router(Arc::clone(&server), Arc::clone(&notes));
    let serving = tokio::spawn(axum::serve(listener, router).into_future());

    let call = |command: &'static str, more: serde_json::Value| {
        let mut config = serde_json::json!({"cniVersion": "1.1.0", "name": "netd", "socket": socket});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let task = tokio::task::spawn_blocking(move || {
            let env = |name: &str| -> Option<std::ffi::OsString> {
                Some(match name {
                    "CNI_COMMAND" => command.into(),
                    "CNI_CONTAINERID" => "c1".into(),
                    "CNI_IFNAME" => "eth0".into(),
                    "CNI_NETNS" => NETNS.into(),
                    "CNI_ARGS" => "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=c1".into(),
                    _ => return None,
                })
            };
            let mut out = Vec::new();
            let code = crate::cni::plugin::run(&NoKernel, &env, &mut config.to_string().as_bytes(), &mut out);
            (code == std::process::ExitCode::SUCCESS, String::from_utf8(out).unwrap())
        });
        async { task.await.unwrap() }
    };
    let none = serde_json::json!({});
    let (ok, text) = call("ADD", none.clone()).await;
    assert!(ok, "{text}");
    let result: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.0.0.1/32");
    let old = serde_json::json!({"cniVersion": "0.4.0", "prevResult": result});
    let (ok, text) = call("ADD", old.clone()).await;
    assert!(!ok);
    let error: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&error["code"], &error["cniVersion"]),
        (&serde_json::json!(100), &serde_json::json!("0.4.0"))
    );
    assert_eq!(call("CHECK", old).await, (true, String::new()));
    assert_eq!(call("STATUS", none.clone()).await, (true, String::new()));
    let valid = serde_json::json!({"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]});
    assert_eq!(call("GC", valid).await, (true, String::new()));
    assert_eq!(server.state().entries().count(), 1);
    for _ in 0..2 {
        assert_eq!(call("DEL", none.clone()).await, (true, String::new()));
    }
    assert_agree(&server, &world);
    insta::assert_snapshot!(notes.0.lock().unwrap().join("\n"), @r#"
    ADD Some("c1") Some("shop/c1") [10.0.0.1, fd00::1] None
    ADD Some("c1") Some("shop/c1") [] Some(100)
    CHECK Some("c1") Some("shop/c1") [] None
    STATUS None None [] None
    GC None None [] None
    DEL Some("c1") Some("shop/c1") [] None
    DEL Some("c1") None [] None
    "#);
    serving.abort();
}
