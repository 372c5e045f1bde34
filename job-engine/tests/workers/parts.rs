//! What the conversations are made of: bodies of reports, options of jobs, workers as tests need them, logs of jobs.

use bytes::Bytes;
use tidegate_proto::v1::{
    CancelJobRequest, Checkpoint, Completed, Concurrency, CursorOutcome, DeleteJobRequest, Event, Failed,
    Hello, Job, JobOptions, Log, WatchJobRequest, event::Kind, report::Body, watch_job_response,
};

use crate::{
    At,
    worker::{Worker, hello},
};

pub(crate) fn line(text: &str) -> Body {
    Body::Log(Log { text: text.into(), ..Log::default() })
}

pub(crate) fn done() -> Body {
    Body::Complete(Completed { result_json: "\"Success!\"".into() })
}

pub(crate) fn saved(bytes: &'static [u8]) -> Body {
    Body::Checkpoint(Checkpoint {
        name: "here".into(),
        data: Bytes::from_static(bytes),
        ..Checkpoint::default()
    })
}

pub(crate) fn failure() -> Body {
    Body::Fail(Failed { code: "oops".into(), retryable: true, ..Failed::default() })
}

pub(crate) async fn with_capacity(engine: &At, kinds: &[&str], capacity: u32) -> Worker {
    Worker::say_hello(engine, Hello { capacity, ..hello(kinds) }).await.expect("welcome")
}

/// A worker that makes its kinds known, and wants no jobs. It leaves while its only slot is held: else a dispatcher that
/// has just seen the slot free might still take a job for it.
pub(crate) async fn idle(engine: &At, kinds: &[&str]) -> Worker {
    let mut worker = with_capacity(engine, kinds, 1).await;
    let job = engine.submit_as("idle", kinds[0], JobOptions::default()).await;
    let lease = worker.assignment().await;
    worker.leave().await;
    worker.ok(&lease, 1, done()).await;
    let delete = DeleteJobRequest { caller: None, job_id: job.job_id };
    engine.jobs().await.delete_job(delete).await.expect("deleted");
    worker
}

pub(crate) fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub(crate) fn heavy(limit: u32) -> JobOptions {
    JobOptions { concurrency: Some(Concurrency { key: "heavy".into(), limit }), ..JobOptions::default() }
}

pub(crate) async fn cancel(engine: &At, job: &Job) -> Result<Job, tonic::Status> {
    let request = CancelJobRequest { caller: None, job_id: job.job_id.clone(), reason: "enough".into() };
    let answer = engine.jobs().await.cancel_job(request).await?;
    Ok(answer.into_inner().job.expect("a job"))
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

/// The job's whole log, which has ended with exactly one terminal event.
pub(crate) async fn ended(engine: &At, job: &Job) -> Vec<Event> {
    let (_, events) = follow(engine, &job.job_id, "").await;
    assert_eq!(events.iter().filter(|e| e.is_terminal()).count(), 1, "{events:?}");
    assert!(events.last().is_some_and(Event::is_terminal), "{events:?}");
    events
}

pub(crate) fn text(event: &Event) -> Option<&str> {
    match &event.kind {
        Some(Kind::Log(log)) => Some(&log.text),
        _ => None,
    }
}

pub(crate) fn numbers(events: &[Event]) -> Vec<u64> {
    events.iter().map(|e| e.seq).collect()
}
