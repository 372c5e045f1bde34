//! An engine that asks who calls, credentials for it, and a worker by hand.

use std::{fs, path::PathBuf, time::Duration};

use clap::Parser;
use job_engine::{config::Config, server};
use serde_json::{Value, json};
use tidegate_auth::mint;
use tidegate_proto::{
    bearer::Bearer,
    v1::{
        Assignment, Caller, Hello, Job, Log, Ping, Report, SubmitJobRequest, WorkRequest, WorkResponse,
        WorkerKind, job_service_client::JobServiceClient, report::Body, work_request, work_response::Message,
        worker_service_client::WorkerServiceClient,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Status, Streaming, service::interceptor::InterceptedService, transport::Channel};

const SECRET: &str = "an engine test's secret of more than 32 bytes";

#[derive(Parser)]
pub(crate) struct Flags {
    #[command(flatten)]
    pub(crate) config: Config,
}

pub(crate) type Jobs = JobServiceClient<InterceptedService<Channel, Bearer>>;

/// An engine that asks who calls.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) channel: Channel,
    pub(crate) gateway: String,
    entries: String,
    _served: AbortOnDropHandle<anyhow::Result<()>>,
}

pub(crate) fn key_entry(name: &str, scope: &str) -> (String, String) {
    let (key, hash) = mint::api_key();
    let hash = mint::sha256_hex(&hash);
    let entry = format!(
        "[[auth.api_key]]\nname = '{name}'\nsha256 = '{hash}'\nsubject = '{name}'\nscopes = ['{scope}']\n"
    );
    (key, entry)
}

impl World {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("hs.secret"), SECRET).unwrap();
        let (gateway, entries) = key_entry("edge", "engine:delegate");
        let config = Flags::parse_from([
            "engine",
            "--grpc-listen=127.0.0.1:0",
            "--engine-admin-listen=127.0.0.1:0",
            "--durability=buffer",
            "--lease-seconds=1",
            "--progress-interval-ms=0",
            &format!("--data-dir={}", dir.path().join("data").display()),
            &format!("--config={}", Self::file(&dir).display()),
        ]);
        Self::write_to(&dir, &entries);
        let auth = config.config.check(false).unwrap();
        assert!(auth.is_some());
        let bound = server::bind(&config.config, auth).await.unwrap();
        let url = format!("http://{}", bound.grpc_addr().unwrap());
        let served = AbortOnDropHandle::new(tokio::spawn(bound.serve(CancellationToken::new())));
        let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
        let world = Self { dir, channel, gateway, entries, _served: served };
        // Only what some worker has offered can be submitted.
        Worker::connect(&world, &token("first", "acme", "work", 60)).await.unwrap().leave().await;
        world
    }

    pub(crate) fn file(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join("tidegate.toml")
    }

    pub(crate) fn write_to(dir: &tempfile::TempDir, entries: &str) {
        let text = format!(
            "[auth]\nreload_seconds = 1\n[[auth.issuer]]\nissuer = 'test'\naudience = 'tidegate'\nalgorithms = ['HS256']\n\
             secret_file = 'hs.secret'\ntenant_claim = 'tenant'\ngrants = {{ 'work' = ['engine:work'] }}\n{entries}"
        );
        // Renamed, because a file that is read half written is another test.
        let new = dir.path().join("new.toml");
        fs::write(&new, text).unwrap();
        fs::rename(new, Self::file(dir)).unwrap();
    }

    /// Adds to the configuration, which the engine notices within a second.
    pub(crate) fn write(&self, more: &str) {
        Self::write_to(&self.dir, &format!("{}{more}", self.entries));
    }

    pub(crate) fn with(&self, token: &str) -> Jobs {
        JobServiceClient::with_interceptor(self.channel.clone(), Bearer::token(token).unwrap())
    }

    pub(crate) fn nobody(&self) -> Jobs {
        JobServiceClient::with_interceptor(self.channel.clone(), Bearer::default())
    }

    /// A job of `subject` in `tenant`.
    pub(crate) async fn submit(&self, tenant: &str, subject: &str) -> Job {
        let request = SubmitJobRequest { caller: caller(tenant, subject), ..submission() };
        self.with(&self.gateway).submit_job(request).await.unwrap().into_inner().job.unwrap()
    }
}

pub(crate) fn token(subject: &str, tenant: &str, scope: &str, seconds: i64) -> String {
    let now = tidegate_auth::now();
    let claims: Value = json!({
        "iss": "test", "aud": "tidegate", "sub": subject, "tenant": tenant, "scope": scope, "jti": subject,
        "iat": now, "exp": now.saturating_add_signed(seconds),
    });
    mint::SigningKey::from_secret(SECRET).unwrap().sign(&claims).unwrap()
}

pub(crate) fn caller(tenant: &str, subject: &str) -> Option<Caller> {
    Some(Caller { tenant: tenant.into(), subject: subject.into(), whole_tenant: false })
}

pub(crate) fn submission() -> SubmitJobRequest {
    SubmitJobRequest { kind: "count".into(), ..SubmitJobRequest::default() }
}

/// A worker by hand.
pub(crate) struct Worker {
    requests: mpsc::Sender<WorkRequest>,
    pub(crate) responses: Streaming<WorkResponse>,
    pings: AbortOnDropHandle<()>,
}

impl Worker {
    pub(crate) async fn connect(world: &World, token: &str) -> Result<Self, Status> {
        let bearer = Bearer::token(token).unwrap();
        let mut client = WorkerServiceClient::with_interceptor(world.channel.clone(), bearer);
        let (requests, stream) = mpsc::channel(64);
        let kinds = vec![WorkerKind { kind: "count".into(), ..WorkerKind::default() }];
        let hello = Hello { name: "by-hand".into(), kinds, capacity: 1, ..Hello::default() };
        requests.send(WorkRequest { message: Some(work_request::Message::Hello(hello)) }).await.unwrap();
        let responses = client.work(ReceiverStream::new(stream)).await?.into_inner();
        let pings = AbortOnDropHandle::new(tokio::spawn(ping(requests.clone())));
        Ok(Self { requests, responses, pings })
    }

    /// Hangs up, and waits until the engine has seen it.
    pub(crate) async fn leave(mut self) {
        drop((self.requests, self.pings));
        while let Ok(Some(_)) = self.responses.message().await {}
    }

    pub(crate) async fn assignment(&mut self) -> Assignment {
        loop {
            if let Some(Message::Assignment(job)) = self.responses.message().await.unwrap().unwrap().message {
                return job;
            }
        }
    }

    pub(crate) async fn log(&self, job: &Assignment, number: u64, text: &str) -> bool {
        let body = Body::Log(Log { text: text.into(), ..Log::default() });
        let (job_id, lease_token) = (job.job_id.clone(), job.lease_token.clone());
        let report = Report { job_id, lease_token, number, body: Some(body) };
        self.requests.send(WorkRequest { message: Some(work_request::Message::Report(report)) }).await.is_ok()
    }
}

pub(crate) async fn ping(requests: mpsc::Sender<WorkRequest>) {
    let ping = WorkRequest { message: Some(work_request::Message::Ping(Ping {})) };
    while requests.send(ping.clone()).await.is_ok() {
        // How often a worker gives a sign of life, not something that is waited for.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
