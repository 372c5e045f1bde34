//! A job as the engine stores it: what readers see, plus what only the engine may know.
//!
//! [`JobRecord`] is the opaque state that the store keeps with a job's log. It is a protobuf message, so that fields
//! can be added without rewriting what is stored. [`machine`] is the only code that changes one.

pub mod log_ring;
pub mod machine;

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tidegate_proto::v1::{Checkpoint, Job, JobState};

use crate::store::{Snapshot, StoreError};
use log_ring::LogRing;

/// A job's stored state.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JobRecord {
    /// The job as readers see it, current at `job.last_seq`.
    #[prost(message, required, tag = "1")]
    pub job: Job,
    /// The last checkpoint with its bytes, for the next attempt.
    #[prost(message, optional, tag = "2")]
    pub checkpoint: Option<Checkpoint>,
    /// The current lease, or the last one.
    #[prost(message, optional, tag = "3")]
    pub lease: Option<Lease>,
    /// How many attempts ended in a failure since the last manual retry.
    #[prost(uint32, tag = "4")]
    pub failures: u32,
    /// How often a worker vanished since the last manual retry.
    #[prost(uint32, tag = "5")]
    pub stalls: u32,
    /// How large the log is, so that it can be kept small.
    #[prost(message, required, tag = "6")]
    pub ring: LogRing,
    /// The W3C trace context of the span that submitted the job or gave it to a worker last; empty without traces.
    #[prost(string, tag = "7")]
    pub traceparent: String,
}

/// The right to report on a job.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Lease {
    /// The fencing token: the attempt and a random nonce. Compared on every report.
    #[prost(string, tag = "1")]
    pub token: String,
    /// The worker's name, for people.
    #[prost(string, tag = "2")]
    pub worker: String,
    /// The number of the last report stored under this lease.
    #[prost(uint64, tag = "3")]
    pub last_report: u64,
    /// The event that report became.
    #[prost(uint64, tag = "4")]
    pub last_report_seq: u64,
    /// When the lease began, in ms on the store's clock.
    #[prost(uint64, tag = "6")]
    pub began_ms: u64,
    /// When that report was stored; 0 before the first.
    #[prost(uint64, tag = "7")]
    pub last_report_ms: u64,
    /// Set when the lease ended; kept so that a repeated last report is recognised.
    #[prost(bool, tag = "5")]
    pub ended: bool,
}

impl JobRecord {
    /// Reads a record from a stored state. The input is the fixed part of it.
    pub fn decode_snapshot(snapshot: &Snapshot) -> Result<Self, StoreError> {
        let damaged = |e: &dyn std::fmt::Display| StoreError::Damaged(format!("a job's state: {e}"));
        let mut record = Self::decode(&snapshot.state[..]).map_err(|e| damaged(&e))?;
        record.job.input_json = String::from_utf8(snapshot.fixed.to_vec()).map_err(|e| damaged(&e))?;
        Ok(record)
    }

    /// The state to store: without the input, which never changes and so is written only once.
    pub fn encode_state(&self) -> Bytes {
        if self.job.input_json.is_empty() {
            return self.encode_to_vec().into();
        }
        Self { job: Job { input_json: String::new(), ..self.job.clone() }, ..self.clone() }
            .encode_to_vec()
            .into()
    }

    /// The state, never `Unspecified` in a record that this engine wrote.
    pub fn state(&self) -> JobState {
        self.job.state()
    }

    /// When the current attempt's timeout ends it, in ms on the store's clock.
    pub fn deadline_ms(&self) -> Option<u64> {
        let timeout = Duration::try_from(self.job.options.as_ref()?.timeout?).ok()?;
        Some(self.lease.as_ref()?.began_ms + u64::try_from(timeout.as_millis()).ok()?)
    }

    /// The lease's member in the index of leases: a renewal of one attempt never keeps another alive.
    pub fn lease_member(&self) -> String {
        format!("{}/{}", self.job.job_id, self.job.attempt)
    }
}

/// The names of the indexes and queues that the engine keeps.
pub mod index {
    use tidegate_proto::v1::JobOptions;

    /// The queue of jobs that wait for a worker, by kind.
    pub fn queue(kind: &str) -> String {
        format!("q/{kind}")
    }
    /// What every queue's name begins with.
    pub const QUEUE_PREFIX: &str = "q/";
    /// One owner's lane in a queue. Tenants contain no slash.
    pub fn lane(tenant: &str, owner: &str) -> String {
        format!("{tenant}/{owner}")
    }
    /// The gate of a concurrency key.
    pub fn gate(tenant: &str, key: &str) -> String {
        format!("{tenant}/{key}")
    }
    /// The gate of the jobs with these options; `None` if they have no concurrency key.
    pub fn gate_of(tenant: &str, options: &JobOptions) -> Option<String> {
        options.concurrency.as_ref().map(|concurrency| gate(tenant, &concurrency.key))
    }
    /// Leases `<job>/<attempt>`, due when they expire.
    pub const LEASES: &str = "lease";
    /// Jobs waiting for a time, due at that time.
    pub const SCHEDULED: &str = "scheduled";
    /// Jobs whose cancellation was asked for, due at the deadline.
    pub const CANCELS: &str = "cancel";
    /// Attempts `<job>/<attempt>` whose time may be over, due at the earliest moment when it can be.
    pub const ATTEMPTS: &str = "attempt";
    /// Schedules, due at their next instant, or soon while a firing is in hand.
    pub const FIRINGS: &str = "fire";
    /// One tenant's schedules, by the time they were made.
    pub fn schedules_of_tenant(tenant: &str) -> String {
        format!("schedules/{tenant}")
    }
    /// One owner's schedules, by the time they were made. Tenants contain no slash.
    pub fn schedules_of(tenant: &str, owner: &str) -> String {
        format!("schedules/{tenant}/{owner}")
    }
    /// Streams that are to be removed, due when their retention ends.
    pub const EXPIRIES: &str = "expire";
    /// All jobs, by the time they were accepted.
    pub const ALL_JOBS: &str = "jobs";
    /// One tenant's jobs, by the time they were accepted.
    pub fn jobs_of_tenant(tenant: &str) -> String {
        format!("jobs/{tenant}")
    }
    /// One owner's jobs, by the time they were accepted. Tenants contain no slash.
    pub fn jobs_of(tenant: &str, owner: &str) -> String {
        format!("jobs/{tenant}/{owner}")
    }
    /// Kinds of job, by the time a worker was last seen to offer them.
    pub const KINDS: &str = "kinds";
}
