//! Behind Debian's nginx as it comes: buffering on, HTTP/1.1 and HTTP/2 in front.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Empty};

use super::tls::{Identity, connect};
use crate::support::{DEADLINE, Edge, JOB, ScriptedEngine, client, engine::log, process};

/// Far less than what any buffer would wait for, far more than a hop takes.
const AT_ONCE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn e12_events_pass_a_buffering_nginx_at_once() {
    let engine = ScriptedEngine::start();
    let edge = Edge::with(&engine, |config| {
        config.edge.proxies.trusted = vec!["127.0.0.9/32".parse().unwrap()];
        config.limits = "[ip]\nstreams = 3".parse().unwrap();
    });
    let identity = Identity::new();
    let (plain, tuned, tls) = (process::free_addr(), process::free_addr(), process::free_addr());
    let forward = "proxy_bind 127.0.0.9; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;";
    let gateway = edge.addr;
    // As it comes, which speaks HTTP/1.0 to us; with HTTP/1.1 to us; and with TLS and HTTP/2 in front.
    let servers = format!(
        "  server {{ listen {plain}; location / {{ proxy_pass http://{gateway}; {forward} }} }}\n  \
           server {{ listen {tuned}; location / {{ proxy_pass http://{gateway}; {forward}\n    \
             proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}\n  \
           server {{ listen {tls} ssl http2; ssl_certificate {{dir}}/cert.pem; ssl_certificate_key {{dir}}/key.pem;\n    \
             location / {{ proxy_pass http://{gateway}; {forward} proxy_http_version 1.1; }} }}\n"
    );
    let files = [("cert.pem", &*identity.cert), ("key.pem", &*identity.key)];
    let _nginx = process::nginx(&servers, &files, tls).await;
    let path = format!("/api/progress/{JOB}");
    let mut old = client::request(plain, "GET", &path, "", "").await;
    let mut new = client::request(tuned, "GET", &path, "", "").await;
    let stream = connect(tls, &identity.cert, &["h2"]).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(format!("https://localhost{path}"));
    let request = request.body(Empty::<bytes::Bytes>::new()).unwrap();
    let mut h2 = sender.send_request(request).await.unwrap().into_body();
    for answer in [&mut old, &mut new] {
        answer.expect("connected").await;
    }
    let frame = tokio::time::timeout(DEADLINE, h2.frame()).await.unwrap().unwrap().unwrap();
    assert!(frame.into_data().unwrap().windows(9).any(|w| w == b"connected"));
    for n in 0..20 {
        let began = Instant::now();
        engine.append(log(&format!("line {n}")));
        for answer in [&mut old, &mut new] {
            assert_eq!(answer.expect("log").await.data, format!("\"line {n}\""));
        }
        let frame = tokio::time::timeout(DEADLINE, h2.frame()).await.unwrap().unwrap().unwrap();
        let text = format!("line {n}");
        assert!(frame.into_data().unwrap().windows(text.len()).any(|w| w == text.as_bytes()));
        assert!(began.elapsed() < AT_ONCE, "event {n} was held back: {:?}", began.elapsed());
    }
    // E51: what nginx appended counts, whatever the client claims: all three streams are of 127.0.0.1.
    let claim = "x-forwarded-for: 198.51.100.9\r\n";
    assert_eq!(client::request(tuned, "GET", &path, claim, "").await.status, 429);
    drop(new);
}
