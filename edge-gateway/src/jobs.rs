//! The REST handlers: each one call to the engine.

mod body;
mod submission;

use std::{fmt, str::FromStr};

use axum::{
    extract::{Path, Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use tidegate_proto::{
    limits::MAX_INPUT_BYTES,
    v1::{
        CancelJobRequest, DeleteJobRequest, GetJobRequest, Job, JobState, ListJobsRequest, ListKindsRequest,
        RetryJobRequest, SubmitJobRequest,
    },
};
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
    routes::App,
};
pub(crate) use body::{Body, json, made, parse, present, query};
use submission::Submission;
pub(crate) use submission::{Options, Seconds};

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
    made(answer.created, &format!("/api/jobs/{}", job.job_id), &JobView::from(&job))
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
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<Response, Problem> {
    let listing = query(listing)?;
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
}
