//! Who gets which job when, and what ends one: fairness, priorities, concurrency and unique keys, times, bounds.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tidegate_proto::v1::{
    Assignment, CancelJobRequest, Concurrency, Custom, DeleteJobRequest, Event, Failed, Hello, Job,
    JobOptions, JobState, Log, ReportResult, RetryJobRequest, Stopped, SubmitJobRequest, event::Kind,
    report::Body, work_response::Message,
};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    At, World, caller,
    cases::{done, follow, line},
    worker::{Worker, held, hello},
};

pub(crate) fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn heavy(limit: u32) -> JobOptions {
    JobOptions { concurrency: Some(Concurrency { key: "heavy".into(), limit }), ..JobOptions::default() }
}

fn failure() -> Body {
    Body::Fail(Failed { code: "oops".into(), retryable: true, ..Failed::default() })
}

pub(crate) async fn with_capacity(engine: &At, kinds: &[&str], capacity: u32) -> Worker {
    Worker::say_hello(engine, Hello { capacity, ..hello(kinds) }).await.expect("welcome")
}

/// A worker that makes its kinds known, and wants no jobs.
pub(crate) async fn idle(engine: &At, kinds: &[&str]) -> Worker {
    let mut worker = Worker::connect(engine, kinds).await;
    worker.leave().await;
    // Answered behind what was said before.
    let ack = worker.report(&Assignment::default(), 1, line("nobody's")).await;
    assert_eq!(ack.result(), ReportResult::LeaseLost);
    worker
}

pub(crate) async fn cancel(engine: &At, job: &Job) -> Result<Job, tonic::Status> {
    let request = CancelJobRequest { caller: None, job_id: job.job_id.clone(), reason: "enough".into() };
    let answer = engine.jobs().await.cancel_job(request).await?;
    Ok(answer.into_inner().job.expect("a job"))
}

/// The job's whole log, which has ended with exactly one terminal event.
pub(crate) async fn ended(engine: &At, job: &Job) -> Vec<Event> {
    let (_, events) = follow(engine, &job.job_id, "").await;
    assert_eq!(events.iter().filter(|e| e.is_terminal()).count(), 1, "{events:?}");
    assert!(events.last().is_some_and(Event::is_terminal), "{events:?}");
    events
}

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

pub(crate) async fn j10_cancel_ends_a_job_once_wherever_it_is(world: World) {
    let engine = world.engine().await;
    let _rare = idle(&engine, &["rare"]).await;
    let mut worker = with_capacity(&engine, &["demo"], 9).await;
    let delayed = JobOptions { delay: seconds(60), ..JobOptions::default() };
    let retried = JobOptions { max_attempts: 5, backoff: seconds(60), ..JobOptions::default() };
    let scheduled = engine.submit_as("me", "rare", delayed).await;
    let queued = engine.submit_as("me", "rare", JobOptions::default()).await;
    let inside = engine.submit_as("me", "rare", heavy(1)).await;
    let at_the_gate = engine.submit_as("me", "rare", heavy(1)).await;
    let leased = engine.submit("demo").await;
    let lease = worker.assignment().await;
    let running = engine.submit("demo").await;
    let running_lease = worker.assignment().await;
    worker.ok(&running_lease, 1, line("begun")).await;
    let between = engine.submit_as("me", "demo", retried).await;
    let failed = worker.assignment().await;
    worker.ok(&failed, 1, failure()).await;
    engine.until(&between.job_id, JobState::Scheduled).await;

    for waiting in [&scheduled, &queued, &at_the_gate, &inside, &between] {
        let cancelled = cancel(&engine, waiting).await.expect("accepted");
        assert_eq!(cancelled.state(), JobState::Cancelled);
    }
    for (job, lease) in [(&leased, &lease), (&running, &running_lease)] {
        let asked = cancel(&engine, job).await.expect("accepted");
        assert_eq!((asked.state(), asked.cancel_requested.is_some()), (JobState::Processing, true));
        match worker.next().await.expect("a message") {
            Message::Cancel(order) => assert_eq!(order.job_id, job.job_id),
            other => panic!("not a cancel order: {other:?}"),
        }
        worker.ok(lease, 9, Body::Stopped(Stopped {})).await;
    }
    for job in [&scheduled, &queued, &inside, &at_the_gate, &between, &leased, &running] {
        // Once more changes nothing.
        assert_eq!(cancel(&engine, job).await.expect("accepted").state(), JobState::Cancelled);
        let events = ended(&engine, job).await;
        assert!(matches!(events.last().and_then(|e| e.kind.clone()), Some(Kind::Cancelled(_))), "{events:?}");
    }
    // Nothing of them is left to be assigned, or to keep others out.
    let next = engine.submit_as("me", "demo", heavy(1)).await;
    assert_eq!(worker.assignment().await.job_id, next.job_id);
    engine.stop().await;
}

pub(crate) async fn j10_a_completion_and_a_cancellation_at_once_are_one_end(world: World) {
    let engine = world.engine().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let mut ends = BTreeSet::new();
    for round in 0..30u64 {
        let job = engine.submit("demo").await;
        let lease = worker.assignment().await;
        let cancelling = async {
            // Earlier and later than the other, so that either may win.
            tokio::time::sleep(Duration::from_micros(round * 100)).await;
            cancel(&engine, &job).await
        };
        let (_, asked) = tokio::join!(worker.send(&lease, 1, done()), cancelling);
        match asked {
            Ok(_) => {}
            Err(status) => assert_eq!(status.code(), Code::FailedPrecondition),
        }
        let events = ended(&engine, &job).await;
        let end = events.last().and_then(|e| e.kind.clone());
        let asked_for =
            events.iter().any(|e| matches!(&e.kind, Some(Kind::State(s)) if s.cancel_requested.is_some()));
        assert_eq!(asked_for, matches!(end, Some(Kind::Cancelled(_))), "{events:?}");
        ends.insert(asked_for);
        // Its slot is free again, whatever was said last.
        loop {
            match worker.next().await.expect("a message") {
                Message::Ack(_) => break,
                Message::Cancel(_) => {}
                other => panic!("not expected: {other:?}"),
            }
        }
    }
    assert!(!ends.is_empty());
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

pub(crate) async fn j7_a_worker_that_pings_but_says_nothing_loses_its_job(world: World) {
    let engine = world.impatient().await;
    let mut worker = with_capacity(&engine, &["demo"], 1).await;
    let options = JobOptions {
        progress_deadline: seconds(2),
        max_attempts: 2,
        backoff: seconds(0),
        ..JobOptions::default()
    };
    let job = engine.submit_as("me", "demo", options).await;
    let lease = worker.assignment().await;
    assert_eq!((lease.progress_deadline, lease.deadline), (seconds(2), None));
    // It lives longer than the deadline as long as it says something. A fresh engine judges nobody for the length of a
    // lease, which is three seconds here.
    let begun = tokio::time::Instant::now();
    let mut number = 0;
    while begun.elapsed() < Duration::from_secs(6) {
        number += 1;
        worker.ok(&lease, number, line("busy")).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    match worker.next().await.expect("a message") {
        Message::LeaseLost(lost) => assert_eq!(lost.lease_token, lease.lease_token),
        other => panic!("not a lost lease: {other:?}"),
    }
    assert_eq!(worker.report(&lease, number + 1, line("late")).await.result(), ReportResult::LeaseLost);
    // Its only slot is free: it may try again.
    let lease = worker.assignment().await;
    assert_eq!((lease.job_id.as_str(), lease.attempt), (job.job_id.as_str(), 2));
    let failed = engine.until(&job.job_id, JobState::Failed).await;
    assert!(format!("{:?}", failed.outcome).contains("no_progress"), "{failed:?}");
    let events = ended(&engine, &job).await;
    let log =
        |e: &Event| matches!(&e.kind, Some(Kind::Log(Log { text, .. })) if text.contains("no_progress"));
    assert!(events.iter().any(log), "the first attempt's end is told, too: {events:?}");
    engine.stop().await;
}

pub(crate) async fn a_timeout_frees_the_slot_and_counts_as_an_attempt(world: World) {
    let engine = world.impatient().await;
    let mut worker = with_capacity(&engine, &["demo"], 1).await;
    let options = JobOptions { timeout: seconds(1), ..JobOptions::default() };
    let job = engine.submit_as("me", "demo", options).await;
    let lease = worker.assignment().await;
    assert!(lease.deadline.is_some());
    let mut number = 0;
    let lost = loop {
        number += 1;
        let ack = worker.report(&lease, number, line("busy")).await;
        if ack.result() != ReportResult::Ok {
            break ack;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(lost.result(), ReportResult::LeaseLost);
    let failed = engine.until(&job.job_id, JobState::Failed).await;
    assert!(format!("{:?}", failed.outcome).contains("timeout"), "{failed:?}");
    let next = engine.submit("demo").await;
    loop {
        match worker.next().await.expect("a message") {
            Message::Assignment(lease) => break assert_eq!(lease.job_id, next.job_id),
            Message::LeaseLost(lost) => assert_eq!(lost.lease_token, lease.lease_token),
            other => panic!("not expected: {other:?}"),
        }
    }
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

pub(crate) async fn j34_a_pause_between_attempts_outlives_the_engine(world: World) {
    let engine = world.engine().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let options = JobOptions { max_attempts: 2, backoff: seconds(3), ..JobOptions::default() };
    let job = engine.submit_as("me", "demo", options).await;
    let lease = worker.assignment().await;
    worker.ok(&lease, 1, failure()).await;
    let waiting = engine.until(&job.job_id, JobState::Scheduled).await;
    drop(worker);
    engine.stop().await;
    let engine = world.engine().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let lease = worker.assignment().await;
    assert_eq!(lease.attempt, 2);
    let begun = engine.until(&job.job_id, JobState::Processing).await;
    let ms = |t: Option<prost_types::Timestamp>| t.map(|t| t.seconds * 1000 + i64::from(t.nanos / 1_000_000));
    assert!(ms(begun.updated_at) >= ms(waiting.run_at), "{begun:?} began before {waiting:?}");
    worker.ok(&lease, 1, done()).await;
    engine.stop().await;
}

pub(crate) async fn j9_a_job_that_loses_its_worker_too_often_says_so_as_it_ends(world: World) {
    let engine = world.impatient().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let options = JobOptions { max_stalls: 1, ..JobOptions::default() };
    let job = engine.submit_as("me", "demo", options).await;
    for attempt in 1..=2 {
        assert_eq!(worker.assignment().await.attempt, attempt);
        worker = Worker::connect(&engine, &["demo"]).await;
    }
    engine.until(&job.job_id, JobState::Failed).await;
    let events = ended(&engine, &job).await;
    match events.last().and_then(|e| e.kind.clone()) {
        Some(Kind::Failed(failed)) => {
            assert_eq!(failed.code, "stalled");
            assert!(failed.message.contains("no sign of life"), "{failed:?}");
        }
        other => panic!("not failed: {other:?}"),
    }
    engine.stop().await;
}

pub(crate) async fn j29_a_removed_job_leaves_nothing_behind(world: World) {
    let engine = world.engine().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let all = JobOptions {
        max_attempts: 2,
        backoff: seconds(0),
        timeout: seconds(60),
        progress_deadline: seconds(60),
        ..heavy(1)
    };
    // One that is asked to go, and one whose retention ends.
    for by_retention in [false, true] {
        let job = engine.submit_as("me", "demo", all.clone()).await;
        let lease = worker.assignment().await;
        worker.ok(&lease, 1, failure()).await;
        let lease = worker.assignment().await;
        worker.ok(&lease, 1, line("again")).await;
        worker.ok(&lease, 2, done()).await;
        if by_retention {
            let due = engine.inner.store.renew("expire", vec![job.job_id.clone()], Duration::ZERO).await;
            assert_eq!(due.expect("an answer"), [true]);
            let mut jobs = engine.jobs().await;
            let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
            let request = || tidegate_proto::v1::GetJobRequest { caller: None, job_id: job.job_id.clone() };
            while jobs.get_job(request()).await.is_ok() {
                assert!(tokio::time::Instant::now() < deadline, "the sweeper forgets it");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        } else {
            let delete = DeleteJobRequest { caller: None, job_id: job.job_id.clone() };
            engine.jobs().await.delete_job(delete).await.expect("deleted");
        }
        assert_eq!(engine.inner.store.read(&job.job_id, 0, 9, 999).await.expect("an answer"), None);
        for index in ["jobs", "jobs/default/me", "lease", "scheduled", "cancel", "attempt", "expire"] {
            let left = engine.inner.store.list(index, None, 9).await.expect("an answer");
            assert!(left.is_empty(), "{index}: {left:?}");
        }
    }
    if let Some(redis) = &world.redis {
        let keys = redis.command("KEYS *").expect("redis-server answers");
        let keys: Vec<_> = keys.lines().filter(|line| line.starts_with('{')).collect();
        // The kind that is on offer, and the mark by which engines know the log again.
        let known = ["s:kind/demo", "l:kind/demo", "i:kinds", "}o"];
        assert!(keys.iter().all(|key| known.iter().any(|k| key.ends_with(k))), "{keys:?}");
    }
    engine.stop().await;
}

pub(crate) async fn a_rejected_report_stays_rejected_when_it_is_sent_again(world: World) {
    let engine = world.engine().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    engine.submit("demo").await;
    let lease = worker.assignment().await;
    let bad = Body::Custom(Custom { name: "error".into(), json: "{}".into() });
    assert_eq!(worker.report(&lease, 1, bad.clone()).await.result(), ReportResult::Rejected);
    worker.ok(&lease, 2, line("stored")).await;
    // The answer was lost with the stream, so it comes again.
    drop(worker);
    let back = Hello { leases: vec![held(&lease)], ..hello(&["demo"]) };
    let mut worker = Worker::say_hello(&engine, back).await.expect("welcome");
    assert_eq!(worker.report(&lease, 1, bad).await.result(), ReportResult::Rejected);
    worker.ok(&lease, 3, done()).await;
    engine.stop().await;
}

pub(crate) async fn a_large_input_is_not_written_with_every_report(world: World) {
    let engine = world.engine().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let input_json = format!("\"{}\"", "x".repeat(200_000));
    let request = SubmitJobRequest {
        kind: "demo".into(),
        input_json: input_json.clone(),
        ..SubmitJobRequest::default()
    };
    let job = engine.jobs().await.submit_job(request).await.expect("accepted").into_inner().job;
    assert_eq!(job.expect("a job").input_json, input_json);
    let lease = worker.assignment().await;
    assert_eq!(lease.input_json, input_json);
    worker.ok(&lease, 1, line("a report")).await;
    let stored = engine.inner.store.load(vec![lease.job_id.clone()]).await.expect("an answer").remove(0);
    let stored = stored.expect("the job");
    assert_eq!(stored.fixed.len(), input_json.len());
    assert!(stored.state.len() < 2000, "{} bytes are written with a report", stored.state.len());
    // A change by somebody else makes the worker's end look again, and readers see all of it.
    let asked =
        cancel(&engine, &Job { job_id: lease.job_id.clone(), ..Job::default() }).await.expect("accepted");
    assert_eq!(asked.input_json, input_json);
    worker.ok(&lease, 2, done()).await;
    let job = engine.until(&lease.job_id, JobState::Cancelled).await;
    assert_eq!(job.input_json, input_json);
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

pub(crate) async fn cancel_reaches_a_worker_of_another_engine(world: World) {
    let [here, there] = [world.impatient().await, world.impatient().await];
    let mut worker = Worker::connect(&here, &["demo"]).await;
    let job = there.submit("demo").await;
    let lease = worker.assignment().await;
    cancel(&there, &job).await.expect("accepted");
    match worker.next().await.expect("a message") {
        Message::Cancel(order) => assert_eq!(order.lease_token, lease.lease_token),
        other => panic!("not a cancel order: {other:?}"),
    }
    // It ignores it: the sweeper of either engine cuts it off.
    there.until(&job.job_id, JobState::Cancelled).await;
    assert_eq!(worker.report(&lease, 1, done()).await.result(), ReportResult::LeaseLost);
    let events = ended(&there, &job).await;
    assert!(matches!(events.last().and_then(|e| e.kind.clone()), Some(Kind::Cancelled(_))), "{events:?}");
    here.stop().await;
    there.stop().await;
}
