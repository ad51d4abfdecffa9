//! The `netd` command; see [`netd::cli`].

fn main() {}
