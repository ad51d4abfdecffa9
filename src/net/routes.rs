//! The one writer of routes: whatever of netd wants a route states it here.
//!
//! Each [`Owner`] states the whole set it wants; [`RouteWriter::apply`] merges the sets, compares them with the
//! main table and makes the difference. It keeps nothing in memory about the kernel: the first run, the
//! thousandth, and the first after a restart are the same.
//!
//! Invariants:
//! - A route of another protocol is never changed or removed. Where there is one for a wanted prefix, at any
//!   metric, netd's own gives way and the conflict is reported.
//! - A default route is never added, changed or removed, not even netd's own protocol's.
//! - The routes to pods (see [`super::pod`]) live and die with their links; they are not touched here.
//! - A change of next hop is one step in the kernel: no packet sees the prefix without a route.
//! - Routes that nobody wants are removed only once every owner has stated its set, so that a restart does not
//!   tear down what an owner that takes longer still wants.
//! - One route that the kernel refuses does not keep the others from being made.

mod diff;
#[cfg(test)]
mod tests;

use super::netlink::{self, KernelRoute, Netlink, Request, add_route, delete_route, replace_route};
use super::route::Route;
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::fmt;

/// Who wants a route. Where two want one prefix, the first in this order gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// Routes to the other nodes of a shared link, from the Node objects.
    Nodes,
    /// Routes learnt by BGP.
    Bgp,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nodes => "nodes",
            Self::Bgp => "bgp",
        })
    }
}

/// The writer. There must be one per node: two would undo each other's work.
#[derive(Debug)]
pub struct RouteWriter {
    nl: Netlink,
    /// None: the owner has not stated its set yet.
    stated: BTreeMap<Owner, Option<Vec<Route>>>,
}

/// What one [`RouteWriter::apply`] did and could not do.
#[derive(Debug, Default)]
pub struct Report {
    /// New routes.
    pub added: Vec<Route>,
    /// Routes that were there with another next hop.
    pub replaced: Vec<Route>,
    /// Routes of netd that nobody wants any more, or that gave way to another's.
    pub removed: Vec<IpNet>,
    /// Wanted routes that were not made, because the prefix is another's.
    pub conflicts: Vec<Conflict>,
    /// Requests that the kernel refused.
    pub failed: Vec<(IpNet, netlink::Error)>,
    /// Owners that have not stated their set: until they do, nothing unwanted is removed.
    pub waiting_for: Vec<Owner>,
}

impl Report {
    /// Whether the kernel already had it all.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        self.added.is_empty() && self.replaced.is_empty() && self.removed.is_empty() && self.failed.is_empty()
    }
}

/// A wanted route that was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The route.
    pub route: Route,
    /// Who wants it.
    pub owner: Owner,
    /// What is in its way.
    pub with: Obstacle,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {} of {}: {}", self.route, self.owner, self.with)
    }
}

/// What is in the way of a wanted route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// netd never touches default routes.
    DefaultRoute,
    /// An owner that comes first wants another next hop.
    Owner(Owner),
    /// Somebody else's route in the kernel, or the one to a pod of this node.
    Foreign(KernelRoute),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DefaultRoute => f.write_str("the default route is not netd's"),
            Self::Owner(owner) => write!(f, "{owner} wants another next hop"),
            Self::Foreign(route) => write!(f, "there is {route}"),
        }
    }
}

impl RouteWriter {
    /// A writer that waits for all these owners before it removes anything.
    #[must_use]
    pub fn new(nl: Netlink, owners: &[Owner]) -> Self {
        Self { nl, stated: owners.iter().map(|owner| (*owner, None)).collect() }
    }

    /// States all the routes that an owner wants, in place of what it stated before; [`Self::apply`] makes them.
    pub fn state(&mut self, owner: Owner, routes: Vec<Route>) {
        self.stated.insert(owner, Some(routes));
    }

    /// Makes the kernel's table what the owners want. Called when an owner has stated a set, and now and then
    /// to mend what others broke.
    ///
    /// # Errors
    /// The table cannot be read, or the connection is closed; what the kernel refuses is in the report.
    pub async fn apply(&mut self) -> Result<Report, netlink::Error> {
        let waiting_for: Vec<Owner> =
            self.stated.iter().filter(|(_, set)| set.is_none()).map(|(owner, _)| *owner).collect();
        let (wanted, mut conflicts) = diff::merge(&self.stated);
        let diff = diff::diff(&wanted, self.nl.routes(None).await?, waiting_for.is_empty());
        conflicts.extend(diff.conflicts);
        let mut report = Report { conflicts, waiting_for, ..Report::default() };
        // New ways before old ones go, so that no destination is without one longer than it must be.
        for (route, result) in self.make(&diff.replace, replace_route).await? {
            report.settle(route, result, |report, route| report.replaced.push(route));
        }
        for (route, result) in self.make(&diff.add, add_route).await? {
            report.settle(route, result, |report, route| report.added.push(route));
        }
        let removals = diff.remove.iter().map(delete_route).collect();
        for (route, result) in diff.remove.iter().zip(self.nl.try_each(removals).await?) {
            match result {
                // Gone meanwhile, e.g. with its link.
                Err(error) if !error.is_missing() => report.failed.push((route.prefix, error)),
                _ => report.removed.push(route.prefix),
            }
        }
        Ok(report)
    }

    async fn make(
        &self,
        routes: &[Route],
        request: fn(&KernelRoute) -> Request,
    ) -> Result<Vec<(Route, Result<(), netlink::Error>)>, netlink::Error> {
        let requests = routes.iter().map(|route| request(&diff::in_kernel(route))).collect();
        let results = self.nl.try_each(requests).await?;
        Ok(routes.iter().copied().zip(results).collect())
    }
}

impl Report {
    fn settle(&mut self, route: Route, result: Result<(), netlink::Error>, done: fn(&mut Self, Route)) {
        match result {
            Ok(()) => done(self, route),
            Err(error) => self.failed.push((route.prefix, error)),
        }
    }
}
