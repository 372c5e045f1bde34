//! One worker's stream: hello, leases, reports in, assignments and answers out.
//!
//! The session routes reports to the owner tasks of its jobs and renews their leases whenever the worker gives a sign
//! of life. When the stream breaks, owners end but leases do not: the worker has until they expire to come back, to
//! this engine or another, with its tokens.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tidegate_proto::{
    limits,
    v1::{
        Assignment, Drain, HeldLease, Hello, LeaseLost, Pong, Report, ResumedLease, Welcome, WorkRequest,
        WorkResponse, work_request, work_response::Message,
    },
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use crate::{
    engine::Engine,
    error::EngineError,
    job::{JobRecord, index, machine, machine::Refusal},
    owner::{Mailbox, Owner, ack},
    registry::{Membership, Slot},
    store::Head,
};

/// How many messages may wait for a worker that does not read.
const OUTBOX: usize = 256;
/// The largest capacity a worker may claim.
const MAX_CAPACITY: u32 = 10_000;
/// How long a draining engine lets its sessions linger.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// What others tell a session.
pub enum ToSession {
    /// A job was assigned to this worker.
    Assigned(Box<(JobRecord, Head, Slot)>),
    /// The owner of a job ended.
    Ended {
        /// The job.
        job_id: String,
        /// The lease that it owned.
        token: String,
    },
}

struct Held {
    token: String,
    lease_member: String,
    mailbox: Mailbox,
}

struct Session {
    engine: Arc<Engine>,
    membership: Membership,
    outbox: mpsc::Sender<WorkResponse>,
    jobs: HashMap<String, Held>,
    renewed: Instant,
}

/// Runs a session on its stream. The returned receiver is the answer stream; it ends with the session.
pub async fn open<S>(
    engine: Arc<Engine>,
    mut requests: S,
) -> Result<mpsc::Receiver<Result<WorkResponse, Status>>, Status>
where
    S: Stream<Item = Result<WorkRequest, Status>> + Send + Unpin + 'static,
{
    if engine.draining.is_cancelled() {
        return Err(EngineError::Draining.into());
    }
    let hello = match tokio::time::timeout(Duration::from_secs(10), requests.next()).await {
        Ok(Some(Ok(WorkRequest { message: Some(work_request::Message::Hello(hello)) }))) => hello,
        Ok(Some(Err(status))) => return Err(status),
        _ => return Err(Status::invalid_argument("the first message must be a Hello, within 10 seconds")),
    };
    check(&hello)?;
    for kind in &hello.kinds {
        engine.kinds.offer(&*engine.store, kind).await.map_err(EngineError::from)?;
    }

    let (to_session, inbox) = mpsc::channel(OUTBOX);
    let (outbox, mut out) = mpsc::channel(OUTBOX);
    let (answers, answer_stream) = mpsc::channel(1);
    let name = limits::cut(hello.name, limits::MAX_TEXT_BYTES);
    let kinds: Vec<String> = hello.kinds.into_iter().map(|k| k.kind).collect();
    tracing::info!(
        worker = name,
        ?kinds,
        capacity = hello.capacity,
        client = hello.client,
        "a worker connected"
    );
    let membership = engine.registry.join(name, kinds, hello.capacity as usize, to_session);
    let mut session = Session { engine, membership, outbox, jobs: HashMap::new(), renewed: Instant::now() };
    let welcome = session.welcome(hello.leases).await?;
    session.engine.tasks.clone().spawn(async move {
        // The Welcome goes first, whatever the dispatcher has already sent here.
        if answers.send(Ok(say(Message::Welcome(welcome)))).await.is_err() {
            return;
        }
        let forward = async {
            while let Some(message) = out.recv().await {
                if answers.send(Ok(message)).await.is_err() {
                    break;
                }
            }
        };
        let end = tokio::select! {
            end = session.run(requests, inbox) => end,
            () = forward => Ok(()),
        };
        tracing::info!(
            worker = session.membership.member.name,
            jobs = session.jobs.len(),
            ?end,
            "a worker's stream ended"
        );
        if let Err(status) = end {
            let _ = answers.send(Err(status)).await;
        }
    });
    Ok(answer_stream)
}

fn say(message: Message) -> WorkResponse {
    WorkResponse { message: Some(message) }
}

fn check(hello: &Hello) -> Result<(), Status> {
    if hello.kinds.is_empty()
        || hello.kinds.len() > 100
        || !hello.kinds.iter().all(|k| limits::is_name(&k.kind))
    {
        return Err(Status::invalid_argument(
            "a worker offers 1 to 100 kinds, each named [a-z][a-z0-9._-]{0,63}",
        ));
    }
    if hello
        .kinds
        .iter()
        .any(|k| k.description.len() + k.input_schema_json.len() + k.example_json.len() > 64 * 1024)
    {
        return Err(Status::invalid_argument(
            "a kind's description, schema and example have at most 64 KiB together",
        ));
    }
    if !(1..=MAX_CAPACITY).contains(&hello.capacity) {
        return Err(Status::invalid_argument(format!("capacity must be 1 to {MAX_CAPACITY}")));
    }
    if hello.leases.len() > MAX_CAPACITY as usize {
        return Err(Status::invalid_argument("too many leases"));
    }
    Ok(())
}

impl Session {
    async fn welcome(&mut self, leases: Vec<HeldLease>) -> Result<Welcome, Status> {
        let (mut resumed, mut lost) = (Vec::new(), Vec::new());
        for HeldLease { job_id, lease_token } in leases {
            match self.adopt(&job_id, &lease_token).await {
                Ok(lease) => resumed.push(lease),
                Err(EngineError::Store(error)) => return Err(EngineError::Store(error).into()),
                Err(error) => lost.push(LeaseLost { job_id, lease_token, reason: error.to_string() }),
            }
        }
        self.renew(true);
        let rules = &self.engine.rules;
        let duration = |d: Duration| prost_types::Duration::try_from(d).ok();
        let bytes = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(Welcome {
            resumed,
            lost,
            lease: duration(rules.lease),
            ping_interval: duration(rules.lease / 3),
            max_checkpoint_bytes: bytes(rules.max_checkpoint),
            max_custom_bytes: bytes(rules.max_custom),
            max_result_bytes: bytes(rules.max_result),
        })
    }

    /// Takes up a lease that the worker still holds.
    async fn adopt(&mut self, job_id: &str, token: &str) -> Result<ResumedLease, EngineError> {
        let (record, head) = self.engine.get(None, job_id).await?;
        let lease = record.lease.as_ref().filter(|l| l.token == token && !l.ended);
        let Some(lease) = lease else { return Err(EngineError::State(record.state())) };
        let resumed = ResumedLease {
            job_id: job_id.to_owned(),
            last_report: lease.last_report,
            cancel_requested: record.job.cancel_requested.clone(),
        };
        let slot = self.engine.registry.slot(&self.membership.member);
        self.own(record, head, slot);
        Ok(resumed)
    }

    fn own(&mut self, record: JobRecord, head: Head, slot: Slot) {
        let job_id = record.job.job_id.clone();
        let token = record.lease.as_ref().map(|l| l.token.clone()).unwrap_or_default();
        let lease_member = record.lease_member();
        let mailbox = Owner::spawn(self.engine.clone(), record, head, self.outbox.clone(), slot);
        self.jobs.insert(job_id, Held { token, lease_member, mailbox });
    }

    async fn run<S>(&mut self, mut requests: S, mut inbox: mpsc::Receiver<ToSession>) -> Result<(), Status>
    where
        S: Stream<Item = Result<WorkRequest, Status>> + Send + Unpin,
    {
        let draining = self.engine.draining.clone();
        let mut leaving: Option<Instant> = None;
        let mut silence = Instant::now() + self.engine.rules.lease;
        loop {
            tokio::select! {
                request = requests.next() => {
                    let Some(request) = request else { return Ok(()) };
                    silence = Instant::now() + self.engine.rules.lease;
                    self.renew(false);
                    match request?.message {
                        Some(work_request::Message::Report(report)) => self.report(report).await,
                        Some(work_request::Message::Ping(_)) => self.send(Message::Pong(Pong {})).await,
                        Some(work_request::Message::Hello(_)) => {
                            return Err(Status::invalid_argument("Hello is the first message, and only the first"));
                        }
                        // A newer worker's message: a sign of life all the same.
                        None => {}
                    }
                }
                Some(message) = inbox.recv() => match message {
                    ToSession::Assigned(assigned) => self.assigned(*assigned).await,
                    ToSession::Ended { job_id, token } => {
                        if self.jobs.get(&job_id).is_some_and(|held| held.token == token) {
                            self.jobs.remove(&job_id);
                        }
                    }
                },
                () = tokio::time::sleep_until(silence) => {
                    return Err(Status::deadline_exceeded("no sign of life from the worker for the length of a lease"));
                }
                () = draining.cancelled(), if leaving.is_none() => {
                    self.membership.member.leave();
                    leaving = Some(Instant::now() + DRAIN_GRACE);
                    let deadline = self.engine.store.now_ms() + u64::try_from(DRAIN_GRACE.as_millis()).unwrap_or(0);
                    self.send(Message::Drain(Drain { deadline: Some(machine::timestamp(deadline)) })).await;
                }
                () = tokio::time::sleep_until(leaving.unwrap_or_else(Instant::now)), if leaving.is_some() => {
                    return Err(EngineError::Draining.into());
                }
            }
        }
    }

    async fn assigned(&mut self, (record, head, slot): (JobRecord, Head, Slot)) {
        let lease = record.lease.clone().unwrap_or_default();
        let job = &record.job;
        let assignment = Assignment {
            job_id: job.job_id.clone(),
            kind: job.kind.clone(),
            attempt: job.attempt,
            lease_token: lease.token,
            input_json: job.input_json.clone(),
            checkpoint: record.checkpoint.clone(),
            tenant: job.tenant.clone(),
            owner: job.owner.clone(),
        };
        self.own(record, head, slot);
        self.send(Message::Assignment(assignment)).await;
    }

    async fn report(&self, report: Report) {
        let refused = match self.jobs.get(&report.job_id) {
            Some(held) if held.token == report.lease_token => {
                held.mailbox.send(report).await.err().map(|e| e.0)
            }
            _ => Some(report),
        };
        if let Some(report) = refused {
            self.send(Message::Ack(ack(&report, Err(Refusal::LeaseLost)))).await;
        }
    }

    /// Renews all leases, at most four times in the length of one.
    fn renew(&mut self, now: bool) {
        let lease = self.engine.rules.lease;
        if self.jobs.is_empty() || (!now && self.renewed.elapsed() < lease / 4) {
            return;
        }
        self.renewed = Instant::now();
        let members = self.jobs.values().map(|held| held.lease_member.clone()).collect();
        let store = self.engine.store.clone();
        // Not awaited: a slow store must not keep the session from hearing its worker.
        tokio::spawn(async move {
            if let Err(error) = store.renew(index::LEASES, members, lease).await {
                tracing::warn!(%error, "leases could not be renewed");
            }
        });
    }

    async fn send(&self, message: Message) {
        let _ = self.outbox.send(say(message)).await;
    }
}
