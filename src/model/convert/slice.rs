//! EndpointSlices.

use super::field::{self, At, Error};
use crate::model::{Endpoint, EndpointPort, EndpointSlice, Family, ObjectName};
use k8s_openapi::api::discovery::v1 as discovery;

/// Label that ties a slice to its Service.
const SERVICE: &str = "kubernetes.io/service-name";

/// An EndpointSlice. One of type FQDN has no endpoints that a packet could be sent to; it stands all the same,
/// because it does name its Service.
///
/// # Errors
/// Names the first field that is not as the API says.
pub fn endpoint_slice(object: discovery::EndpointSlice) -> Result<EndpointSlice, Error> {
    let name = field::namespaced_name(&object.metadata)?;
    let service =
        object.metadata.labels.and_then(|mut labels| labels.remove(SERVICE)).filter(|name| !name.is_empty());
    let root = At::Object;
    let family = match object.address_type.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        "FQDN" => None,
        other => {
            return Err(root.key("addressType").error(format!("{other:?} is not IPv4, IPv6 or FQDN")));
        }
    };

    let mut ports: Vec<EndpointPort> = Vec::new();
    let at = root.key("ports");
    for (index, given) in object.ports.iter().flatten().enumerate() {
        let at = at.index(index);
        let name = given.name.as_deref().unwrap_or_default();
        let protocol = field::protocol(&at.key("protocol"), given.protocol.as_deref())?;
        // A port without a number means "all ports", which no Service can be served by.
        let Some(number) = given.port else { continue };
        let port = field::port(&at.key("port"), number)?;
        if ports.iter().any(|other| *other.name == *name) {
            return Err(at.key("name").error(format!("{name:?} is the name of two ports")));
        }
        ports.push(EndpointPort { name: name.into(), protocol, port });
    }

    let mut endpoints = Vec::new();
    let at = root.key("endpoints");
    if let Some(family) = family {
        for (index, given) in object.endpoints.into_iter().flatten().enumerate() {
            let at = at.index(index);
            let at = at.key("addresses");
            // "Consumers of this API should only use the first": the others are no endpoints of their own.
            let Some(first) = given.addresses.first() else { continue };
            let address = field::destination(&at.index(0), first)?;
            if Family::of(address) != family {
                return Err(at.index(0).error(format!("{address} in a slice of {family} addresses")));
            }
            endpoints.push(endpoint(given, address, &name.namespace));
        }
    }
    Ok(EndpointSlice { name, service: service.map(Into::into), ports, endpoints })
}

fn endpoint(given: discovery::Endpoint, address: std::net::IpAddr, namespace: &str) -> Endpoint {
    let conditions = given.conditions.unwrap_or_default();
    let ready = conditions.ready.unwrap_or(true);
    Endpoint {
        address,
        ready,
        serving: conditions.serving.unwrap_or(ready),
        terminating: conditions.terminating.unwrap_or(false),
        node: given.node_name.filter(|node| !node.is_empty()).map(Into::into),
        zone: given.zone.filter(|zone| !zone.is_empty()).map(Into::into),
        pod: given.target_ref.filter(|target| target.kind.as_deref() == Some("Pod")).and_then(|target| {
            Some(ObjectName::new(target.namespace.as_deref().unwrap_or(namespace), target.name.as_deref()?))
        }),
    }
}
