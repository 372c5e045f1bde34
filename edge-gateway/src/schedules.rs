//! Recurring jobs over REST: each handler one call to the engine.
//!
//! Shapes only: what a schedule may say is the engine's to judge.

mod view;

use axum::{
    extract::{Path, Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tidegate_proto::v1::{
    DeleteScheduleRequest, GetScheduleRequest, ListSchedulesRequest, Overlap, PutScheduleRequest, Schedule,
};
use utoipa::{IntoParams, ToSchema};

use crate::{
    caller::{Controller, May, Reader, Submitter},
    engine::Schedules,
    jobs::{Body, Options, Seconds, json, made, parse, present, query},
    openapi::Problems,
    problem::Problem,
    routes::App,
};
use view::ScheduleView;

/// A schedule to be kept.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schema(as = ScheduleRequest)]
struct Wanted {
    /// What kind of jobs: `GET /api/kinds` lists them.
    #[schema(pattern = "^[a-z][a-z0-9._-]{0,63}$")]
    kind: String,
    /// What each job's worker is given; at most 64 KiB.
    #[serde(default)]
    #[schema(value_type = Option<Value>)]
    input: Option<Box<RawValue>>,
    /// Those of each job; `delaySeconds` and `runAt` are refused, because the schedule says when.
    #[serde(default)]
    options: Options,
    /// Minute, hour, day of month, month, day of week; or six fields, with seconds in front.
    #[schema(max_length = 128, example = "30 2 * * *")]
    cron: String,
    /// An IANA time zone, in which `cron` is read; UTC unless given.
    #[serde(default)]
    #[schema(example = "Europe/Berlin")]
    time_zone: String,
    #[serde(default)]
    overlap: OverlapName,
    /// How late a job may be submitted when its time had passed unseen, 60 to 86400; 3600 unless given.
    #[schema(value_type = Option<f64>, minimum = 60, maximum = 86_400)]
    catch_up_seconds: Option<Seconds>,
    /// Makes no jobs until it is put without.
    #[serde(default)]
    paused: bool,
}

/// What happens while the job of the firing before has not ended: no job, or one more.
#[derive(Clone, Copy, Default, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = Overlap)]
enum OverlapName {
    #[default]
    Skip,
    Allow,
}

/// Whose schedule.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Whose {
    /// Another owner in the tenant; needs the scope `jobs:admin`.
    #[serde(default)]
    owner: String,
}

/// No parameters: whoever gives one means something that does not happen.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

/// Pages of a list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Listing {
    /// How many schedules a page has at most; the engine's choice unless given.
    #[serde(default)]
    limit: u32,
    /// `next` of the page before.
    #[serde(default)]
    cursor: String,
}

/// A page of schedules, newest first.
#[derive(Serialize, ToSchema)]
#[schema(as = Schedules)]
struct Page<'a> {
    schedules: Vec<ScheduleView<'a>>,
    /// The cursor of the next page; absent on the last.
    #[serde(skip_serializing_if = "str::is_empty")]
    next: &'a str,
}

/// Keep a schedule
///
/// Makes the schedule of this name, or replaces what it says; the same request twice changes nothing. Its jobs are the
/// caller's. Needs the scope `jobs:submit`.
#[utoipa::path(
    put, path = "/api/schedules/{name}", tag = "schedules", operation_id = "putSchedule", request_body = Wanted,
    params(("name" = String, Path, description = "The caller's name for it")),
    responses(
        (status = 201, description = "The schedule was made", body = ScheduleView<'_>, headers(("Location" = String))),
        (status = 200, description = "There was one of this name; this is what it says now", body = ScheduleView<'_>),
        Problems,
    )
)]
pub(crate) async fn put(
    State(app): State<App>,
    May(caller): Submitter,
    Path(name): Path<String>,
    nothing: Result<Query<Nothing>, QueryRejection>,
    body: Body,
) -> Result<Response, Problem> {
    let Nothing {} = query(nothing)?;
    let wanted: Wanted = parse(&body.0?)?;
    let overlap = match wanted.overlap {
        OverlapName::Skip => Overlap::Skip,
        OverlapName::Allow => Overlap::Allow,
    };
    let schedule = Schedule {
        name,
        kind: wanted.kind,
        input_json: wanted.input.map_or_else(String::new, |raw| raw.get().to_owned()),
        options: Some(wanted.options.proto()),
        cron: wanted.cron,
        time_zone: wanted.time_zone,
        overlap: overlap.into(),
        catch_up: wanted.catch_up_seconds.and_then(Seconds::proto),
        paused: wanted.paused,
        ..Schedule::default()
    };
    let request = PutScheduleRequest { caller: caller.proto(), schedule: Some(schedule) };
    let put = |mut client: Schedules, r| async move { client.put_schedule(r).await };
    let answer = app.engine.ask(request, put, true).await?;
    let schedule = present(answer.schedule)?;
    made(answer.created, &format!("/api/schedules/{}", schedule.name), &ScheduleView::from(&schedule))
}

/// Show a schedule
///
/// Needs the scope `jobs:read`.
#[utoipa::path(
    get, path = "/api/schedules/{name}", tag = "schedules", operation_id = "showSchedule",
    params(("name" = String, Path, description = "Its owner's name for it"), Whose),
    responses((status = 200, description = "The schedule", body = ScheduleView<'_>), Problems)
)]
pub(crate) async fn show(
    State(app): State<App>,
    May(caller): Reader,
    Path(name): Path<String>,
    whose: Result<Query<Whose>, QueryRejection>,
) -> Result<Response, Problem> {
    let Whose { owner } = query(whose)?;
    let request = GetScheduleRequest { caller: caller.proto(), name, owner };
    let get = |mut client: Schedules, r| async move { client.get_schedule(r).await };
    let answer = app.engine.ask(request, get, true).await?;
    Ok(json(&ScheduleView::from(&present(answer.schedule)?)))
}

/// List one's schedules
///
/// With the scope `jobs:admin` those of the whole tenant. Needs the scope `jobs:read`.
#[utoipa::path(
    get, path = "/api/schedules", tag = "schedules", operation_id = "listSchedules", params(Listing),
    responses((status = 200, description = "A page of schedules", body = Page<'_>), Problems)
)]
pub(crate) async fn list(
    State(app): State<App>,
    May(caller): Reader,
    listing: Result<Query<Listing>, QueryRejection>,
) -> Result<Response, Problem> {
    let Listing { limit, cursor } = query(listing)?;
    let request = ListSchedulesRequest { caller: caller.proto(), page_size: limit, page_token: cursor };
    let list = |mut client: Schedules, r| async move { client.list_schedules(r).await };
    let answer = app.engine.ask(request, list, true).await?;
    let schedules = answer.schedules.iter().map(ScheduleView::from).collect();
    Ok(json(&Page { schedules, next: &answer.next_page_token }))
}

/// Delete a schedule
///
/// The jobs that it made stay. Needs the scope `jobs:control`.
#[utoipa::path(
    delete, path = "/api/schedules/{name}", tag = "schedules", operation_id = "deleteSchedule",
    params(("name" = String, Path, description = "Its owner's name for it"), Whose),
    responses((status = 204, description = "It is gone"), Problems)
)]
pub(crate) async fn delete(
    State(app): State<App>,
    May(caller): Controller,
    Path(name): Path<String>,
    whose: Result<Query<Whose>, QueryRejection>,
) -> Result<Response, Problem> {
    let Whose { owner } = query(whose)?;
    let request = DeleteScheduleRequest { caller: caller.proto(), name, owner };
    let delete = |mut client: Schedules, r| async move { client.delete_schedule(r).await };
    app.engine.ask(request, delete, false).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
