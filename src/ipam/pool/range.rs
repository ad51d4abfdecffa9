//! One range as two bounds, in numbers.

use crate::model::Family;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address of a family that a number stands for; bits that it has no room for are cut.
pub(super) fn address_of(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => {
            let [.., a, b, c, d] = number.to_be_bytes();
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        Family::V6 => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// `first..=last` are the addresses a pod can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) net: IpNet,
    pub(super) family: Family,
    pub(super) first: u128,
    pub(super) last: u128,
}

impl Range {
    pub(super) fn new(net: IpNet) -> Self {
        let net = net.trunc();
        let (low, high) = (number(net.network()), number(net.broadcast()));
        let (first, last) = match net {
            IpNet::V4(v4) if v4.prefix_len() <= 30 => (low + 1, high - 1),
            IpNet::V6(v6) if v6.prefix_len() <= 126 => (low + 1, high),
            IpNet::V4(_) | IpNet::V6(_) => (low, high),
        };
        Self { net, family: Family::of(net.addr()), first, last }
    }

    pub(super) fn size(&self) -> u128 {
        // `::/0` has no room for the one that is added, and has the anycast address kept back.
        (self.last - self.first).saturating_add(1)
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        Family::of(address) == self.family && (self.first..=self.last).contains(&number(address))
    }

    /// Last number of the whole range, reserved or not.
    pub(super) fn end(&self) -> u128 {
        number(self.net.broadcast())
    }

    /// The number after `address`, from the start again at the end.
    pub(super) fn after(&self, address: IpAddr) -> u128 {
        match number(address).checked_add(1) {
            Some(next) if (self.first..=self.last).contains(&next) => next,
            _ => self.first,
        }
    }
}
