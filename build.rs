//! Builds the eBPF programs of `bpf/` and leaves them in `OUT_DIR` as `pod.o` and so on, where
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
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};

use toolchain::{INSTALL_LINKER, Toolchain, active_sysroot, find_linker};

#[path = "build/strip.rs"]
mod strip;
#[path = "xtask/src/toolchain.rs"]
mod toolchain;

/// The programs: bins of the `bpf` package, each one object.
const OBJECTS: [&str; 3] = ["pod", "uplink", "reclaim"];

/// Compiler flags. `target-cpu=v3` is needed by atomics that return a value, `--btf` by typed maps. Without
/// `--disable-expand-memcpy-in-order` clearing 64 bytes is a call of a loop over bytes.
const FLAGS: [&str; 10] = [
    "-C",
    "link-arg=--btf",
    "-C",
    "link-arg=--disable-expand-memcpy-in-order",
    "-C",
    "target-cpu=v3",
    "-C",
    "debuginfo=2",
    "-C",
    "panic=abort",
];

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
    for path in ["build.rs", "build", "xtask/src/toolchain.rs", "bpf", "Cargo.toml", "Cargo.lock"] {
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
    let toolchain = Toolchain::find().map_err(|refused| {
        let refused = refused.join("\n  ");
        missing(&format!("no Rust toolchain with its library source; looked at:\n  {refused}"))
    })?;
    let linker = find_linker()
        .ok_or_else(|| missing("no bpf-linker, neither in PATH nor in the bin folder of cargo's home"))?;
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
        let whole =
            fs::read(&from).map_err(|error| format!("cannot read the object {}: {error}", from.display()))?;
        let stripped = strip::without_debug(&whole)
            .map_err(|error| format!("the object {} is {error}", from.display()))?;
        fs::write(&to, stripped)
            .map_err(|error| format!("cannot write the object {}: {error}", to.display()))?;
    }
    Ok(())
}

/// What is missing and what to do about it.
fn missing(what: &str) -> String {
    format!(
        "cannot build the BPF programs: {what}\n\
         on Debian or Ubuntu, run:    cargo xtask setup\n\
         on other systems, run:       rustup component add rust-src && {INSTALL_LINKER}\n\
         to go without BPF programs:  NETD_BPF=stub cargo build   (such a netd cannot run as an agent)"
    )
}

/// Shows the compiler's warnings as the outer cargo's, and turns a failure into an error with all it said.
fn report(toolchain: &Toolchain, output: &Output) -> Result<(), String> {
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!(
            "the BPF programs do not build with {} ({}.{}), {}:\n{said}",
            toolchain.rustc.display(),
            toolchain.release.0,
            toolchain.release.1,
            output.status
        ));
    }
    for line in said.lines().filter(|line| !line.is_empty()) {
        println!("cargo::warning={line}");
    }
    Ok(())
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

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}, which cargo sets for build scripts: {error}"))
}
