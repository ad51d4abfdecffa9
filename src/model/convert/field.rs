//! Where in an object a value stands, and the reading of the scalars that many fields share.
//!
//! [`At`] is a chain of borrowed steps: walking an object allocates nothing until something is wrong.

use crate::model::{Family, Labels, ObjectName, Protocol};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

const FORM: &str = "lower-case letters, digits, '-'";

/// One step into an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// A key of a mapping.
    Key(String),
    /// An index of a sequence.
    Index(usize),
}

/// Path of a field: `spec.ports[2].port`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldPath(pub Vec<Segment>);

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Key(key) if key.contains(['.', '/']) => write!(f, "[{key:?}]")?,
                Segment::Key(key) if position == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// A field that does not hold what the Kubernetes API says it holds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct Error {
    /// The field.
    pub field: FieldPath,
    /// What is wrong with it.
    pub message: String,
}

/// A place in the object being read.
#[derive(Clone, Copy, Debug)]
pub(super) enum At<'a> {
    Object,
    Key(&'a At<'a>, &'a str),
    Index(&'a At<'a>, usize),
}

impl<'a> At<'a> {
    pub(super) const fn key(&'a self, key: &'a str) -> Self {
        Self::Key(self, key)
    }

    pub(super) const fn index(&'a self, index: usize) -> Self {
        Self::Index(self, index)
    }

    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        let mut segments = Vec::new();
        let mut at = self;
        loop {
            match at {
                Self::Object => break,
                Self::Key(parent, key) => {
                    segments.push(Segment::Key((*key).to_owned()));
                    at = parent;
                }
                Self::Index(parent, index) => {
                    segments.push(Segment::Index(*index));
                    at = parent;
                }
            }
        }
        segments.reverse();
        Error { field: FieldPath(segments), message: message.into() }
    }
}

/// A port number: 1 to 65535.
pub(super) fn port(at: &At<'_>, value: i32) -> Result<u16, Error> {
    match u16::try_from(value) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(at.error(format!("{value} is not a port (1 to 65535)"))),
    }
}

/// RFC 6335 service name: at most 15 of lower-case letters, digits and single hyphens, with a letter.
pub(super) fn port_name<'n>(at: &At<'_>, name: &'n str) -> Result<&'n str, Error> {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good = name.len() <= 15
        && name.bytes().all(known)
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--");
    if good {
        Ok(name)
    } else {
        Err(at.error(format!("{name:?} is neither a port number nor the name of a port")))
    }
}

/// A protocol; the API's default is TCP.
pub(super) fn protocol(at: &At<'_>, value: Option<&str>) -> Result<Protocol, Error> {
    match value {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(at.error(format!("{other:?} is not a protocol (TCP, UDP or SCTP)"))),
    }
}

/// An address as Kubernetes reads it: leading zeros of an IPv4 address are decimal, and an IPv4-mapped IPv6
/// address is the IPv4 address.
pub(super) fn address(at: &At<'_>, value: &str) -> Result<IpAddr, Error> {
    value
        .parse::<IpAddr>()
        .ok()
        .map(|address| address.to_canonical())
        .or_else(|| ipv4_with_zeros(value).map(IpAddr::V4))
        .ok_or_else(|| at.error(format!("{value:?} is not an IP address")))
}

fn ipv4_with_zeros(value: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = value.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// An address that packets can be sent to: a pod, an endpoint, a Service.
pub(super) fn destination(at: &At<'_>, value: &str) -> Result<IpAddr, Error> {
    let address = address(at, value)?;
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast {
        return Err(at.error(format!("{address} is unspecified, loopback, multicast or broadcast")));
    }
    Ok(address)
}

/// A CIDR block; host bits are dropped, as Kubernetes does.
pub(super) fn cidr(at: &At<'_>, value: &str) -> Result<IpNet, Error> {
    value
        .parse::<IpNet>()
        .map(|net| net.trunc())
        .map_err(|_| at.error(format!("{value:?} is not a CIDR block (such as 10.42.0.0/24)")))
}

/// Addresses of at most two families, one each.
pub(super) fn one_per_family(at: &At<'_>, addresses: &[IpAddr]) -> Result<(), Error> {
    for (index, address) in addresses.iter().enumerate() {
        let family = Family::of(*address);
        if addresses.iter().take(index).any(|other| Family::of(*other) == family) {
            return Err(at.index(index).error(format!("{address} is a second {family} address")));
        }
    }
    Ok(())
}

/// `metadata.name` of an object without a namespace.
pub(super) fn cluster_name(meta: &ObjectMeta) -> Result<Arc<str>, Error> {
    let metadata = At::Key(&At::Object, "metadata");
    let at = At::Key(&metadata, "name");
    match meta.name.as_deref() {
        None | Some("") => Err(at.error("missing")),
        Some(name) if is_subdomain(name) => Ok(name.into()),
        Some(other) => {
            Err(at.error(format!("{other:?} is not a name ({FORM}, '.' and at most 253 characters)")))
        }
    }
}

/// `metadata.namespace` and `metadata.name`; a missing namespace is `default`, as for kubectl.
pub(super) fn namespaced_name(meta: &ObjectMeta) -> Result<ObjectName, Error> {
    let name = cluster_name(meta)?;
    let metadata = At::Key(&At::Object, "metadata");
    let at = At::Key(&metadata, "namespace");
    let namespace = match meta.namespace.as_deref() {
        None | Some("") => "default",
        Some(namespace) => namespace,
    };
    if !is_label(namespace) {
        return Err(at.error(format!("{namespace:?} is not a name ({FORM} and at most 63 characters)")));
    }
    Ok(ObjectName { namespace: namespace.into(), name })
}

/// Whether a text is an RFC 1123 label, the form of a namespace's name.
#[must_use]
pub fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_part(text)
}

/// Whether a text is an RFC 1123 subdomain, the form of all other names.
#[must_use]
pub fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_part)
}

fn is_part(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Labels or annotations.
pub(super) fn labels(map: Option<BTreeMap<String, String>>) -> Labels {
    map.unwrap_or_default()
}
