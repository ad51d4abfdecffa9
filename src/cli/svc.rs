//! `netd svc list|show`: Services as they are wanted, and as the kernel's maps have them.

use super::Exit;
use super::client::{Query, question};
use super::output::{self, Page};
use super::units::{counted, span};
use crate::answer::services::{Backend, Frontend, Service, Services, Shown, State};
use crate::config::Loader;

/// Addresses in one line of a list.
const ADDRESSES: usize = 4;

/// What no size of a table can help.
const TARGET_PORT: &str = "target_port";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List all Services
    List(Query),
    /// Show one, with its endpoints and what the kernel has
    Show {
        /// NAMESPACE/NAME, or NAME alone
        name: String,
        #[command(flatten)]
        query: Query,
    },
}

pub(super) fn run(command: &Command, loader: &Loader) -> anyhow::Result<Exit> {
    let (query, page, well) = match command {
        Command::List(query) => {
            let services: Services = query.ask(loader, "/v1/services")?;
            let well = services.strays.is_empty() && services.services.iter().all(|one| one.state.is_well());
            (query, list(&services), well)
        }
        Command::Show { name, query } => {
            let shown: Shown =
                query.ask(loader, &question("/v1/service", &[("name", Some(name.clone()))]))?;
            (query, show(&shown), shown.state.is_well())
        }
    };
    if query.output == output::Format::Text {
        output::page(&page)?;
    }
    Ok(if well { Exit::Ok } else { Exit::Failed })
}

fn list(services: &Services) -> Page {
    let mut page = Page::default();
    if services.services.is_empty() {
        page.line("no Services");
    } else {
        let rows = services.services.iter().map(|one| (!one.state.is_well(), row(one))).collect();
        page.table(["SERVICE", "ADDRESSES", "ENDPOINTS", "LOCAL", "STATE"], rows);
    }
    for service in services.services.iter().filter(|one| !one.state.is_well()) {
        page.line("");
        page.judged(true, explained(&service.service, service.reason.as_deref()));
        page.line(format!("  next: netd svc show {}", service.service));
    }
    if !services.strays.is_empty() {
        let all: Vec<String> = services.strays.iter().map(ToString::to_string).collect();
        page.line("");
        page.judged(true, format!("in the kernel, and no Service's: {}", all.join(", ")));
        page.line("  next: netd status");
    }
    page
}

/// A reason, with the name before it unless it has it.
fn explained(name: &str, reason: Option<&str>) -> String {
    match reason {
        Some(reason) if reason.contains(name) => reason.to_owned(),
        Some(reason) => format!("{name}: {reason}"),
        None => name.to_owned(),
    }
}

fn row(service: &Service) -> [String; 5] {
    let mut addresses: Vec<String> =
        service.frontends.iter().take(ADDRESSES).map(ToString::to_string).collect();
    if service.frontends.len() > ADDRESSES {
        addresses.push(format!("{} more", service.frontends.len() - ADDRESSES));
    }
    let counts = service.state != State::NotServed;
    let number = |count: usize| if counts { count.to_string() } else { "-".to_owned() };
    [
        service.service.clone(),
        if addresses.is_empty() { "-".to_owned() } else { addresses.join(", ") },
        number(service.endpoints),
        number(service.endpoints_local),
        service.state.to_string(),
    ]
}

fn show(shown: &Shown) -> Page {
    let mut page = Page::default();
    let well = shown.state.is_well();
    page.judged(!well, format!("Service {}  {}  (seen from {})", shown.service, shown.state, shown.node));
    let affinity =
        shown.affinity_seconds.map_or("none".to_owned(), |time| format!("client, {}", span(time.into())));
    page.line(format!("affinity {affinity}  internal traffic policy {}", shown.internal_traffic_policy));
    if let Some(reason) = &shown.reason {
        page.judged(!well, reason.clone());
        match shown.state {
            State::Refused if shown.refusal.as_ref().is_some_and(|refusal| refusal.lacks == TARGET_PORT) => {
                page.line("  next: give the Service's port a targetPort of the same number");
            }
            State::Refused => page.line("  next: netd config show"),
            State::Conflict => page.line("  next: netd svc list"),
            // Audits compare and mend.
            State::Differs => page.line("  next: netd monitor"),
            _ => {}
        }
    }
    for frontend in &shown.frontends {
        page.line("");
        frontend_lines(frontend, &mut page);
    }
    page
}

fn frontend_lines(frontend: &Frontend, page: &mut Page) {
    let kernel = match (frontend.number, frontend.slot_base) {
        (None, _) => "not in the kernel".to_owned(),
        (Some(number), None) => format!("port {number} in the kernel, no slots"),
        (Some(number), Some(base)) => {
            let end = u64::from(base) + u64::from(frontend.slots).saturating_sub(1);
            format!("port {number} in the kernel, slots {base} to {end}")
        }
    };
    let endpoints = counted(frontend.endpoints, "endpoint");
    page.judged(!frontend.differences.is_empty(), format!("{}  {endpoints}  {kernel}", frontend.port));
    for difference in &frontend.differences {
        page.judged(true, format!("  differs: {difference}"));
    }
    if frontend.backends.is_empty() {
        return;
    }
    let mut rows = vec![["  ENDPOINT", "POD", "NODE", "STATE", "FLOWS"].map(str::to_owned)];
    rows.extend(frontend.backends.iter().map(backend_row));
    output::columns(&rows).for_each(|line| page.line(line));
}

fn backend_row(backend: &Backend) -> [String; 5] {
    let node = match (&backend.node, backend.local) {
        (Some(node), true) => format!("{node} (this)"),
        (Some(node), false) => node.clone(),
        (None, true) => "this".to_owned(),
        (None, false) => "-".to_owned(),
    };
    [
        format!("  {}", backend.address),
        backend.pod.clone().unwrap_or_else(|| "-".to_owned()),
        node,
        backend.state.to_string(),
        backend.flows.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::samples;

    #[test]
    fn a_list_with_everything_that_can_be() {
        insta::assert_snapshot!(list(&samples::services()).render(false), @r"
        SERVICE   ADDRESSES                                                                       ENDPOINTS  LOCAL  STATE
        shop/api  10.96.0.10:80/tcp, [fd00:96::10]:80/tcp                                         3          1      ok
        shop/dns  10.96.0.11:1/udp, 10.96.0.11:2/udp, 10.96.0.11:3/udp, 10.96.0.11:4/udp, 2 more  0          0      no endpoints
        shop/db   -                                                                               -          -      not served
        shop/big  10.96.0.10:80/tcp, [fd00:96::10]:80/tcp                                         3          0      refused
        shop/odd  10.96.0.10:80/tcp, [fd00:96::10]:80/tcp                                         0          0      differs

        Service shop/big leads to 2 of 3 endpoints at 10.96.0.10:80/TCP: it needs 3 slots
          next: netd svc show shop/big

        shop/odd: the kernel has no row for it
          next: netd svc show shop/odd

        in the kernel, and no Service's: 10.96.0.99:53/udp
          next: netd status
        ");
    }

    #[test]
    fn one_service_in_order_and_one_that_the_kernel_has_otherwise() {
        insta::assert_snapshot!(show(&samples::service()).render(false), @r"
        Service shop/api  ok  (seen from node-1)
        affinity client, 3h  internal traffic policy Cluster

        10.96.0.10:80/tcp  2 endpoints  port 4 in the kernel, slots 12 to 13
          ENDPOINT        POD         NODE           STATE   FLOWS
          10.42.3.5:8080  shop/api-0  node-1 (this)  active  2
          10.42.4.6:8080  shop/api-1  node-2         active  0
          10.42.4.9:8080  -           -              left    1

        [fd00:96::10]:80/tcp  0 endpoints  port 4 in the kernel, no slots
        ");
        let next = |shown: &Shown| {
            let page = show(shown).render(false);
            page.lines().find_map(|line| line.strip_prefix("  next: ").map(str::to_owned))
        };
        let mut refused = samples::refused_service();
        assert_eq!(next(&refused).as_deref(), Some("netd config show"));
        refused.refusal.as_mut().expect("a refusal").lacks = TARGET_PORT.to_owned();
        let advice = "give the Service's port a targetPort of the same number";
        assert_eq!(next(&refused).as_deref(), Some(advice));
        insta::assert_snapshot!(show(&samples::differing_service()).render(false), @r"
        Service shop/api  differs  (seen from node-1)
        affinity none  internal traffic policy Cluster
        10.42.3.5:8080 is wanted and not in the slots (and 1 more)
          next: netd monitor

        10.96.0.10:80/tcp  2 endpoints  port 4 in the kernel, slots 12 to 13
          differs: 10.42.3.5:8080 is wanted and not in the slots
          ENDPOINT        POD         NODE           STATE    FLOWS
          10.42.3.5:8080  shop/api-0  node-1 (this)  missing  2
        ");
    }
}
