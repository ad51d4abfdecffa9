//! kube-proxy's IPVS mode: virtual servers, sets and rules as kube-proxy v1.33 writes them
//! (`pkg/proxy/ipvs/proxier.go`), for ClusterIP Services whose endpoints are ready.
//!
//! Service addresses are those of a dummy device, so that packets to them come to the input hook, where IPVS takes
//! them. Left out are sets that would be empty, with the rules that look into them, but for those that a
//! packet to a ClusterIP passes.

use super::iptables::{feed, restore};
use super::{Pair, Subject};
use crate::load::Cpus;
use crate::services::{PODS, PORT, Services};
use anyhow::Result;
use netd_integration::lab::Lab;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

const RULES: &str = r#"*filter
:KUBE-FORWARD - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-IPVS-FILTER - [0:0]
:KUBE-IPVS-OUT-FILTER - [0:0]
-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-A INPUT -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check rules" -j KUBE-NODE-PORT
-A FORWARD -m comment --comment "kube-proxy firewall rules" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A OUTPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-OUT-FILTER
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-IPVS-FILTER -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst -j REJECT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose" -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
-A KUBE-SERVICES -s 127.0.0.0/8 -j RETURN
-A KUBE-SERVICES -m comment --comment "Kubernetes service cluster ip + port for masquerade purpose" -m set --match-set KUBE-CLUSTER-IP dst,dst ! -s PODS -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
COMMIT
"#;

/// Why IPVS cannot be measured here, if it cannot.
pub(crate) fn missing() -> Option<&'static str> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let modules = Path::new("/lib/modules").join(release.trim());
    let listed = |list: &str| {
        std::fs::read_to_string(modules.join(list)).is_ok_and(|text| text.contains("/ipvs/ip_vs.ko"))
    };
    if !Path::new("/proc/net/ip_vs").exists() && !listed("modules.dep") && !listed("modules.builtin") {
        return Some("not in this kernel");
    }
    let runs = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if runs("ipvsadm") && runs("ipset") { None } else { Some("needs ipvsadm and ipset") }
}

/// A node with these virtual servers.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn ipvs<'lab>(lab: &'lab Lab, count: u32, cpus: Cpus) -> Result<Subject<'lab>> {
    let pair = Pair::new(lab, &format!("ipvs-{count}"))?;
    let services = Services::new(count, pair.server_ip);
    let [mut addresses, mut sets, mut servers] = [(); 3].map(|()| String::new());
    addresses += "link add kube-ipvs0 type dummy\n";
    for (name, kind) in
        [("CLUSTER-IP", "hash:ip,port"), ("IPVS-IPS", "hash:ip"), ("LOOP-BACK", "hash:ip,port,ip")]
    {
        writeln!(sets, "create KUBE-{name} {kind} maxelem 262144")?;
    }
    for service in services.all() {
        let vip = service.vip;
        writeln!(addresses, "address add {vip}/32 dev kube-ipvs0")?;
        writeln!(sets, "add KUBE-CLUSTER-IP {vip},tcp:{PORT}\nadd KUBE-IPVS-IPS {vip}")?;
        writeln!(servers, "-A -t {vip}:{PORT} -s rr")?;
        for endpoint in &service.endpoints {
            writeln!(servers, "-a -t {vip}:{PORT} -r {endpoint} -m -w 1")?;
        }
    }
    // Of endpoints on this node: the used ones.
    for endpoint in services.used().endpoints {
        writeln!(sets, "add KUBE-LOOP-BACK {0},tcp:{1},{0}", endpoint.ip(), endpoint.port())?;
    }
    feed(&pair.node, Command::new("ip").args(["-batch", "-"]), &addresses)?;
    feed(&pair.node, Command::new("ipset").arg("restore"), &sets)?;
    restore(&pair.node, &RULES.replace("PODS", PODS))?;
    feed(&pair.node, Command::new("ipvsadm").arg("--restore"), &servers)?;
    for (key, value) in [("conntrack", "1"), ("expire_nodest_conn", "1"), ("expire_quiescent_template", "1")]
    {
        pair.node.sysctl(&format!("net/ipv4/vs/{key}"), value)?;
    }
    pair.subject(format!("kube-proxy IPVS, {count}"), vec![services.target()], cpus)
}
