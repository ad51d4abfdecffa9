//! `netd monitor`: what happens, as it happens, one document per line; and the newest drops, remembered.

use super::Answer;
use super::policy::{Denied, RuleName};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::SocketAddr;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A packet was dropped.
    Drop,
    /// A flow was opened, where these are told.
    Flow,
    /// Events were lost before they could be told.
    Lost,
    /// A container runtime's request was answered.
    Cni,
    /// A Service changed in the kernel, or was refused.
    Service,
    /// A route to other nodes' pods came or went.
    Route,
    /// An uplink's program was attached or detached, or could not be.
    Uplink,
    /// The source of state has a problem, or has one no longer.
    Source,
    /// Flows found no room.
    Flows,
    /// A task of the agent failed, or start waits for something.
    Agent,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drop => "DROP",
            Self::Flow => "flow",
            Self::Lost => "LOST",
            Self::Cni => "cni",
            Self::Service => "service",
            Self::Route => "route",
            Self::Uplink => "uplink",
            Self::Source => "source",
            Self::Flows => "flows",
            Self::Agent => "agent",
        })
    }
}

/// `netd.event/v1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// RFC 3339, UTC, to the millisecond.
    pub time: String,
    /// What it is about.
    pub kind: Kind,
    /// The object: `namespace/name` of a pod or Service, the container of a pod without a name, a route, an interface,
    /// a file.
    pub subject: Option<String>,
    /// In one sentence.
    pub message: String,
    /// Something wanted is not in force, or a packet was lost.
    pub bad: bool,
    /// The packet, of a drop.
    pub drop: Option<Drop>,
    /// The flow, of one that was opened.
    pub flow: Option<Opened>,
    /// How many events, of a loss; how many flows, of such that were not told.
    pub lost: Option<u64>,
}

impl Answer for Event {
    const SCHEMA: &'static str = "netd.event/v1";
}

/// `netd.drops/v1`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drops {
    /// Name of the node.
    pub node: String,
    /// The newest, the oldest of them first.
    pub drops: Vec<Dropped>,
}

impl Answer for Drops {
    const SCHEMA: &'static str = "netd.drops/v1";
}

/// A drop that the agent remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// As of an event.
    pub time: String,
    /// Why, in one sentence.
    pub message: String,
    /// The packet.
    #[serde(flatten)]
    pub packet: Drop,
}

/// A dropped packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drop {
    /// As the metric's label has it.
    pub reason: String,
    /// Where in the datapath.
    pub stage: String,
    /// The pod at whose interface it was, or whose policies do not allow it, if known: `namespace/name`, or its
    /// container.
    pub pod: Option<String>,
    /// `tcp`, `udp`, `sctp`, `icmp`, `icmpv6` or a number; for what is not IP, its Ethernet protocol.
    pub protocol: String,
    /// As the packet had it; port 0 without one.
    pub source: SocketAddr,
    /// The pod that has this address, likewise.
    pub source_pod: Option<String>,
    /// As the packet had it, before any translation; of one that policy does not allow, whom it would have reached.
    /// Port 0 without one.
    pub destination: SocketAddr,
    /// The pod that has this address, likewise.
    pub destination_pod: Option<String>,
    /// The Service that the packet was for: `namespace/name`.
    pub service: Option<String>,
    /// TCP's flags, such as `SYN,ACK`.
    pub tcp_flags: Option<String>,
    /// Bytes, with the link header.
    pub length: u32,
    /// Why policy does not allow it, if that is the reason.
    pub policy: Option<Denied>,
}

/// The packet in one line. One that policy does not allow is told by names, any other by what it carries too.
impl fmt::Display for Drop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = self.tcp_flags.as_ref().map(|flags| format!(" {flags}")).unwrap_or_default();
        let ends = [self.source_pod.as_ref(), self.destination_pod.as_ref()];
        if let Some(policy) = &self.policy {
            let Self { protocol, .. } = self;
            let service =
                self.service.as_ref().map(|service| format!(" (Service {service})")).unwrap_or_default();
            let source = |port| end(self.source_pod.as_deref(), self.source, port);
            let destination = |port| end(self.destination_pod.as_deref(), self.destination, port);
            return if policy.reply {
                write!(f, "{}/{protocol} → {}{service}{flags}", source(true), destination(false))
            } else {
                write!(f, "{} → {}/{protocol}{service}{flags}", source(false), destination(true))
            };
        }
        if let Some(pod) = self.pod.as_ref().filter(|pod| !ends.contains(&Some(*pod))) {
            write!(f, "at {pod}: ")?;
        }
        let both = |name: Option<&str>, at: SocketAddr| {
            let at = end(None, at, true);
            name.map_or_else(|| at.clone(), |name| format!("{name} {at}"))
        };
        write!(
            f,
            "{} → {} {}{flags}",
            both(self.source_pod.as_deref(), self.source),
            both(self.destination_pod.as_deref().or(self.service.as_deref()), self.destination),
            self.protocol,
        )
    }
}

/// A name, or else the address; with the port, if there is one.
fn end(name: Option<&str>, at: SocketAddr, with_port: bool) -> String {
    match (name, at.port(), with_port) {
        (Some(name), 0, _) | (Some(name), _, false) => name.to_owned(),
        (Some(name), port, true) => format!("{name}:{port}"),
        (None, 0, _) | (None, _, false) => at.ip().to_string(),
        (None, _, true) => at.to_string(),
    }
}

/// A flow that was opened, and allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// As of a drop.
    pub protocol: String,
    /// Who began.
    pub source: SocketAddr,
    /// Its pod: `namespace/name`, or its container.
    pub source_pod: Option<String>,
    /// Whom it sends to: of a flow through a Service, that one's address.
    pub destination: SocketAddr,
    /// The Service: `namespace/name`.
    pub service: Option<String>,
    /// Whom it reaches: of a flow through a Service, the backend, if it is known.
    pub server: Option<SocketAddr>,
    /// Its pod, likewise.
    pub server_pod: Option<String>,
    /// The rule that allowed it to leave; none: none was needed.
    pub egress_rule: Option<RuleName>,
    /// The rule that allowed it to enter; none: none was needed.
    pub ingress_rule: Option<RuleName>,
}

/// In one line, by names.
impl fmt::Display for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |at: SocketAddr| end(None, at, true);
        write!(f, "{} → ", end(self.source_pod.as_deref(), self.source, false))?;
        let server = self.server.map(|at| end(self.server_pod.as_deref(), at, true));
        match (&self.service, server) {
            (Some(service), Some(server)) => {
                write!(f, "{service} ({}/{} → {server})", plain(self.destination), self.protocol)?;
            }
            (Some(service), None) => write!(f, "{service} ({}/{})", plain(self.destination), self.protocol)?,
            (None, server) => {
                let server = server.unwrap_or_else(|| plain(self.destination));
                write!(f, "{server}/{}", self.protocol)?;
            }
        }
        match (&self.egress_rule, &self.ingress_rule) {
            (None, None) => f.write_str(" allowed, no rule was needed"),
            (Some(egress), None) => write!(f, " allowed by egress {egress}"),
            (None, Some(ingress)) => write!(f, " allowed by ingress {ingress}"),
            (Some(egress), Some(ingress)) => write!(f, " allowed by egress {egress}, ingress {ingress}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_told_by_names() {
        let rule = |policy: &str, index| {
            Some(RuleName { policy: Some(policy.to_owned()), index: Some(index), number: 7 })
        };
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let through = Opened {
            protocol: "tcp".to_owned(),
            source: at("10.42.3.5:40312"),
            source_pod: Some("shop/web-0".to_owned()),
            destination: at("10.96.0.7:80"),
            service: Some("shop/api".to_owned()),
            server: Some(at("10.42.4.6:8080")),
            server_pod: Some("shop/api-1".to_owned()),
            egress_rule: rule("shop/web", 1),
            ingress_rule: rule("shop/api", 2),
        };
        let direct = Opened {
            destination: at("[fd00::7]:53"),
            service: None,
            server: Some(at("[fd00::7]:53")),
            server_pod: None,
            protocol: "udp".to_owned(),
            ingress_rule: None,
            ..through.clone()
        };
        let ping = Opened {
            source: at("192.0.2.1:0"),
            source_pod: None,
            destination: at("10.42.4.6:0"),
            server: Some(at("10.42.4.6:0")),
            server_pod: Some("shop/api-1".to_owned()),
            protocol: "icmp".to_owned(),
            egress_rule: None,
            ..direct.clone()
        };
        let all = [
            through.clone(),
            Opened { server: None, server_pod: None, egress_rule: None, ..through.clone() },
            Opened { server_pod: None, ..through },
            direct,
            ping,
        ];
        let lines: Vec<String> = all.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        shop/web-0 → shop/api (10.96.0.7:80/tcp → shop/api-1:8080) allowed by egress shop/web rule 1, ingress shop/api rule 2
        shop/web-0 → shop/api (10.96.0.7:80/tcp) allowed by ingress shop/api rule 2
        shop/web-0 → shop/api (10.96.0.7:80/tcp → 10.42.4.6:8080) allowed by egress shop/web rule 1, ingress shop/api rule 2
        shop/web-0 → [fd00::7]:53/udp allowed by egress shop/web rule 1
        192.0.2.1 → shop/api-1/icmp allowed, no rule was needed
        ");
    }
}
