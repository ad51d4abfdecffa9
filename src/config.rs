//! The configuration: one YAML file with the environment over it, parsed into types that cannot be wrong.
//!
//! Owns the file's keys, their defaults and their errors; each module owns the type it is configured by, and
//! this one only assembles them. A configuration with any problem is refused as a whole, with all its problems
//! (`Problems`), each shown at its line. Nothing here looks at the machine but for the host's name: whether
//! a path exists or an interface is there is for the agent and `doctor` to find out.
//!
//! | file | does |
//! |---|---|
//! | `source` | texts, and positions in them |
//! | `tree` | YAML into a tree with positions; the environment laid over it |
//! | `read` | typed reading that collects errors |
//! | `values`, `duration` | kinds of value |
//! | `sections` | the keys: kind, bounds, default |
//! | `keys`, `changes` | the keys again, for `show` and for reloads |
//! | `problem` | the caret errors |

mod changes;
mod duration;
mod environment;
mod keys;
mod problem;
mod read;
mod sections;
mod source;
#[cfg(test)]
mod tests;
mod tree;
mod values;

pub use changes::{Change, Changes, diff};
pub use keys::{Effect, Key};
pub use problem::{Problem, Problems};
pub use source::Origin;

use crate::{agent, cni, datapath, directory, ipam, net, telemetry};
use source::Sources;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use tree::{Kind, Node};

/// Where the file is unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/netd/netd.yaml";

/// A commented file with every key and its default.
pub const EXAMPLE: &str = include_str!("config/example.yaml");

/// The folder of the directory source unless told otherwise.
const DEFAULT_STATE: &str = "/etc/netd/state";

/// Larger than any sensible file; a device or a log given by mistake is not read to its end.
const MAX_SIZE: u64 = 1 << 20;

/// Everything netd can be told, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The agent itself.
    pub agent: agent::config::Config,
    /// The CNI side.
    pub cni: cni::config::Config,
    /// Addresses.
    pub ipam: ipam::config::Config,
    /// Links and routes.
    pub net: net::config::Config,
    /// eBPF.
    pub datapath: datapath::config::Config,
    /// The directory source.
    pub directory: directory::config::Config,
    /// Logs.
    pub telemetry: telemetry::config::Config,
}

impl Config {
    /// Every key with its value, in the order of the example file.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        keys::keys(self)
    }

    /// Takes over from `new` what applies at once, and keeps what needs a restart: after a reload this is
    /// still what is in force, so that the next [`diff`] reports what is still waiting.
    pub fn adopt(&mut self, new: &Self) {
        keys::adopt(self, new);
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something in it is wrong.
    #[error("{0}")]
    Invalid(Problems),
}

/// What to load a configuration from; kept by the agent to load it again.
#[derive(Clone, Debug)]
pub struct Loader {
    path: PathBuf,
    optional: bool,
    variables: Vec<(String, OsString)>,
    host: String,
}

impl Loader {
    /// From `path` (none: [`DEFAULT_PATH`], which may be missing) with the environment over it.
    #[must_use]
    pub fn new(path: Option<PathBuf>, environment: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let host = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
        Self {
            optional: path.is_none(),
            path: path.unwrap_or_else(|| DEFAULT_PATH.into()),
            variables: environment::select(environment),
            host: host.unwrap_or_default(),
        }
    }

    /// The file it reads.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file now.
    pub fn load(&self) -> Result<Loaded, Error> {
        match self.read() {
            Ok(bytes) => self.parse(Some(bytes)),
            Err(source) if self.optional && source.kind() == io::ErrorKind::NotFound => self.parse(None),
            Err(source) => Err(Error::Read { path: self.path.clone(), source }),
        }
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(&self.path)?.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_SIZE) {
            return Err(io::Error::other(format!("larger than {MAX_SIZE} bytes")));
        }
        Ok(bytes)
    }

    fn parse(&self, bytes: Option<Vec<u8>>) -> Result<Loaded, Error> {
        let from_file = bytes.is_some();
        let mut sources = Sources::default();
        let mut root = self.file(&mut sources, bytes).map_err(|p| Error::Invalid(Problems(vec![p])))?;
        let mut problems = environment::apply(&self.variables, &mut sources, &mut root);
        let (config, outcome) = sections::read(&sources, &root, &self.host);
        problems.splice(0..0, outcome.problems);
        problems.extend(environment::near_misses(&self.variables, &outcome.origins));
        if !problems.is_empty() {
            return Err(Error::Invalid(Problems(problems)));
        }
        let values = config.keys().into_iter().map(|key| {
            let origin = outcome.origins.get(key.path).cloned().unwrap_or(Origin::Default);
            Value { key: key.path, value: key.value, effect: key.effect, origin }
        });
        Ok(Loaded { values: values.collect(), file: from_file.then(|| self.path.clone()), config })
    }

    fn file(&self, sources: &mut Sources, bytes: Option<Vec<u8>>) -> Result<Node, Problem> {
        let Some(bytes) = bytes else {
            let source = sources.add_file(&self.path, String::new());
            return Ok(Node { at: sources.whole(source), kind: Kind::Null });
        };
        match String::from_utf8(bytes) {
            Ok(text) => {
                // A byte order mark is no part of the text: YAML 1.2.2 §5.2.
                let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
                let source = sources.add_file(&self.path, text);
                tree::parse(sources, source)
            }
            Err(error) => {
                let start = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let source = sources.add_file(&self.path, text);
                let at = source::Spot { source, start, end: start + char::REPLACEMENT_CHARACTER.len_utf8() };
                Err(Problem::at(sources.excerpt(at), "the file is not UTF-8", "not a character"))
            }
        }
    }
}

/// A configuration, and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What is in force.
    pub config: Config,
    /// The file; none if there is none.
    pub file: Option<PathBuf>,
    /// Every key, in the order of the example file.
    pub values: Vec<Value>,
}

/// A key's value in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Dotted path.
    pub key: &'static str,
    /// The value.
    pub value: serde_json::Value,
    /// What a change of it takes.
    pub effect: Effect,
    /// Where it comes from.
    pub origin: Origin,
}

impl Value {
    /// The value as one would write it in the file.
    #[must_use]
    pub fn text(&self) -> String {
        keys::text(&self.value)
    }
}
