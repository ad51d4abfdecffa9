//! A long-running program of the lab, its log in a file.
//!
//! No `PR_SET_PDEATHSIG`: it fires when the *thread* that forked ends, and a lab forks on threads that
//! entered a namespace and end at once. The reaper does that duty.

use super::Namespace;
use crate::wait;
use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// A child process. Dropped: SIGTERM, a few seconds, SIGKILL.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
    log: PathBuf,
}

impl Process {
    /// Starts `command` inside `namespace`; both outputs are appended to `log`.
    ///
    /// # Errors
    /// The log cannot be opened or the program not be executed.
    pub fn start(namespace: &Namespace, name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = namespace.spawn(command).with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.into(), child, ended: None, log: log.into() })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// `waitpid` fails.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().with_context(|| format!("waiting for {}", self.name))?;
        }
        Ok(self.ended)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.ended()? {
            bail!("{} has ended already ({status}):\n{}", self.name, tail(&self.log, 20));
        }
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("sending {signal} to {} ({pid})", self.name))
    }

    /// Waits until it ended.
    ///
    /// # Errors
    /// It did not end by the deadline.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        let pid = self.child.id();
        wait::until(&what, || self.ended()).with_context(|| doing(pid))
    }

    /// Sends a signal that is to end it, and waits for that.
    ///
    /// # Errors
    /// It had ended already, or did not.
    pub fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        self.wait()
    }
}

/// What the threads of a process are doing in the kernel.
fn doing(pid: u32) -> String {
    let mut text = String::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |file: &str| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        let status = read("status");
        let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or_default();
        text +=
            &format!("thread {} {}{state}\n{}", thread.file_name().display(), read("comm"), read("stack"));
    }
    text
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.ended(), Ok(Some(_))) {
            return;
        }
        let left = self.end(Signal::SIGTERM).or_else(|_| self.end(Signal::SIGKILL));
        // The sweep of the lab comes next and kills by namespace.
        drop(left);
    }
}

/// The last `lines` lines of a file.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).map_or_else(
        |error| format!("(unreadable: {error})"),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    );
    let all: Vec<&str> = text.lines().collect();
    let start = all.len().saturating_sub(lines);
    all.get(start..).unwrap_or_default().join("\n")
}
