//! What ends an attempt or a job: cancellations, times, lost workers; and what is left of it.

use std::{collections::BTreeSet, time::Duration};

use tidegate_proto::v1::{
    Custom, DeleteJobRequest, Event, Hello, Job, JobOptions, JobState, Log, ReportResult, Stopped,
    SubmitJobRequest, event::Kind, report::Body, work_response::Message,
};
use tonic::Code;

use crate::{
    World,
    parts::{cancel, done, ended, failure, heavy, idle, line, seconds, with_capacity},
    worker::{Worker, held, hello},
};

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
