//! What the engine's calls can answer instead of a result, and the one map to gRPC.
//!
//! Every status carries a `google.rpc.ErrorInfo` with a stable reason in the domain `tidegate`, so that callers
//! branch on words instead of parsing messages.

use std::collections::HashMap;

use tidegate_proto::v1::JobState;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{job::machine::Refusal, store::StoreError};

/// Why a call had no result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    /// A field of the request is wrong; every wrong field is named.
    #[error("{}", .0.iter().map(|(field, what)| format!("{field}: {what}")).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<(&'static str, String)>),
    /// No worker has ever offered this kind.
    #[error("no worker offers the kind {kind:?}; known kinds: {}", if .known.is_empty() { "none".into() } else { .known.join(", ") })]
    UnknownKind {
        /// The kind asked for.
        kind: String,
        /// The kinds that there are.
        known: Vec<String>,
    },
    /// The job does not exist, or is somebody else's: the two are not told apart.
    #[error("there is no such job")]
    NotFound,
    /// The schedule does not exist, or is somebody else's.
    #[error("there is no such schedule")]
    ScheduleNotFound,
    /// The id is not a UUID.
    #[error("a job id is a UUID in lower-case text")]
    MalformedJobId,
    /// The cursor is not of the form `<seq>-<epoch>`.
    #[error("{0}")]
    MalformedCursor(tidegate_proto::cursor::CursorError),
    /// The job's state does not allow it.
    #[error("the job is {}", .0.short_name())]
    State(JobState),
    /// The lease is somebody else's, or ended.
    #[error("the lease is lost")]
    LeaseLost,
    /// The idempotency key was used with another request.
    #[error("this idempotency key was used with another request")]
    IdempotencyConflict,
    /// The unique key belongs to an unfinished job of somebody else.
    #[error("another unfinished job has this unique key")]
    UniqueConflict,
    /// A bound is reached; the text says which.
    #[error("{0}")]
    Full(String),
    /// The log does not answer as it should.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The engine is going down; another one, or this one in a moment, will answer.
    #[error("the engine is draining")]
    Draining,
}

impl From<Refusal> for EngineError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::State(state) => Self::State(state),
            Refusal::LeaseLost => Self::LeaseLost,
            Refusal::Rejected(what) => Self::Invalid(vec![("report", what)]),
        }
    }
}

impl From<EngineError> for Status {
    fn from(error: EngineError) -> Self {
        let (code, reason) = match &error {
            EngineError::Invalid(_) => (Code::InvalidArgument, "INVALID_ARGUMENT"),
            EngineError::UnknownKind { .. } => (Code::InvalidArgument, "UNKNOWN_KIND"),
            EngineError::NotFound => (Code::NotFound, "JOB_NOT_FOUND"),
            EngineError::ScheduleNotFound => (Code::NotFound, "SCHEDULE_NOT_FOUND"),
            EngineError::MalformedJobId => (Code::InvalidArgument, "MALFORMED_JOB_ID"),
            EngineError::MalformedCursor(_) => (Code::InvalidArgument, "MALFORMED_CURSOR"),
            EngineError::State(_) => (Code::FailedPrecondition, "STATE_FORBIDS"),
            EngineError::LeaseLost => (Code::FailedPrecondition, "LEASE_LOST"),
            EngineError::IdempotencyConflict => (Code::AlreadyExists, "IDEMPOTENCY_CONFLICT"),
            EngineError::UniqueConflict => (Code::AlreadyExists, "UNIQUE_CONFLICT"),
            EngineError::Full(_) | EngineError::Store(StoreError::Full(_)) => {
                (Code::ResourceExhausted, "RESOURCE_EXHAUSTED")
            }
            EngineError::Store(StoreError::Unavailable(_)) => (Code::Unavailable, "STORE_UNAVAILABLE"),
            EngineError::Store(StoreError::Unconfirmed(_)) => (Code::Unavailable, "NOT_CONFIRMED"),
            EngineError::Store(StoreError::Unfit(_)) => (Code::Unavailable, "STORE_UNFIT"),
            EngineError::Store(StoreError::Damaged(_)) => (Code::Internal, "STORE_DAMAGED"),
            EngineError::Draining => (Code::Unavailable, "DRAINING"),
        };
        if matches!(code, Code::Internal) {
            tracing::error!(%error, "a call failed");
        }
        let mut metadata = HashMap::new();
        match &error {
            EngineError::UnknownKind { known, .. } => {
                metadata.insert("known".to_owned(), known.join(","));
            }
            EngineError::State(state) => {
                metadata.insert("state".to_owned(), state.short_name().to_owned());
            }
            _ => {}
        }
        let mut details = ErrorDetails::with_error_info(reason, "tidegate", metadata);
        if let EngineError::Invalid(fields) = &error {
            for (field, what) in fields {
                details.add_bad_request_violation(*field, what);
            }
        }
        Status::with_error_details(code, error.to_string(), details)
    }
}
