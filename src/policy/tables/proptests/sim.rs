//! The kernel's tables, simulated: every write is checked as a careful reviewer would, and packets are judged as the
//! programs do it.

use super::QUARANTINE;
use crate::policy::Sets;
use crate::policy::desired::Desired;
use crate::policy::tables::{Kernel, Limits, Op, Tables, UNDER_WAY};
use netd_bpf::Addr;
use netd_bpf::policy::{
    Block, Decision, IdentityRow, MAX_RANGES, PolicyKey, PolicyRow, Range, action, identity, identity_flag,
    identity_seal, point, row_seal, set,
};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Instant;

/// Endpoint, whether it sends, the other end, protocol and port.
pub(super) type Case = (u32, bool, Addr, u32);

/// The kernel's maps, and what a reviewer of every write would remember.
#[derive(Clone)]
pub(super) struct Sim {
    limits: Limits,
    pub(super) now: Instant,
    pods: BTreeMap<u32, Sets>,
    identities: BTreeMap<Addr, IdentityRow>,
    blocks: BTreeMap<Block, u64>,
    rows: BTreeMap<PolicyKey, PolicyRow>,
    ranges: Vec<Range>,
    pub(super) epoch: u64,
    /// When an element was last named.
    named: HashMap<usize, Instant>,
}

/// Addresses on both sides of the edges of what the histories name.
const SAMPLE: [&str; 13] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.130",
    "10.0.0.131",
    "10.0.1.1",
    "11.0.0.1",
    "192.168.0.1",
    "fd00::1",
    "fd00::2",
    "fd01::1",
    "fd00::9",
    "2001:db8::1",
];

impl Sim {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            now: Instant::now(),
            pods: BTreeMap::new(),
            identities: BTreeMap::new(),
            blocks: BTreeMap::new(),
            rows: BTreeMap::new(),
            ranges: vec![Range::default(); limits.ranges as usize],
            epoch: 0,
            named: HashMap::new(),
        }
    }

    pub(super) fn kernel(&self) -> Kernel {
        Kernel {
            pods: self.pods.clone(),
            identities: self.identities.iter().map(|(addr, row)| (*addr, *row)).collect(),
            blocks: self.blocks.iter().map(|(block, number)| (*block, *number)).collect(),
            rows: self.rows.iter().map(|(key, row)| (*key, *row)).collect(),
            ranges: self.ranges.clone(),
        }
    }

    pub(super) fn read(&self) -> Tables {
        Tables::read(self.limits, QUARANTINE, &self.kernel(), self.now)
    }

    fn list(&self, row: &PolicyRow) -> &[Range] {
        &self.ranges[row.ranges as usize..][..row.count as usize]
    }

    fn leave(&mut self, key: &PolicyKey) {
        if let Some(row) = self.rows.get(key) {
            for at in row.ranges..row.ranges + row.count {
                self.named.insert(at as usize, self.now);
            }
        }
    }

    /// Writes without looking.
    pub(super) fn put(&mut self, op: &Op) {
        match op {
            Op::SetRanges { base, ranges } => {
                self.ranges[*base as usize..][..ranges.len()].copy_from_slice(ranges);
            }
            Op::SetRow { key, row } => drop(self.rows.insert(*key, *row)),
            Op::SetBlock { block, identity } => drop(self.blocks.insert(*block, *identity)),
            Op::SetIdentity { addr, row } => drop(self.identities.insert(*addr, *row)),
            Op::SetPod { endpoint, sets } => drop(self.pods.insert(*endpoint, *sets)),
            Op::RemovePod { endpoint } => drop(self.pods.remove(endpoint)),
            Op::BumpEpoch => self.epoch += 1,
            Op::RemoveIdentity { addr } => drop(self.identities.remove(addr)),
            Op::RemoveBlock { block } => drop(self.blocks.remove(block)),
            Op::RemoveRow { key } => drop(self.rows.remove(key)),
        }
    }

    /// Writes, and checks that a careful agent may.
    pub(super) fn apply(&mut self, op: &Op) {
        match op {
            Op::SetRanges { base, ranges } => {
                assert!(ranges.len() <= MAX_RANGES as usize && !ranges.is_empty());
                assert!(ranges.windows(2).all(|two| two[0].last < two[1].first), "{ranges:?}");
                let span = *base as usize..*base as usize + ranges.len();
                for row in self.rows.values().filter(|row| row.count > 0) {
                    let its = row.ranges as usize..(row.ranges + row.count) as usize;
                    assert!(its.end <= span.start || span.end <= its.start, "{op:?} is named");
                }
                for at in span {
                    let since = self.named.get(&at);
                    assert!(since.is_none_or(|since| self.now - *since >= QUARANTINE), "{at} too soon");
                }
            }
            Op::SetRow { key, row } => {
                assert_eq!(row.seal, row_seal(key, row));
                assert!(row.ranges + row.count <= self.limits.ranges, "{row:?}");
                self.leave(key);
            }
            Op::SetIdentity { addr, row } => assert_eq!(row.seal, identity_seal(addr, row)),
            Op::RemoveIdentity { addr } => assert!(self.identities.contains_key(addr)),
            Op::RemoveBlock { block } => assert!(self.blocks.contains_key(block)),
            Op::RemovePod { endpoint } => assert!(self.pods.contains_key(endpoint)),
            Op::RemoveRow { key } => {
                assert!(self.rows.contains_key(key), "{key:?}");
                self.leave(key);
            }
            Op::SetBlock { .. } | Op::SetPod { .. } | Op::BumpEpoch => {}
        }
        self.put(op);
        assert!(self.rows.len() <= self.limits.rows as usize, "rows");
        assert!(self.identities.len() <= self.limits.identities as usize, "identities");
        assert!(self.blocks.len() <= self.limits.blocks as usize, "blocks");
    }

    /// What the programs say of the sample.
    pub(super) fn verdicts(&self) -> BTreeMap<Case, bool> {
        let points = [point(6, 79), point(6, 80), point(17, 79), point(17, 82), point(132, 81), point(1, 0)];
        let mut verdicts = BTreeMap::new();
        for (endpoint, sets) in &self.pods {
            for other in SAMPLE {
                let other = Addr::from(other.parse::<IpAddr>().unwrap());
                for point in points {
                    for (egress, set) in [(true, sets.egress), (false, sets.ingress)] {
                        let allowed = self.judge(set, egress, other, point);
                        verdicts.insert((*endpoint, egress, other, point), allowed);
                    }
                }
            }
        }
        verdicts
    }

    fn judge(&self, set: u64, egress: bool, other: Addr, point: u32) -> bool {
        let row = self.identities.get(&other);
        if set == set::OPEN || egress && row.is_some_and(|row| row.flags & identity_flag::NODE != 0) {
            return true;
        }
        if set == set::CLOSED {
            return false;
        }
        let bits =
            |addr: &Addr| addr.0.iter().fold(0, |bits, word| bits << 32 | u128::from(u32::from_be(*word)));
        let has = |block: &&Block| {
            block.prefix == 0 || (bits(&block.addr) ^ bits(&other)) >> (128 - block.prefix) == 0
        };
        let block = || self.blocks.keys().filter(has).max_by_key(|block| block.prefix);
        let identity = row.map(|row| row.identity).or_else(|| block().map(|block| self.blocks[block]));
        let identity = identity.unwrap_or(identity::WORLD);
        let row = |identity| self.rows.get(&PolicyKey { set, identity });
        let Some(row) = row(identity).or_else(|| row(identity::ANY)) else { return false };
        let found = self.list(row).iter().find(|range| (range.first..=range.last).contains(&point));
        found.map_or(row.otherwise, |range| range.decision).action == action::ALLOW
    }

    /// The tables hold what is wanted, and nothing else.
    pub(super) fn check_exact(&self, desired: &Desired) {
        assert_eq!(self.pods, desired.pods);
        assert_eq!(self.blocks, desired.blocks);
        let identities = self.identities.iter().map(|(addr, row)| (*addr, (row.identity, row.flags != 0)));
        let wanted = desired.identities.iter().map(|(addr, one)| (*addr, (one.number, one.node)));
        assert_eq!(identities.collect::<BTreeMap<_, _>>(), wanted.collect());
        assert!(!self.rows.contains_key(&UNDER_WAY));
        let rows = self.rows.iter().map(|(key, row)| (*key, (self.list(row).to_vec(), row.otherwise)));
        // A set with a list that is too long is nobody's.
        let used = |set: u64| self.pods.values().any(|sets| sets.both().contains(&set));
        let wanted = desired.rows.iter().filter(|(key, _)| used(key.set));
        let wanted = wanted.map(|(key, list)| (key, (list.ranges.clone(), list.otherwise)));
        assert_eq!(rows.collect::<BTreeMap<PolicyKey, (Vec<Range>, Decision)>>(), wanted.collect());
    }
}
