//! Reconcilers: each holds one part of the kernel to the newest snapshot of the model. Layer 3.
//!
//! A reconciler is one task: newest snapshot → plan → operations, with an audit that reads the kernel back.

mod former;
pub mod node;
pub mod policy;
pub mod services;
