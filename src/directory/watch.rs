//! What changed in the folder, as inotify tells it.
//!
//! Each folder has a watch of its own, set before the folder is listed; the recursion is ours, so that links
//! and folders that come back are followed. Events only say where to look: the scan decides what is there.
//! One thing events know that a scan cannot: a file that somebody is still writing. Its text is left alone
//! until it is closed, so that a copy under way is never read as a file with fewer objects. A file that was
//! only created may be a link, which nobody closes: it is left alone while it is empty.

use super::scan::Identity;
use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A file that stays open for writing is read all the same this long after it was last written to.
const PATIENCE: Duration = Duration::from_secs(1);
/// And this long after the writing began.
const LONGEST_PATIENCE: Duration = Duration::from_secs(10);

/// Changes since they were last taken.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Files to be read whatever their stamps say.
    pub(super) dirty: HashSet<PathBuf>,
    /// Files to be left alone.
    pub(super) busy: HashMap<PathBuf, Busy>,
    /// Events were lost: everything is dirty.
    pub(super) all: bool,
}

/// A file that somebody seems to write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Busy {
    /// How long it is to be left alone at most.
    pub(super) left: Duration,
    /// It was created, and not yet written to: it counts only while it is empty.
    pub(super) only_empty: bool,
}

#[derive(Clone, Copy, Debug)]
struct Writing {
    since: Instant,
    last: Instant,
    only_created: bool,
}

impl Writing {
    /// A file was created.
    fn begin() -> Self {
        let now = Instant::now();
        Self { since: now, last: now, only_created: true }
    }
}

#[derive(Debug, Default)]
struct Pending {
    dirty: HashSet<PathBuf>,
    writing: HashMap<PathBuf, Writing>,
    all: bool,
}

#[derive(Debug, Default)]
struct Shared {
    pending: Mutex<Pending>,
    wake: Notify,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wake-up call for whoever scans.
#[derive(Clone, Debug)]
pub(super) struct Alarm(Arc<Shared>);

impl Alarm {
    /// Waits for a change; one that came before counts.
    pub(super) async fn changed(&self) {
        self.0.wake.notified().await;
    }
}

/// The watches of the folder.
#[derive(Debug)]
pub(super) struct Watch {
    root: PathBuf,
    shared: Arc<Shared>,
    watcher: Option<RecommendedWatcher>,
    /// Why there is no watcher, or no watch on what is above the folder: tried anew before each look.
    trouble: Option<String>,
    /// Why a folder has no watch: so until a scan tries anew.
    unwatched: Option<String>,
    watched: BTreeMap<PathBuf, Identity>,
    seen: BTreeSet<PathBuf>,
}

impl Watch {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            shared: Arc::default(),
            watcher: None,
            trouble: None,
            unwatched: None,
            watched: BTreeMap::new(),
            seen: BTreeSet::new(),
        }
    }

    pub(super) fn alarm(&self) -> Alarm {
        Alarm(Arc::clone(&self.shared))
    }

    /// Why changes may go unseen until the next full scan.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref().or(self.unwatched.as_deref())
    }

    /// Before a look or a scan: takes the changes, and makes sure of a watcher and of a watch on what is above the
    /// folder, which sees the folder itself come, go, and be swapped.
    pub(super) fn begin(&mut self) -> Changes {
        self.trouble = None;
        self.seen.clear();
        if self.watcher.is_none() {
            let (root, shared) = (self.root.clone(), Arc::clone(&self.shared));
            // The handler runs on notify's own thread, which ends with the watcher.
            match notify::recommended_watcher(move |event| note(&root, &shared, event)) {
                Ok(watcher) => {
                    self.watcher = Some(watcher);
                    self.watched.clear();
                }
                Err(error) => self.trouble = Some(format!("cannot watch: {error}")),
            }
        }
        let changes = self.take();
        // A folder that was removed or moved lost its watch, even if one with its number is there again.
        for folder in &changes.dirty {
            self.forget(folder);
        }
        let above = self.root.ancestors().skip(1).find_map(|above| Some((above, identity(above)?)));
        if let Some((above, identity)) = above.map(|(above, identity)| (above.to_owned(), identity)) {
            self.trouble = self.watch(&above, identity).err().or(self.trouble.take());
        }
        changes
    }

    fn take(&self) -> Changes {
        let mut pending = self.shared.pending();
        let now = Instant::now();
        let mut changes = Changes {
            dirty: std::mem::take(&mut pending.dirty),
            busy: HashMap::new(),
            all: std::mem::take(&mut pending.all),
        };
        pending.writing.retain(|path, writing| {
            let left = PATIENCE
                .saturating_sub(now.saturating_duration_since(writing.last))
                .min(LONGEST_PATIENCE.saturating_sub(now.saturating_duration_since(writing.since)));
            if left.is_zero() {
                changes.dirty.insert(path.clone());
                return false;
            }
            changes.busy.insert(path.clone(), Busy { left, only_empty: writing.only_created });
            true
        });
        changes
    }

    /// A scan begins, which enters every folder.
    pub(super) fn begin_scan(&mut self) {
        self.unwatched = None;
    }

    /// A folder is about to be listed.
    pub(super) fn enter(&mut self, folder: &Path, identity: Identity) {
        if let Err(trouble) = self.watch(folder, identity) {
            self.unwatched = Some(trouble);
        }
    }

    fn watch(&mut self, folder: &Path, identity: Identity) -> Result<(), String> {
        self.seen.insert(folder.to_owned());
        if self.watched.get(folder) == Some(&identity) {
            return Ok(());
        }
        // Another folder may have taken its path.
        self.forget(folder);
        let Some(watcher) = &mut self.watcher else { return Ok(()) };
        watcher
            .watch(folder, RecursiveMode::NonRecursive)
            .map_err(|error| format!("cannot watch {}: {error}", folder.display()))?;
        self.watched.insert(folder.to_owned(), identity);
        Ok(())
    }

    /// After a scan: lets go of folders that are no more.
    pub(super) fn end(&mut self) {
        let gone: Vec<PathBuf> =
            self.watched.keys().filter(|folder| !self.seen.contains(*folder)).cloned().collect();
        for folder in gone {
            self.forget(&folder);
        }
    }

    fn forget(&mut self, folder: &Path) {
        if let (Some(_), Some(watcher)) = (self.watched.remove(folder), &mut self.watcher) {
            // The watch may have gone with the folder: no matter.
            drop(watcher.unwatch(folder));
        }
    }
}

fn identity(path: &Path) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Takes an event down.
fn note(root: &Path, shared: &Shared, event: notify::Result<notify::Event>) {
    let Ok(event) = event else {
        shared.pending().all = true;
        shared.wake.notify_one();
        return;
    };
    let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
    if matches!(event.kind, EventKind::Access(_)) && event.kind != closed {
        // Somebody reads: most often we.
        return;
    }
    let mut pending = shared.pending();
    let mut wake = event.need_rescan();
    pending.all |= wake;
    for path in event.paths {
        // The folder above is watched for the root's own sake only.
        if !path.starts_with(root) && !root.starts_with(&path) {
            continue;
        }
        wake = true;
        match event.kind {
            EventKind::Modify(ModifyKind::Data(_)) => {
                let writing = pending.writing.entry(path).or_insert_with(Writing::begin);
                (writing.last, writing.only_created) = (Instant::now(), false);
            }
            EventKind::Create(CreateKind::File) => {
                pending.writing.insert(path.clone(), Writing::begin());
                pending.dirty.insert(path);
            }
            // A chmod amid the writing ends nothing.
            EventKind::Modify(ModifyKind::Metadata(_)) => {
                pending.dirty.insert(path);
            }
            _ => {
                pending.writing.remove(&path);
                pending.dirty.insert(path);
            }
        }
    }
    drop(pending);
    if wake {
        shared.wake.notify_one();
    }
}
