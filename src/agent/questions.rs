//! The questions that `netd status`, `endpoints`, `svc`, `policy`, `conntrack` and `monitor` ask over the socket: their
//! paths, and the answers put together from the agent's state and the kernel's tables. What an answer looks
//! like is [`crate::answer`]'s.
//!
//! Reading the kernel's tables is done on blocking threads; nothing here holds a lock meanwhile.

mod ask;
mod conntrack;
mod endpoints;
mod policies;
mod services;
mod status;

pub(super) use ask::{Book, Refusal};
pub(super) use status::tables;

use super::api::{Shared, blocking};
use super::monitor;
use super::state::State as Agent;
use crate::answer::{Answer, document};
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use std::sync::Arc;

/// Drops told to who says no number.
const DROPS: usize = 100;

/// Their paths.
pub(super) fn router() -> Router<Shared> {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/endpoints", get(endpoints))
        .route("/v1/services", get(services))
        .route("/v1/service", get(service))
        .route("/v1/policies", get(policies))
        .route("/v1/policy", get(policy))
        .route("/v1/policy/explain", get(policy_explain))
        .route("/v1/policy/eval", get(policy_eval))
        .route("/v1/conntrack", get(conntrack))
        .route("/v1/conntrack/summary", get(conntrack_summary))
        .route("/v1/events", get(events))
        .route("/v1/drops", get(drops))
}

/// A document that takes reading the kernel's tables.
async fn told<T: Answer + Send + 'static>(
    shared: Shared,
    read: impl FnOnce(&Agent) -> Result<T, Refusal> + Send + 'static,
) -> Result<Response, Response> {
    match blocking(move || read(&shared.state)).await? {
        Ok(body) => Ok(Json(document(&body)).into_response()),
        Err(refusal) => Err(refusal.into_response()),
    }
}

async fn status(State(shared): State<Shared>) -> Result<Response, Response> {
    told(shared, |state| Ok(status::status(state))).await
}

#[derive(serde::Deserialize)]
struct OfPod {
    pod: Option<String>,
}

async fn endpoints(
    State(shared): State<Shared>,
    Query(OfPod { pod }): Query<OfPod>,
) -> Result<Response, Response> {
    told(shared, move |state| endpoints::endpoints(state, pod.as_deref())).await
}

async fn services(State(shared): State<Shared>) -> Result<Response, Response> {
    told(shared, services::list).await
}

#[derive(serde::Deserialize)]
struct Named {
    name: String,
}

async fn service(
    State(shared): State<Shared>,
    Query(Named { name }): Query<Named>,
) -> Result<Response, Response> {
    told(shared, move |state| services::show(state, &name)).await
}

#[derive(serde::Deserialize)]
struct OfNamespace {
    namespace: Option<String>,
}

async fn policies(
    State(shared): State<Shared>,
    Query(OfNamespace { namespace }): Query<OfNamespace>,
) -> Result<Response, Response> {
    told(shared, move |state| policies::list(state, namespace.as_deref())).await
}

async fn policy(
    State(shared): State<Shared>,
    Query(Named { name }): Query<Named>,
) -> Result<Response, Response> {
    told(shared, move |state| policies::show(state, &name)).await
}

#[derive(serde::Deserialize)]
struct Explain {
    pod: String,
}

async fn policy_explain(
    State(shared): State<Shared>,
    Query(Explain { pod }): Query<Explain>,
) -> Result<Response, Response> {
    told(shared, move |state| policies::explain(state, &pod)).await
}

#[derive(serde::Deserialize)]
struct Eval {
    from: String,
    to: String,
}

async fn policy_eval(
    State(shared): State<Shared>,
    Query(Eval { from, to }): Query<Eval>,
) -> Result<Response, Response> {
    told(shared, move |state| policies::eval(state, &from, &to)).await
}

async fn conntrack_summary(State(shared): State<Shared>) -> Result<Response, Response> {
    told(shared, conntrack::summary).await
}

async fn conntrack(
    State(shared): State<Shared>,
    Query(asked): Query<conntrack::Asked>,
) -> Result<Response, Response> {
    let state = Arc::clone(&shared.state);
    let question = blocking(move || conntrack::Question::new(asked, &shared.state)).await?;
    let question = question.map_err(IntoResponse::into_response)?;
    Ok(lines(conntrack::list(state, question)))
}

async fn events(
    State(shared): State<Shared>,
    Query(asked): Query<monitor::Asked>,
) -> Result<Response, Response> {
    let state = Arc::clone(&shared.state);
    let filter = blocking(move || monitor::Filter::new(asked, &shared.state)).await?;
    let filter = filter.map_err(IntoResponse::into_response)?;
    Ok(lines(monitor::stream(&state.monitor, filter, state.tasks.token().clone())))
}

#[derive(serde::Deserialize)]
struct Newest {
    limit: Option<usize>,
}

async fn drops(
    State(shared): State<Shared>,
    Query(Newest { limit }): Query<Newest>,
) -> Result<Response, Response> {
    told(shared, move |state| Ok(monitor::newest(state, limit.unwrap_or(DROPS)))).await
}

/// A body of one JSON document per line (<https://github.com/ndjson/ndjson-spec>).
fn lines(body: Body) -> Response {
    ([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response()
}
