//! The folder as it is: which files there are, and by what stamps a change of theirs is seen.
//!
//! Links are followed, to files and to folders, so that a ConfigMap's mount (`..data`) and a checkout that
//! is swapped by a link both work; hidden names are passed over, so nothing is read twice.

use super::document::Format;
use super::status;
use std::collections::BTreeSet;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Deeper folders are not looked into.
const DEEPEST: usize = 16;
/// A larger file is refused rather than read into memory.
const LARGEST: u64 = 64 << 20;

/// What of a file or folder changes when it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    pub(super) const fn is_empty(self) -> bool {
        self.size == 0
    }

    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Identity of a folder, whatever its path.
pub(super) type Identity = (u64, u64);

/// A file to be read.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) stamp: Stamp,
    pub(super) what: What,
}

/// What a file is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Objects(Format),
    Status,
}

/// What a scan found.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) files: Vec<Found>,
    pub(super) folders: Vec<PathBuf>,
    /// Files and folders that could not be looked at: nothing is known about what is in them.
    pub(super) failed: Vec<(PathBuf, String)>,
    /// Links back to a folder that they are in, whose files are here already.
    pub(super) circles: Vec<PathBuf>,
    /// Hidden links and folders: what is passed over may all the same be where a link leads.
    pub(super) hidden: BTreeSet<PathBuf>,
    /// There are links, so that a file may be known by another path than the one that changes.
    pub(super) links: bool,
}

impl Listing {
    /// Nothing is known about a path, because one on the way to it could not be looked at.
    pub(super) fn hides(&self, path: &Path) -> bool {
        self.failed.iter().any(|(failed, _)| path.starts_with(failed))
    }
}

/// Scans the folder. `enter` is called for each folder before it is listed, so that a watch set there misses
/// nothing.
pub(super) fn scan(root: &Path, mut enter: impl FnMut(&Path, Identity)) -> Listing {
    let mut listing = Listing::default();
    let mut open = Vec::new();
    folder(root, root, &mut open, &mut enter, &mut listing);
    listing
}

fn folder(
    root: &Path,
    path: &Path,
    open: &mut Vec<Identity>,
    enter: &mut impl FnMut(&Path, Identity),
    listing: &mut Listing,
) {
    let failed = |listing: &mut Listing, path: &Path, error: &io::Error| {
        // What went between two steps is simply not there; the root must be.
        if error.kind() != io::ErrorKind::NotFound || path == root {
            listing.failed.push((path.to_owned(), format!("cannot be read: {error}")));
        }
    };
    let identity = match fs::metadata(path) {
        Ok(metadata) => (metadata.dev(), metadata.ino()),
        Err(error) => return failed(listing, path, &error),
    };
    if open.contains(&identity) {
        listing.circles.push(path.to_owned());
        return;
    }
    if open.len() >= DEEPEST {
        listing.failed.push((path.to_owned(), format!("is more than {DEEPEST} folders deep")));
        return;
    }
    enter(path, identity);
    listing.folders.push(path.to_owned());
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return failed(listing, path, &error),
    };
    open.push(identity);
    let statuses = path == root.join(status::FOLDER);
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                failed(listing, path, &error);
                continue;
            }
        };
        let path = entry.path();
        // Unknown is taken for a link.
        let kind = entry.file_type().ok();
        if is_hidden(&path) {
            if !kind.is_some_and(|kind| kind.is_file()) {
                listing.hidden.insert(path);
            }
            continue;
        }
        listing.links |= kind.is_none_or(|kind| kind.is_symlink());
        // Follows links: a link to nowhere is not there.
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) => {
                failed(listing, &path, &error);
                continue;
            }
        };
        if metadata.is_dir() && !statuses {
            folder(root, &path, open, enter, listing);
        } else if let (true, Some(what)) = (metadata.is_file(), what(&path, statuses)) {
            listing.files.push(Found { path, stamp: Stamp::of(&metadata), what });
        }
    }
    open.pop();
}

/// Its name begins with a dot.
fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// What a look at one path found.
#[derive(Debug)]
pub(super) enum Look {
    /// A file to be read.
    File(Found),
    /// Nothing that a scan would find.
    Nothing,
    /// Only a scan can tell.
    Unclear,
}

/// Looks at a path that changed, in a folder that `listing` has scanned, as a scan would find it.
pub(super) fn look(root: &Path, listing: &Listing, path: &Path) -> Look {
    let known = path.parent().is_some_and(|parent| listing.folders.iter().any(|folder| folder == parent));
    if !known || listing.links || listing.hidden.contains(path) {
        return Look::Unclear;
    }
    // Not following links: one that is new may lead anywhere.
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => Look::Unclear,
        Ok(_) if is_hidden(path) => Look::Nothing,
        Ok(metadata) => {
            let statuses = path.parent() == Some(&root.join(status::FOLDER));
            what(path, statuses).map_or(Look::Nothing, |what| {
                Look::File(Found { path: path.to_owned(), stamp: Stamp::of(&metadata), what })
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_hidden(path) => Look::Nothing,
        Err(_) => Look::Unclear,
    }
}

fn what(path: &Path, statuses: bool) -> Option<What> {
    if statuses {
        return status::is_report(path).then_some(What::Status);
    }
    match path.extension()?.to_str()? {
        "yaml" | "yml" => Some(What::Objects(Format::Yaml)),
        "json" => Some(What::Objects(Format::Json)),
        _ => None,
    }
}

/// Reads a file whole, with the stamp it had before: if it changed while it was read, the next scan sees it.
pub(super) fn read(path: &Path) -> Result<(Vec<u8>, Stamp), io::Error> {
    // Not to hang on a FIFO that took the file's place since the scan.
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len().min(LARGEST)).unwrap_or(0));
    read_bounded(&file, &mut bytes)?;
    Ok((bytes, Stamp::of(&metadata)))
}

fn read_bounded(file: &File, bytes: &mut Vec<u8>) -> Result<(), io::Error> {
    let read = file.take(LARGEST.saturating_add(1)).read_to_end(bytes)?;
    if u64::try_from(read).is_ok_and(|read| read > LARGEST) {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("larger than {} MiB: split it", LARGEST >> 20),
        ));
    }
    Ok(())
}
