//! Executing a plugin: environment, standard input, result or error object.

use super::{Attachment, Runtime};
use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fmt;
use std::io::{ErrorKind, Write as _};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

/// A plugin that takes longer is killed, as by the kubelet's own limit.
const LIMIT: Duration = Duration::from_secs(120);

/// A plugin's error object (CNI specification, section 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which plugin and verb.
    pub what: String,
    /// `code`.
    pub code: u64,
    /// `msg`.
    pub message: String,
    /// `details`.
    pub details: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: code {}: {}", self.what, self.code, self.message)?;
        if !self.details.is_empty() {
            write!(f, " ({})", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refusal {}

/// The refusal that a result must be.
///
/// # Errors
/// It went well, or failed in another way.
pub fn refused<T: fmt::Debug>(result: Result<T>) -> Result<Refusal> {
    match result {
        Ok(value) => bail!("not refused, but answered {value:?}"),
        Err(error) => match error.downcast_ref::<Refusal>() {
            Some(refusal) => Ok(refusal.clone()),
            None => Err(error.context("failed without a CNI error")),
        },
    }
}

pub(super) fn run(
    runtime: &Runtime,
    verb: &str,
    plugin: &str,
    conf: &[u8],
    attachment: Option<&Attachment>,
) -> Result<Value> {
    let what = format!("{plugin} {verb}");
    let file = runtime.path.iter().map(|dir| dir.join(plugin)).find(|path| path.is_file());
    let file = file.with_context(|| format!("no plugin {plugin} in {:?}", runtime.path))?;
    let path = std::env::join_paths(&runtime.path)?;
    let mut command = Command::new(file);
    command.env("CNI_COMMAND", verb).env("CNI_PATH", path).current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for key in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
        command.env_remove(key);
    }
    if let Some(attachment) = attachment {
        let args: Vec<String> = attachment.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        command
            .env("CNI_CONTAINERID", &attachment.container)
            .env("CNI_NETNS", attachment.netns.as_deref().unwrap_or("".as_ref()))
            .env("CNI_IFNAME", &attachment.ifname)
            .env("CNI_ARGS", args.join(";"));
    }
    let output = communicate(runtime, &mut command, conf).with_context(|| what.clone())?;
    judge(&what, &output)
}

fn communicate(runtime: &Runtime, command: &mut Command, conf: &[u8]) -> Result<Output> {
    let mut child = runtime.host.spawn(command)?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(conf) {
            // It need not read to the end.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error.into()),
            _ => {}
        }
    }
    std::thread::scope(|scope| {
        let (done, wait) = std::sync::mpsc::channel();
        scope.spawn(move || done.send(child.wait_with_output()));
        match wait.recv_timeout(LIMIT) {
            Ok(output) => Ok(output?),
            Err(RecvTimeoutError::Timeout) => {
                kill(pid, Signal::SIGKILL)?;
                Err(anyhow!("still running after {LIMIT:?}"))
            }
            Err(RecvTimeoutError::Disconnected) => Err(anyhow!("the waiting thread panicked")),
        }
    })
}

/// Success is an exit status of 0 with a result or nothing; all else carries an error object.
fn judge(what: &str, output: &Output) -> Result<Value> {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let parsed = if stdout.trim().is_empty() { Ok(Value::Null) } else { serde_json::from_str(&stdout) };
    let value: Value =
        parsed.with_context(|| format!("{what}: standard output is not JSON: {stdout:?} {stderr}"))?;
    if output.status.success() {
        return Ok(value);
    }
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let Some(code) = value.get("code").and_then(Value::as_u64) else {
        bail!("{what}: {} without an error object: {stdout:?} {stderr}", output.status);
    };
    Err(Refusal { what: what.into(), code, message: text("msg"), details: text("details") }.into())
}
