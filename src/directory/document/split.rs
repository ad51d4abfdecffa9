//! A file into documents, and the heads of the objects in them.

use super::Format;
use crate::directory::yaml::{Item, Node, Place, Step, SyntaxError, walk};

/// What an object says about itself, read before its type is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) api_version: Option<String>,
    pub(super) kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    /// The kind that the list around it implies.
    implied_kind: Option<String>,
    /// Where it begins, in its chunk.
    pub(super) place: Place,
    /// Its index, if it is an item of a list.
    pub(super) index: Option<usize>,
}

impl Default for Place {
    fn default() -> Self {
        Self::START
    }
}

impl Head {
    fn at(place: Place, index: Option<usize>) -> Self {
        Self { place, index, ..Self::default() }
    }

    /// `Service shop/web`, as far as known.
    pub(super) fn label(&self) -> Option<String> {
        let kind = self.kind.as_deref().or(self.implied_kind.as_deref())?;
        Some(match (&self.namespace, &self.name) {
            (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
            (None, Some(name)) => format!("{kind} {name}"),
            (_, None) => kind.to_owned(),
        })
    }

    fn note(&mut self, path: &[Step<'_>], value: &str) {
        let field = match path {
            [key] if key.is_key("apiVersion") => &mut self.api_version,
            [key] if key.is_key("kind") => &mut self.kind,
            [meta, key] if meta.is_key("metadata") && key.is_key("namespace") => &mut self.namespace,
            [meta, key] if meta.is_key("metadata") && key.is_key("name") => &mut self.name,
            _ => return,
        };
        *field = Some(value.to_owned());
    }
}

/// One document.
#[derive(Clone, Debug)]
pub(super) struct Chunk<'t> {
    pub(super) text: &'t str,
    /// Where it begins in the file; all other places of a chunk are relative to it.
    pub(super) base: Place,
    pub(super) root: Head,
    /// Heads of `items`.
    pub(super) items: Vec<Head>,
}

/// Collects the heads of one document.
#[derive(Default)]
struct Heads {
    root: Option<Head>,
    items: Vec<Head>,
    /// The document is no mapping: where, and whether it is nothing at all.
    other: Option<(Place, bool)>,
}

impl Heads {
    fn node(&mut self, path: &[Step<'_>], node: Node<'_>, place: Place) {
        match (path, node) {
            ([], Node::Mapping) => self.root = Some(Head::at(place, None)),
            ([], _) => self.other = Some((place, node.is_null())),
            ([items, Step::Index(index)], _) if items.is_key("items") => {
                self.items.push(Head::at(place, Some(*index)));
            }
            ([items, Step::Index(_), rest @ ..], Node::Scalar { value, .. }) if items.is_key("items") => {
                if let Some(head) = self.items.last_mut() {
                    head.note(rest, value);
                }
            }
            (_, Node::Scalar { value, .. }) => {
                if let Some(root) = &mut self.root {
                    root.note(path, value);
                }
            }
            _ => {}
        }
    }

    /// The chunk; none if the document is empty.
    fn finish(mut self, text: &str, base: Place) -> Result<Option<Chunk<'_>>, SyntaxError> {
        let kind = self.root.as_ref().and_then(|root| root.kind.as_deref());
        if let Some(element) = kind.and_then(|kind| kind.strip_suffix("List")).filter(|kind| !kind.is_empty())
        {
            for item in &mut self.items {
                item.implied_kind = Some(element.to_owned());
            }
        }
        match (self.root, self.other) {
            (Some(root), _) => Ok(Some(Chunk { text, base, root, items: self.items })),
            (None, None | Some((_, true))) => Ok(None),
            (None, Some((place, false))) => Err(SyntaxError {
                place: base.of(place),
                message: "expected a Kubernetes object (a mapping)".to_owned(),
            }),
        }
    }
}

/// Splits a file; empty documents are passed over.
pub(super) fn split(text: &str, format: Format) -> Result<Vec<Chunk<'_>>, SyntaxError> {
    // A byte order mark is no content; the parser of JSON does not know it.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut chunks = Vec::new();
    match format {
        Format::Yaml => split_yaml(text, Place::START, &mut chunks)?,
        Format::Json => split_json(text, &mut chunks)?,
    }
    Ok(chunks)
}

/// Each chunk ends where its document does, so that comments and directives go to the document they precede.
fn split_yaml<'t>(text: &'t str, origin: Place, chunks: &mut Vec<Chunk<'t>>) -> Result<(), SyntaxError> {
    let (mut start, mut base) = (0, Place::START);
    let mut heads = Heads::default();
    let mut wrong = None;
    walk(text, |item| match item {
        Item::Node(path, node, place, _) => heads.node(path, node, base.within(place)),
        Item::DocumentEnd(end, place) => {
            let part = text.get(start..end).unwrap_or_default();
            match std::mem::take(&mut heads).finish(part, origin.of(base)) {
                Ok(chunk) => chunks.extend(chunk),
                Err(error) => wrong = wrong.take().or(Some(error)),
            }
            (start, base) = (end, place);
        }
    })
    .map_err(|error| SyntaxError { place: origin.of(error.place), ..error })?;
    wrong.map_or(Ok(()), Err)
}

/// JSON texts one after another, as `kubectl` and `jq` write them; each is checked by the grammar of JSON.
fn split_json<'t>(text: &'t str, chunks: &mut Vec<Chunk<'t>>) -> Result<(), SyntaxError> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
    let mut start = 0;
    let mut origin = Place::START;
    while let Some(item) = stream.next() {
        item.map_err(|error| SyntaxError {
            place: Place::new(error.line(), error.column()),
            message: without_place(&error),
        })?;
        let end = stream.byte_offset();
        let part = text.get(start..end).unwrap_or_default();
        split_yaml(part, origin, chunks)?;
        origin = origin.of(end_of(part.as_bytes()));
        start = end;
    }
    Ok(())
}

/// The message of a JSON error without the place at its end, which is told apart.
fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rfind(" at line ") {
        Some(end) => message.get(..end).unwrap_or(&message).to_owned(),
        None => message,
    }
}

/// The place after a text. Bytes that go on a character are not counted.
pub(super) fn end_of(text: &[u8]) -> Place {
    let line = text.iter().filter(|byte| **byte == b'\n').count();
    let last = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline.saturating_add(1));
    let tail = text.get(last..).unwrap_or_default();
    let column = tail.iter().filter(|byte| (**byte & 0xc0) != 0x80).count();
    Place::new(line.saturating_add(1), column.saturating_add(1))
}
