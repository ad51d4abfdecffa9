//! Network namespaces, entered by fresh threads.
//!
//! A thread that called `setns` is never reused: it does its work and ends. A socket or a child process
//! stays in the namespace in which it was made, so both can be handed out of such a thread. `/proc/sys/net`
//! shows the namespace of the thread that opens it.

use anyhow::{Context as _, Result, anyhow, bail};
use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

/// A network namespace with a name. Cheap to clone; removed with its lab, or by [`Namespace::delete`].
#[derive(Clone, Debug)]
pub struct Namespace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    path: PathBuf,
    file: File,
}

impl Namespace {
    /// Makes `folder/name`.
    pub(super) fn create(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        let made = File::create_new(&path).with_context(|| format!("creating {}", path.display()))?;
        drop(made);
        let mounted = fresh_thread(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            let none: Option<&str> = None;
            nix::mount::mount(Some("/proc/thread-self/ns/net"), &path, none, MsFlags::MS_BIND, none)
        })?;
        if let Err(errno) = mounted {
            fs::remove_file(&path)?;
            return Err(errno).with_context(|| format!("making the network namespace {}", path.display()));
        }
        let namespace = Self::open(&path)?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// One that stands already.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Self(Arc::new(Inner { name, path: path.to_owned(), file })))
    }

    /// Its name within the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Its file, as `CNI_NETNS` and `ip link … netns` take it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Runs `work` on a fresh thread inside.
    ///
    /// # Errors
    /// The namespace cannot be entered, or what `work` says.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        fresh_thread(|| {
            nix::sched::setns(&self.0.file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("entering {}", self.0.path.display()))?;
            work()
        })?
    }

    /// Runs a named thread inside that the caller joins.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn spawn_thread<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<std::thread::JoinHandle<Result<T>>> {
        let inner = Arc::clone(&self.0);
        let body = move || {
            nix::sched::setns(&inner.file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("entering {}", inner.path.display()))?;
            // The thread must not keep the namespace alive by its handle as well.
            drop(inner);
            work()
        };
        std::thread::Builder::new()
            .name(name.into())
            .stack_size(256 * 1024)
            .spawn(body)
            .with_context(|| format!("starting the thread {name}"))
    }

    /// Starts a child process inside.
    ///
    /// # Errors
    /// The program cannot be executed.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        // Signals that this process blocks for itself (the demo waits for Ctrl-C) are not the child's.
        let start = || {
            nix::sys::signal::SigSet::empty().thread_set_mask()?;
            command.spawn().with_context(|| format!("executing {}", command.get_program().display()))
        };
        self.enter(start)
    }

    /// Runs a program inside to its end, with nothing on its standard input.
    ///
    /// # Errors
    /// The program cannot be executed. Its exit status is the caller's to judge.
    pub fn output<S: AsRef<OsStr>>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Output> {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.spawn(&mut command)?.wait_with_output().with_context(|| format!("waiting for {program}"))
    }

    /// Runs a line of words inside to its end and gives what it wrote to its standard output.
    ///
    /// # Errors
    /// It cannot be executed or failed: with what it wrote.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().ok_or_else(|| anyhow!("an empty command line"))?;
        let output = self.output(program, words)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("in {}: {line}: {}: {text}{said}", self.0.name, output.status);
        }
        Ok(text)
    }

    /// `ip WORDS` inside.
    ///
    /// # Errors
    /// As [`Namespace::run`].
    pub fn ip(&self, words: &str) -> Result<String> {
        self.run(&format!("ip {words}"))
    }

    /// Sets a sysctl inside; `key` with slashes below `/proc/sys`.
    ///
    /// # Errors
    /// There is no such key, or the kernel refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.enter(|| {
            fs::write(Path::new("/proc/sys").join(key), value)
                .with_context(|| format!("setting {key} to {value} in {}", self.0.name))
        })
    }

    /// Takes the name away; the namespace itself ends with its last process, socket and clone of this.
    ///
    /// # Errors
    /// The mount cannot be removed.
    pub fn delete(self) -> Result<()> {
        unmount(&self.0.path)
    }
}

/// Removes a namespace's mount and file.
pub(super) fn unmount(path: &Path) -> Result<()> {
    let gone = nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH);
    match gone {
        // EINVAL: not a mount point (any more).
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(errno) => return Err(errno).with_context(|| format!("unmounting {}", path.display())),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Runs `work` on a thread of its own, joined.
fn fresh_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .context("starting a thread")?;
        thread.join().map_err(|panic| std::panic::resume_unwind(panic))
    })
}
