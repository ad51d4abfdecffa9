//! Which addresses are free: several ranges per family, tried in order, next-fit within each.
//!
//! Pure: `now` comes in, addresses go out. Invariants: an address is given to one holder at a time; never
//! from a draining range; never while it cools down (but to the pod that held it last, if it asks for it by
//! name). Nothing is enumerated: a range is two bounds, and only addresses in use or cooling take memory,
//! so an IPv6 /64 costs what a /120 does.
//!
//! Kept back: network and broadcast address of an IPv4 range (RFC 1122 §3.2.1.3; not of a /31, RFC 3021,
//! nor of a /32) and the subnet-router anycast address of an IPv6 range (RFC 4291 §2.6.1; not of a /127,
//! RFC 6164, nor of a /128). Everything else is usable: the gateway is link-local and takes no address.

mod range;
#[cfg(test)]
mod tests;

use crate::model::ObjectName;
use ipnet::IpNet;
use range::Range;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

use crate::model::Family;

/// Annotation by which a pod asks for fixed addresses: comma separated, at most one of each family.
pub const ADDRESSES_ANNOTATION: &str = "netd.io/addresses";

/// Why no address was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Neither the configuration nor the Node object names a range that is not draining.
    #[error("this node has no pod address range (ipam.pod_cidrs, or podCIDRs of its Node object)")]
    NoRange,
    /// All ranges of a family are full.
    #[error("no {family} address left: {}", list(ranges))]
    Exhausted {
        /// The family.
        family: Family,
        /// Its ranges, as they stand.
        ranges: Vec<Usage>,
    },
    /// The annotation is not a list of addresses.
    #[error("{ADDRESSES_ANNOTATION}: {text:?} is not an IP address")]
    Syntax {
        /// The item.
        text: String,
    },
    /// Two fixed addresses of one family.
    #[error("fixed addresses {first} and {second} are both {}, at most one of each family can be had", Family::of(*first))]
    TwoOfFamily {
        /// The first.
        first: IpAddr,
        /// The second.
        second: IpAddr,
    },
    /// A fixed address that is not this node's.
    #[error("fixed address {address} is in none of this node's ranges: {}", list(ranges))]
    Outside {
        /// The address.
        address: IpAddr,
        /// All ranges of its family.
        ranges: Vec<Usage>,
    },
    /// A fixed address out of a range that is being emptied.
    #[error("fixed address {address} is in {range}, which is draining")]
    Draining {
        /// The address.
        address: IpAddr,
        /// The range.
        range: IpNet,
    },
    /// A fixed address that no pod can have.
    #[error("fixed address {address} is the network, broadcast or router anycast address of {range}")]
    Reserved {
        /// The address.
        address: IpAddr,
        /// The range.
        range: IpNet,
    },
    /// A fixed address that another holds.
    #[error("fixed address {address} is held by {}", holder(pod.as_ref()))]
    Taken {
        /// The address.
        address: IpAddr,
        /// Whose it is.
        pod: Option<ObjectName>,
    },
    /// A fixed address that another pod gave back a moment ago.
    #[error("fixed address {address} was released by {} and rests for another {seconds} s", holder(pod.as_ref()))]
    Cooling {
        /// The address.
        address: IpAddr,
        /// Whose it was.
        pod: Option<ObjectName>,
        /// Time left, rounded up.
        seconds: u64,
    },
}

impl Error {
    /// True if time alone, or another pod's end, can make the same request succeed.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::NoRange | Self::Exhausted { .. } | Self::Cooling { .. })
    }
}

fn list(ranges: &[Usage]) -> String {
    if ranges.is_empty() {
        return "it has none of this family".to_owned();
    }
    ranges.iter().map(Usage::to_string).collect::<Vec<_>>().join(", ")
}

fn holder(pod: Option<&ObjectName>) -> String {
    pod.map_or_else(|| "another container".to_owned(), |pod| format!("pod {pod}"))
}

/// How full one range is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The range.
    pub range: IpNet,
    /// Nothing new comes out of it.
    pub draining: bool,
    /// Addresses that pods can have.
    pub size: u128,
    /// Held.
    pub used: usize,
    /// Resting.
    pub cooling: usize,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { range, size, used, cooling, .. } = self;
        let draining = if self.draining { "draining, " } else { "" };
        write!(f, "{range} ({draining}{size} addresses, {used} used, {cooling} cooling)")
    }
}

/// Reads the value of [`ADDRESSES_ANNOTATION`].
pub fn parse_fixed(text: &str) -> Result<Vec<IpAddr>, Error> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(|item| item.parse().map_err(|_| Error::Syntax { text: item.to_owned() }))
        .collect()
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rest {
    pod: Option<ObjectName>,
    until: Instant,
}

/// The addresses of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    active: Vec<Range>,
    draining: Vec<Range>,
    used: BTreeMap<IpAddr, Option<ObjectName>>,
    cooling: BTreeMap<IpAddr, Rest>,
    last: BTreeMap<IpNet, IpAddr>,
}

impl Pool {
    /// Replaces the ranges. What is held or cools stays so, whether it lies in a range or not. Where two
    /// ranges overlap, draining wins over active, and an address counts for the first range only.
    pub fn set_ranges(&mut self, active: &[IpNet], draining: &[IpNet]) {
        let mut kept: Vec<Range> = Vec::new();
        for range in active.iter().map(|net| Range::new(*net)) {
            let covered = |other: &IpNet| other.contains(&range.net);
            if !draining.iter().any(covered) && !kept.iter().any(|other| covered(&other.net)) {
                kept.push(range);
            }
        }
        self.active = kept;
        self.draining = draining.iter().map(|net| Range::new(*net)).collect();
        let active = &self.active;
        self.last.retain(|net, _| active.iter().any(|range| range.net == *net));
    }

    /// Gives one address of each family that has active ranges: the fixed ones where asked for.
    pub fn allocate(
        &mut self,
        pod: Option<&ObjectName>,
        fixed: &[IpAddr],
        now: Instant,
    ) -> Result<Vec<IpAddr>, Error> {
        let mut chosen = Vec::with_capacity(2);
        for family in [Family::V4, Family::V6] {
            let mut wanted = fixed.iter().copied().filter(|address| Family::of(*address) == family);
            match (wanted.next(), wanted.next()) {
                (Some(first), Some(second)) => return Err(Error::TwoOfFamily { first, second }),
                (Some(address), None) => {
                    self.permit(address, pod, now)?;
                    chosen.push((None, address));
                }
                (None, _) if self.active.iter().any(|range| range.family == family) => {
                    chosen.push(self.next(family, now)?);
                }
                (None, _) => {}
            }
        }
        if chosen.is_empty() {
            return Err(Error::NoRange);
        }
        for (range, address) in &chosen {
            self.claim(*address, pod.cloned());
            if let Some(range) = range {
                self.last.insert(*range, *address);
            }
        }
        Ok(chosen.into_iter().map(|(_, address)| address).collect())
    }

    /// Marks an address as held, wherever it lies. False: it was held already.
    pub fn claim(&mut self, address: IpAddr, pod: Option<ObjectName>) -> bool {
        if self.used.contains_key(&address) {
            return false;
        }
        self.cooling.remove(&address);
        self.used.insert(address, pod);
        true
    }

    /// Takes an address back; it rests until the given time. False: nobody held it.
    pub fn release(&mut self, address: IpAddr, until: Instant) -> bool {
        let Some(pod) = self.used.remove(&address) else { return false };
        self.cooling.insert(address, Rest { pod, until });
        true
    }

    /// Lets an address rest that nobody holds: what the ledger remembers from before a restart.
    pub fn rest(&mut self, address: IpAddr, pod: Option<ObjectName>, until: Instant) {
        if !self.used.contains_key(&address) {
            self.cooling.insert(address, Rest { pod, until });
        }
    }

    /// Forgets the addresses that have rested long enough.
    pub fn expire(&mut self, now: Instant) {
        self.cooling.retain(|_, rest| rest.until > now);
    }

    /// True while an address rests.
    #[must_use]
    pub fn is_cooling(&self, address: IpAddr, now: Instant) -> bool {
        self.cooling.get(&address).is_some_and(|rest| rest.until > now)
    }

    /// Whether a pod that asks for nothing in particular would get its addresses.
    pub fn probe(&self, now: Instant) -> Result<(), Error> {
        if self.active.is_empty() {
            return Err(Error::NoRange);
        }
        for family in [Family::V4, Family::V6] {
            if self.active.iter().any(|range| range.family == family) {
                self.next(family, now)?;
            }
        }
        Ok(())
    }

    /// How full each range is, active ones first.
    #[must_use]
    pub fn usage(&self, now: Instant) -> Vec<Usage> {
        let active = self.active.iter().map(|range| self.usage_of(range, false, now));
        let draining = self.draining.iter().map(|range| self.usage_of(range, true, now));
        active.chain(draining).collect()
    }

    /// The address last given out of each range: where next-fit goes on.
    pub fn positions(&self) -> impl Iterator<Item = (IpNet, IpAddr)> + '_ {
        self.last.iter().map(|(range, address)| (*range, *address))
    }

    /// Sets a position that the ledger remembered; of no consequence if the range does not come back.
    pub fn set_position(&mut self, range: IpNet, address: IpAddr) {
        if range.contains(&address) {
            self.last.insert(range, address);
        }
    }

    fn usage_of(&self, range: &Range, draining: bool, now: Instant) -> Usage {
        let bounds = range.net.network()..=range.net.broadcast();
        Usage {
            range: range.net,
            draining,
            size: range.size(),
            used: self.used.range(bounds.clone()).count(),
            cooling: self.cooling.range(bounds).filter(|(_, rest)| rest.until > now).count(),
        }
    }

    fn usage_of_family(&self, family: Family, now: Instant) -> Vec<Usage> {
        self.usage(now).into_iter().filter(|usage| Family::of(usage.range.addr()) == family).collect()
    }

    /// Whether `pod` may have just this address.
    fn permit(&self, address: IpAddr, pod: Option<&ObjectName>, now: Instant) -> Result<(), Error> {
        if let Some(range) = self.draining.iter().find(|range| range.net.contains(&address)) {
            return Err(Error::Draining { address, range: range.net });
        }
        let mut within = self.active.iter().filter(|range| range.net.contains(&address)).peekable();
        let Some(range) = within.peek().map(|range| range.net) else {
            return Err(Error::Outside { address, ranges: self.usage_of_family(Family::of(address), now) });
        };
        if !within.any(|range| range.has(address)) {
            return Err(Error::Reserved { address, range });
        }
        if let Some(pod) = self.used.get(&address) {
            return Err(Error::Taken { address, pod: pod.clone() });
        }
        match self.cooling.get(&address) {
            Some(rest) if rest.until > now && (rest.pod.is_none() || rest.pod.as_ref() != pod) => {
                let left = rest.until.saturating_duration_since(now);
                let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
                Err(Error::Cooling { address, pod: rest.pod.clone(), seconds })
            }
            _ => Ok(()),
        }
    }

    fn next(&self, family: Family, now: Instant) -> Result<(Option<IpNet>, IpAddr), Error> {
        let found = self.active.iter().filter(|range| range.family == family).find_map(|range| {
            let start = self.last.get(&range.net).map_or(range.first, |last| range.after(*last));
            self.free_within(range, start, range.last, now)
                .or_else(|| self.free_within(range, range.first, start.checked_sub(1)?, now))
                .map(|address| (Some(range.net), address))
        });
        found.ok_or_else(|| Error::Exhausted { family, ranges: self.usage_of_family(family, now) })
    }

    /// The first free address in `from..=to`. It steps over addresses in use one by one, of which a node has
    /// at most as many as pods, and over draining ranges at once.
    fn free_within(&self, range: &Range, from: u128, to: u128, now: Instant) -> Option<IpAddr> {
        let mut at = from;
        while at <= to {
            let address = range::address_of(range.family, at);
            if let Some(hole) = self.draining.iter().find(|hole| hole.net.contains(&address)) {
                at = hole.end().checked_add(1)?;
            } else if self.used.contains_key(&address) || self.is_cooling(address, now) {
                at = at.checked_add(1)?;
            } else {
                return Some(address);
            }
        }
        None
    }
}
