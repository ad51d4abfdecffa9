//! What the Service reconciler tells of itself.

use crate::model::ObjectName;
use crate::service::plan::{Conflict, Untranslatable};
use crate::service::tables::{Drift, Refusal, Usages};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};

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
    /// Services that were refused and still lack something, if only time, with the reasons that were told.
    pub told: BTreeMap<ObjectName, BTreeSet<&'static str>>,
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

    /// Services that are refused, for want of room or because an SCTP port cannot be translated.
    #[must_use]
    pub fn refused_services(&self) -> BTreeSet<&ObjectName> {
        let untranslatable = self.untranslatable.iter().map(|one| &one.port.service);
        self.refused.iter().map(|refusal| &refusal.service).chain(untranslatable).collect()
    }

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

    /// Takes over who is refused and who waits; gives what is to be told: refusals for a reason that was not told
    /// yet, and Services that are not refused any more. Who waits after a refusal is not served for that.
    pub(super) fn refuse(&mut self, refused: Vec<Refusal>, waiting: Vec<Refusal>) -> News {
        (self.refused, self.waiting) = (refused, waiting);
        let lacking: HashSet<&ObjectName> =
            self.refused.iter().chain(&self.waiting).map(|refusal| &refusal.service).collect();
        let over = self.told.keys().filter(|service| !lacking.contains(service)).cloned().collect();
        self.told.retain(|service, _| lacking.contains(service));
        // The numbers in it change with every other Service.
        let told = &mut self.told;
        let new = |refusal: &&Refusal| {
            told.entry(refusal.service.clone()).or_default().insert(refusal.reason.name())
        };
        News { refused: self.refused.iter().filter(new).cloned().collect(), over }
    }
}

/// What changed about refusals.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// To be warned of.
    pub(super) refused: Vec<Refusal>,
    /// No longer refused.
    pub(super) over: Vec<ObjectName>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;
    use crate::service::plan::PortName;
    use crate::service::tables::{List, Reason};

    fn lacks(name: &str, reason: Reason) -> Refusal {
        let address = "10.96.0.1:80".parse().unwrap();
        let list = List { address, protocol: Protocol::Tcp, endpoints: 1, in_force: 0 };
        let service = ObjectName::new("shop", name);
        Refusal { service, reason, waits: false, keeps_rows: false, list }
    }

    #[test]
    fn an_sctp_port_that_cannot_be_translated_makes_its_service_refused() {
        let untranslatable = |name: &str, port| Untranslatable {
            port: PortName { service: ObjectName::new("shop", name), port, protocol: Protocol::Sctp },
            endpoint: "10.0.0.1:9".parse().unwrap(),
        };
        let status = ServiceStatus {
            refused: vec![lacks("a", Reason::Frontends { needed: 1, used: 8, limit: 8 })],
            untranslatable: vec![untranslatable("a", 1), untranslatable("b", 1), untranslatable("b", 2)],
            ..ServiceStatus::default()
        };
        let names: Vec<_> = status.refused_services().into_iter().map(ToString::to_string).collect();
        assert_eq!(names, ["shop/a", "shop/b"]);
    }

    #[test]
    fn who_waits_after_a_refusal_is_still_told_as_refused_and_not_told_again() {
        let slots = |used| Reason::Slots { needed: 4, used, reserved: 4, limit: 9 };
        let frontends = Reason::Frontends { needed: 1, used: 8, limit: 8 };
        let mut status = ServiceStatus::default();
        let mut news = |refused: &[Refusal], waiting: &[Refusal]| {
            let News { refused, over } = status.refuse(refused.to_vec(), waiting.to_vec());
            let names = |over: Vec<ObjectName>| over.iter().map(ToString::to_string).collect::<Vec<_>>();
            (refused.len(), names(over))
        };
        let nothing = (0, Vec::new());
        // Waiting at first, which is nothing to be told.
        assert_eq!(news(&[], &[lacks("a", slots(1))]), nothing);
        assert_eq!(news(&[lacks("a", slots(1))], &[]), (1, vec![]));
        assert_eq!(news(&[lacks("a", slots(2))], &[]), nothing);
        assert_eq!(news(&[], &[lacks("a", slots(2))]), nothing);
        assert_eq!(news(&[lacks("a", slots(3))], &[lacks("b", slots(3))]), nothing);
        // Another reason is news, once.
        assert_eq!(news(&[lacks("a", frontends.clone())], &[]), (1, vec![]));
        assert_eq!(news(&[lacks("a", slots(3))], &[]), nothing);
        assert_eq!(news(&[lacks("a", frontends)], &[]), nothing);
        assert_eq!(news(&[], &[]), (0, vec!["shop/a".to_owned()]));
        assert_eq!(news(&[lacks("a", slots(3))], &[]), (1, vec![]));
    }
}
