//! Where a job waits: in its owner's lane of a queue, at the gate of its concurrency key, or for a time.
//!
//! A job with a concurrency key is inside the gate from its turn in the queue until its attempt ends: it stays inside
//! while another worker is found for it, and leaves it when the attempt failed, even if another one follows.

use std::time::Duration;

use tidegate_proto::v1::{Concurrency, Failed, Job, JobState, StateChanged};

use super::{Draft, Refusal, as_millis, duration, index, timestamp};
use crate::store::{Gate, IndexChange, Place};

/// Why an attempt ends by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    Timeout,
    NoProgress,
}

impl Draft<'_> {
    /// Ends an attempt whose time is over, as a retryable failure; `jitter` as for [`Draft::report`]. If its time is
    /// not over, nothing happens, and the answer is how long it is to be left alone.
    pub fn attempt_due(&mut self, attempt: u32, jitter: f64) -> Result<Option<Duration>, Refusal> {
        self.require(JobState::Processing)?;
        if self.record.job.attempt != attempt || self.record.job.cancel_requested.is_some() {
            return Err(self.refuse());
        }
        let Some((left, limit)) = self.time_left() else { return Err(self.refuse()) };
        if !left.is_zero() {
            return Ok(Some(left));
        }
        let options = self.options();
        let (code, message) = match limit {
            Limit::Timeout => {
                ("timeout", format!("the attempt took longer than {:?}", duration(options.timeout)))
            }
            Limit::NoProgress => {
                let allowed = duration(options.progress_deadline);
                ("no_progress", format!("the attempt reported nothing for {allowed:?}"))
            }
        };
        self.fail(Failed { code: code.into(), message, retryable: true }, jitter);
        Ok(None)
    }

    /// How long the current attempt has at least, and what ends it then; `None` if nothing does.
    pub(super) fn time_left(&self) -> Option<(Duration, Limit)> {
        let (options, lease) = (self.record.job.options.as_ref()?, self.record.lease.as_ref()?);
        let left = |option: Option<prost_types::Duration>, from_ms: u64| {
            let end = from_ms.saturating_add(as_millis(duration(Some(option?))));
            Some(Duration::from_millis(end.saturating_sub(self.now_ms)))
        };
        let timeout = left(options.timeout, lease.began_ms).map(|left| (left, Limit::Timeout));
        let silence = left(options.progress_deadline, lease.began_ms.max(lease.last_report_ms));
        let silence = silence.map(|left| (left, Limit::NoProgress));
        timeout.into_iter().chain(silence).min_by_key(|(left, _)| *left)
    }

    /// The job's place in its queue.
    pub(super) fn place(&self) -> Place {
        let Job { kind, tenant, owner, job_id, options, .. } = &self.record.job;
        let priority = options.as_ref().map_or(0, |options| options.priority);
        Place {
            queue: index::queue(kind),
            lane: index::lane(tenant, owner),
            member: job_id.clone(),
            priority: i8::try_from(priority).unwrap_or(0),
        }
    }

    pub(super) fn enqueue(&mut self, reason: &str) {
        let (mut reason, mut gate) = (reason.to_owned(), None);
        if let Some(Concurrency { key, limit }) = &self.options().concurrency {
            let name = index::gate(&self.record.job.tenant, key);
            gate = Some(Gate { name, limit: *limit });
            let pause = if reason.is_empty() { "" } else { "; " };
            reason.push_str(&format!("{pause}at most {limit} at once for {key:?}"));
        }
        self.index.push(IndexChange::Enqueue { place: self.place(), gate });
        self.enter(JobState::Queued, StateChanged { reason, ..StateChanged::default() });
    }

    /// Makes room for another job of the same concurrency key.
    pub(super) fn leave_gate(&mut self) {
        let Job { tenant, owner, job_id, options, .. } = &self.record.job;
        if let Some(gate) = options.as_ref().and_then(|options| index::gate_of(tenant, options)) {
            let lane = index::lane(tenant, owner);
            self.index.push(IndexChange::Leave { gate, lane, member: job_id.clone() });
        }
    }

    pub(super) fn schedule(&mut self, delay: Duration, reason: &str) {
        self.put(index::SCHEDULED, self.record.job.job_id.clone(), delay);
        let run_at = Some(timestamp(self.now_ms + as_millis(delay)));
        self.record.job.run_at = run_at;
        let change = StateChanged { reason: reason.to_owned(), run_at, ..StateChanged::default() };
        self.enter(JobState::Scheduled, change);
    }
}
