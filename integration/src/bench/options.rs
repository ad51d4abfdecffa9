//! The command line.

use crate::cases::Case;
use anyhow::{Context as _, Result};
use std::path::PathBuf;
use std::time::Duration;

/// Sizes of a full run, in Services.
const SIZES: [u32; 4] = [1, 100, 5_000, 50_000];
/// Those of a quick one.
const QUICK_SIZES: [u32; 3] = [1, 100, 5_000];
/// Policies of a full run.
const POLICIES: [u32; 4] = [0, 10, 1_000, 10_000];
/// Of a quick one.
const QUICK_POLICIES: [u32; 3] = [0, 10, 100];

/// netd measured against what would stand in its place.
#[derive(clap::Parser, Debug)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
pub(crate) struct Options {
    /// Only these cases.
    #[arg(value_enum, value_name = "CASE")]
    only: Vec<Case>,
    /// Rounds: how often each subject is measured.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Short slices, few rounds, no more than 5 000 Services and 100 policies: shows that all works, measures little.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Numbers of Services, such as 1,5000.
    #[arg(long, value_delimiter = ',', value_name = "LIST", value_parser = clap::value_parser!(u32).range(1..=50_000))]
    services: Vec<u32>,
    /// Numbers of policies, such as 0,1000; packets are compared with those of the lowest.
    #[arg(long, value_delimiter = ',', value_name = "LIST", value_parser = clap::value_parser!(u32).range(..=50_000))]
    policies: Vec<u32>,
    /// Folder of the results; default: `bench` in cargo's target folder.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

impl Options {
    /// What to run.
    pub(crate) fn cases(&self) -> Vec<Case> {
        if self.only.is_empty() { Case::ALL.to_vec() } else { self.only.clone() }
    }

    /// How often each subject is measured.
    pub(crate) fn rounds(&self) -> usize {
        self.rounds.map_or(if self.quick { 3 } else { 7 }, usize::from)
    }

    /// For how long load is put on a subject at a time.
    pub(crate) fn slice(&self) -> Duration {
        Duration::from_millis(if self.quick { 100 } else { 500 })
    }

    /// One number or another.
    pub(crate) fn pick<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Numbers of Services, ascending.
    pub(crate) fn sizes(&self) -> Vec<u32> {
        ascending(&self.services, self.pick(&SIZES, &QUICK_SIZES))
    }

    /// Numbers of policies, ascending.
    pub(crate) fn policies(&self) -> Vec<u32> {
        ascending(&self.policies, self.pick(&POLICIES, &QUICK_POLICIES))
    }

    /// Folder of the results.
    ///
    /// # Errors
    /// This program is in no target folder.
    pub(crate) fn out(&self) -> Result<PathBuf> {
        if let Some(folder) = &self.out {
            return Ok(folder.clone());
        }
        let me = std::env::current_exe().context("asking for the path of this program")?;
        // target/PROFILE/netd-bench.
        let target = me.ancestors().nth(2).with_context(|| format!("{} is nowhere", me.display()))?;
        Ok(target.join("bench"))
    }
}

/// What was asked for, or else the usual.
fn ascending(asked: &[u32], usual: &[u32]) -> Vec<u32> {
    let mut sizes = if asked.is_empty() { usual } else { asked }.to_vec();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}
