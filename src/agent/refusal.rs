//! What the verifier said of a program that it refused: kept whole in the run folder, where it outlives the
//! agent's own log and its limits.
//!
//! `<run>/verifier.log`, for root only (it tells kernel addresses): one file, of the last refusal, gone once
//! the programs load.

use crate::datapath;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where the log of a refusal is.
#[derive(Debug)]
pub enum Kept {
    /// Nothing was refused: the error is another.
    Nothing,
    /// In this file.
    In(PathBuf),
    /// Nowhere but in the error: the file could not be written.
    Not(PathBuf, io::Error),
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::In(path) => write!(f, " (the verifier's whole log is in {})", path.display()),
            Self::Not(path, error) => {
                write!(f, " (the verifier's whole log cannot be kept in {}: {error})", path.display())
            }
        }
    }
}

/// Writes the log, if the error has one, over that of an earlier refusal.
pub(super) fn keep(run_dir: &Path, error: &datapath::Error) -> Kept {
    let datapath::Error::Refused { program, source } = error else { return Kept::Nothing };
    let path = path(run_dir);
    let head = format!("{program}: {}\n", source.answer);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all((head + &source.log).as_bytes()));
    match written {
        Ok(()) => Kept::In(path),
        Err(error) => Kept::Not(path, error),
    }
}

/// Removes the log of an earlier refusal.
pub(super) fn forget(run_dir: &Path) {
    // One that cannot be removed misleads nobody for long: it bears its time.
    fs::remove_file(path(run_dir)).ok();
}

fn path(run_dir: &Path) -> PathBuf {
    run_dir.join("verifier.log")
}

#[cfg(test)]
mod tests {
    use super::{Kept, forget, keep};
    use crate::agent::Error;
    use crate::datapath::{self, Refusal};
    use crate::telemetry::chain;
    use std::os::unix::fs::PermissionsExt;

    fn refused(log: &str) -> datapath::Error {
        let answer = std::io::Error::from_raw_os_error(libc::EACCES);
        datapath::Error::Refused { program: "pod_egress".into(), source: Refusal { answer, log: log.into() } }
    }

    #[test]
    fn the_whole_log_is_kept_and_its_end_told() {
        let folder = tempfile::tempdir().unwrap();
        let log: String = (0..1000).map(|n| format!("{n}: (79) r0 = *(u64 *)(r2 +0)\n")).collect();
        let log = log + "R2 !read_ok\nprocessed 1000 insns (limit 1000000)\n";
        // An earlier and longer one is not seen through.
        keep(folder.path(), &refused(&log.repeat(2)));
        let source = refused(&log);
        let error = Error::Datapath { kept: keep(folder.path(), &source), source };
        let path = folder.path().join("verifier.log");
        let kept = std::fs::read_to_string(&path).unwrap();
        assert_eq!(kept, format!("pod_egress: Permission denied (os error 13)\n{log}"));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let told = chain(&error);
        let head = format!(
            "the eBPF datapath does not start (the verifier's whole log is in {}): the kernel refuses the BPF \
             program pod_egress: Permission denied (os error 13); the verifier's log ends:\n982: ",
            path.display()
        );
        assert!(told.starts_with(&head), "{told}");
        assert!(told.ends_with("R2 !read_ok\nprocessed 1000 insns (limit 1000000)"), "{told}");
        forget(folder.path());
        assert!(!path.exists());
    }

    #[test]
    fn other_errors_and_full_disks_say_so() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(keep(folder.path(), &datapath::Error::NoPrograms), Kept::Nothing));
        let told = keep(&folder.path().join("absent"), &refused("")).to_string();
        assert!(
            told.contains("cannot be kept in") && told.ends_with("No such file or directory (os error 2))"),
            "{told}"
        );
        assert!(chain(&refused("")).ends_with("the verifier's log is empty"));
    }
}
