//! The Rust worker library: runs jobs for a Tidegate engine.
//!
//! A [`JobHandler`] does one kind of work; a [`Worker`] offers handlers to the engines, runs what it is assigned,
//! and carries reports to the engine so that no acknowledged one is lost and none is stored twice.
//!
//! - [`handler`]: what a kind of job implements, and how it fails;
//! - [`context`]: what a running job can say and ask;
//! - `session`: the protocol of `worker_service.proto` as a pure state machine;
//! - [`worker`]: the one task that owns the session, the connection and the running jobs;
//! - [`kinds`]: the built-in kinds `csv-import`, `demo`, and commands through `exec`;
//! - [`Metrics`]: what a worker counts; `admin`: where the `tidegate-worker` binary shows that, and its health;
//! - [`config`]: flags, environment and the TOML file of the `tidegate-worker` binary.
//!
//! ```no_run
//! use futures_util::{FutureExt as _, future::BoxFuture};
//! use serde_json::json;
//! use tidegate_worker::{JobContext, JobHandler, JobResult, Offer, Progress};
//!
//! struct Count;
//!
//! impl JobHandler for Count {
//!     fn offer(&self) -> Offer {
//!         Offer {
//!             kind: "count".into(),
//!             description: "Counts to a number.".into(),
//!             input_schema: json!({"type": "integer"}),
//!             example: json!(10),
//!         }
//!     }
//!
//!     fn run(&self, job: JobContext) -> BoxFuture<'_, JobResult> {
//!         async move {
//!             let to: u64 = job.input()?;
//!             let saved = job.last_checkpoint().and_then(|(_, at)| str::from_utf8(at).ok()?.parse().ok());
//!             for n in saved.unwrap_or(0) + 1..=to {
//!                 job.progress(Progress { done: Some(n), total: Some(to), ..Progress::default() }).await;
//!                 job.checkpoint("counted", n.to_string()).await?; // returns once it is stored
//!             }
//!             Ok(json!(to))
//!         }
//!         .boxed()
//!     }
//! }
//!
//! # use tidegate_worker::Worker;
//! # async fn example() {
//! let worker = Worker::builder(["http://127.0.0.1:50051"]).handler(Count).build().expect("a sound description");
//! worker.run(tokio_util::sync::CancellationToken::new()).await;
//! # }
//! ```
//!
//! The library keeps no state on disk: after a crash the engine gives the job to another worker, with the last
//! acknowledged checkpoint.

mod admin;
pub mod config;
pub mod context;
pub mod handler;
pub mod kinds;
mod metrics;
mod session;
pub mod worker;

pub use context::{JobContext, Progress, ReportError, StopReason};
pub use handler::{JobError, JobHandler, JobResult, Offer};
pub use metrics::Metrics;
pub use tidegate_proto::v1::LogLevel;
pub use worker::{BuildError, Status, Worker};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Runs the worker that `settings` describe, with the built-in kinds, until `shutdown` is cancelled.
///
/// `status` follows the worker: wait for [`Status::Connected`] to know that an engine has welcomed it. Engines that
/// are away are no error, the worker tries again.
///
/// # Errors
/// [`config::ConfigError`] when the settings make no worker; it lists everything that is wrong.
pub async fn run(
    settings: config::Settings,
    status: watch::Sender<Status>,
    shutdown: CancellationToken,
) -> Result<(), config::ConfigError> {
    let (listen, token) = (settings.admin_listen, settings.admin_token.clone());
    let worker = settings.into_worker(status)?;
    let admin =
        listen.map(|addr| admin::serve(addr, token, worker.status(), worker.metrics())).transpose()?;
    worker.run(shutdown).await;
    drop(admin);
    Ok(())
}

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
