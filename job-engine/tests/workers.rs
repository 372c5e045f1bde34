//! The engine over real gRPC, with workers that misbehave on purpose; every test runs on both stores.

#[path = "workers/cases.rs"]
mod cases;
#[path = "conformance/redis_server.rs"]
mod redis_server;
#[path = "workers/worker.rs"]
mod worker;

use std::{path::PathBuf, time::Duration};

use clap::Parser;
use job_engine::{config::Config, server};
use redis_server::RedisServer;
use tidegate_proto::v1::{
    Caller, Job, JobState, SubmitJobRequest, job_service_client::JobServiceClient,
    worker_service_client::WorkerServiceClient,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    config: Config,
}

/// An engine on real sockets.
struct Running {
    url: String,
    stop: CancellationToken,
    served: JoinHandle<anyhow::Result<()>>,
}

/// A store on which engines can be started, one after the other or (on Redis) side by side.
struct World {
    redis: Option<RedisServer>,
    dir: tempfile::TempDir,
}

impl World {
    fn on_disk() -> Self {
        Self { redis: None, dir: tempfile::tempdir().expect("a scratch directory") }
    }

    fn on_redis() -> Self {
        Self { redis: Some(RedisServer::start()), ..Self::on_disk() }
    }

    /// Starts an engine with a lease and a cancel grace of one second.
    async fn engine(&self) -> Running {
        let dir: PathBuf = self.dir.path().join("data");
        let mut flags: Vec<String> = [
            "engine",
            "--grpc-listen=127.0.0.1:0",
            "--engine-admin-listen=127.0.0.1:0",
            "--durability=buffer",
        ]
        .map(Into::into)
        .to_vec();
        flags.extend([
            "--lease-seconds=1".into(),
            "--cancel-grace-seconds=1".into(),
            "--progress-interval-ms=0".into(),
        ]);
        flags.push(format!("--data-dir={}", dir.display()));
        flags.extend(self.redis.as_ref().map(|redis| format!("--redis={}", redis.url())));
        let bound = server::bind(&Flags::parse_from(flags).config).await.expect("an engine");
        let url = format!("http://{}", bound.grpc_addr().expect("an address"));
        let stop = CancellationToken::new();
        let served = tokio::spawn(bound.serve(stop.clone()));
        Running { url, stop, served }
    }
}

impl Running {
    async fn channel(&self) -> Channel {
        Channel::from_shared(self.url.clone()).expect("a url").connect().await.expect("the engine answers")
    }

    async fn jobs(&self) -> JobServiceClient<Channel> {
        JobServiceClient::new(self.channel().await)
    }

    async fn workers(&self) -> WorkerServiceClient<Channel> {
        WorkerServiceClient::new(self.channel().await)
    }

    async fn submit(&self, kind: &str) -> Job {
        let request =
            SubmitJobRequest { kind: kind.into(), caller: Some(caller("me")), ..SubmitJobRequest::default() };
        self.jobs().await.submit_job(request).await.expect("accepted").into_inner().job.expect("a job")
    }

    /// Waits until the job is in the state.
    async fn until(&self, job_id: &str, state: JobState) -> Job {
        let mut jobs = self.jobs().await;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let request = tidegate_proto::v1::GetJobRequest { caller: None, job_id: job_id.into() };
            let job = jobs.get_job(request).await.expect("the job is there").into_inner().job.expect("a job");
            if job.state() == state {
                return job;
            }
            assert!(tokio::time::Instant::now() < deadline, "not {state:?} in time: {job:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.served.await.expect("no panic").expect("a clean end");
    }
}

fn caller(subject: &str) -> Caller {
    Caller { tenant: "default".into(), subject: subject.into() }
}

macro_rules! on_both_stores {
    ($($name:ident)*) => {
        mod redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::cases::$name(super::World::on_redis()).await; })*
        }
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::cases::$name(super::World::on_disk()).await; })*
        }
    };
}

on_both_stores! {
    a_job_runs_from_submit_to_its_result
    j1_a_worker_paused_past_its_lease_is_fenced
    j2_a_lost_worker_s_job_goes_on_from_its_checkpoint
    j4_a_report_sent_again_is_stored_once
    j5_a_stream_that_comes_back_with_its_tokens_keeps_its_jobs
    j8_workers_of_the_same_name_are_not_the_same_worker
    j10_cancel_reaches_waiting_and_running_jobs
    j11_a_worker_that_ignores_cancel_is_cut_off
    j12_cancel_reaches_a_worker_that_was_away
    j14_a_finished_job_replays_and_ends
    j31_one_idempotency_key_is_one_job
    j34_retry_goes_on_numbering
    j36_drain_tells_workers_and_watchers
    j37_bad_reports_are_rejected_and_bad_hellos_refused
    e24_others_jobs_do_not_exist
    e54_a_worker_that_does_not_read_keeps_jobs_from_nobody
    kinds_and_lists_are_shared
    delayed_jobs_and_retries_wait_for_their_time
}
