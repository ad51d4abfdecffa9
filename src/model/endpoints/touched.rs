//! The Services whose choice of endpoints may differ between two models.

use crate::model::{Model, ObjectName, Service, diff};
use std::collections::HashSet;

/// Namespaces and names of Services: of all others [`super::select`] says in both models the same.
#[derive(Debug, Default)]
pub struct Touched<'m>(HashSet<(&'m str, &'m str)>);

impl<'m> Touched<'m> {
    /// What `select` looks at: the Service itself, slices that name it, pods that its selector chooses.
    #[must_use]
    pub fn between(old: &'m Model, new: &'m Model) -> Self {
        let mut touched = HashSet::new();
        for change in diff::changes(&old.services, &new.services) {
            for service in [change.old, change.new].into_iter().flatten() {
                touched.insert((&*service.name.namespace, &*service.name.name));
            }
        }
        for change in diff::changes(&old.slices, &new.slices) {
            for slice in [change.old, change.new].into_iter().flatten() {
                if let Some(service) = &slice.service {
                    touched.insert((&*slice.name.namespace, &**service));
                }
            }
        }
        let labels: HashSet<(&str, &str, &str)> = diff::changes(&old.pods, &new.pods)
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
            for service in new.services.values().filter(|service| !service.selector.is_empty()) {
                if chooses(service) {
                    touched.insert((&*service.name.namespace, &*service.name.name));
                }
            }
        }
        Self(touched)
    }

    /// The Service may have other endpoints than before.
    #[must_use]
    pub fn contains(&self, namespace: &str, name: &str) -> bool {
        self.0.contains(&(namespace, name))
    }
}

fn label<'a>(of: &'a ObjectName, key: &'a str, value: &'a str) -> (&'a str, &'a str, &'a str) {
    (&of.namespace, key, value)
}
