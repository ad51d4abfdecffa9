//! Which new flows the programs tell, and how many they did not.

use super::{Datapath, Error, locked};
use netd_bpf::policy::Audit;

impl Datapath {
    /// Has the programs tell new flows, so many a second; 0: none. Each CPU tells an equal part of them, and at least one:
    /// with more CPUs than that it is one for each, and where all flows come to one CPU only its part.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_flow_audit(&self, per_second: u32) -> Result<(), Error> {
        // Packets are where their interrupts are, not where this process may run.
        let cpus = aya::util::online_cpus().map_or(1, |cpus| cpus.len());
        let audit = Audit { per_second: part(per_second, cpus) };
        locked(&self.audit).set(0, audit, 0).map_err(Error::map("AUDIT"))
    }

    /// New flows that were to be told and were not since the maps were made: there were too many on a CPU, or the ring of
    /// events had no room.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn untold_flows(&self) -> Result<u64, Error> {
        let values = self.audited.get(&0, 0).map_err(Error::map("AUDITED"))?;
        Ok(values.iter().map(|audited| audited.untold).sum())
    }
}

/// What one CPU tells.
fn part(per_second: u32, cpus: usize) -> u32 {
    let cpus = u32::try_from(cpus).unwrap_or(u32::MAX).max(1);
    if per_second == 0 { 0 } else { (per_second / cpus).max(1) }
}

#[cfg(test)]
mod tests {
    use super::part;

    #[test]
    fn each_cpu_has_its_part_and_none_is_silent() {
        let cases = [(0, 4), (100, 4), (100, 3), (1, 8), (7, 0)];
        assert_eq!(cases.map(|(rate, cpus)| part(rate, cpus)), [0, 25, 33, 1, 7]);
    }
}
