//! The texts a configuration is read from, and positions within them.
//!
//! Owns the mapping from a byte range ([`Spot`]) to what a person can look up: file, line and column, or
//! the name of an environment variable ([`Origin`]). Lines and columns count from 1, columns in characters.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where a value in force comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The config file.
    File {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// The environment variable of this name.
    Environment(String),
    /// Neither: what netd takes when nothing is said.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Self::Environment(name) => f.write_str(name),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A byte range of one of the [`Sources`]. Ordered as a reader meets them: the file, then the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    /// Index into [`Sources`].
    pub(super) source: usize,
    /// First byte.
    pub(super) start: usize,
    /// One past the last byte.
    pub(super) end: usize,
}

#[derive(Debug)]
enum Name {
    File(PathBuf),
    Environment(String),
}

#[derive(Debug)]
struct Source {
    name: Name,
    text: String,
}

/// All texts of one load, by index.
#[derive(Debug, Default)]
pub(super) struct Sources(Vec<Source>);

impl Sources {
    /// Adds the config file.
    pub(super) fn add_file(&mut self, path: &Path, text: String) -> usize {
        self.add(Name::File(path.to_owned()), text)
    }

    /// Adds the value of an environment variable.
    pub(super) fn add_variable(&mut self, name: &str, text: String) -> usize {
        self.add(Name::Environment(name.to_owned()), text)
    }

    fn add(&mut self, name: Name, text: String) -> usize {
        self.0.push(Source { name, text });
        self.0.len() - 1
    }

    /// The whole text.
    pub(super) fn text(&self, source: usize) -> &str {
        self.0.get(source).map_or("", |s| &s.text)
    }

    /// A spot that covers a whole text.
    pub(super) fn whole(&self, source: usize) -> Spot {
        Spot { source, start: 0, end: self.text(source).len() }
    }

    /// The text at a spot; empty if it does not lie on character boundaries.
    pub(super) fn slice(&self, at: Spot) -> &str {
        self.text(at.source).get(at.start..at.end).unwrap_or("")
    }

    /// True if the spot is in the value of an environment variable.
    pub(super) fn is_variable(&self, at: Spot) -> bool {
        self.0.get(at.source).is_some_and(|s| matches!(s.name, Name::Environment(_)))
    }

    /// What a person calls this spot.
    pub(super) fn origin(&self, at: Spot) -> Origin {
        match self.0.get(at.source) {
            None => Origin::Default,
            Some(Source { name: Name::Environment(name), .. }) => Origin::Environment(name.clone()),
            Some(Source { name: Name::File(path), text }) => {
                let (line, column, _) = locate(text, at.start);
                Origin::File { path: path.clone(), line, column }
            }
        }
    }

    /// The name at a spot: of a variable, its own; elsewhere what stands there.
    pub(super) fn name_excerpt(&self, at: Spot) -> Excerpt {
        let excerpt = self.excerpt(at);
        match &excerpt.origin {
            Origin::Environment(name) => Excerpt { indent: 0, width: name.chars().count(), ..excerpt },
            Origin::File { .. } | Origin::Default => excerpt,
        }
    }

    /// The spot with its line of text, ready to be shown without the sources.
    pub(super) fn excerpt(&self, at: Spot) -> Excerpt {
        let origin = self.origin(at);
        let text = self.text(at.source);
        match &origin {
            Origin::Environment(name) => Excerpt {
                line: format!("{name}={text}"),
                indent: name.chars().count() + 1 + chars_between(text, 0, at.start),
                width: chars_between(text, at.start, at.end),
                origin,
            },
            Origin::File { .. } | Origin::Default => {
                let (_, column, start) = locate(text, at.start);
                let line = text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or("");
                let end = at.end.min(start + line.len());
                Excerpt {
                    line: line.to_owned(),
                    indent: column - 1,
                    width: chars_between(text, at.start, end),
                    origin,
                }
            }
        }
    }
}

/// One line of a source and the part of it that is meant, counted in characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Excerpt {
    /// Where it is.
    pub(super) origin: Origin,
    /// The line, or `NAME=value` of a variable.
    pub(super) line: String,
    /// Characters before the part that is meant.
    pub(super) indent: usize,
    /// Length of that part; 0 if it is a place between characters.
    pub(super) width: usize,
}

/// Line and column (from 1) of a byte, and the byte at which its line starts.
fn locate(text: &str, byte: usize) -> (usize, usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |i| i + 1);
    let line = before.bytes().filter(|b| *b == b'\n').count() + 1;
    (line, chars_between(text, start, before.len()) + 1, start)
}

fn chars_between(text: &str, start: usize, end: usize) -> usize {
    text.get(start..end).map_or(0, |part| part.chars().count())
}
