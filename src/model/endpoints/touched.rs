//! The Services whose choice of endpoints may differ between two models.

use crate::model::{Model, ObjectName, Service};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// Names of Services: of all others [`super::select`] says in both models the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched(BTreeSet<ObjectName>);

impl Touched {
    /// What `select` looks at beside the Service itself: slices that name it, pods that its selector chooses. None
    /// if Services themselves differ.
    #[must_use]
    pub fn between(old: &Model, new: &Model) -> Option<Self> {
        if old.services.changes(&new.services).next().is_some() {
            return None;
        }
        let mut touched = BTreeSet::new();
        for change in old.slices.changes(&new.slices) {
            for slice in [change.old, change.new].into_iter().flatten() {
                touched.extend(slice.key().service);
            }
        }
        let labels: HashSet<(&str, &str, &str)> = old
            .pods
            .changes(&new.pods)
            .flat_map(|change| [change.old, change.new])
            .flatten()
            .flat_map(|pod| pod.labels.iter().map(|(key, value)| label(&pod.name, key, value)))
            .collect();
        if !labels.is_empty() {
            // More than those pods' perhaps, in time that does not grow with pods times Services.
            let chooses = |service: &Service| {
                let mut selector = service.selector.iter();
                selector.all(|(key, value)| labels.contains(&label(&service.name, key, value)))
            };
            let with_selector = new.services.values().filter(|service| !service.selector.is_empty());
            touched
                .extend(with_selector.filter(|service| chooses(service)).map(|service| service.name.clone()));
        }
        Some(Self(touched))
    }

    /// The Service may have other endpoints than before.
    #[must_use]
    pub fn contains(&self, service: &ObjectName) -> bool {
        self.0.contains(service)
    }

    /// Those that exist, in the order of their names.
    pub fn services<'m>(&self, model: &'m Model) -> impl Iterator<Item = &'m Arc<Service>> {
        self.0.iter().filter_map(|name| model.services.get(name))
    }
}

fn label<'a>(of: &'a ObjectName, key: &'a str, value: &'a str) -> (&'a str, &'a str, &'a str) {
    (&of.namespace, key, value)
}
