//! Engines and gateways that die or leave while people watch.

use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{DEADLINE, Stack, Store, data, eventually, follow};

/// e56, j4, j22: the viewers' connections outlive the engine, each event is seen once, and the job goes on under
/// the same lease, not from its beginning.
async fn an_engine_is_killed_under_viewers(store: Store) {
    let mut stack = Stack::start(store).await;
    let job = stack.submit("demo", json!({ "steps": 40, "seconds": 8 })).await;
    let (heard, mut hearing) = tokio::sync::watch::channel(0);
    let viewers: Vec<_> = (0..5)
        .map(|_| {
            let heard = heard.clone();
            tokio::spawn(follow(stack.follower(&job, ""), move |_| heard.send_modify(|n| *n += 1)))
        })
        .collect();
    for round in 1..=2 {
        hearing.wait_for(|n| *n > round * 100).await.unwrap();
        stack.engine.kill();
        stack.engine.start_again();
    }
    let mut all = Vec::new();
    for viewer in viewers {
        all.push(viewer.await.unwrap());
    }
    for seen in &all {
        seen.assert_whole(0);
        assert_eq!(seen.losses, 0, "the gateway dropped its viewers");
        assert_eq!(seen.events, all[0].events, "two viewers saw different events");
        assert_eq!(seen.events.last().unwrap().name, "complete");
    }
    // Every step was done once, in order: neither the crash nor the reconnect made the worker start over.
    let steps: Vec<_> =
        all[0].events.iter().filter(|e| e.name == "checkpoint").map(|e| data(e)["name"].clone()).collect();
    let expected: Vec<_> = (1..=40).map(|n| json!(format!("step {n}"))).collect();
    assert_eq!(steps, expected);
    // And what was acknowledged is what is stored.
    let stored = follow(stack.follower(&job, ""), |_| {}).await;
    assert_eq!(stored.events, all[0].events);
}

#[tokio::test(flavor = "multi_thread")]
async fn e56_an_engine_is_killed_under_viewers_on_the_embedded_store() {
    an_engine_is_killed_under_viewers(Store::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e56_an_engine_is_killed_under_viewers_on_redis() {
    an_engine_is_killed_under_viewers(Store::Redis).await;
}

/// j2: engine and worker die together; another worker takes the job up from its last stored checkpoint.
async fn engine_and_worker_are_killed_together(store: Store) {
    let mut stack = Stack::start(store).await;
    let job = stack.submit("demo", json!({ "steps": 40, "seconds": 6 })).await;
    let done = eventually("a few steps are done", async || {
        stack.job(&job).await["progress"]["done"].as_u64().filter(|done| *done >= 5)
    })
    .await;
    stack.engine.kill();
    stack.worker.kill();
    stack.engine.start_again();
    stack.worker.start_again();
    let seen = follow(stack.follower(&job, ""), |_| {}).await;
    seen.assert_whole(0);
    assert_eq!(seen.events.last().unwrap().name, "complete");
    let resumed =
        seen.events.iter().find_map(|e| e.data.strip_prefix("\"Resuming after step ").map(str::to_owned));
    let resumed: u64 = resumed.expect("the job began anew").trim_end_matches('"').parse().unwrap();
    assert!(resumed >= done, "resumed at {resumed}, although step {done} was stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn j2_engine_and_worker_are_killed_together_on_the_embedded_store() {
    engine_and_worker_are_killed_together(Store::Embedded).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn j2_engine_and_worker_are_killed_together_on_redis() {
    engine_and_worker_are_killed_together(Store::Redis).await;
}

/// j1, j21: the worker is frozen for longer than its lease. When it wakes, what it says for its old attempt is refused,
/// and the job goes on from its last stored checkpoint, each step once.
#[tokio::test(flavor = "multi_thread")]
async fn j1_a_worker_that_is_frozen_past_its_lease_writes_nothing_when_it_wakes() {
    let stack = Stack::start(Store::Redis).await;
    let job = stack.submit("demo", json!({ "steps": 30, "seconds": 6 })).await;
    eventually("a few steps are done", async || {
        stack.job(&job).await["progress"]["done"].as_u64().filter(|done| *done >= 5)
    })
    .await;
    stack.worker.signal(Signal::SIGSTOP);
    stack.until(&job, "QUEUED").await;
    stack.worker.signal(Signal::SIGCONT);
    let seen = follow(stack.follower(&job, ""), |_| {}).await;
    seen.assert_whole(0);
    assert_eq!(seen.events.last().unwrap().name, "complete");
    let resumed = seen.events.iter().filter(|e| e.data.starts_with("\"Resuming after step ")).count();
    assert_eq!(resumed, 1, "one attempt took over");
    let steps: Vec<_> =
        seen.events.iter().filter(|e| e.name == "checkpoint").map(|e| data(e)["name"].clone()).collect();
    let expected: Vec<_> = (1..=30).map(|n| json!(format!("step {n}"))).collect();
    assert_eq!(steps, expected);
}

/// e41: the gateway leaves while somebody watches by the command line, which comes back to its successor.
#[tokio::test(flavor = "multi_thread")]
async fn e41_the_command_line_outlives_a_draining_gateway() {
    let mut stack = Stack::start(Store::Embedded).await;
    let job = stack.submit("demo", json!({ "steps": 30, "seconds": 8 })).await;
    let mut command = stack.tidegate_command(&["watch", &job, "--json"]);
    let watch = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    eventually("a few steps are done", async || {
        stack.job(&job).await["progress"]["done"].as_u64().filter(|done| *done >= 4)
    })
    .await;
    let status = stack.gateway.stop().await;
    assert_eq!(status.code(), Some(0), "the gateway did not drain:\n{}", stack.gateway.output());
    stack.gateway.start_again();

    let output = tokio::time::timeout(DEADLINE, watch.wait_with_output())
        .await
        .expect("the watch never ended")
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{errors}");
    assert!(errors.contains("reconnecting") && errors.contains("draining"), "{errors}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let ids: Vec<u64> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| crate::support::number(line["id"].as_str().unwrap()))
        .collect();
    assert_eq!(ids, (1..=ids.len() as u64).collect::<Vec<_>>());
    assert_eq!(ids.len() as u64, crate::support::number(stack.job(&job).await["cursor"].as_str().unwrap()));
}
