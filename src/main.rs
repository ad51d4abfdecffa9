//! The `netd` command; see [`netd::cli`].
//!
//! Container runtimes run the CNI plugin under any name and with any arguments, and tell it what to do by
//! `CNI_COMMAND` alone (CNI spec 1.1.0, section 2), so that variable decides before anything is parsed.

use std::process::ExitCode;

fn main() -> ExitCode {
    pin_name_services();
    give_memory_back();
    if std::env::var_os("CNI_COMMAND").is_some() {
        return netd::cli::plugin();
    }
    netd::cli::run()
}

/// Keeps a static glibc from loading the modules that the host's `nsswitch.conf` names: they were built for
/// another libc, and have been seen to hang and to crash. `files` and `dns` are part of glibc since 2.34.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "glibc has no other way to choose name services")]
fn pin_name_services() {
    use std::ffi::{c_char, c_int};

    unsafe extern "C" {
        /// <nss.h>: replaces what `nsswitch.conf` says of one database.
        fn __nss_configure_lookup(database: *const c_char, services: *const c_char) -> c_int;
    }

    for (database, services) in [(c"hosts", c"files dns"), (c"passwd", c"files"), (c"group", c"files")] {
        // SAFETY: both are NUL-terminated and static; glibc copies them. No other thread exists yet, so none
        // is in a look-up. A refusal leaves the host's setting, which is no worse than not asking.
        unsafe { __nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
    }
}

#[cfg(not(target_env = "gnu"))]
fn pin_name_services() {}

/// Has glibc give freed memory back to the kernel. By itself it keeps an arena for each thread, and raises with
/// what it sees the size from which on memory is the kernel's again: a burst of objects once read would be
/// resident for ever.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "how glibc allocates is set by this call only")]
fn give_memory_back() {
    const KEEP: libc::c_int = 64 * 1024;
    for (what, value) in
        [(libc::M_ARENA_MAX, 1), (libc::M_TRIM_THRESHOLD, KEEP), (libc::M_MMAP_THRESHOLD, KEEP)]
    {
        // SAFETY: plain numbers, and no other thread exists yet. A refusal leaves the default.
        unsafe { libc::mallopt(what, value) };
    }
}

/// Other libcs have no such arenas.
#[cfg(not(target_env = "gnu"))]
fn give_memory_back() {}
