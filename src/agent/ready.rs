//! Readiness: a list of what is still pending.

use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// What the agent waits for before it is ready.
#[derive(Clone, Debug)]
pub struct Readiness {
    pending: Arc<watch::Sender<BTreeMap<&'static str, String>>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { pending: Arc::new(watch::Sender::default()) }
    }
}

impl Readiness {
    /// Adds a condition, or changes its reason, with what it waits for in words.
    pub fn wait_for(&self, condition: &'static str, why: impl Into<String>) {
        let why = why.into();
        self.pending.send_if_modified(|pending| pending.insert(condition, why.clone()) != Some(why));
    }

    /// Meets a condition.
    pub fn done(&self, condition: &'static str) {
        self.pending.send_if_modified(|pending| pending.remove(condition).is_some());
    }

    /// What is pending: condition and reason.
    #[must_use]
    pub fn pending(&self) -> BTreeMap<&'static str, String> {
        self.pending.borrow().clone()
    }

    /// True once nothing is pending.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.pending.borrow().is_empty()
    }

    /// Waits until nothing is pending.
    pub async fn ready(&self) {
        let mut pending = self.pending.subscribe();
        // The sender lives as long as `self`.
        drop(pending.wait_for(BTreeMap::is_empty).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_ready_when_nothing_is_pending() {
        let ready = Readiness::default();
        ready.wait_for("source", "not synced");
        ready.wait_for("source", "broken.yaml: line 3");
        ready.wait_for("services", "not written");
        assert_eq!(ready.pending()["source"], "broken.yaml: line 3");
        ready.done("source");
        assert!(!ready.is_ready());
        let waiting = tokio::spawn({
            let ready = ready.clone();
            async move { ready.ready().await }
        });
        ready.done("services");
        waiting.await.unwrap();
        assert!(ready.is_ready());
    }
}
