//! What the CNI plugin can do with the pinned maps while no agent runs.

use super::Error;
use super::answers::{absent_is_fine, present};
use super::pin::Pins;
use super::pods::{addresses, next_epoch};
use netd_bpf::flow::Share;
use netd_bpf::pod::Pod;
use netd_bpf::{Addr, schema1};
use std::net::IpAddr;
use std::path::Path;

/// Removes the rows of a pod known by its interface, its addresses, or both. Maps that are not pinned and
/// rows that are not there are no error: then there is nothing to remove.
///
/// # Errors
/// The kernel refuses.
pub fn remove_pod_offline(bpffs: &Path, ifindex: Option<u32>, ips: &[IpAddr]) -> Result<(), Error> {
    // An agent that died while it moved the maps has left two sets in use; their tables of pods know the same pods.
    for pins in [Pins::current(bpffs), Pins::schema1(bpffs), Pins::next(bpffs)] {
        let removed = if pins == Pins::schema1(bpffs) {
            remove(&pins, schema1::Pod::import, ifindex, ips)
        } else {
            remove(&pins, |row: &Pod| *row, ifindex, ips)
        };
        // Schema 1 has none. What is gone must not be remembered, whatever could not be removed.
        if let Some(mut epoch) = pins.array("POD_EPOCH")? {
            next_epoch(&mut epoch, "POD_EPOCH")?;
        }
        removed?;
    }
    Ok(())
}

fn remove<V: aya::Pod>(
    pins: &Pins,
    ours: impl Fn(&V) -> Pod,
    ifindex: Option<u32>,
    ips: &[IpAddr],
) -> Result<(), Error> {
    let (Some(mut by_addr), Some(mut by_ifindex)) =
        (pins.hash::<Addr, V>("POD_BY_ADDR")?, pins.hash::<u32, V>("POD_BY_IFINDEX")?)
    else {
        return Ok(());
    };
    // Schema 1 has none.
    let mut shares = pins.hash::<u32, Share>("SHARES")?;
    let mut doomed: Vec<Addr> = ips.iter().map(|ip| Addr::from(*ip)).collect();
    let mut interfaces: Vec<u32> = ifindex.into_iter().collect();
    for ip in ips {
        let pod = present(by_addr.get(&Addr::from(*ip), 0), "POD_BY_ADDR")?;
        interfaces.extend(pod.map(|pod| ours(&pod).ifindex));
    }
    for ifindex in interfaces {
        if let Ok(pod) = by_ifindex.get(&ifindex, 0) {
            let pod = ours(&pod);
            doomed.extend(addresses(&pod));
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
