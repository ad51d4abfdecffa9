//! `netd conntrack list|summary`: the flows that the datapath knows.

use super::Exit;
use super::client::{Lines, Query, question};
use super::output::{self, Page};
use super::units::{filled, span};
use crate::answer::conntrack::{Flow, Head, Line, State, Summary, Tail};
use crate::answer::{self, Answer as _};
use crate::config::Loader;
use serde_json::Value;
use std::net::SocketAddr;

/// Bytes gathered before they are written.
const CHUNK: usize = 64 << 10;

/// Pods in a summary for people.
const PODS: usize = 20;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List flows, both directions of one in one line
    List(Box<List>),
    /// Count them by protocol, state, table and pod
    Summary(Query),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Only flows of this pod: NAMESPACE/NAME, NAME alone, or the container of a pod without a name
    #[arg(long, value_name = "NAME")]
    pod: Option<String>,
    /// Only flows through this Service: NAMESPACE/NAME, or NAME alone
    #[arg(long, value_name = "NAME")]
    svc: Option<String>,
    /// Only this protocol: tcp, udp, sctp, icmp, icmpv6 or a number
    #[arg(long, value_name = "PROTOCOL")]
    proto: Option<String>,
    /// Only flows that have come so far
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Only flows with this address, or one of this range, at either end
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// At most so many; 0: all
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
    #[command(flatten)]
    query: Query,
}

pub(super) fn run(command: &Command, loader: &Loader) -> anyhow::Result<Exit> {
    match command {
        Command::List(list) => run_list(list, loader),
        Command::Summary(query) => {
            let summary: Summary = query.ask(loader, "/v1/conntrack/summary")?;
            if query.output == output::Format::Text {
                output::page(&summary_page(&summary))?;
            }
            Ok(Exit::Ok)
        }
    }
}

fn run_list(list: &List, loader: &Loader) -> anyhow::Result<Exit> {
    let path = question(
        "/v1/conntrack",
        &[
            ("pod", list.pod.clone()),
            ("service", list.svc.clone()),
            ("protocol", list.proto.clone()),
            ("state", list.state.map(|state| state.name().to_owned())),
            ("address", list.address.clone()),
            ("limit", (list.limit > 0).then(|| list.limit.to_string())),
        ],
    );
    let mut lines = Lines::open(&list.query.socket(loader)?, &path)?;
    let head: Value = match lines.next()? {
        Some(line) => serde_json::from_slice(&line)?,
        None => return Err(lines.gone().into()),
    };
    match list.query.output {
        output::Format::Json => json(&head, &mut lines),
        output::Format::Text => {
            answer::read::<Head>(&head)?;
            text(&mut lines, list)
        }
    }
}

fn cut_short(why: &str) -> anyhow::Error {
    anyhow::anyhow!("the agent could not read all flows: {why}")
}

/// One document, written as it comes: it may be of any size. The flows in it are the agent's own words.
fn json(head: &Value, lines: &mut Lines) -> anyhow::Result<Exit> {
    let schema = head.get("schema").and_then(Value::as_str).unwrap_or(Head::SCHEMA);
    let field = |value: &Value, name: &str| value.get(name).unwrap_or(&Value::Null).to_string();
    let mut out = format!(
        "{{\n  \"schema\": {},\n  \"node\": {},\n  \"limit\": {},\n  \"flows\": [",
        Value::from(schema),
        field(head, "node"),
        field(head, "limit"),
    );
    let mut before = "\n    ";
    while let Some(line) = lines.next()? {
        let line = String::from_utf8(line)?;
        if let Some(flow) = line.strip_prefix(r#"{"flow":"#).and_then(|rest| rest.strip_suffix('}')) {
            out.push_str(before);
            out.push_str(flow);
            before = ",\n    ";
        } else {
            let value: Value = serde_json::from_str(&line)?;
            let Some(end) = value.get("end") else {
                return Err(cut_short(value.get("error").and_then(Value::as_str).unwrap_or(&line)));
            };
            let (matched, told) = (field(end, "matched"), field(end, "told"));
            out.push_str(&format!("\n  ],\n  \"matched\": {matched},\n  \"told\": {told}\n}}\n"));
            output::text(&out)?;
            return Ok(Exit::Ok);
        }
        if out.len() > CHUNK {
            output::text(&out)?;
            out.clear();
        }
    }
    Err(lines.gone().into())
}

fn text(lines: &mut Lines, asked: &List) -> anyhow::Result<Exit> {
    let mut flows = Vec::new();
    while let Some(line) = lines.next()? {
        match serde_json::from_slice(&line)? {
            Line::Flow(flow) => flows.push(row(&flow)),
            Line::Error(why) => return Err(cut_short(&why)),
            Line::End(end) => {
                output::page(&list_page(flows, end, asked))?;
                return Ok(Exit::Ok);
            }
        }
    }
    Err(lines.gone().into())
}

fn list_page(flows: Vec<[String; 10]>, end: Tail, asked: &List) -> Page {
    let mut page = Page::default();
    if flows.is_empty() && end.matched == 0 {
        page.line("no such flow");
        return page;
    }
    let head = ["PROTO", "CLIENT", "FRONTEND", "SERVER", "STATE", "TABLE", "AGE", "IDLE", "EXPIRES", ""];
    page.table(head, flows.into_iter().map(|row| (false, row)).collect());
    if end.matched > end.told {
        page.line(format!("{} more: {}", end.matched - end.told, asked.unlimited()));
    }
    page
}

impl List {
    /// The same question without a limit. The agent has understood each filter: none needs quoting.
    fn unlimited(&self) -> String {
        let state = self.state.map(|state| state.to_string());
        let filters = [
            ("pod", &self.pod),
            ("svc", &self.svc),
            ("proto", &self.proto),
            ("state", &state),
            ("address", &self.address),
        ];
        let mut command = "netd conntrack list".to_owned();
        for (name, value) in filters {
            if let Some(value) = value {
                command.push_str(&format!(" --{name} {value}"));
            }
        }
        command + " --limit 0"
    }
}

fn row(flow: &Flow) -> [String; 10] {
    let named = |name: &Option<String>, at: SocketAddr| match name {
        Some(name) => format!("{name} {at}"),
        None => at.to_string(),
    };
    let mut notes = Vec::new();
    if let Some(port) = flow.translated_port {
        notes.push(format!("port {port} to the server"));
    }
    for (set, note) in [
        (flow.service_deleted, "the Service is deleted"),
        (flow.backend_deleted, "the server is no endpoint any more"),
        (flow.hairpin, "to itself"),
        (flow.from_stack, "from the node"),
        (flow.refused, "no room among the established"),
        (flow.half, "half"),
    ] {
        if set {
            notes.push(note.to_owned());
        }
    }
    [
        flow.protocol.clone(),
        named(&flow.client_pod, flow.client),
        flow.frontend.map_or_else(|| "-".to_owned(), |at| named(&flow.service, at)),
        named(&flow.server_pod, flow.server),
        flow.state.to_string(),
        flow.table.to_string(),
        span(flow.age_seconds.into()),
        span(flow.idle_seconds.into()),
        span(flow.expires_in_seconds.into()),
        notes.join(", "),
    ]
}

fn summary_page(summary: &Summary) -> Page {
    let mut page = Page::default();
    let rows =
        summary.tables.iter().map(|(table, fill)| (false, [table.clone(), filled(fill.used, fill.limit)]));
    page.table(["TABLE", "USED"], rows.collect());
    if !summary.flows.is_empty() {
        page.line("");
        let rows = summary.flows.iter().map(|group| {
            let cells = [
                group.protocol.clone(),
                group.state.to_string(),
                group.table.to_string(),
                group.flows.to_string(),
            ];
            (false, cells)
        });
        page.table(["PROTO", "STATE", "TABLE", "FLOWS"], rows.collect());
    }
    if !summary.pods.is_empty() {
        page.line("");
        let rows = summary.pods.iter().take(PODS).map(|pod| {
            let name = pod.pod.clone().unwrap_or_else(|| format!("number {} (gone)", pod.endpoint));
            let full = pod.established >= pod.limit;
            (full, [name, filled(pod.established, pod.limit), pod.nursery.to_string()])
        });
        page.table(["POD", "ROWS ESTABLISHED", "ROWS IN THE NURSERY"], rows.collect());
        if summary.pods.len() > PODS {
            page.line(format!("{} more: netd conntrack summary -o json", summary.pods.len() - PODS));
        }
        if summary.pods.iter().any(|pod| pod.established >= pod.limit) {
            page.line("  next: netd config show");
        }
    }
    page.line("");
    let events: Vec<String> =
        summary.events.iter().map(|(event, count)| format!("{} {count}", event.replace('_', " "))).collect();
    page.line(format!("rows since the tables were made: {}", events.join(", ")));
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::samples;

    fn asked(arguments: &[&str]) -> List {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            list: List,
        }
        let line = [&["list"], arguments].concat();
        <Line as clap::Parser>::try_parse_from(line).unwrap().list
    }

    #[test]
    fn the_rest_is_asked_for_with_the_same_filters() {
        let filters = "--pod shop/web-0 --svc api --proto tcp --state half-closed --address 10.0.0.0/8";
        let mut line: Vec<&str> = filters.split(' ').collect();
        line.extend(["--limit", "3"]);
        assert_eq!(asked(&line).unlimited(), format!("netd conntrack list {filters} --limit 0"));
        let in_json = asked(&["--state", "half_closed"]);
        assert_eq!(
            (in_json.state, in_json.state.map(State::name)),
            (Some(State::HalfClosed), Some("half_closed"))
        );
        assert_eq!(asked(&asked(&line).unlimited().split(' ').skip(3).collect::<Vec<_>>()).limit, 0);
    }

    #[test]
    fn flows_are_one_line_each() {
        let rows = samples::flows().iter().map(row).collect();
        let all = asked(&[]);
        insta::assert_snapshot!(list_page(rows, Tail { matched: 12, told: 3 }, &all).render(false), @r"
        PROTO  CLIENT                      FRONTEND                SERVER                     STATE        TABLE        AGE    IDLE  EXPIRES
        tcp    shop/web-0 10.42.3.5:40312  shop/api 10.96.0.10:80  shop/api-1 10.42.4.6:8080  established  established  6m40s  3s    2h13m    port 2022 to the server, to itself, half
        udp    [fd00:42:3::5]:5353         -                       [2001:db8::1]:53           one-way      nursery      6m40s  3s    2h13m    from the node, no room among the established
        tcp    shop/web-0 10.42.3.5:40312  shop/api 10.96.0.10:80  shop/api-1 10.42.4.6:8080  half-closed  established  6m40s  3s    2h13m    the Service is deleted, the server is no endpoint any more
        9 more: netd conntrack list --limit 0
        ");
        assert_eq!(list_page(Vec::new(), Tail { matched: 0, told: 0 }, &all).render(false), "no such flow\n");
    }

    #[test]
    fn a_summary_counts() {
        insta::assert_snapshot!(summary_page(&samples::summary()).render(false), @r"
        TABLE        USED
        established  612/1024 (59 %)
        nursery      3/1024

        PROTO  STATE        TABLE        FLOWS
        tcp    established  established  306
        udp    one-way      nursery      3

        POD              ROWS ESTABLISHED  ROWS IN THE NURSERY
        shop/web-0       512/512 (100 %)   3
        number 9 (gone)  100/512 (19 %)    0
          next: netd config show

        rows since the tables were made: opened 900, refused share 12
        ");
    }
}
