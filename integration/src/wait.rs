//! Waiting on conditions. Tests never sleep blindly and never assert times: a deadline here is only there
//! to end a test that would otherwise hang, so it is generous.

use anyhow::{Result, bail};
use std::time::{Duration, Instant};

/// What a test gives a condition before it calls the test failed. On a machine four times overcommitted the
/// kernel alone was seen to take twenty seconds to let a killed process go.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until `look` gives something; `what` completes the sentence "waited … for …".
///
/// # Errors
/// The deadline passed: the text holds the last error that `look` gave.
pub fn until<T>(what: &str, look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    within(DEADLINE, what, look)
}

/// [`until`] with another deadline.
///
/// # Errors
/// The deadline passed: the text holds the last error that `look` gave.
pub fn within<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        let last = match look() {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() > limit {
            match last {
                Some(error) => return Err(error.context(format!("waited {limit:?} for {what}"))),
                None => bail!("waited {limit:?} for {what}"),
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// Waits until `holds` is true.
///
/// # Errors
/// The deadline passed.
pub fn holds(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    until(what, || Ok(holds()?.then_some(())))
}
