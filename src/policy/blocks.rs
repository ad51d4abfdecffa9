//! CIDR blocks as the kernel's `BLOCKS` has them, and what lies in what.
//!
//! All addresses are of 128 bits there, IPv4 mapped. To the kernel `::/0` therefore has the IPv4 addresses as
//! well; to the API it has not. The planner puts [`GUARD`] between the two.

use ipnet::IpNet;
use netd_bpf::Addr;
use netd_bpf::policy::Block;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;

/// Prefix length of the block of all mapped IPv4 addresses.
const V4_PREFIX: u32 = 96;
/// Their leading bits.
const V4_BITS: u128 = 0xffff << 32;

/// All mapped IPv4 addresses: with identity WORLD it keeps them out of IPv6 blocks that are wider.
pub(super) const GUARD: Block = Block { prefix: V4_PREFIX, addr: Addr([0, 0, Addr::V4_MARK, 0]) };

/// An address as a number that sorts as addresses do.
pub(super) fn bits(addr: Addr) -> u128 {
    addr.0.iter().fold(0, |bits, word| bits << 32 | u128::from(u32::from_be(*word)))
}

/// The address of a number.
pub(super) fn addr(bits: u128) -> Addr {
    Addr::from(IpAddr::V6(Ipv6Addr::from(bits)))
}

const fn mask(prefix: u32) -> u128 {
    match u128::BITS.checked_sub(prefix) {
        Some(u128::BITS) | None => 0,
        Some(host) => u128::MAX << host,
    }
}

/// The block of a CIDR; bits behind the prefix are cut.
pub(super) fn block(net: IpNet) -> Block {
    let more = if net.addr().is_ipv4() { V4_PREFIX } else { 0 };
    cut(bits(net.addr().into()), u32::from(net.prefix_len()) + more)
}

fn cut(bits: u128, prefix: u32) -> Block {
    Block { prefix, addr: addr(bits & mask(prefix)) }
}

/// Of IPv4 addresses only.
fn is_v4(block: &Block) -> bool {
    block.prefix >= V4_PREFIX && block.addr.is_v4()
}

/// The numbers of the block's addresses.
pub(super) fn span(block: &Block) -> RangeInclusive<u128> {
    let first = bits(block.addr);
    first..=first | !mask(block.prefix)
}

/// A block in the order of addresses: what lies in it comes right behind it.
pub(super) type Place = (u128, u32);

/// Where a block stands.
pub(super) fn place(block: &Block) -> Place {
    (bits(block.addr), block.prefix)
}

/// Whether one of the blocks has all addresses of `inner`. They are apart from each other, and in the order of their
/// addresses.
pub(super) fn any_contains(apart: &[Block], inner: &Block) -> bool {
    let behind = apart.partition_point(|one| place(one) <= place(inner));
    behind.checked_sub(1).and_then(|at| apart.get(at)).is_some_and(|outer| contains(outer, inner))
}

/// Whether all addresses of `inner` are in `outer`, as the API understands it.
pub(super) fn contains(outer: &Block, inner: &Block) -> bool {
    outer.prefix <= inner.prefix && span(outer).contains(&bits(inner.addr)) && (is_v4(outer) || !is_v4(inner))
}

/// Whether an IPv6 block has the mapped IPv4 addresses, as the kernel understands it.
pub(super) fn covers_v4(block: &Block) -> bool {
    block.prefix < V4_PREFIX && span(block).contains(&V4_BITS)
}

/// The longest block that has an address, as the kernel finds it.
pub(super) fn longest<V>(blocks: &BTreeMap<Block, V>, of: Addr) -> Option<(&Block, &V)> {
    longest_up_to(blocks, of, u128::BITS)
}

/// The longest block around a block that is not itself, as the kernel finds it.
pub(super) fn around<'b, V>(blocks: &'b BTreeMap<Block, V>, inner: &Block) -> Option<(&'b Block, &'b V)> {
    longest_up_to(blocks, inner.addr, inner.prefix.checked_sub(1)?)
}

fn longest_up_to<V>(blocks: &BTreeMap<Block, V>, of: Addr, mut prefix: u32) -> Option<(&Block, &V)> {
    let of = bits(of);
    loop {
        let key = cut(of, prefix);
        // The blocks stand in the order of their lengths: what is next below tells which lengths there are.
        let (found, value) = blocks.range(..=key).next_back()?;
        if *found == key {
            return Some((found, value));
        }
        prefix = if found.prefix < prefix { found.prefix } else { prefix.checked_sub(1)? };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> Block {
        block(text.parse().unwrap())
    }

    fn ip(text: &str) -> Addr {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn a_block_is_cut_and_mapped() {
        assert_eq!(net("10.1.2.3/8"), Block { prefix: 104, addr: ip("10.0.0.0") });
        assert_eq!(net("fd00::1/8"), Block { prefix: 8, addr: ip("fd00::") });
        assert_eq!(net("0.0.0.0/0"), GUARD);
        assert_eq!(net("::/0"), Block { prefix: 0, addr: Addr::UNSPECIFIED });
        assert_eq!(span(&net("10.0.0.0/31")).count(), 2);
        assert_eq!(addr(bits(ip("fd00::12"))), ip("fd00::12"));
    }

    #[test]
    fn families_are_apart() {
        assert!(contains(&net("::/0"), &net("fd00::/8")));
        assert!(!contains(&net("::/0"), &net("10.0.0.0/8")));
        assert!(contains(&net("0.0.0.0/0"), &net("10.0.0.0/8")));
        assert!(!contains(&net("10.0.0.0/9"), &net("10.0.0.0/8")));
        assert!(contains(&net("10.0.0.0/8"), &net("10.0.0.0/8")));
        assert!(covers_v4(&net("::/0")) && covers_v4(&net("::/80")));
        assert!(!covers_v4(&net("fd00::/8")) && !covers_v4(&net("0.0.0.0/0")));
    }

    proptest! {
        #[test]
        fn one_of_many_that_are_apart_is_found(
            blocks in proptest::collection::vec((96_u32..=128, 0_u128..64), 0..12),
            of in (96_u32..=128, 0_u128..64),
        ) {
            let spread = |low: u128| V4_BITS | (low & 7) | (low & 56) << 26;
            let mut apart: Vec<Block> =
                blocks.iter().map(|(prefix, low)| cut(spread(*low), *prefix)).collect();
            let of = cut(spread(of.1), of.0);
            let right = apart.iter().any(|one| contains(one, &of));
            apart.sort_unstable_by_key(place);
            apart.dedup_by(|inner, outer| contains(outer, inner));
            prop_assert_eq!(any_contains(&apart, &of), right);
        }

        #[test]
        fn the_longest_is_found(
            blocks in proptest::collection::vec((0_u32..=128, 0_u128..16), 0..12),
            of in 0_u128..16,
        ) {
            let spread = |low: u128| (low & 3) | (low & 12) << 60;
            let blocks: BTreeMap<Block, ()> =
                blocks.iter().map(|(prefix, low)| (cut(spread(*low), *prefix), ())).collect();
            let of = addr(spread(of));
            let has: Vec<&Block> = blocks.keys().filter(|one| span(one).contains(&bits(of))).collect();
            prop_assert_eq!(longest(&blocks, of).map(|(found, ())| found), has.last().copied());
            if let Some(last) = has.last() {
                let next = has.len().checked_sub(2).map(|at| has[at]);
                prop_assert_eq!(around(&blocks, last).map(|(found, ())| found), next);
            }
        }
    }
}
