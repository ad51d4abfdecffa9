//! Wanted minus actual: pure.

use super::{Conflict, Obstacle, Owner};
use crate::net::RTPROT_NETD;
use crate::net::netlink::{KernelRoute, NextHop};
use crate::net::pod::pod_of;
use crate::net::route::Route;
use ipnet::IpNet;
use std::collections::{BTreeMap, btree_map::Entry};

/// `IP6_RT_PRIO_USER` of the kernel's `include/net/ip6_fib.h`: the metric of an IPv6 route added without one.
const DEFAULT_METRIC_V6: u32 = 1024;

/// A wanted route and who wants it, by prefix.
pub(super) type Wanted = BTreeMap<IpNet, (Owner, Route)>;

#[derive(Debug, Default)]
pub(super) struct Diff {
    pub(super) add: Vec<Route>,
    pub(super) replace: Vec<Route>,
    pub(super) remove: Vec<KernelRoute>,
    pub(super) conflicts: Vec<Conflict>,
}

/// One route per prefix: the first owner's, and of one owner's the first.
pub(super) fn merge(stated: &BTreeMap<Owner, Option<Vec<Route>>>) -> (Wanted, Vec<Conflict>) {
    let (mut wanted, mut conflicts) = (Wanted::new(), Vec::new());
    for (owner, routes) in stated {
        for route in routes.iter().flatten() {
            let route = Route { prefix: route.prefix.trunc(), ..*route };
            let with = match wanted.entry(route.prefix) {
                _ if route.prefix.prefix_len() == 0 => Obstacle::DefaultRoute,
                Entry::Vacant(free) => {
                    free.insert((*owner, route));
                    continue;
                }
                Entry::Occupied(taken) if taken.get().1 == route => continue,
                Entry::Occupied(taken) => Obstacle::Owner(taken.get().0),
            };
            conflicts.push(Conflict { route, owner: *owner, with });
        }
    }
    (wanted, conflicts)
}

/// A route as the kernel shows it once it has it.
pub(super) fn in_kernel(route: &Route) -> KernelRoute {
    let hop = NextHop { gateway: Some(route.gateway), ifindex: route.ifindex, onlink: route.onlink };
    let metric = if route.prefix.addr().is_ipv6() { DEFAULT_METRIC_V6 } else { 0 };
    KernelRoute { metric, ..KernelRoute::new(route.prefix, hop) }
}

/// Compares the wanted routes with the main table. Unless `may_remove`, what nobody wants stays.
pub(super) fn diff(wanted: &Wanted, table: Vec<KernelRoute>, may_remove: bool) -> Diff {
    let mut ours: BTreeMap<IpNet, Vec<KernelRoute>> = BTreeMap::new();
    let mut foreign: BTreeMap<IpNet, KernelRoute> = BTreeMap::new();
    for route in table.into_iter().filter(|route| route.prefix.prefix_len() > 0) {
        if route.protocol == RTPROT_NETD && pod_of(&route).is_none() {
            ours.entry(route.prefix).or_default().push(route);
        } else if wanted.contains_key(&route.prefix) {
            foreign.entry(route.prefix).or_insert(route);
        }
    }
    let mut diff = Diff::default();
    for (prefix, (owner, route)) in wanted {
        let there = ours.remove(prefix).unwrap_or_default();
        if let Some(other) = foreign.remove(prefix) {
            diff.conflicts.push(Conflict { route: *route, owner: *owner, with: Obstacle::Foreign(other) });
            diff.remove.extend(there);
            continue;
        }
        let right = in_kernel(route);
        let at_our_metric = |other: &KernelRoute| other.metric == right.metric && other.tos == right.tos;
        // IPv4 can hold several of one metric, and replacing takes the first of them.
        let replaces = there.iter().position(at_our_metric);
        let is_right = there.contains(&right);
        if !is_right {
            let todo = if replaces.is_some() { &mut diff.replace } else { &mut diff.add };
            todo.push(*route);
        }
        let surplus = there
            .into_iter()
            .enumerate()
            .filter(|(at, other)| if is_right { *other != right } else { Some(*at) != replaces });
        diff.remove.extend(surplus.map(|(_, other)| other));
    }
    if may_remove {
        diff.remove.extend(ours.into_values().flatten());
    }
    diff
}
