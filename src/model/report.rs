//! What a source of state could not use, and where it stands.
//!
//! A [`Report`] is the whole present set, not a change: whoever shows it (status, readiness, metrics) needs
//! no history. The store logs what came and what went.

use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::path::{Path, PathBuf};

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something the user wrote is not in force.
    Error,
    /// Something was ignored, and the rest is in force.
    Warning,
}

/// One problem, ordered by where it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Problem {
    /// The file or folder.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Line, from 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub line: Option<u32>,
    /// Column in characters, from 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub column: Option<u32>,
    /// How much it matters.
    pub severity: Severity,
    /// Kind and name of the object, if one is concerned: `Service shop/web`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub object: Option<String>,
    /// What is wrong, with the field if one is concerned.
    pub message: String,
}

/// A name that is not UTF-8 is shown as well as can be, rather than not at all.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// The state of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The source has given a model at least once. Until then the errors among `problems` say why not.
    pub synced: bool,
    /// Files in force.
    pub files: usize,
    /// Objects in force.
    pub objects: usize,
    /// All present problems, in order.
    pub problems: Vec<Problem>,
}

impl Report {
    /// The problems that keep something out of force.
    pub fn errors(&self) -> impl Iterator<Item = &Problem> {
        self.problems.iter().filter(|problem| problem.severity == Severity::Error)
    }
}
