//! The cases, each a conversation.

use std::time::Duration;

use bytes::Bytes;
use tidegate_proto::v1::{
    Assignment, CancelJobRequest, Checkpoint, Completed, CursorOutcome, Custom, DeleteJobRequest, Event,
    Failed, GetJobRequest, HeldLease, Hello, Job, JobOptions, JobState, ListJobsRequest, ListKindsRequest,
    Log, Progress, ReadEventsRequest, ReportAck, ReportResult, RetryJobRequest, Stopped, SubmitJobRequest,
    WatchJobRequest, event::Kind, report::Body, watch_job_response, work_response::Message,
};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    At, World, caller,
    worker::{Worker, held, hello, report},
};

pub(crate) fn line(text: &str) -> Body {
    Body::Log(Log { text: text.into(), ..Log::default() })
}

pub(crate) fn done() -> Body {
    Body::Complete(Completed { result_json: "\"Success!\"".into() })
}

fn saved(bytes: &'static [u8]) -> Body {
    Body::Checkpoint(Checkpoint {
        name: "here".into(),
        data: Bytes::from_static(bytes),
        ..Checkpoint::default()
    })
}

async fn cancel(engine: &At, job: &Job) -> Job {
    let request = CancelJobRequest { caller: None, job_id: job.job_id.clone(), reason: "enough".into() };
    engine.jobs().await.cancel_job(request).await.expect("accepted").into_inner().job.expect("a job")
}

/// Follows a job from a cursor to its end.
pub(crate) async fn follow(engine: &At, job_id: &str, cursor: &str) -> (CursorOutcome, Vec<Event>) {
    let request =
        WatchJobRequest { job_id: job_id.into(), cursor: cursor.into(), ..WatchJobRequest::default() };
    let mut stream = engine.jobs().await.watch_job(request).await.expect("a stream").into_inner();
    let (mut outcome, mut events) = (CursorOutcome::Unspecified, Vec::new());
    while let Some(message) = stream.message().await.expect("no error") {
        match message.message {
            Some(watch_job_response::Message::Opened(opened)) => outcome = opened.outcome(),
            Some(watch_job_response::Message::Event(event)) => events.push(event),
            _ => {}
        }
    }
    (outcome, events)
}

fn text(event: &Event) -> Option<&str> {
    match &event.kind {
        Some(Kind::Log(log)) => Some(&log.text),
        _ => None,
    }
}

fn numbers(events: &[Event]) -> Vec<u64> {
    events.iter().map(|e| e.seq).collect()
}

pub(crate) async fn a_job_runs_from_submit_to_its_result(world: World) {
    let engine = world.engine().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let job = engine.submit("demo").await;
    let lease = worker.assignment().await;
    assert_eq!((lease.job_id.as_str(), lease.attempt, lease.owner.as_str()), (job.job_id.as_str(), 1, "me"));
    worker.ok(&lease, 1, Body::Progress(Progress { percent: Some(25.0), ..Progress::default() })).await;
    worker.ok(&lease, 2, line("Processing file data.csv...")).await;
    worker.ok(&lease, 3, done()).await;
    let job = engine.until(&job.job_id, JobState::Completed).await;
    let (_, events) = follow(&engine, &job.job_id, "").await;
    assert_eq!(numbers(&events), [1, 2, 3, 4, 5]);
    assert!(events[4].is_terminal());
    engine.stop().await;
}

pub(crate) async fn j1_a_worker_paused_past_its_lease_is_fenced(world: World) {
    let engine = world.impatient().await;
    let mut paused = Worker::connect(&engine, &["demo"]).await;
    let job = engine.submit("demo").await;
    let old = paused.assignment().await;
    paused.ok(&old, 1, line("before the pause")).await;
    paused.fall_silent();
    // The paused worker says nothing for longer than its lease: the job is queued again, and another takes it.
    let job = engine.until(&job.job_id, JobState::Queued).await;
    let mut other = Worker::connect(&engine, &["demo"]).await;
    let new = other.assignment().await;
    assert_eq!((new.attempt, new.job_id.as_str()), (2, job.job_id.as_str()));
    // It wakes up on a fresh stream and goes on as if nothing had happened.
    let late =
        Hello { kinds: hello(&["unrelated"]).kinds, leases: vec![held(&old)], ..hello(&["unrelated"]) };
    let mut late = Worker::say_hello(&engine, late).await.expect("welcome");
    assert_eq!((late.welcome.resumed.len(), late.welcome.lost.len()), (0, 1));
    let bodies = [
        Body::Progress(Progress::default()),
        line("late"),
        saved(b"late"),
        done(),
        Body::Fail(Failed::default()),
        Body::Stopped(Stopped {}),
    ];
    for (i, body) in bodies.into_iter().enumerate() {
        let ack = late.report(&old, i as u64 + 2, body).await;
        assert_eq!(ack.result(), ReportResult::LeaseLost);
    }
    other.ok(&new, 1, done()).await;
    let (_, events) = follow(&engine, &job.job_id, "").await;
    assert!(events.iter().all(|e| !format!("{e:?}").contains("late")), "a fenced report was stored");
    engine.stop().await;
}

pub(crate) async fn j2_a_lost_worker_s_job_goes_on_from_its_checkpoint(world: World) {
    let engine = world.impatient().await;
    let mut first = Worker::connect(&engine, &["demo"]).await;
    let job = engine.submit("demo").await;
    let lease = first.assignment().await;
    first.ok(&lease, 1, saved(b"row 1")).await;
    first.ok(&lease, 2, saved(b"row 2")).await;
    drop(first);
    let mut second = Worker::connect(&engine, &["demo"]).await;
    let lease = second.assignment().await;
    assert_eq!((lease.job_id, lease.attempt), (job.job_id, 2));
    assert_eq!(lease.checkpoint.expect("the checkpoint").data, Bytes::from_static(b"row 2"));
    engine.stop().await;
}

pub(crate) async fn j4_a_report_sent_again_is_stored_once(world: World) {
    let engine = world.engine().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    engine.submit("demo").await;
    let lease = worker.assignment().await;
    let seq = worker.ok(&lease, 1, line("once")).await;
    // The answer is lost with the stream: the worker comes back and sends the report again.
    drop(worker);
    let back = Hello { leases: vec![held(&lease)], ..hello(&["demo"]) };
    let mut worker = Worker::say_hello(&engine, back).await.expect("welcome");
    assert_eq!(worker.welcome.resumed[0].last_report, 1);
    assert_eq!(worker.ok(&lease, 1, line("once")).await, seq);
    assert_eq!(worker.ok(&lease, 2, done()).await, seq + 1);
    engine.stop().await;
}

/// The answers of one job, by number.
fn of(acks: &[ReportAck], lease: &Assignment) -> Vec<(u64, ReportResult)> {
    let of = acks.iter().filter(|ack| ack.lease_token == lease.lease_token);
    of.map(|ack| (ack.number, ack.result())).collect()
}

pub(crate) async fn j4_reports_that_come_together_are_judged_one_by_one(world: World) {
    let engine = world.engine().await;
    // Reports may come together in any case; answers do only for a worker that understands it.
    for batched_acks in [false, true] {
        let kind = if batched_acks { "new" } else { "old" };
        let hello = Hello { batched_acks, ..hello(&[kind]) };
        let mut worker = Worker::say_hello(&engine, hello).await.expect("welcome");
        assert_eq!(worker.welcome.max_batched_reports, 256);
        for _ in 0..2 {
            engine.submit(kind).await;
        }
        let (a, b) = (worker.assignment().await, worker.assignment().await);
        let stranger = Assignment { lease_token: "1-0000000000000000".into(), ..a.clone() };
        let bad = Body::Custom(Custom { name: "error".into(), json: "{}".into() });
        worker
            .send_together(vec![
                report(&a, 1, line("one")),
                report(&a, 2, bad),
                report(&a, 3, line("three")),
                report(&b, 1, line("other")),
                report(&stranger, 4, line("stranger")),
                // Sent again, although it was sent in this very message.
                report(&a, 3, line("again")),
            ])
            .await;
        let acks = worker.acks(6, batched_acks).await;
        let (ok, rejected, lost) = (ReportResult::Ok, ReportResult::Rejected, ReportResult::LeaseLost);
        let mut of_a = of(&acks, &a);
        // A rejection waits for no commit; the others come in their order.
        of_a.retain(|ack| *ack != (2, rejected));
        assert_eq!(of_a, [(1, ok), (3, ok), (3, ok)], "{acks:?}");
        assert_eq!(of(&acks, &b), [(1, ok)]);
        assert_eq!(of(&acks, &stranger), [(4, lost)]);
        assert_eq!(acks.iter().filter(|ack| ack.result() == rejected).count(), 1);
        // The end in the middle of a message: nothing after it counts.
        worker.send_together(vec![report(&a, 4, done()), report(&a, 5, line("late"))]).await;
        assert_eq!(of(&worker.acks(2, batched_acks).await, &a), [(4, ok), (5, lost)]);
        let (_, events) = follow(&engine, &a.job_id, "").await;
        assert_eq!(numbers(&events), [1, 2, 3, 4, 5]);
        let texts: Vec<_> = events.iter().filter_map(text).collect();
        assert_eq!(texts, ["one", "three"]);
        // Far more than an owner is given at once.
        let many: Vec<_> = (2..=257).map(|n| report(&b, n, line(&"x".repeat(1000)))).collect();
        worker.send_together(many).await;
        let acks = of(&worker.acks(256, batched_acks).await, &b);
        assert_eq!(acks, (2..=257).map(|n| (n, ok)).collect::<Vec<_>>());
        worker.send(&b, 258, done()).await;
        assert_eq!(of(&worker.acks(1, batched_acks).await, &b), [(258, ok)]);
        let (_, events) = follow(&engine, &b.job_id, "").await;
        assert_eq!(numbers(&events), (1..=260).collect::<Vec<_>>());
    }
    engine.stop().await;
}

pub(crate) async fn j37_a_message_of_too_many_reports_ends_the_stream_alone(world: World) {
    let engine = world.engine().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    engine.submit("demo").await;
    let lease = worker.assignment().await;
    let most = u64::from(worker.welcome.max_batched_reports);
    worker.send_together((1..=most + 1).map(|n| report(&lease, n, line("x"))).collect()).await;
    let status = worker.next().await.expect_err("the stream ends");
    assert!(status.code() == Code::InvalidArgument && status.message().contains("256"), "{status:?}");
    // Nothing was stored, and the lease lives on.
    let back = Hello { leases: vec![held(&lease)], ..hello(&["demo"]) };
    let mut worker = Worker::say_hello(&engine, back).await.expect("welcome");
    assert_eq!(worker.welcome.resumed[0].last_report, 0);
    worker.ok(&lease, 1, done()).await;
    engine.stop().await;
}

pub(crate) async fn j5_a_stream_that_comes_back_with_its_tokens_keeps_its_jobs(world: World) {
    let engine = world.impatient().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let job = engine.submit("demo").await;
    let lease = worker.assignment().await;
    let mut seqs = vec![worker.ok(&lease, 1, line("0")).await];
    // More streams than the length of a lease would allow without renewal.
    for i in 2..8u64 {
        drop(worker);
        worker = Worker::say_hello(&engine, Hello { leases: vec![held(&lease)], ..hello(&["demo"]) })
            .await
            .expect("welcome");
        tokio::time::sleep(Duration::from_millis(700)).await;
        seqs.push(worker.ok(&lease, i, line("again")).await);
    }
    assert_eq!(seqs, (3..10).collect::<Vec<_>>());
    worker.ok(&lease, 8, done()).await;
    assert_eq!(engine.until(&job.job_id, JobState::Completed).await.attempt, 1);
    engine.stop().await;
}

pub(crate) async fn j8_workers_of_the_same_name_are_not_the_same_worker(world: World) {
    let engine = world.engine().await;
    let mut one = Worker::connect(&engine, &["demo"]).await;
    engine.submit("demo").await;
    let lease = one.assignment().await;
    // A namesake does not inherit the lease, and a wrong token is no lease.
    let forged = HeldLease { lease_token: "1-0000000000000000".into(), ..held(&lease) };
    let namesake = Worker::say_hello(&engine, Hello { leases: vec![forged], ..hello(&["demo"]) })
        .await
        .expect("welcome");
    assert_eq!((namesake.welcome.resumed.len(), namesake.welcome.lost.len()), (0, 1));
    one.ok(&lease, 1, done()).await;
    engine.stop().await;
}

pub(crate) async fn j10_cancel_reaches_waiting_and_running_jobs(world: World) {
    let engine = world.engine().await;
    let mut worker = Worker::connect(&engine, &["demo", "rare"]).await;
    let running = engine.submit("demo").await;
    let lease = worker.assignment().await;
    let delayed = SubmitJobRequest {
        kind: "rare".into(),
        options: Some(JobOptions {
            delay: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
            ..JobOptions::default()
        }),
        ..SubmitJobRequest::default()
    };
    let delayed =
        engine.jobs().await.submit_job(delayed).await.expect("accepted").into_inner().job.expect("a job");
    assert_eq!(delayed.state(), JobState::Scheduled);
    assert_eq!(cancel(&engine, &delayed).await.state(), JobState::Cancelled);

    assert_eq!(cancel(&engine, &running).await.state(), JobState::Processing);
    match worker.next().await.expect("a message") {
        Message::Cancel(order) => assert_eq!(order.job_id, running.job_id),
        other => panic!("not a cancel order: {other:?}"),
    }
    let ack = worker.report(&lease, 1, line("cleaning up")).await;
    assert!(ack.result() == ReportResult::Cancelled && ack.seq > 0 && ack.deadline.is_some(), "{ack:?}");
    worker.ok(&lease, 2, Body::Stopped(Stopped {})).await;
    engine.until(&running.job_id, JobState::Cancelled).await;
    // Once more changes nothing; a job that completed cannot be cancelled.
    assert_eq!(cancel(&engine, &running).await.state(), JobState::Cancelled);
    let (_, events) = follow(&engine, &running.job_id, "").await;
    assert_eq!(events.iter().filter(|e| e.is_terminal()).count(), 1);
    engine.stop().await;
}

pub(crate) async fn j11_a_worker_that_ignores_cancel_is_cut_off(world: World) {
    let engine = world.impatient().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let job = engine.submit("demo").await;
    let lease = worker.assignment().await;
    cancel(&engine, &job).await;
    engine.until(&job.job_id, JobState::Cancelled).await;
    assert_eq!(worker.report(&lease, 1, done()).await.result(), ReportResult::LeaseLost);
    // Its slot is free again: both of its two can be taken.
    engine.submit("demo").await;
    engine.submit("demo").await;
    let fresh = [worker.assignment().await.job_id, worker.assignment().await.job_id];
    assert!(!fresh.contains(&job.job_id));
    engine.stop().await;
}

pub(crate) async fn j12_cancel_reaches_a_worker_that_was_away(world: World) {
    let engine = world.engine().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let job = engine.submit("demo").await;
    let lease = worker.assignment().await;
    drop(worker);
    cancel(&engine, &job).await;
    let back = Hello { leases: vec![held(&lease)], ..hello(&["demo"]) };
    let mut worker = Worker::say_hello(&engine, back).await.expect("welcome");
    assert!(worker.welcome.resumed[0].cancel_requested.is_some());
    // Whatever it says now, the job is cancelled.
    worker.ok(&lease, 1, done()).await;
    engine.until(&job.job_id, JobState::Cancelled).await;
    engine.stop().await;
}

pub(crate) async fn j14_a_finished_job_replays_and_ends(world: World) {
    let engine = world.engine().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let job = engine.submit("demo").await;
    let lease = worker.assignment().await;
    for i in 1..=600 {
        worker.send(&lease, i, line("x")).await;
        if i % 50 == 0 {
            worker.report(&lease, i, line("x")).await;
        }
    }
    worker.ok(&lease, 601, done()).await;
    let epoch = engine.until(&job.job_id, JobState::Completed).await.epoch;
    let last = 603;
    for k in [0, 1, 255, 256, 257, 602] {
        let (outcome, events) = follow(&engine, &job.job_id, &format!("{k}-{epoch}")).await;
        assert_eq!((outcome, numbers(&events)), (CursorOutcome::Exact, (k + 1..=last).collect()));
    }
    let (outcome, events) = follow(&engine, &job.job_id, &format!("{last}-{epoch}")).await;
    assert_eq!((outcome, events.len()), (CursorOutcome::Exact, 0));
    for foreign in [format!("604-{epoch}"), "5-otherlog".into()] {
        let (outcome, events) = follow(&engine, &job.job_id, &foreign).await;
        assert_eq!((outcome, numbers(&events)), (CursorOutcome::Reset, (1..=last).collect()));
    }
    let tail = WatchJobRequest { job_id: job.job_id.clone(), tail: 10, ..WatchJobRequest::default() };
    let mut stream = engine.jobs().await.watch_job(tail).await.expect("a stream").into_inner();
    let opened = stream.message().await.expect("a message").and_then(|m| m.message);
    let Some(watch_job_response::Message::Opened(opened)) = opened else { panic!("not opened: {opened:?}") };
    assert_eq!(opened.cursor, format!("593-{epoch}"));
    let page = ReadEventsRequest { job_id: job.job_id.clone(), after_seq: 300, limit: 7, caller: None };
    let page = engine.jobs().await.read_events(page).await.expect("a page").into_inner();
    assert_eq!((numbers(&page.events), page.last_seq), ((301..308).collect(), last));
    engine.stop().await;
}

pub(crate) async fn j31_one_idempotency_key_is_one_job(world: World) {
    let engine = world.engine().await;
    // The kind is known, but nobody takes the job yet.
    drop(Worker::connect(&engine, &["demo"]).await);
    let request = |input: &str| SubmitJobRequest {
        kind: "demo".into(),
        input_json: input.into(),
        idempotency_key: "order 66".into(),
        caller: Some(caller("me")),
        ..SubmitJobRequest::default()
    };
    let jobs = engine.jobs().await;
    let submits = (0..100).map(|_| {
        let (mut jobs, request) = (jobs.clone(), request("{}"));
        async move { jobs.submit_job(request).await.expect("accepted").into_inner() }
    });
    let answers = futures_util::future::join_all(submits).await;
    let ids: std::collections::HashSet<_> =
        answers.iter().map(|a| a.job.as_ref().expect("a job").job_id.clone()).collect();
    assert_eq!((ids.len(), answers.iter().filter(|a| a.created).count()), (1, 1));
    let other = engine.jobs().await.submit_job(request("{\"other\":1}")).await.expect_err("a conflict");
    assert_eq!(other.code(), Code::AlreadyExists);
    // A job that was removed does not run again under its key.
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let lease = worker.assignment().await;
    worker.ok(&lease, 1, done()).await;
    let delete = DeleteJobRequest { caller: None, job_id: lease.job_id };
    engine.jobs().await.delete_job(delete).await.expect("deleted");
    let again = engine.jobs().await.submit_job(request("{}")).await.expect_err("it was removed");
    assert_eq!(again.code(), Code::NotFound);
    // Another owner's key is another key.
    let theirs = SubmitJobRequest { caller: Some(caller("you")), ..request("{}") };
    assert!(engine.jobs().await.submit_job(theirs).await.expect("accepted").into_inner().created);
    // A key that has expired is a new one.
    let due = engine.inner.store.list("expire", None, 99).await.expect("an answer");
    let keys: Vec<_> = due.into_iter().map(|(_, member)| member).filter(|m| m.starts_with("idem/")).collect();
    assert_eq!(keys.len(), 2, "{keys:?}");
    engine.inner.store.renew("expire", keys, Duration::ZERO).await.expect("an answer");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !engine.inner.store.list("expire", None, 1).await.expect("an answer").is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "the sweeper forgets the keys");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(engine.jobs().await.submit_job(request("{}")).await.expect("accepted").into_inner().created);
    engine.stop().await;
}

pub(crate) async fn j34_retry_goes_on_numbering(world: World) {
    let engine = world.engine().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let job = engine.submit("demo").await;
    let lease = worker.assignment().await;
    worker.ok(&lease, 1, Body::Fail(Failed { code: "nope".into(), ..Failed::default() })).await;
    let retry = RetryJobRequest { caller: None, job_id: job.job_id.clone() };
    engine.jobs().await.retry_job(retry.clone()).await.expect("queued");
    let lease = worker.assignment().await;
    assert_eq!(lease.attempt, 2);
    worker.ok(&lease, 1, done()).await;
    let (_, events) = follow(&engine, &job.job_id, "").await;
    assert_eq!(numbers(&events), [1, 2, 3, 4, 5, 6]);
    let refused = engine.jobs().await.retry_job(retry).await.expect_err("it is completed");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let delete = DeleteJobRequest { caller: None, job_id: job.job_id.clone() };
    engine.jobs().await.delete_job(delete.clone()).await.expect("deleted");
    assert_eq!(engine.jobs().await.delete_job(delete).await.expect_err("gone").code(), Code::NotFound);
    let listed =
        engine.jobs().await.list_jobs(ListJobsRequest::default()).await.expect("a page").into_inner();
    assert!(listed.jobs.is_empty(), "{listed:?}");
    engine.stop().await;
}

pub(crate) async fn j36_drain_tells_workers_and_watchers(world: World) {
    let engine = world.engine().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let job = engine.submit("demo").await;
    let lease = worker.assignment().await;
    let watch = WatchJobRequest { job_id: job.job_id.clone(), ..WatchJobRequest::default() };
    let mut stream = engine.jobs().await.watch_job(watch).await.expect("a stream").into_inner();
    stream.message().await.expect("opened");
    let stopping = tokio::spawn(engine.stop());
    assert!(matches!(worker.next().await, Ok(Message::Drain(_))));
    let end = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a running job's stream must not end cleanly"),
            Err(status) => break status,
        }
    };
    assert_eq!(end.code(), Code::Unavailable);
    assert_eq!(worker.next().await.expect_err("closed").code(), Code::Unavailable);
    drop((worker, stream));
    stopping.await.expect("a clean end");
    // The next engine on the same log: the worker keeps its lease across the restart.
    let engine = world.engine().await;
    let back = Hello { leases: vec![held(&lease)], ..hello(&["demo"]) };
    let mut worker = Worker::say_hello(&engine, back).await.expect("welcome");
    assert_eq!(worker.welcome.resumed.len(), 1);
    worker.ok(&lease, 1, done()).await;
    engine.stop().await;
}

pub(crate) async fn j37_bad_reports_are_rejected_and_bad_hellos_refused(world: World) {
    let engine = world.engine().await;
    for bad in [
        Hello { kinds: vec![], ..hello(&[]) },
        Hello { capacity: 0, ..hello(&["demo"]) },
        hello(&["No Name"]),
    ] {
        let status = Worker::say_hello(&engine, bad).await.err().expect("refused");
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    engine.submit("demo").await;
    let lease = worker.assignment().await;
    let max = worker.welcome.max_checkpoint_bytes as usize;
    let large = Body::Checkpoint(Checkpoint { data: vec![0; max + 1].into(), ..Checkpoint::default() });
    let ack = worker.report(&lease, 1, large).await;
    assert!(ack.result() == ReportResult::Rejected && ack.message.contains("65536"), "{ack:?}");
    let bad_name = Body::Custom(Custom { name: "error".into(), json: "{}".into() });
    assert_eq!(worker.report(&lease, 2, bad_name).await.result(), ReportResult::Rejected);
    // The lease still holds.
    worker.ok(&lease, 3, done()).await;
    engine.stop().await;
}

pub(crate) async fn e24_others_jobs_do_not_exist(world: World) {
    let engine = world.engine().await;
    let _worker = Worker::connect(&engine, &["demo"]).await;
    let job_id = engine.submit("demo").await.job_id;
    let absent = "01900000-0000-7000-8000-000000000000".to_owned();
    let mut jobs = engine.jobs().await;
    let you = || Some(caller("you"));
    for id in [&job_id, &absent] {
        let job_id = id.clone();
        let mut answers = vec![
            jobs.get_job(GetJobRequest { caller: you(), job_id: job_id.clone() }).await.expect_err("hidden"),
            jobs.cancel_job(CancelJobRequest { caller: you(), job_id: job_id.clone(), ..Default::default() })
                .await
                .expect_err("hidden"),
            jobs.retry_job(RetryJobRequest { caller: you(), job_id: job_id.clone() })
                .await
                .expect_err("hidden"),
            jobs.delete_job(DeleteJobRequest { caller: you(), job_id: job_id.clone() })
                .await
                .expect_err("hidden"),
            jobs.read_events(ReadEventsRequest {
                caller: you(),
                job_id: job_id.clone(),
                ..Default::default()
            })
            .await
            .expect_err("hidden"),
        ];
        answers.push(
            jobs.watch_job(WatchJobRequest { caller: you(), job_id, ..Default::default() })
                .await
                .expect_err("hidden"),
        );
        for status in answers {
            assert_eq!((status.code(), status.message()), (Code::NotFound, "there is no such job"));
            assert_eq!(status.get_details_error_info().expect("details").reason, "JOB_NOT_FOUND");
        }
    }
    let theirs =
        jobs.list_jobs(ListJobsRequest { caller: you(), ..Default::default() }).await.expect("a page");
    assert!(theirs.into_inner().jobs.is_empty());
    let malformed =
        jobs.get_job(GetJobRequest { caller: None, job_id: "../etc".into() }).await.expect_err("malformed");
    assert_eq!(malformed.get_details_error_info().expect("details").reason, "MALFORMED_JOB_ID");
    engine.stop().await;
}

pub(crate) async fn kinds_and_lists_are_shared(world: World) {
    let engine = world.engine().await;
    let unknown = SubmitJobRequest { kind: "demo".into(), ..SubmitJobRequest::default() };
    let status = engine.jobs().await.submit_job(unknown).await.expect_err("unknown");
    assert_eq!(status.get_details_error_info().expect("details").reason, "UNKNOWN_KIND");
    let _worker = Worker::connect(&engine, &["demo", "csv-import"]).await;
    let kinds = engine.jobs().await.list_kinds(ListKindsRequest {}).await.expect("kinds").into_inner().kinds;
    assert_eq!(
        kinds.iter().map(|k| (k.kind.as_str(), k.live)).collect::<Vec<_>>(),
        [("csv-import", true), ("demo", true)]
    );
    let mut ids = Vec::new();
    for i in 0..25 {
        ids.push(engine.submit(if i % 2 == 0 { "demo" } else { "csv-import" }).await.job_id);
    }
    ids.reverse();
    let (mut listed, mut page_token) = (Vec::new(), String::new());
    loop {
        let request =
            ListJobsRequest { caller: Some(caller("me")), page_size: 10, page_token, ..Default::default() };
        let page = engine.jobs().await.list_jobs(request).await.expect("a page").into_inner();
        listed.extend(page.jobs.into_iter().map(|j| j.job_id));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    listed.sort();
    ids.sort();
    assert_eq!(listed, ids);
    let filtered = ListJobsRequest { kind: "demo".into(), page_size: 200, ..Default::default() };
    let filtered = engine.jobs().await.list_jobs(filtered).await.expect("a page").into_inner();
    assert_eq!(filtered.jobs.len(), 13);
    engine.stop().await;
}

pub(crate) async fn delayed_jobs_and_retries_wait_for_their_time(world: World) {
    let engine = world.engine().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let short = Some(prost_types::Duration { seconds: 0, nanos: 300_000_000 });
    let options = JobOptions { delay: short, max_attempts: 2, backoff: short, ..JobOptions::default() };
    let request =
        SubmitJobRequest { kind: "demo".into(), options: Some(options), ..SubmitJobRequest::default() };
    let job =
        engine.jobs().await.submit_job(request).await.expect("accepted").into_inner().job.expect("a job");
    assert_eq!(job.state(), JobState::Scheduled);
    let lease = worker.assignment().await;
    worker.ok(&lease, 1, Body::Fail(Failed { retryable: true, ..Failed::default() })).await;
    let waiting = engine.until(&job.job_id, JobState::Scheduled).await;
    assert!(waiting.run_at.is_some());
    let lease = worker.assignment().await;
    assert_eq!(lease.attempt, 2);
    worker.ok(&lease, 1, Body::Fail(Failed { retryable: true, ..Failed::default() })).await;
    engine.until(&job.job_id, JobState::Failed).await;
    engine.stop().await;
}

/// More than the windows of its connection and every queue behind it can hold.
pub(crate) async fn e54_a_worker_that_does_not_read_keeps_jobs_from_nobody(world: World) {
    let engine = world.impatient().await;
    let greedy = Hello { capacity: 1000, ..hello(&["demo"]) };
    let deaf = Worker::say_hello(&engine, greedy).await.expect("welcome");
    let input_json = format!("\"{}\"", "x".repeat(32 * 1024));
    let mut jobs = engine.jobs().await;
    for _ in 0..600 {
        let request =
            SubmitJobRequest { kind: "demo".into(), input_json: input_json.clone(), ..Default::default() };
        jobs.submit_job(request).await.expect("accepted");
    }
    // It pings on, but never looks at what it is sent; another one must get jobs all the same.
    let mut other = Worker::connect(&engine, &["demo"]).await;
    for _ in 0..2 {
        let lease = other.assignment().await;
        other.ok(&lease, 1, done()).await;
    }
    drop(deaf);
    engine.stop().await;
}
