//! Pod → Service → pod on one node, by the number of Services: plain routing without a Service, kube-proxy's
//! rules, netd.

use super::Case;
use crate::load::{Cpus, Load};
use crate::options::Options;
use crate::report::{Bar, Report, Row};
use crate::rounds::{self, Series};
use crate::subjects::{self, Subject, iptables, nftables, with_netd};
use anyhow::Result;
use netd_integration::lab::Lab;

/// Beyond this iptables would take minutes to load, and milliseconds for a new connection.
const IPTABLES_MOST: u32 = 5_000;

const REFERENCE: &str = "plain routing";

pub(super) fn run(lab: &Lab, options: &Options, report: &Report) -> Result<Vec<Row>> {
    let cpus = Cpus::choose()?;
    let sizes = options.sizes();
    let mut standing = vec![subjects::plain(lab, cpus)?];
    for &count in sizes.iter().filter(|&&count| count <= IPTABLES_MOST) {
        report.progress(&format!("  kube-proxy's iptables rules for {count} Services"));
        standing.push(iptables(lab, count, cpus)?);
    }
    for &count in &sizes {
        report.progress(&format!("  kube-proxy's nftables rules for {count} Services"));
        standing.push(nftables(lab, count, cpus)?);
    }
    let no_ipvs = subjects::ipvs_missing();
    for &count in sizes.iter().filter(|_| no_ipvs.is_none()) {
        report.progress(&format!("  kube-proxy's virtual servers for {count} Services"));
        standing.push(subjects::ipvs(lab, count, cpus)?);
    }
    for &count in &sizes {
        report.progress(&format!("  netd with {count} Services"));
        standing.push(with_netd(lab, count, cpus)?);
    }
    standing.iter().try_for_each(|subject| subject.check(cpus))?;

    let mut rows = Vec::new();
    for load in Load::ALL {
        for place in cpus.places() {
            let metric = format!("{}, {}", load.metric(), place.name);
            report.progress(&format!("  {metric}"));
            let measured = rounds::interleave(options.rounds(), &standing, |subject| {
                subject.measure(load, options.slice(), place)
            })?;
            rows.extend(judge(load, &metric, &sizes, &standing, &measured));
        }
    }
    if sizes.iter().any(|&count| count > IPTABLES_MOST) {
        let why = format!("not above {IPTABLES_MOST} Services");
        rows.push(Row::missing(Case::Service, "kube-proxy iptables", &why));
    }
    if let Some(why) = no_ipvs {
        rows.push(Row::missing(Case::Service, "kube-proxy IPVS", why));
    }
    Ok(rows)
}

/// The ratio of all to plain routing, and of netd's largest to its smallest.
fn judge(load: Load, metric: &str, sizes: &[u32], standing: &[Subject<'_>], measured: &[Series]) -> Vec<Row> {
    let named = |name: &str| {
        standing.iter().zip(measured).find(|(subject, _)| subject.name == name).map(|(_, series)| series)
    };
    let mut rows = Vec::new();
    for (subject, series) in standing.iter().zip(measured) {
        let mut row = Row::new(Case::Service, subject.name.clone(), metric, load.unit(), series.clone());
        if let Some(note) = &subject.note {
            row = row.note(note.clone());
        }
        if let Some(reference) = named(REFERENCE).filter(|_| subject.name != REFERENCE) {
            row = row.to(REFERENCE, reference);
            let bar = match load {
                Load::Requests => Some(Bar::ratio(1.05, 1.10)),
                Load::Connections => Some(Bar::ratio(1.0, 1.2)),
                Load::Stream => None,
            };
            if let Some(bar) = bar.filter(|_| subject.name.starts_with("netd")) {
                row = row.bar(bar);
            }
        }
        rows.push(row);
    }
    if let (Some(least), Some(most)) = (sizes.first(), sizes.last())
        && least != most
    {
        let (small, large) = (format!("netd, {least}"), format!("netd, {most}"));
        if let (Some(one), Some(many)) = (named(&small), named(&large)) {
            let row = Row::new(Case::Service, large, metric, load.unit(), many.clone());
            rows.push(row.to(small, one).bar(Bar::ratio(0.95, 0.98)));
        }
    }
    rows
}
