//! The REST handlers: each one call to the engine.

use std::{convert::Infallible, fmt, num::NonZeroU32, str::FromStr};

use axum::{
    extract::{FromRequest, Path, Query, Request, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use prost_types::{Duration, Timestamp};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{error::Category, value::RawValue};
use tidegate_proto::{
    limits::MAX_INPUT_BYTES,
    v1::{
        CancelJobRequest, Concurrency, DeleteJobRequest, GetJobRequest, Job, JobOptions, JobState,
        ListJobsRequest, ListKindsRequest, RetryJobRequest, SubmitJobRequest,
    },
};
use tonic::Status;
use utoipa::{
    IntoParams, ToSchema,
    openapi::{
        ObjectBuilder, Required, SchemaFormat, Type,
        path::{Parameter, ParameterBuilder, ParameterIn},
    },
};
use uuid::Uuid;

use crate::{
    caller::{Anybody, Caller, Controller, May, Reader, Submitter},
    engine::Client,
    json::{JobView, KindView},
    openapi::{Problems, ProblemsOfJob},
    problem::Problem,
    routes::{App, MAX_BODY_BYTES},
};

/// A job id in its canonical text; anything else is refused before the engine is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct JobId(String);

impl JobId {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for JobId {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        // The parser also knows braces, URNs and bare hex: one spelling is enough.
        let uuid = Uuid::try_parse(text).ok().filter(|_| text.len() == 36);
        uuid.map(|uuid| Self(uuid.hyphenated().to_string())).ok_or(Problem::MalformedJobId)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl IntoParams for JobId {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let uuid = SchemaFormat::Custom("uuid".into());
        let schema = ObjectBuilder::new().schema_type(Type::String).format(Some(uuid));
        let parameter = ParameterBuilder::new().name("jobId").parameter_in(ParameterIn::Path);
        vec![parameter.required(Required::True).schema(Some(schema)).build()]
    }
}

/// A body, read within its limit.
pub(crate) struct Body(pub(crate) Result<Bytes, Problem>);

/// A job to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Submission {
    /// What kind of job: `GET /api/kinds` lists them.
    #[schema(pattern = "^[a-z][a-z0-9._-]{0,63}$")]
    kind: String,
    /// What the worker is given. Kept as text: 64-bit integers and the order of keys survive.
    #[serde(default)]
    #[schema(value_type = Option<Value>)]
    input: Option<Box<RawValue>>,
    #[serde(default)]
    options: Options,
}

/// When it runs, how often it is tried, and beside which others. Seconds may have a fraction.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Options {
    /// How long it waits before it is queued; 0 unless given.
    #[schema(value_type = Option<f64>, minimum = 0)]
    delay_seconds: Option<Seconds>,
    /// How many attempts may fail in all; 1 unless given.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 100)]
    max_attempts: Option<NonZeroU32>,
    /// The pause after the first failure, doubled after each further one; 1 unless given.
    #[schema(value_type = Option<f64>, minimum = 0)]
    backoff_seconds: Option<Seconds>,
    /// The longest pause; 300 unless given.
    #[schema(value_type = Option<f64>, minimum = 0)]
    max_backoff_seconds: Option<Seconds>,
    /// How often a worker may vanish with it; 3 unless given.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 100)]
    max_stalls: Option<NonZeroU32>,
    /// How long it is kept after its end, 60 at least; a week unless given.
    #[schema(value_type = Option<f64>, minimum = 60)]
    retention_seconds: Option<Seconds>,
    /// Orders an owner's own jobs of a kind: the higher starts first.
    #[serde(default)]
    #[schema(minimum = -100, maximum = 100)]
    priority: i32,
    /// Ends an attempt that takes longer, at most 30 days; none unless given.
    #[schema(value_type = Option<f64>, minimum = 1)]
    timeout_seconds: Option<Seconds>,
    /// Ends an attempt that reports nothing for so long, at most 30 days; none unless given.
    #[schema(value_type = Option<f64>, minimum = 1)]
    progress_deadline_seconds: Option<Seconds>,
    concurrency: Option<ConcurrencyKey>,
    /// One unfinished job at most has this key in the tenant.
    #[schema(max_length = 128)]
    unique_key: Option<String>,
    /// Starts at this time; instead of a delay.
    #[schema(value_type = Option<String>, format = DateTime)]
    run_at: Option<Moment>,
}

/// How many jobs with the same key run at once, in the whole tenant.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Concurrency)]
struct ConcurrencyKey {
    key: String,
    #[schema(minimum = 1, maximum = 1000)]
    limit: u32,
}

/// A time as RFC 3339 writes it, such as `2026-11-21T08:00:00Z`.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "String")]
struct Moment(Timestamp);

impl TryFrom<String> for Moment {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        text.parse().map(Self).map_err(|_| "a time is written like 2026-11-21T08:00:00Z (RFC 3339)")
    }
}

impl Options {
    fn proto(self) -> JobOptions {
        let seconds = |given: Option<Seconds>| given.and_then(Seconds::proto);
        JobOptions {
            delay: seconds(self.delay_seconds),
            max_attempts: self.max_attempts.map_or(0, NonZeroU32::get),
            backoff: seconds(self.backoff_seconds),
            max_backoff: seconds(self.max_backoff_seconds),
            max_stalls: self.max_stalls.map_or(0, NonZeroU32::get),
            retention: seconds(self.retention_seconds),
            priority: self.priority,
            timeout: seconds(self.timeout_seconds),
            progress_deadline: seconds(self.progress_deadline_seconds),
            concurrency: self.concurrency.map(|c| Concurrency { key: c.key, limit: c.limit }),
            unique_key: self.unique_key.unwrap_or_default(),
            run_at: self.run_at.map(|at| at.0),
        }
    }
}

/// Seconds, perhaps with a fraction; not negative, and at most a hundred years.
#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "f64")]
struct Seconds(std::time::Duration);

impl TryFrom<f64> for Seconds {
    type Error = &'static str;

    fn try_from(seconds: f64) -> Result<Self, &'static str> {
        const LONGEST: f64 = 100.0 * 365.0 * 86_400.0;
        if !(0.0..=LONGEST).contains(&seconds) {
            return Err("seconds must not be negative, nor more than a hundred years");
        }
        Ok(Self(std::time::Duration::from_secs_f64(seconds)))
    }
}

impl Seconds {
    fn proto(self) -> Option<Duration> {
        self.0.try_into().ok()
    }
}

/// Why a job is called off.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Cancellation {
    /// For people; the job's viewers see it.
    #[serde(default)]
    reason: String,
}

/// Filters and pages of a list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Listing {
    /// How many jobs a page has at most; the engine's choice unless given.
    #[serde(default)]
    limit: u32,
    /// `next` of the page before.
    #[serde(default)]
    cursor: String,
    /// State names, separated by commas.
    #[serde(default)]
    #[param(example = "QUEUED,PROCESSING")]
    status: String,
    /// Jobs of this kind only.
    #[serde(default)]
    kind: String,
}

/// A page of jobs, newest first.
#[derive(Serialize, ToSchema)]
#[schema(as = Jobs)]
struct Page<'a> {
    jobs: Vec<JobView<'a>>,
    /// The cursor of the next page; absent on the last.
    #[serde(skip_serializing_if = "str::is_empty")]
    next: &'a str,
}

/// The kinds of job on offer.
#[derive(Serialize, ToSchema)]
struct Kinds<'a> {
    kinds: Vec<KindView<'a>>,
}

/// Submit a job
///
/// The same `Idempotency-Key` with the same body answers with the job that it made, for as long as that job is kept.
/// Needs the scope `jobs:submit`.
#[utoipa::path(
    post, path = "/api/jobs", tag = "jobs", operation_id = "submitJob", request_body = Submission,
    params(("Idempotency-Key" = Option<String>, Header, description = "Makes it safe to send the request again")),
    responses(
        (status = 201, description = "The job was made", body = JobView<'_>, headers(("Location" = String))),
        (status = 200, description = "The job had been made before, by the same idempotency key", body = JobView<'_>),
        Problems,
    )
)]
pub(crate) async fn submit(
    State(app): State<App>,
    May(caller): Submitter,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let submission: Submission = parse(&body.0?)?;
    let input_json = submission.input.map_or_else(String::new, |raw| raw.get().to_owned());
    if input_json.len() > MAX_INPUT_BYTES {
        return Err(Problem::field("input", &format!("must not have more than {MAX_INPUT_BYTES} bytes")));
    }
    let key = headers.get("idempotency-key").map_or(Ok(""), HeaderValue::to_str);
    let idempotency_key = key.map_err(|_| Problem::field("Idempotency-Key", "must be printable ASCII"))?;
    let request = SubmitJobRequest {
        caller: caller.proto(),
        kind: submission.kind,
        input_json,
        options: Some(submission.options.proto()),
        idempotency_key: idempotency_key.to_owned(),
    };
    // Only the key makes it the same job when it is sent twice.
    let keyed = !request.idempotency_key.is_empty();
    let submit = |mut client: Client, r| async move { client.submit_job(r).await };
    let answer = if keyed {
        app.engine.call(request, submit).await
    } else {
        app.engine.call_once(request, submit).await
    }?;
    let job = present(answer.job)?;
    let status = if answer.created { StatusCode::CREATED } else { StatusCode::OK };
    let location =
        HeaderValue::from_str(&format!("/api/jobs/{}", job.job_id)).map_err(|_| Problem::Internal)?;
    Ok((status, [(header::LOCATION, location)], json(&JobView::from(&job))).into_response())
}

/// List one's jobs
///
/// Needs the scope `jobs:read`; with `jobs:admin`, the jobs of all subjects of one's tenant.
#[utoipa::path(
    get, path = "/api/jobs", tag = "jobs", operation_id = "listJobs", params(Listing),
    responses((status = 200, description = "A page", body = Page<'_>), Problems)
)]
pub(crate) async fn list(
    State(app): State<App>,
    May(caller): Reader,
    query: Result<Query<Listing>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(listing) = query.map_err(|e| Problem::invalid(&e.body_text()))?;
    let mut states = Vec::new();
    for name in listing.status.split(',').filter(|name| !name.is_empty()) {
        let state = JobState::from_short_name(name);
        let expected = "must be SCHEDULED, QUEUED, PROCESSING, COMPLETED, FAILED or CANCELLED";
        states.push(state.ok_or_else(|| Problem::field("status", expected))?.into());
    }
    let request = ListJobsRequest {
        caller: caller.proto(),
        page_size: listing.limit,
        page_token: listing.cursor,
        states,
        kind: listing.kind,
    };
    let answer = app.engine.call(request, |mut client, r| async move { client.list_jobs(r).await }).await?;
    let jobs = answer.jobs.iter().map(JobView::from).collect();
    Ok(json(&Page { jobs, next: &answer.next_page_token }))
}

/// Show a job
///
/// Needs the scope `jobs:read`.
#[utoipa::path(
    get, path = "/api/jobs/{jobId}", tag = "jobs", operation_id = "showJob", params(JobId),
    responses((status = 200, description = "The job", body = JobView<'_>), ProblemsOfJob)
)]
pub(crate) async fn show(
    State(app): State<App>,
    May(caller): Reader,
    Path(job_id): Path<String>,
) -> Result<Response, Problem> {
    snapshot(&app, &caller, &job_id.parse()?).await
}

/// Cancel a job
///
/// A waiting job ends at once; the worker of a running one is told to stop, and has until
/// `cancelRequested.deadline`. Needs the scope `jobs:control`.
#[utoipa::path(
    post, path = "/api/jobs/{jobId}/cancel", tag = "jobs", operation_id = "cancelJob", params(JobId),
    request_body = Option<Cancellation>,
    responses((status = 202, description = "The job as it is now", body = JobView<'_>), ProblemsOfJob)
)]
pub(crate) async fn cancel(
    State(app): State<App>,
    May(caller): Controller,
    Path(job_id): Path<String>,
    body: Body,
) -> Result<Response, Problem> {
    let job_id: JobId = job_id.parse()?;
    let body = body.0?;
    let Cancellation { reason } = if body.is_empty() { Cancellation::default() } else { parse(&body)? };
    let request = CancelJobRequest { caller: caller.proto(), job_id: job_id.to_string(), reason };
    let answer = app.engine.call(request, |mut client, r| async move { client.cancel_job(r).await }).await?;
    Ok((StatusCode::ACCEPTED, json(&JobView::from(&present(answer.job)?))).into_response())
}

/// Retry a failed or cancelled job
///
/// It is queued again, with its log and its checkpoint. Needs the scope `jobs:control`.
#[utoipa::path(
    post, path = "/api/jobs/{jobId}/retry", tag = "jobs", operation_id = "retryJob", params(JobId),
    responses((status = 202, description = "The job as it is now", body = JobView<'_>), ProblemsOfJob)
)]
pub(crate) async fn retry(
    State(app): State<App>,
    May(caller): Controller,
    Path(job_id): Path<String>,
) -> Result<Response, Problem> {
    let job_id: JobId = job_id.parse()?;
    let request = RetryJobRequest { caller: caller.proto(), job_id: job_id.to_string() };
    let answer =
        app.engine.call_once(request, |mut client, r| async move { client.retry_job(r).await }).await?;
    Ok((StatusCode::ACCEPTED, json(&JobView::from(&present(answer.job)?))).into_response())
}

/// Delete an ended job
///
/// With its log; its viewers are told. Needs the scope `jobs:control`.
#[utoipa::path(
    delete, path = "/api/jobs/{jobId}", tag = "jobs", operation_id = "deleteJob", params(JobId),
    responses((status = 204, description = "It is gone"), ProblemsOfJob)
)]
pub(crate) async fn delete(
    State(app): State<App>,
    May(caller): Controller,
    Path(job_id): Path<String>,
) -> Result<Response, Problem> {
    let job_id: JobId = job_id.parse()?;
    let request = DeleteJobRequest { caller: caller.proto(), job_id: job_id.to_string() };
    app.engine.call_once(request, |mut client, r| async move { client.delete_job(r).await }).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// List the kinds of job
///
/// Needs a credential, and no scope.
#[utoipa::path(
    get, path = "/api/kinds", tag = "jobs", operation_id = "listKinds",
    responses((status = 200, description = "What workers offer, with the schema of its input", body = Kinds<'_>), Problems)
)]
pub(crate) async fn kinds(State(app): State<App>, _: Anybody) -> Result<Response, Problem> {
    let request = ListKindsRequest {};
    let answer = app.engine.call(request, |mut client, r| async move { client.list_kinds(r).await }).await?;
    Ok(json(&Kinds { kinds: answer.kinds.iter().map(KindView::from).collect() }))
}

/// One job as JSON.
pub(crate) async fn snapshot(app: &App, caller: &Caller, job_id: &JobId) -> Result<Response, Problem> {
    Ok(json(&JobView::from(&get(app, caller, job_id).await?)))
}

/// One job.
pub(crate) async fn get(app: &App, caller: &Caller, job_id: &JobId) -> Result<Job, Problem> {
    let request = GetJobRequest { caller: caller.proto(), job_id: job_id.to_string() };
    let answer = app.engine.call(request, |mut client, r| async move { client.get_job(r).await }).await?;
    present(answer.job)
}

/// The job that an answer must carry.
fn present(job: Option<Job>) -> Result<Job, Problem> {
    job.ok_or_else(|| Status::internal("an answer without its job").into())
}

/// A JSON response that is not to be stored: jobs change.
pub(crate) fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
            (headers, body).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "a response could not be written as JSON");
            Problem::Internal.into_response()
        }
    }
}

/// How much of a body that is too large is read and thrown away: a client that is still sending when the connection is
/// closed may never see the answer.
const DISCARD_BYTES: usize = 8 * MAX_BODY_BYTES;

impl<S: Sync> FromRequest<S> for Body {
    type Rejection = Infallible;

    async fn from_request(request: Request, _: &S) -> Result<Self, Infallible> {
        let mut body = request.into_body().into_data_stream();
        let (mut bytes, mut total) = (BytesMut::new(), 0);
        while let Some(data) = body.next().await {
            let Ok(data) = data else {
                return Ok(Self(Err(Problem::invalid("the body could not be read"))));
            };
            total += data.len();
            if total <= MAX_BODY_BYTES {
                bytes.extend_from_slice(&data);
            } else if total > DISCARD_BYTES {
                break;
            }
        }
        let too_large = total > MAX_BODY_BYTES;
        Ok(Self(if too_large {
            Err(Problem::BodyTooLarge { limit: MAX_BODY_BYTES })
        } else {
            Ok(bytes.freeze())
        }))
    }
}

/// Parses a body; text that is no JSON is told apart from JSON that does not fit.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        let full = error.to_string();
        let message = full.rsplit_once(" at line").map_or(full.as_str(), |(message, _)| message);
        if error.classify() != Category::Data {
            return Problem::MalformedJson {
                message: message.into(),
                line: error.line(),
                column: error.column(),
            };
        }
        // Serde names the field between backticks when it is missing, unknown or doubled.
        match message.split('`').nth(1).filter(|_| message.contains(" field `")) {
            Some(field) => Problem::field(field, message),
            None => Problem::invalid(message),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_id_is_a_uuid_in_its_usual_spelling() {
        let id = "0190f1e2-0000-7000-8000-0000000000AB";
        assert_eq!(id.parse::<JobId>().unwrap().as_str(), id.to_ascii_lowercase());
        for bad in
            ["", "1", "0190f1e2000070008000000000000000", "{0190f1e2-0000-7000-8000-000000000000}", "../x"]
        {
            assert!(matches!(bad.parse::<JobId>(), Err(Problem::MalformedJobId)), "{bad:?}");
        }
    }

    #[test]
    fn every_option_reaches_the_engine() {
        let body = r#"{"kind":"a","options":{"delaySeconds":0.5,"maxAttempts":3,"backoffSeconds":2,"maxBackoffSeconds":9,
            "maxStalls":4,"retentionSeconds":60,"priority":-7,"timeoutSeconds":1.5,"progressDeadlineSeconds":10,
            "concurrency":{"key":"k","limit":2},"uniqueKey":"u","runAt":"2026-11-21T09:00:00.5+01:00"}}"#;
        let duration = |seconds, nanos| Some(Duration { seconds, nanos });
        let expected = JobOptions {
            delay: duration(0, 500_000_000),
            max_attempts: 3,
            backoff: duration(2, 0),
            max_backoff: duration(9, 0),
            max_stalls: 4,
            retention: duration(60, 0),
            priority: -7,
            timeout: duration(1, 500_000_000),
            progress_deadline: duration(10, 0),
            concurrency: Some(Concurrency { key: "k".into(), limit: 2 }),
            unique_key: "u".into(),
            run_at: Some(Timestamp { seconds: 1_795_248_000, nanos: 500_000_000 }),
        };
        assert_eq!(parse::<Submission>(body.as_bytes()).unwrap().options.proto(), expected);
    }

    #[test]
    fn bodies_are_parsed_strictly() {
        let kind = |body: &str| parse::<Submission>(body.as_bytes());
        let raw = kind(r#"{"kind":"a","input":{"n":18446744073709551615 , "a":1}}"#).unwrap().input.unwrap();
        assert_eq!(raw.get(), r#"{"n":18446744073709551615 , "a":1}"#);
        assert!(matches!(kind("{\n  \"kind\": }"), Err(Problem::MalformedJson { line: 2, column: 11, .. })));
        assert!(matches!(kind(""), Err(Problem::MalformedJson { .. })));
        assert!(matches!(kind("{\"kind\":\"a\"} x"), Err(Problem::MalformedJson { .. })));
        assert!(matches!(kind("\u{1}"), Err(Problem::MalformedJson { .. })));
        assert!(matches!(
            kind(&"[".repeat(10_000)),
            Err(Problem::MalformedJson { .. } | Problem::InvalidArgument { .. })
        ));
        for bad in [
            r#"{}"#,
            r#"{"kind":"a","more":1}"#,
            r#"{"kind":1}"#,
            r#"{"kind":"a","options":{"delaySeconds":-1}}"#,
            r#"{"kind":"a","options":{"delaySeconds":1e300}}"#,
            r#"{"kind":"a","options":{"maxAttempts":1.5}}"#,
            r#"{"kind":"a","options":{"maxAttempts":0}}"#,
            r#"{"kind":"a","options":{"priority":0.5}}"#,
            r#"{"kind":"a","options":{"concurrency":"key"}}"#,
            r#"{"kind":"a","options":{"concurrency":{"key":"k"}}}"#,
            r#"{"kind":"a","options":{"concurrency":{"key":"k","limit":-1}}}"#,
            r#"{"kind":"a","options":{"runAt":"tomorrow"}}"#,
            r#"{"kind":"a","options":{"runAt":1700000000}}"#,
        ] {
            assert!(matches!(kind(bad), Err(Problem::InvalidArgument { .. })), "{bad}");
        }
    }
}
