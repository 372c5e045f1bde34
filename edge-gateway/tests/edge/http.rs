//! What the connection itself must do: headers, methods, versions, deadlines, heartbeats.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    body::Incoming,
    client::conn::http2::{SendRequest, handshake},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tidegate_proto::v1::{self, Progress, event::Kind};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::support::{DEADLINE, Edge, JOB, ScriptedEngine, client, engine::complete, engine::log, until};

const OTHER: &str = "01900000-0000-7000-8000-000000000002";

/// A connection that speaks HTTP/2 from the first byte.
async fn http2(edge: &Edge) -> SendRequest<Empty<Bytes>> {
    let io = TokioIo::new(TcpStream::connect(edge.addr).await.unwrap());
    let (sender, connection) = handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Opens the stream of `job`.
async fn watch_http2(sender: &SendRequest<Empty<Bytes>>, job: &str) -> Response<Incoming> {
    let request = Request::get(format!("http://edge/api/progress/{job}")).body(Empty::new()).unwrap();
    sender.clone().send_request(request).await.unwrap()
}

#[tokio::test]
async fn the_bytes_are_those_of_the_contract() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.append(log("one"));
    engine.append(log("two"));
    let mut answer = edge.watch("last-event-id: 2-q7x2ma\r\n").await;
    answer.expect("connected").await;
    engine.append(Kind::Progress(Progress {
        percent: Some(25.0),
        message: "Step 1/4 complete".into(),
        ..Progress::default()
    }));
    engine.append(log("Processing file data.csv..."));
    engine.append(complete());
    assert_eq!(
        answer.text().await,
        format!(
            "retry: 2000\nevent: connected\n\
             data: {{\"jobId\":\"{JOB}\",\"status\":\"PROCESSING\",\"cursor\":\"2-q7x2ma\",\"resumed\":true}}\n\n\
             id: 3-q7x2ma\nevent: progress\n\
             data: {{\"progress\":25,\"status\":\"PROCESSING\",\"message\":\"Step 1/4 complete\"}}\n\n\
             id: 4-q7x2ma\nevent: log\ndata: \"Processing file data.csv...\"\n\n\
             id: 5-q7x2ma\nevent: complete\n\
             data: {{\"progress\":100,\"status\":\"COMPLETED\",\"result\":\"Success!\"}}\n\n"
        )
    );
}

#[tokio::test]
async fn e12_a_stream_is_neither_cached_nor_buffered_nor_measured() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let answer = edge.watch("accept: text/event-stream\r\n").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    assert_eq!(answer.headers["cache-control"], "no-cache, no-transform");
    assert_eq!(answer.headers["x-accel-buffering"], "no");
    assert!(!answer.headers.contains_key("content-length"));
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    assert_eq!(answer.headers["referrer-policy"], "no-referrer");
    assert!(answer.headers["content-security-policy"].contains("default-src 'self'"));
    assert_eq!(answer.headers["x-request-id"].len(), 36);
    let answer = edge.watch("x-request-id: abc-1\r\n").await;
    assert_eq!(answer.headers["x-request-id"], "abc-1");
}

#[tokio::test]
async fn e13_the_head_comes_before_the_first_event_of_the_job() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let mut answer = edge.watch("").await;
    let connected = answer.expect("connected").await;
    assert_eq!((connected.retry, connected.json()["cursor"].as_str()), (Some(2000), Some("0-q7x2ma")));
}

#[tokio::test]
async fn e15_methods_and_types_are_answered_as_documented() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let path = format!("/api/progress/{JOB}");
    let head = client::request(edge.addr, "HEAD", &path, "", "").await;
    assert_eq!((head.status, &*head.headers["content-type"]), (200, "text/event-stream"));
    assert_eq!(engine.counts().watches.load(std::sync::atomic::Ordering::SeqCst), 0, "HEAD subscribed");
    for method in ["POST", "PUT", "DELETE"] {
        let mut answer = client::request(edge.addr, method, &path, "", "").await;
        assert_eq!((answer.status, &*answer.headers["allow"]), (405, "GET,HEAD"), "{method}");
        assert_eq!(answer.json().await["type"], "/problems/method-not-allowed");
    }
    let mut answer = edge.watch("accept: text/html\r\n").await;
    assert_eq!(
        (answer.status, answer.json().await["type"].as_str()),
        (406, Some("/problems/not-acceptable"))
    );
    let mut answer = edge.watch("accept: application/json\r\n").await;
    assert_eq!((answer.status, answer.json().await["jobId"].as_str()), (200, Some(JOB)));
    let mut answer = edge.get("/nothing", "").await;
    assert_eq!((answer.status, answer.json().await["type"].as_str()), (404, Some("/problems/not-found")));
}

#[tokio::test]
async fn e19_many_streams_share_one_http2_connection() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let sender = http2(&edge).await;
    let mut bodies = Vec::new();
    for _ in 0..50 {
        let response = watch_http2(&sender, JOB).await;
        assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
        assert!(!response.headers().contains_key("connection"));
        bodies.push(response.into_body());
    }
    engine.append(log("x"));
    engine.append(complete());
    for body in bodies {
        let text = tokio::time::timeout(DEADLINE, body.collect()).await.unwrap().unwrap().to_bytes();
        assert_eq!(text.windows(4).filter(|w| w == b"id: ").count(), 2);
    }
}

/// How long the peer takes to close after `bytes`.
async fn closes_after(edge: &Edge, bytes: &[u8]) -> Duration {
    let began = Instant::now();
    let mut stream = TcpStream::connect(edge.addr).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut sink = Vec::new();
    let _ = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut sink)).await.expect("is closed");
    began.elapsed()
}

#[tokio::test]
async fn slow_loris_is_cut_off() {
    let engine = ScriptedEngine::start();
    let edge = Edge::with(&engine, |config| config.timing.head = Duration::from_millis(300));
    for bytes in [&b""[..], b"P", b"PRI * HT", b"GET / HTTP/1.1\r\nhost:"] {
        let took = closes_after(&edge, bytes).await;
        assert!(took >= Duration::from_millis(250), "{bytes:?}: {took:?}");
    }
}

#[tokio::test]
async fn a_huge_request_head_is_refused() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let fits = format!("x-padding: {}\r\n", "x".repeat(12 * 1024));
    assert_eq!(edge.get("/api/kinds", &fits).await.status, 200);
    let huge = format!("x-padding: {}\r\n", "x".repeat(64 * 1024));
    assert_eq!(edge.get("/api/kinds", &huge).await.status, 431);
}

#[tokio::test]
async fn e38_an_idle_stream_is_kept_alive_by_comments() {
    let engine = ScriptedEngine::start();
    let edge = Edge::with(&engine, |config| config.timing.heartbeat = Duration::from_millis(150));
    let mut answer = edge.watch("").await;
    answer.expect("connected").await;
    let began = Instant::now();
    for _ in 0..3 {
        let comment = answer.next().await.unwrap();
        assert!(comment.comment && comment.id.is_none(), "{comment:?}");
    }
    assert!(began.elapsed() >= Duration::from_millis(300), "comments come too fast");
    assert!(answer.seen.ends_with(b"\n\n:\n\n:\n\n:\n\n"));
}

#[tokio::test]
async fn e39_a_viewer_that_leaves_frees_its_stream_and_the_upstream_but_not_the_job() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let answer = edge.watch("").await;
    assert!(edge.metric("tidegate_gateway_streams").await == 1.0);
    drop(answer);
    until("the stream is gone", async || edge.metric("tidegate_gateway_streams").await == 0.0).await;
    until("the upstream is cancelled", async || {
        engine.counts().open.load(std::sync::atomic::Ordering::SeqCst) == 0
    })
    .await;
    engine.append(complete()); // the job still goes on
    let events = edge.watch("").await.rest().await;
    assert_eq!(events.last().unwrap().event, "complete");
}

#[tokio::test]
async fn the_operators_port_is_not_the_public_one() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(edge.get(path, "").await.status, 404, "{path}");
        assert_eq!(client::request(edge.admin, "GET", path, "", "").await.status, 200, "{path}");
    }
    engine.kill();
    assert_eq!(client::request(edge.admin, "GET", "/healthz", "", "").await.status, 200);
    until("unready", async || client::request(edge.admin, "GET", "/readyz", "", "").await.status == 503)
        .await;
}

#[tokio::test]
async fn e14_nothing_is_compressed_even_for_those_who_would_take_it() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let eager = "accept-encoding: gzip, deflate, br, zstd\r\n";
    let mut stream = edge.watch(eager).await;
    assert!(!stream.headers.contains_key("content-encoding"));
    assert!(stream.headers["cache-control"].contains("no-transform"), "and nobody else may either");
    stream.expect("connected").await;
    for path in ["/api/kinds", "/", "/client.js"] {
        assert!(!edge.get(path, eager).await.headers.contains_key("content-encoding"), "{path}");
    }
}

#[tokio::test]
async fn e18_planned_ends_are_clean_on_http2_and_leave_the_connection_to_others() {
    let engine = ScriptedEngine::start();
    engine.add_job(OTHER);
    let mut edge = Edge::start(&engine);
    let sender = http2(&edge).await;
    let ended = watch_http2(&sender, JOB).await.into_body();
    let mut drained = watch_http2(&sender, OTHER).await.into_body();
    engine.append(complete());
    // `collect` fails at RST_STREAM; END_STREAM is the only end that it accepts.
    let text = timeout(DEADLINE, ended.collect()).await.unwrap().expect("END_STREAM").to_bytes();
    assert!(String::from_utf8_lossy(&text).contains("event: complete"));
    engine.append_to(OTHER, log("the connection still carries"));
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("still carries") {
        let frame = timeout(DEADLINE, drained.frame()).await.unwrap().unwrap().unwrap();
        seen.extend_from_slice(&frame.into_data().unwrap());
    }
    edge.stop();
    let text = timeout(DEADLINE, drained.collect()).await.unwrap().expect("END_STREAM").to_bytes();
    assert!(String::from_utf8_lossy(&text).contains("\"reason\":\"draining\""));
    edge.ended().await;
}

#[tokio::test]
async fn e20_no_cache_keeps_what_only_one_may_see_and_nothing_redirects() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let path = format!("/api/progress/{JOB}");
    for headers in ["accept: text/event-stream\r\n", "accept: application/json\r\n", "accept: text/html\r\n"]
    {
        let answer = edge.watch(headers).await;
        let cache = &answer.headers["cache-control"];
        assert!(cache.contains("no-cache") || cache.contains("no-store"), "{headers}: {cache}");
        // What may not be stored need not say what it depends on.
        assert!(cache.contains("no-store") || answer.headers["vary"].contains("accept"), "{headers}");
    }
    engine.append(complete());
    assert_eq!(edge.watch("").await.rest().await.last().unwrap().event, "complete");
    let done = edge.watch("last-event-id: 1-q7x2ma\r\n").await;
    assert_eq!((done.status, &*done.headers["cache-control"]), (204, "no-store"));
    for path in ["/api/jobs", "/api/jobs/nonsense", "/api/nothing"] {
        assert_eq!(edge.get(path, "").await.headers["cache-control"], "no-store", "{path}");
    }
    for path in [&*format!("{path}/"), "/api/progress/", "//api/kinds", "/api/jobs/"] {
        assert_eq!(edge.get(path, "").await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn e30_only_events_of_the_job_move_the_cursor() {
    let engine = ScriptedEngine::start();
    let mut edge = Edge::with(&engine, |config| config.timing.heartbeat = Duration::from_millis(100));
    engine.append(log("one"));
    let mut answer = edge.watch("").await;
    assert_eq!(answer.expect("connected").await.id, None);
    assert_eq!(answer.take(1).await[0].id.as_deref(), Some("1-q7x2ma"));
    for _ in 0..2 {
        let comment = answer.next().await.unwrap();
        assert!(comment.comment && comment.id.is_none(), "{comment:?}");
    }
    edge.stop();
    let goodbye = answer.rest().await.into_iter().find(|event| event.event == "goodbye").unwrap();
    assert_eq!(goodbye.id, None);
}

#[tokio::test]
async fn e35_every_sort_of_end_reaches_the_viewer_and_is_the_last() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let failed = Kind::Failed(v1::Failed { code: "X".into(), message: "no".into(), ..v1::Failed::default() });
    let ends = [complete(), failed, Kind::Cancelled(v1::Cancelled::default())];
    for (n, (end, name)) in ends.into_iter().zip(["complete", "failed", "cancelled"]).enumerate() {
        let job = format!("01900000-0000-7000-8000-0000000000a{n}");
        engine.add_job(&job);
        let path = format!("/api/progress/{job}");
        let mut live = edge.get(&path, "").await;
        live.expect("connected").await;
        engine.append_to(&job, log("one"));
        engine.append_to(&job, end);
        // Who watched, who comes late, and who died just before the end.
        let mut late = edge.get(&path, "").await;
        let mut died = edge.get(&path, "last-event-id: 1-q7x2ma\r\n").await;
        for (answer, ids) in [(&mut live, 2), (&mut late, 2), (&mut died, 1)] {
            let events: Vec<_> = answer.rest().await.into_iter().filter(|e| e.id.is_some()).collect();
            assert_eq!((events.len(), &*events.last().unwrap().event), (ids, name));
        }
        assert_eq!(edge.get(&path, "last-event-id: 2-q7x2ma\r\n").await.status, 204, "{name}");
    }
}
