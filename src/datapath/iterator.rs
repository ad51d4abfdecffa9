//! The kernel's walk over a map with a program for each row (`bpf_iter`, Linux 5.9,
//! <https://docs.kernel.org/bpf/bpf_iterators.html>), in slices.
//!
//! aya attaches iterators without a map, so the two commands are given here. A link is kept and each pass has
//! a descriptor of its own; both end with this process, and nothing is left in the kernel.

use super::Error;
use aya::maps::MapData;
use aya::programs::{Iter, ProgramError, ProgramFd};
use aya::sys::SyscallError;
use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// `enum bpf_cmd` (include/uapi/linux/bpf.h).
const LINK_CREATE: libc::c_long = 28;
/// As above.
const ITER_CREATE: libc::c_long = 33;
/// `BPF_TRACE_ITER` of `enum bpf_attach_type`.
const TRACE_ITER: u32 = 28;

/// `union bpf_attr`, the `link_create` variant.
#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    info: u64,
    info_length: u32,
    pad: u32,
}

/// `union bpf_iter_link_info`, the `map` variant with the union's tail.
#[repr(C)]
struct LinkInfo {
    map: u32,
    pad: [u32; 3],
}

const LINK_INFO: u32 = 16;
const _: () = assert!(size_of::<LinkInfo>() == LINK_INFO as usize);

/// `union bpf_attr`, the `iter_create` variant.
#[repr(C)]
struct IterCreate {
    link: u32,
    flags: u32,
}

/// A program of the type `bpf_map_elem` bound to a map.
#[derive(Debug)]
pub(super) struct MapIterator {
    name: &'static str,
    link: OwnedFd,
}

impl MapIterator {
    /// Binds a loaded program to a map.
    pub(super) fn attach(name: &'static str, program: &Iter, map: &MapData) -> Result<Self, Error> {
        let program: &ProgramFd = program.fd().map_err(Error::program("use", name))?;
        let info = LinkInfo { map: raw(map.fd().as_fd().as_raw_fd()), pad: [0; 3] };
        let mut attr = LinkCreate {
            program: raw(program.as_fd().as_raw_fd()),
            target: 0,
            attach_type: TRACE_ITER,
            flags: 0,
            info: std::ptr::from_ref(&info) as u64,
            info_length: LINK_INFO,
            pad: 0,
        };
        let link = bpf(LINK_CREATE, &mut attr).map_err(failed("attach", name, "bpf_link_create"))?;
        Ok(Self { name, link })
    }

    /// One pass. The program pauses as it likes; `slice` hears how long each stretch took and may end the
    /// pass. False if it did.
    pub(super) fn pass(&self, mut slice: impl FnMut(Duration) -> ControlFlow<()>) -> Result<bool, Error> {
        let mut attr = IterCreate { link: raw(self.link.as_raw_fd()), flags: 0 };
        let walk = bpf(ITER_CREATE, &mut attr).map_err(failed("start", self.name, "bpf_iter_create"))?;
        let mut walk = File::from(walk);
        // The programs write nothing: what is read is always empty.
        let mut nothing = [0; 64];
        loop {
            let begun = Instant::now();
            let end = match walk.read(&mut nothing) {
                Ok(0) => true,
                Ok(_) => false,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => false,
                Err(error) => return Err(failed("run", self.name, "read")(error)),
            };
            let flow = slice(begun.elapsed());
            if end {
                return Ok(true);
            }
            if flow.is_break() {
                return Ok(false);
            }
        }
    }
}

fn raw(fd: RawFd) -> u32 {
    fd.cast_unsigned()
}

fn failed(action: &'static str, name: &str, call: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |io_error| Error::program(action, name)(ProgramError::SyscallError(SyscallError { call, io_error }))
}

/// A command that gives a descriptor.
#[expect(unsafe_code, reason = "bpf(2) has no wrapper for these commands")]
fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: `attr` is the command's part of `union bpf_attr`, of the size that is told; what it points to
    // lives until the call returns.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    match RawFd::try_from(fd) {
        // SAFETY: a new descriptor that nobody else has.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
