//! `cargo xtask arch`: modules import downwards only, and the house rules that no lint knows.
//!
//! The rules: every file but tests opens with `//!`; no file is longer than [`LONGEST`] lines; `unsafe` stands only
//! where [`UNSAFE`] says; nothing is called by a name that says nothing.

mod layers;
mod lexer;
mod paths;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{cargo, out};

/// Lines that a file may have; a file is one idea.
const LONGEST: usize = 700;

/// Files and folders that may say `unsafe`.
const UNSAFE: [&str; 6] =
    ["bpf/", "src/datapath.rs", "src/datapath/", "src/main.rs", "src/net/netns.rs", "src/net/sockopt.rs"];

/// File names that say nothing.
const NAMELESS: [&str; 6] = ["common", "helper", "helpers", "manager", "util", "utils"];

/// What is read: all of the workspace's own Rust.
const FOLDERS: [&str; 5] = ["build.rs", "src", "bpf", "xtask", "integration"];

/// One source file.
struct Source {
    /// From the workspace's root.
    path: String,
    text: String,
}

/// A broken rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    path: String,
    line: usize,
    what: String,
}

/// Reads the workspace; fails if any rule is broken.
pub(crate) fn run() -> Result<()> {
    let sources = sources(&cargo::root())?;
    let violations = check(&sources);
    for Violation { path, line, what } in &violations {
        out::line(&format!("{path}:{line}: {what}"));
    }
    if !violations.is_empty() {
        bail!("{} broken rules of the architecture in {} files", violations.len(), sources.len());
    }
    out::line(&format!("{} files, no import upwards, all house rules kept", sources.len()));
    Ok(())
}

/// All violations, in order.
fn check(sources: &[Source]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut read = Vec::new();
    for source in sources {
        house_rules(source, &mut found);
        let module = module_of(&source.path);
        let reading =
            paths::read("netd", module.as_deref().unwrap_or_default(), &lexer::tokens(&source.text));
        if !UNSAFE.iter().any(|allowed| source.path.starts_with(allowed)) {
            found.extend(reading.unsafe_lines.iter().map(|line| Violation {
                path: source.path.clone(),
                line: *line,
                what: format!("`unsafe` is allowed only in {}", UNSAFE.join(", ")),
            }));
        }
        if let Some(module) = module {
            read.push((source, module, reading));
        }
    }
    let modules: BTreeSet<&paths::Path> = read.iter().map(|(_, module, _)| module).collect();
    let tests: BTreeSet<&paths::Path> =
        read.iter().flat_map(|(_, _, reading)| &reading.test_modules).collect();
    for (source, module, reading) in &read {
        if (1..=module.len()).any(|n| module.get(..n).is_some_and(|part| tests.contains(&part.to_vec()))) {
            continue;
        }
        // The table of contents declares everything and imports nothing.
        if module.is_empty() {
            found.extend(reading.references.iter().map(|to| Violation {
                path: source.path.clone(),
                line: to.line,
                what: format!("src/lib.rs only declares modules; it must not import {}", to.path.join("::")),
            }));
            continue;
        }
        if layers::of(module).is_none() {
            found.push(Violation {
                path: source.path.clone(),
                line: 1,
                what: format!(
                    "module {} has no layer; add it to xtask/src/arch/layers.rs",
                    module.join("::")
                ),
            });
        }
        for to in &reading.references {
            if to.private_import && modules.contains(&to.path) {
                continue;
            }
            if let Some(why) = layers::forbidden(module, &to.path) {
                found.push(Violation {
                    path: source.path.clone(),
                    line: to.line,
                    what: format!("{} imports {}: {why}", module.join("::"), to.path.join("::")),
                });
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

fn house_rules(source: &Source, found: &mut Vec<Violation>) {
    let mut broken = |line, what| found.push(Violation { path: source.path.clone(), line, what });
    let stem = Path::new(&source.path).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    if !source.text.starts_with("//! ") && stem != "tests" {
        broken(1, "a file opens with `//!`: what it owns, its invariants, what it follows".to_owned());
    }
    let lines = source.text.lines().count();
    if lines > LONGEST {
        broken(lines, format!("{lines} lines; a file is one idea of at most {LONGEST}"));
    }
    if stem == "mod" {
        broken(1, "modules are `name.rs` and `name/`, never `mod.rs`".to_owned());
    }
    if NAMELESS.contains(&stem) {
        broken(1, format!("`{stem}` says nothing about what is in it"));
    }
}

/// The module a file of `src` is: nothing for the crate's root, `main` for the binary; `None` elsewhere.
fn module_of(path: &str) -> Option<paths::Path> {
    let inside = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    if inside == "lib" {
        return Some(Vec::new());
    }
    Some(inside.split('/').map(str::to_owned).collect())
}

/// All Rust files of [`FOLDERS`], by name.
fn sources(root: &Path) -> Result<Vec<Source>> {
    let mut waiting: Vec<PathBuf> = FOLDERS.iter().map(|folder| root.join(folder)).collect();
    let mut found = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))?;
            for entry in entries {
                waiting.push(entry.with_context(|| format!("cannot list {}", path.display()))?.path());
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let path = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            found.push(Source { path, text });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}
