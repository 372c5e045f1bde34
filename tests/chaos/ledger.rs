//! A worker inside the test, which writes down every checkpoint that was acknowledged to it.
//!
//! It is never killed, but its connections are: so it knows for certain what the engine said is stored.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use serde_json::json;
use tidegate_worker::{JobContext, JobHandler, JobResult, Offer, Worker};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub const KIND: &str = "ledger";

/// Acknowledged checkpoints by job, in order.
type Entries = Arc<Mutex<HashMap<String, Vec<u64>>>>;

pub struct Ledger {
    entries: Entries,
    shutdown: CancellationToken,
    worker: JoinHandle<()>,
}

impl Ledger {
    pub fn start(engines: &[String]) -> Self {
        let entries = Entries::default();
        let handler = Scribe { entries: entries.clone() };
        let worker =
            Worker::builder(engines.iter().cloned()).name("ledger").capacity(8).handler(handler).build();
        let (worker, shutdown) = (worker.unwrap(), CancellationToken::new());
        let worker = tokio::spawn(worker.run(shutdown.clone()));
        Self { entries, shutdown, worker }
    }

    /// What was acknowledged for a job.
    pub fn acknowledged(&self, job: &str) -> Vec<u64> {
        self.entries.lock().get(job).cloned().unwrap_or_default()
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        self.worker.await.unwrap();
    }
}

struct Scribe {
    entries: Entries,
}

impl JobHandler for Scribe {
    fn offer(&self) -> Offer {
        Offer {
            kind: KIND.into(),
            description: "Counts to a number, one checkpoint each.".into(),
            input_schema: json!({"type": "integer"}),
            example: json!(10),
        }
    }

    fn run(&self, job: JobContext) -> BoxFuture<'_, JobResult> {
        async move {
            let to: u64 = job.input()?;
            let saved =
                job.last_checkpoint().map(|(_, at)| String::from_utf8_lossy(at).parse::<u64>().unwrap());
            let known = self.entries.lock().get(job.job_id()).and_then(|all| all.last().copied());
            assert!(saved >= known, "resumed at {saved:?}, although {known:?} was acknowledged");
            for n in saved.unwrap_or(0) + 1..=to {
                job.checkpoint(&format!("n{n}"), n.to_string()).await?;
                self.entries.lock().entry(job.job_id().to_owned()).or_default().push(n);
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            Ok(json!(to))
        }
        .boxed()
    }
}
