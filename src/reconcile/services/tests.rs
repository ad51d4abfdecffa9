use super::*;
use crate::model::{ObjectName, Protocol};
use crate::service::plan::{DesiredBackend, DesiredFrontend, DesiredService};
use netd_bpf::Addr;
use netd_bpf::service::backend_state;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Mutex;

const LIMITS: Limits = Limits { frontends: 8, backends: 9, slots: 8 };

/// The maps' content, as the kernel would keep it when the agent is gone.
#[derive(Debug, Default)]
struct Rows {
    frontends: BTreeMap<FrontendKey, Frontend>,
    slots: BTreeMap<u32, u32>,
    backends: BTreeMap<u32, Backend>,
    writes: usize,
    /// Frontends whose updates are refused.
    broken: Vec<FrontendKey>,
}

#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<Rows>>);

#[derive(Debug, thiserror::Error)]
#[error("FRONTENDS")]
struct Refused(#[source] std::io::Error);

impl Memory {
    fn with<T>(&self, f: impl FnOnce(&mut Rows) -> T) -> T {
        f(&mut self.0.lock().unwrap())
    }

    /// Where a frontend leads, if it is there.
    fn resolve(&self, key: &FrontendKey) -> Option<Vec<Backend>> {
        self.with(|rows| {
            let row = rows.frontends.get(key)?;
            let slots = row.slot_base..row.slot_base + u32::from(row.backends);
            Some(slots.map(|slot| rows.backends[&rows.slots[&slot]]).collect())
        })
    }
}

impl ServiceMaps for Memory {
    type Error = Refused;

    fn set_backend(&self, id: u32, row: &Backend) -> Result<(), Refused> {
        self.with(|rows| {
            rows.writes += 1;
            rows.backends.insert(id, *row);
        });
        Ok(())
    }

    fn set_slots(&self, base: u32, ids: &[u32]) -> Result<(), Refused> {
        self.with(|rows| {
            rows.writes += 1;
            rows.slots.extend((base..).zip(ids.iter().copied()));
        });
        Ok(())
    }

    fn set_frontend(&self, key: &FrontendKey, row: &Frontend) -> Result<(), Refused> {
        self.with(|rows| {
            if rows.broken.contains(key) {
                return Err(Refused(std::io::Error::from_raw_os_error(libc::E2BIG)));
            }
            rows.writes += 1;
            rows.frontends.insert(*key, *row);
            Ok(())
        })
    }

    fn delete_frontend(&self, key: &FrontendKey) -> Result<(), Refused> {
        self.with(|rows| {
            rows.writes += 1;
            rows.frontends.remove(key);
        });
        Ok(())
    }

    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, Refused> {
        Ok(self.with(|rows| rows.frontends.iter().map(|(key, row)| (*key, *row)).collect()))
    }

    fn slots(&self, base: u32, count: u32) -> Result<Vec<u32>, Refused> {
        let slot = |rows: &Rows, slot| rows.slots.get(&slot).copied().unwrap_or_default();
        Ok(self.with(|rows| (base..base + count).map(|at| slot(rows, at)).collect()))
    }

    fn backends(&self) -> Result<Vec<(u32, Backend)>, Refused> {
        Ok(self.with(|rows| rows.backends.iter().map(|(id, row)| (*id, *row)).collect()))
    }
}

/// Tells how many snapshots it was asked about.
struct Plans(watch::Sender<usize>);

impl Source for Plans {
    type Snapshot = (Option<u64>, Desired);

    fn generation(&self, snapshot: &Self::Snapshot) -> Option<u64> {
        self.0.send_modify(|asked| *asked += 1);
        snapshot.0
    }

    fn desired(&self, snapshot: &Self::Snapshot) -> Desired {
        snapshot.1.clone()
    }

    fn renew(&self, desired: &mut Desired, old: &Self::Snapshot, new: &Self::Snapshot) -> Option<Vec<usize>> {
        let keys = |plan: &Desired| -> Vec<_> {
            let keys = |service: &DesiredService| service.frontends.iter().map(|f| f.key).collect::<Vec<_>>();
            plan.services.iter().map(|service| (service.name.clone(), keys(service))).collect()
        };
        if keys(&old.1) != keys(&new.1) {
            return None;
        }
        assert_eq!(*desired, old.1);
        desired.clone_from(&new.1);
        let all = old.1.services.iter().zip(&new.1.services).enumerate();
        Some(all.filter(|(_, (old, new))| old != new).map(|(at, _)| at).collect())
    }
}

fn addr(a: u8, d: u8) -> Addr {
    Addr::from(IpAddr::V4(Ipv4Addr::new(a, 0, 0, d)))
}

fn key(n: u8) -> FrontendKey {
    FrontendKey { addr: addr(11, n), port: 80_u16.to_be(), proto: 6, scope: 0 }
}

/// Services by number, each with its backends' numbers.
fn desired(services: &[(u8, &[u8])]) -> Desired {
    let frontend = |n: u8, backends: &[u8]| DesiredFrontend {
        key: key(n),
        port: 80,
        protocol: Protocol::Tcp,
        affinity_seconds: None,
        backends: backends
            .iter()
            .map(|b| DesiredBackend {
                addr: addr(10, *b),
                port: 8080_u16.to_be(),
                local: false,
                pod: Some(ObjectName::new("shop", &format!("pod-{b}"))),
            })
            .collect(),
    };
    let services = services
        .iter()
        .map(|(n, backends)| DesiredService {
            name: ObjectName::new("shop", &format!("s{n}")),
            frontends: vec![frontend(*n, backends)],
        })
        .collect();
    Desired { services, ..Desired::default() }
}

/// A reconciler at work, over maps that outlive it.
struct Running {
    snapshots: watch::Sender<Arc<(Option<u64>, Desired)>>,
    asked: watch::Receiver<usize>,
    handle: Handle,
    metrics: ServiceMetrics,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Running {
    fn start(maps: &Memory, audit: Duration) -> Self {
        let (snapshots, receiver) = watch::channel(Arc::new((None, Desired::default())));
        let config = Config {
            quarantine: Duration::from_millis(50),
            audit,
            retry_first: Duration::from_millis(5),
            retry_longest: Duration::from_millis(20),
            ..Config::new(LIMITS)
        };
        let (count, asked) = watch::channel(0);
        let metrics = ServiceMetrics::default();
        let (reconciler, handle) =
            Reconciler::new(config, Plans(count), receiver, maps.clone(), metrics.clone());
        let cancel = CancellationToken::new();
        let task = tokio::spawn(reconciler.run(cancel.clone()));
        Self { snapshots, asked, handle, metrics, cancel, task }
    }

    fn publish(&self, generation: u64, desired: Desired) {
        self.snapshots.send_replace(Arc::new((Some(generation), desired)));
    }

    async fn until(&mut self, what: impl FnMut(&Arc<ServiceStatus>) -> bool) -> Arc<ServiceStatus> {
        let wait = self.handle.status.wait_for(what);
        let status = tokio::time::timeout(Duration::from_secs(20), wait).await;
        Arc::clone(&status.expect("it happens").unwrap())
    }

    async fn apply(&mut self, generation: u64, desired: Desired) -> Arc<ServiceStatus> {
        self.publish(generation, desired);
        self.until(|status| status.generation == Some(generation)).await
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
    }
}

const NEVER: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn nothing_is_deleted_before_the_source_has_spoken_and_a_restart_writes_nothing() {
    let maps = Memory::default();
    let wanted = desired(&[(1, &[1, 2]), (2, &[2])]);
    let mut first = Running::start(&maps, NEVER);
    let status = first.apply(1, wanted.clone()).await;
    assert!(status.is_well(), "{status:?}");
    assert_eq!((status.services, status.usages.slots.used, status.usages.backends.used), (2, 3, 3));
    first.stop().await;

    let writes = maps.with(|rows| rows.writes);
    let mut second = Running::start(&maps, NEVER);
    // The unsynced snapshot, which is empty, was looked at.
    second.asked.wait_for(|asked| *asked == 1).await.unwrap();
    second.apply(7, wanted).await;
    assert_eq!(maps.with(|rows| rows.writes), writes);

    let names = &second.handle.names;
    let number = maps.with(|rows| rows.frontends[&key(2)].service);
    let label = names.service(number).unwrap();
    assert_eq!(label.port.to_string(), "shop/s2:80/TCP");
    assert_eq!(label.addresses, ["11.0.0.2:80".parse::<SocketAddr>().unwrap()]);
    let backend = names.backend(2).unwrap();
    assert_eq!(backend.address, "10.0.0.2:8080".parse().unwrap());
    assert_eq!(backend.pod, Some(ObjectName::new("shop", "pod-2")));

    second.apply(8, desired(&[(1, &[1, 2])])).await;
    assert_eq!(second.handle.names.service(number), None);
    assert_eq!(second.handle.names.register().former_services[&number].to_string(), "shop/s2");
    second.stop().await;
}

#[tokio::test]
async fn a_refused_write_is_told_retried_and_does_not_stop_other_services() {
    let maps = Memory::default();
    let mut running = Running::start(&maps, NEVER);
    running.apply(1, desired(&[(1, &[1])])).await;
    maps.with(|rows| rows.broken.push(key(1)));

    running.publish(2, desired(&[(1, &[3]), (2, &[2])]));
    let status = running.until(|status| status.failures > 1).await;
    let error = status.error.as_deref().unwrap();
    let told = "setting frontend 11.0.0.1:80 protocol 6: FRONTENDS: Argument list too long";
    assert!(error.starts_with(told), "{error}");
    assert_eq!(status.generation, Some(1));
    assert_eq!(maps.resolve(&key(2)).unwrap().len(), 1, "the other Service is served");
    let former = maps.resolve(&key(1)).unwrap();
    assert_eq!((former[0].addr, former[0].state), (addr(10, 1), backend_state::ACTIVE));

    maps.with(|rows| rows.broken.clear());
    let status = running.until(|status| status.generation == Some(2)).await;
    assert!(status.is_well(), "{status:?}");
    assert_eq!(maps.resolve(&key(1)).unwrap()[0].addr, addr(10, 3));
    running.stop().await;
}

#[tokio::test]
async fn the_quarantine_ends_by_itself_and_lets_in_who_waits() {
    let maps = Memory::default();
    let mut running = Running::start(&maps, NEVER);
    running.apply(1, desired(&[(1, &[1, 2, 3, 4])])).await;
    // Eight slots: the last four come when the first four are out of quarantine.
    running.publish(2, desired(&[(2, &[5, 6, 7])]));
    running.until(|status| status.generation == Some(2)).await;
    running.publish(3, desired(&[(2, &[1, 2, 3, 4])]));
    let status = running.until(|status| status.generation == Some(3) && status.is_well()).await;
    assert_eq!(status.usages.backends.used, 4);
    let addrs: Vec<Addr> = maps.resolve(&key(2)).unwrap().iter().map(|row| row.addr).collect();
    assert_eq!(addrs, [1, 2, 3, 4].map(|n| addr(10, n)));

    running.publish(4, Desired::default());
    let status =
        running.until(|status| status.generation == Some(4) && status.usages.backends.held == 0).await;
    assert_eq!((status.usages.slots.used, status.usages.slots.held), (0, 0));
    assert!(maps.with(|rows| rows.backends.values().all(|row| row.state == backend_state::FREE)));
    running.stop().await;
}

#[tokio::test]
async fn an_audit_tells_and_repairs_what_others_changed() {
    let maps = Memory::default();
    let mut running = Running::start(&maps, Duration::from_millis(20));
    running.apply(1, desired(&[(1, &[1, 2]), (2, &[2])])).await;
    assert_eq!(running.until(|status| status.audits > 2).await.drift, 0);
    maps.with(|rows| {
        rows.frontends.remove(&key(1));
        rows.backends.get_mut(&2).unwrap().addr = addr(10, 99);
    });
    let status = running.until(|status| status.drift > 0).await;
    let told: Vec<String> = status.last_drift.iter().map(ToString::to_string).collect();
    assert!(told.contains(&"frontend 11.0.0.1:80 protocol 6 is missing".to_owned()), "{told:?}");
    let (drift, audits) = (status.drift, status.audits);
    let status = running.until(|status| status.audits > audits + 2).await;
    assert_eq!(status.drift, drift, "the repair lasts");
    for (n, backends) in [(1, &[1, 2][..]), (2, &[2])] {
        let addrs: Vec<Addr> = maps.resolve(&key(n)).unwrap().iter().map(|row| row.addr).collect();
        assert_eq!(addrs, backends.iter().map(|b| addr(10, *b)).collect::<Vec<_>>());
    }
    running.stop().await;
}

#[tokio::test]
async fn metrics_have_the_figures_of_the_status() {
    let maps = Memory::default();
    let mut running = Running::start(&maps, NEVER);
    running.apply(3, desired(&[(1, &[1, 2]), (2, &[2, 3, 4, 5, 6, 7])])).await;
    let mut registry = prometheus_client::registry::Registry::with_prefix("netd");
    running.metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        "netd_service_generation 3",
        "netd_service_rows{table=\"frontends\"} 1",
        "netd_service_rows{table=\"slots\"} 2",
        "netd_service_rows_limit{table=\"backends\"} 8",
        "netd_service_refused{reason=\"slots\"} 1",
        "netd_service_refused{reason=\"backends\"} 0",
        "netd_service_refused{reason=\"target_port\"} 0",
        "netd_service_operations_total 4",
        "netd_service_apply_seconds_count 1",
    ] {
        assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
    }
    running.stop().await;
}
