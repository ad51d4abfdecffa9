//! ADD and DEL as a container runtime does them, against Debian's `bridge` with `host-local`.
//!
//! Both plugins are executed by the same code, into the same number of sandboxes, which are made beforehand
//! and used again in each round. IPv4 only: `bridge` waits for duplicate address detection otherwise.

use super::Case;
use crate::options::Options;
use crate::report::{Bar, Row};
use crate::rounds::{self, Series};
use anyhow::{Context as _, Result, anyhow, ensure};
use netd_integration::cni::{Attachment, Runtime};
use netd_integration::lab::{Lab, Namespace};
use netd_integration::node::Tables;
use netd_integration::site::{Families, Site};
use netd_integration::stats;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const PLUGINS: &str = "/usr/lib/cni";
const REFERENCE: &str = "bridge + host-local";

struct Subject {
    name: &'static str,
    runtime: Runtime,
    sandboxes: Vec<Namespace>,
    /// Numbers containers.
    next: AtomicU32,
}

/// What ADD and DEL of all sandboxes came to.
struct Round {
    add: Vec<f64>,
    del: Vec<f64>,
    pods_per_second: f64,
}

#[derive(Default)]
struct Measured {
    add_p50: Series,
    add_p99: Series,
    del_p50: Series,
    del_p99: Series,
    pods_per_second: Series,
}

pub(super) fn run(lab: &Lab, options: &Options) -> Result<Vec<Row>> {
    ensure!(Path::new(PLUGINS).join("bridge").is_file(), "no bridge in {PLUGINS}");
    let pods = options.pick(128, 32);
    let mut site = Site::new(lab, 1)?;
    site.add_node("a", 1, Families::V4)?;
    let node = site.node("a")?;
    node.configure(|config| {
        config.tables = Tables::DEFAULT;
        config.cool_down = "0s".into();
        config.log = "info".into();
    });
    node.start()?;
    let subjects = [
        Subject::new(lab, REFERENCE, "bridge", bridge(lab)?, pods)?,
        Subject::new(lab, "netd", "netd", node.runtime().clone(), pods)?,
    ];

    let mut rows = Vec::new();
    for lanes in [1, 32] {
        let mut all: Vec<Measured> = subjects.iter().map(|_| Measured::default()).collect();
        for round in 0..options.rounds() {
            for i in rounds::order(subjects.len(), round) {
                let (subject, measured) = subjects.get(i).zip(all.get_mut(i)).context("no such subject")?;
                measured.take(&subject.round(lanes)?);
            }
        }
        let at_once = if lanes == 1 { "one at a time".to_owned() } else { format!("{lanes} at a time") };
        let reference = all.first().context("no reference")?;
        for (subject, measured) in subjects.iter().zip(&all) {
            let pairs = measured.metrics().into_iter().zip(reference.metrics());
            for ((metric, unit, series), (_, _, other)) in pairs {
                let metric_at = format!("{metric}, {at_once}");
                let mut row = Row::new(Case::Cni, subject.name, metric_at, unit, series.clone());
                if subject.name != REFERENCE {
                    row = row.to(REFERENCE, other);
                    row = match (metric, lanes) {
                        ("ADD p50", 1) => row.bar(Bar::at_most(5.0, 3.0)),
                        ("pods", 32) => row.bar(Bar::at_least(200.0, 300.0)),
                        _ => row,
                    };
                }
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

/// A node whose runtime has a conflist with the `bridge` plugin.
fn bridge(lab: &Lab) -> Result<Runtime> {
    let host = lab.namespace("bridge")?;
    host.sysctl("net/ipv4/ip_forward", "1")?;
    let dir = lab.dir().join("bridge");
    let conf_dir = dir.join("net.d");
    fs::create_dir_all(&conf_dir)?;
    let list = serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "bench",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "dataDir": dir.join("networks"),
                "ranges": [[{"subnet": "10.244.2.0/23"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    });
    fs::write(conf_dir.join("10-bench.conflist"), list.to_string())?;
    Ok(Runtime {
        host,
        conf_dir,
        path: vec![PLUGINS.into()],
        cache: dir.join("results"),
        version: "1.1.0".into(),
    })
}

impl Subject {
    fn new(lab: &Lab, name: &'static str, short: &str, runtime: Runtime, pods: usize) -> Result<Self> {
        let sandboxes: Result<Vec<Namespace>> =
            (0..pods).map(|i| lab.namespace(&format!("{short}-{i}"))).collect();
        Ok(Self { name, runtime, sandboxes: sandboxes?, next: AtomicU32::new(0) })
    }

    /// ADD to all sandboxes, then DEL from all.
    fn round(&self, lanes: usize) -> Result<Round> {
        let attachments: Vec<Attachment> = self
            .sandboxes
            .iter()
            .map(|sandbox| {
                let container = format!("c{}", self.next.fetch_add(1, Ordering::Relaxed));
                Attachment::of_pod(&container, sandbox.path().into(), "default", &container)
            })
            .collect();
        let start = Instant::now();
        let add = each(lanes, &attachments, |attachment| self.runtime.add(attachment).map(drop))?;
        let took = start.elapsed();
        let del = each(lanes, &attachments, |attachment| self.runtime.del(attachment))?;
        let count = f64::from(u32::try_from(attachments.len())?);
        Ok(Round { add, del, pods_per_second: count / took.as_secs_f64() })
    }
}

/// Does something with each of `items`, `lanes` at a time; how long each took, in milliseconds.
fn each<T: Sync>(lanes: usize, items: &[T], act: impl Fn(&T) -> Result<()> + Sync) -> Result<Vec<f64>> {
    let next = AtomicUsize::new(0);
    let lane = || {
        let mut times = Vec::new();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            let start = Instant::now();
            act(item)?;
            times.push(milliseconds(start.elapsed()));
        }
        Ok(times)
    };
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        let mut all = Vec::new();
        for lane in lanes {
            let times: Result<Vec<f64>> = lane.join().map_err(|_| anyhow!("a lane panicked"))?;
            all.extend(times?);
        }
        Ok(all)
    })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Measured {
    fn take(&mut self, round: &Round) {
        self.add_p50.push(stats::quantile(&round.add, 0.5));
        self.add_p99.push(stats::quantile(&round.add, 0.99));
        self.del_p50.push(stats::quantile(&round.del, 0.5));
        self.del_p99.push(stats::quantile(&round.del, 0.99));
        self.pods_per_second.push(round.pods_per_second);
    }

    fn metrics(&self) -> [(&'static str, &'static str, &Series); 5] {
        [
            ("ADD p50", "ms", &self.add_p50),
            ("ADD p99", "ms", &self.add_p99),
            ("DEL p50", "ms", &self.del_p50),
            ("DEL p99", "ms", &self.del_p99),
            ("pods", "1/s", &self.pods_per_second),
        ]
    }
}
