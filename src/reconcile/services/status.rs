//! What the Service reconciler tells of itself.

use crate::service::plan::{Conflict, Untranslatable};
use crate::service::tables::{Drift, Refusal, Usages};
use serde::Serialize;

/// State after the last step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServiceStatus {
    /// The snapshot that the kernel holds; none until the first.
    pub generation: Option<u64>,
    /// Services of that snapshot that have a frontend.
    pub services: usize,
    /// Those of them that have no endpoint at all.
    pub without_endpoints: usize,
    /// Time from plan to last write of the last change, in microseconds.
    pub took_us: u64,
    /// How full the tables are.
    pub usages: Usages,
    /// Services that do not fit.
    pub refused: Vec<Refusal>,
    /// Services that fit once the quarantine gives room.
    pub waiting: Vec<Refusal>,
    /// Addresses that two Services claim.
    pub conflicts: Vec<Conflict>,
    /// Ports with endpoints that are left out.
    pub untranslatable: Vec<Untranslatable>,
    /// Why the kernel is not as it ought to be, if the last step failed.
    pub error: Option<String>,
    /// Steps that failed in a row.
    pub failures: u32,
    /// Audits done.
    pub audits: u64,
    /// Differences that audits found, all in all.
    pub drift: u64,
    /// What the last audit that found something found, at most [`ServiceStatus::DRIFT_TOLD`] of it.
    pub last_drift: Vec<Drift>,
}

impl ServiceStatus {
    /// How much of the last drift is told.
    pub const DRIFT_TOLD: usize = 20;

    /// True if all that is wanted is in the kernel.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.generation.is_some()
            && self.error.is_none()
            && self.refused.is_empty()
            && self.waiting.is_empty()
            && self.conflicts.is_empty()
            && self.untranslatable.is_empty()
    }
}
