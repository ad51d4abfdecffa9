//! Where things are pinned: `<bpffs>/v<schema>/{maps,programs,links}/<name>`.

use super::Error;
use netd_bpf::SCHEMA;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The pin folders of this binary's schema.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
}

impl Pins {
    pub(super) fn new(bpffs: &Path) -> Self {
        Self { root: bpffs.join(format!("v{SCHEMA}")) }
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.root.join("programs").join(name)
    }

    /// By index too: a name may pass to another device. bpffs refuses names with a dot, which an interface's
    /// may have.
    pub(super) fn uplink(&self, ifindex: u32, interface: &str) -> PathBuf {
        self.root.join("links").join(format!("uplink-{ifindex}-{}", interface.replace('.', ":")))
    }

    pub(super) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Makes the folders, for root only.
    pub(super) fn create(&self) -> Result<(), Error> {
        for folder in ["maps", "programs", "links"] {
            let path = self.root.join(folder);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(Error::path("create the pin folder", &path))?;
        }
        Ok(())
    }
}
