//! A thousand pods come and go, 32 at a time, while the agent is killed again and again: nothing leaks and
//! nothing is given twice.
#![cfg(not(netd_bpf_stub))]

use anyhow::{Context as _, Result, anyhow, ensure};
use netd_integration::cni::{self, Refusal};
use netd_integration::lab::{Lab, pinned};
use netd_integration::node::Node;
use netd_integration::site::{Families, Site};
use netd_integration::traffic;
use netd_integration::wait;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

const PODS: u32 = 1000;
const AT_A_TIME: usize = 32;
/// Kills, spread over the pods.
const KILLS: u32 = 10;

/// Addresses in use, to find one given twice.
#[derive(Default)]
struct InUse(Mutex<BTreeSet<IpAddr>>);

impl InUse {
    fn take(&self, addresses: &[IpAddr]) -> Result<()> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for address in addresses {
            ensure!(held.insert(*address), "{address} is held by two pods");
        }
        Ok(())
    }

    fn give_back(&self, addresses: &[IpAddr]) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for address in addresses {
            held.remove(address);
        }
    }
}

/// One pod's life. An ADD that is refused because the agent is away is tried again as the kubelet does: DEL,
/// then a new sandbox.
fn live(node: &Node<'_>, n: u32, in_use: &InUse) -> Result<()> {
    let name = format!("pod{n}");
    wait::until(&format!("{name} to be added"), || {
        let (netns, attachment) = node.sandbox(&name)?;
        let added = node.runtime().add(&attachment);
        let outcome = match added {
            Ok(result) => {
                let addresses = cni::addresses(&result)?;
                in_use.take(&addresses)?;
                ensure!(addresses.len() == 2, "{name} got {addresses:?}");
                // Every tenth is tried out.
                if n.is_multiple_of(10) {
                    for address in &addresses {
                        traffic::ping(node.namespace(), *address)?;
                    }
                }
                in_use.give_back(&addresses);
                Some(())
            }
            Err(error) => match error.downcast_ref::<Refusal>() {
                Some(refusal) if refusal.code == 11 => None,
                _ => return Ok(Some(Err(error.context(name.clone())))),
            },
        };
        // DEL works with the agent and without it.
        if let Err(error) = node.runtime().del(&attachment) {
            return Ok(Some(Err(error.context(format!("DEL of {name}")))));
        }
        netns.delete()?;
        Ok(outcome.map(Ok))
    })?
}

/// All files below the node's folder but logs.
fn files(dir: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path);
            }
        }
    }
    Ok(found)
}

/// Everything of a node that a pod might leave something in.
fn footprint(lab: &Lab, site: &Site<'_>, node: &Node<'_>) -> Result<BTreeMap<String, String>> {
    let mut prints = BTreeMap::new();
    let netns = node.namespace();
    let links = netns.ip("-o link show")?;
    let names: BTreeSet<&str> = links.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    prints.insert("links".into(), format!("{names:?}"));
    for family in ["-4", "-6"] {
        let routes = netns.ip(&format!("{family} route show table all"))?;
        let kept: BTreeSet<&str> = routes.lines().filter(|line| !line.contains("cache")).collect();
        prints.insert(format!("routes {family}"), format!("{kept:#?}"));
        let neighbours = netns.ip(&format!("{family} neighbour show nud permanent"))?;
        prints.insert(format!("neighbours {family}"), neighbours);
    }
    for object in pinned(&lab.bpffs().join(node.name()))? {
        if ["POD_BY_IFINDEX", "POD_BY_ADDR", "SHARES", "FRONTENDS"].contains(&object.name.as_str()) {
            prints.insert(format!("rows of {}", object.name), object.rows()?.len().to_string());
        }
        let pins = prints.entry("pins".into()).or_default();
        *pins += &format!("{} ", object.path.display());
    }
    prints.insert("files".into(), format!("{:#?}", files(node.dir())?));
    prints.insert("state".into(), format!("{:#?}", files(site.state.dir())?));
    let ledger = fs::read_to_string(node.ledger()).unwrap_or_default();
    prints.insert("pods in the ledger".into(), ledger.matches("a-").count().to_string());
    Ok(prints)
}

#[test]
fn a_thousand_pods_leave_nothing() -> Result<()> {
    Lab::run(|lab| {
        let mut site = Site::new(lab, 1)?;
        site.add_node("a", 1, Families::Dual)?;
        let node = site.node("a")?;
        node.configure(|config| config.cool_down = "0s".into());
        node.start()?;
        // The first pod makes what every node has once, such as the ledger.
        let first = node.add_pod("first")?;
        node.del_pod(first)?;
        let before = footprint(lab, &site, node)?;

        let (in_use, next) = (InUse::default(), AtomicU32::new(0));
        let done = AtomicU32::new(0);
        std::thread::scope(|scope| -> Result<()> {
            let worker = || -> Result<()> {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= PODS {
                        return Ok(());
                    }
                    let lived = live(node, n, &in_use);
                    // Counted also when it failed, so that the killer below does not wait for it.
                    done.fetch_add(1, Ordering::Relaxed);
                    lived?;
                }
            };
            let workers: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(worker)).collect();
            for kill in 1..=KILLS {
                let goal = kill * PODS / (KILLS + 1);
                while done.load(Ordering::Relaxed) < goal && !workers.iter().all(|w| w.is_finished()) {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                node.kill9()?;
                node.start()?;
            }
            for worker in workers {
                worker.join().map_err(|_| anyhow!("a worker panicked"))??;
            }
            Ok(())
        })?;
        ensure!(done.load(Ordering::Relaxed) == PODS);

        wait::holds("the last traces to go", || Ok(footprint(lab, &site, node)? == before)).or_else(
            |_| {
                let after = footprint(lab, &site, node)?;
                let differs =
                    after.iter().find(|(what, is)| before.get(*what) != Some(is)).context("it went now")?;
                Err(anyhow!("{}: now {}, before {:?}", differs.0, differs.1, before.get(differs.0)))
            },
        )?;
        // And so after one more start.
        node.kill9()?;
        node.start()?;
        let after = footprint(lab, &site, node)?;
        ensure!(after == before, "after a restart: {after:#?}, before: {before:#?}");
        // All addresses can be had: nothing is lost.
        let pod = node.add_pod("last")?;
        node.runtime().check(&pod.attachment)
    })
}
