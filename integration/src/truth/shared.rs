//! One [`World`] for all tests of a process: it takes longer to start than a test to run.
//!
//! It lives on a thread of its own, which does what the tests send it, one after the other, each from the same start.
//! When the process ends, the lab's reaper takes it away, as after any other end.

use super::World;
use crate::lab::Lab;
use anyhow::{Context as _, Result, anyhow};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{LazyLock, Mutex, PoisonError};

type Body = Box<dyn FnOnce(&mut World<'_>) -> Result<()> + Send>;

struct Job {
    body: Body,
    done: Sender<Result<()>>,
}

static JOBS: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
    let (send, receive) = channel();
    // Without a thread nobody receives, which each test is told.
    drop(std::thread::Builder::new().name("world".into()).spawn(move || work(&receive)));
    Mutex::new(send)
});

/// Runs a test in the world that all tests of this process share.
///
/// # Errors
/// The test's, or the world could not be started.
pub fn case(body: impl FnOnce(&mut World<'_>) -> Result<()> + Send + 'static) -> Result<()> {
    let (done, result) = channel();
    let job = Job { body: Box::new(body), done };
    JOBS.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(job)
        .map_err(|_| anyhow!("the world is gone"))?;
    result.recv().context("the world is gone: another test panicked in it")?
}

fn work(jobs: &Receiver<Job>) {
    let lived = Lab::run(|lab| {
        let mut world = World::start(lab).context("starting the world")?;
        for Job { body, done } in jobs {
            let result = world.reset().context("before the test").and_then(|()| body(&mut world));
            // Nobody waits any more: the test's thread panicked.
            done.send(result).ok();
        }
        Ok(())
    });
    let text = lived.map_or_else(|error| format!("{error:#}"), |()| "the world has ended".into());
    for job in jobs {
        job.done.send(Err(anyhow!("{text}"))).ok();
    }
}
