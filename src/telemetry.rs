//! What netd tells about itself: logs on standard error, and metrics.
//!
//! Nothing here is global but the log subscriber, which `tracing` has one of per process.

pub mod config;
pub mod logs;
pub mod metrics;
