//! Session affinity (`sessionAffinity: ClientIP`): a client's new flows to a Service port go where its last
//! one went, until it has opened none for the time-out.
//!
//! The table is an LRU: where more clients come than it holds, those that came back least recently are
//! chosen a backend for anew. The kernel may give a row's memory to another client while it is read; what is
//! read then is another backend of this Service port, or refused for being none.

use super::balance::{self, Choice};
use super::maps;
use super::table::now;
use crate::Addr;
use crate::service::{Affinity, AffinityKey, Frontend};

/// Takes the backend of the client's last flow; false if there was none, it was too long ago, or the backend
/// takes no new flows of this Service port.
#[inline(always)]
pub(super) fn recall(client: &Addr, frontend: &Frontend, choice: &mut Choice) -> bool {
    let key = AffinityKey { client: *client, service: frontend.service };
    let Some(row) = maps::AFFINITY.get_ptr_mut(&key) else { return false };
    // SAFETY: a row stays readable memory for the whole run, even if it is evicted meanwhile.
    let last = unsafe { *row };
    let now = now();
    // A row written by a CPU whose clock is a tick ahead is not too old.
    let idle = now.wrapping_sub(last.last_used) as i32;
    if idle > frontend.affinity_seconds as i32
        || !balance::take_again(choice, last.backend, last.generation, frontend.service)
    {
        return false;
    }
    if idle > 0 {
        // SAFETY: as above; an aligned word that any run may set to the present.
        unsafe { (*row).last_used = now };
    }
    true
}

/// Remembers the chosen backend for the client's next flow.
#[inline(always)]
pub(super) fn remember(client: &Addr, choice: &Choice) {
    let key = AffinityKey { client: *client, service: choice.service };
    let row = Affinity { backend: choice.backend, generation: choice.generation, last_used: now() };
    // Without room the client's next flow is balanced like all others.
    maps::AFFINITY.insert(&key, &row, 0).ok();
}
