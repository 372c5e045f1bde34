//! Who may call the engine, over real gRPC: users, gateways, workers, and those who are none of them.
// A test may panic: that is how it fails.
#![allow(clippy::unwrap_used)]

#[path = "auth/world.rs"]
mod world;

use std::{fs, time::Duration};

use clap::Parser as _;
use futures_util::{StreamExt as _, future::join_all};
use tidegate_auth::{Authenticator, mint};
use tidegate_proto::v1::{
    Caller, CancelJobRequest, DeleteJobRequest, GetJobRequest, ListJobsRequest, ListKindsRequest,
    ReadEventsRequest, RetryJobRequest, SubmitJobRequest, WatchJobRequest, event::Kind as EventKind,
    watch_job_response,
};
use tokio::time::Instant;
use tonic::{Code, Request, Status};

use crate::world::{Flags, Jobs, Worker, World, caller, key_entry, submission, token};

const NO_JOB: &str = "01900000-0000-7000-8000-00000000ffff";

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
