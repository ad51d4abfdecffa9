//! The files in force and the agents' reports into one model. Pure.
//!
//! A folder has no kubelet and no scheduler, so some of a pod's state is put together here:
//! - Addresses are those that the pod's agent reported; without a report, those in the pod's own `status`; a
//!   pod with `hostNetwork` has the first InternalIP per family of its Node.
//! - The node is the reporting one. If `spec.nodeName` names another, the report is of an earlier life of the
//!   pod, or somebody attached it where it does not belong: it is told and ignored.
//! - A pod is ready once it has an address, unless its `status.conditions` say otherwise: that is how a user
//!   takes a pod out of service.

use super::document::{Entry, Object};
use super::files::Content;
use super::status::PodStatus;
use crate::model::report::{Problem, Severity};
use crate::model::{Family, Model, Node, ObjectName, Objects, Pod};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A report and the file it is in.
pub(super) type Reports<'r> = BTreeMap<ObjectName, (&'r Path, &'r PodStatus)>;

/// Puts the model together; the problems are reports that contradict their Pod. A report of a pod that the
/// folder has no Pod for is no problem: on a bare machine none has. Of the `former` model all that is equal is kept.
pub(super) fn assemble<'e>(
    former: &Model,
    entries: impl Iterator<Item = &'e Entry>,
    mut reports: Reports<'_>,
) -> (Model, Vec<Problem>) {
    let mut model = Model::default();
    let mut problems = Vec::new();
    let mut pods: Vec<(&Arc<Pod>, Option<bool>)> = Vec::new();
    for entry in entries {
        if let Object::Pod(pod, ready) = &entry.object {
            pods.push((pod, *ready));
        }
        insert(&mut model, former, &entry.object);
    }
    for (pod, ready) in pods {
        let report = reports.remove(&pod.name).and_then(|(path, report)| {
            usable(pod, report)
                .map_err(|message| problems.push(problem(path, Some(&pod.name), message)))
                .ok()
                .map(|()| report)
        });
        let pod = complete(pod, ready, report, &model.nodes);
        put(&mut model.pods, &former.pods, pod.name.clone(), &pod);
    }
    keep_all(&mut model, former);
    (model, problems)
}

/// The model with some files' objects in the place of others; none if that is not all: what becomes of a Pod depends
/// on its Node, too, and one whose report contradicts it is a problem. `report` gives a pod's report.
pub(super) fn patch<'r>(
    former: &Model,
    replaced: &[(Content, Content)],
    report: impl Fn(&ObjectName) -> Option<&'r PodStatus>,
) -> Option<Model> {
    let mut model = former.clone();
    for entry in replaced.iter().flat_map(|(old, _)| old.iter()) {
        match &entry.object {
            Object::Node(_) => return None,
            Object::Pod(pod, _) => {
                if report(&pod.name).is_some_and(|report| usable(pod, report).is_err()) {
                    return None;
                }
                model.pods.remove(&pod.name);
            }
            Object::Namespace(namespace) => drop(model.namespaces.remove(&namespace.name)),
            Object::Service(service) => drop(model.services.remove(&service.name)),
            Object::EndpointSlice(slice) => drop(model.slices.remove(&slice.key())),
            Object::NetworkPolicy(policy) => drop(model.policies.remove(&policy.name)),
        }
    }
    for entry in replaced.iter().flat_map(|(_, new)| new.iter()) {
        match &entry.object {
            Object::Node(_) => return None,
            Object::Pod(pod, ready) => {
                let report = report(&pod.name);
                if report.is_some_and(|report| usable(pod, report).is_err()) {
                    return None;
                }
                let pod = complete(pod, *ready, report, &model.nodes);
                put(&mut model.pods, &former.pods, pod.name.clone(), &pod);
            }
            object => insert(&mut model, former, object),
        }
    }
    keep_all(&mut model, former);
    Some(model)
}

/// Puts an object into the model; a Pod not yet.
fn insert(model: &mut Model, former: &Model, object: &Object) {
    match object {
        Object::Node(node) => put(&mut model.nodes, &former.nodes, Arc::clone(&node.name), node),
        Object::Namespace(namespace) => {
            put(&mut model.namespaces, &former.namespaces, Arc::clone(&namespace.name), namespace);
        }
        Object::Pod(..) => {}
        Object::Service(service) => {
            put(&mut model.services, &former.services, service.name.clone(), service);
        }
        Object::EndpointSlice(slice) => put(&mut model.slices, &former.slices, slice.key(), slice),
        Object::NetworkPolicy(policy) => {
            put(&mut model.policies, &former.policies, policy.name.clone(), policy);
        }
    }
}

/// Puts an object into its map: the former one if that is equal, so that the store, which keeps it too, has pointers
/// to compare.
fn put<K: Ord + Clone, T: PartialEq>(
    objects: &mut Objects<K, T>,
    former: &Objects<K, T>,
    key: K,
    object: &Arc<T>,
) {
    let same = former.get(&key).filter(|same| Arc::ptr_eq(same, object) || ***same == **object);
    objects.insert(key, Arc::clone(same.unwrap_or(object)));
}

/// Puts the former map in the place of each in which nothing changed: nobody need look into it then.
fn keep_all(model: &mut Model, former: &Model) {
    keep(&mut model.nodes, &former.nodes);
    keep(&mut model.namespaces, &former.namespaces);
    keep(&mut model.pods, &former.pods);
    keep(&mut model.services, &former.services);
    keep(&mut model.slices, &former.slices);
    keep(&mut model.policies, &former.policies);
}

fn keep<K: Ord, T>(objects: &mut Objects<K, T>, former: &Objects<K, T>) {
    if former.changes(objects).next().is_none() {
        *objects = former.clone();
    }
}

fn usable(pod: &Pod, report: &PodStatus) -> Result<(), String> {
    match &pod.node {
        Some(node) if **node != *report.node => {
            Err(format!("ignored: reported by node {}, but the Pod's spec.nodeName is {node}", report.node))
        }
        _ => Ok(()),
    }
}

fn complete(
    pod: &Arc<Pod>,
    ready: Option<bool>,
    report: Option<&PodStatus>,
    nodes: &BTreeMap<Arc<str>, Arc<Node>>,
) -> Arc<Pod> {
    let host_ips = || {
        let node = pod.node.as_ref().filter(|_| pod.host_network && pod.ips.is_empty())?;
        Some(first_per_family(&nodes.get(node)?.internal_ips))
    };
    let ips = match report {
        Some(report) => report.addresses.clone(),
        None => host_ips().unwrap_or_else(|| pod.ips.clone()),
    };
    let node = report.map(|report| Arc::from(report.node.as_str())).or_else(|| pod.node.clone());
    let ready = ready.unwrap_or(!ips.is_empty());
    if pod.ips == ips && pod.node == node && pod.ready == ready {
        return Arc::clone(pod);
    }
    Arc::new(Pod { ips, node, ready, ..Pod::clone(pod) })
}

fn first_per_family(addresses: &[IpAddr]) -> Vec<IpAddr> {
    [Family::V4, Family::V6]
        .into_iter()
        .filter_map(|family| addresses.iter().find(|address| Family::of(**address) == family).copied())
        .collect()
}

/// Something about a report.
pub(super) fn problem(path: &Path, pod: Option<&ObjectName>, message: String) -> Problem {
    Problem {
        path: PathBuf::from(path),
        line: None,
        column: None,
        severity: Severity::Warning,
        object: pod.map(|pod| format!("Pod {pod}")),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::super::document::{Format, parse};
    use super::*;

    fn pods(text: &str, reports: &[PodStatus]) -> (Model, Vec<String>) {
        let parsed = parse(Path::new("a"), text.as_bytes(), Format::Yaml);
        let content = parsed.content.unwrap_or_else(|| panic!("{:?}", parsed.problems));
        let path = Path::new("s");
        let reports = reports.iter().map(|report| (report.pod(), (path, report))).collect();
        let (model, problems) = assemble(&Model::default(), content.iter(), reports);
        (model, problems.iter().map(ToString::to_string).collect())
    }

    fn report(name: &str, node: &str, ip: &str) -> PodStatus {
        PodStatus::new(&ObjectName::new("default", name), node, "c", vec![ip.parse().unwrap()])
    }

    fn show(model: &Model, name: &str) -> (Vec<String>, Option<String>, bool) {
        let pod = &model.pods[&ObjectName::new("default", name)];
        (pod.ips.iter().map(ToString::to_string).collect(), pod.node.as_deref().map(str::to_owned), pod.ready)
    }

    fn pod(name: &str, rest: &str) -> String {
        format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n{rest}\n")
    }

    #[test]
    fn a_report_gives_addresses_node_and_readiness() {
        let text = pod("a", "") + &pod("b", "") + &pod("c", "spec: {nodeName: n1}");
        let (model, problems) = pods(&text, &[report("a", "n1", "10.0.0.1"), report("c", "n1", "10.0.0.3")]);
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(show(&model, "a"), (vec!["10.0.0.1".to_owned()], Some("n1".to_owned()), true));
        assert_eq!(show(&model, "b"), (vec![], None, false));
        assert_eq!(show(&model, "c"), (vec!["10.0.0.3".to_owned()], Some("n1".to_owned()), true));
    }

    #[test]
    fn a_report_from_another_node_is_told_and_one_of_no_pod_is_nobodys() {
        let text = pod("a", "spec: {nodeName: n2}");
        let (model, problems) = pods(&text, &[report("a", "n1", "10.0.0.1"), report("x", "n1", "10.0.0.2")]);
        assert_eq!(show(&model, "a"), (vec![], Some("n2".to_owned()), false));
        assert_eq!(
            problems,
            ["s: Pod default/a: ignored: reported by node n1, but the Pod's spec.nodeName is n2"]
        );
        assert_eq!(model.pods.len(), 1);
    }

    #[test]
    fn a_condition_of_the_user_decides_readiness() {
        let text = pod("a", "status: {conditions: [{type: Ready, status: 'False'}]}");
        let (model, _) = pods(&text, &[report("a", "n1", "10.0.0.1")]);
        assert_eq!(show(&model, "a"), (vec!["10.0.0.1".to_owned()], Some("n1".to_owned()), false));
    }

    #[test]
    fn a_pod_without_a_report_has_its_own_addresses_or_its_nodes() {
        let text = pod("a", "status: {podIP: 10.0.0.7}")
            + &pod("h", "spec: {hostNetwork: true, nodeName: n1}")
            + "---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\nstatus:\n  addresses:\n\
               \x20 - {type: InternalIP, address: 'fd00::1'}\n  - {type: InternalIP, address: 192.0.2.1}\n\
               \x20 - {type: InternalIP, address: 192.0.2.2}\n";
        let (model, _) = pods(&text, &[]);
        assert_eq!(show(&model, "a"), (vec!["10.0.0.7".to_owned()], None, true));
        assert_eq!(
            show(&model, "h"),
            (vec!["192.0.2.1".to_owned(), "fd00::1".to_owned()], Some("n1".to_owned()), true)
        );
    }

    /// One file of two is written anew, in all ways.
    #[test]
    fn a_patched_model_is_the_one_put_together() {
        let read = |text: &str| {
            let parsed = parse(Path::new("f"), text.as_bytes(), Format::Yaml);
            parsed.content.unwrap_or_else(|| panic!("{:?}", parsed.problems))
        };
        let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\n\
                    status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}\n";
        let other = read(&(pod("a", "") + &pod("h", "spec: {hostNetwork: true, nodeName: n1}") + node));
        let texts = [
            String::new(),
            pod("b", ""),
            pod("b", "spec: {nodeName: n2}"),
            pod("b", "status: {podIP: 10.0.0.9, conditions: [{type: Ready, status: 'False'}]}"),
            pod("b", "spec: {hostNetwork: true, nodeName: n1}") + &pod("c", "status: {podIP: 10.0.0.7}"),
            pod("c", "") + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n",
            "apiVersion: v1\nkind: Node\nmetadata: {name: n2}\n".to_owned(),
        ];
        let told = [report("a", "n1", "10.0.0.1"), report("b", "n1", "10.0.0.2")];
        let whole = |former: &Model, content: &Content| {
            let reports = told.iter().map(|report| (report.pod(), (Path::new("s"), report))).collect();
            assemble(former, other.iter().chain(content.iter()), reports)
        };
        let (mut patched, mut contradicted) = (0, 0);
        for (old, new) in texts.iter().flat_map(|old| texts.iter().map(move |new| (old, new))) {
            let contents = [old, new].map(|text| read(text));
            let [(before, problems), (after, problems_after)] =
                [&contents[0], &contents[1]].map(|content| whole(&Model::default(), content));
            contradicted += usize::from(!problems_after.is_empty());
            let [old, new] = contents;
            let of_pod = |name: &ObjectName| told.iter().find(|report| report.pod() == *name);
            if let Some(model) = patch(&before, &[(old, new)], of_pod) {
                assert_eq!((model, problems), (after, problems_after));
                patched += 1;
            }
        }
        // All but those with a Node or a pod that its report contradicts.
        assert_eq!((patched, contradicted), (25, 7));
    }
}
