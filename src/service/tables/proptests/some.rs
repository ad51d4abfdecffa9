//! Planning what changed against planning all.

use super::{AMPLE, Sim, Wants, desired, wants};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

type Lists = BTreeMap<usize, BTreeMap<u8, bool>>;

proptest! {
    /// Two agents with one kernel each: one plans all at every change, the other what changed.
    #[test]
    fn a_plan_of_what_changed_does_what_one_of_all_does(
        mut now in wants(4),
        steps in vec((btree_map(0..8_usize, btree_map(1..12_u8, any::<bool>(), 0..=4), 0..4), 0..2_000_u64), 1..8),
    ) {
        let mut sim = Sim::new(AMPLE);
        let (mut all, mut some) = (sim.read(), sim.read());
        let first = desired(&now);
        prop_assert_eq!(all.plan(&first, sim.now), some.plan(&first, sim.now));
        for (lists, pause) in steps {
            all.applied(sim.now);
            some.applied(sim.now);
            sim.now += Duration::from_millis(pause);
            let before = desired(&now);
            change(&mut now, lists);
            let after = desired(&now);
            let differs = |at: &usize| before.services[*at] != after.services[*at];
            let places: Vec<usize> = (0..after.services.len()).filter(differs).collect();
            let part = some.plan_some(&after, &places, sim.now);
            let whole = all.plan(&after, sim.now);
            prop_assert!(whole.refused.is_empty() && whole.waiting.is_empty());
            prop_assert_eq!(whole, part);
        }
        prop_assert_eq!(all.usages(), some.usages());
    }
}

/// The frontends at these places get these backends.
fn change(wants: &mut Wants, lists: Lists) {
    for (at, backends) in lists {
        if let Some(want) = wants.values_mut().nth(at) {
            want.backends = backends;
        }
    }
}
