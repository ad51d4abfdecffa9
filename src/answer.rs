//! What a running agent answers to the questions of the command line: one document per question.
//!
//! Each document names its schema and its version (`"schema": "netd.status/v1"`). Within a version fields
//! are only added; a field that goes or changes its meaning makes a new version. `docs/questions.md` says
//! what each field means, and a test holds it to these types. Numbers of the kernel are there beside the
//! names they stand for; `null` means not known, or none.
//!
//! The agent fills these types in, the command line reads them: neither knows the other's internals.

pub mod conntrack;
pub mod endpoints;
pub mod event;
pub mod names;
pub mod policy;
pub mod services;
pub mod status;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A document, or a line of a stream of them.
pub trait Answer: Serialize + DeserializeOwned {
    /// Name and version.
    const SCHEMA: &'static str;
}

/// A document with the name of its schema.
#[derive(Debug, Serialize)]
pub struct Document<'a, T> {
    schema: &'static str,
    #[serde(flatten)]
    body: &'a T,
}

/// Names a document's schema.
pub const fn document<T: Answer>(body: &T) -> Document<'_, T> {
    Document { schema: T::SCHEMA, body }
}

/// Why a document cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another netd's.
    #[error("the agent answers in {found}, this netd reads {}: ask with the agent's own netd", known)]
    Schema {
        /// What it says it is.
        found: String,
        /// What was asked for.
        known: &'static str,
    },
    /// Not what its schema says.
    #[error("the agent's answer is not what {schema} says")]
    Shape {
        /// What it says it is.
        schema: &'static str,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

/// Reads a document, if it is of the version that this netd knows.
///
/// # Errors
/// It is another's, or is not what it says.
pub fn read<T: Answer>(document: &Value) -> Result<T, Error> {
    let found = document.get("schema").and_then(Value::as_str).unwrap_or("no schema at all");
    if found != T::SCHEMA {
        return Err(Error::Schema { found: found.to_owned(), known: T::SCHEMA });
    }
    T::deserialize(document).map_err(|source| Error::Shape { schema: T::SCHEMA, source })
}

/// Why a question was not answered: the body of an answer with a status of 400, 404 or 500.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// In one line, with what could have been meant.
    pub error: String,
    /// Names that could have been meant.
    #[serde(default)]
    pub suggestions: Vec<String>,
}

/// Name of an IANA protocol number.
#[must_use]
pub fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
