//! What the kernel refused, in words: the operation with its object, the errno, and the kernel's own hint.

use crate::net::netns;
use netlink_packet_core::{ErrorMessage, NlasIterator};
use std::io;

/// `NLMSGERR_ATTR_MSG` of `enum nlmsgerr_attrs` (`linux/netlink.h`).
const HINT: u16 = 1;

/// Length of the request's header, which precedes the attributes of a capped error message.
const REQUEST_HEADER: usize = 16;

/// A netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket could be opened.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    /// The namespace to open it in cannot be used.
    #[error(transparent)]
    NetNs(netns::Error),
    /// The kernel said no.
    #[error("{operation}{hint}")]
    Kernel {
        /// What was asked, with the object's name.
        operation: String,
        /// The kernel's explanation in brackets, or nothing.
        hint: String,
        /// Its errno.
        #[source]
        errno: io::Error,
    },
    /// The kernel did not answer in time; whether it did it is not known.
    #[error("{operation}: no answer from the kernel")]
    Timeout {
        /// What was asked.
        operation: String,
    },
    /// The socket broke or its thread ended; whether the kernel did it is not known.
    #[error("{operation}: the netlink connection is closed")]
    Closed {
        /// What was asked.
        operation: String,
    },
    /// A listing changed under every attempt to read it.
    #[error("{operation}: interrupted by changes again and again")]
    Interrupted {
        /// What was asked.
        operation: String,
    },
    /// The kernel acknowledged a question without an answer that can be decoded.
    #[error("{operation}: the kernel's answer cannot be decoded")]
    Undecodable {
        /// What was asked.
        operation: String,
    },
}

impl Error {
    pub(super) fn from_kernel(operation: String, message: &ErrorMessage) -> Self {
        let hint = hint(&message.header).map(|text| format!(" ({text})")).unwrap_or_default();
        Self::Kernel { operation, hint, errno: message.to_io() }
    }

    pub(super) fn from_code(operation: String, code: i32) -> Self {
        Self::Kernel {
            operation,
            hint: String::new(),
            errno: io::Error::from_raw_os_error(code.saturating_neg()),
        }
    }

    /// The kernel's errno, if it was the kernel that said no.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { errno, .. } => errno.raw_os_error(),
            _ => None,
        }
    }

    /// `EEXIST`: the object is there already.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// `ENODEV`, `ENOENT`, `ESRCH`, `EADDRNOTAVAIL`: the link, route, rule or address is not there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self.errno(), Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL))
    }
}

/// The extended acknowledgement's text (`Documentation/userspace-api/netlink/intro.rst`, "Extended ACK").
fn hint(after_code: &[u8]) -> Option<String> {
    let attributes = after_code.get(REQUEST_HEADER..)?;
    NlasIterator::new(attributes).map_while(Result::ok).find(|attribute| attribute.kind() == HINT).and_then(
        |attribute| {
            let text = String::from_utf8_lossy(attribute.value());
            let text = text.trim_end_matches('\0');
            (!text.is_empty()).then(|| text.to_owned())
        },
    )
}
