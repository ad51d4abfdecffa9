//! Services: from the model to the rows of the kernel's service tables. Pure, layer 2.
//!
//! [`plan`] says what every Service ought to look like; [`tables`] knows what the kernel holds and gives
//! the operations that lead from the one to the other without any packet seeing a half-made Service; [`view`]
//! compares the two for whoever asks.
//! The ABI and its meaning are in [`netd_bpf::service`].

mod backends;
pub mod plan;
pub mod tables;
pub mod view;
