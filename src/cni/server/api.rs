//! The verbs over HTTP, for the plugin: `POST /v1/cni/{add,del,check,gc,status}`.
//!
//! The body is the request of [`types`](crate::cni::types) as JSON. The answer is what the plugin prints:
//! the result (`{}` where CNI has none) with status 200, or the specification's error object with another.

use super::{Plumbing, Server};
use crate::cni::types::{Add, AttachResult, Check, Code, Del, Error, Gc, Status, Version};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

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

/// The routes of the verbs.
pub fn router<P: Plumbing>(server: Arc<Server<P>>) -> Router {
    Router::new()
        .route("/v1/cni/add", post(add::<P>))
        .route("/v1/cni/del", post(del::<P>))
        .route("/v1/cni/check", post(check::<P>))
        .route("/v1/cni/gc", post(gc::<P>))
        .route("/v1/cni/status", post(status::<P>))
        .with_state(server)
}

type Answer<T> = Result<Json<T>, Refusal>;

async fn add<P: Plumbing>(State(server): State<Arc<Server<P>>>, body: Bytes) -> Answer<AttachResult> {
    let request: Add = parse(&body)?;
    let version = request.version;
    answer(version, server.add(request).await.map(|result| result.in_version(version)))
}

async fn del<P: Plumbing>(State(server): State<Arc<Server<P>>>, body: Bytes) -> Answer<Nothing> {
    let request: Del = parse(&body)?;
    answer(request.version, server.del(request).await.map(|()| Nothing {}))
}

async fn check<P: Plumbing>(State(server): State<Arc<Server<P>>>, body: Bytes) -> Answer<Nothing> {
    let request: Check = parse(&body)?;
    answer(request.version, server.check(request).await.map(|()| Nothing {}))
}

async fn gc<P: Plumbing>(State(server): State<Arc<Server<P>>>, body: Bytes) -> Answer<Nothing> {
    let request: Gc = parse(&body)?;
    answer(request.version, server.gc(request).await.map(|()| Nothing {}))
}

async fn status<P: Plumbing>(State(server): State<Arc<Server<P>>>, body: Bytes) -> Answer<Nothing> {
    let request: Status = parse(&body)?;
    answer(request.version, server.status().map(|()| Nothing {}))
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
