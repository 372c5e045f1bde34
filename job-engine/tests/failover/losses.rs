//! What cannot be made good: the job goes on from its owner's memory, viewers are told, and leases stay fenced.

use tidegate_proto::v1::{
    Completed, Hello, JobState, ListJobsRequest, ListKindsRequest, Log, ReportResult, report::Body,
    work_response::Message,
};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::{
    Running, eventually,
    pair::Pair,
    redis_server::RedisServer,
    viewer::follow,
    worker::{Worker, held, hello},
};

fn line(text: &str) -> Body {
    Body::Log(Log { text: text.into(), ..Log::default() })
}

fn done() -> Body {
    Body::Complete(Completed { result_json: "1".into() })
}

/// An engine in a runtime of its own, which can be killed: nothing of it goes on.
fn apart(redis: &str) -> (tokio::runtime::Runtime, Running) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let redis = redis.to_owned();
    let engine = std::thread::scope(|scope| {
        let start = || runtime.block_on(async { Running::start(&redis, &[]).await });
        scope.spawn(start).join().expect("no panic")
    });
    (runtime, engine)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j24_a_flushed_redis_under_a_running_job_and_its_viewer() {
    let redis = RedisServer::start();
    // The engine that took the job and could write it again is gone.
    let (runtime, first) = apart(&redis.url());
    let mut worker = Worker::connect(&first, &["demo"]).await;
    let job = first.submit().await;
    let lease = worker.assignment().await;
    worker.ok(&lease, 1, line("lost")).await;
    runtime.shutdown_background();
    let engine = Running::start(&redis.url(), &[]).await;
    let back = Hello { leases: vec![held(&lease)], ..hello(&["demo"]) };
    let mut worker = Worker::say_hello(&engine, back).await.expect("welcome");
    assert_eq!(worker.welcome.resumed.len(), 1);
    worker.ok(&lease, 2, line("lost, too")).await;
    let viewer = tokio::spawn(follow(engine.jobs().await, job.job_id.clone()));
    let probe = eventually("there is a viewer", async || {
        let clients = redis.ask::<String>(&["INFO", "commandstats"]).ok()?;
        clients.contains("cmdstat_xrange").then_some(())
    });
    probe.await;
    redis.ask::<()>(&["FLUSHALL"]).expect("it is done");
    worker.ok(&lease, 3, line("kept")).await;
    let stored = engine.job(&job.job_id).await.expect("it was made again");
    assert_eq!((stored.state(), stored.attempt), (JobState::Processing, 1));
    assert_ne!(stored.epoch, job.epoch, "no cursor into the lost log fits the new one");
    assert_eq!(stored.kind, "demo");
    worker.ok(&lease, 4, done()).await;
    let seen = viewer.await.expect("no panic");
    assert_eq!((seen.gaps, seen.texts.last().map(String::as_str)), (vec!["lost".to_owned()], Some("kept")));
    assert_eq!(seen.texts.len(), 2, "a line of the engine's says what happened: {:?}", seen.texts);
    assert_eq!(engine.job(&job.job_id).await.expect("it is there").state(), JobState::Completed);
    let listed =
        engine.jobs().await.list_jobs(ListJobsRequest::default()).await.expect("a list").into_inner();
    assert_eq!(listed.jobs.len(), 1);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j23_the_same_attempt_granted_twice_is_fenced_by_its_nonce() {
    let mut pair = Pair::start().await;
    let (runtime, first) = apart(&pair.url());
    // A worker for the kind was there once, so that jobs are taken in.
    drop(Worker::connect(&first, &["demo"]).await);
    eventually("the kind is known", async || {
        let kinds = first.jobs().await.list_kinds(ListKindsRequest::default()).await.ok()?.into_inner();
        (!kinds.kinds.is_empty()).then_some(())
    })
    .await;
    let job = first.submit().await;
    pair.synced().await;
    pair.hold();
    let mut worker = Worker::connect(&first, &["demo"]).await;
    let old = worker.assignment().await;
    worker.ok(&old, 1, line("lost")).await;
    runtime.shutdown_background();
    pair.fail_over();
    // The new primary knows of no attempt: the job waits in its queue.
    let engine = Running::start(&pair.url(), &[]).await;
    let mut other = Worker::connect(&engine, &["demo"]).await;
    let new = other.assignment().await;
    assert_eq!((new.attempt, &new.job_id), (old.attempt, &job.job_id), "the same attempt, again");
    assert_ne!(new.lease_token, old.lease_token);
    let back = Hello { leases: vec![held(&old)], ..hello(&["unrelated"]) };
    let mut late = Worker::say_hello(&engine, back).await.expect("welcome");
    assert_eq!((late.welcome.resumed.len(), late.welcome.lost.len()), (0, 1));
    assert_eq!(late.report(&old, 2, done()).await.result(), ReportResult::LeaseLost);
    other.ok(&new, 1, done()).await;
    assert_eq!(engine.job(&job.job_id).await.expect("it is there").state(), JobState::Completed);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j30_what_no_replica_has_is_not_acknowledged_but_accepted() {
    let pair = Pair::start().await;
    let engine = Running::start(&pair.url(), &["--acknowledge=replica"]).await;
    let mut worker = Worker::connect(&engine, &["demo"]).await;
    let job = engine.submit().await;
    let lease = worker.assignment().await;
    worker.ok(&lease, 1, line("on both")).await;
    pair.hold();
    worker.send(&lease, 2, line("on one")).await;
    eventually("it is stored and can be seen", async || {
        (engine.job(&job.job_id).await.ok()?.last_seq >= 4).then_some(())
    })
    .await;
    let refused = engine.try_submit("key").await.expect_err("accepted, but not confirmed");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let details = refused.get_error_details();
    assert_eq!(details.error_info().map(|info| info.reason.as_str()), Some("NOT_CONFIRMED"), "{refused:?}");
    pair.release();
    // Only now is the report answered, and the same submission is the same job.
    loop {
        match worker.next().await.expect("a message") {
            Message::Ack(ack) => {
                assert_eq!((ack.number, ack.result()), (2, ReportResult::Ok));
                break;
            }
            Message::Assignment(other) => assert_ne!(other.job_id, job.job_id),
            other => panic!("unexpected: {other:?}"),
        }
    }
    let again = eventually("it is confirmed", async || engine.try_submit("key").await.ok()).await;
    let listed =
        engine.jobs().await.list_jobs(ListJobsRequest::default()).await.expect("a list").into_inner();
    let ids: Vec<_> = listed.jobs.iter().map(|job| job.job_id.as_str()).collect();
    assert_eq!(ids.len(), 2, "{ids:?}");
    assert!(ids.contains(&again.job_id.as_str()));
    engine.stop().await;
}
