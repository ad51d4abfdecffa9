//! The guest's first process: this program again, as `/init` of the initramfs.
//!
//! It mounts what a system has, loads the kernel modules, runs the suites one after the other with their
//! output on the second serial port, and powers the machine off. It reaps what is left to it, as the first
//! process must.

use anyhow::{Context, Result, bail};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Pid, sethostname};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::suite::{self, FOLDER, SUITES};

/// Where the suites' output goes.
const PORT: &str = "/dev/ttyS1";

/// What is mounted: kind and place.
const MOUNTS: [(&str, &str); 7] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("bpf", "/sys/fs/bpf"),
    ("cgroup2", "/sys/fs/cgroup"),
];

/// Never returns well: the machine is off by then.
pub(crate) fn run() -> Result<()> {
    if std::process::id() != 1 {
        bail!("this is the first process of a virtual machine: `cargo xtask vm` starts it");
    }
    let done = prepare().and_then(|port| {
        let result = suites(&port);
        if let Err(error) = &result {
            say(&port, &format!("fault {error:#}"))?;
        }
        say(&port, "off")
    });
    // Ends the machine even if nobody could be told; the kernel's own console still can.
    if let Err(error) = done {
        crate::out::error(&format!("{error:#}"));
    }
    nix::unistd::sync();
    reboot(RebootMode::RB_POWER_OFF).context("cannot power off").map(|never| match never {})
}

/// A system of the least size.
fn prepare() -> Result<File> {
    for (kind, at) in MOUNTS {
        fs::create_dir_all(at).with_context(|| format!("cannot make {at}"))?;
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {at}"))?;
    }
    let port = OpenOptions::new().write(true).open(PORT).with_context(|| format!("cannot open {PORT}"))?;
    sethostname("netd-vm").context("cannot name the machine")?;
    Ok(port)
}

fn suites(port: &File) -> Result<()> {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    say(port, &format!("kernel {}", release.trim()))?;
    modules()?;
    let netd = Path::new(FOLDER).join("netd");
    for suite in &SUITES {
        let told = suite.arguments();
        let arguments =
            fs::read_to_string(&told).with_context(|| format!("cannot read {}", told.display()))?;
        let arguments: Vec<&str> = arguments.lines().collect();
        let mut command = suite::command(&suite.program(), &netd, &arguments);
        // Nobody else goes by this machine's clock.
        command.env("PATH", "/bin").env("HOME", "/run").env("TMPDIR", "/tmp").env("NETD_OWN_CLOCK", "1");
        let status = run_to_end(command.stdout(port.try_clone()?).stderr(port.try_clone()?))
            .with_context(|| format!("cannot run the suite `{}`", suite.name))?;
        say(port, &format!("ended {} {status}", suite.name))?;
    }
    Ok(())
}

/// Loads the modules in the order of their file names.
fn modules() -> Result<()> {
    let folder = Path::new(FOLDER).join("modules");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<PathBuf>>>()?;
    files.sort();
    for path in files {
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        finit_module(&file, c"", ModuleInitFlags::empty())
            .with_context(|| format!("cannot load the module {}", path.display()))?;
    }
    Ok(())
}

/// Waits for a command, and for whatever else ends meanwhile: orphans are the first process's to reap.
fn run_to_end(command: &mut Command) -> Result<String> {
    let child = command.spawn()?;
    let id = Pid::from_raw(i32::try_from(child.id())?);
    loop {
        match wait()? {
            WaitStatus::Exited(pid, code) if pid == id => return Ok(format!("exit status: {code}")),
            WaitStatus::Signaled(pid, signal, _) if pid == id => return Ok(format!("signal: {signal:?}")),
            _ => {}
        }
    }
}

fn say(mut port: &File, words: &str) -> Result<()> {
    writeln!(port, "{}", suite::said(words)).context("cannot write to the serial port")
}
