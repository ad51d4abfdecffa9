//! The kernel ABI: keys, values, events and reasons shared by netd's eBPF programs and its agent.
//!
//! Every struct here is the layout of a pinned map. Padding is explicit, sizes are asserted, and a
//! change of any of them is a change of [`SCHEMA`] with a migration. All structs are plain data: any bit
//! pattern is valid, so that they can be read back from the kernel without checks.
//!
//! Byte order: addresses and ports are kept in network order, as they stand in the packet; everything
//! else is in the order of the machine.
//!
//! On the BPF target this crate also holds the program logic; on the host those modules do not exist.

#![no_std]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "this target has no other way to add atomically")
)]
pub mod event;
pub mod flow;
pub mod fragment;
pub mod pod;
pub mod policy;
#[cfg(target_arch = "bpf")]
pub mod prog;
pub mod schema1;
pub mod service;

/// Version of the map layouts; part of the pin path. A binary with another schema migrates the maps.
pub const SCHEMA: u32 = 2;

/// An IPv4 (as `::ffff:a.b.c.d`, RFC 4291 §2.5.5.2) or IPv6 address in four network-order words.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr(pub [u32; 4]);

impl Addr {
    /// `::`, which stands for "no address".
    pub const UNSPECIFIED: Self = Self([0; 4]);
    /// The third word of a mapped IPv4 address.
    pub const V4_MARK: u32 = 0xffff_u32.to_be();

    /// From the network-order word of an IPv4 header.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, Self::V4_MARK, word])
    }

    /// True for a mapped IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.0;
        // Without branches, each of which the verifier would follow.
        a | b | (c ^ Self::V4_MARK) == 0
    }

    /// True for `::`.
    #[inline(always)]
    #[must_use]
    pub const fn is_unspecified(&self) -> bool {
        let [a, b, c, d] = self.0;
        a == 0 && b == 0 && c == 0 && d == 0
    }

    /// The last word: the IPv4 address of a mapped one.
    #[inline(always)]
    #[must_use]
    pub const fn v4_word(&self) -> u32 {
        let [.., d] = self.0;
        d
    }
}

#[cfg(not(target_arch = "bpf"))]
mod host {
    use super::Addr;
    use core::fmt;
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    impl From<IpAddr> for Addr {
        fn from(ip: IpAddr) -> Self {
            match ip {
                IpAddr::V4(v4) => Self::from_v4_word(u32::from_ne_bytes(v4.octets())),
                IpAddr::V6(v6) => {
                    let mut words = [0; 4];
                    for (word, bytes) in words.iter_mut().zip(v6.octets().chunks_exact(4)) {
                        *word = u32::from_ne_bytes(bytes.try_into().unwrap_or_default());
                    }
                    Self(words)
                }
            }
        }
    }

    impl From<Addr> for IpAddr {
        fn from(addr: Addr) -> Self {
            if addr.is_v4() {
                return Self::V4(Ipv4Addr::from(addr.v4_word().to_ne_bytes()));
            }
            let mut octets = [0; 16];
            for (bytes, word) in octets.chunks_exact_mut(4).zip(addr.0) {
                bytes.copy_from_slice(&word.to_ne_bytes());
            }
            Self::V6(Ipv6Addr::from(octets))
        }
    }

    impl fmt::Display for Addr {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            IpAddr::from(*self).fmt(f)
        }
    }
}

/// Asserts the size of ABI structs and gives them `aya::Pod` on the agent's side.
macro_rules! abi {
    ($($ty:ty = $size:literal),+ $(,)?) => {
        $(const _: () = assert!(core::mem::size_of::<$ty>() == $size);)+
        #[cfg(feature = "user")]
        #[expect(unsafe_code, reason = "aya::Pod is an unsafe marker")]
        mod pod_impls {
            use super::*;
            // SAFETY: `#[repr(C)]`, `Copy`, no implicit padding (sizes asserted above), no pointers, and any
            // bit pattern is a value.
            $(unsafe impl aya::Pod for $ty {})+
        }
    };
}
pub(crate) use abi;

abi!(Addr = 16);

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    #[test]
    fn addresses_go_both_ways() {
        for text in ["10.0.0.1", "255.255.255.255", "fd00::1", "::", "fe80::ffff:1"] {
            let ip: IpAddr = text.parse().expect("a literal");
            assert_eq!(IpAddr::from(Addr::from(ip)), ip);
        }
        assert!(Addr::from("10.0.0.1".parse::<IpAddr>().expect("a literal")).is_v4());
    }
}
