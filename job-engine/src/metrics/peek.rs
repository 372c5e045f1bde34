//! What counting needs of a commit: a look at its events and at its job, before the commit is given away.
//!
//! The messages here are those of the contract with only the fields that are counted: what is not named is skipped, not
//! copied, because every commit of every job comes by. A test of [`super`] notices when a field moves. Decides nothing:
//! what a step is counted as is said in [`super::Metrics::committed`].

use prost::Message as _;
use tidegate_proto::v1::JobState;

use crate::store::{Commit, Expect};

/// What counting needs of a commit, taken before the commit is given away.
pub struct Committed {
    pub(super) events: Vec<(Peek, u64)>,
    state: bytes::Bytes,
    /// Whether the commit made the job.
    pub(super) is_new: bool,
}

impl Committed {
    /// Nothing for a stream that is no job's: their names contain a slash.
    pub fn of(commit: &Commit) -> Option<Self> {
        if commit.stream.contains('/') {
            return None;
        }
        let peek = |data: &bytes::Bytes| (Peek::decode(&data[..]).unwrap_or_default(), data.len() as u64);
        Some(Self {
            events: commit.events.iter().map(peek).collect(),
            state: commit.state.clone(),
            is_new: matches!(commit.expect, Expect::Absent { .. }),
        })
    }

    /// The job as the commit leaves it.
    pub(super) fn job(&self) -> PeekJob {
        PeekRecord::decode(&self.state[..]).unwrap_or_default().job.unwrap_or_default()
    }
}

/// A step in the life of a job.
pub(super) enum Step {
    Started,
    Retried,
    Ended(usize),
}

impl Step {
    pub(super) fn of(event: &Peek, kind: &PeekKind) -> Option<Self> {
        Some(match kind {
            PeekKind::State(change) => match change.state() {
                JobState::Processing if change.cancel_requested.is_none() => Self::Started,
                JobState::Scheduled if event.attempt > 0 => Self::Retried,
                _ => return None,
            },
            PeekKind::Complete(_) => Self::Ended(0),
            PeekKind::Failed(_) => Self::Ended(1),
            PeekKind::Cancelled(_) => Self::Ended(2),
            _ => return None,
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Peek {
    #[prost(uint32, tag = "3")]
    attempt: u32,
    #[prost(oneof = "PeekKind", tags = "4, 5, 6, 7, 8, 9, 10, 11")]
    pub(super) kind: Option<PeekKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum PeekKind {
    #[prost(message, tag = "4")]
    State(PeekState),
    #[prost(message, tag = "5")]
    Progress(Skipped),
    #[prost(message, tag = "6")]
    Log(Skipped),
    #[prost(message, tag = "7")]
    Checkpoint(PeekCheckpoint),
    #[prost(message, tag = "8")]
    Custom(Skipped),
    #[prost(message, tag = "9")]
    Complete(Skipped),
    #[prost(message, tag = "10")]
    Failed(Skipped),
    #[prost(message, tag = "11")]
    Cancelled(Skipped),
}

impl PeekKind {
    /// The index in [`super::EVENTS`].
    pub(super) fn number(&self) -> usize {
        match self {
            Self::State(_) => 0,
            Self::Progress(_) => 1,
            Self::Log(_) => 2,
            Self::Checkpoint(_) => 3,
            Self::Custom(_) => 4,
            Self::Complete(_) => 5,
            Self::Failed(_) => 6,
            Self::Cancelled(_) => 7,
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PeekState {
    #[prost(enumeration = "JobState", tag = "1")]
    state: i32,
    #[prost(message, optional, tag = "4")]
    cancel_requested: Option<Skipped>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PeekCheckpoint {
    #[prost(uint32, tag = "2")]
    pub(super) size: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PeekRecord {
    #[prost(message, optional, tag = "1")]
    job: Option<PeekJob>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PeekJob {
    #[prost(string, tag = "2")]
    pub(super) kind: String,
    #[prost(message, optional, tag = "11")]
    pub(super) started_at: Option<prost_types::Timestamp>,
    #[prost(message, optional, tag = "12")]
    pub(super) finished_at: Option<prost_types::Timestamp>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Skipped {}
