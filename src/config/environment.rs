//! Environment variables that stand over the file: `NETD_IPAM__COOL_DOWN=1m` is `ipam.cool_down`.
//!
//! Only names with `__` are netd's. Kubernetes puts `NETD_PORT`, `NETD_SERVICE_HOST` and the like into every
//! pod of a namespace with a Service called `netd`, so other names cannot be errors, unless one differs from
//! a key's only by a missing underscore.

use super::problem::Problem;
use super::source::{Origin, Sources};
use super::tree::{self, Kind, Node};
use std::collections::BTreeMap;
use std::ffi::OsString;

const PREFIX: &str = "NETD_";

/// The variable that sets a key.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_ascii_uppercase())
}

/// The variables netd may mean, by name.
pub(super) fn select(all: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<(String, OsString)> {
    let mut own: Vec<_> = all
        .into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with(PREFIX))
        .collect();
    own.sort();
    own
}

/// Lays the variables over the tree.
pub(super) fn apply(
    variables: &[(String, OsString)],
    sources: &mut Sources,
    root: &mut Node,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, value) in variables.iter().filter(|(name, _)| name.contains("__")) {
        let Some(text) = value.to_str() else {
            let source = sources.add_variable(name, value.to_string_lossy().into_owned());
            let at = sources.excerpt(sources.whole(source));
            problems.push(Problem::at(at, format!("the value of {name} is not UTF-8"), ""));
            continue;
        };
        let source = sources.add_variable(name, text.to_owned());
        let at = sources.whole(source);
        let path: Vec<String> =
            name.strip_prefix(PREFIX).unwrap_or(name).split("__").map(str::to_ascii_lowercase).collect();
        if path.iter().any(String::is_empty) {
            let message = format!("{name} names no key");
            let help = "write the levels of a key with `__` between them, such as NETD_IPAM__COOL_DOWN";
            problems.push(Problem::at(sources.name_excerpt(at), message, "").help(help));
            continue;
        }
        // A list or section in a variable is YAML in brackets; anything else is the text itself.
        let node = if text.trim_start().starts_with(['[', '{']) {
            match tree::parse(sources, source) {
                Ok(node) => Node { at, ..node },
                Err(problem) => {
                    problems.push(problem);
                    continue;
                }
            }
        } else {
            Node { at, kind: Kind::Plain(text.to_owned()) }
        };
        tree::overlay(root, &path, node);
    }
    problems
}

/// Problems of variables that would be a key's but for the number of underscores.
pub(super) fn near_misses(variables: &[(String, OsString)], keys: &BTreeMap<String, Origin>) -> Vec<Problem> {
    let flat = |name: &str| name.split('_').filter(|s| !s.is_empty()).collect::<Vec<_>>().join("_");
    variables
        .iter()
        .filter(|(name, _)| !name.contains("__"))
        .filter_map(|(name, _)| {
            let meant = keys.keys().map(|k| variable(k)).find(|v| flat(v) == flat(name))?;
            let problem = Problem::nowhere(format!("the variable {name} sets nothing"));
            Some(problem.help(format!("levels are separated by `__`: did you mean {meant}?")))
        })
        .collect()
}
