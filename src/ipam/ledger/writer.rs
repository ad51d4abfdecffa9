//! Group commit: one thread owns the [`Ledger`], and all changes that wait while it fsyncs go into the next
//! write together.
//!
//! The thread (`netd-ledger`) ends when the last [`Writer`] is dropped, after the changes that were sent
//! before; the lock goes with it. A change that fails by itself (no address left) leaves the others of its
//! batch alone; a write that fails fails all of its batch, and the state stays what it was.

use super::{Clock, Error, Ledger, State};
use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use tokio::sync::{oneshot, watch};

/// Largest number of changes in one write: what one of them may wait for has a bound.
const BATCH: usize = 256;

/// Applies a change; what it returns is called with the outcome of the write.
type Change = Box<dyn FnOnce(&mut State, Clock) -> Reply + Send>;
type Reply = Box<dyn FnOnce(Result<(), Error>)>;

/// The ledger, for many tasks.
#[derive(Clone, Debug)]
pub struct Writer {
    changes: mpsc::Sender<Change>,
    state: watch::Receiver<Arc<State>>,
}

impl Writer {
    /// Starts the thread.
    pub fn start(ledger: Ledger) -> Result<Self, Error> {
        let (changes, queue) = mpsc::channel();
        let (published, state) = watch::channel(Arc::clone(ledger.state()));
        thread::Builder::new()
            .name("netd-ledger".to_owned())
            .spawn(move || run(ledger, &queue, &published))
            .map_err(|e: io::Error| Error::io("start the thread of", Path::new("the ledger"), e))?;
        Ok(Self { changes, state })
    }

    /// The state of the last write.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.borrow())
    }

    /// A receiver of states; its first value is the present one. It ends with the thread.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<State>> {
        self.state.clone()
    }

    /// Makes a change; when this returns it is on disk, or nowhere. It also happens if the future is dropped.
    pub async fn commit<R: Send + 'static>(
        &self,
        change: impl FnOnce(&mut State, Clock) -> R + Send + 'static,
    ) -> Result<R, Error> {
        let (answer, outcome) = oneshot::channel();
        let change: Change = Box::new(move |state, clock| {
            let result = change(state, clock);
            // A caller that is gone needs no answer: its change is made all the same.
            Box::new(move |written| drop(answer.send(written.map(|()| result))))
        });
        self.changes.send(change).map_err(|_| Error::Closed)?;
        outcome.await.map_err(|_| Error::Closed)?
    }
}

fn run(mut ledger: Ledger, queue: &mpsc::Receiver<Change>, published: &watch::Sender<Arc<State>>) {
    while let Ok(first) = queue.recv() {
        let mut next = State::clone(ledger.state());
        let clock = Clock::now();
        let batch = std::iter::once(first).chain(queue.try_iter()).take(BATCH);
        let replies: Vec<Reply> = batch.map(|change| change(&mut next, clock)).collect();
        let outcome = ledger.replace(next);
        if let Err(error) = &outcome {
            let error = error as &dyn std::error::Error;
            tracing::error!(error, changes = replies.len(), "the address ledger was not written");
        }
        published.send_replace(Arc::clone(ledger.state()));
        for reply in replies {
            reply(outcome.clone());
        }
    }
}
