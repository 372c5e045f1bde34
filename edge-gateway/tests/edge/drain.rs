//! Shutting down: unready first, then goodbyes, then an end within the window.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    support::{Edge, ScriptedEngine, client, until},
    tls::Identity,
};

#[tokio::test(flavor = "multi_thread")]
async fn e41_a_drain_says_goodbye_to_everybody_and_ends_cleanly() {
    let engine = ScriptedEngine::start();
    let mut edge = Edge::start(&engine);
    let mut viewers = Vec::new();
    for _ in 0..100 {
        viewers.push(edge.watch("").await);
    }
    let (addr, admin) = (edge.addr, edge.admin);
    let began = Instant::now();
    edge.stop();
    until("unready", async || client::request(admin, "GET", "/readyz", "", "").await.status == 503).await;
    until("nobody is let in", async || TcpStream::connect(addr).await.is_err()).await;
    let mut retries = Vec::new();
    for mut viewer in viewers {
        viewer.expect("connected").await;
        let goodbye = viewer.expect("goodbye").await;
        assert_eq!(goodbye.json(), serde_json::json!({"reason": "draining", "reconnect": true}));
        retries.push(goodbye.retry.unwrap());
        assert!(viewer.rest().await.is_empty());
    }
    assert!(retries.iter().all(|ms| (1000..=5000).contains(ms)));
    retries.sort_unstable();
    retries.dedup();
    assert!(retries.len() > 50, "reconnects are spread: {retries:?}");
    edge.ended().await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(500), "goodbyes are spread, too: {took:?}");
    assert!(took < Duration::from_secs(10), "nobody was waited for: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn e41_the_window_ends_although_a_viewer_does_not_read() {
    let engine = ScriptedEngine::start();
    let mut edge = Edge::with(&engine, |config| config.drain = Duration::from_secs(1));
    let stalled = edge.watch("").await;
    let json = format!("\"{}\"", "x".repeat(60_000));
    for _ in 0..200 {
        let custom = tidegate_proto::v1::Custom { name: "chart".into(), json: json.clone() };
        engine.append(tidegate_proto::v1::event::Kind::Custom(custom));
    }
    // The socket is full once the viewer has been handed less than everything and gets no more.
    let mut before = -1.0;
    until("the socket is full", async || {
        // That nothing more is handed over shows only with time.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = edge.metric("tidegate_gateway_bytes_total").await;
        std::mem::replace(&mut before, now) == now && now > 60_000.0
    })
    .await;
    let began = Instant::now();
    edge.stop();
    edge.ended().await;
    let took = began.elapsed();
    assert!((900..3000).contains(&took.as_millis()), "{took:?}");
    drop(stalled);
}

/// Browsers open connections in advance, and may never use them.
#[tokio::test(flavor = "multi_thread")]
async fn e41_a_connection_on_which_nothing_was_said_holds_up_no_drain() {
    let engine = ScriptedEngine::start();
    let identity = Identity::new();
    for tls in [None, Some(identity.files())] {
        let mut edge = Edge::with(&engine, |config| {
            config.edge.tls = tls;
            config.timing.head = Duration::from_secs(3600);
            config.drain = Duration::from_secs(60);
        });
        let mut silent = TcpStream::connect(edge.addr).await.unwrap();
        // Once a later one is answered, this one has been accepted; the kernel's queue is closed with the listener.
        let mut later = TcpStream::connect(edge.addr).await.unwrap();
        later.write_all(b"neither HTTP nor TLS\r\n\r\n").await.unwrap();
        let _ = later.read_to_end(&mut Vec::new()).await;
        let began = Instant::now();
        edge.stop();
        edge.ended().await;
        assert!(began.elapsed() < Duration::from_secs(10), "it was waited for: {:?}", began.elapsed());
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
    }
}
