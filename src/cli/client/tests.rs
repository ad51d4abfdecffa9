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
    let error = get(&socket, "/v1/else").expect_err("unknown").to_string();
    assert_eq!(error, "the agent knows no /v1/else: it is an older netd (`netd status` tells)");
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

#[test]
fn a_question_is_encoded_whatever_is_in_it() {
    let asked = [("pod", Some("shop/web 0&x=ü".to_owned())), ("none", None), ("limit", Some("5".to_owned()))];
    assert_eq!(question("/v1/x", &asked), "/v1/x?pod=shop%2Fweb%200%26x%3D%C3%BC&limit=5");
    assert_eq!(question("/v1/x", &[]), "/v1/x");
}

#[test]
fn what_the_agent_says_of_a_bad_question_is_what_the_user_reads() {
    let refused = |status, body: &str| refused("/v1/x", status, body.as_bytes());
    let unknown = refused(404, r#"{"error": "there is no pod x: did you mean y?", "suggestions": ["a/y"]}"#);
    assert_eq!(unknown.to_string(), "there is no pod x: did you mean y?");
    assert!(
        matches!(refused(400, r#"{"error": "no protocol"}"#), Error::Question(text) if text == "no protocol")
    );
    assert!(matches!(refused(500, "boom\n"), Error::Refused { status: 500, text, .. } if text == "boom"));
}

/// Answers one request with these pieces, one after the other.
fn pieces(socket: &Path, pieces: Vec<&'static [u8]>) -> thread::JoinHandle<()> {
    let listener = UnixListener::bind(socket).expect("bound");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accepted");
        let mut request = [0; 1024];
        let read = stream.read(&mut request).expect("a request");
        assert!(read > 0);
        for piece in pieces {
            // One that has gone does not matter: the test says what it expects.
            stream.write_all(piece).ok();
        }
    })
}

#[test]
fn lines_come_in_any_pieces_and_blank_ones_are_skipped() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("netd.sock");
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: x\r\n\r";
    let server = pieces(&socket, vec![head, b"\n\n{\"a\"", b":1}\n\n\n{\"b\":2}\n{\"c\"", b":3}\n"]);
    let mut lines = Lines::open(&socket, "/v1/events").expect("answered");
    let mut all = Vec::new();
    while let Some(line) = lines.next().expect("a line") {
        all.push(String::from_utf8(line).expect("UTF-8"));
    }
    assert_eq!(all, [r#"{"a":1}"#, r#"{"b":2}"#, r#"{"c":3}"#]);
    server.join().expect("no panic");
}

#[test]
fn a_stream_that_breaks_off_or_is_refused_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("netd.sock");
    let server = pieces(&socket, vec![b"HTTP/1.1 200 OK\r\n\r\n{\"a\""]);
    let error = Lines::open(&socket, "/v1/events").expect("answered").next().expect_err("half a line");
    assert!(matches!(error.downcast_ref(), Some(Error::Gone { .. })), "{error:?}");
    server.join().expect("no panic");

    std::fs::remove_file(&socket).expect("removed");
    let body: &[u8] = b"HTTP/1.1 404 Not Found\r\n\r\n{\"error\":\"there is no pod x\"}";
    let server = pieces(&socket, vec![body]);
    let error = Lines::open(&socket, "/v1/events").expect_err("refused");
    assert!(matches!(error, Error::Unknown(text) if text == "there is no pod x"));
    server.join().expect("no panic");

    std::fs::remove_file(&socket).expect("removed");
    assert!(matches!(Lines::open(&socket, "/"), Err(Error::Unreachable { .. })));
    let server = pieces(&socket, vec![b"HTTP/1.1 200"]);
    assert!(matches!(Lines::open(&socket, "/"), Err(Error::Malformed { .. })));
    server.join().expect("no panic");
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
