//! Policy tables: sets of verdict rows, shared by all pods that the same policies select.

use crate::abi;

/// Key of `POLICY` (HASH).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PolicyKey {
    /// [`crate::pod::Pod::egress_set`] or `ingress_set`.
    pub set: u32,
    /// Identity of the other end, 0: any.
    pub identity: u32,
    /// Network order; 0: any port.
    pub port: u16,
    /// IANA protocol number, 0: any.
    pub proto: u8,
    /// [`direction`].
    pub direction: u8,
    /// How many leading bits of `port` count, 16: all.
    pub port_prefix: u8,
    /// Zero.
    pub pad: [u8; 3],
}

/// Values of [`PolicyKey::direction`].
pub mod direction {
    /// What the pod sends.
    pub const EGRESS: u8 = 0;
    /// What the pod receives.
    pub const INGRESS: u8 = 1;
}

/// Values of [`Verdict::action`].
pub mod action {
    /// Let it through.
    pub const ALLOW: u8 = 1;
    /// Drop it.
    pub const DENY: u8 = 2;
    /// This tier has no opinion: ask the next.
    pub const PASS: u8 = 3;
}

/// Values of [`Verdict::tier`], in the order they are asked.
pub mod tier {
    /// ClusterNetworkPolicy, admin tier.
    pub const ADMIN: u8 = 0;
    /// NetworkPolicy.
    pub const NAMESPACE: u8 = 1;
    /// ClusterNetworkPolicy, baseline tier.
    pub const BASELINE: u8 = 2;
}

/// Value of `POLICY`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// [`action`].
    pub action: u8,
    /// [`tier`].
    pub tier: u8,
    /// Order within the tier, the lower first.
    pub priority: u16,
    /// Number of the rule that made this row; the agent knows its policy.
    pub rule: u32,
}

abi!(PolicyKey = 16, Verdict = 8);
