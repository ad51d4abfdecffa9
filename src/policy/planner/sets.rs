//! Sets: the parts that isolate a local pod in a direction together, and the rows of each for every class.
//!
//! A set's number is made of what its parts say, so that a row's meaning follows from its key: rows come and go with
//! sets and classes, and never change.

use super::Planner;
use super::classes::ClassKey;
use super::policies::RuleRecord;
use crate::model::ObjectName;
use crate::policy::blocks::place as place_of;
use crate::policy::compile::PortName;
use crate::policy::desired::{List, Problem, SetName};
use crate::policy::number::{ByNumber, Text};
use crate::policy::{Direction, Sets, list};
use netd_bpf::policy::{MAX_RANGES, PolicyKey, identity, set};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Where a rule stands among those of a set: the first one that matches tells.
type Order = (u32, u32);
/// Rules with their places.
type Ordered = Vec<(Order, u32)>;

/// All sets.
#[derive(Debug, Default)]
pub(super) struct SetBook {
    records: ByNumber<SetRecord>,
    ids: HashMap<SetKey, u64>,
    /// Sets that lost a pod.
    left: BTreeSet<u64>,
    /// Sets with a list that is too long.
    overlong: BTreeSet<u64>,
    /// Sets that have got such a list, or lost the last.
    judged: BTreeSet<u64>,
    lists: Lists,
}

/// What tells a set from others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SetKey {
    direction: Direction,
    /// In the order of their policies' names.
    parts: Vec<u32>,
    /// What named ports lead to on the pod; for ingress only.
    ports: Vec<(PortName, u16)>,
}

/// A set.
#[derive(Debug)]
struct SetRecord {
    key: SetKey,
    /// Pods of this node.
    members: BTreeSet<u32>,
    /// Where each part stands.
    places: HashMap<u32, u32>,
    /// Rules for everybody.
    everyone: Ordered,
    /// What they come to: the row of every class that has none of its own.
    any: Arc<List>,
    /// Identities whose lists are too long, with their lengths.
    overlong: BTreeMap<u64, usize>,
}

/// Lists by what they are made of.
#[derive(Debug, Default)]
struct Lists {
    /// By rules in their order, and then the number of what named ports lead to.
    made: HashMap<Box<[u32]>, Arc<List>>,
    ports: HashMap<Vec<(PortName, u16)>, u32>,
    next: u32,
    /// How many were in use when one last looked.
    used: usize,
}

impl Lists {
    fn make(
        &mut self,
        rules: &HashMap<u32, RuleRecord>,
        numbers: &[u32],
        ports: &[(PortName, u16)],
    ) -> Arc<List> {
        let named = numbers.iter().any(|number| rules.get(number).is_some_and(|rule| rule.named));
        let ports = if named { ports } else { &[] };
        let mut key = Vec::with_capacity(numbers.len() + 1);
        key.extend(numbers.iter().filter_map(|number| rules.get(number)).map(|rule| rule.id));
        key.push(self.number(ports));
        if let Some(list) = self.made.get(key.as_slice()) {
            return Arc::clone(list);
        }
        let rules = numbers.iter().filter_map(|number| Some((*number, rules.get(number)?.ports.as_deref())));
        let resolve = |name: &PortName| ports.iter().find(|(own, _)| own == name).map(|(_, port)| *port);
        let list = Arc::new(list::build(rules, resolve));
        self.made.insert(key.into(), Arc::clone(&list));
        list
    }

    fn number(&mut self, ports: &[(PortName, u16)]) -> u32 {
        if ports.is_empty() {
            return 0;
        }
        if let Some(number) = self.ports.get(ports) {
            return *number;
        }
        self.next += 1;
        self.ports.insert(ports.to_vec(), self.next);
        self.next
    }

    /// Forgets what nobody uses, once that may be half of all.
    fn sweep(&mut self) {
        const FEW: usize = 1024;
        if self.made.len() > 2 * self.used + FEW {
            self.made.retain(|_, list| Arc::strong_count(list) > 1);
            self.ports.clear();
            self.used = self.made.len();
        }
    }
}

impl Planner {
    /// Gives local pods the sets that they are to have.
    pub(super) fn renew_sets(&mut self) {
        let subjects = std::mem::take(&mut self.dirty.subjects);
        for id in &subjects {
            let Some(pod) = self.pods.records.get(id) else { continue };
            let before = pod.sets;
            let (local, unknown) = (!pod.endpoints.is_empty(), Problem::Unknown { pod: pod.name.clone() });
            let (now, doubtful) = if local { self.sets_of(*id) } else { (Sets::OPEN, false) };
            if doubtful {
                self.desired.problems.insert(unknown);
            } else {
                self.desired.problems.remove(&unknown);
            }
            for number in before.both() {
                if let Some(record) = self.sets.records.get_mut(&number) {
                    record.members.remove(id);
                    self.sets.left.insert(number);
                }
            }
            for number in now.both() {
                if let Some(record) = self.sets.records.get_mut(&number) {
                    record.members.insert(*id);
                }
            }
            if let Some(pod) = self.pods.records.get_mut(id) {
                pod.sets = now;
            }
        }
        for number in std::mem::take(&mut self.sets.left) {
            if self.sets.records.get(&number).is_some_and(|record| record.members.is_empty()) {
                self.drop_set(number);
            }
        }
        subjects.iter().for_each(|id| self.publish(*id));
        self.judge_lengths();
        self.sets.lists.sweep();
    }

    /// The sets of a local pod, and whether it is closed for want of its labels.
    fn sets_of(&mut self, id: u32) -> (Sets, bool) {
        let mut parts: [Vec<u32>; 2] = Default::default();
        let mut closed = [false; 2];
        let mut doubtful = false;
        {
            let Some(pod) = self.pods.records.get(&id) else { return (Sets::CLOSED, false) };
            let Some(namespace) = self.pods.namespaces.get(&pod.name.namespace) else {
                return (Sets::CLOSED, false);
            };
            let candidates: BTreeSet<u32> = if pod.unknown() {
                namespace.subjects.all().collect()
            } else {
                namespace.subjects.candidates(pod.all_labels()).collect()
            };
            let mut policies: Vec<_> = candidates
                .iter()
                .filter_map(|id| self.policies.records.get(id))
                .filter(|policy| pod.unknown() || policy.subject.matches(|key| pod.label(key)))
                .collect();
            policies.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            for policy in policies {
                doubtful |= pod.unknown() && !policy.subject.is_empty();
                for (direction, part) in &policy.parts {
                    let Some(record) = self.policies.parts.get(part) else { continue };
                    let [ingress, egress] = &mut parts;
                    let [no_ingress, no_egress] = &mut closed;
                    let (parts, closed) = match direction {
                        Direction::Ingress => (ingress, no_ingress),
                        Direction::Egress => (egress, no_egress),
                    };
                    parts.push(*part);
                    *closed |= record.broken.is_some() || (pod.unknown() && !policy.subject.is_empty());
                }
            }
        }
        let mut sets = Sets::OPEN;
        for ((direction, parts), closed) in Direction::ALL.into_iter().zip(parts).zip(closed) {
            let number = match (parts.is_empty(), closed) {
                (true, _) => set::OPEN,
                (false, true) => set::CLOSED,
                (false, false) => self.set_of(id, direction, parts),
            };
            sets = sets.with(direction, number);
        }
        (sets, doubtful)
    }

    /// The number of a set, which may be new.
    fn set_of(&mut self, pod: u32, direction: Direction, parts: Vec<u32>) -> u64 {
        let mut ports = Vec::new();
        if direction == Direction::Ingress {
            let names: BTreeSet<&PortName> = parts
                .iter()
                .filter_map(|part| self.policies.parts.get(part))
                .flat_map(|part| &part.names)
                .collect();
            let pod = self.pods.records.get(&pod);
            let found = names.into_iter().filter_map(|name| Some((name.clone(), pod?.port(name)?)));
            ports = found.collect();
        }
        let key = SetKey { direction, parts, ports };
        match self.sets.ids.get(&key) {
            Some(number) => *number,
            None => self.add_set(key),
        }
    }

    fn add_set(&mut self, key: SetKey) -> u64 {
        let mut text = Text::new("set");
        text.str(key.direction.name()).count(key.parts.len());
        let mut policies: Vec<ObjectName> = Vec::with_capacity(key.parts.len());
        let (mut places, mut everyone) = (HashMap::with_capacity(key.parts.len()), Vec::new());
        let mut idle = Vec::new();
        for (place, id) in (0_u32..).zip(&key.parts) {
            let Some(part) = self.policies.parts.get(id) else { continue };
            text.str(&part.policy.namespace).str(&part.policy.name).bytes(&part.digest);
            policies.push(part.policy.clone());
            places.insert(*id, place);
            for number in &part.rules {
                if let Some(rule) = self.policies.rules.get(number)
                    && rule.everyone
                {
                    everyone.push(((place, rule.index), *number));
                }
            }
            if part.sets.is_empty() {
                idle.push(*id);
            }
        }
        text.count(key.ports.len());
        for (PortName { proto, name }, port) in &key.ports {
            text.number((*proto).into()).str(name).number((*port).into());
        }
        let number = text.marked(|number| self.sets.records.contains_key(&number));

        idle.iter().for_each(|part| self.activate_part(*part, true));
        for id in &key.parts {
            if let Some(part) = self.policies.parts.get_mut(id) {
                part.sets.insert(number);
            }
        }
        let numbers: Vec<u32> = everyone.iter().map(|(_, rule)| *rule).collect();
        let any = self.sets.lists.make(&self.policies.rules, &numbers, &key.ports);
        self.desired.sets.insert(number, SetName { direction: key.direction, policies });
        self.sets.ids.insert(key.clone(), number);
        let record =
            SetRecord { key, members: BTreeSet::new(), places, everyone, any, overlong: BTreeMap::new() };
        self.sets.records.insert(number, record);
        self.touched.sets.insert(number);
        self.fill_set(number);
        number
    }

    /// Nobody has the set any more, or one of its parts goes.
    pub(super) fn drop_set(&mut self, number: u64) {
        let Some(record) = self.sets.records.remove(&number) else { return };
        self.sets.ids.remove(&record.key);
        for id in record.key.parts {
            let Some(part) = self.policies.parts.get_mut(&id) else { continue };
            part.sets.remove(&number);
            if part.sets.is_empty() {
                self.activate_part(id, false);
            }
        }
        self.desired.rows.remove_set(number);
        self.desired.sets.remove(&number);
        if self.sets.overlong.remove(&number) {
            self.sets.judged.insert(number);
        }
        self.touched.sets.insert(number);
    }

    /// A part is in a set now, or in none any more.
    fn activate_part(&mut self, part: u32, active: bool) {
        let rules = self.policies.parts.get(&part).into_iter().flat_map(|part| &part.rules);
        let rules = rules.filter_map(|number| self.policies.rules.get(number));
        let peers: Vec<u32> = rules.flat_map(|rule| &rule.peers).copied().collect();
        for peer in peers {
            if active { self.activate(peer) } else { self.deactivate(peer) }
        }
    }

    /// Makes all rows of a new set.
    fn fill_set(&mut self, number: u64) {
        let Some(record) = self.sets.records.get_mut(&number) else { return };
        let (any, list) = (PolicyKey { set: number, identity: identity::ANY }, Arc::clone(&record.any));
        if *list != List::default()
            && fits(record, &mut self.sets.overlong, &mut self.sets.judged, any, &list)
        {
            self.desired.rows.insert(any, Arc::clone(&list));
        }
        if list.allows_all() {
            return;
        }
        let mut found: ByNumber<(Option<u32>, Ordered)> = ByNumber::default();
        for (place, part) in (0_u32..).zip(&record.key.parts) {
            let Some(part) = self.policies.parts.get(part) else { continue };
            for rule_number in &part.rules {
                let Some(rule) = self.policies.rules.get(rule_number) else { continue };
                let peers = rule.peers.iter().filter_map(|peer| self.peers.records.get(peer));
                for peer in peers {
                    let profiles = peer.profiles.iter().filter_map(|id| self.classes.profiles.get(id));
                    let blocks =
                        peer.blocks.iter().filter_map(|block| self.classes.blocks.get(&place_of(block)));
                    let classes = profiles.map(|one| &one.classes).chain(blocks.map(|one| &one.classes));
                    for (class, identity) in classes.flatten() {
                        let (_, rules) = found.entry(*identity).or_insert((class.profile, Vec::new()));
                        rules.push(((place, rule.index), *rule_number));
                    }
                }
            }
        }
        for (identity, (profile, rules)) in found {
            self.add_row(PolicyKey { set: number, identity }, profile, rules);
        }
    }

    /// Makes the rows of new classes in the sets that are there.
    pub(super) fn fill_new_classes(&mut self) {
        for class in std::mem::take(&mut self.classes.fresh) {
            let Some(identity) = self.classes.classes.get(&class).map(|record| record.number) else {
                continue;
            };
            for (set, rules) in self.rules_of(class) {
                let Some(record) = self.sets.records.get(&set) else { continue };
                if record.any.allows_all() {
                    continue;
                }
                let place = |part: u32| record.places.get(&part).copied().unwrap_or(u32::MAX);
                let rules =
                    rules.into_iter().map(|(part, index, rule)| ((place(part), index), rule)).collect();
                let key = PolicyKey { set, identity };
                self.add_row(key, class.profile, rules);
                self.touched.rows.insert(key);
            }
        }
    }

    /// Removes the rows of a class.
    pub(super) fn remove_rows_of(&mut self, class: ClassKey) {
        let Some(identity) = self.classes.classes.get(&class).map(|record| record.number) else { return };
        for (set, _) in self.rules_of(class) {
            let key = PolicyKey { set, identity };
            if self.desired.rows.remove(&key) {
                self.touched.rows.insert(key);
            }
            if let Some(record) = self.sets.records.get_mut(&set)
                && record.overlong.remove(&identity).is_some()
            {
                self.sets.judged.insert(set);
                if record.overlong.is_empty() {
                    self.sets.overlong.remove(&set);
                }
            }
        }
    }

    /// The rules that match a class, by the sets that they are in: part, place in it, number.
    fn rules_of(&self, class: ClassKey) -> BTreeMap<u64, Vec<(u32, u32, u32)>> {
        let profile = class.profile.and_then(|id| self.classes.profiles.get(&id));
        let block = class.block.and_then(|block| self.classes.blocks.get(&place_of(&block)));
        let peers = profile.map(|one| &one.peers).into_iter().chain(block.map(|one| &one.peers)).flatten();
        let rules = peers.filter_map(|peer| self.peers.records.get(peer)).flat_map(|peer| &peer.rules);
        let mut found: BTreeMap<u64, Vec<(u32, u32, u32)>> = BTreeMap::new();
        for number in rules {
            let Some(rule) = self.policies.rules.get(number) else { continue };
            let Some(part) = self.policies.parts.get(&rule.part) else { continue };
            for set in &part.sets {
                found.entry(*set).or_default().push((rule.part, rule.index, *number));
            }
        }
        found
    }

    /// Makes a row from the rules that match the class beside those for everybody.
    fn add_row(&mut self, key: PolicyKey, profile: Option<u32>, mut rules: Ordered) {
        let Some(record) = self.sets.records.get_mut(&key.set) else { return };
        rules.extend_from_slice(&record.everyone);
        rules.sort_unstable();
        rules.dedup();
        let numbers: Vec<u32> = rules.into_iter().map(|(_, rule)| rule).collect();
        let ports = match record.key.direction {
            Direction::Ingress => record.key.ports.as_slice(),
            Direction::Egress => {
                let profile = profile.and_then(|id| self.classes.profiles.get(&id));
                profile.map_or(&[][..], |profile| &profile.key.ports)
            }
        };
        let list = self.sets.lists.make(&self.policies.rules, &numbers, ports);
        if list != record.any && fits(record, &mut self.sets.overlong, &mut self.sets.judged, key, &list) {
            self.desired.rows.insert(key, list);
        }
    }

    /// Closes pods whose set has a list that is too long, opens those whose set has none any more.
    fn judge_lengths(&mut self) {
        let judged = std::mem::take(&mut self.sets.judged);
        if judged.is_empty() {
            return;
        }
        for number in judged {
            let members = self.sets.records.get(&number).map(|record| record.members.clone());
            members.into_iter().flatten().for_each(|id| self.publish(id));
        }
        self.desired.problems.retain(|problem| !matches!(problem, Problem::TooLong { .. }));
        for number in &self.sets.overlong {
            let (Some(record), Some(name)) = (self.sets.records.get(number), self.desired.sets.get(number))
            else {
                continue;
            };
            self.desired.problems.insert(Problem::TooLong {
                direction: name.direction,
                policies: name.policies.clone(),
                ranges: record.overlong.values().copied().max().unwrap_or_default(),
            });
        }
    }

    /// Writes down the sets of a local pod.
    fn publish(&mut self, id: u32) {
        let Some(pod) = self.pods.records.get(&id) else { return };
        let mut sets = pod.sets;
        for direction in Direction::ALL {
            if self.sets.overlong.contains(&sets.of(direction)) {
                sets = sets.with(direction, set::CLOSED);
            }
        }
        for endpoint in &pod.endpoints {
            if self.desired.pods.insert(*endpoint, sets) != Some(sets) {
                self.touched.pods.insert(*endpoint);
            }
        }
    }
}

/// Whether a list is short enough; if not, that is noted.
fn fits(
    record: &mut SetRecord,
    overlong: &mut BTreeSet<u64>,
    judged: &mut BTreeSet<u64>,
    key: PolicyKey,
    list: &List,
) -> bool {
    let fits = list.ranges.len() <= MAX_RANGES as usize;
    if !fits {
        record.overlong.insert(key.identity, list.ranges.len());
        overlong.insert(key.set);
        judged.insert(key.set);
    }
    fits
}

#[cfg(test)]
impl SetBook {
    /// What is not empty. Lists may be asked for again, and go once they are many.
    pub(super) fn left(&self) -> Vec<&'static str> {
        left!(self; records, ids, left, overlong, judged; lists)
    }
}
