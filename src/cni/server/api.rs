//! The verbs over HTTP, for the plugin: `POST /v1/cni/{add,del,check,gc,status}`.
//!
//! The body is the request of [`types`](crate::cni::types) as JSON. The answer is what the plugin prints:
//! the result (`{}` where CNI has none) with status 200, or the specification's error object with another. An
//! [`Observer`] hears of each.

use super::{Plumbing, Server};
use crate::cni::types::{Add, AttachResult, Attachment, Check, Code, Del, Error, Gc, Status, Version};
use crate::model::ObjectName;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Serialize)]
struct Nothing {}

/// An error, and the version to say it in.
struct Refusal(Version, Error);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self(version, error) = self;
        tracing::warn!(%error, "CNI request refused");
        let status = match error.code {
            Code::TRY_LATER | Code::UNAVAILABLE | Code::LIMITED => StatusCode::SERVICE_UNAVAILABLE,
            Code::UNKNOWN_CONTAINER => StatusCode::NOT_FOUND,
            Code::DUPLICATE | Code::NAME_TAKEN => StatusCode::CONFLICT,
            Code::DECODE => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(error.object(version))).into_response()
    }
}

/// One request and how it was answered.
#[derive(Debug)]
pub struct Answered<'a> {
    /// `ADD`, `DEL`, `CHECK`, `GC` or `STATUS`.
    pub verb: &'static str,
    /// Which interface of which container, if it was about one.
    pub attachment: Option<&'a Attachment>,
    /// The pod, if it is known.
    pub pod: Option<ObjectName>,
    /// What an ADD gave.
    pub addresses: Vec<IpAddr>,
    /// Why it was refused, if it was.
    pub error: Option<&'a Error>,
    /// From request to answer.
    pub took: Duration,
}

/// Hears of all requests that could be understood. Must not block.
pub trait Observer: Send + Sync + 'static {
    /// One was answered.
    fn answered(&self, answered: &Answered<'_>);
}

struct Shared<P, O> {
    server: Arc<Server<P>>,
    observer: Arc<O>,
}

impl<P, O> Clone for Shared<P, O> {
    fn clone(&self) -> Self {
        Self { server: Arc::clone(&self.server), observer: Arc::clone(&self.observer) }
    }
}

impl<P: Plumbing, O: Observer> Shared<P, O> {
    /// Times some work and tells of it.
    async fn observed<T>(
        &self,
        verb: &'static str,
        about: Option<(&Attachment, Option<&ObjectName>)>,
        addresses: impl FnOnce(&T) -> Vec<IpAddr>,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let attachment = about.map(|(attachment, _)| attachment);
        // After a DEL nobody knows it any more.
        let known = || self.server.state().get(attachment?)?.pod.clone();
        let pod = about.and_then(|(_, pod)| pod.cloned()).or_else(known);
        let begun = Instant::now();
        let result = work.await;
        self.observer.answered(&Answered {
            verb,
            attachment,
            pod,
            addresses: result.as_ref().map(addresses).unwrap_or_default(),
            error: result.as_ref().err(),
            took: begun.elapsed(),
        });
        result
    }
}

/// The routes of the verbs.
pub fn router<P: Plumbing, O: Observer>(server: Arc<Server<P>>, observer: Arc<O>) -> Router {
    Router::new()
        .route("/v1/cni/add", post(add::<P, O>))
        .route("/v1/cni/del", post(del::<P, O>))
        .route("/v1/cni/check", post(check::<P, O>))
        .route("/v1/cni/gc", post(gc::<P, O>))
        .route("/v1/cni/status", post(status::<P, O>))
        .with_state(Shared { server, observer })
}

type Answer<T> = Result<Json<T>, Refusal>;

async fn add<P: Plumbing, O: Observer>(
    State(shared): State<Shared<P, O>>,
    body: Bytes,
) -> Answer<AttachResult> {
    let request: Add = parse(&body)?;
    let version = request.version;
    let (attachment, pod) = (request.attachment.clone(), request.pod.clone());
    let given = |result: &AttachResult| result.ips.iter().map(|ip| ip.address.addr()).collect();
    let about = Some((&attachment, pod.as_ref()));
    let done = shared.observed("ADD", about, given, shared.server.add(request)).await;
    answer(version, done.map(|result| result.in_version(version)))
}

async fn del<P: Plumbing, O: Observer>(State(shared): State<Shared<P, O>>, body: Bytes) -> Answer<Nothing> {
    let request: Del = parse(&body)?;
    let (version, attachment) = (request.version, request.attachment.clone());
    let work = shared.server.del(request);
    answer(version, shared.observed("DEL", Some((&attachment, None)), none, work).await.map(|()| Nothing {}))
}

async fn check<P: Plumbing, O: Observer>(State(shared): State<Shared<P, O>>, body: Bytes) -> Answer<Nothing> {
    let request: Check = parse(&body)?;
    let (version, attachment) = (request.version, request.attachment.clone());
    let work = shared.server.check(request);
    answer(
        version,
        shared.observed("CHECK", Some((&attachment, None)), none, work).await.map(|()| Nothing {}),
    )
}

async fn gc<P: Plumbing, O: Observer>(State(shared): State<Shared<P, O>>, body: Bytes) -> Answer<Nothing> {
    let request: Gc = parse(&body)?;
    let version = request.version;
    answer(version, shared.observed("GC", None, none, shared.server.gc(request)).await.map(|()| Nothing {}))
}

async fn status<P: Plumbing, O: Observer>(
    State(shared): State<Shared<P, O>>,
    body: Bytes,
) -> Answer<Nothing> {
    let request: Status = parse(&body)?;
    let work = async { shared.server.status() };
    answer(request.version, shared.observed("STATUS", None, none, work).await.map(|()| Nothing {}))
}

/// What verbs without a result give.
const fn none((): &()) -> Vec<IpAddr> {
    Vec::new()
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        let msg = "the plugin's request is not understood";
        Refusal(Version::LATEST, Error::because(Code::DECODE, msg, error.to_string()))
    })
}

fn answer<T>(version: Version, result: Result<T, Error>) -> Answer<T> {
    result.map(Json).map_err(|error| Refusal(version, error))
}
