//! The engine over real gRPC, with workers that misbehave on purpose; every test runs on both stores.
// Futures of whole conversations are nested deeply.
#![recursion_limit = "256"]

#[path = "workers/at.rs"]
mod at;
#[path = "workers/dispatch.rs"]
mod dispatch;
#[path = "workers/ends.rs"]
mod ends;
#[path = "workers/jobs.rs"]
mod jobs;
#[path = "workers/parts.rs"]
mod parts;
#[path = "conformance/redis_server.rs"]
mod redis_server;
#[path = "workers/sessions.rs"]
mod sessions;
#[path = "workers/violence.rs"]
mod violence;
#[path = "workers/worker.rs"]
mod worker;

use std::{ops::Deref, sync::Arc, time::Duration};

use at::At;
use clap::Parser;
use job_engine::{config::Config, engine::Engine, server};
use redis_server::RedisServer;
use tidegate_proto::v1::{
    Caller, GetJobRequest, Job, JobOptions, JobState, SubmitJobRequest, SubmitJobResponse,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    config: Config,
}

/// An engine in this process, on real sockets.
struct Running {
    at: At,
    inner: Arc<Engine>,
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

    /// Starts an engine whose leases no busy test machine lets expire.
    async fn engine(&self) -> Running {
        self.engine_with(&["--lease-seconds=20", "--cancel-grace-seconds=20"]).await
    }

    /// Starts an engine that soon gives up a worker.
    async fn impatient(&self) -> Running {
        self.engine_with(&["--lease-seconds=3", "--cancel-grace-seconds=1"]).await
    }

    /// The flags of an engine on this store.
    fn flags(&self, port: u16, more: &[&str]) -> Vec<String> {
        let mut flags = vec![
            "engine".to_owned(),
            format!("--grpc-listen=127.0.0.1:{port}"),
            "--engine-admin-listen=127.0.0.1:0".into(),
            "--durability=buffer".into(),
            "--progress-interval-ms=0".into(),
            format!("--data-dir={}", self.dir.path().join("data").display()),
        ];
        flags.extend(self.redis.as_ref().map(|redis| format!("--redis={}", redis.url())));
        flags.extend(more.iter().map(|flag| (*flag).to_owned()));
        flags
    }

    async fn engine_with(&self, more: &[&str]) -> Running {
        let flags = Flags::parse_from(self.flags(0, more));
        let bound = server::bind(&flags.config, None).await.expect("an engine");
        let at = At { url: format!("http://{}", bound.grpc_addr().expect("an address")) };
        let (stop, inner) = (CancellationToken::new(), bound.engine().clone());
        let served = tokio::spawn(bound.serve(stop.clone()));
        Running { at, inner, stop, served }
    }
}

impl Deref for Running {
    type Target = At;

    fn deref(&self) -> &At {
        &self.at
    }
}

impl At {
    async fn submit(&self, kind: &str) -> Job {
        self.submit_as("me", kind, JobOptions::default()).await
    }

    async fn submit_as(&self, owner: &str, kind: &str, options: JobOptions) -> Job {
        self.try_submit(owner, kind, options).await.expect("accepted").job.expect("a job")
    }

    async fn try_submit(
        &self,
        owner: &str,
        kind: &str,
        options: JobOptions,
    ) -> Result<SubmitJobResponse, Status> {
        let request = SubmitJobRequest {
            kind: kind.into(),
            caller: Some(caller(owner)),
            options: Some(options),
            ..SubmitJobRequest::default()
        };
        self.jobs().await.submit_job(request).await.map(tonic::Response::into_inner)
    }

    /// Waits until the job is in the state.
    async fn until(&self, job_id: &str, state: JobState) -> Job {
        let mut jobs = self.jobs().await;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        loop {
            let request = GetJobRequest { caller: None, job_id: job_id.into() };
            let job = jobs.get_job(request).await.expect("the job is there").into_inner().job.expect("a job");
            if job.state() == state {
                return job;
            }
            assert!(tokio::time::Instant::now() < deadline, "not {state:?} in time: {job:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        self.served.await.expect("no panic").expect("a clean end");
    }
}

fn caller(subject: &str) -> Caller {
    Caller { tenant: "default".into(), subject: subject.into(), ..Caller::default() }
}

macro_rules! on_both_stores {
    ($($of:ident: $($name:ident)*;)*) => {
        mod redis {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$of::$name(super::World::on_redis()).await; })*)*
        }
        mod embedded {
            $($(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$of::$name(super::World::on_disk()).await; })*)*
        }
    };
}

on_both_stores! {
    sessions:
    a_job_runs_from_submit_to_its_result
    j1_a_worker_paused_past_its_lease_is_fenced
    j2_a_lost_worker_s_job_goes_on_from_its_checkpoint
    j4_a_report_sent_again_is_stored_once
    j4_reports_that_come_together_are_judged_one_by_one
    j37_a_message_of_too_many_reports_ends_the_stream_alone
    j5_a_stream_that_comes_back_with_its_tokens_keeps_its_jobs
    j8_workers_of_the_same_name_are_not_the_same_worker
    j36_drain_tells_workers_and_watchers
    j37_bad_reports_are_rejected_and_bad_hellos_refused
    e54_a_worker_that_does_not_read_keeps_jobs_from_nobody
    ;
    jobs:
    j10_cancel_reaches_waiting_and_running_jobs
    j11_a_worker_that_ignores_cancel_is_cut_off
    j12_cancel_reaches_a_worker_that_was_away
    j14_a_finished_job_replays_and_ends
    j31_one_idempotency_key_is_one_job
    j34_retry_goes_on_numbering
    e24_others_jobs_do_not_exist
    kinds_and_lists_are_shared
    delayed_jobs_and_retries_wait_for_their_time
    ;
    dispatch:
    j32_an_owner_with_many_jobs_delays_another_s_first_by_one_slot
    an_owner_s_own_jobs_go_by_priority
    a_concurrency_key_runs_no_more_than_its_limit
    a_unique_key_is_one_unfinished_job
    full_queues_refuse_and_say_so
    j36_a_worker_that_leaves_gets_nothing_more_and_finishes_what_it_has
    ;
    ends:
    j10_cancel_ends_a_job_once_wherever_it_is
    j10_a_completion_and_a_cancellation_at_once_are_one_end
    j7_a_worker_that_pings_but_says_nothing_loses_its_job
    a_timeout_frees_the_slot_and_counts_as_an_attempt
    j34_a_pause_between_attempts_outlives_the_engine
    j9_a_job_that_loses_its_worker_too_often_says_so_as_it_ends
    j29_a_removed_job_leaves_nothing_behind
    a_rejected_report_stays_rejected_when_it_is_sent_again
    a_large_input_is_not_written_with_every_report
    ;
    violence:
    j1_a_silent_worker_gets_no_jobs
    j11_the_deadline_of_a_dead_engine_s_cancellation_is_kept
    j22_an_engine_that_dies_while_a_job_completes_ends_it_once
    j29_a_sweeper_that_is_killed_leaves_no_orphans
    j33_a_storm_of_due_jobs_is_promoted_in_slices
    j36_a_job_that_is_given_back_behind_leave_goes_to_another_worker
    j39_an_engine_that_assigns_nothing_is_not_ready
    ;
}

/// Two engines on one Redis.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j2_two_engines_run_no_job_twice() {
    dispatch::two_engines_run_no_job_twice(World::on_redis()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn j12_cancel_reaches_a_worker_of_another_engine() {
    ends::cancel_reaches_a_worker_of_another_engine(World::on_redis()).await;
}
