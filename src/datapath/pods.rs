//! Pod rows.

use super::answers::{absent_is_fine, present};
use super::{Datapath, Error, locked};
use aya::maps::{Array, HashMap, MapData, MapError};
use netd_bpf::Addr;
use netd_bpf::pod::Pod;
use nix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::time::Duration;

impl Datapath {
    /// Writes a pod's rows, unless they stand; the last one written is the one by interface, without which the pod cannot
    /// send. Its policy sets are those that were said of it ([`Datapath::set_policy`]), whatever `pod` has.
    ///
    /// # Errors
    /// A table is full; all rows are as they were before then.
    pub fn upsert_pod(&self, pod: &Pod) -> Result<(), Error> {
        let mut registry = locked(&self.registry);
        let pod = registry.sets(pod.endpoint).on(pod);
        let mut undo = Undo::default();
        if self.stands(&pod)? {
            registry.stands(&pod);
            return Ok(());
        }
        let written = self.write_pod(&pod, &mut undo).and_then(|()| self.pods_changed()).and_then(|()| {
            // What was sent to its addresses before it came was judged as nobody's, or as another pod's: in both
            // directions, so that it matters also where nothing isolates this one.
            let was_its = |before: &Option<Pod>| before.is_some_and(|before| before.endpoint == pod.endpoint);
            let came = !undo.by_addr.iter().all(|(_, before)| was_its(before));
            if came { self.bump_policy_epoch() } else { Ok(()) }
        });
        match &written {
            Ok(()) => registry.stands(&pod),
            // The first error is the one to tell.
            Err(_) => drop(self.undo(&pod, undo)),
        }
        written
    }

    /// Has the programs forget what they remember of pods' rows.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn pods_changed(&self) -> Result<(), Error> {
        next_epoch(&mut locked(&self.pod_epoch), "POD_EPOCH")
    }

    /// True if all that belongs to the pod is as it is to be: nobody need hear of it again.
    fn stands(&self, pod: &Pod) -> Result<bool, Error> {
        let mut all = present(locked(&self.pod_by_ifindex).get(&pod.ifindex, 0), "POD_BY_IFINDEX")?
            == Some(*pod)
            && self.share(pod.endpoint)?.is_some();
        let by_addr = locked(&self.pod_by_addr);
        for addr in addresses(pod) {
            all &= present(by_addr.get(&addr, 0), "POD_BY_ADDR")? == Some(*pod);
        }
        Ok(all)
    }

    fn write_pod(&self, pod: &Pod, undo: &mut Undo) -> Result<(), Error> {
        undo.opened_share = self.open_share(pod.endpoint)?;
        for addr in addresses(pod) {
            let mut by_addr = locked(&self.pod_by_addr);
            let before = present(by_addr.get(&addr, 0), "POD_BY_ADDR")?;
            by_addr.insert(addr, pod, 0).map_err(self.no_room("POD_BY_ADDR"))?;
            undo.by_addr.push((addr, before));
        }
        let mut by_ifindex = locked(&self.pod_by_ifindex);
        let before = present(by_ifindex.get(&pod.ifindex, 0), "POD_BY_IFINDEX")?;
        by_ifindex.insert(pod.ifindex, pod, 0).map_err(self.no_room("POD_BY_IFINDEX"))?;
        undo.by_ifindex = Some(before);
        Ok(())
    }

    /// Takes back what was written, last first.
    fn undo(&self, pod: &Pod, undo: Undo) -> Result<(), Error> {
        if let Some(before) = undo.by_ifindex {
            put_back(&mut locked(&self.pod_by_ifindex), pod.ifindex, before, "POD_BY_IFINDEX")?;
        }
        for (addr, before) in undo.by_addr {
            put_back(&mut locked(&self.pod_by_addr), addr, before, "POD_BY_ADDR")?;
        }
        if undo.opened_share {
            self.close_share(pod.endpoint)?;
        }
        self.pods_changed()
    }

    /// For `map_err` on making a row of a pod.
    pub(super) fn no_room(&self, map: &'static str) -> impl Fn(MapError) -> Error {
        let rows = if map == "POD_BY_ADDR" { 2 * self.config.pods } else { self.config.pods };
        Error::room(map, rows, "datapath.pods")
    }

    /// Removes a pod's rows, those by address only while they are this pod's, and forgets its policy sets. Rows
    /// that are not there are no error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_pod(&self, pod: &Pod) -> Result<(), Error> {
        let mut registry = locked(&self.registry);
        let removed = self.remove_rows(pod).map(|()| registry.removed(pod));
        // What is gone must not be remembered, whatever could not be removed.
        removed.and(self.pods_changed())
    }

    fn remove_rows(&self, pod: &Pod) -> Result<(), Error> {
        absent_is_fine(locked(&self.pod_by_ifindex).remove(&pod.ifindex), "POD_BY_IFINDEX")?;
        self.close_share(pod.endpoint)?;
        self.forget_drops(pod.endpoint)?;
        let mut by_addr = locked(&self.pod_by_addr);
        for addr in addresses(pod) {
            let row = present(by_addr.get(&addr, 0), "POD_BY_ADDR")?;
            if row.is_some_and(|row| row.ifindex == pod.ifindex) {
                absent_is_fine(by_addr.remove(&addr), "POD_BY_ADDR")?;
            }
        }
        Ok(())
    }

    /// All pods, each once: those with a row by interface or by address.
    ///
    /// # Errors
    /// The kernel refuses the walk.
    pub fn pods(&self) -> Result<Vec<Pod>, Error> {
        let PodRows { by_ifindex, by_addr } = self.pod_rows()?;
        let rows = by_ifindex.into_values().chain(by_addr.into_values());
        let pods: BTreeMap<_, Pod> =
            rows.map(|pod| ((pod.ifindex, pod.endpoint, pod.v4, pod.v6), pod)).collect();
        Ok(pods.into_values().collect())
    }

    /// All rows of pods.
    ///
    /// # Errors
    /// The kernel refuses the walk.
    pub fn pod_rows(&self) -> Result<PodRows, Error> {
        let by_ifindex: Result<_, _> = locked(&self.pod_by_ifindex).iter().collect();
        let by_addr: Result<_, _> = locked(&self.pod_by_addr).iter().collect();
        Ok(PodRows {
            by_ifindex: by_ifindex.map_err(Error::map("POD_BY_IFINDEX"))?,
            by_addr: by_addr.map_err(Error::map("POD_BY_ADDR"))?,
        })
    }
}

/// The rows of pods, in both tables.
#[derive(Clone, Debug, Default)]
pub struct PodRows {
    /// By the index of the host's end.
    pub by_ifindex: BTreeMap<u32, Pod>,
    /// By address.
    pub by_addr: std::collections::HashMap<Addr, Pod>,
}

/// What a call has written of a pod.
#[derive(Default)]
struct Undo {
    opened_share: bool,
    /// Rows written, and what stood there.
    by_addr: Vec<(Addr, Option<Pod>)>,
    /// The same.
    by_ifindex: Option<Option<Pod>>,
}

fn put_back<K: aya::Pod>(
    rows: &mut HashMap<MapData, K, Pod>,
    key: K,
    before: Option<Pod>,
    map: &'static str,
) -> Result<(), Error> {
    match before {
        Some(before) => rows.insert(key, before, 0).map_err(Error::map(map)),
        None => absent_is_fine(rows.remove(&key), map),
    }
}

/// Gives an epoch (`POD_EPOCH`, `POLICY_EPOCH`) a value that it never had: the time since boot in nanoseconds, so
/// that two who change it at once do not give it the same.
pub(super) fn next_epoch(map: &mut Array<MapData, u64>, name: &'static str) -> Result<(), Error> {
    let before = map.get(&0, 0).map_err(Error::map(name))?;
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    let time = u64::try_from(time.as_nanos()).unwrap_or_default();
    map.set(0, time.max(before.wrapping_add(1)), 0).map_err(Error::map(name))
}

/// The pod's addresses that are set.
pub(super) fn addresses(pod: &Pod) -> impl Iterator<Item = Addr> {
    [pod.v4, pod.v6].into_iter().filter(|addr| !addr.is_unspecified())
}

#[cfg(test)]
#[cfg(not(netd_bpf_stub))]
mod tests {
    use crate::datapath::tests::frames::addr;
    use crate::datapath::tests::rig::{IFINDEX, OTHER_IFINDEX, Rig, isolated, pod};
    use crate::datapath::{Error, locked};

    #[test]
    fn a_repair_that_finds_no_room_leaves_the_pod_what_it_has() {
        isolated(|| {
            let rig = Rig::with(|config| config.pods = 2);
            let one = pod(IFINDEX, 1, "10.0.0.1", "fd00::1");
            let rows = || {
                let rows = rig.datapath.pod_rows().unwrap();
                let has = |ip| rows.by_addr.get(&addr(ip)).map(|pod| pod.endpoint);
                (has("10.0.0.1"), has("fd00::1"), has("fd00::9"), rows.by_ifindex.len())
            };
            let share = || rig.datapath.share(1).unwrap();
            // Its second address is gone, and another has the room.
            locked(&rig.datapath.pod_by_addr).remove(&one.v6).unwrap();
            let other = pod(99, 9, "", "fd00::9");
            locked(&rig.datapath.pod_by_addr).insert(other.v6, other, 0).unwrap();
            assert_eq!((rows(), share()), ((Some(1), None, Some(9), 2), Some(0)));
            let error = rig.upsert_pod(&one).unwrap_err();
            assert!(matches!(error, Error::Full { map: "POD_BY_ADDR", .. }), "{error:?}");
            assert_eq!((rows(), share()), ((Some(1), None, Some(9), 2), Some(0)));

            // What was another's is again.
            locked(&rig.datapath.pod_by_addr).remove(&other.v6).unwrap();
            rig.upsert_pod(&one).unwrap();
            let error = rig.upsert_pod(&pod(50, 5, "10.0.0.1", "fd00::9")).unwrap_err();
            assert!(matches!(error, Error::Full { .. }), "{error:?}");
            assert_eq!(rows(), (Some(1), Some(1), None, 2));
            assert_eq!(rig.datapath.share(5).unwrap(), None);
            assert!(rig.datapath.pod_rows().unwrap().by_ifindex.contains_key(&OTHER_IFINDEX));
        });
    }
}
