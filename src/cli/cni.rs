//! `netd cni`, and netd under any name when `CNI_COMMAND` is set.

use std::process::ExitCode;

/// Runs the plugin: request on standard input and in `CNI_*`, result on standard output.
///
/// Seam: becomes a call of `crate::cni::plugin::run()` when that module is there.
pub(super) fn plugin() -> ExitCode {
    super::complain("error: this build has no CNI plugin\n");
    super::Exit::Failed.into()
}
