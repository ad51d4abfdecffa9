//! What each file of the folder last said, and what of it is in force.
//!
//! The rule: a file that is broken, or says what another file already says, keeps its own last good content
//! in force, while the others go on. No object is ever in force twice. Pure: no I/O.

use super::document::{Entry, Key, Parsed};
use super::yaml::Place;
use crate::model::report::{Problem, Severity};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) type Content = Arc<[Entry]>;

/// What [`Files::settle`] came to.
#[derive(Debug)]
pub(super) struct Settled {
    /// All that is wrong.
    pub(super) problems: Vec<Problem>,
    /// What was in force and what is in its place; none: anything may have changed.
    pub(super) replaced: Option<Vec<(Content, Content)>>,
}

#[derive(Debug)]
struct File {
    parsed: Arc<Parsed>,
    /// In force.
    good: Option<Content>,
    /// Not there at the last look: it may be in the middle of being replaced.
    missing: bool,
}

/// The files of the folder, by path.
#[derive(Debug, Default)]
pub(super) struct Files {
    files: BTreeMap<PathBuf, File>,
    /// Read anew since the last settling.
    fresh: BTreeSet<PathBuf>,
    /// Those with problems.
    troubled: BTreeSet<PathBuf>,
    /// All files are there and whole, and in force as they are: then what is read anew can be judged without a
    /// look at all the others.
    plain: bool,
    /// How many objects in force have keys of a hash, if all is plain.
    keys: HashMap<u64, u32>,
}

impl Files {
    /// A file was read anew.
    pub(super) fn update(&mut self, path: &Path, parsed: Parsed) {
        self.fresh.insert(path.to_owned());
        if parsed.problems.is_empty() {
            self.troubled.remove(path);
        } else {
            self.troubled.insert(path.to_owned());
        }
        let parsed = Arc::new(parsed);
        match self.files.get_mut(path) {
            Some(file) => {
                file.parsed = parsed;
                file.missing = false;
            }
            None => {
                self.files.insert(path.to_owned(), File { parsed, good: None, missing: false });
            }
        }
    }

    /// Says whether a file is there. What is missing yields to others that have its objects, but stays until
    /// it is removed.
    pub(super) fn set_missing(&mut self, path: &Path, missing: bool) {
        if let Some(file) = self.files.get_mut(path) {
            file.missing = missing;
            self.plain = false;
        }
    }

    /// A file is gone, and its objects with it.
    pub(super) fn remove(&mut self, path: &Path) {
        self.files.remove(path);
        self.troubled.remove(path);
        self.plain = false;
    }

    /// Decides what is in force.
    pub(super) fn settle(&mut self) -> Settled {
        let replaced = self.settle_fresh();
        let problems = if replaced.is_some() { self.problems() } else { self.settle_all() };
        self.fresh.clear();
        Settled { problems, replaced }
    }

    fn problems(&self) -> Vec<Problem> {
        let troubled = self.troubled.iter().filter_map(|path| self.files.get(path));
        troubled.flat_map(|file| file.parsed.problems.iter().cloned()).collect()
    }

    /// Puts what was read anew in force, if nothing is wrong with it and nothing else was; none: it is not that
    /// simple, and nothing was decided.
    fn settle_fresh(&mut self) -> Option<Vec<(Content, Content)>> {
        if !self.plain {
            return None;
        }
        let mut replaced = Vec::new();
        for path in &self.fresh {
            let file = self.files.get(path)?;
            replaced.push((file.good.clone()?, file.parsed.content.clone()?));
        }
        // From here on the keys are those of neither state until all is done.
        self.plain = false;
        for entry in replaced.iter().flat_map(|(old, _)| old.iter()) {
            let count = self.keys.get_mut(&hash(&entry.key))?;
            *count = count.saturating_sub(1);
        }
        for entry in replaced.iter().flat_map(|(_, new)| new.iter()) {
            let count = self.keys.entry(hash(&entry.key)).or_default();
            if *count > 0 {
                return None;
            }
            *count = 1;
        }
        for entry in replaced.iter().flat_map(|(old, _)| old.iter()) {
            let key = hash(&entry.key);
            if self.keys.get(&key) == Some(&0) {
                self.keys.remove(&key);
            }
        }
        for (path, (_, new)) in self.fresh.iter().zip(&replaced) {
            self.files.get_mut(path)?.good = Some(Arc::clone(new));
        }
        self.plain = true;
        Some(replaced)
    }

    /// Notes whether all is plain, and then which keys there are.
    fn note_keys(&mut self) {
        self.keys.clear();
        self.plain = self.files.values().all(|file| match (&file.parsed.content, &file.good) {
            (Some(said), Some(good)) => !file.missing && Arc::ptr_eq(said, good),
            _ => false,
        });
        if self.plain {
            for entry in self.files.values().flat_map(|file| file.good.iter()).flat_map(|good| good.iter()) {
                *self.keys.entry(hash(&entry.key)).or_default() += 1;
            }
        }
    }

    fn settle_all(&mut self) -> Vec<Problem> {
        let mut problems = self.problems();
        let mut proposed: BTreeMap<&Path, Option<Content>> = self
            .files
            .iter()
            .map(|(path, file)| (path.as_path(), file.parsed.content.clone().or_else(|| file.good.clone())))
            .collect();
        loop {
            let clashes = clashes(&proposed);
            let mut refused: BTreeMap<&Path, Option<Content>> = BTreeMap::new();
            for Clash { key, path, place, other, other_place } in clashes {
                let missing = |path| self.files.get(path).is_some_and(|file| file.missing);
                let Some(file) = self.files.get(path) else { continue };
                // It was moved: its objects come from elsewhere now.
                if file.missing {
                    refused.insert(path, None);
                    continue;
                }
                if missing(other) {
                    continue;
                }
                // What is in force stays: only the newcomer is refused, or both if both are new.
                let in_force = match (proposed.get(path), &file.good) {
                    (Some(Some(new)), Some(good)) => Arc::ptr_eq(new, good),
                    _ => false,
                };
                if in_force {
                    continue;
                }
                problems.push(Problem {
                    path: path.to_owned(),
                    line: Some(place.line),
                    column: Some(place.column),
                    severity: Severity::Error,
                    object: Some(key.to_string()),
                    message: format!("is also in {}:{}", other.display(), other_place.line),
                });
                refused.insert(path, file.good.clone());
            }
            // Each round takes at least one file's new or missing content away, and what was in force together
            // never clashes.
            if refused.is_empty() {
                break;
            }
            proposed.extend(refused);
        }
        let settled: Vec<Option<Content>> = proposed.into_values().collect();
        for (file, content) in self.files.values_mut().zip(settled) {
            file.good = content;
        }
        self.note_keys();
        problems
    }

    /// Every file has something in force.
    pub(super) fn complete(&self) -> bool {
        self.plain || self.files.values().all(|file| file.good.is_some())
    }

    /// What is in force.
    pub(super) fn in_force(&self) -> impl Iterator<Item = (&Path, &[Entry])> {
        self.files.iter().filter_map(|(path, file)| Some((path.as_path(), file.good.as_deref()?)))
    }
}

fn hash(key: &Key) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// One side of an object that is in two files.
struct Clash<'p> {
    key: Key,
    path: &'p Path,
    place: Place,
    other: &'p Path,
    other_place: Place,
}

fn clashes<'p>(proposed: &BTreeMap<&'p Path, Option<Content>>) -> Vec<Clash<'p>> {
    let mut owners: HashMap<&Key, (&'p Path, Place)> = HashMap::new();
    let mut clashes = Vec::new();
    for (path, content) in proposed {
        for entry in content.iter().flat_map(|content| content.iter()) {
            match owners.entry(&entry.key) {
                std::collections::hash_map::Entry::Vacant(vacant) => {
                    vacant.insert((path, entry.place));
                }
                std::collections::hash_map::Entry::Occupied(owner) => {
                    let (other, other_place) = *owner.get();
                    let (key, place) = (entry.key.clone(), entry.place);
                    clashes.push(Clash { key: key.clone(), path, place, other, other_place });
                    clashes.push(Clash {
                        key,
                        path: other,
                        place: other_place,
                        other: path,
                        other_place: place,
                    });
                }
            }
        }
    }
    clashes
}

#[cfg(test)]
mod tests {
    use super::super::document::{Format, parse};
    use super::*;

    fn set(files: &mut Files, path: &str, names: &[&str]) {
        let text: String = names
            .iter()
            .map(|name| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n"))
            .collect();
        files.update(Path::new(path), parse(Path::new(path), text.as_bytes(), Format::Yaml));
    }

    fn break_file(files: &mut Files, path: &str) {
        files.update(Path::new(path), parse(Path::new(path), b"kind: [", Format::Yaml));
    }

    fn state(files: &mut Files) -> (Vec<String>, Vec<String>) {
        let problems = files.settle().problems.iter().map(ToString::to_string).collect();
        let objects = files
            .in_force()
            .flat_map(|(path, entries)| {
                entries.iter().map(move |e| format!("{}:{}", path.display(), e.key.name))
            })
            .collect();
        (problems, objects)
    }

    #[test]
    fn a_broken_file_keeps_its_last_content_while_others_go_on() {
        let mut files = Files::default();
        set(&mut files, "a", &["x"]);
        set(&mut files, "b", &["y"]);
        assert_eq!(state(&mut files).1, ["a:x", "b:y"]);
        break_file(&mut files, "a");
        set(&mut files, "b", &["z"]);
        let (problems, objects) = state(&mut files);
        assert_eq!(problems.len(), 1);
        assert_eq!(objects, ["a:x", "b:z"]);
        assert!(files.complete());
        set(&mut files, "a", &["w"]);
        assert_eq!(state(&mut files), (vec![], vec!["a:w".to_owned(), "b:z".to_owned()]));
    }

    #[test]
    fn a_new_file_that_is_broken_leaves_the_set_incomplete() {
        let mut files = Files::default();
        break_file(&mut files, "a");
        assert_eq!(state(&mut files).1, Vec::<String>::new());
        assert!(!files.complete());
        set(&mut files, "a", &[]);
        state(&mut files);
        assert!(files.complete());
    }

    #[test]
    fn the_second_file_with_an_object_is_refused_until_the_first_lets_go() {
        let mut files = Files::default();
        set(&mut files, "b", &["x"]);
        state(&mut files);
        set(&mut files, "a", &["w", "x"]);
        let (problems, objects) = state(&mut files);
        assert_eq!(problems, ["a:6:1: Node x: is also in b:2"]);
        assert_eq!(objects, ["b:x"]);
        set(&mut files, "b", &["y"]);
        assert_eq!(state(&mut files), (vec![], vec!["a:w".to_owned(), "a:x".to_owned(), "b:y".to_owned()]));
    }

    #[test]
    fn two_new_files_with_one_object_are_both_refused() {
        let mut files = Files::default();
        set(&mut files, "a", &["x"]);
        set(&mut files, "b", &["x"]);
        let (problems, objects) = state(&mut files);
        assert_eq!(problems, ["b:2:1: Node x: is also in a:2", "a:2:1: Node x: is also in b:2"]);
        assert_eq!(objects, Vec::<String>::new());
        assert!(!files.complete());
        files.remove(Path::new("a"));
        assert_eq!(state(&mut files), (vec![], vec!["b:x".to_owned()]));
    }

    #[test]
    fn an_object_may_move_between_files_in_one_step() {
        let mut files = Files::default();
        set(&mut files, "a", &["x", "y"]);
        set(&mut files, "b", &["z"]);
        state(&mut files);
        set(&mut files, "a", &["x"]);
        set(&mut files, "b", &["y", "z"]);
        assert_eq!(state(&mut files).0, Vec::<String>::new());
    }

    #[test]
    fn a_renamed_file_keeps_its_objects_in_force() {
        let mut files = Files::default();
        set(&mut files, "a", &["x"]);
        state(&mut files);
        files.set_missing(Path::new("a"), true);
        assert_eq!(state(&mut files), (vec![], vec!["a:x".to_owned()]));
        set(&mut files, "b", &["x"]);
        assert_eq!(state(&mut files), (vec![], vec!["b:x".to_owned()]));
        files.remove(Path::new("a"));
        assert_eq!(state(&mut files), (vec![], vec!["b:x".to_owned()]));
    }

    /// a's change is refused for the sake of b, so a keeps y; c must not have it then.
    #[test]
    fn a_refusal_may_lead_to_another() {
        let mut files = Files::default();
        set(&mut files, "a", &["y"]);
        set(&mut files, "b", &["x"]);
        set(&mut files, "c", &["z"]);
        state(&mut files);
        set(&mut files, "a", &["x"]);
        set(&mut files, "c", &["y"]);
        let (problems, objects) = state(&mut files);
        assert_eq!(problems, ["a:2:1: Node x: is also in b:2", "c:2:1: Node y: is also in a:2"]);
        assert_eq!(objects, ["a:y", "b:x", "c:z"]);
    }
}
