//! The eBPF datapath as the agent sees it: programs loaded once, maps and links pinned, typed rows.
//!
//! Invariants: everything the kernel needs stays when the agent goes, in whatever way it goes (maps, programs
//! and uplink links are pinned, filters on pod interfaces are held by their devices); a new agent adopts the
//! pinned maps as they are and swaps its programs in atomically. Only this module knows aya.

mod answers;
mod attach;
mod attached;
mod audit;
mod batch;
pub mod config;
pub mod conversation;
mod error;
pub mod events;
mod flows;
mod gone;
mod iterator;
mod migrate;
mod mount;
mod object;
mod offline;
mod open;
mod pin;
mod pods;
mod policy;
mod reclaim;
mod registry;
mod services;
mod shape;
mod shares;
pub mod test_run;

pub use error::{Error, Refusal};
pub use flows::FlowRow;
pub use offline::remove_pod_offline;
pub use open::{Kept, OpenReport, Resized};
pub use pods::PodRows;
pub use policy::PolicyLimits;
pub use reclaim::{FlowFill, Pass, Swept, Way};
pub use registry::Sets;

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, MapData, PerCpuArray, PerCpuHashMap, RingBuf};
use aya::programs::SchedClassifier;
use config::Config;
use netd_bpf::Addr;
use netd_bpf::event::{Count, DropKey, EXPLAIN_WORDS};
use netd_bpf::flow::{Flow, FlowKey, Share};
use netd_bpf::pod::Pod;
use netd_bpf::policy::{Audit, Audited, IdentityRow, PolicyKey, PolicyRow, Range};
use netd_bpf::service::{Affinity, AffinityKey, Backend, Frontend, FrontendKey};
use pin::Pins;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

/// The loaded programs and their maps. Cheap calls, each one or a few system calls; all may block for
/// microseconds, [`Datapath::attach_uplink`] for milliseconds.
pub struct Datapath {
    pins: Pins,
    config: Config,
    secret: [u32; EXPLAIN_WORDS],
    programs: RwLock<object::Programs>,
    pod_by_ifindex: Mutex<HashMap<MapData, u32, Pod>>,
    pod_by_addr: Mutex<HashMap<MapData, Addr, Pod>>,
    pod_epoch: Mutex<Array<MapData, u64>>,
    /// Taken before the locks of the maps of pods.
    registry: Mutex<registry::Registry>,
    policy: Mutex<HashMap<MapData, PolicyKey, PolicyRow>>,
    ranges: Mutex<Array<MapData, Range>>,
    identities: Mutex<HashMap<MapData, Addr, IdentityRow>>,
    blocks: Mutex<LpmTrie<MapData, Addr, u64>>,
    policy_epoch: Mutex<Array<MapData, u64>>,
    frontends: Mutex<HashMap<MapData, FrontendKey, Frontend>>,
    slots: Mutex<Array<MapData, u32>>,
    backends: Mutex<Array<MapData, Backend>>,
    affinity: Mutex<HashMap<MapData, AffinityKey, Affinity>>,
    established: Mutex<HashMap<MapData, FlowKey, Flow>>,
    nursery: Mutex<HashMap<MapData, FlowKey, Flow>>,
    shares: Mutex<HashMap<MapData, u32, Share>>,
    gone: gone::Gone,
    flow_counts: PerCpuArray<MapData, u64>,
    drops: Mutex<PerCpuHashMap<MapData, DropKey, Count>>,
    drop_totals: PerCpuArray<MapData, Count>,
    paths: PerCpuArray<MapData, Count>,
    events: Mutex<Option<RingBuf<MapData>>>,
    audit: Mutex<Array<MapData, Audit>>,
    audited: PerCpuArray<MapData, Audited>,
    /// For orders about rows.
    amend: SchedClassifier,
    means: reclaim::Means,
    reclaimer: Mutex<reclaim::Reclaimer>,
    /// By the last pass; apart from the reclaimer, which is busy while one runs.
    counted: Mutex<reclaim::Counted>,
}

impl fmt::Debug for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datapath").field("pins", &self.pins).finish_non_exhaustive()
    }
}

impl Datapath {
    /// Loads the programs over the pinned maps of `config.bpffs`, which is made if it is not there. Maps of an
    /// earlier schema and of other sizes are moved first, under traffic and without loss.
    ///
    /// # Errors
    /// No bpffs can be had, a map cannot be made or has another shape than ours, the verifier refuses a
    /// program, or this binary was built without BPF programs.
    pub fn open(config: &Config) -> Result<(Self, OpenReport), Error> {
        open::open(config)
    }

    /// The configuration in force: sizes are those that the tables have.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }
}

/// A poisoned lock guards a file descriptor, which a panic elsewhere does not spoil.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests;
