//! Lists that change where free slots lie in pieces, against the same simulated kernel.

use super::{Limits, QUARANTINE, Sim, Want, Wants, desired, step, targets};
use proptest::collection::vec;
use proptest::prelude::*;

fn few() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::subsequence((1..12).collect::<Vec<u8>>(), 1..=3)
}

proptest! {
    /// However free slots lie, and wherever the agent dies.
    #[test]
    fn a_list_no_longer_than_before_always_changes(
        rounds in vec((few(), few(), prop::option::of(any::<usize>())), 1..6),
    ) {
        let wants = |lists: &[Vec<u8>; 2]| -> Wants {
            let want = |service: u8| Want {
                service,
                affinity: None,
                backends: lists[usize::from(service)].iter().map(|n| (*n, false)).collect(),
            };
            (0..2).map(|service| ((service, false), want(service))).collect()
        };
        let mut lists = [vec![1, 2, 3], vec![4, 5, 6]];
        let mut sim = Sim::new(Limits { frontends: 4, backends: 64, slots: 16 });
        let mut tables = sim.read();
        step(&mut sim, &mut tables, &desired(&wants(&lists)), None);
        // Both lists apart, and a free slot behind each.
        let before = std::mem::replace(&mut sim.slots, vec![0; 8]);
        sim.limits.slots = 8;
        for (base, row) in [0_u8, 4].into_iter().zip(sim.frontends.values_mut()) {
            sim.slots[usize::from(base)..][..3].copy_from_slice(&before[Sim::range(row)]);
            row.slot_base = base.into();
        }
        let mut tables = sim.read();
        for (first, second, stop) in rounds {
            for (list, mut next) in lists.iter_mut().zip([first, second]) {
                next.truncate(list.len());
                *list = next;
            }
            let desired = desired(&wants(&lists));
            if !step(&mut sim, &mut tables, &desired, stop) {
                tables = sim.read();
                sim.owners.clear();
            }
            for _ in 0..3 {
                step(&mut sim, &mut tables, &desired, None);
                sim.now += QUARANTINE;
            }
            for frontend in desired.services.iter().flat_map(|service| &service.frontends) {
                prop_assert_eq!(sim.resolve(&frontend.key), Some(targets(frontend)));
            }
        }
    }
}
