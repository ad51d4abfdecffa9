//! The pods of a node: made and removed as the kubelet does it.

use super::{Node, PORT};
use crate::cni::{self, Attachment};
use crate::lab::Namespace;
use crate::traffic::Echo;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;

/// Where pods are whose test does not care.
const DEFAULT: &str = "default";

/// A pod of a node.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its node's name.
    pub node: String,
    /// Its network namespace.
    pub netns: Namespace,
    /// What the runtime knows of it.
    pub attachment: Attachment,
    /// The result of ADD.
    pub result: Value,
    /// The addresses it got.
    pub addresses: Vec<IpAddr>,
}

/// A pod that answers at [`PORT`] by TCP and UDP.
#[derive(Debug)]
pub struct Server {
    /// The pod.
    pub pod: Pod,
    /// What serves in it.
    pub echo: Echo,
}

impl Server {
    /// Where it serves.
    ///
    /// # Errors
    /// It has no address of this family.
    pub fn at(&self, v6: bool) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.pod.address(v6)?, PORT))
    }

    /// Its pod's network namespace.
    #[must_use]
    pub fn netns(&self) -> &Namespace {
        &self.pod.netns
    }
}

/// The addresses of all these servers.
#[must_use]
pub fn addresses<'a>(servers: impl IntoIterator<Item = &'a Server>) -> Vec<IpAddr> {
    servers.into_iter().flat_map(|server| server.pod.addresses.iter().copied()).collect()
}

impl Pod {
    /// Its address of one family.
    ///
    /// # Errors
    /// It has none.
    pub fn address(&self, v6: bool) -> Result<IpAddr> {
        let found = self.addresses.iter().find(|address| address.is_ipv6() == v6);
        found.copied().with_context(|| format!("{} has only {:?}", self.name, self.addresses))
    }
}

impl Node<'_> {
    /// A sandbox for a pod in the namespace `default`, not yet attached.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn sandbox(&self, name: &str) -> Result<(Namespace, Attachment)> {
        self.sandbox_in(DEFAULT, name)
    }

    /// [`Node::sandbox`] in another namespace.
    ///
    /// # Errors
    /// As there.
    pub fn sandbox_in(&self, namespace: &str, name: &str) -> Result<(Namespace, Attachment)> {
        let n = self.sandboxes.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}-{n}-{name}", self.name);
        let netns = self.lab.namespace(&id)?;
        let attachment = Attachment::of_pod(&id, netns.path().into(), namespace, name);
        Ok((netns, attachment))
    }

    /// Makes a pod in the namespace `default`, as the kubelet does: a sandbox, then ADD through the runtime.
    ///
    /// # Errors
    /// ADD was refused; the sandbox is gone again.
    pub fn add_pod(&self, name: &str) -> Result<Pod> {
        self.add_pod_in(DEFAULT, name)
    }

    /// [`Node::add_pod`] in another namespace.
    ///
    /// # Errors
    /// As there.
    pub fn add_pod_in(&self, namespace: &str, name: &str) -> Result<Pod> {
        let (netns, attachment) = self.sandbox_in(namespace, name)?;
        match self.runtime.add(&attachment) {
            Ok(result) => {
                let addresses = cni::addresses(&result)?;
                let (namespace, name, node) = (namespace.into(), name.into(), self.name.clone());
                Ok(Pod { namespace, name, node, netns, attachment, result, addresses })
            }
            Err(error) => {
                // As the specification asks after a failed ADD; its own failure would hide the cause.
                drop(self.runtime.del(&attachment));
                netns.delete()?;
                Err(error.context(format!("adding {namespace}/{name} to {}", self.name)))
            }
        }
    }

    /// [`Node::add_pod`], and a server in it.
    ///
    /// # Errors
    /// As [`Node::add_pod`].
    pub fn add_server(&self, name: &str) -> Result<Server> {
        self.add_server_in(DEFAULT, name)
    }

    /// [`Node::add_server`] in another namespace.
    ///
    /// # Errors
    /// As there.
    pub fn add_server_in(&self, namespace: &str, name: &str) -> Result<Server> {
        let pod = self.add_pod_in(namespace, name)?;
        let echo = Echo::start(&pod.netns, name, PORT)?;
        Ok(Server { pod, echo })
    }

    /// Removes a pod: DEL, then the sandbox.
    ///
    /// # Errors
    /// DEL was refused.
    pub fn del_pod(&self, pod: Pod) -> Result<()> {
        self.runtime
            .del(&pod.attachment)
            .with_context(|| format!("removing {} from {}", pod.name, self.name))?;
        pod.netns.delete()
    }
}
