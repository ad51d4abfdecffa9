//! Random histories of plans, crashes and restarts against a simulated kernel that checks every write.

mod pieces;
mod some;

use super::{Kernel, Limits, NameChange, Op, Tables};
use crate::model::{ObjectName, Protocol};
use crate::service::plan::{Desired, DesiredBackend, DesiredFrontend, DesiredService};
use netd_bpf::Addr;
use netd_bpf::service::{Backend, Frontend, FrontendKey, backend_state};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

const QUARANTINE: Duration = Duration::from_secs(1);
const AMPLE: Limits = Limits { frontends: 64, backends: 128, slots: 512 };
const TIGHT: Limits = Limits { frontends: 6, backends: 10, slots: 14 };

/// An address and a port, in any order that sorts.
type Target = (Addr, u16);

fn ip(last: u8) -> Addr {
    Addr::from(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)))
}

/// What a frontend ought to be: its Service, affinity, and backends (number, local).
#[derive(Clone, Debug, PartialEq)]
struct Want {
    service: u8,
    affinity: Option<u32>,
    backends: BTreeMap<u8, bool>,
}

/// By address and protocol, so that a key is never claimed twice but may change hands.
type Wants = BTreeMap<(u8, bool), Want>;

fn key(vip: u8, udp: bool) -> FrontendKey {
    let proto = if udp { Protocol::Udp } else { Protocol::Tcp };
    FrontendKey { addr: ip(100 + vip), port: 80_u16.to_be(), proto: proto.number(), scope: 0 }
}

fn desired(wants: &Wants) -> Desired {
    let mut services: BTreeMap<u8, Vec<DesiredFrontend>> = BTreeMap::new();
    for (&(vip, udp), want) in wants {
        let mut backends: Vec<DesiredBackend> = want
            .backends
            .iter()
            .map(|(n, local)| DesiredBackend {
                addr: ip(*n),
                port: 8080_u16.to_be(),
                local: *local,
                pod: Some(ObjectName::new("default", &format!("pod-{n}"))),
            })
            .collect();
        backends.sort_by_key(|backend| !backend.local);
        services.entry(want.service).or_default().push(DesiredFrontend {
            key: key(vip, udp),
            port: 80,
            protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
            affinity_seconds: want.affinity,
            backends,
        });
    }
    let services = services
        .into_iter()
        .map(|(n, frontends)| DesiredService {
            name: ObjectName::new("default", &format!("service-{n}")),
            frontends,
        })
        .collect();
    Desired { services, ..Desired::default() }
}

fn targets(frontend: &DesiredFrontend) -> Vec<Target> {
    frontend.backends.iter().map(|backend| (backend.addr, backend.port)).collect()
}

/// The kernel's maps, and what a reviewer of every write would remember.
#[derive(Clone)]
struct Sim {
    limits: Limits,
    now: Instant,
    frontends: BTreeMap<FrontendKey, Frontend>,
    slots: Vec<u32>,
    backends: Vec<Backend>,
    slot_named: HashMap<usize, Instant>,
    backend_named: HashMap<u32, Instant>,
    /// By id and generation: whose it is.
    given: HashMap<(u32, u32), (Addr, u16, u8, u32)>,
    owners: BTreeMap<FrontendKey, ObjectName>,
    /// Services for which the last plan had no room: what they took over from a former agent may be put right
    /// by the next.
    short: BTreeSet<ObjectName>,
}

impl Sim {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            now: Instant::now(),
            frontends: BTreeMap::new(),
            slots: vec![0; limits.slots as usize],
            backends: vec![Backend::default(); limits.backends as usize],
            slot_named: HashMap::new(),
            backend_named: HashMap::new(),
            given: HashMap::new(),
            owners: BTreeMap::new(),
            short: BTreeSet::new(),
        }
    }

    fn kernel(&self) -> Kernel {
        let rows = (0..).zip(self.backends.iter().copied());
        Kernel {
            frontends: self.frontends.iter().map(|(key, row)| (*key, *row)).collect(),
            slots: self.slots.clone(),
            backends: rows.filter(|(_, row)| *row != Backend::default()).collect(),
        }
    }

    fn read(&self) -> Tables {
        Tables::read(self.limits, QUARANTINE, &self.kernel(), self.now)
    }

    fn range(row: &Frontend) -> std::ops::Range<usize> {
        row.slot_base as usize..row.slot_base as usize + usize::from(row.backends)
    }

    fn ids(&self, row: &Frontend) -> &[u32] {
        &self.slots[Self::range(row)]
    }

    fn resolve(&self, key: &FrontendKey) -> Option<Vec<Target>> {
        let row = self.frontends.get(key)?;
        let target = |id: &u32| {
            let backend = &self.backends[*id as usize];
            assert_ne!(backend.state, backend_state::FREE, "{key:?} leads to a free backend");
            assert_eq!(backend.proto, key.proto, "{key:?} leads to another protocol");
            assert!([0, row.service].contains(&backend.service), "{key:?} leads to another's id {id}");
            (backend.addr, backend.port)
        };
        Some(self.ids(row).iter().map(target).collect())
    }

    fn named(&self, id: u32) -> bool {
        !self.namers(id).is_empty()
    }

    /// Numbers of the Service ports whose frontends name a backend.
    fn namers(&self, id: u32) -> BTreeSet<u32> {
        let naming = self.frontends.values().filter(|row| self.ids(row).contains(&id));
        naming.map(|row| row.service).collect()
    }

    /// True if nobody else can claim what the frontend's slots name.
    fn owns_its_backends(&self, key: &FrontendKey) -> bool {
        let row = &self.frontends[key];
        self.ids(row).iter().all(|id| {
            let own = self.backends[*id as usize];
            let numbered = Backend { service: row.service, ..own };
            own == numbered
                || own.service == 0
                    && self.namers(*id) == BTreeSet::from([row.service])
                    && !(0..).zip(&self.backends).any(|(other, row)| {
                        let same = Backend { state: own.state, generation: own.generation, ..*row };
                        same == numbered && self.named(other)
                    })
        })
    }

    /// The tables as an agent of schema 1 leaves them: one id for all Services of an endpoint, and no row
    /// says whose it is.
    fn back_to_schema_1(&mut self) {
        let same = |a: &Backend, b: &Backend| (a.addr, a.port, a.proto) == (b.addr, b.port, b.proto);
        let ids: BTreeSet<u32> = self.frontends.values().flat_map(|row| self.ids(row)).copied().collect();
        for id in 1..self.limits.backends {
            let row = self.backends[id as usize];
            let first = ids.iter().find(|first| same(&self.backends[**first as usize], &row));
            if let Some(first) = first.copied()
                && first != id
                && row.state != backend_state::FREE
            {
                self.slots.iter_mut().filter(|slot| **slot == id).for_each(|slot| *slot = first);
                self.backends[id as usize] = Backend { generation: row.generation + 1, ..Backend::default() };
            }
        }
        self.given.clear();
        for (id, row) in (0..).zip(&mut self.backends) {
            row.service = 0;
            if row.state != backend_state::FREE {
                self.given.insert((id, row.generation), (row.addr, row.port, row.proto, 0));
            }
        }
    }

    /// Remembers when the row's slots and backends were last named.
    fn leave(&mut self, key: &FrontendKey) {
        if let Some(row) = self.frontends.get(key).copied() {
            for id in self.ids(&row).to_vec() {
                self.backend_named.insert(id, self.now);
            }
            for slot in Self::range(&row) {
                self.slot_named.insert(slot, self.now);
            }
        }
    }

    fn rested(&self, since: Option<&Instant>) -> bool {
        since.is_none_or(|since| self.now - *since >= QUARANTINE)
    }

    /// Writes without looking.
    fn put(&mut self, op: &Op) {
        match op {
            Op::SetBackend { id, row } => self.backends[*id as usize] = *row,
            Op::SetSlots { base, ids } => {
                self.slots[*base as usize..*base as usize + ids.len()].copy_from_slice(ids);
            }
            Op::SetFrontend { key, row } => drop(self.frontends.insert(*key, *row)),
            Op::DeleteFrontend { key } => drop(self.frontends.remove(key)),
        }
    }

    /// Writes, and checks that a careful agent may.
    fn apply(&mut self, op: &Op, desired: &Desired) {
        match op {
            Op::SetBackend { id, row } => {
                assert!(*id != 0 && *id < self.limits.backends, "id {id}");
                let before = self.backends[*id as usize];
                match row.state {
                    backend_state::ACTIVE => {
                        let is = (row.addr, row.port, row.proto, row.service);
                        let first = *self.given.entry((*id, row.generation)).or_insert(is);
                        if before.state == backend_state::FREE {
                            assert!(row.generation >= before.generation && row.generation > 0);
                        } else {
                            assert_eq!(before.generation, row.generation, "id {id} is in use");
                        }
                        if first.3 == 0 {
                            // A row of schema 1 gets its number, which no other's flow may find there.
                            assert!(self.namers(*id).iter().all(|namer| *namer == row.service), "id {id}");
                            self.given.insert((*id, row.generation), is);
                        }
                        assert_eq!((first.0, first.1, first.2), (is.0, is.1, is.2), "id {id} for two");
                        assert!([0, is.3].contains(&first.3) && is.3 != 0, "id {id} for two Services");
                    }
                    backend_state::TERMINATING => {
                        assert!(!self.named(*id), "id {id} is named");
                        assert_eq!(Backend { state: row.state, ..before }, *row);
                    }
                    backend_state::FREE => {
                        assert!(!self.named(*id), "id {id} is named");
                        assert!(self.rested(self.backend_named.get(id)), "id {id} freed too soon");
                        assert_eq!(before.state, backend_state::TERMINATING);
                        assert_ne!(before.generation, row.generation);
                    }
                    other => panic!("state {other}"),
                }
            }
            Op::SetSlots { base, ids } => {
                let range = *base as usize..*base as usize + ids.len();
                assert!(range.end <= self.limits.slots as usize, "slots {range:?}");
                // Over the head of the one list that is there, with what is wanted of it.
                let overlaps = |row: &Frontend| {
                    let its = Self::range(row);
                    its.start < range.end && range.start < its.end
                };
                let over: Vec<FrontendKey> =
                    self.frontends.iter().filter(|(_, row)| overlaps(row)).map(|(key, _)| *key).collect();
                if let [key] = over[..] {
                    let row = self.frontends[&key];
                    assert!(row.slot_base == *base && ids.len() <= usize::from(row.backends), "{key:?}");
                    let wanted = desired.services.iter().flat_map(|s| &s.frontends).find(|f| f.key == key);
                    let target = |id: &u32| {
                        let backend = self.backends[*id as usize];
                        (backend.addr, backend.port)
                    };
                    assert_eq!(ids.iter().map(target).collect::<Vec<_>>(), targets(wanted.unwrap()));
                    self.leave(&key);
                    self.put(op);
                    return;
                }
                for slot in range {
                    let named = self.frontends.values().any(|row| Self::range(row).contains(&slot));
                    assert!(!named, "slot {slot} is named");
                    assert!(self.rested(self.slot_named.get(&slot)), "slot {slot} reused too soon");
                }
            }
            Op::SetFrontend { key, row } => {
                assert!(usize::from(row.backends_local) <= usize::from(row.backends) && row.service != 0);
                self.leave(key);
                let mut services = desired.services.iter();
                let owner = services.find(|s| s.frontends.iter().any(|f| f.key == *key)).unwrap();
                self.owners.insert(*key, owner.name.clone());
            }
            Op::DeleteFrontend { key } => {
                assert!(self.frontends.contains_key(key), "{key:?} is not there");
                self.leave(key);
                self.owners.remove(key);
            }
        }
        self.put(op);
        assert!(self.frontends.len() <= self.limits.frontends as usize, "frontends");
    }

    /// Every id is that of the Service port that names it.
    fn all_is_numbered(&self) {
        for row in self.frontends.values() {
            for id in self.ids(row) {
                assert_eq!(self.backends[*id as usize].service, row.service, "id {id}");
            }
        }
    }

    fn resolved(&self) -> BTreeMap<FrontendKey, Vec<Target>> {
        self.frontends.keys().map(|key| (*key, self.resolve(key).unwrap())).collect()
    }

    /// The ids that frontends name for each backend of each Service port: one, but while ids are parted.
    fn ids_by_target(&self) -> BTreeMap<(u32, Target, u8), BTreeSet<u32>> {
        let mut ids: BTreeMap<_, BTreeSet<u32>> = BTreeMap::new();
        for (key, row) in &self.frontends {
            for id in self.ids(row) {
                let backend = self.backends[*id as usize];
                let target = (row.service, (backend.addr, backend.port), key.proto);
                ids.entry(target).or_default().insert(*id);
            }
        }
        ids
    }
}

/// Applies the first operations of a plan for `desired` (all: `None`), looking at every frontend after each.
fn step(sim: &mut Sim, tables: &mut Tables, desired: &Desired, stop: Option<usize>) -> bool {
    let mut before = sim.clone();
    let old = before.resolved();
    let new: BTreeMap<FrontendKey, (&DesiredService, &DesiredFrontend)> =
        desired.services.iter().flat_map(|s| s.frontends.iter().map(move |f| (f.key, (s, f)))).collect();
    let plan = tables.plan(desired, sim.now);
    let short: BTreeSet<&ObjectName> =
        plan.refused.iter().chain(&plan.waiting).map(|refusal| &refusal.service).collect();

    sim.short = short.iter().map(|name| (*name).clone()).collect();
    // The kernel does not say whose a row is: after a restart whoever claims it has it.
    for (key, (service, _)) in &new {
        if before.frontends.contains_key(key) {
            before.owners.entry(*key).or_insert_with(|| service.name.clone());
            sim.owners.entry(*key).or_insert_with(|| service.name.clone());
        }
    }
    // As it was: the same lists, and one number per port that nobody else can claim after a restart either.
    let settled = |service: &DesiredService| {
        let alone = |number: u32, proto: u8| {
            let mut rows = before.frontends.iter().filter(|(_, row)| row.service == number);
            rows.all(|(key, _)| match new.get(key) {
                Some((s, f)) => s.name == service.name && f.key.proto == proto,
                None => {
                    key.proto == proto && before.owners.get(key).is_none_or(|owner| *owner == service.name)
                }
            })
        };
        !before.short.contains(&service.name)
            && service.frontends.iter().all(|f| {
                before.owners.get(&f.key) == Some(&service.name)
                    && old.get(&f.key) == Some(&targets(f))
                    && before.owns_its_backends(&f.key)
                    && alone(before.frontends[&f.key].service, f.key.proto)
            })
            && [6, 17].iter().all(|proto| {
                let rows = service.frontends.iter().filter(|f| f.key.proto == *proto);
                rows.map(|f| before.frontends[&f.key].service).collect::<BTreeSet<_>>().len() <= 1
            })
    };
    let count = stop.map_or(plan.ops.len(), |stop| stop % (plan.ops.len() + 1));
    for op in &plan.ops[..count] {
        if let Op::SetFrontend { key, row } = op {
            let (service, frontend) = new[key];
            let was = before.frontends.get(key);
            let same = settled(service)
                && was.is_some_and(|was| {
                    was.affinity_seconds == frontend.affinity_seconds.unwrap_or(0)
                        && usize::from(was.backends_local) == frontend.local()
                });
            assert!(!same, "{key:?} was right: {was:?} {row:?}");
        }
        sim.now += Duration::from_millis(3);
        sim.apply(op, desired);
        for (key, resolved) in sim.resolved() {
            let former = old.get(&key).map_or(&[][..], Vec::as_slice);
            let next = new.get(&key).map(|(_, f)| targets(f)).unwrap_or_default();
            assert!(resolved.iter().all(|t| former.contains(t) || next.contains(t)), "{key:?} {resolved:?}");
            if !next.is_empty() && (!former.is_empty() || !old.contains_key(&key)) {
                assert!(!resolved.is_empty(), "{key:?} leads nowhere");
            }
        }
        for key in old.keys().filter(|key| !sim.frontends.contains_key(key)) {
            let taken_over =
                |service: &ObjectName| short.contains(service) && before.owners.get(key) != Some(service);
            assert!(new.get(key).is_none_or(|(s, _)| taken_over(&s.name)), "{key:?} is gone");
        }
    }
    let (were, are) = (before.ids_by_target(), sim.ids_by_target());
    let parted = |id: &u32| before.backends[*id as usize].service == 0 && before.namers(*id).len() > 1;
    for (target, ids) in &are {
        let known = were.get(target).is_none_or(|were| ids.is_subset(were) || were.iter().any(parted));
        assert!(known, "{target:?} has other ids");
    }
    if count < plan.ops.len() || stop.is_some() {
        return false;
    }
    tables.applied(sim.now);
    // Of those that shared an id one has kept it, if all are still there.
    for id in were.values().filter(|ids| ids.len() == 1).flatten() {
        let mut namers = were.iter().filter(|(_, were)| were.contains(id)).map(|(target, _)| are.get(target));
        let kept = namers.clone().flatten().filter(|are| are.contains(id)).count();
        assert!(kept == 1 || !short.is_empty() || namers.any(|are| are.is_none()), "id {id}: {kept} kept it");
    }
    assert_eq!(tables.drift(&sim.kernel()), []);
    for key in sim.frontends.keys() {
        assert!(new.contains_key(key), "{key:?} is left over");
    }
    for (key, (service, frontend)) in &new {
        let resolved = sim.resolve(key);
        if short.contains(&service.name) {
            let kept = before.owners.get(key) == Some(&service.name) && resolved == old.get(key).cloned();
            let led = kept || resolved.is_none_or(|resolved| resolved == targets(frontend));
            assert!(led, "{key:?} is neither as it was, nor as it ought to be, nor gone");
            continue;
        }
        assert_eq!(resolved, Some(targets(frontend)));
        let row = sim.frontends[key];
        assert_eq!(usize::from(row.backends_local), frontend.local());
        assert_eq!(row.affinity_seconds, frontend.affinity_seconds.unwrap_or(0));
        if settled(service) {
            assert_eq!(row.service, before.frontends[key].service, "{key:?} has another number");
        }
    }
    // What expired meanwhile is freed, which may give room to who waits; apart from that a second plan finds
    // nothing to do.
    if !short.is_empty() {
        return true;
    }
    for round in 0..2 {
        for op in tables.plan(desired, sim.now).ops {
            let Op::SetBackend { id, row } = &op else { panic!("{op:?}") };
            let numbered = Backend { service: row.service, ..sim.backends[*id as usize] };
            assert!(row.state == backend_state::FREE || round == 0 && numbered == *row, "{op:?}");
            sim.apply(&op, desired);
        }
        tables.applied(sim.now);
    }
    sim.all_is_numbered();
    true
}

fn history(limits: Limits, steps: &[(Wants, Option<usize>, u16)], upgrade: Option<usize>) {
    let mut sim = Sim::new(limits);
    let mut tables = sim.read();
    for (at, (wants, stop, pause)) in steps.iter().enumerate() {
        if upgrade.is_some_and(|upgrade| upgrade % steps.len() == at) {
            sim.back_to_schema_1();
            sim.owners.clear();
            tables = sim.read();
        }
        if !step(&mut sim, &mut tables, &desired(wants), *stop) {
            tables = sim.read();
            sim.owners.clear();
        }
        sim.now += Duration::from_millis(u64::from(*pause));
    }
    // The last state is reached, however little room there is to change in.
    let last = desired(&steps.last().unwrap().0);
    for _ in 0..8 {
        step(&mut sim, &mut tables, &last, None);
        sim.now += QUARANTINE;
    }
    assert_eq!(tables.plan(&last, sim.now).waiting, [], "nothing waits for ever");
    tables.applied(sim.now);
    // Nothing leaks.
    step(&mut sim, &mut tables, &Desired::default(), None);
    sim.now += QUARANTINE;
    for op in tables.expire(sim.now).ops {
        sim.apply(&op, &Desired::default());
    }
    sim.now += QUARANTINE;
    let mut read = sim.read();
    sim.now += QUARANTINE;
    assert_eq!(read.expire(sim.now).ops, []);
    for tables in [tables, read] {
        let usages = tables.usages();
        for usage in [usages.frontends, usages.backends, usages.slots] {
            assert_eq!((usage.used, usage.held), (0, 0), "{usages:?}");
        }
        assert_eq!(tables.slots.available(), limits.slots);
        assert_eq!((tables.ports.len(), tables.numbers.len()), (0, 0));
        assert_eq!(tables.next_expiry(), None);
    }
    assert!(sim.backends.iter().all(|row| row.state == backend_state::FREE));
}

fn wants(backends: usize) -> impl Strategy<Value = Wants> {
    let backends = btree_map(1..12_u8, any::<bool>(), 0..=backends);
    let want = (0..4_u8, prop_oneof![Just(None), Just(Some(60))], backends)
        .prop_map(|(service, affinity, backends)| Want { service, affinity, backends });
    btree_map((0..6_u8, any::<bool>()), want, 0..8)
}

/// Steps that often change only a little, as clusters do.
fn steps(backends: usize) -> impl Strategy<Value = Vec<(Wants, Option<usize>, u16)>> {
    let stop = prop_oneof![3 => Just(None), 1 => any::<usize>().prop_map(Some)];
    let pause = prop_oneof![0..50_u16, 500..2000_u16];
    let fresh = prop_oneof![1 => wants(backends).prop_map(Some), 1 => Just(None)];
    vec((fresh, wants(backends), any::<u16>(), stop, pause), 1..10).prop_map(|raw| {
        let mut last = Wants::new();
        raw.into_iter()
            .map(|(fresh, other, pick, stop, pause)| {
                match fresh {
                    Some(fresh) => last = fresh,
                    None => {
                        // One frontend changes, comes or goes.
                        let at = usize::from(pick) % (last.len() + 1);
                        let gone = last.keys().nth(at).copied();
                        let come = other.into_iter().next();
                        match (gone, come) {
                            (Some(gone), Some((_, want))) => drop(last.insert(gone, want)),
                            (Some(gone), None) => drop(last.remove(&gone)),
                            (None, Some((key, want))) => drop(last.insert(key, want)),
                            (None, None) => {}
                        }
                    }
                }
                (last.clone(), stop, pause)
            })
            .collect()
    })
}

/// A write that no careful agent would make.
#[derive(Clone, Debug)]
enum Damage {
    Slot(u16, u32),
    Frontend(u8, bool, u32, u16, u32),
    DropFrontend(u8, bool),
    Backend(u8, u8, bool, u8, u32),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (0..64_u16, 0..70_u32).prop_map(|(slot, id)| Damage::Slot(slot, id)),
        (0..6_u8, any::<bool>(), prop_oneof![0..64_u32, any::<u32>()], 0..40_u16, 0..5_u32)
            .prop_map(|(vip, udp, base, n, service)| Damage::Frontend(vip, udp, base, n, service)),
        (0..6_u8, any::<bool>()).prop_map(|(vip, udp)| Damage::DropFrontend(vip, udp)),
        (1..20_u8, 1..12_u8, any::<bool>(), 0..5_u8, 0..5_u32)
            .prop_map(|(id, n, udp, state, service)| Damage::Backend(id, n, udp, state, service)),
    ]
}

fn spoil(sim: &mut Sim, damage: &Damage) {
    match *damage {
        Damage::Slot(slot, id) => sim.slots[usize::from(slot)] = id,
        Damage::Frontend(vip, udp, slot_base, backends, service) => {
            let row = Frontend { service, slot_base, backends, ..Frontend::default() };
            sim.frontends.insert(key(vip, udp), row);
        }
        Damage::DropFrontend(vip, udp) => drop(sim.frontends.remove(&key(vip, udp))),
        Damage::Backend(id, n, udp, state, service) => {
            sim.backends[usize::from(id)] = Backend {
                addr: ip(n),
                port: 8080_u16.to_be(),
                proto: key(0, udp).proto,
                state,
                generation: 3,
                service,
            };
        }
    }
}

proptest! {
    #[test]
    fn no_packet_ever_sees_a_torn_service(steps in steps(5)) {
        history(AMPLE, &steps, None);
    }

    #[test]
    fn ids_that_services_shared_are_parted(steps in steps(5), upgrade: usize) {
        history(AMPLE, &steps, Some(upgrade));
    }

    #[test]
    fn nothing_breaks_where_there_is_little_room(steps in steps(4), upgrade: Option<usize>) {
        history(TIGHT, &steps, upgrade);
    }

    #[test]
    fn with_room_nobody_is_refused(wants in wants(5), next in wants(5)) {
        let mut sim = Sim::new(AMPLE);
        let mut tables = sim.read();
        for wants in [wants, next] {
            let plan = tables.plan(&desired(&wants), sim.now);
            prop_assert_eq!((plan.refused, plan.waiting), (vec![], vec![]));
            for op in &plan.ops {
                sim.apply(op, &desired(&wants));
            }
            tables.applied(sim.now);
        }
    }

    #[test]
    fn damage_is_found_and_repaired(wants in wants(5), damages in vec(damage(), 1..8)) {
        let desired = desired(&wants);
        let mut sim = Sim::new(AMPLE);
        let mut tables = sim.read();
        step(&mut sim, &mut tables, &desired, None);
        let sound = sim.kernel();
        damages.iter().for_each(|damage| spoil(&mut sim, damage));
        // Slots that nobody names are nobody's business.
        let mut named = sim.clone();
        named.slots.clone_from(&sound.slots);
        if named.kernel() != sound {
            prop_assert_ne!(tables.drift(&sim.kernel()), vec![]);
        }
        let mut tables = sim.read();
        for _ in 0..3 {
            tables.plan(&desired, sim.now).ops.iter().for_each(|op| sim.put(op));
            tables.applied(sim.now);
            prop_assert_eq!(tables.drift(&sim.kernel()), vec![]);
            sim.now += QUARANTINE;
        }
        sim.all_is_numbered();
        let keys: usize = desired.services.iter().map(|service| service.frontends.len()).sum();
        prop_assert_eq!(sim.frontends.len(), keys);
        for frontend in desired.services.iter().flat_map(|service| &service.frontends) {
            prop_assert_eq!(sim.resolve(&frontend.key), Some(targets(frontend)));
            for id in sim.ids(&sim.frontends[&frontend.key]) {
                prop_assert_eq!(sim.backends[*id as usize].state, backend_state::ACTIVE);
            }
        }
    }

    /// The names that plans tell add up to what the rows say, also after a restart.
    #[test]
    fn names_follow_the_rows(first in wants(4), second in wants(4), restart in any::<bool>()) {
        let mut sim = Sim::new(AMPLE);
        let mut tables = sim.read();
        let mut numbers = BTreeSet::new();
        let mut pods: BTreeMap<u32, Option<ObjectName>> = BTreeMap::new();
        for wants in [first, second] {
            let plan = tables.plan(&desired(&wants), sim.now);
            plan.ops.iter().for_each(|op| sim.put(op));
            tables.applied(sim.now);
            for change in plan.names {
                match change {
                    NameChange::Frontend { number, port, address } => {
                        numbers.insert((number, address, port.protocol.number()));
                    }
                    // Of one Service port, so of one protocol.
                    NameChange::FrontendGone { number, address } => {
                        let had = numbers.len();
                        numbers.retain(|(n, a, _)| (*n, *a) != (number, address));
                        prop_assert_eq!(numbers.len() + 1, had);
                    }
                    NameChange::Backend { id, pod, .. } => drop(pods.insert(id, pod)),
                    NameChange::BackendGone { id } => drop(pods.remove(&id)),
                }
            }
            let rows: BTreeSet<_> = sim.frontends.iter()
                .map(|(key, row)| (row.service, super::address(key), key.proto))
                .collect();
            prop_assert_eq!(&numbers, &rows);
            for id in sim.ids_by_target().values().flatten() {
                prop_assert!(pods[id].is_some());
            }
            if restart {
                tables = sim.read();
                numbers.clear();
                pods.clear();
                let names = tables.plan(&desired(&wants), sim.now).names;
                for change in names {
                    match change {
                        NameChange::Frontend { number, port, address } => {
                            numbers.insert((number, address, port.protocol.number()));
                        }
                        NameChange::Backend { id, pod, .. } => drop(pods.insert(id, pod)),
                        gone => prop_assert!(false, "{:?}", gone),
                    }
                }
                prop_assert_eq!(&numbers, &rows);
            }
        }
    }
}
