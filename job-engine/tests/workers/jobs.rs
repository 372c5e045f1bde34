//! What clients do with jobs: submit once, cancel, retry, follow, list; and that others' jobs are not theirs.

use std::time::Duration;

use tidegate_proto::v1::{
    CancelJobRequest, CursorOutcome, DeleteJobRequest, Failed, GetJobRequest, Hello, JobOptions, JobState,
    ListJobsRequest, ListKindsRequest, ReadEventsRequest, ReportResult, RetryJobRequest, Stopped,
    SubmitJobRequest, WatchJobRequest, report::Body, watch_job_response, work_response::Message,
};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    World, caller,
    parts::{cancel, done, follow, line, numbers},
    worker::{Worker, held, hello},
};

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
    assert_eq!(cancel(&engine, &delayed).await.expect("accepted").state(), JobState::Cancelled);

    assert_eq!(cancel(&engine, &running).await.expect("accepted").state(), JobState::Processing);
    match worker.next().await.expect("a message") {
        Message::Cancel(order) => assert_eq!(order.job_id, running.job_id),
        other => panic!("not a cancel order: {other:?}"),
    }
    let ack = worker.report(&lease, 1, line("cleaning up")).await;
    assert!(ack.result() == ReportResult::Cancelled && ack.seq > 0 && ack.deadline.is_some(), "{ack:?}");
    worker.ok(&lease, 2, Body::Stopped(Stopped {})).await;
    engine.until(&running.job_id, JobState::Cancelled).await;
    // Once more changes nothing; a job that completed cannot be cancelled.
    assert_eq!(cancel(&engine, &running).await.expect("accepted").state(), JobState::Cancelled);
    let (_, events) = follow(&engine, &running.job_id, "").await;
    assert_eq!(events.iter().filter(|e| e.is_terminal()).count(), 1);
    engine.stop().await;
}

pub(crate) async fn j11_a_worker_that_ignores_cancel_is_cut_off(world: World) {
    let engine = world.impatient().await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let job = engine.submit("demo").await;
    let lease = worker.assignment().await;
    cancel(&engine, &job).await.expect("accepted");
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
    cancel(&engine, &job).await.expect("accepted");
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
