//! The hub's owner task: follows the log, publishes it, keeps it alive, and lets it go.
//!
//! Nobody else writes to the hub. Breaks of the upstream are resumed from the last published event and stay unseen;
//! a hole is read again before anything behind it is published. The stream is always drained, so that viewers of one
//! job never slow the shared connection.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt as _;
use tidegate_proto::{
    cursor::Cursor,
    v1::{
        Event, ReadEventsRequest, WatchJobRequest, WatchJobResponse, WatchOpened, watch_job_response::Message,
    },
};
use tidegate_telemetry::trace;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Status, Streaming};
use tracing::Instrument as _;

use super::{End, Hub, Registry, Stage, Timing, ring};
use crate::{
    engine::{Client, Engine, broke},
    problem::Problem,
    sse,
};

/// Events that are published, and viewers woken, together at most.
const BATCH: usize = 64;
/// A stream that lived this long was healthy: the next pause is short again.
const HEALTHY: Duration = Duration::from_secs(10);
/// How long opening a log may take before the operator hears of it.
const SLOW: Duration = Duration::from_secs(1);
/// How long a stream may stay silent: the engine sends a heartbeat every 15 to 20 seconds.
const SILENCE: Duration = Duration::from_secs(45);
/// The first pause after a break, before jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// Runs a hub to its end.
pub(super) async fn run(hub: Arc<Hub>, engine: Engine, registry: Registry, timing: Timing) {
    hub.metrics.upstreams.increment(1.0);
    hub.metrics.upstreams_opened.increment(1);
    tokio::select! {
        end = follow(&hub, &engine, timing) => {
            // Out of the registry first: who comes now may find the job reopened by a retry.
            registry.remove(&hub);
            hub.finish(end);
        }
        () = heartbeat(&hub, timing.heartbeat) => {}
        () = desertion(&hub, &registry, timing.linger) => {}
    }
    hub.metrics.upstreams.decrement(1.0);
}

/// Follows the log across breaks, to the end of the job.
async fn follow(hub: &Hub, engine: &Engine, timing: Timing) -> End {
    let (mut pause, mut tries, mut avoid) = (FIRST_PAUSE, 0, None);
    loop {
        let began = Instant::now();
        let status = match watch(hub, engine, timing, &mut avoid).await {
            Ok(()) => return End::Finished,
            Err(status) => status,
        };
        let opened = matches!(*hub.stage.borrow(), Stage::Open);
        if status.code() == Code::NotFound && opened {
            return End::Goodbye(sse::Goodbye::Deleted);
        }
        let problem = Problem::from(status.clone());
        if !opened && problem.goodbye().is_none() {
            hub.stage.send_replace(Stage::Refused(problem));
            return End::Goodbye(sse::Goodbye::EngineUnavailable); // nobody is attached to hear it
        }
        if began.elapsed() >= HEALTHY {
            (pause, tries) = (FIRST_PAUSE, 0);
        }
        tracing::debug!(job_id = %hub.job_id, code = ?status.code(), message = status.message(), "upstream broke");
        hub.metrics.breaks.increment(1);
        sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        // Patience is for those that have failed: each engine gets its try before the pause grows.
        tries += 1;
        if tries >= engine.size().1 {
            (pause, tries) = ((pause * 2).min(timing.max_backoff), 0);
        }
    }
}

/// Follows the log on one engine, which it leaves in `avoid`, until the stream ends or the engine falls silent; `Ok`
/// means that the job has ended and everything is published.
async fn watch(
    hub: &Hub,
    engine: &Engine,
    timing: Timing,
    avoid: &mut Option<SocketAddr>,
) -> Result<(), Status> {
    let (client, pick) = engine.stream(*avoid).await?;
    *avoid = Some(pick.addr());
    let followed = tokio::select! {
        followed = watch_on(client, hub, engine, timing) => followed,
        () = pick.lost() => Err(Status::unavailable("the engine fell silent, and another one serves")),
    };
    if followed.as_ref().is_err_and(broke) {
        pick.failed();
    }
    followed
}

async fn watch_on(mut client: Client, hub: &Hub, engine: &Engine, timing: Timing) -> Result<(), Status> {
    let cursor = hub.resume_cursor();
    let first_time = cursor.is_none();
    let request = WatchJobRequest {
        caller: None,
        job_id: hub.job_id.to_string(),
        // The first time, the ring's worth is enough; viewers that want more read history.
        tail: if first_time { ring::MAX_EVENTS } else { 0 },
        cursor: cursor.map(|c| c.to_string()).unwrap_or_default(),
    };
    let late = |_| Status::deadline_exceeded("the engine did not open the log in time");
    let began = Instant::now();
    let span = tracing::info_span!(target: trace::TARGET, "follow", otel.kind = "client", job = &*hub.job_id);
    // What breaks later is nobody's request any more.
    let opener = if first_time { &hub.opener } else { "" };
    let span = trace::child_of(span, opener);
    let mut request = Request::new(request);
    trace::carry_on(&trace::pass(&span, opener), request.metadata_mut());
    let opening = timeout(timing.open, client.watch_job(request)).instrument(span);
    let mut stream = opening.await.map_err(late)??.into_inner();
    let first = timeout(timing.open, stream.message()).await.map_err(late)??;
    if began.elapsed() >= SLOW {
        // A peer or proxy that caps the streams of a connection queues the next one in silence.
        tracing::warn!(job_id = %hub.job_id, took = ?began.elapsed(), "a log was slow to open");
    }
    let Some(WatchJobResponse { message: Some(Message::Opened(opened)) }) = first else {
        return Err(Status::unavailable("the engine did not begin with WatchOpened"));
    };
    accept(hub, &opened)?;
    let mut batch = Vec::with_capacity(BATCH);
    let silent = |_| Status::unavailable("the engine sends no heartbeats");
    while let Some(message) = timeout(SILENCE, stream.message()).await.map_err(silent)?? {
        let ended = gather(hub, engine, &mut stream, message, &mut batch).await;
        hub.publish(&mut batch);
        if ended? {
            break;
        }
    }
    if hub.finished() { Ok(()) } else { Err(Status::unavailable("the stream ended, but not the job")) }
}

/// Takes over a newly opened log.
fn accept(hub: &Hub, opened: &WatchOpened) -> Result<(), Status> {
    let from: Cursor =
        opened.cursor.parse().map_err(|e| Status::unavailable(format!("the engine's cursor: {e}")))?;
    let job = opened.job.as_ref().ok_or_else(|| Status::unavailable("WatchOpened without a job"))?;
    if job.epoch != from.epoch {
        return Err(Status::unavailable("WatchOpened names two logs"));
    }
    hub.open(job, &from);
    Ok(())
}

/// Collects `message` and whatever else has arrived already, so that one wake-up serves them all.
/// Answers whether the stream has ended.
async fn gather(
    hub: &Hub,
    engine: &Engine,
    stream: &mut Streaming<WatchJobResponse>,
    message: WatchJobResponse,
    batch: &mut Vec<(Bytes, Event)>,
) -> Result<bool, Status> {
    let (mut expected, mut epoch) = hub.expected();
    let mut message = Some(message);
    loop {
        match message.take().and_then(|m| m.message) {
            Some(Message::Event(event)) => {
                if event.seq > expected {
                    hub.publish(batch);
                    expected = refill(hub, engine, &epoch, expected, event.seq).await?;
                }
                if event.seq == expected {
                    batch.push((sse::event(&epoch, &event), event));
                    expected += 1;
                }
                // Otherwise it is known already: a resumed stream may repeat.
            }
            Some(Message::Gap(gap)) => {
                hub.publish(batch);
                match &gap.snapshot {
                    // The log lost events that were published, or is another one: it is read again from here.
                    Some(job) if *job.epoch != *epoch || gap.to_seq + 1 < expected => {
                        hub.open(job, &Cursor::new(gap.to_seq, job.epoch.as_str()));
                    }
                    _ => hub.skip(gap.to_seq),
                }
                (expected, epoch) = hub.expected();
            }
            Some(Message::Opened(_)) => {
                return Err(Status::unavailable("WatchOpened in the middle of a log"));
            }
            Some(Message::Heartbeat(_)) | None => {}
        }
        if batch.len() >= BATCH {
            return Ok(false);
        }
        match stream.message().now_or_never() {
            Some(Ok(Some(next))) => message = Some(next),
            Some(Ok(None)) => return Ok(true),
            Some(Err(status)) => return Err(status),
            None => return Ok(false),
        }
    }
}

/// Reads the hole between `expected` and `before` and publishes it; answers the number to be expected now.
async fn refill(
    hub: &Hub,
    engine: &Engine,
    epoch: &str,
    mut expected: u64,
    before: u64,
) -> Result<u64, Status> {
    tracing::warn!(job_id = %hub.job_id, from = expected, to = before - 1, "a hole in the stream; reading it again");
    while expected < before {
        let request = ReadEventsRequest {
            job_id: hub.job_id.to_string(),
            after_seq: expected - 1,
            ..Default::default()
        };
        let page = engine.call(request, |mut client, r| async move { client.read_events(r).await }).await?;
        let mut batch = Vec::new();
        if page.epoch == epoch {
            for event in page.events {
                if batch.is_empty() && event.seq > expected {
                    hub.skip(event.seq.min(before) - 1); // trimmed meanwhile: viewers will be told
                    expected = event.seq.min(before);
                }
                if event.seq == expected && event.seq < before {
                    batch.push((sse::event(epoch, &event), event));
                    expected += 1;
                }
            }
        }
        let progress = !batch.is_empty() || expected == before;
        hub.publish(&mut batch);
        if !progress {
            return Err(Status::unavailable("the hole could not be read"));
        }
    }
    Ok(expected)
}

/// Sends idle comments, jittered, so that the hubs of a gateway do not beat together.
async fn heartbeat(hub: &Hub, longest: Duration) {
    loop {
        let since = hub.state.lock().last_sent;
        tokio::time::sleep_until(since + longest.mul_f64(rand::random_range(0.67..1.0))).await;
        hub.beat(since);
    }
}

/// Returns when the hub had no users for a while and has left the registry.
async fn desertion(hub: &Arc<Hub>, registry: &Registry, linger: Duration) {
    loop {
        hub.deserted.notified().await;
        sleep(linger).await;
        if registry.retire(hub) {
            return;
        }
    }
}
