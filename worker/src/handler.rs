//! What a kind of job implements, and how it fails.

use futures_util::future::BoxFuture;
use serde_json::Value;

use crate::context::{JobContext, ReportError};

/// What a run of a job comes to.
pub type JobResult = Result<Value, JobError>;

/// Does one kind of work. One handler serves every job of its kind, several at once.
///
/// A handler should look at [`JobContext::cancelled`] wherever it waits: a job that ignores a cancellation beyond its
/// deadline is dropped at its next `await`. It need not clean up before it returns a failure, but whatever it holds
/// outside the process must be released by dropping its future.
pub trait JobHandler: Send + Sync + 'static {
    /// The kind and what callers are told about it.
    fn offer(&self) -> Offer;

    /// Runs one job to its end. A panic fails the job with the code `panic` and harms nothing else.
    fn run(&self, job: JobContext) -> BoxFuture<'_, JobResult>;
}

/// A kind of job, as callers see it at `GET /api/kinds`.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The kind's name: `[a-z][a-z0-9._-]{0,63}`.
    pub kind: String,
    /// What it does, in one sentence.
    pub description: String,
    /// A JSON Schema of the input.
    pub input_schema: Value,
    /// An example input.
    pub example: Value,
}

/// Why a job, or this attempt at it, did not reach its goal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// The attempt failed.
    #[error("{code}: {message}")]
    Failed {
        /// A short stable word for programs, such as `not_found`.
        code: String,
        /// What went wrong, in words for a person; cut at 1 KiB.
        message: String,
        /// Whether another attempt may succeed.
        retryable: bool,
    },
    /// The handler stopped because [`JobContext::cancelled`] told it to.
    #[error("stopped, as it was told")]
    Cancelled,
    /// The handler gives the job back unfinished; another worker goes on. Counts as no failure.
    #[error("given back: {0}")]
    Released(String),
}

impl JobError {
    /// A failure that another attempt would meet again.
    pub fn fatal(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Failed { code: code.into(), message: message.into(), retryable: false }
    }

    /// A failure that another attempt may not meet.
    pub fn retryable(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Failed { code: code.into(), message: message.into(), retryable: true }
    }

    /// The input is not what the kind takes.
    pub fn input_invalid(message: impl Into<String>) -> Self {
        Self::fatal("input_invalid", message)
    }
}

impl From<ReportError> for JobError {
    fn from(error: ReportError) -> Self {
        match error {
            ReportError::Gone => Self::Cancelled,
            ReportError::Rejected(message) => Self::fatal("report_rejected", message),
        }
    }
}
