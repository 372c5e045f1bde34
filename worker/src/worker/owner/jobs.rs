//! The owner's running jobs: begun, reported on, told to stop, ended.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt as _;
use tidegate_proto::{
    limits,
    v1::{self, report::Body},
};
use tidegate_telemetry::trace;
use tokio::time::{Duration, Instant};
use tracing::{Instrument as _, field::Empty};

use super::{LEAVING, Owner, Phase, Running, line};
use crate::{
    JobContext, JobError, StopReason,
    context::{Answer, Command, Outcome, Stop, Ticket},
    metrics::Ending,
    session::Effect,
};

/// How long a job may take to obey a cancellation when the engine does not say.
const DEFAULT_CANCEL_TIME: Duration = Duration::from_secs(30);
/// The deadline is a time of the engine's clock. With a skewed clock of ours it may seem to have passed: the job gets
/// this long all the same, and the engine enforces the true one.
const LEAST_CANCEL_TIME: Duration = Duration::from_secs(2);

impl Owner {
    pub(super) fn assigned(&mut self, assignment: v1::Assignment) {
        let Some(effects) = self.session.assign(&assignment.job_id, &assignment.lease_token) else { return };
        self.apply(effects);
        let working = matches!(self.phase, Phase::Working);
        let taken = if working { self.jobs.len() } else { self.unstarted.len() };
        if taken >= self.plan.capacity as usize {
            self.end(
                &assignment.job_id,
                &assignment.lease_token,
                released("every slot of the worker is taken"),
            );
            return;
        }
        if !working {
            self.unstarted.push(assignment);
            return;
        }
        let Some(handler) = self.plan.handlers.get(&assignment.kind).cloned() else {
            let error =
                JobError::fatal("unknown_kind", format!("this worker does not run {:?}", assignment.kind));
            self.end(&assignment.job_id, &assignment.lease_token, failure(error));
            return;
        };
        tracing::info!(
            job = assignment.job_id,
            kind = assignment.kind,
            attempt = assignment.attempt,
            "job begins"
        );
        let (job, stop) = (Arc::new(assignment), Arc::new(Stop::default()));
        let context = JobContext::new(job.clone(), stop.clone(), self.commands.clone());
        let (commands, finished) = (self.commands.clone(), job.clone());
        let span = tracing::info_span!(
            target: trace::TARGET, "run", otel.kind = "consumer", otel.status_code = Empty, job = job.job_id,
            kind = job.kind, attempt = job.attempt
        );
        let span = trace::child_of(span, &job.traceparent);
        let task = self.tasks.spawn(async move {
            let run = AssertUnwindSafe(async { handler.run(context).await }).catch_unwind();
            let outcome = match run.instrument(span.clone()).await {
                Ok(result) => Outcome::Returned(result),
                Err(panic) => Outcome::Panicked(panic_text(&*panic)),
            };
            if !matches!(outcome, Outcome::Returned(Ok(_))) {
                span.record("otel.status_code", "ERROR");
            }
            drop(span); // it ends before the engine hears of it
            // The owner outlives its tasks.
            let _ = commands.send(Command::Finished { job: finished, outcome }).await;
        });
        let (token, counted) = (job.lease_token.clone(), self.plan.metrics.begins(&job.kind));
        let running = Running { token, task, stop, counted, cancelled: false, abort_at: None };
        self.jobs.insert(job.job_id.clone(), running);
    }

    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Report { job, body, ticket } => self.report(&job, body, ticket),
            Command::Finished { job, outcome } => self.finished(&job, outcome),
        }
    }

    fn report(&mut self, job: &v1::Assignment, body: Body, ticket: Ticket) {
        let refusal = match &body {
            Body::Checkpoint(c) => too_large("a checkpoint", c.data.len(), self.limits.checkpoint),
            Body::Custom(c) => too_large("a custom event", c.json.len(), self.limits.custom),
            _ => None,
        };
        if let Some(refusal) = refusal {
            ticket.answer(Answer::Rejected(refusal));
            return;
        }
        match self.session.push(&job.job_id, &job.lease_token, body, Some(ticket)) {
            Ok(superseded) => drop(superseded),
            Err(ticket) => {
                if let Some(ticket) = ticket {
                    ticket.answer(Answer::Gone);
                }
            }
        }
    }

    fn finished(&mut self, job: &v1::Assignment, outcome: Outcome) {
        let ours = self.jobs.get(&job.job_id).is_some_and(|running| running.token == job.lease_token);
        if !ours {
            return;
        }
        let Some(running) = self.jobs.remove(&job.job_id) else { return };
        let told = running.stop.is_told();
        let body = match outcome {
            _ if running.cancelled => Body::Stopped(v1::Stopped {}),
            Outcome::Returned(Ok(value)) => self.completed(&value),
            // Told to make room, a job may fail in any way: that says nothing about the job.
            _ if told => released(LEAVING),
            Outcome::Returned(Err(JobError::Released(reason))) => released(&reason),
            Outcome::Returned(Err(JobError::Cancelled)) => {
                failure(JobError::fatal("stopped", "the handler stopped although nobody told it to"))
            }
            Outcome::Returned(Err(error)) => failure(error),
            Outcome::Panicked(text) => {
                failure(JobError::fatal("panic", format!("the handler panicked: {text}")))
            }
        };
        let ending = ending(&body);
        tracing::info!(job = job.job_id, end = ending.name(), "job ends");
        running.counted.ended(ending);
        self.end(&job.job_id, &job.lease_token, body);
    }

    fn completed(&self, value: &serde_json::Value) -> Body {
        let result_json = value.to_string();
        match too_large("the result", result_json.len(), self.limits.result) {
            None => Body::Complete(v1::Completed { result_json }),
            Some(refusal) => failure(JobError::fatal("result_too_large", refusal)),
        }
    }

    /// Queues the report that ends a job.
    pub(super) fn end(&mut self, job_id: &str, token: &str, body: Body) {
        // It fails only when the lease is gone, and then there is nothing to end.
        let _ = self.session.push(job_id, token, body, None);
    }

    pub(super) fn apply(&mut self, effects: Vec<Effect<Ticket>>) {
        for effect in effects {
            match effect {
                Effect::Answered { tag, answer } => tag.answer(answer),
                Effect::Cancel { job_id, request } => self.cancel(&job_id, request),
                Effect::Lost { job_id, reason } => {
                    self.unstarted.retain(|a| a.job_id != job_id);
                    if let Some(running) = self.jobs.remove(&job_id) {
                        tracing::warn!(job = job_id, reason, "lease lost, job dropped");
                        running.task.abort();
                        running.counted.ended(Ending::Lost);
                    }
                }
                Effect::Ended { job_id } => tracing::debug!(job = job_id, "lease returned"),
            }
        }
    }

    pub(super) fn cancel(&mut self, job_id: &str, request: v1::CancelRequested) {
        if let Some(at) = self.unstarted.iter().position(|a| a.job_id == job_id) {
            let assignment = self.unstarted.remove(at);
            self.end(job_id, &assignment.lease_token, Body::Stopped(v1::Stopped {}));
        }
        let Some(running) = self.jobs.get_mut(job_id).filter(|running| !running.cancelled) else { return };
        running.cancelled = true;
        let left =
            request.deadline.and_then(line::until).unwrap_or(DEFAULT_CANCEL_TIME).max(LEAST_CANCEL_TIME);
        let deadline = Instant::now() + left;
        running.abort_at = Some(deadline);
        tracing::info!(job = job_id, by = request.by, reason = request.reason, "job is called off");
        running.stop.tell(StopReason::Cancelled { by: request.by, reason: request.reason, deadline });
    }

    /// Drops the jobs that ignored their cancellation; their slots are free again.
    pub(super) fn abort_overdue(&mut self, now: Instant) {
        let overdue = self.jobs.iter().filter(|(_, running)| running.abort_at.is_some_and(|at| at <= now));
        let overdue: Vec<_> = overdue.map(|(job_id, _)| job_id.clone()).collect();
        for job_id in overdue {
            let Some(running) = self.jobs.remove(&job_id) else { continue };
            tracing::warn!(job = job_id, "job ignored its cancellation and is dropped");
            running.task.abort();
            running.counted.ended(Ending::Cancelled);
            self.end(&job_id, &running.token, Body::Stopped(v1::Stopped {}));
        }
    }
}

pub(super) fn released(reason: &str) -> Body {
    Body::Released(v1::Released { reason: limits::cut(reason.to_owned(), limits::MAX_TEXT_BYTES) })
}

fn failure(error: JobError) -> Body {
    let (code, message, retryable) = match error {
        JobError::Failed { code, message, retryable } => (code, message, retryable),
        JobError::Cancelled | JobError::Released(_) => ("stopped".to_owned(), error.to_string(), true),
    };
    Body::Fail(v1::Failed {
        code: limits::cut(code, limits::MAX_NAME_BYTES),
        message: limits::cut(message, limits::MAX_TEXT_BYTES),
        retryable,
    })
}

fn ending(body: &Body) -> Ending {
    match body {
        Body::Complete(_) => Ending::Completed,
        Body::Fail(_) => Ending::Failed,
        Body::Stopped(_) => Ending::Cancelled,
        _ => Ending::Released,
    }
}

fn too_large(what: &str, size: usize, limit: usize) -> Option<String> {
    (size > limit).then(|| format!("{what} has {size} bytes; the engine takes {limit}"))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}
