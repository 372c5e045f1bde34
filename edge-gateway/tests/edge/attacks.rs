//! What hostile clients send: floods, half requests, huge bodies, resets, smuggling, traversal, line ends.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::support::{DEADLINE, Edge, JOB, ScriptedEngine, client, engine::log, process::Gateway, until};

/// Sends `bytes` and reads until the peer closes or says nothing for a while.
async fn raw(edge: &Edge, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(edge.addr).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    while let Ok(Ok(1..)) = timeout(Duration::from_millis(500), stream.read_buf(&mut answer)).await {}
    String::from_utf8_lossy(&answer).into_owned()
}

/// The status lines in what came back.
fn statuses(answer: &str) -> Vec<u16> {
    let lines = answer.split("HTTP/1.1 ").skip(1);
    lines.map(|line| line[..3].parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_half_open_connections_are_dropped_and_disturb_nobody() {
    const MANY: usize = 10_000;
    let engine = ScriptedEngine::start();
    // A process of its own: each side needs a file for every connection.
    let gateway = Gateway::start(&engine, "", &[]).await;
    let mut witness = gateway.get(&format!("/api/progress/{JOB}"), "").await;
    witness.expect("connected").await;
    let before = gateway.process.resident();
    let mut half = Vec::with_capacity(MANY);
    for n in 0..MANY {
        let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
        // A third says nothing at all, a third half a request, a third half a preface.
        let bytes = [&b""[..], b"GET /api/jobs HTTP/1.1\r\nhost: x\r\nx-", b"PRI * HTTP/2"][n % 3];
        stream.write_all(bytes).await.unwrap();
        half.push(stream);
    }
    let began = Instant::now();
    assert_eq!(gateway.get("/api/kinds", "").await.status, 200);
    engine.append(log("on time"));
    witness.expect("log").await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let cost = (gateway.process.resident() - before) / (MANY as u64 / 1024);
    assert!(cost < 24 * 1024, "{cost} bytes for half a connection");
    for stream in &mut half {
        let _ = timeout(DEADLINE, stream.read_to_end(&mut Vec::new())).await.expect("is dropped");
    }
    assert_eq!(gateway.get("/api/kinds", "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_100_mb_is_refused_and_costs_no_memory() {
    const HUGE: usize = 100 << 20;
    let engine = ScriptedEngine::start();
    let gateway = Gateway::start(&engine, "", &[]).await;
    assert_eq!(gateway.get("/api/kinds", "").await.status, 200);
    let before = gateway.process.resident();
    for length in ["content-length: 104857600", "transfer-encoding: chunked"] {
        let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
        let head = format!(
            "POST /api/jobs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let chunked = length.starts_with("transfer");
        let (mut reads, mut writes) = stream.into_split();
        let sender = tokio::spawn(async move {
            let block = vec![b'x'; 1 << 16];
            let mut sent = 0;
            while sent < HUGE {
                if chunked && writes.write_all(b"10000\r\n").await.is_err() {
                    break;
                }
                if writes.write_all(&block).await.is_err()
                    || (chunked && writes.write_all(b"\r\n").await.is_err())
                {
                    break;
                }
                sent += block.len();
            }
            sent
        });
        let mut answer = Vec::new();
        let _ = timeout(DEADLINE, reads.read_to_end(&mut answer)).await.expect("answered and closed");
        assert!(answer.starts_with(b"HTTP/1.1 413"), "{:?}", String::from_utf8_lossy(&answer));
        let sent = timeout(DEADLINE, sender).await.unwrap().unwrap();
        assert!(sent < HUGE, "all of it was read");
    }
    let grown = gateway.process.resident().saturating_sub(before);
    assert!(grown < 16 * 1024, "grew by {grown} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_rapid_reset_ends_the_connection_and_not_the_service() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let mut witness = edge.watch("").await;
    witness.expect("connected").await;
    let path = format!("/api/progress/{JOB}");
    // HPACK: GET, http, the path as a literal, the authority as a literal (RFC 7541, without indexing).
    let mut block = vec![0x82, 0x86, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend_from_slice(path.as_bytes());
    block.extend_from_slice(b"\x01\x04edge");
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags][..], &stream.to_be_bytes(), payload].concat()
    };
    let mut stream = TcpStream::connect(edge.addr).await.unwrap();
    let preface = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, b"")].concat();
    stream.write_all(&preface).await.unwrap();
    let (mut reads, mut writes) = stream.into_split();
    let attack = tokio::spawn(async move {
        for burst in 0..1000u32 {
            let mut bytes = Vec::new();
            for n in 0..100 {
                let id = (burst * 100 + n) * 2 + 1;
                bytes.extend(frame(1, 5, id, &block)); // HEADERS, END_STREAM and END_HEADERS
                bytes.extend(frame(3, 0, id, &8u32.to_be_bytes())); // RST_STREAM, CANCEL
            }
            if writes.write_all(&bytes).await.is_err() {
                return burst;
            }
        }
        1000
    });
    let mut answer = Vec::new();
    let _ = timeout(DEADLINE, reads.read_to_end(&mut answer)).await.expect("the connection ends");
    let bursts = timeout(DEADLINE, attack).await.unwrap().unwrap();
    assert!(bursts < 1000, "the whole attack was served");
    // GOAWAY with ENHANCE_YOUR_CALM (11).
    let calm = answer.windows(17).any(|w| w[3] == 7 && w[13..17] == 11u32.to_be_bytes());
    assert!(calm || answer.len() < 64, "no GOAWAY in {} bytes", answer.len());
    engine.append(log("still here"));
    witness.expect("log").await;
    until("nothing is left of it", async || edge.metric("tidegate_gateway_streams").await == 1.0).await;
}

#[tokio::test]
async fn smuggled_requests_are_refused_or_answered_once() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let smuggled = "GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n";
    let heads = [
        // Two lengths that differ; a length that is none; signs and blanks.
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: +5\r\n",
        "content-length: 0x5\r\n",
        "content-length: 5, 6\r\n",
        // An encoding that a proxy might not recognise as chunked.
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding : chunked\r\n",
        "transfer-encoding:\x0bchunked\r\n",
        // A folded line, a name with a blank, a lone CR.
        "x-a: b\r\n transfer-encoding: chunked\r\n",
        "x a: b\r\n",
        "x-a: b\rtransfer-encoding: chunked\r\n",
    ];
    for head in heads {
        let request = format!("POST /api/jobs HTTP/1.1\r\nhost: x\r\n{head}\r\n{smuggled}");
        let answer = raw(&edge, request.as_bytes()).await;
        let got = statuses(&answer);
        assert!(got.len() <= 1 && got.iter().all(|status| *status == 400), "{head:?}: {answer}");
    }
    // Both: the encoding decides (RFC 9112, section 6.1), and nothing that follows is a request of its own.
    let both = format!(
        "POST /api/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}",
        smuggled.len() + 5
    );
    let answer = raw(&edge, both.as_bytes()).await;
    assert!(!statuses(&answer).contains(&404), "the smuggled request was answered: {answer}");
}

#[tokio::test]
async fn paths_lead_nowhere_but_to_routes() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    for path in [
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/client.js/../../Cargo.toml",
        "/client.js%00.html",
        "//etc/passwd",
        "/.git/config",
        "/api/../metrics",
        "/api/jobs/..%2f..%2fmetrics",
        "/api/progress/..%2fjobs",
        "/api/jobs/%00",
        "/api/jobs/%ff%fe",
        "/api/jobs/../kinds",
        "/./",
    ] {
        let mut answer = edge.get(path, "").await;
        assert!(matches!(answer.status, 400 | 404), "{path}: {}", answer.status);
        let text = answer.text().await;
        assert!(
            !text.contains("root:") && !text.contains("[package]") && !text.contains("tidegate_gateway"),
            "{path}"
        );
    }
    // In the absolute form, too, only the path counts.
    let answer = raw(&edge, b"GET http://elsewhere/api/kinds HTTP/1.1\r\nhost: elsewhere\r\n\r\n").await;
    assert_eq!(statuses(&answer), [200]);
    let answer = raw(&edge, b"CONNECT evil.example:443 HTTP/1.1\r\nhost: evil.example:443\r\n\r\n").await;
    assert!(statuses(&answer).iter().all(|status| (400..500).contains(status)), "{answer}");
}

#[tokio::test]
async fn e1_line_ends_and_nul_reach_no_header() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    // Encoded, in every field that an answer repeats or a handler reads.
    for evil in ["%0d%0aset-cookie:%20a=b", "%0aset-cookie:%20a=b", "%00", "%e2%80%a8"] {
        for path in [
            format!("/api/progress/{JOB}?lastEventId=1-q7x2ma{evil}"),
            format!("/api/progress/{JOB}{evil}"),
            format!("/api/jobs/{JOB}{evil}"),
            format!("/api/jobs?cursor={evil}&status={evil}"),
            format!("/{evil}"),
        ] {
            let answer = edge.get(&path, "").await;
            assert!(matches!(answer.status, 400 | 404), "{path}: {}", answer.status);
            assert!(!answer.headers.contains_key("set-cookie"), "{path}");
        }
    }
    // Raw, in every field that is repeated or parsed.
    for name in
        ["x-request-id", "last-event-id", "idempotency-key", "origin", "accept", "x-forwarded-for", "host"]
    {
        for evil in ["a\nset-cookie: a=b", "a\rset-cookie: a=b", "a\0b"] {
            let request =
                format!("GET /api/kinds HTTP/1.1\r\nhost: x\r\n{name}: {evil}\r\nconnection: close\r\n\r\n");
            let answer = raw(&edge, request.as_bytes()).await;
            let head = answer.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
            assert!(
                statuses(&answer).len() == 1 && !head.contains("set-cookie"),
                "{name} {evil:?}: {answer}"
            );
        }
    }
    // Bytes that are allowed in a header, but in no log or answer of ours.
    for evil in ["a b", "a\u{fe}", "\"><script>", &"x".repeat(65)] {
        let answer = edge.get("/api/kinds", &format!("x-request-id: {evil}\r\n")).await;
        assert_eq!((answer.status, answer.headers["x-request-id"].len()), (200, 36), "{evil:?}");
        let headers = format!("content-type: application/json\r\nidempotency-key: {evil}\u{1}\r\n");
        let answer = client::request(edge.addr, "POST", "/api/jobs", &headers, r#"{"kind":"demo"}"#).await;
        assert_eq!(answer.status, 400, "{evil:?}");
    }
}
