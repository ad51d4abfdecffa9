//! `netd monitor`: what happens, a line for each event, until it is interrupted.

use super::Exit;
use super::client::{Lines, Query, question};
use super::output;
use crate::answer;
use crate::answer::event::Event;
use crate::config::Loader;
use clap::builder::PossibleValuesParser;
use netd_bpf::event::reason;
use serde_json::Value;

fn reasons() -> PossibleValuesParser {
    PossibleValuesParser::new(reason::ALL.iter().map(|(_, label, _)| *label))
}

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Dropped packets only
    #[arg(long)]
    drops: bool,
    /// New flows only, with the policy rules that allowed them; where datapath.audit.flows is on
    #[arg(long)]
    flows: bool,
    /// Only what is about this pod: NAMESPACE/NAME, NAME alone, or the container of a pod without a name
    #[arg(long, value_name = "NAME")]
    pod: Option<String>,
    /// Only packets dropped for this reason
    #[arg(long, value_parser = reasons(), hide_possible_values = true)]
    reason: Option<String>,
    /// End after so many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    query: Query,
}

pub(super) fn run(arguments: &Arguments, loader: &Loader) -> anyhow::Result<Exit> {
    let path = question(
        "/v1/events",
        &[
            ("drops", arguments.drops.then(|| "true".to_owned())),
            ("flows", arguments.flows.then(|| "true".to_owned())),
            ("pod", arguments.pod.clone()),
            ("reason", arguments.reason.clone()),
        ],
    );
    let mut lines = Lines::open(&arguments.query.socket(loader)?, &path)?;
    let mut left = arguments.count;
    while left != Some(0) {
        let Some(line) = lines.next()? else { return Err(lines.gone().into()) };
        let value: Value = serde_json::from_slice(&line)?;
        let event: Event = answer::read(&value)?;
        match arguments.query.output {
            output::Format::Json => output::text(&format!("{value}\n"))?,
            output::Format::Text => output::text(&format!("{}\n", told(&event)))?,
        }
        // What was lost is no event that anybody asked for.
        if event.lost.is_none() {
            left = left.map(|left| left.saturating_sub(1));
        }
    }
    Ok(Exit::Ok)
}

fn told(event: &Event) -> String {
    // The day is that of the reader.
    let time = event.time.split_once('T').map_or(event.time.as_str(), |(_, time)| time);
    let kind = event.kind.to_string();
    let about = match (&event.drop, &event.subject) {
        (Some(drop), _) => format!("{drop}  "),
        (None, Some(subject)) if !event.message.contains(subject.as_str()) => format!("{subject}  "),
        (None, _) => String::new(),
    };
    format!("{time}  {kind:<7}  {about}{}", event.message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::samples;

    #[test]
    fn events_are_one_line_each() {
        let lines: Vec<String> = samples::events().iter().map(told).collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        12:04:31.118Z  DROP     shop/web-0 10.42.3.5:40312 → shop/api 10.96.0.10:80 tcp SYN  the Service has no ready endpoint
        12:04:31.118Z  DROP     at shop/web-0: 192.0.2.1 → shop/db-0 10.42.3.6 icmp  the source address is not the pod's
        12:04:31.118Z  DROP     shop/web-0 → shop/db-0:5432/tcp SYN  ingress of shop/db-0 is isolated by shop/default-deny and shop/db-allow; no rule allows it
        12:04:31.118Z  DROP     shop/db-0:5432/tcp → shop/web-0 ACK  answers a flow that is not allowed any more: egress of shop/web-0 is isolated by shop/web; shop/web rule 2 denies it
        12:04:31.118Z  flow     shop/web-0 → shop/api (10.96.0.10:80/tcp → shop/api-1:8080) allowed by egress shop/web rule 1
        12:04:31.118Z  flow     57 new flows were not told: their CPUs had told their parts of datapath.audit.rate (100 a second), or events came faster than they were read
        12:04:31.118Z  LOST     40 events were lost: they came faster than they were read
        12:04:31.118Z  service  shop/api  changed: 3 endpoints, 1 on this node, had 2 and 1
        12:04:31.118Z  cni      shop/web-1  added with 10.42.3.7 in 3.1ms
        12:04:31.118Z  service  Service shop/big is not served: it needs 3 more frontends
        ");
    }
}
