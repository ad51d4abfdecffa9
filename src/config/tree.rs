//! A configuration as a tree that remembers where each part stands.
//!
//! YAML is parsed once, by serde-saphyr, without resolving plain scalars: `flows: 010` stays the text `010`
//! until the key that asks for it says what it should be. The environment is laid over the tree before it
//! is read, so a value from a variable passes through the same checks as one from the file.
//!
//! This is a tree and not derived serde structs because serde stops at the first error and forgets where
//! values came from; here every error of a file is found in one pass, and every value keeps its origin.

use super::problem::Problem;
use super::source::{Sources, Spot};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::NonFiniteFloatPolicy;
use serde_saphyr::{Location, MessageFormatter as _, Spanned, UserMessageFormatter};
use std::fmt;

/// Deepest nesting read: netd's own keys need four levels.
const MAX_DEPTH: usize = 32;

/// A node and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) at: Spot,
    pub(super) kind: Kind,
}

/// What a node is.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    /// Nothing, `~` or `null`.
    Null,
    /// A scalar without quotes: its meaning depends on who asks.
    Plain(String),
    /// A scalar in quotes: a string.
    Quoted(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file; keys are unique.
    Table(Vec<Entry>),
}

impl Kind {
    /// What a person calls it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Plain(_) => "a plain value",
            Self::Quoted(_) => "a string in quotes",
            Self::List(_) => "a list",
            Self::Table(_) => "a section",
        }
    }
}

/// One key of a mapping.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: Spot,
    pub(super) value: Node,
}

/// Parses the YAML document that is the whole of `source`.
pub(super) fn parse(sources: &Sources, source: usize) -> Result<Node, Problem> {
    let text = sources.text(source);
    let mut budget = serde_saphyr::Budget::default();
    budget.max_depth = MAX_DEPTH;
    let options = serde_saphyr::options! {
        budget: Some(budget),
        strict_booleans: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    let raw = serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options).map_err(|error| {
        let at = error.location().map_or(Spot { source, start: 0, end: 0 }, |l| spot(text, source, l));
        let message = UserMessageFormatter.format_message(&error).into_owned();
        let label = match error.without_snippet() {
            serde_saphyr::Error::DuplicateMappingKey { .. } => "given twice in this section",
            serde_saphyr::Error::MultipleDocuments { .. } => "a second document begins here",
            _ => hint(&message),
        };
        Problem::at(sources.excerpt(at), format!("not valid YAML: {message}"), label)
    })?;
    convert(sources, source, raw)
}

/// What most often stands behind a message of the scanner, whose place is where it noticed.
fn hint(message: &str) -> &'static str {
    let hints = [
        ("tabs disallowed", "indent with spaces"),
        ("illegal placement of ':'", "is a bracket or quote above left open?"),
        ("mapping values are not allowed", "is this indented as meant? a value that holds `: ` needs quotes"),
        ("reference to unknown value", "a value that begins with `*` needs quotes"),
        ("unexpected character", "a value that begins so needs quotes"),
    ];
    hints.into_iter().find(|(part, _)| message.contains(part)).map_or("", |(_, hint)| hint)
}

/// What serde-saphyr's untyped view can tell apart.
enum Raw {
    Null,
    /// A number or boolean: only its spelling matters.
    Typed,
    Text(String),
    List(Vec<Spanned<Raw>>),
    Table(Vec<(Spanned<Raw>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Typed)
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Table(entries))
    }
}

fn convert(sources: &Sources, source: usize, raw: Spanned<Raw>) -> Result<Node, Problem> {
    let at = spot(sources.text(source), source, raw.defined);
    let written = sources.slice(at);
    let kind = match raw.value {
        Raw::Null => Kind::Null,
        Raw::Typed => Kind::Plain(written.to_owned()),
        // Nothing else may begin with these: YAML 1.2.2 §5.3, indicator characters.
        Raw::Text(text) if written.starts_with(['"', '\'', '|', '>']) => Kind::Quoted(text),
        Raw::Text(text) => Kind::Plain(text),
        Raw::List(items) => Kind::List(
            items.into_iter().map(|item| convert(sources, source, item)).collect::<Result<_, _>>()?,
        ),
        Raw::Table(entries) => {
            let mut table = Vec::with_capacity(entries.len());
            for (key, value) in entries {
                let key = convert(sources, source, key)?;
                let name = match key.kind {
                    Kind::Plain(name) | Kind::Quoted(name) => name,
                    other => {
                        let message = format!("a key must be a name, not {}", other.name());
                        return Err(Problem::at(sources.excerpt(key.at), message, ""));
                    }
                };
                table.push(Entry { key: name, at: key.at, value: convert(sources, source, value)? });
            }
            Kind::Table(table)
        }
    };
    Ok(Node { at, kind })
}

/// Byte range of a location; errors of the scanner carry character offsets only.
fn spot(text: &str, source: usize, location: Location) -> Spot {
    let span = location.span();
    let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(text.len());
    let (start, end) = match (span.byte_offset(), span.byte_len()) {
        (Some(start), Some(len)) => (bytes(start), bytes(start.saturating_add(len))),
        _ => {
            let nth = |n: u64| {
                let n = usize::try_from(n).unwrap_or(usize::MAX);
                text.char_indices().nth(n).map_or(text.len(), |(byte, _)| byte)
            };
            (nth(span.offset()), nth(span.offset().saturating_add(span.len())))
        }
    };
    Spot { source, start, end }
}

/// Puts a variable's value at `path`, over what the file says there. A scalar or list in the way is left
/// alone: reading the tree reports it.
pub(super) fn overlay(root: &mut Node, path: &[String], value: Node) {
    let at = value.at;
    let (Some((last, sections)), mut node) = (path.split_last(), root) else { return };
    for section in sections {
        let Some(table) = table(node) else { return };
        node = &mut entry(table, section, at).value;
    }
    if let Some(table) = table(node) {
        let slot = entry(table, last, at);
        slot.at = at;
        slot.value = value;
    }
}

fn table(node: &mut Node) -> Option<&mut Vec<Entry>> {
    if matches!(node.kind, Kind::Null) {
        node.kind = Kind::Table(Vec::new());
    }
    match &mut node.kind {
        Kind::Table(entries) => Some(entries),
        _ => None,
    }
}

fn entry<'t>(table: &'t mut Vec<Entry>, key: &str, at: Spot) -> &'t mut Entry {
    let index = table.iter().position(|e| e.key == key).unwrap_or_else(|| {
        table.push(Entry { key: key.to_owned(), at, value: Node { at, kind: Kind::Null } });
        table.len() - 1
    });
    table.get_mut(index).expect("found, or just pushed")
}
