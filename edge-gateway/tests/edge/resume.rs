//! Cursors: every position a client may come with has one defined outcome.

use crate::support::{
    Edge, JOB, ScriptedEngine,
    engine::{complete, log},
    numbers, until,
};

#[tokio::test]
async fn e34_every_cursor_of_a_finished_job_resumes_exactly_and_the_last_one_gives_204() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(29);
    engine.append(complete());
    for k in 0..30 {
        let mut answer = edge.watch(&format!("last-event-id: {k}-q7x2ma\r\n")).await;
        let connected = answer.expect("connected").await.json();
        assert_eq!(
            (connected["resumed"].as_bool(), connected["status"].as_str()),
            (Some(true), Some("COMPLETED"))
        );
        let events = answer.rest().await;
        assert_eq!(numbers(&events), (k + 1..=30).collect::<Vec<_>>());
        assert_eq!(events.last().unwrap().event, "complete");
    }
    let mut answer = edge.watch("last-event-id: 30-q7x2ma\r\n").await;
    assert_eq!((answer.status, &*answer.text().await), (204, ""));
}

#[tokio::test]
async fn e22_a_first_connect_may_bring_its_position_in_the_query() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(5);
    for (query, from) in [
        ("", 1),
        ("?lastEventId=earliest", 1),
        ("?lastEventId=3-q7x2ma", 4),
        ("?last_event_id=3-q7x2ma&cache=off", 4),
        ("?lastEventId=", 1),
        ("?lastEventId=latest", 6),
    ] {
        let mut answer = edge.get(&format!("/api/progress/{JOB}{query}"), "").await;
        let connected = answer.expect("connected").await.json();
        assert_eq!(connected["resumed"], query.contains("3-"), "{query}");
        if from == 6 {
            until("attached", async || edge.metric("tidegate_gateway_streams").await >= 1.0).await;
            engine.append(log("six"));
        }
        assert_eq!(numbers(&answer.take(1).await), [from], "{query}");
    }
}

#[tokio::test]
async fn e21_the_header_wins_over_the_query() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(5);
    let path = format!("/api/progress/{JOB}?lastEventId=1-q7x2ma");
    let mut answer = edge.get(&path, "last-event-id: 4-q7x2ma\r\n").await;
    answer.expect("connected").await;
    assert_eq!(numbers(&answer.take(1).await), [5]);
}

#[tokio::test]
async fn e23_malformed_cursors_are_refused() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let long = "9".repeat(200);
    for bad in ["$", "+", "0", "1-", "-1-q", "01-q7x2ma", "17-q7%20x", "1-<", &long] {
        let mut answer = edge.watch(&format!("last-event-id: {bad}\r\n")).await;
        assert_eq!(answer.status, 400, "{bad}");
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        assert_eq!(answer.json().await["type"], "/problems/malformed-cursor", "{bad}");
    }
    let mut answer = edge.get(&format!("/api/progress/{JOB}?lastEventId=%24"), "").await;
    assert_eq!(
        (answer.status, answer.json().await["type"].as_str()),
        (400, Some("/problems/malformed-cursor"))
    );
    let mut answer = edge.get("/api/progress/nonsense", "").await;
    assert_eq!(
        (answer.status, answer.json().await["type"].as_str()),
        (400, Some("/problems/malformed-job-id"))
    );
}

#[tokio::test]
async fn e24_a_cursor_of_another_log_starts_over_and_says_so() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(4);
    let mut answer = edge.watch("last-event-id: 2-other\r\n").await;
    assert_eq!(answer.expect("connected").await.json()["resumed"], false);
    let gap = answer.expect("gap").await;
    assert_eq!(gap.id.as_deref(), Some("0-q7x2ma"));
    let data = gap.json();
    assert_eq!((data["reason"].as_str(), data["snapshot"]["jobId"].as_str()), (Some("reset"), Some(JOB)));
    assert_eq!(numbers(&answer.take(4).await), [1, 2, 3, 4]);
}

#[tokio::test]
async fn e27_a_cursor_beyond_the_head_is_reset_and_does_not_wait_for_ever() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(4);
    let mut answer = edge.watch("last-event-id: 9-q7x2ma\r\n").await;
    assert_eq!(answer.expect("connected").await.json()["resumed"], false);
    assert_eq!(answer.expect("gap").await.json()["reason"], "reset");
    assert_eq!(numbers(&answer.take(4).await), [1, 2, 3, 4]);
}

#[tokio::test]
async fn e26_a_trimmed_cursor_is_told_what_is_missing() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(20);
    engine.trim(11);
    let mut answer = edge.watch("last-event-id: 3-q7x2ma\r\n").await;
    let connected = answer.expect("connected").await.json();
    assert_eq!(
        (connected["resumed"].as_bool(), connected["cursor"].as_str()),
        (Some(false), Some("10-q7x2ma"))
    );
    let gap = answer.expect("gap").await;
    assert_eq!(gap.id.as_deref(), Some("10-q7x2ma"));
    let data = gap.json();
    assert_eq!(
        (data["from"].as_u64(), data["to"].as_u64(), data["reason"].as_str()),
        (Some(4), Some(10), Some("trimmed"))
    );
    assert_eq!(numbers(&answer.take(10).await), (11..=20).collect::<Vec<_>>());
    // Without a cursor the beginning is missing, too; a cursor at the edge is exact.
    let mut answer = edge.watch("").await;
    answer.expect("connected").await;
    let data = answer.expect("gap").await.json();
    assert_eq!((data["from"].as_u64(), data["to"].as_u64()), (Some(1), Some(10)));
    assert_eq!(numbers(&answer.take(1).await), [11]);
    let mut answer = edge.watch("last-event-id: 10-q7x2ma\r\n").await;
    assert_eq!(answer.expect("connected").await.json()["resumed"], true);
    assert_eq!(numbers(&answer.take(1).await), [11]);
}

#[tokio::test]
async fn an_exact_cursor_at_the_head_of_a_running_job_waits() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.log_to(4);
    let mut answer = edge.watch("last-event-id: 4-q7x2ma\r\n").await;
    assert_eq!(answer.expect("connected").await.json()["resumed"], true);
    engine.append(log("five"));
    assert_eq!(numbers(&answer.take(1).await), [5]);
}

#[tokio::test]
async fn j14_a_retry_reopens_a_job_that_viewers_saw_end() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    let failed = tidegate_proto::v1::Failed { code: "x".into(), ..Default::default() };
    engine.append(tidegate_proto::v1::event::Kind::Failed(failed));
    edge.watch("").await.rest().await;
    assert_eq!(edge.watch("last-event-id: 1-q7x2ma\r\n").await.status, 204);
    let queued = tidegate_proto::v1::StateChanged { state: 2, ..Default::default() };
    engine.append(tidegate_proto::v1::event::Kind::State(queued));
    let mut answer = edge.watch("last-event-id: 1-q7x2ma\r\n").await;
    assert_eq!(answer.expect("connected").await.json()["status"], "QUEUED");
    engine.append(complete());
    assert_eq!(numbers(&answer.rest().await), [2, 3]);
}

#[tokio::test]
async fn a_job_of_somebody_else_does_not_exist() {
    let engine = ScriptedEngine::start();
    let edge = Edge::start(&engine);
    engine.give_to("somebody");
    let mut answer = edge.watch("").await;
    assert_eq!((answer.status, answer.json().await["type"].as_str()), (404, Some("/problems/job-not-found")));
    let mut answer = edge.get("/api/progress/01900000-0000-7000-8000-0000000000ff", "").await;
    assert_eq!((answer.status, answer.json().await["type"].as_str()), (404, Some("/problems/job-not-found")));
}
