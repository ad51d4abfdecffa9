//! Pods without a share of the established that still have rows there: since when.
//!
//! The programs of a pass note each such pod in `GONE` when they first meet a row of it, and remove its rows
//! [`ORPHANED`] seconds later. Endpoint numbers are not given twice, so that nobody else's rows are met; a pod that
//! has the addresses next begins its flows anew, with rows of its own. Here is who leaves that map: a pod that gets a
//! share (again), and one whose time is over and whose rows are gone.
//!
//! [`ORPHANED`]: netd_bpf::flow::ORPHANED

use super::answers::absent_is_fine;
use super::{Error, locked};
use aya::maps::{HashMap, MapData};
use netd_bpf::flow::ORPHANED;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const MAP: &str = "GONE";

/// The map, and since when the agent knows of each row.
pub(super) struct Gone {
    map: Mutex<HashMap<MapData, u32, u32>>,
    known: Mutex<BTreeMap<u32, Instant>>,
}

impl Gone {
    pub(super) fn new(map: HashMap<MapData, u32, u32>) -> Self {
        Self { map: Mutex::new(map), known: Mutex::default() }
    }

    /// The endpoint has a share.
    pub(super) fn is_back(&self, endpoint: u32) -> Result<(), Error> {
        absent_is_fine(locked(&self.map).remove(&endpoint), MAP)
    }

    /// Makes room after a whole pass. An endpoint of which rows were skipped is noted anew by the next one.
    pub(super) fn tidy_up(&self) -> Result<(), Error> {
        let mut map = locked(&self.map);
        let noted: Vec<u32> = map.keys().collect::<Result<_, _>>().map_err(Error::map(MAP))?;
        let mut known = locked(&self.known);
        known.retain(|endpoint, _| noted.contains(endpoint));
        for endpoint in noted {
            // Twice the time: at least one pass has removed its rows.
            let time = Duration::from_secs(2 * u64::from(ORPHANED));
            if known.entry(endpoint).or_insert_with(Instant::now).elapsed() > time {
                absent_is_fine(map.remove(&endpoint), MAP)?;
                known.remove(&endpoint);
            }
        }
        Ok(())
    }
}

#[cfg(all(test, not(netd_bpf_stub)))]
impl Gone {
    /// As an agent that starts.
    pub(super) fn forget(&self) {
        locked(&self.known).clear();
    }

    /// As if so many seconds had passed.
    pub(super) fn age(&self, seconds: u32) {
        let mut map = locked(&self.map);
        let rows: Vec<_> = map.iter().map(Result::unwrap).collect();
        for (endpoint, since) in rows {
            map.insert(endpoint, since.wrapping_sub(seconds), 0).expect("a row that is there");
        }
        for since in locked(&self.known).values_mut() {
            *since -= Duration::from_secs(seconds.into());
        }
    }

    pub(super) fn endpoints(&self) -> Vec<u32> {
        locked(&self.map).keys().map(Result::unwrap).collect()
    }
}
