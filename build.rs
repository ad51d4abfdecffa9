//! Builds the eBPF programs of `bpf/` and leaves them in `OUT_DIR` as `pod.o` and `uplink.o`, where
//! `datapath` embeds them.
//!
//! The programs are Rust for a target that no toolchain ships a `core` for, so a second cargo builds `core`
//! along (`-Z build-std`), which needs a rustc with its library's source beside it and `bpf-linker`. Both are
//! looked for, never fetched: `cargo xtask setup` installs them. A machine without them can still check and
//! lint the rest with `NETD_BPF=stub`, which embeds empty objects and sets `cfg(netd_bpf_stub)`; that is
//! never chosen silently.
//!
//! The second cargo has its own target folder inside `OUT_DIR`: it neither waits for the lock that the outer
//! cargo holds nor mixes its artifacts with the host's.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

/// The programs: bins of the `bpf` package, each one object.
const OBJECTS: [&str; 2] = ["pod", "uplink"];

/// Compiler flags. `target-cpu=v3` is needed by atomics that return a value, `--btf` by typed maps.
const FLAGS: [&str; 8] =
    ["-C", "link-arg=--btf", "-C", "target-cpu=v3", "-C", "debuginfo=2", "-C", "panic=abort"];

/// The release profile of the programs, whatever the workspace's own is. The verifier wants one inlined
/// object; debug information is what BTF is made of.
const PROFILE: [(&str, &str); 8] = [
    ("OPT_LEVEL", "3"),
    ("LTO", "fat"),
    ("CODEGEN_UNITS", "1"),
    ("DEBUG", "2"),
    ("PANIC", "abort"),
    ("STRIP", "none"),
    ("DEBUG_ASSERTIONS", "false"),
    ("OVERFLOW_CHECKS", "false"),
];

/// Variables that the outer cargo, rustup or clippy set for this script and that would leak into the second
/// cargo. `CARGO_HOME` and the user's registry and network settings stay.
const FOREIGN: [&str; 13] = [
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_LINKER",
    "RUSTDOC",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
    "RUST_RECURSION_COUNT",
    "CLIPPY_ARGS",
    "CLIPPY_CONF_DIR",
    "CARGO",
    "TARGET",
];

/// Prefixes of more such variables.
const FOREIGN_PREFIXES: [&str; 11] = [
    "CARGO_BIN_",
    "CARGO_BUILD_",
    "CARGO_CFG_",
    "CARGO_CRATE_",
    "CARGO_ENCODED_",
    "CARGO_FEATURE_",
    "CARGO_MANIFEST_",
    "CARGO_PKG_",
    "CARGO_PRIMARY_",
    "CARGO_PROFILE_",
    "CARGO_TARGET_",
];

fn main() -> ExitCode {
    println!("cargo::rustc-check-cfg=cfg(netd_bpf_stub)");
    for path in ["build.rs", "bpf", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
    for name in ["NETD_BPF", "RUSTUP_HOME", "CARGO_HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            for line in message.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    match env::var("NETD_BPF") {
        Ok(value) if value == "stub" => {
            println!("cargo::rustc-cfg=netd_bpf_stub");
            for object in OBJECTS {
                let path = out.join(format!("{object}.o"));
                fs::write(&path, []).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
            }
            Ok(())
        }
        Ok(value) if !value.is_empty() => {
            Err(format!("NETD_BPF={value}: the only known value is `stub` (embed no BPF programs)"))
        }
        _ => build(&out),
    }
}

fn build(out: &Path) -> Result<(), String> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let toolchain = Toolchain::find()?;
    let linker = find_linker()?;
    let target = match variable("CARGO_CFG_TARGET_ENDIAN")?.as_str() {
        "big" => "bpfeb-unknown-none",
        _ => "bpfel-unknown-none",
    };
    let target_dir = out.join("bpf");

    let mut command = Command::new(&toolchain.cargo);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if FOREIGN.contains(&&*text) || FOREIGN_PREFIXES.iter().any(|prefix| text.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command
        .current_dir(&root)
        .args(["build", "--quiet", "--release", "--locked", "--bins", "--package", "netd-bpf"])
        .args(["-Z", "build-std=core", "--target", target, "--target-dir"])
        .arg(&target_dir)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", path_with(&linker)?)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&linker));
    match library_path(out) {
        Some(path) => command.env("LD_LIBRARY_PATH", path),
        None => command.env_remove("LD_LIBRARY_PATH"),
    };
    for (key, value) in PROFILE {
        command.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
    }

    let output =
        command.output().map_err(|error| format!("cannot run {}: {error}", toolchain.cargo.display()))?;
    report(&toolchain, &output)?;
    for object in OBJECTS {
        let from = target_dir.join(target).join("release").join(object);
        let to = out.join(format!("{object}.o"));
        fs::copy(&from, &to).map_err(|error| {
            format!("cannot copy the object {} to {}: {error}", from.display(), to.display())
        })?;
    }
    Ok(())
}

/// Shows the compiler's warnings as the outer cargo's, and turns a failure into an error with all it said.
fn report(toolchain: &Toolchain, output: &Output) -> Result<(), String> {
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!(
            "the BPF programs do not build ({} with {}, {}):\n{said}",
            toolchain.cargo.display(),
            toolchain.rustc.display(),
            output.status
        ));
    }
    for line in said.lines().filter(|line| !line.is_empty()) {
        println!("cargo::warning={line}");
    }
    Ok(())
}

/// A rustc with its own library source beside it, and its cargo.
struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
}

impl Toolchain {
    /// The toolchain this build runs on, then rustup's others (newest first), then Debian's.
    fn find() -> Result<Self, String> {
        let mut seen = String::new();
        let mut sysroots = Vec::new();
        sysroots.extend(active_sysroot());
        sysroots.extend(
            rustup_sysroots().into_iter().filter(|found| !sysroots.contains(found)).collect::<Vec<_>>(),
        );
        for sysroot in &sysroots {
            if let Some(found) = Self::usable(sysroot, &sysroot.join("bin"), &mut seen) {
                return Ok(found);
            }
        }
        if let Some(found) = Self::usable(Path::new("/usr"), Path::new("/usr/bin"), &mut seen) {
            return Ok(found);
        }
        Err(format!(
            "no Rust toolchain can build the BPF programs: one with its library source is needed\n\
             looked at:\n{seen}\
             on Debian or Ubuntu, run:    cargo xtask setup\n\
             on other systems, run:       rustup component add rust-src && cargo install bpf-linker\n\
             to go without BPF programs:  NETD_BPF=stub cargo build   (such a netd cannot run as an agent)"
        ))
    }

    /// This sysroot's toolchain if it is new enough and has the source; else a line in `seen` why not.
    fn usable(sysroot: &Path, bin: &Path, seen: &mut String) -> Option<Self> {
        let found = Self { cargo: bin.join("cargo"), rustc: bin.join("rustc") };
        let why = if !found.rustc.is_file() || !found.cargo.is_file() {
            "has no cargo and rustc of its own".to_owned()
        } else if !sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file() {
            "has no library source (rust-src)".to_owned()
        } else {
            match (release_of(&found.rustc), minimum()) {
                (Some(have), need) if have >= need => return Some(found),
                (Some((major, minor)), (need_major, need_minor)) => {
                    format!("is {major}.{minor}, netd needs {need_major}.{need_minor}")
                }
                (None, _) => "does not tell its version".to_owned(),
            }
        };
        let _infallible = writeln!(seen, "  {}: {why}", bin.display());
        None
    }
}

/// Where the compiler of this very build lives.
fn active_sysroot() -> Option<PathBuf> {
    let output = Command::new(env::var_os("RUSTC")?).args(["--print", "sysroot"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let path = PathBuf::from(text.trim());
    path.is_absolute().then_some(path)
}

/// All toolchains of rustup, by name downwards: `stable` before `nightly` before numbered ones.
fn rustup_sysroots() -> Vec<PathBuf> {
    let home = env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| home(".rustup"));
    let Some(home) = home else { return Vec::new() };
    let mut found: Vec<PathBuf> = fs::read_dir(home.join("toolchains"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    found.sort();
    found.reverse();
    found
}

/// `(major, minor)` of a rustc.
fn release_of(rustc: &Path) -> Option<(u32, u32)> {
    let output = Command::new(rustc).arg("--version").env_remove("LD_LIBRARY_PATH").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    version(text.split_whitespace().nth(1)?)
}

/// The workspace's `rust-version`.
fn minimum() -> (u32, u32) {
    env::var("CARGO_PKG_RUST_VERSION").ok().as_deref().and_then(version).unwrap_or((1, 95))
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// `bpf-linker` from `PATH` or from where `cargo install` puts it.
fn find_linker() -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| home(".cargo"));
    env::split_paths(&path)
        .chain(installed.map(|cargo| cargo.join("bin")))
        .map(|folder| folder.join("bpf-linker"))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            "bpf-linker is not installed, neither in PATH nor in cargo's bin folder\n\
             on Debian or Ubuntu, run:    cargo xtask setup\n\
             on other systems, run:       cargo install bpf-linker\n\
             to go without BPF programs:  NETD_BPF=stub cargo build   (such a netd cannot run as an agent)"
                .to_owned()
        })
}

/// `FLAGS` and the linker, in the form that survives spaces in paths.
fn flags(linker: &Path) -> OsString {
    let mut all = OsString::from("-C\u{1f}linker=");
    all.push(linker);
    for flag in FLAGS {
        all.push("\u{1f}");
        all.push(flag);
    }
    all
}

/// `PATH` with the linker's folder in it: aya-ebpf's own build script looks for it there.
fn path_with(linker: &Path) -> Result<OsString, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folder = linker.parent().map(Path::to_path_buf);
    env::join_paths(env::split_paths(&path).chain(folder))
        .map_err(|error| format!("cannot put {} into PATH: {error}", linker.display()))
}

/// `LD_LIBRARY_PATH` without what the outer cargo added: another toolchain's libraries and our own outputs.
fn library_path(out: &Path) -> Option<OsString> {
    let path = env::var_os("LD_LIBRARY_PATH")?;
    let sysroot = active_sysroot();
    let target = out.ancestors().nth(4);
    let ours = |folder: &Path| {
        sysroot.as_deref().is_some_and(|sysroot| folder.starts_with(sysroot))
            || target.is_some_and(|target| folder.starts_with(target))
    };
    let kept: Vec<PathBuf> = env::split_paths(&path).filter(|folder| !ours(folder)).collect();
    if kept.is_empty() { None } else { env::join_paths(kept).ok() }
}

fn home(below: &str) -> Option<PathBuf> {
    env::var_os("HOME").map(|home| PathBuf::from(home).join(below))
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}, which cargo sets for build scripts: {error}"))
}
