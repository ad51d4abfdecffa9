//! Addresses: who claims which, and whose class each has.
//!
//! Several may claim an address while one pod follows another. This node itself is right before its ledger, the ledger
//! before the model, and of the model's pods one that stays before one that goes; otherwise names decide, for the tables
//! must not depend on the order in which things were told.

use super::Planner;
use super::classes::ClassKey;
use crate::policy::blocks::{addr, bits, contains, longest};
use crate::policy::desired::Identity;
use netd_bpf::Addr;
use netd_bpf::policy::Block;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// An address.
#[derive(Debug, Default)]
pub(super) struct Address {
    claims: Vec<Claim>,
    class: Option<ClassKey>,
}

/// A claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// This node.
    Node,
    /// A container of this node that no pod is behind.
    Container {
        /// Its number.
        endpoint: u32,
    },
    /// A pod of this node.
    Local {
        /// Its number.
        endpoint: u32,
        /// The planner's own.
        pod: u32,
    },
    /// A pod of another node.
    Remote(u32),
}

/// An address as a number.
pub(super) fn bits_of(ip: IpAddr) -> u128 {
    bits(Addr::from(ip))
}

impl Planner {
    pub(super) fn claim(&mut self, address: u128, claim: Claim) {
        self.addresses.entry(address).or_default().claims.push(claim);
        self.dirty.addresses.insert(address);
    }

    pub(super) fn unclaim(&mut self, address: u128, claim: &Claim) {
        if let Some(record) = self.addresses.get_mut(&address)
            && let Some(at) = record.claims.iter().position(|own| own == claim)
        {
            record.claims.swap_remove(at);
            self.dirty.addresses.insert(address);
        }
    }

    pub(super) fn change_node_addresses(&mut self, addresses: &[IpAddr]) {
        let new: BTreeSet<IpAddr> = addresses.iter().copied().collect();
        let old = std::mem::take(&mut self.seen.node_addresses);
        for gone in old.difference(&new) {
            self.unclaim(bits_of(*gone), &Claim::Node);
        }
        for come in new.difference(&old) {
            self.claim(bits_of(*come), Claim::Node);
        }
        self.seen.node_addresses = new;
    }

    /// The claim that counts.
    fn winner<'c>(&self, claims: &'c [Claim]) -> Option<&'c Claim> {
        if let [only] = claims {
            return Some(only);
        }
        claims.iter().min_by_key(|claim| match claim {
            Claim::Node => (0, 0, false, None),
            Claim::Container { endpoint } | Claim::Local { endpoint, .. } => (1, *endpoint, false, None),
            Claim::Remote(pod) => {
                let pod = self.pods.records.get(pod);
                let goes = pod.and_then(|pod| pod.object.as_ref()).is_some_and(|pod| pod.terminating);
                (2, 0, goes, pod.map(|pod| &pod.name))
            }
        })
    }

    /// Gives addresses the classes that they are to have.
    pub(super) fn renew_addresses(&mut self) {
        for address in std::mem::take(&mut self.dirty.addresses) {
            let Some(record) = self.addresses.get(&address) else { continue };
            let (key, before) = (addr(address), record.class);
            let endpoint = record.claims.iter().filter_map(|claim| match claim {
                Claim::Container { endpoint } | Claim::Local { endpoint, .. } => Some(*endpoint),
                Claim::Node | Claim::Remote(_) => None,
            });
            match endpoint.min() {
                Some(endpoint) => self.desired.endpoints.insert(key, endpoint),
                None => self.desired.endpoints.remove(&key),
            };
            let Some(winner) = self.winner(&record.claims) else {
                self.addresses.remove(&address);
                self.desired.identities.remove(&key);
                self.touched.identities.insert(key);
                before.into_iter().for_each(|before| self.classes.release(before));
                continue;
            };
            let pod = match winner {
                Claim::Node | Claim::Container { .. } => None,
                Claim::Local { pod, .. } => self.pods.records.get(pod).filter(|pod| !pod.finished()),
                Claim::Remote(pod) => self.pods.records.get(pod),
            };
            let node = *winner == Claim::Node;
            let class = ClassKey { profile: pod.and_then(|pod| pod.profile), block: self.block_of(key) };
            let number = self.classes.acquire(class);
            before.into_iter().for_each(|before| self.classes.release(before));
            if let Some(record) = self.addresses.get_mut(&address) {
                record.class = Some(class);
            }
            let identity = Identity { number, node };
            if self.desired.identities.insert(key, identity) != Some(identity) {
                self.touched.identities.insert(key);
            }
        }
    }

    /// The longest block that has an address, as the API understands it.
    fn block_of(&self, address: Addr) -> Option<Block> {
        let host = Block { prefix: u128::BITS, addr: address };
        let (block, _) = longest(&self.desired.blocks, address)?;
        // The guard is no policy's block.
        (self.peers.blocks.has(block) && contains(block, &host)).then_some(*block)
    }
}
