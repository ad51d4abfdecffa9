//! Against axum on a Unix socket, as the agent has it, and against sockets that misbehave.

use super::*;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get as route;
use proptest::prelude::*;
use std::os::unix::net::UnixListener;
use std::thread;

/// Serves a router until the returned runtime is dropped.
fn serve(socket: &Path, router: Router) -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let listener = runtime.block_on(async { tokio::net::UnixListener::bind(socket) }).expect("bound");
    runtime.spawn(async move { axum::serve(listener, router).await });
    runtime
}

#[test]
fn the_agent_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("netd.sock");
    let large = serde_json::json!({"pods": vec!["x".repeat(1_000); 1_000]});
    let answer = large.clone();
    let router = Router::new()
        .route("/v1/status", route(async || axum::Json(answer)))
        .route("/v1/no", route(async || (StatusCode::SERVICE_UNAVAILABLE, r#"{"error":"not ready"}"#)))
        .route("/v1/text", route(async || "text"));
    let _runtime = serve(&socket, router);
    assert_eq!(get(&socket, "/v1/status").expect("answered"), large);
    let error = get(&socket, "/v1/no").expect_err("refused").to_string();
    assert_eq!(error, "the agent refused /v1/no with status 503: not ready");
    assert!(matches!(get(&socket, "/v1/else"), Err(Error::Refused { status: 404, .. })));
    assert!(matches!(get(&socket, "/v1/text"), Err(Error::Malformed { .. })));
}

#[test]
fn no_agent_is_unreachable_and_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("netd.sock");
    let error = get(&socket, "/v1/status").expect_err("nobody");
    assert!(matches!(error, Error::Unreachable { .. }));
    assert!(error.to_string().contains("is `netd agent` running?"), "{error}");
    drop(UnixListener::bind(&socket).expect("bound"));
    assert!(matches!(get(&socket, "/v1/status"), Err(Error::Unreachable { .. })), "left by a killed agent");
    let long = folder.path().join("x".repeat(200));
    assert!(matches!(get(&long, "/v1/status"), Err(Error::Unreachable { .. })));
}

#[test]
fn an_agent_that_hangs_or_hangs_up_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("netd.sock");
    let listener = UnixListener::bind(&socket).expect("bound");
    let patience = Duration::from_millis(50);
    let error = exchange(&socket, "/", patience).expect_err("silence");
    let Error::Broken { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind(), io::ErrorKind::TimedOut);

    let mut waiting = Vec::new();
    while let Ok(stream) = connect(&socket, patience) {
        waiting.push(stream);
        assert!(waiting.len() < 100_000, "the queue of connections never fills");
    }
    assert!(matches!(exchange(&socket, "/", patience), Err(Error::Unreachable { .. })), "a full queue");
    drop((waiting, listener));

    std::fs::remove_file(&socket).expect("removed");
    let listener = UnixListener::bind(&socket).expect("bound");
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accepted");
        let mut request = [0; 1024];
        let read = stream.read(&mut request).expect("a request");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}").expect("written");
        String::from_utf8_lossy(&request[..read]).into_owned()
    });
    let error = get(&socket, "/v1/status").expect_err("half").to_string();
    assert!(error.ends_with("answered /v1/status with half a document"), "{error}");
    assert!(server.join().expect("no panic").starts_with("GET /v1/status HTTP/1.0\r\n"));
}

proptest! {
    #[test]
    fn no_answer_makes_it_panic(
        head in "(HTTP/1\\.[01] [0-9]{1,6}( OK)?|.{0,9})(\r\n(content-length|transfer-encoding|x): ?.{0,4}){0,2}",
        body in proptest::collection::vec(any::<u8>(), 0..9),
    ) {
        let bytes = [head.as_bytes(), b"\r\n\r\n", &body].concat();
        if let Ok(answer) = parse(&bytes) {
            prop_assert_eq!(answer.body, body);
        }
    }
}
