//! What a worker may say about a job it holds.
//!
//! A report counts only under the current lease's token, and only once: its number must be greater than the last
//! one stored. Once a cancellation was asked for, every report is answered so; logs are still stored, because what a
//! job says while it cleans up is worth keeping, everything else is not.

use std::time::Duration;

use tidegate_proto::{
    limits::{self, cut},
    v1::{
        CancelRequested, Checkpoint, Completed, Failed, JobState, Log, LogLevel, Progress, event::Kind,
        job::Outcome, report::Body,
    },
};

use super::{Draft, Refusal};
use crate::submission::check_json;

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
    /// Errors: [`Refusal::LeaseLost`], or [`Refusal::Rejected`] with the rule that was broken.
    pub fn report(
        &mut self,
        token: &str,
        number: u64,
        body: &Body,
        jitter: f64,
    ) -> Result<Reported, Refusal> {
        let lease = self.record.lease.as_ref().filter(|l| l.token == token).ok_or(Refusal::LeaseLost)?;
        if number == 0 {
            return Err(Refusal::Rejected("reports are numbered from 1".into()));
        }
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
            (Body::Progress(progress), None) => self.progress(progress.clone()),
            (Body::Checkpoint(checkpoint), None) => self.checkpoint(checkpoint)?,
            (Body::Custom(custom), None) => {
                if !limits::is_custom_event_name(&custom.name) {
                    let name = cut(custom.name.clone(), limits::MAX_NAME_BYTES);
                    return Err(Refusal::Rejected(format!("{name:?} cannot name a custom event")));
                }
                json("custom event", &custom.json, self.rules.max_custom)?;
                self.event(Kind::Custom(custom.clone()));
            }
            (Body::Complete(done), None) => {
                let mut done: Completed = done.clone();
                if done.result_json.is_empty() {
                    done.result_json = "null".into();
                }
                json("result", &done.result_json, self.rules.max_result)?;
                self.end(JobState::Completed, Outcome::Completed(done.clone()), Kind::Complete(done));
            }
            (Body::Fail(failed), None) => self.fail(failed.clone(), jitter),
            (Body::Stopped(_), None) => self.give_back("the worker stopped"),
            (Body::Released(released), None) => {
                self.give_back(&cut(
                    format!("released by its worker: {}", released.reason),
                    limits::MAX_TEXT_BYTES,
                ));
            }
        }
        let seq = self.record.job.last_seq;
        if let Some(lease) = &mut self.record.lease {
            (lease.last_report, lease.last_report_seq) = (number, seq);
        }
        Ok(match request {
            Some(request) if !self.record.state().is_terminal() => Reported::Cancelled(seq, request),
            _ => Reported::Stored(seq),
        })
    }

    fn progress(&mut self, mut progress: Progress) {
        let finite = |x: f64| Some(x).filter(|x| x.is_finite());
        progress.percent = progress.percent.and_then(finite).map(|p| p.clamp(0.0, 100.0));
        progress.rate = progress.rate.and_then(finite).map(|r| r.max(0.0));
        progress.eta = progress.eta.filter(|eta| eta.seconds >= 0 && eta.nanos >= 0);
        for text in [&mut progress.message, &mut progress.step_name, &mut progress.unit] {
            *text = cut(std::mem::take(text), limits::MAX_TEXT_BYTES);
        }
        self.record.job.progress = Some(progress.clone());
        self.event(Kind::Progress(progress));
    }

    fn log(&mut self, log: &Log) {
        let level = if log.level() == LogLevel::Unspecified { LogLevel::Info } else { log.level() };
        self.event(Kind::Log(Log {
            level: level.into(),
            text: cut(log.text.clone(), limits::MAX_LOG_BYTES),
            source: cut(log.source.clone(), limits::MAX_NAME_BYTES),
        }));
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), Refusal> {
        let (len, max) = (checkpoint.data.len(), self.rules.max_checkpoint);
        if len > max {
            return Err(Refusal::Rejected(format!(
                "a checkpoint has at most {max} bytes, this one has {len}"
            )));
        }
        let saved = Checkpoint {
            name: cut(checkpoint.name.clone(), limits::MAX_TEXT_BYTES),
            size: u32::try_from(len).unwrap_or(u32::MAX),
            data: checkpoint.data.clone(),
        };
        self.record.job.checkpoint = Some(Checkpoint { data: Default::default(), ..saved.clone() });
        self.record.checkpoint = Some(saved.clone());
        self.event(Kind::Checkpoint(saved));
        Ok(())
    }

    fn fail(&mut self, failed: Failed, jitter: f64) {
        let failed = Failed {
            code: cut(
                if failed.code.is_empty() { "failed".into() } else { failed.code },
                limits::MAX_NAME_BYTES,
            ),
            message: cut(failed.message, limits::MAX_LOG_BYTES),
            retryable: failed.retryable,
        };
        self.record.failures += 1;
        let (options, failures) = (self.options(), self.record.failures);
        if !failed.retryable || failures >= options.max_attempts {
            self.end_failed(failed);
            return;
        }
        self.end_lease();
        self.note(
            LogLevel::Error,
            format!("attempt {} failed: {}: {}", self.record.job.attempt, failed.code, failed.message),
        );
        let duration =
            |d: Option<prost_types::Duration>| d.and_then(|d| Duration::try_from(d).ok()).unwrap_or_default();
        let doubled = duration(options.backoff).saturating_mul(1 << (failures - 1).min(20));
        let pause = doubled.min(duration(options.max_backoff)).mul_f64(jitter.clamp(0.5, 1.0));
        self.schedule(pause, &format!("attempt {} of {} follows", failures + 1, options.max_attempts));
    }

    pub(super) fn give_back(&mut self, reason: &str) {
        self.end_lease();
        self.enqueue(reason);
    }
}

fn json(what: &str, text: &str, max: usize) -> Result<(), Refusal> {
    if text.len() > max {
        return Err(Refusal::Rejected(format!(
            "a {what} has at most {max} bytes, this one has {}",
            text.len()
        )));
    }
    check_json(text).map_err(|wrong| Refusal::Rejected(format!("the {what} {wrong}")))
}
