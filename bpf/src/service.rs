//! Service tables: frontends, slots, backends.
//!
//! A frontend names a range of the slot array; a slot names a backend; a backend is an address and port.
//! A change writes a new slot range first and then flips the frontend in one update.

use crate::{Addr, abi};

/// Key of `FRONTENDS` (HASH): what a client addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// The Service's address.
    pub addr: Addr,
    /// Network order.
    pub port: u16,
    /// IANA protocol number; always set, TCP and UDP on one port are two frontends.
    pub proto: u8,
    /// [`scope`]: who is asking.
    pub scope: u8,
}

/// Values of [`FrontendKey::scope`].
pub mod scope {
    /// From pods and from the node: `internalTrafficPolicy` applies.
    pub const INTERNAL: u8 = 0;
    /// From outside the node, at an uplink: `externalTrafficPolicy` applies.
    pub const EXTERNAL: u8 = 1;
}

/// Values of [`Frontend::kind`].
pub mod kind {
    /// Choose one of the slots.
    pub const BALANCE: u8 = 0;
    /// Slot 0 is a listener of this node: use it while somebody listens there, else balance over the
    /// `backends` slots that follow it.
    pub const LOCAL_REDIRECT: u8 = 1;
}

/// Bits of [`Frontend::flags`].
pub mod frontend_flag {
    /// `sessionAffinity: ClientIP`; the time-out is in [`super::Frontend::affinity_seconds`].
    pub const AFFINITY: u16 = 1 << 0;
    /// The slots are a Maglev table.
    pub const MAGLEV: u16 = 1 << 1;
}

/// Value of `FRONTENDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frontend {
    /// Number of the Service port, local to the node, stable across restarts.
    pub service: u32,
    /// Index of the first slot.
    pub slot_base: u32,
    /// Slots usable for this frontend; 0: the Service has no endpoint.
    pub backends: u16,
    /// How many of them, counted from the first, are on this node.
    pub backends_local: u16,
    /// [`frontend_flag`].
    pub flags: u16,
    /// [`kind`].
    pub kind: u8,
    /// Zero.
    pub pad: u8,
    /// Affinity time-out in seconds, with [`frontend_flag::AFFINITY`].
    pub affinity_seconds: u32,
    /// Counts the changes of this row.
    pub generation: u32,
    /// [`seal`] of the key and of all the above: a program that read the row while the kernel gave its
    /// memory to another one finds out.
    pub seal: u32,
}

/// Binds a row to its key and to itself: a hash whose steps all are reversible, so that no single changed word
/// goes unseen. The shift carries high bits down again, in which addresses of one network differ and which
/// multiplication alone would keep there, to cancel each other.
#[inline(always)]
#[must_use]
pub fn seal(key: &FrontendKey, row: &Frontend) -> u32 {
    const FACTOR: u32 = 0x9e37_79b1;
    let words = [
        key.addr.0[0],
        key.addr.0[1],
        key.addr.0[2],
        key.addr.0[3],
        (key.port as u32) | (key.proto as u32) << 16 | (key.scope as u32) << 24,
        row.service,
        row.slot_base,
        (row.backends as u32) | (row.backends_local as u32) << 16,
        (row.flags as u32) | (row.kind as u32) << 16,
        row.affinity_seconds,
        row.generation,
    ];
    let mut hash = 2_166_136_261_u32;
    for word in words {
        hash = (hash ^ word).wrapping_mul(FACTOR);
        hash ^= hash >> 15;
    }
    hash
}

/// Values of [`Backend::state`].
pub mod backend_state {
    /// Never given out, or given back: nobody takes it, and flows leave it as they leave one that terminates.
    pub const FREE: u8 = 0;
    /// In the slots of a frontend, whatever its pod is about to do.
    pub const ACTIVE: u8 = 1;
    /// In no slots any more. Open TCP connections stay; all else leaves with its next packet. Only who read a
    /// slot just before still begins a flow with it.
    pub const TERMINATING: u8 = 2;
}

/// Value of `BACKENDS` (ARRAY, by backend id; id 0 is never used).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// The endpoint's address.
    pub addr: Addr,
    /// Network order.
    pub port: u16,
    /// IANA protocol number.
    pub proto: u8,
    /// [`backend_state`].
    pub state: u8,
    /// Counts how often this id was given out; a flow that remembers another one has lost its backend.
    pub generation: u32,
    /// [`Frontend::service`] whose backend it is: an endpoint of two Services has two ids, so that leaving
    /// one of them is seen by that one's flows. 0: not known, as in rows of schema 1.
    pub service: u32,
}

/// Key of `AFFINITY` (LRU HASH): a client of a Service port with `sessionAffinity: ClientIP`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// The client.
    pub client: Addr,
    /// [`Frontend::service`].
    pub service: u32,
}

/// Value of `AFFINITY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// Backend id.
    pub backend: u32,
    /// [`Backend::generation`].
    pub generation: u32,
    /// When the client last opened a flow, seconds since boot.
    pub last_used: u32,
}

abi!(FrontendKey = 20, Frontend = 28, Backend = 28, AffinityKey = 20, Affinity = 12);
