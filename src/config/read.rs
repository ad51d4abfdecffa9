//! Reading typed values out of a tree, collecting every error instead of stopping at the first.
//!
//! Each key is asked for once, by name, kind and default. Asking is what makes a key known: whatever was
//! not asked for is an unknown key, and the keys that were are what suggestions are made from. After an
//! error the default stands in, so that reading goes on; a configuration with a problem is never used.

use super::problem::Problem;
use super::source::{Origin, Sources, Spot};
use super::tree::{Entry, Kind, Node};
use std::collections::BTreeMap;

/// Why a scalar is refused, to follow the key's name; `label` stands beside the caret.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) message: String,
    pub(super) label: String,
}

impl Fault {
    pub(super) fn new(message: impl Into<String>, label: impl Into<String>) -> Self {
        Self { message: message.into(), label: label.into() }
    }
}

/// A scalar as it is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scalar<'t> {
    pub(super) text: &'t str,
    pub(super) quoted: bool,
}

/// A kind of value: how to read it, and what to call it in an error.
pub(super) struct ValueKind<T> {
    /// `a duration such as `30s``.
    pub(super) what: &'static str,
    /// Reads one.
    pub(super) parse: fn(Scalar<'_>) -> Result<T, Fault>,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) at: Spot,
}

/// Reads one tree.
pub(super) struct Reader<'t> {
    sources: &'t Sources,
    problems: Vec<(Option<Spot>, Problem)>,
    origins: BTreeMap<String, Origin>,
    unknown: Vec<Unknown<'t>>,
}

struct Unknown<'t> {
    section: String,
    entry: &'t Entry,
    siblings: Vec<&'static str>,
}

/// What reading gave beside the values.
pub(super) struct Outcome {
    /// In the order of the sources.
    pub(super) problems: Vec<Problem>,
    /// Every key asked for, by its dotted path.
    pub(super) origins: BTreeMap<String, Origin>,
}

impl<'t> Reader<'t> {
    pub(super) fn new(sources: &'t Sources) -> Self {
        Self { sources, problems: Vec::new(), origins: BTreeMap::new(), unknown: Vec::new() }
    }

    /// Reads the whole tree.
    pub(super) fn root<T>(&mut self, node: &'t Node, read: impl FnOnce(&mut Section<'_, 't>) -> T) -> T {
        self.table(String::new(), Some(node), read)
    }

    fn table<T>(
        &mut self,
        path: String,
        node: Option<&'t Node>,
        read: impl FnOnce(&mut Section<'_, 't>) -> T,
    ) -> T {
        let entries: &[Entry] = match node {
            None => &[],
            Some(Node { kind: Kind::Null, .. }) => &[],
            Some(Node { kind: Kind::Table(entries), .. }) => entries,
            Some(Node { at, kind }) => {
                let message = if path.is_empty() {
                    format!("a configuration is made of sections, not {}", kind.name())
                } else {
                    format!("`{path}` is a section, not {}", kind.name())
                };
                self.problem(*at, message, "expected keys with values");
                &[]
            }
        };
        let mut section = Section { reader: self, path, entries, known: Vec::new() };
        let value = read(&mut section);
        let Section { path, known, .. } = section;
        for entry in entries.iter().filter(|e| !known.contains(&e.key.as_str())) {
            self.unknown.push(Unknown { section: path.clone(), entry, siblings: known.clone() });
        }
        value
    }

    /// Notes a problem at a place.
    pub(super) fn problem(&mut self, at: Spot, message: impl Into<String>, label: impl Into<String>) {
        self.push(at, Problem::at(self.sources.excerpt(at), message, label));
    }

    /// Notes a problem between two places.
    pub(super) fn conflict(&mut self, at: Spot, message: String, label: &str, other: Spot, also: &str) {
        let problem =
            Problem::at(self.sources.excerpt(at), message, label).and(self.sources.excerpt(other), also);
        self.push(at, problem);
    }

    /// Notes a problem that is not in any source.
    pub(super) fn push_nowhere(&mut self, problem: Problem) {
        self.problems.push((None, problem));
    }

    fn push(&mut self, at: Spot, problem: Problem) {
        self.problems.push((Some(at), problem));
    }

    /// Reports what was never asked for, and gives the result.
    pub(super) fn finish(mut self) -> Outcome {
        for Unknown { section, entry, siblings } in std::mem::take(&mut self.unknown) {
            let message = if section.is_empty() {
                format!("unknown section `{}`", entry.key)
            } else {
                format!("unknown key `{}` in `{section}`", entry.key)
            };
            let variable = self.sources.is_variable(entry.at);
            let full =
                |name: &str| if section.is_empty() { name.into() } else { format!("{section}.{name}") };
            let suggestion = closest(&entry.key, &siblings)
                .map(full)
                .or_else(|| self.origins.keys().find(|k| last(k) == entry.key).cloned());
            let label = suggestion.as_deref().map_or_else(String::new, |key| match key {
                key if variable => format!("did you mean {}?", super::environment::variable(key)),
                key if siblings.contains(&last(key)) => format!("did you mean `{}`?", last(key)),
                key => format!("did you mean `{key}`?"),
            });
            let mut problem = Problem::at(self.sources.name_excerpt(entry.at), message, label);
            if suggestion.is_none() {
                let of = if section.is_empty() { "sections".into() } else { format!("keys of `{section}`") };
                problem = problem.help(format!("{of}: {}", siblings.join(", ")));
            }
            self.push(entry.at, problem);
        }
        self.problems.sort_by_key(|(at, _)| (at.is_none(), *at));
        Outcome { problems: self.problems.into_iter().map(|(_, p)| p).collect(), origins: self.origins }
    }
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// The name that was probably meant: the same but for case, `-` and `_`, or a slip or two away.
pub(super) fn closest<'n>(written: &str, names: &[&'n str]) -> Option<&'n str> {
    let fold =
        |s: &str| s.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let folded = fold(written);
    // Far longer than any name: not worth a quadratic comparison.
    if folded.is_empty() || folded.len() > 64 {
        return None;
    }
    names
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&folded, &fold(name)), *name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min()
        .map(|(_, name)| name)
}

/// One mapping being read.
pub(super) struct Section<'r, 't> {
    reader: &'r mut Reader<'t>,
    path: String,
    entries: &'t [Entry],
    known: Vec<&'static str>,
}

impl<'t> Section<'_, 't> {
    /// For problems found by looking at several values together.
    pub(super) fn reader(&mut self) -> &mut Reader<'t> {
        self.reader
    }

    /// Reads a section of this section; one that is not there is empty.
    pub(super) fn section<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'_, 't>) -> T,
    ) -> T {
        let node = self.ask(key);
        let path = self.full(key);
        self.reader.table(path, node, read)
    }

    /// Reads a scalar; none if it is not there or wrong.
    pub(super) fn scalar<T>(&mut self, key: &'static str, kind: &ValueKind<T>) -> Option<Located<T>> {
        let node = self.value(key)?;
        self.one(key, node, kind)
    }

    /// Reads a list of scalars; without those that are wrong. A variable separates them by commas.
    pub(super) fn list<T>(&mut self, key: &'static str, kind: &ValueKind<T>) -> Vec<Located<T>> {
        let Some(node) = self.value(key) else { return Vec::new() };
        match &node.kind {
            Kind::List(items) => items.iter().filter_map(|item| self.one(key, item, kind)).collect(),
            Kind::Plain(_) if self.reader.sources.is_variable(node.at) => {
                let items = comma_separated(self.reader.sources, node.at);
                items
                    .filter_map(|(at, text)| self.parse(key, at, Scalar { text, quoted: false }, kind))
                    .collect()
            }
            Kind::Plain(text) | Kind::Quoted(text) => {
                let message = format!("`{}` must be a list", self.full(key));
                self.reader.problem(node.at, message, format!("write `[{text}]`"));
                Vec::new()
            }
            Kind::Null => {
                self.no_value(key, node, "`[]`");
                Vec::new()
            }
            Kind::Table(_) => {
                let message = format!("`{}` must be a list, not {}", self.full(key), node.kind.name());
                self.reader.problem(node.at, message, "expected a list");
                Vec::new()
            }
        }
    }

    /// The dotted path of a key of this section.
    pub(super) fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn ask(&mut self, key: &'static str) -> Option<&'t Node> {
        self.known.push(key);
        self.entries.iter().find(|e| e.key == key).map(|e| &e.value)
    }

    /// The node of a key that holds a value, with its origin noted.
    fn value(&mut self, key: &'static str) -> Option<&'t Node> {
        let node = self.ask(key);
        let origin = node.map_or(Origin::Default, |n| self.reader.sources.origin(n.at));
        self.reader.origins.insert(self.full(key), origin);
        node
    }

    fn one<T>(&mut self, key: &'static str, node: &'t Node, kind: &ValueKind<T>) -> Option<Located<T>> {
        let scalar = match &node.kind {
            Kind::Plain(text) => Scalar { text, quoted: false },
            Kind::Quoted(text) => Scalar { text, quoted: true },
            Kind::Null => {
                self.no_value(key, node, kind.what);
                return None;
            }
            other => {
                let message = format!("`{}` must be {}, not {}", self.full(key), kind.what, other.name());
                self.reader.problem(node.at, message, format!("expected {}", kind.what));
                return None;
            }
        };
        self.parse(key, node.at, scalar, kind)
    }

    fn no_value(&mut self, key: &'static str, node: &Node, what: &str) {
        // Its place is after the key, often at the start of the next line: show the key instead.
        let at =
            self.entries.iter().find(|e| std::ptr::eq(&raw const e.value, node)).map_or(node.at, |e| e.at);
        let message = format!("`{}` has no value", self.full(key));
        self.reader.problem(at, message, format!("write {what}, or remove the line for the default"));
    }

    fn parse<T>(
        &mut self,
        key: &'static str,
        at: Spot,
        scalar: Scalar<'_>,
        kind: &ValueKind<T>,
    ) -> Option<Located<T>> {
        match (kind.parse)(scalar) {
            Ok(value) => Some(Located { value, at }),
            Err(fault) => {
                let message = format!("`{}` {}", self.full(key), fault.message);
                self.reader.problem(at, message, fault.label);
                None
            }
        }
    }
}

/// The parts of a variable's value, each with its place; an empty value is an empty list.
fn comma_separated(sources: &Sources, at: Spot) -> impl Iterator<Item = (Spot, &str)> {
    let whole = sources.slice(at);
    let mut next = at.start;
    let parts = if whole.trim().is_empty() { None } else { Some(whole.split(',')) };
    parts.into_iter().flatten().map(move |part| {
        let start = next + (part.len() - part.trim_start().len());
        next += part.len() + 1;
        let text = part.trim();
        (Spot { source: at.source, start, end: start + text.len() }, text)
    })
}
