//! The worker of `bench/bullmq` in Rust: jobs that report progress and do nothing else, 50 at a time.
//!
//! `bench ENGINE WARM_UP JOBS` offers the kind `bench` {reports}. It writes `warm` after the first jobs; the others wait
//! until it is told to go by a line. It writes `done` when the end of the last one is stored, and waits to be killed, so
//! that its CPU time can still be read.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use anyhow::Context as _;
use futures_util::{FutureExt as _, future::BoxFuture};
use serde_json::{Value, json};
use tidegate_worker::{JobContext, JobHandler, JobResult, Offer, Progress, Worker};
use tokio_util::sync::CancellationToken;

struct Bench {
    warm_up: u32,
    jobs: u32,
    begun: AtomicU32,
    ended: AtomicU32,
    go: CancellationToken,
    done: CancellationToken,
}

impl JobHandler for Bench {
    fn offer(&self) -> Offer {
        let description = "Reports progress and does nothing else.".into();
        Offer { kind: "bench".into(), description, input_schema: json!({}), example: json!({"reports": 10}) }
    }

    fn run(&self, job: JobContext) -> BoxFuture<'_, JobResult> {
        async move {
            let input: Value = job.input()?;
            let reports = u32::try_from(input["reports"].as_u64().unwrap_or(10)).unwrap_or(u32::MAX);
            if self.begun.fetch_add(1, Relaxed) >= self.warm_up {
                self.go.cancelled().await;
            }
            for i in 1..=reports {
                let percent = Some(f64::from(i) * 100.0 / f64::from(reports));
                job.progress(Progress { percent, ..Progress::default() }).await;
            }
            let ended = self.ended.fetch_add(1, Relaxed) + 1;
            if ended == self.warm_up {
                println!("warm");
            }
            if ended == self.warm_up + self.jobs {
                self.done.cancel();
            }
            Ok(Value::Null)
        }
        .boxed()
    }
}

#[tokio::main(flavor = "current_thread")] // as Node's workers have
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [engine, warm_up, jobs] = args.as_slice() else {
        anyhow::bail!("usage: bench ENGINE WARM_UP JOBS");
    };
    let (go, done) = (CancellationToken::new(), CancellationToken::new());
    let bench = Bench {
        warm_up: warm_up.parse().context("WARM_UP is a number")?,
        jobs: jobs.parse().context("JOBS is a number")?,
        begun: AtomicU32::new(0),
        ended: AtomicU32::new(0),
        go: go.clone(),
        done: done.clone(),
    };
    let worker = Worker::builder([engine])
        .name("bench")
        .capacity(50)
        .coalesce(false)
        .handler(bench)
        .build()
        .map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    tokio::task::spawn_blocking(move || std::io::stdin().read_line(&mut String::new()).map(|_| go.cancel()));
    // It ends when everything that was said is stored.
    worker.run(done).await;
    println!("done");
    std::future::pending().await
}
