//! Kubernetes objects into the model: the one reading of the API that all sources share.
//!
//! Follows the API reference of Kubernetes 1.37 (defaults included, since a directory has no API server to
//! fill them in) and, where the reference is silent, kube-proxy and the endpoint slice controller. An object
//! is taken whole or refused whole; the [`Error`] names the field. Pure: no I/O, no state.

mod field;
mod pod;
mod policy;
mod service;
mod slice;

#[cfg(test)]
mod tests;

pub use field::{Error, FieldPath, Segment, is_label, is_subdomain};
pub use pod::{pod, ready_condition};
pub use policy::network_policy;
pub use service::service;
pub use slice::endpoint_slice;

use super::{Namespace, Node};
use field::At;
use k8s_openapi::api::core::v1 as core;
use std::collections::BTreeSet;

/// Label that every Namespace carries with its own name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// A Node: name, labels, addresses of type InternalIP, pod CIDRs.
///
/// # Errors
/// Names the first field that is not as the API says.
pub fn node(object: core::Node) -> Result<Node, Error> {
    let name = field::cluster_name(&object.metadata)?;
    let spec = object.spec.unwrap_or_default();
    let status = object.status.unwrap_or_default();

    let at_spec = At::Key(&At::Object, "spec");
    let mut pod_cidrs = Vec::new();
    let at_cidrs = at_spec.key("podCIDRs");
    for (index, cidr) in spec.pod_cidrs.iter().flatten().enumerate() {
        pod_cidrs.push(field::cidr(&at_cidrs.index(index), cidr)?);
    }
    if let Some(single) = spec.pod_cidr.as_deref().filter(|cidr| !cidr.is_empty()) {
        let at = at_spec.key("podCIDR");
        let single = field::cidr(&at, single)?;
        match pod_cidrs.first() {
            None => pod_cidrs.push(single),
            Some(first) if *first == single => {}
            Some(first) => {
                return Err(at.error(format!("{single} differs from podCIDRs[0], which is {first}")));
            }
        }
    }

    let at_status = At::Key(&At::Object, "status");
    let at_addresses = at_status.key("addresses");
    let mut internal_ips = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, address) in status.addresses.iter().flatten().enumerate() {
        if address.type_ == "InternalIP" {
            let at = at_addresses.index(index);
            let ip = field::address(&at.key("address"), &address.address)?;
            if seen.insert(ip) {
                internal_ips.push(ip);
            }
        }
    }
    Ok(Node { name, labels: field::labels(object.metadata.labels), internal_ips, pod_cidrs })
}

/// A Namespace: name and labels.
///
/// # Errors
/// Names the first field that is not as the API says.
pub fn namespace(object: core::Namespace) -> Result<Namespace, Error> {
    let name = field::cluster_name(&object.metadata)?;
    if !is_label(&name) {
        let metadata = At::Key(&At::Object, "metadata");
        return Err(metadata
            .key("name")
            .error(format!("{name:?} is not the name of a namespace (it has a '.')")));
    }
    let mut labels = field::labels(object.metadata.labels);
    // The API server sets this label and lets nobody change it.
    labels.insert(NAMESPACE_NAME.to_owned(), name.to_string());
    Ok(Namespace { name, labels })
}
