//! Many viewers of one job: one upstream, one read a page, and nobody waits for the slow.

use std::sync::{Arc, atomic::Ordering::SeqCst};

use tidegate_proto::v1::{Custom, event::Kind};

use crate::support::{
    Edge, JOB, ScriptedEngine, client,
    engine::{complete, log},
    numbers, until,
};

const OTHER: &str = "01900000-0000-7000-8000-000000000002";

#[tokio::test(flavor = "multi_thread")]
async fn j19_500_viewers_share_one_upstream_while_20_of_them_stall() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let path = format!("/api/progress/{JOB}");
    let mut viewers = Vec::new();
    for _ in 0..480 {
        viewers.push(client::request(edge.addr, "GET", &path, "", "").await);
    }
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(client::request(edge.addr, "GET", &path, "", "").await); // and never read
    }
    assert_eq!(edge.metric("tidegate_gateway_streams").await, 500.0);
    // 1.8 MB: more than the ring, the sockets and hyper hold for those who do not read.
    let json = format!("\"{}\"", "x".repeat(4 * 1024));
    let mut expected = format!(
        "retry: 2000\nevent: connected\n\
         data: {{\"jobId\":\"{JOB}\",\"status\":\"PROCESSING\",\"cursor\":\"0-q7x2ma\",\"resumed\":false}}\n\n"
    );
    for seq in 1..=450 {
        expected.push_str(&format!("id: {seq}-q7x2ma\nevent: chart\ndata: {json}\n\n"));
    }
    let result = "{\"progress\":100,\"status\":\"COMPLETED\",\"result\":\"Success!\"}";
    expected.push_str(&format!("id: 451-q7x2ma\nevent: complete\ndata: {result}\n\n"));
    let expected: Arc<[u8]> = expected.into_bytes().into();
    let readers: Vec<_> = viewers
        .into_iter()
        .map(|mut viewer| {
            let expected = Arc::clone(&expected);
            tokio::spawn(async move { viewer.expect_bytes(&expected).await })
        })
        .collect();
    for _ in 0..450 {
        engine.append(Kind::Custom(Custom { name: "chart".into(), json: json.clone() }));
    }
    engine.append(complete());
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!(engine.counts().watches.load(SeqCst), 1, "one upstream for all");
    assert_eq!(edge.metric("tidegate_gateway_streams").await, 20.0, "the stalled are still there");
    // The stalled ones have lost nothing: they read on where they stood, from history.
    let mut late = stalled.pop().unwrap();
    assert_eq!(numbers(&late.rest().await), (1..=451).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn e42_a_wave_of_reconnects_reads_each_page_once() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(3000);
    let mut first = edge.watch("last-event-id: 2999-q7x2ma\r\n").await;
    assert_eq!(numbers(&first.take(1).await), [3000]);
    let before = engine.counts().reads.load(SeqCst);
    // All at once, and at different places: 0, 7, 14 …
    engine.stall_reads(true);
    let mut wave = Vec::new();
    for n in 0..300 {
        let addr = edge.addr;
        wave.push(tokio::spawn(async move {
            let (path, cursor) = (format!("/api/progress/{JOB}"), n * 7 % 256);
            let headers = format!("last-event-id: {cursor}-q7x2ma\r\n");
            let mut viewer = client::request(addr, "GET", &path, &headers, "").await;
            let events = viewer.take(usize::try_from(3000 - cursor).unwrap()).await;
            assert_eq!(numbers(&events), (cursor + 1..=3000).collect::<Vec<u64>>());
        }));
    }
    until("the wave waits", async || engine.counts().reads.load(SeqCst) > before).await;
    engine.stall_reads(false);
    engine.append(log("wakes the stalled reads"));
    for viewer in wave {
        viewer.await.unwrap();
    }
    let reads = engine.counts().reads.load(SeqCst) - before;
    assert!(reads <= 24, "{reads} reads for 8 pages and 300 viewers");
    assert_eq!(engine.counts().watches.load(SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn e32_a_log_far_longer_than_the_ring_is_replayed_whole() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(5000);
    let mut viewer = edge.watch("").await;
    viewer.expect("connected").await;
    let appender = {
        let engine = engine.clone();
        tokio::spawn(async move {
            for _ in 0..500 {
                engine.append(log("live"));
                tokio::task::yield_now().await;
            }
            engine.append(complete());
        })
    };
    assert_eq!(numbers(&viewer.rest().await), (1..=5501).collect::<Vec<_>>());
    appender.await.unwrap();
}

#[tokio::test]
async fn events_larger_than_a_page_are_replayed_one_by_one() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let json = format!("\"{}\"", "y".repeat(60_000));
    for _ in 0..60 {
        engine.append(Kind::Custom(Custom { name: "image".into(), json: json.clone() }));
    }
    engine.append(complete());
    for k in [0, 1, 17, 59] {
        let mut viewer = edge.watch(&format!("last-event-id: {k}-q7x2ma\r\n")).await;
        assert_eq!(numbers(&viewer.rest().await), (k + 1..=61).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn e50_the_stream_cap_refuses_the_newest_and_frees_its_slots() {
    let engine = ScriptedEngine::start();
    let edge = Edge::with(&engine, |config| config.max_streams = 2);
    let first = edge.watch("").await;
    let _second = edge.watch("").await;
    let mut refused = edge.watch("accept: text/event-stream, application/json\r\n").await;
    assert_eq!(
        (refused.status, refused.json().await["type"].as_str()),
        (503, Some("https://iana.org/assignments/http-problem-types#temporary-reduced-capacity"))
    );
    assert!(refused.headers.contains_key("retry-after"));
    let mut refused = edge.watch("accept: text/event-stream\r\n").await;
    let goodbye = refused.expect("goodbye").await;
    assert_eq!(refused.status, 200);
    assert!(goodbye.retry.is_some());
    assert_eq!(goodbye.json(), serde_json::json!({"reason": "too-many-streams", "reconnect": true}));
    assert!(refused.rest().await.is_empty());
    drop(first);
    until("a slot is free", async || edge.watch("accept: */*\r\n").await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e53_hundreds_of_jobs_share_the_way_to_the_engine() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let jobs: Vec<_> = (0..300).map(|n| format!("01900000-0000-7000-8000-{n:012x}")).collect();
    let mut viewers = Vec::new();
    for job in &jobs {
        engine.add_job(job);
        let mut viewer = edge.get(&format!("/api/progress/{job}"), "").await;
        viewer.expect("connected").await;
        viewers.push(viewer);
    }
    for (job, viewer) in jobs.iter().zip(&mut viewers) {
        engine.append_to(job, log(job));
        assert_eq!(viewer.take(1).await[0].data, format!("\"{job}\""));
    }
    assert_eq!(engine.counts().watches.load(SeqCst), 300, "one upstream a job, all of them open");
}

#[tokio::test(flavor = "multi_thread")]
async fn e54_a_flood_that_nobody_reads_does_not_close_the_window_for_other_jobs() {
    let engine = ScriptedEngine::start();
    engine.add_job(OTHER);
    let edge = Edge::start(&engine);
    let stalled = edge.watch("").await; // never read
    let mut other = edge.get(&format!("/api/progress/{OTHER}"), "").await;
    other.expect("connected").await;
    // 30 MB: many times what the connection to the engine may hold unread.
    let json = format!("\"{}\"", "x".repeat(60_000));
    for _ in 0..500 {
        engine.append(Kind::Custom(Custom { name: "chart".into(), json: json.clone() }));
    }
    engine.append_to(OTHER, log("through"));
    assert_eq!(other.take(1).await[0].data, "\"through\"");
    drop(stalled);
}

#[tokio::test(flavor = "multi_thread")]
async fn e58_a_client_that_aborts_and_reopens_with_the_same_cursor_leaves_nothing_behind() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(20);
    let mut keeper = edge.watch("last-event-id: 20-q7x2ma\r\n").await;
    keeper.expect("connected").await;
    // As a page does that is hidden and shown again: aborted at any moment, and always the same cursor.
    for n in 0..100 {
        let mut again = edge.watch("last-event-id: 10-q7x2ma\r\n").await;
        if n % 2 == 0 {
            assert_eq!(numbers(&again.take(10).await), (11..=20).collect::<Vec<_>>());
        }
    }
    until("only one stream is left", async || edge.metric("tidegate_gateway_streams").await == 1.0).await;
    engine.append(log("still here"));
    assert_eq!(numbers(&keeper.take(1).await), [21]);
    assert_eq!(engine.counts().watches.load(SeqCst), 1, "one upstream all along");
}
