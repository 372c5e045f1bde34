//! Who gets which job when: fairness, priorities, concurrency and unique keys, bounds of queues.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use tidegate_proto::v1::{
    DeleteJobRequest, Failed, JobOptions, JobState, ReportResult, RetryJobRequest, SubmitJobRequest,
    event::Kind, report::Body, work_response::Message,
};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    World, caller,
    parts::{cancel, done, ended, failure, heavy, idle, line, seconds, with_capacity},
    worker::Worker,
};

pub(crate) async fn j32_an_owner_with_many_jobs_delays_another_s_first_by_one_slot(world: World) {
    let engine = world.engine().await;
    let waits = idle(&engine, &["demo"]).await;
    let mut jobs = engine.jobs().await;
    for _ in 0..500 {
        let request =
            SubmitJobRequest { kind: "demo".into(), caller: Some(caller("greedy")), ..Default::default() };
        jobs.submit_job(request).await.expect("accepted");
    }
    drop(waits);
    let mut worker = with_capacity(&engine, &["demo"], 1).await;
    let mut lease = worker.assignment().await;
    for round in 0..3 {
        assert_eq!(lease.owner, "greedy");
        let modest = engine.submit_as(&format!("modest{round}"), "demo", JobOptions::default()).await;
        let mut slots = 0;
        while lease.job_id != modest.job_id {
            slots += 1;
            assert!(slots <= 2, "the running job, and at most one more");
            worker.ok(&lease, 1, done()).await;
            lease = worker.assignment().await;
        }
        worker.ok(&lease, 1, done()).await;
        lease = worker.assignment().await;
    }
    engine.stop().await;
}

pub(crate) async fn an_owner_s_own_jobs_go_by_priority(world: World) {
    let engine = world.engine().await;
    let waits = idle(&engine, &["demo"]).await;
    let mut expected = Vec::new();
    for priority in [0, -100, 100, 0, 7] {
        let options = JobOptions { priority, ..JobOptions::default() };
        expected.push((-priority, engine.submit_as("me", "demo", options).await.job_id));
    }
    // Nobody buys a place before another owner's jobs.
    let other = engine.submit_as("you", "demo", JobOptions { priority: 100, ..JobOptions::default() }).await;
    drop(waits);
    expected.sort();
    let mut expected: Vec<_> = expected.into_iter().map(|(_, id)| id).collect();
    expected.insert(1, other.job_id);
    let mut worker = with_capacity(&engine, &["demo"], 1).await;
    for job_id in expected {
        let lease = worker.assignment().await;
        assert_eq!(lease.job_id, job_id);
        worker.ok(&lease, 1, done()).await;
    }
    engine.stop().await;
}

pub(crate) async fn a_concurrency_key_runs_no_more_than_its_limit(world: World) {
    let engine = world.impatient().await;
    let mut worker = with_capacity(&engine, &["demo"], 4).await;
    let again = JobOptions { max_attempts: 2, backoff: seconds(60), ..heavy(1) };
    let first = engine.submit_as("me", "demo", again).await;
    let mut lease = worker.assignment().await;
    assert_eq!(lease.job_id, first.job_id);
    let second = engine.submit_as("you", "demo", heavy(1)).await;
    let third = engine.submit_as("me", "demo", heavy(1)).await;
    // Slots are free, but not for these: what comes later overtakes them.
    let light = engine.submit("demo").await;
    let between = worker.assignment().await;
    assert_eq!(between.job_id, light.job_id);
    worker.ok(&between, 1, done()).await;
    assert_eq!(engine.until(&second.job_id, JobState::Queued).await.attempt, 0);
    // An attempt that failed makes room, though its job is not over.
    worker.ok(&lease, 1, failure()).await;
    engine.until(&first.job_id, JobState::Scheduled).await;
    lease = worker.assignment().await;
    assert_eq!(lease.job_id, second.job_id);
    // A lost worker does not: its job is to go on first.
    drop(worker);
    let mut worker = with_capacity(&engine, &["demo"], 4).await;
    lease = worker.assignment().await;
    assert_eq!((&lease.job_id, lease.attempt), (&second.job_id, 2));
    worker.ok(&lease, 1, done()).await;
    lease = worker.assignment().await;
    assert_eq!(lease.job_id, third.job_id);
    // Whoever waits can be cancelled, and holds up nobody then.
    let fourth = engine.submit_as("me", "demo", heavy(1)).await;
    let fifth = engine.submit_as("me", "demo", heavy(1)).await;
    let asked = cancel(&engine, &fourth).await.expect("accepted");
    assert_eq!(asked.state(), JobState::Cancelled);
    worker.ok(&lease, 1, done()).await;
    lease = worker.assignment().await;
    assert_eq!(lease.job_id, fifth.job_id);
    // A retry waits like a new job.
    let retry = RetryJobRequest { caller: None, job_id: fourth.job_id.clone() };
    engine.jobs().await.retry_job(retry).await.expect("queued");
    assert_eq!(engine.until(&fourth.job_id, JobState::Queued).await.attempt, 0);
    worker.ok(&lease, 1, done()).await;
    lease = worker.assignment().await;
    assert_eq!(lease.job_id, fourth.job_id);
    worker.ok(&lease, 1, done()).await;
    let reasons = ended(&engine, &second).await;
    assert!(
        reasons.iter().any(|e| matches!(&e.kind, Some(Kind::State(s)) if s.reason.contains("\"heavy\""))),
        "who waits is told for what: {reasons:?}"
    );
    engine.stop().await;
}

pub(crate) async fn a_unique_key_is_one_unfinished_job(world: World) {
    let engine = world.engine().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let unique = || JobOptions { unique_key: "report of May".into(), ..JobOptions::default() };
    let jobs = engine.jobs().await;
    let submits = (0..50).map(|i| {
        let mut jobs = jobs.clone();
        let request = SubmitJobRequest {
            kind: "demo".into(),
            input_json: format!("{{\"asked\":{i}}}"),
            caller: Some(caller("me")),
            options: Some(unique()),
            ..SubmitJobRequest::default()
        };
        async move { jobs.submit_job(request).await.expect("accepted").into_inner() }
    });
    let answers = futures_util::future::join_all(submits).await;
    let ids: BTreeSet<_> = answers.iter().map(|a| a.job.as_ref().expect("a job").job_id.clone()).collect();
    assert_eq!((ids.len(), answers.iter().filter(|a| a.created).count()), (1, 1));
    let first = answers[0].job.clone().expect("a job");
    // Whose it is concerns nobody else.
    let refused = engine.try_submit("you", "demo", unique()).await.expect_err("it is taken");
    assert_eq!(refused.code(), Code::AlreadyExists);
    assert_eq!(refused.get_details_error_info().expect("details").reason, "UNIQUE_CONFLICT");
    assert!(!refused.message().contains(&first.job_id));

    let lease = worker.assignment().await;
    worker.ok(&lease, 1, Body::Fail(Failed::default())).await;
    let second = engine.try_submit("you", "demo", unique()).await.expect("accepted");
    assert!(second.created, "the first has ended");
    let retry = RetryJobRequest { caller: None, job_id: first.job_id.clone() };
    let refused = engine.jobs().await.retry_job(retry.clone()).await.expect_err("the key is taken");
    assert_eq!(refused.code(), Code::AlreadyExists);
    let lease = worker.assignment().await;
    assert_eq!(Some(&lease.job_id), second.job.as_ref().map(|j| &j.job_id));
    worker.ok(&lease, 1, done()).await;
    engine.jobs().await.retry_job(retry).await.expect("queued");
    let again = engine.try_submit("me", "demo", unique()).await.expect("accepted");
    assert_eq!((again.created, again.job.map(|j| j.job_id)), (false, Some(first.job_id.clone())));
    // A key whose job was removed is free.
    let lease = worker.assignment().await;
    worker.ok(&lease, 1, done()).await;
    let delete = DeleteJobRequest { caller: None, job_id: first.job_id };
    engine.jobs().await.delete_job(delete).await.expect("deleted");
    assert!(engine.try_submit("me", "demo", unique()).await.expect("accepted").created);
    engine.stop().await;
}

pub(crate) async fn full_queues_refuse_and_say_so(world: World) {
    let engine = world.engine_with(&["--max-queued-per-owner=3", "--max-jobs=8"]).await;
    let _waits = idle(&engine, &["demo", "rare"]).await;
    let full = async |owner: &str, kind: &str, options: JobOptions, word: &str| {
        let refused = engine.try_submit(owner, kind, options).await.expect_err("full");
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(refused.get_details_error_info().expect("details").reason, "RESOURCE_EXHAUSTED");
        assert!(refused.message().contains(word), "{refused}");
    };
    // One inside the gate and two that wait for it are three.
    for _ in 0..3 {
        engine.submit_as("me", "demo", heavy(1)).await;
    }
    full("me", "demo", heavy(1), "demo").await;
    for _ in 0..2 {
        engine.submit_as("me", "demo", JobOptions::default()).await;
    }
    full("me", "demo", JobOptions::default(), "3 is the limit").await;
    let last = engine.submit_as("me", "rare", JobOptions::default()).await;
    for _ in 0..2 {
        engine.submit_as("you", "demo", JobOptions::default()).await;
    }
    full("they", "demo", JobOptions::default(), "8 is the limit").await;
    // Room that is made can be used.
    cancel(&engine, &last).await.expect("cancelled");
    let delete = DeleteJobRequest { caller: None, job_id: last.job_id };
    engine.jobs().await.delete_job(delete).await.expect("deleted");
    engine.submit_as("they", "demo", JobOptions::default()).await;
    engine.stop().await;
}

pub(crate) async fn j36_a_worker_that_leaves_gets_nothing_more_and_finishes_what_it_has(world: World) {
    let engine = world.engine().await;
    let mut leaving = with_capacity(&engine, &["demo"], 5).await;
    engine.submit("demo").await;
    let lease = leaving.assignment().await;
    leaving.leave().await;
    leaving.ok(&lease, 1, line("goes on")).await;
    for _ in 0..4 {
        engine.submit("demo").await;
    }
    let mut other = with_capacity(&engine, &["demo"], 1).await;
    for _ in 0..4 {
        let lease = other.assignment().await;
        other.ok(&lease, 1, done()).await;
    }
    leaving.send(&lease, 2, done()).await;
    match leaving.next().await.expect("a message") {
        Message::Ack(ack) => assert_eq!((ack.number, ack.result()), (2, ReportResult::Ok)),
        other => panic!("it was told something else: {other:?}"),
    }
    engine.stop().await;
}

pub(crate) async fn two_engines_run_no_job_twice(world: World) {
    let engines = [world.engine().await, world.engine().await];
    let begun: Arc<Mutex<Vec<(String, u32)>>> = Arc::default();
    let mut workers = tokio::task::JoinSet::new();
    for i in 0..4 {
        let (mut worker, begun) = (with_capacity(&engines[i % 2], &["demo"], 3).await, begun.clone());
        workers.spawn(async move {
            while let Ok(message) = worker.next().await {
                if let Message::Assignment(lease) = message {
                    begun.lock().push((lease.job_id.clone(), lease.attempt));
                    worker.send(&lease, 1, line("begun")).await;
                    worker.send(&lease, 2, done()).await;
                }
            }
        });
    }
    let mut submitted = BTreeSet::new();
    for i in 0..200 {
        submitted.insert(engines[i % 2].submit("demo").await.job_id);
    }
    for job_id in &submitted {
        assert_eq!(engines[0].until(job_id, JobState::Completed).await.attempt, 1);
    }
    let begun = begun.lock().clone();
    assert_eq!(begun.len(), 200, "each was given out once");
    assert_eq!(begun.into_iter().map(|(id, _)| id).collect::<BTreeSet<_>>(), submitted);
    workers.shutdown().await;
    for engine in engines {
        engine.stop().await;
    }
}
