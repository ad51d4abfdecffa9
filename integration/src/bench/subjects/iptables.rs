//! kube-proxy's iptables mode: the rules as kube-proxy v1.33 writes them (`pkg/proxy/iptables/proxier.go`), for
//! ClusterIP Services whose endpoints are ready, in the legacy tables.
//!
//! A new connection walks `KUBE-SERVICES`, a rule to a Service, then the Service's chain, which picks an
//! endpoint's chain by `statistic`. kube-proxy writes Services in no order; the one that is used is the last.
//! Left out is what does not concern such a packet: `nfacct` counters, node ports, the kubelet's chains.

use super::{Pair, Subject};
use crate::load::Cpus;
use crate::services::{PODS, PORT, Service, Services};
use anyhow::{Context as _, Result, ensure};
use netd_integration::lab::{Lab, Namespace};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

/// The tables that the kernel had first, and whose rules it walks faster than those of `iptables-nft`.
const RESTORE: &str = "iptables-legacy-restore";

/// The filter table: chains, kube-proxy's jumps in the order in which they end up, and what is in the chains.
const FILTER: &str = r#"*filter
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"#;

/// What the nat table has once.
const NAT: &str = r#"-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
"#;

/// A node with these rules.
///
/// # Errors
/// There is no such `iptables`, or the kernel refuses.
pub(crate) fn iptables<'lab>(lab: &'lab Lab, count: u32, cpus: Cpus) -> Result<Subject<'lab>> {
    let pair = Pair::new(lab, &format!("iptables-{count}"))?;
    let services = Services::new(count, pair.server_ip);
    restore(&pair.node, &rules(services)?)?;
    pair.subject(format!("kube-proxy iptables, {count}"), vec![services.target()], cpus)
}

fn rules(services: Services) -> Result<String> {
    let mut chains = String::from("*nat\n");
    for chain in ["KUBE-NODEPORTS", "KUBE-SERVICES", "KUBE-MARK-MASQ", "KUBE-POSTROUTING"] {
        writeln!(chains, ":{chain} - [0:0]")?;
    }
    let (mut portals, mut own) = (String::new(), String::new());
    for service in services.all() {
        write(&service, &mut chains, &mut portals, &mut own)?;
    }
    portals += "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the \
                last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n";
    Ok(format!("{FILTER}{chains}{NAT}{portals}{own}COMMIT\n"))
}

fn write(service: &Service, chains: &mut String, portals: &mut String, own: &mut String) -> Result<()> {
    let Service { name, vip, endpoints } = service;
    // kube-proxy's names are hashes of this length.
    let svc = format!("KUBE-SVC-{name:A>16}");
    writeln!(chains, ":{svc} - [0:0]")?;
    let matches =
        format!("-m comment --comment \"default/{name}:p cluster IP\" -m tcp -p tcp -d {vip} --dport {PORT}");
    writeln!(portals, "-A KUBE-SERVICES {matches} -j {svc}")?;
    writeln!(own, "-A {svc} {matches} ! -s {PODS} -j KUBE-MARK-MASQ")?;
    for (left, endpoint) in (1..=endpoints.len()).rev().zip(endpoints) {
        let sep = format!("KUBE-SEP-{:A>16}", format!("{name}{left}"));
        writeln!(chains, ":{sep} - [0:0]")?;
        write!(own, "-A {svc} -m comment --comment \"default/{name}:p -> {endpoint}\"")?;
        if left > 1 {
            let probability = 1.0 / f64::from(u32::try_from(left)?);
            write!(own, " -m statistic --mode random --probability {probability:.10}")?;
        }
        writeln!(own, " -j {sep}")?;
        let about = format!("-m comment --comment default/{name}:p");
        writeln!(own, "-A {sep} {about} -s {} -j KUBE-MARK-MASQ", endpoint.ip())?;
        writeln!(own, "-A {sep} {about} -m tcp -p tcp -j DNAT --to-destination {endpoint}")?;
    }
    Ok(())
}

/// Loads rules on a node.
///
/// # Errors
/// As [`feed`].
pub(super) fn restore(node: &Namespace, rules: &str) -> Result<()> {
    feed(node, &mut Command::new(RESTORE), rules)
}

/// Runs a command on a node with `text` as its standard input.
///
/// # Errors
/// It cannot be executed or fails: with what it wrote.
pub(super) fn feed(node: &Namespace, command: &mut Command, text: &str) -> Result<()> {
    let name = command.get_program().display().to_string();
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = node.spawn(command)?;
    let stdin = child.stdin.take();
    if let Some(mut stdin) = stdin {
        stdin.write_all(text.as_bytes()).with_context(|| format!("writing to {name}"))?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}: {said}", output.status);
    Ok(())
}
