//! netd's own tooling: `cargo xtask <command>`.
//!
//! Everything a change needs to be checked, shown or shipped is a command here, so that a person, CI and
//! the README run the same thing. Each command prints what it does; a failing step is named in the error.

mod arch;
mod bench;
mod cargo;
mod demo;
mod dist;
mod lab;
mod out;
mod previous;
mod setup;
mod test;
mod toolchain;
mod vm;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// netd's own tooling.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand, Debug)]
enum Task {
    /// Find or install what building and testing netd needs, and check the kernel.
    Setup {
        /// Only what a build needs: no lab tools, no kernel checks.
        #[arg(long)]
        build_only: bool,
    },
    /// Build netd and show it at work in a lab of network namespaces.
    Demo {
        /// Passed on to the demo.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build netd and measure it against what would stand in its place: a table, and `target/bench/CASE.json`.
    Bench {
        /// Passed on to the bench; `-- --help` tells what there is.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// All that a change must pass: format, layers, lints, build, tests.
    Test {
        /// Also the long tests (those marked `ignore`) and the distribution binary.
        #[arg(long)]
        full: bool,
        /// Passed on to `cargo test`, such as a test's name.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run the kernel-facing tests and the binary on Debian's kernels, in virtual machines, and on this one.
    Vm(vm::Options),
    /// What runs in those machines.
    #[command(hide = true)]
    VmGuest,
    /// Check that modules import downwards only, and the house rules that no lint knows.
    Arch,
    /// Build the netd of the map schema before this one, for the upgrade tests: into target/previous/netd.
    Previous,
    /// Build the one stripped static binary into target/dist/netd and prove that it runs anywhere.
    Dist,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Task::Setup { build_only: true } => setup::run(setup::Purpose::Build),
        Task::Setup { build_only: false } => setup::run(setup::Purpose::Kernels),
        Task::Demo { args } => demo::run(&args),
        Task::Bench { args } => bench::run(&args),
        Task::Test { full, args } => test::run(full, &args),
        Task::Vm(options) => vm::run(&options),
        Task::VmGuest => vm::guest::run(),
        Task::Arch => arch::run(),
        Task::Previous => previous::build(cargo::Profile::Dev).map(drop),
        Task::Dist => dist::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            out::error(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
