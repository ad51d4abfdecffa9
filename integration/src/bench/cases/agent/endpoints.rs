//! Where the kernel would send a connection to a Service, by the agent's pinned maps.

use crate::cases::pins::open;
use anyhow::Result;
use aya::maps::{Array, HashMap, MapData, MapError};
use netd_bpf::service::{Backend, Frontend, FrontendKey, scope};
use std::net::{IpAddr, SocketAddrV4};
use std::path::Path;

/// IANA's number of TCP.
const TCP: u8 = 6;

/// The Service tables of one agent.
pub(super) struct Endpoints {
    frontends: HashMap<MapData, FrontendKey, Frontend>,
    slots: Array<MapData, u32>,
    backends: Array<MapData, Backend>,
}

impl Endpoints {
    /// Opens those pinned below `pins`.
    pub(super) fn open(pins: &Path) -> Result<Self> {
        Ok(Self {
            frontends: open(pins, "FRONTENDS")?.try_into()?,
            slots: open(pins, "SLOTS")?.try_into()?,
            backends: open(pins, "BACKENDS")?.try_into()?,
        })
    }

    /// Where the kernel would send a new TCP connection to `frontend` now.
    pub(super) fn of(&self, frontend: SocketAddrV4) -> Result<Vec<SocketAddrV4>> {
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
