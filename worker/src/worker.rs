//! A worker: what it offers, to whom, and its life from the first connection to the last report.
//!
//! [`Worker`] is the description; [`Worker::run`] hands it to one owner task (`owner`), which alone holds the session,
//! the connection (`link`) and the running jobs. Jobs run in tasks of their own and speak to the owner through a
//! bounded channel.

mod backoff;
mod link;
mod owner;

use std::{collections::HashMap, sync::Arc, time::Duration};

use tidegate_proto::{
    bearer::Bearer,
    limits,
    pool::{TargetError, Targets},
    v1,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{JobHandler, Metrics};

/// Where a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// No engine has welcomed the worker, or the connection broke; jobs keep running.
    Connecting,
    /// An engine has welcomed the worker and may assign jobs.
    Connected,
    /// The worker was told to shut down, or the engine to drain: it takes no new jobs.
    Draining,
    /// The worker has ended.
    Stopped,
}

/// Why a description makes no worker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// An engine's address is no URL of the form `http://host:port`, or there is none.
    #[error(transparent)]
    Engine(#[from] TargetError),
    /// There is no handler.
    #[error("a worker needs at least one kind of job")]
    NoHandler,
    /// A kind's name is malformed.
    #[error("{0:?} cannot name a kind: lower-case letters, digits, '.', '_' and '-', at most 64")]
    Kind(String),
    /// Two handlers offer the same kind.
    #[error("the kind {0:?} is offered twice")]
    KindTwice(String),
}

/// A worker, ready to run.
pub struct Worker {
    plan: Plan,
    status: watch::Sender<Status>,
}

/// Describes a worker; see [`Worker::builder`].
pub struct WorkerBuilder {
    engines: Vec<String>,
    name: String,
    capacity: u32,
    grace: Duration,
    coalesce: bool,
    handlers: Vec<Arc<dyn JobHandler>>,
    status: watch::Sender<Status>,
    bearer: Bearer,
}

/// What the owner task needs to know.
pub(crate) struct Plan {
    engines: Targets,
    name: String,
    capacity: u32,
    grace: Duration,
    bearer: Bearer,
    coalesce: bool,
    kinds: Vec<v1::WorkerKind>,
    handlers: HashMap<String, Arc<dyn JobHandler>>,
    metrics: Arc<Metrics>,
}

impl Worker {
    /// Begins the description of a worker for `engines`, addresses such as `http://127.0.0.1:50051`. A name may lead to
    /// several. The worker holds one stream, to any engine that serves, and goes to another when that one dies, drains or falls
    /// silent; when an engine joins, every worker goes there with a probability that keeps all equally loaded.
    pub fn builder<I: IntoIterator<Item: Into<String>>>(engines: I) -> WorkerBuilder {
        WorkerBuilder {
            engines: engines.into_iter().map(Into::into).collect(),
            name: "worker".to_owned(),
            capacity: 4,
            grace: Duration::from_secs(5),
            coalesce: true,
            handlers: Vec::new(),
            status: watch::Sender::new(Status::Connecting),
            bearer: Bearer::default(),
        }
    }

    /// Follows the worker's status.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// What the worker counts, for whoever serves it.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.plan.metrics.clone()
    }

    /// Works until `shutdown` is cancelled and the jobs at hand are finished or given back.
    ///
    /// Running jobs may go on for the grace time; then they are told to stop, and given back to the engine. An engine
    /// that cannot be reached is tried again for ever.
    pub async fn run(self, shutdown: CancellationToken) {
        owner::Owner::new(self.plan, self.status).run(shutdown).await;
    }
}

impl WorkerBuilder {
    /// The worker's name in the engine's logs; need not be unique. `worker` by default.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = limits::cut(name.into(), limits::MAX_TEXT_BYTES);
        self
    }

    /// How many jobs run at once, at least 1; 4 by default.
    #[must_use]
    pub fn capacity(mut self, jobs: u32) -> Self {
        self.capacity = jobs.max(1);
        self
    }

    /// How long running jobs may go on after a shutdown began; 5 s by default.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Presents a token to the engines; none by default.
    #[must_use]
    pub fn bearer(mut self, bearer: Bearer) -> Self {
        self.bearer = bearer;
        self
    }

    /// Whether progress that was not sent yet gives way to newer progress; yes by default.
    ///
    /// The engine merges progress, too, unless it was started with `--progress-interval-ms 0`.
    #[must_use]
    pub fn coalesce(mut self, coalesce: bool) -> Self {
        self.coalesce = coalesce;
        self
    }

    /// Offers one more kind.
    #[must_use]
    pub fn handler(self, handler: impl JobHandler) -> Self {
        self.handlers([Arc::new(handler) as Arc<dyn JobHandler>])
    }

    /// Offers more kinds.
    #[must_use]
    pub fn handlers(mut self, handlers: impl IntoIterator<Item = Arc<dyn JobHandler>>) -> Self {
        self.handlers.extend(handlers);
        self
    }

    /// Reports the status to `status` instead of a channel of the worker's own.
    #[must_use]
    pub fn status(mut self, status: watch::Sender<Status>) -> Self {
        self.status = status;
        self
    }

    /// Checks the description.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn build(self) -> Result<Worker, Vec<BuildError>> {
        let mut errors = Vec::new();
        let engines = Targets::parse(self.engines);
        if let Err(found) = &engines {
            errors.extend(found.iter().cloned().map(BuildError::Engine));
        }
        if self.handlers.is_empty() {
            errors.push(BuildError::NoHandler);
        }
        let mut kinds = Vec::new();
        let mut handlers = HashMap::new();
        for handler in self.handlers {
            let offer = handler.offer();
            if !limits::is_name(&offer.kind) {
                errors.push(BuildError::Kind(offer.kind));
            } else if handlers.insert(offer.kind.clone(), handler).is_some() {
                errors.push(BuildError::KindTwice(offer.kind));
            } else {
                kinds.push(v1::WorkerKind {
                    kind: offer.kind,
                    description: offer.description,
                    input_schema_json: offer.input_schema.to_string(),
                    example_json: offer.example.to_string(),
                });
            }
        }
        let engines = match engines {
            Ok(engines) if errors.is_empty() => engines,
            _ => return Err(errors),
        };
        let Self { name, capacity, grace, coalesce, status, bearer, .. } = self;
        let metrics = Arc::new(Metrics::new(kinds.iter().map(|kind| &*kind.kind), capacity));
        let plan = Plan { engines, name, capacity, grace, bearer, coalesce, kinds, handlers, metrics };
        Ok(Worker { plan, status })
    }
}
