//! Ledger, kernel and status files brought to agree: at start, and as an audit.
//!
//! | found | done |
//! |---|---|
//! | row, link | programs attached, map rows and status written again: each is a no-op where it is right |
//! | row, link without its host routes, no status, fails CHECK | a half-made ADD: undone |
//! | row, no link | released: the namespace is gone, and the link with it |
//! | link, no row | deleted; kept and given a row if it cannot be |
//! | map row, no row or another interface | removed |
//! | status, no row | removed |
//!
//! After the loss of the ledger each link first gets a row again. That a namespace's *path* is gone proves
//! nothing (it may be another mount namespace's), so it is never asked: a link exists exactly as long as
//! the namespace it leads into.

use super::add::is_primary;
use super::{Host, HostEnd, Interface, OpenError, Plumbing, Row, Server, Status, parse_alias};
use crate::cni::types::NETWORK;
use crate::ipam::ledger::{Entry, Fresh, Recovered, State};
use crate::telemetry::chain;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// What recovery found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The ledger was missing or damaged.
    pub fresh: Option<Fresh>,
    /// Attachments that got a row again.
    pub adopted: usize,
    /// Attachments that are in order now.
    pub kept: usize,
    /// Rows whose link is gone, or was never finished.
    pub released: usize,
    /// Links that nobody answers for, deleted.
    pub links_deleted: usize,
    /// Map rows that nobody answers for, removed.
    pub rows_removed: usize,
    /// Status files of pods that are gone, removed.
    pub statuses_removed: usize,
    /// What did not work, each in a line.
    pub problems: Vec<String>,
}

impl Recovery {
    /// True if anything was not as it ought to be.
    #[must_use]
    pub const fn repaired(&self) -> bool {
        self.fresh.is_some()
            || !self.problems.is_empty()
            || self.adopted + self.released + self.links_deleted + self.rows_removed + self.statuses_removed
                > 0
    }
}

impl<P: Plumbing> Server<P> {
    /// Compares everything and repairs it. No request is served meanwhile.
    pub async fn recover(&self) -> Result<Recovery, OpenError> {
        self.reconcile(None).await
    }

    pub(super) async fn reconcile(&self, fresh: Option<Fresh>) -> Result<Recovery, OpenError> {
        let _gate = self.gate.write().await;
        let read = |what| move |source| OpenError::Read { what, source };
        let mut links = self.plumbing.links().await.map_err(read("links"))?;
        links.sort_by_key(|end| end.ifindex);
        let rows = self.plumbing.rows().await.map_err(read("map rows"))?;
        let statuses = self.plumbing.statuses().await.map_err(read("status files"))?;

        let mut recovery = Recovery { fresh, ..Recovery::default() };
        if recovery.fresh.is_some() {
            self.rebuild(&links, &rows, &mut recovery).await?;
        }
        let statuses = self.remove_statuses(statuses, &mut recovery).await;
        self.remove_links(&links, &rows, &mut recovery).await?;
        self.remove_rows(&links, &rows, &mut recovery).await;

        let links: BTreeMap<&str, &HostEnd> = links.iter().map(|end| (end.name.as_str(), end)).collect();
        for entry in self.ledger.state().entries() {
            let has_status = Status::of(entry).is_some_and(|status| statuses.contains(&status));
            let undo = match links.get(entry.host_name.as_str()) {
                Some(end) => !has_status && self.is_half_made(entry, end).await,
                None => true,
            };
            let done = match links.get(entry.host_name.as_str()).filter(|_| !undo) {
                Some(end) => self.replug(entry, end, has_status).await,
                None => self.detach(entry).await.map_err(|error| error.to_string()),
            };
            match done {
                Ok(()) if undo => recovery.released += 1,
                Ok(()) => recovery.kept += 1,
                Err(error) => recovery.problems.push(format!("{}: {error}", entry.attachment)),
            }
        }
        for problem in &recovery.problems {
            tracing::error!(problem, "recovery left something behind");
        }
        Ok(recovery)
    }

    /// Gives each link a row, from its alias, its routes and its map row.
    async fn rebuild(
        &self,
        links: &[HostEnd],
        rows: &[Row],
        recovery: &mut Recovery,
    ) -> Result<(), OpenError> {
        let found: Vec<Recovered> = links.iter().filter_map(|end| recovered(end, rows)).collect();
        let adopt = move |state: &mut State, clock| -> Vec<Result<Arc<Entry>, String>> {
            found.into_iter().map(|found| state.adopt(found, NETWORK, clock)).collect()
        };
        for adopted in self.ledger.commit(adopt).await.map_err(OpenError::Ledger)? {
            match adopted {
                Ok(_) => recovery.adopted += 1,
                Err(collision) => recovery.problems.push(collision),
            }
        }
        Ok(())
    }

    async fn remove_statuses(&self, statuses: Vec<Status>, recovery: &mut Recovery) -> BTreeSet<Status> {
        let state = self.ledger.state();
        let mut kept = BTreeSet::new();
        for status in statuses {
            if state.entries().any(|entry| Status::of(entry).as_ref() == Some(&status)) {
                kept.insert(status);
                continue;
            }
            let pod = &status.pod;
            match self.plumbing.remove_status(&status).await {
                Ok(()) => recovery.statuses_removed += 1,
                Err(fault) => recovery.problems.push(format!("status of {pod}: {}", chain(&fault))),
            }
        }
        kept
    }

    async fn remove_links(
        &self,
        links: &[HostEnd],
        rows: &[Row],
        recovery: &mut Recovery,
    ) -> Result<(), OpenError> {
        let state = self.ledger.state();
        let known: BTreeSet<&str> = state.entries().map(|entry| entry.host_name.as_str()).collect();
        for end in links.iter().filter(|end| !known.contains(end.name.as_str())) {
            let Err(fault) = self.plumbing.delete(&end.name).await else {
                recovery.links_deleted += 1;
                continue;
            };
            recovery.problems.push(format!("link {}: {}", end.name, chain(&fault)));
            // It is still there, and its addresses with it: nobody else may get them.
            let Some(found) = recovered(end, rows) else { continue };
            let adopt = move |state: &mut State, clock| state.adopt(found, NETWORK, clock);
            match self.ledger.commit(adopt).await.map_err(OpenError::Ledger)? {
                Ok(_) => recovery.adopted += 1,
                Err(collision) => recovery.problems.push(collision),
            }
        }
        Ok(())
    }

    async fn remove_rows(&self, links: &[HostEnd], rows: &[Row], recovery: &mut Recovery) {
        let state = self.ledger.state();
        let live: BTreeMap<u32, &Arc<Entry>> = state
            .entries()
            .filter_map(|entry| {
                let end = links.iter().find(|end| end.name == entry.host_name)?;
                Some((end.ifindex, entry))
            })
            .collect();
        let held: BTreeSet<IpAddr> =
            live.values().flat_map(|entry| entry.addresses.iter().copied()).collect();
        for row in rows {
            if live.get(&row.ifindex).is_some_and(|entry| entry.addresses == row.addresses) {
                continue;
            }
            // Rows under addresses of the living are theirs, and are written again by and by.
            let free: Vec<IpAddr> = row.addresses.iter().copied().filter(|a| !held.contains(a)).collect();
            match self.plumbing.expel(Host::Index(row.ifindex), &free).await {
                Ok(()) => recovery.rows_removed += 1,
                Err(fault) => {
                    let what = format!("map row of interface {}: {}", row.ifindex, chain(&fault));
                    recovery.problems.push(what);
                }
            }
        }
    }

    async fn is_half_made(&self, entry: &Entry, end: &HostEnd) -> bool {
        let routed = entry.addresses.iter().all(|address| end.addresses.contains(address));
        match Interface::of(entry) {
            Some(interface) if !routed => self.plumbing.check(&interface).await.is_err(),
            _ => false,
        }
    }

    /// The steps of ADD that follow the link. Status is only written where there is none.
    async fn replug(&self, entry: &Entry, end: &HostEnd, has_status: bool) -> Result<(), String> {
        let step = |what: &'static str| move |fault| format!("cannot {what}: {}", chain(&fault));
        let link = match (end.link, Interface::of(entry)) {
            (Some(link), _) => link,
            (None, Some(interface)) => {
                self.plumbing.check(&interface).await.map_err(step("see the inner end of the link"))?
            }
            (None, None) => return Err("cannot see the inner end of the link".to_owned()),
        };
        self.plumbing.attach(entry, &link).await.map_err(step("attach the programs"))?;
        self.plumbing.admit(entry, &link).await.map_err(step("write the map rows"))?;
        if !has_status && is_primary(&self.ledger.state(), entry) {
            self.plumbing.write_status(entry).await.map_err(step("report the addresses"))?;
        }
        Ok(())
    }
}

/// None for what has no address, and so was never finished, or does not say whose it is.
fn recovered(end: &HostEnd, rows: &[Row]) -> Option<Recovered> {
    let (attachment, pod) = parse_alias(&end.alias)?;
    let row = rows.iter().find(|row| row.ifindex == end.ifindex);
    let mut addresses = end.addresses.clone();
    for address in row.map_or(&[][..], |row| row.addresses.as_slice()) {
        if !addresses.contains(address) {
            addresses.push(*address);
        }
    }
    addresses.sort();
    if addresses.is_empty() {
        return None;
    }
    let endpoint = row.map(|row| row.endpoint);
    Some(Recovered { attachment, pod, addresses, host_name: end.name.clone(), endpoint })
}
