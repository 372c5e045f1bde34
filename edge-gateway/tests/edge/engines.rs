//! Several engines behind one gateway: what dies or freezes is left for another, and nothing is done twice.

use std::{
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use crate::support::{
    Edge, JOB, ScriptedEngine, client,
    engine::{complete, log},
    numbers, until,
};

/// How long anybody may notice that an engine is gone. On an idle machine it is less than one second; without health
/// checks a silent engine would be left after the 45 seconds of a missing heartbeat only.
const FAILOVER: Duration = Duration::from_secs(5);

/// A viewer whose upstream hangs on one engine; that engine goes away by `goes`, and the log grows.
async fn a_viewer_goes_on_elsewhere(goes: impl Fn(&ScriptedEngine) -> Option<std::sync::mpsc::Sender<()>>) {
    let one = ScriptedEngine::start();
    one.log_to(2);
    let two = ScriptedEngine::beside(&one);
    let edge = Edge::before(&[&one, &two], |_| {});
    until("both engines serve", async || edge.metric("tidegate_gateway_engines_serving").await >= 2.0).await;
    let mut answer = edge.watch("").await;
    answer.expect("connected").await;
    assert_eq!(numbers(&answer.take(2).await), [1, 2]);
    // Whichever it hangs on: one after the other goes away and comes back.
    for (n, engine) in [(3, &one), (4, &two)] {
        let frozen = goes(engine);
        let began = Instant::now();
        two.append(log("x"));
        assert_eq!(numbers(&answer.take(1).await), [n]);
        for _ in 0..10 {
            let job = edge.get(&format!("/api/jobs/{JOB}"), "").await;
            assert_eq!(job.status, 200, "a call found no engine");
        }
        assert!(began.elapsed() < FAILOVER, "{:?}", began.elapsed());
        drop(frozen); // a runtime that is stuck cannot be shut down
        engine.kill();
        engine.restart().await;
        until("both engines serve", async || edge.metric("tidegate_gateway_engines_serving").await >= 2.0)
            .await;
    }
    two.append(complete());
    assert_eq!(numbers(&answer.rest().await), [5]);
}

#[tokio::test(flavor = "multi_thread")]
async fn e56_an_engine_that_dies_is_left_for_another() {
    a_viewer_goes_on_elsewhere(|engine| {
        engine.kill();
        None
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e56_an_engine_that_freezes_is_left_for_another() {
    a_viewer_goes_on_elsewhere(|engine| Some(engine.freeze())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e53_more_logs_are_followed_than_one_connection_may_carry() {
    const JOBS: usize = 250;
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let job = |n: usize| format!("01900000-0000-7000-8000-{n:012}");
    let mut viewers = Vec::new();
    for n in 0..JOBS {
        engine.add_job(&job(n));
        let mut viewer = edge.get(&format!("/api/progress/{}", job(n)), "").await;
        viewer.expect("connected").await;
        viewers.push(viewer);
    }
    for n in 0..JOBS {
        engine.append_to(&job(n), log("x"));
    }
    for viewer in &mut viewers {
        assert_eq!(numbers(&viewer.take(1).await), [1]);
    }
    // Calls are not starved by streams either.
    assert_eq!(edge.get(&format!("/api/jobs/{JOB}"), "").await.status, 200);
}

#[tokio::test]
async fn j31_a_submission_without_a_key_is_never_made_twice() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let body = r#"{"kind":"half-done"}"#;
    assert_eq!(edge.post("/api/jobs", body).await.status, 503);
    assert_eq!(engine.counts().submits.load(SeqCst), 1);
    let headers = "content-type: application/json\r\nidempotency-key: k\r\n";
    assert_eq!(client::request(edge.addr, "POST", "/api/jobs", headers, body).await.status, 503);
    assert!(engine.counts().submits.load(SeqCst) > 2, "with a key it may be tried elsewhere");
    // What surely was not sent may be sent to another engine: here to the same one, once it is back.
    engine.kill();
    let gone = ScriptedEngine::start();
    let both = Edge::before(&[&engine, &gone], |_| {});
    for _ in 0..10 {
        assert_eq!(both.post("/api/jobs", r#"{"kind":"demo"}"#).await.status, 201);
    }
}
