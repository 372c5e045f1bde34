//! The web console and the browser module: a handful of files inside the binary.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use axum::{
    Router,
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};

pub(crate) const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Path, content type, content. `client.js` is for every page; the other modules are the console's own.
const ASSETS: &[(&str, &str, &[u8])] = &[
    ("/", HTML, include_bytes!("../assets/index.html")),
    ("/style.css", CSS, include_bytes!("../assets/style.css")),
    ("/favicon.svg", SVG, include_bytes!("../assets/favicon.svg")),
    ("/app.js", JS, include_bytes!("../assets/app.js")),
    ("/board.js", JS, include_bytes!("../assets/board.js")),
    ("/card.js", JS, include_bytes!("../assets/card.js")),
    ("/card-view.js", JS, include_bytes!("../assets/card-view.js")),
    ("/chart.js", JS, include_bytes!("../assets/chart.js")),
    ("/client.js", JS, include_bytes!("../assets/client.js")),
    ("/docs", HTML, include_bytes!("../assets/docs.html")),
    ("/docs.css", CSS, include_bytes!("../assets/docs.css")),
    ("/docs.js", JS, include_bytes!("../assets/docs.js")),
    ("/dom.js", JS, include_bytes!("../assets/dom.js")),
    ("/form.js", JS, include_bytes!("../assets/form.js")),
    ("/format.js", JS, include_bytes!("../assets/format.js")),
    ("/job.js", JS, include_bytes!("../assets/job.js")),
    ("/link.js", JS, include_bytes!("../assets/link.js")),
    ("/log.js", JS, include_bytes!("../assets/log.js")),
    ("/slots.js", JS, include_bytes!("../assets/slots.js")),
    ("/visitor.js", JS, include_bytes!("../assets/visitor.js")),
];

/// One route a file.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    ASSETS
        .iter()
        .fold(Router::new(), |router, &(path, kind, content)| router.route(path, file(kind, content)))
}

/// The answer to whoever asks for this file.
pub(crate) fn file<S: Clone + Send + Sync + 'static>(
    kind: &'static str,
    content: &'static [u8],
) -> MethodRouter<S> {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    let etag = format!("\"{:016x}\"", hasher.finish());
    get(move |headers: HeaderMap| async move { serve(&headers, kind, &etag, content) })
}

/// The file, or word that the browser has it already.
fn serve(request: &HeaderMap, kind: &'static str, etag: &str, content: &'static [u8]) -> Response {
    let known = request.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let fresh =
        known.is_some_and(|tags| tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag));
    let mut response = if fresh { StatusCode::NOT_MODIFIED.into_response() } else { content.into_response() };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(etag) = HeaderValue::from_str(etag) {
        headers.insert(header::ETAG, etag);
    }
    response
}
