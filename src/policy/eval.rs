//! The verdict of a packet, by the kernel's algorithm, out of the tables as they are to be.

use super::blocks::longest;
use super::desired::Desired;
use super::{Direction, Sets};
use netd_bpf::Addr;
use netd_bpf::policy::{Decision, PolicyKey, action, identity, point, set};
use std::net::IpAddr;

/// The first packet of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The initiator's true address.
    pub from: IpAddr,
    /// The responder's address, behind any Service.
    pub to: IpAddr,
    /// IANA protocol number.
    pub protocol: u8,
    /// The responder's port, in host order; 0 if the protocol has none.
    pub port: u16,
    /// This node itself made it.
    pub from_node: bool,
}

/// What one end says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// That end is no pod of this node: its own node says.
    Elsewhere,
    /// Nobody is asked: a pod reaches itself.
    Itself,
    /// Nobody is asked: a pod and its own node reach each other.
    Node,
    /// No policy isolates the pod.
    Open,
    /// Nothing is allowed: the pod's policies cannot be planned.
    Closed,
    /// Policies isolate the pod.
    Isolated {
        /// Number of the set.
        set: u64,
        /// Identity of the other end.
        identity: u64,
        /// What is decided, and by which rule; none if no rule matches.
        decision: Decision,
    },
}

impl Side {
    /// It has nothing against the packet.
    #[must_use]
    pub const fn allows(&self) -> bool {
        match self {
            Self::Elsewhere | Self::Itself | Self::Node | Self::Open => true,
            Self::Closed => false,
            Self::Isolated { decision, .. } => decision.action == action::ALLOW,
        }
    }
}

/// The verdict of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The initiator's end.
    pub egress: Side,
    /// The responder's end.
    pub ingress: Side,
}

impl Verdict {
    /// The packet passes.
    #[must_use]
    pub const fn allowed(&self) -> bool {
        self.egress.allows() && self.ingress.allows()
    }
}

/// Judges the first packet of a flow.
#[must_use]
pub fn judge(desired: &Desired, packet: &Packet) -> Verdict {
    let Packet { from, to, protocol, port, from_node } = *packet;
    let (from, to) = (Addr::from(from), Addr::from(to));
    let point = point(protocol, port);
    if from_node {
        return Verdict { egress: Side::Node, ingress: Side::Node };
    }
    if from == to {
        return Verdict { egress: Side::Itself, ingress: Side::Itself };
    }
    let to_node = desired.identities.get(&to).is_some_and(|identity| identity.node);
    let egress = match sets(desired, from) {
        Some(_) if to_node => Side::Node,
        sets => side(desired, sets, Direction::Egress, to, point),
    };
    Verdict { egress, ingress: side(desired, sets(desired, to), Direction::Ingress, from, point) }
}

/// The identity of an address.
#[must_use]
pub fn identity(desired: &Desired, of: Addr) -> u64 {
    let own = desired.identities.get(&of).map(|identity| identity.number);
    own.or_else(|| longest(&desired.blocks, of).map(|(_, number)| *number)).unwrap_or(identity::WORLD)
}

/// What a set says of an identity.
#[must_use]
pub fn decide(desired: &Desired, set: u64, identity: u64, point: u32) -> Decision {
    let row = |identity| desired.rows.get(&PolicyKey { set, identity });
    row(identity).or_else(|| row(identity::ANY)).map_or(Decision::default(), |list| list.decide(point))
}

/// The sets of a local pod by its address. One that is not in the tables is closed.
fn sets(desired: &Desired, of: Addr) -> Option<Sets> {
    let endpoint = desired.endpoints.get(&of)?;
    Some(desired.pods.get(endpoint).copied().unwrap_or(Sets::CLOSED))
}

fn side(desired: &Desired, sets: Option<Sets>, direction: Direction, other: Addr, point: u32) -> Side {
    match sets.map(|sets| sets.of(direction)) {
        None => Side::Elsewhere,
        Some(set::OPEN) => Side::Open,
        Some(set::CLOSED) => Side::Closed,
        Some(set) => {
            let identity = identity(desired, other);
            Side::Isolated { set, identity, decision: decide(desired, set, identity, point) }
        }
    }
}

#[cfg(test)]
mod tests;
