//! The newest drops, with names for numbers; and the new flows, which come by the same way.

use super::flows;
use crate::answer::event::{self, Opened};
use crate::answer::policy::{Denied, Direction, RuleName};
use crate::answer::protocol;
use crate::datapath::events::Events;
use netd_bpf::event::{Drop, OPENED, reason, stage};
use netd_bpf::policy::set;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How many drops are kept.
const KEPT: usize = 512;
/// How often that many events are read at most. A pod that floods must not keep a processor busy with its drops:
/// what the kernel's buffer cannot hold meanwhile is in the counters only.
const READ_EVERY: Duration = Duration::from_millis(100);
/// Drops of one pod and reason are logged once in so long, with the count of those in between.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Pairs of pod and reason remembered for that.
const LOG_KEYS: usize = 1024;

/// One dropped packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) time: SystemTime,
    /// Why, as the metric's label has it.
    pub(super) reason: &'static str,
    /// Why, for people.
    pub(super) because: &'static str,
    /// Why policy does not allow it, if that is the reason.
    pub(super) policy: Option<Denied>,
    /// Where in the datapath.
    pub(super) stage: &'static str,
    /// Namespace and name of the pod whose interface it was, or whose policies do not allow it, if it is known.
    pub(super) pod: Option<String>,
    /// Source address.
    pub(super) source: IpAddr,
    /// Source port, 0 without one.
    pub(super) source_port: u16,
    /// Destination address before translation; of what policy does not allow, the true one.
    pub(super) destination: IpAddr,
    /// Its port, 0 without one.
    pub(super) destination_port: u16,
    /// IANA protocol number.
    pub(super) protocol: u8,
    /// Namespace and name of the Service, if the packet was for one.
    pub(super) service: Option<String>,
    /// Bytes, with the link header.
    pub(super) length: u32,
    /// Ethernet protocol number.
    pub(super) ethertype: u32,
    /// TCP flags byte.
    pub(super) tcp_flags: u8,
}

impl Dropped {
    /// Why, in one sentence.
    pub(super) fn message(&self) -> String {
        self.policy.as_ref().map_or_else(|| self.because.to_owned(), ToString::to_string)
    }

    /// The packet, with the names of both ends.
    pub(super) fn packet(&self, called: impl Fn(IpAddr) -> Option<String>) -> event::Drop {
        event::Drop {
            reason: self.reason.to_owned(),
            stage: self.stage.to_owned(),
            pod: self.pod.clone(),
            protocol: if matches!(self.ethertype, 0x0800 | 0x86dd) {
                protocol(self.protocol)
            } else {
                format!("ethertype 0x{:04x}", self.ethertype)
            },
            source: SocketAddr::new(self.source, self.source_port),
            source_pod: called(self.source),
            destination: SocketAddr::new(self.destination, self.destination_port),
            destination_pod: called(self.destination),
            service: self.service.clone(),
            tcp_flags: (self.protocol == 6).then(|| tcp_flags(self.tcp_flags)),
            length: self.length,
            policy: self.policy.clone(),
        }
    }
}

/// Names of the bits (RFC 9293 §3.1), joined by commas.
fn tcp_flags(bits: u8) -> String {
    let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set: Vec<&str> =
        (0..).zip(names).filter(|(bit, _)| bits & (1 << bit) != 0).map(|(_, name)| name).collect();
    if set.is_empty() { "none".to_owned() } else { set.join(",") }
}

/// Names of the datapath's numbers at this moment.
pub(super) trait Names: Send + Sync {
    /// Namespace and name of an endpoint.
    fn pod(&self, endpoint: u32) -> Option<String>;
    /// The endpoint has this address.
    fn has(&self, endpoint: u32, address: IpAddr) -> bool;
    /// What the pod is called that has an address.
    fn called(&self, address: IpAddr) -> Option<String>;
    /// Namespace and name of the Service of a Service port.
    fn service(&self, service: u32) -> Option<String>;
    /// Address and pod of a Service's backend.
    fn backend(&self, backend: u32) -> Option<(SocketAddr, Option<String>)>;
    /// The policies of a set; nothing: they are gone and forgotten.
    fn policies(&self, set: u64) -> Vec<String>;
    /// A policy's rule; none: there was none.
    fn rule(&self, number: u32) -> Option<RuleName>;
    /// Hears of each drop.
    fn dropped(&self, _: &Dropped) {}
    /// Hears of each flow that is told.
    fn opened(&self, _: Opened) {}
}

/// The ring of the newest drops.
#[derive(Clone, Debug, Default)]
pub(super) struct Drops(Arc<Mutex<VecDeque<Dropped>>>);

impl Drops {
    /// The newest `limit`, the oldest of them first.
    #[must_use]
    pub(super) fn newest(&self, limit: usize) -> Vec<Dropped> {
        let ring = self.ring();
        ring.iter().skip(ring.len().saturating_sub(limit)).cloned().collect()
    }

    /// Reads events for ever. Cancel-safe: an event is either in the ring or still in the kernel's buffer.
    ///
    /// # Errors
    /// The buffer cannot be watched.
    pub(super) async fn follow(&self, events: &mut Events, names: &dyn Names) -> std::io::Result<()> {
        let mut log = Log::default();
        let (mut read, mut since) = (0, tokio::time::Instant::now());
        loop {
            if read == KEPT {
                tokio::time::sleep_until(since + READ_EVERY).await;
                (read, since) = (0, tokio::time::Instant::now());
            }
            read += 1;
            let event = events.next().await?;
            if event.reason == OPENED {
                flows::tell(flows::describe(&event, names), names);
                continue;
            }
            let dropped = describe(&event, names);
            log.note(&dropped, names, Instant::now());
            names.dropped(&dropped);
            let mut ring = self.ring();
            if ring.len() == KEPT {
                ring.pop_front();
            }
            ring.push_back(dropped);
        }
    }

    fn ring(&self) -> MutexGuard<'_, VecDeque<Dropped>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn describe(event: &Drop, names: &dyn Names) -> Dropped {
    let (reason, because) = reason_name(event.reason);
    let pod = names.pod(event.endpoint);
    Dropped {
        time: SystemTime::now(),
        reason,
        because,
        policy: denied(event, pod.as_ref(), names),
        stage: stage_name(event.stage),
        pod,
        source: event.source.into(),
        source_port: u16::from_be(event.source_port),
        destination: event.destination.into(),
        destination_port: u16::from_be(event.destination_port),
        protocol: event.proto,
        service: names.service(event.service),
        length: event.length,
        ethertype: event.ethertype,
        tcp_flags: event.tcp_flags,
    }
}

/// Why policy does not allow it, if that is the reason; `pod` is isolated.
fn denied(event: &Drop, pod: Option<&String>, names: &dyn Names) -> Option<Denied> {
    // Of who is isolated for what it sends, a packet that it is sent can only be an answer; and the other way round.
    let (direction, other_end) = match event.reason {
        reason::EGRESS_DENIED => (Direction::Egress, event.destination),
        reason::INGRESS_DENIED => (Direction::Ingress, event.source),
        _ => return None,
    };
    let closed = event.set == set::CLOSED;
    Some(Denied {
        pod: pod.cloned(),
        direction,
        policies: if closed { Vec::new() } else { names.policies(event.set) },
        closed,
        rule: names.rule(event.rule),
        reply: names.has(event.endpoint, other_end.into()),
    })
}

/// Label and sentence of a reason.
#[must_use]
pub(super) fn reason_name(number: u8) -> (&'static str, &'static str) {
    reason::ALL
        .iter()
        .find(|(have, _, _)| *have == number)
        .map_or(("unknown", "a reason this netd does not know"), |(_, label, text)| (label, text))
}

/// Label of a stage.
#[must_use]
pub(super) const fn stage_name(number: u8) -> &'static str {
    match number {
        stage::POD_EGRESS => "pod_egress",
        stage::POD_INGRESS => "pod_ingress",
        stage::UPLINK_IN => "uplink_in",
        _ => "unknown",
    }
}

/// Keeps a flood of drops from flooding the log.
#[derive(Default)]
struct Log {
    last: BTreeMap<(Option<String>, &'static str), (Instant, u64)>,
}

impl Log {
    fn note(&mut self, dropped: &Dropped, names: &dyn Names, now: Instant) {
        if self.last.len() >= LOG_KEYS {
            self.last.retain(|_, (at, _)| now.duration_since(*at) < LOG_EVERY);
        }
        if self.last.len() >= LOG_KEYS {
            return;
        }
        let key = (dropped.pod.clone(), dropped.reason);
        if let Some((at, silent)) = self.last.get_mut(&key)
            && now.duration_since(*at) < LOG_EVERY
        {
            *silent += 1;
            return;
        }
        let silent = self.last.insert(key, (now, 0)).map_or(0, |(_, silent)| silent);
        let more = if silent == 0 { String::new() } else { format!(" ({silent} more since the last line)") };
        if let Some(policy) = &dropped.policy {
            let packet = dropped.packet(|address| names.called(address));
            tracing::info!(target: "netd::drops", "dropped: {packet}: {policy}{more}");
            return;
        }
        let pod = dropped.pod.as_deref().unwrap_or("an unknown interface");
        tracing::info!(
            target: "netd::drops",
            "dropped at {} of {pod}: {}: {}:{} → {}:{} protocol {}{more}",
            dropped.stage,
            dropped.because,
            dropped.source,
            dropped.source_port,
            dropped.destination,
            dropped.destination_port,
            dropped.protocol,
        );
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(super) mod testing {
    use super::{IpAddr, Names, RuleName, SocketAddr};

    /// Names of two pods, a Service and its policies.
    pub(in crate::agent) struct Two;

    impl Names for Two {
        fn pod(&self, endpoint: u32) -> Option<String> {
            match endpoint {
                2 => Some("shop/web".to_owned()),
                3 => Some("shop/api-1".to_owned()),
                _ => None,
            }
        }

        fn has(&self, endpoint: u32, address: IpAddr) -> bool {
            self.pod(endpoint).is_some_and(|pod| self.called(address) == Some(pod))
        }

        fn called(&self, address: IpAddr) -> Option<String> {
            match address.to_string().as_str() {
                "10.0.0.2" => self.pod(2),
                "10.0.0.3" => self.pod(3),
                _ => None,
            }
        }

        fn service(&self, service: u32) -> Option<String> {
            (service == 4).then(|| "shop/api".to_owned())
        }

        fn backend(&self, backend: u32) -> Option<(SocketAddr, Option<String>)> {
            (backend == 9).then(|| ("10.0.0.3:8080".parse().unwrap(), self.pod(3)))
        }

        fn policies(&self, set: u64) -> Vec<String> {
            let names: &[&str] = match set {
                50 => &["shop/default-deny", "shop/api"],
                51 => &["shop/web"],
                _ => &[],
            };
            names.iter().map(|name| (*name).to_owned()).collect()
        }

        fn rule(&self, number: u32) -> Option<RuleName> {
            let name = |policy: &str| RuleName {
                policy: Some(policy.to_owned()),
                index: Some(number as usize),
                number,
            };
            match number {
                0 => None,
                1 => Some(name("shop/web")),
                2 => Some(name("shop/api")),
                _ => Some(RuleName { policy: None, index: None, number }),
            }
        }
    }
}
