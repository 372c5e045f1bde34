//! The web console and the browser module: a handful of files inside the binary.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use axum::{
    Router,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderMap, HeaderValue, StatusCode, header};

/// Path, content type, content.
const ASSETS: [(&str, &str, &[u8]); 5] = [
    ("/", "text/html; charset=utf-8", include_bytes!("../assets/index.html")),
    ("/app.js", "text/javascript; charset=utf-8", include_bytes!("../assets/app.js")),
    ("/style.css", "text/css; charset=utf-8", include_bytes!("../assets/style.css")),
    ("/client.js", "text/javascript; charset=utf-8", include_bytes!("../assets/client.js")),
    ("/favicon.svg", "image/svg+xml", include_bytes!("../assets/favicon.svg")),
];

/// One route a file.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    ASSETS.into_iter().fold(Router::new(), |router, (path, kind, content)| {
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        let etag = format!("\"{:016x}\"", hasher.finish());
        router
            .route(path, get(move |headers: HeaderMap| async move { serve(&headers, kind, &etag, content) }))
    })
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
