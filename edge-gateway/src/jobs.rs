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
use uuid::Uuid;

use crate::{
    caller::{Anybody, Caller, Controller, May, Reader, Submitter},
    engine::Client,
    json::{JobView, KindView},
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

/// A body, read within its limit.
pub(crate) struct Body(pub(crate) Result<Bytes, Problem>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Submission {
    kind: String,
    /// Kept as text: 64-bit integers and the order of keys survive.
    #[serde(default)]
    input: Option<Box<RawValue>>,
    #[serde(default)]
    options: Options,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Options {
    delay_seconds: Option<Seconds>,
    max_attempts: Option<NonZeroU32>,
    backoff_seconds: Option<Seconds>,
    max_backoff_seconds: Option<Seconds>,
    max_stalls: Option<NonZeroU32>,
    retention_seconds: Option<Seconds>,
    #[serde(default)]
    priority: i32,
    timeout_seconds: Option<Seconds>,
    progress_deadline_seconds: Option<Seconds>,
    concurrency: Option<ConcurrencyKey>,
    unique_key: Option<String>,
    run_at: Option<Moment>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConcurrencyKey {
    key: String,
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

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cancellation {
    #[serde(default)]
    reason: String,
}

/// Filters and pages of a list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Listing {
    #[serde(default)]
    limit: u32,
    #[serde(default)]
    cursor: String,
    /// State names, separated by commas.
    #[serde(default)]
    status: String,
    #[serde(default)]
    kind: String,
}

/// `POST /api/jobs`
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

/// `GET /api/jobs`
pub(crate) async fn list(
    State(app): State<App>,
    May(caller): Reader,
    query: Result<Query<Listing>, QueryRejection>,
) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Page<'a> {
        jobs: Vec<JobView<'a>>,
        #[serde(skip_serializing_if = "str::is_empty")]
        next: &'a str,
    }
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

/// `GET /api/jobs/{jobId}`
pub(crate) async fn show(
    State(app): State<App>,
    May(caller): Reader,
    Path(job_id): Path<String>,
) -> Result<Response, Problem> {
    snapshot(&app, &caller, &job_id.parse()?).await
}

/// `POST /api/jobs/{jobId}/cancel`
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

/// `POST /api/jobs/{jobId}/retry`
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

/// `DELETE /api/jobs/{jobId}`
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

/// `GET /api/kinds`
pub(crate) async fn kinds(State(app): State<App>, _: Anybody) -> Result<Response, Problem> {
    #[derive(Serialize)]
    struct Kinds<'a> {
        kinds: Vec<KindView<'a>>,
    }
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
