//! Flows as people know them: the two rows of a translated flow put together to one conversation.
//!
//! A conversation is told by its near row (what the client sends, or the only row of a flow without
//! translation). A far row is told only when its near one is missing: evicted from the nursery, not yet made
//! again, or, as the far one is made first, not yet made. The tables go on changing while they are read: a flow that becomes established meanwhile may be
//! told twice, one that ends then and goes back to the nursery may be left out, and no other is.

use super::answers::present;
use super::{Datapath, Error, FlowRow, batch, locked};
use netd_bpf::Addr;
use netd_bpf::flow::{Flow, FlowKey, Limits, flow_flag, leg, lifetime, role};
use nix::time::{ClockId, clock_gettime};
use std::net::SocketAddr;
use std::ops::ControlFlow;

const TCP: u8 = 6;

/// How far a flow has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// TCP: the handshake is not complete.
    Opening,
    /// TCP: open.
    Established,
    /// TCP: one end sent its FIN.
    HalfClosed,
    /// TCP: both ends are done, or one reset it.
    Closed,
    /// Not TCP: nobody answered.
    OneWay,
    /// Not TCP: it was answered.
    TwoWay,
}

/// One flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conversation {
    /// IANA protocol number.
    pub proto: u8,
    /// Who sent the first packet; the port is the identifier of an ICMP echo, 0 without one.
    pub client: SocketAddr,
    /// The Service's address that the client sends to; none without a Service.
    pub frontend: Option<SocketAddr>,
    /// Who answers: the Service's backend, or whom the client sends to.
    pub server: SocketAddr,
    /// The client's port as the server sees it, if that is another.
    pub client_port_there: Option<u16>,
    /// How far it has come.
    pub state: State,
    /// Its row is among the established.
    pub established: bool,
    /// All its rows are there.
    pub whole: bool,
    /// The pod sends to itself through a Service.
    pub hairpin: bool,
    /// It came to the pod from the node's own stack.
    pub from_stack: bool,
    /// It is a conversation, but found no room among the established.
    pub refused: bool,
    /// [`Flow::service`].
    pub service: u32,
    /// [`Flow::backend`].
    pub backend: u32,
    /// [`Flow::backend_generation`].
    pub backend_generation: u32,
    /// [`Flow::egress_rule`].
    pub egress_rule: u32,
    /// [`Flow::ingress_rule`].
    pub ingress_rule: u32,
    /// [`Flow::owner`].
    pub owner: u32,
    /// Seconds since boot.
    pub created: u32,
    /// Seconds since boot; the newer of both rows'.
    pub last_seen: u32,
    /// Seconds it may be idle.
    pub lifetime: u32,
}

impl Conversation {
    /// Seconds since the first packet, at `now` seconds since boot.
    #[must_use]
    pub const fn age(&self, now: u32) -> u32 {
        elapsed(now, self.created)
    }

    /// Seconds since the last packet.
    #[must_use]
    pub const fn idle(&self, now: u32) -> u32 {
        elapsed(now, self.last_seen)
    }

    /// Seconds until it is forgotten if nothing more comes; 0: with the next look.
    #[must_use]
    pub const fn expires_in(&self, now: u32) -> u32 {
        self.lifetime.saturating_sub(self.idle(now))
    }
}

/// The programs' clock may be a tick ahead.
const fn elapsed(now: u32, then: u32) -> u32 {
    let passed = now.wrapping_sub(then);
    if passed.cast_signed() < 0 { 0 } else { passed }
}

/// Seconds since boot, as the programs count them.
#[must_use]
pub fn now() -> u32 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.tv_sec());
    u32::try_from(now).unwrap_or(u32::MAX)
}

/// Which end of a row's key is which.
struct Ends {
    initiator: (Addr, u16),
    other: (Addr, u16),
}

impl Ends {
    const fn of(key: &FlowKey, flow: &Flow) -> Self {
        let (low, high) = ((key.low, key.low_port), (key.high, key.high_port));
        if flow.flags & flow_flag::INITIATOR_HIGH == 0 {
            Self { initiator: low, other: high }
        } else {
            Self { initiator: high, other: low }
        }
    }
}

/// The key of a translated flow's other row; none without translation.
#[must_use]
pub fn other_half(row: &FlowRow) -> Option<FlowKey> {
    let FlowRow { key, flow, .. } = row;
    if flow.role == role::DIRECT {
        return None;
    }
    let Ends { initiator: (client, _), other: (far, port) } = Ends::of(key, flow);
    let mut other = FlowKey::default();
    flow.other_half(&client, (&far, port), key.proto, &mut other);
    Some(other)
}

/// True if `half`, found where `row` says that its other half stands, is that.
fn belong(row: &FlowRow, half: &FlowRow) -> bool {
    other_half(half) == Some(row.key) && row.flow.role != half.flow.role
}

fn socket((addr, port): (Addr, u16)) -> SocketAddr {
    SocketAddr::new(addr.into(), u16::from_be(port))
}

/// State of a row.
#[must_use]
pub const fn state(flow: &Flow, proto: u8) -> State {
    let flags = flow.flags;
    if proto != TCP {
        return if flags & flow_flag::REPLIED != 0 { State::TwoWay } else { State::OneWay };
    }
    if flow.done() {
        State::Closed
    } else if flags & flow_flag::FIN_BOTH != 0 {
        State::HalfClosed
    } else if flags & flow_flag::CONFIRMED == 0 {
        State::Opening
    } else {
        State::Established
    }
}

/// Puts a row and its other half, if that was found, together.
#[must_use]
pub fn conversation(row: &FlowRow, other: Option<&FlowRow>, limits: &Limits) -> Conversation {
    let FlowRow { key, flow, established } = row;
    let ends = Ends::of(key, flow);
    let hairpin = flow.flags & flow_flag::HAIRPIN != 0;
    let xlat = (flow.xlat_addr, flow.xlat_port);
    let (client, frontend, server, there) = match flow.role {
        role::FORWARD => {
            let frontend = (key.leg != leg::ASIDE).then_some(ends.other);
            (ends.initiator, frontend, xlat, flow.client_port)
        }
        role::REPLY => {
            let client = if hairpin { ends.other.0 } else { ends.initiator.0 };
            let frontend = (xlat != ends.other).then_some(xlat);
            ((client, flow.client_port), frontend, ends.other, ends.initiator.1)
        }
        _ => (ends.initiator, None, ends.other, ends.initiator.1),
    };
    // What one row learns the other is told at once, but for the time of a packet.
    let newest = match other {
        Some(other) if elapsed(other.flow.last_seen, flow.last_seen) > 0 => &other.flow,
        _ => flow,
    };
    Conversation {
        proto: key.proto,
        client: socket(client),
        frontend: frontend.map(socket),
        server: socket(server),
        client_port_there: (there != client.1).then_some(u16::from_be(there)),
        state: state(newest, key.proto),
        established: *established,
        whole: flow.role == role::DIRECT || other.is_some(),
        hairpin,
        from_stack: flow.flags & flow_flag::FROM_STACK != 0,
        refused: newest.flags & flow_flag::REFUSED != 0,
        service: flow.service,
        backend: flow.backend,
        backend_generation: flow.backend_generation,
        egress_rule: newest.egress_rule,
        ingress_rule: newest.ingress_rule,
        owner: flow.owner,
        created: flow.created,
        last_seen: newest.last_seen,
        lifetime: lifetime(newest, key.proto, limits),
    }
}

impl Datapath {
    /// Visits all rows of both tables, some thousand at a time, until the visitor has seen enough: about
    /// 0.3 µs a row.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn visit_flows(
        &self,
        mut visitor: impl FnMut(&mut dyn Iterator<Item = FlowRow>) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut ended = false;
        // A flow moves from the nursery to the established: in this order it is not missed.
        for (name, established) in [("NURSERY", false), ("ESTABLISHED", true)] {
            if ended {
                break;
            }
            batch::visit(name, &self.pins.map(name), None, |keys: &[FlowKey], flows: &[Flow]| {
                let mut rows =
                    keys.iter().zip(flows).map(|(key, flow)| FlowRow { key: *key, flow: *flow, established });
                let flow = visitor(&mut rows);
                ended = flow.is_break();
                flow
            })?;
        }
        Ok(())
    }

    /// Visits all flows that `wanted` says yes to when it is shown the row that tells them, each with its
    /// other row: that costs a look-up of a microsecond for each.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn visit_conversations(
        &self,
        mut wanted: impl FnMut(&Conversation) -> bool,
        mut visitor: impl FnMut(Conversation) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let limits = self.config.limits();
        let mut failed = None;
        self.visit_flows(|rows| {
            for row in rows {
                // Judged by one row first: that costs nothing.
                if !wanted(&conversation(&row, None, &limits)) {
                    continue;
                }
                let other = match self.find_other(&row) {
                    Ok(other) => other,
                    Err(error) => {
                        failed = Some(error);
                        return ControlFlow::Break(());
                    }
                };
                if row.flow.role == role::REPLY && other.is_some() {
                    // Its near row tells it.
                    continue;
                }
                visitor(conversation(&row, other.as_ref(), &limits))?;
            }
            ControlFlow::Continue(())
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// The other half of a translated flow, if it is there.
    fn find_other(&self, row: &FlowRow) -> Result<Option<FlowRow>, Error> {
        let Some(key) = other_half(row) else { return Ok(None) };
        // As the programs look, for a row that moves meanwhile. What was found may also have been removed, and its
        // memory have become another flow's, while the kernel copied it: then the next look finds it.
        for established in [true, false, true] {
            let (map, name) =
                if established { (&self.established, "ESTABLISHED") } else { (&self.nursery, "NURSERY") };
            let half =
                present(locked(map).get(&key, 0), name)?.map(|flow| FlowRow { key, flow, established });
            if let Some(half) = half.filter(|half| belong(row, half)) {
                return Ok(Some(half));
            }
        }
        Ok(None)
    }

    /// What the programs take for the limits of flows.
    #[must_use]
    pub fn flow_limits(&self) -> Limits {
        self.config.limits()
    }
}
