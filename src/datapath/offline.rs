//! What the CNI plugin can do with the pinned maps while no agent runs.

use super::Error;
use super::pin::Pins;
use super::pods::{absent_is_fine, addresses};
use aya::maps::{HashMap, Map, MapData, MapError};
use netd_bpf::Addr;
use netd_bpf::pod::Pod;
use std::net::IpAddr;
use std::path::Path;

/// Removes the rows of a pod known by its interface, its addresses, or both. Maps that are not pinned and
/// rows that are not there are no error: then there is nothing to remove.
///
/// # Errors
/// The kernel refuses.
pub fn remove_pod_offline(bpffs: &Path, ifindex: Option<u32>, ips: &[IpAddr]) -> Result<(), Error> {
    let pins = Pins::new(bpffs);
    let mut by_addr: HashMap<_, Addr, Pod> = match open(&pins, "POD_BY_ADDR")? {
        Some(map) => HashMap::try_from(map).map_err(Error::map("POD_BY_ADDR"))?,
        None => return Ok(()),
    };
    let mut by_ifindex: HashMap<_, u32, Pod> = match open(&pins, "POD_BY_IFINDEX")? {
        Some(map) => HashMap::try_from(map).map_err(Error::map("POD_BY_IFINDEX"))?,
        None => return Ok(()),
    };
    let mut doomed: Vec<Addr> = ips.iter().map(|ip| Addr::from(*ip)).collect();
    let mut interfaces: Vec<u32> = ifindex.into_iter().collect();
    for ip in ips {
        match by_addr.get(&Addr::from(*ip), 0) {
            Ok(pod) => interfaces.push(pod.ifindex),
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(Error::map("POD_BY_ADDR")(error)),
        }
    }
    for ifindex in interfaces {
        if let Ok(pod) = by_ifindex.get(&ifindex, 0) {
            doomed.extend(addresses(&pod));
        }
        absent_is_fine(by_ifindex.remove(&ifindex), "POD_BY_IFINDEX")?;
    }
    for addr in doomed {
        absent_is_fine(by_addr.remove(&addr), "POD_BY_ADDR")?;
    }
    Ok(())
}

fn open(pins: &Pins, name: &'static str) -> Result<Option<Map>, Error> {
    let path = pins.map(name);
    if !path.exists() {
        return Ok(None);
    }
    let data = MapData::from_pin(&path).map_err(Error::map(name))?;
    Map::from_map_data(data).map(Some).map_err(Error::map(name))
}
