//! What becomes of jobs when connections, engines or the worker itself end: the rest of the protocol's clauses.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use serde_json::json;
use tidegate_proto::v1::{self, ReportResult, report::Body, work_response::Message};
use tidegate_worker::{LogLevel, Status};
use tokio::sync::Notify;

use crate::{
    PATIENCE, Running,
    engine::{Engine, fast_ping, job, logs, result, welcome},
    eventually,
    handlers::{closure, deaf, obedient, quick},
    proxy::Proxy,
    start,
};

#[tokio::test]
async fn j5_a_cut_connection_loses_no_report_and_no_job() {
    let mut engine = Engine::start().await;
    let proxy = Proxy::start(vec![engine.address().to_string()]).await;
    let go = Arc::new(Notify::new());
    let wait = go.clone();
    let _worker = start(
        &[proxy.url()],
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
    let proxy = Proxy::start(vec![engine.address().to_string()]).await;
    let dropped = Arc::new(AtomicBool::new(false));
    let _worker = start(&[proxy.url()], vec![deaf(&dropped), quick()]);
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
