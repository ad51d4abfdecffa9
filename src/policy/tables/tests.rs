use super::*;
use crate::policy::Planner;
use crate::policy::testing::{World, ip, name, pod};
use serde_json::{Value, json};

const QUARANTINE: Duration = Duration::from_secs(1);
const ROOMY: Limits = Limits { rows: 64, ranges: 64, identities: 16, blocks: 16 };

fn from_app(app: &str, port: u16) -> Value {
    json!({ "podSelector": { "matchLabels": { "app": "web" } }, "ingress": [{
        "from": [{ "podSelector": { "matchLabels": { "app": app } } }],
        "ports": [{ "port": port }],
    }] })
}

fn shop() -> World {
    let mut world = World::new();
    world.node_addresses.clear();
    world.namespace("shop", "").local(pod("shop/web", "app=web", &["10.0.0.1"])).remote(pod(
        "shop/db",
        "app=db",
        &["10.0.1.2"],
    ));
    world.policy("shop/p", &from_app("db", 80));
    world
}

struct Bench {
    world: World,
    planner: Planner,
    tables: Tables,
    now: Instant,
}

impl Bench {
    fn new(limits: Limits, world: World) -> Self {
        let now = Instant::now();
        let tables = Tables::read(limits, QUARANTINE, &Kernel::default(), now);
        Self { world, planner: Planner::new(), tables, now }
    }

    fn plan(&mut self) -> Plan {
        let touched = self.planner.update(self.world.input());
        let plan = self.tables.plan(self.planner.desired(), &touched, self.now);
        self.tables.applied(self.now);
        plan
    }

    fn again(&mut self) -> Plan {
        let plan = self.tables.plan(self.planner.desired(), &Touched::default(), self.now);
        self.tables.applied(self.now);
        plan
    }
}

/// Operations by kind, with how many of each follow each other.
fn kinds(ops: &[Op]) -> String {
    let kind = |op: &Op| match op {
        Op::SetRanges { .. } => "ranges",
        Op::SetRow { key, .. } if *key == UNDER_WAY => "begin",
        Op::RemoveRow { key } if *key == UNDER_WAY => "end",
        Op::SetRow { .. } => "row",
        Op::SetBlock { .. } => "block",
        Op::SetIdentity { .. } => "identity",
        Op::SetPod { .. } => "pod",
        Op::RemovePod { .. } => "-pod",
        Op::BumpEpoch => "epoch",
        Op::RemoveIdentity { .. } => "-identity",
        Op::RemoveBlock { .. } => "-block",
        Op::RemoveRow { .. } => "-row",
    };
    let runs: Vec<String> = ops
        .chunk_by(|a, b| kind(a) == kind(b))
        .map(|run| format!("{} {}", run.len(), kind(&run[0])))
        .collect();
    runs.join(", ")
}

fn texts(plan: &Plan) -> Vec<String> {
    plan.refused.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_new_is_written_from_the_bottom_up() {
    let mut bench = Bench::new(ROOMY, shop());
    // Until now an address was the world's: some verdict changes.
    assert_eq!(kinds(&bench.plan().ops), "1 begin, 1 ranges, 1 row, 2 identity, 1 pod, 1 epoch, 1 end");
    assert_eq!(bench.plan(), Plan::default());
    let usages = bench.tables.usages();
    assert_eq!((usages.rows.used, usages.ranges.used, usages.identities.used), (1, 1, 2));
}

#[test]
fn a_label_costs_one_row_and_says_so_only_where_it_matters() {
    let mut bench = Bench::new(ROOMY, shop());
    bench.plan();
    bench.world.label("shop/db", "app=cache");
    assert_eq!(kinds(&bench.plan().ops), "1 begin, 1 identity, 1 epoch, 1 end, 1 -row");
    bench.world.label("shop/db", "app=other");
    assert_eq!(kinds(&bench.plan().ops), "1 identity", "no set tells the two apart");
    bench.world.label("shop/db", "app=db");
    // The list is in quarantine; it is written a second time.
    assert_eq!(kinds(&bench.plan().ops), "1 begin, 1 ranges, 1 row, 1 identity, 1 epoch, 1 end");
    assert_eq!(bench.tables.usages().ranges.held, 1);
    assert_eq!(bench.tables.next_expiry(), Some(bench.now + QUARANTINE));
    assert!(!bench.tables.expire(bench.now + QUARANTINE), "nothing waits for it");
    assert_eq!(bench.tables.usages().ranges.held, 0);
}

#[test]
fn a_policy_that_changes_is_written_beside_and_then_flipped() {
    let mut bench = Bench::new(ROOMY, shop());
    bench.plan();
    bench.world.policy("shop/p", &from_app("db", 81));
    assert_eq!(kinds(&bench.plan().ops), "1 begin, 1 ranges, 1 row, 1 pod, 1 epoch, 1 end, 1 -row");
    bench.world.model.policies.remove(&name("shop/p"));
    let touched = kinds(&bench.plan().ops);
    assert_eq!(touched, "1 begin, 1 pod, 2 identity, 1 epoch, 1 end, 1 -row");
}

#[test]
fn pods_and_addresses_that_flip_at_once_meet_on_a_bridge() {
    let mut bench = Bench::new(ROOMY, shop());
    bench.plan();
    // Before, `db` may and the pod is `db`; now `cache` may and it is `cache`. Between: neither `db` nor `cache` twice.
    bench.world.label("shop/db", "app=cache").policy("shop/p", &from_app("cache", 80));
    let plan = bench.plan();
    assert_eq!(
        kinds(&plan.ops),
        "1 begin, 1 row, 2 row, 1 identity, 1 pod, 1 identity, 1 epoch, 1 end, 3 -row"
            .replace("1 row, 2 row", "3 row")
    );
}

#[test]
fn a_pod_that_comes_is_closed_until_its_rows_stand() {
    let mut bench = Bench::new(ROOMY, shop());
    bench.plan();
    bench.world.local(pod("shop/web2", "app=web", &["10.0.0.2"]));
    let plan = bench.plan();
    let last = plan.ops.iter().rposition(|op| matches!(op, Op::SetPod { endpoint: 2, .. })).unwrap();
    let rows = plan.ops.iter().rposition(|op| matches!(op, Op::SetRow { .. } | Op::SetIdentity { .. }));
    assert!(rows < Some(last), "{plan:?}");
    bench.world.locals.remove(&2);
    bench.world.model.pods.remove(&name("shop/web2"));
    assert!(matches!(
        bench.plan().ops[..],
        [.., Op::RemovePod { endpoint: 2 }, Op::RemoveIdentity { .. }] | [Op::RemovePod { endpoint: 2 }, ..]
    ));
}

#[test]
fn a_set_that_does_not_fit_closes_its_pods_until_there_is_room() {
    let mut world = shop();
    world.policy("shop/q", &json!({ "podSelector": { "matchLabels": { "app": "db" } }, "ingress": [{ "ports": [{ "port": 1 }] }] }));
    world.local(pod("shop/db", "app=db", &["10.0.0.2"]));
    let mut bench = Bench::new(Limits { rows: 2, ..ROOMY }, world);
    let plan = bench.plan();
    assert_eq!(plan.refused.len(), 1);
    assert!(!plan.again);
    let text = texts(&plan).join("\n");
    assert!(text.starts_with("1 pods are closed for ingress: NetworkPolicy shop/"), "{text}");
    assert!(text.ends_with("takes 1 more policy rows, there are 1 in all"), "{text}");
    let closed: Vec<u32> =
        [1, 2].into_iter().filter(|one| bench.tables.pod(*one).unwrap().ingress == set::CLOSED).collect();
    assert_eq!(closed.len(), 1);
    let open = 3 - closed[0];
    let policy = if open == 1 { "shop/p" } else { "shop/q" };
    bench.world.model.policies.remove(&name(policy));
    let plan = bench.plan();
    assert!(plan.again && plan.refused.len() == 1, "{plan:?}");
    let plan = bench.again();
    assert!(!plan.again && plan.refused.is_empty(), "{plan:?}");
    assert_ne!(bench.tables.pod(closed[0]).unwrap().ingress, set::CLOSED);
}

#[test]
fn ranges_come_back_after_their_quarantine() {
    let mut bench = Bench::new(Limits { ranges: 1, ..ROOMY }, shop());
    bench.plan();
    bench.world.policy("shop/p", &from_app("db", 81));
    let plan = bench.plan();
    assert_eq!(
        texts(&plan),
        [
            "1 pods are closed for ingress: NetworkPolicy shop/p takes 1 policy ranges in one piece, there are 1 in all"
        ]
    );
    assert!(plan.again, "a row went");
    assert!(!bench.again().again, "and the list is in quarantine");
    bench.now += QUARANTINE;
    assert!(bench.tables.expire(bench.now));
    assert!(bench.again().refused.is_empty());
}

#[test]
fn an_exception_that_does_not_fit_takes_its_block_with_it() {
    let mut world = shop();
    world.policy("shop/p", &json!({ "ingress": [{ "from": [{ "ipBlock": { "cidr": "10.1.0.0/16", "except": ["10.1.1.0/24", "10.1.2.0/24"] } }] }] }));
    let mut bench = Bench::new(Limits { blocks: 2, ..ROOMY }, world);
    let plan = bench.plan();
    let kept: Vec<u32> = plan
        .ops
        .iter()
        .filter_map(|op| match op {
            Op::SetBlock { block, .. } => Some(block.prefix),
            _ => None,
        })
        .collect();
    assert_eq!(kept, [120, 120], "not the block around them");
    assert_eq!(texts(&plan), ["policies do not allow 1 of their CIDR blocks: 2 are possible"]);
}

#[test]
fn addresses_that_do_not_fit_are_named_and_this_node_comes_first() {
    let mut world = shop();
    world.node_addresses.push(ip("192.168.0.1"));
    let mut bench = Bench::new(Limits { identities: 2, ..ROOMY }, world);
    assert_eq!(
        texts(&bench.plan()),
        ["policies do not know 1 pod addresses, 10.0.1.2 the first: 2 are possible"]
    );
    bench.world.locals.clear();
    assert!(bench.plan().refused.is_empty(), "room is taken in the plan that makes it");
}

#[test]
fn a_damaged_kernel_is_told_and_repaired() {
    let mut bench = Bench::new(ROOMY, shop());
    let first = bench.plan();
    let mut kernel = Kernel { ranges: vec![Default::default(); 64], ..Kernel::default() };
    for op in &first.ops {
        match op {
            Op::SetRanges { base, ranges } => {
                kernel.ranges[*base as usize..][..ranges.len()].copy_from_slice(ranges);
            }
            Op::SetRow { key, row } if *key != UNDER_WAY => kernel.rows.push((*key, *row)),
            Op::SetIdentity { addr, row } => kernel.identities.push((*addr, *row)),
            Op::SetPod { endpoint, sets } => drop(kernel.pods.insert(*endpoint, *sets)),
            _ => {}
        }
    }
    assert_eq!(bench.tables.drift(&kernel), []);
    let sound = kernel.clone();
    kernel.ranges[0].last += 1;
    kernel.identities[0].1.flags = 1;
    kernel.pods.insert(1, Sets::OPEN);
    kernel.pods.insert(9, Sets::OPEN);
    let key = kernel.rows[0].0;
    let stray = PolicyKey { set: key.set, identity: 5 };
    kernel.rows.push((stray, kernel.rows[0].1));
    let drift = bench.tables.drift(&kernel);
    assert_eq!(drift.len(), 5, "{drift:?}");
    assert!(drift.contains(&Drift::List(key)) && drift.contains(&Drift::Row(stray)));

    let mut tables = Tables::read(ROOMY, QUARANTINE, &kernel, bench.now);
    let plan = tables.plan(bench.planner.desired(), &Touched::all(), bench.now);
    assert_eq!(
        kinds(&plan.ops),
        "1 begin, 1 ranges, 1 row, 1 -pod, 1 identity, 1 pod, 1 -row, 1 epoch, 1 end"
    );
    assert!(
        Tables::read(ROOMY, QUARANTINE, &sound, bench.now)
            .plan(bench.planner.desired(), &Touched::all(), bench.now)
            .ops
            .is_empty()
    );
}

#[test]
fn an_epoch_that_a_dead_agent_owed_is_made_up_for() {
    let mut bench = Bench::new(ROOMY, shop());
    let first = bench.plan();
    let Some(Op::SetRow { key: UNDER_WAY, row }) = first.ops.first() else { panic!("{first:?}") };
    let kernel = Kernel { rows: vec![(UNDER_WAY, *row)], ..Kernel::default() };
    let mut tables = Tables::read(ROOMY, QUARANTINE, &kernel, bench.now);
    let plan = tables.plan(&Desired::default(), &Touched::all(), bench.now);
    assert_eq!(kinds(&plan.ops), "1 epoch, 1 end");
}

/// A pod that gets other policies while one of its peers becomes this node is never denied what both states allow.
#[test]
fn an_address_that_becomes_this_nodes_does_so_before_pods_move() {
    let egress =
        |port: u16| json!({ "policyTypes": ["Egress"], "egress": [{ "ports": [{ "port": port }] }] });
    let mut world = shop();
    world.policy("shop/q", &egress(80));
    let mut bench = Bench::new(ROOMY, world);
    bench.plan();
    bench.world.policy("shop/q", &egress(81)).node_addresses.push(ip("10.0.1.2"));
    let plan = bench.plan();
    let at = |found: &dyn Fn(&Op) -> bool| plan.ops.iter().position(found).unwrap();
    let pod = at(&|op| matches!(op, Op::SetPod { .. }));
    let node = at(&|op| matches!(op, Op::SetIdentity { row, .. } if row.flags != 0));
    assert!(node < pod, "{plan:#?}");
}
