//! Pod rows.

use super::{Datapath, Error, locked};
use aya::maps::{Array, MapData, MapError};
use netd_bpf::Addr;
use netd_bpf::pod::Pod;
use nix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::time::Duration;

impl Datapath {
    /// Writes a pod's rows; the last one written is the one by interface, without which the pod cannot send.
    ///
    /// # Errors
    /// A table is full; nothing of the pod stays then.
    pub fn upsert_pod(&self, pod: &Pod) -> Result<(), Error> {
        self.write_pod(pod).and_then(|()| self.pods_changed()).inspect_err(|_| {
            // The first error is the one to tell.
            drop(self.remove_pod(pod));
        })
    }

    /// Has the programs forget what they remember of pods' rows.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(super) fn pods_changed(&self) -> Result<(), Error> {
        next_epoch(&mut locked(&self.pod_epoch))
    }

    fn write_pod(&self, pod: &Pod) -> Result<(), Error> {
        self.open_share(pod.endpoint)?;
        for addr in addresses(pod) {
            locked(&self.pod_by_addr).insert(addr, pod, 0).map_err(self.no_room("POD_BY_ADDR"))?;
        }
        locked(&self.pod_by_ifindex).insert(pod.ifindex, pod, 0).map_err(self.no_room("POD_BY_IFINDEX"))
    }

    /// For `map_err` on making a row of a pod.
    pub(super) fn no_room(&self, map: &'static str) -> impl Fn(MapError) -> Error {
        let rows = if map == "POD_BY_ADDR" { 2 * self.config.pods } else { self.config.pods };
        Error::room(map, rows, "datapath.pods")
    }

    /// Removes a pod's rows, those by address only while they are this pod's. Rows that are not there are no
    /// error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_pod(&self, pod: &Pod) -> Result<(), Error> {
        let removed = self.remove_rows(pod);
        // What is gone must not be remembered, whatever could not be removed.
        removed.and(self.pods_changed())
    }

    fn remove_rows(&self, pod: &Pod) -> Result<(), Error> {
        absent_is_fine(locked(&self.pod_by_ifindex).remove(&pod.ifindex), "POD_BY_IFINDEX")?;
        self.close_share(pod.endpoint)?;
        self.forget_drops(pod.endpoint)?;
        let mut by_addr = locked(&self.pod_by_addr);
        for addr in addresses(pod) {
            match by_addr.get(&addr, 0) {
                Ok(row) if row.ifindex == pod.ifindex => {
                    absent_is_fine(by_addr.remove(&addr), "POD_BY_ADDR")?;
                }
                Ok(_) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(Error::map("POD_BY_ADDR")(error)),
            }
        }
        Ok(())
    }

    /// All pods, each once: those with a row by interface or by address.
    ///
    /// # Errors
    /// The kernel refuses the walk.
    pub fn pods(&self) -> Result<Vec<Pod>, Error> {
        let mut pods = BTreeMap::new();
        for row in locked(&self.pod_by_ifindex).iter() {
            let (_, pod) = row.map_err(Error::map("POD_BY_IFINDEX"))?;
            pods.insert((pod.ifindex, pod.endpoint, pod.v4, pod.v6), pod);
        }
        for row in locked(&self.pod_by_addr).iter() {
            let (_, pod) = row.map_err(Error::map("POD_BY_ADDR"))?;
            pods.insert((pod.ifindex, pod.endpoint, pod.v4, pod.v6), pod);
        }
        Ok(pods.into_values().collect())
    }
}

/// Gives `POD_EPOCH` a value that it never had: the time since boot in nanoseconds, so that two who change it at
/// once do not give it the same.
pub(super) fn next_epoch(map: &mut Array<MapData, u64>) -> Result<(), Error> {
    let before = map.get(&0, 0).map_err(Error::map("POD_EPOCH"))?;
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    let time = u64::try_from(time.as_nanos()).unwrap_or_default();
    map.set(0, time.max(before.wrapping_add(1)), 0).map_err(Error::map("POD_EPOCH"))
}

/// The pod's addresses that are set.
pub(super) fn addresses(pod: &Pod) -> impl Iterator<Item = Addr> {
    [pod.v4, pod.v6].into_iter().filter(|addr| !addr.is_unspecified())
}

pub(super) fn absent_is_fine(result: Result<(), MapError>, map: &'static str) -> Result<(), Error> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::map(map)(error)),
    }
}
