//! Cancelling, retrying, and submitting the same thing many times at once.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Stack, Store, data, eventually, follow};

/// j10: whatever waits or runs ends CANCELLED once, and stays so.
async fn a_waiting_and_a_running_job_are_cancelled(store: Store) {
    let stack = Stack::start(store).await;
    let mut running = Vec::new();
    for _ in 0..4 {
        running.push(stack.submit("demo", json!({ "steps": 100, "seconds": 100 })).await);
    }
    for job in &running {
        stack.until(job, "PROCESSING").await;
    }
    // Every slot is taken.
    let waiting = stack.submit("demo", json!({ "steps": 1, "seconds": 0 })).await;
    assert_eq!(stack.job(&waiting).await["status"], "QUEUED");
    let output = stack.tidegate(&["cancel", &waiting, "--reason", "not needed"]).await;
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), format!("{waiting} CANCELLED"));
    let seen = follow(stack.follower(&waiting, ""), |_| {}).await;
    seen.assert_whole(0);
    assert_eq!(data(seen.events.last().unwrap())["reason"], "not needed");

    let watch = stack.tidegate_command(&["watch", &running[0]]).output();
    let cancel = async {
        eventually("a step is done", async || stack.job(&running[0]).await["progress"]["done"].as_u64())
            .await;
        stack.tidegate(&["cancel", &running[0]]).await
    };
    let (watched, cancelled) = tokio::join!(watch, cancel);
    assert_eq!(cancelled.status.code(), Some(0), "{cancelled:?}");
    assert_eq!(watched.unwrap().status.code(), Some(2));
    let seen = follow(stack.follower(&running[0], ""), |_| {}).await;
    seen.assert_whole(0);
    assert!(
        seen.events.iter().any(|e| e.name == "state" && data(e)["cancelRequested"].is_object()),
        "{seen:?}"
    );
    assert_eq!(stack.job(&running[0]).await["status"], "CANCELLED");
}

#[tokio::test(flavor = "multi_thread")]
async fn j10_waiting_and_running_jobs_are_cancelled_on_the_embedded_store() {
    a_waiting_and_a_running_job_are_cancelled(Store::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn j10_waiting_and_running_jobs_are_cancelled_on_redis() {
    a_waiting_and_a_running_job_are_cancelled(Store::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn j34_a_retried_job_keeps_its_log_and_its_numbers() {
    let stack = Stack::start(Store::Embedded).await;
    let job = stack.submit("demo", json!({ "steps": 4, "seconds": 0.2, "failAt": 3 })).await;
    let output = stack.tidegate(&["watch", &job]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let first = follow(stack.follower(&job, ""), |_| {}).await;
    let output = stack.tidegate(&["retry", &job]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    stack.until(&job, "COMPLETED").await;
    let both = follow(stack.follower(&job, ""), |_| {}).await;
    assert_eq!(both.events[..first.events.len()], first.events, "the log of the first attempt changed");
    assert_eq!(both.numbers(), (1..=both.events.len() as u64).collect::<Vec<_>>());
    assert_eq!(both.events.last().unwrap().name, "complete");

    let refused = stack.tidegate(&["retry", &job]).await;
    assert_eq!(refused.status.code(), Some(65));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("(409 conflict)"), "{refused:?}");
    let deleted = stack.tidegate(&["delete", &job]).await;
    assert_eq!(deleted.status.code(), Some(0), "{deleted:?}");
    let gone = stack.tidegate(&["watch", &job]).await;
    assert!(String::from_utf8_lossy(&gone.stderr).contains("job-not-found"), "{gone:?}");
}

/// j31: one key, a hundred clients, one job; and the same key with another body is refused.
async fn a_hundred_submissions_with_one_key_are_one_job(store: Store) {
    let stack = Stack::start(store).await;
    let submit = |seconds: u32| {
        let body = json!({ "kind": "demo", "input": { "steps": 1, "seconds": seconds } });
        stack
            .client
            .request(Method::POST, &["api", "jobs"])
            .header("idempotency-key", "the-key")
            .json(&body)
            .send()
    };
    let answers = futures_util::future::join_all((0..100).map(|_| submit(0))).await;
    let mut ids = Vec::new();
    let mut created = 0;
    for answer in answers {
        let answer = answer.unwrap();
        match answer.status() {
            StatusCode::CREATED => created += 1,
            status => assert_eq!(status, StatusCode::OK),
        }
        ids.push(answer.json::<Value>().await.unwrap()["jobId"].clone());
    }
    ids.dedup();
    assert_eq!((ids.len(), created), (1, 1), "{ids:?}");
    let listed = stack.client.call(stack.client.request(Method::GET, &["api", "jobs"])).await.unwrap();
    assert_eq!(listed["jobs"].as_array().unwrap().len(), 1);

    let other = submit(1).await.unwrap();
    assert_eq!(other.status(), StatusCode::CONFLICT);
    assert_eq!(other.json::<Value>().await.unwrap()["type"], "/problems/idempotency-conflict");
}

#[tokio::test(flavor = "multi_thread")]
async fn j31_a_hundred_submissions_with_one_key_are_one_job_on_the_embedded_store() {
    a_hundred_submissions_with_one_key_are_one_job(Store::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn j31_a_hundred_submissions_with_one_key_are_one_job_on_redis() {
    a_hundred_submissions_with_one_key_are_one_job(Store::Redis).await;
}
