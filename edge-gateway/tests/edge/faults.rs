//! The engine breaks, restarts, loses, lies: viewers see a dense log, or are told what is missing.

use std::sync::atomic::Ordering::SeqCst;

use tonic::Code;

use crate::support::{
    Answer, Edge, JOB, ScriptedEngine,
    engine::{complete, log},
    numbers, until,
};

/// A viewer that has seen the first `count` events.
async fn viewer(edge: &Edge, count: usize) -> Answer {
    let mut answer = edge.watch("").await;
    answer.expect("connected").await;
    answer.take(count).await;
    answer
}

#[tokio::test]
async fn e56_a_restarted_engine_is_invisible() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(3);
    let mut answer = viewer(&edge, 3).await;
    for round in 0..3 {
        engine.kill();
        engine.log_to(engine.last() + 5); // stored while nobody listened
        engine.restart().await;
        engine.append(log("after"));
        let events = answer.take(6).await;
        let from = 4 + round * 6;
        assert_eq!(numbers(&events), (from..from + 6).collect::<Vec<_>>());
    }
    engine.append(complete());
    assert_eq!(answer.rest().await.len(), 1);
}

#[tokio::test]
async fn e55_broken_streams_are_resumed_without_repeating_anything() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(1);
    let mut answer = viewer(&edge, 1).await;
    for n in 2..20 {
        engine.break_streams();
        engine.append(log("x"));
        assert_eq!(numbers(&answer.take(1).await), [n]);
    }
    engine.append(complete());
    engine.break_streams();
    assert_eq!(numbers(&answer.rest().await), [20]);
}

#[tokio::test]
async fn a_hole_in_the_stream_is_read_again_before_anything_behind_it() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(2);
    let mut answer = viewer(&edge, 2).await;
    engine.lose(4);
    engine.log_to(6);
    assert_eq!(numbers(&answer.take(4).await), [3, 4, 5, 6]);
}

#[tokio::test]
async fn j24_a_lost_log_resets_all_viewers_in_band() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(5);
    let mut first = viewer(&edge, 5).await;
    let mut second = viewer(&edge, 5).await;
    engine.lose_log("n3wlog", 2);
    for answer in [&mut first, &mut second] {
        let gap = answer.expect("gap").await;
        assert_eq!(gap.id.as_deref(), Some("0-n3wlog"));
        assert_eq!(gap.json()["reason"], "lost");
        let events = answer.take(2).await;
        assert_eq!(events[1].id.as_deref(), Some("2-n3wlog"));
    }
    // An old cursor is recognised, a new one honoured.
    let mut answer = edge.watch("last-event-id: 1-n3wlog\r\n").await;
    assert_eq!(answer.expect("connected").await.json()["resumed"], true);
    let mut answer = edge.watch("last-event-id: 1-q7x2ma\r\n").await;
    answer.expect("connected").await;
    assert_eq!(answer.expect("gap").await.json()["reason"], "reset");
}

#[tokio::test]
async fn j24_a_loss_that_is_told_within_the_stream_reaches_all_viewers() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(5);
    let mut answer = viewer(&edge, 5).await;
    engine.lose_log_in_band("n3wlog", 3);
    let gap = answer.expect("gap").await;
    assert_eq!((gap.id.as_deref(), gap.json()["reason"].as_str()), (Some("0-n3wlog"), Some("lost")));
    assert_eq!(answer.take(3).await[2].id.as_deref(), Some("3-n3wlog"));
    engine.append(log("it goes on"));
    assert_eq!(answer.take(1).await[0].id.as_deref(), Some("4-n3wlog"));
}

#[tokio::test]
async fn j23_a_lost_tail_voids_what_viewers_have_seen_of_it() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(9);
    let mut answer = viewer(&edge, 9).await;
    engine.lose_tail(4);
    assert_eq!(answer.expect("gap").await.json()["reason"], "lost");
    engine.append(log("another fifth event"));
    let events = answer.take(5).await;
    assert_eq!(numbers(&events), [1, 2, 3, 4, 5]);
    assert_eq!(events[4].data, "\"another fifth event\"");
}

#[tokio::test]
async fn e26_what_is_trimmed_under_a_running_viewer_becomes_a_gap() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(3);
    let mut answer = viewer(&edge, 3).await;
    engine.kill();
    engine.log_to(10);
    engine.trim(9);
    engine.restart().await;
    let gap = answer.expect("gap").await;
    assert_eq!(gap.id.as_deref(), Some("8-q7x2ma"));
    let data = gap.json();
    assert_eq!(
        (data["from"].as_u64(), data["to"].as_u64(), data["reason"].as_str()),
        (Some(4), Some(8), Some("trimmed"))
    );
    assert_eq!(data["snapshot"]["jobId"], JOB);
    assert_eq!(numbers(&answer.take(2).await), [9, 10]);
}

#[tokio::test]
async fn a_deleted_job_says_goodbye_for_good() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(1);
    let mut answer = viewer(&edge, 1).await;
    engine.delete();
    let goodbye = answer.expect("goodbye").await;
    assert_eq!(goodbye.json(), serde_json::json!({"reason": "deleted", "reconnect": false}));
    assert!(answer.rest().await.is_empty());
    assert_eq!(edge.watch("").await.status, 404);
}

#[tokio::test]
async fn e16_an_engine_that_is_away_keeps_an_eventsource_alive_and_tells_others() {
    let engine = ScriptedEngine::start();
    let edge = Edge::with(&engine, |config| config.timing.open = std::time::Duration::from_millis(300));
    engine.kill();
    let mut answer = edge.watch("accept: text/event-stream\r\n").await;
    assert_eq!((answer.status, &*answer.headers["content-type"]), (200, "text/event-stream"));
    let goodbye = answer.expect("goodbye").await;
    assert!((1000..=5000).contains(&goodbye.retry.unwrap()));
    assert_eq!(goodbye.json(), serde_json::json!({"reason": "engine-unavailable", "reconnect": true}));
    assert!(answer.rest().await.is_empty());
    for accept in ["", "accept: */*\r\n", "accept: application/json\r\n"] {
        let mut answer = edge.watch(accept).await;
        assert_eq!(answer.status, 503, "{accept}");
        assert!(answer.headers.contains_key("retry-after"));
        assert_eq!(answer.json().await["type"], "/problems/engine-unavailable");
    }
    engine.restart().await;
    until("streams open again", async || edge.watch("").await.status == 200).await;
}

#[tokio::test]
async fn e17_a_store_outage_is_never_not_found() {
    let engine = ScriptedEngine::start();
    let edge = Edge::with(&engine, |config| config.timing.open = std::time::Duration::from_millis(300));
    for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Aborted] {
        engine.refuse(Some(code));
        assert_eq!(edge.watch("").await.status, 503, "{code:?}");
        assert_eq!(edge.get(&format!("/api/jobs/{JOB}"), "").await.status, 503, "{code:?}");
    }
}

#[tokio::test]
async fn viewers_outlast_an_outage_and_lose_nothing() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(2);
    let mut answer = viewer(&edge, 2).await;
    engine.refuse(Some(Code::Unavailable));
    engine.break_streams();
    let broken = async || edge.metric("tidegate_gateway_upstream_breaks_total").await >= 3.0;
    until("the upstream has tried several times", broken).await;
    engine.log_to(4);
    engine.refuse(None);
    assert_eq!(numbers(&answer.take(2).await), [3, 4]);
}

#[tokio::test]
async fn a_cursor_that_another_gateway_gave_is_honoured_while_ours_lags() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(2);
    let _keeps_the_hub = viewer(&edge, 2).await;
    engine.lose(3);
    engine.stall_reads(true); // our upstream cannot fill the hole, so it stays at 2
    engine.log_to(6);
    until("our upstream lags", async || engine.counts().reads.load(SeqCst) > 0).await;
    let ahead = tokio::spawn({
        let addr = edge.addr;
        async move {
            let path = format!("/api/progress/{JOB}");
            let mut answer =
                crate::support::client::request(addr, "GET", &path, "last-event-id: 5-q7x2ma\r\n", "").await;
            let connected = answer.expect("connected").await.json();
            (connected["resumed"].as_bool(), numbers(&answer.take(1).await))
        }
    });
    until("the engine is asked for its head", async || engine.counts().reads.load(SeqCst) > 1).await;
    engine.stall_reads(false);
    engine.break_streams(); // wakes the stalled reads
    assert_eq!(ahead.await.unwrap(), (Some(true), vec![6]));
}
