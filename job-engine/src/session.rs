//! One worker's stream: hello, leases, reports in, assignments and answers out.
//!
//! The session routes reports to the owner tasks of its jobs and renews their leases whenever the worker gives a sign
//! of life. When the stream breaks, owners end but leases do not: the worker has until they expire to come back, to
//! this engine or another, with its tokens.

mod hello;
mod outbound;

use std::{collections::HashMap, sync::Arc, time::Duration};

use tidegate_proto::{
    limits,
    v1::{
        Assignment, Drain, Pong, Report, ReportAck, ReportAcks, Welcome, WorkRequest, WorkResponse,
        work_request, work_response::Message,
    },
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use self::outbound::Outbound;
use crate::{
    dispatch,
    engine::Engine,
    error::EngineError,
    follow::Follow,
    intake,
    job::{JobRecord, index, machine, machine::Refusal},
    metrics::Metrics,
    owner::{Mailbox, Owner, ack},
    registry::{Membership, Slot},
    store::Head,
};

/// How many messages may wait for a worker that does not read.
const OUTBOX: usize = 256;
/// How many messages may wait for the wire: as many as can leave together.
const LEAVING: usize = 16;
/// How many reports a worker may put into one message, and how many answers it gets in one.
const BATCH: usize = 256;
/// What an owner is given at once is one report, or several of at most so many bytes together: so what waits for it is
/// bounded by the number of its letters.
const LETTER_BYTES: usize = 64 * 1024;
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
    hello::check(&hello)?;
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
            scheduled_for: job.scheduled_for,
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
        let metrics = &*self.engine.metrics;
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
                            acks.extend(post(metrics, held, std::mem::take(&mut letter)).await);
                            bytes = 0;
                        }
                        bytes += size;
                        letter.push(std::mem::take(report));
                    }
                    Err(refusal) => acks.push(ack(metrics, std::mem::take(report), Err(refusal))),
                }
            }
            acks.extend(post(metrics, held, letter).await);
        }
        if !acks.is_empty() {
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
async fn post(metrics: &Metrics, held: Option<&Held>, letter: Vec<Report>) -> Vec<ReportAck> {
    let Some(held) = held.filter(|_| !letter.is_empty()) else { return Vec::new() };
    match held.mailbox.send(letter).await {
        Ok(()) => Vec::new(),
        Err(unsent) => {
            unsent.0.into_iter().map(|report| ack(metrics, report, Err(Refusal::LeaseLost))).collect()
        }
    }
}

/// Bounds what a session does for one message: a worker that does not read its answers loses its stream, not more.
async fn in_time<T>(patience: Duration, work: impl Future<Output = T>) -> Result<T, Status> {
    let late = |_| Status::resource_exhausted("the worker does not read its answers");
    tokio::time::timeout(patience, work).await.map_err(late)
}
