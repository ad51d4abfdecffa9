//! A virtual machine: boots, is read from, and never outlives its time or this process.
//!
//! The kernel's console is the first serial port and goes to a file; what the guest says is the second and
//! comes here line by line. A panic, an oops or a soft lockup reboots the guest, which ends qemu.
//!
//! Emulation (TCG) only: it works on machines that are virtual themselves. One processor only: before 8.1 qemu
//! now and then lets one of several see an int3 of a kernel that patches itself, which is an oops
//! (<https://bugzilla.redhat.com/show_bug.cgi?id=2216496>).

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::cargo;

const PROGRAM: &str = "qemu-system-x86_64";

/// The whole of a machine's life.
const LONGEST: Duration = Duration::from_secs(30 * 60);

/// A guest that says nothing for so long hangs.
const SILENCE: Duration = Duration::from_secs(8 * 60);

/// The kernel's command line. The emulated processors may stand still while the host is busy with other
/// things: a lockup is one only after a minute.
const KERNEL: &str = "console=ttyS0 loglevel=4 panic=-1 oops=panic softlockup_panic=1 watchdog_thresh=30 \
                      mitigations=off rdinit=/init -- vm-guest";

/// What a machine is made of.
pub(super) struct Machine<'a> {
    pub(super) vmlinuz: &'a Path,
    pub(super) initramfs: &'a Path,
    /// The file that gets the kernel's console.
    pub(super) console: &'a Path,
}

impl Machine<'_> {
    /// Boots, hands each line of the guest to `line`, and returns once the machine is off.
    ///
    /// # Errors
    /// It could not start, hung or took too long; then it is killed.
    pub(super) fn run(&self, mut line: impl FnMut(&str)) -> Result<()> {
        let mut child = Killed(self.start()?);
        let stdout = child.0.stdout.take().context("qemu has no output")?;
        let (send, lines) = mpsc::sync_channel(1024);
        let reader = std::thread::Builder::new().name("guest".into()).spawn(move || {
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        })?;
        let begun = Instant::now();
        loop {
            match lines.recv_timeout(SILENCE) {
                Ok(bytes) => line(String::from_utf8_lossy(&bytes).trim_end_matches('\r')),
                Err(RecvTimeoutError::Timeout) => bail!("the guest said nothing for {SILENCE:?}: killed"),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if begun.elapsed() > LONGEST {
                bail!("the guest was not done after {LONGEST:?}: killed");
            }
        }
        if reader.join().is_err() {
            bail!("the thread that reads from the guest panicked");
        }
        let status = child.0.wait().with_context(|| format!("cannot wait for {PROGRAM}"))?;
        if !status.success() {
            bail!("{PROGRAM} failed ({status})");
        }
        Ok(())
    }

    fn start(&self) -> Result<Child> {
        let console = format!("file,id=console,path={}", self.console.display());
        // setpriv: this process may be killed, and the machine must not outlive it.
        cargo::program("setpriv")
            .args(["--pdeathsig", "KILL", "--", PROGRAM])
            .args(["-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "2048"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-chardev", &console, "-serial", "chardev:console"])
            .args(["-chardev", "stdio,id=guest,signal=off", "-serial", "chardev:guest"])
            .arg("-kernel")
            .arg(self.vmlinuz)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", KERNEL])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {PROGRAM}"))
    }
}

/// A process that goes with its handle.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // One that has ended already can be neither killed nor waited for again.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
