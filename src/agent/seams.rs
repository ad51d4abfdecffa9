//! The reconcilers' seams: the store's snapshots and the datapath's tables.

use crate::datapath::{self, Datapath};
use crate::model::endpoints::{self, Chosen, EndpointIndex, Scope, Touched, View};
use crate::model::{Family, Model, Service, ServicePort};
use crate::reconcile::services::{ServiceMaps, Source};
use crate::service::plan::{self, Choice, Desired};
use crate::store::Snapshot;
use netd_bpf::service::{Backend, Frontend, FrontendKey};
use std::net::IpAddr;
use std::sync::Arc;

mod policy;
#[cfg(test)]
#[cfg(not(netd_bpf_stub))]
mod tests;

pub(super) use policy::PolicyTables;

/// Plans for this node.
#[derive(Debug)]
pub(super) struct OnNode(pub(super) String);

impl OnNode {
    /// The whole plan for a model.
    pub(super) fn plan(&self, model: &Model) -> Desired {
        plan::desired(model, self.choice(&EndpointIndex::build(model)))
    }

    fn choice<'c>(
        &'c self,
        index: &'c EndpointIndex<'c>,
    ) -> impl FnMut(&Service, &ServicePort, IpAddr) -> Vec<Choice> + 'c {
        let view = View { node: &self.0, scope: Scope::Internal };
        move |service, port, address| {
            let chosen = endpoints::select(index, service, port, Family::of(address), view);
            let choice =
                |one: Chosen| Choice { address: one.address, port: one.port, local: one.local, pod: one.pod };
            chosen.into_iter().map(choice).collect()
        }
    }
}

impl Source for OnNode {
    type Snapshot = Snapshot;

    fn generation(&self, snapshot: &Snapshot) -> Option<u64> {
        snapshot.synced.then_some(snapshot.generation)
    }

    fn desired(&self, snapshot: &Snapshot) -> Desired {
        self.plan(&snapshot.model)
    }

    fn renew(&self, desired: &mut Desired, old: &Snapshot, new: &Snapshot) -> Option<Vec<usize>> {
        let touched = Touched::between(&old.model, &new.model)?;
        let index = EndpointIndex::build_for(&new.model, &touched);
        Some(plan::renew(desired, touched.services(&new.model), self.choice(&index)))
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
