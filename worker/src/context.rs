//! What a running job can say and ask.
//!
//! A report costs its size, at least 4 KiB, of its job's window of 1 MiB until the engine has answered it: at most 256
//! reports are under way, and a job that reports faster than the engine stores waits inside the call. Reports are
//! sent in the order of the calls. Nothing here reads or writes the network: the worker's owner task does.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tidegate_proto::{limits, v1};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{JobError, LogLevel, handler::JobResult};

pub use tidegate_proto::v1::Progress;

/// What the unanswered reports of one job may cost, in bytes.
pub(crate) const WINDOW_BYTES: usize = 1024 * 1024;
/// What a report costs at least, so that small ones are bounded by count: 256.
const MIN_COST: usize = 4 * 1024;

/// Why a report was not stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// The job is not this worker's any more, or is being called off: stop.
    #[error("the job is not this worker's any more, or is being called off")]
    Gone,
    /// The report broke a rule, such as a limit on its size; the job may go on.
    #[error("refused: {0}")]
    Rejected(String),
}

/// Why a job is to stop.
#[derive(Clone, Debug)]
pub enum StopReason {
    /// Somebody called the job off.
    Cancelled {
        /// Who.
        by: String,
        /// Why; may be empty.
        reason: String,
        /// When the job is cut off.
        deadline: Instant,
    },
    /// The worker shuts down; another will go on from the last checkpoint.
    ShuttingDown {
        /// When the job is cut off.
        deadline: Instant,
    },
}

impl StopReason {
    /// When the job is cut off if it has not returned.
    pub fn deadline(&self) -> Instant {
        match self {
            Self::Cancelled { deadline, .. } | Self::ShuttingDown { deadline } => *deadline,
        }
    }
}

/// Tells a job to stop; shared by its context and the owner task.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    token: CancellationToken,
    why: OnceLock<StopReason>,
}

impl Stop {
    /// Tells the job to stop. Only the first reason is kept.
    pub(crate) fn tell(&self, why: StopReason) {
        let _ = self.why.set(why);
        self.token.cancel();
    }

    /// Whether the job was told to stop.
    pub(crate) fn is_told(&self) -> bool {
        self.token.is_cancelled()
    }
}

/// How the engine answered a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Stored,
    Gone,
    Rejected(String),
}

/// What rides with a report until it is answered.
#[derive(Debug)]
pub(crate) struct Ticket {
    /// The report's share of the window; dropping it makes room.
    pub(crate) _room: OwnedSemaphorePermit,
    /// Who waits for the answer, if anybody does.
    pub(crate) reply: Option<oneshot::Sender<Answer>>,
}

impl Ticket {
    pub(crate) fn answer(self, answer: Answer) {
        if let Some(reply) = self.reply {
            // The caller may have given up waiting.
            let _ = reply.send(answer);
        }
    }
}

/// What a job's task sends to the owner task.
#[derive(Debug)]
pub(crate) enum Command {
    /// Something to report.
    Report { job: Arc<v1::Assignment>, body: v1::report::Body, ticket: Ticket },
    /// The job's last word. It travels behind the job's reports, in the same channel.
    Finished { job: Arc<v1::Assignment>, outcome: Outcome },
}

/// How a handler's run ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Returned(JobResult),
    Panicked(String),
}

/// A running job: its input, and the way to report. Clones speak for the same job.
#[derive(Clone)]
pub struct JobContext {
    job: Arc<v1::Assignment>,
    stop: Arc<Stop>,
    window: Arc<Semaphore>,
    commands: mpsc::Sender<Command>,
}

impl JobContext {
    pub(crate) fn new(job: Arc<v1::Assignment>, stop: Arc<Stop>, commands: mpsc::Sender<Command>) -> Self {
        Self { job, stop, window: Arc::new(Semaphore::new(WINDOW_BYTES)), commands }
    }

    /// The job's id.
    pub fn job_id(&self) -> &str {
        &self.job.job_id
    }

    /// The attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.job.attempt
    }

    /// The fencing token of this attempt's lease: whoever holds a later one is the job's only writer.
    pub fn lease_token(&self) -> &str {
        &self.job.lease_token
    }

    /// The tenant and the subject that submitted the job.
    pub fn owner(&self) -> (&str, &str) {
        (&self.job.tenant, &self.job.owner)
    }

    /// The instant for which a schedule submitted the job; `None` if somebody did.
    pub fn scheduled_for(&self) -> Option<SystemTime> {
        self.job.scheduled_for.and_then(|at| at.try_into().ok())
    }

    /// The input as it was submitted, a JSON text.
    pub fn input_json(&self) -> &str {
        if self.job.input_json.is_empty() { "{}" } else { &self.job.input_json }
    }

    /// The input as a `T`.
    ///
    /// # Errors
    /// A final failure `input_invalid` that says what is wrong and where. Give `T` `deny_unknown_fields`, so that
    /// a misspelt field is named instead of ignored.
    pub fn input<T: DeserializeOwned>(&self) -> Result<T, JobError> {
        serde_json::from_str(self.input_json()).map_err(|e| JobError::input_invalid(e.to_string()))
    }

    /// The last checkpoint's name and bytes, from this attempt or an earlier one; none on a fresh start.
    pub fn last_checkpoint(&self) -> Option<(&str, &Bytes)> {
        self.job.checkpoint.as_ref().map(|c| (c.name.as_str(), &c.data))
    }

    /// Reports progress. While an earlier one has not been sent yet, this one takes its place.
    ///
    /// Shares outside 0 to 100 are clamped; numbers that are none count as unknown.
    pub async fn progress(&self, mut progress: Progress) {
        progress.percent = progress.percent.filter(|p| !p.is_nan()).map(|p| p.clamp(0.0, 100.0));
        progress.rate = progress.rate.filter(|r| r.is_finite() && *r >= 0.0);
        progress.message = limits::cut(progress.message, limits::MAX_TEXT_BYTES);
        progress.step_name = limits::cut(progress.step_name, limits::MAX_TEXT_BYTES);
        progress.unit = limits::cut(progress.unit, limits::MAX_NAME_BYTES);
        self.report(v1::report::Body::Progress(progress), None).await;
    }

    /// Says one line; `source` may be empty. Longer ones than 16 KiB are cut.
    pub async fn log(&self, level: LogLevel, source: &str, text: impl Into<String>) {
        let body = v1::report::Body::Log(v1::Log {
            level: level.into(),
            text: limits::cut(text.into(), limits::MAX_LOG_BYTES),
            source: limits::cut(source.to_owned(), limits::MAX_TEXT_BYTES),
        });
        self.report(body, None).await;
    }

    /// Says one line of the ordinary course.
    pub async fn info(&self, text: impl Into<String>) {
        self.log(LogLevel::Info, "", text).await;
    }

    /// Saves a point from which the job can resume, and returns once the engine has stored it.
    ///
    /// # Errors
    /// [`ReportError::Gone`] when the job is lost: then the point was not saved. [`ReportError::Rejected`] when it is
    /// larger than the engine takes, 64 KiB unless configured.
    pub async fn checkpoint(&self, name: &str, data: impl Into<Bytes>) -> Result<(), ReportError> {
        let data = data.into();
        let body = v1::report::Body::Checkpoint(v1::Checkpoint {
            name: limits::cut(name.to_owned(), limits::MAX_TEXT_BYTES),
            size: u32::try_from(data.len()).unwrap_or(u32::MAX),
            data,
        });
        self.report_and_wait(body).await
    }

    /// Publishes something of the job's own, such as a chart, and returns once the engine has stored it.
    ///
    /// # Errors
    /// As [`JobContext::checkpoint`]; also [`ReportError::Rejected`] for a name that is reserved or malformed.
    pub async fn custom(&self, name: &str, value: &Value) -> Result<(), ReportError> {
        self.custom_json(name, value.to_string()).await
    }

    /// [`JobContext::custom`] for a payload that is a JSON text already.
    ///
    /// # Errors
    /// As [`JobContext::custom`].
    pub async fn custom_json(&self, name: &str, json: String) -> Result<(), ReportError> {
        if !limits::is_custom_event_name(name) {
            return Err(ReportError::Rejected(format!("an event cannot be named {name:?}")));
        }
        self.report_and_wait(v1::report::Body::Custom(v1::Custom { name: name.to_owned(), json })).await
    }

    /// Resolves when the job is to stop; [`JobContext::stop_reason`] then says why and until when.
    pub async fn cancelled(&self) {
        self.stop.token.cancelled().await;
    }

    /// Whether the job is to stop.
    pub fn is_cancelled(&self) -> bool {
        self.stop.token.is_cancelled()
    }

    /// A token that is cancelled when the job is to stop, for blocking code and child tasks.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.token.child_token()
    }

    /// Why the job is to stop, and when it is cut off; none while it may go on.
    pub fn stop_reason(&self) -> Option<&StopReason> {
        self.stop.why.get()
    }

    async fn report_and_wait(&self, body: v1::report::Body) -> Result<(), ReportError> {
        let (reply, answer) = oneshot::channel();
        self.report(body, Some(reply)).await;
        // A dropped sender means that nobody will answer: the worker is gone.
        match answer.await.unwrap_or(Answer::Gone) {
            Answer::Stored => Ok(()),
            Answer::Gone => Err(ReportError::Gone),
            Answer::Rejected(message) => Err(ReportError::Rejected(message)),
        }
    }

    async fn report(&self, body: v1::report::Body, reply: Option<oneshot::Sender<Answer>>) {
        let cost = cost(&body).try_into().unwrap_or(u32::MAX);
        // The semaphore is never closed, and the channel only when the worker has ended: there is nobody to tell.
        let Ok(room) = self.window.clone().acquire_many_owned(cost).await else { return };
        let ticket = Ticket { _room: room, reply };
        let _ = self.commands.send(Command::Report { job: self.job.clone(), body, ticket }).await;
    }
}

impl fmt::Debug for JobContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the input: it may hold secrets.
        f.debug_struct("JobContext")
            .field("job_id", &self.job.job_id)
            .field("attempt", &self.job.attempt)
            .finish()
    }
}

/// A report's share of the window, in bytes.
fn cost(body: &v1::report::Body) -> usize {
    use v1::report::Body;
    let size = match body {
        Body::Progress(p) => p.message.len() + p.step_name.len(),
        Body::Log(l) => l.text.len() + l.source.len(),
        Body::Checkpoint(c) => c.data.len() + c.name.len(),
        Body::Custom(c) => c.json.len(),
        Body::Complete(_) | Body::Fail(_) | Body::Stopped(_) | Body::Released(_) => 0,
    };
    size.clamp(MIN_COST, WINDOW_BYTES)
}
