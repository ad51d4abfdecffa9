//! `netd endpoints`: the pods of this node.

use super::Exit;
use super::client::{Query, question};
use super::output::{self, Page};
use super::units::{filled, span};
use crate::answer::endpoints::{Endpoint, Endpoints};
use crate::config::Loader;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Only this pod: NAMESPACE/NAME, NAME alone, or the container of a pod without a name
    pod: Option<String>,
    /// Points in time instead of ages
    #[arg(long)]
    utc: bool,
    #[command(flatten)]
    query: Query,
}

pub(super) fn run(arguments: &Arguments, loader: &Loader) -> anyhow::Result<Exit> {
    let path = question("/v1/endpoints", &[("pod", arguments.pod.clone())]);
    let endpoints: Endpoints = arguments.query.ask(loader, &path)?;
    if arguments.query.output == output::Format::Text {
        output::page(&page(&endpoints, arguments.utc))?;
    }
    Ok(if endpoints.endpoints.iter().all(|endpoint| endpoint.ok) { Exit::Ok } else { Exit::Failed })
}

fn page(endpoints: &Endpoints, utc: bool) -> Page {
    let mut page = Page::default();
    if endpoints.endpoints.is_empty() {
        page.line(format!("no pods on {}", endpoints.node));
        return page;
    }
    let rows = endpoints.endpoints.iter().map(|one| (!one.ok, row(one, utc))).collect();
    let since = if utc { "SINCE" } else { "AGE" };
    page.table(["POD", "ADDRESSES", "INTERFACE", "NUMBER", "FLOWS", "DROPS", since], rows);
    for endpoint in &endpoints.endpoints {
        if let Some(problem) = &endpoint.problem {
            page.line("");
            page.judged(true, format!("{}: {problem}", name(endpoint)));
            page.line(format!("  next: {}", endpoint.next.as_deref().unwrap_or("netd status")));
        }
    }
    page
}

fn name(endpoint: &Endpoint) -> String {
    if endpoint.pod == endpoint.container {
        format!("container {}", endpoint.container)
    } else {
        endpoint.pod.clone()
    }
}

fn row(endpoint: &Endpoint, utc: bool) -> [String; 7] {
    let addresses: Vec<String> = endpoint.addresses.iter().map(ToString::to_string).collect();
    let drops: Vec<String> =
        endpoint.drops.iter().map(|drops| format!("{} {}", drops.packets, drops.reason)).collect();
    [
        name(endpoint),
        addresses.join(", "),
        endpoint.interface.clone(),
        endpoint.endpoint.to_string(),
        filled(endpoint.flows, endpoint.flows_limit),
        if drops.is_empty() { "0".to_owned() } else { drops.join(", ") },
        if utc { endpoint.since.clone() } else { span(endpoint.age_seconds) },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::samples;

    #[test]
    fn pods_and_what_is_wrong_with_them() {
        insta::assert_snapshot!(page(&samples::endpoints(), false).render(false), @r"
        POD           ADDRESSES                INTERFACE  NUMBER  FLOWS               DROPS                      AGE
        shop/web-0    10.42.3.5, fd00:42:3::5  nd1a2b     7       12/65536            4 no_backend, 1 malformed  4h1m
        container c2  10.42.3.6                nd1a2b     8       32768/65536 (50 %)  0                          4h1m

        container c2: the datapath does not know it
          next: kill -HUP 1412
        ");
        let utc = page(&samples::endpoints(), true).render(false);
        assert!(utc.contains("SINCE") && utc.contains("2026-01-02T03:04:05Z"), "{utc}");
    }

    #[test]
    fn a_node_without_pods_says_so() {
        let none = Endpoints { endpoints: Vec::new(), ..samples::endpoints() };
        assert_eq!(page(&none, false).render(false), "no pods on node-1\n");
    }
}
