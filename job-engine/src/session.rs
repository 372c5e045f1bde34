//! One worker's stream: hello, leases, reports in, assignments and answers out.
//!
//! The session routes reports to the owner tasks of its jobs and renews their leases whenever the worker gives a sign
//! of life. When the stream breaks, owners end but leases do not: the worker has until they expire to come back, to
//! this engine or another, with its tokens.

mod outbound;

use std::{collections::HashMap, sync::Arc, time::Duration};

use tidegate_proto::{
    limits,
    v1::{
        Assignment, Drain, HeldLease, Hello, LeaseLost, Pong, Report, ReportAck, ReportAcks, ResumedLease,
        Welcome, WorkRequest, WorkResponse, WorkerKind, work_request, work_response::Message,
    },
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::{
    dispatch,
    engine::{Engine, check_job_id},
    error::EngineError,
    follow::Follow,
    intake,
    job::{JobRecord, index, machine, machine::Refusal},
    kinds,
    owner::{Mailbox, Owner, ack},
    registry::{Membership, Slot},
    store::{Head, Snapshot},
};
use outbound::Outbound;

/// How many messages may wait for a worker that does not read.
const OUTBOX: usize = 256;
/// How many messages may wait for the wire: as many as can leave together.
const LEAVING: usize = 16;
/// How many reports a worker may put into one message, and how many answers it gets in one.
const BATCH: usize = 256;
/// What an owner is given at once is one report, or several of at most so many bytes together: so what waits for it is
/// bounded by the number of its letters.
const LETTER_BYTES: usize = 64 * 1024;
/// The largest capacity a worker may claim.
const MAX_CAPACITY: u32 = 10_000;
/// How many leases of a returning worker are looked at together.
const ADOPT: usize = 64;
/// The longest job id or lease token that was ever given out is shorter, in bytes.
const MAX_TOKEN: usize = 64;
/// How long the last answers of a session that ended may take to be read.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long a draining engine lets its sessions linger.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// A job that was assigned to this worker, with what its owner needs.
pub type Assigned = (JobRecord, Head, Slot, Follow);

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
    let (outbox, out) = mpsc::channel(OUTBOX);
    let (answers, answer_stream) = mpsc::channel(LEAVING);
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
    let outbound = Outbound { out, answers, batched: hello.batched_acks };
    session.engine.tasks.clone().spawn(session.live(welcome, requests, inbox, outbound));
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
    let size = |k: &WorkerKind| k.description.len() + k.input_schema_json.len() + k.example_json.len();
    if hello.kinds.iter().any(|kind| size(kind) > kinds::MAX_OFFER) {
        return Err(Status::invalid_argument(
            "a kind's description, schema and example have at most 16 KiB together",
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
    /// The session's whole life after Hello.
    async fn live<S>(
        mut self,
        welcome: Welcome,
        requests: S,
        mut inbox: mpsc::Receiver<Assigned>,
        outbound: Outbound,
    ) where
        S: Stream<Item = Result<WorkRequest, Status>> + Send + Unpin,
    {
        let answers = outbound.answers.clone();
        // The Welcome goes first: owners and the dispatcher write to another channel, which is forwarded from here on.
        if answers.send(Ok(say(Message::Welcome(welcome)))).await.is_err() {
            return;
        }
        let mut forwarding = AbortOnDropHandle::new(tokio::spawn(outbound.forward()));
        self.membership.enter();
        let (end, gone) = tokio::select! {
            end = self.run(requests, &mut inbox) => (end, false),
            _ = &mut forwarding => (Ok(()), true),
        };
        tracing::info!(
            worker = self.membership.member.name,
            jobs = self.jobs.len(),
            ?end,
            "a worker's stream ended"
        );
        inbox.close();
        while let Ok(assigned) = inbox.try_recv() {
            dispatch::give_back(&self.engine, assigned).await;
        }
        // Owners finish what they have and end with their mailboxes; then nobody holds the outbox any more.
        drop(self);
        if !gone {
            let _ = tokio::time::timeout(LAST_WORDS, forwarding).await;
        }
        if let Err(status) = end {
            // Bounded: a worker that does not read does not keep anything of this session alive.
            let _ = tokio::time::timeout(LAST_WORDS, answers.send(Err(status))).await;
        }
    }

    async fn welcome(&mut self, leases: Vec<HeldLease>) -> Result<Welcome, Status> {
        let (mut resumed, mut lost) = (Vec::new(), Vec::new());
        for leases in leases.chunks(ADOPT) {
            // Followed before they are loaded, so that nothing that happens since goes unheard.
            let follows: Vec<_> = leases.iter().map(|l| self.engine.followers.follow(&l.job_id)).collect();
            let streams = leases.iter().map(|l| l.job_id.clone()).collect();
            let snapshots = self.engine.store.load(streams).await.map_err(EngineError::from)?;
            for ((held, follow), snapshot) in leases.iter().zip(follows).zip(snapshots) {
                match self.adopt(held, follow, snapshot) {
                    Ok(lease) => resumed.push(lease),
                    Err(error) => lost.push(LeaseLost {
                        job_id: held.job_id.clone(),
                        lease_token: held.lease_token.clone(),
                        reason: error.to_string(),
                    }),
                }
            }
            // Only when it is time: those taken up first must not expire while the rest is looked at.
            self.renew(false);
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
            max_batched_reports: bytes(BATCH),
        })
    }

    /// Takes up a lease that the worker still holds.
    fn adopt(
        &mut self,
        held: &HeldLease,
        follow: Follow,
        snapshot: Option<Snapshot>,
    ) -> Result<ResumedLease, EngineError> {
        check_job_id(&held.job_id)?;
        let snapshot = snapshot.ok_or(EngineError::NotFound)?;
        let record = JobRecord::decode_snapshot(&snapshot)?;
        let lease = record.lease.as_ref().filter(|l| l.token == held.lease_token && !l.ended);
        let lease = lease.ok_or(EngineError::LeaseLost)?;
        let resumed = ResumedLease {
            job_id: held.job_id.clone(),
            last_report: lease.last_report,
            cancel_requested: record.job.cancel_requested.clone(),
        };
        if !self.jobs.contains_key(&held.job_id) {
            let slot = self.engine.registry.slot(&self.membership.member);
            self.own((record, snapshot.head, slot, follow));
        }
        Ok(resumed)
    }

    fn own(&mut self, assigned: Assigned) {
        let record = &assigned.0;
        let job_id = record.job.job_id.clone();
        let token = record.lease.as_ref().map(|l| l.token.clone()).unwrap_or_default();
        let lease_member = record.lease_member();
        let mailbox = Owner::spawn(self.engine.clone(), assigned, self.outbox.clone());
        self.jobs.insert(job_id, Held { token, lease_member, mailbox });
    }

    async fn run<S>(&mut self, mut requests: S, inbox: &mut mpsc::Receiver<Assigned>) -> Result<(), Status>
    where
        S: Stream<Item = Result<WorkRequest, Status>> + Send + Unpin,
    {
        let draining = self.engine.draining.clone();
        let patience = self.engine.rules.lease;
        let mut leaving: Option<Instant> = None;
        let mut silence = Instant::now() + patience;
        loop {
            tokio::select! {
                request = requests.next() => {
                    let Some(request) = request else { return Ok(()) };
                    silence = Instant::now() + patience;
                    self.membership.heard();
                    self.renew(false);
                    in_time(patience, self.request(request?)).await??;
                }
                Some(assigned) = inbox.recv() => in_time(patience, self.assigned(assigned)).await?,
                // Leases may run out a little before the stream is given up: its jobs must not come back to it.
                () = tokio::time::sleep_until(silence - patience / 2), if !self.membership.member.is_silent() => {
                    self.membership.member.fall_silent();
                }
                () = tokio::time::sleep_until(silence) => {
                    return Err(Status::deadline_exceeded("no sign of life from the worker for the length of a lease"));
                }
                () = draining.cancelled(), if leaving.is_none() => {
                    self.membership.member.leave();
                    leaving = Some(Instant::now() + DRAIN_GRACE);
                    let deadline = self.engine.store.now_ms() + u64::try_from(DRAIN_GRACE.as_millis()).unwrap_or(0);
                    let drain = Drain { deadline: Some(machine::timestamp(deadline)) };
                    in_time(DRAIN_GRACE, self.send(Message::Drain(drain))).await?;
                }
                () = tokio::time::sleep_until(leaving.unwrap_or_else(Instant::now)), if leaving.is_some() => {
                    return Err(EngineError::Draining.into());
                }
            }
        }
    }

    async fn request(&mut self, request: WorkRequest) -> Result<(), Status> {
        match request.message {
            Some(work_request::Message::Report(report)) => return self.reports(vec![report]).await,
            Some(work_request::Message::Reports(batch)) => return self.reports(batch.reports).await,
            Some(work_request::Message::Ping(_)) => self.send(Message::Pong(Pong {})).await,
            Some(work_request::Message::Hello(_)) => {
                return Err(Status::invalid_argument("Hello is the first message, and only the first"));
            }
            Some(work_request::Message::Leave(_)) => self.membership.member.leave(),
            // A newer worker's message: a sign of life all the same.
            None => {}
        }
        Ok(())
    }

    async fn assigned(&mut self, assigned: Assigned) {
        let record = &assigned.0;
        let (job, lease) = (&record.job, record.lease.clone().unwrap_or_default());
        let assignment = Assignment {
            job_id: job.job_id.clone(),
            kind: job.kind.clone(),
            attempt: job.attempt,
            lease_token: lease.token,
            input_json: job.input_json.clone(),
            checkpoint: record.checkpoint.clone(),
            tenant: job.tenant.clone(),
            owner: job.owner.clone(),
            deadline: record.deadline_ms().map(machine::timestamp),
            progress_deadline: job.options.as_ref().and_then(|o| o.progress_deadline),
            traceparent: record.traceparent.clone(),
        };
        self.own(assigned);
        self.send(Message::Assignment(assignment)).await;
    }

    /// Passes reports on to the owners of their jobs, those of a job that follow each other together.
    async fn reports(&self, mut reports: Vec<Report>) -> Result<(), Status> {
        if reports.len() > BATCH {
            return Err(Status::invalid_argument(format!("a message has at most {BATCH} reports")));
        }
        if reports.iter().any(|r| r.job_id.len() > MAX_TOKEN || r.lease_token.len() > MAX_TOKEN) {
            return Err(Status::invalid_argument("a job id or lease token that was never given out"));
        }
        let mut acks = Vec::new();
        let same = |a: &Report, b: &Report| a.job_id == b.job_id && a.lease_token == b.lease_token;
        for run in reports.chunk_by_mut(same) {
            let held = self.jobs.get(&run[0].job_id).filter(|held| held.token == run[0].lease_token);
            let (mut letter, mut bytes) = (Vec::with_capacity(run.len()), 0);
            for report in run {
                let size = match held {
                    Some(_) => intake::tame(report, &self.engine.rules),
                    None => Err(Refusal::LeaseLost),
                };
                match size {
                    Ok(size) => {
                        if bytes + size > LETTER_BYTES {
                            acks.extend(post(held, std::mem::take(&mut letter)).await);
                            bytes = 0;
                        }
                        bytes += size;
                        letter.push(std::mem::take(report));
                    }
                    Err(refusal) => acks.push(ack(std::mem::take(report), Err(refusal))),
                }
            }
            acks.extend(post(held, letter).await);
        }
        if !acks.is_empty() {
            acks.iter().for_each(|ack: &ReportAck| self.engine.metrics.reported(ack.result()));
            self.send(Message::Acks(ReportAcks { acks })).await;
        }
        Ok(())
    }

    /// Renews all leases, at most four times in the length of one.
    fn renew(&mut self, now: bool) {
        let lease = self.engine.rules.lease;
        if self.jobs.is_empty() || (!now && self.renewed.elapsed() < lease / 4) {
            return;
        }
        self.renewed = Instant::now();
        // An owner that ended has closed its mailbox.
        self.jobs.retain(|_, held| !held.mailbox.is_closed());
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

/// Gives reports to the owner of their job; one that has ended cannot take them, and they are answered at once.
async fn post(held: Option<&Held>, letter: Vec<Report>) -> Vec<ReportAck> {
    let Some(held) = held.filter(|_| !letter.is_empty()) else { return Vec::new() };
    match held.mailbox.send(letter).await {
        Ok(()) => Vec::new(),
        Err(unsent) => unsent.0.into_iter().map(|report| ack(report, Err(Refusal::LeaseLost))).collect(),
    }
}

/// Bounds what a session does for one message: a worker that does not read its answers loses its stream, not more.
async fn in_time<T>(patience: Duration, work: impl Future<Output = T>) -> Result<T, Status> {
    let late = |_| Status::resource_exhausted("the worker does not read its answers");
    tokio::time::timeout(patience, work).await.map_err(late)
}
