//! The protocol of `worker_service.proto`, clause by clause: what a job reports, and how it is stopped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tidegate_proto::v1::{self, ReportResult, report::Body, work_response::Message};
use tidegate_worker::{LogLevel, Progress, ReportError, Status, StopReason};

use crate::{
    engine::{Engine, code, fast_ping, job, logs, result, welcome},
    eventually,
    handlers::{closure, deaf, obedient, quick},
    start,
};

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
