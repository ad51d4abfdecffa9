//! Bringing flows from one pair of tables, or schema 1's one table, to another.
//!
//! May run any number of times, also while programs of both sets write to both: rows that the new tables
//! have already are left alone, unless the old ones have a newer flow of that key or the row waits in the
//! nursery for its place among the established.

use super::super::Error;
use super::super::answers::{NOEXIST, absent_is_fine, is, present};
use super::super::conversation::now;
use super::super::pin::Pins;
use super::sizes::Rows;
use super::{each, each_pod};
use aya::maps::{HashMap, MapData, MapError};
use netd_bpf::flow::{Flow, FlowKey, Limits, Share, expired, flow_flag};
use netd_bpf::pod::Pod;
use netd_bpf::{Addr, schema1};
use std::collections::HashMap as Counts;

/// How often the shares are counted again because flows moved meanwhile.
const COUNTS: u32 = 3;

type Flows = HashMap<MapData, FlowKey, Flow>;

/// Takes flows from one set of pins to another.
pub(super) struct Carrier<'a> {
    limits: &'a Limits,
    /// Seconds since boot.
    now: u32,
    from: &'a Pins,
    established: Flows,
    nursery: Flows,
    /// Both are empty, and nobody else writes to them: there is nothing to compare with.
    untouched: bool,
    /// Pods by address, as the old set knows them.
    pods: Counts<Addr, u32>,
    /// Rows among the established, by owner.
    held: Counts<u32, u64>,
    /// For the nursery, once all are known.
    waiting: Vec<(FlowKey, Flow)>,
}

impl<'a> Carrier<'a> {
    pub(super) fn new(
        limits: &'a Limits,
        (from, rows): (&'a Pins, Rows),
        to: &Pins,
        untouched: bool,
    ) -> Result<Self, Error> {
        let mut pods = Counts::new();
        each_pod((from, rows), "POD_BY_ADDR", |addr: Addr, pod| {
            pods.insert(addr, pod.endpoint);
            Ok(())
        })?;
        let table = |name| to.hash(name)?.ok_or_else(|| missing(name));
        Ok(Self {
            limits,
            now: now(),
            from,
            established: table("ESTABLISHED")?,
            nursery: table("NURSERY")?,
            untouched,
            pods,
            held: held(to)?,
            waiting: Vec::new(),
        })
    }

    /// From tables of this schema.
    pub(super) fn bring(&mut self) -> Result<(), Error> {
        for name in ["ESTABLISHED", "NURSERY"] {
            let again: Option<Flows> = self.from.hash(name)?;
            each(self.from, name, |key: FlowKey, row: Flow| {
                let unchanged =
                    || matches!(&again, Some(old) if old.get(&key, 0).is_ok_and(|now| now == row));
                self.one(&key, row, unchanged)
            })?;
        }
        self.wait()
    }

    /// From the table of schema 1.
    pub(super) fn bring_schema1(&mut self) -> Result<(), Error> {
        let again: Option<HashMap<_, FlowKey, schema1::Flow>> = self.from.hash("FLOWS")?;
        each(self.from, "FLOWS", |key: FlowKey, row: schema1::Flow| {
            let mut flow = Flow::default();
            row.import(&key, &mut flow);
            let unchanged = || matches!(&again, Some(old) if old.get(&key, 0).is_ok_and(|now| now == row));
            self.one(&key, flow, unchanged)
        })?;
        self.wait()
    }

    /// Finds a row its place. `unchanged` asks whether the old table still says the same: if not, a packet
    /// has come, and what the programs made of it is newer than this.
    fn one(
        &mut self,
        key: &FlowKey,
        mut theirs: Flow,
        unchanged: impl FnOnce() -> bool,
    ) -> Result<(), Error> {
        if expired(&theirs, key.proto, self.limits, self.now) {
            return Ok(());
        }
        if theirs.owner == 0 {
            theirs.owner = self.owner(key, theirs.flags);
        }
        theirs.flags &= !flow_flag::REFUSED;
        let among_established = theirs.flags & flow_flag::CONFIRMED != 0 && !theirs.done();
        if !self.untouched && self.is_known(key, &theirs, among_established, unchanged)? {
            return Ok(());
        }
        if !among_established || !self.promote(key, theirs)? {
            self.waiting.push((*key, theirs));
        }
        Ok(())
    }

    /// True if the new tables have the flow already, or a newer one; its row then gets its place. A row of an
    /// older flow is removed.
    fn is_known(
        &mut self,
        key: &FlowKey,
        theirs: &Flow,
        among_established: bool,
        unchanged: impl FnOnce() -> bool,
    ) -> Result<bool, Error> {
        if let Some(ours) = get(&self.established, key, "ESTABLISHED")? {
            if ours.same(theirs) || !unchanged() {
                return Ok(true);
            }
            remove(&mut self.established, key, "ESTABLISHED")?;
            if let Some(held) = self.held.get_mut(&ours.owner) {
                *held = held.saturating_sub(1);
            }
        } else if let Some(ours) = get(&self.nursery, key, "NURSERY")? {
            if ours.same(theirs) {
                if among_established && !ours.done() {
                    self.promote(key, Flow { flags: ours.flags | flow_flag::CONFIRMED, ..ours })?;
                }
                return Ok(true);
            }
            if !unchanged() {
                return Ok(true);
            }
            remove(&mut self.nursery, key, "NURSERY")?;
        }
        Ok(false)
    }

    /// Puts a row among the established; false if there is no room.
    fn promote(&mut self, key: &FlowKey, row: Flow) -> Result<bool, Error> {
        let held = self.held.entry(row.owner).or_default();
        if *held >= u64::from(self.limits.rows_per_pod) {
            return Ok(false);
        }
        match kind(self.established.insert(key, row, NOEXIST)) {
            Ok(()) => *held += 1,
            // A program was first.
            Err(Refused::Exists) => {}
            Err(Refused::Full) => return Ok(false),
            Err(Refused::Other(error)) => return Err(Error::map("ESTABLISHED")(error)),
        }
        if !self.untouched {
            remove(&mut self.nursery, key, "NURSERY")?;
        }
        Ok(true)
    }

    /// Fills the nursery, the newest last: where there is not room for all of them they stay.
    fn wait(&mut self) -> Result<(), Error> {
        self.waiting.sort_unstable_by_key(|(_, row)| row.last_seen);
        let mut without_room = 0;
        for (key, row) in self.waiting.drain(..) {
            match kind(self.nursery.insert(key, row, NOEXIST)) {
                Ok(()) | Err(Refused::Exists) => {}
                Err(Refused::Full) => without_room += 1,
                Err(Refused::Other(error)) => return Err(Error::map("NURSERY")(error)),
            }
        }
        if without_room > 0 {
            tracing::warn!(target: "netd::datapath", "{without_room} new flows found no room in the new tables");
        }
        Ok(())
    }

    /// The pod that began the flow, if it is one of this node, else the pod it went to.
    fn owner(&self, key: &FlowKey, flags: u16) -> u32 {
        let high = flags & flow_flag::INITIATOR_HIGH != 0;
        let (initiator, other) = if high { (&key.high, &key.low) } else { (&key.low, &key.high) };
        self.pods.get(initiator).or_else(|| self.pods.get(other)).copied().unwrap_or_default()
    }
}

/// Writes each pod's share as the established say. While programs run a row may move between the count and
/// the write, and the share be wrong by as much; the counts are made again until that was not seen.
pub(super) fn count_shares(pins: &Pins) -> Result<(), Error> {
    let Some(mut shares) = pins.hash::<u32, Share>("SHARES")? else { return Ok(()) };
    let mut pods: Vec<u32> = Vec::new();
    each(pins, "POD_BY_IFINDEX", |_: u32, pod: Pod| {
        pods.push(pod.endpoint);
        Ok(())
    })?;
    for round in 1..=COUNTS {
        let before: Vec<_> = pods.iter().map(|pod| shares.get(pod, 0).ok()).collect();
        let held = held(pins)?;
        let mut moved = false;
        for (pod, before) in pods.iter().zip(before) {
            let rows = held.get(pod).copied().unwrap_or_default();
            moved |= shares.get(pod, 0).ok() != before;
            if before.map(|share| share.rows()) != i64::try_from(rows).ok() {
                let counted = Share { taken: rows, ..Share::default() };
                shares.insert(pod, counted, 0).map_err(Error::map("SHARES"))?;
            }
        }
        if !moved {
            break;
        }
        tracing::debug!(target: "netd::datapath", round, "flows moved while they were counted");
    }
    Ok(())
}

/// Rows among the established, by owner.
fn held(pins: &Pins) -> Result<Counts<u32, u64>, Error> {
    let mut held = Counts::new();
    each(pins, "ESTABLISHED", |_: FlowKey, row: Flow| {
        *held.entry(row.owner).or_default() += 1;
        Ok(())
    })?;
    Ok(held)
}

fn missing(name: &str) -> Error {
    Error::Missing { kind: "map", name: name.to_owned() }
}

fn get(map: &Flows, key: &FlowKey, name: &'static str) -> Result<Option<Flow>, Error> {
    present(map.get(key, 0), name)
}

fn remove(map: &mut Flows, key: &FlowKey, name: &'static str) -> Result<(), Error> {
    absent_is_fine(map.remove(key), name)
}

/// Why a row was not made.
enum Refused {
    Exists,
    Full,
    Other(MapError),
}

fn kind(result: Result<(), MapError>) -> Result<(), Refused> {
    result.map_err(|error| {
        if is(&error, libc::EEXIST) {
            Refused::Exists
        } else if is(&error, libc::E2BIG) || is(&error, libc::ENOMEM) {
            Refused::Full
        } else {
            Refused::Other(error)
        }
    })
}
