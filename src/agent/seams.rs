//! The Service reconciler's seams: the store's snapshots and the datapath's tables.

use crate::datapath::{self, Datapath};
use crate::model::Family;
use crate::model::endpoints::{self, EndpointIndex, Scope, Touched, View};
use crate::reconcile::services::{ServiceMaps, Source};
use crate::service::plan::{self, Choice, Desired};
use crate::store::Snapshot;
use netd_bpf::service::{Backend, Frontend, FrontendKey};
use std::sync::Arc;

#[cfg(test)]
#[cfg(not(netd_bpf_stub))]
mod tests;

/// Plans for this node.
#[derive(Debug)]
pub(super) struct OnNode(pub(super) String);

impl Source for OnNode {
    type Snapshot = Snapshot;

    fn generation(&self, snapshot: &Snapshot) -> Option<u64> {
        snapshot.synced.then_some(snapshot.generation)
    }

    fn desired(&self, snapshot: &Snapshot, former: Option<(&Snapshot, Desired)>) -> Desired {
        let (model, nothing) = (&snapshot.model, Snapshot::default());
        let (before, former) = former.unwrap_or_else(|| (&nothing, Desired::default()));
        let touched = Touched::between(&before.model, model);
        let touched = |namespace: &str, name: &str| touched.contains(namespace, name);
        let index = EndpointIndex::build(model, touched);
        let view = View { node: &self.0, scope: Scope::Internal };
        plan::desired(
            former,
            model,
            |name| touched(&name.namespace, &name.name),
            |service, port, address| {
                let chosen = endpoints::select(&index, service, port, Family::of(address), view);
                chosen.into_iter().map(|one| Choice {
                    address: one.address,
                    port: one.port,
                    local: one.local,
                    pod: one.pod,
                })
            },
        )
    }
}

/// The pinned tables.
#[derive(Debug)]
pub(super) struct Maps(pub(super) Arc<Datapath>);

impl ServiceMaps for Maps {
    type Error = datapath::Error;

    fn set_backend(&self, id: u32, row: &Backend) -> Result<(), Self::Error> {
        self.0.set_backend(id, row)
    }

    fn set_slots(&self, base: u32, ids: &[u32]) -> Result<(), Self::Error> {
        self.0.set_slots(base, ids)
    }

    fn set_frontend(&self, key: &FrontendKey, row: &Frontend) -> Result<(), Self::Error> {
        self.0.set_frontend(key, row)
    }

    fn delete_frontend(&self, key: &FrontendKey) -> Result<(), Self::Error> {
        self.0.delete_frontend(key)
    }

    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, Self::Error> {
        self.0.frontends()
    }

    fn slots(&self, base: u32, count: u32) -> Result<Vec<u32>, Self::Error> {
        self.0.slots(base, count)
    }

    fn backends(&self) -> Result<Vec<(u32, Backend)>, Self::Error> {
        self.0.backends()
    }
}
