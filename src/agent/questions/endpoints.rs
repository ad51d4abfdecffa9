//! The answer to `netd endpoints`: the ledger's rows beside the datapath's.

use super::ask::{Refusal, pick_pod};
use crate::agent::drops::{reason_name, stage_name};
use crate::agent::state::State;
use crate::answer::endpoints::{Drops, Endpoint, Endpoints};
use crate::datapath::{self, PodRows};
use crate::ipam::ledger::{Clock, Entry, Time};
use netd_bpf::pod::Pod;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// All of them, or those of one pod.
///
/// # Errors
/// There is no such pod, or the kernel cannot be read.
pub(in crate::agent) fn endpoints(state: &State, asked: Option<&str>) -> Result<Endpoints, Refusal> {
    let ledger = state.cni.state();
    let wanted = asked.map(|asked| {
        let names = ledger.entries().filter_map(|entry| entry.pod.as_ref());
        let nameless = ledger.entries().filter(|entry| entry.pod.is_none());
        let containers = nameless.map(|entry| entry.attachment.container_id.as_str());
        pick_pod("pod on this node", asked, names, containers)
    });
    let wanted: Option<String> = wanted.transpose()?;
    let rows = Rows::of(&state.datapath.pod_rows().map_err(|error| Refusal::failed(&error))?);
    let mut drops = drops(state).map_err(|error| Refusal::failed(&error))?;
    let now = Clock::now().time;
    let mut endpoints = Vec::new();
    for entry in ledger.entries() {
        if wanted.as_ref().is_some_and(|wanted| entry.called() != *wanted) {
            continue;
        }
        let share = state.datapath.share(entry.endpoint).map_err(|error| Refusal::failed(&error))?;
        endpoints.push(Endpoint {
            flows: share.unwrap_or_default(),
            flows_limit: state.datapath.config().flows_per_pod.into(),
            drops: drops.remove(&entry.endpoint).unwrap_or_default(),
            ..describe(entry, &rows, now)
        });
    }
    endpoints.sort_by(|a, b| {
        (&a.pod, &a.container, &a.pod_interface).cmp(&(&b.pod, &b.container, &b.pod_interface))
    });
    Ok(Endpoints { node: state.node.clone(), endpoints })
}

/// The datapath's rows by endpoint.
struct Rows {
    by_ifindex: HashMap<u32, Pod>,
    /// Addresses under which there is a row.
    by_addr: HashMap<u32, Vec<IpAddr>>,
    /// A row of either table, for what it says of the pod.
    any: HashMap<u32, Pod>,
}

impl Rows {
    fn of(rows: &PodRows) -> Self {
        // A row under another's key serves nobody.
        let own = |key: u32, pod: &Pod| (key == pod.ifindex).then_some((pod.endpoint, *pod));
        let by_ifindex: HashMap<u32, Pod> =
            rows.by_ifindex.iter().filter_map(|(key, pod)| own(*key, pod)).collect();
        let mut by_addr: HashMap<u32, Vec<IpAddr>> = HashMap::new();
        for (addr, pod) in &rows.by_addr {
            by_addr.entry(pod.endpoint).or_default().push(IpAddr::from(*addr));
        }
        let mut any: HashMap<u32, Pod> = rows.by_addr.values().map(|pod| (pod.endpoint, *pod)).collect();
        any.extend(&by_ifindex);
        Self { by_ifindex, by_addr, any }
    }

    fn problem(&self, entry: &Entry) -> Option<String> {
        let Some(row) = self.any.get(&entry.endpoint) else {
            return Some("the datapath does not know it".to_owned());
        };
        let listed = |list: &[IpAddr]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let set = [row.v4, row.v6].into_iter().filter(|addr| !addr.is_unspecified());
        let has: Vec<IpAddr> = set.map(IpAddr::from).collect();
        if has.len() != entry.addresses.len() || !has.iter().all(|ip| entry.addresses.contains(ip)) {
            return Some(format!("the datapath has other addresses for it: {}", listed(&has)));
        }
        if !self.by_ifindex.contains_key(&entry.endpoint) {
            return Some("the datapath does not know its interface: what it sends is dropped".to_owned());
        }
        let known = self.by_addr.get(&entry.endpoint).map(Vec::as_slice).unwrap_or_default();
        let unknown: Vec<IpAddr> = has.into_iter().filter(|ip| !known.contains(ip)).collect();
        (!unknown.is_empty())
            .then(|| format!("the datapath does not deliver to {}: no row by address", listed(&unknown)))
    }
}

/// Without what the datapath counts.
fn describe(entry: &Entry, rows: &Rows, now: Time) -> Endpoint {
    let problem = rows.problem(entry);
    Endpoint {
        pod: entry.called(),
        container: entry.attachment.container_id.clone(),
        pod_interface: entry.attachment.ifname.clone(),
        interface: entry.host_name.clone(),
        ifindex: rows.any.get(&entry.endpoint).map(|row| row.ifindex),
        endpoint: entry.endpoint,
        addresses: entry.addresses.clone(),
        since: entry.allocated_at.to_string(),
        age_seconds: now.since(entry.allocated_at).unwrap_or_default().as_secs(),
        ok: problem.is_none(),
        // The agent compares and mends then, as it does every five minutes.
        next: problem.as_ref().map(|_| format!("kill -HUP {}", std::process::id())),
        problem,
        flows: 0,
        flows_limit: 0,
        drops: Vec::new(),
    }
}

/// By endpoint, the most frequent first.
fn drops(state: &State) -> Result<HashMap<u32, Vec<Drops>>, datapath::Error> {
    let mut sums: BTreeMap<(u32, u8, u8), u64> = BTreeMap::new();
    for (key, count) in state.datapath.drop_counts()? {
        *sums.entry((key.endpoint, key.reason, key.stage)).or_default() += count.packets;
    }
    let mut drops: HashMap<u32, Vec<Drops>> = HashMap::new();
    for ((endpoint, reason, stage), packets) in sums {
        let (reason, stage) = (reason_name(reason).0.to_owned(), stage_name(stage).to_owned());
        drops.entry(endpoint).or_default().push(Drops { reason, stage, packets });
    }
    for list in drops.values_mut() {
        list.sort_by_key(|drops| std::cmp::Reverse(drops.packets));
    }
    Ok(drops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::types::Attachment;
    use crate::model::ObjectName;

    fn entry() -> Entry {
        Entry {
            attachment: Attachment { container_id: "c1".to_owned(), ifname: "eth0".to_owned() },
            network: "netd".to_owned(),
            pod: Some(ObjectName::new("shop", "web-0")),
            pod_uid: None,
            addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            netns: None,
            host_name: "nd1".to_owned(),
            allocated_at: Clock::now().time,
            endpoint: 7,
        }
    }

    #[test]
    fn the_ledger_and_the_datapath_are_compared() {
        let addr = |text: &str| text.parse::<IpAddr>().unwrap().into();
        let row =
            Pod { v4: addr("10.0.0.2"), v6: addr("fd00::2"), ifindex: 12, endpoint: 7, ..Pod::default() };
        let now = Clock::now().time;
        let rows = |by_ifindex: &[Pod], by_addr: &[(&str, Pod)]| {
            Rows::of(&PodRows {
                by_ifindex: by_ifindex.iter().map(|pod| (pod.ifindex, *pod)).collect(),
                by_addr: by_addr.iter().map(|(ip, pod)| (addr(ip), *pod)).collect(),
            })
        };
        let both = |row| [("10.0.0.2", row), ("fd00::2", row)];
        let told = describe(&entry(), &rows(&[row], &both(row)), now);
        assert_eq!((told.ok, told.ifindex, told.pod.as_str()), (true, Some(12), "shop/web-0"));
        let nameless = describe(&Entry { pod: None, ..entry() }, &rows(&[row], &both(row)), now);
        assert_eq!((nameless.pod.as_str(), nameless.container.as_str()), ("c1", "c1"));
        let other = Pod { v6: addr("fd00::3"), ..row };
        let elsewhere = Pod { endpoint: 8, ..row };
        for (rows, problem) in [
            (rows(&[], &[]), "the datapath does not know it"),
            (
                rows(&[other], &[("10.0.0.2", other), ("fd00::3", other)]),
                "the datapath has other addresses for it: 10.0.0.2, fd00::3",
            ),
            (rows(&[], &both(row)), "the datapath does not know its interface: what it sends is dropped"),
            (
                rows(&[elsewhere], &both(row)),
                "the datapath does not know its interface: what it sends is dropped",
            ),
            (rows(&[row], &[]), "the datapath does not deliver to 10.0.0.2, fd00::2: no row by address"),
            (rows(&[row], &both(row)[..1]), "the datapath does not deliver to fd00::2: no row by address"),
            (
                rows(&[row], &[("10.0.0.2", elsewhere), ("fd00::2", row)]),
                "the datapath does not deliver to 10.0.0.2: no row by address",
            ),
        ] {
            let told = describe(&entry(), &rows, now);
            assert_eq!((told.ok, told.problem.as_deref()), (false, Some(problem)));
        }
    }
}
