//! Request loops with counters: what a user of a Service would notice while something happens to netd.
//!
//! One thread per load, in the client's namespace. A request that fails is counted and never repeated; a
//! held flow that broke is opened anew, so that the count goes on.

use super::{Flow, Proto};
use crate::lab::Namespace;
use crate::wait;
use anyhow::{Result, anyhow, bail};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// One flow for all requests, or one for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A long-lived flow.
    Held,
    /// A new flow for each request.
    Fresh,
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    name: String,
    style: Style,
    proto: Proto,
    target: SocketAddr,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Counters {
    stop: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
    slowest: AtomicU64,
    names: Mutex<BTreeSet<String>>,
    first_error: Mutex<Option<String>>,
}

/// What a load came to.
#[derive(Clone, Debug)]
pub struct Tally {
    /// One flow, or many.
    pub style: Style,
    /// By which transport.
    pub proto: Proto,
    /// Whom it asked.
    pub target: SocketAddr,
    /// What it was.
    pub name: String,
    /// Requests answered.
    pub answered: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Names of those who answered.
    pub names: BTreeSet<String>,
    /// The longest that an answer took.
    pub slowest: Duration,
    /// The first failure.
    pub first_error: Option<String>,
}

impl Load {
    /// Starts asking `target` from `from`, pausing `pause` between requests.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn start(
        from: &Namespace,
        proto: Proto,
        style: Style,
        target: SocketAddr,
        pause: Duration,
    ) -> Result<Self> {
        let counters = Arc::new(Counters::default());
        let name = format!("{style:?} {proto} from {} to {target}", from.name());
        let mine = Arc::clone(&counters);
        let thread = from.spawn_thread("load", move || {
            let mut flow = None;
            while !mine.stop.load(Ordering::Relaxed) {
                mine.request(&mut flow, proto, target);
                if style == Style::Fresh {
                    flow = None;
                }
                std::thread::sleep(pause);
            }
            Ok(())
        })?;
        Ok(Self { name, style, proto, target, counters, thread: Some(thread) })
    }

    /// The four kinds of load on one target.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn all(from: &Namespace, target: SocketAddr, pause: Duration) -> Result<Vec<Self>> {
        let mut loads = Vec::new();
        for proto in Proto::ALL {
            for style in [Style::Held, Style::Fresh] {
                loads.push(Self::start(from, proto, style, target, pause)?);
            }
        }
        Ok(loads)
    }

    /// Waits until each of `loads` had `count` more requests answered.
    ///
    /// # Errors
    /// One had not, by the deadline, or its thread could not enter its namespace.
    pub fn all_more(loads: &[Self], count: u64) -> Result<()> {
        let goals: Vec<u64> = loads.iter().map(|load| load.answered() + count).collect();
        loads.iter().zip(goals).try_for_each(|(load, goal)| load.reach(goal))
    }

    /// Waits until `count` more requests were answered.
    ///
    /// # Errors
    /// As [`Load::all_more`].
    pub fn more(&self, count: u64) -> Result<()> {
        self.reach(self.answered() + count)
    }

    fn answered(&self) -> u64 {
        self.counters.answered.load(Ordering::Relaxed)
    }

    fn reach(&self, goal: u64) -> Result<()> {
        wait::holds(&format!("{goal} answers: {}", self.name), || {
            if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
                bail!("the load has ended");
            }
            Ok(self.answered() >= goal)
        })
    }

    /// The counts so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let first_error = self.counters.first_error.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Tally {
            style: self.style,
            proto: self.proto,
            target: self.target,
            name: self.name.clone(),
            answered: self.answered(),
            failed: self.counters.failed.load(Ordering::Relaxed),
            names: self.counters.names.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            slowest: Duration::from_micros(self.counters.slowest.load(Ordering::Relaxed)),
            first_error,
        }
    }

    /// Ends them all, and demands that no request failed.
    ///
    /// # Errors
    /// Every load of which one failed.
    pub fn none_failed(loads: Vec<Self>) -> Result<()> {
        let mut failures = Vec::new();
        for load in loads {
            if let Err(error) = load.stop()?.none_failed() {
                failures.push(error.to_string());
            }
        }
        if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("\n")) }
    }

    /// Ends it.
    ///
    /// # Errors
    /// Its thread could not enter the namespace, or panicked.
    pub fn stop(mut self) -> Result<Tally> {
        self.counters.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("{}: the thread panicked", self.name))??;
        }
        Ok(self.tally())
    }
}

impl Tally {
    /// Fails if a request failed.
    ///
    /// # Errors
    /// The first failure and how many there were.
    pub fn none_failed(&self) -> Result<()> {
        if let Some(error) = &self.first_error {
            bail!("{}: {} failed, {} answered; first: {error}", self.name, self.failed, self.answered);
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.counters.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Counters {
    fn request(&self, flow: &mut Option<Flow>, proto: Proto, target: SocketAddr) {
        let start = Instant::now();
        match self.ask(flow, proto, target) {
            Ok(name) => {
                self.names.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
                self.answered.fetch_add(1, Ordering::Relaxed);
                let took = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.slowest.fetch_max(took, Ordering::Relaxed);
            }
            Err(error) => {
                *flow = None;
                self.failed.fetch_add(1, Ordering::Relaxed);
                let mut first = self.first_error.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }

    fn ask(&self, flow: &mut Option<Flow>, proto: Proto, target: SocketAddr) -> Result<String> {
        let flow = match flow {
            Some(open) => open,
            None => flow.insert(Flow::open(proto, target)?),
        };
        flow.ask()
    }
}
