//! `cargo xtask test`: all that a change must pass, in the order in which mistakes are cheapest to find.
//!
//! `NETD_VM=none` leaves out the kernels in virtual machines, for machines that cannot have their packages.
//! The first failing step ends the run and is named in the error. cargo's own output is passed on as it
//! comes; what the tests skipped is gathered from it and told at the end, with the reason.

pub(crate) mod tally;

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, IsTerminal, stdout};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use crate::cargo::Profile;
use crate::previous::{self, Previous};
use crate::toolchain::Toolchain;
use crate::{arch, cargo, out, setup, vm};
use tally::Tally;

/// Runs every step.
pub(crate) fn run(full: bool, args: &[String]) -> Result<()> {
    let begun = Instant::now();
    let kernels = with_kernels()?;
    let purpose = if kernels { setup::Purpose::Kernels } else { setup::Purpose::Lab };
    let mut steps = Steps::default();
    steps.take("setup", || setup::run(purpose))?;
    steps.take("format", || cargo::run(&mut cargo::cargo(["fmt", "--all", "--check"])))?;
    steps.take("layers", arch::run)?;
    steps.take("lints", lints)?;
    let skipped_lints = steps.take("lints of the BPF programs", bpf_lints)?;
    steps.take("lints without BPF programs", stub_lints)?;
    steps.take("build", || cargo::run(&mut cargo::cargo(["build", "--locked", "--workspace"])))?;
    let previous = steps.take("previous netd", || previous::build(Profile::Dev))?;
    let tally = steps.take("tests", || tests(full, args, &previous))?;
    if full {
        steps.take("distribution binary", crate::dist::run)?;
    }
    let tested = if kernels {
        let binary = if full {
            cargo::target_dir().join("dist/netd")
        } else {
            steps.take("static binary", crate::dist::build_for_tests)?
        };
        steps.take("kernels", || vm::test(&vm::Options::all(binary, full)))?
    } else {
        Vec::new()
    };

    out::heading("summary");
    for (name, seconds) in &steps.done {
        out::line(&format!("  ok    {name:<28} {seconds:>5.0} s"));
    }
    out::line(&format!(
        "  {} tests passed, {} failed, {} skipped, in {:.0} s",
        tally.passed,
        tally.failed,
        tally.ignored,
        begun.elapsed().as_secs_f64()
    ));
    for (test, why) in &tally.skipped {
        out::line(&format!("  skip  {test}: {why}"));
    }
    tested.iter().for_each(vm::Line::show);
    if !kernels {
        out::line("  skip  kernels in virtual machines: NETD_VM=none");
    }
    if let Some(why) = skipped_lints {
        out::line(&format!("  skip  lints of the BPF programs: {why}"));
    }
    if let Previous::Missing(why) = previous {
        out::line(&format!("  skip  upgrades from the previous netd: {why}"));
    }
    if !full {
        out::line(
            "  skip  the longest tests on each kernel, on emulated ones what the other one has, the distribution binary and the whole flood (100 000 connections, 2 million new flows): `cargo xtask test \
             --full` has them",
        );
    }
    Ok(())
}

/// Whether other kernels are part of it: only if they are refused by name are they not.
fn with_kernels() -> Result<bool> {
    match std::env::var("NETD_VM").as_deref() {
        Err(_) | Ok("") => Ok(true),
        Ok("none") => Ok(false),
        Ok(other) => {
            bail!("NETD_VM={other}: the only known value is `none` (no kernels in virtual machines)")
        }
    }
}

/// The steps done, with the time each took.
#[derive(Default)]
struct Steps {
    done: Vec<(&'static str, f64)>,
}

impl Steps {
    fn take<T>(&mut self, name: &'static str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        out::heading(name);
        let begun = Instant::now();
        let result = step().with_context(|| format!("step `{name}` failed"))?;
        self.done.push((name, begun.elapsed().as_secs_f64()));
        Ok(result)
    }
}

fn lints() -> Result<()> {
    cargo::run(&mut cargo::cargo([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

/// The code that only the BPF target has, if the compiler for it has a clippy beside it; else why not.
fn bpf_lints() -> Result<Option<String>> {
    let toolchain =
        Toolchain::find().map_err(|refused| anyhow::anyhow!("no BPF toolchain: {}", refused.join("; ")))?;
    let clippy = toolchain.cargo.with_file_name("cargo-clippy");
    let driver = toolchain.cargo.with_file_name("clippy-driver");
    if !clippy.is_file() || !driver.is_file() {
        let why = format!("no clippy beside {}", toolchain.rustc.display());
        out::line(&why);
        return Ok(Some(why));
    }
    let target = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };
    let mut command = cargo::program(&toolchain.cargo);
    command
        .args(["clippy", "--locked", "--package", "netd-bpf", "-Z", "build-std=core", "--target", target])
        .arg("--target-dir")
        .arg(cargo::target_dir().join("bpf-lints"))
        // A key passed by value is a copy on a stack of 512 bytes.
        .args(["--", "-D", "warnings", "-A", "clippy::needless_borrows_for_generic_args"])
        .env("RUSTC", &toolchain.rustc)
        .env("CARGO", &toolchain.cargo)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_PROFILE_DEV_PANIC", "abort")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("LD_LIBRARY_PATH");
    if let Some(bin) = toolchain.cargo.parent() {
        command.env("PATH", first_in_path(bin)?);
    }
    cargo::run(&mut command)?;
    Ok(None)
}

fn first_in_path(folder: &Path) -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::join_paths([folder.to_path_buf()].into_iter().chain(std::env::split_paths(&path)))
        .with_context(|| format!("cannot put {} into PATH", folder.display()))
}

/// `NETD_BPF=stub` stays buildable. The odd profile entry gives these artifacts names of their own: without
/// it each run would throw away the real ones, and they it.
fn stub_lints() -> Result<()> {
    cargo::run(
        cargo::cargo(["clippy", "--locked", "--package", "netd", "--all-targets"])
            .args(["--config", "profile.dev.package.netd.opt-level=1", "--", "-D", "warnings"])
            .env("NETD_BPF", "stub"),
    )
}

/// cargo's tests, passed on line by line.
fn tests(full: bool, args: &[String], previous: &Previous) -> Result<Tally> {
    let mut command = cargo::cargo(["test", "--locked", "--workspace", "--no-fail-fast"]);
    command.args(args);
    if full {
        if !args.iter().any(|arg| arg == "--") {
            command.arg("--");
        }
        command.arg("--include-ignored").env("NETD_FLOOD", "full");
    }
    if stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    command.env("NETD_BIN", cargo::target_dir().join("debug/netd")).stdout(Stdio::piped());
    previous.tell(&mut command);
    let shown = cargo::shown(&command);
    out::line(&format!("$ {shown}"));
    let mut child = command.spawn().with_context(|| format!("cannot run `{shown}`"))?;
    let mut tally = Tally::default();
    let mut lines = BufReader::new(child.stdout.take().context("cargo test has no output")?);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).context("cannot read what cargo test says")? > 0 {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches('\n');
        out::line(text);
        tally.line(text);
        line.clear();
    }
    let status = child.wait().with_context(|| format!("cannot wait for `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status}): {} tests passed, {} failed", tally.passed, tally.failed);
    }
    if tally.passed == 0 && args.is_empty() {
        bail!("`{shown}` ran no test at all");
    }
    Ok(tally)
}
