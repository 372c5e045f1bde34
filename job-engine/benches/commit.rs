//! Commits a second: one event of 120 bytes and a state of 300 bytes each (that of a running demo job has 290),
//! without and with one index change, by many callers at once, each with a stream of its own.
//!
//! Run it on an idle machine: server, callers and store share its cores.
//! Redis stands beside bare `XADD`s of the same event to as many streams of the same server, through the same client
//! library, so that the ratio says what the store costs: once in four explicit pipelines of one `XADD` a stream, once
//! by as many callers who each wait for their answer. What the server itself spent is the column `server us`: its
//! CPU time per event, which other load on the machine disturbs least. Run with
//! `cargo bench -p job-engine --bench commit -- [seconds per figure] [callers]`.
#![allow(missing_docs)]

#[path = "../tests/conformance/redis_server.rs"]
mod redis_server;

use std::{
    future::Future,
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use job_engine::store::{
    Commit, CommitOutcome, Expect, IndexChange, Store,
    embedded::{Durability, EmbeddedStore},
    redis::{RedisOptions, RedisStore},
};
use redis_server::RedisServer;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EVENT: usize = 120;
const STATE: usize = 300;
/// Events kept; beyond that a sixteenth of them is dropped at once, as the engine does (`job/log_ring.rs`).
const KEPT: u64 = 1000;

/// What one figure came from.
struct Figure {
    name: &'static str,
    callers: usize,
    /// The server's CPU time per call.
    server: Option<Duration>,
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|a| a.parse::<u64>().ok());
    let time = Duration::from_secs(numbers.next().unwrap_or(4));
    let callers = usize::try_from(numbers.next().unwrap_or(256)).expect("a number of callers");

    let server = RedisServer::start();
    let client = redis::Client::open(server.url()).expect("a URL");
    let connection = client.get_multiplexed_async_connection().await.expect("redis-server answers");
    let on = Some(&server);
    let mut table = vec![
        measure("bare XADD, pipelines", on, callers, 4, time, |_, m| {
            bare_pipelines(connection.clone(), callers, m)
        })
        .await,
        measure("bare XADD", on, callers, callers, time, |i, m| bare_calls(connection.clone(), i, m)).await,
    ];
    for (name, namespace, indexed) in
        [("redis commit", "plain", false), ("redis commit, index", "indexed", true)]
    {
        let options = RedisOptions { namespace: namespace.into(), ..RedisOptions::new(server.url()) };
        let store = Arc::new(RedisStore::connect(&options).await.expect("redis-server answers"));
        table.push(commits(name, on, store, indexed, callers, time).await);
    }
    drop(server);

    for (name, durability, callers) in [
        ("embedded, unsynced", Durability::Buffer, callers),
        ("embedded, synced", Durability::Sync, callers),
        ("embedded, synced", Durability::Sync, 1),
    ] {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let store = EmbeddedStore::open(dir.path(), durability).expect("the directory can be opened");
        table.push(commits(name, None, Arc::new(store), true, callers, time).await);
    }

    println!(
        "\n{:<22} {:>8} {:>12} {:>10} {:>10} {:>10}",
        "", "callers", "per second", "p50 ms", "p99 ms", "server us"
    );
    for Figure { name, callers, server, per_second, p50, p99 } in &table {
        let (p50, p99) = (p50.as_secs_f64() * 1e3, p99.as_secs_f64() * 1e3);
        let server = server.map_or("-".into(), |s| format!("{:.2}", s.as_secs_f64() * 1e6));
        println!("{name:<22} {callers:>8} {per_second:>12.0} {p50:>10.2} {p99:>10.2} {server:>10}");
    }
    println!();
    for commit in &table[2..4] {
        let [piped, called] = [0, 1].map(|bare| commit.per_second / table[bare].per_second);
        println!(
            "{} / bare XADD in pipelines = {piped:.2} (target 0.3), one by one = {called:.2}",
            commit.name
        );
    }
    println!("embedded, unsynced = {:.0}/s (target 50000)", table[4].per_second);
}

/// Tells the callers when to stop, and which calls to count.
#[derive(Default)]
struct Meter {
    counting: AtomicBool,
    stopped: AtomicBool,
}

/// How long each counted call took.
struct Calls {
    meter: Arc<Meter>,
    took: Vec<Duration>,
}

impl Calls {
    fn go_on(&self) -> bool {
        !self.meter.stopped.load(Ordering::Relaxed)
    }

    /// Notes a call that began at `begun` and did `n` things.
    fn note(&mut self, begun: Instant, n: usize) {
        if self.meter.counting.load(Ordering::Relaxed) {
            self.took.extend(std::iter::repeat_n(begun.elapsed(), n));
        }
    }
}

/// Runs `tasks` callers for `time`, after a second to warm up. `callers` is for the table.
async fn measure<F>(
    name: &'static str,
    server: Option<&RedisServer>,
    callers: usize,
    tasks: usize,
    time: Duration,
    caller: impl Fn(usize, Calls) -> F,
) -> Figure
where
    F: Future<Output = Calls> + Send + 'static,
{
    print!("{name}, {callers} callers, {time:?} ... ");
    let _ = std::io::stdout().flush();
    let meter = Arc::new(Meter::default());
    let calls = || Calls { meter: meter.clone(), took: Vec::new() };
    let tasks: tokio::task::JoinSet<Calls> = (0..tasks).map(|i| caller(i, calls())).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = server.map(cpu);
    meter.counting.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    tokio::time::sleep(time).await;
    meter.counting.store(false, Ordering::Relaxed);
    let elapsed = begun.elapsed();
    let spent = server.map(cpu).zip(spent).map(|(after, before)| after - before);
    meter.stopped.store(true, Ordering::Relaxed);
    let mut took: Vec<Duration> = tasks.join_all().await.into_iter().flat_map(|c| c.took).collect();
    took.sort_unstable();
    assert!(!took.is_empty(), "no call ended in time");
    let per_second = took.len() as f64 / elapsed.as_secs_f64();
    println!("{per_second:.0}/s");
    let server = spent.map(|spent| spent.div_f64(took.len() as f64));
    Figure { name, callers, server, per_second, p50: took[took.len() / 2], p99: took[took.len() * 99 / 100] }
}

/// The server's CPU time so far.
fn cpu(server: &RedisServer) -> Duration {
    let info = server.command("INFO cpu").expect("redis-server answers");
    let seconds = |name: &str| -> f64 {
        let value = info.lines().find_map(|line| line.strip_prefix(name));
        value.and_then(|v| v.trim().parse().ok()).expect("a number of seconds")
    };
    Duration::from_secs_f64(seconds("used_cpu_sys:") + seconds("used_cpu_user:"))
}

fn xadd(caller: usize) -> redis::Cmd {
    let mut cmd = redis::cmd("XADD");
    cmd.arg(format!("bare{caller}")).arg("MAXLEN").arg("~").arg(KEPT).arg("*").arg("d").arg(&[b'x'; EVENT]);
    cmd
}

async fn bare_calls(
    mut connection: redis::aio::MultiplexedConnection,
    caller: usize,
    mut calls: Calls,
) -> Calls {
    let cmd = xadd(caller);
    while calls.go_on() {
        let begun = Instant::now();
        cmd.exec_async(&mut connection).await.expect("XADD");
        calls.note(begun, 1);
    }
    calls
}

async fn bare_pipelines(
    mut connection: redis::aio::MultiplexedConnection,
    streams: usize,
    mut calls: Calls,
) -> Calls {
    let mut pipe = redis::pipe();
    for i in 0..streams {
        pipe.add_command(xadd(i)).ignore();
    }
    while calls.go_on() {
        let begun = Instant::now();
        pipe.exec_async(&mut connection).await.expect("XADD");
        calls.note(begun, streams);
    }
    calls
}

async fn commits(
    name: &'static str,
    server: Option<&RedisServer>,
    store: Arc<dyn Store>,
    indexed: bool,
    callers: usize,
    time: Duration,
) -> Figure {
    let caller = |caller, calls| commit_loop(store.clone(), caller, indexed, calls);
    measure(name, server, callers, callers, time, caller).await
}

async fn commit_loop(store: Arc<dyn Store>, caller: usize, indexed: bool, mut calls: Calls) -> Calls {
    let stream = format!("0190a0b0-0000-7000-8000-{caller:012}");
    let (state, event) = (Bytes::from(vec![b's'; STATE]), Bytes::from(vec![b'x'; EVENT]));
    let mut expect = Expect::Absent { epoch: "q7x2ma".into(), fixed: Bytes::new() };
    let (mut seq, mut first) = (0, 1);
    while calls.go_on() {
        let begun = Instant::now();
        let put = IndexChange::Put {
            index: "leases".into(),
            member: stream.clone(),
            after: Duration::from_secs(30),
        };
        let over = seq + 2 - first > KEPT;
        if over {
            first += KEPT / 16;
        }
        let commit = Commit {
            stream: stream.clone(),
            expect,
            state: state.clone(),
            events: vec![event.clone()],
            first_seq: if over { first } else { 0 },
            index: Vec::from_iter(indexed.then_some(put)),
        };
        match store.commit(commit).await {
            Ok(CommitOutcome::Committed(head)) => {
                seq = head.seq;
                expect = Expect::At(head);
            }
            other => panic!("{other:?}"),
        }
        calls.note(begun, 1);
    }
    calls
}
