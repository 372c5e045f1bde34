//! TLS on the public port: versions of HTTP, deadlines, certificates that change.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use edge_gateway::TlsFiles;
use http_body_util::{BodyExt as _, Empty};
use tempfile::TempDir;
use tidegate_proto::v1::event::Kind;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

use crate::support::{
    DEADLINE, Edge, JOB, ScriptedEngine, client, engine::complete, engine::log, process::Gateway, until,
};

/// A certificate in files, and how to trust it.
pub(crate) struct Identity {
    dir: TempDir,
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Identity {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let identity = Self { dir, cert: made.cert.pem(), key: made.signing_key.serialize_pem() };
        identity.write(&identity.cert, &identity.key);
        identity
    }

    fn write(&self, cert: &str, key: &str) {
        std::fs::write(self.dir.path().join("cert.pem"), cert).unwrap();
        std::fs::write(self.dir.path().join("key.pem"), key).unwrap();
    }

    pub(crate) fn files(&self) -> TlsFiles {
        let path = |name: &str| Path::join(self.dir.path(), name);
        TlsFiles { cert: path("cert.pem"), key: path("key.pem") }
    }

    fn serve(&self, engine: &ScriptedEngine) -> Edge {
        Edge::with(engine, |config| config.edge.tls = Some(self.files()))
    }
}

/// A TLS connection by a client that trusts `cert` alone and offers `protocols`.
pub(crate) async fn connect(
    addr: std::net::SocketAddr,
    cert: &str,
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let stream = TcpStream::connect(addr).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

#[tokio::test]
async fn e19_http1_and_http2_stream_over_tls_at_once() {
    let engine = ScriptedEngine::start();
    let identity = Identity::new();
    let edge = identity.serve(&engine);
    for protocols in [&["http/1.1"][..], &[]] {
        let stream = connect(edge.addr, &identity.cert, protocols).await.unwrap();
        let mut answer = client::request_on(stream, "GET", &format!("/api/progress/{JOB}"), "", "").await;
        answer.expect("connected").await;
    }
    let stream = connect(edge.addr, &identity.cert, &["h2", "http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    let mut bodies = Vec::new();
    for _ in 0..100 {
        let request = http::Request::get(format!("https://localhost/api/progress/{JOB}"));
        let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
        let response = sender.clone().send_request(request).await.unwrap();
        assert_eq!((response.status(), response.version()), (http::StatusCode::OK, http::Version::HTTP_2));
        bodies.push(response.into_body());
    }
    assert_eq!(edge.metric("tidegate_gateway_streams{protocol=\"h2\"}").await, 100.0);
    assert_eq!(edge.metric("tidegate_gateway_streams{protocol=\"http/1.1\"}").await, 0.0);
    // Each frame comes while the stream stays open.
    for body in &mut bodies {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(frame.windows(9).any(|w| w == b"connected"));
    }
    engine.append(log("one"));
    for body in &mut bodies {
        let frame = tokio::time::timeout(DEADLINE, body.frame()).await.unwrap().unwrap().unwrap();
        assert!(frame.into_data().unwrap().windows(5).any(|w| w == b"\"one\""));
    }
    engine.append(complete());
    for body in bodies {
        let text = tokio::time::timeout(DEADLINE, body.collect()).await.unwrap().unwrap().to_bytes();
        assert!(text.windows(8).any(|w| w == b"complete"));
    }
}

/// How often a gateway has refused a new certificate.
fn refused(gateway: &Gateway) -> usize {
    gateway.process.output().matches("the new certificate cannot be used").count()
}

#[tokio::test]
async fn a_new_certificate_is_taken_without_a_restart_and_a_broken_one_is_not() {
    let engine = ScriptedEngine::start();
    let (identity, other) = (Identity::new(), Identity::new());
    let files = identity.files();
    let flags =
        [format!("--tls-cert={}", files.cert.display()), format!("--tls-key={}", files.key.display())];
    let gateway = Gateway::start(&engine, "", &flags).await;
    let stream = connect(gateway.addr, &identity.cert, &[]).await.unwrap();
    let mut open = client::request_on(stream, "GET", &format!("/api/progress/{JOB}"), "", "").await;
    open.expect("connected").await;
    // A broken pair, a pair that does not fit, and files that are gone: the old one stays in force.
    for (cert, key) in [("nonsense", "nonsense"), (&*other.cert, &*identity.key), (&*identity.cert, "")] {
        let before = refused(&gateway);
        identity.write(cert, key);
        until("the gateway has looked", async || {
            connect(gateway.addr, &identity.cert, &[]).await.expect("the last good certificate");
            refused(&gateway) > before
        })
        .await;
    }
    connect(gateway.addr, &identity.cert, &[]).await.expect("the last good certificate");
    identity.write(&other.cert, &other.key);
    until("the new one is in force", async || connect(gateway.addr, &other.cert, &[]).await.is_ok()).await;
    assert!(connect(gateway.addr, &identity.cert, &[]).await.is_err());
    engine.append(log("still open"));
    open.expect("log").await;
    let before = refused(&gateway);
    std::fs::remove_file(files.cert).unwrap();
    until("the gateway has looked", async || refused(&gateway) > before).await;
    connect(gateway.addr, &other.cert, &[]).await.expect("the last good certificate");
}

#[tokio::test]
async fn a_slow_handshake_and_a_slow_head_are_cut_off() {
    let engine = ScriptedEngine::start();
    let identity = Identity::new();
    let edge = Edge::with(&engine, |config| {
        config.edge.tls = Some(identity.files());
        config.timing.head = Duration::from_millis(300);
    });
    // Half a ClientHello.
    for bytes in [&b""[..], &b"\x16\x03\x01\x02\x00\x01"[..]] {
        let began = Instant::now();
        let mut stream = TcpStream::connect(edge.addr).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let _ = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut Vec::new())).await.expect("is closed");
        assert!(began.elapsed() >= Duration::from_millis(250));
    }
    for head in [&b""[..], b"GET / HTTP/1.1\r\nhost:"] {
        let mut stream = connect(edge.addr, &identity.cert, &["http/1.1"]).await.unwrap();
        stream.write_all(head).await.unwrap();
        let began = Instant::now();
        let _ = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut Vec::new())).await.expect("is closed");
        assert!(began.elapsed() >= Duration::from_millis(200), "{head:?}");
    }
    // Somebody who does not know that this is TLS, or speaks nothing that we do.
    let mut plain = TcpStream::connect(edge.addr).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(DEADLINE, plain.read_to_end(&mut answer)).await.expect("is closed");
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    assert!(connect(edge.addr, &identity.cert, &["spdy/3"]).await.is_err());
    connect(edge.addr, &identity.cert, &["h2"]).await.expect("still serving");
}

#[tokio::test]
async fn browsers_are_told_to_come_by_https_only_where_that_was_asked_for() {
    let engine = ScriptedEngine::start();
    let identity = Identity::new();
    for (hsts, expected) in [(0, None), (31_536_000, Some("max-age=31536000"))] {
        let edge = Edge::with(&engine, |config| {
            config.edge.tls = Some(identity.files());
            config.edge.hsts = Duration::from_secs(hsts);
        });
        let stream = connect(edge.addr, &identity.cert, &["http/1.1"]).await.unwrap();
        let answer = client::request_on(stream, "GET", "/", "", "").await;
        assert_eq!(answer.headers.get("strict-transport-security").map(String::as_str), expected);
    }
    let plain = Edge::with(&engine, |config| config.edge.hsts = Duration::from_secs(60));
    assert!(!plain.get("/", "").await.headers.contains_key("strict-transport-security"));
}

#[tokio::test(flavor = "multi_thread")]
async fn e36_a_stalled_viewer_over_tls_stalls_nobody_else() {
    let engine = ScriptedEngine::start();
    let identity = Identity::new();
    let edge = identity.serve(&engine);
    let stream = connect(edge.addr, &identity.cert, &["http/1.1"]).await.unwrap();
    let stalled = client::request_on(stream, "GET", &format!("/api/progress/{JOB}"), "", "").await;
    let stream = connect(edge.addr, &identity.cert, &["http/1.1"]).await.unwrap();
    let mut reader = client::request_on(stream, "GET", &format!("/api/progress/{JOB}"), "", "").await;
    reader.expect("connected").await;
    let json = format!("\"{}\"", "x".repeat(60_000));
    for _ in 0..200 {
        engine.append(Kind::Custom(tidegate_proto::v1::Custom { name: "chart".into(), json: json.clone() }));
    }
    engine.append(complete());
    assert_eq!(reader.rest().await.iter().filter(|event| event.id.is_some()).count(), 201);
    drop(stalled);
}
