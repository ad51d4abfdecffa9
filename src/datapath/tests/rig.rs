//! A datapath for each test that is as new: bpffs of its own, new network namespace, two pods.

use super::frames::addr;
use super::pool::{Lease, Loaded};
use crate::datapath::config::{Audit, Config, Timeouts};
use crate::datapath::test_run::{Ran, Stage};
use crate::datapath::{Datapath, Error, OpenReport, Sets, locked};
use aya::programs::{TestRun, TestRunOptions};
use netd_bpf::Addr;
use netd_bpf::flow::{Flow, FlowKey};
use netd_bpf::pod::Pod;
use netd_bpf::service::{
    Affinity, AffinityKey, Backend, Frontend, FrontendKey, backend_state, frontend_flag, kind, scope,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Interface of pod 1: the loopback device stands for it, as a test run needs one that exists.
pub(crate) const IFINDEX: u32 = 1;
/// Interface index of pod 2.
pub(crate) const OTHER_IFINDEX: u32 = 77;
pub(crate) const SERVICE: u32 = 9;

/// Removes the mount and the folder whatever happens.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("netd-test-").tempdir().expect("a temporary folder");
        Self(folder.keep())
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            bpffs: self.0.join("bpf"),
            flows: 1024,
            flows_per_pod: 512,
            nursery: 1024,
            affinity: 64,
            frontends: 64,
            backends: 64,
            slots: 256,
            pods: 16,
            policy_rows: 64,
            policy_ranges: 128,
            identities: 64,
            blocks: 16,
            timeouts: Timeouts::default(),
            audit: Audit::default(),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A test that failed before the mount has none to take away.
        nix::mount::umount2(&self.0.join("bpf"), nix::mount::MntFlags::MNT_DETACH).ok();
        std::fs::remove_dir_all(&self.0).ok();
    }
}

pub(crate) struct Rig {
    pub(crate) datapath: Arc<Datapath>,
    pub(crate) report: Arc<OpenReport>,
    pub(crate) folder: Arc<Folder>,
    /// Of one that other tests had and will have; the last field, so that it is dropped last.
    _lease: Option<Lease>,
}

/// Runs a test in a network namespace of its own.
pub(crate) fn isolated(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
        run(&["ip", "link", "set", "lo", "up"]);
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) fn run(command: &[&str]) {
    let (program, arguments) = command.split_first().expect("a command");
    let status = std::process::Command::new(program).args(arguments).status().expect("the command exists");
    assert!(status.success(), "{command:?}: {status}");
}

/// The uplink `up0`, whose MAC address ends in 99; its number.
pub(crate) fn uplink() -> u32 {
    run(&[
        "ip",
        "link",
        "add",
        "up0",
        "address",
        "02:00:00:00:00:99",
        "type",
        "veth",
        "peer",
        "name",
        "far0",
    ]);
    nix::net::if_::if_nametoindex("up0").expect("it was made")
}

impl Rig {
    /// Pod 1 at the interface of the test run, pod 2 beside it, both dual stack. For tests that leave nothing but
    /// rows: what is loaded is another test's afterwards.
    pub(crate) fn new() -> Self {
        let (Loaded { datapath, report, folder, .. }, lease) = Lease::take();
        Self { datapath, report, folder, _lease: Some(lease) }.with_pods()
    }

    /// The same, loaded for this test alone.
    pub(crate) fn fresh() -> Self {
        Self::with(|_| {})
    }

    /// The same with another configuration.
    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = Folder::new();
        let mut config = folder.config();
        change(&mut config);
        let (datapath, report) = Datapath::open(&config).expect("the programs load");
        let (datapath, report, folder) = (Arc::new(datapath), Arc::new(report), Arc::new(folder));
        Self { datapath, report, folder, _lease: None }.with_pods()
    }

    fn with_pods(self) -> Self {
        self.upsert_pod(&pod(IFINDEX, 1, "10.0.0.1", "fd00::1")).expect("room");
        self.upsert_pod(&pod(OTHER_IFINDEX, 2, "10.0.0.2", "fd00::2")).expect("room");
        self
    }

    /// Writes the rows of a pod that no policy isolates.
    pub(crate) fn upsert_pod(&self, pod: &Pod) -> Result<(), Error> {
        self.datapath.set_policy(pod.endpoint, Sets::OPEN)?;
        self.datapath.upsert_pod(pod)
    }

    pub(crate) fn pod_sends(&self, frame: &[u8]) -> Ran {
        self.datapath.test_run(Stage::PodEgress, frame, IFINDEX, false, 1).expect("it runs")
    }

    /// A train of TCP segments or UDP datagrams of so many bytes each, as a pod's kernel leaves it to the
    /// hardware. Gives the verdict.
    pub(super) fn pod_sends_train(&self, frame: &[u8], segment: u32) -> i32 {
        // `struct __sk_buff`.
        let mut context = [0; 192];
        for (offset, word) in [(40, IFINDEX), (164, 2), (176, segment)] {
            context[offset..offset + 4].copy_from_slice(&word.to_ne_bytes());
        }
        let mut packet = [0; 4096];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut packet),
            ctx_in: Some(&context),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let programs = self.datapath.programs.read().expect("nobody panicked");
        let ran = programs.pod_egress.test_run(options).expect("it runs");
        ran.return_value.cast_signed()
    }

    pub(crate) fn pod_receives(&self, frame: &[u8]) -> Ran {
        self.datapath.test_run(Stage::PodIngress, frame, IFINDEX, false, 1).expect("it runs")
    }

    /// Packets dropped for a reason.
    pub(crate) fn drops(&self, reason: u8) -> u64 {
        let counts = self.datapath.drop_counts().expect("readable");
        counts.iter().filter(|(key, _)| key.reason == reason).map(|(_, count)| count.packets).sum()
    }

    /// A Service with these backends, their ids from 1 on.
    pub(crate) fn service(&self, vip: &str, port: u16, proto: u8, backends: &[(&str, u16)]) {
        let mut ids = Vec::new();
        for (id, (ip, port)) in (1..).zip(backends) {
            self.backend(id, ip, *port, proto, backend_state::ACTIVE, 1);
            ids.push(id);
        }
        self.datapath.set_slots(0, &ids).expect("room");
        self.frontend(vip, port, proto, kind::BALANCE, u16::try_from(ids.len()).expect("few"));
    }

    /// The same with `sessionAffinity: ClientIP`.
    pub(crate) fn sticky(&self, vip: &str, proto: u8, seconds: u32, backends: &[(&str, u16)]) {
        self.service(vip, 80, proto, backends);
        let frontend = Frontend {
            service: SERVICE,
            backends: u16::try_from(backends.len()).expect("few"),
            flags: frontend_flag::AFFINITY,
            affinity_seconds: seconds,
            ..Frontend::default()
        };
        self.datapath.set_frontend(&frontend_key(vip, 80, proto), &frontend).expect("room");
    }

    /// The row of a client in the table of affinities, changed.
    pub(crate) fn age(&self, client: Addr, change: impl FnOnce(&mut Affinity)) {
        let key = AffinityKey { client, service: SERVICE };
        let mut rows = locked(&self.datapath.affinity);
        let mut row = rows.get(&key, 0).expect("a row");
        change(&mut row);
        rows.insert(key, row, 0).expect("room");
    }

    /// A flow's row, in whichever table.
    pub(crate) fn flow(&self, key: &FlowKey) -> Option<Flow> {
        let found = locked(&self.datapath.established).get(key, 0).ok();
        found.or_else(|| locked(&self.datapath.nursery).get(key, 0).ok())
    }

    /// Forgets all flows and affinities.
    pub(crate) fn forget(&self) {
        for row in self.datapath.flows().expect("readable") {
            self.datapath.remove_flow(&row.key).expect("removable");
        }
        for (key, _) in self.datapath.affinities().expect("readable") {
            locked(&self.datapath.affinity).remove(&key).expect("removable");
        }
    }

    /// Writes a frontend's row as it is, seal included.
    pub(crate) fn raw_frontend(&self, key: &FrontendKey, row: &Frontend) {
        locked(&self.datapath.frontends).insert(key, row, 0).expect("room");
    }

    pub(crate) fn backend(&self, id: u32, ip: &str, port: u16, proto: u8, state: u8, generation: u32) {
        let backend =
            Backend { addr: addr(ip), port: port.to_be(), proto, state, generation, service: SERVICE };
        self.datapath.set_backend(id, &backend).expect("room");
    }

    pub(crate) fn frontend(&self, vip: &str, port: u16, proto: u8, kind: u8, backends: u16) {
        let frontend = Frontend { service: SERVICE, backends, kind, ..Frontend::default() };
        self.datapath.set_frontend(&frontend_key(vip, port, proto), &frontend).expect("room");
    }
}

pub(crate) fn frontend_key(vip: &str, port: u16, proto: u8) -> FrontendKey {
    FrontendKey { addr: addr(vip), port: port.to_be(), proto, scope: scope::INTERNAL }
}

pub(crate) fn pod(ifindex: u32, endpoint: u32, v4: &str, v6: &str) -> Pod {
    Pod {
        v4: if v4.is_empty() { Addr::UNSPECIFIED } else { addr(v4) },
        v6: if v6.is_empty() { Addr::UNSPECIFIED } else { addr(v6) },
        ifindex,
        endpoint,
        pod_mac: [2, 0, 0, 0, 1, endpoint.to_le_bytes()[0]],
        host_mac: [2, 0x6e, 0x65, 0x74, 0x64, 1],
        ..Pod::default()
    }
}
