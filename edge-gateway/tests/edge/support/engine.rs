//! A scripted engine: a real gRPC server on a real socket whose logs and faults the test decides.
//!
//! It runs on a runtime of its own, so that killing it cuts its connections as a killed process would.

mod service;

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tidegate_proto::v1::{self, event::Kind, job_service_server::JobServiceServer, *};
use tokio::{runtime::Runtime, sync::watch};
use tonic::Code;

use self::service::Service;

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
