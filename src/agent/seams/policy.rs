//! The policy reconciler's seam: the datapath's tables.

use crate::datapath::{self, Datapath, PolicyLimits};
use crate::policy::Sets;
use crate::policy::tables::Limits;
use crate::reconcile::policy::PolicyMaps;
use netd_bpf::Addr;
use netd_bpf::policy::{Block, IdentityRow, PolicyKey, PolicyRow, Range};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The pinned tables, and the registry of sets.
#[derive(Debug)]
pub(in crate::agent) struct PolicyTables(pub(in crate::agent) Arc<Datapath>);

impl PolicyTables {
    /// Their sizes.
    pub(in crate::agent) fn limits(&self) -> Limits {
        let PolicyLimits { rows, ranges, identities, blocks } = self.0.policy_limits();
        Limits { rows, ranges, identities, blocks }
    }
}

impl PolicyMaps for PolicyTables {
    type Error = datapath::Error;

    fn set_ranges(&self, base: u32, ranges: &[Range]) -> Result<(), Self::Error> {
        self.0.set_policy_ranges(base, ranges)
    }

    fn set_rows(&self, rows: &[(PolicyKey, PolicyRow)]) -> Result<(), Self::Error> {
        self.0.set_policy_rows(rows)
    }

    fn delete_rows(&self, keys: &[PolicyKey]) -> Result<(), Self::Error> {
        self.0.remove_policy_rows(keys)
    }

    fn set_identities(&self, rows: &[(Addr, IdentityRow)]) -> Result<(), Self::Error> {
        self.0.set_identities(rows)
    }

    fn delete_identities(&self, addresses: &[Addr]) -> Result<(), Self::Error> {
        self.0.remove_identities(addresses)
    }

    fn set_blocks(&self, rows: &[(Block, u64)]) -> Result<(), Self::Error> {
        self.0.set_blocks(rows)
    }

    fn delete_blocks(&self, blocks: &[Block]) -> Result<(), Self::Error> {
        self.0.remove_blocks(blocks)
    }

    fn set_pods(&self, pods: &[(u32, Sets)]) -> Result<(), Self::Error> {
        let said = |(endpoint, sets): &(u32, Sets)| {
            (*endpoint, datapath::Sets { egress: sets.egress, ingress: sets.ingress })
        };
        self.0.set_policies(&pods.iter().map(said).collect::<Vec<_>>())
    }

    fn remove_pods(&self, endpoints: &[u32]) -> Result<(), Self::Error> {
        self.0.remove_policies(endpoints)
    }

    fn bump_epoch(&self) -> Result<(), Self::Error> {
        self.0.bump_policy_epoch()
    }

    fn ranges(&self, base: u32, count: u32) -> Result<Vec<Range>, Self::Error> {
        self.0.policy_ranges(base, count)
    }

    fn rows(&self) -> Result<Vec<(PolicyKey, PolicyRow)>, Self::Error> {
        self.0.policy_rows()
    }

    fn identities(&self) -> Result<Vec<(Addr, IdentityRow)>, Self::Error> {
        self.0.identities()
    }

    fn blocks(&self) -> Result<Vec<(Block, u64)>, Self::Error> {
        self.0.blocks()
    }

    fn pods(&self) -> Result<BTreeMap<u32, Sets>, Self::Error> {
        let ours = |sets: datapath::Sets| Sets { egress: sets.egress, ingress: sets.ingress };
        Ok(self.0.policies()?.into_iter().map(|(endpoint, sets)| (endpoint, ours(sets))).collect())
    }
}
