//! `GET` and `PUT /loglevel` on the admin ports: what is logged, changed while the process runs.
//!
//! The filter belongs to the process, because its log does. Only an operator's port serves it; a page in a browser cannot
//! reach it there, because a `PUT` from another origin asks first, and nobody answers.

use std::sync::OnceLock;

use axum::{Router, extract::DefaultBodyLimit, http::StatusCode, routing::get};
use tracing_subscriber::{EnvFilter, Registry, reload::Handle};

/// The longest filter, in bytes.
const LONGEST: usize = 4096;

static FILTER: OnceLock<Handle<EnvFilter, Registry>> = OnceLock::new();

/// Remembers how to change the filter.
pub(crate) fn keep(handle: Handle<EnvFilter, Registry>) {
    let _ = FILTER.set(handle);
}

/// The routes. A filter is a level, or several by part, such as `info,edge_gateway::hub=debug`.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/loglevel", get(async || answer(shown())).put(async |filter: String| answer(set(&filter))))
        .layer(DefaultBodyLimit::max(LONGEST))
}

fn answer(filter: Result<String, String>) -> (StatusCode, String) {
    match filter {
        Ok(filter) => (StatusCode::OK, filter + "\n"),
        Err(why) => (StatusCode::BAD_REQUEST, why + "\n"),
    }
}

fn shown() -> Result<String, String> {
    let filter = FILTER.get().ok_or("this process logs in its own way")?;
    filter.with_current(ToString::to_string).map_err(|error| error.to_string())
}

fn set(text: &str) -> Result<String, String> {
    let filter = EnvFilter::try_new(text.trim()).map_err(|error| format!("that is no filter: {error}"))?;
    let handle = FILTER.get().ok_or("this process logs in its own way")?;
    handle.reload(filter).map_err(|error| error.to_string())?;
    let now = shown()?;
    tracing::warn!(filter = now, "what is logged was changed");
    Ok(now)
}
