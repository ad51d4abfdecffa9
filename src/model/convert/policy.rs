//! NetworkPolicies: checked as the API server checks them, and kept as the API has them.
//!
//! What passes here is what the policy planner may rely on: every CIDR parses, every `except` lies within its
//! block, every port range has an order, every selector has an operator with the values it needs.

use super::field::{self, At, Error};
use crate::model::NetworkPolicy;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// A NetworkPolicy.
///
/// # Errors
/// Names the first field that is not as the API says.
pub fn network_policy(object: networking::NetworkPolicy) -> Result<NetworkPolicy, Error> {
    let name = field::namespaced_name(&object.metadata)?;
    let root = At::Object;
    let at = root.key("spec");
    // Without a spec there is no podSelector: the policy would select every pod and deny it everything.
    let spec = object.spec.ok_or_else(|| at.error("missing"))?;

    if let Some(selected) = &spec.pod_selector {
        selector(&at.key("podSelector"), selected)?;
    }
    let at_types = at.key("policyTypes");
    for (index, kind) in spec.policy_types.iter().flatten().enumerate() {
        if kind != "Ingress" && kind != "Egress" {
            return Err(at_types.index(index).error(format!("{kind:?} is neither Ingress nor Egress")));
        }
    }
    let at_rules = at.key("ingress");
    for (index, rule) in spec.ingress.iter().flatten().enumerate() {
        let at = at_rules.index(index);
        peers(&at.key("from"), rule.from.as_deref())?;
        ports(&at.key("ports"), rule.ports.as_deref())?;
    }
    let at_rules = at.key("egress");
    for (index, rule) in spec.egress.iter().flatten().enumerate() {
        let at = at_rules.index(index);
        peers(&at.key("to"), rule.to.as_deref())?;
        ports(&at.key("ports"), rule.ports.as_deref())?;
    }
    Ok(NetworkPolicy { name, spec })
}

fn peers(at: &At<'_>, peers: Option<&[networking::NetworkPolicyPeer]>) -> Result<(), Error> {
    for (index, peer) in peers.unwrap_or_default().iter().enumerate() {
        let at = at.index(index);
        let selects = peer.pod_selector.is_some() || peer.namespace_selector.is_some();
        match &peer.ip_block {
            Some(_) if selects => {
                return Err(at.key("ipBlock").error("stands alone, never beside a selector"));
            }
            Some(block) => ip_block(&at.key("ipBlock"), block)?,
            None if !selects => {
                return Err(at.error("names no peer: podSelector, namespaceSelector or ipBlock"));
            }
            None => {}
        }
        if let Some(pods) = &peer.pod_selector {
            selector(&at.key("podSelector"), pods)?;
        }
        if let Some(namespaces) = &peer.namespace_selector {
            selector(&at.key("namespaceSelector"), namespaces)?;
        }
    }
    Ok(())
}

fn ip_block(at: &At<'_>, block: &networking::IPBlock) -> Result<(), Error> {
    let outer = field::cidr(&at.key("cidr"), &block.cidr)?;
    let at = at.key("except");
    for (index, except) in block.except.iter().flatten().enumerate() {
        let at = at.index(index);
        let inner = field::cidr(&at, except)?;
        if !outer.contains(&inner) || inner == outer {
            return Err(at.error(format!("{inner} is not a part of {outer}")));
        }
    }
    Ok(())
}

fn ports(at: &At<'_>, ports: Option<&[networking::NetworkPolicyPort]>) -> Result<(), Error> {
    for (index, port) in ports.unwrap_or_default().iter().enumerate() {
        let at = at.index(index);
        field::protocol(&at.key("protocol"), port.protocol.as_deref())?;
        let first = match &port.port {
            Some(IntOrString::Int(number)) => Some(field::port(&at.key("port"), *number)?),
            Some(IntOrString::String(name)) => {
                field::port_name(&at.key("port"), name)?;
                None
            }
            None => None,
        };
        if let Some(last) = port.end_port {
            let at = at.key("endPort");
            let last = field::port(&at, last)?;
            match first {
                None => return Err(at.error("needs a port number as the start of the range")),
                Some(first) if last < first => {
                    return Err(at.error(format!("{last} is below the start of the range, {first}")));
                }
                Some(_) => {}
            }
        }
    }
    Ok(())
}

fn selector(at: &At<'_>, selector: &LabelSelector) -> Result<(), Error> {
    let at = at.key("matchExpressions");
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        let at = at.index(index);
        let values = expression.values.as_deref().unwrap_or_default();
        match expression.operator.as_str() {
            "In" | "NotIn" if values.is_empty() => {
                return Err(at.key("values").error(format!("missing: {} needs some", expression.operator)));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                return Err(at.key("values").error(format!("{} takes none", expression.operator)));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                return Err(at
                    .key("operator")
                    .error(format!("{other:?} is not In, NotIn, Exists or DoesNotExist")));
            }
        }
        if expression.key.is_empty() {
            return Err(at.key("key").error("missing"));
        }
    }
    Ok(())
}
