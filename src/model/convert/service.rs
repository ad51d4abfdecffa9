//! Services.

use super::field::{self, At, Error};
use crate::model::{Service, ServicePort, TargetPort, TrafficPolicy};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::net::IpAddr;

/// kube-proxy leaves Services with these labels alone, whatever their values.
const NOT_OURS: [&str; 2] = ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"];
/// `sessionAffinityConfig.clientIP.timeoutSeconds` if it is not given: three hours.
const AFFINITY_DEFAULT: i32 = 10_800;
const AFFINITY_LONGEST: i32 = 86_400;

/// A Service.
///
/// # Errors
/// Names the first field that is not as the API says.
pub fn service(object: core::Service) -> Result<Service, Error> {
    let name = field::namespaced_name(&object.metadata)?;
    let spec = object.spec.unwrap_or_default();
    let labels = field::labels(object.metadata.labels);
    let at = At::Key(&At::Object, "spec");

    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if !["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"].contains(&kind) {
        return Err(at.key("type").error(format!("{kind:?} is not a type of Service")));
    }
    let cluster_ips = if kind == "ExternalName" { Vec::new() } else { cluster_ips(&at, &spec)? };
    let has_node_ports = matches!(kind, "NodePort" | "LoadBalancer");
    let ports = ports(&at, spec.ports.as_deref().unwrap_or_default(), has_node_ports)?;
    if ports.is_empty() && !cluster_ips.is_empty() {
        return Err(at.key("ports").error("a Service with an address needs a port"));
    }

    Ok(Service {
        name,
        skip_proxy: NOT_OURS.iter().any(|label| labels.contains_key(*label)),
        labels,
        annotations: field::labels(object.metadata.annotations),
        cluster_ips,
        ports,
        // A selector means nothing to a Service that is a name in another's DNS.
        selector: if kind == "ExternalName" { field::labels(None) } else { field::labels(spec.selector) },
        internal_traffic_policy: traffic_policy(
            &at.key("internalTrafficPolicy"),
            spec.internal_traffic_policy.as_deref(),
        )?,
        external_traffic_policy: traffic_policy(
            &at.key("externalTrafficPolicy"),
            spec.external_traffic_policy.as_deref(),
        )?,
        affinity_seconds: affinity(
            &at,
            spec.session_affinity.as_deref(),
            spec.session_affinity_config
                .and_then(|config| config.client_ip)
                .and_then(|client| client.timeout_seconds),
        )?,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
    })
}

/// `clusterIPs`, of which `clusterIP` is the first; `None` (headless) and the empty string are no address.
fn cluster_ips(at: &At<'_>, spec: &core::ServiceSpec) -> Result<Vec<IpAddr>, Error> {
    let single = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
    let Some(list) = spec.cluster_ips.as_deref().filter(|list| !list.is_empty()) else {
        return match single {
            None | Some("None") => Ok(Vec::new()),
            Some(ip) => Ok(vec![field::destination(&at.key("clusterIP"), ip)?]),
        };
    };
    if let (Some(single), Some(first)) = (single, list.first())
        && single != first
    {
        return Err(at
            .key("clusterIP")
            .error(format!("{single:?} differs from clusterIPs[0], which is {first:?}")));
    }
    let at = at.key("clusterIPs");
    if list.iter().any(|ip| ip == "None") {
        return match list {
            [_] => Ok(Vec::new()),
            _ => Err(at.error("\"None\" stands alone, never beside an address")),
        };
    }
    let mut ips = Vec::with_capacity(list.len());
    for (index, ip) in list.iter().enumerate() {
        ips.push(field::destination(&at.index(index), ip)?);
    }
    field::one_per_family(&at, &ips)?;
    Ok(ips)
}

fn ports(at: &At<'_>, ports: &[core::ServicePort], node_ports: bool) -> Result<Vec<ServicePort>, Error> {
    let at = at.key("ports");
    let mut result: Vec<ServicePort> = Vec::with_capacity(ports.len());
    for (index, given) in ports.iter().enumerate() {
        let at = at.index(index);
        let name = given.name.as_deref().unwrap_or_default();
        let protocol = field::protocol(&at.key("protocol"), given.protocol.as_deref())?;
        let number = field::port(&at.key("port"), given.port)?;
        if name.is_empty() && ports.len() > 1 {
            return Err(at.key("name").error("missing: of several ports each needs a name"));
        }
        for other in &result {
            if *other.name == *name {
                return Err(at.key("name").error(format!("{name:?} is the name of two ports")));
            }
            if other.port == number && other.protocol == protocol {
                return Err(at.key("port").error(format!("{number}/{protocol} is there twice")));
            }
        }
        let target = match &given.target_port {
            None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
            Some(IntOrString::Int(target)) => {
                TargetPort::Number(field::port(&at.key("targetPort"), *target)?)
            }
            Some(IntOrString::String(target)) if target.is_empty() => TargetPort::Number(number),
            Some(IntOrString::String(target)) => {
                TargetPort::Name(field::port_name(&at.key("targetPort"), target)?.into())
            }
        };
        let node_port = match given.node_port {
            Some(port) if port != 0 && node_ports => Some(field::port(&at.key("nodePort"), port)?),
            _ => None,
        };
        result.push(ServicePort { name: name.into(), protocol, port: number, target, node_port });
    }
    Ok(result)
}

fn traffic_policy(at: &At<'_>, value: Option<&str>) -> Result<TrafficPolicy, Error> {
    match value {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(at.error(format!("{other:?} is neither Cluster nor Local"))),
    }
}

fn affinity(at: &At<'_>, value: Option<&str>, timeout: Option<i32>) -> Result<Option<u32>, Error> {
    match value {
        None | Some("" | "None") => Ok(None),
        Some("ClientIP") => {
            let seconds = timeout.unwrap_or(AFFINITY_DEFAULT);
            match u32::try_from(seconds) {
                Ok(good @ 1..) if seconds <= AFFINITY_LONGEST => Ok(Some(good)),
                _ => {
                    let at = at.key("sessionAffinityConfig");
                    let at = at.key("clientIP");
                    Err(at
                        .key("timeoutSeconds")
                        .error(format!("{seconds} is not between 1 and {AFFINITY_LONGEST}")))
                }
            }
        }
        Some(other) => {
            Err(at.key("sessionAffinity").error(format!("{other:?} is neither None nor ClientIP")))
        }
    }
}
