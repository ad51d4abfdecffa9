//! What is kept from one update to the next must not show: the tables are those of a planner that starts anew.

use super::*;
use crate::model::{ContainerPort, Pod, Protocol};
use crate::policy::testing::{TCP, World, allowed, ip, name, pod};
use crate::policy::{Sets, Touched};
use netd_bpf::policy::{PolicyKey, identity};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Labels, addresses, kind, ports.
type SomePod = (Vec<(usize, usize)>, Vec<usize>, usize, usize);
/// Whose it is, addresses.
type SomeLocal = (Option<(usize, usize)>, Vec<usize>);

/// Something that happens to a cluster.
#[derive(Clone, Debug)]
enum Edit {
    Namespace(usize, Option<String>),
    Pod(usize, usize, Option<SomePod>),
    Local(u32, Option<SomeLocal>),
    Policy(usize, usize, Option<Value>),
    NodeAddresses(Vec<usize>),
}

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 4] = ["a", "b", "c", "d"];
const KEYS: [&str; 3] = ["app", "tier", "odd"];
const VALUES: [&str; 2] = ["1", "2"];
const PORTS: [&str; 2] = ["http", "dns"];
const ADDRESSES: [&str; 8] =
    ["10.0.0.1", "10.0.0.2", "10.0.0.130", "10.0.1.1", "fd00::1", "fd00::2", "fd01::1", "192.168.0.1"];
const BLOCKS: [&str; 7] =
    ["10.0.0.0/16", "10.0.0.0/24", "10.0.0.128/25", "10.0.0.1/32", "::/0", "fd00::/16", "0.0.0.0/0"];

fn some_selector() -> impl Strategy<Value = Value> {
    let pair = (0..KEYS.len(), 0..VALUES.len());
    let labels = pair.prop_map(|(key, value)| json!({ "matchLabels": { KEYS[key]: VALUES[value] } }));
    let expression = (0..KEYS.len(), 0..4_usize, 0..VALUES.len()).prop_map(|(key, operator, value)| {
        let operator = ["In", "NotIn", "Exists", "DoesNotExist"][operator];
        let values = if operator.ends_with("In") { json!([VALUES[value]]) } else { json!(null) };
        json!({ "matchExpressions": [{ "key": KEYS[key], "operator": operator, "values": values }] })
    });
    prop_oneof![1 => Just(json!({})), 3 => labels, 2 => expression]
}

fn some_peer() -> impl Strategy<Value = Value> {
    let block = (0..BLOCKS.len(), proptest::option::of(0..BLOCKS.len())).prop_map(|(outer, inner)| {
        let cidr: ipnet::IpNet = BLOCKS[outer].parse().unwrap();
        let except = inner.map(|inner| BLOCKS[inner]).filter(|inner| {
            let inner: ipnet::IpNet = inner.parse().unwrap();
            cidr.contains(&inner) && inner != cidr
        });
        json!({ "ipBlock": { "cidr": BLOCKS[outer], "except": except.into_iter().collect::<Vec<_>>() } })
    });
    prop_oneof![
        some_selector().prop_map(|pods| json!({ "podSelector": pods })),
        some_selector().prop_map(|namespaces| json!({ "namespaceSelector": namespaces })),
        (some_selector(), some_selector())
            .prop_map(|(pods, namespaces)| json!({ "podSelector": pods, "namespaceSelector": namespaces })),
        block,
    ]
}

fn some_port() -> impl Strategy<Value = Value> {
    let protocol = prop_oneof![Just("TCP"), Just("UDP"), Just("SCTP")];
    (protocol, 0..4_usize, 78..83_i32, 0..3_i32).prop_map(|(protocol, kind, port, more)| match kind {
        0 => json!({ "protocol": protocol }),
        1 => json!({ "protocol": protocol, "port": PORTS[port.unsigned_abs() as usize % 2] }),
        2 => json!({ "protocol": protocol, "port": port }),
        _ => json!({ "protocol": protocol, "port": port, "endPort": port + more }),
    })
}

fn some_spec() -> impl Strategy<Value = Value> {
    let rule = |peers: &'static str| {
        let lists =
            (proptest::collection::vec(some_peer(), 0..3), proptest::collection::vec(some_port(), 0..3));
        lists.prop_map(move |(them, ports)| json!({ peers: them, "ports": ports }))
    };
    let types = prop_oneof![
        Just(json!(null)),
        Just(json!(["Ingress"])),
        Just(json!(["Egress"])),
        Just(json!(["Ingress", "Egress"]))
    ];
    let rules = (proptest::collection::vec(rule("from"), 0..3), proptest::collection::vec(rule("to"), 0..3));
    (some_selector(), types, rules).prop_map(|(pods, types, (ingress, egress))| {
        json!({ "podSelector": pods, "policyTypes": types, "ingress": ingress, "egress": egress })
    })
}

fn some_edit() -> impl Strategy<Value = Edit> {
    let some_labels = || proptest::collection::vec((0..KEYS.len(), 0..VALUES.len()), 0..3);
    let some_ips = || proptest::collection::vec(0..ADDRESSES.len() - 1, 0..3);
    let which = || (0..NAMESPACES.len(), 0..PODS.len());
    let some_pod = (some_labels(), some_ips(), 0..8_usize, 0..6_usize);
    let local =
        (proptest::option::weighted(0.9, which()), proptest::collection::vec(0..ADDRESSES.len() - 1, 1..3));
    prop_oneof![
        1 => (0..NAMESPACES.len(), proptest::option::weighted(0.8, "(app=[12])?( tier=[12])?"))
            .prop_map(|(namespace, labels)| Edit::Namespace(namespace, labels)),
        4 => (which(), proptest::option::weighted(0.85, some_pod)).prop_map(|((a, b), pod)| Edit::Pod(a, b, pod)),
        3 => (1..5_u32, proptest::option::weighted(0.8, local)).prop_map(|(endpoint, local)| Edit::Local(endpoint, local)),
        4 => (which(), proptest::option::weighted(0.8, some_spec())).prop_map(|((a, b), spec)| Edit::Policy(a, b, spec)),
        1 => some_ips().prop_map(Edit::NodeAddresses),
    ]
}

fn apply(world: &mut World, edit: &Edit) {
    let full = |namespace: usize, of: usize| format!("{}/{}", NAMESPACES[namespace], PODS[of]);
    let ips = |list: &[usize]| -> Vec<&str> { list.iter().map(|at| ADDRESSES[*at]).collect() };
    match edit {
        Edit::Namespace(at, Some(labels)) => drop(world.namespace(NAMESPACES[*at], labels)),
        Edit::Namespace(at, None) => drop(world.model.namespaces.remove(NAMESPACES[*at])),
        Edit::Pod(namespace, at, Some((labels, list, kind, ports))) => {
            let labels: Vec<String> =
                labels.iter().map(|(key, value)| format!("{}={}", KEYS[*key], VALUES[*value])).collect();
            let mut pod: Pod = pod(&full(*namespace, *at), &labels.join(" "), &ips(list));
            match kind {
                0 => pod.host_network = true,
                1 => pod.finished = true,
                2 => pod.terminating = true,
                3 | 4 => pod.node = Some("here".into()),
                _ => {}
            }
            let protocol = if ports % 2 == 0 { Protocol::Tcp } else { Protocol::Udp };
            for (name, number) in PORTS.iter().zip(79..).take(ports / 2) {
                pod.ports.push(ContainerPort { name: (*name).into(), port: number, protocol });
            }
            world.remote(pod);
        }
        Edit::Pod(namespace, at, None) => drop(world.model.pods.remove(&name(&full(*namespace, *at)))),
        Edit::Local(endpoint, Some((who, list))) => {
            let pod = who.map(|(namespace, at)| name(&full(namespace, at)));
            let addresses = ips(list).into_iter().map(ip).collect();
            world.locals.insert(*endpoint, LocalPod { endpoint: *endpoint, pod, uid: None, addresses });
        }
        Edit::Local(endpoint, None) => drop(world.locals.remove(endpoint)),
        Edit::Policy(namespace, at, Some(spec)) => drop(world.policy(&full(*namespace, *at), spec)),
        Edit::Policy(namespace, at, None) => drop(world.model.policies.remove(&name(&full(*namespace, *at)))),
        Edit::NodeAddresses(list) => world.node_addresses = ips(list).into_iter().map(ip).collect(),
    }
}

/// Random clusters and what happens to them, a few things at a time.
pub(in crate::policy) fn histories() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let step = some_edit().prop_map(Step);
    (
        proptest::collection::vec(step, 10..30),
        proptest::collection::vec(proptest::collection::vec(some_edit().prop_map(Step), 1..4), 0..12),
    )
        .prop_map(|(first, mut rest)| {
            rest.insert(0, first);
            rest
        })
}

/// One of the things that happen.
#[derive(Clone, Debug)]
pub(in crate::policy) struct Step(Edit);

impl Step {
    pub(in crate::policy) fn apply(&self, world: &mut World) {
        apply(world, &self.0);
    }
}

/// Everything that differs is told.
fn check_touched(before: &Desired, after: &Desired, touched: &Touched) {
    let pods = before.pods.keys().chain(after.pods.keys());
    for endpoint in pods.filter(|endpoint| before.pods.get(endpoint) != after.pods.get(endpoint)) {
        assert!(touched.pods.contains(endpoint), "{endpoint}");
    }
    let addresses = before.identities.keys().chain(after.identities.keys());
    for address in addresses.filter(|address| before.identities.get(address) != after.identities.get(address))
    {
        assert!(touched.identities.contains(address), "{address}");
    }
    let blocks = before.blocks.keys().chain(after.blocks.keys());
    for block in blocks.filter(|block| before.blocks.get(block) != after.blocks.get(block)) {
        assert!(touched.blocks.contains(block), "{block:?}");
    }
    let rows = before.rows.iter().chain(after.rows.iter()).map(|(key, _)| key);
    for key in rows.filter(|key| before.rows.get(key) != after.rows.get(key)) {
        assert!(touched.rows.contains(&key) || touched.sets.contains(&key.set), "{key:?}");
    }
}

/// Nothing is left of what is gone.
fn check_empty(planner: &Planner) {
    assert_eq!(*planner.desired(), Desired::default());
    let Planner { addresses, policies, peers, pods, classes, sets, dirty, touched, .. } = planner;
    assert!(addresses.is_empty() && touched.is_empty(), "{addresses:?} {touched:?}");
    let left = [policies.left(), peers.left(), pods.left(), classes.left(), sets.left(), dirty.left()];
    assert_eq!(left, [(); 6].map(|()| Vec::<&str>::new()), "{planner:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn an_update_gives_what_a_new_planner_gives(history in histories()) {
        let mut world = World::new();
        let mut planner = Planner::new();
        for edits in history {
            edits.into_iter().for_each(|edit| edit.apply(&mut world));
            let before = planner.desired().clone();
            let touched = planner.update(world.input());
            let fresh = world.planned();
            prop_assert_eq!(planner.desired(), fresh.desired());
            if !touched.all {
                check_touched(&before, planner.desired(), &touched);
            }
            prop_assert!(planner.update(world.input()).is_empty(), "nothing changed");
        }
        let empty = World { node_addresses: Vec::new(), ..World::new() };
        planner.update(empty.input());
        check_empty(&planner);
    }
}

fn shop() -> World {
    let mut world = World::new();
    world.namespace("shop", "").local(pod("shop/web", "app=web", &["10.0.0.1"])).remote(pod(
        "shop/db",
        "app=db",
        &["10.0.1.2"],
    ));
    world.policy("shop/p", &json!({ "podSelector": { "matchLabels": { "app": "web" } }, "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "db" } } }] }] }));
    world
}

#[test]
fn only_labels_that_policies_ask_for_make_identities() {
    let mut world = shop();
    let mut planner = world.planned();
    world.label("shop/db", "app=db version=2");
    assert!(planner.update(world.input()).is_empty());
    world.label("shop/db", "app=cache version=2");
    let touched = planner.update(world.input());
    assert_eq!(touched.identities, [ip("10.0.1.2").into()].into());
    assert!(touched.pods.is_empty() && touched.sets.is_empty(), "{touched:?}");
    assert_eq!(allowed(planner.desired(), &[("10.0.1.2", "10.0.0.1", TCP, 80)]), "-");
}

#[test]
fn a_policy_that_says_the_same_in_other_words_changes_nothing() {
    let mut world = shop();
    let mut planner = world.planned();
    let same = json!({ "podSelector": { "matchLabels": { "app": "web" } }, "policyTypes": ["Ingress"], "ingress": [{ "ports": [], "from": [{
        "podSelector": { "matchExpressions": [{ "key": "app", "operator": "In", "values": ["db"] }] },
    }] }] });
    world.policy("shop/p", &same);
    assert!(planner.update(world.input()).is_empty());
}

#[test]
fn a_set_is_shared_and_has_another_number_when_its_policies_say_something_else() {
    let mut world = shop();
    world.local(pod("shop/web2", "app=web other=1", &["10.0.0.2"]));
    let mut planner = world.planned();
    let before = planner.desired().pods.clone();
    assert_eq!((before[&1], before[&1].egress), (before[&2], Sets::OPEN.egress));
    let name = planner.desired().sets[&before[&1].ingress].clone();
    assert_eq!(name.policies, [self::name("shop/p")]);
    world.policy("shop/p", &json!({ "podSelector": { "matchLabels": { "app": "web" } } }));
    let touched = planner.update(world.input());
    assert_eq!(touched.pods, [1, 2].into());
    assert_ne!(planner.desired().pods[&1], before[&1]);
    assert!(!planner.desired().sets.contains_key(&before[&1].ingress));
}

#[test]
fn rules_for_everybody_are_one_row_and_part_of_every_other() {
    let mut world = shop();
    world.policy("shop/q", &json!({ "ingress": [{ "ports": [{ "port": 53 }] }] }));
    let planner = world.planned();
    let desired = planner.desired();
    let set = desired.pods[&1].ingress;
    let any = desired.rows.get(&PolicyKey { set, identity: identity::ANY }).unwrap();
    assert_eq!((any.ranges.len(), any.otherwise.action), (1, 0));
    let db = desired.identities[&ip("10.0.1.2").into()].number;
    let row = desired.rows.get(&PolicyKey { set, identity: db }).unwrap();
    assert!(row.allows_all());
    assert_eq!(desired.rows.len(), 2);

    // Where all is allowed to everybody, nobody needs a row.
    world.policy("shop/r", &json!({ "ingress": [{}] }));
    assert_eq!(world.desired().rows.len(), 1);
}

#[test]
fn another_node_starts_anew() {
    let world = shop();
    let mut planner = world.planned();
    assert!(!planner.update(world.input()).all);
    assert!(planner.update(Input { node: "elsewhere", ..world.input() }).all);
}

/// More than one could look through for each of them.
#[test]
fn thousands_of_exceptions_end_where_they_say() {
    const EXCEPTIONS: u32 = 20_000;
    let mut world = World::new();
    world.namespace("shop", "").local(pod("shop/web", "app=web", &["192.0.2.7"]));
    // The first half of each 256 addresses; in one of them, as often, its first address once more.
    let first = |at: u32| std::net::Ipv4Addr::from_bits((10 << 24) + (at << 8));
    let mut except: Vec<String> = (0..EXCEPTIONS).rev().map(|at| format!("{}/25", first(at))).collect();
    except.extend((0..EXCEPTIONS).step_by(100).map(|at| format!("{}/32", first(at))));
    let block = json!({ "cidr": "10.0.0.0/8", "except": except });
    world.policy("shop/p", &json!({ "ingress": [{ "from": [{ "ipBlock": block }] }] }));
    let mut planner = world.planned();
    let told = |from: u32| {
        let from = std::net::Ipv4Addr::from_bits(from).to_string();
        allowed(planner.desired(), &[(&from, "192.0.2.7", TCP, 80)])
    };
    for at in [0, 1, 99, 100, 101, 9_999, EXCEPTIONS - 1] {
        let first = first(at).to_bits();
        let around = [first.wrapping_sub(1), first, first + 127, first + 128, first + 255].map(told).concat();
        assert_eq!(around, if at == 0 { "---++" } else { "+--++" }, "{at}");
    }
    assert_eq!([10 << 24 | EXCEPTIONS << 8, 0x0aff_ffff, 0x0b00_0000].map(told).concat(), "++-");
    assert_eq!(
        planner.desired().blocks.len(),
        1 + EXCEPTIONS as usize,
        "one within another says nothing more"
    );
    let empty = World { node_addresses: Vec::new(), ..World::new() };
    planner.update(empty.input());
    check_empty(&planner);
}

/// What is asked of a namespace, and what it says, may change at once.
#[test]
fn a_label_that_goes_with_the_last_policy_that_asks_for_it_leaves_the_identity() {
    let mut world = shop();
    world.namespace("shop", "env=prod");
    let spec =
        json!({ "ingress": [{ "from": [{ "namespaceSelector": { "matchLabels": { "env": "prod" } } }] }] });
    world.policy("shop/q", &spec);
    let mut planner = world.planned();
    world.namespace("shop", "");
    world.model.policies.remove(&name("shop/q"));
    planner.update(world.input());
    assert_eq!(planner.desired(), &world.desired());
}
