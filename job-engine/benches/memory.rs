//! What jobs cost Redis in memory: finished jobs of ten reports each, and a job's log by the line.
//!
//! Jobs are written as the engine writes them: submitted, assigned, ten progress reports, completed with a small result.
//! Run it with `cargo bench -p job-engine --bench memory -- [jobs]` (100,000 unless given); it needs about 1 GB.
#![allow(missing_docs)]

#[path = "../tests/conformance/redis_server.rs"]
mod redis_server;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use job_engine::{
    engine::{new_epoch, new_job_id},
    job::{
        JobRecord,
        log_ring::LogBudget,
        machine::{Draft, NewJob, Rules},
    },
    store::{
        CommitOutcome, Head, Store,
        redis::{RedisOptions, RedisStore},
    },
};
use redis_server::RedisServer;
use tidegate_proto::v1::{Completed, JobOptions, Log, Progress, report::Body};

/// How many jobs are written at the same time.
const WRITERS: usize = 64;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let jobs = std::env::args().skip(1).find_map(|a| a.parse::<usize>().ok()).unwrap_or(100_000);
    let server = RedisServer::start();
    let options = RedisOptions::new(server.url());
    let store: Arc<dyn Store> = Arc::new(RedisStore::connect(&options).await.expect("redis-server answers"));

    let before = memory(&server);
    let left = Arc::new(AtomicUsize::new(jobs));
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let (store, left) = (store.clone(), left.clone());
            tokio::spawn(async move {
                let rules = Rules::default();
                let take = |n: usize| n.checked_sub(1);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                    let mut job = Running::start(&*store, &rules).await;
                    for step in 0..10u8 {
                        let percent = Some(f64::from(step) * 10.0);
                        let message = format!("Step {step} of 10");
                        let progress = Progress { percent, message, ..Progress::default() };
                        job.report(&*store, &rules, Body::Progress(progress)).await;
                    }
                    job.report(&*store, &rules, done()).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("no panic");
    }
    let each = (memory(&server) - before) / jobs as u64;
    println!("{jobs} finished jobs of 13 events: {each} bytes each");

    for (name, events) in [("kept whole", 50_000), ("in a ring of 1,000", 1_000), ("in a ring of 10", 10)] {
        let rules = Rules { log: LogBudget { events, bytes: 64 << 20 }, ..Rules::default() };
        let before = memory(&server);
        let mut job = Running::start(&*store, &rules).await;
        let lines = 20_000u64;
        for line in 0..lines {
            let text = format!("{line:0>100}");
            job.report(&*store, &rules, Body::Log(Log { text, ..Log::default() })).await;
        }
        let bytes = memory(&server).saturating_sub(before);
        println!(
            "a log of {lines} lines of 100 bytes, {name}: {bytes} bytes, {} per 1,000 lines written",
            bytes * 1000 / lines
        );
    }
}

/// `used_memory` of the server's data, when what is to be freed is freed.
fn memory(server: &RedisServer) -> u64 {
    let info = |name: &str| server.info(name).and_then(|n| n.parse::<u64>().ok()).expect("a number");
    while info("lazyfree_pending_objects") > 0 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    info("used_memory_dataset")
}

fn done() -> Body {
    Body::Complete(Completed { result_json: "{\"rows\":1000}".into() })
}

/// A job in the hands of its only writer.
struct Running {
    record: JobRecord,
    head: Head,
    reports: u64,
}

impl Running {
    async fn start(store: &dyn Store, rules: &Rules) -> Self {
        let epoch = new_epoch();
        let new = NewJob {
            job_id: new_job_id(None),
            epoch: epoch.clone(),
            kind: "csv-import".into(),
            tenant: "default".into(),
            owner: "somebody@example.org".into(),
            input_json: "{\"path\":\"/var/lib/tidegate/import/customers.csv\",\"table\":\"customers\"}"
                .into(),
            options: JobOptions {
                retention: Some(prost_types::Duration { seconds: 86_400, nanos: 0 }),
                ..JobOptions::default()
            },
        };
        let mut job = Self { record: JobRecord::default(), head: Head { seq: 0, epoch }, reports: 0 };
        job.commit(store, Draft::submit(new, rules, store.now_ms())).await;
        let mut draft = Draft::of(job.record.clone(), job.head.clone(), rules, store.now_ms());
        draft.assign("worker", "0123456789abcdef").expect("queued");
        job.commit(store, draft).await;
        job
    }

    async fn report(&mut self, store: &dyn Store, rules: &Rules, body: Body) {
        let mut draft = Draft::of(self.record.clone(), self.head.clone(), rules, store.now_ms());
        self.reports += 1;
        draft.report("1-0123456789abcdef", self.reports, &body, 1.0).expect("a report under the lease");
        self.commit(store, draft).await;
    }

    async fn commit(&mut self, store: &dyn Store, draft: Draft<'_>) {
        match store.commit(draft.commit()).await.expect("the store answers") {
            CommitOutcome::Committed(head) => self.head = head,
            CommitOutcome::Conflict(now) => panic!("nobody else writes: {now:?}"),
        }
        self.record = draft.record;
    }
}
