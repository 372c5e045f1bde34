//! The seam between replay and live, on both stores: whatever is appended at any point of an attach is seen exactly
//! once, in order, and the stream ends cleanly behind the terminal event, with hints and without.
//!
//! The store under the engine is wrapped: before and after chosen calls it appends events itself, so that every
//! interleaving of reader and writer can be had on purpose instead of by luck.

#[path = "conformance/redis_server.rs"]
mod redis_server;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use job_engine::{
    engine::{Bounds, Engine, new_epoch, new_job_id},
    follow::Followers,
    job::{
        JobRecord,
        machine::{Draft, NewJob, Rules},
    },
    kinds::Kinds,
    registry::Registry,
    store::{
        Answer, Commit, CommitOutcome, Extent, Head, Hint, IndexChange, Page, Snapshot, Store,
        embedded::{Durability, EmbeddedStore},
        redis::{RedisOptions, RedisStore},
    },
    watch,
};
use proptest::{prelude::*, test_runner::TestRunner};
use redis_server::RedisServer;
use tidegate_proto::{
    cursor::Cursor,
    v1::{Completed, JobOptions, Log, WatchJobRequest, report::Body, watch_job_response::Message},
};
use tokio::sync::{Mutex, broadcast};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

/// A job that somebody else writes to.
struct Writer {
    record: JobRecord,
    head: Head,
    reports: u64,
}

impl Writer {
    async fn start(store: &dyn Store, rules: &Rules) -> Self {
        let epoch = new_epoch();
        let new = NewJob {
            job_id: new_job_id(None),
            epoch: epoch.clone(),
            kind: "demo".into(),
            tenant: "default".into(),
            owner: "me".into(),
            input_json: "{}".into(),
            options: JobOptions {
                retention: Some(prost_types::Duration { seconds: 3600, nanos: 0 }),
                ..JobOptions::default()
            },
        };
        let mut writer = Self { record: JobRecord::default(), head: Head { seq: 0, epoch }, reports: 0 };
        writer.commit(store, Draft::submit(new, rules, store.now_ms())).await;
        let mut draft = writer.draft(rules);
        draft.assign("worker", "nonce").expect("queued");
        writer.commit(store, draft).await;
        writer
    }

    fn draft<'r>(&self, rules: &'r Rules) -> Draft<'r> {
        Draft::of(self.record.clone(), self.head.clone(), rules, 0)
    }

    async fn commit(&mut self, store: &dyn Store, draft: Draft<'_>) {
        match store.commit(draft.commit()).await.expect("the store answers") {
            CommitOutcome::Committed(head) => self.head = head,
            CommitOutcome::Conflict(now) => panic!("nobody else writes: {now:?}"),
        }
        self.record = draft.record;
    }

    async fn report(&mut self, store: &dyn Store, body: &Body) {
        let rules = Rules::default();
        let mut draft = self.draft(&rules);
        self.reports += 1;
        draft.report("1-nonce", self.reports, body, 1.0).expect("a report under the lease");
        self.commit(store, draft).await;
    }
}

/// What is appended around one call of the store.
#[derive(Clone, Copy, Debug, Default)]
struct Around {
    before: usize,
    after: usize,
}

/// A store that appends to a job around its own reads.
struct Meddler {
    inner: Arc<dyn Store>,
    plan: Vec<Around>,
    calls: AtomicUsize,
    writer: Mutex<Writer>,
    silent: broadcast::Sender<Hint>,
    drop_hints: bool,
}

impl Meddler {
    async fn around<T>(&self, call: impl Future<Output = T>) -> T {
        let n = self.calls.fetch_add(1, Ordering::Relaxed);
        let around = self.plan.get(n).copied().unwrap_or_default();
        self.append(around.before).await;
        let answer = call.await;
        self.append(around.after).await;
        if n + 1 == self.plan.len() {
            self.writer.lock().await.report(&*self.inner, &Body::Complete(Completed::default())).await;
        }
        answer
    }

    async fn append(&self, n: usize) {
        let mut writer = self.writer.lock().await;
        for _ in 0..n {
            writer.report(&*self.inner, &Body::Log(Log { text: "line".into(), ..Log::default() })).await;
        }
    }
}

impl Store for Meddler {
    fn load(&self, streams: Vec<String>) -> Answer<'_, Vec<Option<Snapshot>>> {
        Box::pin(self.around(self.inner.load(streams)))
    }
    fn read(&self, stream: &str, after: u64, limit: usize, max_bytes: usize) -> Answer<'_, Option<Page>> {
        let stream = stream.to_owned();
        Box::pin(async move { self.around(self.inner.read(&stream, after, limit, max_bytes)).await })
    }
    fn hints(&self) -> broadcast::Receiver<Hint> {
        if self.drop_hints { self.silent.subscribe() } else { self.inner.hints() }
    }
    fn commit(&self, commit: Commit) -> Answer<'_, CommitOutcome> {
        self.inner.commit(commit)
    }
    fn delete(&self, stream: &str, expect: Head, index: Vec<IndexChange>) -> Answer<'_, CommitOutcome> {
        self.inner.delete(stream, expect, index)
    }
    fn claim(&self, index: &str, n: usize, hold: Duration) -> Answer<'_, Vec<String>> {
        self.inner.claim(index, n, hold)
    }
    fn take(&self, queue: &str, n: usize, hold: Duration) -> Answer<'_, Vec<String>> {
        self.inner.take(queue, n, hold)
    }
    fn count(&self, extents: Vec<Extent>) -> Answer<'_, Vec<u64>> {
        self.inner.count(extents)
    }
    fn renew(&self, index: &str, members: Vec<String>, after: Duration) -> Answer<'_, Vec<bool>> {
        self.inner.renew(index, members, after)
    }
    fn list(
        &self,
        index: &str,
        before: Option<(u64, String)>,
        limit: usize,
    ) -> Answer<'_, Vec<(u64, String)>> {
        self.inner.list(index, before, limit)
    }
    fn now_ms(&self) -> u64 {
        self.inner.now_ms()
    }
    fn ping(&self) -> Answer<'_, ()> {
        self.inner.ping()
    }
}

#[derive(Clone, Debug)]
struct Case {
    stored: usize,
    cursor: Option<u64>,
    plan: Vec<Around>,
    drop_hints: bool,
}

fn cases() -> impl Strategy<Value = Case> {
    let around = (0usize..3, 0usize..3).prop_map(|(before, after)| Around { before, after });
    (0usize..300, prop::option::of(0u64..302), prop::collection::vec(around, 1..7), any::<bool>()).prop_map(
        |(stored, cursor, plan, drop_hints)| {
            // The job's first two events are its states.
            let cursor = cursor.map(|c| c.min(stored as u64 + 2));
            Case { stored, cursor, plan, drop_hints }
        },
    )
}

async fn attach(store: Arc<dyn Store>, case: &Case) -> Result<(), TestCaseError> {
    let mut writer = Writer::start(&*store, &Rules::default()).await;
    for _ in 0..case.stored {
        writer.report(&*store, &Body::Log(Log { text: "stored".into(), ..Log::default() })).await;
    }
    let (job_id, epoch) = (writer.record.job.job_id.clone(), writer.head.epoch.clone());
    let meddler = Arc::new(Meddler {
        inner: store,
        plan: case.plan.clone(),
        calls: AtomicUsize::new(0),
        writer: Mutex::new(writer),
        silent: broadcast::channel(1).0,
        drop_hints: case.drop_hints,
    });
    let engine = Arc::new(Engine {
        store: meddler.clone(),
        bounds: Bounds { queued_per_owner: 1000, jobs: 1000, schedule_distance: Duration::ZERO },
        rules: Rules::default(),
        progress_interval: Duration::ZERO,
        followers: Followers::new(Duration::from_millis(20)),
        registry: Registry::default(),
        kinds: Kinds::default(),
        draining: CancellationToken::new(),
        metrics: Arc::default(),
        tasks: TaskTracker::new(),
    });
    let bells = engine.followers.clone().distribute(engine.store.hints(), |_| {});
    let _bells = AbortOnDropHandle::new(tokio::spawn(bells));
    let cursor = case.cursor.map(|seq| Cursor::new(seq, epoch).to_string()).unwrap_or_default();
    let request = WatchJobRequest { job_id, cursor, ..WatchJobRequest::default() };
    let mut stream = watch::open(engine, request).await.expect("the job is there");
    let mut seen = Vec::new();
    let read_all = async {
        while let Some(message) = stream.recv().await {
            match message.expect("no error").message {
                Some(Message::Event(event)) => seen.push(event.seq),
                Some(Message::Gap(gap)) => panic!("an unneeded gap: {gap:?}"),
                _ => {}
            }
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(20), read_all).await;
    prop_assert!(ended.is_ok(), "the stream did not end; seen {:?}", seen);
    let last = meddler.writer.lock().await.head.seq;
    let wanted: Vec<u64> = (case.cursor.unwrap_or(0) + 1..=last).collect();
    prop_assert_eq!(seen, wanted);
    Ok(())
}

fn run(cases_wanted: u32, store: impl Fn() -> Arc<dyn Store>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let _inside = runtime.enter();
    let store = store();
    let mut runner = TestRunner::new(ProptestConfig {
        cases: cases_wanted,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let result = runner.run(&cases(), |case| runtime.block_on(attach(store.clone(), &case)));
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn j13_events_appended_at_any_point_of_the_attach_are_seen_exactly_once_embedded() {
    let dir = tempfile::tempdir().expect("a scratch directory");
    run(150, || Arc::new(EmbeddedStore::open(dir.path(), Durability::Buffer).expect("opens")));
}

#[test]
fn j13_events_appended_at_any_point_of_the_attach_are_seen_exactly_once_redis() {
    let server = RedisServer::start();
    run(100, || {
        let options = RedisOptions::new(server.url());
        let connect = RedisStore::connect(&options);
        Arc::new(tokio::runtime::Handle::current().block_on(connect).expect("redis-server answers"))
    });
}
