//! Which policy sets each pod has: the one place in the agent that says so.
//!
//! Whoever writes a pod's rows (CNI) knows its interface and not its policies; whoever knows policies knows its
//! number only. Both meet here, under one lock, in whatever order they come: the rows of a pod never say anything
//! else than this does, and a pod of which nothing was said is closed.
//!
//! An agent that starts takes the sets from the rows that it finds: they go on until it knows better.

use super::answers::present;
use super::pods::addresses;
use super::{Datapath, Error, PodRows, locked};
use aya::maps::{HashMap, MapData};
use netd_bpf::pod::Pod;
use netd_bpf::policy::set;
use std::collections::BTreeMap;

/// The policy sets of a pod ([`netd_bpf::policy::set`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sets {
    /// For what it sends.
    pub egress: u64,
    /// For what it receives.
    pub ingress: u64,
}

impl Sets {
    /// No policy isolates the pod.
    pub const OPEN: Self = Self { egress: set::OPEN, ingress: set::OPEN };
    /// Nothing is allowed.
    pub const CLOSED: Self = Self { egress: set::CLOSED, ingress: set::CLOSED };

    const fn of(pod: &Pod) -> Self {
        Self { egress: pod.egress_set, ingress: pod.ingress_set }
    }

    pub(super) const fn on(self, pod: &Pod) -> Pod {
        Pod { egress_set: self.egress, ingress_set: self.ingress, ..*pod }
    }
}

/// What is known of pods, by endpoint.
#[derive(Debug, Default)]
pub(super) struct Registry(BTreeMap<u32, Known>);

#[derive(Debug)]
struct Known {
    sets: Sets,
    /// Where its rows stand, if they do.
    row: Option<Pod>,
}

impl Registry {
    /// As the rows say. Where those of a pod differ, for a change of them was cut off, that of its interface counts.
    pub(super) fn of(rows: &PodRows) -> Self {
        let all = rows.by_addr.values().chain(rows.by_ifindex.values());
        Self(all.map(|row| (row.endpoint, Known { sets: Sets::of(row), row: Some(*row) })).collect())
    }

    pub(super) fn sets(&self, endpoint: u32) -> Sets {
        self.0.get(&endpoint).map_or(Sets::CLOSED, |known| known.sets)
    }

    /// The pod's rows were written.
    pub(super) fn stands(&mut self, row: &Pod) {
        self.0.insert(row.endpoint, Known { sets: Sets::of(row), row: Some(*row) });
    }

    /// The pod's rows were removed; those of another interface are a successor's.
    pub(super) fn removed(&mut self, pod: &Pod) {
        let of_this = |known: &Known| known.row.is_some_and(|row| row.ifindex == pod.ifindex);
        if self.0.get(&pod.endpoint).is_some_and(of_this) {
            self.0.remove(&pod.endpoint);
        }
    }

    /// Gives the pod's row as it is to be, if it has rows.
    fn set(&mut self, endpoint: u32, sets: Sets) -> Option<Pod> {
        let known = self.0.entry(endpoint).or_insert(Known { sets, row: None });
        known.sets = sets;
        known.row = known.row.map(|row| sets.on(&row));
        known.row
    }
}

impl Datapath {
    /// Says which sets a pod has, of which there may be no rows yet; those that there are say it at once.
    ///
    /// # Errors
    /// The kernel refuses; what was said stands, and holds for rows that are written later.
    pub fn set_policy(&self, endpoint: u32, sets: Sets) -> Result<(), Error> {
        self.set_policies(&[(endpoint, sets)])
    }

    /// The same of many pods.
    ///
    /// # Errors
    /// The kernel refuses; the others' rows are written all the same.
    pub fn set_policies(&self, pods: &[(u32, Sets)]) -> Result<(), Error> {
        let mut registry = locked(&self.registry);
        let rows = pods.iter().filter_map(|(endpoint, sets)| registry.set(*endpoint, *sets));
        let rows: Vec<Pod> = rows.collect();
        self.rewrite(&rows)
    }

    /// Pods that are none any more are forgotten; those whose rows stand all the same are closed.
    ///
    /// # Errors
    /// The kernel refuses; the others' rows are written all the same.
    pub fn remove_policies(&self, endpoints: &[u32]) -> Result<(), Error> {
        let mut registry = locked(&self.registry);
        let rows = endpoints.iter().filter_map(|endpoint| {
            let row = registry.set(*endpoint, Sets::CLOSED);
            if row.is_none() {
                registry.0.remove(endpoint);
            }
            row
        });
        let rows: Vec<Pod> = rows.collect();
        self.rewrite(&rows)
    }

    /// The sets of all pods: as the rows say, where they say something else than the agent does.
    ///
    /// # Errors
    /// The kernel refuses the walk.
    pub fn policies(&self) -> Result<BTreeMap<u32, Sets>, Error> {
        let registry = locked(&self.registry);
        let mut sets: BTreeMap<u32, Sets> =
            registry.0.iter().map(|(endpoint, known)| (*endpoint, known.sets)).collect();
        let PodRows { by_ifindex, by_addr } = self.pod_rows()?;
        for row in by_ifindex.values().chain(by_addr.values()) {
            if Sets::of(row) != registry.sets(row.endpoint) {
                sets.insert(row.endpoint, Sets::of(row));
            }
        }
        Ok(sets)
    }

    /// Changes the sets in pods' rows; in those that are not there, or are another's, nothing.
    fn rewrite(&self, pods: &[Pod]) -> Result<(), Error> {
        let mut result = Ok(());
        let (mut by_addr, mut by_ifindex) = (locked(&self.pod_by_addr), locked(&self.pod_by_ifindex));
        for pod in pods {
            for addr in addresses(pod) {
                result = result.and(rewrite(&mut by_addr, "POD_BY_ADDR", addr, pod));
            }
            result = result.and(rewrite(&mut by_ifindex, "POD_BY_IFINDEX", pod.ifindex, pod));
        }
        result.and(if pods.is_empty() { Ok(()) } else { self.pods_changed() })
    }
}

fn rewrite<K: aya::Pod>(
    rows: &mut HashMap<MapData, K, Pod>,
    map: &'static str,
    key: K,
    pod: &Pod,
) -> Result<(), Error> {
    let row = present(rows.get(&key, 0), map)?;
    let Some(row) = row.filter(|row| row.endpoint == pod.endpoint && row.ifindex == pod.ifindex) else {
        return Ok(());
    };
    rows.insert(key, Sets::of(pod).on(&row), 0).map_err(Error::map(map))
}

#[cfg(all(test, not(netd_bpf_stub)))]
impl Datapath {
    /// As an agent that starts on empty tables.
    pub(super) fn forget_all_policies(&self) {
        locked(&self.registry).0.clear();
    }
}
