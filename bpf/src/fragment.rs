//! IP fragments: what became of a datagram's first fragment, and fragments that came before their first.
//!
//! Only a datagram's first fragment has ports. What the programs did to it stands in `FRAGMENTS`, and the
//! others have the same done to them; with the last of them the row goes. One that comes before its first is put aside, whole, in a slot of
//! `HELD`, and sent on when the first has come. Slots are given out in a ring: the newest takes the place of
//! the oldest, which then is a drop. Each pod has one of [`HELD_GROUPS`] rings, so that one that sends
//! nothing but later fragments pushes out few others' than its own.

use crate::{Addr, abi};

/// Seconds that a held fragment is good for, and the row of a datagram that never becomes complete. What RFC
/// 791 §3.2 recommends for reassembly: much longer than packets overtake one another, and not so long that
/// many senders come round to the same 16-bit identifier meanwhile (RFC 4963).
pub const LIFETIME: u32 = 15;

/// Rows of `FRAGMENTS` (LRU HASH).
pub const DATAGRAMS: u32 = 8_192;

/// Rings of `HELD` (ARRAY); a pod's is its endpoint number modulo this.
pub const HELD_GROUPS: u32 = 8;

/// Slots of a ring: a datagram of 64 KiB has 45 fragments on an Ethernet.
pub const HELD_SLOTS: u32 = 64;

/// Bytes of the longest frame that is held. One of a jumbo frame's size is dropped instead.
pub const HELD_BYTES: usize = 2_048;

/// Key of `FRAGMENTS`: a datagram as it comes to one hook, before translation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentKey {
    /// Who sent it.
    pub source: Addr,
    /// To whom.
    pub destination: Addr,
    /// The identification, in the order of the packet; an IPv4 one (16 bits) in the low half.
    pub id: u32,
    /// IPv4: the IANA protocol number (RFC 791 §3.2). IPv6: 44, as there the number counts in the first
    /// fragment only (RFC 8200 §4.5).
    pub proto: u8,
    /// [`crate::event::stage`]: a datagram that passes two hooks of a node may be treated in two ways.
    pub stage: u8,
    /// Zero.
    pub pad: u16,
}

/// Bits of [`Datagram::flags`].
pub mod datagram_flag {
    /// The first fragment was dropped.
    pub const DROPPED: u32 = 1 << 0;
    /// It went to the node's own stack ([`crate::flow::flow_flag::FROM_STACK`]).
    pub const TO_STACK: u32 = 1 << 1;
}

/// Value of `FRAGMENTS`: what was done to the first fragment. All but [`Datagram::missing`] is never changed,
/// only replaced with the row.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Datagram {
    /// Its source after translation.
    pub source: Addr,
    /// Its destination after translation.
    pub destination: Addr,
    /// Ports as it came, network order; 0 if the protocol has none.
    pub ports: [u16; 2],
    /// Ports after translation, network order.
    pub new_ports: [u16; 2],
    /// [`crate::service::Frontend::service`], 0: none.
    pub service: u32,
    /// Backend id, 0: none.
    pub backend: u32,
    /// [`datagram_flag`].
    pub flags: u32,
    /// When it came, seconds since boot.
    pub since: u32,
    /// [`seal`] of the key, of all the above and of the policy epoch: the kernel may give a replaced row's memory to the
    /// next one while a program still reads it, and what policy allowed it may forbid from now on.
    pub seal: u32,
    /// Bytes that have not come yet, modulo 2³²; before the last fragment tells how many there are: none,
    /// less those that have come. Changed by atomic addition.
    pub missing: u32,
}

/// Binds a row to its key, to itself and to the (folded) epoch of policy in which it was written: a hash whose steps all are reversible, so that no single changed word
/// goes unseen, and whose shift brings high bits, in which addresses of one network differ, down again.
#[inline(always)]
#[must_use]
pub const fn seal(key: &FragmentKey, row: &Datagram, epoch: u32) -> u32 {
    let hash = address(address(hash(key), &row.source), &row.destination);
    let hash = word(hash, row.ports[0] as u32 | (row.ports[1] as u32) << 16);
    let hash = word(hash, row.new_ports[0] as u32 | (row.new_ports[1] as u32) << 16);
    word(word(word(word(word(hash, row.service), row.backend), row.flags), row.since), epoch)
}

/// Hash of a key alone, from which the tag of a held fragment is made.
#[inline(always)]
#[must_use]
pub const fn hash(key: &FragmentKey) -> u32 {
    let hash = address(address(2_166_136_261, &key.source), &key.destination);
    word(word(hash, key.id), key.proto as u32 | (key.stage as u32) << 8)
}

#[inline(always)]
const fn address(hash: u32, addr: &Addr) -> u32 {
    let [a, b, c, d] = addr.0;
    word(word(word(word(hash, a), b), c), d)
}

#[inline(always)]
const fn word(hash: u32, word: u32) -> u32 {
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b1);
    hash ^ (hash >> 15)
}

/// Values of [`HeldRing::tags`] that are no tags.
pub mod tag {
    /// The slot is empty.
    pub const FREE: u32 = 0;
    /// A program is writing or reading the slot; nobody else may.
    pub const BUSY: u32 = 1;
}

/// Tag of a datagram's held fragments: never one of [`tag`].
#[inline(always)]
#[must_use]
pub const fn tag_of(key: &FragmentKey) -> u32 {
    hash(key) | 2
}

/// Value of `HELD` (ARRAY of [`HELD_GROUPS`]): who is in which slot. Changed by atomic operations only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldRing {
    /// Counts the fragments that were put aside; modulo [`HELD_SLOTS`] the slot of the next.
    pub next: u32,
    /// Counts the first fragments that looked for held ones.
    pub looks: u32,
    /// [`tag_of`] the datagram, or one of [`tag`].
    pub tags: [u32; HELD_SLOTS as usize],
}

/// Value of `HELD_FRAMES` (ARRAY): slot *s* of ring *g* is at *g* × [`HELD_SLOTS`] + *s*.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldFrame {
    /// Whose fragment it is.
    pub key: FragmentKey,
    /// Interface it came by, or was to leave by at [`crate::event::stage::POD_INGRESS`].
    pub ifindex: u32,
    /// [`crate::pod::Pod::endpoint`] of the pod that sent it or was to get it.
    pub endpoint: u32,
    /// When it was put aside, seconds since boot.
    pub since: u32,
    /// Bytes used.
    pub length: u32,
    /// The frame from its link header on.
    pub bytes: [u8; HELD_BYTES],
}

abi!(FragmentKey = 40, Datagram = 64, HeldRing = 264, HeldFrame = 2104);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_a_row_is_sealed() {
        let key = FragmentKey { id: 7, proto: 17, stage: 1, ..FragmentKey::default() };
        let row = Datagram { since: 5, ..Datagram::default() };
        let whole = seal(&key, &row, 9);
        assert_ne!(seal(&key, &row, 8), whole, "another epoch");
        let one = Addr([0, 0, 0, 1]);
        for (key, row) in [
            (FragmentKey { source: one, ..key }, row),
            (FragmentKey { destination: one, ..key }, row),
            (FragmentKey { id: 8, ..key }, row),
            (FragmentKey { proto: 6, ..key }, row),
            (FragmentKey { stage: 2, ..key }, row),
            (key, Datagram { source: one, ..row }),
            (key, Datagram { destination: one, ..row }),
            (key, Datagram { ports: [0, 1], ..row }),
            (key, Datagram { new_ports: [1, 0], ..row }),
            (key, Datagram { service: 1, ..row }),
            (key, Datagram { backend: 1, ..row }),
            (key, Datagram { flags: 1, ..row }),
            (key, Datagram { since: 6, ..row }),
        ] {
            assert_ne!(seal(&key, &row, 9), whole, "{key:?} {row:?}");
        }
    }

    #[test]
    fn a_tag_is_never_a_state() {
        for id in 0..10_000 {
            assert!(tag_of(&FragmentKey { id, ..FragmentKey::default() }) > tag::BUSY);
        }
    }
}
