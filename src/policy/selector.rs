//! Label selectors, compiled, and an index that finds those that may match.
//!
//! As `LabelSelectorAsSelector` of apimachinery has it: requirements are all to be met, an empty selector matches
//! everything, and `NotIn` is met also where the key is missing. Labels that are not known meet nothing.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

/// What a label is to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Test {
    /// There, with one of these values, which ascend.
    In(Vec<Arc<str>>),
    /// Not there, or with none of these values, which ascend.
    NotIn(Vec<Arc<str>>),
    /// There.
    Exists,
    /// Not there.
    DoesNotExist,
}

/// One requirement.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirement {
    /// The label.
    pub key: Arc<str>,
    /// What it is to be.
    pub test: Test,
}

/// A selector: requirements in order, none twice, so that selectors that are written differently and mean the
/// same are mostly equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(Vec<Requirement>);

impl Selector {
    /// Compiles.
    ///
    /// # Errors
    /// Tells what the API does not know.
    pub fn compile(selector: &LabelSelector) -> Result<Self, String> {
        let labels = selector.match_labels.iter().flatten().map(|(key, value)| Requirement {
            key: key.as_str().into(),
            test: Test::In(vec![value.as_str().into()]),
        });
        let mut requirements: Vec<Requirement> = labels.collect();
        for expression in selector.match_expressions.iter().flatten() {
            let values = || {
                let values: BTreeSet<&str> = expression.values.iter().flatten().map(String::as_str).collect();
                values.into_iter().map(Into::into).collect()
            };
            let test = match expression.operator.as_str() {
                "In" => Test::In(values()),
                "NotIn" => Test::NotIn(values()),
                "Exists" => Test::Exists,
                "DoesNotExist" => Test::DoesNotExist,
                other => return Err(format!("operator {other:?} of label {:?} is unknown", expression.key)),
            };
            requirements.push(Requirement { key: expression.key.as_str().into(), test });
        }
        requirements.sort_unstable();
        requirements.dedup();
        Ok(Self(requirements))
    }

    /// Whether labels, looked up by key, are as they are to be.
    pub fn matches<'l>(&self, label: impl Fn(&str) -> Option<&'l str>) -> bool {
        let has =
            |values: &[Arc<str>], value: &str| values.binary_search_by(|one| (**one).cmp(value)).is_ok();
        self.0.iter().all(|Requirement { key, test }| match (test, label(key)) {
            (Test::In(values), Some(value)) => has(values, value),
            (Test::NotIn(values), Some(value)) => !has(values, value),
            (Test::Exists, there) => there.is_some(),
            (Test::DoesNotExist, there) => there.is_none(),
            (Test::In(_), None) => false,
            (Test::NotIn(_), None) => true,
        })
    }

    /// The same where labels beside those that are found may not be `known`: then what asks for one that is not found
    /// is not met, not even if it asks that there be none.
    pub fn matches_known<'l>(&self, label: impl Fn(&str) -> Option<&'l str>, known: bool) -> bool {
        (known || self.0.iter().all(|requirement| label(&requirement.key).is_some())) && self.matches(label)
    }

    /// True if it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The requirements.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.0
    }

    /// The keys that it asks for.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().map(|requirement| &requirement.key)
    }

    /// A key whose value has to be one of a few: whatever matches is found by it.
    #[must_use]
    pub fn equality(&self) -> Option<(&Arc<str>, &[Arc<str>])> {
        let equalities = self.0.iter().filter_map(|Requirement { key, test }| match test {
            Test::In(values) => Some((key, values.as_slice())),
            _ => None,
        });
        equalities.min_by_key(|(_, values)| values.len())
    }
}

/// Things by label.
#[derive(Clone, Debug)]
pub(super) struct ByLabel<K, T>(HashMap<K, HashMap<K, BTreeSet<T>>>);

impl<K, T> Default for ByLabel<K, T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash + Borrow<str> + Clone, T: Ord + Copy> ByLabel<K, T> {
    /// Files a thing under a label.
    pub(super) fn insert(&mut self, key: &K, value: &K, thing: T) {
        if !self.0.contains_key(key.borrow()) {
            self.0.insert(key.clone(), HashMap::new());
        }
        let Some(values) = self.0.get_mut(key.borrow()) else { return };
        match values.get_mut(value.borrow()) {
            Some(things) => drop(things.insert(thing)),
            None => drop(values.insert(value.clone(), BTreeSet::from([thing]))),
        }
    }

    /// Takes it away again.
    pub(super) fn remove(&mut self, key: &str, value: &str, thing: T) {
        let Some(values) = self.0.get_mut(key) else { return };
        if let Some(things) = values.get_mut(value) {
            things.remove(&thing);
            if things.is_empty() {
                values.remove(value);
            }
        }
        if values.is_empty() {
            self.0.remove(key);
        }
    }

    /// What has this label.
    pub(super) fn get(&self, key: &str, value: &str) -> Option<&BTreeSet<T>> {
        self.0.get(key)?.get(value)
    }

    /// What has one of these labels; things with several values come for each.
    pub(super) fn having(&self, key: &str, values: &[Arc<str>]) -> impl Iterator<Item = T> {
        values.iter().filter_map(|value| self.get(key, value)).flatten().copied()
    }

    /// How many things have one of these labels; things with several values count for each.
    pub(super) fn count(&self, key: &str, values: &[Arc<str>]) -> usize {
        values.iter().filter_map(|value| self.get(key, value)).map(BTreeSet::len).sum()
    }

    /// True if there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Selectors by what they need.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    by_label: ByLabel<Arc<str>, u32>,
    rest: BTreeSet<u32>,
}

impl Index {
    /// Files a selector.
    pub(super) fn insert(&mut self, selector: &Selector, id: u32) {
        match selector.equality() {
            Some((key, values)) => values.iter().for_each(|value| self.by_label.insert(key, value, id)),
            None => drop(self.rest.insert(id)),
        }
    }

    /// Takes it away again.
    pub(super) fn remove(&mut self, selector: &Selector, id: u32) {
        match selector.equality() {
            Some((key, values)) => values.iter().for_each(|value| self.by_label.remove(key, value, id)),
            None => drop(self.rest.remove(&id)),
        }
    }

    /// Selectors that may match these labels, each once.
    pub(super) fn candidates<'i>(
        &'i self,
        labels: impl Iterator<Item = (&'i str, &'i str)>,
    ) -> impl Iterator<Item = u32> {
        let found = labels.filter_map(|(key, value)| self.by_label.get(key, value)).flatten();
        found.chain(&self.rest).copied()
    }

    /// All of them, each at least once.
    pub(super) fn all(&self) -> impl Iterator<Item = u32> {
        self.by_label.0.values().flat_map(HashMap::values).flatten().chain(&self.rest).copied()
    }

    /// True if there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.by_label.is_empty() && self.rest.is_empty()
    }
}

#[cfg(test)]
mod tests;
