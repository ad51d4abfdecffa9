//! Kernel modules of an unpacked package: which are needed, in the order in which they load.
//!
//! The package has no `modules.dep` (its installation would make that): each module says itself what it
//! depends on, in its section `.modinfo`. What a module depends on and is not there is built in.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cargo;

/// A module, decompressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// The modules and all that they depend on, each after what it depends on; those in `builtin` are left out.
pub(super) fn needed(folder: &Path, names: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    find(folder, &mut files)?;
    let builtin = builtin(folder)?;
    let mut order = Vec::new();
    for name in names {
        if !builtin.iter().any(|have| have == name) {
            add(&files, name, &mut order)?;
        }
    }
    Ok(order)
}

fn add(files: &BTreeMap<String, PathBuf>, name: &str, order: &mut Vec<Module>) -> Result<()> {
    if order.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let path = files.get(name).with_context(|| format!("the kernel's package has no module {name}"))?;
    let bytes = read(path)?;
    for other in depends(&bytes) {
        add(files, &other, order).with_context(|| format!("which {name} depends on"))?;
    }
    order.push(Module { name: name.to_owned(), bytes });
    Ok(())
}

/// All modules below a folder by name.
fn find(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            find(&entry.path(), files)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(canonical(name), entry.path());
        }
    }
    Ok(())
}

/// Names of what the kernel has built in, from the lists `modules.builtin` below the folder.
fn builtin(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            names.extend(builtin(&path)?);
        } else if path.file_name().is_some_and(|name| name == "modules.builtin") {
            let text =
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let files = text.lines().filter_map(|line| line.rsplit('/').next()?.split_once(".ko"));
            names.extend(files.map(|(name, _)| canonical(name)));
        }
    }
    Ok(names)
}

/// The kernel takes `-` and `_` for the same.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => fs::read(path).with_context(|| format!("cannot read {}", path.display())),
        Some("xz") => {
            let output =
                cargo::program("xz").args(["-dc", "--"]).arg(path).output().context("cannot run xz")?;
            if !output.status.success() {
                bail!("xz: {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
            }
            Ok(output.stdout)
        }
        _ => bail!("{}: a module compressed in a way that is not known here", path.display()),
    }
}

/// The names after `depends=` in `.modinfo`, whose texts end with zeros.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"depends=";
    let texts = module.split(|byte| *byte == 0);
    let Some(list) = texts.filter_map(|text| text.strip_prefix(KEY)).next() else { return Vec::new() };
    let list = String::from_utf8_lossy(list);
    list.split(',').filter(|name| !name.is_empty()).map(canonical).collect()
}

#[cfg(test)]
mod tests {
    use super::{Module, needed};
    use std::fs;

    #[test]
    fn a_module_comes_after_what_it_depends_on() {
        let folder = std::env::temp_dir().join(format!("netd-xtask-modules-{}", std::process::id()));
        fs::create_dir_all(folder.join("net/deep")).unwrap();
        let file = |path: &str, depends: &str| {
            let bytes = format!("ELF\0license=GPL\0depends={depends}\0name=x\0").into_bytes();
            fs::write(folder.join(path), &bytes).unwrap();
            bytes
        };
        let (bridge, stp) = (file("net/bridge.ko", "stp,llc-core"), file("net/deep/stp.ko", "llc-core"));
        let (llc, veth) = (file("net/llc_core.ko", ""), file("veth.ko", ""));
        fs::write(folder.join("modules.builtin"), "kernel/net/sched/cls-bpf.ko\n").unwrap();
        let found = needed(&folder, &["veth", "cls_bpf", "bridge", "stp"]);
        let missing = needed(&folder, &["vxlan"]);
        fs::remove_dir_all(&folder).unwrap();
        let expected = [("veth", veth), ("llc_core", llc), ("stp", stp), ("bridge", bridge)];
        assert_eq!(found.unwrap(), expected.map(|(name, bytes)| Module { name: name.to_owned(), bytes }));
        assert_eq!(missing.unwrap_err().to_string(), "the kernel's package has no module vxlan");
    }
}
