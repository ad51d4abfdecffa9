//! The text of one file into objects of the model, or into what is wrong with it and where.
//!
//! A file is a stream of YAML documents (or JSON texts), each an object or a list of objects. Kinds are
//! recognised by exact `apiVersion` and `kind`; the rest is passed over with a word. The strictness is
//! kubectl's: a string that YAML would read as a number must be quoted, a field that the API does not know is
//! told (and, in a NetworkPolicy, refused: read in part it would be another policy). Pure: no I/O.

mod decode;
mod locate;
mod split;

#[cfg(test)]
mod tests;

use super::yaml::{Place, SyntaxError};
use crate::model::report::{Problem, Severity};
use crate::model::{EndpointSlice, Namespace, NetworkPolicy, Node, Pod, Service};
use decode::Raw;
use split::{Chunk, Head};
use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// A kind that netd reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    Node,
    Namespace,
    Pod,
    Service,
    EndpointSlice,
    NetworkPolicy,
}

impl Kind {
    const ALL: [Self; 6] =
        [Self::Node, Self::Namespace, Self::Pod, Self::Service, Self::EndpointSlice, Self::NetworkPolicy];

    const fn name(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
        }
    }

    const fn api_version(self) -> &'static str {
        match self {
            Self::Node | Self::Namespace | Self::Pod | Self::Service => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
        }
    }
}

/// Kind, namespace (empty if the kind has none) and name: what may be in force once only.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind.name(), self.name)
        } else {
            write!(f, "{} {}/{}", self.kind.name(), self.namespace, self.name)
        }
    }
}

/// An object as a file has it.
#[derive(Clone, Debug)]
pub(super) enum Object {
    Node(Arc<Node>),
    Namespace(Arc<Namespace>),
    /// With the condition `Ready`, if the file gives one.
    Pod(Arc<Pod>, Option<bool>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    NetworkPolicy(Arc<NetworkPolicy>),
}

impl Object {
    fn key(&self) -> Key {
        let cluster = |kind, name: &Arc<str>| Key { kind, namespace: "".into(), name: Arc::clone(name) };
        let namespaced = |kind, name: &crate::model::ObjectName| Key {
            kind,
            namespace: Arc::clone(&name.namespace),
            name: Arc::clone(&name.name),
        };
        match self {
            Self::Node(object) => cluster(Kind::Node, &object.name),
            Self::Namespace(object) => cluster(Kind::Namespace, &object.name),
            Self::Pod(object, _) => namespaced(Kind::Pod, &object.name),
            Self::Service(object) => namespaced(Kind::Service, &object.name),
            Self::EndpointSlice(object) => namespaced(Kind::EndpointSlice, &object.name),
            Self::NetworkPolicy(object) => namespaced(Kind::NetworkPolicy, &object.name),
        }
    }
}

/// An object and its place in the file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) place: Place,
    pub(super) object: Object,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    Json,
}

/// A file as read: its objects, unless something is wrong with it, and all there is to say about it.
#[derive(Clone, Debug)]
pub(super) struct Parsed {
    /// None: the file is broken, and `problems` has at least one error.
    pub(super) content: Option<Arc<[Entry]>>,
    pub(super) problems: Vec<Problem>,
}

impl Parsed {
    /// A file that could not be read at all.
    pub(super) fn unreadable(path: &Path, message: impl Into<String>) -> Self {
        let mut notes = Notes { path, problems: Vec::new() };
        notes.add(Severity::Error, None, None, message);
        Self { content: None, problems: notes.problems }
    }
}

/// Problems of one file as they are found.
struct Notes<'p> {
    path: &'p Path,
    problems: Vec<Problem>,
}

impl Notes<'_> {
    fn add(
        &mut self,
        severity: Severity,
        place: Option<Place>,
        object: Option<String>,
        message: impl Into<String>,
    ) {
        self.problems.push(Problem {
            path: self.path.to_owned(),
            line: place.map(|place| place.line),
            column: place.map(|place| place.column),
            severity,
            object,
            message: message.into(),
        });
    }

    fn syntax(&mut self, error: SyntaxError) {
        self.add(Severity::Error, Some(error.place), None, error.message);
    }
}

/// Reads a file.
pub(super) fn parse(path: &Path, bytes: &[u8], format: Format) -> Parsed {
    let mut notes = Notes { path, problems: Vec::new() };
    let mut entries: Vec<Entry> = Vec::new();
    match std::str::from_utf8(bytes) {
        Err(error) => {
            let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
            notes.add(Severity::Error, Some(split::end_of(good)), None, "not UTF-8 text");
        }
        Ok(text) => match split::split(text, format) {
            Err(error) => notes.syntax(error),
            Ok(chunks) => {
                for chunk in &chunks {
                    read_chunk(chunk, &mut notes, &mut entries);
                }
            }
        },
    }
    refuse_duplicates(&entries, &mut notes);
    let broken = notes.problems.iter().any(|problem| problem.severity == Severity::Error);
    Parsed { content: (!broken).then(|| entries.into()), problems: notes.problems }
}

fn refuse_duplicates(entries: &[Entry], notes: &mut Notes<'_>) {
    let mut first: HashMap<&Key, Place> = HashMap::with_capacity(entries.len());
    for entry in entries {
        if let Some(earlier) = first.insert(&entry.key, entry.place) {
            let message = format!("is there twice; the first is in line {}", earlier.line);
            notes.add(Severity::Error, Some(entry.place), Some(entry.key.to_string()), message);
        }
    }
}

/// What to do with the objects of a document.
enum Plan<'c> {
    Object(Kind, &'c Head),
    /// A list; items of other kinds are None.
    List(Vec<(Option<Kind>, &'c Head)>),
}

fn read_chunk(chunk: &Chunk<'_>, notes: &mut Notes<'_>, entries: &mut Vec<Entry>) {
    let Some(plan) = plan(chunk, notes) else { return };
    let (raws, in_list) = match &plan {
        Plan::Object(kind, head) => (decode::object(chunk, *kind).map(|raw| vec![(raw, *head)]), false),
        Plan::List(items) => {
            let kinds: Vec<_> = items.iter().map(|(kind, _)| *kind).collect();
            let raws = decode::list(chunk, &kinds).map(|raws| {
                let heads = items.iter().filter(|(kind, _)| kind.is_some()).map(|(_, head)| *head);
                raws.into_iter().zip(heads).collect()
            });
            (raws, true)
        }
    };
    let raws: Vec<(Raw, &Head)> = match raws {
        Ok(raws) => raws,
        Err(error) => {
            // A place is within the last object that begins before it.
            let head = match &plan {
                Plan::Object(_, head) => Some(*head),
                Plan::List(items) => {
                    items.iter().map(|(_, head)| *head).take_while(|head| head.place <= error.place).last()
                }
            };
            notes.add(
                Severity::Error,
                Some(chunk.base.of(error.place)),
                head.and_then(Head::label),
                locate::with_path(chunk.text, error.place, in_list, error.message),
            );
            return;
        }
    };
    for unknown in locate::unknown_fields(chunk.text, &raws, in_list) {
        let severity = if unknown.kind == Kind::NetworkPolicy { Severity::Error } else { Severity::Warning };
        let message = match severity {
            Severity::Error => format!("{}: unknown field", unknown.path),
            Severity::Warning => format!("{}: unknown field, ignored", unknown.path),
        };
        notes.add(severity, Some(chunk.base.of(unknown.place)), unknown.object, message);
    }
    for (raw, head) in raws {
        if raw.lacks_address() {
            notes.add(
                Severity::Warning,
                Some(chunk.base.of(head.place)),
                head.label(),
                "spec.clusterIP: missing, and nothing allocates one in a directory: give an address, or \"None\"",
            );
        }
        match raw.convert() {
            Ok(object) => {
                entries.push(Entry { key: object.key(), place: chunk.base.of(head.place), object });
            }
            Err(error) => {
                let place = locate::field(chunk.text, head.index, &error.field).unwrap_or(head.place);
                notes.add(Severity::Error, Some(chunk.base.of(place)), head.label(), error.to_string());
            }
        }
    }
}

/// Recognises what a document holds; says what is ignored.
fn plan<'c>(chunk: &'c Chunk<'_>, notes: &mut Notes<'_>) -> Option<Plan<'c>> {
    let head = &chunk.root;
    let (Some(api_version), Some(kind)) = (head.api_version.as_deref(), head.kind.as_deref()) else {
        let missing = if head.kind.is_none() { "kind" } else { "apiVersion" };
        let message = format!("{missing}: missing: not a Kubernetes object");
        notes.add(Severity::Error, Some(chunk.base.of(head.place)), None, message);
        return None;
    };
    let known = |api_version: &str, kind: &str| {
        Kind::ALL.into_iter().find(|known| known.name() == kind && known.api_version() == api_version)
    };
    if let Some(kind) = known(api_version, kind) {
        return Some(Plan::Object(kind, head));
    }
    // `List` holds anything; `ServiceList` holds Services, whose items need not say so.
    let element = kind.strip_suffix("List").and_then(|element| known(api_version, element));
    if (api_version, kind) != ("v1", "List") && element.is_none() {
        ignored(chunk, head, api_version, kind, notes);
        return None;
    }
    let mut items = Vec::with_capacity(chunk.items.len());
    for item in &chunk.items {
        let kind = match (item.api_version.as_deref(), item.kind.as_deref(), element) {
            (None, None, Some(element)) => Some(element),
            (Some(api_version), Some(kind), _) => {
                let kind_known = known(api_version, kind);
                if kind_known.is_none() {
                    ignored(chunk, item, api_version, kind, notes);
                }
                kind_known
            }
            _ => {
                let message = "kind and apiVersion: missing: not a Kubernetes object";
                notes.add(Severity::Error, Some(chunk.base.of(item.place)), item.label(), message);
                None
            }
        };
        items.push((kind, item));
    }
    Some(Plan::List(items))
}

fn ignored(chunk: &Chunk<'_>, head: &Head, api_version: &str, kind: &str, notes: &mut Notes<'_>) {
    let message = format!("ignored: netd does not read {kind} of {api_version}");
    notes.add(Severity::Warning, Some(chunk.base.of(head.place)), head.label(), message);
}
