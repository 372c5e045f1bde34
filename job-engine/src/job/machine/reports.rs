//! What a worker may say about a job it holds.
//!
//! A report counts only under the current lease's token, and only once: its number must be greater than the last
//! one stored. Once a cancellation was asked for, every report is answered so; logs are still stored, because what a
//! job says while it cleans up is worth keeping, everything else is not.
//!
//! That a report is well-formed and not too long was seen to before, see [`intake`](crate::intake).

use tidegate_proto::v1::{
    CancelRequested, Checkpoint, Completed, Failed, JobState, Log, LogLevel, event::Kind, job::Outcome,
    report::Body,
};

use super::{Draft, Refusal, duration};

/// What became of a report.
#[derive(Clone, Debug, PartialEq)]
pub enum Reported {
    /// It is in the log, as this event or merged with it.
    Stored(u64),
    /// The job is to be cancelled; 0 if the report was not stored.
    Cancelled(u64, CancelRequested),
}

impl Draft<'_> {
    /// Applies a report. `jitter` in 0.5..=1.0 spreads the pause before a next attempt.
    ///
    /// Errors: [`Refusal::LeaseLost`].
    pub fn report(
        &mut self,
        token: &str,
        number: u64,
        body: &Body,
        jitter: f64,
    ) -> Result<Reported, Refusal> {
        let lease = self.record.lease.as_ref().filter(|l| l.token == token).ok_or(Refusal::LeaseLost)?;
        if number <= lease.last_report {
            return Ok(Reported::Stored(lease.last_report_seq));
        }
        if lease.ended || self.record.state() != JobState::Processing {
            return Err(Refusal::LeaseLost);
        }
        let request = self.record.job.cancel_requested.clone();
        match (body, &request) {
            (Body::Log(log), _) => self.log(log),
            (Body::Progress(_) | Body::Checkpoint(_) | Body::Custom(_), Some(request)) => {
                return Ok(Reported::Cancelled(0, request.clone()));
            }
            (_, Some(request)) => self.end_cancelled(&request.by.clone(), &request.reason.clone()),
            (Body::Progress(progress), None) => {
                self.record.job.progress = Some(progress.clone());
                self.event(Kind::Progress(progress.clone()));
            }
            (Body::Checkpoint(checkpoint), None) => self.checkpoint(checkpoint),
            (Body::Custom(custom), None) => self.event(Kind::Custom(custom.clone())),
            (Body::Complete(done), None) => {
                let mut done: Completed = done.clone();
                if done.result_json.is_empty() {
                    done.result_json = "null".into();
                }
                self.end(JobState::Completed, Outcome::Completed(done.clone()), Kind::Complete(done));
            }
            (Body::Fail(failed), None) => self.fail(failed.clone(), jitter),
            (Body::Stopped(_), None) => self.give_back("the worker stopped"),
            (Body::Released(released), None) => {
                self.give_back(&format!("released by its worker: {}", released.reason));
            }
        }
        let (seq, now_ms) = (self.record.job.last_seq, self.now_ms);
        if let Some(lease) = &mut self.record.lease {
            (lease.last_report, lease.last_report_seq, lease.last_report_ms) = (number, seq, now_ms);
        }
        Ok(match request {
            Some(request) if !self.record.state().is_terminal() => Reported::Cancelled(seq, request),
            _ => Reported::Stored(seq),
        })
    }

    fn log(&mut self, log: &Log) {
        let level = if log.level() == LogLevel::Unspecified { LogLevel::Info } else { log.level() };
        self.event(Kind::Log(Log { level: level.into(), ..log.clone() }));
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) {
        let size = u32::try_from(checkpoint.data.len()).unwrap_or(u32::MAX);
        let saved = Checkpoint { size, ..checkpoint.clone() };
        self.record.job.checkpoint = Some(Checkpoint { data: Default::default(), ..saved.clone() });
        self.record.checkpoint = Some(saved.clone());
        self.event(Kind::Checkpoint(saved));
    }

    /// Ends the attempt; another one follows if the failure and the options allow it.
    pub(super) fn fail(&mut self, mut failed: Failed, jitter: f64) {
        if failed.code.is_empty() {
            failed.code = "failed".into();
        }
        self.record.failures += 1;
        let (options, failures) = (self.options(), self.record.failures);
        if !failed.retryable || failures >= options.max_attempts {
            self.end_failed(failed);
            return;
        }
        self.end_lease();
        self.leave_gate();
        self.note(
            LogLevel::Error,
            format!("attempt {} failed: {}: {}", self.record.job.attempt, failed.code, failed.message),
        );
        let doubled = duration(options.backoff).saturating_mul(1 << (failures - 1).min(20));
        let pause = doubled.min(duration(options.max_backoff)).mul_f64(jitter.clamp(0.5, 1.0));
        self.schedule(pause, &format!("attempt {} of {} follows", failures + 1, options.max_attempts));
    }

    pub(super) fn give_back(&mut self, reason: &str) {
        self.end_lease();
        self.enqueue(reason);
    }
}
