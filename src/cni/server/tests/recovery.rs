//! What a start makes of what a crash, or a stranger, left behind.

use super::*;

/// What `kill -9` in the middle of a step, or just after it, leaves: the step never returns, and the server
/// is gone.
fn killed_at(
    world: &World,
    dir: &Path,
    step: &'static str,
    fate: Fate,
    verb: fn(&Arc<Server<World>>) -> Call,
) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let (server, _) = open(world, dir).await;
        server.add(add("old")).await.unwrap();
        world.doom(step, fate);
        tokio::select! {
            result = verb(&server) => panic!("{step}: {result:?}"),
            () = world.stuck() => {}
        }
    });
    drop(runtime);
}

type Call = std::pin::Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

#[test]
fn recovers_from_a_kill_at_every_step() {
    let adding: fn(&Arc<Server<World>>) -> Call = |server| {
        let server = Arc::clone(server);
        Box::pin(async move { server.add(add("c1")).await.map(drop) })
    };
    let deleting: fn(&Arc<Server<World>>) -> Call = |server| {
        let server = Arc::clone(server);
        Box::pin(async move { server.del(del("old")).await })
    };
    let adds = STEPS.map(|step| (step, adding));
    let dels = ["remove_status", "expel", "delete"].map(|step| (step, deleting));
    for (step, verb) in adds.into_iter().chain(dels) {
        for fate in [Fate::Hangs, Fate::HappensAndHangs] {
            let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
            killed_at(&world, dir.path(), step, fate, verb);
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let (server, recovery) = open(&world, dir.path()).await;
                assert_eq!(recovery.problems, Vec::<String>::new(), "{step}");
                assert_eq!(recovery.fresh, None);
                assert_agree(&server, &world);
                for id in ["old", "c1", "c1"] {
                    server.del(del(id)).await.unwrap();
                }
                assert_agree(&server, &world);
                assert_eq!(server.state().entries().count(), 0);
                server.add(add("c1")).await.unwrap();
            });
        }
    }
}

#[tokio::test]
async fn a_restart_changes_nothing() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let before = {
        let (server, _) = open(&world, dir.path()).await;
        for id in ["a", "b", "c"] {
            server.add(add(id)).await.unwrap();
        }
        (server.state(), fs::read(dir.path().join("ledger.json")).unwrap())
    };
    let (server, recovery) = open(&world, dir.path()).await;
    assert_eq!(recovery, Recovery { kept: 3, ..Recovery::default() });
    assert!(server.state().entries().eq(before.0.entries()));
    assert_eq!(fs::read(dir.path().join("ledger.json")).unwrap(), before.1);
    let again = server.recover().await.unwrap();
    assert_eq!(again, recovery, "and so does the audit");
    assert_agree(&server, &world);
}

#[tokio::test]
async fn recovery_clears_what_nobody_answers_for() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    {
        let (server, _) = open(&world, dir.path()).await;
        for id in ["a", "b", "c"] {
            server.add(add(id)).await.unwrap();
        }
    }
    world.inspect(|inside| {
        // b's namespace went, and took the link with it; a's rows and programs were lost; c's link was made
        // anew under another index; and there are a link, a row and a status of nobody.
        inside.links.remove("nd-b-eth0").unwrap();
        let a = inside.links["nd-a-eth0"].ifindex;
        inside.rows.remove(&a);
        inside.attached.remove(&a);
        let c = inside.links.get_mut("nd-c-eth0").unwrap();
        (c.ifindex, c.link) = (77, None);
        inside.started.insert(77);
        let mut stray = inside.links["nd-a-eth0"].clone();
        stray.ifindex = 78;
        stray.name = "nd-stray".to_owned();
        stray.alias = "netd:stray:eth0:shop/stray".to_owned();
        inside.links.insert(stray.name.clone(), stray);
        let addresses = vec!["10.0.0.99".parse().unwrap()];
        inside.rows.insert(99, Row { ifindex: 99, endpoint: 9, addresses });
        inside.statuses.insert(ObjectName::new("shop", "gone"), "gone".to_owned());
    });
    let (server, recovery) = open(&world, dir.path()).await;
    let expected = Recovery {
        kept: 2,
        released: 1,
        links_deleted: 1,
        rows_removed: 3,
        statuses_removed: 1,
        ..Recovery::default()
    };
    assert_eq!(recovery, expected);
    world.inspect(|inside| {
        inside.attached.retain(|index| inside.rows.contains_key(index));
        inside.started.retain(|index| inside.rows.contains_key(index));
    });
    assert_agree(&server, &world);
}

#[tokio::test]
async fn a_lost_ledger_is_rebuilt_from_the_kernel() {
    for damage in [None, Some("{")] {
        let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
        let path = dir.path().join("ledger.json");
        let before: Vec<_> = {
            let (server, _) = open(&world, dir.path()).await;
            for id in ["a", "b", "c"] {
                server.add(add(id)).await.unwrap();
            }
            server.del(del("a")).await.unwrap();
            let state = server.state();
            state
                .entries()
                .map(|e| (e.attachment.clone(), e.addresses.clone(), e.endpoint, e.pod.clone()))
                .collect()
        };
        // Two links that cannot be: one without an address, one with another's.
        world.inspect(|inside| {
            let mut bare = inside.links["nd-b-eth0"].clone();
            bare.ifindex = 50;
            bare.addresses.clear();
            (bare.name, bare.alias) = ("nd-bare".to_owned(), "netd:bare:eth0:shop/bare".to_owned());
            let mut thief = inside.links["nd-b-eth0"].clone();
            thief.ifindex = 51;
            (thief.name, thief.alias) = ("nd-thief".to_owned(), "netd:thief:eth0:".to_owned());
            inside.links.extend([(bare.name.clone(), bare), (thief.name.clone(), thief)]);
        });
        match damage {
            None => fs::remove_file(&path).unwrap(),
            Some(text) => fs::write(&path, text).unwrap(),
        }
        let (server, recovery) = open(&world, dir.path()).await;
        assert_eq!((recovery.adopted, recovery.kept, recovery.links_deleted), (2, 2, 2), "{recovery:?}");
        assert_eq!(
            recovery.problems,
            ["eth0 of container thief has address 10.0.0.2, which eth0 of container b holds"]
        );
        match recovery.fresh.unwrap() {
            ledger::Fresh::Missing => assert_eq!(damage, None),
            ledger::Fresh::SetAside { to, .. } => {
                assert_eq!(fs::read_to_string(to).unwrap(), damage.unwrap());
            }
        }
        let state = server.state();
        let after: Vec<_> = state
            .entries()
            .map(|e| (e.attachment.clone(), e.addresses.clone(), e.endpoint, e.pod.clone()))
            .collect();
        assert_eq!(before, after);
        assert_agree(&server, &world);
        server.del(del("b")).await.unwrap();
        assert_agree(&server, &world);
    }
}

#[tokio::test]
async fn a_link_that_cannot_be_removed_keeps_its_addresses() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    {
        let (server, _) = open(&world, dir.path()).await;
        server.add(add("a")).await.unwrap();
    }
    let text = fs::read_to_string(dir.path().join("ledger.json")).unwrap();
    {
        let (server, _) = open(&world, dir.path()).await;
        server.add(add("b")).await.unwrap();
    }
    fs::write(dir.path().join("ledger.json"), text).unwrap();
    world.doom("delete", Fate::Fails);
    let (server, recovery) = open(&world, dir.path()).await;
    assert_eq!((recovery.adopted, recovery.kept), (1, 2));
    assert_eq!(recovery.problems, ["link nd-b-eth0: delete was doomed"]);
    assert!(server.state().holder("10.0.0.2".parse().unwrap()).is_some());
}

#[tokio::test]
async fn a_link_that_was_never_finished_is_undone() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    {
        let (server, _) = open(&world, dir.path()).await;
        for id in ["half", "drifted", "nameless"] {
            server.add(add(id)).await.unwrap();
        }
    }
    world.inspect(|inside| {
        for end in inside.links.values_mut() {
            end.addresses.clear();
        }
        for pod in ["half", "nameless"] {
            inside.statuses.remove(&ObjectName::new("shop", pod));
        }
        inside.nameless.insert("nd-nameless-eth0".to_owned());
    });
    let (server, recovery) = open(&world, dir.path()).await;
    assert_eq!((recovery.kept, recovery.released), (1, 2), "{recovery:?}");
    let left: Vec<_> = server.state().entries().map(|entry| entry.attachment.container_id.clone()).collect();
    assert_eq!(left, ["drifted"], "a pod that was once complete is never removed on a guess");
    world.inspect(|inside| assert_eq!(inside.links.len(), 1, "also the link that has no alias yet is gone"));
}
