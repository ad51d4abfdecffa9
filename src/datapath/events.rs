//! What the programs tell: the ring buffer of drops, and the counters.

use super::answers::absent_is_fine;
use super::{Datapath, Error, locked};
use aya::maps::{MapData, PerCpuValues, RingBuf};
use netd_bpf::event::{Count, Drop, DropKey, path, reason, stage, total_index};
use std::io;
use tokio::io::unix::AsyncFd;

/// The ring buffer of drop events; one reader at a time.
pub struct Events {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl Datapath {
    /// Takes the reader's end of the ring buffer; the second call finds none. Needs a tokio runtime.
    ///
    /// # Errors
    /// The descriptor cannot be watched.
    #[expect(unsafe_code, reason = "registering a descriptor with the runtime")]
    pub fn take_events(&self) -> io::Result<Option<Events>> {
        let Some(ring) = locked(&self.events).take() else { return Ok(None) };
        // SAFETY: the ring buffer owns its descriptor and gives out the same one until it is dropped.
        match unsafe { AsyncFd::register(ring) } {
            Ok(ring) => Ok(Some(Events { ring })),
            Err(error) => {
                let (ring, error) = error.into_parts();
                *locked(&self.events) = Some(ring);
                Err(error)
            }
        }
    }

    /// Drops so far, by reason and place.
    ///
    /// # Errors
    /// The kernel refuses the walk.
    pub fn drop_counts(&self) -> Result<Vec<(DropKey, Count)>, Error> {
        locked(&self.drops)
            .iter()
            .map(|row| row.map(|(key, values)| (key, sum(&values))).map_err(Error::map("DROPS")))
            .collect()
    }

    /// Forgets the drops of a pod that goes: nobody will ask for them, and others need the room.
    pub(super) fn forget_drops(&self, endpoint: u32) -> Result<(), Error> {
        let mut drops = locked(&self.drops);
        let keys: Vec<DropKey> = drops.keys().flatten().filter(|key| key.endpoint == endpoint).collect();
        for key in keys {
            absent_is_fine(drops.remove(&key), "DROPS")?;
        }
        Ok(())
    }

    /// Drops so far by stage and reason; these only grow.
    ///
    /// # Errors
    /// The kernel refuses a look-up.
    pub fn drop_totals(&self) -> Result<Vec<(u8, u8, Count)>, Error> {
        let stages = [stage::POD_EGRESS, stage::POD_INGRESS, stage::UPLINK_IN];
        let pairs = stages.into_iter().flat_map(|stage| reason::ALL.iter().map(move |(r, _, _)| (stage, *r)));
        pairs
            .map(|(stage, reason)| {
                let index = total_index(stage, reason);
                let values = self.drop_totals.get(&index, 0).map_err(Error::map("DROP_TOTALS"))?;
                Ok((stage, reason, sum(&values)))
            })
            .collect()
    }

    /// Packets so far by the way they left, as [`path::NAMES`] calls it.
    ///
    /// # Errors
    /// The kernel refuses a look-up.
    pub fn path_counts(&self) -> Result<Vec<(&'static str, Count)>, Error> {
        (0..path::COUNT)
            .zip(path::NAMES)
            .map(|(index, name)| {
                let values = self.paths.get(&index, 0).map_err(Error::map("PATHS"))?;
                Ok((name, sum(&values)))
            })
            .collect()
    }
}

impl Events {
    /// The next drop. Cancel-safe: an event is taken only when it is returned.
    ///
    /// # Errors
    /// The descriptor cannot be watched.
    pub async fn next(&mut self) -> io::Result<Drop> {
        loop {
            let mut ready = self.ring.readable_mut().await?;
            if let Some(item) = ready.get_inner_mut().next() {
                if let Some(event) = decode(&item) {
                    return Ok(event);
                }
                continue;
            }
            ready.clear_ready();
        }
    }
}

/// A record of another size is not ours and is skipped.
#[expect(unsafe_code, reason = "reading a C struct out of the ring buffer")]
fn decode(bytes: &[u8]) -> Option<Drop> {
    if bytes.len() != size_of::<Drop>() {
        return None;
    }
    // SAFETY: the length is checked; `Drop` is plain data for which any bytes are a value.
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

fn sum(values: &PerCpuValues<Count>) -> Count {
    values.iter().fold(Count::default(), |total, one| Count {
        packets: total.packets + one.packets,
        bytes: total.bytes + one.bytes,
    })
}
