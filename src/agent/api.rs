//! The agent's HTTP interface: one router, on a Unix socket for root and, without the CNI and the details,
//! on TCP for probes and Prometheus.
//!
//! | path | answers |
//! |---|---|
//! | `GET /healthz` | 200 while the agent serves |
//! | `GET /readyz` | 200, or 503 with what is pending |
//! | `GET /metrics` | OpenMetrics text |
//! | `GET /v1/status` | how all is: [`answer::status`] |
//! | `GET /v1/endpoints?pod=` | pods of this node: [`answer::endpoints`] |
//! | `GET /v1/services`, `GET /v1/service?name=` | Services: [`answer::services`] |
//! | `GET /v1/policies?namespace=`, `GET /v1/policy?name=` | NetworkPolicies: [`answer::policy`] |
//! | `GET /v1/policy/explain?pod=`, `GET /v1/policy/eval?from=&to=` | what a pod may do; whether a flow may be |
//! | `GET /v1/conntrack?pod=&service=&protocol=&state=&address=&limit=` | flows, a line each: [`answer::conntrack`] |
//! | `GET /v1/conntrack/summary` | flows, counted |
//! | `GET /v1/events?drops=&flows=&pod=&reason=` | what happens, a line each, without end: [`answer::event`] |
//! | `GET /v1/drops?limit=` | the newest drops: [`answer::event::Drops`] |
//! | `POST /v1/cni/{add,del,check,gc,status}` | the CNI plugin's questions |
//!
//! What begins with `/v1` is on the socket only. A question that cannot be answered gets a status of 400, 404
//! or 500 and [`answer::Refused`].

use super::questions;
use super::state::State as Agent;
use super::tasks::Failure;
use crate::telemetry::metrics::{CONTENT_TYPE, Metrics};
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::IncomingStream;
use axum::{Json, Router};
use std::fs;
use std::io;
use std::net::TcpListener as StdTcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::sync::Arc;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

/// What the handlers answer from.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    pub(super) state: Arc<Agent>,
    pub(super) metrics: Arc<Metrics>,
}

/// Peer of a connection to the Unix socket.
#[derive(Clone, Copy, Debug)]
struct Peer {
    uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self { uid: stream.io().peer_cred().ok().map(|credentials| credentials.uid()) }
    }
}

/// Serves the Unix socket until the token is cancelled, then finishes what is under way.
///
/// # Errors
/// The listener breaks.
pub(super) async fn serve_socket(
    listener: StdUnixListener,
    shared: Shared,
    cni: Router,
    cancel: CancellationToken,
) -> Result<(), Failure> {
    let listener = UnixListener::from_std(listener)?;
    let router = public()
        .merge(questions::router())
        .with_state(shared)
        .merge(cni)
        .layer(middleware::from_fn(root_only))
        .into_make_service_with_connect_info::<Peer>();
    axum::serve(listener, router).with_graceful_shutdown(cancel.cancelled_owned()).await?;
    Ok(())
}

/// Serves probes and metrics on TCP until the token is cancelled.
///
/// # Errors
/// The listener breaks.
pub(super) async fn serve_tcp(
    listener: StdTcpListener,
    shared: Shared,
    cancel: CancellationToken,
) -> Result<(), Failure> {
    let listener = TcpListener::from_std(listener)?;
    axum::serve(listener, public().with_state(shared))
        .with_graceful_shutdown(cancel.cancelled_owned())
        .await?;
    Ok(())
}

/// Binds the Unix socket, in the place of one that a killed agent left. The node's lock is held: nobody
/// serves the old one.
///
/// # Errors
/// The path cannot be bound.
pub(super) fn bind(path: &Path) -> io::Result<StdUnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = StdUnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn public() -> Router<Shared> {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
}

/// The socket's permissions say so already; this also holds for descriptors handed on.
async fn root_only(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    if peer.uid == Some(0) {
        return next.run(request).await;
    }
    (StatusCode::FORBIDDEN, "netd's socket answers root only\n").into_response()
}

async fn readyz(State(shared): State<Shared>) -> Response {
    let pending = shared.state.readiness.pending();
    if pending.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, Json(serde_json::json!({ "pending": pending }))).into_response()
}

/// Reading the kernel's tables takes system calls by the thousand: not on a worker of the runtime.
pub(super) async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Response> {
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response())
}

async fn metrics(State(shared): State<Shared>) -> Result<Response, Response> {
    let text = blocking(move || shared.metrics.encode()).await?;
    Ok(match text {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n").into_response(),
    })
}
