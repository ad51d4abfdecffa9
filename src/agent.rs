//! The agent: builds everything, owns the tasks, stops them in order.
//!
//! | task | does |
//! |---|---|
//! | `source` | the state folder → model → store |
//! | `services` | Services → the datapath's tables |
//! | `policies` | NetworkPolicies → the datapath's tables and the sets of pods |
//! | `node` | forwarding, uplinks, routes to other nodes |
//! | `addresses` | this node's ranges, from the configuration or its Node object → the ledger |
//! | `audit` | pods: ledger, links, programs and rows, compared every five minutes |
//! | `install` | the CNI plugin and its conflist, once the agent is ready |
//! | `reclaim` | expired flows, and how full their tables are |
//! | `drops` | the datapath's drop events → log, ring and monitor |
//! | `flows` | which new flows are told |
//! | `changes` | what changes, while somebody watches → monitor |
//! | `api`, `metrics` | HTTP on the Unix socket and on TCP |
//!
//! Start: the node's lock, the datapath (which adopts what an earlier agent left), the ledger and its
//! recovery, then the tasks. Stop: no new requests, those under way are finished, then the tasks end; what
//! the kernel holds stays, so that traffic goes on.

mod addresses;
mod api;
mod changes;
pub mod config;
mod drops;
mod flows;
mod lock;
mod metrics;
mod monitor;
mod plumbing;
mod policies;
mod questions;
mod ready;
mod reclaim;
pub mod refusal;
mod reload;
mod requests;
mod seams;
mod state;
mod tasks;

use crate::cni::install;
use crate::cni::server::{self, Options, Recovery, Server};
use crate::config::{Config, Loader};
use crate::datapath::events::Events;
use crate::datapath::{Datapath, Kept, OpenReport, Resized};
use crate::directory;
use crate::ipam::ledger::Fresh;
use crate::net::host;
use crate::net::netlink::Netlink;
use crate::reconcile::node;
use crate::reconcile::policy::{self, PolicyMetrics};
use crate::reconcile::services::{self, ServiceMetrics};
use crate::service::tables::Limits;
use crate::store::Store;
use crate::telemetry::logs;
use crate::telemetry::metrics::Metrics;
use arc_swap::ArcSwapOption;
use monitor::Monitor;
use plumbing::Kernel;
use ready::Readiness;
use requests::Requests;
use seams::{Maps, OnNode, PolicyTables};
use state::State;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};
use tasks::Tasks;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, Notify, watch};

/// Time between two comparisons of ledger, kernel and tables.
const AUDIT: Duration = Duration::from_secs(300);

/// How long tasks may take to end once they are told to.
const STOP: Duration = Duration::from_secs(5);

/// Why the agent did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent has this node.
    #[error(transparent)]
    Lock(#[from] lock::Error),
    /// The datapath.
    #[error("the eBPF datapath does not start{kept}")]
    Datapath {
        /// Where the verifier's log is, if one refused a program.
        kept: refusal::Kept,
        /// Why not.
        #[source]
        source: crate::datapath::Error,
    },
    /// The network.
    #[error("the node's network cannot be read")]
    Netlink(#[from] crate::net::netlink::Error),
    /// The uplinks.
    #[error("the node's network cannot be set up")]
    Host(#[from] host::Error),
    /// The CNI server.
    #[error("the CNI server does not start")]
    Cni(#[from] server::OpenError),
    /// A folder that must survive a reboot.
    #[error("cannot create the state folder {}", path.display())]
    StateDir {
        /// Its path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A listener.
    #[error("cannot listen on {on}")]
    Listen {
        /// Where.
        on: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refuses a signal handler or a descriptor.
    #[error("the runtime cannot be set up")]
    Runtime(#[source] std::io::Error),
    /// A blocking step panicked.
    #[error("a step of the start did not end")]
    Step(#[from] tokio::task::JoinError),
}

/// The signals that steer the agent.
struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Error> {
        let listen = |kind| signal(kind).map_err(Error::Runtime);
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }
}

/// Runs until SIGTERM or SIGINT; SIGHUP loads the configuration again, audits the pods and looks for expired
/// flows.
///
/// # Errors
/// Something that the agent cannot do without failed at start.
pub async fn run(config: Config, loader: Loader, logs: logs::Handle) -> Result<(), Error> {
    let started = Instant::now();
    let mut signals = Signals::listen()?;
    let _lock = lock::NodeLock::take(&config.agent.run_dir)?;
    tracing::info!(
        target: "netd::agent",
        "netd {}, BPF schema {}, configuration {}, socket {}",
        env!("CARGO_PKG_VERSION"),
        netd_bpf::SCHEMA,
        loader.path().display(),
        config.agent.socket().display(),
    );
    let agent = start(config, started).await?;
    tracing::info!(target: "netd::agent", "node {}: started in {:?}", agent.state.node, started.elapsed());
    let mut in_force = agent.config.clone();
    loop {
        tokio::select! {
            _ = signals.hangup.recv() => {
                reload::reload(&loader, &mut in_force, &logs);
                agent.audit.notify_one();
                agent.state.policy.audit();
                agent.state.reclaimed.ask();
                agent.state.cni.set_sync_wait(in_force.cni.sync_wait);
                agent.settings.send_replace(Arc::new(in_force.clone()));
            }
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            () = agent.readiness.ready(), if !agent.state.announced() => agent.state.announce(),
        }
    }
    agent.stop().await;
    Ok(())
}

/// Everything that runs.
struct Agent {
    config: Config,
    settings: watch::Sender<Arc<Config>>,
    tasks: Tasks,
    readiness: Readiness,
    state: Arc<State>,
    /// Asks for an audit now.
    audit: Arc<Notify>,
}

async fn start(config: Config, started: Instant) -> Result<Agent, Error> {
    let tasks = Tasks::default();
    let readiness = Readiness::default();
    let settings = watch::Sender::new(Arc::new(config.clone()));
    let store = Arc::new(Store::new());
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.agent.state_dir)
        .map_err(|source| Error::StateDir { path: config.agent.state_dir.clone(), source })?;

    let datapath_config = config.datapath.clone();
    let (datapath, report) = tokio::task::spawn_blocking(move || Datapath::open(&datapath_config))
        .await?
        .map_err(|source| Error::Datapath { kept: refusal::keep(&config.agent.run_dir, &source), source })?;
    refusal::forget(&config.agent.run_dir);
    if let Some(error) = datapath.no_iterator() {
        let kept = refusal::keep(&config.agent.run_dir, error);
        if !matches!(kept, refusal::Kept::Nothing) {
            tracing::warn!(target: "netd::flows", "the kernel's map iterator cannot be used{kept}");
        }
    }
    tell_opening(&report);
    if report.mounted {
        tracing::info!(target: "netd::datapath", "a bpffs was mounted for {}", config.datapath.bpffs.display());
    }
    let datapath = Arc::new(datapath);

    let netlink = Netlink::open()?;
    let uplinks = host::uplinks(&netlink, &config.net).await?;
    for change in host::enable_forwarding(&netlink, &uplinks).await? {
        tracing::info!(target: "netd::node", "{change}");
    }
    let mtu = Arc::new(AtomicU32::new(host::pod_mtu(&config.net, &uplinks)));
    let addresses = watch::Sender::new(Arc::new(host::addresses(&netlink).await?));

    readiness.wait_for("source", format!("{} was not read yet", config.directory.path.display()));
    readiness.wait_for("services", "the Service tables were not written yet");
    readiness.wait_for("policies", "the policy tables were not written yet");
    readiness.wait_for("node", "uplinks and routes were not set up yet");
    readiness.wait_for("addresses", "no range to give addresses from is known yet");
    let (office, policy) = policy::Office::open(store.subscribe());
    let kernel = Kernel {
        netlink: netlink.clone(),
        datapath: Arc::clone(&datapath),
        store: Arc::clone(&store),
        state: config.directory.path.clone(),
        node: config.agent.node.clone(),
        mtu: Arc::clone(&mtu),
        readiness: readiness.clone(),
        policy: policy.clone(),
    };
    let options = Options {
        ledger: config.agent.ledger(),
        status_dir: Some(config.directory.path.clone()),
        cool_down: config.ipam.cool_down,
        sync_wait: config.cni.sync_wait,
    };
    let (cni, recovery) = Server::open(kernel, options).await?;
    tell(&recovery);

    let monitor = Monitor::default();
    let state = Arc::new(State {
        node: config.agent.node.clone(),
        source: config.directory.path.clone(),
        started,
        mtu,
        datapath,
        store,
        cni,
        services: ArcSwapOption::empty(),
        policy,
        node_status: watch::Sender::default(),
        addresses,
        tasks: tasks.clone(),
        readiness: readiness.clone(),
        drops: drops::Drops::default(),
        requests: Arc::new(Requests::new(monitor.clone())),
        monitor,
        book: std::sync::Mutex::default(),
        reclaimed: reclaim::Reclaimed::default(),
        announced: false.into(),
        flow_audit: 0.into(),
    });
    let (service_metrics, policy_metrics) = (ServiceMetrics::default(), PolicyMetrics::default());
    let metrics = metrics::build(&state, &service_metrics, &policy_metrics);

    let socket = config.agent.socket();
    let listen = |on: String| move |source| Error::Listen { on, source };
    let listener = api::bind(&socket).map_err(listen(socket.display().to_string()))?;
    let public = match config.agent.metrics_listen {
        Some(address) => {
            let bound = TcpListener::bind(address).and_then(|bound| {
                bound.set_nonblocking(true)?;
                Ok(bound)
            });
            Some(bound.map_err(listen(address.to_string()))?)
        }
        None => None,
    };
    let agent = Agent { config, settings, tasks, readiness, state, audit: Arc::default() };
    agent.spawn_source();
    agent.spawn_services(service_metrics);
    agent.spawn_policies(office, policy_metrics);
    agent.spawn_node(netlink);
    agent.spawn_addresses();
    agent.spawn_audit();
    agent.spawn_drops();
    agent.spawn_flows();
    agent.spawn_changes();
    agent.spawn_reclaim();
    agent.spawn_install();
    agent.spawn_api(listener, public, metrics);
    Ok(agent)
}

impl Agent {
    /// No new requests, an end to those under way, then an end to the tasks. The kernel keeps everything.
    async fn stop(self) {
        let Self { config, tasks, state, .. } = self;
        tracing::info!(target: "netd::agent", "stopping: traffic goes on without the agent");
        tasks.token().cancel();
        if tokio::time::timeout(config.agent.drain, state.cni.drain()).await.is_err() {
            tracing::warn!(target: "netd::agent", "requests were still under way after {:?}", config.agent.drain);
        }
        tasks.stop(STOP).await;
        // A plugin that finds no socket knows at once that there is no agent.
        std::fs::remove_file(config.agent.socket()).ok();
        tracing::info!(target: "netd::agent", "stopped");
    }

    fn spawn_source(&self) {
        let (state, config) = (Arc::clone(&self.state), self.config.directory.clone());
        self.tasks.spawn("source", move |cancel| {
            let (publisher, reporter) = (Arc::clone(&state), Arc::clone(&state));
            let source = directory::run(
                config.clone(),
                move |model| {
                    publisher.store.publish(model);
                    publisher.readiness.done("source");
                },
                move |report| {
                    if !report.synced {
                        let why: Vec<String> = report.errors().map(ToString::to_string).collect();
                        reporter.readiness.wait_for("source", why.join("; "));
                    }
                    reporter.store.report(report);
                },
                cancel,
            );
            async move {
                source.await;
                Ok(())
            }
        });
    }

    fn spawn_services(&self, metrics: ServiceMetrics) {
        let limits = self.state.datapath.service_limits();
        let limits = Limits { frontends: limits.0, slots: limits.1, backends: limits.2 };
        let state = Arc::clone(&self.state);
        self.tasks.spawn("services", move |cancel| {
            let (reconciler, handle) = services::Reconciler::new(
                services::Config::new(limits),
                OnNode(state.node.clone()),
                state.store.subscribe(),
                Maps(Arc::clone(&state.datapath)),
                metrics.clone(),
            );
            let mut status = handle.status.clone();
            state.services.store(Some(Arc::new(handle)));
            let readiness = state.readiness.clone();
            async move {
                let first = async {
                    if status.wait_for(|status| status.generation.is_some()).await.is_ok() {
                        readiness.done("services");
                    }
                };
                let (ended, ()) = tokio::join!(reconciler.run(cancel), first);
                Ok(ended?)
            }
        });
    }

    fn spawn_policies(&self, office: Arc<policy::Office>, metrics: PolicyMetrics) {
        let state = Arc::clone(&self.state);
        self.tasks.spawn("policies", move |cancel| {
            let tables = PolicyTables(Arc::clone(&state.datapath));
            let inputs = policy::Inputs {
                snapshots: state.store.subscribe(),
                pods: state.cni.subscribe(),
                addresses: state.addresses.subscribe(),
            };
            let config = policy::Config::new(tables.limits());
            let all = (tables, metrics.clone());
            let reconciler =
                policy::Reconciler::new(config, state.node.clone(), inputs, Arc::clone(&office), all);
            let (mut status, readiness) = (state.policy.status.clone(), state.readiness.clone());
            async move {
                let first = async {
                    // Its sender outlives the reconciler.
                    let written = status.wait_for(|status| status.generation.is_some());
                    if let Some(Ok(_)) = cancel.run_until_cancelled(written).await {
                        readiness.done("policies");
                    }
                };
                let (ended, ()) = tokio::join!(reconciler.run(cancel.clone()), first);
                Ok(ended?)
            }
        });
    }

    fn spawn_node(&self, netlink: Netlink) {
        let (state, settings) = (Arc::clone(&self.state), self.settings.subscribe());
        self.tasks.spawn("node", move |cancel| {
            let reconciler = node::Reconciler::new(
                state.node.clone(),
                netlink.clone(),
                Arc::clone(&state.datapath),
                Arc::clone(&state.mtu),
                state.addresses.clone(),
                state.node_status.clone(),
            );
            let (snapshots, settings) = (state.store.subscribe(), settings.clone());
            let (mut status, readiness) = (state.node_status.subscribe(), state.readiness.clone());
            async move {
                let first = async {
                    // The sender outlives the reconciler: its end is not told by the channel.
                    let routed = status.wait_for(|status| status.routed);
                    if let Some(Ok(_)) = cancel.run_until_cancelled(routed).await {
                        readiness.done("node");
                    }
                };
                tokio::join!(reconciler.run(snapshots, settings, cancel.clone()), first);
                Ok(())
            }
        });
    }

    fn spawn_addresses(&self) {
        let (state, settings) = (Arc::clone(&self.state), self.settings.subscribe());
        self.tasks
            .spawn("addresses", move |cancel| addresses::run(Arc::clone(&state), settings.clone(), cancel));
    }

    /// What others took away from pods (programs, rows, links) comes back.
    fn spawn_audit(&self) {
        let (cni, asked, policy) =
            (Arc::clone(&self.state.cni), Arc::clone(&self.audit), self.state.policy.clone());
        self.tasks.spawn("audit", move |cancel| {
            let (cni, asked, policy) = (Arc::clone(&cni), Arc::clone(&asked), policy.clone());
            async move {
                loop {
                    tokio::select! {
                        biased;
                        () = cancel.cancelled() => return Ok(()),
                        () = asked.notified() => {}
                        () = tokio::time::sleep(AUDIT) => {}
                    }
                    let found = cni.recover().await?;
                    if found.repaired() {
                        tracing::warn!(target: "netd::ipam", "an audit found pods that were not as they ought to be");
                        tell(&found);
                        // Of a pod that was made out anew nothing may have been said.
                        policy.audit();
                    }
                }
            }
        });
    }

    fn spawn_drops(&self) {
        let state = Arc::clone(&self.state);
        let events: Arc<Mutex<Option<Events>>> = Arc::default();
        self.tasks.spawn("drops", move |cancel| {
            let (state, events) = (Arc::clone(&state), Arc::clone(&events));
            async move {
                let mut events = events.lock().await;
                if events.is_none() {
                    *events = state.datapath.take_events()?;
                }
                let Some(events) = events.as_mut() else {
                    return Err("the ring buffer of drops has another reader".into());
                };
                match cancel.run_until_cancelled(state.drops.follow(events, &*state)).await {
                    Some(ended) => Ok(ended?),
                    None => Ok(()),
                }
            }
        });
    }

    fn spawn_flows(&self) {
        let (state, settings) = (Arc::clone(&self.state), self.settings.subscribe());
        self.tasks.spawn("flows", move |cancel| flows::run(Arc::clone(&state), settings.clone(), cancel));
    }

    fn spawn_changes(&self) {
        let state = Arc::clone(&self.state);
        self.tasks.spawn("changes", move |cancel| changes::run(Arc::clone(&state), cancel));
    }

    fn spawn_reclaim(&self) {
        let state = Arc::clone(&self.state);
        self.tasks.spawn("reclaim", move |cancel| reclaim::run(Arc::clone(&state), cancel));
    }

    /// The conflist comes last: a runtime takes the node for ready when it sees it.
    fn spawn_install(&self) {
        if !self.config.cni.install {
            return;
        }
        let settings = install::Settings {
            socket: self.config.agent.socket(),
            state_dir: self.config.agent.state_dir.clone(),
            bpffs: self.config.datapath.bpffs.clone(),
        };
        let (config, readiness) = (self.config.cni.clone(), self.readiness.clone());
        self.tasks.spawn("install", move |cancel| {
            let (config, settings, readiness) = (config.clone(), settings.clone(), readiness.clone());
            async move {
                if cancel.run_until_cancelled(readiness.ready()).await.is_none() {
                    return Ok(());
                }
                let (bin, conf) = (config.bin_dir.clone(), config.conf_dir.join(&config.conf_name));
                let done =
                    tokio::task::spawn_blocking(move || install::install(&config, &settings)).await??;
                if done.plugin {
                    tracing::info!(target: "netd::cni", "plugin installed in {}", bin.display());
                }
                if done.conflist {
                    tracing::info!(target: "netd::cni", "{} written", conf.display());
                }
                Ok(())
            }
        });
    }

    fn spawn_api(&self, listener: UnixListener, public: Option<TcpListener>, metrics: Metrics) {
        let shared = api::Shared { state: Arc::clone(&self.state), metrics: Arc::new(metrics) };
        let cni = server::router(Arc::clone(&self.state.cni), Arc::clone(&self.state.requests));
        self.tasks.spawn("api", {
            let shared = shared.clone();
            move |cancel| {
                let (listener, shared, cni) = (listener.try_clone(), shared.clone(), cni.clone());
                async move { api::serve_socket(listener?, shared, cni, cancel).await }
            }
        });
        if let Some(public) = public {
            self.tasks.spawn("metrics", move |cancel| {
                let (public, shared) = (public.try_clone(), shared.clone());
                async move { api::serve_tcp(public?, shared, cancel).await }
            });
        }
    }
}

/// Logs what was found pinned, and what became of it.
fn tell_opening(report: &OpenReport) {
    if let Some(schema) = report.migrated_from {
        tracing::info!(
            target: "netd::datapath",
            "the maps of schema {schema} were moved to schema {}, with all their flows",
            netd_bpf::SCHEMA
        );
    }
    for Resized { map, from, to } in &report.resized {
        tracing::info!(target: "netd::datapath", "map {map} has {to} rows now, it had {from}");
    }
    for Kept { map, wanted, actual, why } in &report.kept {
        tracing::warn!(
            target: "netd::datapath",
            "map {map} keeps its {actual} rows, the configuration asks for {wanted}: {why}"
        );
    }
    let adopted = if report.adopted { "an earlier agent's maps" } else { "new maps" };
    tracing::info!(target: "netd::datapath", "programs loaded over {adopted}");
}

/// Logs what recovery found, if it found anything out of order.
fn tell(recovery: &Recovery) {
    if let Some(Fresh::SetAside { to, reason }) = &recovery.fresh {
        tracing::error!(
            target: "netd::ipam",
            "the address ledger was damaged ({reason}); it is kept as {} and was rebuilt from the kernel",
            to.display()
        );
    }
    for problem in &recovery.problems {
        tracing::error!(target: "netd::ipam", "{problem}");
    }
    tracing::info!(
        target: "netd::ipam",
        "{} pods kept, {} taken over from the kernel, {} released; removed {} links, {} rows, {} reports",
        recovery.kept,
        recovery.adopted,
        recovery.released,
        recovery.links_deleted,
        recovery.rows_removed,
        recovery.statuses_removed,
    );
}
