//! Questions: what a name stands for, and how a question is turned down.

use crate::agent::state::State;
use crate::answer::{Refused, names};
use crate::model::ObjectName;
use crate::telemetry::chain;
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use std::collections::HashMap;
use std::net::IpAddr;

/// Why a question is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::agent) enum Refusal {
    /// No such thing, or more than one.
    Unknown(Refused),
    /// The question cannot be understood.
    Bad(String),
    /// The kernel cannot be read.
    Failed(String),
}

impl Refusal {
    /// The kernel refused.
    pub(in crate::agent) fn failed(error: &dyn std::error::Error) -> Self {
        Self::Failed(chain(error))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let plain = |error| Refused { error, suggestions: Vec::new() };
        let (status, body) = match self {
            Self::Unknown(refused) => (StatusCode::NOT_FOUND, refused),
            Self::Bad(error) => (StatusCode::BAD_REQUEST, plain(error)),
            Self::Failed(error) => (StatusCode::INTERNAL_SERVER_ERROR, plain(error)),
        };
        (status, Json(body)).into_response()
    }
}

/// The one of these names that is meant, as [`names::pick`].
///
/// # Errors
/// None is, or several are.
pub(in crate::agent) fn pick<'a>(
    what: &str,
    asked: &str,
    known: impl Iterator<Item = &'a ObjectName>,
) -> Result<ObjectName, Refusal> {
    names::pick(what, asked, known).map_err(Refusal::Unknown)
}

/// What the pod that is meant is called: by its name, as [`pick`], or by its container where no name is known.
///
/// # Errors
/// None is, or several are.
pub(in crate::agent) fn pick_pod<'a>(
    what: &str,
    asked: &str,
    names: impl Iterator<Item = &'a ObjectName>,
    mut nameless: impl Iterator<Item = &'a str>,
) -> Result<String, Refusal> {
    if nameless.any(|container| container == asked) {
        return Ok(asked.to_owned());
    }
    pick(what, asked, names).map(|name| name.to_string())
}

/// Which pod has which address, at one moment.
#[derive(Debug, Default)]
pub(in crate::agent) struct Book {
    pods: HashMap<IpAddr, ObjectName>,
    /// Pods of which no name is known, by their containers.
    nameless: HashMap<IpAddr, String>,
}

impl Book {
    /// From the ledger, which knows best, the model and the Services' backends.
    pub(in crate::agent) fn of(state: &State) -> Self {
        let (mut pods, mut nameless) = (HashMap::new(), HashMap::new());
        if let Some(services) = &*state.services.load() {
            pods.extend(services.names.pods());
        }
        for pod in state.store.current().model.pods.values() {
            if !pod.host_network && !pod.finished {
                pods.extend(pod.ips.iter().map(|ip| (*ip, pod.name.clone())));
            }
        }
        for entry in state.cni.state().entries() {
            match &entry.pod {
                Some(pod) => pods.extend(entry.addresses.iter().map(|ip| (*ip, pod.clone()))),
                None => nameless.extend(entry.addresses.iter().map(|ip| (*ip, entry.called()))),
            }
        }
        Self { pods, nameless }
    }

    /// The name of the pod that has an address.
    pub(in crate::agent) fn pod(&self, address: IpAddr) -> Option<&ObjectName> {
        self.pods.get(&address)
    }

    /// The same in text, or the pod's container where no name is known.
    pub(in crate::agent) fn called(&self, address: IpAddr) -> Option<String> {
        self.pod(address).map(ToString::to_string).or_else(|| self.nameless.get(&address).cloned())
    }

    /// What the pod that is asked for is called, and its addresses.
    ///
    /// # Errors
    /// There is none of that name.
    pub(in crate::agent) fn addresses(&self, asked: &str) -> Result<(String, Vec<IpAddr>), Refusal> {
        let nameless = self.nameless.values().map(String::as_str);
        let pod = pick_pod("pod", asked, self.pods.values(), nameless)?;
        let named = self.pods.iter().filter(|(_, name)| name.to_string() == pod).map(|(ip, _)| *ip);
        let nameless = self.nameless.iter().filter(|(_, container)| **container == pod).map(|(ip, _)| *ip);
        let addresses = named.chain(nameless).collect();
        Ok((pod, addresses))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<ObjectName> {
        let split = texts.iter().map(|text| text.split_once('/').unwrap());
        split.map(|(namespace, name)| ObjectName::new(namespace, name)).collect()
    }

    #[test]
    fn a_pod_without_a_name_is_asked_for_by_its_container() {
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let named = names(&["shop/web"]).into_iter().map(|name| (ip(1), name));
        let book = Book { pods: named.collect(), nameless: HashMap::from([(ip(2), "c2".to_owned())]) };
        assert_eq!((book.called(ip(1)), book.called(ip(2))), (Some("shop/web".into()), Some("c2".into())));
        assert_eq!((book.called(ip(3)), book.pod(ip(2))), (None, None));
        assert_eq!(book.addresses("c2"), Ok(("c2".to_owned(), vec![ip(2)])));
        assert_eq!(book.addresses("web"), Ok(("shop/web".to_owned(), vec![ip(1)])));
        let unknown = book.addresses("c3").map_err(|refusal| match refusal {
            Refusal::Unknown(refused) => refused.error,
            other => panic!("{other:?}"),
        });
        assert_eq!(unknown, Err("there is no pod c3".to_owned()));
    }
}
