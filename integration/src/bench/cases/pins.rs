//! An agent's pinned maps, opened from outside.

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData};
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

fn folder(pins: &Path) -> PathBuf {
    pins.join(format!("v{}", netd_bpf::SCHEMA)).join("maps")
}

fn map(path: &Path) -> Result<MapData> {
    MapData::from_pin(path).with_context(|| format!("opening {}", path.display()))
}

/// A map of the datapath that is pinned below `pins`.
pub(super) fn open(pins: &Path, name: &str) -> Result<Map> {
    Ok(Map::from_map_data(map(&folder(pins).join(name))?)?)
}

/// What all maps pinned below `pins` take, in MiB, as the kernel accounts them.
pub(super) fn memory(pins: &Path) -> Result<f64> {
    let mut total = 0.0;
    for entry in fs::read_dir(folder(pins))? {
        let data = map(&entry?.path())?;
        let info = format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd());
        let text = fs::read_to_string(&info)?;
        let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:"));
        total += bytes.with_context(|| format!("no memlock in {info}"))?.trim().parse::<f64>()?;
    }
    Ok(total / 1024.0 / 1024.0)
}
