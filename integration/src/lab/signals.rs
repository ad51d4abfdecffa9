//! Ctrl-C and its kin in a program that keeps labs.

use super::{NEXT, folder_of, sweep};
use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};
use std::sync::atomic::Ordering;

/// From now on SIGINT, SIGTERM and SIGHUP remove all labs of this process and end it. What other threads make
/// meanwhile is left to the reapers, which come last. To be called before any other thread is started.
///
/// # Errors
/// The signals cannot be blocked, or no thread be started.
pub fn clean_up_on_signals() -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().context("blocking signals")?;
    let body = move || {
        let Ok(signal) = signals.wait() else { return };
        for n in 0..NEXT.load(Ordering::Relaxed) {
            // An error is the reaper's to overcome.
            drop(sweep(&folder_of(n)));
        }
        std::process::exit(128 + signal as i32);
    };
    std::thread::Builder::new().name("signals".into()).spawn(body).map(drop).context("starting a thread")
}
