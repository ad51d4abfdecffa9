//! Installing packages where there is apt; saying what to install where there is not.

use anyhow::{Context, Result, bail};
use std::fs;
use std::process::{Command, Stdio};

use super::{is_root, say};
use crate::{cargo, out};

/// Installs packages (each with why), or fails with what to do instead.
pub(super) fn install(packages: &[(&str, &str)], otherwise: &[String]) -> Result<()> {
    let names: Vec<&str> = packages.iter().map(|(name, _)| *name).collect();
    for (name, why) in packages {
        say("need", name, why);
    }
    if !is_debian() {
        bail!("this is neither Debian nor Ubuntu; install yourself:\n  {}", otherwise.join("\n  "));
    }
    if !is_root()? {
        bail!("not root; run first:\n  sudo apt-get install --no-install-recommends {}", names.join(" "));
    }
    // A third party's broken list must not keep us from Debian's own packages: the installation decides.
    if let Err(error) = quietly(apt().arg("update")) {
        say("warn", "apt-get update", &format!("{error:#}"));
    }
    let unknown: Vec<&str> = names.iter().copied().filter(|name| !is_offered(name)).collect();
    if !unknown.is_empty() {
        bail!(
            "this release does not offer {}; install yourself:\n  {}",
            unknown.join(", "),
            otherwise.join("\n  ")
        );
    }
    let install = || {
        quietly(apt().args(["install", "--yes", "--no-install-recommends"]).args(&names))
            .context("cannot install packages")
    };
    install().or_else(|error| {
        out::line(&format!("{error:#}\nonce more:"));
        // An installation that was cut short earlier keeps apt from any other.
        quietly(Command::new("dpkg").args(["--configure", "-a"])).context("cannot repair dpkg")?;
        install()
    })
}

/// Runs a command whose output is shown only if it fails: a reader of ours that goes away must not end dpkg
/// halfway.
fn quietly(command: &mut Command) -> Result<()> {
    out::line(&format!("$ {}", cargo::shown(command)));
    cargo::capture(command.stdin(Stdio::null())).map(drop)
}

/// True if dpkg has them all.
pub(super) fn all_installed(packages: &[&str]) -> bool {
    let query = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}\n"])
        .args(packages)
        .output();
    query.is_ok_and(|output| {
        output.status.success()
            && String::from_utf8_lossy(&output.stdout).lines().all(|line| line == "installed")
    })
}

/// True if apt knows a version to install.
fn is_offered(package: &str) -> bool {
    let policy = cargo::capture(Command::new("apt-cache").args(["policy", package]));
    policy.is_ok_and(|text| {
        text.lines().any(|line| line.trim().strip_prefix("Candidate: ").is_some_and(|it| it != "(none)"))
    })
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["-qq", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// True for Debian and what derives from it.
fn is_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    release.lines().any(|line| {
        line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")).is_some_and(|value| {
            value.trim_matches('"').split(' ').any(|id| id == "debian" || id == "ubuntu")
        })
    })
}
