//! The owner task: the only place where the session, the connection and the table of running jobs change.
//!
//! One loop waits for whatever comes first: a report of a job, room on the wire, a message of the engine, the end of a
//! dial, a time, the order to shut down. Nothing in the loop blocks, so a slow engine holds up no job that has room
//! left in its window, and a busy job holds up no answer.
//!
//! Shutting down goes through [`Phase`]s. While it does, new assignments are kept aside unstarted and given back at
//! the end: giving them back at once would have the engine assign them here again.

use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use tidegate_proto::{
    limits,
    v1::{self, report::Body, work_request, work_response::Message},
};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Plan, Status,
    backoff::Backoff,
    link::{self, Link, LinkError},
};
use crate::{
    JobContext, JobError, StopReason,
    context::{Answer, Command, Outcome, Stop, Ticket},
    session::{Effect, Session},
};

/// How many commands of jobs may wait for the owner.
const COMMANDS: usize = 64;
/// How long jobs have to return once a shutdown has told them to stop.
const STOP_TIME: Duration = Duration::from_secs(5);
/// How long the last reports of a shutdown may take.
const FLUSH_TIME: Duration = Duration::from_secs(5);
/// How long a job may take to obey a cancellation when the engine does not say.
const DEFAULT_CANCEL_TIME: Duration = Duration::from_secs(30);
/// The deadline is a time of the engine's clock. With a skewed clock of ours it may seem to have passed: the job gets
/// this long all the same, and the engine enforces the true one.
const LEAST_CANCEL_TIME: Duration = Duration::from_secs(2);
/// The ping interval when the engine does not say.
const DEFAULT_PING: Duration = Duration::from_secs(10);

/// The life of a worker, forwards only. Each phase but the first ends at its time, or when nothing is left to do.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Jobs are taken.
    Working,
    /// Running jobs may finish.
    Grace(Instant),
    /// Running jobs have been told to stop.
    Stopping(Instant),
    /// What is left was given back; the engine's answers are awaited.
    Flushing(Instant),
}

/// A job whose task runs.
struct Running {
    token: String,
    task: AbortHandle,
    stop: Arc<Stop>,
    /// Set when the engine called the job off: then it reports `stopped`, whatever its handler returns.
    cancelled: bool,
    /// When the task is aborted.
    abort_at: Option<Instant>,
}

/// The connection, or the way to the next one.
enum Line {
    Waiting(Instant),
    Dialling(BoxFuture<'static, Result<(Link, v1::Welcome), LinkError>>),
    Up(Box<Up>),
}

/// A connection that is up.
struct Up {
    link: Link,
    since: Instant,
    /// When the engine was last heard.
    heard: Instant,
    ping: Duration,
    next_ping: Instant,
    /// Set by `Drain`: when to leave.
    leave_at: Option<Instant>,
}

/// What the loop woke up for.
enum Wake {
    Command(Command),
    Room(mpsc::OwnedPermit<v1::WorkRequest>),
    Heard(Message),
    Broken(String),
    Dialled(Result<(Link, v1::Welcome), LinkError>),
    Time,
    Shutdown,
}

pub(super) struct Owner {
    plan: Plan,
    status: watch::Sender<Status>,
    session: Session<Ticket>,
    jobs: HashMap<String, Running>,
    tasks: JoinSet<()>,
    /// Assignments that came during the shutdown; never more than the capacity.
    unstarted: Vec<v1::Assignment>,
    commands: mpsc::Sender<Command>,
    inbox: mpsc::Receiver<Command>,
    line: Line,
    /// Which engine is next.
    engine: usize,
    backoff: Backoff,
    limits: Limits,
    phase: Phase,
}

/// The engine's limits, as its last welcome said.
#[derive(Clone, Copy, Debug)]
struct Limits {
    checkpoint: usize,
    custom: usize,
    result: usize,
}

impl Owner {
    pub(super) fn new(plan: Plan, status: watch::Sender<Status>) -> Self {
        let (commands, inbox) = mpsc::channel(COMMANDS);
        Self {
            plan,
            status,
            session: Session::default(),
            jobs: HashMap::new(),
            tasks: JoinSet::new(),
            unstarted: Vec::new(),
            commands,
            inbox,
            line: Line::Waiting(Instant::now()),
            engine: 0,
            backoff: Backoff::default(),
            limits: Limits {
                checkpoint: limits::MAX_CHECKPOINT_BYTES,
                custom: limits::MAX_CUSTOM_BYTES,
                result: limits::MAX_RESULT_BYTES,
            },
            phase: Phase::Working,
        }
    }

    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            match self.wake(&shutdown).await {
                Wake::Command(Command::Report { job, body, ticket }) => self.report(&job, body, ticket),
                Wake::Command(Command::Finished { job, outcome }) => self.finished(&job, outcome),
                Wake::Room(permit) => {
                    if let Some(report) = self.session.next_report() {
                        permit.send(link::request(work_request::Message::Report(report)));
                    }
                }
                Wake::Heard(message) => self.heard(message),
                Wake::Broken(why) => self.hang_up(&why),
                Wake::Dialled(Ok((link, welcome))) => self.connected(link, welcome),
                Wake::Dialled(Err(error)) => {
                    tracing::warn!(engine = %self.engine_uri(), %error, "no engine");
                    self.redial(Duration::ZERO);
                }
                Wake::Time => {}
                Wake::Shutdown => {
                    tracing::info!(running = self.jobs.len(), "shutting down");
                    self.phase = Phase::Grace(Instant::now() + self.plan.grace);
                    self.status.send_replace(Status::Draining);
                }
            }
            if self.keep_time() {
                break;
            }
        }
        // Dropping the tasks aborts whatever is left of them.
        self.tasks.shutdown().await;
        self.status.send_replace(Status::Stopped);
    }

    /// Waits for something to do.
    async fn wake(&mut self, shutdown: &CancellationToken) -> Wake {
        let until = self.next_time();
        let has_unsent = self.session.has_unsent();
        let working = matches!(self.phase, Phase::Working);
        let line = async {
            match &mut self.line {
                Line::Waiting(_) => std::future::pending().await,
                Line::Dialling(dial) => Wake::Dialled(dial.await),
                Line::Up(up) => {
                    let room = up.link.out.clone();
                    tokio::select! {
                        message = up.link.inbound.message() => match message {
                            Ok(Some(v1::WorkResponse { message: Some(message) })) => Wake::Heard(message),
                            // A message of a kind that this library does not know: a sign of life.
                            Ok(Some(v1::WorkResponse { message: None })) => Wake::Heard(Message::Pong(v1::Pong {})),
                            Ok(None) => Wake::Broken("the engine closed the stream".to_owned()),
                            Err(status) => Wake::Broken(status.to_string()),
                        },
                        Ok(permit) = room.reserve_owned(), if has_unsent => Wake::Room(permit),
                    }
                }
            }
        };
        loop {
            tokio::select! {
                wake = line => return wake,
                // Never closed: the owner holds a sender itself.
                Some(command) = self.inbox.recv() => return Wake::Command(command),
                // Jobs speak through the channel; this only clears the table of tasks.
                Some(_) = self.tasks.join_next() => return Wake::Time,
                () = sleep_until(until) => return Wake::Time,
                () = shutdown.cancelled(), if working => return Wake::Shutdown,
            }
        }
    }

    // === Jobs ===

    fn assigned(&mut self, assignment: v1::Assignment) {
        let effects = self.session.assign(&assignment.job_id, &assignment.lease_token);
        self.apply(effects);
        if self.jobs.contains_key(&assignment.job_id) {
            // The same lease once more: it runs already.
            return;
        }
        if !matches!(self.phase, Phase::Working) {
            self.unstarted.push(assignment);
            return;
        }
        if self.jobs.len() >= self.plan.capacity as usize {
            self.end(
                &assignment.job_id,
                &assignment.lease_token,
                released("every slot of the worker is taken"),
            );
            return;
        }
        let Some(handler) = self.plan.handlers.get(&assignment.kind).cloned() else {
            let error =
                JobError::fatal("unknown_kind", format!("this worker does not run {:?}", assignment.kind));
            self.end(&assignment.job_id, &assignment.lease_token, failure(error));
            return;
        };
        tracing::info!(
            job = assignment.job_id,
            kind = assignment.kind,
            attempt = assignment.attempt,
            "job begins"
        );
        let (job, stop) = (Arc::new(assignment), Arc::new(Stop::default()));
        let context = JobContext::new(job.clone(), stop.clone(), self.commands.clone());
        let (commands, finished) = (self.commands.clone(), job.clone());
        let task = self.tasks.spawn(async move {
            let run = AssertUnwindSafe(async { handler.run(context).await }).catch_unwind();
            let outcome = match run.await {
                Ok(result) => Outcome::Returned(result),
                Err(panic) => Outcome::Panicked(panic_text(&*panic)),
            };
            // The owner outlives its tasks.
            let _ = commands.send(Command::Finished { job: finished, outcome }).await;
        });
        let running =
            Running { token: job.lease_token.clone(), task, stop, cancelled: false, abort_at: None };
        self.jobs.insert(job.job_id.clone(), running);
    }

    fn report(&mut self, job: &v1::Assignment, body: Body, ticket: Ticket) {
        let refusal = match &body {
            Body::Checkpoint(c) => too_large("a checkpoint", c.data.len(), self.limits.checkpoint),
            Body::Custom(c) => too_large("a custom event", c.json.len(), self.limits.custom),
            _ => None,
        };
        if let Some(refusal) = refusal {
            ticket.answer(Answer::Rejected(refusal));
            return;
        }
        match self.session.push(&job.job_id, &job.lease_token, body, Some(ticket)) {
            Ok(superseded) => drop(superseded),
            Err(ticket) => {
                if let Some(ticket) = ticket {
                    ticket.answer(Answer::Gone);
                }
            }
        }
    }

    fn finished(&mut self, job: &v1::Assignment, outcome: Outcome) {
        let ours = self.jobs.get(&job.job_id).is_some_and(|running| running.token == job.lease_token);
        if !ours {
            return;
        }
        let Some(running) = self.jobs.remove(&job.job_id) else { return };
        let told = running.stop.is_told();
        let body = match outcome {
            _ if running.cancelled => Body::Stopped(v1::Stopped {}),
            Outcome::Returned(Ok(value)) => self.completed(&value),
            // Told to make room, a job may fail in any way: that says nothing about the job.
            _ if told => released("the worker shuts down"),
            Outcome::Returned(Err(JobError::Released(reason))) => released(&reason),
            Outcome::Returned(Err(JobError::Cancelled)) => {
                failure(JobError::fatal("stopped", "the handler stopped although nobody told it to"))
            }
            Outcome::Returned(Err(error)) => failure(error),
            Outcome::Panicked(text) => {
                failure(JobError::fatal("panic", format!("the handler panicked: {text}")))
            }
        };
        tracing::info!(job = job.job_id, end = name_of(&body), "job ends");
        self.end(&job.job_id, &job.lease_token, body);
    }

    fn completed(&self, value: &serde_json::Value) -> Body {
        let result_json = value.to_string();
        match too_large("the result", result_json.len(), self.limits.result) {
            None => Body::Complete(v1::Completed { result_json }),
            Some(refusal) => failure(JobError::fatal("result_too_large", refusal)),
        }
    }

    /// Queues the report that ends a job.
    fn end(&mut self, job_id: &str, token: &str, body: Body) {
        // It fails only when the lease is gone, and then there is nothing to end.
        let _ = self.session.push(job_id, token, body, None);
    }

    fn apply(&mut self, effects: Vec<Effect<Ticket>>) {
        for effect in effects {
            match effect {
                Effect::Answered { tag, answer } => tag.answer(answer),
                Effect::Cancel { job_id, request } => self.cancel(&job_id, request),
                Effect::Lost { job_id, reason } => {
                    self.unstarted.retain(|a| a.job_id != job_id);
                    if let Some(running) = self.jobs.remove(&job_id) {
                        tracing::warn!(job = job_id, reason, "lease lost, job dropped");
                        running.task.abort();
                    }
                }
                Effect::Ended { job_id } => tracing::debug!(job = job_id, "lease returned"),
            }
        }
    }

    fn cancel(&mut self, job_id: &str, request: v1::CancelRequested) {
        if let Some(at) = self.unstarted.iter().position(|a| a.job_id == job_id) {
            let assignment = self.unstarted.remove(at);
            self.end(job_id, &assignment.lease_token, Body::Stopped(v1::Stopped {}));
        }
        let Some(running) = self.jobs.get_mut(job_id).filter(|running| !running.cancelled) else { return };
        running.cancelled = true;
        let left = request.deadline.and_then(until).unwrap_or(DEFAULT_CANCEL_TIME).max(LEAST_CANCEL_TIME);
        let deadline = Instant::now() + left;
        running.abort_at = Some(deadline);
        tracing::info!(job = job_id, by = request.by, reason = request.reason, "job is called off");
        running.stop.tell(StopReason::Cancelled { by: request.by, reason: request.reason, deadline });
    }

    // === The connection ===

    fn heard(&mut self, message: Message) {
        let now = Instant::now();
        if let Line::Up(up) = &mut self.line {
            up.heard = now;
        }
        let effects = match message {
            Message::Assignment(assignment) => return self.assigned(assignment),
            Message::Ack(ack) => self.session.acked(ack),
            Message::Cancel(order) => self.session.cancel(order),
            Message::LeaseLost(lost) => self.session.lost(&lost),
            Message::Drain(drain) => {
                tracing::info!("the engine drains");
                self.status.send_replace(Status::Draining);
                if let Line::Up(up) = &mut self.line {
                    // A little before the engine hangs up by itself.
                    let left = drain.deadline.and_then(until).unwrap_or_default();
                    up.leave_at = Some(now + left.saturating_sub(Duration::from_secs(1)));
                }
                return;
            }
            Message::Welcome(_) => return self.hang_up("the engine said welcome twice"),
            Message::Pong(_) => return,
        };
        self.apply(effects);
    }

    fn connected(&mut self, link: Link, welcome: v1::Welcome) {
        tracing::info!(engine = %self.engine_uri(), resumed = welcome.resumed.len(), "connected");
        let now = Instant::now();
        // Bounded below: a ping a millisecond would be an attack on the engine.
        let ping = duration(welcome.ping_interval).unwrap_or(DEFAULT_PING).max(Duration::from_millis(50));
        let up = Up { link, since: now, heard: now, ping, next_ping: now + ping, leave_at: None };
        self.line = Line::Up(Box::new(up));
        let limit = |said: u32, default: usize| if said == 0 { default } else { said as usize };
        self.limits = Limits {
            checkpoint: limit(welcome.max_checkpoint_bytes, limits::MAX_CHECKPOINT_BYTES),
            custom: limit(welcome.max_custom_bytes, limits::MAX_CUSTOM_BYTES),
            result: limit(welcome.max_result_bytes, limits::MAX_RESULT_BYTES),
        };
        let effects = self.session.welcomed(welcome.resumed, &welcome.lost);
        self.apply(effects);
        if matches!(self.phase, Phase::Working) {
            self.status.send_replace(Status::Connected);
        }
    }

    fn hang_up(&mut self, why: &str) {
        let Line::Up(up) = &self.line else { return };
        let lasted = up.since.elapsed();
        tracing::warn!(engine = %self.engine_uri(), why, "disconnected");
        self.session.disconnected();
        if matches!(self.phase, Phase::Working) {
            self.status.send_replace(Status::Connecting);
        }
        self.redial(lasted);
    }

    fn redial(&mut self, lasted: Duration) {
        self.engine = (self.engine + 1) % self.plan.engines.len();
        let pause = self.backoff.pause(lasted, rand::random_range(0.0..1.0));
        self.line = Line::Waiting(Instant::now() + pause);
    }

    fn engine_uri(&self) -> &tonic::codegen::http::Uri {
        self.plan.engines[self.engine].uri()
    }

    fn hello(&self) -> v1::Hello {
        v1::Hello {
            name: self.plan.name.clone(),
            kinds: self.plan.kinds.clone(),
            capacity: self.plan.capacity,
            leases: self.session.held(),
            client: concat!("rust/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    // === Time ===

    /// When [`Owner::keep_time`] has something to do, at the latest.
    fn next_time(&self) -> Instant {
        let line = match &self.line {
            Line::Waiting(at) => Some(*at),
            Line::Dialling(_) => None,
            Line::Up(up) => {
                [Some(up.next_ping), Some(up.silent_at()), up.leave_at].into_iter().flatten().min()
            }
        };
        let phase = match self.phase {
            Phase::Working => None,
            Phase::Grace(at) | Phase::Stopping(at) | Phase::Flushing(at) => Some(at),
        };
        let aborts = self.jobs.values().filter_map(|running| running.abort_at);
        let far = Instant::now() + Duration::from_secs(3600);
        aborts.chain(line).chain(phase).min().unwrap_or(far)
    }

    /// Does what is due; true when the worker has ended.
    fn keep_time(&mut self) -> bool {
        let now = Instant::now();
        self.abort_overdue(now);
        let idle = self.jobs.is_empty() && self.session.is_empty();
        match &mut self.line {
            Line::Waiting(at) if *at <= now => {
                let endpoint = self.plan.engines[self.engine].clone();
                self.line = Line::Dialling(link::open(endpoint, self.hello()).boxed());
            }
            Line::Up(up) if up.silent_at() <= now => self.hang_up("the engine is silent"),
            Line::Up(up) if up.leave_at.is_some_and(|at| idle || at <= now) => {
                self.hang_up("the engine drained")
            }
            Line::Up(up) if up.next_ping <= now => {
                // When the channel is full, reports are on their way and are signs of life themselves.
                let _ = up.link.out.try_send(link::request(work_request::Message::Ping(v1::Ping {})));
                up.next_ping = now + up.ping;
            }
            _ => {}
        }
        match self.phase {
            Phase::Working => {}
            Phase::Grace(at) if self.jobs.is_empty() || at <= now => {
                let deadline = now + STOP_TIME;
                for running in self.jobs.values() {
                    running.stop.tell(StopReason::ShuttingDown { deadline });
                }
                self.phase = Phase::Stopping(deadline);
            }
            Phase::Stopping(at) if self.jobs.is_empty() || at <= now => {
                for (job_id, running) in std::mem::take(&mut self.jobs) {
                    running.task.abort();
                    self.end(&job_id, &running.token, released("the worker shuts down"));
                }
                self.phase = Phase::Flushing(now + FLUSH_TIME);
            }
            Phase::Flushing(at) => {
                for assignment in std::mem::take(&mut self.unstarted) {
                    self.end(&assignment.job_id, &assignment.lease_token, released("the worker shuts down"));
                }
                return self.session.is_empty() || at <= now;
            }
            Phase::Grace(_) | Phase::Stopping(_) => {}
        }
        false
    }

    /// Drops the jobs that ignored their cancellation; their slots are free again.
    fn abort_overdue(&mut self, now: Instant) {
        let overdue = self.jobs.iter().filter(|(_, running)| running.abort_at.is_some_and(|at| at <= now));
        let overdue: Vec<_> = overdue.map(|(job_id, _)| job_id.clone()).collect();
        for job_id in overdue {
            let Some(running) = self.jobs.remove(&job_id) else { continue };
            tracing::warn!(job = job_id, "job ignored its cancellation and is dropped");
            running.task.abort();
            self.end(&job_id, &running.token, Body::Stopped(v1::Stopped {}));
        }
    }
}

impl Up {
    /// When a silent engine counts as gone.
    fn silent_at(&self) -> Instant {
        self.heard + 2 * self.ping
    }
}

fn released(reason: &str) -> Body {
    Body::Released(v1::Released { reason: limits::cut(reason.to_owned(), limits::MAX_TEXT_BYTES) })
}

fn failure(error: JobError) -> Body {
    let (code, message, retryable) = match error {
        JobError::Failed { code, message, retryable } => (code, message, retryable),
        JobError::Cancelled | JobError::Released(_) => ("stopped".to_owned(), error.to_string(), true),
    };
    Body::Fail(v1::Failed {
        code: limits::cut(code, limits::MAX_NAME_BYTES),
        message: limits::cut(message, limits::MAX_TEXT_BYTES),
        retryable,
    })
}

fn name_of(body: &Body) -> &'static str {
    match body {
        Body::Complete(_) => "complete",
        Body::Fail(_) => "fail",
        Body::Stopped(_) => "stopped",
        _ => "released",
    }
}

fn too_large(what: &str, size: usize, limit: usize) -> Option<String> {
    (size > limit).then(|| format!("{what} has {size} bytes; the engine takes {limit}"))
}

/// The time from now to a time of the engine's clock; zero when it has passed.
fn until(deadline: prost_types::Timestamp) -> Option<Duration> {
    let at = std::time::SystemTime::try_from(deadline).ok()?;
    Some(at.duration_since(std::time::SystemTime::now()).unwrap_or_default())
}

fn duration(duration: Option<prost_types::Duration>) -> Option<Duration> {
    Duration::try_from(duration?).ok().filter(|d| !d.is_zero())
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}
