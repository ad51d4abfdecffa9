//! A small container runtime: what containerd and CRI-O do with CNI plugins by way of libcni, so that netd's
//! plugin is met as in the field.
//!
//! Follows the CNI specification 1.1.0 and, where that leaves room, libcni 1.2: the first conflist of the
//! folder by name; the newest version that both sides know; `name`, `cniVersion`, `prevResult` and the
//! wanted part of `runtimeConfig` injected into each plugin's section; ADD and CHECK in order, DEL in
//! reverse; the result of ADD kept in a cache and given to DEL and CHECK. Plugins run in the node's network
//! namespace.

mod config;
mod exec;

pub use config::NetworkConfig;
pub use exec::{Refusal, refused};

use crate::lab::Namespace;
use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::PathBuf;

/// The runtime of one node.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// The node.
    pub host: Namespace,
    /// Folder of conflists.
    pub conf_dir: PathBuf,
    /// Folders of plugins, in the order in which they are searched.
    pub path: Vec<PathBuf>,
    /// Folder of results; libcni's is `/var/lib/cni/results`.
    pub cache: PathBuf,
    /// The newest version of the specification that this runtime speaks.
    pub version: String,
}

/// What is attached: a container's interface.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_NETNS`; none: the namespace is gone already.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// What the runtime has for plugins that declare the capability, such as `portMappings`.
    pub capabilities: Map<String, Value>,
}

impl Attachment {
    /// The sandbox of a pod, with the arguments that the kubelet's runtimes give.
    #[must_use]
    pub fn of_pod(container: &str, netns: PathBuf, namespace: &str, name: &str) -> Self {
        let args = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", namespace),
            ("K8S_POD_NAME", name),
            ("K8S_POD_INFRA_CONTAINER_ID", container),
            ("K8S_POD_UID", container),
        ];
        Self {
            container: container.into(),
            netns: Some(netns),
            ifname: "eth0".into(),
            args: args.map(|(key, value)| (key.into(), value.into())).into(),
            capabilities: Map::new(),
        }
    }
}

impl Runtime {
    /// The network in force.
    ///
    /// # Errors
    /// There is none, or it does not parse.
    pub fn network(&self) -> Result<NetworkConfig> {
        NetworkConfig::first_in(&self.conf_dir, &self.version)
    }

    /// ADD to every plugin of the chain; the last result.
    ///
    /// # Errors
    /// A [`Refusal`], or no plugin to execute. What the first plugins did is not undone: the caller says DEL.
    pub fn add(&self, attachment: &Attachment) -> Result<Value> {
        let network = self.network()?;
        let mut previous = None;
        for plugin in &network.plugins {
            let conf = network.section(plugin, previous.as_ref(), Some(attachment), &Map::new());
            previous = Some(self.execute("ADD", plugin, &conf, Some(attachment))?);
        }
        let result = previous.context("the chain is empty")?;
        fs::create_dir_all(&self.cache).with_context(|| format!("creating {}", self.cache.display()))?;
        let kept = json!({
            "kind": "cniCacheV1",
            "containerId": attachment.container,
            "ifName": attachment.ifname,
            "networkName": network.name,
            "netns": attachment.netns,
            "cniArgs": attachment.args,
            "result": result,
        });
        let path = self.cached(&network, attachment);
        fs::write(&path, kept.to_string()).with_context(|| format!("writing {}", path.display()))?;
        Ok(result)
    }

    /// DEL to every plugin, last first.
    ///
    /// # Errors
    /// As [`Runtime::add`]. The cached result stays then, so that DEL can be said again.
    pub fn del(&self, attachment: &Attachment) -> Result<()> {
        let network = self.network()?;
        let previous = self.previous(&network, attachment)?;
        for plugin in network.plugins.iter().rev() {
            let conf = network.section(plugin, previous.as_ref(), Some(attachment), &Map::new());
            self.execute("DEL", plugin, &conf, Some(attachment))?;
        }
        match fs::remove_file(self.cached(&network, attachment)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("forgetting a result"),
            _ => Ok(()),
        }
    }

    /// CHECK of every plugin.
    ///
    /// # Errors
    /// As [`Runtime::add`], or nothing was added.
    pub fn check(&self, attachment: &Attachment) -> Result<()> {
        let network = self.network()?;
        let Some(previous) = self.previous(&network, attachment)? else {
            bail!("CHECK needs the result of ADD, and there is none of {}", attachment.container);
        };
        if network.disable_check {
            return Ok(());
        }
        for plugin in &network.plugins {
            let conf = network.section(plugin, Some(&previous), Some(attachment), &Map::new());
            self.execute("CHECK", plugin, &conf, Some(attachment))?;
        }
        Ok(())
    }

    /// GC: DEL of what the cache knows and `valid` does not hold, then GC of every plugin.
    ///
    /// # Errors
    /// As [`Runtime::add`].
    pub fn gc(&self, valid: &[Attachment]) -> Result<()> {
        let network = self.network()?;
        for stale in self.cached_attachments()? {
            let alive = |a: &Attachment| a.container == stale.container && a.ifname == stale.ifname;
            if !valid.iter().any(alive) {
                self.del(&stale)?;
            }
        }
        if network.disable_gc || network.version.as_str() < "1.1.0" {
            return Ok(());
        }
        let list: Vec<Value> =
            valid.iter().map(|a| json!({"containerID": a.container, "ifname": a.ifname})).collect();
        let mut extra = Map::new();
        extra.insert("cni.dev/valid-attachments".into(), list.into());
        for plugin in &network.plugins {
            let conf = network.section(plugin, None, None, &extra);
            self.execute("GC", plugin, &conf, None)?;
        }
        Ok(())
    }

    /// STATUS of every plugin.
    ///
    /// # Errors
    /// As [`Runtime::add`].
    pub fn status(&self) -> Result<()> {
        let network = self.network()?;
        for plugin in &network.plugins {
            let conf = network.section(plugin, None, None, &Map::new());
            self.execute("STATUS", plugin, &conf, None)?;
        }
        Ok(())
    }

    /// VERSION of every plugin.
    ///
    /// # Errors
    /// As [`Runtime::add`].
    pub fn versions(&self) -> Result<Vec<Value>> {
        let network = self.network()?;
        let ask = json!({ "cniVersion": network.version });
        network.plugins.iter().map(|plugin| self.execute("VERSION", plugin, &ask, None)).collect()
    }

    /// Executes one plugin with any text for a conf, as a careless or hostile runtime would.
    ///
    /// # Errors
    /// As [`Runtime::add`].
    pub fn raw(
        &self,
        verb: &str,
        plugin: &str,
        conf: &str,
        attachment: Option<&Attachment>,
    ) -> Result<Value> {
        exec::run(self, verb, plugin, conf.as_bytes(), attachment)
    }

    fn execute(
        &self,
        verb: &str,
        plugin: &Map<String, Value>,
        conf: &Value,
        attachment: Option<&Attachment>,
    ) -> Result<Value> {
        let name = plugin.get("type").and_then(Value::as_str).context("a plugin without a type")?;
        exec::run(self, verb, name, conf.to_string().as_bytes(), attachment)
    }

    fn cached(&self, network: &NetworkConfig, attachment: &Attachment) -> PathBuf {
        self.cache.join(format!("{}-{}-{}", network.name, attachment.container, attachment.ifname))
    }

    /// The result of ADD; versions before 0.4.0 do not hand it on.
    fn previous(&self, network: &NetworkConfig, attachment: &Attachment) -> Result<Option<Value>> {
        if network.version.as_str() < "0.4.0" {
            return Ok(None);
        }
        let path = self.cached(network, attachment);
        match fs::read(&path) {
            Ok(bytes) => {
                let kept: Value = serde_json::from_slice(&bytes)?;
                Ok(kept.get("result").cloned())
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    fn cached_attachments(&self) -> Result<Vec<Attachment>> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.cache) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
            other => other.with_context(|| format!("reading {}", self.cache.display()))?,
        };
        for entry in entries {
            let kept: Value = serde_json::from_slice(&fs::read(entry?.path())?)?;
            let text = |key: &str| kept.get(key).and_then(Value::as_str).map(str::to_owned);
            found.push(Attachment {
                container: text("containerId").context("a cached result without containerId")?,
                ifname: text("ifName").context("a cached result without ifName")?,
                netns: text("netns").map(PathBuf::from),
                args: serde_json::from_value(kept.get("cniArgs").cloned().unwrap_or_default())?,
                capabilities: Map::new(),
            });
        }
        Ok(found)
    }
}

/// The addresses of a result.
///
/// # Errors
/// One does not parse.
pub fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let list = result.get("ips").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .map(|ip| {
            let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
            let (address, _) = text.split_once('/').unwrap_or((text, ""));
            address.parse().with_context(|| format!("the address {text:?} of the result {result}"))
        })
        .collect()
}
