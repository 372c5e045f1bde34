//! The state machine of a job: pure, and the only code that changes a [`JobRecord`].
//!
//! A [`Draft`] is a copy of a job on which commands are tried; it collects the events and index changes that make one
//! store commit. There is no I/O here, no clock (`now_ms` is given) and no randomness (tokens and jitter are given).
//!
//! ```text
//!             ┌──────────── due ───────────┐      ┌───────── lease lost, released ─────────┐
//!  submit ─► SCHEDULED ◄── retryable fail ─┼── PROCESSING ── complete ─► COMPLETED          │
//!     └────► QUEUED ◄──────────────────────┘      │  ▲ └──── fail ─────► FAILED ──┐         │
//!               └────────── assign ───────────────┼──┘                            ├ retry ─► QUEUED
//!               └── cancel ──► CANCELLED ◄─ cancel, then stopped | deadline | lease lost ──┘
//! ```
//!
//! Invariants, property-tested below: events are dense; a terminal event is the last one until a retry; after a
//! cancellation was accepted a job never completes, fails or runs again by itself; a job is in exactly the indexes
//! that its state asks for; a report counts only under the current lease's token, and only once.

mod loss;
mod reports;
mod rules;
#[cfg(test)]
mod tests;
mod waiting;

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tidegate_proto::{
    limits::{self, cut},
    v1::{
        CancelRequested, Cancelled, Event, Failed, Job, JobOptions, JobState, Log, LogLevel, StateChanged,
        event::Kind, job::Outcome,
    },
};

use super::{JobRecord, Lease, index, log_ring::LogRing};
use crate::store::{Commit, Expect, Head, IndexChange};

pub use reports::Reported;
pub use rules::Rules;

/// Why a command was not carried out. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The job's state does not allow it.
    #[error("the job is {}", .0.short_name())]
    State(JobState),
    /// The lease is not the caller's (any more).
    #[error("the lease is lost")]
    LeaseLost,
    /// A rule was broken; the text says which.
    #[error("{0}")]
    Rejected(String),
}

/// A job to be accepted; its parts were checked before.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// UUID v7 text.
    pub job_id: String,
    /// The log's token.
    pub epoch: String,
    /// The kind of work.
    pub kind: String,
    /// The owner's tenant.
    pub tenant: String,
    /// The owner.
    pub owner: String,
    /// The input, a JSON text.
    pub input_json: String,
    /// The options with every default filled in.
    pub options: JobOptions,
}

/// A job on which commands are tried, and what has to be committed if they are to stand.
pub struct Draft<'r> {
    /// The job as it would be.
    pub record: JobRecord,
    rules: &'r Rules,
    now_ms: u64,
    expect: Expect,
    first_seq: u64,
    events: Vec<Bytes>,
    index: Vec<IndexChange>,
}

impl<'r> Draft<'r> {
    /// A new job.
    pub fn submit(new: NewJob, rules: &'r Rules, now_ms: u64) -> Self {
        let delay = match new.options.run_at {
            Some(at) => Duration::from_millis(millis(at).saturating_sub(now_ms)),
            None => duration(new.options.delay),
        };
        let time = timestamp(now_ms);
        let fixed = new.input_json.clone().into();
        let expect = Expect::Absent { epoch: new.epoch.clone(), fixed };
        let job = Job {
            job_id: new.job_id,
            kind: new.kind,
            tenant: new.tenant,
            owner: new.owner,
            input_json: new.input_json,
            options: Some(new.options),
            created_at: Some(time),
            first_seq: 1,
            epoch: new.epoch,
            ..Job::default()
        };
        let record = JobRecord { job, ring: LogRing::default(), ..JobRecord::default() };
        let mut draft =
            Draft { record, rules, now_ms, expect, first_seq: 1, events: Vec::new(), index: Vec::new() };
        draft.list();
        if delay.is_zero() {
            draft.enqueue("");
        } else {
            draft.schedule(delay, "");
        }
        draft
    }

    /// An existing job at `head`.
    pub fn of(record: JobRecord, head: Head, rules: &'r Rules, now_ms: u64) -> Self {
        // Time never runs backwards within a log, whatever the clocks do.
        let now_ms = now_ms.max(record.job.updated_at.map_or(0, millis));
        let first_seq = record.job.first_seq;
        Draft {
            record,
            rules,
            now_ms,
            expect: Expect::At(head),
            first_seq,
            events: Vec::new(),
            index: Vec::new(),
        }
    }

    /// Whether nothing happened, so that there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// What has to be committed.
    pub fn commit(&self) -> Commit {
        Commit {
            stream: self.record.job.job_id.clone(),
            expect: self.expect.clone(),
            state: self.record.encode_state(),
            events: self.events.clone(),
            first_seq: if self.record.job.first_seq > self.first_seq { self.record.job.first_seq } else { 0 },
            index: self.index.clone(),
        }
    }

    // === commands ===

    /// Gives a queued job to a worker under a fresh token.
    pub fn assign(&mut self, worker: &str, nonce: &str) -> Result<(), Refusal> {
        self.require(JobState::Queued)?;
        let job = &mut self.record.job;
        job.attempt += 1;
        job.started_at.get_or_insert(timestamp(self.now_ms));
        let token = format!("{}-{nonce}", job.attempt);
        let began_ms = self.now_ms;
        self.record.lease = Some(Lease { token, worker: worker.to_owned(), began_ms, ..Lease::default() });
        self.index.push(IndexChange::Dequeue { place: self.place() });
        self.put(index::LEASES, self.record.lease_member(), self.rules.lease);
        if let Some(left) = self.time_left() {
            self.put(index::ATTEMPTS, self.record.lease_member(), left.0);
        }
        self.enter(JobState::Processing, StateChanged::default());
        Ok(())
    }

    /// Calls the job off: at once if no worker holds it, else by asking the worker.
    ///
    /// Asking twice is no error; the first deadline stands.
    pub fn cancel(&mut self, by: &str, reason: &str) -> Result<(), Refusal> {
        match self.record.state() {
            JobState::Cancelled => Ok(()),
            JobState::Processing if self.record.job.cancel_requested.is_some() => Ok(()),
            JobState::Processing => {
                let grace = self.rules.cancel_grace;
                let request = CancelRequested {
                    by: by.to_owned(),
                    reason: cut(reason.to_owned(), limits::MAX_TEXT_BYTES),
                    deadline: Some(timestamp(self.now_ms + as_millis(grace))),
                };
                self.record.job.cancel_requested = Some(request.clone());
                self.put(index::CANCELS, self.record.job.job_id.clone(), grace);
                // From here on the cancellation's deadline counts.
                if self.time_left().is_some() {
                    self.remove(index::ATTEMPTS, self.record.lease_member());
                }
                let change = StateChanged { cancel_requested: Some(request), ..StateChanged::default() };
                self.enter(JobState::Processing, change);
                Ok(())
            }
            JobState::Scheduled | JobState::Queued => {
                self.end_cancelled(by, reason);
                Ok(())
            }
            state => Err(Refusal::State(state)),
        }
    }

    /// Cuts off a worker that did not obey a cancellation by its deadline.
    pub fn cancel_due(&mut self) -> Result<(), Refusal> {
        self.require(JobState::Processing)?;
        let Some(request) = self.record.job.cancel_requested.clone() else { return Err(self.refuse()) };
        self.end_cancelled(&request.by, &request.reason);
        Ok(())
    }

    /// Takes the job from a worker that gave no sign of life during its lease.
    pub fn lease_expired(&mut self, attempt: u32) -> Result<(), Refusal> {
        self.require(JobState::Processing)?;
        if self.record.job.attempt != attempt {
            return Err(self.refuse());
        }
        self.end_lease();
        if let Some(request) = self.record.job.cancel_requested.clone() {
            self.end_cancelled(&request.by, &request.reason);
            return Ok(());
        }
        self.record.stalls += 1;
        let allowed = self.options().max_stalls;
        let worker = self.record.lease.as_ref().map_or("", |l| l.worker.as_str());
        let lost = cut(format!("worker {worker:?} gave no sign of life"), limits::MAX_TEXT_BYTES);
        if self.record.stalls > allowed {
            let message = format!("{lost}; {} times in all, {allowed} are allowed", self.record.stalls);
            self.end_failed(Failed { code: "stalled".into(), message, retryable: false });
        } else {
            self.enqueue(&lost);
        }
        Ok(())
    }

    /// Queues the job again because its worker left before it heard of it.
    pub fn unassign(&mut self, token: &str) -> Result<(), Refusal> {
        match &self.record.lease {
            Some(lease) if lease.token == token && !lease.ended && lease.last_report == 0 => {
                match self.record.job.cancel_requested.clone() {
                    Some(request) => self.end_cancelled(&request.by, &request.reason),
                    None => self.give_back("the worker left"),
                }
                Ok(())
            }
            _ => Err(Refusal::LeaseLost),
        }
    }

    /// Queues a job whose time has come.
    pub fn due(&mut self) -> Result<(), Refusal> {
        self.require(JobState::Scheduled)?;
        self.remove(index::SCHEDULED, self.record.job.job_id.clone());
        self.record.job.run_at = None;
        self.enqueue("");
        Ok(())
    }

    /// Queues a finished job again, on request; its log and its attempts go on.
    pub fn retry(&mut self, by: &str) -> Result<(), Refusal> {
        match self.record.state() {
            JobState::Failed | JobState::Cancelled => {}
            state => return Err(Refusal::State(state)),
        }
        self.remove(index::EXPIRIES, self.record.job.job_id.clone());
        let record = &mut self.record;
        (record.failures, record.stalls) = (0, 0);
        record.job.cancel_requested = None;
        record.job.outcome = None;
        record.job.finished_at = None;
        self.enqueue(&format!("retried by {by}"));
        Ok(())
    }

    // === steps that commands share ===

    fn require(&self, state: JobState) -> Result<(), Refusal> {
        if self.record.state() == state { Ok(()) } else { Err(self.refuse()) }
    }

    fn refuse(&self) -> Refusal {
        Refusal::State(self.record.state())
    }

    fn options(&self) -> JobOptions {
        self.record.job.options.clone().unwrap_or_default()
    }

    /// Puts a new job into the lists that it stays in for as long as it exists.
    fn list(&mut self) {
        let Job { job_id, tenant, owner, .. } = &self.record.job;
        let id = job_id.clone();
        let lists =
            [index::ALL_JOBS.to_owned(), index::jobs_of_tenant(tenant), index::jobs_of(tenant, owner)];
        for list in lists {
            self.put(list, id.clone(), Duration::ZERO);
        }
    }

    fn enter(&mut self, state: JobState, mut change: StateChanged) {
        self.record.job.set_state(state);
        change.set_state(state);
        self.event(Kind::State(change));
    }

    /// Ends the current lease; its token stays, so that a repeated last report is recognised.
    fn end_lease(&mut self) {
        if let Some(lease) = self.record.lease.as_mut().filter(|l| !l.ended) {
            lease.ended = true;
            self.remove(index::LEASES, self.record.lease_member());
            if self.time_left().is_some() {
                self.remove(index::ATTEMPTS, self.record.lease_member());
            }
        }
    }

    fn end_failed(&mut self, failed: Failed) {
        self.end(JobState::Failed, Outcome::Failed(failed.clone()), Kind::Failed(failed));
    }

    fn end_cancelled(&mut self, by: &str, reason: &str) {
        let cancelled =
            Cancelled { by: by.to_owned(), reason: cut(reason.to_owned(), limits::MAX_TEXT_BYTES) };
        self.end(JobState::Cancelled, Outcome::Cancelled(cancelled.clone()), Kind::Cancelled(cancelled));
    }

    fn end(&mut self, state: JobState, outcome: Outcome, kind: Kind) {
        let id = self.record.job.job_id.clone();
        match self.record.state() {
            JobState::Queued => self.index.push(IndexChange::Dequeue { place: self.place() }),
            JobState::Scheduled => self.remove(index::SCHEDULED, id.clone()),
            _ => self.end_lease(),
        }
        self.leave_gate();
        if self.record.job.cancel_requested.is_some() {
            self.remove(index::CANCELS, id.clone());
        }
        self.put(index::EXPIRIES, id, duration(self.options().retention));
        let job = &mut self.record.job;
        job.set_state(state);
        job.outcome = Some(outcome);
        job.finished_at = Some(timestamp(self.now_ms));
        job.run_at = None;
        self.event(kind);
    }

    fn note(&mut self, level: LogLevel, text: String) {
        let text = cut(text, limits::MAX_LOG_BYTES);
        self.event(Kind::Log(Log { level: level.into(), text, source: "tidegate".into() }));
    }

    /// Appends an event; every change of a record comes with one, so that the head's number is its version.
    fn event(&mut self, kind: Kind) {
        let job = &mut self.record.job;
        job.last_seq += 1;
        job.updated_at = Some(timestamp(self.now_ms));
        let event = Event { seq: job.last_seq, time: job.updated_at, attempt: job.attempt, kind: Some(kind) };
        let data: Bytes = event.encode_to_vec().into();
        job.first_seq = self.record.ring.push(event.seq, data.len() as u64, self.rules.log);
        self.events.push(data);
    }

    fn put(&mut self, index: impl Into<String>, member: String, after: Duration) {
        self.index.push(IndexChange::Put { index: index.into(), member, after });
    }

    fn remove(&mut self, index: impl Into<String>, member: String) {
        self.index.push(IndexChange::Remove { index: index.into(), member });
    }
}

/// A time in ms since the Unix epoch as a protobuf timestamp.
pub fn timestamp(ms: u64) -> prost_types::Timestamp {
    let (seconds, millis) = (ms / 1000, ms % 1000);
    prost_types::Timestamp {
        seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
        nanos: i32::try_from(millis * 1_000_000).unwrap_or(0),
    }
}

/// The inverse of [`timestamp`], for times after 1970.
pub fn millis(t: prost_types::Timestamp) -> u64 {
    u64::try_from(t.seconds).unwrap_or(0) * 1000 + u64::try_from(t.nanos / 1_000_000).unwrap_or(0)
}

/// An option's duration; unset is zero, as is what cannot be one.
fn duration(option: Option<prost_types::Duration>) -> Duration {
    option.and_then(|d| Duration::try_from(d).ok()).unwrap_or_default()
}

fn as_millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX >> 12)
}
