//! A pod is three map rows of one shape: by its interface, by its IPv4 and by its IPv6 address.

use crate::{Addr, abi};

/// Value of `POD_BY_IFINDEX` (HASH, `u32` index of the host's end) and `POD_BY_ADDR` (HASH, [`Addr`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Mapped IPv4 address, or [`Addr::UNSPECIFIED`].
    pub v4: Addr,
    /// IPv6 address, or [`Addr::UNSPECIFIED`].
    pub v6: Addr,
    /// Index of the host's end of the pod's interface.
    pub ifindex: u32,
    /// Number of the pod on this node, never 0, stable across restarts.
    pub endpoint: u32,
    /// Policy set for what the pod sends ([`crate::policy::set`]).
    pub egress_set: u64,
    /// Policy set for what the pod receives.
    pub ingress_set: u64,
    /// MAC address of the pod's own end.
    pub pod_mac: [u8; 6],
    /// MAC address of the host's end: the pod's gateway.
    pub host_mac: [u8; 6],
    /// Zero, for flags to come.
    pub flags: u32,
}

abi!(Pod = 72);
