//! Passes over the tables of flows: expired rows go, live ones are counted, and shares are compared with
//! what their pods hold.
//!
//! The kernel walks the tables itself where it can ([`MapIterator`]): test and removal are next to one step there.
//! Else the agent reads them in batches and has the program `amend` test again what it found expired. Either
//! way a row goes when its lifetime is over, or a while after its pod's share ([`super::gone`]), and never because
//! its Service or backend is unknown here.
//!
//! Both halves of a translated flow are refreshed by one run of a program, with one time, so that they expire
//! in the same second; a pass may meet them at its two ends, and until then a packet that finds the half left
//! sees it expired too and removes it.

use super::conversation::now;
use super::iterator::MapIterator;
use super::object::verified;
use super::shares::{Audit, Churn};
use super::{Datapath, Error, batch, locked};
use crate::telemetry::chain;
use aya::maps::{Array, MapData};
use aya::programs::Iter;
use aya::{Btf, Ebpf};
use netd_bpf::flow::{Flow, FlowKey, GRACE, Limits, Order, Share, Sweep, expired, flow_count, order, sweep};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// By which means passes are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "by")]
pub enum Way {
    /// The kernel's map iterator.
    Iterator,
    /// Reading in batches.
    Batch {
        /// Why there is no iterator.
        because: String,
    },
}

/// What a pass found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// The established: expired rows were removed, and those of pods that are gone for a while.
    pub established: Swept,
    /// The nursery: expired rows stay until they are evicted.
    pub nursery: Swept,
    /// Established rows of pods that are gone, which stay for a while, and of nobody (owner 0: brought from another
    /// schema), which stay for their lifetime.
    pub ownerless: u64,
    /// From the first row to the last, both tables.
    pub took: Duration,
    /// Stretches that the pass was cut into.
    pub slices: u64,
    /// The longest of them.
    pub worst_slice: Duration,
    /// Shares that were off: endpoint, and rows added to the share.
    pub corrected: Vec<(u32, i64)>,
    /// Shares that pods lacked, made; those of no pod, removed.
    pub mended: u64,
}

/// Rows of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Within their lifetime.
    pub alive: u64,
    /// Beyond it, or of pods that are gone for a while.
    pub expired: u64,
}

/// How full the tables of flows are, in rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FlowFill {
    /// Rows of the established, now.
    pub established: u64,
    /// Room for so many.
    pub established_limit: u32,
    /// Rows of the nursery, at the last pass; once full it stays full.
    pub nursery: u64,
    /// Those of them within their lifetime.
    pub nursery_alive: u64,
    /// Room for so many.
    pub nursery_limit: u32,
}

/// What passes need and remember. One pass at a time.
pub(super) struct Reclaimer {
    sweeps: Array<MapData, Sweep>,
    audit: Audit,
    /// Shares that no pod had at the last pass.
    stray: BTreeSet<u32>,
}

/// What makes the passes.
pub(super) enum Means {
    /// The programs on their tables.
    Iterator {
        /// `reclaim`.
        established: MapIterator,
        /// `census`.
        nursery: MapIterator,
    },
    /// Nothing, and why.
    Batch(Error),
}

/// What the last pass counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    /// Rows of the established less what the counters say: zero but for what happened to those.
    established: i64,
    nursery: Swept,
}

impl Means {
    /// The kernel's iterator if it can be had.
    pub(super) fn find(object: &mut Ebpf, established: &MapData, nursery: &MapData) -> Self {
        let attach = |object: &mut Ebpf| -> Result<Self, Error> {
            let btf = Btf::from_sys_fs().map_err(|error| Error::program("load", "reclaim")(error.into()))?;
            let mut bind = |name: &'static str, map| {
                let missing = || Error::Missing { kind: "program", name: name.to_owned() };
                let program: &mut Iter = object
                    .program_mut(name)
                    .ok_or_else(missing)?
                    .try_into()
                    .map_err(Error::program("use", name))?;
                verified(|| program.load("bpf_map_elem", &btf)).map_err(Error::load(name))?;
                MapIterator::attach(name, program, map)
            };
            let established = bind("reclaim", established)?;
            Ok(Self::Iterator { established, nursery: bind("census", nursery)? })
        };
        attach(object).unwrap_or_else(|error| {
            tracing::debug!(target: "netd::datapath", "no iterator: {}", chain(&error));
            Self::Batch(error)
        })
    }
}

impl Reclaimer {
    pub(super) fn new(sweeps: Array<MapData, Sweep>) -> Self {
        Self { sweeps, audit: Audit::default(), stray: BTreeSet::new() }
    }
}

#[cfg(all(test, not(netd_bpf_stub)))]
impl Datapath {
    /// As before the first pass.
    pub(super) fn forget_passes(&self) {
        let mut reclaimer = locked(&self.reclaimer);
        (reclaimer.audit, reclaimer.stray) = (Audit::default(), BTreeSet::new());
        *locked(&self.counted) = Counted::default();
        self.gone.forget();
    }

    /// As on a kernel without the iterator.
    pub(super) fn forgo_iterator(&mut self) {
        self.means = Means::Batch(Error::Missing { kind: "program", name: "reclaim".to_owned() });
    }
}

/// The books of one pass while it runs.
struct Books<'a> {
    pass: Pass,
    /// Met rows by owner, for a kernel that does not count them.
    met: BTreeMap<u32, u64>,
    stop: &'a dyn Fn() -> bool,
}

impl Books<'_> {
    /// Rows went; those of orphans had been counted as alive.
    fn removed(&mut self, rows: u64, orphans: bool) {
        let Pass { established, ownerless, .. } = &mut self.pass;
        established.expired += rows;
        if orphans {
            established.alive = established.alive.saturating_sub(rows);
            *ownerless = ownerless.saturating_sub(rows);
        }
    }

    fn slice(&mut self, took: Duration) -> ControlFlow<()> {
        self.pass.slices += 1;
        self.pass.worst_slice = self.pass.worst_slice.max(took);
        std::thread::yield_now();
        if (self.stop)() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

impl Datapath {
    /// By which means [`Self::reclaim`] works here.
    #[must_use]
    pub fn reclaim_way(&self) -> Way {
        match &self.means {
            Means::Iterator { .. } => Way::Iterator,
            Means::Batch(error) => Way::Batch { because: brief(error) },
        }
    }

    /// Why there is no iterator, with all that the verifier said if it was that; none if there is one.
    #[must_use]
    pub const fn no_iterator(&self) -> Option<&Error> {
        match &self.means {
            Means::Iterator { .. } => None,
            Means::Batch(error) => Some(error),
        }
    }

    /// One pass over both tables: about 0.2 µs a row, in slices of half a millisecond after each of which
    /// `stop` is asked. None if it said so.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn reclaim(&self, stop: &dyn Fn() -> bool) -> Result<Option<Pass>, Error> {
        let mut reclaimer = locked(&self.reclaimer);
        let begun = Instant::now();
        let mut books = Books { pass: Pass::default(), met: BTreeMap::new(), stop };
        books.pass.mended = self.mend_shares(&mut reclaimer.stray)?;
        let counts = self.flow_counts()?;
        let before = self.shares()?;
        let whole = match &self.means {
            Means::Iterator { established, nursery } => {
                iterate([established, nursery], &mut reclaimer.sweeps, &mut books)?
            }
            Means::Batch(_) => self.read_through(&mut books, &before)?,
        };
        if !whole {
            return Ok(None);
        }
        books.pass.took = begun.elapsed();
        self.gone.tidy_up()?;
        let mut after = self.shares()?;
        for (endpoint, met) in books.met {
            after.entry(endpoint).and_modify(|share| share.met += met);
        }
        let mut pass = books.pass;
        let counted = self.flow_counts()?;
        let churn = churn(&counts, &counted);
        for (endpoint, rows) in reclaimer.audit.judge(&before, &after, churn) {
            self.amend(&Order { what: order::ADJUST, endpoint, rows, ..Order::default() }, &[])?;
            pass.corrected.push((endpoint, rows));
        }
        let rows = i64::try_from(pass.established.alive).unwrap_or(i64::MAX);
        *locked(&self.counted) =
            Counted { established: rows - promoted_and_here(&counted), nursery: pass.nursery };
        Ok(Some(pass))
    }

    /// How full the tables of flows are: two numbers of the last pass, and what happened since.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn flow_fill(&self) -> Result<FlowFill, Error> {
        let counted = *locked(&self.counted);
        let established = counted.established + promoted_and_here(&self.flow_counts()?);
        Ok(FlowFill {
            established: established.try_into().unwrap_or_default(),
            established_limit: self.config.flows,
            nursery: counted.nursery.alive + counted.nursery.expired,
            nursery_alive: counted.nursery.alive,
            nursery_limit: self.config.nursery,
        })
    }

    /// Gives pods that lack one a share, and takes it from what was no pod twice in a row. An ADD under way
    /// has its share a moment before its other rows.
    fn mend_shares(&self, stray: &mut BTreeSet<u32>) -> Result<u64, Error> {
        let pods: BTreeSet<u32> = self.pods()?.iter().map(|pod| pod.endpoint).collect();
        let shares: BTreeSet<u32> = self.shares()?.into_keys().collect();
        let mut mended = 0;
        for endpoint in pods.difference(&shares) {
            self.open_share(*endpoint)?;
            tracing::warn!(
                target: "netd::flows",
                "endpoint {endpoint} had no share of the table of flows, and has one now",
            );
            mended += 1;
        }
        let of_nobody: BTreeSet<u32> = shares.difference(&pods).copied().collect();
        for endpoint in of_nobody.intersection(stray) {
            self.close_share(*endpoint)?;
            tracing::warn!(
                target: "netd::flows",
                "endpoint {endpoint} had a share of the table of flows but is no pod's: the share is removed",
            );
            mended += 1;
        }
        *stray = of_nobody;
        Ok(mended)
    }

    /// A pass without the kernel's help. False if it was stopped.
    fn read_through(&self, books: &mut Books<'_>, shares: &BTreeMap<u32, Share>) -> Result<bool, Error> {
        let limits = self.config.limits();
        let mut begun = Instant::now();
        let mut whole = true;
        let mut failed = None;
        batch::visit(
            "ESTABLISHED",
            &self.pins.map("ESTABLISHED"),
            None,
            |keys: &[FlowKey], flows: &[Flow]| {
                let dead = dead(&limits);
                let (mut doomed, mut orphans) = (Vec::new(), Vec::new());
                for (key, flow) in keys.iter().zip(flows) {
                    if dead(key, flow) {
                        doomed.push(*key);
                    } else {
                        books.pass.established.alive += 1;
                        *books.met.entry(flow.owner).or_default() += 1;
                        if !shares.contains_key(&flow.owner) {
                            books.pass.ownerless += 1;
                            if flow.owner != 0 {
                                orphans.push(*key);
                            }
                        }
                    }
                }
                let mut then = books.slice(begun.elapsed());
                let orders = [(&doomed, false), (&orphans, true)].into_iter().flat_map(|(keys, orphans)| {
                    keys.chunks(order::MOST_KEYS as usize).map(move |keys| (keys, orphans))
                });
                for (keys, orphans) in orders {
                    if then.is_break() {
                        break;
                    }
                    begun = Instant::now();
                    match self.amend(&Order { what: order::EXPIRE, ..Order::default() }, keys) {
                        Ok(removed) => books.removed(removed.into(), orphans),
                        Err(error) => {
                            failed = Some(error);
                            return ControlFlow::Break(());
                        }
                    }
                    then = books.slice(begun.elapsed());
                }
                begun = Instant::now();
                whole = then.is_continue();
                then
            },
        )?;
        if let Some(error) = failed {
            return Err(error);
        }
        if !whole {
            return Ok(false);
        }
        begun = Instant::now();
        batch::visit("NURSERY", &self.pins.map("NURSERY"), None, |keys: &[FlowKey], flows: &[Flow]| {
            let dead = dead(&limits);
            let expired = keys.iter().zip(flows).filter(|(key, flow)| dead(key, flow)).count();
            books.pass.nursery.expired += expired as u64;
            books.pass.nursery.alive += (keys.len() - expired) as u64;
            let flow = books.slice(begun.elapsed());
            begun = Instant::now();
            whole &= flow.is_continue();
            flow
        })?;
        Ok(whole)
    }
}

/// A pass by the kernel's iterators. False if it was stopped.
fn iterate(
    walks: [&MapIterator; 2],
    sweeps: &mut Array<MapData, Sweep>,
    books: &mut Books<'_>,
) -> Result<bool, Error> {
    let mut whole = true;
    let mut swept = [Sweep::default(); 2];
    for ((table, walk), swept) in [sweep::ESTABLISHED, sweep::NURSERY].into_iter().zip(walks).zip(&mut swept)
    {
        sweeps.set(table, Sweep::default(), 0).map_err(Error::map("SWEEPS"))?;
        whole = whole && walk.pass(|took| books.slice(took))?;
        *swept = sweeps.get(&table, 0).map_err(Error::map("SWEEPS"))?;
    }
    let [of_established, of_nursery] = swept;
    books.pass.established = Swept { alive: of_established.alive, expired: of_established.expired };
    books.pass.nursery = Swept { alive: of_nursery.alive, expired: of_nursery.expired };
    books.pass.ownerless = of_established.ownerless;
    Ok(whole)
}

/// Without the verifier's log.
fn brief(error: &Error) -> String {
    match error {
        Error::Refused { source, .. } => format!("{error}: {}", source.answer),
        _ => chain(error),
    }
}

/// What came to the established and went from there, between two readings of the counters.
fn churn(before: &[u64; flow_count::COUNT as usize], after: &[u64; flow_count::COUNT as usize]) -> Churn {
    let grown = |index: u32| {
        let of = |counts: &[u64]| counts.get(index as usize).copied().unwrap_or_default();
        of(after).wrapping_sub(of(before))
    };
    Churn {
        came: grown(flow_count::PROMOTED),
        went: grown(flow_count::CLOSED).saturating_add(grown(flow_count::EXPIRED)),
    }
}

/// The test that the programs apply, at this moment.
fn dead(limits: &Limits) -> impl Fn(&FlowKey, &Flow) -> bool {
    let now = now().wrapping_sub(GRACE);
    move |key, flow| expired(flow, key.proto, limits, now)
}

/// Rows of the established, as the counters have it.
fn promoted_and_here(counts: &[u64; flow_count::COUNT as usize]) -> i64 {
    let of = |index: u32| counts.get(index as usize).copied().unwrap_or_default();
    let left = of(flow_count::CLOSED).wrapping_add(of(flow_count::EXPIRED));
    of(flow_count::PROMOTED).wrapping_sub(left).cast_signed()
}

#[cfg(test)]
#[cfg(not(netd_bpf_stub))]
mod tests {
    use super::*;
    use crate::datapath::locked;
    use crate::datapath::tests::frames::{Segment, tcp};
    use crate::datapath::tests::rig::{IFINDEX, Rig, isolated, pod};
    use crate::datapath::tests::verifier::{REFUSED, spoilt};
    use netd_bpf::flow::{ORPHANED, lifetime};
    use std::sync::Arc;

    /// Ten connections of pod 1, of a row each.
    fn connections(rig: &Rig) {
        for port in 1000..1010 {
            let (client, server) = (format!("10.0.0.1:{port}"), "10.1.0.7:80");
            rig.pod_sends(&tcp(&client, server, Segment::Syn));
            rig.pod_receives(&tcp(server, &client, Segment::SynAck));
            rig.pod_sends(&tcp(&client, server, Segment::Ack));
        }
    }

    #[test]
    fn rows_of_nobody_are_counted_and_not_asked_about() {
        isolated(|| {
            let mut rig = Rig::fresh();
            connections(&rig);
            Arc::get_mut(&mut rig.datapath).unwrap().forgo_iterator();
            let pass = || rig.datapath.reclaim(&|| false).unwrap().unwrap();
            let of_a_pod = pass();
            for mut row in rig.datapath.flows().unwrap() {
                row.flow.owner = 0;
                locked(&rig.datapath.established).insert(row.key, row.flow, 0).unwrap();
            }
            let of_nobody = pass();
            assert_eq!((of_a_pod.established.alive, of_a_pod.ownerless), (10, 0));
            assert_eq!((of_nobody.established.alive, of_nobody.ownerless), (10, 10));
            assert_eq!(of_nobody.slices, of_a_pod.slices);
        });
    }

    #[test]
    fn a_test_knows_nothing_of_the_passes_of_the_one_before() {
        isolated(|| {
            let rig = Rig::fresh();
            connections(&rig);
            rig.datapath.remove_pod(&pod(IFINDEX, 1, "10.0.0.1", "fd00::1")).unwrap();
            rig.datapath.reclaim(&|| false).unwrap();
            rig.datapath.gone.age(2 * ORPHANED + 1);
            rig.datapath.forget_passes();
            rig.datapath.reclaim(&|| false).unwrap();
            assert_eq!(rig.datapath.gone.endpoints(), [1], "whose time begins");
        });
    }

    #[test]
    fn a_pass_that_is_stopped_removes_nothing_more() {
        isolated(|| {
            let mut rig = Rig::fresh();
            connections(&rig);
            for mut row in rig.datapath.flows().unwrap() {
                let idle = lifetime(&row.flow, row.key.proto, &Limits::DEFAULT) + GRACE + 1;
                row.flow.last_seen = now().wrapping_sub(idle);
                locked(&rig.datapath.established).insert(row.key, row.flow, 0).unwrap();
            }
            Arc::get_mut(&mut rig.datapath).unwrap().forgo_iterator();
            assert_eq!(rig.datapath.reclaim(&|| true).unwrap(), None);
            assert_eq!(rig.datapath.flows().unwrap().len(), 10);
            let pass = rig.datapath.reclaim(&|| false).unwrap().unwrap();
            assert_eq!((pass.established.expired, rig.datapath.flows().unwrap().len()), (10, 0));
        });
    }

    #[test]
    fn what_the_verifier_said_is_not_in_the_reason_but_kept_beside_it() {
        isolated(|| {
            let mut rig = Rig::fresh();
            assert!(rig.datapath.no_iterator().is_none());
            let table = |name| MapData::from_pin(rig.datapath.pins.map(name)).unwrap();
            let (established, nursery) = (table("ESTABLISHED"), table("NURSERY"));
            let object = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/reclaim.o")).to_vec();
            let mut object = aya::EbpfLoader::new().load(&spoilt(object)).unwrap();
            let means = Means::find(&mut object, &established, &nursery);
            Arc::get_mut(&mut rig.datapath).unwrap().means = means;
            let Way::Batch { because } = rig.datapath.reclaim_way() else { panic!("an iterator") };
            // Which of the two comes first in the object is the linker's.
            let head = "the kernel refuses the BPF program ";
            let program = because.strip_prefix(head).and_then(|rest| rest.split_once(": ")).unwrap();
            assert!(["reclaim", "census"].contains(&program.0), "{because}");
            assert_eq!(program.1, "Permission denied (os error 13)");
            let Some(Error::Refused { source, .. }) = rig.datapath.no_iterator() else { panic!("no log") };
            assert!(source.log.contains(REFUSED), "{}", source.log);
        });
    }
}
