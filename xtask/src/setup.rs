//! `cargo xtask setup`: what building and testing netd needs is found, or installed, or named.
//!
//! On Debian and Ubuntu, as root, it installs; elsewhere it says exactly what to install and fails. Whatever
//! is there already is left alone, wherever it came from, so a second run only looks. It mounts nothing and
//! loads no module by hand.

mod debian;
mod kernel;

use anyhow::{Context, Result, bail};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::toolchain::{INSTALL_LINKER, Toolchain, find_linker};
use crate::{cargo, out};

/// What the machine is set up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Building netd.
    Build,
    /// Building it and running the lab.
    Lab,
    /// All that, and other kernels in virtual machines.
    Kernels,
}

/// A program that the lab or a virtual machine runs, or that a person debugging it wants.
struct Tool {
    /// Its name or absolute path.
    probe: &'static str,
    package: &'static str,
    why: &'static str,
}

const TOOLS: [Tool; 8] = [
    Tool { probe: "ip", package: "iproute2", why: "shows and makes interfaces, namespaces and filters" },
    Tool { probe: "ping", package: "iputils-ping", why: "asks a pod for an echo" },
    Tool { probe: "bpftool", package: "bpftool", why: "shows programs and maps" },
    Tool { probe: "tcpdump", package: "tcpdump", why: "shows packets on a wire of the lab" },
    Tool { probe: "sysctl", package: "procps", why: "shows processes and kernel settings" },
    Tool {
        probe: "/usr/lib/cni/portmap",
        package: "containernetworking-plugins",
        why: "the standard CNI plugins that netd is chained with and measured against",
    },
    Tool {
        probe: "iptables-legacy-restore",
        package: "iptables",
        why: "loads kube-proxy's iptables rules, which netd is measured against; hides outsiders behind a node",
    },
    Tool {
        probe: "nft",
        package: "nftables",
        why: "loads kube-proxy's nftables rules, which netd is measured against",
    },
];

/// What other kernels need on top.
const VM_TOOLS: [Tool; 3] = [
    Tool {
        probe: "qemu-system-x86_64",
        package: "qemu-system-x86",
        why: "boots other kernels, to test on them",
    },
    Tool { probe: "xz", package: "xz-utils", why: "unpacks the modules of those kernels" },
    Tool {
        probe: "/usr/share/keyrings/debian-archive-keyring.gpg",
        package: "debian-archive-keyring",
        why: "tells Debian's kernels from forged ones",
    },
];

/// Debian's Rust with its library source, all of one version.
const TOOLCHAIN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// The lints of that same version: code that only the BPF target has is linted by nothing else.
const LINTS_PACKAGE: &str = "rust-web-clippy";
/// What `bpf-linker` is built against.
const LLVM_PACKAGES: [&str; 3] = ["llvm-22-dev", "libpolly-22-dev", "libzstd-dev"];
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// Finds or installs everything; an error says what is left for the user to do.
pub(crate) fn run(purpose: Purpose) -> Result<()> {
    let wanted = Wanted::look(purpose, Say::Found);
    if !wanted.packages.is_empty() {
        debian::install(&wanted.packages, &wanted.otherwise)?;
    }
    if wanted.linker {
        install_linker()?;
    }
    if !wanted.packages.is_empty() || wanted.linker {
        let left = Wanted::look(purpose, Say::Nothing);
        if !left.packages.is_empty() || left.linker {
            bail!("still missing after the installation: {}", left.names.join(", "));
        }
        for name in &wanted.names {
            ok(name, "installed");
        }
    }
    if purpose >= Purpose::Lab {
        kernel::check()?;
    }
    Ok(())
}

/// Whether looking also tells what it finds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Say {
    Found,
    Nothing,
}

/// What is missing.
#[derive(Default)]
struct Wanted {
    /// For people.
    names: Vec<&'static str>,
    /// Debian packages, each with why.
    packages: Vec<(&'static str, &'static str)>,
    /// What to do on a system that has no such packages.
    otherwise: Vec<String>,
    linker: bool,
}

impl Wanted {
    fn look(purpose: Purpose, say: Say) -> Self {
        let mut wanted = Self::default();
        let found = |name: &str, text: &str| {
            if say == Say::Found {
                ok(name, text);
            }
        };
        // Debian keeps the lints in a package of their own; rustup's toolchains come with them.
        let mut lints = true;
        match Toolchain::find() {
            Ok(toolchain) => {
                let (major, minor) = toolchain.release;
                let rustc = toolchain.rustc.display();
                found(
                    "Rust with its library source",
                    &format!("{rustc} {major}.{minor}: compiles the BPF programs"),
                );
                lints = toolchain.rustc.starts_with("/usr/bin") && debian::all_installed(&TOOLCHAIN_PACKAGES);
            }
            Err(_) => {
                wanted.names.push("Rust with its library source");
                let why = "a Rust with its library source, to compile the BPF programs";
                wanted.packages.extend(TOOLCHAIN_PACKAGES.map(|package| (package, why)));
                wanted.otherwise.push("rustup component add rust-src".to_owned());
            }
        }
        match find_linker().filter(|linker| runs(linker)) {
            Some(linker) => found("bpf-linker", &format!("{}: links the BPF programs", linker.display())),
            None => {
                wanted.linker = true;
                wanted.names.push("bpf-linker");
                let why = "LLVM 22, to build bpf-linker against";
                if !debian::all_installed(&LLVM_PACKAGES) {
                    wanted.packages.extend(LLVM_PACKAGES.map(|package| (package, why)));
                }
                wanted.otherwise.push(format!("LLVM 22 with its development files, then: {INSTALL_LINKER}"));
            }
        }
        if purpose >= Purpose::Lab {
            let why = "lints the BPF programs";
            let driver = Path::new("/usr/bin/clippy-driver");
            if lints && driver.is_file() {
                found(LINTS_PACKAGE, &format!("{}: {why}", driver.display()));
            } else if lints {
                wanted.names.push(LINTS_PACKAGE);
                wanted.packages.push((LINTS_PACKAGE, why));
            }
            let vm_tools = if purpose == Purpose::Kernels { &VM_TOOLS[..] } else { &[] };
            for tool in TOOLS.iter().chain(vm_tools) {
                match locate(tool.probe) {
                    Some(path) => found(tool.package, &format!("{}: {}", path.display(), tool.why)),
                    None => {
                        wanted.names.push(tool.package);
                        wanted.packages.push((tool.package, tool.why));
                        wanted.otherwise.push(format!("{}, which {}", tool.probe, tool.why));
                    }
                }
            }
        }
        wanted
    }
}

fn install_linker() -> Result<()> {
    say("get", "bpf-linker", "built from source against LLVM 22 (about a minute): links the BPF programs");
    let mut words = INSTALL_LINKER.split(' ');
    let _cargo = words.next();
    let mut command = cargo::cargo([]);
    command.args(words).arg("--force");
    if Path::new(LLVM_PREFIX).is_dir() {
        command.env("LLVM_PREFIX", LLVM_PREFIX);
    }
    cargo::run(&mut command)
}

/// Where a program is; `sbin` counts even where a user's `PATH` lacks it.
pub(crate) fn locate(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

/// A linker whose LLVM was removed is there, but does not run.
fn runs(linker: &Path) -> bool {
    Command::new(linker).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// True if this process may install packages, make namespaces and load programs.
pub(crate) fn is_root() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().nth(1));
    Ok(effective == Some("0"))
}

fn ok(name: &str, text: &str) {
    say("ok", name, text);
}

/// One line of the report.
fn say(mark: &str, name: &str, text: &str) {
    out::line(&format!("  {mark:<5} {name:<28} {text}"));
}
