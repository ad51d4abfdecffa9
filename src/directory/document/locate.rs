//! From fields to places, and from places to fields.

use super::Kind;
use super::decode::Raw;
use super::split::Head;
use crate::directory::yaml::{Item, Node, Place, Step, walk};
use crate::model::convert::{FieldPath, Segment};
use serde_json::Value;

fn segment(step: &Step<'_>) -> Segment {
    match step {
        Step::Key(key) => Segment::Key(key.clone().into_owned()),
        Step::Index(index) => Segment::Index(*index),
    }
}

fn is(step: &Step<'_>, segment: &Segment) -> bool {
    match (step, segment) {
        (Step::Key(own), Segment::Key(other)) => own == other,
        (Step::Index(own), Segment::Index(other)) => own == other,
        _ => false,
    }
}

/// The path within an object of a path within a document.
fn within<'p, 't>(path: &'p [Step<'t>], in_list: bool) -> Option<(usize, &'p [Step<'t>])> {
    match path {
        [items, Step::Index(index), rest @ ..] if in_list && items.is_key("items") => Some((*index, rest)),
        rest if !in_list => Some((0, rest)),
        _ => None,
    }
}

/// Where a field of an object stands; of a missing one, where the nearest thing around it does.
pub(super) fn field(text: &str, item: Option<usize>, field: &FieldPath) -> Option<Place> {
    let mut best: Option<(usize, Place)> = None;
    // The text was walked before: it has no error.
    walk(text, |node| {
        let Item::Node(path, _, place, _) = node else { return };
        let Some((index, rest)) = within(path, item.is_some()) else { return };
        let on_the_way = rest.len() <= field.0.len() && rest.iter().zip(&field.0).all(|(a, b)| is(a, b));
        if index == item.unwrap_or(0) && on_the_way && best.is_none_or(|(depth, _)| rest.len() > depth) {
            best = Some((rest.len(), place));
        }
    })
    .ok()?;
    best.map(|(_, place)| place)
}

/// A message with the path of what stands at its place, if something does.
pub(super) fn with_path(text: &str, place: Place, in_list: bool, message: String) -> String {
    let mut found = FieldPath::default();
    let walked = walk(text, |node| {
        if let Item::Node(path, _, here, _) = node
            && here == place
            && let Some((_, rest)) = within(path, in_list)
        {
            found = FieldPath(rest.iter().map(segment).collect());
        }
    });
    if walked.is_err() || found.0.is_empty() { message } else { format!("{found}: {message}") }
}

/// A field that the API does not know.
#[derive(Debug)]
pub(super) struct Unknown {
    pub(super) kind: Kind,
    pub(super) object: Option<String>,
    pub(super) path: FieldPath,
    pub(super) place: Place,
}

/// Fields of the text that did not arrive in the typed objects; of a subtree, its root.
pub(super) fn unknown_fields(text: &str, raws: &[(Raw, &Head)], in_list: bool) -> Vec<Unknown> {
    // One object at a time in the order of the text: only one is held twice.
    let mut unknown = Vec::new();
    let mut objects = raws.iter();
    let mut current: Option<(usize, &Raw, &Head, Value)> = None;
    let walked = walk(text, |node| {
        let Item::Node(path, node, _, place) = node else { return };
        let Some((index, rest)) = within(path, in_list) else { return };
        while current.as_ref().is_none_or(|(at, ..)| *at < index) {
            let Some((raw, head)) = objects.next() else { return };
            let Ok(known) = raw.known() else { continue };
            current = Some((head.index.unwrap_or(0), raw, head, known));
        }
        let Some((at, raw, head, known)) = &current else { return };
        if *at != index || node.is_null() || node == Node::Alias || rest.iter().any(|step| step.is_key("<<"))
        {
            return;
        }
        let Some((_, parents)) = rest.split_last() else { return };
        if lookup(known, rest).is_none() && lookup(known, parents).is_some() {
            unknown.push(Unknown {
                kind: raw.kind(),
                object: head.label(),
                path: FieldPath(rest.iter().map(segment).collect()),
                place,
            });
        }
    });
    // A text that does not walk did not get here.
    if walked.is_err() { Vec::new() } else { unknown }
}

fn lookup<'v>(value: &'v Value, path: &[Step<'_>]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.get(key.as_ref()),
        Step::Index(index) => value.get(index),
    })
}
