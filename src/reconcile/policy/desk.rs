//! Pods that are being added, and wait for their policies.

use crate::policy::LocalPod;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, oneshot};

/// A pod that waits. Dropped without an answer it is told that nobody will give one.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) pod: LocalPod,
    pub(super) answer: oneshot::Sender<()>,
}

/// Where they wait.
#[derive(Debug, Default)]
pub(super) struct Desk {
    waiting: Mutex<Waiting>,
    asked: Notify,
    audit: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: Vec<Request>,
    closed: bool,
}

impl Desk {
    /// Asks; resolves to an error at once where nobody will answer.
    pub(super) fn ask(&self, pod: LocalPod) -> oneshot::Receiver<()> {
        let (answer, receiver) = oneshot::channel();
        let mut waiting = self.waiting();
        if !waiting.closed {
            waiting.requests.push(Request { pod, answer });
            self.asked.notify_one();
        }
        receiver
    }

    /// Returns when somebody asked since the last time.
    pub(super) async fn asked(&self) {
        self.asked.notified().await;
    }

    /// Those that still wait.
    pub(super) fn take(&self) -> Vec<Request> {
        let mut requests = std::mem::take(&mut self.waiting().requests);
        requests.retain(|request| !request.answer.is_closed());
        requests
    }

    pub(super) fn ask_for_audit(&self) {
        self.audit.notify_one();
    }

    pub(super) async fn audit_asked(&self) {
        self.audit.notified().await;
    }

    /// Nobody will answer any more.
    pub(super) fn close(&self) {
        *self.waiting() = Waiting { requests: Vec::new(), closed: true };
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
