//! Random clusters and what happens to them, against a simulated kernel that looks at every write.
//!
//! After each operation every packet of a sample gets the verdict of before or that of after; where room is short it may
//! be denied meanwhile, and is never allowed what neither allows.

mod sim;

use super::*;
use crate::policy::Planner;
use crate::policy::planner::tests::histories;
use crate::policy::testing::World;
use proptest::prelude::*;
use sim::Sim;

const QUARANTINE: Duration = Duration::from_secs(1);
const ROOMY: Limits = Limits { rows: 4096, ranges: 4096, identities: 64, blocks: 64 };

/// Plans, writes it down one by one, and looks at the sample after each.
fn bring(sim: &mut Sim, tables: &mut Tables, desired: &Desired, touched: &Touched, strict: bool) -> Plan {
    let before = sim.verdicts();
    let plan = tables.plan(desired, touched, sim.now);
    let mut behind = sim.clone();
    plan.ops.iter().for_each(|op| behind.put(op));
    let after = behind.verdicts();
    for op in &plan.ops {
        sim.apply(op);
        let now = sim.verdicts();
        for (case, now) in &now {
            let (before, after) = (before.get(case).copied(), after.get(case).copied());
            let right = match (before, after) {
                // A pod that comes or goes may be closed for as long as it likes.
                (None, Some(after)) => *now <= after,
                (Some(before), None) => *now <= before,
                (Some(before), Some(after)) if strict => *now == before || *now == after,
                (Some(before), Some(after)) => *now <= before || *now <= after,
                (None, None) => false,
            };
            assert!(
                right,
                "{case:?}: {now} between {before:?} and {after:?} behind {op:?} of {:#?}",
                plan.ops
            );
        }
    }
    // Whoever was judged before the epoch changed is judged anew; behind it nothing changes any more.
    if before != after && before.keys().any(|case| after.contains_key(case)) {
        let changed =
            |case: &_| before.contains_key(case) && after.contains_key(case) && before[case] != after[case];
        if before.keys().any(changed) {
            let at = plan
                .ops
                .iter()
                .position(|op| *op == Op::BumpEpoch)
                .expect("a verdict changes, the epoch does not");
            let mut late = sim.clone();
            plan.ops[at..].iter().for_each(|op| late.put(op));
            assert_eq!(late.verdicts(), after);
        }
    }
    tables.applied(sim.now);
    plan
}

/// The kernel comes to the verdicts that the plan stands for.
fn check_verdicts(sim: &Sim, desired: &Desired) {
    for ((endpoint, egress, other, point), allowed) in sim.verdicts() {
        let sets = desired.pods[&endpoint];
        let set = if egress { sets.egress } else { sets.ingress };
        let node = desired.identities.get(&other).is_some_and(|one| one.node);
        let identity = crate::policy::eval::identity(desired, other);
        let right = match set {
            _ if egress && node => true,
            set::OPEN => true,
            set::CLOSED => false,
            set => {
                crate::policy::eval::decide(desired, set, identity, point).action
                    == netd_bpf::policy::action::ALLOW
            }
        };
        assert_eq!(allowed, right, "endpoint {endpoint}, egress {egress}, {other}, {point:x}");
    }
}

fn repeat(sim: &mut Sim, tables: &mut Tables, desired: &Desired, strict: bool, mut plan: Plan) -> Plan {
    for _ in 0..8 {
        if !plan.again {
            return plan;
        }
        plan = bring(sim, tables, desired, &Touched::default(), strict);
    }
    panic!("no end: {plan:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn no_packet_sees_a_change_half_made(history in histories()) {
        let (mut world, mut planner) = (World::new(), Planner::new());
        let mut sim = Sim::new(ROOMY);
        let mut tables = sim.read();
        for edits in history {
            edits.iter().for_each(|edit| edit.apply(&mut world));
            let touched = planner.update(world.input());
            let plan = bring(&mut sim, &mut tables, planner.desired(), &touched, true);
            prop_assert!(plan.refused.is_empty(), "{:?}", plan.refused);
            check_verdicts(&sim, planner.desired());
            sim.check_exact(planner.desired());
            prop_assert_eq!(tables.drift(&sim.kernel()), vec![]);
            // Neither of a plan of all nor after a restart is there anything to do.
            prop_assert_eq!(tables.plan(planner.desired(), &Touched::all(), sim.now).ops, vec![]);
            let mut read = sim.read();
            prop_assert_eq!(read.plan(planner.desired(), &Touched::all(), sim.now).ops, vec![]);
            sim.now += QUARANTINE;
        }
    }

    #[test]
    fn an_agent_that_dies_between_two_writes_is_followed_by_one_that_goes_on(
        history in histories(),
        dies in proptest::collection::vec(any::<prop::sample::Index>(), 13),
    ) {
        let (mut world, mut planner) = (World::new(), Planner::new());
        let mut sim = Sim::new(ROOMY);
        for (edits, dies) in history.iter().zip(dies) {
            edits.iter().for_each(|edit| edit.apply(&mut world));
            planner.update(world.input());
            let first = sim.clone();
            let mut tables = sim.read();
            let plan = tables.plan(planner.desired(), &Touched::all(), sim.now);
            let cut = dies.index(plan.ops.len() + 1);
            plan.ops[..cut].iter().for_each(|op| sim.apply(op));
            let epochs = sim.epoch;
            let mut tables = sim.read();
            bring(&mut sim, &mut tables, planner.desired(), &Touched::all(), true);
            check_verdicts(&sim, planner.desired());
            sim.check_exact(planner.desired());
            let (before, after) = (first.verdicts(), sim.verdicts());
            let changed = before.iter().any(|(case, was)| after.get(case).is_some_and(|is| is != was));
            if changed {
                prop_assert!(sim.epoch > first.epoch);
            }
            if changed && plan.ops.contains(&Op::BumpEpoch) && !plan.ops[..cut].contains(&Op::BumpEpoch) && cut > 0 {
                prop_assert!(sim.epoch > epochs, "what was done before the end is told");
            }
            sim.now += QUARANTINE;
        }
    }

    #[test]
    fn where_room_is_short_less_is_allowed_and_never_more(
        history in histories(),
        rows in 1_u32..12,
        ranges in 0_u32..6,
        identities in 0_u32..6,
        blocks in 0_u32..5,
    ) {
        let (mut world, mut planner) = (World::new(), Planner::new());
        let mut sim = Sim::new(Limits { rows, ranges, identities, blocks });
        let mut tables = sim.read();
        for edits in history {
            edits.iter().for_each(|edit| edit.apply(&mut world));
            let touched = planner.update(world.input());
            let desired = planner.desired();
            let plan = bring(&mut sim, &mut tables, desired, &touched, false);
            repeat(&mut sim, &mut tables, desired, false, plan);
            sim.now += QUARANTINE;
            tables.expire(sim.now);
            let plan = bring(&mut sim, &mut tables, desired, &Touched::default(), false);
            let plan = repeat(&mut sim, &mut tables, desired, false, plan);
            prop_assert_eq!(tables.drift(&sim.kernel()), vec![]);
            let mut wide = Sim::new(ROOMY);
            let mut all = wide.read();
            bring(&mut wide, &mut all, desired, &Touched::all(), true);
            let (all, fits) = (wide.verdicts(), sim.verdicts());
            for (case, allowed) in &fits {
                prop_assert!(allowed <= &all[case], "{case:?} {:?}", plan.refused);
            }
            if plan.refused.is_empty() {
                prop_assert_eq!(fits, all);
            }
        }
    }
}
