//! Flows: both tables as one, the shares of pods, the counters, and orders to the program that changes them.

use super::answers::{NOEXIST, absent_is_fine, is, present};
use super::{Datapath, Error, batch, locked};
use aya::programs::{TestRun, TestRunOptions};
use netd_bpf::flow::{Flow, FlowKey, Order, Share, flow_count, order};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

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

    /// Forgets a row; one that is not there is no error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_flow(&self, key: &FlowKey) -> Result<(), Error> {
        self.remove_flows(std::slice::from_ref(key)).map(drop)
    }

    /// Forgets rows, and gives them back to their pods' shares; those that are not there are no error. Gives
    /// how many were.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_flows(&self, keys: &[FlowKey]) -> Result<u64, Error> {
        let mut removed = 0;
        for keys in keys.chunks(order::MOST_KEYS as usize) {
            removed += u64::from(self.amend(&Order { what: order::FORGET, ..Order::default() }, keys)?);
        }
        Ok(removed)
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
        let share = present(locked(&self.shares).get(&endpoint, 0), "SHARES")?;
        Ok(share.map(|share| share.rows().try_into().unwrap_or_default()))
    }

    /// All shares, by endpoint.
    ///
    /// # Errors
    /// The kernel refuses the walk.
    pub fn shares(&self) -> Result<BTreeMap<u32, Share>, Error> {
        let mut shares = BTreeMap::new();
        batch::visit("SHARES", &self.pins.map("SHARES"), None, |endpoints: &[u32], rows: &[Share]| {
            shares.extend(endpoints.iter().copied().zip(rows.iter().copied()));
            ControlFlow::Continue(())
        })?;
        Ok(shares)
    }

    /// Gives a pod a share of the established, unless it has one. True if it had none.
    pub(super) fn open_share(&self, endpoint: u32) -> Result<bool, Error> {
        self.gone.is_back(endpoint)?;
        match locked(&self.shares).insert(endpoint, Share::default(), NOEXIST) {
            Err(error) if is(&error, libc::EEXIST) => Ok(false),
            other => other.map(|()| true).map_err(self.no_room("SHARES")),
        }
    }

    pub(super) fn close_share(&self, endpoint: u32) -> Result<(), Error> {
        absent_is_fine(locked(&self.shares).remove(&endpoint), "SHARES")
    }

    /// Has the program `amend` carry out an order about at most [`order::MOST_KEYS`] rows; how many it removed.
    pub(super) fn amend(&self, order: &Order, keys: &[FlowKey]) -> Result<u32, Error> {
        // An EtherType for experiments (IEEE 802), which nobody looks into.
        let mut frame = [&[0; order::HEADER - 2][..], &0x88b5_u16.to_be_bytes()].concat();
        let count = u32::try_from(keys.len()).unwrap_or(u32::MAX).min(order::MOST_KEYS);
        frame.extend_from_slice(bytes_of(&[Order { keys: count, ..*order }]));
        frame.extend_from_slice(bytes_of(keys));
        let options = TestRunOptions { data_in: Some(&frame), ..TestRunOptions::default() };
        let ran = self.amend.test_run(options).map_err(Error::program("run", "amend"))?;
        Ok(ran.return_value)
    }
}

/// Plain data as the programs read it.
#[expect(unsafe_code, reason = "C structs become a frame")]
fn bytes_of<T: aya::Pod>(values: &[T]) -> &[u8] {
    // SAFETY: `Pod` is plain data; ABI types have no implicit padding (their sizes are asserted).
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}
