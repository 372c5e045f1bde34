//! The whole public surface, and the layers around it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::any,
};
use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue, header};
use tidegate_telemetry::trace;
use tokio::time::timeout;
use tower::ServiceBuilder;
use tracing::{Span, field::Empty};
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use crate::{
    access::{Access, is_foreign},
    client::Peer,
    config::Edge,
    console, cors,
    engine::Engine,
    hub::Registry,
    jobs,
    limits::{self, Limiter},
    metrics::Metrics,
    openapi,
    problem::{Problem, Slug},
    problems, progress, schedules, session, streams, tickets,
};

/// The largest request body, in bytes.
pub(crate) const MAX_BODY_BYTES: usize = 512 * 1024;

/// How long a request that changes something may take, its body included.
const SLOWEST: Duration = Duration::from_secs(30);

/// The name under which a request appears in the log and in its answer.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What handlers need; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) engine: Engine,
    pub(crate) registry: Registry,
    pub(crate) access: Arc<Access>,
    pub(crate) limiter: Limiter,
    pub(crate) edge: Arc<Edge>,
    pub(crate) metrics: Arc<Metrics>,
}

/// The API, each route with its documentation.
pub(crate) fn api() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(jobs::list, jobs::submit))
        .routes(routes!(jobs::show, jobs::delete))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::retry))
        .routes(routes!(schedules::list))
        .routes(routes!(schedules::put, schedules::show, schedules::delete))
        .routes(routes!(progress::bundle::follow))
        .routes(routes!(progress::follow))
        .routes(routes!(jobs::kinds))
        .routes(routes!(streams::stats))
        .routes(routes!(streams::close))
        .routes(routes!(tickets::issue))
        .routes(routes!(session::show, session::begin, session::end))
}

/// The router.
pub(crate) fn router(app: App) -> Router {
    // Outermost first: whatever an inner layer answers is still logged and hardened.
    let layers = ServiceBuilder::new()
        .layer(middleware::from_fn_with_state(app.clone(), observe))
        .layer(middleware::from_fn_with_state(app.clone(), harden))
        .option_layer((!app.edge.origins.is_empty()).then(|| cors::layer(&app.edge.origins)))
        .layer(middleware::from_fn_with_state(app.clone(), guard))
        .layer(middleware::from_fn_with_state(app.clone(), limits::layer::enter));
    let (api, description) = api().split_for_parts();
    api.merge(openapi::routes(description))
        .merge(problems::routes())
        .merge(console::routes())
        .fallback(any(async || Problem::NotFound))
        .method_not_allowed_fallback(async || Problem::MethodNotAllowed)
        .layer(layers)
        .with_state(app)
}

/// Names and logs each request.
async fn observe(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request.headers().get(REQUEST_ID).filter(|id| is_request_id(id)).cloned();
    let id = id.or_else(|| HeaderValue::from_str(&Uuid::now_v7().to_string()).ok());
    let id = id.unwrap_or_else(|| HeaderValue::from_static("-"));
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let peer = request.extensions().get::<Peer>().map(|peer| peer.addr);
    let peer = peer.unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
    let client = app.edge.proxies.client(peer, request.headers());
    request.extensions_mut().insert(client);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = span(&request);
    let parent = request.headers().get(trace::TRACEPARENT).and_then(|value| value.to_str().ok());
    let parent = parent.unwrap_or_default().to_owned();
    let mut response = trace::within(span.clone(), &parent, next.run(request)).await;
    span.record("http.response.status_code", response.status().as_u16());
    if response.status().is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    if let Some(Slug(problem)) = response.extensions().get() {
        app.metrics.problem(problem);
    }
    // Without the query: it may carry cursors and tickets.
    tracing::info!(
        %method, path, client = %client.0, status = response.status().as_u16(), id = id.to_str().unwrap_or("-"),
        trace = trace::pass(&span, &parent).get(3..35), millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX), "request"
    );
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The span of a call of the API, up to its answer: for a stream, until it is open.
fn span(request: &Request) -> Span {
    if !request.uri().path().starts_with("/api/") {
        return Span::none();
    }
    let method = request.method().as_str();
    // Not the path: the names of spans are bounded.
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    tracing::info_span!(
        target: trace::TARGET, "request", otel.name = format!("{method} {route}").as_str(), otel.kind = "server",
        http.request.method = method, http.route = route, http.response.status_code = Empty, otel.status_code = Empty
    )
}

/// Tells browsers what not to do with an answer.
async fn harden(State(app): State<App>, request: Request, next: Next) -> Response {
    const CSP: HeaderValue = HeaderValue::from_static(
        "default-src 'self'; img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'",
    );
    let encrypted = request.extensions().get::<Peer>().is_some_and(|peer| peer.tls);
    let is_private = request.uri().path().starts_with("/api/");
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let hsts = app.edge.hsts.as_secs();
    if encrypted && hsts > 0 {
        // RFC 6797 forbids it on plain HTTP.
        let value = HeaderValue::from_str(&format!("max-age={hsts}"));
        headers.extend(value.ok().map(|value| (header::STRICT_TRANSPORT_SECURITY, value)));
    }
    if is_private {
        // Streams say for themselves that no cache may keep them.
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CONTENT_SECURITY_POLICY, CSP);
    response
}

/// Refuses pages of other origins, and turns a panic or a body that never ends into an answer.
async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    if !request.method().is_safe() && is_foreign(request.uri(), request.headers(), &app.edge.origins) {
        return Problem::CrossOrigin.into_response();
    }
    // Only what has a body may be late; streams are answers to GET.
    let late = if request.method().is_safe() { Duration::MAX } else { SLOWEST };
    // By hand and not by a ready-made layer, which would wrap the bodies of streams, too.
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind();
    match timeout(late, answer).await {
        Ok(Ok(response)) => response,
        Ok(Err(_panic)) => Problem::Internal.into_response(),
        Err(_) => Problem::RequestTimeout.into_response(),
    }
}

/// Whether a request id from outside may go into our log.
fn is_request_id(id: &HeaderValue) -> bool {
    let safe = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=64).contains(&id.len()) && id.as_bytes().iter().all(safe)
}

#[cfg(test)]
mod tests {
    use http::{Method, Uri};

    use super::*;

    fn foreign(method: &Method, headers: &[(&'static str, &'static str)]) -> bool {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let allowed = ["https://app.example".parse().unwrap()];
        let headers = headers.iter().map(pair).collect();
        !method.is_safe() && is_foreign(&Uri::from_static("/api/jobs"), &headers, &allowed)
    }

    #[test]
    fn e44_pages_of_other_sites_cannot_steer_jobs() {
        assert!(!foreign(&Method::POST, &[]));
        assert!(!foreign(&Method::POST, &[("sec-fetch-site", "same-origin"), ("origin", "http://a")]));
        assert!(foreign(&Method::POST, &[("sec-fetch-site", "cross-site")]));
        assert!(foreign(&Method::DELETE, &[("origin", "http://evil"), ("host", "127.0.0.1:8080")]));
        assert!(!foreign(&Method::POST, &[("origin", "http://127.0.0.1:8080"), ("host", "127.0.0.1:8080")]));
        assert!(foreign(&Method::POST, &[("origin", "null"), ("host", "h")]));
        assert!(!foreign(
            &Method::POST,
            &[("sec-fetch-site", "cross-site"), ("origin", "https://app.example")]
        ));
        assert!(foreign(
            &Method::POST,
            &[("sec-fetch-site", "cross-site"), ("origin", "http://app.example")]
        ));
        assert!(!foreign(&Method::GET, &[("sec-fetch-site", "cross-site")]));
    }
}
