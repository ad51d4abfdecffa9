//! Random clusters and packets: what is measured against the oracle, how it is compared, and that the clusters are
//! such that a mistake would show.
//!
//! The seed is printed; `NETD_POLICY_SEED` runs it again.

mod mistakes;
pub(crate) mod planned;

use super::cluster::Cluster;
use super::random::{Case, case};
use super::{End, Packet, Side, Verdict, verdict};
use crate::model::ObjectName;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};

/// How many clusters there are, and how many packets at most in each of its two states: half of that is the mean.
pub(crate) const CLUSTERS: u32 = 1_000;
pub(crate) const PACKETS: usize = 112;

/// What is measured: it judges for the pods of this node.
pub(crate) trait Subject {
    /// The cluster is now like this.
    fn change_to(&mut self, cluster: &Cluster);

    /// Nothing for a packet that the subject cannot make.
    ///
    /// # Errors
    /// What it does contradicts itself.
    fn judge(&mut self, cluster: &Cluster, packet: &Packet) -> Result<Option<Judged>, TestCaseError>;
}

/// A verdict for each end that is a pod of this node. `ingress` may be missing where `egress` denied it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) egress: Option<Told>,
    pub(crate) ingress: Option<Told>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// No policy isolates the pod, or none is asked.
    Open,
    /// A rule allows it: its policy, and its index.
    Allowed(ObjectName, usize),
    /// One of the two: a program that lets a packet through does not tell which.
    #[cfg(not(netd_bpf_stub))]
    LetThrough,
    Denied,
}

impl Told {
    fn is_right(&self, side: &Side) -> bool {
        match (self, side) {
            (Self::Open, Side::NotIsolated | Side::Exempt) | (Self::Denied, Side::Denied(_)) => true,
            (Self::Allowed(policy, index), Side::Allowed(rules)) => rules.contains(&(policy.clone(), *index)),
            #[cfg(not(netd_bpf_stub))]
            (Self::LetThrough, side) => side.lets_through(),
            _ => false,
        }
    }
}

/// What the packets came to: by direction and what the oracle said.
#[derive(Clone, Default)]
pub(crate) struct Tally(BTreeMap<(&'static str, &'static str), usize>);

impl Tally {
    fn count(&mut self, direction: &'static str, side: &Side) {
        let said = match side {
            Side::NotIsolated => "not isolated",
            Side::Exempt => "exempt",
            Side::Allowed(_) => "allowed",
            Side::Denied(_) => "denied",
        };
        *self.0.entry((direction, said)).or_default() += 1;
    }

    pub(crate) fn sum(&self, direction: &str) -> usize {
        self.0.iter().filter(|((of, _), _)| *of == direction).map(|(_, count)| count).sum()
    }

    /// Fails if one of the verdicts hardly ever came: less than one of so many.
    pub(crate) fn check(&self) {
        for direction in ["egress", "ingress"] {
            for (said, share) in [("not isolated", 20), ("exempt", 100), ("allowed", 20), ("denied", 20)] {
                let count = self.0.get(&(direction, said)).copied().unwrap_or_default();
                let sum = self.sum(direction);
                assert!(count * share > sum, "only {count} of {sum} were {said} by {direction}: {self}");
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((direction, said), count) in &self.0 {
            write!(f, "{direction} {said} {count}; ")?;
        }
        Ok(())
    }
}

/// Of this run, or as the environment says.
pub(crate) fn seed() -> u64 {
    let seed = match std::env::var("NETD_POLICY_SEED") {
        Ok(text) => text.parse().expect("NETD_POLICY_SEED is a number"),
        Err(_) => RandomState::new().hash_one(std::process::id()),
    };
    println!("NETD_POLICY_SEED={seed}");
    seed
}

pub(crate) fn runner(seed: u64, clusters: u32) -> TestRunner {
    TestRunner::new(Config {
        cases: clusters,
        failure_persistence: None,
        max_shrink_iters: 100_000,
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    })
}

/// Compares one packet.
pub(crate) fn compare(
    cluster: &Cluster,
    packet: &Packet,
    judged: &Judged,
    tally: &mut Tally,
) -> Result<(), TestCaseError> {
    let Verdict { egress, ingress } = verdict(&cluster.model, packet);
    let sides = [
        ("egress", &packet.from, &egress, &judged.egress),
        ("ingress", &packet.to, &ingress, &judged.ingress),
    ];
    let mut denied = false;
    for (direction, end, side, told) in sides {
        if !cluster.is_local(end) {
            continue;
        }
        let right = match told {
            Some(told) => told.is_right(side),
            // Who was not let out enters nowhere.
            None => denied,
        };
        if !right {
            let message = format!("{direction} of {packet:?}: the API says {side:?}, told was {told:?}");
            return Err(TestCaseError::fail(message));
        }
        denied |= !side.lets_through();
        tally.count(direction, side);
    }
    Ok(())
}

/// Runs a subject over random clusters. Gives what the packets came to, and how many there were.
pub(crate) fn measure<S: Subject>(clusters: u32, packets: usize, new: impl Fn() -> S) -> (Tally, usize) {
    let tally = RefCell::new((Tally::default(), 0));
    let run = runner(seed(), clusters).run(&case(packets), |case: Case| {
        let Case { before, after, early, late } = &case;
        let mut subject = new();
        let (tally, count) = &mut *tally.borrow_mut();
        // What was sent before, too: a flow that stands is not judged by what was.
        let late: Vec<Packet> =
            early.iter().filter_map(|packet| after.again(packet)).chain(late.iter().cloned()).collect();
        let states = [(before, early), (after, &late)];
        for (cluster, packets) in states {
            subject.change_to(cluster);
            for packet in packets {
                if let Some(judged) = subject.judge(cluster, packet)? {
                    compare(cluster, packet, &judged, tally)?;
                    *count += 1;
                }
            }
        }
        Ok(())
    });
    if let Err(error) = run {
        panic!("{error}");
    }
    let (tally, count) = tally.into_inner();
    println!("{clusters} clusters, {count} packets: {tally}");
    (tally, count)
}

/// The oracle itself: what the clusters come to.
struct Oracle;

impl Subject for Oracle {
    fn change_to(&mut self, _: &Cluster) {}

    fn judge(&mut self, cluster: &Cluster, packet: &Packet) -> Result<Option<Judged>, TestCaseError> {
        let Verdict { egress, ingress } = verdict(&cluster.model, packet);
        let told = |end: &End, side: &Side| {
            cluster.is_local(end).then(|| match side {
                Side::NotIsolated | Side::Exempt => Told::Open,
                Side::Allowed(rules) => {
                    let (policy, index) = rules.first().expect("one at least").clone();
                    Told::Allowed(policy, index)
                }
                Side::Denied(_) => Told::Denied,
            })
        };
        Ok(Some(Judged { egress: told(&packet.from, &egress), ingress: told(&packet.to, &ingress) }))
    }
}

#[test]
fn random_packets_are_allowed_and_denied_alike() {
    let (tally, _) = measure(200, PACKETS, || Oracle);
    tally.check();
}
