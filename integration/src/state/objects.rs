//! Kubernetes objects as text, for files with one of them or with several.

use crate::traffic::Proto;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// A Pod, as far as netd reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.nodeName`.
    pub node: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `spec.containers[].ports`: name, number, protocol.
    pub ports: Vec<(String, u16, Proto)>,
    /// `status.podIPs`, of a pod that no agent of the lab tells of.
    pub ips: Vec<IpAddr>,
}

impl Workload {
    /// With these labels and nothing else.
    #[must_use]
    pub fn new(namespace: &str, name: &str, node: &str, labels: &[(&str, &str)]) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            node: node.into(),
            labels: labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            ..Self::default()
        }
    }

    /// The object.
    #[must_use]
    pub fn yaml(&self) -> String {
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|(name, port, protocol)| {
                json!({"name": name, "containerPort": port, "protocol": protocol.to_string()})
            })
            .collect();
        let ips: Vec<Value> = self.ips.iter().map(|ip| json!({"ip": ip})).collect();
        document(&json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.name,
                "namespace": self.namespace,
                "labels": self.labels,
                "annotations": self.annotations,
            },
            "spec": {
                "nodeName": self.node,
                "containers": [{"name": "main", "image": "none", "ports": ports}],
            },
            "status": {"podIPs": ips},
        }))
    }
}

/// A Namespace.
#[must_use]
pub fn namespace(name: &str, labels: &[(&str, &str)]) -> String {
    let labels: BTreeMap<&str, &str> = labels.iter().copied().collect();
    document(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}))
}

/// A NetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec`, as YAML in flow style.
    pub spec: String,
}

/// A NetworkPolicy; `spec` is YAML in flow style.
#[must_use]
pub fn policy(namespace: &str, name: &str, spec: impl Into<String>) -> Policy {
    Policy { namespace: namespace.into(), name: name.into(), spec: spec.into() }
}

impl Policy {
    /// The object.
    #[must_use]
    pub fn yaml(&self) -> String {
        let Self { namespace, name, spec } = self;
        format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: \
             {namespace}}}\nspec: {spec}\n"
        )
    }

    /// The file that [`super::State::policy`] writes it to.
    #[must_use]
    pub fn file(&self) -> String {
        format!("policy-{}-{}.yaml", self.namespace, self.name)
    }

    /// The policy as netd names it.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// JSON is YAML.
fn document(object: &Value) -> String {
    format!("---\n{object}\n")
}
