//! `netd cni`: what a container runtime executes.
//!
//! It checks what it was given and hands it to the agent over its socket. If no agent is there, ADD and
//! STATUS answer with the retryable codes; DEL, CHECK and GC work from the ledger and the kernel, holding
//! the ledger's lock, which an agent holds for its life: so there is never a second writer. Blocking, one
//! thread; only CNI JSON goes to standard output.

mod client;
mod kernel;
mod offline;
#[cfg(test)]
mod tests;

use super::types::{Code, Command, Error, Invocation, Settings, Verb, Version, VersionInfo};
use client::{Client, Failure};
use serde::Serialize;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::time::Duration;

pub use kernel::Local;
pub use offline::{Kernel, Problem};

/// More than any network configuration: what a runtime sends has a bound.
const MAX_STDIN: u64 = 4 << 20;

/// How long one request may take in all. Runtimes give a sandbox minutes; an ADD waits for the source of
/// state (10 s by default) and for the kernel.
const TOTAL: Duration = Duration::from_secs(60);

/// How long the plugin tries to get hold of the ledger or of a starting agent, when there is no agent.
const PATIENCE: Duration = Duration::from_secs(15);

/// The whole plugin. `kernel` does what is left to do without an agent.
pub fn run<K: Kernel>(
    kernel: &K,
    env: &dyn Fn(&str) -> Option<OsString>,
    stdin: &mut dyn Read,
    stdout: &mut dyn Write,
) -> ExitCode {
    let (text, ok) = match respond(kernel, env, stdin, PATIENCE) {
        Ok(text) => (text, true),
        Err((version, error)) => (json(&error.object(version)), false),
    };
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) if ok => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// What goes to standard output, or the error and the version to print it in.
fn respond<K: Kernel>(
    kernel: &K,
    env: &dyn Fn(&str) -> Option<OsString>,
    stdin: &mut dyn Read,
    patience: Duration,
) -> Result<String, (Version, Error)> {
    let Invocation { version, command, settings } = Invocation::parse(env, || read_all(stdin))?;
    let versioned = |error| (version, error);
    let (verb, request) = match &command {
        Command::Version(asked) => return Ok(json(&VersionInfo::new(asked.clone()))),
        Command::Add(add) => (Verb::Add, json(add)),
        Command::Del(del) => (Verb::Del, json(del)),
        Command::Check(check) => (Verb::Check, json(check)),
        Command::Gc(gc) => (Verb::Gc, json(gc)),
        Command::Status(status) => (Verb::Status, json(status)),
    };
    let client = Client { socket: &settings.socket, total: TOTAL };
    match client.call(verb, &request) {
        Ok(answer) => answer.map_err(versioned),
        Err(failure) => without_agent(kernel, &settings, &client, &command, &request, &failure, patience)
            .map_err(versioned),
    }
}

fn without_agent<K: Kernel>(
    kernel: &K,
    settings: &Settings,
    client: &Client<'_>,
    command: &Command,
    request: &str,
    failure: &Failure,
    patience: Duration,
) -> Result<String, Error> {
    let mut offline =
        offline::Offline { kernel, settings, patience, agent: &mut |verb| client.call(verb, request).ok() };
    match command {
        Command::Del(del) => offline.del(del),
        Command::Check(check) => offline.check(check),
        Command::Gc(gc) => offline.gc(gc),
        Command::Status(_) => {
            Err(Error::because(Code::UNAVAILABLE, "the netd agent cannot be reached", failure.to_string()))
        }
        Command::Add(_) | Command::Version(_) => {
            let details = format!("{failure}. Is it running? see: netd status");
            Err(Error::because(Code::TRY_LATER, "the netd agent cannot be reached", details))
        }
    }
}

fn read_all(stdin: &mut dyn Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    stdin.take(MAX_STDIN + 1).read_to_end(&mut bytes).map_err(|error| {
        Error::because(Code::IO, "cannot read the network configuration from stdin", error.to_string())
    })?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_STDIN) {
        let details = format!("more than {MAX_STDIN} bytes");
        return Err(Error::because(Code::IO, "cannot read the network configuration from stdin", details));
    }
    Ok(bytes)
}

/// Only ever called with types whose maps have strings for keys, which is all that JSON asks.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}
