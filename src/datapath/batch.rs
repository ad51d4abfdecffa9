//! Reading whole maps, thousands of rows per system call (`BPF_MAP_LOOKUP_BATCH`, Linux 5.6,
//! <https://docs.kernel.org/bpf/map_hash.html>): some 0.3 µs a row where one call per row takes 1.8 µs.
//!
//! aya has no such call. What is read is a table that goes on changing: a row that is written meanwhile may be
//! missing, one that is there all the time is not.

use super::Error;
use aya::maps::{MapData, MapError};
use aya::sys::SyscallError;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

/// Rows asked for at a time. The kernel holds up nothing but this thread between two calls.
const ROWS: usize = 4096;

/// More rows than any bucket of a hash table has.
const MOST_ROWS: usize = 1 << 20;

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd`.
const LOOKUP_BATCH: libc::c_long = 24;

/// `union bpf_attr`, the `batch` variant.
#[repr(C)]
struct Attr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Visits the rows of a pinned map of keys `K` and values `V` (whose sizes were checked when it was adopted),
/// until the visitor has seen enough. An array is read from the row after `after` on.
pub(super) fn visit<K: aya::Pod + Default, V: aya::Pod + Default>(
    name: &'static str,
    pin: &Path,
    after: Option<u32>,
    mut visitor: impl FnMut(&[K], &[V]) -> ControlFlow<()>,
) -> Result<(), Error> {
    let map = MapData::from_pin(pin).map_err(Error::map(name))?;
    let fd = map.fd().as_fd().as_raw_fd();
    let failed = |io_error| {
        let call = "bpf_map_lookup_batch";
        Error::map(name)(MapError::SyscallError(SyscallError { call, io_error }))
    };
    let mut keys = vec![K::default(); ROWS];
    let mut values = vec![V::default(); ROWS];
    // A bucket's number for hash tables, an index for arrays; both of four bytes.
    let mut cursor = after;
    loop {
        let (count, end) = match lookup(fd, cursor, &mut keys, &mut values) {
            Ok((count, next)) => {
                cursor = Some(next);
                (count, false)
            }
            Err((error, count)) => match error.raw_os_error() {
                Some(libc::ENOENT) => (count, true),
                // The next bucket alone has more rows than there is room for.
                Some(libc::ENOSPC) if keys.len() < MOST_ROWS => {
                    keys = vec![K::default(); keys.len() * 2];
                    values = vec![V::default(); values.len() * 2];
                    continue;
                }
                Some(libc::EINTR) => continue,
                _ => return Err(failed(error)),
            },
        };
        let rows = keys.get(..count).zip(values.get(..count)).unwrap_or_default();
        if visitor(rows.0, rows.1).is_break() || end {
            return Ok(());
        }
    }
}

/// One call: rows read and where to go on, or the error and the rows read before it.
#[expect(unsafe_code, reason = "bpf(2) has no wrapper for this command")]
fn lookup<K: aya::Pod, V: aya::Pod>(
    fd: i32,
    cursor: Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> Result<(usize, u32), (io::Error, usize)> {
    let mut next = 0_u32;
    let mut attr = Attr {
        in_batch: cursor.as_ref().map_or(0, |cursor| std::ptr::from_ref(cursor) as u64),
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX),
        map_fd: fd.cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: `attr` has the size it is said to have; all it points to outlives the call, and both buffers
    // hold `count` rows of the map's own key and value sizes, of types for which any bytes are a value.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, LOOKUP_BATCH, std::ptr::from_mut(&mut attr), size_of::<Attr>())
    };
    let count = attr.count as usize;
    if result == 0 { Ok((count, next)) } else { Err((io::Error::last_os_error(), count)) }
}
