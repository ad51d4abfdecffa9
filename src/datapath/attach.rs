//! Attaching: clsact filters on pods' interfaces, TCX links on uplinks where the kernel has them, which is tried
//! and asked, never read from its version; else clsact filters there too.
//!
//! Filters have a fixed priority and handle, so that another agent, or this one after a restart, replaces
//! them in one step and never doubles them.

use super::attached::filters;
use super::object::Programs;
use super::pin::{Pins, unpin};
use super::{Datapath, Error};
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, TcHandle, qdisc_add_clsact,
};
use aya::programs::{LinkOrder, ProgramError, SchedClassifier, TcError};
use std::io;
use std::path::Path;
use std::sync::PoisonError;

pub(super) const PRIORITY: u16 = 1;
pub(super) const HANDLE: TcHandle = TcHandle::new(0, 1);
const UPLINK: &str = "uplink_in";

/// How an uplink's program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UplinkHook {
    /// A pinned TCX link.
    Tcx,
    /// A clsact filter.
    Clsact,
}

impl std::fmt::Display for UplinkHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcx => "TCX",
            Self::Clsact => "clsact",
        })
    }
}

impl Datapath {
    /// Attaches both programs to the host's end of a pod's interface, in this thread's network namespace;
    /// what is attached already is replaced without a gap.
    ///
    /// # Errors
    /// The interface is gone or the kernel has no clsact.
    pub fn attach_pod(&self, interface: &str) -> Result<(), Error> {
        add_clsact(interface)?;
        let mut programs = self.programs.write().unwrap_or_else(PoisonError::into_inner);
        filter(&mut programs.pod_ingress, interface, TcAttachType::Egress)?;
        filter(&mut programs.pod_egress, interface, TcAttachType::Ingress)
    }

    /// Attaches the program of uplinks; again: replaces it without a gap.
    ///
    /// # Errors
    /// The interface is gone or the kernel has neither TCX nor clsact.
    pub fn attach_uplink(&self, ifindex: u32, interface: &str) -> Result<UplinkHook, Error> {
        let mut programs = self.programs.write().unwrap_or_else(PoisonError::into_inner);
        let pin = self.pins.uplink(ifindex, interface);
        if replace_pinned(&mut programs.uplink_in, interface, &pin)? {
            return Ok(UplinkHook::Tcx);
        }
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        match programs.uplink_in.attach_with_options(interface, TcAttachType::Ingress, order) {
            Ok(id) => {
                let link = programs.uplink_in.take_link(id).map_err(attach_error(interface))?;
                let link: FdLink = link.try_into().map_err(attach_error(interface))?;
                let pinned = link.pin(&pin).map_err(attach_error(interface))?;
                // The pin holds the link; dropping the handle only closes our descriptor.
                drop(pinned);
                Ok(UplinkHook::Tcx)
            }
            Err(error) if is_unknown(&error) && !has_tcx(interface)? => {
                add_clsact(interface)?;
                filter(&mut programs.uplink_in, interface, TcAttachType::Ingress)?;
                Ok(UplinkHook::Clsact)
            }
            Err(error) => Err(attach_error(interface)(error)),
        }
    }

    /// Detaches the program from an uplink that is one no longer.
    ///
    /// # Errors
    /// The pin cannot be removed, or the kernel refuses.
    pub fn detach_uplink(&self, ifindex: u32, interface: &str) -> Result<(), Error> {
        let pin = self.pins.uplink(ifindex, interface);
        if pin.exists() {
            return std::fs::remove_file(&pin).map_err(Error::path("unpin the link", &pin));
        }
        // A filter goes with its device, whose name another one may have by now.
        if nix::net::if_::if_nametoindex(interface) != Ok(ifindex) {
            return Ok(());
        }
        let link = SchedClassifierLink::attached(interface, TcAttachType::Ingress, PRIORITY, HANDLE, None)
            .map_err(attach_error(interface))?;
        match detach(link) {
            Err(error) if is_errno(&error, libc::ENOENT) || is_errno(&error, libc::EINVAL) => Ok(()),
            other => other.map_err(attach_error(interface)),
        }
    }

    /// Interfaces whose uplink link is pinned, by index and name.
    #[must_use]
    pub fn pinned_uplinks(&self) -> Vec<(u32, String)> {
        self.pins.uplinks()
    }

    /// Interfaces in this thread's network namespace that have the uplinks' program as a filter, whoever put
    /// it there, by index and name. Asks for each interface: milliseconds with a thousand pods.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn filtered_uplinks(&self) -> Result<Vec<(u32, String)>, Error> {
        let uplinks = filters()?.into_iter().filter(|filter| filter.program == UPLINK);
        Ok(uplinks.map(|filter| (filter.ifindex, filter.interface)).collect())
    }
}

/// Puts these programs in the place of ours on every interface of this thread's network namespace, and into
/// the links pinned at `pins`, which it pins at `also` too. Counts in `swapped`. An interface that goes away
/// meanwhile is no error.
pub(super) fn swap(
    programs: &mut Programs,
    pins: &Pins,
    also: Option<&Pins>,
    swapped: &mut usize,
) -> Result<(), Error> {
    for (ifindex, interface) in pins.uplinks() {
        let pin = pins.uplink(ifindex, &interface);
        if !replace_pinned(&mut programs.uplink_in, &interface, &pin)? {
            continue;
        }
        *swapped += 1;
        if let Some(also) = also {
            let second = also.uplink(ifindex, &interface);
            unpin(&second)?;
            let link = PinnedLink::from_pin(&pin).map_err(attach_error(&interface))?;
            drop(FdLink::from(link).pin(&second).map_err(attach_error(&interface))?);
        }
    }
    for found in filters()? {
        let Some(program) = programs.by_name(found.program) else { continue };
        match replace_filter(program, &found.interface, found.hook) {
            Ok(()) => *swapped += 1,
            Err(error) if gone(&error) => {}
            Err(error) => return Err(attach_error(&found.interface)(error)),
        }
    }
    Ok(())
}

/// Puts the program in the place of the one that the filter has.
fn replace_filter(
    program: &mut SchedClassifier,
    interface: &str,
    hook: TcAttachType,
) -> Result<(), ProgramError> {
    let there = SchedClassifierLink::attached(interface, hook, PRIORITY, HANDLE, None)?;
    let id = program.attach_to_link(there)?;
    // Dropping it would take the filter away.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

/// True if the interface, or the filter on it, is not there any more.
fn gone(error: &ProgramError) -> bool {
    is_errno(error, libc::ENODEV)
        || is_errno(error, libc::ENOENT)
        || is_errno(error, libc::EINVAL)
        || matches!(error, ProgramError::UnknownInterface { .. })
}

/// Puts the program into a pinned link; false if there is none, or only one of a device that is gone.
fn replace_pinned(program: &mut SchedClassifier, interface: &str, pin: &Path) -> Result<bool, Error> {
    let link = match PinnedLink::from_pin(pin) {
        Ok(link) => FdLink::from(link),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            return Ok(false);
        }
        Err(error) => return Err(attach_error(interface)(error)),
    };
    let link: SchedClassifierLink = link.try_into().map_err(attach_error(interface))?;
    match program.attach_to_link(link) {
        Ok(id) => {
            // Kept alive by its pin; our descriptor is not needed.
            drop(program.take_link(id).map_err(attach_error(interface))?);
            Ok(true)
        }
        Err(error) if is_errno(&error, libc::ENOLINK) => {
            std::fs::remove_file(pin).map_err(Error::path("unpin the link", pin))?;
            Ok(false)
        }
        Err(error) => Err(attach_error(interface)(error)),
    }
}

fn add_clsact(interface: &str) -> Result<(), Error> {
    match qdisc_add_clsact(interface) {
        Ok(()) => Ok(()),
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        Err(error) => Err(attach_error(interface)(error)),
    }
}

/// Attaches a filter that stays when its handle goes.
pub(super) fn filter(
    program: &mut SchedClassifier,
    interface: &str,
    hook: TcAttachType,
) -> Result<(), Error> {
    let options = TcAttachOptions::Netlink(NlOptions { priority: PRIORITY, handle: HANDLE, classid: None });
    let id = match program.attach_with_options(interface, hook, options) {
        Err(error) if is_errno(&error, libc::EEXIST) => {
            let there = SchedClassifierLink::attached(interface, hook, PRIORITY, HANDLE, None)
                .map_err(attach_error(interface))?;
            program.attach_to_link(there)
        }
        other => other,
    };
    let link = program.take_link(id.map_err(attach_error(interface))?).map_err(attach_error(interface))?;
    std::mem::forget(link);
    Ok(())
}

fn detach(link: SchedClassifierLink) -> Result<(), ProgramError> {
    aya::programs::links::Link::detach(link)
}

/// Whether this kernel has TCX, asked of the kernel: one that has it can tell what is attached by it.
fn has_tcx(interface: &str) -> Result<bool, Error> {
    match SchedClassifier::query_tcx(interface, TcAttachType::Ingress) {
        Ok(_) => Ok(true),
        Err(error) if is_unknown(&error) => Ok(false),
        Err(error) => Err(attach_error(interface)(error)),
    }
}

/// What a kernel answers that does not know an attach type, though not only then.
fn is_unknown(error: &ProgramError) -> bool {
    is_errno(error, libc::EINVAL) || is_errno(error, libc::EOPNOTSUPP)
}

fn is_errno(error: &ProgramError, errno: i32) -> bool {
    let found = match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        ProgramError::IOError(error) => error.raw_os_error(),
        ProgramError::TcError(TcError::NetlinkError(error)) => error.raw_os_error(),
        _ => None,
    };
    found == Some(errno)
}

fn attach_error<E: std::error::Error + Send + Sync + 'static>(interface: &str) -> impl Fn(E) -> Error {
    move |source| Error::Attach { interface: interface.to_owned(), source: Box::new(source) }
}
