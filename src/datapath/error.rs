//! What can go wrong between the agent and the kernel's BPF.

use super::answers::is;
use std::path::PathBuf;

/// An error of the datapath; all but [`Error::NoPrograms`], [`Error::Missing`], [`Error::Shape`] and
/// [`Error::Newer`] may pass with a retry.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Built with `NETD_BPF=stub`.
    #[error(
        "this netd was built without BPF programs (NETD_BPF=stub): rebuild it on a machine with the BPF toolchain"
    )]
    NoPrograms,
    /// A path cannot be used.
    #[error("cannot {action} {path}")]
    Path {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// An object did not load.
    #[error("cannot load the BPF object {object}")]
    Load {
        /// Name of the object.
        object: &'static str,
        /// Why not.
        #[source]
        source: Box<aya::EbpfError>,
    },
    /// A program did not pass, attach or run.
    #[error("cannot {action} the BPF program {program}")]
    Program {
        /// What was tried.
        action: &'static str,
        /// Name of the program.
        program: String,
        /// Why not.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// The verifier, or the kernel before it, refused a program.
    #[error("the kernel refuses the BPF program {program}")]
    Refused {
        /// Name of the program.
        program: String,
        /// Why.
        #[source]
        source: Refusal,
    },
    /// The object lacks what this binary expects: a build defect.
    #[error("the BPF object has no {kind} {name}")]
    Missing {
        /// `map` or `program`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A table has no room for another row; what stands in it is not touched.
    #[error("the table {map} is full: all its {limit} rows are in use ({key})")]
    Full {
        /// Name of the map.
        map: &'static str,
        /// Its rows.
        limit: u32,
        /// The key of the configuration that sets its size.
        key: &'static str,
    },
    /// A map operation failed.
    #[error("BPF map {map}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// Why.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// A pinned map is not ours.
    #[error(
        "the pinned map {path} has keys of {key} and values of {value} bytes, this netd needs {want_key} and {want_value}: remove it or run the netd that made it"
    )]
    Shape {
        /// Where it is pinned.
        path: PathBuf,
        /// Its key size.
        key: u32,
        /// Its value size.
        value: u32,
        /// Ours.
        want_key: usize,
        /// Ours.
        want_value: usize,
    },
    /// A newer netd was here.
    #[error(
        "{path} is of schema {schema}, which a newer netd made: run that one, or drain the node and remove the folder"
    )]
    Newer {
        /// Its folder of pins.
        path: PathBuf,
        /// Its schema.
        schema: u32,
    },
    /// The tables of an earlier agent cannot be taken over. It forwards on as before.
    #[error("cannot move the datapath's maps from {from} (to {step}); the old ones stay in force")]
    Move {
        /// Where the old maps are pinned.
        from: PathBuf,
        /// What failed.
        step: &'static str,
        /// Why.
        #[source]
        source: Box<Self>,
    },
    /// The kernel does not tell where our filters are.
    #[error("cannot {action}")]
    Filters {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A filter cannot be attached.
    #[error("cannot attach to interface {interface}")]
    Attach {
        /// Its name.
        interface: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Lines of the verifier's log that an error shows: the state, the instruction and the complaint.
const SHOWN: usize = 20;

/// What the kernel answered to a program, and the verifier's whole log.
#[derive(Debug, thiserror::Error)]
#[error("{answer}; the verifier's log {}", self.end())]
pub struct Refusal {
    /// The system call's answer.
    pub answer: std::io::Error,
    /// All that the verifier said: up to megabytes; empty if the kernel did not come to ask it.
    pub log: String,
}

impl Refusal {
    /// The end of the log, where the complaint stands.
    fn end(&self) -> String {
        let lines: Vec<&str> = self.log.trim_end().lines().collect();
        match lines.get(lines.len().saturating_sub(SHOWN)..) {
            None | Some([]) => "is empty".to_owned(),
            Some(end) => format!("ends:\n{}", end.join("\n")),
        }
    }
}

impl Error {
    /// For `map_err` on the load of a program.
    pub(super) fn load(program: &str) -> impl Fn(aya::programs::ProgramError) -> Self {
        move |source| match source {
            aya::programs::ProgramError::LoadError { io_error, verifier_log } => Self::Refused {
                program: program.to_owned(),
                source: Refusal { answer: io_error, log: verifier_log.to_string() },
            },
            source => Self::program("load", program)(source),
        }
    }

    /// For `map_err` on map operations.
    pub(super) fn map(map: &'static str) -> impl Fn(aya::maps::MapError) -> Self {
        move |source| Self::Map { map, source: Box::new(source) }
    }

    /// For `map_err` on making a row, with the size of the map and the key that sets it.
    pub(super) fn room(
        map: &'static str,
        limit: u32,
        key: &'static str,
    ) -> impl Fn(aya::maps::MapError) -> Self {
        // What hash tables say, and what tries do.
        move |source| match is(&source, libc::E2BIG) || is(&source, libc::ENOSPC) {
            true => Self::Full { map, limit, key },
            false => Self::map(map)(source),
        }
    }

    /// For `map_err` on program operations.
    pub(super) fn program(
        action: &'static str,
        program: &str,
    ) -> impl Fn(aya::programs::ProgramError) -> Self {
        move |source| Self::Program { action, program: program.to_owned(), source: Box::new(source) }
    }

    /// For `map_err` on file operations.
    pub(super) fn path(
        action: &'static str,
        path: impl Into<PathBuf> + Clone,
    ) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Path { action, path: path.into(), source }
    }
}
