//! What the CNI plugin can do with the pinned maps while no agent runs.

use super::Error;
use super::answers::{absent_is_fine, present};
use super::pin::Pins;
use super::pods::{addresses, next_epoch};
use aya::maps::{HashMap, MapData};
use netd_bpf::Addr;
use netd_bpf::flow::Share;
use netd_bpf::pod::Pod;
use std::net::IpAddr;
use std::path::Path;

/// Removes the rows of a pod known by its interface, its addresses, or both. Maps that are not pinned and
/// rows that are not there are no error: then there is nothing to remove.
///
/// # Errors
/// The kernel refuses.
pub fn remove_pod_offline(bpffs: &Path, ifindex: Option<u32>, ips: &[IpAddr]) -> Result<(), Error> {
    // An agent that died while it moved the maps has left two sets in use; their tables of pods are alike.
    for pins in [Pins::current(bpffs), Pins::schema1(bpffs), Pins::next(bpffs)] {
        if let (Some(by_addr), Some(by_ifindex)) = (pins.hash("POD_BY_ADDR")?, pins.hash("POD_BY_IFINDEX")?) {
            let removed = remove(by_addr, by_ifindex, pins.hash("SHARES")?, ifindex, ips);
            // Schema 1 has none. What is gone must not be remembered, whatever could not be removed.
            if let Some(mut epoch) = pins.array("POD_EPOCH")? {
                next_epoch(&mut epoch)?;
            }
            removed?;
        }
    }
    Ok(())
}

fn remove(
    mut by_addr: HashMap<MapData, Addr, Pod>,
    mut by_ifindex: HashMap<MapData, u32, Pod>,
    mut shares: Option<HashMap<MapData, u32, Share>>,
    ifindex: Option<u32>,
    ips: &[IpAddr],
) -> Result<(), Error> {
    let mut doomed: Vec<Addr> = ips.iter().map(|ip| Addr::from(*ip)).collect();
    let mut interfaces: Vec<u32> = ifindex.into_iter().collect();
    for ip in ips {
        let pod = present(by_addr.get(&Addr::from(*ip), 0), "POD_BY_ADDR")?;
        interfaces.extend(pod.map(|pod| pod.ifindex));
    }
    for ifindex in interfaces {
        if let Ok(pod) = by_ifindex.get(&ifindex, 0) {
            doomed.extend(addresses(&pod));
            // Schema 1 has none.
            if let Some(shares) = &mut shares {
                absent_is_fine(shares.remove(&pod.endpoint), "SHARES")?;
            }
        }
        absent_is_fine(by_ifindex.remove(&ifindex), "POD_BY_IFINDEX")?;
    }
    for addr in doomed {
        absent_is_fine(by_addr.remove(&addr), "POD_BY_ADDR")?;
    }
    Ok(())
}
