//! What can go wrong between the agent and the kernel's BPF.

use std::path::PathBuf;

/// An error of the datapath; all but [`Error::NoPrograms`], [`Error::Shape`] and [`Error::Newer`] may pass with a retry.
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
        /// Why not; the verifier's log is in it.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// The object lacks what this binary expects: a build defect.
    #[error("the BPF object has no {kind} {name}")]
    Missing {
        /// `map` or `program`.
        kind: &'static str,
        /// Its name.
        name: String,
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

impl Error {
    /// For `map_err` on map operations.
    pub(super) fn map(map: &'static str) -> impl Fn(aya::maps::MapError) -> Self {
        move |source| Self::Map { map, source: Box::new(source) }
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
