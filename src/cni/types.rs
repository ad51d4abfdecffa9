//! What CNI says and is told, as types that cannot be wrong. Pure.
//!
//! [`Invocation::parse`] turns environment and standard input into a [`Command`]; [`result`] is what an
//! attachment looks like in each version of the format; [`Error`] is the specification's error object.
//! The requests within a [`Command`] travel as JSON from plugin to agent, both of one binary.

mod attachment;
mod environment;
mod network;
mod request;
pub mod result;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use std::fmt;

pub use attachment::Attachment;
pub use environment::Verb;
pub use network::Settings;
pub use request::{Add, Check, Command, Del, Gc, Invocation, Status};
pub use result::AttachResult;

/// Name of the network that netd installs, and of the plugin's type.
pub const NETWORK: &str = "netd";

/// A version of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Version {
    /// Results name the version of each address.
    #[serde(rename = "0.3.1")]
    V0_3_1,
    /// CHECK.
    #[serde(rename = "0.4.0")]
    V0_4_0,
    /// No version of addresses.
    #[serde(rename = "1.0.0")]
    V1_0_0,
    /// GC, STATUS, the MTU in results.
    #[serde(rename = "1.1.0")]
    V1_1_0,
}

impl Version {
    /// All that netd speaks.
    pub const ALL: [Self; 4] = [Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// The newest.
    pub const LATEST: Self = Self::V1_1_0;

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// From what is written, if netd speaks it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    fn list() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Error code: below 100 the specification's, from 100 netd's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Code(pub u32);

impl Code {
    /// Incompatible CNI version.
    pub const VERSION: Self = Self(1);
    /// Unsupported field in the network configuration; key and value are in the message.
    pub const UNSUPPORTED_FIELD: Self = Self(2);
    /// The container is unknown.
    pub const UNKNOWN_CONTAINER: Self = Self(3);
    /// An environment variable is missing or invalid; its name is in the message.
    pub const ENVIRONMENT: Self = Self(4);
    /// Input or output failed.
    pub const IO: Self = Self(5);
    /// Something could not be decoded.
    pub const DECODE: Self = Self(6);
    /// The network configuration is invalid.
    pub const CONFIG: Self = Self(7);
    /// The same request may succeed later.
    pub const TRY_LATER: Self = Self(11);
    /// The plugin cannot serve ADD.
    pub const UNAVAILABLE: Self = Self(50);
    /// The plugin cannot serve ADD, and existing containers may be cut off.
    pub const LIMITED: Self = Self(51);
    /// ADD for an attachment that exists.
    pub const DUPLICATE: Self = Self(100);
    /// ADD of an interface whose name is taken inside the container.
    pub const NAME_TAKEN: Self = Self(101);
    /// The pod asks for an address it cannot have.
    pub const FIXED_ADDRESS: Self = Self(102);
    /// The kernel refused a link, a route or a map row.
    pub const KERNEL: Self = Self(103);
    /// CHECK found something other than ADD made.
    pub const DIFFERS: Self = Self(104);
}

/// The specification's error, without the version it is printed with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// What kind.
    pub code: Code,
    /// What failed, in one line.
    pub msg: String,
    /// Why, and what can be done about it; may be empty.
    pub details: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details)?;
        }
        write!(f, " (CNI code {})", self.code.0)
    }
}

impl Error {
    /// With nothing more to say than the message.
    #[must_use]
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// With the reason.
    #[must_use]
    pub fn because(code: Code, msg: impl Into<String>, details: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: details.into() }
    }

    /// As it is printed.
    #[must_use]
    pub fn object(&self, version: Version) -> ErrorObject {
        ErrorObject {
            cni_version: version.as_str().to_owned(),
            code: self.code,
            msg: self.msg.clone(),
            details: self.details.clone(),
        }
    }
}

/// The specification's error object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorObject {
    /// Version in use.
    #[serde(rename = "cniVersion")]
    pub cni_version: String,
    /// What kind.
    pub code: Code,
    /// What failed.
    pub msg: String,
    /// Why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// Answer to VERSION.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VersionInfo {
    /// As it was asked with.
    #[serde(rename = "cniVersion")]
    pub cni_version: String,
    /// All that netd speaks.
    #[serde(rename = "supportedVersions")]
    pub supported: [Version; 4],
}

impl VersionInfo {
    /// In answer to a question in `version`.
    #[must_use]
    pub const fn new(version: String) -> Self {
        Self { cni_version: version, supported: Version::ALL }
    }
}
