//! A walk over the nodes of a YAML stream, with the path and the place of each.
//!
//! It finds document boundaries, heads of objects, and the place of a field that proved wrong; values
//! themselves are read by serde-saphyr into types. Aliases are not followed, so no input can make the walk
//! longer than itself. JSON is walked as the YAML that it is.

use serde_saphyr::granit_parser::{Event, Marker, Parser, ScalarStyle};
use std::borrow::Cow;

/// Line and column, from 1; the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: u32,
    pub(super) column: u32,
}

impl Place {
    pub(super) const START: Self = Self { line: 1, column: 1 };

    /// From counters of other widths; what does not fit is as good as the end of the file.
    pub(super) fn new(line: impl TryInto<u32>, column: impl TryInto<u32>) -> Self {
        let number = |value: Option<u32>| value.unwrap_or(u32::MAX).max(1);
        Self { line: number(line.try_into().ok()), column: number(column.try_into().ok()) }
    }

    /// What `place` is to a part of the file that begins at `self`: undoes [`Self::of`].
    pub(super) const fn within(self, place: Self) -> Self {
        if place.line <= self.line {
            Self { line: 1, column: place.column.saturating_sub(self.column).saturating_add(1) }
        } else {
            Self { line: place.line.saturating_sub(self.line).saturating_add(1), column: place.column }
        }
    }

    /// The place in the file of a place in a part of it that begins at `self`.
    pub(super) const fn of(self, inner: Self) -> Self {
        if inner.line <= 1 {
            Self { line: self.line, column: self.column.saturating_add(inner.column).saturating_sub(1) }
        } else {
            Self { line: self.line.saturating_add(inner.line).saturating_sub(1), column: inner.column }
        }
    }
}

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step<'t> {
    Key(Cow<'t, str>),
    Index(usize),
}

impl Step<'_> {
    pub(super) fn is_key(&self, key: &str) -> bool {
        matches!(self, Self::Key(own) if own == key)
    }
}

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node<'e> {
    Scalar { value: &'e str, plain: bool },
    Mapping,
    Sequence,
    Alias,
}

impl Node<'_> {
    /// An unquoted null, or nothing at all.
    pub(super) fn is_null(&self) -> bool {
        matches!(self, Node::Scalar { value: "" | "~" | "null" | "Null" | "NULL", plain: true })
    }
}

/// What the walk comes by.
#[derive(Debug)]
pub(super) enum Item<'e, 't> {
    /// A node that is a value, with its own place; keys are in the paths of their values. The second place
    /// is that of the key, if it has one.
    Node(&'e [Step<'t>], Node<'e>, Place, Place),
    /// The end of a document, with the byte at which what follows begins.
    DocumentEnd(usize, Place),
}

/// Text that is not YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) place: Place,
    pub(super) message: String,
}

enum Frame<'t> {
    Sequence { next: usize, is_key: bool },
    Mapping { key: Option<(Cow<'t, str>, Place)>, is_key: bool },
}

struct Walk<'t> {
    frames: Vec<Frame<'t>>,
    path: Vec<Step<'t>>,
    /// Place of the key of the node that was entered last.
    key: Option<Place>,
}

impl<'t> Walk<'t> {
    /// Enters a node: true if it is a key (whose text the mapping then waits for the value of).
    fn enter(&mut self) -> bool {
        self.key = None;
        match self.frames.last_mut() {
            None => false,
            Some(Frame::Sequence { next, .. }) => {
                self.path.push(Step::Index(*next));
                *next = next.saturating_add(1);
                false
            }
            Some(Frame::Mapping { key, .. }) => match key.take() {
                Some((key, place)) => {
                    self.path.push(Step::Key(key));
                    self.key = Some(place);
                    false
                }
                None => true,
            },
        }
    }

    fn key(&mut self, text: Cow<'t, str>, place: Place) {
        if let Some(Frame::Mapping { key, .. }) = self.frames.last_mut() {
            *key = Some((text, place));
        }
    }

    fn leave(&mut self, here: Place) {
        let was_key = match self.frames.pop() {
            Some(Frame::Sequence { is_key, .. } | Frame::Mapping { is_key, .. }) => is_key,
            None => false,
        };
        if was_key {
            // No Kubernetes object has a key that is no scalar: this one will be an unknown field.
            self.key(Cow::Borrowed("?"), here);
        } else {
            self.path.pop();
        }
    }
}

fn place(marker: Marker) -> Place {
    Place::new(marker.line(), marker.col().saturating_add(1))
}

/// Walks a whole stream of documents.
pub(super) fn walk<'t>(text: &'t str, mut visit: impl FnMut(Item<'_, 't>)) -> Result<(), SyntaxError> {
    let mut walk = Walk { frames: Vec::new(), path: Vec::new(), key: None };
    for event in Parser::new_from_str(text) {
        let (event, span) =
            event.map_err(|error| SyntaxError { place: place(*error.marker()), message: error.info() })?;
        let here = place(span.start);
        match event {
            Event::Scalar(value, style, ..) => {
                if walk.enter() {
                    walk.key(value, here);
                } else {
                    let node = Node::Scalar { value: &value, plain: style == ScalarStyle::Plain };
                    visit(Item::Node(&walk.path, node, here, walk.key.unwrap_or(here)));
                    walk.path.pop();
                }
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                if walk.enter() {
                    walk.key(Cow::Borrowed("?"), here);
                } else {
                    visit(Item::Node(&walk.path, Node::Alias, here, walk.key.unwrap_or(here)));
                    walk.path.pop();
                }
            }
            Event::SequenceStart(..) => {
                let is_key = walk.enter();
                if !is_key {
                    visit(Item::Node(&walk.path, Node::Sequence, here, walk.key.unwrap_or(here)));
                }
                walk.frames.push(Frame::Sequence { next: 0, is_key });
            }
            Event::MappingStart(..) => {
                let is_key = walk.enter();
                if !is_key {
                    visit(Item::Node(&walk.path, Node::Mapping, here, walk.key.unwrap_or(here)));
                }
                walk.frames.push(Frame::Mapping { key: None, is_key });
            }
            Event::SequenceEnd | Event::MappingEnd => walk.leave(here),
            Event::DocumentEnd => {
                walk.frames.clear();
                walk.path.clear();
                let end = span.end.byte_offset().unwrap_or(text.len());
                visit(Item::DocumentEnd(end, place(span.end)));
            }
            _ => {}
        }
    }
    Ok(())
}
