//! From a worker's report to the bytes at the viewer's socket, on both event logs.
//!
//! `cargo bench -p tidegate --bench latency [-- SECONDS]`
//!
//! One engine, one gateway and one worker in this process, joined by real sockets as always; 100 jobs that log ten
//! lines a second each, 100 viewers, one a job. Every line carries the time at which it was reported; a viewer reads
//! the clock when the line's bytes arrive. The yardstick in the same run, under the same load, is one hop over a
//! loopback TCP connection with a task at each end: the way has five such hops (worker, engine, log, gateway,
//! viewer; the embedded log saves two), so the ratio says what Tidegate adds to bare sockets.

#[path = "../../job-engine/tests/conformance/redis_server.rs"]
mod redis_server;

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use clap::Parser;
use futures_util::{StreamExt as _, future::BoxFuture};
use job_engine::{config::Config, server};
use redis_server::RedisServer;
use serde_json::{Value, json};
use tidegate::sse;
use tidegate_worker::{JobContext, JobHandler, JobResult, LogLevel, Offer, Status, Worker};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Mutex, watch},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

const JOBS: u32 = 100;
const LINES_PER_SECOND: u64 = 10;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

fn now_ns() -> u64 {
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

type Samples = Arc<Mutex<Vec<u64>>>;

/// Logs the time, ten times a second.
struct Ticker;

impl JobHandler for Ticker {
    fn offer(&self) -> Offer {
        let description = "Logs the time.".into();
        Offer { kind: "ticker".into(), description, input_schema: json!({}), example: json!({}) }
    }

    fn run(&self, job: JobContext) -> BoxFuture<'_, JobResult> {
        Box::pin(async move {
            let input: Value = job.input()?;
            let lines = input["lines"].as_u64().unwrap_or(0);
            let mut tick = tokio::time::interval(Duration::from_millis(1000 / LINES_PER_SECOND));
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            // Jobs that start together must not tick together.
            tokio::time::sleep(Duration::from_micros(rand::random_range(0..100_000))).await;
            for _ in 0..lines {
                tick.tick().await;
                job.log(LogLevel::Info, "", now_ns().to_string()).await;
            }
            Ok(Value::Null)
        })
    }
}

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    config: Config,
}

fn main() {
    let seconds = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(10);
    LazyLock::force(&START);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        println!("{JOBS} jobs, {} events/s, {seconds} s each", u64::from(JOBS) * LINES_PER_SECOND);
        println!("{:<28} {:>9} {:>9} {:>9} {:>8}", "", "p50", "p99", "max", "events");
        let dir = tempfile::tempdir().expect("a scratch directory");
        let data = |name: &str| format!("--data-dir={}", dir.path().join(name).display());
        let hop = report("one loopback hop", hop(seconds).await, None);
        for level in ["buffer", "sync"] {
            let flags = vec![data(level), format!("--durability={level}")];
            report(&format!("embedded log, {level}"), system(flags, seconds).await, Some(hop));
        }
        let redis = RedisServer::start();
        report(
            "Redis",
            system(vec![data("redis"), format!("--redis={}", redis.url())], seconds).await,
            Some(hop),
        );
    });
}

/// Prints a row; returns its median.
fn report(name: &str, mut samples: Vec<u64>, hop: Option<f64>) -> f64 {
    samples.sort_unstable();
    // In thousandths, so that the rank needs no rounding.
    let ms = |thousandths: usize| samples[(samples.len() - 1) * thousandths / 1000] as f64 / 1e6;
    let ratio = hop.map(|hop| format!("   p50 = {:.1} loopback hops", ms(500) / hop)).unwrap_or_default();
    println!(
        "{name:<28} {:>7.2}ms {:>7.2}ms {:>7.2}ms {:>8}{ratio}",
        ms(500),
        ms(990),
        ms(1000),
        samples.len()
    );
    ms(500)
}

/// The whole way, once.
async fn system(mut flags: Vec<String>, seconds: u64) -> Vec<u64> {
    let fixed = ["latency", "--grpc-listen=127.0.0.1:0", "--engine-admin-listen=127.0.0.1:0"];
    flags.splice(0..0, fixed.map(String::from));
    let stop = CancellationToken::new();
    let engine = server::bind(&Flags::parse_from(flags).config, None).await.expect("an engine");
    let grpc = format!("http://{}", engine.grpc_addr().expect("an address"));
    let engine = tokio::spawn(engine.serve(stop.clone()));
    let engines = grpc.parse().expect("a url");
    let config = edge_gateway::Config { drain: Duration::ZERO, ..edge_gateway::Config::local(engines) };
    let gateway = edge_gateway::Gateway::bind(config).expect("a gateway");
    let http = gateway.addr();
    let gateway = tokio::spawn(gateway.serve(stop.clone().cancelled_owned()));
    let status = watch::Sender::new(Status::Connecting);
    let worker = Worker::builder([grpc]).capacity(JOBS).handler(Ticker).status(status.clone());
    let worker_stop = CancellationToken::new();
    let worker = tokio::spawn(worker.build().expect("a worker").run(worker_stop.clone()));
    status.subscribe().wait_for(|s| *s == Status::Connected).await.expect("the worker connects");

    let samples = Samples::default();
    let viewers: Vec<_> =
        (0..JOBS).map(|_| tokio::spawn(view(http, seconds * LINES_PER_SECOND, samples.clone()))).collect();
    for viewer in viewers {
        viewer.await.expect("a viewer");
    }
    worker_stop.cancel();
    worker.await.expect("the worker ends");
    stop.cancel();
    gateway.await.expect("the gateway ends");
    engine.await.expect("no panic").expect("the engine ends");
    let samples = std::mem::take(&mut *samples.lock().await);
    let wanted = u64::from(JOBS) * seconds * LINES_PER_SECOND;
    assert_eq!(samples.len() as u64, wanted, "every line arrives exactly once");
    samples
}

/// Submits one job and reads its stream to the end.
async fn view(gateway: SocketAddr, lines: u64, samples: Samples) {
    let client = reqwest::Client::new();
    let body = json!({"kind": "ticker", "input": {"lines": lines}});
    let job = client.post(format!("http://{gateway}/api/jobs")).json(&body).send().await.expect("submitted");
    let job: Value = job.json().await.expect("a job");
    let url = format!("http://{gateway}/api/progress/{}", job["jobId"].as_str().expect("an id"));
    let mut stream =
        client.get(url).header("accept", "text/event-stream").send().await.expect("a stream").bytes_stream();
    let mut parser = sse::Parser::with_limit(1 << 20);
    let mut mine = Vec::new();
    while let Some(chunk) = stream.next().await {
        let arrived = now_ns();
        let sink = &mut |event: sse::Event| {
            if event.name == "log" {
                mine.extend(event.data.trim_matches('"').parse::<u64>().ok().map(|sent| arrived - sent));
            }
        };
        parser.feed(&chunk.expect("no error"), sink).expect("small events");
    }
    samples.lock().await.extend(mine);
}

/// The yardstick: the same messages over one bare connection a job.
async fn hop(seconds: u64) -> Vec<u64> {
    let samples = Samples::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let addr = listener.local_addr().expect("an address");
    let mut tasks = Vec::new();
    for _ in 0..JOBS {
        let (sender, receiver) = tokio::join!(TcpStream::connect(addr), listener.accept());
        let (mut sender, mut receiver) = (sender.expect("connected"), receiver.expect("accepted").0);
        sender.set_nodelay(true).expect("nodelay");
        tasks.push(tokio::spawn(async move {
            tokio::time::sleep(Duration::from_micros(rand::random_range(0..100_000))).await;
            let mut tick = tokio::time::interval(Duration::from_millis(1000 / LINES_PER_SECOND));
            for _ in 0..seconds * LINES_PER_SECOND {
                tick.tick().await;
                sender.write_u64(now_ns()).await.expect("sent");
            }
        }));
        let samples = samples.clone();
        tasks.push(tokio::spawn(async move {
            let mut mine = Vec::new();
            while let Ok(sent) = receiver.read_u64().await {
                mine.push(now_ns() - sent);
            }
            samples.lock().await.extend(mine);
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    std::mem::take(&mut *samples.lock().await)
}
