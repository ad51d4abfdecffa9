//! What netd tells about itself: logs on standard error, and metrics.
//!
//! Nothing here is global but the log subscriber, which `tracing` has one of per process.

pub mod config;
pub mod logs;
pub mod metrics;

/// An error with its causes, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
