//! `GET /api/progress?job=…&job=…`: the streams of several jobs on one connection.

use axum::{
    extract::{Query, State, rejection::QueryRejection},
    response::Response,
};
use http::{HeaderMap, Method, Uri};
use utoipa::{
    IntoParams,
    openapi::{
        ArrayBuilder, ObjectBuilder, Required, SchemaFormat, Type,
        path::{Parameter, ParameterBuilder, ParameterIn},
    },
};

use super::{Accept, Opening, last_event_id, open, stream};
use crate::{
    caller::{May, Reader},
    client::Client,
    hub::{Bundle, MAX_JOBS, positions},
    jobs::JobId,
    openapi::Problems,
    problem::{self, Problem},
    routes::App,
    sse,
};

/// Follow several jobs
///
/// The events of all on one connection, each with the `jobId` it belongs to, its own `cursor`, and its `data` as in the
/// stream of that job alone. An `id` is the cursors of all jobs, in the order of the query. A job that is removed, or is
/// not the caller's, ends with a `goodbye` of its own; one without `jobId` is for the connection, which ends with its
/// last job. Needs the scope `jobs:read`.
#[utoipa::path(
    get, path = "/api/progress", tag = "streams", operation_id = "followJobs", params(Several),
    responses(
        (status = 200, description = "The stream", content_type = "text/event-stream", item_schema = sse::BundledEvent),
        (status = 204, description = "All of all jobs was seen, and nothing more will come"),
        (status = 404, description = "None of the jobs is there, or is the caller's", body = problem::Document<'_>, content_type = "application/problem+json"),
        Problems,
    )
)]
pub(crate) async fn follow(
    State(app): State<App>,
    May(caller): Reader,
    client: Client,
    (method, version, offer): Opening,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let accept = Accept::of(&headers);
    if matches!(accept, Accept::Snapshot | Accept::Nothing) {
        return Err(Problem::NotAcceptable);
    }
    let Query(query) = query.map_err(|_| Problem::field("job", "the query is malformed"))?;
    let jobs = named(&query)?;
    let first = query.iter().find(|(name, _)| matches!(&**name, "lastEventId" | "last_event_id"));
    let positions = positions(last_event_id(&headers, first.map(|(_, value)| &**value))?, jobs.len())?;
    if method == Method::HEAD {
        return Ok(stream(Response::default()));
    }
    let jobs: Vec<&str> = jobs.iter().map(JobId::as_str).collect();
    let attach = async |permit| {
        let bundle = Bundle::open(&app.registry, &caller, &jobs, &positions, permit).await?;
        Ok(bundle.map(|bundle| bundle.over(version)))
    };
    open(&app, client, &caller, accept, offer, attach).await
}

/// What the query says, as the API document has it.
struct Several;

impl IntoParams for Several {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let text = || ObjectBuilder::new().schema_type(Type::String);
        let id = text().format(Some(SchemaFormat::Custom("uuid".into())));
        let jobs =
            ArrayBuilder::new().items(id).min_items(Some(1)).max_items(Some(MAX_JOBS)).unique_items(true);
        let parameter = |name: &str, place, description: &str| {
            ParameterBuilder::new().name(name).parameter_in(place).description(Some(description))
        };
        let job = parameter(
            "job",
            ParameterIn::Query,
            "The jobs, `job=…&job=…`: their order belongs to the cursor's meaning",
        );
        let first = parameter(
            "lastEventId",
            ParameterIn::Query,
            "Where to begin on a first connect: an `id`, `earliest` (as when nothing is said) or `latest`",
        );
        let last = parameter(
            "Last-Event-ID",
            ParameterIn::Header,
            "The last `id` that was seen; wins over `lastEventId`",
        );
        let ticket =
            parameter("ticket", ParameterIn::Query, "Of `POST /api/tickets`, for who cannot set headers");
        vec![
            ticket.schema(Some(text())).build(),
            job.required(Required::True).schema(Some(jobs)).build(),
            first.schema(Some(text())).build(),
            last.schema(Some(text())).build(),
        ]
    }
}

/// The jobs that a request is about.
pub(super) fn of(uri: &Uri) -> Option<Vec<JobId>> {
    // Read as the handler reads it: what one of them overlooked would be let in unseen.
    let Query(query) = Query::<Vec<(String, String)>>::try_from_uri(uri).ok()?;
    named(&query).ok()
}

/// The jobs that a query names. Their order belongs to the meaning of the cursor, and the URL keeps it.
fn named(query: &[(String, String)]) -> Result<Vec<JobId>, Problem> {
    several("job", query.iter().filter(|(name, _)| name == "job").map(|(_, id)| &**id))
}

/// Job ids that may share a connection, as `field` gave them.
pub(crate) fn several<'a>(field: &str, ids: impl Iterator<Item = &'a str>) -> Result<Vec<JobId>, Problem> {
    let jobs: Vec<JobId> = ids.map(str::parse).collect::<Result<_, _>>()?;
    if jobs.is_empty() || jobs.len() > MAX_JOBS {
        return Err(Problem::field(field, &format!("must be given once to {MAX_JOBS} times")));
    }
    if (1..jobs.len()).any(|n| jobs[..n].contains(&jobs[n])) {
        return Err(Problem::field(field, "must not name a job twice"));
    }
    Ok(jobs)
}
