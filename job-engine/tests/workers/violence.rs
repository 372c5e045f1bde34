//! Engines that are killed in the middle of something, storms of due jobs, and workers that leave.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use job_engine::store::Extent;
use tidegate_proto::v1::{
    Assignment, Hello, JobOptions, JobState, Released, ReportResult, SubmitJobRequest, report::Body,
    work_response::Message,
};
use tokio::time::Instant;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    At, World, caller,
    parts::{cancel, done, ended, idle, line, seconds, with_capacity},
    worker::{Worker, held, hello},
};

/// An engine as a process of its own, to be killed.
struct Killable {
    at: At,
    child: Child,
}

impl Killable {
    async fn start(world: &World) -> Self {
        let flags = ["--lease-seconds=20", "--cancel-grace-seconds=2"];
        // The port is free when it is chosen, and may be taken when it is used: choose again then.
        for _ in 0..5 {
            let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
            let port = port.expect("a free port").port();
            let mut command = Command::new(env!("CARGO_BIN_EXE_job-engine"));
            // The first is the name that a parser expects.
            command
                .args(&world.flags(port, &flags)[1..])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let child = command.spawn().expect("the engine's program");
            let mut engine = Self { at: At { url: format!("http://127.0.0.1:{port}") }, child };
            if engine.answers().await {
                return engine;
            }
        }
        panic!("no engine has started");
    }

    async fn answers(&mut self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            if self.at.is_up().await {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    fn kill(mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it has ended");
    }
}

impl Drop for Killable {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The engine dies somewhere between a worker's last report and its answer.
pub(crate) async fn j22_an_engine_that_dies_while_a_job_completes_ends_it_once(world: World) {
    let mut engine = Killable::start(&world).await;
    let mut answered = 0;
    for round in 0..8u64 {
        let mut worker = with_capacity(&engine.at, &["demo"], 1).await;
        let job = engine.at.submit("demo").await;
        let lease = worker.assignment().await;
        worker.ok(&lease, 1, line("all but done")).await;
        worker.send(&lease, 2, done()).await;
        // From before the commit to behind the answer.
        tokio::time::sleep(Duration::from_micros(round * 400)).await;
        engine.kill();
        engine = Killable::start(&world).await;
        let back = Hello { leases: vec![held(&lease)], capacity: 1, ..hello(&["demo"]) };
        let mut worker = Worker::say_hello(&engine.at, back).await.expect("welcome");
        match worker.welcome.resumed.first() {
            // It was not stored, or its answer was lost: j4, it is sent again under its number.
            Some(resumed) => {
                assert_eq!(resumed.last_report, 1);
                worker.ok(&lease, 2, done()).await;
            }
            None => answered += 1,
        }
        let events = ended(&engine.at, &job).await;
        assert_eq!(events.len(), 4, "each report is there once: {events:?}");
        assert_eq!(engine.at.until(&job.job_id, JobState::Completed).await.attempt, 1);
    }
    println!("{answered} of 8 were stored before the kill");
}

/// A sweeper is killed among hundreds of jobs to remove.
pub(crate) async fn j29_a_sweeper_that_is_killed_leaves_no_orphans(world: World) {
    const JOBS: usize = 300;
    let engine = world.engine().await;
    let waits = idle(&engine, &["demo"]).await;
    let ids: Vec<_> = stream::iter(0..JOBS)
        .map(|_| async {
            let id = engine.submit("demo").await.job_id;
            engine.inner.cancel(None, &id, "").await.expect("cancelled");
            id
        })
        .buffer_unordered(16)
        .collect()
        .await;
    // All but due: whoever runs a second later removes them.
    let due = engine.inner.store.renew("expire", ids.clone(), Duration::from_secs(1)).await;
    assert!(due.expect("an answer").into_iter().all(|there| there));
    drop(waits);
    engine.stop().await;
    for round in 0..3 {
        let engine = Killable::start(&world).await;
        tokio::time::sleep(Duration::from_millis(500 + 200 * round)).await;
        engine.kill();
    }
    let engine = world.engine().await;
    let store = &engine.inner.store;
    let deadline = Instant::now() + Duration::from_secs(30);
    while !store.list("expire", None, 1).await.expect("an answer").is_empty() {
        assert!(Instant::now() < deadline, "all are removed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for index in ["jobs", "jobs/default/me"] {
        assert!(store.list(index, None, 1).await.expect("an answer").is_empty(), "{index}");
    }
    for id in ids {
        assert_eq!(store.read(&id, 0, 1, 1).await.expect("an answer"), None, "{id}");
    }
    if let Some(redis) = &world.redis {
        // The kind that is on offer, and the mark by which engines know the log again.
        let keys = redis.command("KEYS *").expect("redis-server answers");
        let keys: Vec<_> = keys.lines().filter(|line| line.starts_with('{')).collect();
        assert!(keys.iter().all(|key| key.contains("kind") || key.ends_with("}o")), "{keys:?}");
    }
    engine.stop().await;
}

/// Thousands of jobs become due at once, and nobody has to wait for all of them.
pub(crate) async fn j33_a_storm_of_due_jobs_is_promoted_in_slices(world: World) {
    const STORM: usize = 4000;
    let engine = world.engine().await;
    let waits = idle(&engine, &["demo"]).await;
    let later = JobOptions { delay: seconds(3600), ..JobOptions::default() };
    let ids: Vec<_> = stream::iter(0..STORM)
        .map(|_| async {
            let request = SubmitJobRequest {
                kind: "demo".into(),
                caller: Some(caller("greedy")),
                options: Some(later.clone()),
                ..SubmitJobRequest::default()
            };
            engine.inner.submit(request).await.expect("accepted").0.job_id
        })
        .buffer_unordered(64)
        .collect()
        .await;
    if let Some(redis) = &world.redis {
        // No script may keep Redis from everybody else for longer, however busy this machine is.
        redis.command("CONFIG SET slowlog-log-slower-than 250000").expect("redis-server answers");
        redis.command("SLOWLOG RESET").expect("redis-server answers");
    }
    for some in ids.chunks(500) {
        let due = engine.inner.store.renew("scheduled", some.to_vec(), Duration::ZERO).await;
        assert!(due.expect("an answer").into_iter().all(|there| there));
    }
    drop(waits);
    let mut worker = with_capacity(&engine, &["demo"], 1).await;
    let modest = engine.submit_as("modest", "demo", JobOptions::default()).await;
    let mut greedy = 0;
    loop {
        let lease = worker.assignment().await;
        worker.ok(&lease, 1, done()).await;
        if lease.job_id == modest.job_id {
            break;
        }
        greedy += 1;
        assert!(greedy <= 3, "the storm delays another owner by its turns only");
    }
    drop(worker);
    let scheduled = || vec![Extent::Index("scheduled".into())];
    let deadline = Instant::now() + Duration::from_secs(60);
    while engine.inner.store.count(scheduled()).await.expect("an answer") != [0] {
        assert!(Instant::now() < deadline, "all are promoted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let lane = Extent::Lane { queue: "q/demo".into(), lane: "default/greedy".into() };
    let queued = engine.inner.store.count(vec![lane]).await.expect("an answer")[0];
    // One more may be in the hands of the worker that has gone.
    assert!(
        (STORM - greedy - 1..=STORM - greedy).contains(&usize::try_from(queued).expect("small")),
        "{queued}"
    );
    if let Some(redis) = &world.redis {
        let slow = redis.command("SLOWLOG LEN").expect("redis-server answers");
        assert_eq!(slow.trim(), ":0", "{:?}", redis.command("SLOWLOG GET"));
    }
    engine.stop().await;
}

/// A worker from which nothing is heard gets nothing more, before its stream is given up.
pub(crate) async fn j1_a_silent_worker_gets_no_jobs(world: World) {
    let engine = world.engine_with(&["--lease-seconds=6"]).await;
    let silent = with_capacity(&engine, &["demo"], 9).await;
    silent.fall_silent();
    // Not a wait for something: half a lease and a little more, but less than a lease.
    tokio::time::sleep(Duration::from_millis(3500)).await;
    let mut other = with_capacity(&engine, &["demo"], 1).await;
    let job = engine.submit("demo").await;
    let lease = other.assignment().await;
    assert_eq!((lease.job_id, lease.attempt), (job.job_id, 1));
    engine.stop().await;
}

/// What a worker gives back behind `leave` is never assigned to it again.
pub(crate) async fn j36_a_job_that_is_given_back_behind_leave_goes_to_another_worker(world: World) {
    let engine = world.engine().await;
    for _ in 0..10 {
        let mut leaving = with_capacity(&engine, &["demo"], 3).await;
        let job = engine.submit("demo").await;
        let lease = leaving.assignment().await;
        leaving.leave().await;
        leaving.ok(&lease, 1, Body::Released(Released::default())).await;
        let mut other = with_capacity(&engine, &["demo"], 1).await;
        let again = other.assignment().await;
        assert_eq!((again.job_id.as_str(), again.attempt), (job.job_id.as_str(), 2));
        other.ok(&again, 1, done()).await;
        // Whatever was said to it before this answer was read.
        leaving.send(&Assignment::default(), 1, line("nobody's")).await;
        match leaving.next().await.expect("a message") {
            Message::Ack(ack) => assert_eq!(ack.result(), ReportResult::LeaseLost),
            other => panic!("it was told something else: {other:?}"),
        }
    }
    engine.stop().await;
}

/// A cancellation, an engine's death, and the sweeper of the next engine: one end.
pub(crate) async fn j11_the_deadline_of_a_dead_engine_s_cancellation_is_kept(world: World) {
    let engine = Killable::start(&world).await;
    let mut worker = with_capacity(&engine.at, &["demo"], 1).await;
    let job = engine.at.submit("demo").await;
    let lease = worker.assignment().await;
    cancel(&engine.at, &job).await.expect("accepted");
    engine.kill();
    let engine = world.impatient().await;
    let back = Hello { leases: vec![held(&lease)], capacity: 1, ..hello(&["demo"]) };
    let mut worker = Worker::say_hello(&engine, back).await.expect("welcome");
    assert!(worker.welcome.resumed[0].cancel_requested.is_some(), "it is told again");
    engine.until(&job.job_id, JobState::Cancelled).await;
    assert_eq!(worker.report(&lease, 1, done()).await.result(), ReportResult::LeaseLost);
    ended(&engine, &job).await;
    engine.stop().await;
}

/// Ready means: it would assign a job. gRPC health says so, and a worker that is connected is no reason to say more.
pub(crate) async fn j39_an_engine_that_assigns_nothing_is_not_ready(mut world: World) {
    let engine = world.engine().await;
    let worker = Worker::connect(&engine, &["demo"]).await;
    let mut health = HealthClient::new(engine.channel().await);
    let ask = HealthCheckRequest { service: "tidegate.v1.WorkerService".into() };
    let mut watch = health.watch(ask).await.expect("a stream").into_inner();
    let mut next = async || {
        let next = tokio::time::timeout(Duration::from_secs(30), watch.message()).await;
        next.expect("news in time").ok().flatten().map(|health| health.status().as_str_name())
    };
    while next().await.expect("an answer") != "SERVING" {}
    if let Some(redis) = &mut world.redis {
        redis.kill();
        assert_eq!(next().await, Some("NOT_SERVING"), "the log is away");
        redis.start_again();
        assert_eq!(next().await, Some("SERVING"));
    }
    let stopping = tokio::spawn(engine.stop());
    assert_eq!(next().await, Some("NOT_SERVING"), "it drains");
    drop((worker, health, watch));
    stopping.await.expect("a clean end");
}

/// Nothing that the engine decides of jobs depends on the clock of the machine it runs on: the log has the only clock.
#[test]
fn j6_jobs_know_no_clock_but_the_log_s() {
    // The embedded log's own, and until when a credential is valid, which its issuer says in the time of day.
    let allowed = ["store/embedded/clock.rs", "access.rs"];
    let mut found = Vec::new();
    let mut dirs = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("the sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if std::fs::read_to_string(&path).expect("a source").contains("SystemTime")
                && !allowed.iter().any(|end| path.ends_with(end))
            {
                found.push(path);
            }
        }
    }
    assert!(found.is_empty(), "{found:?}");
}
