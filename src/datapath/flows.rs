//! Flows: both tables as one, the shares of pods, the counters.

use super::pods::absent_is_fine;
use super::{Datapath, Error, locked};
use aya::maps::MapError;
use netd_bpf::flow::{Flow, FlowKey, Share, flow_count};

/// `BPF_NOEXIST` of `bpf(2)`: make the row, never replace one.
const NOEXIST: u64 = 1;

/// One row of a table of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRow {
    /// Its key.
    pub key: FlowKey,
    /// Its value.
    pub flow: Flow,
    /// It is in the table that nothing evicts.
    pub established: bool,
}

impl Datapath {
    /// All flows, as they are while they change. Walks both tables: about two microseconds a row.
    ///
    /// # Errors
    /// The kernel refuses the walk.
    pub fn flows(&self) -> Result<Vec<FlowRow>, Error> {
        let mut rows = Vec::new();
        for (name, map, established) in
            [("ESTABLISHED", &self.established, true), ("NURSERY", &self.nursery, false)]
        {
            for row in locked(map).iter() {
                let (key, flow) = row.map_err(Error::map(name))?;
                rows.push(FlowRow { key, flow, established });
            }
        }
        Ok(rows)
    }

    /// Forgets a flow; one that is not there is no error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_flow(&self, key: &FlowKey) -> Result<(), Error> {
        absent_is_fine(locked(&self.established).remove(key), "ESTABLISHED")?;
        absent_is_fine(locked(&self.nursery).remove(key), "NURSERY")
    }

    /// How often each thing happened to flows, by [`flow_count`].
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn flow_counts(&self) -> Result<[u64; flow_count::COUNT as usize], Error> {
        let mut counts = [0; flow_count::COUNT as usize];
        for (index, count) in (0..).zip(&mut counts) {
            let per_cpu = self.flow_counts.get(&index, 0).map_err(Error::map("FLOW_COUNTS"))?;
            *count = per_cpu.iter().sum();
        }
        Ok(counts)
    }

    /// Rows of the established that a pod holds; none for a pod that the datapath does not know.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn share(&self, endpoint: u32) -> Result<Option<u64>, Error> {
        match locked(&self.shares).get(&endpoint, 0) {
            Ok(share) => Ok(Some(share.rows)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(Error::map("SHARES")(error)),
        }
    }

    /// Gives a pod a share of the established, unless it has one.
    pub(super) fn open_share(&self, endpoint: u32) -> Result<(), Error> {
        match locked(&self.shares).insert(endpoint, Share::default(), NOEXIST) {
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                Ok(())
            }
            other => other.map_err(Error::map("SHARES")),
        }
    }
}
