//! The stream of events for `netd monitor`: any number of watchers, none of which can hold up the agent.
//!
//! Events go into a ring; a watcher that does not keep up loses the oldest and is told how many. While nobody
//! watches nothing is put together at all.

use super::drops::Dropped;
use super::questions::{Book, Refusal};
use super::state::State;
use crate::answer::event::{Drops, Event, Kind, Opened};
use crate::answer::{self, document};
use axum::body::{Body, Bytes};
use futures_util::stream;
use k8s_openapi::jiff::Timestamp;
use netd_bpf::event::reason;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

/// Events that a watcher may be behind.
const BEHIND: usize = 2048;

/// Time between two blank lines: by them both ends find out that the other is gone.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(5);

/// Where events go.
#[derive(Clone, Debug)]
pub(super) struct Monitor {
    events: broadcast::Sender<Arc<Event>>,
    came: Arc<Notify>,
}

impl Default for Monitor {
    fn default() -> Self {
        Self { events: broadcast::Sender::new(BEHIND), came: Arc::default() }
    }
}

impl Monitor {
    /// Somebody watches.
    pub(super) fn is_watched(&self) -> bool {
        self.events.receiver_count() > 0
    }

    /// Waits until somebody watches.
    pub(super) async fn watched(&self) {
        while !self.is_watched() {
            self.came.notified().await;
        }
    }

    /// Tells all who watch.
    pub(super) fn tell(&self, event: Event) {
        // Nobody watches any more: nobody missed it.
        self.events.send(Arc::new(event)).ok();
    }

    fn subscribe(&self) -> broadcast::Receiver<Arc<Event>> {
        let receiver = self.events.subscribe();
        self.came.notify_waiters();
        self.came.notify_one();
        receiver
    }
}

/// An event of now.
pub(super) fn event(kind: Kind, subject: Option<String>, message: impl Into<String>) -> Event {
    let time = stamp(SystemTime::now());
    Event { time, kind, subject, message: message.into(), bad: false, drop: None, flow: None, lost: None }
}

/// RFC 3339, UTC, to the millisecond.
fn stamp(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let time = i64::try_from(since.as_millis()).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// The newest drops, told by the names of now.
pub(super) fn newest(state: &State, limit: usize) -> Drops {
    let book = state.book();
    let told = |dropped: &Dropped| answer::event::Dropped {
        time: stamp(dropped.time),
        message: dropped.message(),
        packet: dropped.packet(|address| book.called(address)),
    };
    Drops { node: state.node.clone(), drops: state.drops.newest(limit).iter().map(told).collect() }
}

/// A drop as an event.
pub(super) fn drop_event(dropped: &Dropped, book: &Book) -> Event {
    let drop = Some(dropped.packet(|address| book.called(address)));
    Event { bad: true, drop, ..event(Kind::Drop, dropped.pod.clone(), dropped.message()) }
}

/// A flow that was opened as an event.
pub(super) fn flow_event(opened: Opened) -> Event {
    let subject = opened.source_pod.clone().or_else(|| opened.server_pod.clone());
    let message = opened.to_string();
    Event { flow: Some(opened), ..event(Kind::Flow, subject, message) }
}

/// Which events one watcher wants.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    drops: bool,
    flows: bool,
    pod: Option<String>,
    reason: Option<String>,
}

/// The question, as it comes.
#[derive(Debug, Default, serde::Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    drops: bool,
    #[serde(default)]
    flows: bool,
    pod: Option<String>,
    reason: Option<String>,
}

impl Filter {
    /// Understands a question. Takes reading tables: not for a worker of the runtime.
    ///
    /// # Errors
    /// There is no such pod or reason, or flows are not told at all.
    pub(super) fn new(asked: Asked, state: &State) -> Result<Self, Refusal> {
        let Asked { drops, flows, pod, reason } = asked;
        if flows && state.flow_audit.load(Ordering::Relaxed) == 0 {
            let how = "set datapath.audit.flows to on, and send the agent SIGHUP";
            return Err(Refusal::Bad(format!("new flows are not told: {how}")));
        }
        if let Some(unknown) =
            reason.as_ref().filter(|asked| reason::ALL.iter().all(|(_, have, _)| have != asked))
        {
            return Err(Refusal::Bad(format!("there is no reason {unknown} to drop a packet")));
        }
        let pod = match pod {
            Some(asked) => Some(state.book().addresses(&asked)?.0),
            None => None,
        };
        Ok(Self { drops: drops || reason.is_some(), flows, pod, reason })
    }

    fn wants(&self, event: &Event) -> bool {
        if event.kind == Kind::Lost {
            return true;
        }
        let Some(pod) = &self.pod else { return self.wants_kind(event) };
        let is = |name: &Option<String>| name.as_ref() == Some(pod);
        let of_pod = is(&event.subject)
            || event
                .drop
                .as_ref()
                .is_some_and(|drop| is(&drop.pod) || is(&drop.source_pod) || is(&drop.destination_pod))
            || event.flow.as_ref().is_some_and(|flow| is(&flow.source_pod) || is(&flow.server_pod));
        of_pod && self.wants_kind(event)
    }

    fn wants_kind(&self, event: &Event) -> bool {
        let all = !self.drops && !self.flows;
        match &event.drop {
            Some(drop) => {
                (all || self.drops) && self.reason.as_ref().is_none_or(|reason| *reason == drop.reason)
            }
            None => all || self.flows && event.kind == Kind::Flow,
        }
    }
}

struct Watcher {
    events: broadcast::Receiver<Arc<Event>>,
    filter: Filter,
    cancel: CancellationToken,
    heart: tokio::time::Interval,
}

impl Watcher {
    /// The next line; none once the agent stops.
    async fn line(&mut self) -> Option<Bytes> {
        loop {
            let received = tokio::select! {
                biased;
                () = self.cancel.cancelled() => return None,
                received = self.events.recv() => received,
                _ = self.heart.tick() => return Some(Bytes::from_static(b"\n")),
            };
            let event = match received {
                Ok(event) => event,
                Err(broadcast::error::RecvError::Lagged(lost)) => {
                    let message = format!("{lost} events were lost: they came faster than they were read");
                    Arc::new(Event { bad: true, lost: Some(lost), ..event(Kind::Lost, None, message) })
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            };
            if self.filter.wants(&event)
                && let Ok(mut line) = serde_json::to_vec(&document(&*event))
            {
                line.push(b'\n');
                return Some(line.into());
            }
        }
    }
}

/// A body of one event per line, with blank lines in between, until the watcher goes or the agent stops. The
/// first line is blank: from then on nothing is missed.
pub(super) fn stream(monitor: &Monitor, filter: Filter, cancel: CancellationToken) -> Body {
    let watcher =
        Watcher { events: monitor.subscribe(), filter, cancel, heart: tokio::time::interval(HEARTBEAT) };
    Body::from_stream(stream::unfold(watcher, |mut watcher| async move {
        let line = watcher.line().await?;
        Some((Ok::<_, Infallible>(line), watcher))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::event::Drop;
    use crate::answer::samples;

    fn watcher(monitor: &Monitor, filter: Filter) -> Watcher {
        Watcher {
            events: monitor.subscribe(),
            filter,
            cancel: CancellationToken::new(),
            heart: tokio::time::interval(HEARTBEAT),
        }
    }

    async fn next(watcher: &mut Watcher) -> serde_json::Value {
        loop {
            let line = watcher.line().await.expect("a line");
            if &*line != b"\n" {
                return serde_json::from_slice(&line).expect("JSON");
            }
        }
    }

    fn numbered(n: usize) -> Event {
        event(Kind::Service, Some(format!("shop/s{n}")), n.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_watcher_loses_the_oldest_and_is_told_and_others_lose_nothing() {
        let monitor = Monitor::default();
        let (mut slow, mut quick) =
            (watcher(&monitor, Filter::default()), watcher(&monitor, Filter::default()));
        for n in 0..BEHIND + 10 {
            monitor.tell(numbered(n));
            assert_eq!(next(&mut quick).await["message"], n.to_string());
        }
        let lost = next(&mut slow).await;
        assert_eq!((&lost["kind"], &lost["lost"]), (&"lost".into(), &10.into()));
        for n in 10..BEHIND + 10 {
            assert_eq!(next(&mut slow).await["message"], n.to_string());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_a_blank_line_now_and_then_and_the_end_of_the_agent_ends_it() {
        let monitor = Monitor::default();
        let mut watcher = watcher(&monitor, Filter::default());
        assert_eq!(watcher.line().await.as_deref(), Some(&b"\n"[..]));
        assert_eq!(watcher.line().await.as_deref(), Some(&b"\n"[..]));
        watcher.cancel.cancel();
        assert_eq!(watcher.line().await, None);
    }

    #[tokio::test]
    async fn somebody_who_comes_is_noticed_and_so_is_who_goes() {
        let monitor = Monitor::default();
        let waiting = tokio::spawn({
            let monitor = monitor.clone();
            async move { monitor.watched().await }
        });
        assert!(!monitor.is_watched());
        let receiver = monitor.subscribe();
        waiting.await.expect("no panic");
        drop(receiver);
        assert!(!monitor.is_watched());
    }

    #[test]
    fn a_filter_looks_at_both_ends_of_a_packet() {
        let drop = |source: Option<&str>, reason: &str| Event {
            drop: Some(Drop {
                reason: reason.to_owned(),
                stage: "pod_egress".to_owned(),
                pod: None,
                protocol: "tcp".to_owned(),
                source: "10.0.0.1:1".parse().unwrap(),
                source_pod: source.map(str::to_owned),
                destination: "10.0.0.2:2".parse().unwrap(),
                destination_pod: Some("shop/db".to_owned()),
                service: None,
                tcp_flags: None,
                length: 60,
                policy: None,
            }),
            ..event(Kind::Drop, None, "")
        };
        let all = Filter::default();
        let drops = Filter { drops: true, ..Filter::default() };
        let of = |pod: &str| Filter { pod: Some(pod.to_owned()), ..Filter::default() };
        let spoofed = Filter { reason: Some("spoofed_source".to_owned()), drops: true, ..Filter::default() };
        let packet = drop(Some("shop/web"), "spoofed_source");
        assert!(all.wants(&packet) && drops.wants(&packet) && spoofed.wants(&packet));
        assert!(
            of("shop/web").wants(&packet) && of("shop/db").wants(&packet) && !of("shop/x").wants(&packet)
        );
        assert!(!spoofed.wants(&drop(None, "no_backend")));
        assert!(all.wants(&numbered(1)) && !drops.wants(&numbered(1)));
        assert!(of("shop/s1").wants(&numbered(1)) && !of("shop/s2").wants(&numbered(1)));
        let lost = event(Kind::Lost, None, "");
        assert!(drops.wants(&lost) && of("shop/x").wants(&lost));
        let flows = Filter { flows: true, ..Filter::default() };
        let both = Filter { drops: true, flows: true, ..Filter::default() };
        let opened = samples::events().into_iter().find(|event| event.flow.is_some()).expect("a flow");
        assert!(all.wants(&opened) && flows.wants(&opened) && both.wants(&opened) && !drops.wants(&opened));
        assert!(!flows.wants(&packet) && both.wants(&packet) && !flows.wants(&numbered(1)));
        assert!(of("shop/web-0").wants(&opened) && of("shop/api-1").wants(&opened));
        assert!(!of("shop/db").wants(&opened) && flows.wants(&lost));
    }
}
