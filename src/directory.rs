//! The directory source: a watched folder of ordinary Kubernetes YAML or JSON as the state of the network.
//!
//! What is read: regular files `*.yaml`, `*.yml` and `*.json` of the folder and its subfolders, hidden names
//! left out; in `status/`, what agents report ([`status`]). How: inotify says that something changed, a look at
//! those paths or, where that cannot tell, a scan of all says what, and only changed files are parsed; a full
//! scan every 30 seconds is the net below.
//!
//! Invariants: the model that is given out never has a broken file's text in it, nor one object from two
//! files (`files`); the first model is given out only when every file is good, since an agent that starts
//! must not take away what it cannot read; a folder that vanished leaves the last model in force.
//!
//! [`run`] is one task; scans run on a blocking thread that holds the source while it works, so aborting
//! the task between scans loses nothing: all state is that of the folder.

mod assemble;
mod document;
mod files;
mod scan;
mod watch;
mod yaml;

pub mod config;
pub mod status;

#[cfg(test)]
mod tests;

use crate::model::report::{Problem, Report, Severity};
use crate::model::{Model, ObjectName};
use crate::telemetry::chain;
use config::Config;
use document::Parsed;
use files::{Content, Files};
use scan::{Found, Listing, Look, Stamp, What};
use status::PodStatus;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use watch::{Changes, Watch};

/// From one look to the next: a burst of changes is few.
const DEBOUNCE: Duration = Duration::from_millis(10);
/// From the first change to a look: who writes a file makes several changes at once.
const SETTLE: Duration = Duration::from_millis(1);
/// A file that is not there is in force for this long yet: editors and `git` take one away and make it anew.
const GRACE: Duration = Duration::from_millis(10);
/// Between full scans.
const RESCAN: Duration = Duration::from_secs(30);
/// Between full scans while inotify cannot be had.
const RESCAN_BLIND: Duration = Duration::from_secs(2);

/// Follows the folder until cancelled: gives each model that differs to `publish`, and each change of what is
/// wrong to `report`. Both are called where the folder was read, on a thread that may block.
pub async fn run(
    config: Config,
    publish: impl Fn(Arc<Model>) + Send + 'static,
    report: impl Fn(Report) + Send + 'static,
    cancel: CancellationToken,
) {
    let source = Source::new(&config.path);
    let alarm = source.watch.alarm();
    let mut follower = Follower { source, publish, report, last_report: None };
    let mut why = Why::Time;
    let mut pace = Pace { last: Instant::now(), idle: false };
    loop {
        let looked = tokio::task::spawn_blocking(move || {
            let told = follower.look(why);
            (follower, told)
        })
        .await;
        let (next, idle);
        (follower, (next, idle)) = match looked {
            Ok(looked) => looked,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going down.
                Err(_) => return,
            },
        };
        pace.looked(idle, Instant::now());
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(next) => why = Why::Time,
            () = alarm.changed() => {
                why = Why::Alarm;
                let wait = pace.wait(Instant::now());
                if !wait.is_zero() {
                    tokio::select! {
                        () = cancel.cancelled() => return,
                        () = tokio::time::sleep(wait) => {}
                    }
                }
            }
        }
    }
}

/// Reads the folder once.
///
/// # Errors
/// Something in it is not as it ought to be: what is there may mean something else than it would.
pub fn load(path: &Path) -> Result<Arc<Model>, Broken> {
    let Outcome { model, report, .. } = Source::new(path).refresh(Why::Time);
    match model {
        Some(model) if report.errors().next().is_none() => Ok(model),
        _ => Err(Broken { path: path.to_owned(), problems: report.errors().cloned().collect() }),
    }
}

/// Why a folder is no state of a cluster.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be used{}", path.display(), lines(problems))]
pub struct Broken {
    /// The folder.
    pub path: PathBuf,
    /// What is wrong in it.
    pub problems: Vec<Problem>,
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

/// How looks keep their distance.
struct Pace {
    /// The last look that the next one keeps its distance from.
    last: Instant,
    /// The look before found nothing to be read.
    idle: bool,
}

impl Pace {
    /// A look is over. Others' change beside the files, such as a hidden one that is to take a file's place, is no
    /// burst; but where one follows upon the other somebody may write without end.
    fn looked(&mut self, idle: bool, now: Instant) {
        if !idle || self.idle {
            self.last = now;
        }
        self.idle = idle;
    }

    /// How long the next look has to wait.
    fn wait(&self, now: Instant) -> Duration {
        DEBOUNCE.saturating_sub(now.saturating_duration_since(self.last))
    }
}

/// The source, and who is told.
struct Follower<P, R> {
    source: Source,
    publish: P,
    report: R,
    last_report: Option<Report>,
}

impl<P: Fn(Arc<Model>), R: Fn(Report)> Follower<P, R> {
    /// Looks once and tells; gives the time until the next look, even if nothing happens, and whether there was
    /// nothing to be read.
    fn look(&mut self, why: Why) -> (Duration, bool) {
        if why == Why::Alarm {
            // The runtime's clock would make two of this one millisecond.
            std::thread::sleep(SETTLE);
        }
        let Outcome { model, report, next, idle } = self.source.refresh(why);
        if self.last_report.as_ref() != Some(&report) {
            (self.report)(report.clone());
            self.last_report = Some(report);
        }
        if let Some(model) = model {
            (self.publish)(model);
        }
        (next, idle)
    }
}

/// What asks for a look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    /// Changes. The look before may have taken in all that they are.
    Alarm,
    /// It is due.
    Time,
}

/// What a scan came to.
struct Outcome {
    /// Set if something may have changed and the source is synced.
    model: Option<Arc<Model>>,
    report: Report,
    /// When to scan again, even if nothing happens.
    next: Duration,
    /// There was nothing to be read.
    idle: bool,
}

/// A status file as last read.
struct StatusFile {
    stamp: Stamp,
    read: Result<PodStatus, Problem>,
}

/// The folder and all that is known of it.
struct Source {
    root: PathBuf,
    watch: Watch,
    files: Files,
    stamps: BTreeMap<PathBuf, Option<Stamp>>,
    /// Files that were there, and since when they are not.
    missing: BTreeMap<PathBuf, Instant>,
    statuses: BTreeMap<PathBuf, StatusFile>,
    /// The last scan, without its files, and when it was.
    scanned: Option<(Instant, Listing)>,
    synced: bool,
    /// The last model that was put together, and what was wrong with it beside the files.
    assembled: Option<(Arc<Model>, Vec<Problem>)>,
    /// Problems of what is in force, kept for scans that find nothing changed.
    settled: Vec<Problem>,
    objects: usize,
    in_force: usize,
}

impl Source {
    fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            watch: Watch::new(root),
            files: Files::default(),
            stamps: BTreeMap::new(),
            missing: BTreeMap::new(),
            statuses: BTreeMap::new(),
            scanned: None,
            synced: false,
            assembled: None,
            settled: Vec::new(),
            objects: 0,
            in_force: 0,
        }
    }

    /// Looks at the folder, or at what changed in it, and takes that in.
    fn refresh(&mut self, why: Why) -> Outcome {
        let changes = self.watch.begin();
        let (files, mut changed) = match self.look(&changes, why) {
            Some(files) => (files, false),
            None => self.scan(),
        };
        let whole = if self.watch.trouble().is_some() { RESCAN_BLIND } else { RESCAN };
        let since = self.scanned.as_ref().map_or(Duration::ZERO, |(at, _)| at.elapsed());
        let mut next = whole.saturating_sub(since);
        if !self.missing.is_empty() {
            next = next.min(GRACE);
        }
        let mut reported = changed;
        for found in &files {
            let busy = changes.busy.get(&found.path);
            if let Some(busy) = busy.filter(|busy| !busy.only_empty || found.stamp.is_empty()) {
                next = next.min(busy.left);
                continue;
            }
            match found.what {
                What::Objects(format) => changed |= self.read_objects(found, format, &changes),
                What::Status => reported |= self.read_status(found, &changes),
            }
        }
        changed |= reported;
        let mut model = None;
        let was_synced = self.synced;
        let mut replaced = None;
        if changed {
            let settled = self.files.settle();
            self.settled = settled.problems;
            replaced = settled.replaced.filter(|_| !reported);
        }
        self.synced |=
            self.listing().is_some_and(|listing| listing.failed.is_empty()) && self.files.complete();
        if changed || self.synced != was_synced {
            let assembled = self.assemble(replaced.as_deref());
            if self.synced {
                model = Some(assembled);
            }
        }
        Outcome { model, report: self.report(), next, idle: files.is_empty() && !changed }
    }

    fn listing(&self) -> Option<&Listing> {
        self.scanned.as_ref().map(|(_, listing)| listing)
    }

    /// The files at the paths that changed, if a look at these tells all.
    fn look(&self, changes: &Changes, why: Why) -> Option<Vec<Found>> {
        let (at, listing) = self.scanned.as_ref()?;
        let clean = listing.failed.is_empty() && listing.circles.is_empty() && self.missing.is_empty();
        let untold = changes.dirty.is_empty() && changes.busy.is_empty();
        let asked = untold && why == Why::Time;
        let blind = changes.all || asked || self.watch.trouble().is_some();
        if blind || !clean || at.elapsed() >= RESCAN {
            return None;
        }
        let mut files = Vec::new();
        for path in changes.dirty.iter().chain(changes.busy.keys()) {
            match scan::look(&self.root, listing, path) {
                Look::File(found) => files.push(found),
                Look::Nothing => {}
                Look::Unclear => return None,
            }
        }
        Some(files)
    }

    /// Scans the folder; gives its files, and true if some are no more.
    fn scan(&mut self) -> (Vec<Found>, bool) {
        self.watch.begin_scan();
        let mut listing = scan::scan(&self.root, |folder, identity| self.watch.enter(folder, identity));
        self.watch.end();
        let changed = self.forget_gone(&listing);
        let files = std::mem::take(&mut listing.files);
        self.scanned = Some((Instant::now(), listing));
        (files, changed)
    }

    /// Drops what is no more; what could not be looked at stays, and so does for a moment what may come back.
    fn forget_gone(&mut self, listing: &Listing) -> bool {
        let found: BTreeSet<&Path> = listing.files.iter().map(|found| found.path.as_path()).collect();
        let gone = |path: &Path| !found.contains(path) && !listing.hides(path);
        let mut changed = false;

        let now = Instant::now();
        let (files, missing) = (&mut self.files, &mut self.missing);
        self.stamps.retain(|path, _| {
            if !gone(path) {
                if missing.remove(path).is_some() {
                    files.set_missing(path, false);
                    changed = true;
                }
                return true;
            }
            let since = *missing.entry(path.clone()).or_insert(now);
            if now.saturating_duration_since(since) < GRACE {
                files.set_missing(path, true);
                return true;
            }
            missing.remove(path);
            files.remove(path);
            changed = true;
            false
        });
        // Reports are replaced by renaming: one that is not there is no more.
        let before = self.statuses.len();
        self.statuses.retain(|path, _| !gone(path));
        changed || self.statuses.len() != before
    }

    fn read_objects(&mut self, found: &Found, format: document::Format, changes: &Changes) -> bool {
        let known = self.stamps.get(&found.path) == Some(&Some(found.stamp));
        if known && !changes.all && !changes.dirty.contains(&found.path) {
            return false;
        }
        let (parsed, stamp) = match scan::read(&found.path) {
            Ok((bytes, stamp)) => (document::parse(&found.path, &bytes, format), Some(stamp)),
            // It went after the scan: the next one will not find it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return false,
            // Without a stamp it is tried again with every scan.
            Err(error) => (Parsed::unreadable(&found.path, format!("cannot be read: {error}")), None),
        };
        self.stamps.insert(found.path.clone(), stamp);
        self.files.update(&found.path, parsed);
        true
    }

    fn read_status(&mut self, found: &Found, changes: &Changes) -> bool {
        let known = self.statuses.get(&found.path).is_some_and(|file| file.stamp == found.stamp);
        if known && !changes.all && !changes.dirty.contains(&found.path) {
            return false;
        }
        let read = match status::read(&found.path) {
            Err(status::Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return false;
            }
            read => read.map_err(|error| {
                let message = format!("ignored: {}", chain(&error));
                assemble::problem(&found.path, None, message)
            }),
        };
        self.statuses.insert(found.path.clone(), StatusFile { stamp: found.stamp, read });
        true
    }

    /// Puts the model together from what is in force, or what was replaced of it into the last one.
    fn assemble(&mut self, replaced: Option<&[(Content, Content)]>) -> Arc<Model> {
        let patched = match (&self.assembled, replaced) {
            (Some((model, problems)), Some(replaced)) => {
                let patched = assemble::patch(model, replaced, |pod| self.report_of(pod));
                patched.map(|model| (Arc::new(model), problems.clone()))
            }
            _ => None,
        };
        match replaced {
            Some(replaced) => {
                let (old, new) =
                    replaced.iter().fold((0, 0), |sum, (old, new)| (sum.0 + old.len(), sum.1 + new.len()));
                self.objects = (self.objects + new).saturating_sub(old);
            }
            None => {
                self.objects = self.files.in_force().map(|(_, entries)| entries.len()).sum();
                self.in_force = self.files.in_force().count();
            }
        }
        let (model, problems) = patched.unwrap_or_else(|| self.assemble_all());
        self.settled.extend(problems.iter().cloned());
        self.assembled = Some((Arc::clone(&model), problems));
        model
    }

    /// The report on a pod, as [`Self::assemble_all`] takes it.
    fn report_of(&self, pod: &ObjectName) -> Option<&PodStatus> {
        let mut reports = self.statuses.values().rev().filter_map(|file| file.read.as_ref().ok());
        reports.find(|report| report.namespace == *pod.namespace && report.name == *pod.name)
    }

    fn assemble_all(&self) -> (Arc<Model>, Vec<Problem>) {
        let mut reports = assemble::Reports::new();
        let mut problems = Vec::new();
        for (path, file) in &self.statuses {
            match &file.read {
                Ok(status) => {
                    reports.insert(status.pod(), (path, status));
                }
                Err(problem) => problems.push(problem.clone()),
            }
        }
        let entries = self.files.in_force().flat_map(|(_, entries)| entries.iter());
        let former = self.assembled.as_ref().map(|(model, _)| Arc::clone(model)).unwrap_or_default();
        let (model, contradicted) = assemble::assemble(&former, entries, reports);
        problems.extend(contradicted);
        (Arc::new(model), problems)
    }

    fn report(&self) -> Report {
        let (failed, circles) =
            self.listing().map_or((&[][..], &[][..]), |listing| (&listing.failed[..], &listing.circles[..]));
        let mut problems = self.settled.clone();
        let at = |path: &Path, severity, message: String| Problem {
            path: path.to_owned(),
            line: None,
            column: None,
            severity,
            object: None,
            message,
        };
        for (path, message) in failed {
            problems.push(at(path, Severity::Error, message.clone()));
        }
        for path in circles {
            problems.push(at(
                path,
                Severity::Warning,
                "ignored: a link to a folder that it is in".to_owned(),
            ));
        }
        if let Some(trouble) = self.watch.trouble() {
            let message = format!("{trouble}; changes are seen within {} s", RESCAN_BLIND.as_secs());
            problems.push(at(&self.root, Severity::Warning, message));
        }
        problems.sort();
        problems.dedup();
        Report { synced: self.synced, files: self.in_force, objects: self.objects, problems }
    }
}
