//! What the fuzz targets in `tests/fuzz` call; it exists only where they are built.

use axum::extract::Query;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Uri};
use tidegate_proto::v1::Event;

use crate::{hub::positions, progress, sse};

/// A frame of the event stream.
#[must_use]
pub fn event(epoch: &str, event: &Event) -> Bytes {
    sse::event(epoch, event)
}

/// Where a stream would begin that is asked for with this query and this `Last-Event-ID`; it must not panic.
pub fn position(query: &str, last_event_id: Option<&[u8]>) {
    let Ok(uri) = format!("/api/progress/j?{query}").parse::<Uri>() else { return };
    let mut headers = HeaderMap::new();
    if let Some(value) = last_event_id.and_then(|value| HeaderValue::from_bytes(value).ok()) {
        headers.insert("last-event-id", value);
    }
    if let Ok(Query(resume)) = Query::<progress::Resume>::try_from_uri(&uri) {
        let _ = progress::position(&headers, resume.last_event_id.as_deref());
    }
    if let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(&uri) {
        let jobs = pairs.iter().filter(|(name, _)| name == "job").count();
        let position = headers.get("last-event-id").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let _ = positions(position, jobs);
    }
}
