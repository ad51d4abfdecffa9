//! One asynchronous lock per attachment, made when wanted and gone when nobody wants it.

use crate::cni::types::Attachment;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OwnedMutexGuard;

type Table = Mutex<HashMap<Attachment, Arc<tokio::sync::Mutex<()>>>>;

/// The locks that are held or waited for.
#[derive(Debug, Default)]
pub(super) struct Locks {
    table: Arc<Table>,
}

/// A lock that is held, or, before its guard is there, waited for.
#[derive(Debug)]
pub(super) struct Held {
    key: Attachment,
    guard: Option<OwnedMutexGuard<()>>,
    table: Arc<Table>,
}

impl Locks {
    /// Waits for the lock; first come, first served.
    pub(super) async fn lock(&self, key: &Attachment) -> Held {
        let mut held = Held { key: key.clone(), guard: None, table: Arc::clone(&self.table) };
        held.guard = Some(self.of(key).lock_owned().await);
        held
    }

    /// Takes the lock unless somebody has it.
    pub(super) fn try_lock(&self, key: &Attachment) -> Option<Held> {
        let mut held = Held { key: key.clone(), guard: None, table: Arc::clone(&self.table) };
        held.guard = Some(self.of(key).try_lock_owned().ok()?);
        Some(held)
    }

    fn of(&self, key: &Attachment) -> Arc<tokio::sync::Mutex<()>> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(table.entry(key.clone()).or_default())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.guard = None;
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever wants it takes its reference under this lock of the table, so the count cannot grow here.
        if table.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            table.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_table_is_empty_when_nobody_wants_a_lock() {
        let locks = Locks::default();
        let key = Attachment { container_id: "a".into(), ifname: "eth0".into() };
        let first = locks.lock(&key).await;
        assert!(locks.try_lock(&key).is_none());
        {
            let mut second = std::pin::pin!(locks.lock(&key));
            assert!(futures_util::poll!(second.as_mut()).is_pending());
            drop(first);
            assert!(futures_util::poll!(second.as_mut()).is_ready());
        }
        assert!(locks.table.lock().unwrap().is_empty());
        let first = locks.try_lock(&key).unwrap();
        {
            let mut abandoned = std::pin::pin!(locks.lock(&key));
            assert!(futures_util::poll!(abandoned.as_mut()).is_pending());
        }
        assert_eq!(locks.table.lock().unwrap().len(), 1);
        drop(first);
        assert!(locks.table.lock().unwrap().is_empty());
    }
}
