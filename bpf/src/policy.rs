//! Policy tables: which identity an address has, and what each set of policies says of it.
//!
//! A *set* is what isolates a pod in one direction: the policies that select it. An *identity* is a class of
//! addresses that no policy tells apart. Both are numbers that the agent derives from what they stand for, so that
//! they mean the same after a restart, and none is ever given to something else. A row of `POLICY` is the
//! whole answer of a set about an identity; a packet needs no other.

use crate::{Addr, abi};

/// Values of [`crate::pod::Pod::egress_set`] and `ingress_set`.
pub mod set {
    /// No policy isolates the pod in this direction: all is allowed.
    pub const OPEN: u64 = 0;
    /// A set without rows: nothing is allowed. For pods of which nothing is known yet, or whose rows found no room.
    pub const CLOSED: u64 = 1;
    /// Set in every number that stands for policies.
    pub const MARK: u64 = 1 << 63;
}

/// Values of [`PolicyKey::identity`].
pub mod identity {
    /// The row for every identity that has none of its own in the set.
    pub const ANY: u64 = 0;
    /// An address that is no pod's, and in no block that a policy names.
    pub const WORLD: u64 = 1;
    /// Set in every other number.
    pub const MARK: u64 = 1 << 63;
}

/// Key of `POLICY` (HASH).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// The set of the pod that is asked.
    pub set: u64,
    /// Identity of the other end.
    pub identity: u64,
}

/// Value of `POLICY`: what a set says of an identity, complete.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PolicyRow {
    /// Index in `RANGES` of the first of the row's ranges.
    pub ranges: u32,
    /// How many there are, at most [`MAX_RANGES`]; they are disjoint and ascend.
    pub count: u32,
    /// What is decided where no range covers the packet.
    pub otherwise: Decision,
    /// [`row_seal`] of key and row.
    pub seal: u32,
}

/// A verdict, and who gave it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decision {
    /// Number of the rule, 0: none. The agent knows its policy.
    pub rule: u32,
    /// [`action`].
    pub action: u8,
    /// [`tier`] of the rule.
    pub tier: u8,
    /// Zero.
    pub pad: u16,
}

/// Values of [`Decision::action`].
pub mod action {
    /// No rule matches: the packet is dropped, for an isolated pod gets what is allowed and nothing else.
    pub const NONE: u8 = 0;
    /// Let it through.
    pub const ALLOW: u8 = 1;
    /// Drop it.
    pub const DENY: u8 = 2;
}

/// Values of [`Decision::tier`], in the order in which the agent asks them. A row holds what comes of all.
pub mod tier {
    /// ClusterNetworkPolicy, admin tier.
    pub const ADMIN: u8 = 0;
    /// NetworkPolicy.
    pub const NAMESPACE: u8 = 1;
    /// ClusterNetworkPolicy, baseline tier.
    pub const BASELINE: u8 = 2;
}

/// Element of `RANGES` (ARRAY): ports of one protocol.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// [`point`] of the first port.
    pub first: u32,
    /// [`point`] of the last port, which it includes.
    pub last: u32,
    /// What is decided.
    pub decision: Decision,
}

/// A protocol's port as ranges order them. A protocol without ports has port 0.
#[inline(always)]
#[must_use]
pub const fn point(proto: u8, port: u16) -> u32 {
    (proto as u32) << 16 | port as u32
}

/// Ranges that one row may have: a look-up halves them so many times.
pub const MAX_RANGES: u32 = 1 << RANGE_STEPS;
/// Steps of a look-up.
pub const RANGE_STEPS: u32 = 12;

/// Value of `IDENTITIES` (HASH, [`Addr`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdentityRow {
    /// The number.
    pub identity: u64,
    /// [`identity_flag`].
    pub flags: u32,
    /// [`identity_seal`] of key and row.
    pub seal: u32,
}

/// Bits of [`IdentityRow::flags`].
pub mod identity_flag {
    /// An address of this node itself, which its pods may always send to.
    pub const NODE: u32 = 1 << 0;
}

/// Key of `BLOCKS` (LPM_TRIE); the value is an identity.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block {
    /// Leading bits of `addr` that count, of 128: those of a mapped IPv4 address are 96 more than in IPv4.
    pub prefix: u32,
    /// The network; bits behind the prefix are zero.
    pub addr: Addr,
}

/// Value of `AUDIT` (ARRAY of one): which new flows are told.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// How many each CPU tells in a second, 0: none.
    pub per_second: u32,
}

/// Value of `AUDITED` (per-CPU ARRAY of one).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// Seconds since boot of the newest.
    pub second: u32,
    /// How many were told in it.
    pub told: u32,
    /// New flows that were not told, because there were too many, or the ring had no room.
    pub untold: u64,
}

/// Seal of a row of `POLICY`. The kernel may give a replaced row's memory to another one while a program still
/// reads it; then the seal is broken.
#[inline(always)]
#[must_use]
pub fn row_seal(key: &PolicyKey, row: &PolicyRow) -> u32 {
    let Decision { rule, action, tier, .. } = row.otherwise;
    let ([a, b], [c, d]) = (halves(key.set), halves(key.identity));
    mix(&[a, b, c, d, row.ranges, row.count, rule, u32::from(action) | u32::from(tier) << 8])
}

/// Seal of a row of `IDENTITIES`.
#[inline(always)]
#[must_use]
pub fn identity_seal(addr: &Addr, row: &IdentityRow) -> u32 {
    let [a, b, c, d] = addr.0;
    let [e, f] = halves(row.identity);
    mix(&[a, b, c, d, e, f, row.flags])
}

#[inline(always)]
const fn halves(number: u64) -> [u32; 2] {
    [(number & 0xffff_ffff) as u32, (number >> 32) as u32]
}

/// Never 0, which is how memory looks that nobody sealed.
#[inline(always)]
pub(crate) fn mix(words: &[u32]) -> u32 {
    const FACTOR: u32 = 0x9e37_79b1;
    let mut hash = 2_166_136_261_u32;
    for word in words {
        hash = (hash ^ word).wrapping_mul(FACTOR);
        hash ^= hash >> 15;
    }
    hash | 1
}

abi!(
    PolicyKey = 16,
    PolicyRow = 20,
    Decision = 8,
    Range = 16,
    IdentityRow = 16,
    Block = 20,
    Audit = 4,
    Audited = 16
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seal_tells_every_field() {
        let key = PolicyKey { set: 1 << 40, identity: 3 };
        let otherwise = Decision { rule: 5, action: action::ALLOW, tier: tier::NAMESPACE, pad: 0 };
        let row = PolicyRow { ranges: 7, count: 9, otherwise, seal: 0 };
        let others = [
            (PolicyKey { set: 1, ..key }, row),
            (PolicyKey { identity: 3 << 32, ..key }, row),
            (key, PolicyRow { ranges: 8, ..row }),
            (key, PolicyRow { count: 8, ..row }),
            (key, PolicyRow { otherwise: Decision { rule: 6, ..otherwise }, ..row }),
            (key, PolicyRow { otherwise: Decision { action: action::DENY, ..otherwise }, ..row }),
            (key, PolicyRow { otherwise: Decision { tier: tier::ADMIN, ..otherwise }, ..row }),
        ];
        for (other_key, other) in others {
            assert_ne!(row_seal(&key, &row), row_seal(&other_key, &other), "{other_key:?} {other:?}");
        }
    }
}
