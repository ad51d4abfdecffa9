//! The newest drops, with names for numbers.

use crate::datapath::events::Events;
use netd_bpf::event::{Drop, reason, stage};
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// How many drops are kept.
const KEPT: usize = 512;
/// How often that many are read at most. A pod that floods must not keep a processor busy with its drops:
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
    /// Where in the datapath.
    pub(super) stage: &'static str,
    /// Namespace and name of the pod whose interface it was, if it is known.
    pub(super) pod: Option<String>,
    /// Source address.
    pub(super) source: IpAddr,
    /// Source port, 0 without one.
    pub(super) source_port: u16,
    /// Destination address before translation.
    pub(super) destination: IpAddr,
    /// Destination port before translation, 0 without one.
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

/// Names of the datapath's numbers at this moment.
pub(super) trait Names: Send + Sync {
    /// Namespace and name of an endpoint.
    fn pod(&self, endpoint: u32) -> Option<String>;
    /// Namespace and name of the Service of a Service port.
    fn service(&self, service: u32) -> Option<String>;
    /// Hears of each drop.
    fn dropped(&self, _: &Dropped) {}
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
            let dropped = describe(&events.next().await?, names);
            log.note(&dropped, Instant::now());
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
    Dropped {
        time: SystemTime::now(),
        reason,
        because,
        stage: stage_name(event.stage),
        pod: names.pod(event.endpoint),
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
    fn note(&mut self, dropped: &Dropped, now: Instant) {
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
        let pod = dropped.pod.as_deref().unwrap_or("an unknown interface");
        let more = if silent == 0 { String::new() } else { format!(" ({silent} more since the last line)") };
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
mod tests {
    use super::*;

    struct Two;
    impl Names for Two {
        fn pod(&self, endpoint: u32) -> Option<String> {
            (endpoint == 2).then(|| "shop/web".to_owned())
        }
        fn service(&self, _: u32) -> Option<String> {
            None
        }
    }

    #[test]
    fn events_are_told_in_words() {
        let event = Drop {
            source: "10.0.0.9".parse::<IpAddr>().unwrap().into(),
            destination: "fd00::1".parse::<IpAddr>().unwrap().into(),
            source_port: 1000_u16.to_be(),
            destination_port: 80_u16.to_be(),
            reason: reason::SPOOFED_SOURCE,
            stage: stage::POD_EGRESS,
            endpoint: 2,
            proto: 6,
            ..Drop::default()
        };
        let told = describe(&event, &Two);
        assert_eq!(
            (told.reason, told.stage, told.pod.as_deref()),
            ("spoofed_source", "pod_egress", Some("shop/web"))
        );
        assert_eq!((told.source.to_string().as_str(), told.source_port), ("10.0.0.9", 1000));
        assert_eq!((told.destination.to_string().as_str(), told.destination_port), ("fd00::1", 80));
        assert_eq!(describe(&Drop { reason: 200, ..event }, &Two).reason, "unknown");
    }

    #[test]
    fn a_flood_is_one_line_and_a_count() {
        let mut log = Log::default();
        let dropped = describe(&Drop { endpoint: 2, ..Drop::default() }, &Two);
        let start = Instant::now();
        for _ in 0..100 {
            log.note(&dropped, start);
        }
        assert_eq!(log.last.values().next().map(|(_, silent)| *silent), Some(99));
        log.note(&dropped, start + LOG_EVERY);
        assert_eq!(log.last.values().next().map(|(_, silent)| *silent), Some(0));
    }
}
