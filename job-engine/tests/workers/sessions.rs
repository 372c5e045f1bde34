//! Workers and their streams: reports, leases, streams that come back, and what an engine does not put up with.

use std::time::Duration;

use bytes::Bytes;
use tidegate_proto::v1::{
    Assignment, Checkpoint, Custom, Failed, HeldLease, Hello, JobState, Progress, ReportAck, ReportResult,
    Stopped, SubmitJobRequest, WatchJobRequest, report::Body, work_response::Message,
};
use tonic::Code;

use crate::{
    World,
    parts::{done, follow, line, numbers, saved, text},
    worker::{Worker, held, hello, report},
};

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
