//! `GET /api/progress/{jobId}`: negotiates, finds the position, and hands the connection to a viewer.

pub(crate) mod bundle;

use std::convert::Infallible;

use axum::{
    Extension,
    body::Body,
    extract::{Path, Query, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header, request::Parts};
use serde::Deserialize;
use tidegate_proto::cursor::CursorError;
use utoipa::IntoParams;

use crate::{
    caller::{Caller, May, Reader},
    client::Client,
    hub::{Position, StreamId},
    jobs::{self, JobId},
    json::JobView,
    limits::{StreamPermit, Who},
    openapi::ProblemsOfJob,
    problem::Problem,
    routes::App,
    serve::Offer,
    sse,
};

/// The position on a first connect, when there is no header yet; other parameters are ignored.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Resume {
    /// Where to begin on a first connect: a cursor, `earliest` (as when nothing is said) or `latest`.
    #[param(example = "17-q7x2ma")]
    #[serde(rename = "lastEventId", alias = "last_event_id")]
    pub(crate) last_event_id: Option<String>,
}

/// Follow a job
///
/// Its events from the cursor on, then live, to its end; every `id` is a cursor. To `Accept: application/json`, the
/// job as it is. What a client of `text/event-stream` alone is refused for a while (a limit, a drain) is said by a
/// `goodbye` under status 200, because any other would stop an `EventSource` for ever. Needs the scope `jobs:read`.
#[utoipa::path(
    get, path = "/api/progress/{jobId}", tag = "streams", operation_id = "followJob",
    params(
        JobId, Resume,
        ("Last-Event-ID" = Option<String>, Header, description = "The last `id` that was seen; wins over `lastEventId`"),
        ("ticket" = Option<String>, Query, description = "Of `POST /api/tickets`, for who cannot set headers"),
    ),
    responses(
        (status = 200, description = "The stream, or the job", content(
            ("text/event-stream", item_schema = sse::ServerEvent),
            (JobView<'_> = "application/json"),
        )),
        (status = 204, description = "All was seen, and nothing more will come"),
        ProblemsOfJob,
    )
)]
pub(crate) async fn follow(
    State(app): State<App>,
    May(caller): Reader,
    client: Client,
    (method, version, offer): Opening,
    Path(job_id): Path<String>,
    query: Result<Query<Resume>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let job_id: JobId = job_id.parse()?;
    let accept = Accept::of(&headers);
    match accept {
        Accept::Snapshot => return jobs::snapshot(&app, &caller, &job_id).await,
        Accept::Nothing => return Err(Problem::NotAcceptable),
        Accept::Stream | Accept::StreamAlone => {}
    }
    let malformed = |_| Problem::MalformedCursor(CursorError::Malformed);
    let Query(Resume { last_event_id }) = query.map_err(malformed)?;
    let position = position(&headers, last_event_id.as_deref())?;
    if method == Method::HEAD {
        // Headers only, and no subscription; whether the job exists they do tell.
        jobs::get(&app, &caller, &job_id).await?;
        return Ok(stream(Response::default()));
    }
    let attach = async |permit| {
        let stream = StreamId::random();
        let viewer = app.registry.attach(&caller, job_id.as_str(), &position, stream, Some(permit)).await?;
        Ok(viewer.map(|viewer| viewer.over(version)))
    };
    open(&app, client, &caller, accept, offer, attach).await
}

/// What of a request decides how its stream is sent.
type Opening = (Method, Version, Option<Extension<Offer>>);

/// Takes a slot for a stream, and answers with the body that `attach` gives it; 204 if there is none, because the end
/// of all has been seen.
async fn open<B>(
    app: &App,
    client: Client,
    caller: &Caller,
    accept: Accept,
    offer: Option<Extension<Offer>>,
    attach: impl AsyncFnOnce(StreamPermit) -> Result<Option<B>, Problem>,
) -> Result<Response, Problem>
where
    B: http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let opened = async {
        let (permit, standing) = app.limiter.open_stream(Who { ip: client.0, caller: Some(caller) }).await?;
        Ok((attach(permit).await?, standing))
    };
    match opened.await {
        Ok((Some(body), standing)) => {
            let mut response = stream(match offer {
                Some(Extension(offer)) => offer.take(body),
                None => Response::new(Body::new(body)),
            });
            response.extensions_mut().insert(standing);
            Ok(response)
        }
        Ok((None, _)) => Ok(StatusCode::NO_CONTENT.into_response()),
        Err(problem) => passing(&problem, accept).ok_or(problem),
    }
}

/// The jobs whose stream is asked for, if one is.
pub(crate) fn jobs_of(uri: &Uri) -> Option<Vec<JobId>> {
    match uri.path().strip_prefix("/api/progress")? {
        "" => bundle::of(uri),
        rest => Some(vec![rest.strip_prefix('/')?.parse().ok()?]),
    }
}

/// The answer to a request that has not come as far as here.
pub(crate) fn refusal(problem: Problem, request: &Parts) -> Response {
    let path = request.uri.path().strip_prefix("/api/progress");
    let of_stream =
        path.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) && request.method == Method::GET;
    let passing = of_stream.then(|| passing(&problem, Accept::of(&request.headers))).flatten();
    passing.unwrap_or_else(|| problem.into_response())
}

/// What an EventSource is told of a refusal that passes: any other status would stop it for ever.
fn passing(problem: &Problem, accept: Accept) -> Option<Response> {
    let reason = problem.goodbye().filter(|_| accept == Accept::StreamAlone)?;
    let mut response = stream(Response::new(Body::from(sse::goodbye(reason, problem.retry_ms()?))));
    response.extensions_mut().insert(problem.slug());
    if let Problem::QuotaExceeded(refusal) = problem {
        response.extensions_mut().insert(refusal.standing.clone());
    }
    Some(response)
}

/// A response that no cache keeps, no proxy buffers and no filter transforms.
fn stream(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    headers.insert(header::VARY, HeaderValue::from_static("accept, last-event-id"));
    response
}

/// Where to begin: the header wins, because the query of an EventSource stays what it was on the first connect.
pub(crate) fn position(headers: &HeaderMap, query: Option<&str>) -> Result<Position, Problem> {
    Ok(last_event_id(headers, query)?.parse()?)
}

/// The position as it was given; empty if it was not.
fn last_event_id<'a>(headers: &'a HeaderMap, query: Option<&'a str>) -> Result<&'a str, CursorError> {
    let header = match headers.get("last-event-id") {
        Some(value) => value.to_str().map_err(|_| CursorError::Malformed)?,
        None => "",
    };
    Ok(if header.is_empty() { query.unwrap_or_default() } else { header })
}

/// What a client can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accept {
    /// The stream and perhaps more: a fetch client, curl.
    Stream,
    /// `text/event-stream` and nothing else: an EventSource, which gives up on any status but 200.
    StreamAlone,
    /// JSON rather than a stream.
    Snapshot,
    /// Neither.
    Nothing,
}

impl Accept {
    fn of(headers: &HeaderMap) -> Self {
        let ranges: Vec<(String, f32)> = headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|range| {
                let mut parts = range.split(';').map(str::trim);
                let kind = parts.next().filter(|kind| !kind.is_empty())?.to_ascii_lowercase();
                let weight = parts.find_map(|p| p.strip_prefix("q=").or(p.strip_prefix("Q=")));
                Some((kind, weight.map_or(1.0, |q| q.parse().unwrap_or(0.0))))
            })
            .collect();
        let quality = |names: [&str; 3]| {
            // The most specific range decides.
            let of = |name: &str| ranges.iter().find(|(kind, _)| kind == name).map(|(_, q)| *q);
            names.into_iter().find_map(of).unwrap_or(0.0)
        };
        if ranges.is_empty() {
            return Self::Stream;
        }
        let stream = quality(["text/event-stream", "text/*", "*/*"]);
        let json = quality(["application/json", "application/*", "*/*"]);
        match ranges.as_slice() {
            [(kind, _)] if kind == "text/event-stream" && stream > 0.0 => Self::StreamAlone,
            _ if stream <= 0.0 && json <= 0.0 => Self::Nothing,
            _ if stream >= json => Self::Stream,
            _ => Self::Snapshot,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e15_accept_is_negotiated() {
        for (accept, expected) in [
            ("", Accept::Stream),
            ("*/*", Accept::Stream),
            ("text/event-stream", Accept::StreamAlone),
            ("Text/Event-Stream", Accept::StreamAlone),
            ("text/event-stream, application/json", Accept::Stream),
            ("text/event-stream;q=0.5, application/json", Accept::Snapshot),
            ("application/json", Accept::Snapshot),
            ("application/json, */*;q=0.1", Accept::Snapshot),
            ("text/*", Accept::Stream),
            ("text/html", Accept::Nothing),
            ("text/event-stream;q=0", Accept::Nothing),
        ] {
            let mut headers = HeaderMap::new();
            if !accept.is_empty() {
                headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            }
            assert_eq!(Accept::of(&headers), expected, "{accept:?}");
        }
    }

    #[test]
    fn e21_the_header_wins_over_the_query() {
        let mut headers = HeaderMap::new();
        assert_eq!(position(&headers, None).unwrap(), Position::Earliest);
        assert_eq!(position(&headers, Some("latest")).unwrap(), Position::Latest);
        headers.insert("last-event-id", HeaderValue::from_static("3-e"));
        let after = Position::After(tidegate_proto::cursor::Cursor::new(3, "e"));
        assert_eq!(position(&headers, Some("9-e")).unwrap(), after);
        assert_eq!(position(&headers, Some("nonsense")).unwrap(), after);
        headers.insert("last-event-id", HeaderValue::from_static("$"));
        assert!(matches!(position(&headers, Some("9-e")), Err(Problem::MalformedCursor(_))));
    }
}
