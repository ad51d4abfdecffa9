//! What calls on maps answer, told apart (`bpf(2)`, kernel/bpf/hashtab.c).

use super::Error;
use aya::maps::MapError;

/// `BPF_NOEXIST`: make the row, never replace one.
pub(super) const NOEXIST: u64 = 1;

/// True if the system call failed with this number.
pub(super) fn is(error: &MapError, errno: i32) -> bool {
    matches!(error, MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(errno))
}

/// A row, if there is one.
pub(super) fn present<V>(row: Result<V, MapError>, map: &'static str) -> Result<Option<V>, Error> {
    match row {
        Ok(row) => Ok(Some(row)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(Error::map(map)(error)),
    }
}

/// A row that is not there needs no removal.
pub(super) fn absent_is_fine(removed: Result<(), MapError>, map: &'static str) -> Result<(), Error> {
    match removed {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(error) if is(&error, libc::ENOENT) => Ok(()),
        Err(error) => Err(Error::map(map)(error)),
    }
}
