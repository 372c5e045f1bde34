//! Who may call the engine, over real gRPC: users, gateways, workers, and those who are none of them.
// A test may panic: that is how it fails.
#![allow(clippy::unwrap_used)]

use std::{fs, path::PathBuf, time::Duration};

use clap::Parser;
use futures_util::{StreamExt as _, future::join_all};
use job_engine::{config::Config, server};
use serde_json::{Value, json};
use tidegate_auth::{Authenticator, mint};
use tidegate_proto::{
    bearer::Bearer,
    v1::{
        Assignment, Caller, CancelJobRequest, DeleteJobRequest, GetJobRequest, Hello, Job, ListJobsRequest,
        ListKindsRequest, Log, Ping, ReadEventsRequest, Report, RetryJobRequest, SubmitJobRequest,
        WatchJobRequest, WorkRequest, WorkResponse, WorkerKind, event::Kind as EventKind,
        job_service_client::JobServiceClient, report::Body, watch_job_response, work_request,
        work_response::Message, worker_service_client::WorkerServiceClient,
    },
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tonic::{Code, Request, Status, Streaming, service::interceptor::InterceptedService, transport::Channel};

const NO_JOB: &str = "01900000-0000-7000-8000-00000000ffff";
const SECRET: &str = "an engine test's secret of more than 32 bytes";

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    config: Config,
}

type Jobs = JobServiceClient<InterceptedService<Channel, Bearer>>;

/// An engine that asks who calls.
struct World {
    dir: tempfile::TempDir,
    channel: Channel,
    gateway: String,
    entries: String,
    _served: AbortOnDropHandle<anyhow::Result<()>>,
}

fn key_entry(name: &str, scope: &str) -> (String, String) {
    let (key, hash) = mint::api_key();
    let hash = mint::sha256_hex(&hash);
    let entry = format!(
        "[[auth.api_key]]\nname = '{name}'\nsha256 = '{hash}'\nsubject = '{name}'\nscopes = ['{scope}']\n"
    );
    (key, entry)
}

impl World {
    async fn start() -> Self {
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

    fn file(dir: &tempfile::TempDir) -> PathBuf {
        dir.path().join("tidegate.toml")
    }

    fn write_to(dir: &tempfile::TempDir, entries: &str) {
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
    fn write(&self, more: &str) {
        Self::write_to(&self.dir, &format!("{}{more}", self.entries));
    }

    fn with(&self, token: &str) -> Jobs {
        JobServiceClient::with_interceptor(self.channel.clone(), Bearer::token(token).unwrap())
    }

    fn nobody(&self) -> Jobs {
        JobServiceClient::with_interceptor(self.channel.clone(), Bearer::default())
    }

    /// A job of `subject` in `tenant`.
    async fn submit(&self, tenant: &str, subject: &str) -> Job {
        let request = SubmitJobRequest { caller: caller(tenant, subject), ..submission() };
        self.with(&self.gateway).submit_job(request).await.unwrap().into_inner().job.unwrap()
    }
}

fn token(subject: &str, tenant: &str, scope: &str, seconds: i64) -> String {
    let now = tidegate_auth::now();
    let claims: Value = json!({
        "iss": "test", "aud": "tidegate", "sub": subject, "tenant": tenant, "scope": scope, "jti": subject,
        "iat": now, "exp": now.saturating_add_signed(seconds),
    });
    mint::SigningKey::from_secret(SECRET).unwrap().sign(&claims).unwrap()
}

fn caller(tenant: &str, subject: &str) -> Option<Caller> {
    Some(Caller { tenant: tenant.into(), subject: subject.into(), whole_tenant: false })
}

fn submission() -> SubmitJobRequest {
    SubmitJobRequest { kind: "count".into(), ..SubmitJobRequest::default() }
}

/// What each call of `JobService` that names a job answers, by its name.
async fn ask(
    jobs: &mut Jobs,
    job_id: &str,
    caller: Option<Caller>,
) -> Vec<(&'static str, Result<(), Status>)> {
    let id = || job_id.to_owned();
    let mut answers = Vec::new();
    let get = GetJobRequest { job_id: id(), caller: caller.clone() };
    answers.push(("GetJob", jobs.get_job(get).await.map(drop)));
    let cancel = CancelJobRequest { job_id: id(), caller: caller.clone(), reason: String::new() };
    answers.push(("CancelJob", jobs.cancel_job(cancel).await.map(drop)));
    let retry = RetryJobRequest { job_id: id(), caller: caller.clone() };
    answers.push(("RetryJob", jobs.retry_job(retry).await.map(drop)));
    let watch = WatchJobRequest { job_id: id(), caller: caller.clone(), ..WatchJobRequest::default() };
    answers.push(("WatchJob", jobs.watch_job(watch).await.map(drop)));
    let read = ReadEventsRequest { job_id: id(), caller: caller.clone(), ..ReadEventsRequest::default() };
    answers.push(("ReadEvents", jobs.read_events(read).await.map(drop)));
    let delete = DeleteJobRequest { job_id: id(), caller };
    answers.push(("DeleteJob", jobs.delete_job(delete).await.map(drop)));
    answers
}

fn code<T>(answer: Result<T, Status>) -> Code {
    answer.err().map_or(Code::Ok, |status| status.code())
}

#[tokio::test]
async fn every_call_needs_a_credential_that_is_good() {
    let world = World::start().await;
    let job = world.submit("acme", "alice").await;
    let (unknown, _) = mint::api_key();
    let expired = token("alice", "acme", "jobs:read jobs:control jobs:admin", -120);
    let tokens = [unknown, expired, "x".into(), "x".repeat(9000), format!("{}x", world.gateway)];
    let bad = tokens.iter().map(|token| world.with(token)).chain([world.nobody()]);
    for mut jobs in bad {
        for (name, answer) in ask(&mut jobs, &job.job_id, caller("acme", "alice")).await {
            assert_eq!(code(answer), Code::Unauthenticated, "{name}");
        }
        assert_eq!(code(jobs.submit_job(submission()).await), Code::Unauthenticated);
        assert_eq!(code(jobs.list_jobs(ListJobsRequest::default()).await), Code::Unauthenticated);
        assert_eq!(code(jobs.list_kinds(ListKindsRequest {}).await), Code::Unauthenticated);
    }
    for header in ["Basic eDp5", "Bearer", &format!("bearer{}", world.gateway), &world.gateway] {
        let mut request = Request::new(ListKindsRequest {});
        request.metadata_mut().insert("authorization", header.parse().unwrap());
        assert_eq!(code(world.nobody().list_kinds(request).await), Code::Unauthenticated, "{header}");
    }
    let mut twice = Request::new(ListKindsRequest {});
    for token in [&world.gateway, "x"] {
        twice.metadata_mut().append("authorization", format!("Bearer {token}").parse().unwrap());
    }
    assert_eq!(code(world.nobody().list_kinds(twice).await), Code::Unauthenticated);
    // Without having been seen, the job is as it was.
    let get = GetJobRequest { job_id: job.job_id.clone(), caller: None };
    let now = world.with(&world.gateway).get_job(get).await.unwrap().into_inner().job.unwrap();
    assert_eq!((now.last_seq, now.state), (job.last_seq, job.state));
}

#[tokio::test]
async fn e25_a_user_s_own_token_speaks_for_that_user_only() {
    let world = World::start().await;
    let (hers, other) = (world.submit("acme", "alice").await, world.submit("globex", "alice").await);
    let all = "jobs:submit jobs:read jobs:control";
    let missing: Vec<_> = ask(&mut world.with(&token("bob", "acme", all, 60)), NO_JOB, None).await;
    let text = |answer: &Result<(), Status>| {
        let status = answer.as_ref().unwrap_err();
        (status.code(), status.message().to_owned(), status.details().to_vec())
    };
    for (who, job) in [
        (token("bob", "acme", all, 60), &hers),
        (token("alice", "acme", all, 60), &other),
        (token("boss", "acme", "jobs:admin", 60), &other),
    ] {
        for ((name, answer), (_, missing)) in
            ask(&mut world.with(&who), &job.job_id, None).await.iter().zip(&missing)
        {
            assert_eq!(text(answer), text(missing), "{name}");
            assert_eq!(answer.as_ref().unwrap_err().code(), Code::NotFound, "{name}");
        }
        // Whoever says to be somebody else is told that this is not for it to say.
        for (name, answer) in ask(&mut world.with(&who), &job.job_id, caller(&job.tenant, &job.owner)).await {
            assert_eq!(code(answer), Code::PermissionDenied, "{name}");
        }
    }
    // Each call needs its scope.
    for (name, answer) in ask(&mut world.with(&token("alice", "acme", "work", 60)), &hers.job_id, None).await
    {
        assert_eq!(code(answer), Code::PermissionDenied, "{name}");
    }
    let mut reader = world.with(&token("alice", "acme", "jobs:read", 60));
    assert_eq!(code(reader.submit_job(submission()).await), Code::PermissionDenied);
    for (name, answer) in ask(&mut reader, &hers.job_id, caller("acme", "alice")).await {
        let reads = matches!(name, "GetJob" | "WatchJob" | "ReadEvents");
        assert_eq!(code(answer), if reads { Code::Ok } else { Code::PermissionDenied }, "{name}");
    }
    // What is submitted is the sender's, whoever it claims to be.
    let mut bob = world.with(&token("bob", "acme", all, 60));
    let job = bob.submit_job(submission()).await.unwrap().into_inner().job.unwrap();
    assert_eq!((&*job.tenant, &*job.owner), ("acme", "bob"));
    let as_alice = SubmitJobRequest { caller: caller("acme", "alice"), ..submission() };
    assert_eq!(code(bob.submit_job(as_alice).await), Code::PermissionDenied);
}

#[tokio::test]
async fn e25_lists_and_their_pages_name_nobody_else_s_jobs() {
    let world = World::start().await;
    let mut ours = Vec::new();
    for n in 0..6 {
        ours.push(world.submit("acme", ["alice", "bob"][n % 2]).await.job_id);
    }
    // More than an engine looks at for a page: one that looked at others' jobs would end among them, and say where.
    for _ in 0..11 {
        join_all((0..100).map(|_| world.submit("globex", "mallory"))).await;
    }
    for (who, wanted) in [
        (token("alice", "acme", "jobs:read", 60), 3),
        (token("boss", "acme", "jobs:admin", 60), 6),
        (token("nobody", "acme", "jobs:read", 60), 0),
        (token("boss", "initech", "jobs:admin", 60), 0),
    ] {
        let (mut jobs, mut seen, mut page) = (world.with(&who), 0, String::new());
        loop {
            let request = ListJobsRequest { page_size: 1, page_token: page, ..ListJobsRequest::default() };
            let answer = jobs.list_jobs(request).await.unwrap().into_inner();
            assert!(answer.jobs.iter().all(|job| ours.contains(&job.job_id)));
            seen += answer.jobs.len();
            page = answer.next_page_token;
            if page.is_empty() {
                break;
            }
            assert!(
                ours.iter().any(|id| page.contains(id.as_str())),
                "a page's token names another's job: {page}"
            );
        }
        assert_eq!(seen, wanted);
    }
}

/// A worker by hand.
struct Worker {
    requests: mpsc::Sender<WorkRequest>,
    responses: Streaming<WorkResponse>,
    pings: AbortOnDropHandle<()>,
}

impl Worker {
    async fn connect(world: &World, token: &str) -> Result<Self, Status> {
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
    async fn leave(mut self) {
        drop((self.requests, self.pings));
        while let Ok(Some(_)) = self.responses.message().await {}
    }

    async fn assignment(&mut self) -> Assignment {
        loop {
            if let Some(Message::Assignment(job)) = self.responses.message().await.unwrap().unwrap().message {
                return job;
            }
        }
    }

    async fn log(&self, job: &Assignment, number: u64, text: &str) -> bool {
        let body = Body::Log(Log { text: text.into(), ..Log::default() });
        let (job_id, lease_token) = (job.job_id.clone(), job.lease_token.clone());
        let report = Report { job_id, lease_token, number, body: Some(body) };
        self.requests.send(WorkRequest { message: Some(work_request::Message::Report(report)) }).await.is_ok()
    }
}

async fn ping(requests: mpsc::Sender<WorkRequest>) {
    let ping = WorkRequest { message: Some(work_request::Message::Ping(Ping {})) };
    while requests.send(ping.clone()).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn e47_a_worker_whose_token_ends_is_heard_no_more_and_its_job_goes_on_elsewhere() {
    let world = World::start().await;
    for scope in ["jobs:admin", "engine:work", ""] {
        let refused = Worker::connect(&world, &token("w", "acme", scope, 60)).await;
        assert_eq!(code(refused), Code::PermissionDenied, "{scope:?}");
    }
    let job = world.submit("acme", "alice").await;
    let mut short = Worker::connect(&world, &token("short", "acme", "work", 3)).await.unwrap();
    let lease = short.assignment().await;
    assert!(short.log(&lease, 1, "in time").await);
    let ended = loop {
        match tokio::time::timeout(Duration::from_secs(30), short.responses.message()).await.unwrap() {
            Ok(message) => assert!(message.is_some(), "it ended without a word"),
            Err(status) => break status,
        }
    };
    assert_eq!((ended.code(), ended.message()), (Code::Unauthenticated, "the token has expired"));
    // It goes on talking, as a worker would that means ill.
    for number in 2..10 {
        short.log(&lease, number, "too late").await;
    }
    let mut next = Worker::connect(&world, &token("next", "acme", "work", 60)).await.unwrap();
    let again = tokio::time::timeout(Duration::from_secs(30), next.assignment()).await.unwrap();
    assert_eq!((&again.job_id, again.attempt), (&job.job_id, 2));
    let read = ReadEventsRequest { job_id: job.job_id, ..ReadEventsRequest::default() };
    let events = world.with(&world.gateway).read_events(read).await.unwrap().into_inner().events;
    let logs = events.iter().filter_map(|event| match &event.kind {
        Some(EventKind::Log(log)) => Some(&*log.text),
        _ => None,
    });
    assert_eq!(logs.filter(|text| ["in time", "too late"].contains(text)).collect::<Vec<_>>(), ["in time"]);
}

#[tokio::test]
async fn e48_a_watch_ends_when_what_it_rests_on_is_taken_back() {
    let world = World::start().await;
    let job = world.submit("acme", "alice").await;
    let watch = async |token: &str| {
        let request = WatchJobRequest { job_id: job.job_id.clone(), ..WatchJobRequest::default() };
        let mut stream = world.with(token).watch_job(request).await.unwrap().into_inner();
        let first = stream.message().await.unwrap().unwrap().message;
        assert!(matches!(first, Some(watch_job_response::Message::Opened(_))));
        stream
    };
    let mut revoked = watch(&token("alice", "acme", "jobs:read", 60)).await;
    let mut gateway = watch(&world.gateway).await;
    let began = Instant::now();
    world.write("[[auth.revoked]]\nsubject = 'alice'\n");
    let status = loop {
        match tokio::time::timeout(Duration::from_secs(30), revoked.message()).await.unwrap() {
            Ok(Some(_)) => {}
            other => break other.unwrap_err(),
        }
    };
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "the credential was revoked"));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    // The gateway's stream goes on.
    let cancel = CancelJobRequest { job_id: job.job_id.clone(), ..CancelJobRequest::default() };
    world.with(&world.gateway).cancel_job(cancel).await.unwrap();
    while let Some(message) = gateway.next().await {
        message.unwrap();
    }
}

#[test]
fn an_engine_that_others_can_reach_wants_authentication() {
    let dir = tempfile::tempdir().unwrap();
    let parse = |flags: &[&str]| Flags::parse_from(["engine"].iter().chain(flags)).config;
    let open = parse(&["--grpc-listen=0.0.0.0:0", "--engine-admin-listen=127.0.0.1:0"]);
    assert!(open.check(false).unwrap_err()[0].contains("[auth]"));
    assert!(open.check(true).unwrap().is_none());
    let file = dir.path().join("tidegate.toml");
    let flag = format!("--config={}", file.display());
    fs::write(&file, "[[exec]]\nkind = 'x'\n").unwrap();
    let config = parse(&["--grpc-listen=0.0.0.0:0", &flag]);
    assert!(config.check(false).is_err(), "a file without the section is no authentication");
    fs::write(&file, "[auth]\n").unwrap();
    let errors = config.check(true).unwrap_err();
    assert!(errors[0].contains("nobody could come in"), "{errors:?}");
    let (_, entry) = key_entry("edge", "engine:delegate");
    fs::write(&file, entry).unwrap();
    assert!(matches!(config.check(false), Ok(Some(Authenticator { .. }))));
}
