//! Service rows; `service::tables` decides what to write, and in which order.

use super::answers::absent_is_fine;
use super::{Datapath, Error, batch, locked};
use netd_bpf::service::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, backend_state, seal};
use std::ops::ControlFlow;

impl Datapath {
    /// All frontends, without their seals; a row whose seal is broken has one that is not 0, and so equals
    /// none that is wanted.
    ///
    /// # Errors
    /// The kernel refuses the walk.
    pub fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, Error> {
        let unsealed = |key: &FrontendKey, mut row: Frontend| {
            row.seal = if row.seal == seal(key, &row) { 0 } else { row.seal.max(1) };
            (*key, row)
        };
        let mut all = Vec::new();
        batch::visit("FRONTENDS", &self.pins.map("FRONTENDS"), None, |keys, rows| {
            all.extend(keys.iter().zip(rows).map(|(key, row)| unsealed(key, *row)));
            ControlFlow::Continue(())
        })?;
        Ok(all)
    }

    /// Backend ids in the `count` slots from `base`; those beyond the table are missing.
    ///
    /// # Errors
    /// The kernel refuses the look-up.
    pub fn slots(&self, base: u32, count: u32) -> Result<Vec<u32>, Error> {
        let count = count as usize;
        let mut all: Vec<u32> = Vec::new();
        if base >= locked(&self.slots).len() {
            return Ok(all);
        }
        batch::visit("SLOTS", &self.pins.map("SLOTS"), base.checked_sub(1), |_: &[u32], ids| {
            all.extend(ids.iter().take(count - all.len()));
            if all.len() < count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(all)
    }

    /// All backends that are or were given out, by id: a free one too, for its generation.
    ///
    /// # Errors
    /// The kernel refuses a look-up.
    pub fn backends(&self) -> Result<Vec<(u32, Backend)>, Error> {
        let mut used = Vec::new();
        batch::visit("BACKENDS", &self.pins.map("BACKENDS"), None, |ids: &[u32], rows: &[Backend]| {
            let rows = ids.iter().zip(rows).map(|(id, row)| (*id, *row));
            used.extend(rows.filter(|(_, row)| row.state != backend_state::FREE || row.generation != 0));
            ControlFlow::Continue(())
        })?;
        Ok(used)
    }

    /// Limits of the tables as they are: frontends, slots, backends.
    #[must_use]
    pub fn service_limits(&self) -> (u32, u32, u32) {
        (self.config.frontends, locked(&self.slots).len(), locked(&self.backends).len())
    }

    /// Writes one backend.
    ///
    /// # Errors
    /// The id is beyond the table.
    pub fn set_backend(&self, id: u32, backend: &Backend) -> Result<(), Error> {
        locked(&self.backends).set(id, backend, 0).map_err(Error::map("BACKENDS"))
    }

    /// Writes consecutive slots.
    ///
    /// # Errors
    /// The range is beyond the table.
    pub fn set_slots(&self, base: u32, backends: &[u32]) -> Result<(), Error> {
        let mut slots = locked(&self.slots);
        for (slot, backend) in (base..).zip(backends) {
            slots.set(slot, backend, 0).map_err(Error::map("SLOTS"))?;
        }
        Ok(())
    }

    /// Seals a frontend and makes or replaces it in one step.
    ///
    /// # Errors
    /// The table is full.
    pub fn set_frontend(&self, key: &FrontendKey, frontend: &Frontend) -> Result<(), Error> {
        let sealed = Frontend { seal: seal(key, frontend), ..*frontend };
        let no_room = Error::room("FRONTENDS", self.config.frontends, "datapath.frontends");
        locked(&self.frontends).insert(key, sealed, 0).map_err(no_room)
    }

    /// Removes a frontend; one that is not there is no error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delete_frontend(&self, key: &FrontendKey) -> Result<(), Error> {
        absent_is_fine(locked(&self.frontends).remove(key), "FRONTENDS")
    }

    /// Clients of Services with session affinity, as they are while they change.
    ///
    /// # Errors
    /// The kernel refuses the walk.
    pub fn affinities(&self) -> Result<Vec<(AffinityKey, Affinity)>, Error> {
        locked(&self.affinity).iter().collect::<Result<_, _>>().map_err(Error::map("AFFINITY"))
    }
}
