//! Cursors of a finished job: every one of them, and those that do not fit.

use reqwest::{Method, StatusCode, header};
use serde_json::json;

use crate::support::{Options, Stack, Store, data, follow, number};

/// e34, and the promise of the cursor: from every k exactly k+1…n, and nothing at all from n.
async fn every_cursor_resumes_exactly_behind_itself(store: Store) {
    let stack = Stack::start(store).await;
    let job = stack.submit("demo", json!({ "steps": 12, "seconds": 0.5 })).await;
    let whole = follow(stack.follower(&job, ""), |_| {}).await;
    whole.assert_whole(0);
    for (k, event) in (1..).zip(&whole.events) {
        let rest = follow(stack.follower(&job, &event.id), |_| {}).await;
        assert_eq!(rest.events, whole.events[k..], "from behind {}", event.id);
        assert_eq!((rest.gaps.len(), rest.losses), (0, 0), "from behind {}", event.id);
    }
    let last = &whole.events.last().unwrap().id;
    let path = ["api", "progress", job.as_str()];
    let request = stack.client.request(Method::GET, &path).header("last-event-id", last);
    let response = request.header(header::ACCEPT, "text/event-stream").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
}

#[tokio::test(flavor = "multi_thread")]
async fn e34_every_cursor_resumes_exactly_behind_itself_on_the_embedded_store() {
    every_cursor_resumes_exactly_behind_itself(Store::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e34_every_cursor_resumes_exactly_behind_itself_on_redis() {
    every_cursor_resumes_exactly_behind_itself(Store::Redis).await;
}

/// e24, e27: a cursor of another job, and one from ahead of the log, are told from one of this log.
#[tokio::test(flavor = "multi_thread")]
async fn e24_a_foreign_cursor_is_reset_in_band() {
    let stack = Stack::start(Store::Embedded).await;
    let other = stack.submit("demo", json!({ "steps": 1, "seconds": 0 })).await;
    let foreign = follow(stack.follower(&other, ""), |_| {}).await.events[1].id.clone();
    let job = stack.submit("demo", json!({ "steps": 2, "seconds": 0 })).await;
    let whole = follow(stack.follower(&job, ""), |_| {}).await;
    let last = &whole.events.last().unwrap().id;
    let epoch = last.split_once('-').unwrap().1;
    let ahead = format!("{}-{epoch}", number(last) + 1);
    for cursor in [foreign, ahead] {
        let seen = follow(stack.follower(&job, &cursor), |_| {}).await;
        assert_eq!(seen.gaps.len(), 1, "{cursor}");
        assert_eq!(data(&seen.gaps[0])["reason"], "reset", "{cursor}");
        assert_eq!(seen.events, whole.events, "{cursor}: not everything was replayed");
    }
}

/// e26: what the log's ring has dropped is told, with a snapshot in its place.
async fn a_trimmed_cursor_is_told_in_band(store: Store) {
    let engine = vec!["--log-events=16".to_owned(), "--progress-interval-ms=0".to_owned()];
    let stack = Stack::start(Options { engine, ..Options::from(store) }).await;
    let job = stack.submit("demo", json!({ "steps": 30, "seconds": 1 })).await;
    stack.until(&job, "COMPLETED").await;
    let fresh = follow(stack.follower(&job, ""), |_| {}).await;
    let epoch = fresh.events[0].id.split_once('-').unwrap().1.to_owned();
    let seen = follow(stack.follower(&job, &format!("2-{epoch}")), |_| {}).await;
    assert_eq!(seen.gaps.len(), 1, "{:?}", seen.gaps);
    let gap = data(&seen.gaps[0]);
    assert_eq!((&gap["from"], &gap["reason"]), (&json!(3), &json!("trimmed")));
    assert_eq!(gap["snapshot"]["status"], "COMPLETED");
    assert_eq!(number(&seen.gaps[0].id), gap["to"].as_u64().unwrap());
    assert_eq!(
        number(&seen.events[0].id),
        gap["to"].as_u64().unwrap() + 1,
        "reading does not go on behind the gap"
    );
    assert_eq!(seen.events.last().unwrap().name, "complete");
}

#[tokio::test(flavor = "multi_thread")]
async fn e26_a_trimmed_cursor_is_told_in_band_on_the_embedded_store() {
    a_trimmed_cursor_is_told_in_band(Store::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e26_a_trimmed_cursor_is_told_in_band_on_redis() {
    a_trimmed_cursor_is_told_in_band(Store::Redis).await;
}
