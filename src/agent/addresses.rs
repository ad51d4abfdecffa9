//! The `addresses` task: which ranges this node gives addresses from.
//!
//! The configuration's ranges, or else the podCIDRs of this node's Node object. A range that is taken away
//! takes nothing from the pods that have addresses of it: they keep them until they go.

use super::state::State;
use super::tasks::Failure;
use crate::config::Config;
use crate::ipam::ledger::Ranges;
use crate::model::Model;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Follows configuration and model until cancelled. Aborting it is safe: the ledger takes a set of ranges as
/// a whole.
pub(super) async fn run(
    state: Arc<State>,
    mut settings: watch::Receiver<Arc<Config>>,
    cancel: CancellationToken,
) -> Result<(), Failure> {
    let mut snapshots = state.store.subscribe();
    let mut given = None;
    loop {
        let config = settings.borrow_and_update().ipam.clone();
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let wanted = (ranges(&config.pod_cidrs, &config.draining, &snapshot.model, &state.node), config.cool_down);
        if given.as_ref() != Some(&wanted) {
            let (ranges, cool_down) = wanted.clone();
            if ranges.active.is_empty() {
                let why = format!(
                    "neither ipam.pod_cidrs nor the Node object of {} gives this node a range",
                    state.node
                );
                state.readiness.wait_for("addresses", why);
            } else {
                tracing::info!(target: "netd::ipam", "{}", describe(&ranges));
            }
            let usable = !ranges.active.is_empty();
            state.cni.set_ranges(ranges, cool_down).await?;
            if usable {
                state.readiness.done("addresses");
            }
            given = Some(wanted);
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            changed = settings.changed() => if changed.is_err() { return Ok(()) },
            changed = snapshots.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

fn ranges(
    configured: &[ipnet::IpNet],
    draining: &[ipnet::IpNet],
    model: &Model,
    node: &str,
) -> Ranges {
    let active = if configured.is_empty() {
        model.nodes.get(node).map(|node| node.pod_cidrs.clone()).unwrap_or_default()
    } else {
        configured.to_vec()
    };
    let active = active.into_iter().filter(|range| !draining.contains(range)).collect();
    Ranges { active, draining: draining.to_vec() }
}

fn describe(ranges: &Ranges) -> String {
    let list = |ranges: &[ipnet::IpNet]| {
        ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let draining = match ranges.draining.as_slice() {
        [] => String::new(),
        some => format!("; draining {}", list(some)),
    };
    format!("addresses from {}{draining}", list(&ranges.active))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Node;

    #[test]
    fn the_configuration_comes_first_and_the_node_object_next() {
        let net = |text: &str| text.parse().unwrap();
        let mut model = Model::default();
        let node =
            Node { name: "n1".into(), pod_cidrs: vec![net("10.1.0.0/24"), net("fd00:1::/64")], ..Node::default() };
        model.nodes.insert("n1".into(), Arc::new(node));
        assert_eq!(ranges(&[], &[], &model, "n1").active, [net("10.1.0.0/24"), net("fd00:1::/64")]);
        assert_eq!(ranges(&[], &[], &model, "n2").active, []);
        assert_eq!(ranges(&[net("10.9.0.0/24")], &[], &model, "n1").active, [net("10.9.0.0/24")]);
        let drained = ranges(&[], &[net("10.1.0.0/24")], &model, "n1");
        assert_eq!((drained.active, drained.draining), (vec![net("fd00:1::/64")], vec![net("10.1.0.0/24")]));
    }
}
