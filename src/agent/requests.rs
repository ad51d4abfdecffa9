//! The requests of container runtimes: counted, timed, and told to whoever watches.

use super::monitor::{Monitor, event};
use crate::answer::event::{Event, Kind};
use crate::answer::status::Requests as Totals;
use crate::cni::server::{Answered, Observer};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    verb: &'static str,
    /// The specification's error code, 0: none.
    code: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verb {
    verb: &'static str,
}

/// 0.5 ms to 16 s.
fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.000_5, 2.0, 16))
}

/// What was answered so far.
#[derive(Debug)]
pub(super) struct Requests {
    monitor: Monitor,
    answered: Family<Outcome, Counter>,
    took: Family<Verb, Histogram, fn() -> Histogram>,
    totals: Mutex<BTreeMap<&'static str, Totals>>,
}

impl Requests {
    /// Tells of them to those who watch.
    pub(super) fn new(monitor: Monitor) -> Self {
        Self {
            monitor,
            answered: Family::default(),
            took: Family::new_with_constructor(histogram),
            totals: Mutex::default(),
        }
    }

    /// Registers the metrics, as `netd_cni_…` in a registry with the prefix `netd`.
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("cni");
        registry.register(
            "requests",
            "Requests of container runtimes answered, by the specification's error code (0: done)",
            self.answered.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "Time from a request to its answer",
            Unit::Seconds,
            self.took.clone(),
        );
    }

    /// By verb.
    pub(super) fn totals(&self) -> BTreeMap<String, Totals> {
        let totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals.iter().map(|(verb, total)| ((*verb).to_owned(), *total)).collect()
    }
}

impl Observer for Requests {
    fn answered(&self, answered: &Answered<'_>) {
        let Answered { verb, error, took, .. } = *answered;
        let code = error.map_or(0, |error| error.code.0);
        self.answered.get_or_create(&Outcome { verb, code }).inc();
        self.took.get_or_create(&Verb { verb }).observe(took.as_secs_f64());
        {
            let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
            let total = totals.entry(verb).or_default();
            *if error.is_some() { &mut total.failed } else { &mut total.done } += 1;
            total.total_us =
                total.total_us.saturating_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
        if self.monitor.is_watched()
            && let Some(event) = told(answered)
        {
            self.monitor.tell(event);
        }
    }
}

/// What is worth telling: what changed a pod, and what failed.
fn told(answered: &Answered<'_>) -> Option<Event> {
    let Answered { verb, attachment, pod, addresses, error, took } = answered;
    let name = match (pod, attachment) {
        (Some(pod), _) => Some(pod.to_string()),
        (None, Some(attachment)) => Some(attachment.container_id.clone()),
        (None, None) => None,
    };
    let message = match (error, *verb) {
        (Some(error), _) => format!("{verb} failed: {error}"),
        (None, "ADD") => {
            let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            format!("added with {} in {took:.1?}", list.join(", "))
        }
        (None, "DEL") => "removed".to_owned(),
        (None, "GC") => "garbage collected".to_owned(),
        _ => return None,
    };
    Some(Event { bad: error.is_some(), ..event(Kind::Cni, name, message) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::types::Attachment;
    use std::time::Duration;

    #[test]
    fn a_pod_without_a_name_goes_by_its_container() {
        let attachment = Attachment { container_id: "c2".to_owned(), ifname: "eth0".to_owned() };
        let answered = Answered {
            verb: "DEL",
            attachment: Some(&attachment),
            pod: None,
            addresses: Vec::new(),
            error: None,
            took: Duration::from_millis(1),
        };
        let event = told(&answered).expect("worth telling");
        assert_eq!((event.subject.as_deref(), event.message.as_str()), (Some("c2"), "removed"));
    }
}
