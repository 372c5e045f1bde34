//! The engine while Redis fails under it: running jobs and their viewers go on, nobody runs a job beside another, and
//! what is lost is told to the viewers.

// Futures of whole conversations are nested deeply.
#![recursion_limit = "256"]

#[path = "conformance/ask.rs"]
mod ask;
#[path = "workers/at.rs"]
#[allow(dead_code)] // shared with other tests
mod at;
#[path = "failover/crowd.rs"]
mod crowd;
#[path = "failover/losses.rs"]
mod losses;
#[path = "conformance/pair.rs"]
mod pair;
#[path = "conformance/proxy.rs"]
mod proxy;
#[path = "conformance/redis_cluster.rs"]
mod redis_cluster;
#[path = "conformance/redis_server.rs"]
mod redis_server;
#[path = "failover/takeover.rs"]
mod takeover;
#[path = "failover/viewer.rs"]
mod viewer;
#[path = "workers/worker.rs"]
#[allow(dead_code)] // shared with other tests
mod worker;

use std::{ops::Deref, time::Duration};

use at::At;
use clap::Parser;
use job_engine::{config::Config, server};
use tidegate_proto::v1::{Caller, GetJobRequest, Job, SubmitJobRequest};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How long anything may take here: Redis is given time to fail over, and the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    config: Config,
}

/// An engine on real sockets.
struct Running {
    at: At,
    stop: CancellationToken,
    served: JoinHandle<anyhow::Result<()>>,
}

impl Deref for Running {
    type Target = At;

    fn deref(&self) -> &At {
        &self.at
    }
}

impl Running {
    /// Starts an engine on Redis, with a lease of three seconds.
    async fn start(redis: &str, more: &[&str]) -> Self {
        let mut flags: Vec<String> =
            ["engine", "--grpc-listen=127.0.0.1:0", "--engine-admin-listen=127.0.0.1:0", "--lease-seconds=3"]
                .map(Into::into)
                .to_vec();
        flags.extend(["--progress-interval-ms=0".into(), format!("--redis={redis}")]);
        flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        let bound = server::bind(&Flags::parse_from(flags).config, None).await.expect("an engine");
        let url = format!("http://{}", bound.grpc_addr().expect("an address"));
        let stop = CancellationToken::new();
        let served = tokio::spawn(bound.serve(stop.clone()));
        Self { at: At { url }, stop, served }
    }

    async fn try_submit(&self, idempotency_key: &str) -> Result<Job, Status> {
        let request = SubmitJobRequest {
            kind: "demo".into(),
            caller: Some(Caller { tenant: "default".into(), subject: "me".into(), ..Caller::default() }),
            idempotency_key: idempotency_key.into(),
            ..SubmitJobRequest::default()
        };
        Ok(self.jobs().await.submit_job(request).await?.into_inner().job.expect("a job"))
    }

    async fn submit(&self) -> Job {
        self.try_submit("").await.expect("accepted")
    }

    async fn job(&self, job_id: &str) -> Result<Job, Status> {
        let request = GetJobRequest { caller: None, job_id: job_id.into() };
        Ok(self.jobs().await.get_job(request).await?.into_inner().job.expect("a job"))
    }

    async fn stop(self) {
        self.stop.cancel();
        self.served.await.expect("no panic").expect("a clean end");
    }
}

/// Waits until there is an answer.
async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
