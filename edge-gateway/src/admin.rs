//! What the operator's port shows of a gateway.

use std::{sync::Arc, time::Duration};

use tidegate_proto::v1::ListKindsRequest;
use tidegate_telemetry::admin::Part;

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

impl Part for Admin {
    async fn metrics(&self) -> String {
        self.metrics.engines(self.engine.size());
        self.metrics.render(self.registry.ring_bytes())
    }

    /// Ready while not draining and while the engine answers, whatever it answers.
    async fn ready(&self) -> Result<(), String> {
        if self.drain.begun() {
            return Err("draining".to_owned());
        }
        let probe =
            self.engine.call(ListKindsRequest {}, |mut client, r| async move { client.list_kinds(r).await });
        match tokio::time::timeout(PROBE, probe).await {
            Err(_) => Err("the engine is too slow".to_owned()),
            Ok(Err(status))
                if Problem::from(status.clone()).goodbye() == Some(Goodbye::EngineUnavailable) =>
            {
                Err("the engine does not answer".to_owned())
            }
            Ok(_) => Ok(()),
        }
    }
}
