//! `GET /api/stats` and `DELETE /api/streams/{streamId}`: the open streams of this gateway, for those whose they are.
//!
//! Each gateway knows its own streams only; behind a load balancer one asks each of them.

use std::time::{Duration, UNIX_EPOCH};

use axum::{
    Json,
    extract::{Path, State},
};
use http::StatusCode;
use prost_types::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    caller::{May, Reader},
    hub::{Listed, StreamId},
    json,
    openapi::Problems,
    problem::Problem,
    routes::App,
};

/// How many streams are listed, the oldest first.
const LISTED: usize = 1000;
/// RFC 3339 knows no later year than 9999; in milliseconds since 1970.
const LATEST: u64 = 253_402_300_799_999;

/// The open streams that the caller may know of, the oldest first.
#[derive(Serialize, ToSchema)]
pub(crate) struct Stats {
    /// How many there are; at most 1000 of them are listed.
    total: usize,
    streams: Vec<StreamView>,
}

/// An open stream.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Stream)]
struct StreamView {
    stream_id: String,
    /// The jobs that are followed on it and have not ended.
    job_ids: Vec<String>,
    /// Whose it is; absent where nobody has to say who it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    #[schema(format = DateTime)]
    opened_at: String,
    /// When it will be asked to reconnect, or its credential ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    ends_at: Option<String>,
}

impl From<Listed> for StreamView {
    fn from(listed: Listed) -> Self {
        Self {
            stream_id: listed.stream.to_string(),
            job_ids: listed.jobs.iter().map(|job| job.to_string()).collect(),
            subject: listed.subject,
            opened_at: time(listed.since),
            ends_at: listed.until.filter(|until| *until <= LATEST).map(time),
        }
    }
}

/// List one's open streams
///
/// Those of this gateway: behind a load balancer each knows its own. Needs the scope `jobs:read`; with `jobs:admin`,
/// the streams of all subjects of one's tenant.
#[utoipa::path(
    get, path = "/api/stats", tag = "streams", operation_id = "listStreams",
    responses((status = 200, description = "The streams", body = Stats), Problems)
)]
pub(crate) async fn stats(State(app): State<App>, May(caller): Reader) -> Json<Stats> {
    let listed = app.registry.tenures().list(&caller);
    let total = listed.len();
    Json(Stats { total, streams: listed.into_iter().take(LISTED).map(StreamView::from).collect() })
}

/// Close a stream
///
/// Its viewer is told by `goodbye` not to come back; the jobs go on. Needs the scope `jobs:read`, and for the streams of
/// others in one's tenant `jobs:admin`.
#[utoipa::path(
    delete, path = "/api/streams/{streamId}", tag = "streams", operation_id = "closeStream",
    params(("streamId" = String, Path, description = "Of the list", pattern = "^[0-9a-f]{16}$")),
    responses((status = 204, description = "It is closed"), Problems)
)]
pub(crate) async fn close(
    State(app): State<App>,
    May(caller): Reader,
    Path(stream): Path<String>,
) -> Result<StatusCode, Problem> {
    let stream: StreamId = stream.parse()?;
    if !app.registry.tenures().close(&caller, stream) {
        return Err(Problem::NotFound);
    }
    tracing::info!(%stream, by = caller.subject(), "a stream was closed");
    Ok(StatusCode::NO_CONTENT)
}

fn time(millis: u64) -> String {
    json::time(&Timestamp::from(UNIX_EPOCH + Duration::from_millis(millis)))
}
