//! The operator's port: `/metrics`, `/healthz` (the process lives), `/readyz` (send it traffic).

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::State, routing::get};
use http::{StatusCode, header};
use tidegate_proto::v1::ListKindsRequest;

use crate::{drain::Drain, engine::Engine, hub::Registry, metrics::Metrics, problem::Problem, sse::Goodbye};

/// How long the engine may take to prove that it is there.
const PROBE: Duration = Duration::from_secs(2);

/// What the operator's port looks at.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    pub(crate) engine: Engine,
    pub(crate) registry: Registry,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) drain: Drain,
}

/// The router.
pub(crate) fn router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .merge(tidegate_telemetry::loglevel::routes())
        .with_state(admin)
}

async fn metrics(State(admin): State<Admin>) -> ([(header::HeaderName, &'static str); 1], String) {
    admin.metrics.engines(admin.engine.size());
    (
        [(header::CONTENT_TYPE, tidegate_telemetry::CONTENT_TYPE)],
        admin.metrics.render(admin.registry.ring_bytes()),
    )
}

/// Ready while not draining and while the engine answers, whatever it answers.
async fn ready(State(admin): State<Admin>) -> (StatusCode, &'static str) {
    if admin.drain.begun() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n");
    }
    let probe =
        admin.engine.call(ListKindsRequest {}, |mut client, r| async move { client.list_kinds(r).await });
    match tokio::time::timeout(PROBE, probe).await {
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the engine is too slow\n"),
        Ok(Err(status)) if Problem::from(status.clone()).goodbye() == Some(Goodbye::EngineUnavailable) => {
            (StatusCode::SERVICE_UNAVAILABLE, "the engine does not answer\n")
        }
        Ok(_) => (StatusCode::OK, "ready\n"),
    }
}
