//! The `flows` task and the audit of new flows: told where `datapath.audit` asks for it, by the names of pods and
//! with the rules that allowed them, in the log and to those who watch.
//!
//! The programs tell so many a second as they are allowed to and count the rest. The events come through the ring of
//! drops and are read by its reader; this task says how many are to be told, and tells how many were not.

use super::drops::Names;
use super::monitor::event;
use super::state::State;
use super::tasks::Failure;
use crate::answer::event::{Event, Kind, Opened};
use crate::answer::protocol;
use crate::config::Config;
use netd_bpf::event::Drop;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What was not told is told once in so long.
const UNTOLD_EVERY: Duration = Duration::from_secs(10);

/// A flow that was opened, by names.
pub(super) fn describe(opened: &Drop, names: &dyn Names) -> Opened {
    let destination = SocketAddr::new(opened.destination.into(), u16::from_be(opened.destination_port));
    let source: IpAddr = opened.source.into();
    let (server, server_pod) = match (opened.service, opened.backend) {
        (0, _) => (Some(destination), names.called(destination.ip())),
        (_, 0) => (None, None),
        (_, backend) => names.backend(backend).map_or((None, None), |(at, pod)| (Some(at), pod)),
    };
    Opened {
        protocol: protocol(opened.proto),
        source: SocketAddr::new(source, u16::from_be(opened.source_port)),
        source_pod: names.called(source),
        destination,
        service: names.service(opened.service),
        server,
        server_pod,
        egress_rule: names.rule(opened.rule),
        ingress_rule: names.rule(opened.ingress_rule),
    }
}

/// Writes the line, and tells those who watch.
pub(super) fn tell(opened: Opened, names: &dyn Names) {
    tracing::info!(target: "netd::flows", "{opened}");
    names.opened(opened);
}

/// Follows the configuration until cancelled. Aborting it is safe: what is asked of the programs is one word.
pub(super) async fn run(
    state: Arc<State>,
    mut settings: watch::Receiver<Arc<Config>>,
    cancel: CancellationToken,
) -> Result<(), Failure> {
    let mut untold = Untold { seen: state.datapath.untold_flows()? };
    let mut given = None;
    loop {
        let rate = settings.borrow_and_update().datapath.audit.per_second();
        if given != Some(rate) {
            state.datapath.set_flow_audit(rate)?;
            state.flow_audit.store(rate, Ordering::Relaxed);
            match (rate, given) {
                (0, None) => {}
                (0, Some(_)) => tracing::info!(target: "netd::flows", "new flows are told no longer"),
                (rate, _) => {
                    tracing::info!(
                        target: "netd::flows",
                        "new flows are told: by each CPU its part of {rate} a second, and at least one"
                    );
                }
            }
            given = Some(rate);
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            changed = settings.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(UNTOLD_EVERY), if rate > 0 => {}
        }
        if let Some(more) = untold.since(state.datapath.untold_flows()?) {
            let message = not_told(more, rate);
            tracing::info!(target: "netd::flows", "{message}");
            if state.monitor.is_watched() {
                state.monitor.tell(Event { lost: Some(more), ..event(Kind::Flow, None, message) });
            }
        }
    }
}

/// The programs count all alike, whatever the reason.
fn not_told(more: u64, rate: u32) -> String {
    format!(
        "{more} new flows were not told: their CPUs had told their parts of datapath.audit.rate ({rate} a second), or \
         events came faster than they were read"
    )
}

/// How far the count has been told.
struct Untold {
    seen: u64,
}

impl Untold {
    /// How many more there are.
    fn since(&mut self, now: u64) -> Option<u64> {
        let more = now.saturating_sub(self.seen);
        self.seen = now;
        (more > 0).then_some(more)
    }
}

#[cfg(test)]
mod tests {
    use super::super::drops::testing::Two;
    use super::*;

    fn opened() -> Drop {
        let addr = |text: &str| text.parse::<IpAddr>().unwrap().into();
        Drop {
            source: addr("10.0.0.2"),
            destination: addr("10.96.0.7"),
            source_port: 40_312_u16.to_be(),
            destination_port: 80_u16.to_be(),
            proto: 6,
            endpoint: 2,
            service: 4,
            backend: 9,
            rule: 1,
            ingress_rule: 2,
            ..Drop::default()
        }
    }

    #[test]
    fn flows_that_are_not_told_are_told_as_the_monitor_shows_them() {
        let lines = crate::answer::samples::events();
        let line = lines.iter().find(|event| event.kind == Kind::Flow && event.lost.is_some());
        assert_eq!(line.map(|event| event.message.as_str()), Some(not_told(57, 100).as_str()));
    }

    #[test]
    fn a_flow_is_told_by_names_with_the_rules_that_allowed_it() {
        let told = |event: &Drop| describe(event, &Two).to_string();
        let api = "10.0.0.3".parse::<IpAddr>().unwrap().into();
        let direct = Drop {
            service: 0,
            backend: 0,
            destination: api,
            destination_port: 8080_u16.to_be(),
            ingress_rule: 0,
            ..opened()
        };
        let lines = [
            told(&opened()),
            // A backend that is gone, and one that no number tells.
            told(&Drop { backend: 8, ..opened() }),
            told(&Drop { backend: 0, rule: 0, ingress_rule: 77, ..opened() }),
            told(&direct),
            told(&Drop { proto: 17, rule: 0, source: direct.destination, ..direct }),
        ];
        insta::assert_snapshot!(lines.join("\n"), @r"
        shop/web → shop/api (10.96.0.7:80/tcp → shop/api-1:8080) allowed by egress shop/web rule 1, ingress shop/api rule 2
        shop/web → shop/api (10.96.0.7:80/tcp) allowed by egress shop/web rule 1, ingress shop/api rule 2
        shop/web → shop/api (10.96.0.7:80/tcp) allowed by ingress rule number 77 (gone)
        shop/web → shop/api-1:8080/tcp allowed by egress shop/web rule 1
        shop/api-1 → shop/api-1:8080/udp allowed, no rule was needed
        ");
    }

    #[test]
    fn what_was_not_told_is_counted_from_where_it_was_told() {
        let mut untold = Untold { seen: 40 };
        assert_eq!([40, 47, 47, 50].map(|now| untold.since(now)), [None, Some(7), None, Some(3)]);
    }
}
