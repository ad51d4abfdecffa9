//! A node: a network namespace, the real agent started by its real command line, and its pods.
//!
//! Each node has a folder of its own (`node-NAME/`) with the agent's config, run and state folders, CNI
//! folders and log. All nodes share the lab's folder of state and have sub-folders of its bpffs.

mod api;
mod config;
mod monitor;
mod pod;

pub use api::Response;
pub use config::{Config, Tables};
pub use monitor::Monitor;
pub use pod::{Pod, Server, addresses};

use crate::cni::Runtime;
use crate::lab::{Lab, Namespace, Process, tail};
use crate::state::State;
use crate::{binary, wait};
use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::atomic::AtomicU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where servers in pods listen.
pub const PORT: u16 = 8080;

/// How long an agent may take until it is ready, on a busy and emulated machine with a debug build.
const READY: Duration = Duration::from_secs(300);

/// A node of the lab.
#[derive(Debug)]
pub struct Node<'lab> {
    lab: &'lab Lab,
    name: String,
    namespace: Namespace,
    dir: PathBuf,
    config: Mutex<Config>,
    /// Another netd than the one under test.
    other: Mutex<Option<PathBuf>>,
    overrides: Mutex<BTreeMap<String, String>>,
    agent: Mutex<Option<Process>>,
    runtime: Runtime,
    sandboxes: AtomicU32,
}

impl<'lab> Node<'lab> {
    /// A node in `namespace`, its agent not yet started.
    ///
    /// # Errors
    /// Its folders cannot be made.
    pub fn new(lab: &'lab Lab, name: &str, namespace: Namespace, state: &State) -> Result<Self> {
        let dir = lab.dir().join(format!("node-{name}"));
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let config = Config {
            node: name.into(),
            dir: dir.clone(),
            source: state.dir().into(),
            bpffs: lab.bpffs().join(name),
            pod_cidrs: Vec::new(),
            draining: Vec::new(),
            cool_down: "1s".into(),
            uplinks: vec!["eth0".into()],
            tables: Tables::SMALL,
            audit: None,
            log: "info,netd=debug".into(),
        };
        let runtime = Runtime {
            host: namespace.clone(),
            conf_dir: dir.join("net.d"),
            path: vec![dir.join("bin")],
            cache: dir.join("results"),
            version: "1.1.0".into(),
        };
        Ok(Self {
            lab,
            name: name.into(),
            namespace,
            dir,
            config: Mutex::new(config),
            other: Mutex::default(),
            overrides: Mutex::default(),
            agent: Mutex::new(None),
            runtime,
            sandboxes: AtomicU32::new(0),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its container runtime.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Where its agent pins maps, programs and links.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.lab.bpffs().join(&self.name)
    }

    /// The schemas whose maps are pinned there, such as `v2`, or `v2-next` while an agent fills it; in order.
    ///
    /// # Errors
    /// No agent was started yet.
    pub fn schemas(&self) -> Result<Vec<String>> {
        let folder = self.bpffs();
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.retain(|name| name.starts_with('v'));
        names.sort();
        Ok(names)
    }

    /// Where its agent keeps the ledger of addresses.
    #[must_use]
    pub fn ledger(&self) -> PathBuf {
        self.dir.join("state/ledger.json")
    }

    /// Where its agent answers.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/netd.sock")
    }

    /// Its agent's log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// Changes the config; takes effect with the next start or SIGHUP.
    pub fn configure(&self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Sets a key such as `datapath.flows` over the config file, by the agent's environment; takes effect with
    /// the next start.
    pub fn set(&self, key: &str, value: &str) {
        let variable = format!("NETD_{}", key.to_ascii_uppercase().replace('.', "__"));
        let mut overrides = self.overrides.lock().unwrap_or_else(PoisonError::into_inner);
        overrides.insert(variable, value.into());
    }

    /// Writes the config file and gives its path.
    ///
    /// # Errors
    /// The filesystem refuses.
    pub fn write_config(&self) -> Result<PathBuf> {
        let path = self.dir.join("netd.yaml");
        let text = self.config.lock().unwrap_or_else(PoisonError::into_inner).render();
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// `netd agent --config FILE` with what was [`set`](Self::set), free of this process's own `NETD_` variables.
    ///
    /// # Errors
    /// There is no binary.
    pub fn agent_command(&self, config: &Path) -> Result<Command> {
        let mut command = self.binary()?;
        command.arg("agent").arg("--config").arg(config);
        command.envs(&*self.overrides.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(command)
    }

    /// Another netd than the one under test; none: the one under test again. Takes effect with the next
    /// start.
    pub fn replace_netd(&self, other: Option<&Path>) {
        *self.other.lock().unwrap_or_else(PoisonError::into_inner) = other.map(Path::to_path_buf);
    }

    fn binary(&self) -> Result<Command> {
        match &*self.other.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(other) => Ok(clean(Command::new(other))),
            None => netd(),
        }
    }

    /// Runs `netd WORDS` on this node to its end.
    ///
    /// # Errors
    /// It cannot be executed.
    pub fn netd(&self, words: &[&OsStr]) -> Result<Output> {
        let mut command = self.binary()?;
        command.args(words);
        self.to_end(&mut command)
    }

    /// Runs a command on this node to its end.
    ///
    /// # Errors
    /// It cannot be executed.
    pub fn to_end(&self, command: &mut Command) -> Result<Output> {
        use std::process::Stdio;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(self.namespace.spawn(command)?.wait_with_output()?)
    }

    /// Starts the agent with the config as it is now, and does not wait.
    ///
    /// # Errors
    /// It runs already, or cannot be executed.
    pub fn launch(&self) -> Result<()> {
        let mut agent = self.agent();
        if let Some(old) = agent.as_mut()
            && old.ended()?.is_none()
        {
            bail!("the agent of {} runs already", self.name);
        }
        let mut command = self.agent_command(&self.write_config()?)?;
        let name = format!("the agent of {}", self.name);
        *agent = Some(Process::start(&self.namespace, &name, &mut command, &self.log())?);
        Ok(())
    }

    /// Starts the agent and waits until it is ready.
    ///
    /// # Errors
    /// It ends, or is not ready by the deadline: with what is pending.
    pub fn start(&self) -> Result<()> {
        self.launch()?;
        self.ready()
    }

    /// Waits until `/readyz` says so and the runtime finds a network, which the agent installs when it is
    /// ready.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn ready(&self) -> Result<()> {
        self.ready_within(READY)
    }

    /// [`Node::ready`] with another deadline.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn ready_within(&self, limit: Duration) -> Result<()> {
        let mut last = String::new();
        let log = || tail(&self.log(), 20);
        let ready = wait::within(limit, &format!("the agent of {} to be ready", self.name), || {
            if let Some(status) = self.with_agent(Process::ended)? {
                return Ok(Some(Err(anyhow!("the agent of {} ended: {status}\n{}", self.name, log()))));
            }
            let response = self.api("/readyz")?;
            if response.status == 200 {
                self.runtime.network()?;
                return Ok(Some(Ok(())));
            }
            last = format!("{}: {}", response.status, response.body.trim());
            Ok(None)
        });
        ready.with_context(|| format!("/readyz said last: {last}\n{}", log()))?
    }

    /// GET from the agent's socket.
    ///
    /// # Errors
    /// No agent answers.
    pub fn api(&self, path: &str) -> Result<Response> {
        api::get(&self.socket(), path)
    }

    /// GET of a JSON document.
    ///
    /// # Errors
    /// Not answered by 200 and JSON.
    pub fn api_json(&self, path: &str) -> Result<Value> {
        let response = self.api(path)?;
        if response.status != 200 {
            bail!("{path}: {}: {}", response.status, response.body);
        }
        serde_json::from_str(&response.body).with_context(|| format!("{path}: {}", response.body))
    }

    /// The newest drops of spoofed packets that its agent knows of, those from the address `source`.
    ///
    /// # Errors
    /// No agent answers.
    pub fn spoofed(&self, source: &str) -> Result<Vec<Value>> {
        let mut answer = self.api_json("/v1/drops?limit=512")?;
        let list = answer.get_mut("drops").and_then(Value::as_array_mut).map(std::mem::take);
        let mut drops = list.with_context(|| format!("no list of drops in {answer}"))?;
        let text = |drop: &Value, key: &str| drop.get(key).and_then(Value::as_str).map(str::to_owned);
        let address = |drop: &Value| Some(text(drop, "source")?.parse::<SocketAddr>().ok()?.ip().to_string());
        drops.retain(|drop| {
            text(drop, "reason").as_deref() == Some("spoofed_source")
                && address(drop).as_deref() == Some(source)
        });
        Ok(drops)
    }

    /// Sum of the samples of a metric that bear all of `labels`.
    ///
    /// # Errors
    /// No agent answers.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(self.api("/metrics")?.metric(name, labels))
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill9(&self) -> Result<ExitStatus> {
        self.with_agent(|agent| agent.end(Signal::SIGKILL))
    }

    /// Waits until the agent has ended, by whomever.
    ///
    /// # Errors
    /// None was started, or it does not end.
    pub fn wait(&self) -> Result<ExitStatus> {
        self.with_agent(Process::wait)
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn terminate(&self) -> Result<ExitStatus> {
        self.with_agent(|agent| agent.end(Signal::SIGTERM))
    }

    /// Writes the config anew and sends SIGHUP; the effect is the caller's to wait for.
    ///
    /// # Errors
    /// It does not run.
    pub fn reload(&self) -> Result<()> {
        self.write_config()?;
        self.with_agent(|agent| agent.signal(Signal::SIGHUP))
    }

    /// Process id of the agent.
    ///
    /// # Errors
    /// None was started.
    pub fn agent_id(&self) -> Result<u32> {
        self.with_agent(|agent| Ok(agent.id()))
    }

    fn agent(&self) -> MutexGuard<'_, Option<Process>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_agent<T>(&self, work: impl FnOnce(&mut Process) -> Result<T>) -> Result<T> {
        match self.agent().as_mut() {
            Some(agent) => work(agent),
            None => bail!("no agent was started on {}", self.name),
        }
    }
}

/// The binary, in an environment without this process's own `NETD_` variables, which netd would take for
/// its configuration.
fn netd() -> Result<Command> {
    binary::netd().map(Command::new).map(clean)
}

fn clean(mut command: Command) -> Command {
    for (key, _) in std::env::vars_os() {
        if key.as_bytes().starts_with(b"NETD_") {
            command.env_remove(key);
        }
    }
    command
}
