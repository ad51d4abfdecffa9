//! One lab: namespaces, links, processes and folders of one test, all under one folder and one value.
//!
//! Owns `/tmp/nd<pid>-<n>/`: `netns/<name>` (bind mounts of network namespaces), `bpf/` (a bpffs of its
//! own), and whatever nodes put there. Every process of a lab runs in one of its namespaces, so the folder
//! is all that is needed to find and remove everything ([`sweep`]). That is done by [`Drop`], also while a
//! panic unwinds; and by a reaper, a second process that sweeps when the pipe to this one breaks, whatever
//! broke it: SIGKILL, Ctrl-C, `process::exit`.

mod autopsy;
mod netns;
mod objects;
mod offload;
mod process;
mod reaper;
mod signals;
mod sweep;
mod turns;
mod wire;

pub use netns::Namespace;
pub use objects::{Pinned, bpftool, pinned};
pub use offload::allow_big_tcp;
pub use process::{Process, tail};
pub use reaper::{helper, reap};
pub use signals::clean_up_on_signals;
pub use sweep::{leftovers, sweep};
pub use turns::chrt;
pub use wire::Segment;

use anyhow::{Context as _, Result, bail};
use nix::mount::MsFlags;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Numbers the labs of this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The folder of this process's lab number `n`.
fn folder_of(n: u32) -> PathBuf {
    PathBuf::from(format!("/tmp/nd{}-{n}", std::process::id()))
}

/// Set to keep a failed lab standing until Enter is pressed.
const HOLD: &str = "NETD_LAB_HOLD";

/// Everything one test made. See the module.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
    reaper: Option<reaper::Reaper>,
}

impl Lab {
    /// A new, empty lab.
    ///
    /// # Errors
    /// Not root, or the kernel refuses a mount.
    pub fn new() -> Result<Self> {
        if !nix::unistd::Uid::effective().is_root() {
            bail!("the lab makes network namespaces and loads eBPF: run it as root");
        }
        let dir = folder_of(NEXT.fetch_add(1, Ordering::Relaxed));
        // A reaper that was itself killed may have left the folder of an earlier process of the same id.
        sweep(&dir)?;
        let reaper = Some(reaper::Reaper::start(&dir)?);
        // From here on Drop cleans up.
        let lab = Self { dir, reaper };
        for folder in ["netns", "bpf"] {
            let path = lab.dir.join(folder);
            fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        }
        let none: Option<&str> = None;
        nix::mount::mount(none, &lab.bpffs(), Some("bpf"), MsFlags::empty(), none)
            .with_context(|| format!("mounting a bpffs on {}", lab.bpffs().display()))?;
        Ok(lab)
    }

    /// Runs a test in a lab of its own. If it fails, shows the ends of all logs and what the kernel counted;
    /// if it passes, demands that nothing of the lab is left.
    ///
    /// # Errors
    /// The test's, or what was left over.
    pub fn run(test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let lab = Self::new()?;
        match test(&lab) {
            Ok(()) => lab.tear_down(),
            Err(error) => {
                lab.explain();
                lab.hold();
                Err(error)
            }
        }
    }

    /// The lab's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The lab's own bpffs.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    /// A new folder in memory, for files by the ten thousand: some disks take milliseconds to remove each.
    ///
    /// # Errors
    /// The name is taken, or the kernel refuses the mount.
    pub fn folder_in_memory(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        let none: Option<&str> = None;
        nix::mount::mount(none, &path, Some("tmpfs"), MsFlags::empty(), none)
            .with_context(|| format!("mounting a tmpfs on {}", path.display()))?;
        Ok(path)
    }

    /// A new network namespace with its loopback up.
    ///
    /// # Errors
    /// The name is taken, or the kernel refuses.
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        Namespace::create(&self.dir.join("netns"), name)
    }

    /// A new layer-2 segment: a namespace with nothing but a bridge.
    ///
    /// # Errors
    /// The name is taken, or the kernel refuses.
    pub fn segment(&self, name: &str) -> Result<Segment> {
        Segment::create(self.namespace(name)?)
    }

    /// Removes everything.
    ///
    /// # Errors
    /// Names what could not be removed.
    pub fn tear_down(mut self) -> Result<()> {
        self.clean()
    }

    fn clean(&mut self) -> Result<()> {
        let Some(reaper) = self.reaper.take() else { return Ok(()) };
        let swept = sweep(&self.dir);
        reaper.dismiss();
        swept?;
        match leftovers(&self.dir)?.as_slice() {
            [] => Ok(()),
            left => bail!("the lab {} left behind: {}", self.dir.display(), left.join(", ")),
        }
    }

    /// Writes to stderr what helps to see why a test failed.
    pub fn explain(&self) {
        let text = autopsy::counters(&self.dir.join("netns")) + &autopsy::logs(&self.dir);
        // Nobody is left to tell if stderr is gone.
        drop(std::io::stderr().write_all(text.as_bytes()));
    }

    /// With `NETD_LAB_HOLD` set, keeps a failed lab standing for a look inside.
    fn hold(&self) {
        if std::env::var_os(HOLD).is_none() {
            return;
        }
        let text = format!(
            "{HOLD}: {0} stands until Enter; enter a node by: nsenter --net={0}/netns/NAME\n",
            self.dir.display()
        );
        drop(std::io::stderr().write_all(text.as_bytes()));
        drop(std::io::stdin().read_line(&mut String::new()));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.explain();
            self.hold();
        }
        if let Err(error) = self.clean() {
            drop(writeln!(std::io::stderr(), "{error:#}"));
        }
    }
}
