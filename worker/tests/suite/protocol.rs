//! The protocol of `worker_service.proto`, clause by clause.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tidegate_proto::v1::{self, ReportResult, report::Body, work_response::Message};
use tidegate_worker::{
    JobContext, JobError, JobHandler, JobResult, LogLevel, Progress, ReportError, Status, StopReason,
};
use tokio::sync::Notify;

use crate::{
    Closure, PATIENCE, Running,
    engine::{Engine, code, job, logs, result, welcome},
    eventually,
    proxy::Proxy,
    start,
};

fn closure<F, R>(kind: &'static str, run: F) -> Arc<dyn JobHandler>
where
    F: Fn(JobContext) -> R + Send + Sync + 'static,
    R: Future<Output = JobResult> + Send + 'static,
{
    Arc::new(Closure(kind, move |job| run(job).boxed()))
}

/// A job that waits until it is told to stop, and says so.
fn obedient() -> Arc<dyn JobHandler> {
    closure("obedient", |job| async move {
        job.info("begun").await;
        job.cancelled().await;
        Err(JobError::Cancelled)
    })
}

fn quick() -> Arc<dyn JobHandler> {
    closure("quick", |_| async { Ok(json!("done")) })
}

fn fast_ping() -> v1::Welcome {
    v1::Welcome {
        ping_interval: prost_types::Duration::try_from(Duration::from_millis(200)).ok(),
        ..welcome()
    }
}

#[tokio::test]
async fn a_job_reports_in_order_and_completes() {
    let mut engine = Engine::start().await;
    let worker = start(
        &[engine.uri()],
        vec![closure("k", |job| async move {
            let input: Value = job.input()?;
            job.log(LogLevel::Warn, "here", "hello").await;
            job.progress(Progress { percent: Some(250.0), rate: Some(f64::NAN), ..Default::default() }).await;
            job.checkpoint("half", "bytes").await?;
            job.custom("chart", &json!([1])).await?;
            Ok(json!({"input": input, "attempt": job.attempt(), "owner": job.owner().1}))
        })],
    );
    let mut stream = engine.welcome().await;
    assert_eq!(stream.hello.capacity, 1);
    assert_eq!(stream.hello.kinds[0].kind, "k");
    let assignment = v1::Assignment { owner: "alice".into(), ..job("j", "k", &json!({"a": 1})) };
    stream.assign(&assignment).await;
    let mut bodies = Vec::new();
    for number in 1..=5 {
        let report = stream.report().await;
        assert_eq!((report.number, report.lease_token.as_str()), (number, "1-j"));
        stream.answer(&report, ReportResult::Ok).await;
        bodies.push(report.body.unwrap());
    }
    assert_eq!(logs(&bodies), [(LogLevel::Warn, "here", "hello")]);
    assert!(matches!(&bodies[1], Body::Progress(p) if p.percent == Some(100.0) && p.rate.is_none()));
    assert!(
        matches!(&bodies[2], Body::Checkpoint(c) if c.name == "half" && c.data == "bytes" && c.size == 5)
    );
    assert!(matches!(&bodies[3], Body::Custom(c) if c.json == "[1]"));
    assert_eq!(result(&bodies[4]), json!({"input": {"a": 1}, "attempt": 1, "owner": "alice"}));
    assert_eq!(*worker.status.borrow(), Status::Connected);
}

#[tokio::test]
async fn j3_a_checkpoint_resolves_only_when_it_is_stored() {
    let mut engine = Engine::start().await;
    let saved = Arc::new(AtomicBool::new(false));
    let flag = saved.clone();
    let _worker = start(
        &[engine.uri()],
        vec![closure("k", move |job| {
            let flag = flag.clone();
            async move {
                job.checkpoint("c", "x").await?;
                flag.store(true, SeqCst);
                Ok(Value::Null)
            }
        })],
    );
    let mut stream = engine.accept().await;
    stream.say(Message::Welcome(fast_ping())).await;
    stream.assign(&job("j", "k", &json!({}))).await;
    let reports = stream.reports_until_quiet().await;
    assert_eq!(reports.len(), 1);
    assert!(!saved.load(SeqCst), "nobody has stored it");
    stream.answer(&reports[0], ReportResult::Ok).await;
    assert_eq!(result(stream.until_end().await.last().unwrap()), Value::Null);
    assert!(saved.load(SeqCst));
}

#[tokio::test]
async fn j10_a_cancelled_job_reports_stopped_whatever_it_returns() {
    let mut engine = Engine::start().await;
    let stubborn = closure("stubborn", |job| async move {
        job.info("begun").await;
        job.cancelled().await;
        assert!(matches!(job.stop_reason(), Some(StopReason::Cancelled { by, .. }) if by == "alice"));
        Ok(json!("finished all the same"))
    });
    let _worker = start(&[engine.uri()], vec![obedient(), stubborn]);
    let mut stream = engine.welcome().await;
    for kind in ["obedient", "stubborn"] {
        let job = job(kind, kind, &json!({}));
        stream.assign(&job).await;
        let begun = stream.report().await;
        stream.answer(&begun, ReportResult::Ok).await;
        stream.cancel(&job, Duration::from_secs(20)).await;
        let bodies = stream.until_end().await;
        assert!(matches!(bodies[..], [Body::Stopped(_)]), "{bodies:?}");
    }
}

#[tokio::test]
async fn j12_a_cancellation_may_come_as_the_answer_to_a_report() {
    let mut engine = Engine::start().await;
    let _worker = start(&[engine.uri()], vec![obedient()]);
    let mut stream = engine.welcome().await;
    stream.assign(&job("j", "obedient", &json!({}))).await;
    let begun = stream.report().await;
    stream.answer(&begun, ReportResult::Cancelled).await;
    assert!(matches!(stream.until_end().await[..], [Body::Stopped(_)]));
}

/// Sets its flag when it is dropped.
struct Dropped(Arc<AtomicBool>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// A job that listens to nobody.
fn deaf(dropped: &Arc<AtomicBool>) -> Arc<dyn JobHandler> {
    let dropped = dropped.clone();
    closure("deaf", move |job| {
        let guard = Dropped(dropped.clone());
        async move {
            let _guard = guard;
            job.info("begun").await;
            std::future::pending().await
        }
    })
}

#[tokio::test]
async fn j11_a_job_that_ignores_its_cancellation_is_dropped_and_its_slot_freed() {
    let mut engine = Engine::start().await;
    let dropped = Arc::new(AtomicBool::new(false));
    let _worker = start(&[engine.uri()], vec![deaf(&dropped), quick()]);
    let mut stream = engine.welcome().await;
    let deaf = job("deaf", "deaf", &json!({}));
    stream.assign(&deaf).await;
    let begun = stream.report().await;
    stream.answer(&begun, ReportResult::Ok).await;
    stream.cancel(&deaf, Duration::from_millis(1)).await;
    assert!(matches!(stream.until_end().await[..], [Body::Stopped(_)]));
    eventually("the job's future is dropped", || dropped.load(SeqCst)).await;
    let (_, end) = stream.play(&job("next", "quick", &json!({}))).await;
    assert_eq!(result(&end), json!("done"), "the only slot is free again");
}

#[tokio::test]
async fn j1_a_lost_lease_drops_the_job_and_nothing_more_is_said_of_it() {
    let mut engine = Engine::start().await;
    let dropped = Arc::new(AtomicBool::new(false));
    let _worker = start(&[engine.uri()], vec![deaf(&dropped), quick()]);
    let mut stream = engine.welcome().await;
    let deaf = job("deaf", "deaf", &json!({}));
    stream.assign(&deaf).await;
    stream.report().await;
    let lost = v1::LeaseLost { job_id: deaf.job_id, lease_token: deaf.lease_token, reason: "expired".into() };
    stream.say(Message::LeaseLost(lost)).await;
    eventually("the job's future is dropped", || dropped.load(SeqCst)).await;
    let (before, end) = stream.play(&job("next", "quick", &json!({}))).await;
    assert!(before.is_empty(), "{before:?}");
    assert_eq!(result(&end), json!("done"));
}

#[tokio::test]
async fn j5_a_cut_connection_loses_no_report_and_no_job() {
    let mut engine = Engine::start().await;
    let proxy = Proxy::start(engine.address()).await;
    let go = Arc::new(Notify::new());
    let wait = go.clone();
    let _worker = start(
        &[proxy.uri()],
        vec![closure("k", move |job| {
            let wait = wait.clone();
            async move {
                for n in 1..=3 {
                    job.info(n.to_string()).await;
                }
                wait.notified().await;
                job.info("4").await;
                job.checkpoint("c", "x").await?;
                Ok(json!("whole"))
            }
        })],
    );
    let mut stream = engine.welcome().await;
    stream.assign(&job("j", "k", &json!({}))).await;
    for _ in 0..3 {
        stream.report().await;
    }
    // The engine has stored two, but its answers are lost with the connection; the job goes on meanwhile.
    proxy.cut();
    go.notify_one();
    let mut stream = engine.accept().await;
    assert_eq!(stream.hello.leases, [v1::HeldLease { job_id: "j".into(), lease_token: "1-j".into() }]);
    let resumed = v1::ResumedLease { job_id: "j".into(), last_report: 2, cancel_requested: None };
    stream.say(Message::Welcome(v1::Welcome { resumed: vec![resumed], ..welcome() })).await;
    for (number, text) in [(3, "3"), (4, "4")] {
        let report = stream.report().await;
        stream.answer(&report, ReportResult::Ok).await;
        assert_eq!(report.number, number);
        assert_eq!(logs(&[report.body.unwrap()]), [(LogLevel::Info, "", text)]);
    }
    let rest = stream.until_end().await;
    assert!(matches!(rest[..], [Body::Checkpoint(_), Body::Complete(_)]), "{rest:?}");
}

#[tokio::test]
async fn j2_a_lease_that_is_lost_meanwhile_drops_the_job() {
    let mut engine = Engine::start().await;
    let proxy = Proxy::start(engine.address()).await;
    let dropped = Arc::new(AtomicBool::new(false));
    let _worker = start(&[proxy.uri()], vec![deaf(&dropped), quick()]);
    let mut stream = engine.welcome().await;
    stream.assign(&job("deaf", "deaf", &json!({}))).await;
    stream.report().await;
    proxy.cut();
    let mut stream = engine.accept().await;
    let lost =
        v1::LeaseLost { job_id: "deaf".into(), lease_token: "1-deaf".into(), reason: "expired".into() };
    stream.say(Message::Welcome(v1::Welcome { lost: vec![lost], ..welcome() })).await;
    eventually("the job's future is dropped", || dropped.load(SeqCst)).await;
    let (_, end) = stream.play(&job("next", "quick", &json!({}))).await;
    assert_eq!(result(&end), json!("done"));
}

#[tokio::test]
async fn j36_a_draining_engine_is_left_for_another_with_the_job_in_hand() {
    let (mut one, mut two) = (Engine::start().await, Engine::start().await);
    let worker = start(&[one.uri(), two.uri()], vec![obedient()]);
    let (mut stream, other) = tokio::select! {
        stream = one.welcome() => (stream, &mut two),
        stream = two.welcome() => (stream, &mut one),
    };
    let mut status = worker.status.clone();
    status.wait_for(|status| *status == Status::Connected).await.unwrap();
    stream.assign(&job("j", "obedient", &json!({}))).await;
    let begun = stream.report().await;
    stream.answer(&begun, ReportResult::Ok).await;
    let deadline = Some((std::time::SystemTime::now() + Duration::from_secs(1)).into());
    stream.say(Message::Drain(v1::Drain { deadline })).await;
    let next = other.accept().await;
    assert_eq!(next.hello.leases.len(), 1);
    assert!(stream.next().await.is_none(), "the draining engine's stream is closed");
}

/// Each of 32 workers moves with one half: that none does happens once in four thousand million times.
#[tokio::test]
async fn workers_move_to_an_engine_that_joins_with_the_jobs_in_hand() {
    let mut one = Engine::start().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let engines = [one.uri(), format!("http://{free}")];
    let (mut workers, mut streams) = (Vec::new(), Vec::new());
    for n in 0..32 {
        workers.push(start(&engines, vec![obedient()]));
        let mut stream = one.welcome().await;
        stream.assign(&job(&n.to_string(), "obedient", &json!({}))).await;
        let begun = stream.report().await;
        stream.answer(&begun, ReportResult::Ok).await;
        streams.push(stream);
    }
    let mut two = Engine::start_at(free).await;
    let moved = two.accept().await;
    let [v1::HeldLease { job_id, lease_token }] = &moved.hello.leases[..] else {
        panic!("{:?}", moved.hello)
    };
    assert_eq!(*lease_token, format!("1-{job_id}"));
    let left = &mut streams[job_id.parse::<usize>().unwrap()];
    assert!(left.next().await.is_none(), "the other stream is closed in order");
}

#[tokio::test]
async fn a_silent_engine_is_left() {
    let mut engine = Engine::start().await;
    let _worker = start(&[engine.uri()], vec![quick()]);
    let mut stream = engine.accept().await;
    stream.pong = false;
    stream.say(Message::Welcome(fast_ping())).await;
    assert!(stream.next().await.is_none());
    assert!(stream.pings >= 1, "it pinged before it gave up");
    engine.welcome().await;
}

#[tokio::test]
async fn a_slow_engine_holds_up_the_job_not_the_memory() {
    const LINES: usize = 2000;
    let mut engine = Engine::start().await;
    let said = Arc::new(AtomicUsize::new(0));
    let count = said.clone();
    let _worker = start(
        &[engine.uri()],
        vec![closure("k", move |job| {
            let count = count.clone();
            async move {
                for n in 0..LINES {
                    job.info(n.to_string()).await;
                    count.fetch_add(1, SeqCst);
                }
                Ok(Value::Null)
            }
        })],
    );
    let mut stream = engine.accept().await;
    stream.say(Message::Welcome(fast_ping())).await;
    stream.assign(&job("j", "k", &json!({}))).await;
    let reports = stream.reports_until_quiet().await;
    assert_eq!(reports.len(), 256, "the window is full");
    assert_eq!(said.load(SeqCst), 256, "the job waits");
    for report in &reports {
        stream.answer(report, ReportResult::Ok).await;
    }
    let rest = stream.until_end().await;
    assert_eq!(rest.len(), LINES - 256 + 1);
    let expected: Vec<_> = (256..LINES).map(|n| n.to_string()).collect();
    assert_eq!(logs(&rest).iter().map(|l| l.2).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn j37_what_is_too_large_is_refused_before_it_is_sent() {
    let mut engine = Engine::start().await;
    let _worker = start(
        &[engine.uri()],
        vec![closure("k", |job| async move {
            let too_large = |result: Result<(), ReportError>| match result {
                Err(ReportError::Rejected(message)) => assert!(message.contains("bytes"), "{message}"),
                other => panic!("{other:?}"),
            };
            too_large(job.checkpoint("c", vec![0; 65]).await);
            too_large(job.custom("chart", &json!("x".repeat(64))).await);
            job.log(LogLevel::Info, "", "x".repeat(10_000_000)).await;
            assert!(matches!(job.custom("error", &json!(1)).await, Err(ReportError::Rejected(_))));
            job.checkpoint("c", vec![0; 64]).await?;
            Ok(json!("x".repeat(64)))
        })],
    );
    let mut stream = engine.accept().await;
    let small =
        v1::Welcome { max_checkpoint_bytes: 64, max_custom_bytes: 64, max_result_bytes: 64, ..welcome() };
    stream.say(Message::Welcome(small)).await;
    let (before, end) = stream.play(&job("j", "k", &json!({}))).await;
    assert!(
        matches!(&before[..], [Body::Log(log), Body::Checkpoint(_)] if log.text.len() <= 16 * 1024),
        "{end:?}"
    );
    assert_eq!(code(&end), "result_too_large");
}

#[tokio::test]
async fn a_rejected_checkpoint_is_the_callers_error() {
    let mut engine = Engine::start().await;
    let handler = closure("k", |job| async move {
        assert_eq!(job.checkpoint("c", "x").await, Err(ReportError::Rejected("not like this".into())));
        job.checkpoint("c", "x").await?;
        Ok(Value::Null)
    });
    let _worker = start(&[engine.uri()], vec![handler]);
    let mut stream = engine.welcome().await;
    stream.assign(&job("j", "k", &json!({}))).await;
    for _ in 0..2 {
        let report = stream.report().await;
        stream.answer(&report, ReportResult::Rejected).await;
    }
    assert_eq!(code(&stream.until_end().await[0]), "report_rejected");
}

#[tokio::test]
async fn a_panic_fails_the_job_and_nothing_else() {
    let mut engine = Engine::start().await;
    let _worker =
        start(&[engine.uri()], vec![closure("bad", |_| async { panic!("oh {}", "dear") }), quick()]);
    let mut stream = engine.welcome().await;
    let (_, end) = stream.play(&job("j", "bad", &json!({}))).await;
    assert!(
        matches!(&end, Body::Fail(f) if f.code == "panic" && f.message.contains("oh dear") && !f.retryable)
    );
    let (_, end) = stream.play(&job("next", "quick", &json!({}))).await;
    assert_eq!(result(&end), json!("done"));
}

#[tokio::test]
async fn an_assignment_beyond_the_capacity_is_given_back() {
    let mut engine = Engine::start().await;
    let _worker = start(&[engine.uri()], vec![obedient(), quick()]);
    let mut stream = engine.welcome().await;
    stream.assign(&job("one", "obedient", &json!({}))).await;
    stream.report().await;
    stream.assign(&job("two", "quick", &json!({}))).await;
    let report = stream.report().await;
    assert_eq!(report.job_id, "two");
    assert!(matches!(report.body, Some(Body::Released(_))), "{report:?}");
}

#[tokio::test]
async fn a_worker_that_shuts_down_gives_its_jobs_back() {
    let mut engine = Engine::start().await;
    let Running { shutdown, mut status, ended } = start(&[engine.uri()], vec![obedient()]);
    let mut stream = engine.welcome().await;
    stream.assign(&job("one", "obedient", &json!({}))).await;
    let begun = stream.report().await;
    stream.answer(&begun, ReportResult::Ok).await;
    shutdown.cancel();
    status.wait_for(|status| *status == Status::Draining).await.unwrap();
    let report = stream.report().await;
    assert!(matches!(report.body, Some(Body::Released(_))), "{report:?}");
    stream.answer(&report, ReportResult::Ok).await;
    assert!(stream.next().await.is_none(), "the stream is closed in order");
    tokio::time::timeout(PATIENCE, ended).await.expect("the worker does not end").unwrap();
    assert_eq!(*status.borrow(), Status::Stopped);
}

#[tokio::test]
async fn an_idle_worker_leaves_at_once_whether_an_engine_is_there_or_not() {
    let mut engine = Engine::start().await;
    for uri in [engine.uri(), "http://127.0.0.1:1".to_owned()] {
        let worker = start(std::slice::from_ref(&uri), vec![quick()]);
        if uri == engine.uri() {
            engine.welcome().await;
        }
        worker.shutdown.cancel();
        // Well below the times that jobs and last reports are given.
        tokio::time::timeout(Duration::from_secs(3), worker.ended).await.expect("it lingers").unwrap();
    }
}

#[tokio::test]
async fn assignments_during_a_shutdown_are_kept_aside_and_given_back_at_the_end() {
    let mut engine = Engine::start().await;
    let go = Arc::new(Notify::new());
    let wait = go.clone();
    let slow = closure("slow", move |job| {
        let wait = wait.clone();
        async move {
            job.info("begun").await;
            wait.notified().await;
            Ok(json!("finished"))
        }
    });
    let worker = tidegate_worker::Worker::builder([engine.uri()]).capacity(1).grace(PATIENCE);
    let worker = worker.handlers([slow, quick()]).build().map_err(|e| format!("{e:?}")).unwrap();
    let (shutdown, mut status) = (tokio_util::sync::CancellationToken::new(), worker.status());
    let ended = tokio::spawn(worker.run(shutdown.clone()));
    let mut stream = engine.accept().await;
    stream.say(Message::Welcome(fast_ping())).await;
    stream.assign(&job("one", "slow", &json!({}))).await;
    let begun = stream.report().await;
    stream.answer(&begun, ReportResult::Ok).await;
    shutdown.cancel();
    status.wait_for(|status| *status == Status::Draining).await.unwrap();
    stream.assign(&job("two", "quick", &json!({}))).await;
    assert!(stream.reports_until_quiet().await.is_empty(), "neither run nor given back to be assigned again");
    assert!(stream.left, "the engine is told to assign nothing more");
    go.notify_one();
    let mut ends = Vec::new();
    for _ in 0..2 {
        let report = stream.report().await;
        stream.answer(&report, ReportResult::Ok).await;
        ends.push((report.job_id, report.body.unwrap()));
    }
    assert!(matches!(&ends[0], (id, Body::Complete(_)) if id == "one"), "{ends:?}");
    assert!(matches!(&ends[1], (id, Body::Released(_)) if id == "two"), "{ends:?}");
    tokio::time::timeout(PATIENCE, ended).await.expect("the worker does not end").unwrap();
}

#[tokio::test]
async fn input_that_a_kind_does_not_take_names_the_field() {
    let mut engine = Engine::start().await;
    let settings = tidegate_worker::kinds::KindSettings::default();
    let _worker = start(&[engine.uri()], tidegate_worker::kinds::builtin(&settings).unwrap());
    let mut stream = engine.welcome().await;
    for (id, kind, input, word) in [
        ("1", "demo", json!({"stepz": 3}), "stepz"),
        ("2", "demo", json!({"steps": 0}), "steps"),
        ("3", "csv-import", json!({"path": "x", "delimiter": ";"}), "delimiter"),
        ("4", "csv-import", json!({}), "path"),
        ("5", "csv-import", json!({"path": "x", "table": "a b"}), "table"),
        ("6", "csv-import", json!({"path": "x", "database": "../x.db"}), "database"),
    ] {
        let (_, end) = stream.play(&job(id, kind, &input)).await;
        assert_eq!(code(&end), "input_invalid", "{input}");
        assert!(matches!(&end, Body::Fail(f) if f.message.contains(word) && !f.retryable), "{end:?}");
    }
}

#[tokio::test]
async fn the_demo_shows_every_event_and_resumes_from_its_checkpoint() {
    let mut engine = Engine::start().await;
    let _worker = start(&[engine.uri()], vec![Arc::new(tidegate_worker::kinds::demo::Demo)]);
    let mut stream = engine.welcome().await;
    let input = json!({"steps": 4, "seconds": 0, "customEvery": 2});
    let (bodies, end) = stream.play(&job("j", "demo", &input)).await;
    assert_eq!(result(&end), json!("Success!"));
    assert_eq!(logs(&bodies)[0].2, "Processing file data.csv...");
    let progress: Vec<_> =
        bodies.iter().filter_map(|b| if let Body::Progress(p) = b { Some(p) } else { None }).collect();
    assert_eq!((progress[0].percent, progress[0].message.as_str()), (Some(25.0), "Step 1/4 complete"));
    assert_eq!(bodies.iter().filter(|b| matches!(b, Body::Custom(c) if c.name == "chart")).count(), 2);
    let last =
        bodies.iter().rev().find_map(|b| if let Body::Checkpoint(c) = b { Some(c.clone()) } else { None });
    assert_eq!(last.as_ref().unwrap().name, "step 4");
    // An attempt that finds step 3 done has one step left.
    let checkpoint = Some(v1::Checkpoint { name: "step 3".into(), data: "3".into(), size: 1 });
    let (bodies, _) =
        stream.play(&v1::Assignment { checkpoint, attempt: 2, ..job("k", "demo", &input) }).await;
    assert_eq!(bodies.iter().filter(|b| matches!(b, Body::Checkpoint(_))).count(), 1);
    let failing = json!({"steps": 4, "seconds": 0, "failAt": 2, "retryable": true});
    let (_, end) = stream.play(&job("l", "demo", &failing)).await;
    assert!(matches!(&end, Body::Fail(f) if f.code == "demo_failure" && f.retryable), "{end:?}");
}
