//! The worker against a scripted engine: a real gRPC server on a loopback port that says what a test tells it to.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod connections;
mod csv_import;
mod csv_interrupted;
mod engine;
mod exec;
mod handlers;
mod protocol;
#[path = "../../../tests/chaos/proxy.rs"]
mod proxy;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate_worker::{JobHandler, Status, Worker};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// How long a test waits for anything before it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A worker that runs in this process.
pub(crate) struct Running {
    pub(crate) shutdown: CancellationToken,
    pub(crate) status: watch::Receiver<Status>,
    pub(crate) ended: JoinHandle<()>,
}

/// Starts a worker for one job at a time, without a grace time.
pub(crate) fn start(engines: &[String], handlers: Vec<Arc<dyn JobHandler>>) -> Running {
    let worker = Worker::builder(engines).capacity(1).grace(Duration::ZERO).handlers(handlers).build();
    let worker = worker.map_err(|errors| format!("{errors:?}")).unwrap();
    let (shutdown, status) = (CancellationToken::new(), worker.status());
    let ended = tokio::spawn(worker.run(shutdown.clone()));
    Running { shutdown, status, ended }
}

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
