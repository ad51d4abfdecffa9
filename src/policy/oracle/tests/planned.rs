//! The planner and its own evaluation of what it planned.

use super::{CLUSTERS, Judged, PACKETS, Packet, Subject, Told, case, measure, runner, seed};
use crate::model::Model;
use crate::policy::eval::{self, Side};
use crate::policy::oracle::cluster::{Cluster, Local, NODE_ADDRESSES, NODES, ip};
use crate::policy::{Direction, Input, LocalPod, Planner, Touched};
use netd_bpf::policy::{action, tier};
use proptest::test_runner::TestCaseError;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// This node's addresses.
pub(crate) fn node_addresses() -> [IpAddr; 2] {
    NODE_ADDRESSES[0].map(ip)
}

/// Brings a planner to a cluster, with these of its pods on this node.
pub(crate) fn update(planner: &mut Planner, model: &Model, locals: &[Local]) -> Touched {
    let local = |local: &Local| LocalPod {
        endpoint: local.endpoint,
        pod: Some(local.pod.clone()),
        uid: None,
        addresses: local.addresses.clone(),
    };
    let locals: BTreeMap<u32, LocalPod> =
        locals.iter().map(local).map(|local| (local.endpoint, local)).collect();
    let node_addresses = node_addresses();
    let touched =
        planner.update(Input { model, locals: &locals, node: NODES[0], node_addresses: &node_addresses });
    assert!(planner.desired().problems.is_empty(), "{:?}", planner.desired().problems);
    touched
}

/// What a rule's number stands for; 0 is none.
pub(crate) fn rule(planner: &Planner, number: u32, direction: Direction) -> Told {
    if number == 0 {
        return Told::Open;
    }
    let rules = &planner.desired().rules;
    let name = rules.get(&number).unwrap_or_else(|| panic!("nobody knows rule {number}"));
    assert_eq!(name.direction, direction, "{name}");
    Told::Allowed(name.policy.clone(), name.index)
}

struct Planned(Planner);

impl Planned {
    fn told(&self, side: Side, direction: Direction) -> Option<Told> {
        match side {
            Side::Elsewhere => None,
            Side::Itself | Side::Node | Side::Open => Some(Told::Open),
            Side::Closed => Some(Told::Denied),
            Side::Isolated { decision, .. } if decision.action == action::ALLOW => {
                assert_eq!(decision.tier, tier::NAMESPACE);
                assert_ne!(decision.rule, 0, "a rule allowed it");
                Some(rule(&self.0, decision.rule, direction))
            }
            Side::Isolated { decision, .. } => {
                assert_eq!((decision.action, decision.rule), (action::NONE, 0), "no rule denies");
                Some(Told::Denied)
            }
        }
    }
}

impl Subject for Planned {
    fn change_to(&mut self, cluster: &Cluster) {
        update(&mut self.0, &cluster.model, &cluster.locals);
    }

    fn judge(&mut self, _: &Cluster, packet: &Packet) -> Result<Option<Judged>, TestCaseError> {
        let from = packet.from.address();
        let verdict = eval::judge(
            self.0.desired(),
            &eval::Packet {
                from,
                to: packet.to.address(),
                protocol: packet.protocol,
                port: packet.port,
                from_node: node_addresses().contains(&from),
            },
        );
        Ok(Some(Judged {
            egress: self.told(verdict.egress, Direction::Egress),
            ingress: self.told(verdict.ingress, Direction::Ingress),
        }))
    }
}

#[test]
fn the_planner_says_what_the_api_says() {
    let (tally, packets) = measure(CLUSTERS, PACKETS, || Planned(Planner::new()));
    assert!(packets >= 100_000, "{packets}");
    tally.check();
}

#[test]
fn by_what_differs_it_comes_to_the_same_as_from_nothing() {
    let run = runner(seed(), CLUSTERS).run(&case(1), |case| {
        let (mut on, mut anew) = (Planner::new(), Planner::new());
        update(&mut on, &case.before.model, &case.before.locals);
        update(&mut on, &case.after.model, &case.after.locals);
        update(&mut anew, &case.after.model, &case.after.locals);
        if on.desired() != anew.desired() {
            let message = format!("went on to {:#?}, began with {:#?}", on.desired(), anew.desired());
            return Err(TestCaseError::fail(message));
        }
        Ok(())
    });
    if let Err(error) = run {
        panic!("{error}");
    }
}
