//! The kernel ABI of schema 1, as netd 0.1 pinned it, and what its rows become in this one.
//!
//! Schema 1 had one table of flows (`FLOWS`, LRU HASH), frontends without a seal, backends that did not say whose they
//! are, and pods with numbers of policy that meant nothing. Its other maps are this schema's to the byte, and so are the flow keys: what is
//! [`FlowKey::leg`] here was padding of zero there. All functions are pure. `export` is for the time in
//! which programs of both schemas run: see `prog::beside`.

use crate::flow::{self, FlowKey, flow_flag, leg, role};
use crate::policy::set;
use crate::service::{self, FrontendKey, seal};
use crate::{Addr, abi, pod};

/// Number of the schema; part of its pin path.
pub const SCHEMA: u32 = 1;

/// Value of `FLOWS`, with [`FlowKey`] for a key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// [`role`].
    pub role: u8,
    /// The lower byte of [`flow_flag`].
    pub flags: u8,
    /// Network order; see [`role`].
    pub xlat_port: u16,
    /// See [`role`].
    pub xlat_addr: Addr,
    /// [`service::Frontend::service`], 0 without one.
    pub service: u32,
    /// Backend id, 0 without one.
    pub backend: u32,
    /// [`service::Backend::generation`] when the backend was chosen.
    pub backend_generation: u32,
    /// Policy epoch at which egress was judged.
    pub egress_epoch: u32,
    /// Policy epoch at which ingress was judged.
    pub ingress_epoch: u32,
    /// Rule that allowed egress, 0: none was needed.
    pub egress_rule: u32,
    /// Rule that allowed ingress, 0: none was needed.
    pub ingress_rule: u32,
    /// Seconds since boot (`CLOCK_MONOTONIC`).
    pub created: u32,
    /// Seconds since boot; exact to a second.
    pub last_seen: u32,
}

/// Value of `POD_BY_IFINDEX` and `POD_BY_ADDR`. Fields as in [`pod::Pod`]; nothing judged by the three of policy, which
/// were 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Mapped IPv4 address, or [`Addr::UNSPECIFIED`].
    pub v4: Addr,
    /// IPv6 address, or [`Addr::UNSPECIFIED`].
    pub v6: Addr,
    /// Index of the host's end of the pod's interface.
    pub ifindex: u32,
    /// Number of the pod on this node.
    pub endpoint: u32,
    /// Identity for policy.
    pub identity: u32,
    /// Policy set for what the pod sends.
    pub egress_set: u32,
    /// Policy set for what the pod receives.
    pub ingress_set: u32,
    /// MAC address of the pod's own end.
    pub pod_mac: [u8; 6],
    /// MAC address of the host's end.
    pub host_mac: [u8; 6],
    /// Zero.
    pub flags: u32,
}

impl Pod {
    /// The row as this schema has it: as open as the pod was, until its policies are known.
    #[must_use]
    pub fn import(&self) -> pod::Pod {
        pod::Pod {
            v4: self.v4,
            v6: self.v6,
            ifindex: self.ifindex,
            endpoint: self.endpoint,
            egress_set: set::OPEN,
            ingress_set: set::OPEN,
            pod_mac: self.pod_mac,
            host_mac: self.host_mac,
            flags: self.flags,
        }
    }
}

/// Value of `FRONTENDS`, with [`FrontendKey`] for a key. Fields as in [`service::Frontend`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frontend {
    /// Number of the Service port.
    pub service: u32,
    /// Index of the first slot.
    pub slot_base: u32,
    /// Slots usable for this frontend.
    pub backends: u16,
    /// How many of them are on this node.
    pub backends_local: u16,
    /// [`service::frontend_flag`].
    pub flags: u16,
    /// [`service::kind`].
    pub kind: u8,
    /// Zero.
    pub pad: u8,
    /// Affinity time-out in seconds.
    pub affinity_seconds: u32,
    /// Counts the changes of this row.
    pub generation: u32,
}

/// Value of `BACKENDS`. Fields as in [`service::Backend`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// The endpoint's address.
    pub addr: Addr,
    /// Network order.
    pub port: u16,
    /// IANA protocol number.
    pub proto: u8,
    /// [`service::backend_state`].
    pub state: u8,
    /// Counts how often this id was given out.
    pub generation: u32,
}

/// The flags that schema 1 had.
const KNOWN_FLAGS: u16 = 0xff;

/// What is not TCP and went both ways over so many seconds is a conversation: schema 1 did not count turns,
/// and a question and its answer take less.
const CONVERSATION_SECONDS: u32 = 2;

impl Flow {
    /// Writes the row as this schema has it. Nothing says whose share it counts against: `owner` stays 0.
    #[inline(always)]
    pub fn import(&self, key: &FlowKey, into: &mut flow::Flow) {
        into.role = self.role;
        into.turns = 0;
        into.flags = self.flags as u16;
        into.xlat_port = self.xlat_port;
        // The client's port was never translated: it is the same on both legs.
        into.client_port = if self.role == role::DIRECT { 0 } else { initiators_port(key, into.flags) };
        into.xlat_addr = self.xlat_addr;
        into.service = self.service;
        into.backend = self.backend;
        into.backend_generation = self.backend_generation;
        // Nothing judged flows then.
        into.verdict = 0;
        into.pad = 0;
        into.egress_rule = 0;
        into.ingress_rule = 0;
        into.created = self.created;
        into.last_seen = self.last_seen;
        into.owner = 0;
        if self.is_conversation(key.proto) {
            into.flags |= flow_flag::CONFIRMED;
        }
    }

    /// True for what this schema keeps among the established.
    #[inline(always)]
    const fn is_conversation(&self, proto: u8) -> bool {
        const TCP: u8 = 6;
        let flags = self.flags as u16;
        if flags & flow_flag::REPLIED == 0 {
            return false;
        }
        if proto == TCP {
            return !flow::is_done(flags);
        }
        self.last_seen.wrapping_sub(self.created) >= CONVERSATION_SECONDS
    }

    /// Writes this schema's row as schema 1 had it; false if it had no such rows: of a flow whose client's
    /// port is translated.
    #[inline(always)]
    pub fn export(flow: &flow::Flow, key: &FlowKey, into: &mut Self) -> bool {
        if key.leg != leg::WIRE
            || flow.role != role::DIRECT && flow.client_port != initiators_port(key, flow.flags)
        {
            return false;
        }
        into.role = flow.role;
        // Schema 1 knew the lower byte, and did not ask from whom a RST came.
        let reset = if flow.flags & flow_flag::RESET != 0 { flow_flag::RESET_FORWARD } else { 0 };
        let [known, _] = (flow.flags & KNOWN_FLAGS | reset).to_le_bytes();
        into.flags = known;
        into.xlat_port = flow.xlat_port;
        into.xlat_addr = flow.xlat_addr;
        into.service = flow.service;
        into.backend = flow.backend;
        into.backend_generation = flow.backend_generation;
        into.egress_epoch = 0;
        into.ingress_epoch = 0;
        into.egress_rule = 0;
        into.ingress_rule = 0;
        into.created = flow.created;
        into.last_seen = flow.last_seen;
        true
    }
}

#[inline(always)]
const fn initiators_port(key: &FlowKey, flags: u16) -> u16 {
    if flags & flow_flag::INITIATOR_HIGH != 0 { key.high_port } else { key.low_port }
}

impl Frontend {
    /// The row as this schema has it.
    #[must_use]
    pub fn import(&self, key: &FrontendKey) -> service::Frontend {
        let mut row = service::Frontend {
            service: self.service,
            slot_base: self.slot_base,
            backends: self.backends,
            backends_local: self.backends_local,
            flags: self.flags,
            kind: self.kind,
            pad: self.pad,
            affinity_seconds: self.affinity_seconds,
            generation: self.generation,
            seal: 0,
        };
        row.seal = seal(key, &row);
        row
    }
}

impl Backend {
    /// The row as this schema has it: of no Service that is known. Several may have it.
    #[must_use]
    pub const fn import(&self) -> service::Backend {
        service::Backend {
            addr: self.addr,
            port: self.port,
            proto: self.proto,
            state: self.state,
            generation: self.generation,
            service: 0,
        }
    }
}

abi!(Flow = 56, Pod = 68, Frontend = 24, Backend = 24);

#[cfg(test)]
mod tests {
    use super::*;

    fn low(flags: u16) -> u8 {
        flags.to_le_bytes()[0]
    }

    const TCP: u8 = 6;
    const UDP: u8 = 17;

    fn key(proto: u8) -> FlowKey {
        FlowKey {
            low: Addr::from_v4_word(1),
            high: Addr::from_v4_word(2),
            low_port: 1000,
            high_port: 80,
            proto,
            ..FlowKey::default()
        }
    }

    fn import(flow: Flow, proto: u8) -> flow::Flow {
        let mut into = flow::Flow { owner: 9, turns: 9, ..flow::Flow::default() };
        flow.import(&key(proto), &mut into);
        into
    }

    #[test]
    fn a_conversation_is_established_and_a_question_is_not() {
        let replied = low(flow_flag::REPLIED);
        for (flags, proto, seconds, confirmed) in [
            (replied, TCP, 0, true),
            (0, TCP, 100, false),
            (replied | low(flow_flag::FIN_REPLY), TCP, 0, true),
            (replied | low(flow_flag::FIN_BOTH), TCP, 0, false),
            (replied | low(flow_flag::RESET_FORWARD), TCP, 0, false),
            (replied, UDP, 1, false),
            (replied, UDP, 2, true),
            (0, UDP, 100, false),
        ] {
            let row = Flow {
                flags,
                created: u32::MAX,
                last_seen: u32::MAX.wrapping_add(seconds),
                ..Flow::default()
            };
            let flow = import(row, proto);
            assert_eq!(flow.flags & flow_flag::CONFIRMED != 0, confirmed, "{flags:#x} {proto} {seconds}");
            assert_eq!((flow.owner, flow.turns), (0, 0), "nothing of what was there before stays");
        }
    }

    #[test]
    fn the_clients_port_is_the_initiators() {
        let port =
            |role, flags: u16| import(Flow { role, flags: low(flags), ..Flow::default() }, TCP).client_port;
        assert_eq!(port(role::FORWARD, 0), 1000);
        assert_eq!(port(role::REPLY, flow_flag::INITIATOR_HIGH), 80);
        assert_eq!(port(role::DIRECT, 0), 0);
    }

    #[test]
    fn what_schema_1_could_not_say_is_not_said_to_it() {
        let mut row = Flow::default();
        let flow = flow::Flow { role: role::FORWARD, client_port: 1000, ..flow::Flow::default() };
        assert!(Flow::export(&flow, &key(TCP), &mut row));
        assert!(!Flow::export(&flow::Flow { client_port: 1001, ..flow }, &key(TCP), &mut row));
        assert!(!Flow::export(&flow, &FlowKey { leg: leg::ASIDE, ..key(TCP) }, &mut row));
        for reset in [flow_flag::RESET_FORWARD, flow_flag::RESET_REPLY] {
            assert!(Flow::export(&flow::Flow { flags: reset, ..flow }, &key(TCP), &mut row));
            assert_eq!(import(row, TCP).flags, flow_flag::RESET_FORWARD, "from whom a RST came");
        }
    }

    #[test]
    fn frontends_are_sealed() {
        let key = FrontendKey { port: 80, proto: TCP, ..FrontendKey::default() };
        let row = Frontend { service: 3, slot_base: 7, backends: 2, generation: 5, ..Frontend::default() };
        let row = row.import(&key);
        assert_eq!((row.service, row.slot_base, row.backends, row.generation), (3, 7, 2, 5));
        assert_eq!(row.seal, seal(&key, &row));
    }
}
