//! kube-proxy's nftables mode: table, maps, chains and rules as kube-proxy v1.33 writes them
//! (`pkg/proxy/nftables/proxier.go`), for ClusterIP Services whose endpoints are ready.
//!
//! A new connection is looked up in the map `service-ips`, goes to the Service's chain, and by a random number
//! to an endpoint's chain, which translates.
//!
//! What there is once is written by `nft`. Services are written by netlink messages of our own, to the same
//! effect (`nft list` shows the same): a Service has an anonymous map, and for each new one the kernel looks at
//! all maps that the table has, and at all of its transaction. By `nft` 20 000 Services took a minute in small
//! transactions and held up a CPU for four minutes in one; by messages that name the maps 50 000 took six
//! minutes. So beyond [`WHOLE`] Services the chain of one that is never used ends before its map: no packet
//! gets there.

mod netlink;

use super::iptables::feed;
use super::{Pair, Subject};
use crate::load::Cpus;
use crate::services::{PODS, PORT, Service, Services, VIPS};
use anyhow::{Context as _, Result};
use netd_integration::lab::{Lab, Namespace};
use netlink::{Expression, Socket, Transaction, Verdict};
use std::net::SocketAddrV4;
use std::process::Command;

/// Services to a transaction: see the module.
const AT_ONCE: usize = 200;
/// Services that are written whole, besides the used one: see the module.
const WHOLE: usize = 5_000;

const TCP: u8 = 6;

/// What the table has once.
const SKELETON: &str = r#"add table ip kube-proxy { comment "rules for kube-proxy" ; }
add set ip kube-proxy cluster-ips { type ipv4_addr ; comment "Active ClusterIPs" ; }
add set ip kube-proxy nodeport-ips { type ipv4_addr ; comment "IPs that accept NodePort traffic" ; }
add map ip kube-proxy firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict ; comment "destinations that are subject to LoadBalancerSourceRanges" ; }
add map ip kube-proxy no-endpoint-nodeports { type inet_proto . inet_service : verdict ; comment "vmap to drop or reject packets to service nodeports with no endpoints" ; }
add map ip kube-proxy no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict ; comment "vmap to drop or reject packets to services with no endpoints" ; }
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; comment "ClusterIP, ExternalIP and LoadBalancer IP traffic" ; }
add map ip kube-proxy service-nodeports { type inet_proto . inet_service : verdict ; comment "NodePort traffic" ; }
add chain ip kube-proxy cluster-ips-check
add chain ip kube-proxy filter-prerouting-pre-dnat { type filter hook prerouting priority -110 ; }
add chain ip kube-proxy filter-output-pre-dnat { type filter hook output priority -110 ; }
add chain ip kube-proxy filter-forward { type filter hook forward priority 0 ; }
add chain ip kube-proxy filter-input { type filter hook input priority 0 ; }
add chain ip kube-proxy filter-output { type filter hook output priority 0 ; }
add chain ip kube-proxy firewall-check
add chain ip kube-proxy mark-for-masquerade
add chain ip kube-proxy masquerading
add chain ip kube-proxy nat-output { type nat hook output priority -100 ; }
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority 100 ; }
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100 ; }
add chain ip kube-proxy nodeport-endpoints-check
add chain ip kube-proxy reject-chain { comment "helper for @no-endpoint-services / @no-endpoint-nodeports" ; }
add chain ip kube-proxy services
add chain ip kube-proxy service-endpoints-check
add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"
add rule ip kube-proxy cluster-ips-check ip daddr { VIPS } drop comment "Drop traffic to unallocated ClusterIPs"
add rule ip kube-proxy filter-prerouting-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
add rule ip kube-proxy filter-input ct state new jump nodeport-endpoints-check
add rule ip kube-proxy filter-input ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-output ct state new jump cluster-ips-check
add rule ip kube-proxy firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips
add rule ip kube-proxy mark-for-masquerade mark set mark or 0x4000
add rule ip kube-proxy masquerading mark and 0x4000 == 0 return
add rule ip kube-proxy masquerading mark set mark xor 0x4000
add rule ip kube-proxy masquerading masquerade fully-random
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy nat-postrouting jump masquerading
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
add rule ip kube-proxy reject-chain reject
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
"#;

/// A node with these rules.
///
/// # Errors
/// There is no `nft`, or the kernel refuses.
pub(crate) fn nftables<'lab>(lab: &'lab Lab, count: u32, cpus: Cpus) -> Result<Subject<'lab>> {
    let pair = Pair::new(lab, &format!("nftables-{count}"))?;
    let services = Services::new(count, pair.server_ip);
    let skeleton = SKELETON.replace("VIPS", VIPS);
    feed(&pair.node, Command::new("nft").args(["-f", "-"]), &skeleton)?;
    write(&pair.node, services).context("writing Services by netlink")?;
    let mut subject = pair.subject(format!("kube-proxy nftables, {count}"), vec![services.target()], cpus)?;
    if count as usize > WHOLE {
        subject.note = Some(format!("beyond {WHOLE} unused Services without their map"));
    }
    Ok(subject)
}

/// Chains first: what leads to them comes last, so that the kernel's check of what packets can reach, which
/// each transaction ends with, finds little.
fn write(node: &Namespace, services: Services) -> Result<()> {
    let mut socket = Socket::open(node)?;
    let all: Vec<Service> = services.all().collect();
    let numbered: Vec<(usize, &Service)> = all.iter().enumerate().collect();
    for part in numbered.chunks(AT_ONCE) {
        let mut transaction = Transaction::new("kube-proxy");
        for (i, service) in part {
            chains(service, *i < WHOLE || *i + 1 == all.len(), &mut transaction)?;
        }
        socket.commit(transaction)?;
    }
    for part in all.chunks(AT_ONCE * 20) {
        let mut transaction = Transaction::new("kube-proxy");
        for service in part {
            let vip = service.vip.octets();
            transaction.element("cluster-ips", &vip, None)?;
            // Each part of a key takes whole words.
            let mut key = vip.to_vec();
            key.extend([TCP, 0, 0, 0]);
            key.extend(PORT.to_be_bytes());
            key.extend([0, 0]);
            transaction.element("service-ips", &key, Some(&Verdict::Goto(service_chain(service))))?;
        }
        socket.commit(transaction)?;
    }
    Ok(())
}

fn chains(service: &Service, whole: bool, transaction: &mut Transaction) -> Result<()> {
    let own = service_chain(service);
    transaction.chain(&own)?;
    let mut choices = Vec::new();
    for endpoint in &service.endpoints {
        let chain = endpoint_chain(service, endpoint);
        transaction.chain(&chain)?;
        choices.push(Verdict::Goto(chain));
    }
    let masquerade = Expression::Immediate(Verdict::Jump("mark-for-masquerade".into()));
    // ip daddr VIP ip saddr != 10.244.0.0/16 jump mark-for-masquerade
    let prefix: Vec<u8> = PODS.split('.').take(2).map(str::parse).collect::<Result<_, _>>()?;
    transaction.rule(
        &own,
        &[
            Expression::Network { offset: 16, len: 4 },
            Expression::Equal(service.vip.octets().to_vec()),
            Expression::Network { offset: 12, len: 2 },
            Expression::Unequal(prefix),
            masquerade.clone(),
        ],
    )?;
    // numgen random mod 4 vmap { 0 : goto …, 1 : goto …, … }
    if whole {
        let modulus = u32::try_from(choices.len())?;
        let (set, id) = transaction.anonymous_map(&service.name, &choices)?;
        transaction.rule(&own, &[Expression::Random { modulus }, Expression::VerdictMap { set, id }])?;
    }
    for endpoint in &service.endpoints {
        let chain = endpoint_chain(service, endpoint);
        let ip = endpoint.ip().octets().to_vec();
        // ip saddr IP jump mark-for-masquerade
        transaction.rule(
            &chain,
            &[Expression::Network { offset: 12, len: 4 }, Expression::Equal(ip.clone()), masquerade.clone()],
        )?;
        // meta l4proto tcp dnat to IP:PORT
        transaction.rule(
            &chain,
            &[
                Expression::L4Proto,
                Expression::Equal(vec![TCP]),
                Expression::Dnat { ip, port: endpoint.port() },
            ],
        )?;
    }
    Ok(())
}

// kube-proxy's names begin with a hash of eight letters.
fn service_chain(service: &Service) -> String {
    format!("service-{0:A>8}-default/{0}/tcp/p", service.name)
}

fn endpoint_chain(service: &Service, endpoint: &SocketAddrV4) -> String {
    let (name, ip, port) = (&service.name, endpoint.ip(), endpoint.port());
    format!("endpoint-{name:A>8}-default/{name}/tcp/p__{ip}/{port}")
}
