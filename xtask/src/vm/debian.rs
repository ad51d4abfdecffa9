//! Debian's kernels as packages: found, downloaded and unpacked, never installed.
//!
//! apt does it, with lists and sources of its own below `target/vm/apt`: the machine's sources stay as they
//! are. The mirror is the one from which the machine gets Debian; apt checks the archive's signature.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{cargo, out};

/// Whose signature the archive must bear.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The package that depends on the newest kernel of a release.
const NEWEST: &str = "linux-image-amd64";

/// What is unpacked of a package: the kernel, and where modules of the network lie.
const WANTED: [&str; 6] = [
    "./boot/vmlinuz-*",
    "*/modules.builtin",
    "*/kernel/net/*",
    "*/kernel/lib/*",
    "*/kernel/drivers/net/veth.ko*",
    "*/kernel/drivers/net/tun.ko*",
];

/// A kernel of Debian's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    /// Its version's first two numbers.
    pub(super) series: &'static str,
    /// The Debian release that has it.
    pub(super) suite: &'static str,
    /// What the tests must say of it, as that is why it is tried.
    pub(super) must: &'static str,
}

/// An unpacked kernel.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) release: String,
    pub(super) vmlinuz: PathBuf,
    /// Its modules are somewhere below.
    pub(super) modules: PathBuf,
}

/// Unpacks the kernels that are not there yet, or all anew.
pub(super) fn fetch(folder: &Path, kernels: &[Kernel], anew: bool) -> Result<Vec<Image>> {
    let at = |kernel: &Kernel| folder.join(kernel.series);
    let absent = |kernel: &&Kernel| anew || image(&at(kernel)).is_err();
    let missing: Vec<&Kernel> = kernels.iter().filter(absent).collect();
    if !missing.is_empty() {
        let apt = Apt::new(folder, kernels)?;
        apt.update()?;
        for kernel in missing {
            let package = apt.newest(kernel)?;
            let archive = apt.download(&package)?;
            unpack(&archive, &at(kernel))?;
            fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))?;
        }
    }
    kernels.iter().map(|kernel| image(&at(kernel))).collect()
}

/// What an unpacked package has.
fn image(folder: &Path) -> Result<Image> {
    let boot = folder.join("boot");
    let entries = fs::read_dir(&boot).with_context(|| format!("cannot read {}", boot.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(release) = name.strip_prefix("vmlinuz-") {
            let release = release.to_owned();
            return Ok(Image { release, vmlinuz: path, modules: folder.to_path_buf() });
        }
    }
    bail!("no kernel in {}", boot.display())
}

/// Unpacks beside the place and moves there, so that the place has a whole package, be it the former one.
fn unpack(archive: &Path, to: &Path) -> Result<()> {
    let fresh = to.with_added_extension("new");
    remove(&fresh)?;
    fs::create_dir_all(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
    let mut read = cargo::program("dpkg-deb");
    read.arg("--fsys-tarfile").arg(archive);
    let mut write = cargo::program("tar");
    write.args(["--extract", "--wildcards", "--no-same-owner", "--directory"]).arg(&fresh).args(WANTED);
    cargo::pipe(&mut read, &mut write).with_context(|| format!("cannot unpack {}", archive.display()))?;
    remove(to)?;
    fs::rename(&fresh, to).with_context(|| format!("cannot make {}", to.display()))
}

/// Removes a folder, if there is one.
fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// apt with its own lists and sources.
struct Apt {
    folder: PathBuf,
    debs: PathBuf,
}

impl Apt {
    fn new(folder: &Path, kernels: &[Kernel]) -> Result<Self> {
        let apt = Self { folder: folder.join("apt"), debs: folder.join("apt/debs") };
        for path in
            [apt.folder.join("lists/partial"), apt.folder.join("cache/archives/partial"), apt.debs.clone()]
        {
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        ensure!(Path::new(KEYRING).is_file(), "{KEYRING} is missing (package debian-archive-keyring)");
        let mirror = mirror()?;
        let lines = kernels
            .iter()
            .map(|kernel| format!("deb [signed-by={KEYRING}] {mirror} {} main\n", kernel.suite));
        for (file, text) in [("sources.list", lines.collect()), ("status", String::new())] {
            let path = apt.folder.join(file);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(apt)
    }

    /// The program of that name with our folders; proxies and the like stay the machine's own.
    fn command(&self, program: &str) -> Command {
        let mut command = cargo::program(program);
        for (key, value) in [
            ("Dir::Etc::SourceList", "sources.list"),
            ("Dir::State::Lists", "lists"),
            ("Dir::State::Status", "status"),
            ("Dir::Cache", "cache"),
        ] {
            command.arg("-o").arg(format!("{key}={}", self.folder.join(value).display()));
        }
        for option in [
            "Dir::Etc::SourceParts=/dev/null",
            "Dir::Etc::Preferences=/dev/null",
            "Dir::Etc::PreferencesParts=/dev/null",
            "Acquire::Languages=none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
            "Acquire::Retries=3",
            // Its unprivileged user may not be let into our folder.
            "APT::Sandbox::User=root",
            "APT::Architecture=amd64",
        ] {
            command.args(["-o", option]);
        }
        command.current_dir(&self.debs);
        command
    }

    fn update(&self) -> Result<()> {
        out::line("$ apt-get update   (lists and sources of its own)");
        cargo::capture(self.command("apt-get").args(["-qq", "update"])).map(drop)
    }

    /// Name of the package of a release's newest kernel.
    fn newest(&self, kernel: &Kernel) -> Result<String> {
        let text = cargo::capture(self.command("apt-cache").args(["show", NEWEST]))?;
        let prefix = format!("linux-image-{}.", kernel.series);
        let names = text.lines().filter_map(|line| line.strip_prefix("Depends: ")?.split([' ', ',']).next());
        names.map(str::to_owned).find(|name| name.starts_with(&prefix)).with_context(|| {
            format!("{NEWEST} of {} is of another series than {}", kernel.suite, kernel.series)
        })
    }

    fn download(&self, package: &str) -> Result<PathBuf> {
        out::line(&format!("$ apt-get download {package}"));
        cargo::capture(self.command("apt-get").args(["-qq", "download", package]))?;
        for entry in fs::read_dir(&self.debs)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{package}_")))
            {
                return Ok(path);
            }
        }
        bail!("apt-get downloaded no {package} into {}", self.debs.display())
    }
}

/// Whence this machine gets Debian.
fn mirror() -> Result<String> {
    let policy = || cargo::capture(cargo::program("apt-cache").arg("policy"));
    if let Some(found) = debian_mirror(&policy()?) {
        return Ok(found);
    }
    // A machine that never had lists knows none.
    cargo::capture(cargo::program("apt-get").args(["-qq", "update"]))?;
    debian_mirror(&policy()?).context("this machine's apt has no source of Debian's main archive")
}

/// The first archive in the output of `apt-cache policy` that says that it is Debian's main one.
fn debian_mirror(policy: &str) -> Option<String> {
    let mut address = None;
    for line in policy.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("release"), Some(facts)) => {
                let facts: Vec<&str> = facts.split(',').collect();
                if ["o=Debian", "l=Debian", "c=main"].iter().all(|fact| facts.contains(fact)) {
                    return address.map(str::to_owned);
                }
            }
            (Some(priority), Some(uri)) if priority.parse::<i32>().is_ok() => address = Some(uri),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::debian_mirror;

    #[test]
    fn the_mirror_is_debians_main_archive() {
        let policy = "\
Package files:
 100 /var/lib/dpkg/status
     release a=now
 500 https://other.example/debian bookworm/main amd64 Packages
     release o=Other,n=bookworm,l=Other,c=main,b=amd64
 500 http://mirror.example/debian-security bookworm-security/main amd64 Packages
     release v=12,o=Debian,a=oldstable-security,n=bookworm-security,l=Debian-Security,c=main,b=amd64
 500 http://mirror.example/debian bookworm/main amd64 Packages
     release v=12.15,o=Debian,a=oldstable,n=bookworm,l=Debian,c=main,b=amd64
";
        assert_eq!(debian_mirror(policy).as_deref(), Some("http://mirror.example/debian"));
        assert_eq!(debian_mirror("Package files:\n 100 /var/lib/dpkg/status\n     release a=now\n"), None);
    }
}
