//! A scripted engine: a real gRPC server on a real socket whose logs and faults the test decides.
//!
//! It runs on a runtime of its own, so that killing it cuts its connections as a killed process would.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::{Stream, stream};
use parking_lot::Mutex;
use tidegate_proto::{
    cursor::Cursor,
    v1::{
        self,
        event::Kind,
        job_service_server::{JobService, JobServiceServer},
        watch_job_response::Message,
        *,
    },
};
use tokio::{runtime::Runtime, sync::watch};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The job of most tests.
pub(crate) const JOB: &str = "01900000-0000-7000-8000-000000000001";

/// A handle on the engine.
#[derive(Clone)]
pub(crate) struct ScriptedEngine {
    shared: Arc<Shared>,
    runtime: Arc<Mutex<Running>>,
    addr: SocketAddr,
}

/// A runtime that may be dropped anywhere, also inside another one.
#[derive(Default)]
struct Running(Option<Runtime>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Default)]
struct Shared {
    jobs: Mutex<HashMap<String, Log>>,
    /// Raised by every change, so that streams look again.
    changed: watch::Sender<u64>,
    /// Raised to break all streams.
    breaks: AtomicUsize,
    faults: Mutex<Faults>,
    counts: Counts,
}

/// What goes wrong.
#[derive(Default)]
struct Faults {
    /// Every call fails with this code.
    refuse: Option<Code>,
    /// An event that the next stream leaves out.
    lose: Option<u64>,
    /// Reads answer nothing until this is cleared.
    stall_reads: bool,
}

/// What was asked of the engine.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) watches: AtomicUsize,
    pub(crate) open: AtomicUsize,
    pub(crate) reads: AtomicUsize,
    pub(crate) submits: AtomicUsize,
    pub(crate) looks: AtomicUsize,
}

struct Log {
    epoch: String,
    state: JobState,
    events: BTreeMap<u64, v1::Event>,
    last: u64,
    owner: String,
}

impl ScriptedEngine {
    /// An engine with one empty, running job: [`JOB`].
    pub(crate) fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let engine = Self { shared: Arc::default(), runtime: Arc::default(), addr };
        engine.add_job(JOB);
        engine.serve(listener);
        engine
    }

    /// Another engine on the same logs, with faults of its own.
    pub(crate) fn beside(other: &Self) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let engine = Self { shared: Arc::clone(&other.shared), runtime: Arc::default(), addr };
        engine.serve(listener);
        engine
    }

    /// Does nothing any more, but keeps its connections, like a stopped process; [`ScriptedEngine::kill`] ends it.
    pub(crate) fn freeze(&self) -> std::sync::mpsc::Sender<()> {
        let (frozen, thaw) = std::sync::mpsc::channel();
        if let Running(Some(runtime)) = &*self.runtime.lock() {
            // The runtime has one thread.
            runtime.spawn(async move { thaw.recv() });
        }
        frozen
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    pub(crate) fn add_job(&self, id: &str) {
        let log = Log {
            epoch: "q7x2ma".into(),
            state: JobState::Processing,
            events: BTreeMap::new(),
            last: 0,
            owner: "anonymous".into(),
        };
        self.shared.jobs.lock().insert(id.into(), log);
    }

    fn serve(&self, listener: std::net::TcpListener) {
        listener.set_nonblocking(true).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shared = Arc::clone(&self.shared);
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
            let service = JobServiceServer::new(Service(shared));
            tonic::transport::Server::builder()
                // As others do in silence: the hundred-and-first call of a connection waits.
                .max_concurrent_streams(100)
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        *self.runtime.lock() = Running(Some(runtime));
    }

    /// Cuts all connections and closes the port.
    pub(crate) fn kill(&self) {
        *self.runtime.lock() = Running(None);
        self.shared.counts.open.store(0, Ordering::SeqCst);
    }

    /// Serves again on the same port, with the same logs.
    pub(crate) async fn restart(&self) {
        let mut listener = None;
        super::until("the port is free again", async || {
            listener = std::net::TcpListener::bind(self.addr).ok();
            listener.is_some()
        })
        .await;
        self.serve(listener.expect("bound"));
    }

    /// Ends all streams with an error.
    pub(crate) fn break_streams(&self) {
        self.shared.breaks.fetch_add(1, Ordering::SeqCst);
        self.wake();
    }

    pub(crate) fn refuse(&self, code: Option<Code>) {
        self.shared.faults.lock().refuse = code;
    }

    pub(crate) fn lose(&self, seq: u64) {
        self.shared.faults.lock().lose = Some(seq);
    }

    pub(crate) fn stall_reads(&self, stall: bool) {
        self.shared.faults.lock().stall_reads = stall;
    }

    pub(crate) fn append(&self, kind: Kind) -> u64 {
        self.append_to(JOB, kind)
    }

    pub(crate) fn append_to(&self, job: &str, kind: Kind) -> u64 {
        let mut jobs = self.shared.jobs.lock();
        let log = jobs.get_mut(job).unwrap();
        log.last += 1;
        let seq = log.last;
        match &kind {
            Kind::State(change) => log.state = change.state(),
            Kind::Complete(_) => log.state = JobState::Completed,
            Kind::Failed(_) => log.state = JobState::Failed,
            Kind::Cancelled(_) => log.state = JobState::Cancelled,
            _ => {}
        }
        log.events.insert(seq, v1::Event { seq, time: None, attempt: 1, kind: Some(kind) });
        drop(jobs);
        self.wake();
        seq
    }

    /// Appends log lines up to the event `to`.
    pub(crate) fn log_to(&self, to: u64) {
        while self.last() < to {
            self.append(log(&format!("line {}", self.last() + 1)));
        }
    }

    pub(crate) fn last(&self) -> u64 {
        self.shared.jobs.lock()[JOB].last
    }

    /// Drops the events before `first`.
    pub(crate) fn trim(&self, first: u64) {
        let mut jobs = self.shared.jobs.lock();
        let log = jobs.get_mut(JOB).unwrap();
        log.events = log.events.split_off(&first);
    }

    /// Loses the log and begins another under the same id, with `count` lines.
    pub(crate) fn lose_log(&self, epoch: &str, count: u64) {
        self.lose_log_in_band(epoch, count);
        self.break_streams();
    }

    /// Like [`lose_log`](Self::lose_log), but those who follow it are told by a gap.
    pub(crate) fn lose_log_in_band(&self, epoch: &str, count: u64) {
        let mut jobs = self.shared.jobs.lock();
        let fresh = jobs.get_mut(JOB).unwrap();
        fresh.epoch = epoch.into();
        fresh.events.clear();
        fresh.last = 0;
        drop(jobs);
        self.log_to(count);
    }

    /// Forgets the events after `last`, as a failover may, and goes on under the same epoch.
    pub(crate) fn lose_tail(&self, last: u64) {
        let mut jobs = self.shared.jobs.lock();
        let log = jobs.get_mut(JOB).unwrap();
        log.events.split_off(&(last + 1));
        log.last = last;
        drop(jobs);
        self.break_streams();
    }

    pub(crate) fn give_to(&self, owner: &str) {
        self.shared.jobs.lock().get_mut(JOB).unwrap().owner = owner.into();
    }

    pub(crate) fn delete(&self) {
        self.shared.jobs.lock().remove(JOB);
        self.wake();
    }

    fn wake(&self) {
        self.shared.changed.send_modify(|n| *n += 1);
    }
}

pub(crate) fn log(text: &str) -> Kind {
    Kind::Log(v1::Log { level: LogLevel::Info.into(), text: text.into(), source: String::new() })
}

pub(crate) fn complete() -> Kind {
    Kind::Complete(Completed { result_json: "\"Success!\"".into() })
}

impl Log {
    fn first(&self) -> u64 {
        self.events.keys().next().copied().unwrap_or(self.last + 1)
    }

    fn job(&self, id: &str) -> Job {
        Job {
            job_id: id.into(),
            kind: "demo".into(),
            tenant: "default".into(),
            owner: self.owner.clone(),
            state: self.state.into(),
            attempt: 1,
            input_json: "{}".into(),
            last_seq: self.last,
            first_seq: self.first(),
            epoch: self.epoch.clone(),
            ..Job::default()
        }
    }
}

/// The server side.
struct Service(Arc<Shared>);

fn refusal(code: Code, reason: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason, "tidegate", HashMap::new());
    Status::with_error_details(code, reason.to_lowercase(), details)
}

impl Service {
    fn job<T>(&self, id: &str, look: impl FnOnce(&Log) -> T) -> Result<T, Status> {
        if let Some(code) = self.0.faults.lock().refuse {
            return Err(Status::new(code, "scripted"));
        }
        let jobs = self.0.jobs.lock();
        jobs.get(id).map(look).ok_or_else(|| refusal(Code::NotFound, "JOB_NOT_FOUND"))
    }

    fn owned(&self, id: &str, caller: Option<&Caller>) -> Result<Job, Status> {
        let job = self.job(id, |log| log.job(id))?;
        match caller {
            Some(caller)
                if caller.tenant != job.tenant || !(caller.whole_tenant || caller.subject == job.owner) =>
            {
                Err(refusal(Code::NotFound, "JOB_NOT_FOUND"))
            }
            _ => Ok(job),
        }
    }
}

/// One followed log.
struct Follower {
    shared: Arc<Shared>,
    id: String,
    opened: Option<WatchOpened>,
    gap: Option<Gap>,
    epoch: String,
    position: u64,
    changed: watch::Receiver<u64>,
    breaks: usize,
    done: bool,
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ =
            self.shared.counts.open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
    }
}

impl Follower {
    async fn next(&mut self) -> Option<Result<WatchJobResponse, Status>> {
        let message = |message| Some(Ok(WatchJobResponse { message: Some(message) }));
        if self.done {
            return None;
        }
        if let Some(opened) = self.opened.take() {
            return message(Message::Opened(opened));
        }
        if let Some(gap) = self.gap.take() {
            return message(Message::Gap(gap));
        }
        loop {
            self.changed.borrow_and_update();
            if self.shared.breaks.load(Ordering::SeqCst) != self.breaks {
                self.done = true;
                return Some(Err(Status::unavailable("scripted break")));
            }
            {
                let jobs = self.shared.jobs.lock();
                let Some(log) = jobs.get(&self.id) else {
                    self.done = true;
                    return Some(Err(refusal(Code::NotFound, "JOB_NOT_FOUND")));
                };
                if log.epoch != self.epoch {
                    self.epoch.clone_from(&log.epoch);
                    self.position = log.first() - 1;
                    return message(Message::Gap(Gap {
                        from_seq: 1,
                        to_seq: self.position,
                        reason: "lost".into(),
                        snapshot: Some(log.job(&self.id)),
                    }));
                }
                if let Some((seq, event)) = log.events.range(self.position + 1..).next() {
                    self.position = *seq;
                    let mut faults = self.shared.faults.lock();
                    if faults.lose == Some(*seq) {
                        faults.lose = None;
                        continue;
                    }
                    return message(Message::Event(event.clone()));
                }
                if log.state.is_terminal() && self.position == log.last {
                    return None;
                }
            }
            if self.changed.changed().await.is_err() {
                return None;
            }
        }
    }
}

#[tonic::async_trait]
impl JobService for Service {
    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<WatchJobResponse, Status>> + Send>>;

    async fn watch_job(
        &self,
        request: Request<WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let request = request.into_inner();
        let (job, first) = self.job(&request.job_id, |log| (log.job(&request.job_id), log.first()))?;
        self.0.counts.watches.fetch_add(1, Ordering::SeqCst);
        self.0.counts.open.fetch_add(1, Ordering::SeqCst);
        let oldest = first - 1;
        let mut gap = None;
        let (outcome, position) = if request.cursor.is_empty() {
            let tail = if request.tail > 0 { job.last_seq.saturating_sub(request.tail.into()) } else { 0 };
            (CursorOutcome::Fresh, oldest.max(tail))
        } else {
            let cursor: Cursor =
                request.cursor.parse().map_err(|_| refusal(Code::InvalidArgument, "MALFORMED_CURSOR"))?;
            if cursor.epoch != job.epoch || cursor.seq > job.last_seq {
                (CursorOutcome::Reset, oldest)
            } else if cursor.seq < oldest {
                let snapshot = Some(job.clone());
                gap = Some(Gap {
                    from_seq: cursor.seq + 1,
                    to_seq: oldest,
                    reason: "trimmed".into(),
                    snapshot,
                });
                (CursorOutcome::Trimmed, cursor.seq)
            } else {
                (CursorOutcome::Exact, cursor.seq)
            }
        };
        let follower = Follower {
            shared: Arc::clone(&self.0),
            id: request.job_id,
            epoch: job.epoch.clone(),
            opened: Some(WatchOpened {
                cursor: Cursor::new(position, job.epoch.as_str()).to_string(),
                job: Some(job),
                outcome: outcome.into(),
            }),
            gap,
            position,
            changed: self.0.changed.subscribe(),
            breaks: self.0.breaks.load(Ordering::SeqCst),
            done: false,
        };
        let stream = stream::unfold(follower, |mut follower| async {
            let next = follower.next().await?;
            Some((next, follower))
        });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn read_events(
        &self,
        request: Request<ReadEventsRequest>,
    ) -> Result<Response<ReadEventsResponse>, Status> {
        let request = request.into_inner();
        self.0.counts.reads.fetch_add(1, Ordering::SeqCst);
        let mut changed = self.0.changed.subscribe();
        while self.0.faults.lock().stall_reads {
            let _ = changed.changed().await;
        }
        let limit = if request.limit == 0 { 256 } else { request.limit as usize };
        let page = self.job(&request.job_id, |log| {
            let mut bytes = 0;
            let fits = |event: &v1::Event| {
                let before = bytes;
                bytes += prost::Message::encoded_len(event);
                before == 0 || bytes <= 256 * 1024
            };
            let events =
                log.events.range(request.after_seq + 1..).take(limit).map(|(_, event)| event.clone());
            ReadEventsResponse {
                events: events.take_while(fits).collect(),
                first_seq: log.first(),
                last_seq: log.last,
                epoch: log.epoch.clone(),
            }
        })?;
        Ok(Response::new(page))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<GetJobResponse>, Status> {
        let request = request.into_inner();
        self.0.counts.looks.fetch_add(1, Ordering::SeqCst);
        let job = self.owned(&request.job_id, request.caller.as_ref())?;
        Ok(Response::new(GetJobResponse { job: Some(job) }))
    }

    async fn submit_job(
        &self,
        request: Request<SubmitJobRequest>,
    ) -> Result<Response<SubmitJobResponse>, Status> {
        let request = request.into_inner();
        self.0.counts.submits.fetch_add(1, Ordering::SeqCst);
        match request.kind.as_str() {
            "demo" => {}
            // As a proxy says when the engine behind it died, before or after it did something.
            "half-done" => return Err(Status::unavailable("upstream connect error")),
            "broken-store" => return Err(refusal(Code::Unavailable, "STORE_UNAVAILABLE")),
            "conflict" => return Err(refusal(Code::AlreadyExists, "IDEMPOTENCY_CONFLICT")),
            _ => {
                let known = HashMap::from([("known".to_owned(), "csv-import,demo".to_owned())]);
                let details = ErrorDetails::with_error_info("UNKNOWN_KIND", "tidegate", known);
                return Err(Status::with_error_details(
                    Code::InvalidArgument,
                    "no worker offers it",
                    details,
                ));
            }
        }
        let job = Job {
            input_json: request.input_json,
            options: request.options,
            ..self.job(JOB, |log| log.job(JOB))?
        };
        Ok(Response::new(SubmitJobResponse { job: Some(job), created: request.idempotency_key.is_empty() }))
    }

    async fn list_jobs(
        &self,
        request: Request<ListJobsRequest>,
    ) -> Result<Response<ListJobsResponse>, Status> {
        let request = request.into_inner();
        let job = self.owned(JOB, request.caller.as_ref());
        let wanted = |job: &Job| request.states.is_empty() || request.states.contains(&job.state);
        let jobs = job.ok().filter(wanted).into_iter().collect();
        Ok(Response::new(ListJobsResponse { jobs, next_page_token: "more".into() }))
    }

    async fn cancel_job(
        &self,
        request: Request<CancelJobRequest>,
    ) -> Result<Response<CancelJobResponse>, Status> {
        let request = request.into_inner();
        let mut job = self.owned(&request.job_id, request.caller.as_ref())?;
        job.cancel_requested =
            Some(CancelRequested { by: job.owner.clone(), reason: request.reason, deadline: None });
        Ok(Response::new(CancelJobResponse { job: Some(job) }))
    }

    async fn retry_job(
        &self,
        request: Request<RetryJobRequest>,
    ) -> Result<Response<RetryJobResponse>, Status> {
        let request = request.into_inner();
        self.owned(&request.job_id, request.caller.as_ref())?;
        Err(refusal(Code::FailedPrecondition, "STATE_FORBIDS"))
    }

    async fn delete_job(
        &self,
        request: Request<DeleteJobRequest>,
    ) -> Result<Response<DeleteJobResponse>, Status> {
        let request = request.into_inner();
        self.owned(&request.job_id, request.caller.as_ref())?;
        Ok(Response::new(DeleteJobResponse {}))
    }

    async fn list_kinds(&self, _: Request<ListKindsRequest>) -> Result<Response<ListKindsResponse>, Status> {
        if let Some(code) = self.0.faults.lock().refuse {
            return Err(Status::new(code, "scripted"));
        }
        let kind = KindOffer {
            kind: "demo".into(),
            description: "Pretends.".into(),
            input_schema_json: "{\"type\":\"object\"}".into(),
            example_json: String::new(),
            live: true,
        };
        Ok(Response::new(ListKindsResponse { kinds: vec![kind] }))
    }
}
