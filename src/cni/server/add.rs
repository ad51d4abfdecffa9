//! ADD, step by step.

use super::{Fault, Interface, Link, Lookup, Plumbing, Server, ledger_failed};
use crate::cni::types::Attachment;
use crate::cni::types::result::{AttachResult, Interface as Shown, Ip, Route};
use crate::cni::types::{Add, Code, Error};
use crate::ipam::ledger::{AllocateError, Clock, Entry, New, State};
use crate::ipam::pool::{self, ADDRESSES_ANNOTATION};
use crate::telemetry::chain;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Every pod's gateway: a permanent neighbour entry, no address of any range.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

impl<P: Plumbing> Server<P> {
    pub(super) async fn attach(&self, add: Add) -> Result<AttachResult, Error> {
        let _gate = self.gate.read().await;
        let _lock = self.locks.lock(&add.attachment).await;
        if let Some(entry) = self.ledger.state().get(&add.attachment) {
            return Err(duplicate(&add.attachment, entry));
        }
        if !tokio::fs::try_exists(&add.netns).await.unwrap_or(true) {
            let msg = format!("CNI_NETNS={} does not exist", add.netns.display());
            return Err(Error::new(Code::ENVIRONMENT, msg));
        }
        let fixed = self.fixed_addresses(&add).await?;
        self.take_over(&add, &fixed).await?;
        let new = New {
            attachment: add.attachment.clone(),
            network: add.network,
            pod: add.pod,
            pod_uid: add.pod_uid,
            fixed,
            netns: add.netns,
            host_name: self.plumbing.host_name(&add.attachment),
        };
        let capacity = self.plumbing.capacity();
        // All attachments go through here one by one: none is made that would find no room in the end.
        let allocate = move |state: &mut State, clock: Clock| {
            let attached = state.entries().count();
            if attached < capacity { state.allocate(new, clock).map_err(Some) } else { Err(None) }
        };
        let entry = self.ledger.commit(allocate).await.map_err(|error| ledger_failed(&error))?;
        let entry = entry.map_err(|error| match error {
            None => node_full(capacity),
            Some(error @ AllocateError::Duplicate { .. }) => Error::new(Code::DUPLICATE, error.to_string()),
            Some(AllocateError::Pool(error)) => no_address(&error),
        })?;
        match self.plug(&entry).await {
            Ok(link) => {
                tracing::info!(
                    attachment = %entry.attachment, addresses = ?entry.addresses, endpoint = entry.endpoint,
                    "attached"
                );
                let mut own = describe(&entry, &link);
                own.dns = add.dns.unwrap_or_default();
                Ok(match add.previous {
                    Some(previous) => previous.followed_by(own),
                    None => own,
                })
            }
            Err(mut error) => {
                if let Err(left) = self.detach(&entry).await {
                    error.details.push_str("; and it could not be undone, DEL will: ");
                    error.details.push_str(&left.to_string());
                }
                Err(error)
            }
        }
    }

    /// What the pod must get: what the runtime says counts before what the pod's annotation says.
    async fn fixed_addresses(&self, add: &Add) -> Result<Vec<IpAddr>, Error> {
        let Some(name) = &add.pod else { return Ok(add.fixed.clone()) };
        let sync_wait = *self.sync_wait.borrow();
        let pod = match self.plumbing.lookup(name, sync_wait).await {
            Lookup::Known(pod) => pod,
            Lookup::Unknown => return Ok(add.fixed.clone()),
            Lookup::Unsynced => {
                let details = format!("the source of state is not synced after {sync_wait:?}");
                return Err(Error::because(Code::TRY_LATER, "netd cannot judge the pod yet", details));
            }
        };
        match pod.annotations.get(ADDRESSES_ANNOTATION) {
            Some(text) if add.fixed.is_empty() => pool::parse_fixed(text).map_err(|error| no_address(&error)),
            _ => Ok(add.fixed.clone()),
        }
    }

    /// A pod's new sandbox may come before the end of the old one; what it asks for by name is taken from
    /// that. No cycle: the one that waits has no row yet, the one that is waited for has.
    async fn take_over(&self, add: &Add, fixed: &[IpAddr]) -> Result<(), Error> {
        for address in fixed {
            let holder = self.ledger.state().holder(*address).cloned();
            let Some(old) = holder.filter(|old| {
                old.pod.is_some()
                    && old.pod == add.pod
                    && old.attachment.container_id != add.attachment.container_id
            }) else {
                continue;
            };
            let _lock = self.locks.lock(&old.attachment).await;
            if self.ledger.state().get(&old.attachment) == Some(&old) {
                tracing::info!(attachment = %old.attachment, %address, "replaced by the pod's new sandbox");
                self.detach(&old).await?;
            }
        }
        Ok(())
    }

    /// All steps after the ledger.
    async fn plug(&self, entry: &Arc<Entry>) -> Result<Link, Error> {
        let failed = |what: &str, fault: &Fault| {
            let code = match fault {
                Fault::NoNetns(_) => Code::ENVIRONMENT,
                Fault::NameTaken(_) => Code::NAME_TAKEN,
                Fault::NotYet(_) => Code::TRY_LATER,
                Fault::Differs(_) | Fault::Failed(_) => Code::KERNEL,
            };
            let msg = match fault {
                Fault::NoNetns(_) => "CNI_NETNS cannot be opened".to_owned(),
                Fault::NotYet(_) => format!("cannot {what} {} yet", entry.attachment),
                _ => format!("cannot {what} {}", entry.attachment),
            };
            Error::because(code, msg, chain(fault))
        };
        let Some(interface) = Interface::of(entry) else {
            return Err(Error::new(Code::ENVIRONMENT, "CNI_NETNS is missing"));
        };
        let sync_wait = *self.sync_wait.borrow();
        let policies = self.plumbing.prepare(entry, sync_wait).await;
        policies.map_err(|f| failed("put the policies in force for", &f))?;
        let link = self.plumbing.create(&interface).await.map_err(|f| failed("create the link of", &f))?;
        self.plumbing.attach(entry, &link).await.map_err(|f| failed("attach the programs of", &f))?;
        self.plumbing.admit(entry, &link).await.map_err(|f| failed("write the map rows of", &f))?;
        // Only now: its first packet must find all of that.
        self.plumbing.start(&interface).await.map_err(|f| failed("bring up the link of", &f))?;
        if is_primary(&self.ledger.state(), entry) {
            self.plumbing.write_status(entry).await.map_err(|f| failed("report the addresses of", &f))?;
        }
        Ok(link)
    }
}

/// Whether a pod's address, as others see it, is this attachment's: it is that of its container's first
/// interface.
pub(super) fn is_primary(state: &State, entry: &Entry) -> bool {
    let order = |entry: &Entry| (entry.allocated_at, entry.attachment.ifname.clone());
    let same_container = |other: &&Arc<Entry>| other.attachment.container_id == entry.attachment.container_id;
    entry.pod.is_some() && state.entries().filter(same_container).all(|other| order(other) >= order(entry))
}

fn duplicate(attachment: &Attachment, entry: &Entry) -> Error {
    let addresses: Vec<String> = entry.addresses.iter().map(IpAddr::to_string).collect();
    let details = format!(
        "it has {} since {}; nothing was changed. DEL it first",
        addresses.join(" and "),
        entry.allocated_at
    );
    Error::because(Code::DUPLICATE, format!("{attachment} is attached already"), details)
}

/// Another pod's end makes room, so that it is worth to try again.
fn node_full(capacity: usize) -> Error {
    let details = format!("netd's tables are made for {capacity} pods, and all are in use (datapath.pods)");
    Error::because(Code::TRY_LATER, "no room for another pod on this node", details)
}

fn no_address(error: &pool::Error) -> Error {
    let code = if error.is_retryable() { Code::TRY_LATER } else { Code::FIXED_ADDRESS };
    Error::because(code, "no address for the pod", error.to_string())
}

/// The result: both ends of the link, the addresses on the inner one, a default route for each family.
fn describe(entry: &Entry, link: &Link) -> AttachResult {
    let mac = |mac: [u8; 6]| Some(mac.map(|byte| format!("{byte:02x}")).join(":"));
    let mut result = AttachResult::default();
    result.interfaces = vec![
        Shown {
            name: entry.host_name.clone(),
            mac: mac(link.host_mac),
            mtu: Some(link.mtu),
            ..Shown::default()
        },
        Shown {
            name: entry.attachment.ifname.clone(),
            mac: mac(link.pod_mac),
            mtu: Some(link.mtu),
            sandbox: entry.netns.as_ref().map(|path| path.display().to_string()),
            ..Shown::default()
        },
    ];
    for address in &entry.addresses {
        let (gateway, all) = match address {
            IpAddr::V4(_) => (IpAddr::V4(GATEWAY_V4), IpNet::V4(Ipv4Net::default())),
            IpAddr::V6(_) => (IpAddr::V6(GATEWAY_V6), IpNet::V6(Ipv6Net::default())),
        };
        result.ips.push(Ip::new(IpNet::from(*address), gateway, 1));
        result.routes.push(Route { dst: all, gw: Some(gateway), more: serde_json::Map::new() });
    }
    result
}
