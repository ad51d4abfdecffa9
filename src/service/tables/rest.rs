//! What of a list is in force while there is no room for all of it.
//!
//! A row that stands must not lead on to endpoints that are gone. In the place of its list comes what fits there:
//! those of the list that are still wanted, and of the new ones as many as the row has slots, and as there are
//! ids, for. The row keeps its slots, so that more comes as ids become free. With nothing left of its list it has no
//! backends, and clients are refused at once.

use super::write::row;
use super::{NameChange, Op, Tables};
use crate::service::backends::BackendKey;
use crate::service::plan::{DesiredBackend, DesiredFrontend};
use netd_bpf::service::FrontendKey;
use std::collections::HashMap;

impl Tables {
    /// Writes what fits in the place of the frontend's list, if it has one; nothing if that is in force.
    pub(super) fn write_rest(
        &mut self,
        frontend: &DesiredFrontend,
        ops: &mut Vec<Op>,
        names: &mut Vec<NameChange>,
    ) {
        let Some(mut record) = self.frontends.remove(&frontend.key) else { return };
        let proto = frontend.key.proto;
        let former = record.ids.iter().filter_map(|id| Some((self.backends.target(*id)?, *id)));
        let former: HashMap<_, u32> = former.collect();
        let known = |one: &DesiredBackend| former.get(&(one.addr, one.port, proto)).copied();
        let range = record.range.unwrap_or_default();
        let kept = frontend.backends.iter().filter(|one| known(one).is_some()).count();
        let mut room = (range.len as usize).saturating_sub(kept);
        let mut number = record.row.service;
        if record.misnumbered {
            // It must not name ids of its own number before it has that, which it gets with nothing to name.
            room = 0;
            let own = record.owner.as_ref().and_then(|owner| self.ports.get(owner));
            if let Some(own) = own.filter(|_| kept == 0) {
                number = own.number;
                record.misnumbered = false;
            }
        }
        let (mut ids, mut backends) = (Vec::new(), Vec::new());
        for backend in &frontend.backends {
            let id = if let Some(id) = known(backend) {
                self.backends.hold(id);
                id
            } else if room == 0 {
                continue;
            } else {
                let key = BackendKey::new(backend, number, proto);
                let Some(id) = self.backends.acquire(&key, backend.pod.as_ref(), ops, names) else {
                    continue;
                };
                room -= 1;
                id
            };
            ids.push(id);
            backends.push(backend.clone());
        }
        self.backends.name(&ids, &backends, names);
        let same = ids == record.ids;
        if !same && !ids.is_empty() {
            ops.push(Op::SetSlots { base: range.base, ids: ids.clone() });
        }
        for id in std::mem::replace(&mut record.ids, ids) {
            self.backends.release(id);
        }
        let now = record.row;
        let rest = DesiredFrontend { backends, ..frontend.clone() };
        let wanted = |generation| row(&rest, number, range.base, generation);
        if !same || wanted(now.generation) != now {
            record.row = wanted(now.generation.wrapping_add(1));
            ops.push(Op::SetFrontend { key: frontend.key, row: record.row });
        }
        self.frontends.insert(frontend.key, record);
    }

    /// A list that is whole needs no more slots than it has backends.
    pub(super) fn give_up_spare(&mut self, key: &FrontendKey) {
        let Some(record) = self.frontends.get_mut(key) else { return };
        let Some(range) = record.range else { return };
        let len = u32::try_from(record.ids.len()).unwrap_or(u32::MAX);
        if len < range.len {
            record.range = self.slots.shrink(range, len);
        }
    }
}
