//! Pods.

use super::field::{self, At, Error};
use crate::model::{ContainerPort, Pod};
use k8s_openapi::api::core::v1 as core;

/// Annotations that the model keeps.
const ANNOTATIONS: &str = "netd.io/";
/// Annotation of a static pod's mirror: the UID that the kubelet, and so the runtime, gives the pod itself.
const STATIC_UID: &str = "kubernetes.io/config.mirror";

/// The condition `Ready`, if the Pod has it.
#[must_use]
pub fn ready_condition(object: &core::Pod) -> Option<bool> {
    let conditions = object.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == "Ready").map(|condition| condition.status == "True")
}

/// A Pod. It is ready if its condition says so: what has no kubelet is the source's to judge.
///
/// # Errors
/// Names the first field that is not as the API says.
pub fn pod(object: core::Pod) -> Result<Pod, Error> {
    let name = field::namespaced_name(&object.metadata)?;
    let ready = ready_condition(&object).unwrap_or(false);
    let meta = object.metadata;
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();

    let at_spec = At::Key(&At::Object, "spec");
    let mut ports = Vec::new();
    let at = at_spec.key("containers");
    for (index, container) in spec.containers.iter().enumerate() {
        named_ports(&at.index(index), container, &mut ports)?;
    }
    let at = at_spec.key("initContainers");
    for (index, container) in spec.init_containers.iter().flatten().enumerate() {
        // A restartable init container is a sidecar: it runs, and serves, beside the others.
        if container.restart_policy.as_deref() == Some("Always") {
            named_ports(&at.index(index), container, &mut ports)?;
        }
    }

    let at_status = At::Key(&At::Object, "status");
    let mut ips = Vec::new();
    let at = at_status.key("podIPs");
    for (index, ip) in status.pod_ips.iter().flatten().enumerate() {
        let at = at.index(index);
        ips.push(field::destination(&at.key("ip"), &ip.ip)?);
    }
    field::one_per_family(&at, &ips)?;
    if let (true, Some(ip)) = (ips.is_empty(), status.pod_ip.as_deref().filter(|ip| !ip.is_empty())) {
        ips.push(field::destination(&at_status.key("podIP"), ip)?);
    }

    Ok(Pod {
        name,
        uid: {
            let mirrored = meta.annotations.as_ref().and_then(|annotations| annotations.get(STATIC_UID));
            mirrored.or(meta.uid.as_ref()).map_or("", String::as_str).into()
        },
        labels: field::labels(meta.labels),
        annotations: {
            let mut annotations = field::labels(meta.annotations);
            annotations.retain(|key, _| key.starts_with(ANNOTATIONS));
            annotations
        },
        node: spec.node_name.filter(|node| !node.is_empty()).map(Into::into),
        host_network: spec.host_network.unwrap_or(false),
        ips,
        ports,
        ready,
        terminating: meta.deletion_timestamp.is_some(),
        finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
    })
}

fn named_ports(
    at: &At<'_>,
    container: &core::Container,
    ports: &mut Vec<ContainerPort>,
) -> Result<(), Error> {
    let at = at.key("ports");
    for (index, port) in container.ports.iter().flatten().enumerate() {
        let at = at.index(index);
        let number = field::port(&at.key("containerPort"), port.container_port)?;
        let protocol = field::protocol(&at.key("protocol"), port.protocol.as_deref())?;
        if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            ports.push(ContainerPort { name: name.into(), port: number, protocol });
        }
    }
    Ok(())
}
