//! Random histories of plans, crashes and restarts against a simulated kernel that checks every write.

mod pieces;
mod sim;
mod some;

use super::{Limits, NameChange, Op, Tables};
use crate::model::{ObjectName, Protocol};
use crate::service::plan::{Desired, DesiredBackend, DesiredFrontend, DesiredService};
use netd_bpf::Addr;
use netd_bpf::service::{Backend, Frontend, FrontendKey, backend_state};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use sim::Sim;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

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

/// Applies the first operations of a plan for `desired` (all: `None`), looking at every frontend after each.
fn step(sim: &mut Sim, tables: &mut Tables, desired: &Desired, stop: Option<usize>) -> bool {
    let mut before = sim.clone();
    let old = before.resolved();
    let new: BTreeMap<FrontendKey, (&DesiredService, &DesiredFrontend)> =
        desired.services.iter().flat_map(|s| s.frontends.iter().map(move |f| (f.key, (s, f)))).collect();
    let planned = sim.now;
    let plan = tables.plan(desired, planned);
    let mut short = sim.note(&plan);
    // Whatever was admitted can be replaced whole, at the latest after the quarantine.
    for refusal in plan.refused.iter().filter(|_| sim.orderly) {
        let mut frontends = new.values().filter(|(s, _)| s.name == refusal.service).map(|(_, f)| f);
        let more = frontends.any(|f| {
            before.owners.get(&f.key) != Some(&refusal.service)
                || old.get(&f.key).is_none_or(|former| former.len() < f.backends.len())
        });
        assert!(more, "{refusal}");
    }
    // The kernel does not say whose a row is: after a restart whoever claims it has it.
    for (key, (service, _)) in &new {
        if before.frontends.contains_key(key) {
            before.owners.entry(*key).or_insert_with(|| service.name.clone());
            sim.owners.entry(*key).or_insert_with(|| service.name.clone());
        }
    }
    // Nobody else can claim the row's number, after a restart either.
    let own_number = |key: &FrontendKey, service: &DesiredService| {
        let number = before.frontends[key].service;
        let mut rows = before.frontends.iter().filter(|(_, row)| row.service == number);
        rows.all(|(other, _)| match new.get(other) {
            Some((s, f)) => s.name == service.name && f.key.proto == key.proto,
            None => {
                other.proto == key.proto
                    && before.owners.get(other).is_none_or(|owner| *owner == service.name)
            }
        })
    };
    let one_number = |service: &DesiredService| {
        [6, 17].iter().all(|proto| {
            let rows = service.frontends.iter().filter(|f| f.key.proto == *proto);
            let numbers = rows.filter_map(|f| Some(before.frontends.get(&f.key)?.service));
            numbers.collect::<BTreeSet<_>>().len() <= 1
        })
    };
    // As it was: the same lists, and one number per port.
    let settled = |service: &DesiredService| {
        !before.short.contains(&service.name)
            && service.frontends.iter().all(|f| {
                before.owners.get(&f.key) == Some(&service.name)
                    && old.get(&f.key) == Some(&targets(f))
                    && before.owns_its_backends(&f.key)
                    && own_number(&f.key, service)
            })
            && one_number(service)
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
                let no_room = new.get(&key).is_some_and(|(service, _)| short.contains(&service.name));
                let nothing_left = no_room && former.iter().all(|target| !next.contains(target));
                assert!(!resolved.is_empty() || nothing_left, "{key:?} leads nowhere");
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
    // The same again finds nothing to do, but for what the changes themselves gave room to.
    for round in 0.. {
        let again = tables.plan(desired, planned);
        if again.ops.is_empty() {
            break;
        }
        assert!(round < 8, "no end of {:?}", again.ops);
        again.ops.iter().for_each(|op| sim.apply(op, desired));
        tables.applied(sim.now);
        short = sim.note(&again);
    }
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
            let resolved = resolved.unwrap_or_default();
            let wanted = targets(frontend);
            let mut rest = wanted.iter();
            assert!(resolved.iter().all(|one| rest.any(|other| other == one)), "{key:?}: {resolved:?}");
            // What the row had of it stays, and each of its slots is used if there is an id for it.
            if before.owners.get(key) == Some(&service.name) && sim.frontends.contains_key(key) {
                let former = &old[key];
                assert!(former.iter().all(|one| !wanted.contains(one) || resolved.contains(one)), "{key:?}");
                let ids = sim.backends.iter().skip(1).filter(|row| row.state == backend_state::FREE).count();
                let own = before.owns_its_backends(key) && own_number(key, service) && one_number(service);
                let fits = resolved.len() >= former.len().min(wanted.len());
                assert!(fits || ids == 0 || !own, "{key:?}: {resolved:?} of {wanted:?}, {ids} ids are free");
            }
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
            sim.orderly = false;
            tables = sim.read();
        }
        if !step(&mut sim, &mut tables, &desired(wants), *stop) {
            tables = sim.read();
            sim.owners.clear();
            sim.orderly = false;
        }
        sim.now += Duration::from_millis(u64::from(*pause));
    }
    let last = desired(&steps.last().unwrap().0);
    // Who is told to wait is in once the quarantine is over.
    step(&mut sim, &mut tables, &last, None);
    let waiting = sim.waiting.clone();
    let refused: BTreeSet<_> = sim.short.difference(&waiting).cloned().collect();
    for _ in 0..super::FORESEEN {
        sim.now += QUARANTINE;
        step(&mut sim, &mut tables, &last, None);
    }
    let left: Vec<_> = waiting.intersection(&sim.short).collect();
    assert!(left.is_empty(), "{left:?} waited in vain");
    assert!(refused.is_subset(&sim.short), "{refused:?} were refused too soon");
    // The last state is reached, however little room there is to change in.
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
