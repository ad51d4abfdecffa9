//! `netd policy list|show|explain|eval`: NetworkPolicies, whom they isolate, and what they allow. The agent answers, or,
//! of a folder of YAML, the same planner here.

use super::Exit;
use super::client::{self, Query, question};
use super::output::{self, Page};
use super::units::counted;
use crate::answer::policy::{
    Case, Effect, Evaluated, Explained, Peer, Policies, Policy, Port, Rule, Shown, Side, Verdict, and,
};
use crate::answer::{self, Answer, document};
use crate::config::Loader;
use crate::directory;
use crate::policy::view::{Question, Refusal, View};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Pods told by name where there may be thousands.
const NAMES: usize = 4;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List policies: what each isolates, how many pods it selects, its rules
    List {
        /// Only those of this namespace
        #[arg(short, long, value_name = "NAMESPACE", conflicts_with = "all_namespaces")]
        namespace: Option<String>,
        /// Those of all namespaces: the default
        #[arg(short = 'A', long)]
        all_namespaces: bool,
        #[command(flatten)]
        asked: Asked,
    },
    /// Show one: the pods that it selects, and whom its rules mean now
    Show {
        /// NAMESPACE/NAME, or NAME alone
        name: String,
        #[command(flatten)]
        asked: Asked,
    },
    /// Explain what a pod may send and be sent, and by which policies
    Explain {
        /// NAMESPACE/NAME, or NAME alone
        pod: String,
        #[command(flatten)]
        asked: Asked,
    },
    /// Tell whether a flow would be allowed, and by which rules [exit status: 0 allowed, 1 denied, 2 undecided]
    Eval {
        /// Who would begin: a pod, an address, or `node`, the other's node
        from: String,
        /// With whom, at which port: TO:PORT, TO:PORT/udp, TO:icmp
        to: String,
        #[command(flatten)]
        asked: Asked,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Asked {
    /// Answer from a folder of Kubernetes YAML or JSON, without an agent
    #[arg(long, value_name = "DIR", conflicts_with = "socket")]
    source: Option<PathBuf>,
    #[command(flatten)]
    query: Query,
}

impl Asked {
    /// Asks the agent, or the folder; with `-o json` prints the document.
    fn answer<T: Answer>(
        &self,
        loader: &Loader,
        path: &str,
        of_folder: impl FnOnce(&View<'_>) -> Result<T, Refusal>,
    ) -> anyhow::Result<T> {
        let document = self.document(loader, path, of_folder)?;
        if self.query.output == output::Format::Json {
            output::json(&document)?;
        }
        Ok(answer::read(&document)?)
    }

    /// Asks the agent, or the folder, and prints nothing.
    fn document<T: Answer>(
        &self,
        loader: &Loader,
        path: &str,
        of_folder: impl FnOnce(&View<'_>) -> Result<T, Refusal>,
    ) -> anyhow::Result<Value> {
        let Some(folder) = &self.source else { return self.query.document(loader, path) };
        let model = directory::load(folder)?;
        let view = View { model: &model, node: None, locals: &BTreeMap::new(), node_addresses: &[] };
        let body = of_folder(&view).map_err(|refusal| match refusal {
            Refusal::Unknown(refused) => client::Error::Unknown(refused.error),
            Refusal::Bad(error) => client::Error::Question(error),
        })?;
        Ok(serde_json::to_value(document(&body))?)
    }

    fn print(&self, page: &Page) -> Result<(), output::Error> {
        if self.query.output == output::Format::Text { output::page(page) } else { Ok(()) }
    }
}

pub(super) fn run(command: &Command, loader: &Loader) -> anyhow::Result<Exit> {
    let well = match command {
        Command::List { namespace, asked, .. } => {
            let path = question("/v1/policies", &[("namespace", namespace.clone())]);
            let policies: Policies =
                asked.answer(loader, &path, |view| Ok(view.list(namespace.as_deref())))?;
            asked.print(&list(&policies, namespace.as_deref()))?;
            policies.closed.is_empty()
        }
        Command::Show { name, asked } => {
            let path = question("/v1/policy", &[("name", Some(name.clone()))]);
            let shown: Shown = asked.answer(loader, &path, |view| view.show(name))?;
            asked.print(&show(&shown))?;
            true
        }
        Command::Explain { pod, asked } => {
            let path = question("/v1/policy/explain", &[("pod", Some(pod.clone()))]);
            let explained: Explained = asked.answer(loader, &path, |view| view.explain(pod))?;
            asked.print(&explain(&explained))?;
            explained.problem.is_none()
        }
        Command::Eval { from, to, asked } => return Ok(run_eval(from, to, asked, loader)),
    };
    Ok(if well { Exit::Ok } else { Exit::Failed })
}

/// Whoever asks by a script takes 1 for "denied": whatever else may be wrong must have another status. And the verdict
/// is the status also where nobody reads the words.
fn run_eval(from: &str, to: &str, asked: &Asked, loader: &Loader) -> Exit {
    let judged = || {
        let path = question("/v1/policy/eval", &[("from", Some(from.into())), ("to", Some(to.into()))]);
        let document = asked.document(loader, &path, |view| view.eval(&Question::new(from, to)?))?;
        let evaluated: Evaluated = answer::read(&document)?;
        anyhow::Ok((document, evaluated))
    };
    match judged() {
        Ok((document, evaluated)) => {
            let printed = match asked.query.output {
                output::Format::Json => output::json(&document),
                output::Format::Text => output::page(&eval(&evaluated)),
            };
            if let Err(error) = printed {
                super::explain(&error.into());
            }
            if evaluated.allowed { Exit::Ok } else { Exit::Failed }
        }
        Err(error) => match super::explain(&error) {
            Exit::Failed => Exit::Usage,
            exit => exit,
        },
    }
}

fn of_node(node: Option<&str>) -> String {
    node.map_or_else(String::new, |node| format!(" of {node}"))
}

fn list(policies: &Policies, namespace: Option<&str>) -> Page {
    let mut page = Page::default();
    if policies.policies.is_empty() {
        match namespace {
            Some(namespace) => page.line(format!("no NetworkPolicies in {namespace}")),
            None => page.line("no NetworkPolicies"),
        }
    } else {
        let pods = if policies.node.is_some() { "PODS HERE" } else { "PODS" };
        let rows = policies.policies.iter().map(|one| (false, row(one))).collect();
        page.table(["POLICY", "ISOLATES", pods, "RULES"], rows);
    }
    for closed in &policies.closed {
        let why = closed.reason.as_deref().unwrap_or("its policies could not be put into effect");
        page.line("");
        page.judged(true, format!("pod {}: nothing is allowed: {why}", closed.pod));
        page.line("  next: netd status");
    }
    page
}

fn row(policy: &Policy) -> [String; 4] {
    let rules: Vec<String> = [(policy.ingress_rules, "ingress"), (policy.egress_rules, "egress")]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, direction)| format!("{count} {direction}"))
        .collect();
    [
        policy.policy.clone(),
        directions(&policy.isolates),
        policy.pods.to_string(),
        if rules.is_empty() { "none".to_owned() } else { rules.join(", ") },
    ]
}

fn directions(all: &[crate::answer::policy::Direction]) -> String {
    if all.is_empty() {
        return "nothing".to_owned();
    }
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The first few of some names; `none` stands for none.
fn few(names: &[String], none: &str) -> String {
    match names {
        [] => none.to_owned(),
        some if some.len() <= NAMES => some.join(", "),
        some => {
            let told: Vec<&str> = some.iter().take(NAMES).map(String::as_str).collect();
            format!("{} and {} more", told.join(", "), some.len() - NAMES)
        }
    }
}

fn show(shown: &Shown) -> Page {
    let mut page = Page::default();
    let namespace = shown.policy.split_once('/').map_or("", |(namespace, _)| namespace);
    page.line(format!("NetworkPolicy {}  isolates {}", shown.policy, directions(&shown.isolates)));
    let selector = match shown.selector.as_str() {
        "" => "all pods".to_owned(),
        some => format!("pods {some}"),
    };
    let pods = counted(shown.pods.len(), "pod");
    let here = of_node(shown.node.as_deref());
    let colon = if shown.pods.is_empty() { "" } else { ": " };
    page.line(format!("selects {selector} in {namespace}; {pods}{here}{colon}{}", few(&shown.pods, "")));
    for direction in &shown.isolates {
        let mut rules = shown.rules.iter().filter(|rule| rule.direction == *direction).peekable();
        if rules.peek().is_none() {
            page.line("");
            page.line(format!("no rule for {direction}: it allows nothing"));
        }
    }
    for rule in &shown.rules {
        page.line("");
        let ignored =
            if rule.ignored { "  (means nothing: policyTypes leaves this direction out)" } else { "" };
        page.line(format!("{} rule {}{ignored}", rule.direction, rule.index));
        let word = towards(rule);
        for (before, peer) in std::iter::once(word).chain(std::iter::repeat("")).zip(peers(rule)) {
            page.line(format!("  {before:<5}  {peer}"));
        }
        page.line(format!("  {:<5}  {}", "ports", ports(rule)));
    }
    page
}

fn towards(rule: &Rule) -> &'static str {
    match rule.direction {
        crate::answer::policy::Direction::Ingress => "from",
        crate::answer::policy::Direction::Egress => "to",
    }
}

fn peers(rule: &Rule) -> Vec<String> {
    if rule.any_peer {
        return vec!["everybody".to_owned()];
    }
    rule.peers.iter().map(told_peer).collect()
}

fn told_peer(peer: &Peer) -> String {
    match (&peer.block, peer.pods.is_empty()) {
        (Some(_), true) => peer.to_string(),
        _ => format!("{peer}: {}", few(&peer.pods, "none now")),
    }
}

fn ports(rule: &Rule) -> String {
    if rule.any_port {
        return "all".to_owned();
    }
    rule.ports.iter().map(told_port).collect::<Vec<_>>().join(", ")
}

fn told_port(port: &Port) -> String {
    if port.name.is_none() {
        return port.to_string();
    }
    let numbers: Vec<String> = port.resolved.iter().map(|one| one.port.to_string()).collect();
    format!("{port} ({})", few(&numbers, "no pod has it now"))
}

fn explain(explained: &Explained) -> Page {
    let mut page = Page::default();
    let addresses: Vec<String> = explained.addresses.iter().map(ToString::to_string).collect();
    let addresses = if addresses.is_empty() { "no address".to_owned() } else { addresses.join(", ") };
    let on = explained.runs_on.as_ref().map(|node| format!("  on {node}")).unwrap_or_default();
    page.line(format!("Pod {}  {addresses}{on}", explained.pod));
    if let Some(problem) = &explained.problem {
        page.judged(true, problem.clone());
        page.line("  next: netd status");
    }
    if let Some(exempt) = &explained.exempt {
        page.line(exempt.clone());
        return page;
    }
    for (name, peer, side) in [("ingress", "FROM", &explained.ingress), ("egress", "TO", &explained.egress)] {
        page.line("");
        side_lines((name, peer), side, &mut page);
    }
    page.line("");
    page.line("always allowed: the pod itself, and its own node");
    page
}

fn side_lines((name, peer): (&str, &str), side: &Side, page: &mut Page) {
    let state = match side.state {
        Some(Effect::Pending) => "  (a change is on its way to the kernel)",
        Some(Effect::Closed) => "  (not in effect: nothing is allowed)",
        Some(Effect::InForce) | None => "",
    };
    let closed = side.state == Some(Effect::Closed);
    if !side.isolated {
        page.judged(closed, format!("{name}: no policy isolates it, everything is allowed{state}"));
        return;
    }
    page.judged(closed, format!("{name}: isolated by {}{state}", and(&side.policies)));
    if side.rules.is_empty() {
        page.line("  nothing is allowed: none of them has a rule for it");
        return;
    }
    let rows = side.rules.iter().flat_map(|rule| {
        let by = format!("{} rule {}", rule.policy, rule.index);
        peers(rule).into_iter().map(move |peer| [format!("  {peer}"), ports(rule), by.clone()])
    });
    let mut table = vec![[format!("  {peer}"), "PORTS".to_owned(), "BY".to_owned()]];
    table.extend(rows);
    output::columns(&table).for_each(|line| page.line(line));
}

fn eval(evaluated: &Evaluated) -> Page {
    let mut page = Page::default();
    let Evaluated { from, to, protocol, port, cases, .. } = evaluated;
    let at = match port {
        Some(port) if to.name.contains(':') => format!("[{}]:{port}/{protocol}", to.name),
        Some(port) => format!("{}:{port}/{protocol}", to.name),
        None => format!("{}/{protocol}", to.name),
    };
    let word = |allowed| if allowed { "allowed" } else { "denied" };
    page.judged(!evaluated.allowed, format!("{} → {at}  {}", from.name, word(evaluated.allowed)));
    let plain = |case: &Case| Case { from: None, to: None, ..case.clone() };
    let alike = cases.iter().all(|case| cases.first().is_some_and(|first| plain(first) == plain(case)));
    for case in cases.iter().take(if alike { 1 } else { cases.len() }) {
        page.line("");
        if let (false, Some(from), Some(to)) = (alike, case.from, case.to) {
            page.line(format!("{from} → {to}  {}", word(case.allowed)));
        }
        if let Some(exempt) = &case.exempt {
            page.line(exempt.clone());
        }
        let verdict = |(direction, verdict): (&str, &Option<Verdict>)| {
            let verdict = verdict.as_ref()?;
            let subject = format!("{direction} of {}", verdict.pod);
            Some([subject, word(verdict.allowed).to_owned(), verdict.because()])
        };
        let rows: Vec<[String; 3]> =
            [("egress", &case.egress), ("ingress", &case.ingress)].into_iter().filter_map(verdict).collect();
        output::columns(&rows).for_each(|line| page.line(line));
    }
    if !evaluated.notes.is_empty() {
        page.line("");
    }
    evaluated.notes.iter().for_each(|note| page.line(format!("note: {note}")));
    page
}

#[cfg(test)]
mod tests;
