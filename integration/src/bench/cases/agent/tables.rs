//! The agent's pinned maps, read from outside.

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use netd_bpf::service::{Backend, Frontend, FrontendKey, scope};
use std::fs;
use std::net::{IpAddr, SocketAddrV4};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

/// IANA's number of TCP.
const TCP: u8 = 6;

/// The Service tables of one agent.
pub(super) struct Tables {
    frontends: HashMap<MapData, FrontendKey, Frontend>,
    slots: Array<MapData, u32>,
    backends: Array<MapData, Backend>,
}

fn folder(pins: &Path) -> PathBuf {
    pins.join(format!("v{}", netd_bpf::SCHEMA)).join("maps")
}

fn map(path: &Path) -> Result<MapData> {
    MapData::from_pin(path).with_context(|| format!("opening {}", path.display()))
}

impl Tables {
    /// Opens those pinned below `pins`.
    pub(super) fn open(pins: &Path) -> Result<Self> {
        let open = |name: &str| anyhow::Ok(Map::from_map_data(map(&folder(pins).join(name))?)?);
        Ok(Self {
            frontends: open("FRONTENDS")?.try_into()?,
            slots: open("SLOTS")?.try_into()?,
            backends: open("BACKENDS")?.try_into()?,
        })
    }

    /// Where the kernel would send a new TCP connection to `frontend` now.
    pub(super) fn endpoints(&self, frontend: SocketAddrV4) -> Result<Vec<SocketAddrV4>> {
        let key = FrontendKey {
            addr: IpAddr::V4(*frontend.ip()).into(),
            port: frontend.port().to_be(),
            proto: TCP,
            scope: scope::INTERNAL,
        };
        let row = match self.frontends.get(&key, 0) {
            Err(MapError::KeyNotFound) => return Ok(Vec::new()),
            other => other?,
        };
        (row.slot_base..row.slot_base + u32::from(row.backends))
            .map(|slot| {
                let backend = self.backends.get(&self.slots.get(&slot, 0)?, 0)?;
                let ip = std::net::Ipv4Addr::from(backend.addr.v4_word().to_ne_bytes());
                Ok(SocketAddrV4::new(ip, u16::from_be(backend.port)))
            })
            .collect()
    }
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
