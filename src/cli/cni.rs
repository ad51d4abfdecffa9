//! `netd cni`, and netd under any name when `CNI_COMMAND` is set.

use crate::cni::plugin::{self, Local};
use std::io;
use std::process::ExitCode;

/// Runs the plugin: request on standard input and in `CNI_*`, result on standard output. Its log goes
/// nowhere: what a runtime must know is in the result.
pub(super) fn plugin() -> ExitCode {
    let (mut stdin, mut stdout) = (io::stdin().lock(), io::stdout().lock());
    plugin::run(&Local, &|name| std::env::var_os(name), &mut stdin, &mut stdout)
}
