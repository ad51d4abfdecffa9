//! The command line: what can be asked for, one `run` per command. It prints only; the work is elsewhere.
//!
//! Standard output is written by `output` alone, so that a reader that goes away is no error; errors go to
//! standard error as `error: …` with their causes. Exit codes: 0 well, 1 failed or degraded, 2 usage or bad
//! configuration, 3 agent unreachable. Only on a terminal what is not as it should be is red.

mod agent;
mod client;
mod cni;
mod config;
mod conntrack;
mod endpoints;
mod monitor;
mod output;
mod policy;
mod status;
mod svc;
mod units;

use crate::config::{Error as ConfigError, Loader};
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;

static VERSION: LazyLock<String> =
    LazyLock::new(|| format!("{} (BPF schema {})", env!("CARGO_PKG_VERSION"), netd_bpf::SCHEMA));

/// The whole network of a node.
#[derive(Debug, Parser)]
#[command(name = "netd", version = VERSION.as_str(), about, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    /// The configuration [default: /etc/netd/netd.yaml, if it is there]
    #[arg(long, global = true, env = "NETD_CONFIG", hide_env_values = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node's agent
    Agent,
    /// Run the CNI plugin, as container runtimes do
    Cni,
    /// Check, show or explain the configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Tell how the agent is, and what it looks after
    Status(client::Query),
    /// List the pods of this node
    Endpoints(endpoints::Arguments),
    /// List Services, or show one as the kernel has it
    #[command(subcommand)]
    Svc(svc::Command),
    /// List and explain NetworkPolicies, or tell what they would say of a flow
    #[command(subcommand)]
    Policy(policy::Command),
    /// List or count the flows that the datapath knows
    #[command(subcommand)]
    Conntrack(conntrack::Command),
    /// Tell what happens as it happens: dropped packets, new flows, changes
    Monitor(monitor::Arguments),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Ok,
    /// Failed or degraded.
    Failed,
    /// Wrong usage or a bad configuration.
    Usage,
    /// No agent answers.
    Unreachable,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Unreachable => 3,
        })
    }
}

/// Runs the CNI plugin.
#[must_use]
pub fn plugin() -> ExitCode {
    cni::plugin()
}

/// Runs the command that this process was started with.
#[must_use]
pub fn run() -> ExitCode {
    let outcome = match Cli::try_parse_from(std::env::args_os()) {
        Ok(cli) => dispatch(cli),
        Err(usage) if usage.use_stderr() => {
            complain(&usage.render().to_string());
            Ok(Exit::Usage.into())
        }
        Err(help) => output::text(&help.render().to_string()).map(|()| Exit::Ok.into()).map_err(Into::into),
    };
    outcome.unwrap_or_else(|error| explain(&error).into())
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let environment: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    let loader = |path: Option<PathBuf>| Loader::new(path, environment);
    let exit = match cli.command {
        Command::Agent => agent::run(loader(cli.config)),
        Command::Cni => return Ok(cni::plugin()),
        Command::Config(command) => config::run(command, cli.config, loader),
        Command::Status(query) => status::run(&query, &loader(cli.config)),
        Command::Endpoints(arguments) => endpoints::run(&arguments, &loader(cli.config)),
        Command::Svc(command) => svc::run(&command, &loader(cli.config)),
        Command::Policy(command) => policy::run(&command, &loader(cli.config)),
        Command::Conntrack(command) => conntrack::run(&command, &loader(cli.config)),
        Command::Monitor(arguments) => monitor::run(&arguments, &loader(cli.config)),
    };
    Ok(exit?.into())
}

/// Prints an error with its causes, and says what to exit with.
fn explain(error: &anyhow::Error) -> Exit {
    if let Some(output::Error::Closed) = error.downcast_ref() {
        return Exit::Ok;
    }
    // A bad configuration shows itself, line by line.
    if let Some(ConfigError::Invalid(problems)) = error.downcast_ref() {
        complain(&format!("{problems}\n"));
        return Exit::Usage;
    }
    let mut text = format!("error: {error}\n");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("  caused by: {cause}\n"));
    }
    complain(&text);
    match error.downcast_ref::<client::Error>() {
        Some(client::Error::Unreachable { .. } | client::Error::Gone { .. }) => Exit::Unreachable,
        Some(client::Error::Question(_)) => Exit::Usage,
        _ if error.is::<ConfigError>() => Exit::Usage,
        _ => Exit::Failed,
    }
}

fn complain(text: &str) {
    // There is nobody left to tell that standard error is gone.
    drop(std::io::stderr().write_all(text.as_bytes()));
}
