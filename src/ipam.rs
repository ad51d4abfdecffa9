//! Addresses of this node's pods: which are free, and the one file that says which are not.
//!
//! [`pool`] decides (pure: ranges, cool-down, fixed addresses); [`ledger`] remembers (fsynced before any
//! pod hears of its address). The ledger is the only truth of what is allocated: the pool in memory is
//! always rebuilt from it, never the other way round.

pub mod config;
pub mod ledger;
pub mod pool;
