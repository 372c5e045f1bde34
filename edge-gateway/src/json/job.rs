//! A job and a kind of job as JSON; what is not known yet is left out.

use serde::Serialize;
use tidegate_proto::{
    cursor::Cursor,
    v1::{Job, KindOffer, job},
};
use utoipa::ToSchema;

use super::{CancelView, CheckpointView, Document, Measure, Number, state, state_schema, text, time};

/// A job. Times are RFC 3339 in UTC with milliseconds; what is not known yet is left out.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Job)]
pub(crate) struct JobView<'a> {
    #[schema(format = "uuid")]
    job_id: &'a str,
    kind: &'a str,
    #[schema(schema_with = state_schema)]
    status: &'static str,
    /// How many times a worker has begun with it.
    attempt: u32,
    tenant: &'a str,
    /// The subject that submitted it.
    owner: &'a str,
    /// What was submitted, key for key and digit for digit.
    #[schema(value_type = Value)]
    input: Document<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    updated_at: Option<String>,
    /// When the first attempt began.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    started_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    finished_at: Option<String>,
    /// The owner's schedule that submitted it, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<&'a str>,
    /// For which instant that schedule did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    scheduled_for: Option<String>,
    /// When a scheduled job is queued.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    run_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<ProgressView<'a>>,
    /// The last checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<CheckpointView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel_requested: Option<CancelView<'a>>,
    /// Of a completed job: what its worker returned; may be null.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    result: Option<Document<'a>>,
    /// Of a failed job.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorView<'a>>,
    /// Of a cancelled job.
    #[serde(skip_serializing_if = "Option::is_none")]
    cancelled: Option<CancelledView<'a>>,
    /// Where its log stands: a stream that begins here misses nothing that comes after this answer.
    cursor: String,
}

/// Why a job failed.
#[derive(Serialize, ToSchema)]
#[schema(as = JobError)]
struct ErrorView<'a> {
    /// For programs, such as `timeout`; chosen by the worker.
    code: &'a str,
    message: &'a str,
    /// Whether another attempt might succeed.
    retryable: bool,
}

/// Who cancelled a job, and why.
#[derive(Serialize, ToSchema)]
#[schema(as = JobCancelled)]
struct CancelledView<'a> {
    by: &'a str,
    reason: &'a str,
}

/// The last progress, without the keys that belong to the event around it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Progress)]
struct ProgressView<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<f64>, minimum = 0, maximum = 100)]
    percent: Option<Number>,
    #[serde(flatten)]
    measure: Measure<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
}

impl<'a> From<&'a Job> for JobView<'a> {
    fn from(job: &'a Job) -> Self {
        let (mut result, mut error, mut cancelled) = (None, None, None);
        match &job.outcome {
            Some(job::Outcome::Completed(c)) => result = Some(Document::new(&c.result_json)),
            Some(job::Outcome::Failed(f)) => {
                error = Some(ErrorView { code: &f.code, message: &f.message, retryable: f.retryable });
            }
            Some(job::Outcome::Cancelled(c)) => {
                cancelled = Some(CancelledView { by: &c.by, reason: &c.reason });
            }
            None => {}
        }
        Self {
            job_id: &job.job_id,
            kind: &job.kind,
            status: state(job.state),
            attempt: job.attempt,
            tenant: &job.tenant,
            owner: &job.owner,
            input: Document::new(&job.input_json),
            created_at: job.created_at.as_ref().map(time),
            updated_at: job.updated_at.as_ref().map(time),
            started_at: job.started_at.as_ref().map(time),
            finished_at: job.finished_at.as_ref().map(time),
            schedule: text(&job.schedule),
            scheduled_for: job.scheduled_for.as_ref().map(time),
            run_at: job.run_at.as_ref().map(time),
            progress: job.progress.as_ref().map(|progress| ProgressView {
                percent: progress.percent.map(Number),
                measure: progress.into(),
                message: text(&progress.message),
            }),
            checkpoint: job.checkpoint.as_ref().map(|c| CheckpointView { name: &c.name, size: c.size }),
            cancel_requested: job.cancel_requested.as_ref().map(CancelView::from),
            result,
            error,
            cancelled,
            cursor: Cursor::new(job.last_seq, job.epoch.as_str()).to_string(),
        }
    }
}

/// A kind of job on offer.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Kind)]
pub(crate) struct KindView<'a> {
    kind: &'a str,
    description: &'a str,
    /// A JSON Schema of its input, as its workers gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    input_schema: Option<Document<'a>>,
    /// An example of its input.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Value>)]
    example: Option<Document<'a>>,
    /// Whether a worker offers it now; a kind that was offered before is known still, and its jobs wait.
    live: bool,
}

impl<'a> From<&'a KindOffer> for KindView<'a> {
    fn from(offer: &'a KindOffer) -> Self {
        Self {
            kind: &offer.kind,
            description: &offer.description,
            input_schema: Document::present(&offer.input_schema_json),
            example: Document::present(&offer.example_json),
            live: offer.live,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_pass_through_as_they_were_given() {
        let job = Job {
            job_id: "0190".into(),
            input_json: r#"{"z":12345678901234567890,"a":1.50}"#.into(),
            outcome: Some(job::Outcome::Completed(tidegate_proto::v1::Completed {
                result_json: "nonsense".into(),
            })),
            ..Job::default()
        };
        let text = serde_json::to_string(&JobView::from(&job)).unwrap();
        assert!(text.contains(r#""input":{"z":12345678901234567890,"a":1.50}"#), "{text}");
        assert!(text.contains(r#""result":"nonsense""#), "{text}");
    }
}
