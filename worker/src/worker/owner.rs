//! The owner task: the only place where the session, the connection and the table of running jobs change.
//!
//! One loop waits for whatever comes first: a report of a job, room on the wire, a message of the engine, the end of a
//! dial, a time, the order to shut down. Nothing in the loop blocks, so a slow engine holds up no job that has room
//! left in its window, and a busy job holds up no answer.
//!
//! Shutting down goes through [`Phase`]s. The engine is told to assign nothing more; what comes all the same is kept
//! aside unstarted and given back at the end, since an engine that does not listen would assign it here again at once.

mod jobs;
mod line;

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use tidegate_proto::{
    limits,
    pool::{Pick, Pool},
    v1::{self, work_request, work_response::Message},
};
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Plan, Status,
    backoff::Backoff,
    link::{self, Dialled, Link},
};
use crate::{
    StopReason,
    context::{Command, Stop, Ticket},
    metrics::{Counted, Ending},
    session::Session,
};

/// How many commands of jobs may wait for the owner.
const COMMANDS: usize = 256;
/// How long jobs have to return once a shutdown has told them to stop.
const STOP_TIME: Duration = Duration::from_secs(5);
/// Why jobs are given back at the end.
const LEAVING: &str = "the worker shuts down";
/// How long the last reports of a shutdown may take.
const FLUSH_TIME: Duration = Duration::from_secs(5);

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
    counted: Counted,
    /// Set when the engine called the job off: then it reports `stopped`, whatever its handler returns.
    cancelled: bool,
    /// When the task is aborted.
    abort_at: Option<Instant>,
}

/// The connection, or the way to the next one.
enum Line {
    Waiting(Instant),
    Dialling(BoxFuture<'static, Dialled>),
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
    /// Ends when another engine is the better one: the reason, and that engine if it is a certain one.
    better: BoxFuture<'static, (&'static str, Option<Pick>)>,
    /// Whether the engine was told to assign nothing more.
    left: bool,
}

/// What the loop woke up for.
enum Wake {
    Command(Command),
    Room(mpsc::OwnedPermit<v1::WorkRequest>),
    Heard(Message),
    Broken(String),
    Dialled(Box<Dialled>),
    Better(&'static str, Option<Pick>),
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
    pool: Pool,
    /// The engine of this stream, or of the last try: the next one should be another.
    engine: Option<SocketAddr>,
    backoff: Backoff,
    limits: Limits,
    phase: Phase,
    /// Whether an engine has ever welcomed it.
    was_connected: bool,
}

/// The engine's limits, as its last welcome said.
#[derive(Clone, Copy, Debug)]
struct Limits {
    checkpoint: usize,
    custom: usize,
    result: usize,
    /// How many reports one message may hold, at least one.
    batch: usize,
}

impl Owner {
    pub(super) fn new(plan: Plan, status: watch::Sender<Status>) -> Self {
        let (commands, inbox) = mpsc::channel(COMMANDS);
        Self {
            pool: Pool::new(plan.engines.clone(), plan.bearer.clone()),
            session: Session::new(plan.coalesce),
            plan,
            status,
            jobs: HashMap::new(),
            tasks: JoinSet::new(),
            unstarted: Vec::new(),
            commands,
            inbox,
            line: Line::Waiting(Instant::now()),
            engine: None,
            backoff: Backoff::default(),
            limits: Limits {
                checkpoint: limits::MAX_CHECKPOINT_BYTES,
                custom: limits::MAX_CUSTOM_BYTES,
                result: limits::MAX_RESULT_BYTES,
                batch: 1,
            },
            phase: Phase::Working,
            was_connected: false,
        }
    }

    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            match self.wake(&shutdown).await {
                Wake::Command(command) => {
                    self.command(command);
                    // What came together is sent together.
                    for _ in 1..COMMANDS {
                        let Ok(command) = self.inbox.try_recv() else { break };
                        self.command(command);
                    }
                }
                Wake::Room(permit) if self.has_to_leave() => {
                    // Before any report of this shutdown: what is given back then goes to other workers.
                    permit.send(link::request(work_request::Message::Leave(v1::Leave {})));
                    if let Line::Up(up) = &mut self.line {
                        up.left = true;
                    }
                }
                Wake::Room(permit) => {
                    let mut reports = self.session.next_reports(self.limits.batch);
                    match reports.len() {
                        0 => {}
                        1 => drop(
                            reports
                                .pop()
                                .map(|r| permit.send(link::request(work_request::Message::Report(r)))),
                        ),
                        _ => drop(
                            permit
                                .send(link::request(work_request::Message::Reports(v1::Reports { reports }))),
                        ),
                    }
                }
                Wake::Heard(message) => self.heard(message),
                Wake::Broken(why) => self.broken(&why),
                Wake::Better(why, engine) => self.move_to(why, engine),
                Wake::Dialled(dialled) => self.dialled(*dialled),
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
        // A handler that blocks its thread cannot be aborted, and must not keep the process from ending.
        let _ = timeout(STOP_TIME, self.tasks.shutdown()).await;
        self.status.send_replace(Status::Stopped);
    }

    /// Waits for something to do.
    async fn wake(&mut self, shutdown: &CancellationToken) -> Wake {
        let until = self.next_time();
        let has_unsent = self.session.has_unsent() || self.has_to_leave();
        let working = matches!(self.phase, Phase::Working);
        let line = async {
            match &mut self.line {
                Line::Waiting(_) => std::future::pending().await,
                Line::Dialling(dial) => Wake::Dialled(Box::new(dial.await)),
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
                        (why, engine) = &mut up.better => Wake::Better(why, engine),
                        Ok(permit) = room.reserve_owned(), if has_unsent => Wake::Room(permit),
                    }
                }
            }
        };
        tokio::select! {
            wake = line => wake,
            // Never closed: the owner holds a sender itself.
            Some(command) = self.inbox.recv() => Wake::Command(command),
            // Jobs speak through the channel; this only clears the table of tasks.
            Some(_) = self.tasks.join_next() => Wake::Time,
            () = sleep_until(until) => Wake::Time,
            () = shutdown.cancelled(), if working => Wake::Shutdown,
        }
    }

    /// Whether the engine is yet to be told to assign nothing more.
    fn has_to_leave(&self) -> bool {
        !matches!(self.phase, Phase::Working) && matches!(&self.line, Line::Up(up) if !up.left)
    }

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
                self.line = Line::Dialling(link::open(self.pool.clone(), self.engine, self.hello()).boxed());
            }
            Line::Up(up) if up.silent_at() <= now => self.broken("the engine is silent"),
            Line::Up(up) if up.leave_at.is_some_and(|at| idle || at <= now) => {
                self.hang_up("the engine drained");
            }
            Line::Up(up) if up.next_ping <= now => {
                // When the channel is full, reports are on their way and are signs of life themselves.
                let _ = up.link.out.try_send(link::request(work_request::Message::Ping(v1::Ping {})));
                up.next_ping = now + up.ping;
            }
            _ => {}
        }
        loop {
            match self.phase {
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
                        running.counted.ended(Ending::Released);
                        self.end(&job_id, &running.token, jobs::released(LEAVING));
                    }
                    self.phase = Phase::Flushing(now + FLUSH_TIME);
                }
                Phase::Flushing(at) => {
                    for assignment in std::mem::take(&mut self.unstarted) {
                        self.end(&assignment.job_id, &assignment.lease_token, jobs::released(LEAVING));
                    }
                    return self.session.is_empty() || at <= now;
                }
                Phase::Working | Phase::Grace(_) | Phase::Stopping(_) => return false,
            }
        }
    }
}
