//! The folder of Kubernetes YAML that all nodes of a lab share.
//!
//! Each file appears whole: it is written beside, under a name that no source reads, and renamed.

mod objects;

pub use objects::{Policy, Workload, namespace, policy};

use anyhow::{Context as _, Result};
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// The folder.
#[derive(Clone, Debug)]
pub struct State {
    dir: PathBuf,
}

/// A port of a Service and of its endpoints.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// `port` of the Service.
    pub port: u16,
    /// `targetPort`, and `port` of the slices.
    pub target: u16,
}

impl State {
    /// Makes the folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// The folder's path.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a file, atomically.
    ///
    /// # Errors
    /// The filesystem refuses.
    pub fn put(&self, file: &str, text: &str) -> Result<()> {
        let path = self.dir.join(file);
        let beside = self.dir.join(format!(".{file}.new"));
        fs::write(&beside, text)
            .and_then(|()| fs::rename(&beside, &path))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// There is none.
    pub fn remove(&self, file: &str) -> Result<()> {
        let path = self.dir.join(file);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))
    }

    /// A Node in `node-NAME.yaml`.
    ///
    /// # Errors
    /// As [`State::put`].
    pub fn node(&self, name: &str, addresses: &[IpAddr], pod_cidrs: &[String]) -> Result<()> {
        let mut text = format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\nspec:\n  podCIDRs:{}\nstatus:\n  addresses:\n",
            list(pod_cidrs.iter().map(String::as_str), 2),
        );
        for address in addresses {
            writeln!(text, "  - type: InternalIP\n    address: \"{address}\"")?;
        }
        self.put(&format!("node-{name}.yaml"), &text)
    }

    /// A Pod in `pod-NAME.yaml`, in the namespace `default`.
    ///
    /// # Errors
    /// As [`State::put`].
    pub fn pod(
        &self,
        name: &str,
        node: &str,
        labels: &[(&str, &str)],
        annotations: &[(&str, &str)],
    ) -> Result<()> {
        let own = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let pod = Workload {
            namespace: "default".into(),
            name: name.into(),
            node: node.into(),
            labels: own(labels),
            annotations: own(annotations),
            ports: Vec::new(),
            ips: Vec::new(),
        };
        self.put(&format!("pod-{name}.yaml"), &pod.yaml())
    }

    /// A Pod in `pod-NAMESPACE-NAME.yaml`, with the namespace's own object in `namespace-NAMESPACE.yaml`.
    ///
    /// # Errors
    /// As [`State::put`].
    pub fn workload(&self, pod: &Workload) -> Result<()> {
        let Workload { namespace: of, name, .. } = pod;
        self.put(&format!("namespace-{of}.yaml"), &namespace(of, &[]))?;
        self.put(&format!("pod-{of}-{name}.yaml"), &pod.yaml())
    }

    /// A NetworkPolicy in a file of its own.
    ///
    /// # Errors
    /// As [`State::put`].
    pub fn policy(&self, policy: &Policy) -> Result<()> {
        self.put(&policy.file(), &policy.yaml())
    }

    /// Takes a NetworkPolicy away.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_policy(&self, policy: &Policy) -> Result<()> {
        self.remove(&policy.file())
    }

    /// A Service in `service-NAME.yaml`, in the namespace `default`; each port by TCP and by UDP.
    ///
    /// # Errors
    /// As [`State::put`].
    pub fn service(&self, name: &str, ips: &[IpAddr], port: Port, selector: &[(&str, &str)]) -> Result<()> {
        let families = ips.iter().map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" });
        let ips: Vec<String> = ips.iter().map(IpAddr::to_string).collect();
        let Port { port, target } = port;
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: default\nspec:\n  \
             type: ClusterIP\n  clusterIP: \"{}\"\n  clusterIPs:{}\n  ipFamilies:{}\n  selector:{}\n  ports:\n",
            ips.first().map(String::as_str).unwrap_or_default(),
            list(ips.iter().map(String::as_str), 2),
            list(families, 2),
            map(selector, 4),
        );
        for proto in ["TCP", "UDP"] {
            let lower = proto.to_lowercase();
            writeln!(
                text,
                "  - name: {lower}\n    protocol: {proto}\n    port: {port}\n    targetPort: {target}"
            )?;
        }
        self.put(&format!("service-{name}.yaml"), &text)
    }

    /// The EndpointSlices of a Service, one per family, in `slices-NAME.yaml`: one write changes both.
    ///
    /// # Errors
    /// As [`State::put`].
    pub fn slices(&self, service: &str, target: u16, endpoints: &[IpAddr]) -> Result<()> {
        let mut text = String::new();
        for (family, suffix) in [("IPv4", "v4"), ("IPv6", "v6")] {
            write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-{suffix}\n  \
                 namespace: default\n  labels:\n    kubernetes.io/service-name: {service}\naddressType: {family}\n\
                 ports:\n- name: tcp\n  protocol: TCP\n  port: {target}\n- name: udp\n  protocol: UDP\n  port: {target}\n\
                 endpoints:",
            )?;
            let mut none = true;
            for address in endpoints.iter().filter(|ip| ip.is_ipv4() == (family == "IPv4")) {
                none = false;
                write!(text, "\n- addresses: [\"{address}\"]\n  conditions: {{ready: true}}")?;
            }
            text.push_str(if none { " []\n" } else { "\n" });
        }
        self.put(&format!("slices-{service}.yaml"), &text)
    }
}

fn list<'a>(items: impl Iterator<Item = &'a str>, indent: usize) -> String {
    let lines: String = items.map(|item| format!("\n{:indent$}- \"{item}\"", "")).collect();
    if lines.is_empty() { " []".into() } else { lines }
}

fn map(pairs: &[(&str, &str)], indent: usize) -> String {
    let lines: String =
        pairs.iter().map(|(key, value)| format!("\n{:indent$}{key}: \"{value}\"", "")).collect();
    if lines.is_empty() { " {}".into() } else { lines }
}
