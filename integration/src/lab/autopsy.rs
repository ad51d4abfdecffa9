//! What a failed lab tells: the ends of its logs, and what each namespace's kernel counted. A lost packet is
//! found there: in a counter of drops, or in a neighbour that never answered.

use super::{Namespace, tail};
use std::fs;
use std::path::Path;

/// Commands that tell where packets went, run in every namespace.
const ASKED: [&str; 3] = ["nstat -as", "ip -s -o link", "ip -s neighbour"];

/// The end of every `*.log` below `dir`.
pub(super) fn logs(dir: &Path) -> String {
    let mut text = String::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if entry.file_type().is_ok_and(|t| t.is_dir()) && name != "netns" && name != "bpf" {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "log") {
                text += &format!("---- end of {}\n{}\n", path.display(), tail(&path, 60));
            }
        }
    }
    text
}

/// What the kernel counted in every namespace of `folder`.
pub(super) fn counters(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let namespace = match Namespace::open(&entry.path()) {
            Ok(namespace) => namespace,
            Err(error) => {
                text += &format!("---- {error:#}\n");
                continue;
            }
        };
        for line in ASKED {
            text += &format!("---- {line} in {}\n", namespace.name());
            text += &namespace.run(line).unwrap_or_else(|error| format!("{error:#}\n"));
        }
    }
    text
}
