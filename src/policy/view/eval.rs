//! Would a flow be allowed? Answered by tables that the planner makes for its two ends, and the kernel's algorithm.
//!
//! Both ends are planned as pods of one node, wherever they run: what their nodes would say is the same. A pod of a
//! folder may have no address yet. The other end's policies are asked about it all the same, as about a pod in no
//! block: a rule that goes by addresses can only add to what they allow. Where they do not allow it and such a rule might,
//! the question is not decided.

use super::{Refusal, Subject, View, exempt};
use crate::answer::policy::{Case, End, Evaluated, RuleName, Verdict};
use crate::model::{Family, NetworkPolicy, ObjectName};
use crate::policy::eval::{Packet, Side, judge};
use crate::policy::{Desired, Direction, LocalPod, Planner};
use k8s_openapi::api::networking::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use netd_bpf::policy::set;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Word for the node of the other end.
const NODE: &str = "node";
/// Endpoints of the two ends.
const FROM: u32 = 1;
const TO: u32 = 2;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// A pod, an address, or `node`.
    pub from: String,
    /// The same.
    pub to: String,
    /// IANA protocol number; of ICMP that of IPv4.
    protocol: u8,
    /// None for ICMP.
    port: Option<u16>,
}

impl Question {
    /// Reads `TO:PORT`, `TO:PORT/PROTOCOL` or `TO:icmp`. An IPv6 address before a port is in brackets.
    ///
    /// # Errors
    /// It is none of these.
    pub fn new(from: &str, to: &str) -> Result<Self, Refusal> {
        let form = || {
            let example = "shop/db-0:5432, 10.0.0.1:53/udp, [fd00::1]:80, shop/db-0:icmp";
            Refusal::Bad(format!("{to} is not of the form TO:PORT[/PROTOCOL], as {example}"))
        };
        let (name, what) = to.rsplit_once(':').ok_or_else(form)?;
        // `fd00::1` is an address without a port.
        if name.is_empty() || name.contains(':') && !(name.starts_with('[') && name.ends_with(']')) {
            return Err(form());
        }
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let (port, protocol) = match what.split_once('/') {
            None if what.eq_ignore_ascii_case("icmp") => (None, 1),
            None => (Some(what), 6),
            Some((port, protocol)) => {
                let number = match protocol.to_ascii_lowercase().as_str() {
                    "tcp" => 6,
                    "udp" => 17,
                    "sctp" => 132,
                    _ => return Err(Refusal::Bad(format!("{protocol} is no protocol: tcp, udp or sctp"))),
                };
                (Some(port), number)
            }
        };
        let port = match port {
            Some(text) => match text.parse() {
                Ok(0) | Err(_) => return Err(Refusal::Bad(format!("{text} is no port: 1 to 65535"))),
                Ok(port) => Some(port),
            },
            None => None,
        };
        Ok(Self { from: from.to_owned(), to: name.to_owned(), protocol, port })
    }
}

/// One end, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Party {
    /// A pod that policies may select.
    Pod(ObjectName),
    /// Whoever has this address and is no such pod.
    Address(IpAddr),
    /// A pod with its node's network, which no policy selects, and its addresses, at least one.
    Host(ObjectName, Vec<IpAddr>),
    /// The other end's node.
    Node,
}

impl Party {
    const fn pod(&self) -> Option<&ObjectName> {
        match self {
            Self::Pod(name) => Some(name),
            Self::Address(_) | Self::Host(..) | Self::Node => None,
        }
    }
}

/// One pair of addresses.
#[derive(Clone, Copy)]
struct Pair {
    from: IpAddr,
    to: IpAddr,
    /// They stand for addresses that are not known.
    made_up: [bool; 2],
}

impl View<'_> {
    /// Answers.
    ///
    /// # Errors
    /// An end is unknown, or it cannot be decided.
    pub fn eval(&self, question: &Question) -> Result<Evaluated, Refusal> {
        let (from, to) = (self.party(&question.from)?, self.party(&question.to)?);
        if from == Party::Node && to == Party::Node {
            return Err(Refusal::Bad("one end must be a pod, or an address".to_owned()));
        }
        let mut notes = Vec::new();
        if from.pod().is_none() && to.pod().is_none() {
            notes.push("neither end is a pod that policies select".to_owned());
        }
        let mut cases = Vec::new();
        for pair in self.pairs(&from, &to)? {
            cases.push(self.case(question, [&from, &to], pair, &mut notes)?);
        }
        Ok(Evaluated {
            node: self.node.map(str::to_owned),
            from: self.end(&from, &to),
            to: self.end(&to, &from),
            protocol: crate::answer::protocol(question.protocol),
            port: question.port,
            allowed: cases.iter().all(|case| case.allowed),
            cases,
            notes,
        })
    }

    /// Who is meant.
    fn party(&self, asked: &str) -> Result<Party, Refusal> {
        if asked == NODE {
            return Ok(Party::Node);
        }
        let Ok(address) = asked.parse::<IpAddr>() else {
            let name = self.pick_pod(asked)?;
            let Some(pod) = self.model.pods.get(&name).filter(|pod| exempt(pod).is_some()) else {
                return Ok(Party::Pod(name));
            };
            return match pod.ips.as_slice() {
                ips @ [_, ..] if pod.host_network => Ok(Party::Host(name, ips.to_vec())),
                _ => Err(Refusal::Bad(format!("pod {name} has no address: it has ended, or waits for one"))),
            };
        };
        if let Some(service) = self.model.services.values().find(|one| one.cluster_ips.contains(&address)) {
            let hint = "policies are about the pods behind it: netd svc show tells them";
            return Err(Refusal::Bad(format!("{address} is Service {}; {hint}", service.name)));
        }
        let here = self.locals.values().find(|local| local.addresses.contains(&address));
        if let Some(name) = here.and_then(|local| local.pod.clone()) {
            return Ok(Party::Pod(name));
        }
        let mut there = self.model.pods.values().filter(|pod| exempt(pod).is_none());
        match there.find(|pod| pod.ips.contains(&address)) {
            Some(pod) => Ok(Party::Pod(pod.name.clone())),
            None => Ok(Party::Address(address)),
        }
    }

    fn end(&self, party: &Party, other: &Party) -> End {
        let (name, pod) = match party {
            Party::Pod(name) => (name.to_string(), Some(name)),
            Party::Address(address) => (address.to_string(), None),
            Party::Host(name, _) => (name.to_string(), Some(name)),
            Party::Node => match other.pod().and_then(|pod| self.runs_on(pod)) {
                Some(node) => (format!("node {node}"), None),
                None => (NODE.to_owned(), None),
            },
        };
        End { name, pod: pod.map(ToString::to_string) }
    }

    /// The addresses to ask about, by family.
    fn pairs(&self, from: &Party, to: &Party) -> Result<Vec<Pair>, Refusal> {
        let known = |party: &Party| match party {
            Party::Pod(name) => self.addresses(name),
            Party::Address(address) => vec![*address],
            Party::Host(_, addresses) => addresses.clone(),
            Party::Node => Vec::new(),
        };
        let (ours, theirs) = (known(from), known(to));
        let families = [Family::V4, Family::V6].into_iter();
        let of = |list: &[IpAddr], family| list.iter().copied().find(|ip| Family::of(*ip) == family);
        let pairs: Vec<Pair> = match (ours.is_empty(), theirs.is_empty()) {
            (false, false) => {
                let pair = |family| {
                    Some(Pair { from: of(&ours, family)?, to: of(&theirs, family)?, made_up: [false; 2] })
                };
                families.filter_map(pair).collect()
            }
            (false, true) => {
                let pair = |ip: &IpAddr| Pair { from: *ip, to: made_up(ip, TO), made_up: [false, true] };
                ours.iter().map(pair).collect()
            }
            (true, false) => {
                let pair = |ip: &IpAddr| Pair { from: made_up(ip, FROM), to: *ip, made_up: [true, false] };
                theirs.iter().map(pair).collect()
            }
            (true, true) => {
                let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
                vec![Pair { from: made_up(&any, FROM), to: made_up(&any, TO), made_up: [true; 2] }]
            }
        };
        if pairs.is_empty() {
            return Err(Refusal::Bad(
                "one end has IPv4 addresses only, the other IPv6 addresses only".to_owned(),
            ));
        }
        Ok(pairs)
    }

    fn case(
        &self,
        question: &Question,
        [from, to]: [&Party; 2],
        pair: Pair,
        notes: &mut Vec<String>,
    ) -> Result<Case, Refusal> {
        let exempt = self.exempt_pair(from, to, pair);
        let protocol = match (question.protocol, pair.from) {
            (1, IpAddr::V6(_)) => 58,
            (protocol, _) => protocol,
        };
        let packet = Packet {
            from: pair.from,
            to: pair.to,
            protocol,
            port: question.port.unwrap_or_default(),
            from_node: false,
        };
        let mut verdict = |direction| {
            let ends = match direction {
                Direction::Egress => [from, to],
                Direction::Ingress => [to, from],
            };
            let asked = exempt.is_none();
            asked.then(|| self.verdict(ends, direction, &packet, pair, notes)).flatten().unzip()
        };
        let (egress, first) = verdict(Direction::Egress);
        let (ingress, second) = verdict(Direction::Ingress);
        let allows = |verdict: &Option<Verdict>| verdict.as_ref().is_none_or(|verdict| verdict.allowed);
        let (first, second) = (first.flatten(), second.flatten());
        // What one end denies is denied, whatever the other end would say.
        let denied = |verdict: &Option<Verdict>, open: &Option<String>| open.is_none() && !allows(verdict);
        let decided = denied(&egress, &first) || denied(&ingress, &second);
        for open in [first, second].into_iter().flatten() {
            if !decided {
                let how = "give it one (status.podIP), or ask for an address";
                return Err(Refusal::Bad(format!("{open}: {how}")));
            }
            notes.push(open);
        }
        let [no_from, no_to] = pair.made_up;
        Ok(Case {
            from: (!no_from).then_some(pair.from),
            to: (!no_to).then_some(pair.to),
            allowed: allows(&egress) && allows(&ingress),
            exempt,
            egress,
            ingress,
        })
    }

    /// The API's two exceptions.
    fn exempt_pair(&self, from: &Party, to: &Party, pair: Pair) -> Option<String> {
        if let (Party::Pod(one), Party::Pod(other)) = (from, to)
            && one == other
        {
            return Some("a pod always reaches itself".to_owned());
        }
        let own_node = |pod: &Party, other: &Party, address| match (pod, other) {
            (Party::Pod(_), Party::Node) => true,
            (Party::Pod(pod), Party::Address(_) | Party::Host(..)) => {
                self.node_addresses(pod).contains(&address)
            }
            _ => false,
        };
        (own_node(from, to, pair.to) || own_node(to, from, pair.from))
            .then(|| "a pod and its own node always reach each other".to_owned())
    }

    /// The addresses of the node that a pod runs on.
    fn node_addresses(&self, pod: &ObjectName) -> Vec<IpAddr> {
        let Some(node) = self.runs_on(pod) else { return Vec::new() };
        let object = self.model.nodes.get(&node).map(|node| node.internal_ips.clone());
        let own = self.node.filter(|own| **own == *node).map(|_| self.node_addresses.to_vec());
        object.into_iter().chain(own).flatten().collect()
    }

    /// What the policies of the first end say; and, if an address that is not known might say otherwise, that.
    fn verdict(
        &self,
        [subject, other]: [&Party; 2],
        direction: Direction,
        packet: &Packet,
        pair: Pair,
        notes: &mut Vec<String>,
    ) -> Option<(Verdict, Option<String>)> {
        let name = subject.pod()?;
        let known = Subject { name, pod: self.model.pods.get(name).map(Arc::as_ref) };
        let isolating = self.isolating(&known, direction);
        let at = usize::from(direction == Direction::Egress);
        let unknown = pair.made_up.get(at).copied().unwrap_or_default();
        let planner = self.plan([subject, other], direction, packet, unknown);
        let desired = planner.desired();
        let judged = judge(desired, packet);
        let side = match direction {
            Direction::Egress => judged.egress,
            Direction::Ingress => judged.ingress,
        };
        let verdict = told(desired, name, &isolating, side);
        let mut open = None;
        if unknown && !verdict.allowed && !matches!(side, Side::Closed) {
            let other = other.pod().map(ToString::to_string).unwrap_or_default();
            let rule = by_address(&isolating, direction, packet);
            open =
                rule.map(|rule| format!("{other} has no address (yet), by which {direction} {rule} decides"));
        }
        let policies: Vec<String> = isolating.iter().map(|policy| policy.name.to_string()).collect();
        let of_these = desired
            .problems
            .iter()
            .filter(|problem| matches!(side, Side::Closed) && problem.concerns(&name.to_string(), &policies));
        let problems: Vec<String> =
            of_these.map(ToString::to_string).filter(|problem| !notes.contains(problem)).collect();
        notes.extend(problems);
        Some((verdict, open))
    }

    /// Plans a node that has both ends.
    fn plan(&self, ends: [&Party; 2], direction: Direction, packet: &Packet, no_blocks: bool) -> Planner {
        let addresses = match direction {
            Direction::Egress => [packet.from, packet.to],
            Direction::Ingress => [packet.to, packet.from],
        };
        let local = |((endpoint, party), address): ((u32, &Party), IpAddr)| {
            let pod = party.pod()?.clone();
            Some((endpoint, LocalPod { endpoint, pod: Some(pod), uid: None, addresses: vec![address] }))
        };
        let locals: BTreeMap<u32, LocalPod> = (FROM..).zip(ends).zip(addresses).filter_map(local).collect();
        let pods: Vec<&ObjectName> = ends.into_iter().filter_map(Party::pod).collect();
        let read = if no_blocks { without_blocks } else { NetworkPolicy::clone };
        self.plan_part(&pods, &locals, read)
    }
}

/// An address that no policy's block has, once [`without_blocks`]; of the family of this one.
fn made_up(like: &IpAddr, end: u32) -> IpAddr {
    match like {
        // RFC 1112 §4: reserved.
        IpAddr::V4(_) => Ipv4Addr::from_bits(0xf000_0000 | end).into(),
        // RFC 6666: discarded.
        IpAddr::V6(_) => Ipv6Addr::from_bits(0x0100 << 112 | u128::from(end)).into(),
    }
}

/// The same with all blocks out of the way. Each peer keeps its place.
fn without_blocks(policy: &NetworkPolicy) -> NetworkPolicy {
    let nowhere = || api::IPBlock { cidr: "255.255.255.255/32".to_owned(), except: None };
    let strip = |peers: &mut Option<Vec<api::NetworkPolicyPeer>>| {
        for peer in peers.iter_mut().flatten().filter(|peer| peer.ip_block.is_some()) {
            peer.ip_block = Some(nowhere());
        }
    };
    let mut policy = policy.clone();
    policy.spec.ingress.iter_mut().flatten().for_each(|rule| strip(&mut rule.from));
    policy.spec.egress.iter_mut().flatten().for_each(|rule| strip(&mut rule.to));
    policy
}

/// A rule that may allow the packet by the address of the other end, if there is one: `namespace/name rule 1`.
fn by_address(isolating: &[&NetworkPolicy], direction: Direction, packet: &Packet) -> Option<String> {
    type Parts<'a> = (Option<&'a Vec<api::NetworkPolicyPeer>>, Option<&'a Vec<api::NetworkPolicyPort>>);
    isolating.iter().find_map(|policy| {
        let rules: Vec<Parts<'_>> = match direction {
            Direction::Ingress => {
                let rules = policy.spec.ingress.iter().flatten();
                rules.map(|rule| (rule.from.as_ref(), rule.ports.as_ref())).collect()
            }
            Direction::Egress => {
                let rules = policy.spec.egress.iter().flatten();
                rules.map(|rule| (rule.to.as_ref(), rule.ports.as_ref())).collect()
            }
        };
        let found = rules.iter().position(|(peers, ports)| {
            let blocks = peers.iter().any(|peers| peers.iter().any(|peer| peer.ip_block.is_some()));
            blocks
                && ports.is_none_or(|ports| ports.is_empty() || ports.iter().any(|port| covers(port, packet)))
        });
        found.map(|index| format!("{} rule {}", policy.name, index + 1))
    })
}

/// Whether a port may be the packet's. A name may stand for any number.
fn covers(port: &api::NetworkPolicyPort, packet: &Packet) -> bool {
    let protocol = match port.protocol.as_deref() {
        Some("UDP") => 17,
        Some("SCTP") => 132,
        _ => 6,
    };
    let number = i32::from(packet.port);
    protocol == packet.protocol
        && match &port.port {
            Some(IntOrString::Int(first)) => (*first..=port.end_port.unwrap_or(*first)).contains(&number),
            Some(IntOrString::String(_)) | None => true,
        }
}

fn told(desired: &Desired, pod: &ObjectName, isolating: &[&NetworkPolicy], side: Side) -> Verdict {
    let by = || isolating.iter().map(|policy| policy.name.to_string()).collect();
    let (isolated, policies, rule) = match side {
        Side::Elsewhere | Side::Itself | Side::Node | Side::Open => (false, Vec::new(), None),
        Side::Closed => (true, by(), None),
        Side::Isolated { set: number, decision, .. } => {
            let policies = match desired.sets.get(&number) {
                Some(name) if number != set::CLOSED => {
                    name.policies.iter().map(ToString::to_string).collect()
                }
                _ => by(),
            };
            (true, policies, rule_name(desired, decision.rule))
        }
    };
    Verdict { pod: pod.to_string(), allowed: side.allows(), isolated, policies, rule }
}

fn rule_name(desired: &Desired, number: u32) -> Option<RuleName> {
    if number == 0 {
        return None;
    }
    Some(match desired.rules.get(&number) {
        Some(rule) => rule.told(number),
        None => RuleName { policy: None, index: None, number },
    })
}

impl crate::policy::RuleName {
    /// As answers have it.
    #[must_use]
    pub fn told(&self, number: u32) -> RuleName {
        RuleName { policy: Some(self.policy.to_string()), index: Some(self.index + 1), number }
    }
}
