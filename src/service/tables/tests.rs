use super::*;
use crate::model::Protocol;
use crate::service::plan::DesiredBackend;
use netd_bpf::Addr;
use netd_bpf::service::backend_state;
use std::net::{IpAddr, Ipv4Addr};

const QUARANTINE: Duration = Duration::from_secs(1);

fn addr(a: u8, b: u32) -> Addr {
    Addr::from(IpAddr::V4(Ipv4Addr::from(u32::from(a) << 24 | b)))
}

/// A Service with one TCP frontend and these backends.
fn service(n: u8, backends: impl IntoIterator<Item = u32>) -> DesiredService {
    let backends = backends
        .into_iter()
        .map(|b| DesiredBackend { addr: addr(10, b), port: 8080_u16.to_be(), local: false, pod: None })
        .collect();
    let key = FrontendKey { addr: addr(11, n.into()), port: 80_u16.to_be(), proto: 6, scope: 0 };
    let frontend =
        DesiredFrontend { key, port: 80, protocol: Protocol::Tcp, affinity_seconds: None, backends };
    DesiredService { name: ObjectName::new("shop", &format!("s{n}")), frontends: vec![frontend] }
}

fn desired(services: impl IntoIterator<Item = DesiredService>) -> Desired {
    Desired { services: services.into_iter().collect(), ..Desired::default() }
}

fn empty(frontends: u32, backends: u32, slots: u32) -> (Tables, Instant) {
    let (limits, now) = (Limits { frontends, backends, slots }, Instant::now());
    (Tables::read(limits, QUARANTINE, &Kernel::default(), now), now)
}

/// Plans and takes it for done.
fn done(tables: &mut Tables, desired: &Desired, now: Instant) -> Plan {
    let plan = tables.plan(desired, now);
    tables.applied(now);
    plan
}

fn texts(refusals: &[Refusal]) -> Vec<String> {
    refusals.iter().map(ToString::to_string).collect()
}

#[test]
fn a_new_service_is_written_from_the_bottom_up_and_has_ids_of_its_own() {
    let (mut tables, now) = empty(8, 8, 8);
    let plan = done(&mut tables, &desired([service(1, [1, 2]), service(2, [2])]), now);
    let row = |service, b, generation, state| Backend {
        addr: addr(10, b),
        port: 8080_u16.to_be(),
        proto: 6,
        state,
        generation,
        service,
    };
    let frontend = |service, slot_base, backends| Frontend {
        service,
        slot_base,
        backends,
        generation: 1,
        ..Frontend::default()
    };
    let key = |n| service(n, []).frontends[0].key;
    assert_eq!(
        plan.ops,
        [
            Op::SetBackend { id: 1, row: row(1, 1, 1, backend_state::ACTIVE) },
            Op::SetBackend { id: 2, row: row(1, 2, 1, backend_state::ACTIVE) },
            Op::SetSlots { base: 0, ids: vec![1, 2] },
            Op::SetFrontend { key: key(1), row: frontend(1, 0, 2) },
            Op::SetBackend { id: 3, row: row(2, 2, 1, backend_state::ACTIVE) },
            Op::SetSlots { base: 2, ids: vec![3] },
            Op::SetFrontend { key: key(2), row: frontend(2, 2, 1) },
        ]
    );
    assert_eq!(tables.usages().backends.used, 3);

    // One goes: its flows see it, although the endpoint still serves the other.
    let plan = done(&mut tables, &desired([service(2, [2])]), now);
    assert_eq!(
        plan.ops,
        [
            Op::DeleteFrontend { key: key(1) },
            Op::SetBackend { id: 1, row: row(1, 1, 1, backend_state::TERMINATING) },
            Op::SetBackend { id: 2, row: row(1, 2, 1, backend_state::TERMINATING) },
        ]
    );
    assert_eq!(tables.next_expiry(), Some(now + QUARANTINE));
    let free = Backend { generation: 2, ..Backend::default() };
    let freed = [1, 2].map(|id| Op::SetBackend { id, row: free });
    assert_eq!(tables.expire(now + QUARANTINE).ops, freed);
    // The id's next backend has another generation.
    let plan = done(&mut tables, &desired([service(2, [2, 3])]), now + QUARANTINE);
    assert_eq!(plan.ops[0], Op::SetBackend { id: 1, row: row(2, 3, 2, backend_state::ACTIVE) });
}

#[test]
fn a_backend_that_comes_back_in_time_has_its_id_and_generation() {
    let (mut tables, now) = empty(8, 8, 8);
    let with = desired([service(1, [1, 2])]);
    let first = done(&mut tables, &with, now).ops;
    done(&mut tables, &desired([service(1, [1])]), now);
    let back = done(&mut tables, &with, now + QUARANTINE / 2).ops;
    assert_eq!(back[0], first[1]);
    assert_eq!(tables.expire(now + QUARANTINE).ops, [], "its quarantine is called off");
}

#[test]
fn a_full_frontend_table_turns_away_the_newest() {
    let (mut tables, now) = empty(2, 64, 64);
    done(&mut tables, &desired([service(2, [1]), service(3, [1])]), now);
    let plan = done(&mut tables, &desired([service(1, [1]), service(2, [1]), service(3, [1])]), now);
    assert_eq!(
        texts(&plan.refused),
        ["Service shop/s1 is not served: it needs 1 more frontends, 2 of 2 are in use (datapath.frontends)"]
    );
    assert_eq!(plan.ops, []);
    // The room of one that goes is taken at once, after it is gone.
    let plan = done(&mut tables, &desired([service(1, [1]), service(3, [1])]), now);
    assert_eq!(plan.refused, []);
    assert!(matches!(plan.ops[0], Op::DeleteFrontend { .. }), "{plan:?}");
}

/// A forecast copies the image and plans all Services anew.
#[test]
fn there_is_no_forecast_for_what_waiting_cannot_help() {
    let (mut tables, now) = empty(2, 64, 10);
    let list = |n: u32| service(3, n..n + 3);
    done(&mut tables, &desired([service(2, [1]), list(1)]), now);
    let plan = done(&mut tables, &desired([service(1, [1]), service(2, [1]), list(4)]), now);
    assert_eq!((plan.refused.len(), tables.usages().slots.held), (1, 3), "{plan:?}");
    assert!(!tables.may_wait(&plan.refused));
    let too_long = service(2, 0..=u16::MAX.into());
    let plan = done(&mut tables, &desired([too_long, list(4)]), now);
    assert_eq!(plan.refused[0].reason.name(), "endpoints");
    assert!(!tables.may_wait(&plan.refused));
    let plan = done(&mut tables, &desired([service(2, 1..=4), list(4)]), now);
    assert_eq!(plan.refused[0].reason.name(), "slots");
    assert!(tables.may_wait(&plan.refused), "another list may become shorter");
}

#[test]
fn a_row_that_goes_because_it_leads_astray_makes_room() {
    let (mut tables, now) = empty(2, 64, 64);
    done(&mut tables, &desired([service(1, [1]), service(3, [1])]), now);
    // The last row is another Service's now, which has more endpoints than it can count.
    let mut too_long = service(3, 0..=u16::MAX.into());
    too_long.name = ObjectName::new("shop", "s9");
    let wanted = desired([both(1, &[1], &[1]), too_long]);
    let plan = done(&mut tables, &wanted, now);
    let names = |refusals: &[Refusal]| refusals.iter().map(|r| r.service.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&plan.waiting), ["shop/s1"]);
    assert_eq!(names(&plan.refused), ["shop/s9"]);
    assert_eq!(names(&done(&mut tables, &wanted, now + QUARANTINE).refused), ["shop/s9"]);
}

#[test]
fn slots_are_kept_so_that_the_longest_list_can_change() {
    let (mut tables, now) = empty(8, 64, 10);
    let plan = done(&mut tables, &desired([service(1, [1, 2, 3]), service(2, [1, 2, 3, 4])]), now);
    assert_eq!(
        texts(&plan.refused),
        ["Service shop/s2 is not served: it needs 4 slots, others use 3 of 10 and 4 are kept for changes \
          (datapath.slots)"]
    );
    let two = |a, b| desired([service(1, a), service(2, b)]);
    assert_eq!(done(&mut tables, &two([1, 2, 3], [1, 2, 3]), now).refused, []);
    // Both change wholly: one in free slots, the other in its own.
    let plan = done(&mut tables, &two([4, 5, 6], [4, 5, 6]), now);
    assert_eq!((plan.refused, plan.waiting), (vec![], vec![]));
    let bases = plan.ops.iter().filter_map(|op| match op {
        Op::SetSlots { base, .. } => Some(*base),
        _ => None,
    });
    assert_eq!(bases.collect::<Vec<_>>(), [6, 3]);
    // One that is there may not grow into what is kept, but what is gone of it goes.
    let grown = desired([service(1, [4, 6, 7, 8]), service(2, [4, 5, 6])]);
    let plan = done(&mut tables, &grown, now + QUARANTINE);
    assert_eq!(
        texts(&plan.refused),
        [
            "Service shop/s1 leads to 3 of 4 endpoints at 11.0.0.1:80/TCP: it needs 4 slots, others use 3 of 10 and 4 \
          are kept for changes (datapath.slots)"
        ]
    );
    let written = plan.ops.iter().filter(|op| !matches!(op, Op::SetBackend { .. }));
    let key = service(1, []).frontends[0].key;
    let row = Frontend { service: 1, slot_base: 6, backends: 3, generation: 3, ..Frontend::default() };
    let rest = [Op::SetSlots { base: 6, ids: vec![7, 9, 1] }, Op::SetFrontend { key, row }];
    assert_eq!(written.cloned().collect::<Vec<_>>(), rest);
    assert_eq!(done(&mut tables, &grown, now + QUARANTINE).ops, [], "nothing has changed");
    // The other shrinks, and the whole list comes.
    let room = desired([service(1, [4, 6, 7, 8]), service(2, [4])]);
    done(&mut tables, &room, now + QUARANTINE);
    let plan = done(&mut tables, &room, now + 2 * QUARANTINE);
    assert_eq!((plan.refused, plan.waiting), (vec![], vec![]));
    assert_eq!(tables.usages().slots.used, 5);
}

#[test]
fn a_full_backend_table_turns_away_or_lets_wait() {
    let (mut tables, now) = empty(8, 8, 64);
    let plan = done(&mut tables, &desired([service(1, [1, 2]), service(2, [1, 2, 3])]), now);
    assert_eq!(
        texts(&plan.refused),
        [
            "Service shop/s2 is not served: it needs 3 more backends, 2 of 7 are in use, 0 in quarantine and 3 kept \
          for changes (datapath.backends)"
        ]
    );
    let other = [3, 4, 5, 6, 7];
    let plan = done(&mut tables, &desired([service(2, other)]), now);
    assert_eq!((plan.refused.len(), plan.waiting.len()), (1, 0), "it could never change wholly: {plan:?}");
    let three = desired([service(2, [3, 4, 5])]);
    let plan = done(&mut tables, &three, now);
    assert_eq!((plan.refused.len(), plan.waiting.len()), (0, 0), "{plan:?}");
    let now = now + QUARANTINE;
    let plan = done(&mut tables, &desired([service(2, [6, 7, 8])]), now);
    assert_eq!((plan.refused.len(), plan.waiting.len()), (0, 0), "the reserve is for this: {plan:?}");
    // One is free.
    let other = desired([service(3, [9, 10])]);
    let plan = done(&mut tables, &other, now);
    assert_eq!((plan.refused.len(), plan.waiting.len()), (0, 1), "{plan:?}");
    let plan = done(&mut tables, &other, now + QUARANTINE);
    assert_eq!(plan.waiting, []);
}

/// What the frontend of a Service leads to, by the last octet.
fn leads_to(kernel: &Kernel, n: u8) -> Vec<u8> {
    let key = service(n, []).frontends[0].key;
    let (_, row) = kernel.frontends.iter().find(|(other, _)| *other == key).expect("its row");
    let ids = &kernel.slots[row.slot_base as usize..][..row.backends.into()];
    let backends =
        ids.iter().map(|id| kernel.backends.iter().find(|(other, _)| other == id).expect("its row"));
    backends.map(|(_, backend)| (backend.addr.0[3] >> 24) as u8).collect()
}

/// Tables over a kernel that they are written to.
struct Written {
    tables: Tables,
    kernel: Kernel,
    now: Instant,
}

impl Written {
    fn new(limits: Limits) -> Self {
        let now = Instant::now();
        let kernel = Kernel { slots: vec![0; limits.slots as usize], ..Kernel::default() };
        Self { tables: Tables::read(limits, QUARANTINE, &kernel, now), kernel, now }
    }

    fn bring(&mut self, services: impl IntoIterator<Item = DesiredService>) -> Plan {
        let plan = self.tables.plan(&desired(services), self.now);
        for op in plan.ops.clone() {
            let Kernel { frontends, slots, backends } = &mut self.kernel;
            match op {
                Op::SetBackend { id, row } => {
                    backends.retain(|(other, _)| *other != id);
                    backends.push((id, row));
                }
                Op::SetSlots { base, ids } => slots[base as usize..][..ids.len()].copy_from_slice(&ids),
                Op::SetFrontend { key, row } => {
                    frontends.retain(|(other, _)| *other != key);
                    frontends.push((key, row));
                }
                Op::DeleteFrontend { key } => frontends.retain(|(other, _)| *other != key),
            }
        }
        self.tables.applied(self.now);
        assert_eq!(self.tables.drift(&self.kernel), []);
        plan
    }

    fn rest(&mut self) {
        self.now += QUARANTINE;
    }
}

#[test]
fn every_admitted_list_can_be_replaced_whole() {
    let mut written = Written::new(Limits { frontends: 8, backends: 10, slots: 64 });
    let all = |a: &[u32], b: &[u32], c: &[u32]| {
        [service(1, a.to_vec()), service(2, b.to_vec()), service(3, c.to_vec())]
    };
    let plan = written.bring(all(&[1, 2, 3], &[4, 5, 6], &[7]));
    assert_eq!(
        texts(&plan.refused),
        [
            "Service shop/s3 is not served: it needs 1 more backends, 6 of 9 are in use, 0 in quarantine and 3 kept \
          for changes (datapath.backends)"
        ]
    );
    // With all new endpoints, both at once: the first list has the reserve, the other what that leaves.
    let plan = written.bring(all(&[11, 12, 13], &[14, 15, 16], &[]));
    assert_eq!((plan.refused, plan.waiting.len()), (vec![], 1));
    assert_eq!((leads_to(&written.kernel, 1), leads_to(&written.kernel, 2)), (vec![11, 12, 13], vec![]));
    written.rest();
    let plan = written.bring(all(&[11, 12, 13], &[14, 15, 16], &[]));
    assert_eq!((plan.refused, plan.waiting), (vec![], vec![]));
    assert_eq!(leads_to(&written.kernel, 2), [14, 15, 16]);
}

#[test]
fn no_list_leads_to_what_is_gone_while_ids_lack() {
    // A former agent gave out all ids: of two lists of three, and to a Service that stays.
    let mut written = Written::new(Limits { frontends: 8, backends: 64, slots: 64 });
    let all = |a: &[u32], b: &[u32]| [service(1, a.to_vec()), service(2, b.to_vec()), service(3, [9])];
    written.bring(all(&[1, 2, 3], &[4, 5, 6]));
    let limits = Limits { frontends: 8, backends: 8, slots: 64 };
    written.tables = Tables::read(limits, QUARANTINE, &written.kernel, written.now);

    let plan = written.bring(all(&[2, 7], &[5, 6, 7, 8]));
    assert_eq!((leads_to(&written.kernel, 1), leads_to(&written.kernel, 2)), (vec![2], vec![5, 6]));
    assert_eq!(
        texts(&plan.waiting),
        [
            "Service shop/s1 leads to 1 of 2 endpoints at 11.0.0.1:80/TCP: it needs 1 more backends, 7 of 7 are in \
          use, 0 in quarantine and 0 kept for changes (datapath.backends)"
        ]
    );
    assert_eq!(
        texts(&plan.refused),
        [
            "Service shop/s2 leads to 2 of 4 endpoints at 11.0.0.2:80/TCP: it needs 1 more backends, 6 of 7 are in \
          use, 0 in quarantine and 4 kept for changes (datapath.backends)"
        ],
        "what it will lack when the others' quarantine is over"
    );
    assert_eq!(written.bring(all(&[2, 7], &[5, 6, 7, 8])).ops, [], "nothing has changed");
    // The ids of those that are gone come free: the slots are still there for what they give.
    written.rest();
    let plan = written.bring(all(&[2, 7], &[5, 6, 7, 8]));
    assert_eq!((leads_to(&written.kernel, 1), leads_to(&written.kernel, 2)), (vec![2, 7], vec![5, 6, 7]));
    assert_eq!((plan.waiting, plan.refused[0].list.in_force), (vec![], 3));
    assert_eq!(written.bring(all(&[2, 7], &[5, 6, 7, 8])).ops, []);
    // The list is what there is of it, or nothing: no slot is kept for more.
    written.bring(all(&[2, 7], &[5]));
    assert_eq!((leads_to(&written.kernel, 2), written.tables.usages().slots.used), (vec![5], 4));
}

#[test]
fn a_list_of_which_nothing_is_left_has_no_backends_and_fills_up_again() {
    let mut written = Written::new(Limits { frontends: 8, backends: 64, slots: 64 });
    written.bring([service(1, [1, 2]), service(2, [3, 4])]);
    let limits = Limits { frontends: 8, backends: 5, slots: 64 };
    written.tables = Tables::read(limits, QUARANTINE, &written.kernel, written.now);
    let plan = written.bring([service(1, [5, 6]), service(2, [3, 4])]);
    assert_eq!((plan.refused.len(), plan.waiting.len(), plan.waiting[0].list.in_force), (0, 1, 0));
    assert_eq!(leads_to(&written.kernel, 1), [0_u8; 0]);
    // No endpoints are wanted now, and then again some: no slots were lost or kept meanwhile.
    written.bring([service(1, []), service(2, [3, 4])]);
    assert_eq!(written.tables.usages().slots.used, 2);
    written.rest();
    let plan = written.bring([service(1, [5, 6]), service(2, [3, 4])]);
    assert_eq!(plan.refused.len(), 1, "it is a new list, and there is no reserve");
    let plan = written.bring([service(1, [5, 6])]);
    assert_eq!(plan.refused, []);
    written.rest();
    assert_eq!(written.bring([service(1, [5, 6])]).waiting, []);
    assert_eq!(leads_to(&written.kernel, 1), [5, 6]);
}

#[test]
fn a_service_with_more_endpoints_than_a_row_can_count_is_refused() {
    let (mut tables, now) = empty(8, 200_000, 200_000);
    let plan = done(&mut tables, &desired([service(1, 0..65_536)]), now);
    assert_eq!(
        texts(&plan.refused),
        ["Service shop/s1 is not served: port 80/TCP has 65536 endpoints, one frontend takes 65535"]
    );
    assert_eq!(plan.ops, []);
    assert_eq!(done(&mut tables, &desired([service(1, 0..65_535)]), now).refused, []);
}

#[test]
fn a_local_redirect_of_a_former_agent_is_understood() {
    let backend = |n| Backend { addr: addr(10, n), port: 80, proto: 6, state: 1, generation: 4, service: 7 };
    let key = service(1, []).frontends[0].key;
    let row =
        Frontend { service: 7, slot_base: 2, backends: 1, kind: kind::LOCAL_REDIRECT, ..Frontend::default() };
    let kernel = Kernel {
        frontends: vec![(key, row)],
        slots: vec![0, 0, 1, 2, 0, 0],
        backends: vec![(1, backend(1)), (2, backend(2))],
    };
    let (limits, now) = (Limits { frontends: 4, backends: 4, slots: 6 }, Instant::now());
    let mut tables = Tables::read(limits, QUARANTINE, &kernel, now);
    assert_eq!(tables.usages().slots.used, 2, "its listener has a slot as well");
    assert_eq!(tables.drift(&kernel), []);
    let plan = tables.plan(&desired([service(1, [])]), now);
    let Some(Op::SetFrontend { row, .. }) = plan.ops.first() else { panic!("{plan:?}") };
    assert_eq!((row.kind, row.service, row.backends), (kind::BALANCE, 7, 0));
}

#[test]
fn drift_is_told_in_words() {
    let (mut tables, now) = empty(4, 4, 4);
    done(&mut tables, &desired([service(1, [1])]), now);
    let unknown = service(9, []).frontends[0].key;
    let kernel = Kernel {
        frontends: vec![(unknown, Frontend::default())],
        slots: vec![0; 4],
        backends: vec![(3, Backend { state: backend_state::ACTIVE, ..Backend::default() })],
    };
    let told: Vec<String> = tables.drift(&kernel).iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "frontend 11.0.0.9:80 protocol 6 is not ours",
            "frontend 11.0.0.1:80 protocol 6 is missing",
            "backend 1 was changed",
            "backend 3 was changed",
        ]
    );
}

/// Another agent's rows: frontends by key with number and slots, over backends by id with number.
fn found(frontends: &[(u8, u32, u32, u16)], slots: &[u32], backends: &[(u32, u32, u8)]) -> (Tables, Instant) {
    found_in(Limits { frontends: 8, backends: 8, slots: 16 }, frontends, slots, backends)
}

fn found_in(
    limits: Limits,
    frontends: &[(u8, u32, u32, u16)],
    slots: &[u32],
    backends: &[(u32, u32, u8)],
) -> (Tables, Instant) {
    let row = |&(n, number, slot_base, backends): &(u8, u32, u32, u16)| {
        let row = Frontend { service: number, slot_base, backends, generation: 1, ..Frontend::default() };
        (service(n, []).frontends[0].key, row)
    };
    let kernel = Kernel {
        frontends: frontends.iter().map(row).collect(),
        slots: slots.to_vec(),
        backends: backends.iter().map(|&(id, number, n)| (id, active(number, n))).collect(),
    };
    let now = Instant::now();
    (Tables::read(limits, QUARANTINE, &kernel, now), now)
}

fn active(service: u32, n: u8) -> Backend {
    Backend {
        addr: addr(10, n.into()),
        port: 8080_u16.to_be(),
        proto: 6,
        state: backend_state::ACTIVE,
        generation: 1,
        service,
    }
}

#[test]
fn frontends_that_share_slots_are_parted() {
    let (mut tables, now) = found(&[(1, 1, 0, 2), (2, 2, 1, 2)], &[1, 2, 1], &[(1, 1, 1), (2, 1, 2)]);
    let wanted = desired([service(1, [1, 2]), service(2, [1, 2])]);
    // What the second one resolves to is not what it has: nothing protects it from the first one's changes.
    let plan = done(&mut tables, &wanted, now);
    let key = service(2, []).frontends[0].key;
    let [.., Op::SetSlots { base, ids }, Op::SetFrontend { key: written, row }] = &plan.ops[..] else {
        panic!("{plan:?}")
    };
    assert_eq!((ids, *written, row.slot_base), (&vec![3, 4], key, *base));
    assert!(*base >= 3, "{plan:?}");

    // Also if it happens to hold just what is wanted.
    let (mut tables, now) = found(&[(1, 1, 0, 2), (2, 2, 1, 1)], &[1, 2], &[(1, 1, 1), (2, 1, 2)]);
    let plan = done(&mut tables, &desired([service(1, [1, 2]), service(2, [2])]), now);
    assert!(matches!(&plan.ops[1], Op::SetSlots { base: 2.., .. }), "{plan:?}");
}

#[test]
fn two_ids_of_one_backend_are_merged() {
    let (mut tables, now) = found(&[(1, 1, 0, 1), (2, 1, 1, 1)], &[3, 5], &[(3, 1, 1), (5, 1, 1)]);
    let wanted = desired([both(1, &[1], &[1])]);
    let plan = done(&mut tables, &wanted, now);
    let [Op::SetSlots { ids, .. }, Op::SetFrontend { row, .. }, Op::SetBackend { id: 5, row: gone }] =
        &plan.ops[..]
    else {
        panic!("{plan:?}")
    };
    assert_eq!((&ids[..], row.service, gone.state), (&[3][..], 1, backend_state::TERMINATING));
    let ops = tables.expire(now + QUARANTINE).ops;
    assert!(matches!(ops[..], [Op::SetBackend { id: 5, .. }]), "{ops:?}");
    assert_eq!(done(&mut tables, &wanted, now + QUARANTINE).ops, []);
}

#[test]
fn an_id_of_schema_1_gets_the_number_of_the_service_that_has_it_alone() {
    let (mut tables, now) = found(&[(1, 4, 0, 1), (2, 4, 1, 2)], &[1, 1, 2], &[(1, 0, 1), (2, 0, 2)]);
    let wanted = desired([both(1, &[1], &[1, 2])]);
    let plan = done(&mut tables, &wanted, now);
    let numbered = [(1, 1), (2, 2)].map(|(id, n)| Op::SetBackend { id, row: active(4, n) });
    assert_eq!(plan.ops, numbered, "neither id, nor generation, nor slots change");
    assert_eq!(done(&mut tables, &wanted, now).ops, []);
}

#[test]
fn of_services_that_share_an_id_of_schema_1_one_keeps_it() {
    let (mut tables, now) = found(&[(1, 4, 0, 1), (2, 3, 1, 1)], &[1, 1], &[(1, 0, 1)]);
    let wanted = desired([service(1, [1]), service(2, [1])]);
    let plan = done(&mut tables, &wanted, now);
    let key = service(1, []).frontends[0].key;
    let [Op::SetBackend { id: 2, row }, Op::SetSlots { base: 2, ids }, Op::SetFrontend { key: flipped, .. }] =
        &plan.ops[..]
    else {
        panic!("{plan:?}")
    };
    assert_eq!((*row, &ids[..], *flipped), (active(4, 1), &[2][..], key));
    // The other's number is written when the flip is known to be done: until then it is anybody's.
    assert_eq!(tables.next_expiry(), Some(now + QUARANTINE));
    assert_eq!(tables.expire(now + QUARANTINE).ops, [Op::SetBackend { id: 1, row: active(3, 1) }]);
    assert_eq!(done(&mut tables, &wanted, now + QUARANTINE).ops, []);
}

#[test]
fn services_share_an_id_of_schema_1_until_there_is_room() {
    // All seven ids are taken, one by two Services.
    let ids: Vec<(u32, u32, u8)> = (1..=7).map(|id| (id, 0, u8::try_from(id).unwrap())).collect();
    let slots = [1, 2, 3, 4, 5, 6, 7, 1];
    let (mut tables, now) = found(&[(1, 1, 0, 7), (2, 2, 7, 1)], &slots, &ids);
    let wanted = desired([service(1, 1..=7), service(2, [1])]);
    let plan = done(&mut tables, &wanted, now);
    assert_eq!(
        texts(&plan.refused),
        [
            "Service shop/s2 stays as it was: it needs 1 more backends, 7 of 7 are in use, 0 in quarantine and 0 kept \
          for changes (datapath.backends)"
        ]
    );
    let shared = |op: &Op| matches!(op, Op::SetBackend { id: 1, .. } | Op::SetFrontend { .. });
    assert!(plan.ops.len() == 6 && !plan.ops.iter().any(shared), "{plan:?}");
    // The one that kept it leaves: it is the other's now.
    let wanted = desired([service(1, 2..=7), service(2, [1])]);
    done(&mut tables, &wanted, now);
    let plan = done(&mut tables, &wanted, now);
    assert_eq!((plan.ops, plan.refused), (vec![Op::SetBackend { id: 1, row: active(2, 1) }], vec![]));
}

#[test]
fn a_number_is_not_given_out_while_ids_have_it() {
    let (mut tables, now) = found(&[(1, 4, 0, 1)], &[1], &[(1, 4, 1), (2, 6, 2)]);
    let plan = done(&mut tables, &desired([service(1, [1]), service(2, [2])]), now);
    let number = plan.ops.iter().find_map(|op| match op {
        Op::SetFrontend { row, .. } => Some(row.service),
        _ => None,
    });
    assert_eq!(number, Some(7), "{plan:?}");
}

#[test]
fn a_list_that_is_no_longer_changes_however_slots_are_in_pieces() {
    // Two lists of three, and free slots one by one.
    let ids: Vec<_> = (1..=6).map(|n: u8| (n.into(), n.div_ceil(3).into(), n)).collect();
    let limits = Limits { frontends: 8, backends: 16, slots: 8 };
    let rows = [(1, 1, 0, 3), (2, 2, 4, 3)];
    let (mut tables, now) = found_in(limits, &rows, &[1, 2, 3, 0, 4, 5, 6, 0], &ids);
    let mut changed = |first: &[u32], second: &[u32], now| {
        let lists = [service(1, first.iter().copied()), service(2, second.iter().copied())];
        let plan = done(&mut tables, &desired(lists), now);
        assert_eq!(plan.refused, []);
        let flips = plan.ops.into_iter().filter(|op| !matches!(op, Op::SetBackend { .. }));
        (flips.collect::<Vec<_>>(), plan.waiting.len())
    };
    let flip = |n, number, generation, slot_base, ids: &[u32]| {
        let backends = u16::try_from(ids.len()).unwrap();
        let row = Frontend { service: number, slot_base, backends, generation, ..Frontend::default() };
        let key = service(n, []).frontends[0].key;
        vec![Op::SetSlots { base: slot_base, ids: ids.to_vec() }, Op::SetFrontend { key, row }]
    };
    // One shrinks, the other changes.
    assert_eq!(changed(&[1, 3], &[4, 5, 6], now), (flip(1, 1, 2, 0, &[1, 3]), 0));
    assert_eq!(changed(&[1, 3], &[4, 5, 7], now), (flip(2, 2, 2, 4, &[4, 5, 7]), 0));
    // Nor does it wait for slots that are in quarantine: those that are gone must not be led to.
    assert_eq!(changed(&[1, 8], &[4, 5, 7], now), (flip(1, 1, 3, 0, &[1, 8]), 0));
    // Where slots lie side by side, the list changes in one step.
    assert_eq!(
        changed(&[1, 9], &[4, 5, 7], now + QUARANTINE),
        (flip(1, 1, 4, 2, &[1, 2]), 0),
        "the new one has the id of one that is gone"
    );
}

/// One Service with two frontends.
fn both(n: u8, first: &[u32], second: &[u32]) -> DesiredService {
    let mut both = service(n, first.iter().copied());
    both.frontends.extend(service(n + 1, second.iter().copied()).frontends);
    both
}

#[test]
fn the_lists_of_one_service_change_one_after_the_other_if_they_must() {
    let (mut tables, now) = empty(8, 64, 9);
    assert_eq!(done(&mut tables, &desired([both(1, &[1, 2, 3], &[1, 2, 3])]), now).refused, []);
    let changed = desired([both(1, &[4, 5, 6, 7], &[])]);
    let plan = done(&mut tables, &changed, now);
    assert_eq!((plan.waiting.len(), plan.refused.len()), (1, 0), "{plan:?}");
    let plan = done(&mut tables, &changed, now + QUARANTINE);
    assert_eq!((plan.waiting.len(), plan.refused.len()), (0, 0), "{plan:?}");
}

#[test]
fn a_new_service_comes_whole_and_holds_nothing_while_it_waits() {
    let (mut tables, now) = empty(8, 64, 13);
    let two = |a, b| [service(1, a), service(2, b)];
    done(&mut tables, &desired(two([1, 2, 3], [1, 2, 3])), now);
    // Six slots used, six in quarantine: there is room for the first list of the new Service only.
    let mut wanted = two([4, 5, 6], [4, 5, 6]).to_vec();
    wanted.push(both(3, &[4], &[4, 5, 6]));
    let plan = done(&mut tables, &desired(wanted.clone()), now);
    assert_eq!((plan.waiting.len(), plan.refused.len()), (1, 0), "{plan:?}");
    assert!(!plan.waiting[0].keeps_rows);
    assert_eq!((tables.usages().frontends.used, tables.usages().slots.used), (2, 6));
    let plan = done(&mut tables, &desired(wanted), now + QUARANTINE);
    assert_eq!((plan.waiting.len(), plan.refused.len()), (0, 0), "{plan:?}");
    assert_eq!((tables.usages().frontends.used, tables.usages().slots.used), (4, 10));
}

#[test]
fn a_row_that_leads_astray_goes_if_there_is_no_room_to_mend_it() {
    // Slot 1 names a backend that does not exist, and all other slots were written a moment ago.
    let slots = [1, 7, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1];
    let (mut tables, now) = found(&[(1, 1, 0, 2)], &slots, &[(1, 1, 1)]);
    let wanted = desired([service(1, [1, 2])]);
    let plan = done(&mut tables, &wanted, now);
    assert_eq!(plan.waiting.len(), 1);
    assert!(matches!(plan.ops[0], Op::DeleteFrontend { .. }), "{plan:?}");
    let plan = done(&mut tables, &wanted, now + QUARANTINE);
    assert_eq!(plan.waiting, []);
    assert!(plan.ops.iter().any(|op| matches!(op, Op::SetFrontend { .. })), "{plan:?}");
}

#[test]
fn two_services_that_find_rows_with_one_number_are_told_apart() {
    // Both rows were of one Service port when the former agent died.
    let wanted = desired([service(1, [1]), service(2, [1])]);
    let (mut tables, now) = found(&[(1, 9, 0, 1), (2, 9, 1, 1)], &[1, 1], &[(1, 9, 1)]);
    let plan = done(&mut tables, &wanted, now);
    let [Op::SetBackend { id: 2, row: own }, Op::SetSlots { .. }, Op::SetFrontend { key, row }] =
        &plan.ops[..]
    else {
        panic!("{plan:?}")
    };
    assert_eq!((*key, row.service, own.service), (service(2, []).frontends[0].key, 10, 10));
    assert_eq!(done(&mut tables, &wanted, now).ops, []);
}
